//! Connecting to Redis: name look-up, TCP over all addresses, TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_native_tls::TlsStream;

use super::Tunnel;
use super::diagnosis::{Silence, Unexplained, question_silence, speaks_plaintext};
use super::failure::{Failure, Step};
use super::first_handshake::SLOW_TCP;
use super::read_ahead::ReadAhead;
use super::socket::{keep_alive, send_at_once};
use crate::figures::UpstreamState;
use crate::threads;
use crate::tls::{Connector, HandshakeError, Sessions, names_and_end_of};

/// How long one address has before the next one is tried beside it (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Makes a connection to an address that the name had at `since` or later, until `deadline`.
///
/// # Errors
/// What failed.
pub async fn connect(
    tunnel: &Tunnel,
    since: Instant,
    deadline: Instant,
) -> Result<(TlsStream<ReadAhead>, SocketAddr), Unexplained> {
    let mut step = Step::LookUp;
    let connected = timeout_at(deadline, take_steps(tunnel, since, &mut step)).await;
    connected.unwrap_or_else(|_| Err(Failure::timed_out(step).into()))
}

/// Whether the server has cut the handshake without having sent a byte, as a Redis with too many
/// clients does.
pub fn is_cut(unexplained: &Unexplained) -> bool {
    matches!(unexplained, Unexplained::Failed(Failure::Outage(Step::Unanswered, _)))
}

/// Looks up, connects and shakes hands; `step` says how far it has come.
async fn take_steps(
    tunnel: &Tunnel,
    since: Instant,
    step: &mut Step,
) -> Result<(TlsStream<ReadAhead>, SocketAddr), Unexplained> {
    tunnel.connector.prepare().await.map_err(Failure::Internal)?;
    let addresses = look_up_since(tunnel, since).await?;
    let mut tls = connect_tls(tunnel, addresses.clone(), &tunnel.sessions, step).await;
    if let Err(Unexplained::OfSession(_)) = tls {
        // A server may take offence at a session, even one of its own from before a restart.
        tls = connect_tls(tunnel, addresses, &Arc::default(), step).await;
    }
    tls
}

/// TCP and TLS to one of `addresses`.
async fn connect_tls(
    tunnel: &Tunnel,
    addresses: Vec<SocketAddr>,
    sessions: &Arc<Sessions>,
    step: &mut Step,
) -> Result<(TlsStream<ReadAhead>, SocketAddr), Unexplained> {
    *step = Step::Tcp;
    let connecting = tunnel.figures.hold(UpstreamState::Connecting);
    let mut first = tunnel.first_handshake.turn(&tunnel.sessions).await;
    let stream = {
        let mut stream = pin!(connect_tcp(addresses));
        tokio::select! {
            biased;
            connected = &mut stream => connected?,
            () = sleep(SLOW_TCP), if first.is_some() => {
                // The others stop waiting for a server that is so far away.
                first = None;
                stream.await?
            }
        }
    };
    drop(connecting);
    *step = Step::Tls;
    let tls = handshake(tunnel, &tunnel.connector, stream, sessions).await?;
    if let Some(first) = first {
        first.succeeded();
    }
    Ok(tls)
}

/// The upstream's addresses. Anew each time: a fail-over moves the name.
pub async fn look_up(tunnel: &Tunnel) -> Result<Vec<SocketAddr>, Failure> {
    look_up_since(tunnel, Instant::now()).await
}

/// The upstream's addresses by a look-up that began at `since` or later.
pub async fn look_up_since(tunnel: &Tunnel, since: Instant) -> Result<Vec<SocketAddr>, Failure> {
    let ask = async {
        threads::look_up(tunnel.route.upstream.host_name(), tunnel.route.upstream.port).await
    };
    let addresses = tunnel.resolver.addresses(since, ask).await;
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
///
/// # Errors
/// What failed. It takes as long as the server takes: the caller sets the limit.
pub async fn handshake(
    tunnel: &Tunnel,
    connector: &Connector,
    stream: TcpStream,
    sessions: &Arc<Sessions>,
) -> Result<(TlsStream<ReadAhead>, SocketAddr), Unexplained> {
    let address = stream.peer_addr().map_err(|error| Failure::Outage(Step::Tcp, error))?;
    let host = tunnel.route.upstream.host_name();
    let started = Instant::now();
    let held = tunnel.figures.hold(UpstreamState::Connecting);
    let stream = ReadAhead::new(stream, held);
    let heard = stream.heard();
    let tls = tokio::select! {
        finished = connector.shake_hands(&host, stream, sessions) => finished,
        silence = question_silence(tunnel, address, &heard) => match silence {
            Silence::OfPlaintext => Err(HandshakeError::NoTls.into()),
            Silence::Unquestioned => {
                return in_turn(tunnel, connector, address, sessions).await;
            }
        },
    };
    let (tls, resumed) = tls.map_err(|error| Unexplained::of(address, error, &heard))?;
    note_handshake(tunnel, &tls, resumed, started);
    Ok((tls, address))
}

fn note_handshake(tunnel: &Tunnel, tls: &TlsStream<ReadAhead>, resumed: bool, started: Instant) {
    tunnel.figures.shook_hands(resumed, started.elapsed());
    // A server that resumes a session shows none.
    if !resumed && let Some((names, end)) = names_and_end_of(tls) {
        tunnel.figures.saw_certificate(names, end);
    }
}

/// Asks a server that was silent in the handshake whether it speaks plaintext, in the place of
/// that, and shakes hands again if not.
async fn in_turn(
    tunnel: &Tunnel,
    connector: &Connector,
    address: SocketAddr,
    sessions: &Arc<Sessions>,
) -> Result<(TlsStream<ReadAhead>, SocketAddr), Unexplained> {
    if speaks_plaintext(tunnel, address).await {
        return Err(Failure::Misconfigured(HandshakeError::NoTls).into());
    }
    let stream = connect_tcp(vec![address]).await?;
    let started = Instant::now();
    let held = tunnel.figures.hold(UpstreamState::Connecting);
    let stream = ReadAhead::new(stream, held);
    let heard = stream.heard();
    let host = tunnel.route.upstream.host_name();
    let tls = connector.shake_hands(&host, stream, sessions).await;
    let (tls, resumed) = tls.map_err(|error| Unexplained::of(address, error, &heard))?;
    note_handshake(tunnel, &tls, resumed, started);
    Ok((tls, address))
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
