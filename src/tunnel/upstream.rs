//! Connecting to Redis: name look-up, TCP over all addresses, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_native_tls::TlsStream;

use super::Tunnel;
use super::diagnosis::{Silence, Unexplained, question_silence, speaks_plaintext};
use super::failure::{Failure, Step};
use super::headroom::Room;
use super::read_ahead::ReadAhead;
use super::socket::{keep_alive, send_at_once};
use super::stream::TlsUpstream;
use crate::figures::UpstreamState;
use crate::logging::debug;
use crate::pool::Permit;
use crate::pool::canary::{self, Verdict};
use crate::threads;
use crate::tls::{Connector, HandshakeError, Sessions, names_and_end_of};

/// How long one address has before the next one is tried beside it (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How long a server may take to answer a canary.
const CANARY: Duration = Duration::from_secs(1);

/// Makes a connection, until `deadline`, and finds out whether connections to this server may be
/// reused if that is its permit's task.
///
/// # Errors
/// What failed, and the permit.
pub async fn make(
    tunnel: &Tunnel,
    mut permit: Permit<TlsUpstream>,
    deadline: Instant,
) -> Result<TlsUpstream, (Unexplained, Permit<TlsUpstream>)> {
    loop {
        let mut step = Step::LookUp;
        let made = timeout_at(deadline, take_steps(tunnel, &mut step)).await;
        let made = made.unwrap_or_else(|_| Err(Failure::timed_out(step).into()));
        let (tls, address) = match made {
            Ok(made) => made,
            Err(unexplained) => return Err((unexplained, permit)),
        };
        tunnel.note_session(false);
        let is_canary = permit.is_canary();
        let mut stream = TlsUpstream::new(tls, permit, address);
        if is_canary {
            // Should the server not answer, there is to be time for another.
            let limit = CANARY.min(deadline.saturating_duration_since(Instant::now()) / 2);
            let verdict = timeout(limit, try_reset(&mut stream)).await.unwrap_or(Verdict::Unclear);
            debug!(at = "pool-tried", var = tunnel.variable(), verdict = ?verdict);
            stream.permit_mut().tried(verdict, Instant::now());
            if verdict != Verdict::Passed {
                // Who knows what it is now.
                permit = stream.into_permit();
                continue;
            }
        }
        stream.permit_mut().made(Instant::now());
        return Ok(stream);
    }
}

/// Whether this server's connections may be reused: see [`crate::pool::canary`].
async fn try_reset(stream: &mut TlsUpstream) -> Verdict {
    let ask = async {
        stream.write_all(canary::REQUESTS).await.ok()?;
        stream.flush().await.ok()?;
        let mut lines = [Vec::new(), Vec::new(), Vec::new()];
        for line in &mut lines {
            while !line.ends_with(b"\r\n") {
                if line.len() == canary::LONGEST_LINE {
                    return None;
                }
                line.push(stream.read_u8().await.ok()?);
            }
            line.truncate(line.len() - 2);
        }
        let [first, reset, second] = lines;
        let verdict = Verdict::of(&first, &reset, &second);
        (verdict != Verdict::Passed || stream.is_untouched().await).then_some(verdict)
    };
    ask.await.unwrap_or(Verdict::Unclear)
}

/// Looks up, connects and shakes hands; `step` says how far it has come.
async fn take_steps(
    tunnel: &Tunnel,
    step: &mut Step,
) -> Result<(TlsStream<ReadAhead>, SocketAddr), Unexplained> {
    let _room = Room::claim().map_err(Failure::NoRoom)?;
    tunnel.connector.prepare().await.map_err(Failure::Internal)?;
    let addresses = look_up(tunnel).await?;
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
    let stream = connect_tcp(addresses).await?;
    drop(connecting);
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
        threads::look_up(tunnel.route.upstream.host_name(), tunnel.route.upstream.port).await
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
