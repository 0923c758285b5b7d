//! Tests when the launcher resumes TLS sessions, and when app connections wait for a tunnel's first
//! handshake.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;

use openssl::ssl::SslVersion;
use support::launcher::{Held, Launcher};
use support::peer::{Peer, acceptor, offers_session};
use support::pki::Certificate;
use support::resp::{Client, Reply};
use support::scripted::{converse, redis};
use support::servers::{Front, Options, PASSWORD, Server};
use support::slow_link::SlowLink;
use support::status::StatusPage;
use support::{eventually, reset, rest};

/// A launcher that makes a new connection to Redis for each app connection.
fn hold_to(url: &str, setting: (&str, &str)) -> Held {
    Launcher::hold_with(url, &[("STUNNEL_POOL", "off"), setting])
}

#[test]
fn a_changed_key_is_refused_despite_a_stored_tls_session() {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let server = Server::with_certificate(&certificate);
    let port = server.port;
    let held = hold_to(&server.url(), ("STUNNEL_PIN", &certificate.pin()));
    for _ in 0..3 {
        assert_eq!(held.client().ask(&["PING"]), Reply::line("+PONG"));
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

/// A server that calls `refuse` for connections that offer a TLS session, and serves all other
/// connections.
fn averse_to_sessions(refuse: fn(TcpStream)) -> Peer<()> {
    let acceptor = acceptor(SslVersion::TLS1_3);
    Peer::tcp(move |stream| {
        if offers_session(&stream) {
            refuse(stream);
        } else if let Ok(stream) = acceptor.accept(stream) {
            assert!(!stream.ssl().session_reused());
            converse(stream, |request| Some(redis(request)));
        }
    })
}

#[test]
fn after_two_failed_resumptions_all_handshakes_are_full() {
    let hang: fn(TcpStream) = |mut stream| drop(rest(&mut stream));
    let close: fn(TcpStream) = |mut stream| drop(stream.read(&mut [0; 1 << 14]));
    let send_reset: fn(TcpStream) = |stream| reset(&stream);
    let refuse: fn(TcpStream) = |mut stream| {
        // Send the fatal alert decrypt_error (RFC 8446 section 6).
        let _ = stream.read(&mut [0; 1 << 14]);
        stream.write_all(&[21, 3, 3, 0, 2, 2, 51]).unwrap();
        rest(&mut stream);
    };
    let lost = [(true, 1), (false, 2), (true, 3), (false, 4), (true, 5), (true, 6)];
    // The launcher opens an extra connection to find out whether a silent server speaks plaintext.
    let probed = [(true, 1), (false, 3), (true, 4), (false, 5), (true, 6), (true, 7)];
    // If the server sends an alert, the launcher makes a second handshake for the same app.
    let retried = [(true, 1), (true, 3), (true, 5), (true, 6), (true, 7), (true, 8)];
    for (reaction, expected) in
        [(hang, probed), (close, lost), (send_reset, lost), (refuse, retried)]
    {
        let peer = averse_to_sessions(reaction);
        let held = hold_to(&peer.url(), ("STUNNEL_CONNECT_TIMEOUT", "5s"));
        let works = || held.open().try_ask(&["PING"]).is_ok();
        assert_eq!([(); 6].map(|()| (works(), peer.accepted())), expected);
    }
}

/// Connects many apps at the same time, and checks that each app gets a reply.
fn storm(held: &Held, count: usize) {
    let mut apps: Vec<Client> = (0..count).map(|_| held.open()).collect();
    apps.iter_mut().for_each(|app| app.send(&["AUTH", PASSWORD]));
    assert!(apps.iter_mut().all(|app| app.reply().unwrap() == Reply::line("+OK")));
}

/// The numbers of full and of resumed handshakes so far.
fn handshakes(page: StatusPage) -> [f64; 2] {
    let name = "tls_handshake_duration_seconds_count";
    ["full", "resumed"]
        .map(|mode| page.of_tunnel(name, &format!(",mode=\"{mode}\"")).unwrap_or(0.0))
}

#[test]
fn twenty_apps_at_once_cause_only_one_full_handshake() {
    let server = Server::start(Front::Redis);
    let held = hold_to(&server.url(), ("STUNNEL_STATUS_ADDRESS", "0"));
    storm(&held, 20);
    assert_eq!(handshakes(held.page()), [1.0, 19.0]);
}

#[test]
fn apps_do_not_wait_for_a_distant_servers_first_handshake() {
    // If the TCP connect takes more than 80 ms, apps do not wait for the tunnel's first handshake.
    let Some(link) = SlowLink::make(&["--delay-ms", "300"]) else { return };
    let options = Options { link: Some(&link), ..Options::default() };
    let server = Server::start_with(Front::Redis, options);
    let held = hold_to(&server.url(), ("STUNNEL_STATUS_ADDRESS", "0"));
    storm(&held, 10);
    assert_eq!(handshakes(held.page()), [10.0, 0.0], "there was no session to resume");
}
