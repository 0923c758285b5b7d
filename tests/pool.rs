//! Tests that a reused connection behaves like a new connection, whatever the last user has sent.
//! The tests send every command of a real Redis, with arguments that match Redis's own descriptions
//! of the commands.
//!
//! POOL_SEED repeats the random choices of a run. POOL_ROUNDS sets how often the test sends each
//! command. `tests/soak.rs` tests apps that use the pool at the same time.

mod support;

use std::collections::BTreeMap;
use std::env;
use std::io::{self, BufRead, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use start_stunnel::pool::commands;
use start_stunnel::resp::ReplyFramer;
use support::launcher::Launcher;
use support::resp::{Client, Reply, request};
use support::servers::{Front, PASSWORD, Server};
use support::{PATIENCE, reset};

/// The default of POOL_ROUNDS.
const ROUNDS: u64 = 1;
/// The time to wait for a reply that may never come.
const GLANCE: Duration = Duration::from_millis(50);

/// Commands with fixed arguments, because random arguments could end the server or disturb other
/// users.
const TAMED: &[(&str, &[&str])] = &[
    ("acl|deluser", &["nobody"]),
    ("acl|setuser", &["somebody", "on"]),
    ("client|kill", &["ID", "99999999"]),
    ("client|pause", &["10", "ALL"]),
    ("client|unblock", &["99999999"]),
    ("debug", &["SLEEP", "0"]),
    ("failover", &["ABORT"]),
    ("hello", &["3", "AUTH", "default", PASSWORD, "SETNAME", "somebody"]),
    ("replicaof", &["NO", "ONE"]),
    ("select", &["7"]),
    ("shutdown", &["ABORT"]),
    ("slaveof", &["NO", "ONE"]),
];

/// Fields of CLIENT INFO that the tests do not compare, because these fields differ between new
/// connections, or show only memory. The field `multi` is not reliable: in Valkey 8.1, `multi`
/// stays 0 after a transaction, even after RESET.
const OWN: &str = "id addr laddr fd age idle qbuf qbuf-free argv-mem multi rbs rbp tot-mem \
                   tot-net-in tot-net-out tot-cmds cmd lib-name lib-ver io-thread";

fn number_of(variable: &str) -> Option<u64> {
    env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Returns and prints the seed of this run.
fn seed() -> u64 {
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into();
    let seed = number_of("POOL_SEED").unwrap_or_else(clock);
    println!("POOL_SEED={seed}");
    seed
}

// --- Commands ---------------------------------------------------------------------------------

/// The value of the field `name` in a description from COMMAND DOCS. Each description is a list
/// that alternates between names and values.
fn field<'a>(description: &'a Reply, name: &str) -> Option<&'a Reply> {
    let Reply::Array(fields) = description else { panic!("{description:?}") };
    fields.chunks(2).find(|pair| pair[0] == Reply::bulk(name)).map(|pair| &pair[1])
}

fn text(reply: &Reply) -> String {
    match reply {
        Reply::Bulk(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        Reply::Line(line) => line.trim_start_matches('+').to_owned(),
        other => panic!("{other:?}"),
    }
}

fn list(reply: Option<&Reply>) -> &[Reply] {
    match reply {
        Some(Reply::Array(items)) => items,
        _ => &[],
    }
}

/// All of Redis's commands and subcommands, with the descriptions of their arguments.
fn descriptions(direct: &mut Client) -> BTreeMap<String, Vec<Reply>> {
    let Reply::Array(docs) = direct.ask(&["COMMAND", "DOCS"]) else { panic!("no docs") };
    let Reply::Array(listed) = direct.ask(&["COMMAND", "LIST"]) else { panic!("no list") };
    let mut found = BTreeMap::new();
    for of_one in docs.chunks(2) {
        let subcommands = list(field(&of_one[1], "subcommands"));
        for pair in of_one.chunks(2).chain(subcommands.chunks(2)) {
            found.insert(text(&pair[0]), list(field(&pair[1], "arguments")).to_vec());
        }
    }
    let listed: Vec<String> = listed.iter().map(text).collect();
    let missing: Vec<_> = listed.iter().filter(|name| !found.contains_key(*name)).collect();
    assert!(missing.is_empty(), "without a description: {missing:?}");
    found
}

/// Adds a random argument that matches the description `argument`.
fn add_argument(words: &mut Vec<String>, argument: &Reply, dice: &mut Rng) {
    let flags: Vec<String> = list(field(argument, "flags")).iter().map(text).collect();
    if flags.iter().any(|flag| flag == "optional") && dice.bool() {
        return;
    }
    if let Some(token) = field(argument, "token") {
        words.push(text(token));
    }
    let name = text(field(argument, "name").expect("a name"));
    let short = ["timeout", "milliseconds", "seconds"].contains(&name.as_str());
    match text(field(argument, "type").expect("a type")).as_str() {
        "pure-token" => {}
        "oneof" => add_argument(words, one_of(list(field(argument, "arguments")), dice), dice),
        "block" => {
            for part in list(field(argument, "arguments")) {
                add_argument(words, part, dice);
            }
        }
        "key" => words.push(format!("key:{}", dice.u64(..4))),
        "integer" if name == "numkeys" || name == "port" => words.push("1".into()),
        "integer" if short => words.push("10".into()),
        "integer" => words.push(dice.u64(..5).to_string()),
        "double" => words.push("0.01".into()),
        "unix-time" => words.push("4102444800".into()),
        "pattern" => words.push("*".into()),
        _ if name == "script" => words.push("return redis.call('ping')".into()),
        _ if name == "host" => words.push("127.0.0.1".into()),
        // There are only four texts, so that users often choose the same name or channel.
        _ => words.push(format!("text:{}", dice.u64(..4))),
    }
}

fn one_of<'a, T>(choices: &'a [T], dice: &mut Rng) -> &'a T {
    &choices[dice.usize(..choices.len())]
}

/// A random request with this command.
fn words_of(name: &str, arguments: &[Reply], dice: &mut Rng) -> Vec<String> {
    let mut words: Vec<String> = name.split('|').map(str::to_owned).collect();
    match TAMED.iter().find(|(tamed, _)| *tamed == name) {
        Some((_, tame)) => words.extend(tame.iter().map(|word| (*word).to_owned())),
        None => arguments.iter().for_each(|argument| add_argument(&mut words, argument, dice)),
    }
    words
}

/// True if the pool may reuse a connection after this command.
fn is_listed(name: &str) -> bool {
    let (command, subcommand) = name.split_once('|').unwrap_or((name, ""));
    commands::effect(command.as_bytes(), Some(subcommand.as_bytes()))
        .is_some_and(|effect| effect != commands::Effect::NoneIfRefused)
}

// --- Users ------------------------------------------------------------------------------------

/// The ways in which an app ends its connection.
#[derive(Debug, Clone, Copy)]
enum Leaving {
    Close,
    HalfClose,
    Reset,
}

const LEAVINGS: [Leaving; 3] = [Leaving::Close, Leaving::HalfClose, Leaving::Reset];

fn leave(mut client: Client, how: Leaving) {
    let stream: &TcpStream = client.stream.get_ref();
    match how {
        Leaving::Close => {}
        Leaving::HalfClose => {
            // The launcher may have closed the connection already.
            let _closed = stream.shutdown(Shutdown::Write);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let end = io::copy(&mut client.stream, &mut io::sink());
            let timed_out = |error: &io::Error| error.kind() == io::ErrorKind::WouldBlock;
            assert!(!end.as_ref().is_err_and(timed_out), "the launcher closes its side: {end:?}");
        }
        Leaving::Reset => reset(stream),
    }
}

/// Sends a request and reads its complete reply, in RESP2 or RESP3. Returns `None` if no reply
/// comes in time.
fn ask_raw(client: &mut Client, words: &[String], patience: Duration) -> Option<Vec<u8>> {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    client.stream.get_mut().write_all(&request(&words)).ok()?;
    client.stream.get_ref().set_read_timeout(Some(patience)).unwrap();
    let (mut framer, mut reply) = (ReplyFramer::default(), Vec::new());
    loop {
        let there = client.stream.fill_buf().ok()?;
        if there.is_empty() {
            return None;
        }
        let mut rest = there;
        let complete = framer.next(&mut rest).ok()?;
        let taken = there.len() - rest.len();
        reply.extend(&there[..taken]);
        client.stream.consume(taken);
        if complete {
            client.stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
            return Some(reply);
        }
    }
}

/// The connection's id, and its other fields in the reply to CLIENT INFO.
fn state(client: &mut Client) -> (String, String) {
    let info = text(&client.ask(&["CLIENT", "INFO"]));
    let fields: Vec<_> =
        info.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
    let id = fields.iter().find(|(name, _)| *name == "id").expect("an id").1.to_owned();
    let is_state = |(name, _): &&(&str, &str)| !OWN.split(' ').any(|own| own == *name);
    let state: Vec<_> =
        fields.iter().filter(is_state).map(|(name, value)| format!("{name}={value}")).collect();
    (id, state.join(" "))
}

/// Asserts that the connection has the state of a new connection, and that its user gets only
/// replies to its own requests. Returns the connection's id.
#[track_caller]
fn assert_like_new(client: &mut Client, direct: &mut Client, mark: &str, expected: &str) -> String {
    assert_eq!(
        client.ask(&["GET", mark]),
        Reply::line("-NOAUTH Authentication required."),
        "nobody is logged in, and the protocol is RESP2"
    );
    assert_eq!(client.ask(&["AUTH", PASSWORD]), Reply::line("+OK"));
    let (id, state) = state(client);
    assert_eq!(state, expected);
    assert_eq!(client.ask(&["EXEC"]), Reply::line("-ERR EXEC without MULTI"));
    // If an earlier user's WATCH or subscription were still active, the following changes and
    // messages would disturb the transaction.
    assert_eq!(client.ask(&["MULTI"]), Reply::line("+OK"));
    assert_eq!(client.ask(&["ECHO", mark]), Reply::line("+QUEUED"));
    for key in 0..4 {
        direct.ask(&["SET", &format!("key:{key}"), mark]);
        direct.ask(&["PUBLISH", &format!("text:{key}"), mark]);
    }
    assert_eq!(client.ask(&["EXEC"]), Reply::Array(vec![Reply::bulk(mark)]));
    let script = format!("return '{mark}'");
    assert_eq!(client.ask(&["EVAL", &script, "0"]), Reply::bulk(mark), "no debugger");
    client.send(&["ECHO", mark]);
    client.send(&["ECHO", "last"]);
    assert_eq!(client.reply().unwrap(), Reply::bulk(mark));
    assert_eq!(client.reply().unwrap(), Reply::bulk("last"));
    assert!(client.stream.buffer().is_empty(), "another user's reply");
    id
}

/// The ids that Redis has given to the launcher's connections.
fn ids(server: &Server, direct: &mut Client) -> Vec<String> {
    let clients = text(&direct.ask(&["CLIENT", "LIST"]));
    let by_tls = format!(" laddr=127.0.0.1:{} ", server.tls_port());
    let by_tls = clients.lines().filter(|line| line.contains(&by_tls));
    by_tls.map(|line| line.split([' ', '=']).nth(1).expect("an id").to_owned()).collect()
}

#[test]
fn no_command_changes_what_the_next_app_sees() {
    for pool in ["on", "auto"] {
        let mut dice = Rng::with_seed(seed());
        let server = Server::start(Front::Redis);
        let mut direct = server.direct();
        let commands = descriptions(&mut direct);
        assert!(commands.len() > 300, "{}", commands.len());
        let (_, expected) = state(&mut server.direct());
        let settings = [("STUNNEL_POOL", pool), ("STUNNEL_STATUS_ADDRESS", "0")];
        let held = Launcher::hold_with(&server.url(), &settings);
        let page = held.page();
        let (mut reused, mut reusable, mut tried) = (0, 0, 0);
        for round in 0..number_of("POOL_ROUNDS").unwrap_or(ROUNDS) {
            for (index, (name, arguments)) in commands.iter().enumerate() {
                let how = LEAVINGS[(index + round as usize) % LEAVINGS.len()];
                let words = words_of(name, arguments, &mut dice);
                let listed = is_listed(name);
                let scene = format!("{words:?}, {how:?}, {pool}");
                println!("{scene}");

                let mut user = held.client();
                let patience = if listed { PATIENCE } else { GLANCE };
                let reply = ask_raw(&mut user, &words, patience);
                assert!(reply.is_some() || !listed, "no reply: {scene}");
                let ids = ids(&server, &mut direct);
                leave(user, how);
                page.wait_until_all_is_idle();

                let mark = format!("mark-{round}-{index}");
                let mut next = held.open();
                let id = assert_like_new(&mut next, &mut direct, &mark, &expected);
                leave(next, Leaving::Close);
                page.wait_until_all_is_idle();
                let is_reused = ids.contains(&id);
                assert!(!is_reused || listed, "reused after {scene}");
                reused += usize::from(is_reused);
                reusable += usize::from(listed);
                tried += 1;
            }
        }
        println!("{pool}: {tried} commands, {reusable} of them harmless; reused after {reused}");
        // With `--pool auto`, the pool is off for the first apps.
        let least = if pool == "on" { 9 } else { 7 };
        assert!(reused * 10 >= reusable * least, "reused after {reused} of {reusable}");
    }
}
