//! TLS sessions that are resumed, and connections that need a login.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use openssl::ssl::{SslStream, SslVersion};
use support::launcher::{Held, Launcher};
use support::peer::{Peer, acceptor, offers_session};
use support::pki::Certificate;
use support::resp::{Client, Reply};
use support::servers::{Front, Options, PASSWORD, Server};
use support::{eventually, reset, rest};

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
    let held = hold(&server, &[("STUNNEL_PIN", &certificate.pin())]);
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
    let held = hold_to(&peer.url(), &[]);
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
    hold_to(&peer.url(), &[("STUNNEL_CONNECT_TIMEOUT", "5s")])
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
