//! `--pool on` with a real Redis: which connections are reused, and by whom.

mod support;

use std::io::{BufRead, Read, Write};
use std::net::Shutdown;
use std::time::Duration;

use nix::libc;
use support::launcher::{Held, Launcher, logged, send_signal};
use support::resp::{Client, Reply};
use support::servers::{
    FRONTS, Front, PASSWORD, Server, accepted, calls, connections, idle_connections, info,
};
use support::status::StatusPage;
use support::{eventually, reset};

fn hold(url: &str) -> Held {
    Launcher::holding(url).settings(&[("STUNNEL_POOL", "on")]).start_held()
}

fn one_request(held: &Held) {
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

/// Waits until this many connections are idle, and no other is open.
fn wait_for_idle(direct: &mut Client, count: usize) {
    eventually("connections come back", || {
        (idle_connections(direct) == count && connections(direct) == count).then_some(())
    });
}

/// A launcher with one idle connection.
fn warm(server: &Server, direct: &mut Client) -> Held {
    let held = hold(&server.url());
    one_request(&held);
    wait_for_idle(direct, 1);
    held
}

/// A Redis without a password, a direct client, and the URL.
fn without_password() -> (Server, Client, String) {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    assert_eq!(direct.ask(&["CONFIG", "SET", "requirepass", ""]), Reply::line("+OK"));
    let url = format!("redis://127.0.0.1:{}", server.port);
    (server, direct, url)
}

#[test]
fn apps_one_after_another_share_one_connection() {
    for front in FRONTS {
        let server = Server::start(front);
        let mut direct = server.direct();
        let before = accepted(&mut direct);
        let held = Launcher::holding(&server.url())
            .settings(&[
                ("STUNNEL_POOL", "on"),
                ("STUNNEL_LOG_LEVEL", "debug"),
                ("STUNNEL_STATUS_ADDRESS", "0"),
            ])
            .start_held();
        let page = StatusPage::of(held.running.pid(), &[held.port]);
        for round in 0..30 {
            let mut app = held.client();
            assert_eq!(app.ask(&["SET", "key", &round.to_string()]), Reply::line("+OK"));
            match round % 3 {
                0 => {}
                1 => app.stream.get_ref().shutdown(Shutdown::Write).unwrap(),
                _ => reset(app.stream.get_ref()),
            }
            drop(app);
            wait_for_idle(&mut direct, 1);
            // Redis resets the connection slightly before the launcher counts it as idle.
            page.wait_until_all_is_idle();
        }
        assert_eq!(accepted(&mut direct) - before, 1, "{front:?}");
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "pool-tried", "verdict"), ["Passed"], "{log}");
        assert!(!log.contains(PASSWORD), "{log}");
    }
}

#[test]
fn a_blocked_command_ends_when_its_app_resets() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = warm(&server, &mut direct);
    let mut blocked = held.client();
    blocked.send(&["BLPOP", "list", "0"]);
    eventually("it waits", || {
        (info(&mut direct, "clients", "blocked_clients") == Some(1)).then_some(())
    });
    reset(blocked.stream.get_ref());
    drop(blocked);
    eventually("it is gone", || (connections(&mut direct) == 0).then_some(()));
    assert_eq!(direct.ask(&["RPUSH", "list", "mine"]), Reply::line(":1"));
    assert_eq!(held.client().ask(&["LLEN", "list"]), Reply::line(":1"));
}

#[test]
fn half_a_request_is_never_joined_to_another_users_request() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = warm(&server, &mut direct);
    for half in [&b"*1\r\n$4\r\nPI"[..], b"PI", b"*2\r\n$4\r\nECHO\r\n", b"*", b"*1\r\n"] {
        let mut app = held.client();
        app.stream.get_mut().write_all(half).unwrap();
        drop(app);
        assert_eq!(held.client().ask(&["ECHO", "mine"]), Reply::bulk("mine"));
    }
}

#[test]
fn a_replica_can_use_a_reused_connection() {
    let (_server, mut direct, url) = without_password();
    let held = hold(&url);
    for request in [&["PSYNC", "?", "-1"][..], &["SYNC"]] {
        assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
        eventually("one is kept", || (idle_connections(&mut direct) == 1).then_some(()));
        let before = accepted(&mut direct);
        let mut replica = held.open();
        replica.send(request);
        // Redis sends empty lines first, while it makes the snapshot.
        let begins = eventually("an answer", || {
            let mut line = String::new();
            replica.stream.read_line(&mut line).unwrap();
            (!line.trim().is_empty()).then_some(line)
        });
        assert!(begins.starts_with("+FULLRESYNC ") || begins.starts_with('$'), "{begins:?}");
        assert_eq!(accepted(&mut direct), before, "no new connection was made");
    }
}

#[test]
fn a_new_password_applies_to_reused_connections() {
    let (_server, mut direct, url) = without_password();
    let held = hold(&url);
    let ping = || held.open().ask(&["PING"]);
    let noauth = Reply::line("-NOAUTH Authentication required.");
    assert_eq!(ping(), Reply::line("+PONG"));
    for _ in 0..3 {
        wait_for_idle(&mut direct, 1);
        direct.ask(&["CONFIG", "SET", "requirepass", PASSWORD]);
        assert_eq!(held.open().ask(&["SET", "key", "value"]), noauth);
        wait_for_idle(&mut direct, 1);
        direct.ask(&["CONFIG", "SET", "requirepass", ""]);
        assert_eq!(ping(), Reply::line("+PONG"));
        wait_for_idle(&mut direct, 1);
        direct.ask(&["ACL", "SETUSER", "default", "off"]);
        assert_eq!(ping(), noauth);
        direct.ask(&["ACL", "SETUSER", "default", "on"]);
    }
}

#[test]
fn no_app_gets_a_connection_from_before_a_restart() {
    let mut server = Server::start(Front::Redis);
    let held = warm(&server, &mut server.direct());
    for _ in 0..3 {
        server.restart(Duration::ZERO);
        assert!(server.answers());
        for _ in 0..3 {
            one_request(&held);
        }
    }
}

#[test]
fn an_idle_connection_that_redis_has_closed_is_replaced() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = warm(&server, &mut direct);
    for round in 0..20 {
        wait_for_idle(&mut direct, 1);
        // The time between the kill and the app's request differs in each round.
        for _ in 0..round {
            direct.ask(&["PING"]);
        }
        direct.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        one_request(&held);
    }
    assert_eq!(logged(&held.finish().stderr, "command-ended", "failed"), ["0"]);
}

#[test]
fn idle_connections_close_when_the_command_ends() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let log = warm(&server, &mut direct).finish().stderr;
    assert!(!log.contains("at=drain-"), "{log}");
    eventually("nothing is left", || (connections(&mut direct) == 0).then_some(()));
}

#[test]
fn when_redis_shuts_down_the_app_sees_a_clean_close() {
    for pool in ["off", "on"] {
        let (_server, mut direct, url) = without_password();
        let held = Launcher::holding(&url).env("STUNNEL_POOL", pool).start_held();
        assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
        let kept = usize::from(pool == "on");
        wait_for_idle(&mut direct, kept);
        let mut app = held.open();
        app.send(&["SHUTDOWN", "NOSAVE"]);
        let end = app.stream.read_to_end(&mut Vec::new());
        assert_eq!(end.map_err(|error| error.kind()), Ok(0), "{pool}");
    }
}

#[test]
fn a_redis_that_freezes_for_a_moment_is_pooled_again() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = Launcher::holding(&server.url())
        .settings(&[("STUNNEL_POOL", "on"), ("STUNNEL_IDLE_TIMEOUT", "1s")])
        .start_held();
    one_request(&held);
    wait_for_idle(&mut direct, 1);
    send_signal(server.pid(), libc::SIGSTOP);
    let mut app = held.open();
    // More bytes than the sockets' buffers hold: the hand-over stalls until its time limit.
    let request = format!("*3\r\n$3\r\nSET\r\n$1\r\nk\r\n${}\r\n", 64 << 20);
    app.stream.get_mut().write_all(request.as_bytes()).unwrap();
    let chunk = vec![b'x'; 1 << 20];
    while app.stream.get_mut().write_all(&chunk).is_ok() {}
    send_signal(server.pid(), libc::SIGCONT);
    assert_eq!(direct.ask(&["PING"]), Reply::line("+PONG"));
    one_request(&held);
    wait_for_idle(&mut direct, 1);
    let before = accepted(&mut direct);
    for _ in 0..6 {
        one_request(&held);
        wait_for_idle(&mut direct, 1);
    }
    assert_eq!(accepted(&mut direct), before);
}

#[test]
fn each_reuse_sends_redis_two_reset_commands() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = warm(&server, &mut direct);
    // One in the trial, and one after the first user.
    assert_eq!(calls(&mut direct, "reset"), 2);
    one_request(&held);
    wait_for_idle(&mut direct, 1);
    // One in front of the second user's request, and one after that user. The user sent the PING.
    assert_eq!((calls(&mut direct, "reset"), calls(&mut direct, "ping")), (4, 2));
}

/// A Redis without a password that hangs, and a launcher with one idle connection to it.
fn hanging_redis(connect_timeout: &str) -> (Server, Client, Held) {
    let (server, mut direct, url) = without_password();
    let settings = [
        ("STUNNEL_POOL", "on"),
        ("STUNNEL_CONNECT_TIMEOUT", connect_timeout),
        ("STUNNEL_STATUS_ADDRESS", "0"),
    ];
    let held = Launcher::holding(&url).settings(&settings).start_held();
    assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
    wait_for_idle(&mut direct, 1);
    send_signal(server.pid(), libc::SIGSTOP);
    (server, direct, held)
}

#[test]
fn a_hanging_redis_ends_a_handover_at_the_connect_timeout() {
    let (server, _direct, held) = hanging_redis("1s");
    let mut app = held.open();
    app.send(&["GET", "key"]);
    let kind = app.reply().map_err(|error| error.kind());
    send_signal(server.pid(), libc::SIGCONT);
    // Not WouldBlock: the launcher has ended the connection.
    let ends = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::UnexpectedEof];
    assert!(kind.as_ref().is_err_and(|kind| ends.contains(kind)), "{kind:?}");
}

#[test]
fn a_held_back_request_is_dropped_if_its_app_gives_up() {
    let (server, mut direct, held) = hanging_redis("20s");
    let mut app = held.open();
    // The ledger does not know this command, so it is held back until Redis confirms RESET.
    app.send(&["CONFIG", "SET", "slowlog-max-len", "777"]);
    std::thread::sleep(Duration::from_secs(1)); // The app gives up.
    drop(app);
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    let name = "start_stunnel_connections_closed_total";
    let sample = format!("{name}{{tunnel=\"REDIS_URL\",reason=\"abandoned\"}}");
    eventually("it is abandoned", || (page.metric(&sample) == Some(1.0)).then_some(()));
    send_signal(server.pid(), libc::SIGCONT);
    let reply = direct.ask(&["CONFIG", "GET", "slowlog-max-len"]);
    assert!(!format!("{reply:?}").contains("777"), "{reply:?}");
}

#[test]
fn a_split_client_hello_is_noticed_on_a_reused_connection() {
    let server = Server::start(Front::Redis);
    let held = warm(&server, &mut server.direct());
    let mut app = held.tcp();
    app.write_all(b"\x16").unwrap();
    std::thread::sleep(Duration::from_millis(100)); // The byte is read alone.
    app.write_all(b"\x03\x01").unwrap();
    assert_eq!(support::rest(&mut app).0, b"");
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "app-speaks-tls", "var"), ["REDIS_URL"], "{log}");
}
