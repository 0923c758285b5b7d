//! Tests `--max-connections`: which apps wait for a connection to Redis, in which order waiting
//! apps are served, and what the log reports.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;

use openssl::ssl::SslVersion;
use socket2::{Domain, Socket, Type};
use support::launcher::{Launcher, logged};
use support::peer::{Peer, acceptor};
use support::resp::Reply;
use support::scripted::{converse, redis};
use support::servers::{FRONTS, Front, PASSWORD, Server, accepted, connections};
use support::{reset, rest, wait_until};

const LIMIT: &str = "STUNNEL_MAX_CONNECTIONS";
const TIMEOUT: &str = "STUNNEL_CONNECT_TIMEOUT";
const POOL: &str = "STUNNEL_POOL";

#[test]
fn waiting_apps_are_served_in_order() {
    for (front, pool) in FRONTS.into_iter().flat_map(|front| [(front, "off"), (front, "on")]) {
        let server = Server::start(front);
        let mut direct = server.direct();
        let before = accepted(&mut direct);
        let settings = [(LIMIT, "2"), (POOL, pool), ("STUNNEL_STATUS_ADDRESS", "0")];
        let held = Launcher::hold_with(&server.url(), &settings);
        let page = held.page();
        let mut busy = vec![held.client(), held.client()];
        let mut waiting = Vec::new();
        for number in 0..6 {
            let mut app = held.open();
            app.send(&["AUTH", PASSWORD]);
            app.send(&["ECHO", &number.to_string()]);
            waiting.push(app);
            page.wait_for_waiting(number + 1);
        }
        for (number, mut app) in waiting.into_iter().enumerate() {
            // When an app closes its connection, the app that has waited longest is served.
            drop(busy.remove(0));
            assert_eq!(app.reply().unwrap(), Reply::line("+OK"));
            assert_eq!(app.reply().unwrap(), Reply::bulk(&number.to_string()));
            busy.push(app);
        }
        let made = accepted(&mut direct) - before;
        assert_eq!(made, if pool == "on" { 2 } else { 8 }, "{front:?}");
        drop(busy);
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
    }
}

#[test]
fn a_connection_that_redis_closed_frees_its_slot_at_once() {
    for (front, pool) in FRONTS.into_iter().flat_map(|front| [(front, "off"), (front, "on")]) {
        let server = Server::start(front);
        let mut direct = server.direct();
        let settings =
            [(LIMIT, "2"), (POOL, pool), (TIMEOUT, "60s"), ("STUNNEL_STATUS_ADDRESS", "0")];
        let held = Launcher::hold_with(&server.url(), &settings);
        let page = held.page();
        let mut dead = [held.client(), held.client()];
        direct.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        // Like the pool of a client library, the app keeps its side of both connections open.
        wait_until("no connection counts", || page.upstream("relaying") == 0.0);
        let mut next = vec![held.client(), held.client()];
        let mut late = held.open();
        late.send(&["PING"]);
        let count = |name| page.of_tunnel(name, "").unwrap();
        page.wait_for_waiting(1);
        for app in &mut dead {
            assert!(app.reply().is_err(), "the app sees the close");
            assert!(app.try_ask(&["PING"]).is_err(), "the app's request is lost");
        }
        drop(dead);
        wait_until("the dead connections end", || count("connections_open") == 3.0);
        assert!(next.iter_mut().all(|app| app.ask(&["ECHO", "2"]) == Reply::bulk("2")));
        let places = (connections(&mut direct), count("connections_waiting"));
        assert_eq!(places, (2, 1.0), "each slot was freed once ({front:?}, pool {pool})");
        drop(next.pop());
        assert!(late.reply().is_ok());
        drop((next, late));
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
    }
}

#[test]
fn an_app_that_does_not_read_holds_no_slot_after_a_reset() {
    const REPLY: usize = 12 * 1024;
    let acceptor = acceptor(SslVersion::TLS1_3);
    let peer = Peer::numbered(move |number, stream| {
        let mut stream = acceptor.accept(stream).expect("handshake");
        if number > 0 {
            return converse(stream, |request| Some(redis(request)));
        }
        stream.write_all(&[b'x'; REPLY]).unwrap();
        stream.read_exact(&mut [0]).unwrap();
        reset(stream.get_ref());
    });
    // Before the launcher resets the app's connection, the app has five seconds for the last bytes.
    let settings = [(LIMIT, "1"), (TIMEOUT, "3s"), (POOL, "off"), ("STUNNEL_STATUS_ADDRESS", "0")];
    let held = Launcher::hold_with(&peer.url(), &settings);
    let (page, app) = (held.page(), Socket::new(Domain::IPV4, Type::STREAM, None).unwrap());
    // The app's kernel accepts only a part of the reply.
    app.set_recv_buffer_size(1).unwrap();
    app.connect(&SocketAddr::from(([127, 0, 0, 1], held.port)).into()).unwrap();
    let mut app = TcpStream::from(app);
    wait_until("the launcher has the reply", || {
        page.of_tunnel("received_bytes_total", "") == Some(REPLY as f64)
    });
    app.write_all(b"x").unwrap();
    assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
    assert_eq!(rest(&mut app), (vec![b'x'; REPLY], Some(ErrorKind::ConnectionReset)));
}

#[test]
fn the_log_reports_long_waits_stuck_queues_and_timeouts() {
    let server = Server::start(Front::Redis);
    // The launcher logs `queue-waiting` after one second, and `queue-stuck` after ten seconds.
    let held = Launcher::hold_with(
        &server.url(),
        &[("REDIS_URL_STUNNEL_MAX_CONNECTIONS", "2"), (TIMEOUT, "12s")],
    );
    let mut busy = [held.client(), held.client()];
    let mut late = held.open();
    late.send(&["PING"]);
    assert!(late.reply().is_err());
    // The app has kept its two connections open, and both connections still work.
    assert!(busy.iter_mut().all(|app| app.ask(&["PING"]) == Reply::line("+PONG")));
    drop(busy);
    let log = held.finish().stderr;
    let places = ["queue-waiting", "queue-stuck", "queue-timeout"].map(|event| {
        assert_eq!(logged(&log, event, "var"), ["REDIS_URL"], "{log}");
        let hint = &logged(&log, event, "hint")[0];
        assert!(hint.contains(LIMIT) && hint.contains("Sidekiq"), "{hint}");
        log.find(&format!(" at={event} "))
    });
    assert!(places.is_sorted(), "{log}");
    assert_eq!(logged(&log, "command-ended", "failed"), ["1"], "{log}");
}

#[test]
fn many_apps_are_served_if_redis_allows_no_more_than_the_limit() {
    const CONNECTIONS: usize = 4;
    for pool in ["off", "on"] {
        // The test's own connection is one of the five clients that Redis allows.
        let server = Server::with_words(&["--maxclients", "5"]);
        let mut direct = server.direct();
        let held =
            Launcher::hold_with(&server.url(), &[(LIMIT, &CONNECTIONS.to_string()), (POOL, pool)]);
        thread::scope(|scope| {
            for app in 0..25 {
                let held = &held;
                scope.spawn(move || {
                    for round in 0..20 {
                        let mark = format!("{app}/{round}");
                        let mut client = held.client();
                        assert_eq!(client.ask(&["ECHO", &mark]), Reply::bulk(&mark), "{pool}");
                        if round % 7 == 3 {
                            // The pool does not reuse a connection on which an app has called
                            // CLIENT ID.
                            client.ask(&["CLIENT", "ID"]);
                        }
                    }
                });
            }
            for _ in 0..50 {
                assert!(connections(&mut direct) <= CONNECTIONS);
            }
        });
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
    }
}

/// A server that closes some connections during the handshake, like a Redis at its client limit.
/// `cut` contains the numbers of these connections, counted from 0.
fn cutting(cut: &'static [usize]) -> Peer<()> {
    let acceptor = acceptor(SslVersion::TLS1_3);
    Peer::numbered(move |number, mut stream| {
        if cut.contains(&number) {
            // Read the ClientHello first, because the kernel would reset a connection that is
            // closed with unread bytes.
            let _ = stream.read(&mut [0; 4096]);
            return;
        }
        let Ok(stream) = acceptor.accept(stream) else { return };
        converse(stream, |request| Some(redis(request)));
    })
}

#[test]
fn a_handshake_refused_right_after_a_close_is_retried_once() {
    // For a moment, Redis may still count a client whose connection the launcher has closed.
    for (cut, failed) in [(&[1][..], "0"), (&[1, 2, 3, 4], "1")] {
        let peer = cutting(cut);
        let held = Launcher::hold_with(&peer.url(), &[(LIMIT, "1"), (POOL, "off")]);
        let mut first = held.open();
        assert_eq!(first.ask(&["PING"]), Reply::line("+PONG"));
        let mut second = held.open();
        second.send(&["PING"]);
        drop(first);
        assert_eq!(second.reply().is_ok(), failed == "0");
        assert_eq!(peer.accepted(), 3);
        let log = held.finish().stderr;
        assert_eq!(logged(&log, "command-ended", "failed"), [failed], "{log}");
    }
}

#[test]
fn a_plaintext_server_is_recognised_at_the_connection_limit() {
    let server = Server::start(Front::Redis);
    let plaintext = format!("rediss://127.0.0.1:{}", server.port);
    let held = Launcher::hold_with(&plaintext, &[(LIMIT, "1")]);
    let mut app = held.open();
    app.send(&["PING"]);
    let reply = app.reply();
    let said = matches!(&reply, Ok(Reply::Line(line)) if line.contains("does not speak TLS"));
    assert!(said, "{reply:?}");
}

#[test]
fn check_prints_how_many_clients_redis_has_and_allows() {
    let server = Server::with_words(&["--maxclients", "20"]);
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
