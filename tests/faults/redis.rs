//! Tests faults of Redis, and of the stunnel in front of Redis.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use nix::libc;

use crate::support::launcher::{Launcher, logged, send_signal};
use crate::support::peer::Peer;
use crate::support::proc::{connections_to, resident_kib};
use crate::support::resp::{Client, Reply};
use crate::support::servers::{Front, PASSWORD, Server, connections};
use crate::support::{reset, rest, two_free_ports, wait_until};
use crate::{HOLD_TWO, KEPT_KIB, Scene, TIMES, all_logged, closed, fault, half, half_a_reply};

const MIB: usize = 1024 * 1024;

#[test]
fn redis_refuses_connections() {
    fault!("Redis refuses connections: no program listens on the port");
    let port = two_free_ports();
    let scene = Scene::new(&format!("redis://127.0.0.1:{port}"));
    closed(&scene.one_by_one());
    let log = scene.aftermath();
    all_logged(&log, "connection-failed", "error", "TCP connection failed: connection refused");
    let tls = port + 1;
    let hint = format!(
        "no program listens on 127.0.0.1:{tls}; if Redis is not just restarting, check the \
         TLS port, {tls} (the URL's port {port} + 1): if port {port} speaks TLS, write rediss://; \
         if TLS is on another port, set REDIS_URL_STUNNEL_PORT_OFFSET; if this Redis has no TLS, \
         set STUNNEL_ENABLED=false"
    );
    all_logged(&log, "connection-failed", "hint", &hint);
}

#[test]
fn silent_server_is_probed_for_plaintext_only_once() {
    fault!("Redis accepts connections, and stays silent");
    let silent = Peer::tcp(|mut stream| rest(&mut stream).0.len());
    // The connect timeout must be longer than one second, because the launcher probes a silent
    // server for plaintext after one second.
    let launcher = Launcher::script(HOLD_TWO).env("STUNNEL_CONNECT_TIMEOUT", "5s");
    let mut scene = Scene::with(launcher, &silent.url());
    let apps: Vec<_> = (0..TIMES).map(|_| scene.open()).collect();
    scene.others_go_on();
    for mut app in apps {
        assert_eq!(rest(&mut app), (vec![], None));
    }
    assert_eq!(silent.accepted(), TIMES + 1);
    let error = "TLS handshake failed: timed out";
    all_logged(&scene.aftermath(), "connection-failed", "error", error);
}

#[test]
fn plaintext_server_is_recognised_by_one_probe() {
    let peer = Peer::tcp(|mut stream| {
        let mut first = [0; 6];
        if stream.read_exact(&mut first).is_ok() && first == *b"PING\r\n" {
            stream.write_all(b"+PONG\r\n").unwrap();
        }
        // The launcher may close the connection first.
        let _ = rest(&mut stream);
    });
    let scene = Scene::new(&peer.url());
    for (said, _) in scene.all_at_once() {
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("the server does not speak TLS"), "{said}");
    }
    assert_eq!(peer.accepted(), TIMES + 1);
}

/// Lowers Redis's client limit to the current number of clients, so that Redis refuses new clients.
/// The current clients are `held` connections from the launcher, and the returned client.
fn no_more_clients(server: &Server, held: usize) -> Client {
    let mut direct = server.direct();
    // While Redis started, the test connected to see whether Redis was ready. Wait until Redis has
    // closed these connections.
    wait_until("only the launcher's clients are connected", || connections(&mut direct) == held);
    let most = (held + 1).to_string();
    assert_eq!(direct.ask(&["CONFIG", "SET", "maxclients", &most]), Reply::line("+OK"));
    direct
}

#[test]
fn redis_accepts_no_more_clients() {
    fault!("Redis accepts no more clients (maxclients, a plan's connection limit)");
    let server = Server::start(Front::Redis);
    let scene = Scene::new(&server.url());
    let held: Vec<_> = (0..3).map(|_| scene.held.client()).collect();
    let direct = no_more_clients(&server, held.len());
    closed(&scene.one_by_one());
    drop((held, direct));
    let log = scene.aftermath();
    all_logged(&log, "connection-failed", "error", "TLS handshake failed");
    let hint = "Redis is probably at its client limit (open connections of this launcher: 3;";
    all_logged(&log, "connection-failed", "hint", hint);
}

#[test]
fn redis_behind_stunnel_accepts_no_more_clients() {
    fault!("Redis behind stunnel accepts no more clients");
    let server = Server::start(Front::Stunnel);
    let scene = Scene::new(&server.url());
    let held: Vec<_> = (0..3).map(|_| scene.held.client()).collect();
    let direct = no_more_clients(&server, held.len());
    // Redis sends an error, and resets the connection because Redis has not read the request. After
    // the reset, stunnel may lose the error.
    let seen = scene.one_by_one();
    let lost = seen.iter().filter(|(said, _)| said.is_empty()).count();
    let told = b"-ERR max number of clients reached\r\n";
    assert!(seen.iter().all(|(said, _)| said.is_empty() || said == told), "{seen:?}");
    drop((held, direct));
    let log = scene.aftermath();
    let hints = logged(&log, "connection-unanswered", "hint");
    assert_eq!(hints.is_empty(), lost == 0, "{lost} lost: {log}");
    let expected = "(open connections of this launcher: 3;";
    assert!(hints.iter().all(|hint| hint.contains(expected)), "{hints:?}");
}

#[test]
fn redis_is_down_behind_stunnel() {
    fault!("Redis is down, but the stunnel in front of Redis accepts connections");
    let server = Server::start(Front::Stunnel);
    let scene = Scene::new(&server.url());
    send_signal(server.pid(), libc::SIGKILL);
    wait_until("redis-server has ended", || {
        TcpStream::connect(("127.0.0.1", server.port)).is_err()
    });
    closed(&scene.one_by_one());
    let log = scene.aftermath();
    let hints = logged(&log, "connection-unanswered", "hint");
    // The hint mentions no other connections, because the launcher has no connection besides the
    // closed connection.
    assert!(hints.iter().any(|hint| hint.starts_with("Redis may be down")), "{log}");
}

#[test]
fn reply_that_breaks_off_ends_with_a_reset() {
    fault!("Redis resets the connection in the middle of a reply");
    let resets = Peer::tls(|mut tls| {
        half_a_reply(&mut tls);
        // Wait until the app has read its half of the reply, because Linux discards unread bytes at
        // a reset.
        tls.read_exact(&mut [0; 4]).unwrap();
        reset(tls.get_ref());
    });
    fault!("a TLS record from Redis was tampered with");
    let tampers = Peer::tls(|mut tls| {
        half_a_reply(&mut tls);
        tls.read_exact(&mut [0; 4]).unwrap();
        // Send an application data record whose authentication fails.
        tls.get_mut().write_all(b"\x17\x03\x03\x00\x20").unwrap();
        tls.get_mut().write_all(&[0x55; 32]).unwrap();
        rest(tls.get_mut());
    });
    for (peer, key, expected) in
        [(resets, "reason", "reset-by-redis"), (tampers, "error", "bad record mac")]
    {
        let scene = Scene::new(&peer.url());
        for _ in 0..TIMES {
            let mut app = scene.app_with_half_a_reply();
            app.write_all(b"more").unwrap();
            assert_eq!(rest(&mut app), (vec![], Some(ErrorKind::ConnectionReset)));
        }
        all_logged(&scene.aftermath(), "connection-closed", key, expected);
    }
}

#[test]
fn redis_closes_without_close_notify() {
    fault!("Redis closes the connection without close_notify");
    let peer = Peer::tls(|mut tls| half_a_reply(&mut tls));
    let scene = Scene::new(&peer.url());
    for _ in 0..TIMES {
        assert_eq!(scene.exchange(b"ask!"), (half(), None));
    }
    all_logged(&scene.aftermath(), "connection-closed", "reason", "closed");
}

#[test]
fn redis_stalls_in_the_middle_of_a_reply() {
    fault!("Redis stalls for longer than the idle timeout");
    let peer = Peer::tls(|mut tls| {
        half_a_reply(&mut tls);
        rest(&mut tls)
    });
    let launcher = Launcher::holding(&peer.url()).env("STUNNEL_IDLE_TIMEOUT", "4s");
    let held = launcher.start_held();
    let mut apps: Vec<_> = (0..TIMES).map(|_| held.tcp()).collect();
    for app in &mut apps {
        app.write_all(b"ask!").unwrap();
    }
    for app in &mut apps {
        assert_eq!(rest(app), (half(), None));
        assert_eq!(peer.result(), (vec![], None), "Redis sees a clean end, too");
    }
}

#[test]
fn redis_stops_reading() {
    fault!("Redis reads nothing while the app sends 1 GiB");
    let over = Arc::new(AtomicBool::new(false));
    let until = over.clone();
    let peer = Peer::tls(move |_tls| {
        wait_until("the test is over", || until.load(Ordering::Relaxed));
    });
    let mut scene = Scene::new(&peer.url());
    let mut app = scene.open();
    app.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let chunk = vec![0; MIB];
    let stalled = (0..1024).find_map(|_| app.write_all(&chunk).err());
    let stalled = stalled.map(|error| error.kind());
    assert!(matches!(stalled, Some(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{stalled:?}");
    scene.others_go_on();
    let kib = resident_kib(scene.pid());
    assert!(kib < scene.kib + KEPT_KIB, "{kib} KiB");
    // The launcher must notice the reset, although the launcher has stopped reading from the app.
    reset(&app);
    drop(app);
    wait_until("the launcher closes the connection", || {
        scene.is_closed() && connections_to(scene.pid(), &scene.upstreams[1..]) == 0
    });
    over.store(true, Ordering::Relaxed);
    assert!(scene.aftermath().contains("reason=reset-by-app"));
}

/// Runs a client that sends requests until the round is [`OVER`]. The test starts a new round after
/// each restart of Redis. When a reply arrives, `seen` is set to the round in which the client sent
/// the request. Returns the number of the client's broken connections.
fn keep_asking(name: usize, port: u16, round: &AtomicUsize, seen: &AtomicUsize) -> usize {
    let (mut lost, mut asked) = (0, 0);
    let is_over = || round.load(Ordering::Relaxed) == OVER;
    while !is_over() {
        let mut client = Client::open(port);
        let greeted = client.try_ask(&["AUTH", PASSWORD]);
        if !greeted.is_ok_and(|reply| reply == Reply::line("+OK")) {
            thread::yield_now();
            continue;
        }
        while !is_over() {
            asked += 1;
            let now = round.load(Ordering::Relaxed);
            let token = format!("client {name} request {asked}");
            let Ok(reply) = client.try_ask(&["ECHO", &token]) else {
                lost += 1;
                break;
            };
            assert_eq!(reply, Reply::bulk(&token));
            seen.store(now, Ordering::Relaxed);
        }
    }
    lost
}

/// A round with this number tells the clients to stop.
const OVER: usize = usize::MAX;

#[test]
fn redis_restarts_under_two_hundred_busy_connections() {
    fault!("Redis restarts while 200 connections are busy");
    const CLIENTS: usize = 200;
    const RESTARTS: usize = 3;
    let mut server = Server::start(Front::Redis);
    let scene = Scene::new(&server.url());
    let port = scene.held.port;
    let round = AtomicUsize::new(0);
    // For each client, the round in which the client sent its latest answered request.
    let seen: Vec<_> = (0..CLIENTS).map(|_| AtomicUsize::new(OVER)).collect();
    let all_busy = |now: usize| {
        round.store(now, Ordering::Relaxed);
        wait_until("every client has replies", || {
            seen.iter().all(|seen| seen.load(Ordering::Relaxed) == now)
        });
    };
    thread::scope(|scope| {
        let round = &round;
        let clients: Vec<_> = seen
            .iter()
            .enumerate()
            .map(|(name, seen)| scope.spawn(move || keep_asking(name, port, round, seen)))
            .collect();
        all_busy(1);
        for restart in 1..=RESTARTS {
            server.restart(Duration::ZERO);
            all_busy(1 + restart);
        }
        round.store(OVER, Ordering::Relaxed);
        for client in clients {
            let lost = client.join().expect("each reply went to its own client");
            assert_eq!(lost, RESTARTS, "each restart broke each connection once");
        }
    });
    scene.aftermath();
}
