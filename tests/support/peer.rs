//! TLS servers that misbehave on purpose.

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
        let folder = tempfile::tempdir().unwrap();
        let certificate = Certificate::self_signed(folder.path());
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls()).unwrap();
        acceptor.set_private_key(&certificate.key).unwrap();
        acceptor.set_max_proto_version(Some(newest)).unwrap();
        acceptor.set_certificate(&certificate.certificate).unwrap();
        let acceptor = acceptor.build();
        Peer::on(listener, move |stream| behaviour(acceptor.accept(stream).expect("handshake")))
    }

    /// The `rediss://` URL that leads here.
    pub fn url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.port)
    }

    /// What `behaviour` returned for the next connection that ended.
    pub fn result(&self) -> T {
        self.results.recv_timeout(PATIENCE).expect("the peer comes to an end")
    }
}
