//! Connecting to Redis: name look-up, TCP over all addresses, TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_native_tls::TlsStream;

use super::Tunnel;
use super::failure::{Failure, Step};
use super::inquiry::Inquiry;
use super::read_ahead::{Heard, ReadAhead};
use super::spares;
use super::stream::{TlsUpstream, keep_alive, send_at_once};
use crate::tls::{
    ConnectError, Connector, Flaw, HandshakeError, LateRefusal, Sessions, certificate_of,
};

/// How long one address has before the next one is tried beside it (RFC 8305 section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// How long a server may stay silent in the handshake before it is asked whether it speaks RESP
/// without TLS. A plaintext Redis does not answer a handshake: it waits for the rest of what it
/// takes for a request.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a server may take to answer that.
const ANSWER: Duration = Duration::from_secs(1);
/// How long a server may take to refuse a client certificate after the handshake.
const LATE: Duration = Duration::from_secs(1);
/// How long the explanation of a certificate that fails may take, beyond the connect timeout.
const EXPLANATION: Duration = Duration::from_secs(1);
/// With `--connect-retry`: the longest pause after the first failure; it doubles with each, up to
/// the cap.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a server that fails is asked in connections of its own: seldom, for they add to its load.
#[derive(Debug, Default)]
pub struct Inquiries {
    /// Why it resets connections before it says a word.
    late_refusal: Inquiry<Option<LateRefusal>>,
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

    fn of(address: SocketAddr, error: ConnectError, heard: &Heard) -> Unexplained {
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

/// Like [`connect`], until `deadline`; after that a failure may take [`EXPLANATION`] to explain.
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

/// OpenSSL's verdict on the certificate at `address` in plain words: native-tls shows a certificate
/// only when a handshake succeeds, so another one is made that takes any.
async fn explain(tunnel: &Tunnel, address: SocketAddr, flaw: Flaw, verdict: String) -> String {
    let host = tunnel.route.upstream.host_name();
    let look = async {
        let stream = TcpStream::connect(address).await.ok()?;
        let tls = tunnel.unverified.connect(&host, stream, &Arc::default()).await.ok()?;
        certificate_of(&tls).ok()
    };
    // A server that does not show it again, in time or at all, takes nothing from the verdict.
    match timeout(EXPLANATION, look).await.ok().flatten() {
        Some(certificate) => {
            let name = tunnel.connector.server_name(&host);
            flaw.in_plain_words(&verdict, &certificate, name)
        }
        None => verdict,
    }
}

/// Whether a server that broke a connection with `error` before it said a word refuses us for our
/// certificate, as TLS 1.3 has it only after the handshake. A reset may have overtaken the alert
/// that says so: then it is asked again, on a connection of its own, once for all that meet the
/// same.
pub async fn late_refusal(tunnel: &Tunnel, error: &io::Error) -> Option<HandshakeError> {
    if error.kind() != io::ErrorKind::ConnectionReset {
        return LateRefusal::of(error).map(HandshakeError::from);
    }
    let ask = async {
        let stream = connect_tcp(look_up(tunnel).await.ok()?).await.ok()?;
        let mut tls = handshake(tunnel, &tunnel.connector, stream, &Arc::default()).await.ok()?;
        LateRefusal::of(&tls.read_u8().await.err()?)
    };
    let limit = tunnel.settings.connect_timeout.min(LATE);
    let refusal = tunnel.inquiries.late_refusal.answer(limit, ask).await;
    refusal.map(HandshakeError::from)
}

/// Resolves, some time after it was asked, if the server at `address` answers RESP in plaintext;
/// never otherwise.
async fn prove_plaintext(tunnel: &Tunnel, address: SocketAddr) {
    sleep(SILENCE).await;
    let ask = async {
        let mut stream = TcpStream::connect(address).await.ok()?;
        stream.write_all(b"PING\r\n").await.ok()?;
        // +PONG, or -NOAUTH, -DENIED, -LOADING …
        matches!(stream.read_u8().await, Ok(b'+' | b'-')).then_some(address)
    };
    if tunnel.inquiries.plaintext.answer(ANSWER, ask).await != Some(address) {
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
