//! TLS servers that misbehave on purpose.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use openssl::ssl::{SslAcceptor, SslMethod, SslStream, SslVersion};

use super::PATIENCE;
use super::pki::Certificate;

/// A server on a port of its own that treats every connection in the same way.
pub struct Peer<T> {
    pub port: u16,
    results: Receiver<T>,
}

impl<T: Send + 'static> Peer<T> {
    /// Hands each TCP connection to `behaviour`, in a thread of its own.
    pub fn tcp(behaviour: impl Fn(TcpStream) -> T + Send + Sync + Clone + 'static) -> Peer<T> {
        Peer::on(TcpListener::bind(("127.0.0.1", 0)).unwrap(), behaviour)
    }

    fn on(
        listener: TcpListener,
        behaviour: impl Fn(TcpStream) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        let port = listener.local_addr().unwrap().port();
        let (sender, results) = mpsc::channel();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, behaviour, sender) =
                    (stream.unwrap(), behaviour.clone(), sender.clone());
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_write_timeout(Some(PATIENCE)).unwrap();
                // The test may be over already.
                thread::spawn(move || drop(sender.send(behaviour(stream))));
            }
        });
        Peer { port, results }
    }

    /// Hands each TLS connection to `behaviour` once its handshake is done.
    pub fn tls(
        behaviour: impl Fn(SslStream<TcpStream>) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        Peer::tls_on(TcpListener::bind(("127.0.0.1", 0)).unwrap(), behaviour)
    }

    /// Like `tls`, on an address of the test's choice.
    pub fn tls_on(
        listener: TcpListener,
        behaviour: impl Fn(SslStream<TcpStream>) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        Peer::tls_up_to(SslVersion::TLS1_3, listener, behaviour)
    }

    /// Like `tls_on`, for TLS versions up to `newest`.
    pub fn tls_up_to(
        newest: SslVersion,
        listener: TcpListener,
        behaviour: impl Fn(SslStream<TcpStream>) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        let acceptor = acceptor(newest);
        Peer::on(listener, move |stream| behaviour(acceptor.accept(stream).expect("handshake")))
    }

    /// Like `tls`, for a server that decides which bytes of its records are sent when.
    pub fn gated(
        behaviour: impl Fn(SslStream<Gate>) -> T + Send + Sync + Clone + 'static,
    ) -> Peer<T> {
        let acceptor = acceptor(SslVersion::TLS1_3);
        Peer::tcp(move |tcp| {
            let gate = Gate { tcp, kept: None };
            behaviour(acceptor.accept(gate).expect("handshake"))
        })
    }

    /// The `rediss://` URL that leads here.
    pub fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port)
    }

    /// Like `url`, with a password: spares are made for such a URL only.
    pub fn url_with_password(&self) -> String {
        format!("rediss://:pw@127.0.0.1:{}", self.port)
    }

    /// What `behaviour` returned for the next connection that ended.
    pub fn result(&self) -> T {
        self.results.recv_timeout(PATIENCE).expect("the peer comes to an end")
    }
}

fn acceptor(newest: SslVersion) -> SslAcceptor {
    let folder = tempfile::tempdir().unwrap();
    let certificate = Certificate::self_signed(folder.path());
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
    acceptor.set_private_key(&certificate.key).unwrap();
    acceptor.set_max_proto_version(Some(newest)).unwrap();
    acceptor.set_certificate(&certificate.certificate).unwrap();
    acceptor.build()
}

/// A TCP stream that keeps what TLS writes when it is told to.
#[derive(Debug)]
pub struct Gate {
    pub tcp: TcpStream,
    kept: Option<Vec<u8>>,
}

impl Gate {
    /// From now on nothing that is written is sent.
    pub fn close(&mut self) {
        self.kept = Some(Vec::new());
    }

    /// Sends again what is written, and returns what was not.
    pub fn open(&mut self) -> Vec<u8> {
        self.kept.take().expect("it was closed")
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
