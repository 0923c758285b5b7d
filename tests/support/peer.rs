//! TLS servers that misbehave on purpose.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use openssl::ssl::{SslAcceptor, SslAcceptorBuilder, SslMethod, SslStream, SslVersion};

use super::pki::Certificate;
use super::{PATIENCE, Process, eventually, two_free_ports, wait_until};

/// A server that handles every connection in the same way.
pub struct Peer<T> {
    pub port: u16,
    accepted: Arc<AtomicUsize>,
    results: Receiver<T>,
}

impl<T: Send + 'static> Peer<T> {
    /// Calls `behaviour` for each TCP connection, in a new thread.
    pub fn tcp(behaviour: impl Fn(TcpStream) -> T + Send + Sync + Clone + 'static) -> Peer<T> {
        Peer::numbered(move |_, stream| behaviour(stream))
    }

    /// Like `tcp`, but also passes the connection's number, counted from 0.
    pub fn numbered(
        behaviour: impl Fn(usize, TcpStream) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        Peer::on(TcpListener::bind(("127.0.0.1", 0)).unwrap(), behaviour)
    }

    fn on(
        listener: TcpListener,
        behaviour: impl Fn(usize, TcpStream) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        let port = listener.local_addr().unwrap().port();
        let (sender, results) = mpsc::channel();
        let accepted = Arc::new(AtomicUsize::new(0));
        let counter = accepted.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let (stream, behaviour, sender) =
                    (stream.unwrap(), behaviour.clone(), sender.clone());
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                // Ignore the error of `send`: the test may have ended already.
                thread::spawn(move || drop(sender.send(behaviour(number, stream))));
            }
        });
        Peer { port, accepted, results }
    }

    /// Calls `behaviour` for each TLS connection after its handshake.
    pub fn tls(
        behaviour: impl Fn(SslStream<TcpStream>) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        Peer::tls_on(TcpListener::bind(("127.0.0.1", 0)).unwrap(), behaviour)
    }

    /// Like `tls`, on a given listener.
    pub fn tls_on(
        listener: TcpListener,
        behaviour: impl Fn(SslStream<TcpStream>) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        let acceptor = acceptor(SslVersion::TLS1_3);
        Peer::on(listener, move |_, stream| behaviour(acceptor.accept(stream).expect("handshake")))
    }

    /// Like `tls`, but `behaviour` can hold back parts of TLS records (see [`Gate`]).
    pub fn gated(
        behaviour: impl Fn(SslStream<Gate>) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        let acceptor = acceptor(SslVersion::TLS1_3);
        Peer::tcp(move |tcp| {
            let gate = Gate { tcp, kept: None };
            behaviour(acceptor.accept(gate).expect("handshake"))
        })
    }

    /// The server's `rediss://` URL.
    pub fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port)
    }

    /// The number of accepted connections.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Waits until `behaviour` returns for another connection. Returns its result.
    pub fn result(&self) -> T {
        self.results.recv_timeout(PATIENCE).expect("a connection ends")
    }
}

/// An acceptor with a new self-signed certificate, for TLS versions up to `newest`.
pub fn acceptor(newest: SslVersion) -> SslAcceptor {
    acceptor_builder(newest).build()
}

/// Like [`acceptor`], but returns the builder, so that the caller can change options.
pub fn acceptor_builder(newest: SslVersion) -> SslAcceptorBuilder {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_private_key(&certificate.key).unwrap();
    acceptor.set_max_proto_version(Some(newest)).unwrap();
    acceptor.set_certificate(&certificate.certificate).unwrap();
    acceptor
}

/// True if the first message on `stream` is a ClientHello that offers a TLS 1.3 session (RFC 8446
/// sections 4.1.2 and 4.2.11). The message stays in the stream, because this function only peeks.
pub fn offers_session(stream: &TcpStream) -> bool {
    const HANDSHAKE: u8 = 22;
    const PRE_SHARED_KEY: [u8; 2] = [0, 41];
    let mut record = vec![0; 5 + (1 << 14)];
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
    let end = eventually("the first record", || {
        let seen = stream.peek(&mut record).unwrap();
        if seen == 0 || record[0] != HANDSHAKE {
            return Some(0);
        }
        let end = 5 + number(&record[3..5]);
        (seen >= end).then_some(end)
    });
    // Skip the headers, the version and the random.
    let Some(mut rest) = record[..end].get(5 + 4 + 2 + 32..) else { return false };
    // Skip the session id, the cipher suites and the compression methods.
    for length in [1, 2, 1] {
        rest = &rest[length + number(&rest[..length])..];
    }
    let mut extensions = &rest[2..];
    while let [a, b, c, d, ..] = *extensions {
        if [a, b] == PRE_SHARED_KEY {
            return true;
        }
        extensions = &extensions[4 + number(&[c, d])..];
    }
    false
}

/// A TCP stream that can hold back written bytes.
#[derive(Debug)]
pub struct Gate {
    pub tcp: TcpStream,
    kept: Option<Vec<u8>>,
}

impl Gate {
    /// Starts to hold back written bytes.
    pub fn close(&mut self) {
        self.kept = Some(Vec::new());
    }

    /// Stops holding back written bytes. Returns the bytes that were held back.
    pub fn open(&mut self) -> Vec<u8> {
        self.kept.take().expect("a closed gate")
    }
}

impl Read for Gate {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.read(buffer)
    }
}

impl Write for Gate {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.kept {
            Some(kept) => kept.write(bytes),
            None => self.tcp.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// Starts `openssl s_server` with these options. Returns the process and its port. The process
/// reads commands from its standard input, and writes its output to the file `log` in `folder`.
pub fn s_server(folder: &Path, options: &[&str]) -> (Process, u16) {
    let certificate = Certificate::self_signed(folder);
    let port = two_free_ports();
    let log = fs::File::create(folder.join("log")).unwrap();
    let mut server = Command::new("openssl");
    server.arg("s_server").args(options).args(["-accept", &format!("127.0.0.1:{port}")]);
    server.arg("-cert").arg(&certificate.certificate_file);
    server.arg("-key").arg(&certificate.key_file);
    server.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
    let server = Process(server.spawn().expect("openssl (see bin/setup)"));
    wait_until("s_server listens", || {
        let log = fs::read_to_string(folder.join("log")).unwrap();
        log.contains("ACCEPT")
    });
    (server, port)
}
