//! Tests `--pool on` with a real Redis: which connections are reused, and which apps get these
//! connections.

mod support;

use std::io::{ErrorKind, Write};
use std::net::Shutdown;

use nix::libc;
use support::launcher::{Held, Launcher, logged, send_signal};
use support::resp::{Client, Reply};
use support::servers::{
    FRONTS, Front, PASSWORD, Server, accepted, calls, clients, connections, info,
};
use support::status::StatusPage;
use support::{reset, wait_until};

fn hold(url: &str, settings: &[(&str, &str)]) -> (Held, StatusPage) {
    let launcher =
        Launcher::holding(url).settings(&[("STUNNEL_POOL", "on"), ("STUNNEL_STATUS_ADDRESS", "0")]);
    let held = launcher.settings(settings).start_held();
    let page = held.page();
    (held, page)
}

/// Makes one request through the tunnel, and waits until the connection to Redis is idle.
fn one_request(held: &Held, page: StatusPage) {
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
    page.wait_for_idle(1);
}

/// A server, a direct client, and a launcher with one idle connection.
fn warm() -> (Server, Client, Held, StatusPage) {
    let server = Server::start(Front::Redis);
    let direct = server.direct();
    let (held, page) = hold(&server.url(), &[]);
    one_request(&held, page);
    (server, direct, held, page)
}

#[test]
fn apps_one_after_another_share_one_connection() {
    for front in FRONTS {
        let server = Server::start(front);
        let mut direct = server.direct();
        let before = accepted(&mut direct);
        let (held, page) = hold(&server.url(), &[("STUNNEL_LOG_LEVEL", "debug")]);
        for round in 0..30 {
            let mut app = held.client();
            assert_eq!(app.ask(&["SET", "key", &round.to_string()]), Reply::line("+OK"));
            match round % 3 {
                0 => {}
                1 => app.stream.get_ref().shutdown(Shutdown::Write).unwrap(),
                _ => reset(app.stream.get_ref()),
            }
            drop(app);
            page.wait_for_idle(1);
        }
        assert_eq!(accepted(&mut direct) - before, 1, "{front:?}");
        // Redis executes one RESET in the trial, and one RESET for each user after the first user.
        assert_eq!(calls(&mut direct, "reset"), 30);
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "pool-tried", "verdict"), ["Passed"], "{log}");
        assert!(!log.contains(PASSWORD), "{log}");
    }
}

#[test]
fn a_blocked_command_ends_when_its_app_resets_the_connection() {
    let (_server, mut direct, held, _page) = warm();
    let mut blocked = held.client();
    blocked.send(&["BLPOP", "list", "0"]);
    wait_until("the command waits", || info(&mut direct, "clients", "blocked_clients") == Some(1));
    reset(blocked.stream.get_ref());
    drop(blocked);
    wait_until("the connection is closed", || connections(&mut direct) == 0);
    assert_eq!(direct.ask(&["RPUSH", "list", "mine"]), Reply::line(":1"));
    assert_eq!(held.client().ask(&["LLEN", "list"]), Reply::line(":1"));
}

#[test]
fn half_a_request_is_never_joined_to_another_users_request() {
    let (_server, _direct, held, _page) = warm();
    for half in [&b"*1\r\n$4\r\nPI"[..], b"PI", b"*2\r\n$4\r\nECHO\r\n", b"*", b"*1\r\n"] {
        let mut app = held.client();
        app.stream.get_mut().write_all(half).unwrap();
        drop(app);
        assert_eq!(held.client().ask(&["ECHO", "mine"]), Reply::bulk("mine"));
    }
}

#[test]
fn a_new_password_applies_to_reused_connections() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let no_password = ["CONFIG", "SET", "requirepass", ""];
    direct.ask(&no_password);
    let (held, page) = hold(&server.url(), &[]);
    let before = accepted(&mut direct);
    let ask = |request: &[&str]| {
        let reply = held.open().ask(request);
        page.wait_for_idle(1);
        reply
    };
    let (pong, noauth) = (Reply::line("+PONG"), Reply::line("-NOAUTH Authentication required."));
    assert_eq!(ask(&["PING"]), pong);
    for _ in 0..3 {
        direct.ask(&["CONFIG", "SET", "requirepass", PASSWORD]);
        assert_eq!(ask(&["SET", "key", "value"]), noauth);
        direct.ask(&no_password);
        assert_eq!(ask(&["PING"]), pong);
        direct.ask(&["ACL", "SETUSER", "default", "off"]);
        assert_eq!(ask(&["PING"]), noauth);
        direct.ask(&["ACL", "SETUSER", "default", "on"]);
    }
    assert_eq!(accepted(&mut direct) - before, 1);
}

#[test]
fn redis_gets_the_reset_command_when_the_next_app_connects() {
    let (_server, mut direct, held, page) = warm();
    let mut app = held.client();
    app.ask(&["CLIENT", "SETNAME", "first"]);
    app.ask(&["SELECT", "7"]);
    drop(app);
    page.wait_for_idle(1);
    assert!(clients(&mut direct).contains(" name=first "));
    let next = held.open();
    wait_until("the connection is reset", || !clients(&mut direct).contains(" name=first "));
    drop(next);
}

#[test]
fn an_idle_connection_that_redis_has_closed_is_replaced() {
    let (_server, mut direct, held, page) = warm();
    for _ in 0..5 {
        direct.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        one_request(&held, page);
    }
    assert_eq!(logged(&held.finish().stderr, "command-ended", "failed"), ["0"]);
}

#[test]
fn idle_connections_close_when_the_command_ends() {
    let (_server, mut direct, held, _page) = warm();
    let log = held.finish().stderr;
    assert!(!log.contains("at=drain-"), "{log}");
    wait_until("no connection is left", || connections(&mut direct) == 0);
}

#[test]
fn connections_are_reused_again_after_redis_has_hung() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let (held, page) = hold(&server.url(), &[("STUNNEL_CONNECT_TIMEOUT", "2s")]);
    one_request(&held, page);
    send_signal(server.pid(), libc::SIGSTOP);
    let kind = held.open().try_ask(&["GET", "key"]).map_err(|error| error.kind());
    send_signal(server.pid(), libc::SIGCONT);
    // The launcher ends the app's connection after the connect timeout, as without the pool.
    let ends = [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof];
    assert!(kind.as_ref().is_err_and(|kind| ends.contains(kind)), "{kind:?}");
    one_request(&held, page);
    let before = accepted(&mut direct);
    (0..6).for_each(|_| one_request(&held, page));
    assert_eq!(accepted(&mut direct), before);
}

#[test]
fn an_app_that_speaks_tls_to_a_reused_connection_is_noticed() {
    let (_server, _direct, held, page) = warm();
    let mut app = held.tcp();
    wait_until("the app has the connection", || page.upstream("relaying") == 1.0);
    app.write_all(b"\x16\x03\x01").unwrap();
    assert_eq!(support::rest(&mut app).0, b"");
    let log = held.finish().stderr;
    assert_eq!(logged(&log, "app-speaks-tls", "var"), ["REDIS_URL"], "{log}");
}
