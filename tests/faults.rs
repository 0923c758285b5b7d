//! What goes wrong between an app and its Redis, one fault after the other; and that each harms
//! nothing else.

mod support;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use foreign_types::ForeignTypeRef as _;
use nix::libc;
use openssl::ssl::{HandshakeError, SslStream, SslVersion};
use support::launcher::{BINARY, Held, Launcher, logged, port_of, send_signal, warned, with_hosts};
use support::peer::{Peer, acceptor, demanding_acceptor};
use support::proc::{
    command_of, connections_to, cpu_ticks, descriptors, is_alive, resident_kib, state,
};
use support::resp::{Client, Reply};
use support::servers::{Front, Options, PASSWORD, Server, connections};
use support::slow_link::SlowLink;
use support::{eventually, eventually_within, faketime, reset, rest};

const MIB: usize = 1024 * 1024;

/// Prints both URLs, then lives until its standard input ends.
const HOLD_TWO: &str = "echo $REDIS_URL; echo $HEALTHY_URL; exec cat >/dev/null";
/// What memory may have grown by when a fault is over: what an allocator keeps for the next time.
const KEPT_KIB: u64 = 16 * 1024;
/// The page's table of faults, row by row. Each fault is made by a test that names it.
const PAGE: &str = include_str!("../docs/faults.md");

#[test]
fn the_pages_table_of_faults_is_what_is_tested_here() {
    let (_, table) = PAGE.split_once("<!-- faults -->\n").expect("the table's begin");
    let (table, _) = table.split_once("<!-- end of faults -->").expect("the table's end");
    let listed: Vec<&str> = table
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" | ").next())
        .filter(|cell| *cell != "fault" && !cell.starts_with("---"))
        .collect();
    let tested: Vec<&str> = inventory::iter::<Fault>().map(|Fault(row)| *row).collect();
    for row in &listed {
        assert!(tested.contains(row), "no test makes the fault: {row}");
    }
    for name in &tested {
        assert!(listed.contains(name), "docs/faults.md lacks: {name}");
    }
    assert!(listed.len() > 25, "{listed:?}");
}

/// A row of the page's table, by its first cell.
struct Fault(&'static str);

inventory::collect!(Fault);

/// Stands in a test, and registers the row of the page's table that it is about.
macro_rules! fault {
    ($row:literal) => {
        inventory::submit! { Fault($row) }
    };
}

/// A launcher with a tunnel to a server at fault, and one to a healthy Redis beside it.
struct Scene {
    held: Held,
    healthy_port: u16,
    /// A connection that was there before the fault.
    witness: Client,
    asked: usize,
    /// Without those of connections to Redis.
    descriptors: usize,
    /// Where the launcher has its connections to Redis.
    upstreams: Vec<u16>,
    kib: u64,
    _healthy: Server,
}

impl Scene {
    fn new(url: &str) -> Scene {
        Scene::with(Launcher::script(HOLD_TWO), url)
    }

    /// With a launcher whose script is [`HOLD_TWO`].
    fn with(launcher: Launcher, url: &str) -> Scene {
        let healthy = Server::start(Front::Redis);
        let launcher = launcher
            .redis(url)
            .env("HEALTHY_URL", healthy.url())
            .env("REDIS_STUNNEL_URLS", "REDIS_URL HEALTHY_URL")
            .env("STUNNEL_LOGLEVEL", "info");
        let mut held = launcher.start_held();
        let healthy_port = port_of(&held.running.line());
        let mut witness = Client::connect(healthy_port, PASSWORD);
        assert_eq!(witness.ask(&["PING"]), Reply::line("+PONG"));
        // A look-up starts a thread of the runtime's, which goes again.
        let pid = held.running.pid();
        let at_fault = port_of(url);
        let upstreams = vec![healthy.tls_port(), at_fault, at_fault.saturating_add(1)];
        let (descriptors, kib) = (others(pid, &upstreams), resident_kib(pid));
        let _healthy = healthy;
        Scene { held, healthy_port, witness, asked: 0, descriptors, upstreams, kib, _healthy }
    }

    /// Whether all descriptors are closed that served the app. Connections to Redis are kept for
    /// others: no more of them than an app ever had at once.
    fn is_closed(&self) -> bool {
        let kept = connections_to(self.pid(), &self.upstreams);
        others(self.pid(), &self.upstreams) <= self.descriptors && kept <= MOST_AT_ONCE
    }

    fn pid(&self) -> i32 {
        self.held.running.pid()
    }

    /// A connection to the tunnel at fault.
    fn open(&self) -> TcpStream {
        self.held.tcp()
    }

    /// What an app reads that has sent `request`, and how it ends.
    fn exchange(&self, request: &[u8]) -> (Vec<u8>, Option<ErrorKind>) {
        let mut app = self.open();
        // The connection may be gone before the request is; then reading finds its end only.
        let unsent = app.write_all(request).err().map(|error| error.kind());
        let (said, error) = rest(&mut app);
        (said, unsent.or(error))
    }

    /// That the other connection goes on.
    fn others_go_on(&mut self) {
        self.asked += 1;
        let count = format!(":{}", self.asked);
        assert_eq!(self.witness.ask(&["INCR", "witness"]), Reply::Line(count));
    }

    /// That the fault has left nothing behind; returns the log.
    fn aftermath(mut self) -> String {
        self.others_go_on();
        assert_eq!(
            Client::connect(self.healthy_port, PASSWORD).ask(&["PING"]),
            Reply::line("+PONG")
        );
        drop(self.open());
        let pid = self.pid();
        eventually("descriptors are as before", || self.is_closed().then_some(()));
        let kib = resident_kib(pid);
        assert!(kib < self.kib + KEPT_KIB, "{} KiB have become {kib}", self.kib);
        eventually("the launcher is at rest", || {
            let before = cpu_ticks(pid);
            thread::sleep(Duration::from_millis(200)); // The time over which spinning would show.
            (cpu_ticks(pid) - before <= 2).then_some(())
        });
        drop(self.witness);
        let ended = self.held.finish();
        assert_eq!(ended.code(), 0, "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        assert!(!ended.stderr.contains(PASSWORD), "{}", ended.stderr);
        ended.stderr
    }
}

/// Descriptors of a process that are no connections to Redis.
fn others(pid: i32, upstreams: &[u16]) -> usize {
    descriptors(pid).saturating_sub(connections_to(pid, upstreams))
}

/// The most connections that a fault's apps have at once.
const MOST_AT_ONCE: usize = 202;

/// Times that a fault is made, one after the other.
const TIMES: usize = 20;

#[track_caller]
fn all_logged(log: &str, event: &str, error: &str) {
    let errors = warned(log, event, "error");
    let right = errors.iter().filter(|logged| logged.contains(error)).count();
    assert!(right >= TIMES, "{error}: {errors:?}");
}

#[test]
fn redis_refuses() {
    fault!("Redis refuses: nothing listens");
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("rediss://{}", free.local_addr().unwrap());
    drop(free);
    let scene = Scene::new(&url);
    for _ in 0..TIMES {
        let (said, _) = scene.exchange(b"PING\r\n");
        assert_eq!(said, b"");
    }
    all_logged(
        &scene.aftermath(),
        "connection-failed",
        "TCP connection failed: connection refused",
    );
}

#[test]
fn redis_accepts_and_stays_silent() {
    fault!("it accepts, and stays silent");
    let silent = Peer::tcp(|mut stream| rest(&mut stream).0.len());
    // Longer than the silence after which a plaintext Redis would be recognized.
    let launcher = Launcher::script(HOLD_TWO).env("STUNNEL_CONNECT_TIMEOUT", "5s");
    let mut scene = Scene::with(launcher, &silent.url());
    let apps: Vec<_> = (0..TIMES).map(|_| scene.open()).collect();
    scene.others_go_on();
    for mut app in apps {
        assert_eq!(rest(&mut app), (vec![], None));
    }
    all_logged(&scene.aftermath(), "connection-failed", "TLS handshake broke off: timed out");
}

#[test]
fn redis_resets_during_the_handshake() {
    fault!("it resets during the handshake");
    let peer = Peer::tcp(|mut stream| {
        stream.read_exact(&mut [0; 5]).unwrap();
        reset(&stream);
    });
    let scene = Scene::new(&peer.url());
    for _ in 0..TIMES {
        assert_eq!(scene.exchange(b"PING\r\n").0, b"");
    }
    all_logged(&scene.aftermath(), "connection-failed", "connection reset by the server");
}

#[test]
fn redis_resets_right_after_the_handshake() {
    fault!("it resets right after the handshake");
    let peer = Peer::tls(|tls| reset(tls.get_ref()));
    let scene = Scene::new(&peer.url());
    let mut seen = Vec::new();
    for _ in 0..TIMES {
        seen.push(scene.exchange(b"PING\r\n"));
    }
    let log = scene.aftermath();
    assert_eq!(seen, vec![(vec![], Some(ErrorKind::ConnectionReset)); TIMES], "{log}");
    let reasons = logged(&log, "connection-closed", "reason");
    assert!(reasons.iter().filter(|reason| *reason == "reset-by-redis").count() >= TIMES, "{log}");
}

#[test]
fn a_resetting_server_is_asked_for_its_reason_only_once() {
    let peer = Peer::tls(|tls| reset(tls.get_ref()));
    let scene = Scene::new(&peer.url());
    for _ in 0..TIMES {
        assert_eq!(scene.exchange(b"PING\r\n").0, b"");
    }
    assert_eq!(peer.accepted(), TIMES + 1);
}

#[test]
fn the_reason_for_a_reset_is_told_to_all_who_meet_it() {
    let (plain, demanding) = (acceptor(SslVersion::TLS1_3), demanding_acceptor());
    let peer = Peer::numbered(move |number, stream| match number {
        // The question why: it gets the alert that says so, before the end of the stream.
        1 => {
            let Err(HandshakeError::Failure(mut failed)) = demanding.accept(stream) else {
                panic!("nobody has a certificate");
            };
            failed.get_mut().shutdown(Shutdown::Write).unwrap();
            rest(failed.get_mut());
        }
        _ => reset(plain.accept(stream).expect("handshake").get_ref()),
    });
    let scene = Scene::new(&peer.url());
    for _ in 0..5 {
        let said = String::from_utf8(scene.exchange(b"PING\r\n").0).unwrap();
        assert!(said.contains("the server wants a client certificate"), "{said}");
    }
    assert_eq!(peer.accepted(), 5 + 1);
}

#[test]
fn a_silent_server_is_probed_for_plaintext_only_once() {
    // As one that is overloaded, and as a Redis without TLS.
    for (answer, expected) in [("", ""), ("+PONG\r\n", "the server speaks no TLS")] {
        let peer = Peer::tcp(move |mut stream| {
            let mut first = [0; 6];
            if stream.read_exact(&mut first).is_ok() && first == *b"PING\r\n" {
                stream.write_all(answer.as_bytes()).unwrap();
            }
            // The launcher may leave first.
            let _ = rest(&mut stream);
        });
        let launcher = Launcher::script(HOLD_TWO).env("STUNNEL_CONNECT_TIMEOUT", "8s");
        let scene = Scene::with(launcher, &peer.url());
        let mut apps: Vec<_> = (0..TIMES).map(|_| scene.open()).collect();
        apps.iter_mut().for_each(|app| app.write_all(b"PING\r\n").unwrap());
        for app in &mut apps {
            let said = String::from_utf8(rest(app).0).unwrap();
            assert!(said.contains(expected) && said.is_empty() == expected.is_empty(), "{said}");
        }
        assert_eq!(peer.accepted(), TIMES + 1);
    }
}

/// Has a server take no more connections than it has now: these `held`, and the one that asks.
fn no_more_clients(server: &Server, held: usize) -> Client {
    let mut direct = server.direct();
    // Those that waited for its start may not have gone yet.
    eventually("only these are left", || (connections(&mut direct) == held).then_some(()));
    let most = (held + 1).to_string();
    assert_eq!(direct.ask(&["CONFIG", "SET", "maxclients", &most]), Reply::line("+OK"));
    direct
}

#[test]
fn redis_takes_no_more_clients() {
    fault!("it takes no more clients (maxclients, a plan's connection limit)");
    let server = Server::start(Front::Redis);
    let scene = Scene::new(&server.url());
    let held: Vec<_> = (0..3).map(|_| scene.held.client()).collect();
    let direct = no_more_clients(&server, held.len());
    for _ in 0..TIMES {
        assert_eq!(scene.exchange(b"PING\r\n").0, b"");
    }
    drop((held, direct));
    let log = scene.aftermath();
    all_logged(&log, "connection-failed", "TLS handshake broke off");
    let hints = warned(&log, "connection-failed", "hint");
    let expected = "probably at Redis's client limit (this launcher holds 3 other connections to \
                    it";
    let right = hints.iter().filter(|hint| hint.starts_with(expected)).count();
    assert!(right >= TIMES, "{hints:?}");
}

#[test]
fn redis_behind_stunnel_takes_no_more_clients() {
    fault!("the same, behind stunnel");
    let server = Server::start(Front::Stunnel);
    let scene = Scene::new(&server.url());
    let held: Vec<_> = (0..3).map(|_| scene.held.client()).collect();
    let direct = no_more_clients(&server, held.len());
    let mut lost = 0;
    for _ in 0..TIMES {
        let (said, _) = scene.exchange(b"PING\r\n");
        // Redis closes with the request unread, which is a reset; stunnel may lose the error then.
        if said.is_empty() {
            lost += 1;
        } else {
            assert_eq!(said, b"-ERR max number of clients reached\r\n");
        }
    }
    drop((held, direct));
    let log = scene.aftermath();
    let hints = logged(&log, "connection-unanswered", "hint");
    assert_eq!(hints.is_empty(), lost == 0, "{lost} lost: {log}");
    let expected = "(this launcher holds 3 other connections to it;";
    assert!(hints.iter().all(|hint| hint.contains(expected)), "{hints:?}");
}

#[test]
fn redis_is_down_behind_stunnel() {
    fault!("it is down behind stunnel");
    let server = Server::start(Front::Stunnel);
    let scene = Scene::new(&server.url());
    send_signal(server.pid(), libc::SIGKILL);
    eventually("it is gone", || {
        TcpStream::connect(("127.0.0.1", server.port)).is_err().then_some(())
    });
    for _ in 0..TIMES {
        assert_eq!(scene.exchange(b"PING\r\n").0, b"");
    }
    let log = scene.aftermath();
    let hints = logged(&log, "connection-unanswered", "hint");
    assert!(!hints.is_empty(), "{log}");
    assert!(hints[0].contains("Redis may be down"), "{log}");
}

#[test]
fn the_app_speaks_tls() {
    fault!("the app speaks TLS to the local port");
    let server = Server::start(Front::Redis);
    let mut scene = Scene::new(&server.url());
    for _ in 0..TIMES {
        // From an app that waits for an answer, and from one that breaks off.
        let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
        assert_eq!(scene.exchange(hello), (vec![], None));
        let mut app = scene.open();
        app.write_all(hello).unwrap();
        reset(&app);
    }
    scene.others_go_on();
    let log = scene.aftermath();
    assert!(warned(&log, "app-speaks-tls", "var").len() >= TIMES, "{log}");
    assert_eq!(logged(&log, "command-ended", "failed"), ["0"], "{log}");
}

/// Answers a request of four bytes with half a reply of 100.
fn half_a_reply(tls: &mut SslStream<TcpStream>) {
    tls.read_exact(&mut [0; 4]).unwrap();
    tls.write_all(b"$100\r\n").unwrap();
    tls.write_all(&[b'x'; 50]).unwrap();
}

fn half() -> Vec<u8> {
    [&b"$100\r\n"[..], &[b'x'; 50]].concat()
}

#[test]
fn redis_resets_in_the_middle_of_a_reply() {
    fault!("it resets in the middle of a reply");
    let peer = Peer::tls(|mut tls| {
        half_a_reply(&mut tls);
        // Not before the app has the half: on Linux a reset overtakes what waits to be read.
        tls.read_exact(&mut [0; 4]).unwrap();
        reset(tls.get_ref());
    });
    let scene = Scene::new(&peer.url());
    for _ in 0..TIMES {
        let mut app = scene.open();
        app.write_all(b"ask!").unwrap();
        let mut got = vec![0; half().len()];
        app.read_exact(&mut got).unwrap();
        assert_eq!(got, half());
        app.write_all(b"more").unwrap();
        assert_eq!(rest(&mut app), (vec![], Some(ErrorKind::ConnectionReset)));
    }
    assert!(scene.aftermath().contains("reason=reset-by-redis"));
}

#[test]
fn redis_closes_without_close_notify() {
    fault!("it closes without close_notify");
    let peer = Peer::tls(|mut tls| half_a_reply(&mut tls));
    let scene = Scene::new(&peer.url());
    for _ in 0..TIMES {
        let mut app = scene.open();
        app.write_all(b"ask!").unwrap();
        assert_eq!(rest(&mut app), (half(), None));
    }
    assert!(scene.aftermath().contains("reason=closed"));
}

#[test]
fn redis_sends_garbage_instead_of_tls() {
    fault!("it sends garbage instead of TLS");
    let peer = Peer::tcp(|mut stream| {
        stream.read_exact(&mut [0; 5]).unwrap();
        let noise: Vec<u8> = (0..5000_u32).map(|n| (n * n % 251) as u8).collect();
        // It may be hung up on before the end.
        let _ = stream.write_all(&noise);
        rest(&mut stream);
    });
    let scene = Scene::new(&peer.url());
    let mut apps: Vec<_> = (0..TIMES).map(|_| scene.open()).collect();
    apps.iter_mut().for_each(|app| app.write_all(b"PING\r\n").unwrap());
    for app in &mut apps {
        let (said, error) = rest(app);
        let said = String::from_utf8(said).unwrap();
        assert_eq!(error, None);
        assert!(said.starts_with("-ERR start-stunnel: "), "{said}");
        assert!(said.contains("speaks no TLS") && said.lines().count() == 1, "{said}");
    }
    all_logged(&scene.aftermath(), "connection-refused", "the server speaks no TLS");
}

#[test]
fn redis_sends_a_record_that_fails_its_mac() {
    fault!("it sends a record that was tampered with");
    let peer = Peer::tls(|mut tls| {
        half_a_reply(&mut tls);
        tls.read_exact(&mut [0; 4]).unwrap();
        // An application data record whose authentication fails.
        tls.get_mut().write_all(b"\x17\x03\x03\x00\x20").unwrap();
        tls.get_mut().write_all(&[0x55; 32]).unwrap();
        rest(tls.get_mut());
    });
    let scene = Scene::new(&peer.url());
    for _ in 0..TIMES {
        let mut app = scene.open();
        app.write_all(b"ask!").unwrap();
        app.read_exact(&mut vec![0; half().len()]).unwrap();
        app.write_all(b"more").unwrap();
        assert_eq!(rest(&mut app), (vec![], Some(ErrorKind::ConnectionReset)));
    }
    let log = scene.aftermath();
    assert!(logged(&log, "connection-closed", "error").iter().any(|error| error.contains("mac")));
}

#[test]
fn redis_stalls_in_the_middle_of_a_reply() {
    fault!("it stalls for longer than the idle timeout");
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
fn redis_reads_nothing() {
    fault!("it reads nothing while the app pushes 1 GiB");
    let over = Arc::new(AtomicBool::new(false));
    let until = over.clone();
    let peer = Peer::tls(move |_tls| {
        eventually("the test is over", || until.load(Ordering::Relaxed).then_some(()));
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
    // Which is noticed although nothing is read from the app meanwhile.
    reset(&app);
    drop(app);
    eventually("the connection is given up", || {
        (scene.is_closed() && connections_to(scene.pid(), &scene.upstreams[1..]) == 0).then_some(())
    });
    over.store(true, Ordering::Relaxed);
    assert!(scene.aftermath().contains("reason=reset-by-app"));
}

#[test]
fn redis_sends_byte_by_byte() {
    fault!("it sends byte by byte");
    let server = Server::start(Front::Redis);
    let tls_port = server.tls_port();
    // In the middle, so that TLS records are torn apart, too.
    let peer = Peer::tcp(move |mut near| {
        let mut far = TcpStream::connect(("127.0.0.1", tls_port)).unwrap();
        let (mut from, mut to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        let up = thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let mut chunk = [0; 4096];
        while let Ok(read @ 1..) = far.read(&mut chunk) {
            if chunk[..read].iter().any(|byte| near.write_all(&[*byte]).is_err()) {
                break;
            }
        }
        let _ = near.shutdown(Shutdown::Both);
        up.join().unwrap();
    });
    let scene = Scene::new(&peer.url());
    let mut client = scene.held.client();
    let value = "0123456789".repeat(3000);
    assert_eq!(client.ask(&["SET", "drip", &value]), Reply::line("+OK"));
    assert_eq!(client.ask(&["GET", "drip"]), Reply::bulk(&value));
    drop(client);
    scene.aftermath();
}

unsafe extern "C" {
    fn SSL_key_update(ssl: *mut openssl_sys::SSL, kind: libc::c_int) -> libc::c_int;
    fn SSL_renegotiate(ssl: *mut openssl_sys::SSL) -> libc::c_int;
    fn SSL_do_handshake(ssl: *mut openssl_sys::SSL) -> libc::c_int;
}

/// SSL_KEY_UPDATE_REQUESTED: the client is to change its key as well (SSL_key_update(3)).
const UPDATE_REQUESTED: libc::c_int = 1;

/// Echoes 200 messages of 1,000 bytes, and has keys changed between them.
fn echo_with_new_keys(mut tls: SslStream<TcpStream>) -> usize {
    let mut message = [0; 1000];
    let mut count = 0;
    while tls.read_exact(&mut message).is_ok() {
        tls.write_all(&message[..500]).unwrap();
        // SAFETY: the stream owns the connection and outlives the call.
        let changed = unsafe { SSL_key_update(tls.ssl().as_ptr(), UPDATE_REQUESTED) };
        assert_eq!(changed, 1, "the server's keys change");
        tls.write_all(&message[500..]).unwrap();
        count += 1;
    }
    count
}

#[test]
fn redis_asks_for_new_keys() {
    fault!("it asks for new keys (key update)");
    let peer = Peer::tls(echo_with_new_keys);
    let scene = Scene::new(&peer.url());
    let mut app = scene.open();
    for n in 0..200_u8 {
        app.write_all(&[n; 1000]).unwrap();
        let mut echo = [0; 1000];
        app.read_exact(&mut echo).unwrap();
        assert_eq!(echo, [n; 1000]);
    }
    drop(app);
    assert_eq!(peer.result(), 200);
    scene.aftermath();
}

#[test]
fn redis_renegotiates() {
    fault!("it renegotiates (TLS 1.2)");
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    // It says hello, asks for another handshake, and tells whether that is declined.
    let peer = Peer::tls_up_to(SslVersion::TLS1_2, listener, |mut tls| {
        tls.write_all(b"hello").unwrap();
        let ssl = tls.ssl().as_ptr();
        // SAFETY: the stream owns the connection and outlives the calls.
        let asked = unsafe { SSL_renegotiate(ssl) == 1 && SSL_do_handshake(ssl) == 1 };
        assert!(asked);
        tls.ssl_read(&mut [0; 1]).is_err()
    });
    let scene = Scene::new(&peer.url());
    for _ in 0..TIMES {
        let (said, _) = rest(&mut scene.open());
        assert_eq!(said, b"hello");
        assert!(peer.result(), "declined");
    }
    scene.aftermath();
}

#[test]
fn the_app_resets_half_closes_or_is_killed() {
    fault!("the app resets, half-closes or is killed");
    let peer = Peer::tls(|mut tls| {
        tls.write_all(b"hello").unwrap();
        rest(&mut tls)
    });
    // Every byte counts here, and a trial of the pool would add some.
    let launcher = Launcher::script(HOLD_TWO).env("STUNNEL_POOL", "off");
    let scene = Scene::with(launcher, &peer.url());
    let greeted = || {
        let mut app = scene.open();
        app.read_exact(&mut [0; 5]).unwrap();
        app.write_all(b"last words").unwrap();
        app
    };
    for _ in 0..TIMES {
        let app = greeted();
        reset(&app);
        drop(app);
        assert_eq!(peer.result(), (b"last words".to_vec(), Some(ErrorKind::ConnectionReset)));

        let mut app = greeted();
        app.shutdown(Shutdown::Write).unwrap();
        assert_eq!(peer.result(), (b"last words".to_vec(), None));
        assert_eq!(rest(&mut app), (vec![], None));
    }
    let script = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{}; head -c 5 <&3 >/dev/null; \
         printf 'last words' >&3; echo done; read -r _",
        scene.held.port
    );
    let mut app = Command::new("bash");
    app.args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut app = support::Process(app.spawn().unwrap());
    app.0.stdout.take().unwrap().read_exact(&mut [0; 5]).unwrap();
    app.0.kill().unwrap();
    assert_eq!(peer.result(), (b"last words".to_vec(), None));
    scene.aftermath();
}

#[test]
fn the_name_is_not_found_then_it_is() {
    fault!("its name does not resolve; then it does");
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let Some(launcher) = with_hosts(&hosts, "127.0.0.1 localhost\n") else { return };
    let peer = Peer::tls(|mut tls| tls.write_all(b"here").unwrap());
    let held = launcher.redis(&format!("rediss://redis.test:{}", peer.port)).start_held();
    for _ in 0..3 {
        assert_eq!(rest(held.open().stream.get_mut()), (vec![], None));
    }
    fs::write(&hosts, "127.0.0.1 redis.test\n").unwrap();
    assert_eq!(rest(held.open().stream.get_mut()).0, b"here");
    let log = held.finish().stderr;
    let errors = logged(&log, "connection-failed", "error");
    assert!(errors.len() == 3 && errors[0].contains("name look-up failed"), "{errors:?}");
    assert!(logged(&log, "connection-failed", "hint")[0].contains("check the host in REDIS_URL"));
}

#[test]
fn one_live_address_of_a_name_is_enough() {
    fault!("its name has a dead address and a live one");
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let Some(mut link) = SlowLink::make(&[]) else { return };
    link.order("cut");
    // The first refuses, the second swallows every packet, the third lives.
    let addresses =
        format!("127.0.0.3 redis.test\n{} redis.test\n127.0.0.2 redis.test\n", link.address);
    let Some(launcher) = with_hosts(&hosts, &addresses) else { return };
    let live = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let port = live.local_addr().unwrap().port();
    let _live = Peer::tls_on(live, |mut tls| tls.write_all(b"alive").unwrap());
    let held = launcher.redis(&format!("rediss://redis.test:{port}")).start_held();
    for _ in 0..3 {
        assert_eq!(rest(held.open().stream.get_mut()).0, b"alive");
    }
}

#[test]
fn a_fail_over_moves_the_name() {
    fault!("a fail-over moves the name to another address");
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let Some(launcher) = with_hosts(&hosts, "127.0.0.1 redis.test\n") else { return };
    let old = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = old.local_addr().unwrap().port();
    let new = TcpListener::bind(("127.0.0.2", port)).unwrap();
    let _old = Peer::tls_on(old, |mut tls| tls.write_all(b"old").unwrap());
    let _new = Peer::tls_on(new, |mut tls| tls.write_all(b"new").unwrap());

    let held = launcher.redis(&format!("rediss://redis.test:{port}")).start_held();
    let answer = || rest(held.open().stream.get_mut()).0;
    assert_eq!(answer(), b"old");
    fs::write(&hosts, "127.0.0.2 redis.test\n").unwrap();
    assert_eq!(answer(), b"new");
}

#[test]
fn redis_vanishes_without_a_word() {
    fault!("its host vanishes without a word");
    let Some(mut link) = SlowLink::make(&[]) else { return };
    let options = Options { link: Some(&link), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let mut scene = Scene::new(&server.url());
    let mut waiting = scene.held.client();
    waiting.send(&["BLPOP", "nothing", "0"]);
    let mut idle = scene.held.client();
    assert_eq!(idle.ask(&["PING"]), Reply::line("+PONG"));
    eventually("Redis has the request", || {
        let Reply::Bulk(info) = idle.ask(&["INFO", "clients"]) else { panic!("no INFO") };
        String::from_utf8_lossy(&info).contains("blocked_clients:1").then_some(())
    });
    // Until nothing is unacknowledged any more: else the kernel would go on sending it for a
    // quarter of an hour.
    let upstream = format!(":{:04X}", server.tls_port());
    eventually("the other host has everything", || {
        let table = fs::read_to_string(format!("/proc/{}/net/tcp", scene.pid())).unwrap();
        let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let mut ours = rows.filter(|row| row[2].ends_with(&upstream) && row[3] == "01");
        ours.all(|row| row[4].starts_with("00000000:")).then_some(())
    });
    link.order("cut");
    // Keepalive's 60 seconds of silence, and four probes of 15.
    let gone = thread::spawn(move || {
        [waiting, idle].map(|mut client| {
            client.stream.get_ref().set_read_timeout(Some(Duration::from_secs(200))).unwrap();
            client.reply().expect_err("no reply").kind()
        })
    });
    eventually_within(Duration::from_secs(200), "keepalive notices", || {
        gone.is_finished().then_some(())
    });
    assert_eq!(gone.join().unwrap(), [ErrorKind::ConnectionReset; 2]);
    scene.others_go_on();
    link.order("mend");
    assert_eq!(scene.held.client().ask(&["PING"]), Reply::line("+PONG"));
    let log = scene.aftermath();
    let errors = logged(&log, "connection-closed", "error");
    assert!(errors.iter().filter(|error| error.contains("timed out")).count() == 2, "{log}");
}

#[test]
fn the_network_is_slow_and_lossy() {
    fault!("the network loses 5 % and takes 100 ms");
    let Some(link) = SlowLink::make(&["--delay-ms", "100", "--loss", "5", "--seed", "7"]) else {
        return;
    };
    let options = Options { link: Some(&link), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let scene = Scene::new(&server.url());
    let value: String = (0..100_000).map(|n: u32| char::from(b'a' + (n % 23) as u8)).collect();
    let clients: Vec<_> = (0..4)
        .map(|n| {
            let (mut client, value) = (scene.held.client(), value.clone());
            thread::spawn(move || {
                let key = format!("key {n}");
                assert_eq!(client.ask(&["SET", &key, &value]), Reply::line("+OK"));
                assert_eq!(client.ask(&["GET", &key]), Reply::bulk(&value));
                for n in 0..50 {
                    client.send(&["ECHO", &n.to_string()]);
                }
                for n in 0..50 {
                    assert_eq!(client.reply().unwrap(), Reply::bulk(&n.to_string()));
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert!(!scene.aftermath().contains("connection-failed"));
}

#[test]
fn redis_restarts_under_two_hundred_busy_connections() {
    fault!("it restarts under 200 busy connections");
    const CLIENTS: usize = 200;
    let server = Server::start(Front::Redis);
    let (url, port) = (server.url(), server.port);
    let scene = Scene::new(&url);
    let local = scene.held.port;
    let rounds = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    // Each counts its replies a round, and the connections it lost.
    let busy = Arc::new((0..CLIENTS).map(|_| AtomicUsize::new(0)).collect::<Vec<_>>());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let (rounds, over, busy) = (rounds.clone(), over.clone(), busy.clone());
            thread::spawn(move || {
                let (mut lost, mut asked) = (0, 0);
                while !over.load(Ordering::Relaxed) {
                    let mut client = Client::open(local);
                    if !matches!(client.try_ask(&["AUTH", PASSWORD]), Ok(Reply::Line(line)) if line == "+OK") {
                        thread::yield_now();
                        continue;
                    }
                    while !over.load(Ordering::Relaxed) {
                        asked += 1;
                        let token = format!("client {n} request {asked}");
                        match client.try_ask(&["ECHO", &token]) {
                            Ok(reply) => assert_eq!(reply, Reply::bulk(&token)),
                            Err(_) => {
                                lost += 1;
                                break;
                            }
                        }
                        busy[n].store(rounds.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    }
                }
                lost
            })
        })
        .collect();
    let all_busy = || {
        let round = rounds.load(Ordering::Relaxed) + 1;
        eventually("every client has replies", || {
            busy.iter().all(|seen| seen.load(Ordering::Relaxed) == round).then_some(())
        });
    };
    let mut server = Some(server);
    for _ in 0..3 {
        all_busy();
        server.take();
        let back = eventually("the server is back", || Server::start_on(Front::Redis, port));
        server = Some(back);
        rounds.fetch_add(1, Ordering::Relaxed);
    }
    all_busy();
    over.store(true, Ordering::Relaxed);
    for client in clients {
        let lost = client.join().expect("each reply went to its own client");
        assert_eq!(lost, 3, "each restart broke each connection once");
    }
    scene.aftermath();
}

#[test]
fn no_descriptor_is_left() {
    fault!("no file descriptor is left (`ulimit -n 65`)");
    let server = Server::start(Front::Redis);
    // A connection takes two descriptors. If one is left over, a connection is accepted with it and
    // then fails instead of waiting; 65 leaves none over.
    let script = "ulimit -n 65; exec \"$0\" \"$@\"";
    let launcher = Launcher::of("sh", ["-c", script, BINARY, "sh", "-c", HOLD_TWO]);
    let mut scene = Scene::with(launcher, &server.url());
    let mut clients: Vec<Client> = (0..80).map(|_| scene.held.open()).collect();
    for client in &mut clients {
        client.send(&["AUTH", PASSWORD]);
    }
    eventually("the descriptors are used up", || (descriptors(scene.pid()) >= 64).then_some(()));
    let before = cpu_ticks(scene.pid());
    thread::sleep(Duration::from_secs(1)); // The time over which spinning would show.
    let used = cpu_ticks(scene.pid()) - before;
    assert!(used < 50, "{used} of 100 ticks were spent on waiting");
    scene.others_go_on();
    // Clients that found no descriptor may be reset; once descriptors are free, new ones are served.
    drop(clients);
    eventually("a new client is served", || {
        let answer = scene.held.open().try_ask(&["AUTH", PASSWORD]);
        matches!(answer, Ok(Reply::Line(line)) if line == "+OK").then_some(())
    });
    let log = scene.aftermath();
    assert!(log.contains("at=accept-failed") || log.contains("at=connection-failed"), "{log}");
    assert!(log.contains("raise the limit on open files"), "{log}");
}

#[test]
fn the_clock_jumps() {
    fault!("the clock jumps, by a day or by ten years");
    let Some(library) = faketime() else { return };
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    fs::write(&clock, "+0").unwrap();
    let server = Server::start(Front::Redis);
    let launcher = Launcher::script(&format!("unset LD_PRELOAD; {HOLD_TWO}"))
        .env("LD_PRELOAD", library)
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        // The library reads the file from inside the launcher.
        .env("STUNNEL_SANDBOX", "off")
        // What a wrong clock that is put right does: the monotonic one goes on.
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let mut scene = Scene::with(launcher, &server.url());
    let mut client = scene.held.client();
    for jump in ["+1d", "-1d", "+10y", "-10y", "+0"] {
        fs::write(&clock, jump).unwrap();
        assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"), "{jump}");
        assert_eq!(scene.held.client().ask(&["PING"]), Reply::line("+PONG"), "{jump}");
        scene.others_go_on();
    }
    drop(client);
    let log = scene.aftermath();
    let years: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("at=connection-closed"))
        .map(|line| &line[3..7])
        .collect();
    assert!(years.iter().any(|year| *year != years[0]), "the clock did jump: {years:?}");
}

#[test]
fn the_launcher_is_stopped_for_a_minute() {
    fault!("the launcher is stopped for a minute and continued");
    let server = Server::start(Front::Redis);
    let scene = Scene::new(&server.url());
    let mut client = scene.held.client();
    let mut subscriber = scene.held.client();
    subscriber.ask(&["SUBSCRIBE", "news"]);
    scene.held.running.signal(libc::SIGSTOP);
    eventually("it is stopped", || (state(scene.pid()) == 'T').then_some(()));
    client.send(&["ECHO", "asked meanwhile"]);
    let mut late = scene.held.open();
    late.send(&["AUTH", PASSWORD]);
    assert_eq!(server.direct().ask(&["PUBLISH", "news", "published meanwhile"]), Reply::line(":1"));
    thread::sleep(Duration::from_secs(60)); // The fault itself.
    scene.held.running.signal(libc::SIGCONT);
    client.stream.get_ref().set_read_timeout(Some(support::PATIENCE)).unwrap();
    assert_eq!(client.reply().unwrap(), Reply::bulk("asked meanwhile"));
    assert_eq!(late.reply().unwrap(), Reply::line("+OK"));
    let news = ["message", "news", "published meanwhile"].map(Reply::bulk).to_vec();
    assert_eq!(subscriber.reply().unwrap(), Reply::Array(news));
    drop((client, subscriber, late));
    scene.aftermath();
}

/// Runs the launcher with its log sent where `redirection` says, and 300 connections that would
/// each be logged.
fn with_a_log(redirection: &str) {
    let server = Server::start(Front::Redis);
    let script = format!("exec \"$0\" \"$@\" {redirection}");
    let launcher = Launcher::of("sh", ["-c", &script, BINARY, "sh", "-c", HOLD_TWO]);
    let scene = Scene::with(launcher.env("STUNNEL_LOGLEVEL", "debug"), &server.url());
    for _ in 0..300 {
        assert_eq!(scene.held.client().ask(&["PING"]), Reply::line("+PONG"));
    }
    scene.aftermath();
}

#[test]
fn the_log_cannot_be_written() {
    fault!("the disk of the log is full");
    with_a_log("2>/dev/full");
    fault!("stderr is closed");
    with_a_log("2>&-");
}

#[test]
fn nobody_reads_the_log() {
    fault!("nobody reads the log");
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::set_permissions(&pipe, fs::Permissions::from_mode(0o600)).unwrap();
    // Open for reading, but never read.
    let reader = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    with_a_log(&format!("2>{}", pipe.display()));
    drop(reader);
}

#[test]
fn the_launcher_is_killed() {
    fault!("the launcher is killed outright (SIGKILL)");
    let server = Server::start(Front::Redis);
    let held = Launcher::hold(&server.url());
    let mut client = held.client();
    let command = command_of(held.running.pid());
    send_signal(held.running.pid(), libc::SIGKILL);
    let gone = client.reply().expect_err("the connection is gone").kind();
    assert!(matches!(gone, ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{gone:?}");
    eventually("COMMAND has had its SIGTERM", || (!is_alive(command)).then_some(()));
    eventually("Redis has lost the connection", || {
        (connections(&mut server.direct()) == 0).then_some(())
    });
}
