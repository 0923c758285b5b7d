//! Connecting to Redis: name look-up, TCP over all addresses, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_native_tls::TlsStream;

use super::Tunnel;
use super::failure::{Failure, Step};
use super::read_ahead::ReadAhead;
use super::spares;
use super::stream::{TlsUpstream, keep_alive, send_at_once};
use crate::tls::{Connector, Flaw, HandshakeError, Sessions, certificate_of};

/// How long one address has before the next one is tried beside it (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How long a server may stay silent in the handshake before it is asked whether it speaks RESP without
/// TLS. A plaintext Redis does not answer a handshake: it waits for the rest of what it takes for a
/// request.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a server may take to refuse a client certificate after the handshake.
const LATE: Duration = Duration::from_secs(1);
/// With `--connect-retry`: the pause after the first failure; it doubles with each, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where a connection may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    SpareOrNew,
    New,
}

/// A spare or a new connection, within the connect timeout, with as many attempts as
/// `--connect-retry` allows.
///
/// # Errors
/// What failed last.
pub async fn connect(tunnel: &Tunnel) -> Result<TlsUpstream, Failure> {
    let deadline = Instant::now() + tunnel.settings.connect_timeout;
    let mut pause = FIRST_PAUSE;
    loop {
        let failure = match attempt(tunnel, Source::SpareOrNew, deadline).await {
            Ok(stream) => return Ok(stream),
            Err(failure) => failure,
        };
        let again = tunnel.settings.connect_retry && failure.is_outage();
        if !again || Instant::now() + pause >= deadline {
            return Err(failure);
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Makes one attempt to connect, which ends at the deadline.
///
/// # Errors
/// What failed.
pub async fn attempt(
    tunnel: &Tunnel,
    source: Source,
    deadline: Instant,
) -> Result<TlsUpstream, Failure> {
    let mut step = Step::LookUp;
    let done = timeout_at(deadline, take_steps(tunnel, source, &mut step)).await;
    done.unwrap_or_else(|_| Err(Failure::timed_out(step)))
}

/// Looks up, connects and shakes hands; `step` says how far it has come.
async fn take_steps(
    tunnel: &Tunnel,
    source: Source,
    step: &mut Step,
) -> Result<TlsUpstream, Failure> {
    tunnel.connector.prepare().await.map_err(Failure::Internal)?;
    let started = Instant::now();
    if source == Source::SpareOrNew
        && let Some(spare) = spares::take(tunnel).await?
    {
        return Ok(spare);
    }
    let addresses = look_up_since(tunnel, started).await?;
    let resuming = tunnel.sessions.any();
    let mut tls = connect_tls(tunnel, addresses.clone(), &tunnel.sessions, step).await;
    if matches!(step, Step::Tls) && tls.is_err() && resuming {
        // A server may take offence at a session, even one of its own from before a restart.
        tunnel.sessions.forget();
        tls = connect_tls(tunnel, addresses, &Arc::default(), step).await;
    }
    tls.map(TlsUpstream::new)
}

/// TCP and TLS to one of `addresses`.
async fn connect_tls(
    tunnel: &Tunnel,
    addresses: Vec<SocketAddr>,
    sessions: &Arc<Sessions>,
    step: &mut Step,
) -> Result<TlsStream<ReadAhead>, Failure> {
    *step = Step::Tcp;
    let stream = connect_tcp(addresses).await?;
    *step = Step::Tls;
    handshake(tunnel, &tunnel.connector, stream, sessions).await
}

/// The upstream's addresses. Anew each time: a fail-over moves the name.
pub async fn look_up(tunnel: &Tunnel) -> Result<Vec<SocketAddr>, Failure> {
    look_up_since(tunnel, Instant::now()).await
}

/// The upstream's addresses by a look-up that began at `since` or later.
pub async fn look_up_since(tunnel: &Tunnel, since: Instant) -> Result<Vec<SocketAddr>, Failure> {
    let ask = async {
        let host = tunnel.plan.upstream.host_name();
        let addresses = lookup_host((host.as_str(), tunnel.plan.upstream.port)).await;
        addresses.map(Iterator::collect)
    };
    let addresses = tunnel.names.addresses(since, ask).await;
    addresses.map_err(|error| Failure::Outage(Step::LookUp, error))
}

/// A TCP connection to the first of `addresses` that answers.
pub async fn connect_tcp(addresses: Vec<SocketAddr>) -> Result<TcpStream, Failure> {
    let failed = |error| Failure::Outage(Step::Tcp, error);
    let stream = connect_any(addresses).await.map_err(failed)?;
    send_at_once(&stream).and_then(|()| keep_alive(&stream)).map_err(failed)?;
    Ok(stream)
}

/// TLS over a TCP connection to the tunnel's upstream, by the trust of `connector`.
pub async fn handshake(
    tunnel: &Tunnel,
    connector: &Connector,
    stream: TcpStream,
    sessions: &Arc<Sessions>,
) -> Result<TlsStream<ReadAhead>, Failure> {
    let address = stream.peer_addr().map_err(|error| Failure::Outage(Step::Tcp, error))?;
    let host = tunnel.plan.upstream.host_name();
    let stream = ReadAhead::new(stream, tunnel.count_connection());
    let heard = stream.heard();
    let tls = tokio::select! {
        finished = connector.connect(&host, stream, sessions) => finished,
        () = prove_plaintext(address) => Err(HandshakeError::NoTls),
    };
    Err(match tls {
        Ok(tls) => return Ok(tls),
        Err(HandshakeError::Broken(error)) => Failure::in_handshake(error, heard.anything()),
        Err(HandshakeError::Internal(error)) => Failure::Internal(error),
        Err(HandshakeError::Certificate(flaw, verdict)) => {
            let reason = explain(tunnel, &host, address, flaw, verdict).await;
            Failure::Misconfigured(HandshakeError::Certificate(flaw, reason))
        }
        Err(misconfigured) => Failure::Misconfigured(misconfigured),
    })
}

/// OpenSSL's verdict on the certificate at `address` in plain words: native-tls shows a certificate only
/// when a handshake succeeds, so another one is made that takes any.
async fn explain(
    tunnel: &Tunnel,
    host: &str,
    address: SocketAddr,
    flaw: Flaw,
    verdict: String,
) -> String {
    let look = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let tls = tunnel.look.connect(host, stream, &Arc::default()).await.ok()?;
        certificate_of(&tls).ok()
    };
    match look.await {
        Some(certificate) => {
            let name = tunnel.connector.server_name(host);
            flaw.in_plain_words(&verdict, &certificate, name)
        }
        None => verdict,
    }
}

/// Whether a server that broke a connection with `error` before it said a word refuses us for our
/// certificate, as TLS 1.3 has it only after the handshake. A reset may have overtaken the alert that
/// says so: then it is asked again, on a connection of its own.
pub async fn late_refusal(tunnel: &Tunnel, error: &io::Error) -> Option<HandshakeError> {
    if error.kind() != io::ErrorKind::ConnectionReset {
        return HandshakeError::late(error);
    }
    let deadline = Instant::now() + tunnel.settings.connect_timeout.min(LATE);
    let ask = async {
        let stream = connect_tcp(look_up(tunnel).await.ok()?).await.ok()?;
        let mut tls = handshake(tunnel, &tunnel.connector, stream, &Arc::default()).await.ok()?;
        HandshakeError::late(&tls.read_u8().await.err()?)
    };
    timeout_at(deadline, ask).await.ok().flatten()
}

/// Resolves, some time after it was asked, if the server at `address` answers RESP in plaintext; never
/// otherwise.
async fn prove_plaintext(address: SocketAddr) {
    sleep(SILENCE).await;
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"PING\r\n").await?;
        stream.read_u8().await
    };
    // +PONG, or -NOAUTH, -DENIED, -LOADING …
    if !matches!(ask.await, Ok(b'+' | b'-')) {
        std::future::pending().await
    }
}

/// The first of `addresses` that answers, each given a short start before the next (RFC 8305).
async fn connect_any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    if let [only] = addresses[..] {
        return TcpStream::connect(only).await;
    }
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        match waiting.next() {
            Some(address) => {
                attempts.spawn(TcpStream::connect(address));
            }
            None if attempts.is_empty() => return Err(last_error),
            None => {}
        }
        tokio::select! {
            Some(finished) = attempts.join_next() => match finished {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last_error = error,
                Err(error) => last_error = error.into(),
            },
            () = sleep(ATTEMPT_DELAY), if waiting.len() > 0 => {}
        }
    }
}
