//! Connects to Redis: looks the host name up, connects to one of its addresses by TCP, and performs
//! the TLS handshake.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use super::Tunnel;
use super::diagnosis::{question_silence, speaks_plaintext};
use super::failure::{Failure, Step};
use super::first_handshake::First;
use super::read_ahead::{Heard, ReadAhead};
use super::socket::{REDIS_PROBE_IDLE, keep_alive};
use crate::figures::UpstreamState;
use crate::threads;
use crate::tls::{Connector, HandshakeError, Misconfiguration, Sessions, TlsStream};

/// If an address has not answered after this time, the launcher also tries the next address
/// (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// A TLS connection to Redis, and the server's address.
pub type Connected = (TlsStream<ReadAhead>, SocketAddr);

/// Looks the host name up now, and connects to one of its addresses before `deadline`.
///
/// # Errors
/// Returns the reason why connecting failed.
pub async fn connect(tunnel: &Tunnel, deadline: Instant) -> Result<Connected, Failure> {
    let mut step = Step::LookUp;
    let connected = timeout_at(deadline, take_steps(tunnel, &mut step)).await;
    connected.unwrap_or_else(|_| Err(Failure::timed_out(step)))
}

/// Performs the name lookup, the TCP connect and the TLS handshake. Sets `step` to the step that is
/// running.
async fn take_steps(tunnel: &Tunnel, step: &mut Step) -> Result<Connected, Failure> {
    tunnel.connector.prepare().await.map_err(Failure::Internal)?;
    let addresses = look_up(tunnel).await?;
    *step = Step::Tcp;
    let connecting = tunnel.figures.hold(UpstreamState::Connecting);
    let connect_timeout = tunnel.settings.connect_timeout;
    let mut first = tunnel.first_handshake.turn(connect_timeout).await;
    let stream = First::while_near(&mut first, connect_tcp(addresses)).await?;
    drop(connecting);
    *step = Step::Tls;
    let tls = handshake(tunnel, &tunnel.connector, stream, &tunnel.sessions).await?;
    if let Some(first) = first {
        first.succeeded();
    }
    Ok(tls)
}

/// Looks up the upstream's addresses. The launcher does not cache the addresses, because a
/// fail-over changes the addresses.
pub async fn look_up(tunnel: &Tunnel) -> Result<Vec<SocketAddr>, Failure> {
    let upstream = &tunnel.route.upstream;
    let addresses =
        threads::look_up(upstream.host_name(), upstream.port, &tunnel.free_lookups).await;
    addresses.map_err(|error| Failure::Outage(Step::LookUp, error))
}

/// Connects by TCP to the first of `addresses` that answers.
pub async fn connect_tcp(addresses: Vec<SocketAddr>) -> Result<TcpStream, Failure> {
    let failed = |error| Failure::Outage(Step::Tcp, error);
    let stream = connect_any(addresses).await.map_err(failed)?;
    // Switch off Nagle's algorithm, so that a small request does not wait until earlier requests
    // are acknowledged.
    stream.set_nodelay(true).map_err(failed)?;
    keep_alive(&stream, REDIS_PROBE_IDLE).map_err(failed)?;
    Ok(stream)
}

/// Performs the TLS handshake over a TCP connection to the tunnel's upstream. The caller must set a
/// time limit.
///
/// # Errors
/// Returns the reason why the handshake failed.
pub async fn handshake(
    tunnel: &Tunnel,
    connector: &Connector,
    stream: TcpStream,
    sessions: &Arc<Sessions>,
) -> Result<Connected, Failure> {
    let address = stream.peer_addr().map_err(|error| Failure::Outage(Step::Tcp, error))?;
    let (heard, offers_session) = (Heard::default(), sessions.is_usable());
    let is_silent = tokio::select! {
        tls = shake_hands(tunnel, connector, stream, sessions, &heard) => match tls {
            // A server may reject the offered session, for example after a restart of the server.
            Err(error) if offers_session && error.may_be_due_to_session() => false,
            Err(error) => return Err(Failure::in_handshake(error, &heard)),
            Ok(tls) => return Ok((tls, address)),
        },
        () = question_silence(tunnel, address, &heard) => true,
    };
    // The connection of the first handshake is closed now, so the test for plaintext may use that
    // connection's slot of `--max-connections`.
    if is_silent && speaks_plaintext(tunnel, address).await {
        return Err(Failure::Misconfigured(Misconfiguration::NoTls));
    }
    // Repeat the handshake, without the session that the first handshake offered.
    let stream = connect_tcp(vec![address]).await?;
    let tls = shake_hands(tunnel, connector, stream, sessions, &heard).await;
    Ok((tls.map_err(|error| Failure::in_handshake(error, &heard))?, address))
}

/// Performs one TLS handshake, and counts the handshake if it succeeds.
async fn shake_hands(
    tunnel: &Tunnel,
    connector: &Connector,
    stream: TcpStream,
    sessions: &Arc<Sessions>,
    heard: &Heard,
) -> Result<TlsStream<ReadAhead>, HandshakeError> {
    let held = tunnel.figures.hold(UpstreamState::Connecting);
    let stream = ReadAhead::new(stream, held, heard.clone());
    let (host, started) = (tunnel.route.upstream.host_name(), Instant::now());
    let tls = connector.connect(&host, stream, sessions).await;
    let shown = match &tls {
        // A server that resumes a session sends no certificate.
        Ok(tls) if !tls.resumed() => tls.certificate(),
        Err(HandshakeError::Misconfigured(Misconfiguration::Certificate(rejected))) => {
            rejected.certificate.clone()
        }
        _ => None,
    };
    if let Some(certificate) = shown {
        tunnel.figures.saw_certificate(certificate.names_in_short(), certificate.expires_at);
    }
    let mut tls = tls?;
    tls.get_mut().permit_silence();
    tunnel.figures.shook_hands(tls.resumed(), started.elapsed());
    Ok(tls)
}

/// Connects to the first of `addresses` that answers. Each address gets a short head start over the
/// next address (RFC 8305).
async fn connect_any(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut attempts = JoinSet::new();
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the host name has no address");
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

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn tcp_to_redis_sends_at_once_and_has_keepalive() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let stream = connect_tcp(vec![listener.local_addr().unwrap()]).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
    }
}
