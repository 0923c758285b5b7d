//! A TLS connection.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use openssl::x509::X509;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::facts::Facts;

/// The stream of tokio-native-tls, with what OpenSSL reports about it.
pub struct TlsStream<S> {
    tls: tokio_native_tls::TlsStream<S>,
    facts: Arc<Facts>,
}

impl<S> fmt::Debug for TlsStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsStream")
    }
}

impl<S> TlsStream<S> {
    pub fn new(tls: tokio_native_tls::TlsStream<S>, facts: Arc<Facts>) -> TlsStream<S> {
        TlsStream { tls, facts }
    }

    /// The stream below TLS.
    pub fn get_ref(&self) -> &S {
        self.tls.get_ref().get_ref().get_ref()
    }

    pub fn get_mut(&mut self) -> &mut S {
        self.tls.get_mut().get_mut().get_mut()
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
        self.tls.get_ref().peer_certificate().ok()??.to_der().ok()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    /// Sends close_notify. The stream below stays open.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
