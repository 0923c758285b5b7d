//! Tests apps that close or reset their connection while the apps wait for Redis. Redis must not
//! execute the requests of such apps.
//!
//! In most tests, `--max-connections` is 1 and one app holds the connection, so a second app waits
//! in the queue.

mod support;

use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use openssl::ssl::SslVersion;
use support::launcher::{Held, Launcher, logged};
use support::peer::{Peer, acceptor};
use support::proc::{children, sockets_of};
use support::resp::{Client, Reply, request};
use support::scripted::{converse, redis};
use support::servers::{Front, PASSWORD, Server};
use support::status::StatusPage;
use support::{eventually, reset, rest, wait_until};

/// If an app closes its connection this long after its last byte, the launcher treats the app as
/// gone.
const LATE: Duration = Duration::from_secs(1);
/// More bytes than the launcher reads from an app while the app waits for a connection to Redis.
const MORE_THAN_THE_BUFFER: usize = 20_000;

/// A launcher that may have only one connection to Redis. The app `busy` uses this connection.
struct Scene {
    server: Server,
    held: Held,
    page: StatusPage,
    busy: Client,
}

impl Scene {
    fn new(settings: &[(&str, &str)]) -> Scene {
        Scene::of(Launcher::script(support::launcher::HOLD), settings)
    }

    /// Like `new`, but for any launcher whose COMMAND first prints the value of `REDIS_URL`.
    fn of(launcher: Launcher, settings: &[(&str, &str)]) -> Scene {
        let server = Server::start(Front::Redis);
        let launcher = launcher.redis(&server.url()).settings(&[
            ("STUNNEL_MAX_CONNECTIONS", "1"),
            ("STUNNEL_CONNECT_TIMEOUT", "60s"),
            ("STUNNEL_STATUS_ADDRESS", "0"),
            ("STUNNEL_LOG_LEVEL", "info"),
        ]);
        let held = launcher.settings(settings).start_held();
        let page = held.page();
        let mut busy = held.client();
        assert_eq!(busy.ask(&["PING"]), Reply::line("+PONG"));
        Scene { server, held, page, busy }
    }

    fn abandoned(&self) -> f64 {
        self.page.of_tunnel("connections_closed_total", ",reason=\"abandoned\"").unwrap_or(0.0)
    }

    /// Connects an app, which sends AUTH and `request`.
    fn sent(&self, request: &[u8]) -> TcpStream {
        let mut app = self.held.tcp();
        app.write_all(&login_and(request)).unwrap();
        app
    }

    /// Disconnects the app `busy`, and waits until another app has got a reply. Returns the value
    /// of `key` and the launcher's log.
    fn value(self) -> (Reply, String) {
        drop(self.busy);
        assert_eq!(self.held.client().ask(&["PING"]), Reply::line("+PONG"));
        let mut direct = self.server.direct();
        let value = direct.ask(&["GET", "key"]);
        (value, self.held.finish().stderr)
    }
}

fn login_and(words: &[u8]) -> Vec<u8> {
    [&request(&[b"AUTH", PASSWORD.as_bytes()]), words].concat()
}

fn incr() -> Vec<u8> {
    request(&[b"INCR", b"key"])
}

/// A SET request that is longer than [`MORE_THAN_THE_BUFFER`].
fn long_set() -> Vec<u8> {
    request(&[b"SET", b"key", &[b'x'; MORE_THAN_THE_BUFFER]])
}

const POOLS: [&str; 2] = ["off", "on"];

#[test]
fn an_app_that_closes_while_waiting_cancels_its_request() {
    let close: fn(TcpStream) = drop;
    let late_close: fn(TcpStream) = |app| {
        thread::sleep(LATE); // An earlier close would count as a half-close.
        drop(app);
    };
    let with_reset: fn(TcpStream) = |app| reset(&app);
    for pool in POOLS {
        for (sent, leave) in [
            (vec![], close),
            (login_and(&incr()), late_close),
            (login_and(&long_set()), late_close),
            (login_and(&incr()), with_reset),
            (login_and(&long_set()), with_reset),
        ] {
            let scene = Scene::new(&[("STUNNEL_POOL", pool)]);
            let mut app = scene.held.tcp();
            app.write_all(&sent).unwrap();
            scene.page.wait_for_waiting(1);
            leave(app);
            wait_until("the connection is abandoned", || scene.abandoned() == 1.0);
            scene.page.wait_for_waiting(0);
            let (value, log) = scene.value();
            assert_eq!(value, Reply::Nil, "{pool}");
            assert_eq!(logged(&log, "connection-abandoned", "var"), ["REDIS_URL"], "{log}");
            assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
        }
    }
}

#[test]
fn an_app_that_closes_right_after_its_request_is_served() {
    for (pool, is_half) in POOLS.into_iter().flat_map(|pool| [(pool, false), (pool, true)]) {
        let scene = Scene::new(&[("STUNNEL_POOL", pool)]);
        let app = scene.sent(&incr());
        app.shutdown(Shutdown::Write).unwrap();
        let half_closed = is_half.then_some(app);
        scene.page.wait_for_waiting(1);
        thread::sleep(LATE); // The request must survive a long wait after the close.
        let (value, log) = scene.value();
        assert_eq!(value, Reply::bulk("1"), "{pool}: {log}");
        if let Some(mut app) = half_closed {
            assert_eq!(rest(&mut app), (b"+OK\r\n:1\r\n".to_vec(), None), "{pool}");
        }
    }
}

#[test]
fn a_long_request_is_served_if_its_app_closes_right_after_it() {
    let scene = Scene::new(&[]);
    let mut app = scene.held.tcp();
    app.write_all(&login_and(&long_set())).unwrap();
    drop(app);
    scene.page.wait_for_waiting(1);
    thread::sleep(LATE); // The request must survive a long wait after the close.
    assert_eq!(scene.abandoned(), 0.0);
    let mut direct = scene.server.direct();
    let Scene { busy, held, .. } = scene;
    drop(busy);
    wait_until("the key is set", || direct.ask(&["STRLEN", "key"]) == Reply::line(":20000"));
    held.finish();
}

#[test]
fn an_app_that_resets_during_the_handshake_frees_its_slot() {
    for pool in POOLS {
        // The server never answers the ClientHello on its first connection.
        let acceptor = acceptor(SslVersion::TLS1_3);
        let peer = Peer::numbered(move |number, mut stream| {
            if number == 0 {
                return rest(&mut stream).1;
            }
            let stream = acceptor.accept(stream).expect("handshake");
            converse(stream, |request| Some(redis(request)));
            None
        });
        let launcher = Launcher::holding(&peer.url()).settings(&[
            ("STUNNEL_MAX_CONNECTIONS", "1"),
            ("STUNNEL_CONNECT_TIMEOUT", "60s"),
            ("STUNNEL_POOL", pool),
        ]);
        let held = launcher.start_held();
        let mut first = held.open();
        first.send(&["INCR", "key"]);
        wait_until("the handshake begins", || peer.accepted() == 1);
        let mut second = held.open();
        second.send(&["PING"]);
        reset(first.stream.get_ref());
        drop(first);
        // The second app gets its reply long before the connect timeout of the first app's
        // connection.
        assert_eq!(second.reply().unwrap(), Reply::line("+PONG"), "{pool}");
    }
}

/// A script for COMMAND. The script reads a port and a size from its standard input, and sends that
/// many bytes of its input to the port. The script exits when its input ends.
const WRITE_AND_EXIT: &str = "printf '%s\\n' \"$REDIS_URL\"; read -r port size;
    exec 3<>/dev/tcp/127.0.0.1/$port; head -c $size >&3; echo sent; cat >/dev/null";

#[test]
fn bytes_that_command_wrote_before_its_end_are_sent() {
    let launcher = Launcher::new(["bash", "-c", WRITE_AND_EXIT]);
    let mut scene = Scene::of(launcher, &[("STUNNEL_DRAIN_TIMEOUT", "30s")]);
    let bytes = login_and(&long_set());
    let port = scene.held.port;
    let running = &mut scene.held.running;
    running.say(&format!("{port} {}\n", bytes.len()));
    running.stdin.as_mut().unwrap().write_all(&bytes).unwrap();
    assert_eq!(running.line(), "sent");
    scene.page.wait_for_waiting(1);
    thread::sleep(LATE);
    let Scene { server, mut held, busy, .. } = scene;
    drop(held.running.stdin.take());
    let pid = held.running.pid();
    wait_until("COMMAND has ended", || children(pid).is_empty());
    wait_until("nothing listens", || TcpStream::connect(("127.0.0.1", port)).is_err());
    thread::sleep(LATE);
    drop(busy);
    let ended = held.finish();
    assert_eq!(ended.code(), 0);
    let length = server.direct().ask(&["STRLEN", "key"]);
    assert_eq!(length, Reply::line(":20000"), "{}", ended.stderr);
}

/// True if the kernel sends keepalive probes on the app connection that has this `state` in
/// /proc/net/tcp (see proc(5)). Returns `None` if no app connection has this state.
fn has_keepalive(held: &Held, state: &str) -> Option<bool> {
    const KEEPALIVE: &str = "02:";
    let local = format!(":{:04X}", held.port);
    let sockets = sockets_of(held.running.pid());
    let mut sockets = sockets.iter().map(|(_, columns)| columns);
    let socket = sockets.find(|columns| columns[1].ends_with(&local) && columns[3] == state)?;
    Some(socket[5].starts_with(KEEPALIVE))
}

#[test]
fn a_half_closed_app_gets_keepalive_probes_and_may_wait() {
    const ESTABLISHED: &str = "01";
    const CLOSE_WAIT: &str = "08";
    // This server answers long after the half-close, as some proxies do.
    let may_answer = Arc::new(AtomicBool::new(false));
    let answers = may_answer.clone();
    let peer = Peer::tls(move |mut tls| {
        let request = rest(&mut tls);
        wait_until("the test lets the server answer", || answers.load(Ordering::SeqCst));
        tls.write_all(b"+late\r\n").unwrap();
        request
    });
    let held = Launcher::holding(&peer.url()).env("STUNNEL_POOL", "off").start_held();
    let mut app = held.tcp();
    app.write_all(b"BLPOP list 0\r\n").unwrap();
    wait_until("the launcher has connected to the server", || peer.accepted() == 1);
    assert_eq!(has_keepalive(&held, ESTABLISHED), Some(false));
    app.shutdown(Shutdown::Write).unwrap();
    // The kernel must probe the half-closed app, because only probes can show that the app no
    // longer exists.
    eventually("the app is probed", || has_keepalive(&held, CLOSE_WAIT)?.then_some(()));
    may_answer.store(true, Ordering::SeqCst);
    assert_eq!(rest(&mut app), (b"+late\r\n".to_vec(), None));
    assert_eq!(peer.result(), (b"BLPOP list 0\r\n".to_vec(), None));
}
