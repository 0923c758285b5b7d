//! Finds out why a connection to Redis failed, by asking the server again.

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

/// If a server is silent for this long in the handshake, ask whether it speaks RESP without TLS. A
/// plaintext Redis takes a ClientHello for the beginning of a request, and waits for the rest.
const SILENCE: Duration = Duration::from_secs(1);
/// The time limit for the answer to that question.
const ANSWER: Duration = Duration::from_secs(1);
/// The time limit, beyond the connect timeout, for explaining why a certificate is rejected.
const EXPLANATION: Duration = Duration::from_secs(1);

/// Questions to a failing server, each on a connection of its own. Questions are rare, because they
/// add to the server's load.
#[derive(Debug, Default)]
pub struct Inquiries {
    /// The question why the server resets connections before it sends a byte.
    pub late_refusal: Inquiry<Option<LateRefusal>>,
    /// The question which address answers RESP without TLS.
    plaintext: Inquiry<Option<SocketAddr>>,
}

/// The reason why an attempt to connect failed, before the server is asked again.
#[derive(Debug)]
pub enum Unexplained {
    Failed(Failure),
    /// The cause may be the TLS session that was offered. A full handshake may succeed.
    OfSession(Failure),
    /// OpenSSL rejects the certificate at `address` with this verdict.
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
    /// The failure without an explanation.
    pub fn into_failure(self) -> Failure {
        match self {
            Unexplained::Failed(failure) | Unexplained::OfSession(failure) => failure,
            Unexplained::Certificate { flaw, verdict, .. } => {
                Failure::Misconfigured(HandshakeError::Certificate(flaw, verdict))
            }
        }
    }

    /// The failure in plain words, if the server shows its certificate within [`EXPLANATION`]. Call
    /// this outside the attempt's time limit: a rejected certificate must not become a timeout.
    pub async fn explain(self, tunnel: &Tunnel) -> Failure {
        match self {
            Unexplained::Certificate { address, flaw, verdict } => {
                let reason = explain(tunnel, address, flaw, verdict).await;
                Failure::Misconfigured(HandshakeError::Certificate(flaw, reason))
            }
            known => known.into_failure(),
        }
    }

    /// The failure of a handshake with the server at `address`.
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

/// OpenSSL's verdict on the certificate at `address`, in plain words. OpenSSL keeps a certificate
/// only if the handshake succeeds, so this makes another connection that accepts any certificate.
async fn explain(tunnel: &Tunnel, address: SocketAddr, flaw: Flaw, verdict: String) -> String {
    let host = tunnel.route.upstream.host_name();
    let certificate = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let tls = tunnel.unverified.connect(&host, stream, &Arc::default()).await.ok()?;
        certificate_of(&tls)
    };
    // If the server does not show its certificate in time, use OpenSSL's verdict.
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

/// The result of questioning a server that is silent during the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// The server answers RESP in plaintext.
    Plaintext,
    /// `--max-connections` allows no second connection on which to ask.
    Unknown,
}

/// Resolves after the server at `address` was silent for [`SILENCE`], unless the server turns out
/// not to speak plaintext: then the handshake may take its time, and this never resolves.
pub async fn question_silence(tunnel: &Tunnel, address: SocketAddr, heard: &Heard) -> Silence {
    sleep(SILENCE).await;
    if heard.anything() {
        return pending().await;
    }
    let is_plaintext = match tunnel.inquiries.plaintext.known() {
        Some(answer) => answer == Some(address),
        None => {
            let Some(_slot) = tunnel.limit.try_slot() else { return Silence::Unknown };
            speaks_plaintext(tunnel, address).await
            // The slot is free again from here on: the handshake may take long.
        }
    };
    if is_plaintext { Silence::Plaintext } else { pending().await }
}

/// True if the server at `address` answers RESP in plaintext within [`ANSWER`].
pub async fn speaks_plaintext(tunnel: &Tunnel, address: SocketAddr) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        // +PONG, or -NOAUTH, -DENIED, -LOADING …
        matches!(stream.read_u8().await, Ok(b'+' | b'-')).then_some(address)
    };
    tunnel.inquiries.plaintext.answer(ANSWER, ask).await == Some(address)
}
