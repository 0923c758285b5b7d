//! Connecting to Redis: name look-up, TCP over all addresses, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_native_tls::TlsStream;

use super::Tunnel;
use super::diagnosis::{Unexplained, prove_plaintext};
use super::failure::{Failure, Step};
use super::headroom::Room;
use super::read_ahead::ReadAhead;
use super::socket::{keep_alive, send_at_once};
use super::spares;
use super::stream::TlsUpstream;
use crate::tls::{Connector, HandshakeError, Sessions};

/// How long one address has before the next one is tried beside it (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// With `--connect-retry`: the longest pause after the first failure; it doubles with each, up to
/// the cap.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Where a connection may come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    SpareOrNew,
    New,
}

/// The pauses between attempts to connect, with full jitter, so that a fleet does not retry in step
/// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after another failure: anything up to the longest that is due.
    fn next(&mut self, random: &mut fastrand::Rng) -> Duration {
        let longest = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        longest.min(LONGEST_PAUSE).mul_f64(random.f64())
    }
}

/// A spare or a new connection, within the connect timeout, with as many attempts as
/// `--connect-retry` allows.
///
/// # Errors
/// What failed last.
pub async fn connect(tunnel: &Tunnel) -> Result<TlsUpstream, Failure> {
    connect_by(tunnel, Instant::now() + tunnel.settings.connect_timeout).await
}

/// Like [`connect`], until `deadline`; after that a failure may take a second to explain.
///
/// # Errors
/// What failed last.
pub async fn connect_by(tunnel: &Tunnel, deadline: Instant) -> Result<TlsUpstream, Failure> {
    let (mut backoff, mut random) = (Backoff::default(), fastrand::Rng::new());
    loop {
        let failure = match attempt(tunnel, Source::SpareOrNew, deadline).await {
            Ok(stream) => return Ok(stream),
            Err(unexplained) => unexplained.explain(tunnel).await,
        };
        let again = tunnel.settings.connect_retry && failure.is_outage();
        let pause = backoff.next(&mut random);
        if !again || Instant::now() + pause >= deadline {
            return Err(failure);
        }
        sleep(pause).await;
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
) -> Result<TlsUpstream, Unexplained> {
    let mut step = Step::LookUp;
    let done = timeout_at(deadline, take_steps(tunnel, source, &mut step)).await;
    done.unwrap_or_else(|_| Err(Failure::timed_out(step).into()))
}

/// Looks up, connects and shakes hands; `step` says how far it has come.
async fn take_steps(
    tunnel: &Tunnel,
    source: Source,
    step: &mut Step,
) -> Result<TlsUpstream, Unexplained> {
    let _room = Room::claim().map_err(Failure::NoRoom)?;
    tunnel.connector.prepare().await.map_err(Failure::Internal)?;
    let started = Instant::now();
    if source == Source::SpareOrNew
        && let Some(spare) = spares::take(tunnel).await?
    {
        return Ok(spare);
    }
    let addresses = look_up_since(tunnel, started).await?;
    let mut tls = connect_tls(tunnel, addresses.clone(), &tunnel.sessions, step).await;
    if let Err(Unexplained::OfSession(_)) = tls {
        // A server may take offence at a session, even one of its own from before a restart.
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
) -> Result<TlsStream<ReadAhead>, Unexplained> {
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
        let host = tunnel.route.upstream.host_name();
        let addresses = lookup_host((host.as_str(), tunnel.route.upstream.port)).await;
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
///
/// # Errors
/// What failed. It takes as long as the server takes: the caller sets the limit.
pub async fn handshake(
    tunnel: &Tunnel,
    connector: &Connector,
    stream: TcpStream,
    sessions: &Arc<Sessions>,
) -> Result<TlsStream<ReadAhead>, Unexplained> {
    let address = stream.peer_addr().map_err(|error| Failure::Outage(Step::Tcp, error))?;
    let host = tunnel.route.upstream.host_name();
    let stream = ReadAhead::new(stream, tunnel.count_connection());
    let heard = stream.heard();
    let tls = tokio::select! {
        finished = connector.connect(&host, stream, sessions) => finished,
        () = prove_plaintext(tunnel, address) => Err(HandshakeError::NoTls.into()),
    };
    tls.map_err(|error| Unexplained::of(address, error, &heard))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The longest and the mean of many first, second … pauses.
    fn pauses(runs: u64, failures: usize) -> Vec<(Duration, Duration)> {
        let mut pauses = vec![(Duration::ZERO, Duration::ZERO); failures];
        for seed in 0..runs {
            let (mut backoff, mut random) = (Backoff::default(), fastrand::Rng::with_seed(seed));
            for (longest, sum) in &mut pauses {
                let pause = backoff.next(&mut random);
                *longest = pause.max(*longest);
                *sum += pause;
            }
        }
        pauses.into_iter().map(|(longest, sum)| (longest, sum / runs as u32)).collect()
    }

    #[test]
    fn pauses_between_attempts_are_anything_up_to_a_bound_that_doubles_until_the_cap() {
        let bounds = [50, 100, 200, 400, 800, 1000, 1000, 1000];
        for ((longest, mean), bound) in pauses(10_000, bounds.len()).into_iter().zip(bounds) {
            let bound = Duration::from_millis(bound);
            assert!(longest <= bound && longest > bound.mul_f64(0.99), "{longest:?} of {bound:?}");
            assert!(mean > bound.mul_f64(0.48) && mean < bound.mul_f64(0.52), "{mean:?}");
        }
    }

    #[test]
    fn however_often_it_fails_a_pause_is_no_longer_than_the_cap() {
        let mut random = fastrand::Rng::with_seed(0);
        for failures in [31, 32, 64, u32::MAX] {
            assert!(Backoff { failures }.next(&mut random) <= LONGEST_PAUSE);
        }
    }
}
