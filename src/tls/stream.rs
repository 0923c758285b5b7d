//! A TLS connection, and the facts that OpenSSL reports about the connection.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use openssl::x509::{X509, X509StoreContextRef, X509VerifyResult};
use tokio::io::{AsyncRead, AsyncWrite};

use super::certificate::Certificate;
use super::raw::sent_by_server;

/// The maximum number of session tickets that a server may send on one connection. Servers usually
/// send two to four. A ticket costs some microseconds of CPU time, and a TLS record can hold 900
/// tickets.
const MOST_TICKETS: u32 = 64;

/// The certificate chain of a server, and OpenSSL's verification result.
#[derive(Debug)]
struct Shown {
    /// The certificate that the server has sent first, which is the server's own certificate.
    own: Option<X509>,
    verified: X509VerifyResult,
    /// The certificate that OpenSSL verified last. If the chain was rejected, the reason is in this
    /// certificate.
    last_verified: Option<X509>,
}

/// The facts about one TLS connection. OpenSSL's callbacks collect these facts, because native-tls
/// does not provide the facts.
#[derive(Debug, Default)]
pub struct Facts {
    shown: OnceLock<Shown>,
    /// The number of session tickets that the server has sent.
    tickets: AtomicU32,
}

impl Facts {
    /// Notes the certificate chain in `verification`, and the result of the verification.
    pub fn note_chain(&self, verification: &X509StoreContextRef) {
        self.shown.get_or_init(|| Shown {
            own: sent_by_server(verification).and_then(|sent| sent.get(0)).map(ToOwned::to_owned),
            verified: verification.error(),
            last_verified: verification.current_cert().map(ToOwned::to_owned),
        });
    }

    /// Counts a session ticket. Returns false if the server has sent too many tickets.
    pub fn count_ticket(&self) -> bool {
        self.tickets.fetch_add(1, Ordering::Relaxed);
        !self.has_too_many_tickets()
    }

    /// True if the server has sent certificates, as in every full handshake.
    pub fn has_chain(&self) -> bool {
        self.shown.get().is_some()
    }

    /// Returns OpenSSL's verification result for the server's certificate chain.
    pub fn verified(&self) -> X509VerifyResult {
        self.shown.get().map_or(X509VerifyResult::OK, |shown| shown.verified)
    }

    /// Returns the server's own certificate, whether or not the launcher accepted the certificate.
    pub fn certificate(&self) -> Option<Certificate> {
        Certificate::from_der(&self.shown.get()?.own.as_ref()?.to_der().ok()?)
    }

    /// Returns the certificate that OpenSSL verified last. If OpenSSL rejected the chain, this
    /// certificate was the reason.
    pub fn at_fault(&self) -> Option<Certificate> {
        Certificate::from_der(&self.shown.get()?.last_verified.as_ref()?.to_der().ok()?)
    }

    /// True if reading has ended because the server sent too many session tickets.
    pub fn has_too_many_tickets(&self) -> bool {
        self.tickets.load(Ordering::Relaxed) > MOST_TICKETS
    }
}

/// A TLS connection of the crate tokio-native-tls, and the facts about this connection.
#[derive(Debug)]
pub struct TlsStream<S> {
    pub stream: tokio_native_tls::TlsStream<S>,
    pub facts: Arc<Facts>,
}

impl<S> TlsStream<S> {
    /// Returns the stream that carries the TLS records.
    pub fn get_ref(&self) -> &S {
        self.stream.get_ref().get_ref().get_ref()
    }

    pub fn get_mut(&mut self) -> &mut S {
        self.stream.get_mut().get_mut().get_mut()
    }

    /// True if the handshake resumed an earlier TLS session.
    pub fn resumed(&self) -> bool {
        !self.facts.has_chain()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// Returns the server's certificate. After a resumption, this is the certificate from the
    /// resumed session. Returns `None` if the certificate is unreadable.
    pub fn certificate(&self) -> Option<Certificate> {
        Certificate::from_der(&self.stream.get_ref().peer_certificate().ok()??.to_der().ok()?)
    }
}
