//! Tests servers that try to use much of the launcher's CPU time. The connections to such a server
//! fail, but no other connection is delayed.

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use foreign_types::ForeignTypeRef as _;
use nix::libc;
use openssl::ssl::{SslAcceptorBuilder, SslStream, SslVersion};
use support::launcher::{HOLD_TWO, Launcher, logged};
use support::peer::{Peer, acceptor_builder};
use support::pki::{Authority, Certificate, Kind, Request};
use support::resp::{Client, Reply};
use support::rest;
use support::servers::{Front, Server};

/// A server that reports for each connection whether the TLS handshake succeeded.
fn server_of(acceptor: SslAcceptorBuilder) -> Peer<bool> {
    let acceptor = acceptor.build();
    Peer::tcp(move |stream| acceptor.accept(stream).is_ok())
}

/// The error that an app receives because the launcher refuses the server `peer`.
fn refusal(peer: &Peer<bool>) -> String {
    let held = Launcher::hold(&peer.url());
    let mut client = held.open();
    client.send(&["PING"]);
    let Ok(Reply::Line(line)) = client.reply() else { panic!("no error") };
    assert!(!peer.result(), "the handshake succeeded: {line}");
    line
}

#[test]
fn a_server_that_offers_only_dhe_is_refused() {
    let mut tls_1_2 = acceptor_builder(SslVersion::TLS1_2);
    tls_1_2.set_cipher_list("DHE-RSA-AES256-GCM-SHA384").unwrap();
    let mut tls_1_3 = acceptor_builder(SslVersion::TLS1_3);
    tls_1_3.set_min_proto_version(Some(SslVersion::TLS1_3)).unwrap();
    tls_1_3.set_groups_list("ffdhe2048").unwrap();
    for acceptor in [tls_1_2, tls_1_3] {
        let line = refusal(&server_of(acceptor));
        assert!(line.contains("TLS handshake refused: handshake failure"), "{line}");
    }
}

#[test]
fn bad_certificate_without_one_means_that_one_is_required() {
    let peer = Peer::tcp(|mut stream| {
        stream.read_exact(&mut [0; 1]).unwrap();
        stream.write_all(&[21, 3, 3, 0, 2, 2, 42]).unwrap(); // RFC 8446 section 6
        stream.read_to_end(&mut Vec::new()).is_err()
    });
    let line = refusal(&peer);
    assert!(
        line.contains("the server requires a client certificate; set STUNNEL_CLIENT"),
        "{line}"
    );
}

#[test]
fn a_server_with_an_expensive_key_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    // OpenSSL refuses to generate keys with much longer exponents.
    let kind = Kind::RsaWithExponent("10000000000000000000000000000000F");
    let request = Request { kind, ..Request::default() };
    let certificate = Certificate::issue(folder.path(), "rsa", &request, None, &[]);
    let mut acceptor = acceptor_builder(SslVersion::TLS1_3);
    acceptor.set_certificate(&certificate.certificate).unwrap();
    acceptor.set_private_key(&certificate.key).unwrap();
    let line = refusal(&server_of(acceptor));
    assert!(line.contains("RSA key or exponent is too long"), "{line}");
    assert!(line.contains("RSA with 2048 to 4096 bits"), "{line}");
}

#[test]
fn a_server_with_a_very_long_chain_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new(folder.path());
    let mut acceptor = acceptor_builder(SslVersion::TLS1_3);
    for _ in 0..100 {
        acceptor.add_extra_chain_cert(authority.root.certificate.clone()).unwrap();
    }
    let line = refusal(&server_of(acceptor));
    assert!(line.contains("the server's certificate chain is longer than 16 KiB"), "{line}");
}

unsafe extern "C" {
    fn SSL_new_session_ticket(ssl: *mut openssl_sys::SSL) -> libc::c_int;
}

/// Sends a TLS session ticket in a record of its own. Returns `false` if the connection has
/// failed.
fn send_ticket(stream: &mut SslStream<TcpStream>) -> bool {
    // SAFETY: the stream owns the connection and outlives the call.
    let may_send = unsafe { SSL_new_session_ticket(stream.ssl().as_ptr()) };
    assert_eq!(may_send, 1, "the server has sent its earlier tickets");
    stream.do_handshake().is_ok()
}

#[test]
fn a_flood_of_session_tickets_ends_only_its_connection() {
    let server = Server::start(Front::Redis);
    let peer = Peer::tls(|mut stream| {
        // OpenSSL ignores a closed connection while it sends tickets.
        let sent = (0..1_000).take_while(|_| send_ticket(&mut stream)).count();
        (sent, rest(&mut stream))
    });
    let launcher = Launcher::script(HOLD_TWO).env("STUNNEL_LOGLEVEL", "info");
    let (held, other) = launcher.start_two(&server.url(), &peer.url());
    let mut client = held.client();
    let mut flooded = Client::open(other).stream.into_inner();
    let (bytes, error) = rest(&mut flooded);
    assert_eq!((bytes, error), (vec![], Some(ErrorKind::ConnectionReset)));
    peer.result();
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    drop((client, flooded));
    let log = held.finish().stderr;
    let errors = logged(&log, "connection-closed", "error");
    assert!(errors.iter().any(|error| error.contains("TLS messages without data")), "{log}");
}

#[test]
fn session_tickets_before_every_reply_are_accepted() {
    let peer = Peer::tls(|mut stream| {
        let mut request = [0; 64];
        while stream.read(&mut request).is_ok_and(|read| read > 0) {
            (0..3).for_each(|_| assert!(send_ticket(&mut stream)));
            stream.write_all(b"+PONG\r\n").unwrap();
        }
    });
    let held = Launcher::hold(&peer.url());
    let mut client = held.open();
    for _ in 0..16 {
        assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    }
}
