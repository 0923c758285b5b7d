//! Tests faults of TLS: resets during and after the handshake, garbage instead of TLS, new keys,
//! and records in pieces.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;

use foreign_types::ForeignTypeRef as _;
use nix::libc;
use openssl::ssl::{HandshakeError, SslStream, SslVerifyMode, SslVersion};

use crate::support::peer::{Peer, acceptor, acceptor_builder};
use crate::support::resp::Reply;
use crate::support::servers::{Front, Server};
use crate::support::{reset, rest};
use crate::{Scene, TIMES, all_logged, closed, fault};

#[test]
fn redis_resets_during_the_handshake() {
    fault!("Redis resets the connection during the handshake");
    let peer = Peer::tcp(|mut stream| {
        stream.read_exact(&mut [0; 5]).unwrap();
        reset(&stream);
    });
    let scene = Scene::new(&peer.url());
    closed(&scene.one_by_one());
    let error = "connection reset by the server";
    all_logged(&scene.aftermath(), "connection-failed", "error", error);
}

#[test]
fn one_probe_explains_a_reset_after_the_handshake() {
    fault!("Redis resets the connection right after the handshake");
    let peer = Peer::tls(|tls| reset(tls.get_ref()));
    let scene = Scene::new(&peer.url());
    let seen = scene.one_by_one();
    assert_eq!(peer.accepted(), TIMES + 1);
    let log = scene.aftermath();
    assert_eq!(seen, vec![(vec![], Some(ErrorKind::ConnectionReset)); TIMES], "{log}");
    all_logged(&log, "connection-closed", "reason", "reset-by-redis");
}

#[test]
fn one_probe_finds_the_cause_of_a_failure_for_all_apps() {
    let plain = acceptor(SslVersion::TLS1_3);
    // This acceptor refuses every client, because it trusts no client certificate.
    let mut demanding = acceptor_builder(SslVersion::TLS1_3);
    demanding.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    let demanding = demanding.build();
    let peer = Peer::numbered(move |number, stream| match number {
        // The launcher opens a second connection to learn why the first connection failed. On the
        // second connection, the server sends the alert that names the reason.
        1 => {
            let Err(HandshakeError::Failure(mut failed)) = demanding.accept(stream) else {
                panic!("the launcher has sent a client certificate");
            };
            failed.get_mut().shutdown(Shutdown::Write).unwrap();
            rest(failed.get_mut());
        }
        _ => reset(plain.accept(stream).expect("handshake").get_ref()),
    });
    let scene = Scene::new(&peer.url());
    for _ in 0..5 {
        let said = scene.held.open().ask(&["PING"]);
        let told = "the server requires a client certificate";
        assert!(matches!(&said, Reply::Line(line) if line.contains(told)), "{said:?}");
    }
    assert_eq!(peer.accepted(), 5 + 1);
}

#[test]
fn redis_sends_garbage_instead_of_tls() {
    fault!("the server sends garbage instead of TLS");
    let peer = Peer::tcp(|mut stream| {
        stream.read_exact(&mut [0; 5]).unwrap();
        let noise: Vec<u8> = (0..5000_u32).map(|n| (n * n % 251) as u8).collect();
        // Ignore the error: the launcher may close the connection before the server has sent all
        // bytes.
        let _ = stream.write_all(&noise);
        rest(&mut stream);
    });
    let scene = Scene::new(&peer.url());
    for (said, error) in scene.all_at_once() {
        let said = String::from_utf8(said).unwrap();
        assert_eq!(error, None);
        assert!(said.starts_with("-ERR start-stunnel: "), "{said}");
        assert!(said.contains("does not speak TLS") && said.lines().count() == 1, "{said}");
    }
    let error = "the server does not speak TLS";
    all_logged(&scene.aftermath(), "connection-refused", "error", error);
}

/// Relays a connection to `port`, and sends the replies byte by byte.
fn one_byte_at_a_time(mut near: TcpStream, port: u16) {
    let mut far = TcpStream::connect(("127.0.0.1", port)).unwrap();
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
}

#[test]
fn redis_sends_byte_by_byte() {
    fault!("Redis sends its replies byte by byte");
    let server = Server::start(Front::Redis);
    let tls_port = server.tls_port();
    // The relay is between the launcher and Redis, so the relay also splits TLS records.
    let peer = Peer::tcp(move |near| one_byte_at_a_time(near, tls_port));
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

/// SSL_KEY_UPDATE_REQUESTED: the client must change its key as well (SSL_key_update(3)).
const UPDATE_REQUESTED: libc::c_int = 1;

/// Echoes messages of 1,000 bytes, and changes the keys in the middle of each message. Returns the
/// number of messages.
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
fn redis_requests_new_tls_keys() {
    fault!("Redis requests new keys (TLS 1.3 key update)");
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
fn redis_requests_a_tls_renegotiation() {
    fault!("Redis renegotiates (TLS 1.2)");
    let acceptor = acceptor(SslVersion::TLS1_2);
    // The server sends the text `hello`, and then requests a renegotiation. The result is true if
    // the launcher refuses the renegotiation.
    let peer = Peer::tcp(move |stream| {
        let mut tls = acceptor.accept(stream).expect("handshake");
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
