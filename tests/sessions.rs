//! TLS sessions: when they are resumed, when not, and the tunnel's first handshake.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use openssl::ssl::{SslStream, SslVersion};
use support::launcher::{Held, Launcher};
use support::peer::{Peer, acceptor, offers_session};
use support::pki::Certificate;
use support::resp::{Client, Reply};
use support::scripted::{converse, redis};
use support::servers::{Front, Options, PASSWORD, Server};
use support::slow_link::SlowLink;
use support::status::StatusPage;
use support::{eventually, reset, rest};

fn hold_to(url: &str, settings: &[(&str, &str)]) -> Held {
    // Each app gets its own connection.
    Launcher::holding(url).env("STUNNEL_POOL", "off").settings(settings).start_held()
}

/// An app that makes a connection for one request.
fn one_request(held: &Held) {
    assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
}

#[test]
fn a_pin_refuses_a_changed_key_despite_a_session() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let server = Server::with_certificate(&certificate);
    let port = server.port;
    let held = hold_to(&server.url(), &[("STUNNEL_PIN", &certificate.pin())]);
    for _ in 0..3 {
        one_request(&held);
    }
    drop(server);
    // The new server has the same address and another key.
    let server = eventually("the server is back", || Server::start_on(Front::Redis, port));
    let mut client = held.open();
    client.send(&["AUTH", PASSWORD]);
    let reply = client.reply().unwrap();
    assert!(matches!(&reply, Reply::Line(line) if line.contains("STUNNEL_PIN")), "{reply:?}");
    drop(server);
}

/// Answers OK to each request. Returns whether the client resumed a session.
fn say_ok(mut stream: SslStream<TcpStream>) -> bool {
    let mut request = [0; 64];
    while matches!(stream.read(&mut request), Ok(1..)) {
        if stream.write_all(b"+OK\r\n").is_err() {
            break;
        }
    }
    stream.ssl().session_reused()
}

/// A server that handles connections that offer a session with `refuse`, and serves all others.
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

/// A launcher whose connections to `peer` may take 5 seconds.
fn impatient<T: Send + 'static>(peer: &Peer<T>) -> Held {
    hold_to(&peer.url(), &[("STUNNEL_CONNECT_TIMEOUT", "5s")])
}

/// True if an app's new connection works. Otherwise it ends without a reply.
fn works(held: &Held) -> bool {
    let mut stream = held.tcp();
    stream.write_all(b"PING\r\n").unwrap();
    let mut first = [0; 5];
    matches!(stream.read(&mut first), Ok(1..)) && first == *b"+OK\r\n"
}

#[test]
fn a_session_that_hangs_the_server_is_not_offered_again() {
    let peer = averse_to_sessions(|mut stream| drop(rest(&mut stream)));
    let held = impatient(&peer);
    let seen: Vec<bool> = (0..8).map(|_| works(&held)).collect();
    // After two failed sessions in a row, no further session is offered.
    assert_eq!(seen, [true, false, true, false, true, true, true, true]);
}

#[test]
fn a_cut_resumption_is_not_tried_again_for_the_same_app() {
    let close = |mut stream: TcpStream| drop(stream.read(&mut [0; 1 << 14]));
    for refuse in [close, |stream: TcpStream| reset(&stream)] {
        let peer = averse_to_sessions(refuse);
        let held = impatient(&peer);
        let seen = [(); 3].map(|()| (works(&held), peer.accepted()));
        assert_eq!(seen, [(true, 1), (false, 2), (true, 3)]);
    }
}

#[test]
fn a_refused_session_is_followed_by_a_full_handshake() {
    let peer = averse_to_sessions(|mut stream| {
        // A fatal decrypt_error (RFC 8446 section 6), as for an invalid binder.
        let _ = stream.read(&mut [0; 1 << 14]);
        stream.write_all(&[21, 3, 3, 0, 2, 2, 51]).unwrap();
        rest(&mut stream);
    });
    let held = impatient(&peer);
    let seen = [(); 3].map(|()| (works(&held), peer.accepted()));
    assert_eq!(seen, [(true, 1), (true, 3), (true, 4)]);
}

/// Connects many apps at the same time, each of which must get a reply.
fn storm(held: &Held, count: usize) {
    let mut apps: Vec<Client> = (0..count).map(|_| held.open()).collect();
    apps.iter_mut().for_each(|app| app.send(&["AUTH", PASSWORD]));
    assert!(apps.iter_mut().all(|app| app.reply().unwrap() == Reply::line("+OK")));
}

/// The numbers of full and of resumed handshakes so far.
fn handshakes(page: StatusPage) -> [f64; 2] {
    ["full", "resumed"].map(|mode| {
        let labels = format!("{{tunnel=\"REDIS_URL\",mode=\"{mode}\"}}");
        let name = "start_stunnel_tls_handshake_duration_seconds_count";
        page.metric(&format!("{name}{labels}")).unwrap_or(0.0)
    })
}

#[test]
fn a_storm_of_first_connections_costs_one_full_handshake() {
    let server = Server::start(Front::Redis);
    let held = hold_to(&server.url(), &[("STUNNEL_STATUS_ADDRESS", "0")]);
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    storm(&held, 20);
    assert_eq!(handshakes(page), [1.0, 19.0]);
}

#[test]
fn apps_do_not_wait_for_a_distant_servers_first_handshake() {
    // Connecting by TCP takes more than 80 ms, so that the others stop waiting for a session.
    let Some(link) = SlowLink::make(&["--delay-ms", "300"]) else { return };
    let options = Options { link: Some(&link), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let held = hold_to(&server.url(), &[("STUNNEL_STATUS_ADDRESS", "0")]);
    let page = StatusPage::of(held.running.pid(), &[held.port]);
    storm(&held, 10);
    assert_eq!(handshakes(page), [10.0, 0.0], "there was no session to resume");
}

#[test]
fn two_hundred_apps_at_once_reach_a_distant_server() {
    // A handshake takes 300 ms.
    let acceptor = acceptor(SslVersion::TLS1_3);
    let peer = Peer::tcp(move |stream| {
        thread::sleep(Duration::from_millis(300));
        let Ok(stream) = acceptor.accept(stream) else { return };
        converse(stream, |request| Some(redis(request)));
    });
    let held = hold_to(&peer.url(), &[("STUNNEL_CONNECT_TIMEOUT", "10s")]);
    let mut apps: Vec<Client> = (0..200).map(|_| held.open()).collect();
    apps.iter_mut().for_each(|app| app.send(&["PING"]));
    let answered = apps.iter_mut().filter_map(|app| app.reply().ok()).count();
    assert_eq!(answered, 200);
}

#[test]
fn a_silent_first_handshake_delays_the_others_only_once() {
    const APPS: u32 = 40;
    /// An app waits at most this long for the first handshake.
    const PATIENCE: Duration = Duration::from_millis(250);
    let acceptor = acceptor(SslVersion::TLS1_3);
    let peer = Peer::numbered(move |number, mut stream| {
        if number == 0 {
            rest(&mut stream);
            return;
        }
        let Ok(stream) = acceptor.accept(stream) else { return };
        converse(stream, |request| Some(redis(request)));
    });
    let held = hold_to(&peer.url(), &[("STUNNEL_CONNECT_TIMEOUT", "60s")]);
    let mut silent = held.open();
    silent.send(&["PING"]);
    eventually("the first handshake begins", || (peer.accepted() == 1).then_some(()));
    let mut delays: Vec<Duration> = (0..APPS)
        .map(|_| {
            let began = Instant::now();
            assert_eq!(held.open().ask(&["PING"]), Reply::line("+PONG"));
            began.elapsed()
        })
        .collect();
    delays.sort();
    let median = delays[delays.len() / 2];
    assert!(median < PATIENCE, "{median:?}");
}
