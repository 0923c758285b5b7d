//! Tests servers that try to use much of the launcher's CPU time. The connections to such a server
//! fail, but no other connection is delayed.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkey::PKey;
use openssl::sign::Signer;
use openssl::ssl::{SslAcceptor, SslAcceptorBuilder, SslStream, SslVersion};
use openssl::symm::{Cipher, encrypt_aead};
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

/// Content types of TLS records (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
const DATA: u8 = 23;

/// Encrypts the records that a TLS 1.3 server sends after its handshake, with
/// TLS_AES_128_GCM_SHA256 (RFC 8446 sections 5.2 and 7.3).
struct RecordKeys {
    key: Vec<u8>,
    iv: Vec<u8>,
    sequence: u64,
}

impl RecordKeys {
    /// Derives the keys from a secret in a TLS key log (SSLKEYLOGFILE).
    fn new(secret: &str) -> RecordKeys {
        let secret = BigNum::from_hex_str(secret).unwrap().to_vec_padded(32).unwrap();
        let secret = PKey::hmac(&secret).unwrap();
        let expand = |label: &str, length: u8| {
            let label = format!("tls13 {label}");
            let mut signer = Signer::new(MessageDigest::sha256(), &secret).unwrap();
            signer.update(&[0, length, label.len() as u8]).unwrap();
            signer.update(label.as_bytes()).unwrap();
            signer.update(&[0, 1]).unwrap();
            signer.sign_to_vec().unwrap()[..usize::from(length)].to_vec()
        };
        RecordKeys { key: expand("key", 16), iv: expand("iv", 12), sequence: 0 }
    }

    /// Encrypts `content` as a TLS record with the content type `kind`.
    fn record(&mut self, content: &[u8], kind: u8) -> Vec<u8> {
        let plain = [content, &[kind]].concat();
        let mut nonce = self.iv.clone();
        for (byte, number) in nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence += 1;
        let [high, low] = (plain.len() as u16 + 16).to_be_bytes();
        let header = [23, 3, 3, high, low];
        let mut tag = [0; 16];
        let cipher = Cipher::aes_128_gcm();
        let sealed =
            encrypt_aead(cipher, &self.key, Some(&nonce), &header, &plain, &mut tag).unwrap();
        [&header[..], &sealed, &tag].concat()
    }
}

/// The shortest possible TLS session ticket (RFC 8446 section 4.6.1).
const TICKET: [u8; 18] = [4, 0, 0, 14, 0, 0, 14, 16, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0];
/// The largest number of these tickets that fits into one TLS record.
const MOST_TICKETS: usize = (1 << 14) / TICKET.len();

/// A TLS 1.3 server that encrypts its records with [`RecordKeys`] instead of OpenSSL.
fn server_with_keys<T: Send + 'static>(
    behaviour: impl Fn(SslStream<TcpStream>, RecordKeys) -> T + Send + Sync + Clone + 'static,
) -> Peer<T> {
    let secrets: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = secrets.clone();
    let mut acceptor = acceptor_builder(SslVersion::TLS1_3);
    acceptor.set_ciphersuites("TLS_AES_128_GCM_SHA256").unwrap();
    acceptor.set_num_tickets(0).unwrap();
    acceptor.set_keylog_callback(move |_, line| {
        if let Some(rest) = line.strip_prefix("SERVER_TRAFFIC_SECRET_0 ") {
            log.lock().unwrap().push(rest.split(' ').nth(1).unwrap().to_owned());
        }
    });
    let acceptor: SslAcceptor = acceptor.build();
    Peer::tcp(move |stream| {
        let stream = acceptor.accept(stream).unwrap();
        let secret = secrets.lock().unwrap().pop().unwrap();
        behaviour(stream, RecordKeys::new(&secret))
    })
}

#[test]
fn a_flood_of_session_tickets_ends_only_its_connection() {
    let server = Server::start(Front::Redis);
    // Sends tickets until the launcher closes the connection. Returns the number of records sent.
    let peer = server_with_keys(|mut stream, mut keys| {
        let (tcp, tickets) = (stream.get_mut(), TICKET.repeat(MOST_TICKETS));
        (0..).find(|_| tcp.write_all(&keys.record(&tickets, HANDSHAKE)).is_err()).unwrap()
    });
    let launcher = Launcher::script(HOLD_TWO).env("STUNNEL_LOGLEVEL", "info");
    let (held, other) = launcher.start_two(&server.url(), &peer.url());
    let mut client = held.client();
    let mut flooded = Client::open(other).stream.into_inner();
    let (bytes, error) = rest(&mut flooded);
    assert!(bytes.is_empty() && error.is_some(), "{bytes:?} {error:?}");
    let records: usize = peer.result();
    assert!(records < 1000, "{records}");
    assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    drop((client, flooded));
    let log = held.finish().stderr;
    let errors = logged(&log, "connection-closed", "error");
    assert!(errors.iter().any(|error| error.contains("TLS messages without data")), "{log}");
}

#[test]
fn session_tickets_before_every_reply_are_accepted() {
    let peer = server_with_keys(|mut stream, mut keys| {
        let mut request = [0; 64];
        while stream.read(&mut request).is_ok_and(|read| read > 0) {
            let tcp = stream.get_mut();
            for _ in 0..3 {
                tcp.write_all(&keys.record(&TICKET, HANDSHAKE)).unwrap();
            }
            tcp.write_all(&keys.record(b"+PONG\r\n", DATA)).unwrap();
        }
    });
    let held = Launcher::hold(&peer.url());
    let mut client = held.open();
    for _ in 0..16 {
        assert_eq!(client.ask(&["PING"]), Reply::line("+PONG"));
    }
}
