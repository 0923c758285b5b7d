//! Where the app's connections to Redis come from: another user, made beforehand, or new; and where
//! they go when the app has gone.

use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::failure::{Failure, Step};
use super::stream::TlsUpstream;
use super::warnings::{UpstreamEvent, Warning};
use super::{Tunnel, hints, upstream};
use crate::figures::{PoolResult, UpstreamState};
use crate::logging::debug;
use crate::pool::canary::{RESET, RESET_DONE};
use crate::pool::stock::{Added, Asked, HandOver};
use crate::pool::{Granted, Kept, Origin, Permit, Place};

/// With `--connect-retry`: the longest pause after the first failure; it doubles with each, up to
/// the cap.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How old a look-up of the name may be when a connection is handed over.
const LOOK_UP_AGE: Duration = Duration::from_secs(1);
/// How long a server may take to reset a connection.
const RESET_TIME: Duration = Duration::from_secs(1);
/// How long an app waits for a free connection before that is worth a warning: sooner than clients
/// give up by default.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// A connection to Redis for one of the app's.
#[derive(Debug)]
pub struct Supplied {
    pub stream: TlsUpstream,
    pub hand_over: HandOver,
    /// It has just been made, for this user.
    pub is_new: bool,
}

impl Supplied {
    fn new(stream: TlsUpstream) -> Supplied {
        Supplied { stream, hand_over: HandOver::AsItIs, is_new: true }
    }
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

/// A connection within the connect timeout, with as many attempts as `--connect-retry` allows.
///
/// # Errors
/// What failed last. A failure may take a second more to explain.
pub async fn connect(tunnel: &Tunnel, place: Place) -> Result<Supplied, Failure> {
    connect_by(tunnel, place, Instant::now() + tunnel.settings.connect_timeout).await
}

/// Like [`connect`], until `deadline`.
///
/// # Errors
/// What failed last.
pub async fn connect_by(
    tunnel: &Tunnel,
    place: Place,
    deadline: Instant,
) -> Result<Supplied, Failure> {
    let (mut backoff, mut random) = (Backoff::default(), fastrand::Rng::new());
    loop {
        let failure = match attempt(tunnel, place, deadline).await {
            Ok(supplied) => return Ok(supplied),
            Err(failure) => failure,
        };
        let again = tunnel.settings.connect_retry && failure.is_outage();
        let pause = backoff.next(&mut random);
        if !again || Instant::now() + pause >= deadline {
            return Err(failure);
        }
        sleep(pause).await;
    }
}

async fn attempt(tunnel: &Tunnel, place: Place, deadline: Instant) -> Result<Supplied, Failure> {
    tunnel.note_session(false);
    let asked = tunnel.stock.ask(place, Instant::now());
    await_fit(tunnel, asked, deadline).await
}

/// A new connection in place of one that was dead as it was handed over.
///
/// # Errors
/// What failed.
pub async fn replace(tunnel: &Tunnel, dead: TlsUpstream) -> Result<Supplied, Failure> {
    note_discarded(tunnel, Unfit::Dead);
    let deadline = Instant::now() + tunnel.settings.connect_timeout;
    make(tunnel, dead.into_permit(), deadline).await
}

/// A new connection.
async fn make(
    tunnel: &Tunnel,
    permit: Permit<TlsUpstream>,
    deadline: Instant,
) -> Result<Supplied, Failure> {
    match upstream::make(tunnel, permit, deadline).await {
        Ok(mut stream) => {
            stream.is_now(UpstreamState::Relaying);
            tunnel.figures.pooled(PoolResult::New);
            Ok(Supplied::new(stream))
        }
        Err((unexplained, permit)) => {
            tunnel.stock.note_failure(Instant::now());
            // What is asked to explain it has the place of what failed.
            let failure = unexplained.explain(tunnel).await;
            drop(permit);
            Err(failure)
        }
    }
}

/// Waits for what was asked, and goes on asking until it is fit for use.
async fn await_fit(
    tunnel: &Tunnel,
    mut asked: Asked<TlsUpstream>,
    deadline: Instant,
) -> Result<Supplied, Failure> {
    loop {
        let waiting = matches!(asked, Asked::Waiting(_)).then(|| tunnel.figures.wait());
        let granted = timeout_at(deadline, granted(tunnel, asked)).await;
        drop(waiting);
        match granted.map_err(|_| waited_in_vain(tunnel))? {
            Granted::Make(permit) => return make(tunnel, permit, deadline).await,
            Granted::Kept(mut kept) => {
                let unfit = timeout_at(deadline, unfit(tunnel, &mut kept)).await;
                let unfit = unfit.unwrap_or_else(|_| Err(Failure::timed_out(Step::LookUp)))?;
                // Now, behind all that took time.
                let hand_over = tunnel.stock.hand_over(&kept, Instant::now());
                let reason = match (unfit, hand_over) {
                    (None, Some(hand_over)) => {
                        let mut stream = kept.connection;
                        stream.is_now(UpstreamState::Relaying);
                        tunnel.figures.pooled(match kept.origin {
                            Origin::Reused => PoolResult::Reused,
                            Origin::Spare => PoolResult::New,
                        });
                        return Ok(Supplied { stream, hand_over, is_new: false });
                    }
                    (None, None) => Unfit::Untried,
                    (Some(unfit), _) => unfit,
                };
                note_discarded(tunnel, reason);
                if reason == Unfit::Touched {
                    kept.connection.permit().server_ended();
                }
                asked = instead_of(tunnel, kept.connection);
            }
        }
    }
}

/// Waits until a connection is granted; says so in the log when the limit makes an app wait long.
async fn granted(tunnel: &Tunnel, asked: Asked<TlsUpstream>) -> Granted<TlsUpstream> {
    let mut granted = pin!(asked.granted());
    if let Ok(granted) = timeout(LONG_WAIT, &mut granted).await {
        return granted;
    }
    if tunnel.stock.is_full() {
        let error = "an app connection has waited for a second: the tunnel is at its limit";
        let (event, hint) = (UpstreamEvent::QueueWaiting, hints::queue(tunnel));
        let warning = Warning::Upstream { event, reason: None, error: error.to_owned(), hint };
        tunnel.warnings.warn(warning);
    }
    granted.await
}

/// Why a connection is not used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// Its name leads elsewhere now.
    Outdated,
    /// It was closed, or something has arrived on it.
    Touched,
    /// Nobody knows any more whether this server can reset connections.
    Untried,
    /// It was not reset as it should be.
    NotReset,
    /// It was closed as it was handed over.
    Dead,
}

pub fn note_discarded(tunnel: &Tunnel, reason: Unfit) {
    debug!(at = "kept-discarded", var = tunnel.variable(), reason = ?reason);
}

/// Asks for another connection in place of one that is of no use, which makes room for it.
fn instead_of(tunnel: &Tunnel, useless: TlsUpstream) -> Asked<TlsUpstream> {
    let asked = tunnel.stock.ask(Place::Front, Instant::now());
    drop(useless);
    asked
}

/// Why nothing was granted until the deadline.
fn waited_in_vain(tunnel: &Tunnel) -> Failure {
    match tunnel.route.max_connections {
        Some(limit) if tunnel.stock.is_full() => Failure::QueueTimeout(limit),
        _ => Failure::timed_out(Step::Turn),
    }
}

/// Why a connection is not as good as a new one, if it is not: it leads where the name leads now,
/// and nothing has arrived on it.
///
/// # Errors
/// When the name is not found: a new connection would fail for that as well.
async fn unfit(tunnel: &Tunnel, kept: &mut Kept<TlsUpstream>) -> Result<Option<Unfit>, Failure> {
    let now = Instant::now();
    let since = now.checked_sub(LOOK_UP_AGE).unwrap_or(now);
    let addresses = upstream::look_up_since(tunnel, since).await?;
    let outdated = tunnel.stock.keep_only(&addresses, kept);
    if outdated > 0 {
        debug!(at = "kept-outdated", var = tunnel.variable(), count = outdated);
    }
    if addresses.iter().all(|known| known.ip() != kept.address) {
        return Ok(Some(Unfit::Outdated));
    }
    Ok((!kept.connection.is_untouched().await).then_some(Unfit::Touched))
}

/// Keeps a connection whose user is gone, once Redis has made it as good as new.
pub async fn give_back(tunnel: &Arc<Tunnel>, mut stream: TlsUpstream) {
    let taken = tunnel.stock.take_back(stream.permit(), stream.made, Instant::now());
    let Some(back) = taken else {
        // Nothing is owed: it ends in good order.
        let _ = timeout(Duration::ZERO, stream.shutdown()).await;
        return;
    };
    stream.is_now(UpstreamState::Connecting);
    if !matches!(timeout(RESET_TIME, reset(&mut stream)).await, Ok(true)) {
        note_discarded(tunnel, Unfit::NotReset);
        return;
    }
    stream.is_now(UpstreamState::Idle);
    let (address, made) = (stream.address.ip(), stream.made);
    let kept = Kept { connection: stream, address, made, origin: Origin::Reused };
    watch(tunnel, back.keep(kept, Instant::now()));
}

/// Whether Redis has reset the connection, and said nothing else.
async fn reset(stream: &mut TlsUpstream) -> bool {
    let mut reply = [0; RESET_DONE.len()];
    stream.write_all(RESET).await.is_ok()
        && stream.flush().await.is_ok()
        && stream.read_exact(&mut reply).await.is_ok()
        && reply == RESET_DONE
        && stream.is_untouched().await
}

/// Has as many connections made beforehand as there is demand for, and lets go of those beyond.
pub fn refill(tunnel: &Arc<Tunnel>) {
    for permit in tunnel.stock.refill(Instant::now()) {
        let tunnel = tunnel.clone();
        tokio::spawn(async move {
            let began = Instant::now();
            let deadline = began + tunnel.settings.connect_timeout;
            match upstream::make(&tunnel, permit, deadline).await {
                Ok(mut stream) => {
                    stream.is_now(UpstreamState::Idle);
                    let (address, made): (IpAddr, _) = (stream.address.ip(), stream.made);
                    let spare = Kept { connection: stream, address, made, origin: Origin::Spare };
                    let added = tunnel.stock.add_spare(spare, began, Instant::now());
                    if added.kept {
                        debug!(at = "spare-ready", var = tunnel.variable());
                    }
                    watch(&tunnel, added);
                    refill(&tunnel);
                }
                // The next connection meets the same, and reports it.
                Err((unexplained, _permit)) => {
                    tunnel.stock.note_failure(Instant::now());
                    let error = unexplained.bare();
                    tunnel.note_failure(&error);
                    debug!(at = "spare-failed", var = tunnel.variable(), error = %error);
                }
            }
        });
    }
}

/// Closes what nobody has asked for in a while, if that is not being seen to.
fn watch(tunnel: &Arc<Tunnel>, added: Added) {
    if !added.watch {
        return;
    }
    let tunnel = tunnel.clone();
    tokio::spawn(async move {
        loop {
            let (closed, next) = tunnel.stock.expire(Instant::now());
            match next {
                Some(due) => sleep_until(due).await,
                // The last ones may be in use again.
                None if closed == 0 => return,
                None => break,
            }
        }
        debug!(at = "pool-empty", var = tunnel.variable());
    });
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
