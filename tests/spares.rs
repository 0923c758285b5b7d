//! Connections that are ready before they are asked for, and sessions that are resumed.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use openssl::ssl::{SslStream, SslVersion};
use support::launcher::{Held, Launcher, logged, with_hosts};
use support::peer::{Gate, Peer, acceptor, offers_session};
use support::pki::Certificate;
use support::resp::{Client, Reply};
use support::servers::{Front, Options, PASSWORD, Server, connections};
use support::{eventually, eventually_within, reset, rest};

/// How old a look-up may be when a spare is handed over, and a little more.
const LOOK_UP_AGE: Duration = Duration::from_millis(1_100);

/// The number may have grown beyond one, where a handshake takes long.
fn wait_for_a_spare(direct: &mut Client) {
    eventually("a spare", || (connections(direct) >= 1).then_some(()));
}

fn wait_for_connections(direct: &mut Client, count: usize) {
    eventually("so many connections", || (connections(direct) == count).then_some(()));
}

fn hold(server: &Server, settings: &[(&str, &str)]) -> Held {
    hold_to(&server.url(), settings)
}

fn hold_to(url: &str, settings: &[(&str, &str)]) -> Held {
    // With a pool, connections come back, and few are made beforehand.
    let mut launcher =
        Launcher::holding(url).env("STUNNEL_LOGLEVEL", "debug").env("STUNNEL_POOL", "off");
    for (name, value) in settings {
        launcher = launcher.env(name, value);
    }
    launcher.start_held()
}

/// An app that connects anew for each request.
fn one_request(held: &Held) {
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

#[test]
fn after_a_second_connection_the_next_one_is_ready_beforehand() {
    for front in [Front::Redis, Front::Stunnel] {
        let server = Server::start(front);
        let mut direct = server.direct();
        let held = hold(&server, &[]);
        for _ in 0..5 {
            one_request(&held);
            one_request(&held);
            wait_for_a_spare(&mut direct);
        }
        let log = held.finish().stderr;
        assert!(log.contains(" at=spare-ready var=REDIS_URL"), "{log}");
        assert!(!log.contains(" at=kept-discarded "), "{log}");
        // Spares are no connections of the app's.
        assert_eq!(logged(&log, "command-ended", "connections"), ["10"]);
    }
}

#[test]
fn no_spare_is_made_without_demand_or_when_turned_off() {
    let server = Server::start(Front::Redis);
    for (spares, requests) in [("1", 1), ("0", 20)] {
        let held = hold(&server, &[("STUNNEL_SPARES", spares)]);
        for _ in 0..requests {
            one_request(&held);
        }
        let log = held.finish().stderr;
        assert!(!log.contains("at=spare-"), "{log}");
    }
}

#[test]
fn as_many_spares_are_kept_as_the_setting_says() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server, &[("STUNNEL_SPARES", "3")]);
    one_request(&held);
    one_request(&held);
    wait_for_connections(&mut direct, 3);
    let one = held.client();
    wait_for_connections(&mut direct, 4);
    drop(one);
    wait_for_connections(&mut direct, 3);
}

#[test]
fn a_spare_that_redis_has_closed_is_not_handed_over() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server, &[]);
    one_request(&held);
    one_request(&held);
    for round in 0..20 {
        wait_for_a_spare(&mut direct);
        // First in the middle of its handshake, then later and later.
        for _ in 0..round * 20 {
            direct.ask(&["PING"]);
        }
        direct.ask(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        one_request(&held);
    }
    let log = held.finish().stderr;
    assert!(log.contains("at=kept-discarded"), "{log}");
}

#[test]
fn a_spare_that_outlived_its_server_is_not_handed_over() {
    let server = Server::start(Front::Redis);
    let port = server.port;
    let held = hold(&server, &[]);
    one_request(&held);
    one_request(&held);
    wait_for_a_spare(&mut server.direct());
    drop(server);
    let server = eventually("the server is back", || Server::start_on(Front::Redis, port));
    for _ in 0..5 {
        one_request(&held);
    }
    drop(server);
}

/// Says OK to each request; from the third connection on it speaks first.
fn chatterbox(mut stream: SslStream<TcpStream>, connections: &AtomicUsize) {
    if connections.load(Ordering::SeqCst) >= 2 {
        stream.write_all(b"-ERR max number of clients reached\r\n").unwrap();
    }
    connections.fetch_add(1, Ordering::SeqCst);
    let mut request = [0; 64];
    while matches!(stream.read(&mut request), Ok(1..)) {
        if stream.write_all(b"+OK\r\n").is_err() {
            return;
        }
    }
}

#[test]
fn a_spare_on_which_something_has_arrived_is_not_handed_over() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let peer = Peer::tls(move |stream| chatterbox(stream, &counter));
    let held = hold_to(&peer.url_with_password(), &[]);
    for _ in 0..2 {
        assert_eq!(held.open().ask(&["PING"]), Reply::line("+OK"));
    }
    eventually("a spare", || (count.load(Ordering::SeqCst) == 3).then_some(()));
    let mut client = held.open();
    client.send(&["PING"]);
    // What this peer says to a new connection is that connection's own.
    assert_eq!(client.reply().unwrap(), Reply::line("-ERR max number of clients reached"));
    drop(client);
    let log = held.finish().stderr;
    assert!(log.contains("at=kept-discarded"), "{log}");
}

/// Says OK to each request. On the third connection it first sends an error that nobody asked for,
/// of which only `cut` bytes go before the first request is there.
fn stutterer(mut stream: SslStream<Gate>, cut: usize, connections: &AtomicUsize) {
    let mut withheld = Vec::new();
    if connections.load(Ordering::SeqCst) == 2 {
        stream.get_mut().close();
        stream.write_all(b"-ERR nobody asked\r\n").unwrap();
        withheld = stream.get_mut().open();
        let rest = withheld.split_off(cut);
        stream.get_mut().tcp.write_all(&withheld).unwrap();
        withheld = rest;
    }
    connections.fetch_add(1, Ordering::SeqCst);
    let mut request = [0; 64];
    while matches!(stream.read(&mut request), Ok(1..)) {
        stream.get_mut().tcp.write_all(&std::mem::take(&mut withheld)).unwrap();
        if stream.write_all(b"+OK\r\n").is_err() {
            return;
        }
    }
}

#[test]
fn a_spare_on_which_half_a_record_has_arrived_is_not_handed_over() {
    // In the record's header, right behind it, and in the body.
    for cut in [1, 5, 9] {
        let count = Arc::new(AtomicUsize::new(0));
        let counter = count.clone();
        let peer = Peer::gated(move |stream| stutterer(stream, cut, &counter));
        let held = hold_to(&peer.url_with_password(), &[]);
        for _ in 0..2 {
            assert_eq!(held.open().ask(&["PING"]), Reply::line("+OK"));
        }
        eventually("a spare", || (count.load(Ordering::SeqCst) == 3).then_some(()));
        assert_eq!(held.open().ask(&["PING"]), Reply::line("+OK"), "{cut} bytes");
        let log = held.finish().stderr;
        assert!(log.contains("at=kept-discarded"), "{log}");
    }
}

/// Answers each request with its own name, and counts connections.
fn named(mut stream: SslStream<TcpStream>, name: &str, connections: &AtomicUsize) {
    connections.fetch_add(1, Ordering::SeqCst);
    let mut request = [0; 64];
    while matches!(stream.read(&mut request), Ok(1..)) {
        if stream.write_all(format!("+{name}\r\n").as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn after_a_fail_over_no_spare_leads_to_the_old_server_though_it_is_still_up() {
    const SPARES: usize = 3;
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let Some(launcher) = with_hosts(&hosts, "127.0.0.2 redis.test\n") else { return };
    let old = TcpListener::bind(("127.0.0.2", 0)).unwrap();
    let port = old.local_addr().unwrap().port();
    let new = TcpListener::bind(("127.0.0.3", port)).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let old = Peer::tls_on(old, move |stream| named(stream, "old", &counter));
    let _new = Peer::tls_on(new, |stream| named(stream, "new", &AtomicUsize::new(0)));
    let launcher = launcher
        .redis(&format!("rediss://:pw@redis.test:{port}"))
        .env("STUNNEL_LOGLEVEL", "debug")
        .env("STUNNEL_POOL", "off")
        .env("STUNNEL_SPARES", SPARES.to_string());
    let held = launcher.start_held();
    let answer = || held.open().ask(&["PING"]);
    for _ in 0..2 {
        assert_eq!(answer(), Reply::line("+old"));
    }
    eventually("spares", || (count.load(Ordering::SeqCst) == 2 + SPARES).then_some(()));
    // It is the same server while its name has its address among others.
    fs::write(&hosts, "127.0.0.3 redis.test\n127.0.0.2 redis.test\n").unwrap();
    thread::sleep(LOOK_UP_AGE);
    assert_eq!(answer(), Reply::line("+old"));

    fs::write(&hosts, "127.0.0.3 redis.test\n").unwrap();
    thread::sleep(LOOK_UP_AGE);
    assert_eq!(answer(), Reply::line("+new"));
    // The others are closed as well.
    for _ in 0..2 + SPARES {
        old.result();
    }
    drop(held);
}

#[test]
fn a_spare_is_not_handed_over_while_its_name_is_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("hosts");
    let found = "127.0.0.1 redis.test\n";
    let Some(launcher) = with_hosts(&hosts, found) else { return };
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let peer = Peer::tls(move |stream| named(stream, "here", &counter));
    let url = peer.url_with_password().replace("127.0.0.1", "redis.test");
    let launcher = launcher.env("STUNNEL_LOGLEVEL", "debug").env("STUNNEL_POOL", "off");
    let held = launcher.redis(&url).start_held();
    for _ in 0..2 {
        assert_eq!(held.open().ask(&["PING"]), Reply::line("+here"));
    }
    eventually("a spare", || (count.load(Ordering::SeqCst) == 3).then_some(()));
    fs::write(&hosts, "").unwrap();
    thread::sleep(LOOK_UP_AGE);
    // As without a spare.
    assert_eq!(rest(held.open().stream.get_mut()), (vec![], None));
    fs::write(&hosts, found).unwrap();
    assert_eq!(held.open().ask(&["PING"]), Reply::line("+here"));
    let log = held.finish().stderr;
    let errors = logged(&log, "connection-failed", "error");
    assert!(errors.len() == 1 && errors[0].contains("name look-up failed"), "{log}");
}

/// What an app is told that sets a key without having said who it is.
fn set_without_password(held: &Held) -> Reply {
    held.open().ask(&["SET", "k", "v"])
}

#[test]
fn a_password_that_redis_is_given_holds_for_the_next_connection() {
    let options = Options { words: &["--requirepass", ""], ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let url = format!("redis://127.0.0.1:{}/0", server.port);
    let held = hold_to(&url, &[]);
    let mut direct = Client::open(server.port);
    assert_eq!(set_without_password(&held), Reply::line("+OK"));
    assert_eq!(set_without_password(&held), Reply::line("+OK"));
    wait_until_connected(&held);
    assert_eq!(direct.ask(&["CONFIG", "SET", "requirepass", PASSWORD]), Reply::line("+OK"));
    let refused = Reply::line("-NOAUTH Authentication required.");
    assert_eq!(set_without_password(&held), refused);
    let log = held.finish().stderr;
    assert!(!log.contains("at=spare-"), "{log}");
}

#[test]
fn a_password_that_is_taken_from_redis_is_not_asked_of_the_next_connection() {
    let server = Server::start(Front::Redis);
    let url = format!("redis://127.0.0.1:{}/0", server.port);
    let held = hold_to(&url, &[]);
    one_request(&held);
    one_request(&held);
    wait_until_connected(&held);
    let mut direct = server.direct();
    assert_eq!(direct.ask(&["CONFIG", "SET", "requirepass", ""]), Reply::line("+OK"));
    // A map: what Redis says about itself.
    let hello = held.open().ask(&["HELLO", "3"]);
    assert!(matches!(&hello, Reply::Line(line) if line.starts_with('%')), "{hello:?}");
    let log = held.finish().stderr;
    assert!(!log.contains("at=spare-"), "{log}");
}

/// Long enough for a spare to be made, if one is: an outcome, not a time, decides the test.
fn wait_until_connected(held: &Held) {
    let mut client = held.open();
    for _ in 0..500 {
        client.ask(&["PING"]);
    }
}

#[test]
fn a_lone_connection_long_after_a_burst_makes_no_spare() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server, &[("STUNNEL_SPARES", "8")]);
    one_request(&held);
    one_request(&held);
    wait_for_connections(&mut direct, 8);
    // They go after 30 seconds.
    eventually_within(Duration::from_secs(90), "the spares are gone", || {
        (connections(&mut direct) == 0).then_some(())
    });
    let mut alone = held.client();
    for _ in 0..500 {
        assert_eq!(alone.ask(&["PING"]), Reply::line("+PONG"));
        assert_eq!(connections(&mut direct), 1);
    }
    drop(alone);
    let log = held.finish().stderr;
    let (_, later) = log.split_once("at=pool-empty").expect("a log line");
    assert!(!later.contains("at=spare"), "{log}");
}

#[test]
fn spares_are_given_up_when_nobody_connects_any_more() {
    let server = Server::start(Front::Redis);
    let mut direct = server.direct();
    let held = hold(&server, &[("STUNNEL_SPARES", "2")]);
    one_request(&held);
    one_request(&held);
    wait_for_connections(&mut direct, 2);
    // They go after 30 seconds.
    eventually_within(Duration::from_secs(90), "the spares are gone", || {
        (connections(&mut direct) == 0).then_some(())
    });
    let log = held.finish().stderr;
    assert!(log.contains("at=pool-empty"), "{log}");
}

#[test]
fn a_server_that_does_not_pass_gets_no_spare_and_no_byte() {
    let server = Server::start(Front::Redis);
    let pin = "sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let held = hold(&server, &[("STUNNEL_PIN", pin)]);
    for _ in 0..5 {
        let reply = held.open().ask(&["PING"]);
        assert!(matches!(&reply, Reply::Line(line) if line.contains("STUNNEL_PIN")), "{reply:?}");
    }
    let log = held.finish().stderr;
    assert!(!log.contains("at=spare-ready"), "{log}");
}

#[test]
fn a_server_that_changes_its_key_behind_a_session_is_refused_under_a_pin() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let server = Server::start_with(
        Front::Redis,
        Options { certificate: Some(&certificate), ..Options::default() },
    );
    let port = server.port;
    let held = hold(&server, &[("STUNNEL_PIN", &certificate.pin()), ("STUNNEL_SPARES", "0")]);
    for _ in 0..3 {
        one_request(&held);
    }
    drop(server);
    // The same address, another key.
    let server = eventually("the server is back", || Server::start_on(Front::Redis, port));
    let mut client = held.open();
    client.send(&["AUTH", PASSWORD]);
    let reply = client.reply().unwrap();
    assert!(matches!(&reply, Reply::Line(line) if line.contains("STUNNEL_PIN")), "{reply:?}");
    drop(server);
}

#[test]
fn later_connections_resume_the_first_ones_session() {
    let peer = Peer::tls(|mut stream| {
        // Tickets are on their way with the first reply.
        let mut request = [0; 64];
        while matches!(stream.read(&mut request), Ok(1..)) {
            stream.write_all(b"+OK\r\n").unwrap();
        }
        (stream.ssl().session_reused(), stream.ssl().version_str())
    });
    let held = hold_to(&peer.url(), &[("STUNNEL_SPARES", "0")]);
    let mut seen = Vec::new();
    for _ in 0..3 {
        assert_eq!(held.open().ask(&["PING"]), Reply::line("+OK"));
        seen.push(peer.result());
    }
    assert_eq!(seen, [(false, "TLSv1.3"), (true, "TLSv1.3"), (true, "TLSv1.3")]);
}

/// Says OK to each request; returns whether the client's session was resumed.
fn say_ok(mut stream: SslStream<TcpStream>) -> bool {
    let mut request = [0; 64];
    while matches!(stream.read(&mut request), Ok(1..)) {
        if stream.write_all(b"+OK\r\n").is_err() {
            break;
        }
    }
    stream.ssl().session_reused()
}

/// A server that treats a connection by `refuse` if it offers a session, and serves any other.
fn averse_to_sessions(refuse: fn(TcpStream)) -> Peer<()> {
    let acceptor = acceptor(SslVersion::TLS1_3);
    Peer::tcp(move |stream| {
        if offers_session(&stream) {
            refuse(stream);
        } else if let Ok(stream) = acceptor.accept(stream) {
            assert!(!say_ok(stream));
        }
    })
}

/// A launcher without spares, whose connections to `peer` may take 5 seconds.
fn impatient<T: Send + 'static>(peer: &Peer<T>) -> Held {
    hold_to(&peer.url(), &[("STUNNEL_SPARES", "0"), ("STUNNEL_CONNECT_TIMEOUT", "5s")])
}

/// Whether an app's new connection works; otherwise it ends without a word.
fn works(held: &Held) -> bool {
    let mut stream = held.tcp();
    stream.write_all(b"PING\r\n").unwrap();
    let mut first = [0; 5];
    matches!(stream.read(&mut first), Ok(1..)) && first == *b"+OK\r\n"
}

#[test]
fn a_session_at_which_the_server_hangs_is_not_offered_again() {
    let peer = averse_to_sessions(|mut stream| drop(rest(&mut stream)));
    let held = impatient(&peer);
    let seen: Vec<bool> = (0..8).map(|_| works(&held)).collect();
    // Nor is any other one, once two in a row were of no use.
    assert_eq!(seen, [true, false, true, false, true, true, true, true]);
}

#[test]
fn a_session_at_which_the_server_hangs_while_a_spare_is_made_is_not_offered_again() {
    let acceptor = acceptor(SslVersion::TLS1_3);
    let peer = Peer::numbered(move |number, mut stream| {
        // The spare that is made after the second reply, and the question what is the matter.
        if number == 2 || number == 3 {
            rest(&mut stream);
            return None;
        }
        acceptor.accept(stream).ok().map(say_ok)
    });
    let settings = [("STUNNEL_CONNECT_TIMEOUT", "5s")];
    let held = hold_to(&peer.url_with_password(), &settings);
    for resumed in [false, true] {
        assert!(works(&held));
        assert_eq!(peer.result(), Some(resumed));
    }
    assert_eq!([peer.result(), peer.result()], [None, None]);
    assert!(works(&held));
    assert_eq!(peer.result(), Some(false));
}

#[test]
fn a_server_that_goes_away_in_a_resuming_handshake_is_not_bothered_twice() {
    let close = |mut stream: TcpStream| drop(stream.read(&mut [0; 1 << 14]));
    for refuse in [close, |stream: TcpStream| reset(&stream)] {
        let peer = averse_to_sessions(refuse);
        let held = impatient(&peer);
        let seen = [(); 3].map(|()| (works(&held), peer.accepted()));
        assert_eq!(seen, [(true, 1), (false, 2), (true, 3)]);
    }
}

#[test]
fn a_server_that_objects_to_a_session_gets_another_handshake_without_it_at_once() {
    let peer = averse_to_sessions(|mut stream| {
        // A fatal decrypt_error (RFC 8446 section 6), as for a binder that does not fit.
        let _ = stream.read(&mut [0; 1 << 14]);
        stream.write_all(&[21, 3, 3, 0, 2, 2, 51]).unwrap();
        rest(&mut stream);
    });
    let held = impatient(&peer);
    let seen = [(); 3].map(|()| (works(&held), peer.accepted()));
    assert_eq!(seen, [(true, 1), (true, 3), (true, 4)]);
}
