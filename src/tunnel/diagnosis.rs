//! Why a connection to Redis failed, as far as asking the server again can tell.

use std::future::pending;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::Tunnel;
use super::failure::{Failure, Step};
use super::inquiry::Inquiry;
use super::read_ahead::Heard;
use crate::tls::{ConnectError, Flaw, HandshakeError, LateRefusal, certificate_of};

/// How long a server may stay silent in the handshake before it is asked whether it speaks RESP
/// without TLS. A plaintext Redis does not answer a handshake: it waits for the rest of what it
/// takes for a request.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a server may take to answer that.
const ANSWER: Duration = Duration::from_secs(1);
/// How long the explanation of a certificate that fails may take, beyond the connect timeout.
const EXPLANATION: Duration = Duration::from_secs(1);

/// What a server that fails is asked in connections of its own: seldom, for they add to its load.
#[derive(Debug, Default)]
pub struct Inquiries {
    /// Why it resets connections before it says a word.
    pub late_refusal: Inquiry<Option<LateRefusal>>,
    /// Which address answers RESP without TLS.
    plaintext: Inquiry<Option<SocketAddr>>,
}

/// Why an attempt failed, as far as it is known without asking the server again.
#[derive(Debug)]
pub enum Unexplained {
    Failed(Failure),
    /// The session that was offered may be the cause: without one it may work.
    OfSession(Failure),
    /// The certificate at `address` does not hold, by OpenSSL's bare verdict.
    Certificate {
        address: SocketAddr,
        flaw: Flaw,
        verdict: String,
    },
}

impl From<Failure> for Unexplained {
    fn from(failure: Failure) -> Unexplained {
        Unexplained::Failed(failure)
    }
}

impl Unexplained {
    /// As it is.
    pub fn bare(self) -> Failure {
        match self {
            Unexplained::Failed(failure) | Unexplained::OfSession(failure) => failure,
            Unexplained::Certificate { flaw, verdict, .. } => {
                Failure::Misconfigured(HandshakeError::Certificate(flaw, verdict))
            }
        }
    }

    /// In plain words, if the server helps within [`EXPLANATION`]. To be called outside the time
    /// limit of the attempt: that the certificate fails is known, and must not become an outage.
    pub async fn explain(self, tunnel: &Tunnel) -> Failure {
        match self {
            Unexplained::Certificate { address, flaw, verdict } => {
                let reason = explain(tunnel, address, flaw, verdict).await;
                Failure::Misconfigured(HandshakeError::Certificate(flaw, reason))
            }
            known => known.bare(),
        }
    }

    pub fn of(address: SocketAddr, error: ConnectError, heard: &Heard) -> Unexplained {
        let failure = |error| match error {
            HandshakeError::Broken(error) => Failure::in_handshake(error, heard.anything()),
            HandshakeError::Damaged(error) => Failure::Outage(Step::Tls, error),
            HandshakeError::Internal(error) => Failure::Internal(error),
            misconfigured => Failure::Misconfigured(misconfigured),
        };
        match error {
            ConnectError::Failed(HandshakeError::Certificate(flaw, verdict)) => {
                Unexplained::Certificate { address, flaw, verdict }
            }
            ConnectError::Failed(error) => Unexplained::Failed(failure(error)),
            ConnectError::OfSession(error) => Unexplained::OfSession(failure(error)),
        }
    }
}

/// OpenSSL's verdict on the certificate at `address` in plain words. OpenSSL keeps a certificate
/// only when its handshake succeeds, so this makes another connection, which accepts any.
async fn explain(tunnel: &Tunnel, address: SocketAddr, flaw: Flaw, verdict: String) -> String {
    let host = tunnel.route.upstream.host_name();
    let certificate = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let tls = tunnel.unverified.connect(&host, stream, &Arc::default()).await.ok()?;
        certificate_of(&tls)
    };
    // A server that does not show it again, in time or at all, takes nothing from the verdict.
    match timeout(EXPLANATION, certificate).await.ok().flatten() {
        Some(certificate) => {
            let names = certificate.names_in_short();
            tunnel.figures.saw_certificate(names, certificate.expires_at);
            let name = tunnel.connector.server_name(&host);
            flaw.in_plain_words(&verdict, &certificate, name)
        }
        None => verdict,
    }
}

/// What is known of a server that stays silent in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// It answers RESP in plaintext.
    OfPlaintext,
    /// It cannot be asked beside the handshake: there is room for one connection only.
    Unquestioned,
}

/// Resolves when something is known of a server at `address` that stays silent for some time;
/// never otherwise.
pub async fn question_silence(tunnel: &Tunnel, address: SocketAddr, heard: &Heard) -> Silence {
    sleep(SILENCE).await;
    if heard.anything() {
        return pending().await;
    }
    let is_plaintext = match tunnel.inquiries.plaintext.known() {
        Some(answer) => answer == Some(address),
        None => {
            let Some(_slot) = tunnel.limit.try_slot() else { return Silence::Unquestioned };
            speaks_plaintext(tunnel, address).await
            // The slot is free again here: the handshake may take long.
        }
    };
    if is_plaintext { Silence::OfPlaintext } else { pending().await }
}

/// Whether the server at `address` answers RESP in plaintext, as far as it says so in time.
pub async fn speaks_plaintext(tunnel: &Tunnel, address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        // +PONG, or -NOAUTH, -DENIED, -LOADING …
        matches!(stream.read_u8().await, Ok(b'+' | b'-')).then_some(address)
    };
    tunnel.inquiries.plaintext.answer(ANSWER, ask).await == Some(address)
}
