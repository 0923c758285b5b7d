//! Tests that a reused connection behaves like a new connection, whatever the last user has sent.
//! The tests send every command of a real Redis, with arguments that match Redis's own descriptions
//! of the commands.
//!
//! POOL_SEED repeats the random choices of a run. POOL_ROUNDS sets how often the first test sends
//! each command. POOL_VISITS sets how many users each thread of the second test simulates.

mod support;

use std::collections::BTreeMap;
use std::env;
use std::io::{self, BufRead, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use start_stunnel::pool::commands;
use start_stunnel::resp::ReplyFramer;
use support::launcher::{Held, Launcher};
use support::resp::{Client, Reply, request};
use support::servers::{Front, PASSWORD, Server};
use support::{PATIENCE, reset};

/// The default of POOL_ROUNDS.
const ROUNDS: u64 = 1;
/// The time to wait for a reply that may never come.
const GLANCE: Duration = Duration::from_millis(50);
/// The number of threads in the test `concurrent_apps_never_see_each_others_state`.
const THREADS: u64 = 8;
/// The default of POOL_VISITS.
const VISITS: u64 = 60;

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

fn hold(server: &Server, pool: &str) -> Held {
    Launcher::holding(&server.url())
        .settings(&[("STUNNEL_POOL", pool), ("STUNNEL_STATUS_ADDRESS", "0")])
        .start_held()
}

/// The state of a new connection that does not pass through the launcher.
fn new_state(server: &Server) -> String {
    state(&mut server.direct()).1
}

#[test]
fn no_command_changes_what_the_next_app_sees() {
    for pool in ["on", "auto"] {
        let mut dice = Rng::with_seed(seed());
        let server = Server::start(Front::Redis);
        let mut direct = server.direct();
        let commands = descriptions(&mut direct);
        assert!(commands.len() > 300, "{}", commands.len());
        let expected = new_state(&server);
        let held = hold(&server, pool);
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

/// Requests that a user sends before disconnecting: a list of requests, and a last request, which
/// may be empty. The user waits for a reply to each request in the list. The user sends the last
/// request in full or in part, and does not wait for its reply.
const MESSES: [(&[&str], &str); 9] = [
    (&["MULTI", "SET lost x"], ""),
    (&["WATCH key:0"], ""),
    (&["SELECT 7"], ""),
    (&["SUBSCRIBE text:0"], ""),
    (&["HELLO 3", "CLIENT TRACKING on BCAST"], ""),
    (&["HELLO 3"], ""),
    (&[], "CLIENT REPLY SKIP"),
    (&[], "BLPOP nothing 0"),
    (&[], "ECHO unread"),
];

/// Sends the requests of an entry of [`MESSES`], and disconnects. Half of the users are impatient:
/// they skip the rest of the list if a reply does not arrive at once. The launcher may close the
/// connection earlier.
fn leave_in_a_mess(mut user: Client, dice: &mut Rng) {
    let patience = if dice.bool() { PATIENCE } else { Duration::from_micros(1) };
    let (asked, sent) = *one_of(&MESSES, dice);
    for asked in asked {
        let words: Vec<_> = asked.split(' ').map(str::to_owned).collect();
        if ask_raw(&mut user, &words, patience).is_none() {
            break;
        }
    }
    if !sent.is_empty() {
        let whole = request(&sent.split(' ').map(str::as_bytes).collect::<Vec<_>>());
        let end = if dice.bool() { whole.len() } else { dice.usize(1..whole.len()) };
        let _gone = user.stream.get_mut().write_all(&whole[..end]);
    }
    // After a half-close, BLPOP would wait forever, so the user resets the connection.
    let how = match sent.starts_with("BLPOP") {
        true => Leaving::Reset,
        false => *one_of(&LEAVINGS, dice),
    };
    leave(user, how);
}

/// Sends some random commands, checks that the user gets its own replies, and disconnects.
fn leave_after_random_commands(
    mut user: Client,
    commands: &[(String, Vec<Reply>)],
    mark: &str,
    dice: &mut Rng,
) {
    let is_known = (0..dice.u64(..6)).all(|_| {
        let (name, arguments) = one_of(commands, dice);
        let words = words_of(name, arguments, dice);
        // After a command that the pool does not know, a reply may be missing. Wait only briefly.
        let is_known = is_listed(name) && !["hello", "reset"].contains(&name.as_str());
        let patience = if is_known { PATIENCE } else { GLANCE };
        let reply = ask_raw(&mut user, &words, patience);
        assert!(reply.is_some() || !is_known, "{words:?}");
        is_known
    });
    if is_known {
        let echo = ["ECHO", mark].map(str::to_owned);
        let reply = ask_raw(&mut user, &echo, PATIENCE).expect("a reply");
        let reply = String::from_utf8_lossy(&reply).into_owned();
        // In a transaction, Redis answers ECHO with `+QUEUED`.
        assert!(reply.contains(mark) || reply == "+QUEUED\r\n", "{reply}");
    }
    leave(user, *one_of(&LEAVINGS, dice));
}

/// Simulates a user, who either checks that the connection is like new, or sends requests and
/// disconnects.
fn visit(
    (server, held): (&Server, &Held),
    direct: &mut Client,
    commands: &[(String, Vec<Reply>)],
    mark: &str,
    dice: &mut Rng,
) {
    let mut user = held.open();
    if dice.u64(..4) == 0 {
        assert_like_new(&mut user, direct, mark, &new_state(server));
        return leave(user, Leaving::Close);
    }
    let refused = Reply::line("-NOAUTH Authentication required.");
    assert_eq!(user.ask(&["GET", mark]), refused);
    assert_eq!(user.ask(&["AUTH", PASSWORD]), Reply::line("+OK"));
    assert_eq!(user.ask(&["ECHO", mark]), Reply::bulk(mark));
    match dice.bool() {
        true => leave_in_a_mess(user, dice),
        false => leave_after_random_commands(user, commands, mark, dice),
    }
}

#[test]
fn concurrent_apps_never_see_each_others_state() {
    let seed = seed();
    let visits = number_of("POOL_VISITS").unwrap_or(VISITS);
    for pool in ["on", "auto"] {
        let server = Server::start(Front::Redis);
        // Commands that change the state of other users, or make all users wait.
        let is_wild = |name: &str| {
            let wild =
                ["sync", "psync", "client|pause", "swapdb", "bgsave", "bgrewriteaof", "save"];
            wild.contains(&name) || name.starts_with("acl|") || name.starts_with("config|")
        };
        let commands = descriptions(&mut server.direct()).into_iter();
        let commands: Vec<_> = commands.filter(|(name, _)| !is_wild(name)).collect();
        let held = hold(&server, pool);
        thread::scope(|scope| {
            for place in 0..THREADS {
                let (server, held, commands) = (&server, &held, &commands);
                scope.spawn(move || {
                    let mut dice = Rng::with_seed(seed.wrapping_add(place));
                    let mut direct = server.direct();
                    for number in 0..visits {
                        let mark = format!("mark-{place}-{number}");
                        visit((server, held), &mut direct, commands, &mark, &mut dice);
                    }
                });
            }
        });
        let reused = held.page().of_tunnel("pool_requests_total", ",result=\"reused\"");
        println!("{pool}: {reused:?} users got a reused connection");
        assert!(reused > Some(0.0), "{pool}");
    }
}
