//! Connections to Redis that are used again: by whom, when not, and how many there are.

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use openssl::ssl::{SslStream, SslVersion};
use support::launcher::{Held, Launcher, logged, with_hosts};
use support::peer::Peer;
use support::pki::Certificate;
use support::resp::{Client, Reply};
use support::servers::{FRONTS, Front, Options, PASSWORD, Server, connections};
use support::{eventually, reset};

/// How old a look-up may be when a connection is handed over, and a little more.
const LOOK_UP_AGE: Duration = Duration::from_millis(1_100);

fn hold(url: &str, settings: &[(&str, &str)]) -> Held {
    let mut launcher = Launcher::holding(url).env("STUNNEL_LOGLEVEL", "debug");
    for (name, value) in settings {
        launcher = launcher.env(name, value);
    }
    launcher.start_held()
}

/// How many connections Redis has accepted, `direct`'s own included.
fn accepted(direct: &mut Client) -> usize {
    let Reply::Bulk(info) = direct.ask(&["INFO", "stats"]) else { panic!("no figures") };
    let info = String::from_utf8(info).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    line.and_then(|number| number.parse().ok()).expect("a number")
}

/// Waits until nobody uses what is kept: as many connections as that, each reset.
fn wait_for_kept(direct: &mut Client, count: usize) {
    eventually("connections come back", || {
        let Reply::Bulk(list) = direct.ask(&["CLIENT", "LIST"]) else { panic!("no list") };
        let list = String::from_utf8(list).unwrap();
        let reset = list.lines().filter(|line| line.contains(" cmd=reset ")).count();
        (reset == count && list.lines().count() == count + 1).then_some(())
    });
}

fn one_request(held: &Held) {
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

/// Two users, one after the other: now the server has been tried, and two connections are kept.
fn warm_up(held: &Held, direct: &mut Client) {
    one_request(held);
    wait_for_kept(direct, 1);
    one_request(held);
    wait_for_kept(direct, 2);
}

#[test]
fn however_many_apps_come_one_after_the_other_redis_accepts_two_connections() {
    for front in FRONTS {
        let server = Server::start(front);
        let mut direct = server.direct();
        let before = accepted(&mut direct);
        let held = hold(&server.url(), &[]);
        warm_up(&held, &mut direct);
        for round in 0..30 {
            let mut app = held.client();
            assert_eq!(app.ask(&["SET", "key", &round.to_string()]), Reply::line("+OK"));
            match round % 3 {
                0 => {}
                1 => app.stream.get_ref().shutdown(Shutdown::Write).unwrap(),
                _ => reset(app.stream.get_ref()),
            }
            drop(app);
            wait_for_kept(&mut direct, 2);
        }
        assert_eq!(accepted(&mut direct) - before, 2, "{front:?}");
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "pool-tried", "verdict"), ["Passed"], "{log}");
        assert!(!log.contains("s3cret"), "{log}");
    }
}

#[test]
fn without_a_pool_each_app_has_its_own_connection() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let before = accepted(&mut direct);
    let held = hold(&server.url(), &[("STUNNEL_POOL", "off"), ("STUNNEL_SPARES", "0")]);
    for _ in 0..5 {
        one_request(&held);
    }
    assert_eq!(accepted(&mut direct) - before, 5);
    eventually("nothing is kept", || (connections(&mut direct) == 0).then_some(()));
    assert!(!held.finish().stderr.contains("at=pool-"));
}

#[test]
fn the_next_user_finds_what_a_new_connection_has_whatever_the_last_one_did() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server.url(), &[]);
    warm_up(&held, &mut direct);
    let pasts: [&[&[&str]]; 7] = [
        &[&["SELECT", "3"]],
        &[&["MULTI"], &["SET", "key", "lost"]],
        &[&["WATCH", "key"]],
        &[&["CLIENT", "SETNAME", "gone"]],
        &[&["HELLO", "3"]],
        &[&["READONLY"]],
        &[&["MULTI"], &["SELECT", "5"], &["EXEC"], &["HELLO", "3"]],
    ];
    for past in pasts {
        let mut app = held.client();
        for request in past {
            app.send(request);
            if request[0] == "HELLO" {
                read_map(&mut app);
            } else {
                app.reply().unwrap();
            }
        }
        drop(app);
        wait_for_kept(&mut direct, 2);
        let mut next = held.open();
        let refused = next.ask(&["GET", "key"]);
        assert!(matches!(&refused, Reply::Line(line) if line.starts_with("-NOAUTH")), "{past:?}");
        assert_eq!(next.ask(&["AUTH", PASSWORD]), Reply::line("+OK"));
        assert_eq!(next.ask(&["GET", "key"]), Reply::Nil, "{past:?}");
        assert_eq!(next.ask(&["CLIENT", "GETNAME"]), Reply::Nil, "{past:?}");
        assert_eq!(next.ask(&["MULTI"]), Reply::line("+OK"));
        assert_eq!(next.ask(&["EXEC"]), Reply::Array(vec![]), "{past:?}");
        drop(next);
        wait_for_kept(&mut direct, 2);
    }
}

/// Reads the reply to `HELLO 3`, which ends with the list of modules, of which there are none.
fn read_map(app: &mut Client) {
    let mut reply = Vec::new();
    while !reply.ends_with(b"modules\r\n*0\r\n") {
        let read = app.stream.read_until(b'\n', &mut reply).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&reply));
    }
}

#[test]
fn a_connection_that_leaves_something_behind_is_not_used_again() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server.url(), &[("STUNNEL_SPARES", "0")]);
    let pasts: [&[&str]; 6] = [
        &["SUBSCRIBE", "channel"],
        &["CLIENT", "ID"],
        &["CLIENT", "NO-EVICT", "on"],
        &["SCRIPT", "DEBUG", "YES"],
        &["CLIENT", "REPLY", "ON"],
        &["NO", "SUCH", "COMMAND"],
    ];
    warm_up(&held, &mut direct);
    for past in pasts {
        let before = accepted(&mut direct);
        // All that is kept is in use, and goes.
        let mut apps = [held.client(), held.client()];
        for app in &mut apps {
            app.ask(past);
        }
        drop(apps);
        eventually("they are gone", || (connections(&mut direct) == 0).then_some(()));
        one_request(&held);
        wait_for_kept(&mut direct, 1);
        one_request(&held);
        let mut two = [held.client(), held.client()];
        two.iter_mut().for_each(|app| drop(app.ask(&["PING"])));
        drop(two);
        wait_for_kept(&mut direct, 2);
        assert_eq!(accepted(&mut direct) - before, 2, "{past:?}");
    }
}

#[test]
fn what_is_owed_is_gone_with_its_app_and_half_a_request_never_meets_another_ones() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server.url(), &[]);
    warm_up(&held, &mut direct);
    let mut blocked = held.client();
    blocked.send(&["BLPOP", "list", "0"]);
    eventually("it waits", || {
        let Reply::Bulk(info) = direct.ask(&["INFO", "clients"]) else { panic!("no figures") };
        String::from_utf8(info).unwrap().contains("\nblocked_clients:1\r").then_some(())
    });
    drop(blocked);
    eventually("it is gone", || (connections(&mut direct) == 1).then_some(()));
    assert_eq!(direct.ask(&["RPUSH", "list", "mine"]), Reply::line(":1"));
    for half in [&b"*1\r\n$4\r\nPI"[..], b"PI", b"*2\r\n$4\r\nECHO\r\n", b"*", b"*1\r\n"] {
        let mut app = held.client();
        app.stream.get_mut().write_all(half).unwrap();
        drop(app);
        let mut next = held.client();
        assert_eq!(next.ask(&["ECHO", "mine"]), Reply::bulk("mine"));
        assert_eq!(next.ask(&["LLEN", "list"]), Reply::line(":1"));
    }
}

#[test]
fn a_replica_that_gets_a_connection_that_was_used_before_is_served() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    assert_eq!(direct.ask(&["CONFIG", "SET", "requirepass", ""]), Reply::line("+OK"));
    let held = hold(&format!("redis://127.0.0.1:{}", server.port), &[]);
    for kept in [1, 2] {
        assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
        wait_for_kept(&mut direct, kept);
    }
    for request in [&["PSYNC", "?", "-1"][..], &["SYNC"]] {
        let mut replica = held.open();
        replica.send(request);
        // Empty lines come first, while the snapshot is made.
        let begins = eventually("an answer", || {
            let mut line = String::new();
            replica.stream.read_line(&mut line).unwrap();
            (!line.trim().is_empty()).then_some(line)
        });
        assert!(begins.starts_with("+FULLRESYNC ") || begins.starts_with('$'), "{begins:?}");
    }
}

#[test]
fn who_is_logged_in_is_decided_now_and_not_when_the_connection_was_made() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    assert_eq!(direct.ask(&["CONFIG", "SET", "requirepass", ""]), Reply::line("+OK"));
    let url = format!("redis://127.0.0.1:{}", server.port);
    let held = hold(&url, &[("STUNNEL_SPARES", "3")]);
    let ping = || held.open().ask(&["PING"]);
    for kept in [1, 2] {
        assert_eq!(ping(), Reply::line("+PONG"));
        wait_for_kept(&mut direct, kept);
    }
    for _ in 0..3 {
        direct.ask(&["CONFIG", "SET", "requirepass", PASSWORD]);
        let refused = held.open().ask(&["SET", "key", "value"]);
        assert_eq!(refused, Reply::line("-NOAUTH Authentication required."));
        wait_for_kept(&mut direct, 2);
        direct.ask(&["CONFIG", "SET", "requirepass", ""]);
        assert_eq!(ping(), Reply::line("+PONG"));
        wait_for_kept(&mut direct, 2);
        direct.ask(&["ACL", "SETUSER", "default", "off"]);
        let refused = ping();
        assert_eq!(refused, Reply::line("-NOAUTH Authentication required."));
        direct.ask(&["ACL", "SETUSER", "default", "on"]);
        wait_for_kept(&mut direct, 2);
    }
}

/// The words of the next request; `None` at the end.
fn next_request(stream: &mut impl BufRead) -> Option<Vec<String>> {
    let mut line = String::new();
    let mut number = |stream: &mut dyn BufRead| {
        line.clear();
        stream.read_line(&mut line).ok().filter(|read| *read > 0)?;
        line[1..].trim_end().parse::<usize>().ok()
    };
    let count = number(stream)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(stream)? + 2];
        stream.read_exact(&mut word).ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8(word).unwrap());
    }
    Some(words)
}

type Heard = Arc<Mutex<Vec<String>>>;

/// A server that answers each request as it is told to (`None`: it closes), with the number of the
/// connection, and the requests that it has heard, with the same number.
fn scripted(
    answer: impl Fn(usize, &[String]) -> Option<String> + Send + Sync + Clone + 'static,
) -> (Peer<()>, Heard) {
    let heard = Heard::default();
    let hears = heard.clone();
    let count = Arc::new(Mutex::new(0));
    let peer = Peer::tls(move |stream| {
        let number = {
            let mut count = count.lock().unwrap();
            *count += 1;
            *count - 1
        };
        let mut stream = BufReader::new(stream);
        while let Some(request) = next_request(&mut stream) {
            hears.lock().unwrap().push(format!("{number} {}", request.join(" ")));
            let Some(answer) = answer(number, &request) else { return };
            if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    });
    (peer, heard)
}

fn heard(heard: &Heard) -> Vec<String> {
    heard.lock().unwrap().clone()
}

/// What a Redis without a password says.
fn redis(request: &[String]) -> String {
    match request[0].as_str() {
        "PING" => "+PONG\r\n".to_owned(),
        "RESET" => "+RESET\r\n".to_owned(),
        "GET" => "$5\r\nvalue\r\n".to_owned(),
        _ => "+OK\r\n".to_owned(),
    }
}

#[test]
fn a_server_whose_reset_means_something_else_gets_none_after_it_was_tried() {
    let noauth = "-NOAUTH Authentication required.\r\n";
    // What PING is told before and after, and RESET: Kvrocks; 6.2; before 6.2; a renamed one.
    for (before, reset, after) in [
        (noauth, "+RESET\r\n", "+PONG\r\n"),
        (noauth, noauth, noauth),
        ("+PONG\r\n", "-ERR unknown command `RESET`\r\n", "+PONG\r\n"),
        ("+PONG\r\n", "+OK\r\n", "+PONG\r\n"),
    ] {
        let resets = Arc::new(Mutex::new(Vec::new()));
        let done = resets.clone();
        let (peer, requests) = scripted(move |number, request| {
            let mut resets = done.lock().unwrap();
            Some(match request[0].as_str() {
                "RESET" => {
                    resets.push(number);
                    reset.to_owned()
                }
                "PING" if resets.contains(&number) => after.to_owned(),
                "PING" => before.to_owned(),
                _ => "+OK\r\n".to_owned(),
            })
        });
        let held = hold(&peer.url(), &[]);
        for round in 0..6 {
            assert_eq!(held.open().ask(&["GET", &round.to_string()]), Reply::line("+OK"));
        }
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "pool-tried", "verdict"), ["Failed"], "{log}");
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
        // Once when the first app had gone, once to try it; and each app has a connection of its
        // own.
        let requests = heard(&requests);
        let resets = requests.iter().filter(|line| line.ends_with("RESET")).count();
        assert_eq!(resets, 2, "{requests:?}");
        let users: Vec<_> = requests.iter().filter(|line| line.contains("GET")).collect();
        let mut numbers: Vec<_> = users.iter().map(|line| line.split(' ').next()).collect();
        numbers.dedup();
        assert_eq!(numbers.len(), 6, "{requests:?}");
    }
}

#[test]
fn a_server_that_hangs_up_on_the_trial_does_not_fail_the_app() {
    let (peer, _) = scripted(|_, request| match request[0].as_str() {
        "RESET" => None,
        _ => Some(redis(request)),
    });
    let held = hold(&peer.url(), &[]);
    for _ in 0..5 {
        assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
    }
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "pool-tried", "verdict"), ["Unclear"], "{log}");
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
}

#[test]
fn a_reset_that_is_answered_late_wrongly_or_with_more_ends_the_connection_and_not_the_app() {
    // Of connections that come back; in front of a first request it is answered as it should be.
    for wrong in ["", "+RESE", "+RESET\r\n+OK\r\n", "+OK\r\n", "-ERR no\r\n"] {
        let (peer, _) = scripted(move |number, request| {
            // The trial is on the second connection.
            let tried = number == 1;
            Some(match request[0].as_str() {
                "RESET" if !tried => wrong.to_owned(),
                _ => redis(request),
            })
        });
        let held = hold(&peer.url(), &[("STUNNEL_SPARES", "0")]);
        for _ in 0..4 {
            assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"), "{wrong:?}");
        }
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
    }
}

/// A server that closes a connection in front of whose first request there is a reset, `before` or
/// after that has been read; and the launcher, with one connection kept.
fn dying(dies_at: &'static str) -> (Peer<()>, Heard, Held) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (peer, requests) = scripted(move |number, request| {
        let mut seen = seen.lock().unwrap();
        seen.push((number, request[0].clone()));
        let resets = seen.iter().filter(|one| **one == (number, "RESET".to_owned())).count();
        // The second one of the first connection is that of its second user.
        let again = number == 0 && resets == 2;
        (!again || request[0] != dies_at && dies_at != "*").then(|| redis(request))
    });
    let held = hold(&peer.url(), &[("STUNNEL_SPARES", "0")]);
    assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
    let first = requests.clone();
    eventually("it comes back", || heard(&first).contains(&"0 RESET".to_owned()).then_some(()));
    // Two at a time: the second connection is tried, and stays in use.
    (peer, requests, held)
}

#[test]
fn a_connection_that_redis_closes_as_it_is_handed_over_is_replaced_before_the_request_is_lost() {
    let (_peer, requests, held) = dying("RESET");
    let mut staying = held.open();
    assert_eq!(staying.ask(&["PING"]), Reply::line("+PONG"));
    for request in [&["GET", "key"][..], &["PING"]] {
        let mut app = held.open();
        let reply = app.ask(request);
        assert!(reply == Reply::bulk("value") || reply == Reply::line("+PONG"), "{reply:?}");
    }
    let requests = heard(&requests);
    assert!(requests.contains(&"2 GET key".to_owned()), "{requests:?}");
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
}

#[test]
fn what_may_have_been_executed_is_not_sent_twice() {
    let (_peer, requests, held) = dying("RESET");
    let mut staying = held.open();
    assert_eq!(staying.ask(&["PING"]), Reply::line("+PONG"));
    let mut app = held.open();
    app.send(&["INCR", "key"]);
    assert!(app.reply().is_err(), "it is cut off");
    let again = held.open().ask(&["INCR", "key"]);
    assert_eq!(again, Reply::line("+OK"));
    let requests = heard(&requests);
    let increments = requests.iter().filter(|line| line.contains("INCR")).count();
    assert_eq!(increments, 1, "the second app's: {requests:?}");
}

#[test]
fn a_reset_in_front_of_a_request_that_is_answered_wrongly_is_a_broken_connection_and_the_last() {
    let resets = Arc::new(Mutex::new(0));
    let count = resets.clone();
    let (peer, _) = scripted(move |_, request| {
        if request[0] != "RESET" {
            return Some(redis(request));
        }
        let mut resets = count.lock().unwrap();
        *resets += 1;
        // The first app's return, the trial; then a first request's.
        Some(if *resets == 3 { "-NOAUTH no\r\n" } else { "+RESET\r\n" }.to_owned())
    });
    let held = hold(&peer.url(), &[("STUNNEL_SPARES", "0")]);
    assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
    eventually("it comes back", || (*resets.lock().unwrap() == 1).then_some(()));
    let mut staying = held.open();
    assert_eq!(staying.ask(&["PING"]), Reply::line("+PONG"));
    let mut app = held.open();
    app.send(&["PING"]);
    assert!(app.reply().is_err(), "no reply of another user's ever reaches it");
    drop(staying);
    for _ in 0..3 {
        assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
    }
    assert_eq!(*resets.lock().unwrap(), 3, "nothing is reset any more");
}

#[test]
fn redis_restarts_and_no_app_gets_a_connection_of_before() {
    let mut server = Server::start(Front::Redis);
    let held = hold(&server.url(), &[]);
    warm_up(&held, &mut server.direct());
    for _ in 0..3 {
        server.restart(Duration::ZERO);
        assert!(server.answers());
        for _ in 0..3 {
            one_request(&held);
        }
    }
}

#[test]
fn after_a_fail_over_nothing_that_was_kept_leads_to_the_old_server() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let Some(launcher) = with_hosts(&hosts, "127.0.0.2 redis.test\n") else { return };
    let old = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let port = old.local_addr().unwrap().port();
    let new = TcpListener::bind(("127.0.0.3", port)).unwrap();
    let named = |name: &'static str| {
        move |stream: SslStream<TcpStream>| {
            let mut stream = BufReader::new(stream);
            while let Some(request) = next_request(&mut stream) {
                let own = format!("+{name}\r\n");
                let answer = if request[0] == "GET" { own } else { redis(&request) };
                if stream.get_mut().write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        }
    };
    let old = Peer::tls_on(old, named("old"));
    let _new = Peer::tls_on(new, named("new"));
    let held = launcher.redis(&format!("rediss://redis.test:{port}")).start_held();
    let answer = || held.open().ask(&["GET", "name"]);
    for _ in 0..5 {
        assert_eq!(answer(), Reply::line("+old"));
    }
    let kept = old.accepted();
    assert!(kept < 5, "{kept}");
    fs::write(&hosts, "127.0.0.3 redis.test\n").unwrap();
    thread::sleep(LOOK_UP_AGE);
    for _ in 0..3 {
        assert_eq!(answer(), Reply::line("+new"));
    }
    for _ in 0..kept {
        old.result();
    }
}

#[test]
fn an_app_that_waits_in_the_queue_gets_the_first_connection_that_comes_free() {
    for front in FRONTS {
        let server = Server::start(front);
        let mut direct = server.direct();
        let before = accepted(&mut direct);
        let held = hold(&server.url(), &[("STUNNEL_MAX_CONNECTIONS", "2")]);
        let mut busy = vec![held.client(), held.client()];
        // They have a connection to the launcher, and none to Redis.
        let mut waiting: Vec<Client> = (0..6).map(|_| held.open()).collect();
        for (number, client) in waiting.iter_mut().enumerate() {
            client.send(&["AUTH", PASSWORD]);
            client.send(&["ECHO", &number.to_string()]);
        }
        for (number, mut client) in waiting.into_iter().enumerate() {
            assert!(connections(&mut direct) <= 2, "{front:?}");
            // In order: one leaves, and the first that waits is served.
            drop(busy.remove(0));
            assert_eq!(client.reply().unwrap(), Reply::line("+OK"));
            assert_eq!(client.reply().unwrap(), Reply::bulk(&number.to_string()));
            busy.push(client);
        }
        drop(busy);
        // Two at first, and one more that was tried.
        let made = accepted(&mut direct) - before;
        assert!((2..=4).contains(&made), "{made} {front:?}");
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
    }
}

#[test]
fn whoever_waits_too_long_is_closed_and_the_log_names_the_setting() {
    let server = Server::start(Front::Redis);
    let held = hold(
        &server.url(),
        &[("REDIS_URL_STUNNEL_MAX_CONNECTIONS", "1"), ("STUNNEL_CONNECT_TIMEOUT", "200ms")],
    );
    let mut busy = held.client();
    let mut late = held.open();
    late.send(&["PING"]);
    assert!(late.reply().is_err());
    assert_eq!(busy.ask(&["PING"]), Reply::line("+PONG"), "nobody else is harmed");
    drop(busy);
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "queue-timeout", "var"), ["REDIS_URL"], "{log}");
    assert!(logged(&log, "queue-timeout", "hint")[0].contains("STUNNEL_MAX_CONNECTIONS"), "{log}");
    assert_eq!(logged(&log, "command-ended", "failed"), ["1"], "{log}");
}

#[test]
fn whoever_waits_at_the_limit_is_told_of_long_before_the_connect_timeout() {
    let server = Server::start(Front::Redis);
    let held =
        hold(&server.url(), &[("STUNNEL_MAX_CONNECTIONS", "1"), ("STUNNEL_CONNECT_TIMEOUT", "2s")]);
    let busy = held.client();
    // They are not closed before they have waited for longer than it takes to be told of.
    let mut late: Vec<_> = (0..3).map(|_| held.open()).collect();
    assert!(late.iter_mut().all(|client| client.reply().is_err()));
    drop(busy);
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "queue-waiting", "var"), ["REDIS_URL"; 3], "{log}");
    assert!(logged(&log, "queue-waiting", "hint")[0].contains("STUNNEL_MAX_CONNECTIONS"), "{log}");
    let [waiting, timeout] =
        ["queue-waiting", "queue-timeout"].map(|event| log.find(&format!(" at={event} ")));
    assert!(waiting.unwrap() < timeout.unwrap(), "{log}");
}

#[test]
fn a_limit_holds_for_busy_apps_that_are_many_more_and_each_gets_its_own_replies() {
    const LIMIT: usize = 4;
    let server = Server::start_with(
        Front::Redis,
        // The plan's: one is the test's own.
        Options { words: &["--maxclients", "5"], ..Options::default() },
    );
    let mut direct = server.direct();
    let held = hold(&server.url(), &[("STUNNEL_MAX_CONNECTIONS", &LIMIT.to_string())]);
    thread::scope(|scope| {
        let (held, apps) = (&held, 25);
        for app in 0..apps {
            scope.spawn(move || {
                for round in 0..20 {
                    let mark = format!("{app}/{round}");
                    let mut client = held.client();
                    assert_eq!(client.ask(&["ECHO", &mark]), Reply::bulk(&mark));
                    if round % 7 == 3 {
                        // One that is never used again.
                        client.ask(&["CLIENT", "ID"]);
                    }
                }
            });
        }
        for _ in 0..50 {
            assert!(connections(&mut direct) <= LIMIT);
        }
    });
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
}

#[test]
fn the_launchers_own_questions_keep_to_the_limit() {
    let server = Server::start(Front::Redis);
    let held = hold(&server.url(), &[("STUNNEL_MAX_CONNECTIONS", "1"), ("STUNNEL_VERIFY", "full")]);
    // The certificate fails, and is fetched once more to say why.
    let reply = held.open().ask(&["PING"]);
    let Reply::Line(line) = &reply else { panic!("{reply:?}") };
    assert!(line.contains("certificate check failed"), "{line}");
}

#[test]
fn twenty_connections_at_once_cost_one_full_handshake_and_nothing_the_second_time() {
    const STORM: usize = 20;
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server.url(), &[]);
    let storm = || {
        let mut apps: Vec<Client> = (0..STORM).map(|_| held.open()).collect();
        for app in &mut apps {
            app.send(&["AUTH", PASSWORD]);
        }
        for app in &mut apps {
            assert_eq!(app.reply().unwrap(), Reply::line("+OK"));
        }
    };
    let before = accepted(&mut direct);
    storm();
    assert_eq!(accepted(&mut direct) - before, STORM, "as many as were asked for");
    wait_for_kept(&mut direct, STORM);
    storm();
    assert_eq!(accepted(&mut direct) - before, STORM + 1, "the one that was tried");
    wait_for_kept(&mut direct, STORM + 1);
    storm();
    assert_eq!(accepted(&mut direct) - before, STORM + 1);
}

#[test]
fn at_redis_own_limit_what_is_kept_does_not_lock_the_app_out() {
    const CLIENTS: usize = 4;
    let server = Server::start_with(
        Front::Redis,
        // One is the test's own.
        Options { words: &["--maxclients", "4"], ..Options::default() },
    );
    let mut direct = server.direct();
    let held = hold(&server.url(), &[]);
    let mut apps: Vec<Client> = (1..CLIENTS).map(|_| held.client()).collect();
    apps.iter_mut().for_each(|app| assert_eq!(app.ask(&["PING"]), Reply::line("+PONG")));
    drop(apps);
    wait_for_kept(&mut direct, CLIENTS - 1);
    // There is no room for one that is tried: it fails, and makes room.
    let served = || {
        let mut app = held.open();
        app.send(&["AUTH", PASSWORD]);
        app.reply().is_ok_and(|reply| reply == Reply::line("+OK"))
    };
    let failed = std::iter::from_fn(|| (!served()).then_some(())).take(100).count();
    assert!(failed <= 3, "{failed} apps in a row were turned away");
}

#[test]
fn what_is_kept_goes_with_the_command() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server.url(), &[]);
    warm_up(&held, &mut direct);
    let log = held.finish().stderr;
    assert!(!log.contains("drain-"), "{log}");
    eventually("nothing is left", || (connections(&mut direct) == 0).then_some(()));
}

#[test]
fn check_says_how_many_clients_redis_has_and_may_have() {
    let server = Server::start_with(
        Front::Redis,
        Options { words: &["--maxclients", "20"], ..Options::default() },
    );
    let _others = [server.direct(), server.direct()];
    let run = |words: &[&str]| {
        let checked = Launcher::new(words).redis(&server.url()).run();
        assert_eq!(checked.code(), 0, "{checked:?}");
        checked.stdout
    };
    let table = run(&["--check"]);
    assert!(table.contains("clients 3 of 20"), "{table}");
    let json = run(&["--log-format", "json", "--check"]);
    assert!(json.contains(r#""clients":{"connected":3,"max":20}"#), "{json}");
}

/// Two users, one after the other, and a third that stays: one connection is kept, and proven.
fn kept_one(held: &Held, requests: &Heard) -> Client {
    assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
    eventually("it comes back", || heard(requests).contains(&"0 RESET".to_owned()).then_some(()));
    let mut staying = held.open();
    assert_eq!(staying.ask(&["PING"]), Reply::line("+PONG"));
    staying
}

#[test]
fn an_app_is_whoever_its_certificate_says_on_a_connection_that_is_used_again_too() {
    // As Redis 8 and Valkey 9 with a login by certificate: RESET gives the default user.
    let resets = Arc::new(Mutex::new(Vec::new()));
    let (peer, _) = scripted(move |number, request| {
        let mut resets = resets.lock().unwrap();
        Some(match request[0].as_str() {
            "RESET" => {
                resets.push(number);
                "+RESET\r\n".to_owned()
            }
            "ACL" if resets.contains(&number) => "+default\r\n".to_owned(),
            "ACL" => "+tenant\r\n".to_owned(),
            _ => redis(request),
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let held = hold(
        &peer.url(),
        &[
            ("STUNNEL_CLIENT_CERT", &certificate.pem()),
            ("STUNNEL_CLIENT_KEY", &certificate.key_pem()),
        ],
    );
    for round in 0..5 {
        let who = held.open().ask(&["ACL", "WHOAMI"]);
        assert_eq!(who, Reply::line("+tenant"), "{round}");
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_connection_is_reset_at_hand_over_also_when_others_were_just_found_to_lead_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let Some(launcher) = with_hosts(&hosts, "127.0.0.2 redis.test\n") else { return };
    let one = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let port = one.local_addr().unwrap().port();
    let two = TcpListener::bind(("127.0.0.3", port)).unwrap();
    let requests = Heard::default();
    let named = |name: &'static str| {
        let requests = requests.clone();
        move |stream: SslStream<TcpStream>| {
            let mut stream = BufReader::new(stream);
            while let Some(request) = next_request(&mut stream) {
                requests.lock().unwrap().push(format!("{name} {}", request.join(" ")));
                if stream.get_mut().write_all(redis(&request).as_bytes()).is_err() {
                    return;
                }
            }
        }
    };
    let _one = Peer::tls_on(one, named("one"));
    let _two = Peer::tls_on(two, named("two"));
    let resets = |name: &str| {
        heard(&requests).iter().filter(|line| **line == format!("{name} RESET")).count()
    };
    let held = launcher
        .redis(&format!("rediss://redis.test:{port}"))
        .env("STUNNEL_SPARES", "0")
        .start_held();
    let user = |request: &[&str]| {
        let mut app = held.open();
        assert_eq!(app.ask(request), redis_reply(request));
        app
    };
    drop(user(&["PING"]));
    eventually("it comes back", || (resets("one") == 1).then_some(()));
    let tried = user(&["PING"]);
    thread::sleep(LOOK_UP_AGE);
    // Both addresses, and new connections go to the second server.
    fs::write(&hosts, "127.0.0.3 redis.test\n127.0.0.2 redis.test\n").unwrap();
    let first = user(&["GET", "key"]);
    let second = user(&["GET", "key"]);
    assert!(heard(&requests).iter().any(|line| line.starts_with("two ")), "{requests:?}");
    let before = resets("two");
    drop(second);
    eventually("it comes back", || (resets("two") > before).then_some(()));
    let before = resets("one");
    drop((first, tried));
    eventually("they come back", || (resets("one") >= before + 2).then_some(()));
    // One of the two leaves: what led there is discarded at the hand-over of what leads here.
    fs::write(&hosts, "127.0.0.2 redis.test\n").unwrap();
    thread::sleep(LOOK_UP_AGE);
    let before = heard(&requests).len();
    let _next = user(&["GET", "key"]);
    let requests = heard(&requests)[before..].to_vec();
    let is_new = requests.iter().any(|line| line.ends_with(" PING"));
    assert!(is_new || requests[0] == "one RESET", "who is logged in? {requests:?}");
}

/// What [`redis`] says, read.
fn redis_reply(request: &[&str]) -> Reply {
    match request[0] {
        "GET" => Reply::bulk("value"),
        "PING" => Reply::line("+PONG"),
        _ => Reply::line("+OK"),
    }
}

#[test]
fn a_server_that_answers_slowly_does_not_cost_an_app_its_connection_because_of_a_trial() {
    let slow = Arc::new(Mutex::new(false));
    let is_slow = slow.clone();
    let (peer, requests) = scripted(move |_, request| {
        if *is_slow.lock().unwrap() {
            thread::sleep(Duration::from_millis(1_200));
        }
        Some(redis(request))
    });
    // The handshake is done at once; how long replies take is not the timeout's matter.
    let held = hold(&peer.url(), &[("STUNNEL_CONNECT_TIMEOUT", "1s")]);
    assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
    eventually("it comes back", || heard(&requests).contains(&"0 RESET".to_owned()).then_some(()));
    *slow.lock().unwrap() = true;
    assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
}

#[test]
fn two_hundred_apps_at_once_get_a_server_that_is_far_away() {
    // A handshake takes 300 ms: 150 ms there and back, twice.
    let acceptor = support::peer::acceptor(SslVersion::TLS1_3);
    let peer = Peer::tcp(move |stream| {
        thread::sleep(Duration::from_millis(300));
        let Ok(stream) = acceptor.accept(stream) else { return };
        let mut stream = BufReader::new(stream);
        while let Some(request) = next_request(&mut stream) {
            if stream.get_mut().write_all(redis(&request).as_bytes()).is_err() {
                return;
            }
        }
    });
    let held = hold(&peer.url(), &[("STUNNEL_CONNECT_TIMEOUT", "5s")]);
    let mut apps: Vec<Client> = (0..200).map(|_| held.open()).collect();
    apps.iter_mut().for_each(|app| app.send(&["PING"]));
    let answered = apps.iter_mut().filter_map(|app| app.reply().ok()).count();
    assert_eq!(answered, 200);
}

#[test]
fn an_app_whose_connection_is_replaced_keeps_its_place_before_those_that_wait() {
    let resets = Arc::new(Mutex::new(0));
    let (peer, requests) = scripted(move |number, request| {
        let mut resets = resets.lock().unwrap();
        *resets += usize::from(number == 1 && request[0] == "RESET");
        // The trial's, the first return's; in front of the next one's request it is closed.
        (number != 1 || *resets < 3).then(|| redis(request))
    });
    let held = hold(
        &peer.url(),
        &[
            ("STUNNEL_SPARES", "0"),
            ("STUNNEL_MAX_CONNECTIONS", "1"),
            ("STUNNEL_CONNECT_TIMEOUT", "3s"),
        ],
    );
    drop(kept_one(&held, &requests));
    eventually("it comes back", || {
        heard(&requests).iter().filter(|line| *line == "1 RESET").nth(1).map(|_| ())
    });
    // It has the connection that is kept; the other one waits.
    let mut first = held.open();
    thread::sleep(Duration::from_millis(300));
    let mut waiting = held.open();
    waiting.send(&["SET", "key", "second"]);
    thread::sleep(Duration::from_millis(300));
    // On the connection that is closed instead of an answer: it may be sent again.
    first.send(&["GET", "key"]);
    assert_eq!(first.reply().ok(), Some(Reply::bulk("value")), "it came first");
    drop(first);
    assert_eq!(waiting.reply().unwrap(), Reply::line("+OK"));
}

#[test]
fn a_server_without_tls_is_named_to_the_app_with_a_limit_too() {
    let server = Server::start(Front::Redis);
    // Its plaintext port.
    let url = format!("rediss://127.0.0.1:{}", server.port);
    let held = hold(&url, &[("STUNNEL_MAX_CONNECTIONS", "1")]);
    let mut app = held.open();
    app.send(&["PING"]);
    let reply = app.reply();
    let said = matches!(&reply, Ok(Reply::Line(line)) if line.contains("speaks no TLS"));
    assert!(said, "{reply:?}");
}

#[test]
fn a_redis_that_freezes_for_a_moment_does_not_end_reuse_for_an_hour() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server.url(), &[("STUNNEL_SPARES", "0"), ("STUNNEL_IDLE_TIMEOUT", "2s")]);
    warm_up(&held, &mut direct);
    let mut app = held.open();
    thread::sleep(Duration::from_millis(200));
    support::launcher::send_signal(server.pid(), nix::libc::SIGSTOP);
    // More than the sockets take: it stalls, and ends by the idle timeout.
    let huge = "x".repeat(8 << 20);
    app.stream.get_mut().set_write_timeout(Some(Duration::from_secs(4))).unwrap();
    let request = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n{huge}\r\n", huge.len());
    let _ = app.stream.get_mut().write_all(request.as_bytes());
    drop(app);
    support::launcher::send_signal(server.pid(), nix::libc::SIGCONT);
    assert_eq!(direct.ask(&["PING"]), Reply::line("+PONG"));
    one_request(&held);
    thread::sleep(Duration::from_secs(1));
    let before = accepted(&mut direct);
    for _ in 0..6 {
        one_request(&held);
        thread::sleep(Duration::from_millis(200));
    }
    let made = accepted(&mut direct) - before;
    assert!(made <= 2, "{made} connections for six apps, one after the other");
}

#[test]
fn a_redis_that_goes_in_good_order_is_an_end_and_no_reset_on_a_reused_connection_too() {
    for pool in ["off", "auto"] {
        let server = Server::start(Front::Redis);
        let mut direct = server.direct();
        direct.ask(&["CONFIG", "SET", "requirepass", ""]);
        let url = format!("redis://127.0.0.1:{}", server.port);
        let held = hold(&url, &[("STUNNEL_SPARES", "0"), ("STUNNEL_POOL", pool)]);
        for _ in 0..3 {
            assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
            thread::sleep(Duration::from_millis(200));
        }
        let mut app = held.open();
        app.send(&["SHUTDOWN", "NOSAVE"]);
        let mut rest = Vec::new();
        let end = std::io::Read::read_to_end(&mut app.stream, &mut rest);
        assert_eq!(end.map_err(|error| error.kind()), Ok(0), "{pool}");
    }
}

#[test]
fn a_password_that_may_be_sent_again_is_not_shown_by_debug() {
    let mut reuse = start_stunnel::tunnel::reuse::Reuse::new(true, true);
    reuse.sent(b"*2\r\n$4\r\nAUTH\r\n$7\r\nhunter2\r\n");
    let shown = format!("{reuse:?}");
    assert!(!shown.contains("104, 117, 110, 116, 101, 114, 50"), "{shown}");
}

#[test]
fn nobody_becomes_an_administrator_when_another_server_takes_over_the_address() {
    // Behind a Service or a virtual address a Redis is replaced by a Kvrocks, where RESET makes an
    // administrator of who sends it.
    let (is_kvrocks, ranks) = (Arc::new(Mutex::new(false)), Arc::new(Mutex::new(Vec::new())));
    let replaced = is_kvrocks.clone();
    let (peer, requests) = scripted(move |number, request| {
        let (is_kvrocks, mut ranks) = (*replaced.lock().unwrap(), ranks.lock().unwrap());
        let count = ranks.len().max(number + 1);
        ranks.resize(count, "");
        if is_kvrocks && number < 2 {
            return None;
        }
        Some(match (request[0].as_str(), ranks[number]) {
            ("RESET", _) => {
                ranks[number] = if is_kvrocks { "administrator" } else { "" };
                "+RESET\r\n".to_owned()
            }
            ("AUTH", _) => {
                ranks[number] = "user";
                "+OK\r\n".to_owned()
            }
            (_, "") => "-NOAUTH Authentication required.\r\n".to_owned(),
            (_, rank) => format!("+{rank}\r\n"),
        })
    });
    let held = hold(&peer.url_with_password(), &[("STUNNEL_SPARES", "0")]);
    let log_in = || {
        let mut app = held.open();
        assert_eq!(app.ask(&["AUTH", "pw"]), Reply::line("+OK"));
        app
    };
    let mut staying = vec![log_in()];
    drop(staying.pop());
    eventually("it comes back", || heard(&requests).contains(&"0 RESET".to_owned()).then_some(()));
    staying.push(log_in());
    *is_kvrocks.lock().unwrap() = true;
    // The first of the new server's: its user logs in, and leaves.
    drop(log_in());
    eventually("it comes back", || heard(&requests).contains(&"2 RESET".to_owned()).then_some(()));
    let who = held.open().ask(&["GET", "key"]);
    assert_eq!(who, Reply::line("-NOAUTH Authentication required."));
}
