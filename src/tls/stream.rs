//! A TLS connection, and the facts that OpenSSL reports about it.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use openssl::ssl::SslRef;
use openssl::stack::StackRef;
use openssl::x509::{X509, X509VerifyResult};
use tokio::io::{AsyncRead, AsyncWrite};

use super::certificate::Certificate;

/// The most session tickets that a server may send over one connection. Two to four are usual. A
/// ticket costs some microseconds, and a TLS record can hold 900 tickets.
const MOST_TICKETS: u32 = 64;

/// Facts about a connection that native-tls does not show. OpenSSL's callbacks write the facts, and
/// the stream reads them.
#[derive(Debug, Default)]
pub struct Facts {
    resumed: AtomicBool,
    /// OpenSSL's verification result, unless the server's chain is valid.
    flaw: OnceLock<X509VerifyResult>,
    /// The certificates that the server has sent, its own certificate first.
    chain: OnceLock<Vec<X509>>,
    /// The number of session tickets that the server has sent.
    tickets: AtomicU32,
}

impl Facts {
    /// Copies the facts that OpenSSL knows now.
    pub fn update(&self, ssl: &SslRef) {
        self.resumed.store(ssl.session_reused(), Ordering::Relaxed);
        if ssl.verify_result() != X509VerifyResult::OK {
            self.flaw.get_or_init(|| ssl.verify_result());
        }
    }

    /// Notes the certificates that the server has sent.
    pub fn note_chain(&self, sent: &StackRef<X509>) {
        self.chain.get_or_init(|| sent.iter().map(ToOwned::to_owned).collect());
    }

    /// Counts a session ticket. Returns whether the server may send it.
    pub fn count_ticket(&self) -> bool {
        self.tickets.fetch_add(1, Ordering::Relaxed);
        !self.has_too_many_tickets()
    }

    pub fn resumed(&self) -> bool {
        self.resumed.load(Ordering::Relaxed)
    }

    /// OpenSSL's verification result for the server's chain.
    pub fn verified(&self) -> X509VerifyResult {
        self.flaw.get().copied().unwrap_or(X509VerifyResult::OK)
    }

    /// The server's own certificate, whether or not it was accepted.
    pub fn certificate(&self) -> Option<Certificate> {
        Certificate::from_der(&self.chain.get()?.first()?.to_der().ok()?)
    }

    /// The last certificate of the chain that the server has sent.
    pub fn chain_end(&self) -> Option<Certificate> {
        Certificate::from_der(&self.chain.get()?.last()?.to_der().ok()?)
    }

    /// True if reading has ended because the server sent too many session tickets.
    pub fn has_too_many_tickets(&self) -> bool {
        self.tickets.load(Ordering::Relaxed) > MOST_TICKETS
    }
}

/// A stream of tokio-native-tls with its facts.
pub struct TlsStream<S> {
    pub stream: tokio_native_tls::TlsStream<S>,
    facts: Arc<Facts>,
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsStream")
    }
}

impl<S> TlsStream<S> {
    pub fn new(stream: tokio_native_tls::TlsStream<S>, facts: Arc<Facts>) -> TlsStream<S> {
        TlsStream { stream, facts }
    }

    /// The stream below TLS.
    pub fn get_ref(&self) -> &S {
        self.stream.get_ref().get_ref().get_ref()
    }

    pub fn get_mut(&mut self) -> &mut S {
        self.stream.get_mut().get_mut().get_mut()
    }

    /// True if the server resumed a session.
    pub fn resumed(&self) -> bool {
        self.facts.resumed()
    }

    /// True if reading has ended because the server sent too many session tickets.
    pub fn has_too_many_tickets(&self) -> bool {
        self.facts.has_too_many_tickets()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// The server's certificate, from the session if it was resumed; `None` if it is unreadable.
    pub fn certificate(&self) -> Option<Certificate> {
        let certificate = self.stream.get_ref().peer_certificate().ok()??;
        Certificate::from_der(&certificate.to_der().ok()?)
    }
}
