//! A TLS connection.

use std::fmt;
use std::sync::Arc;

use openssl::x509::X509;
use tokio::io::{AsyncRead, AsyncWrite};

use super::facts::Facts;

/// The stream of tokio-native-tls, with what OpenSSL reports about it.
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

    /// Whether the server resumed a session.
    pub fn resumed(&self) -> bool {
        self.facts.resumed()
    }

    /// Whether reading ended since the server sent too many session tickets.
    pub fn has_too_many_tickets(&self) -> bool {
        self.facts.has_too_many_tickets()
    }

    /// The last certificate of the server's chain.
    pub(super) fn chain_end(&self) -> Option<&X509> {
        self.facts.chain_end()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream<S> {
    /// The server's certificate in DER.
    pub(super) fn peer_certificate(&self) -> Option<Vec<u8>> {
        self.stream.get_ref().peer_certificate().ok()??.to_der().ok()
    }
}
