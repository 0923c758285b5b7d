//! Where the app's connections to Redis come from: another user, made beforehand, or new; and where
//! they go when the app has gone.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::failure::{Failure, Step};
use super::stream::TlsUpstream;
use super::{Tunnel, upstream};
use crate::logging::debug;
use crate::pool::canary::{RESET, RESET_DONE};
use crate::pool::stock::{Added, Asked};
use crate::pool::{Granted, Kept, Origin, Place};

/// With `--connect-retry`: the longest pause after the first failure; it doubles with each, up to
/// the cap.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How old a look-up of the name may be when a connection is handed over.
const LOOK_UP_AGE: Duration = Duration::from_secs(1);
/// How long a server may take to reset a connection.
const RESET_TIME: Duration = Duration::from_secs(1);

/// A connection to Redis for one of the app's.
#[derive(Debug)]
pub struct Supplied {
    pub stream: TlsUpstream,
    /// `RESET` is to go in front of the first request.
    pub reset_first: bool,
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
    let mut asked = tunnel.stock.ask(place, Instant::now());
    loop {
        let granted = timeout_at(deadline, asked.granted()).await;
        match granted.map_err(|_| waited_in_vain(tunnel))? {
            Granted::Make(permit) => match upstream::make(tunnel, permit, deadline).await {
                Ok(stream) => return Ok(Supplied { stream, reset_first: false }),
                Err((unexplained, permit)) => {
                    // What is asked to explain it has the place of what failed.
                    let failure = unexplained.explain(tunnel).await;
                    drop(permit);
                    return Err(failure);
                }
            },
            Granted::Kept(mut kept) => {
                let fit = timeout_at(deadline, is_fit(tunnel, &mut kept)).await;
                if fit.unwrap_or_else(|_| Err(Failure::timed_out(Step::LookUp)))? {
                    let reset_first = tunnel.stock.is_reset_at_hand_over(Instant::now());
                    return Ok(Supplied { stream: kept.connection, reset_first });
                }
                debug!(at = "kept-discarded", var = tunnel.variable());
                asked = instead_of(tunnel, kept);
            }
        }
    }
}

/// Asks for another connection in place of one that is of no use, which makes room for it.
fn instead_of(tunnel: &Tunnel, useless: Kept<TlsUpstream>) -> Asked<TlsUpstream> {
    let asked = tunnel.stock.ask(Place::Front, Instant::now());
    drop(useless);
    asked
}

/// Why nothing was granted until the deadline.
fn waited_in_vain(tunnel: &Tunnel) -> Failure {
    match tunnel.route.max_connections {
        Some(limit) if tunnel.stock.is_full() => Failure::QueueTimeout(limit),
        _ => Failure::timed_out(Step::Tls),
    }
}

/// Whether a connection is as good as a new one: it leads where the name leads now, and nothing has
/// arrived on it.
///
/// # Errors
/// When the name is not found: a new connection would fail for that as well.
async fn is_fit(tunnel: &Tunnel, kept: &mut Kept<TlsUpstream>) -> Result<bool, Failure> {
    let now = Instant::now();
    let since = now.checked_sub(LOOK_UP_AGE).unwrap_or(now);
    let addresses = upstream::look_up_since(tunnel, since).await?;
    let outdated = tunnel.stock.keep_only(&addresses);
    if outdated > 0 {
        debug!(at = "kept-outdated", var = tunnel.variable(), count = outdated);
    }
    let leads_there = addresses.iter().any(|known| known.ip() == kept.address);
    Ok(leads_there && kept.connection.is_untouched().await)
}

/// Keeps a connection whose user is gone, once Redis has made it as good as new.
pub async fn give_back(tunnel: &Arc<Tunnel>, mut stream: TlsUpstream) {
    let Some(back) = tunnel.stock.take_back(stream.made, Instant::now()) else {
        // Nothing is owed: for Redis this is the end that it would have seen.
        let _ = timeout(Duration::ZERO, stream.shutdown()).await;
        return;
    };
    if !matches!(timeout(RESET_TIME, reset(&mut stream)).await, Ok(true)) {
        debug!(at = "kept-discarded", var = tunnel.variable());
        return;
    }
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
                Ok(stream) => {
                    debug!(at = "spare-ready", var = tunnel.variable());
                    let (address, made): (IpAddr, _) = (stream.address.ip(), stream.made);
                    let spare = Kept { connection: stream, address, made, origin: Origin::Spare };
                    watch(&tunnel, tunnel.stock.add_spare(spare, began, Instant::now()));
                    refill(&tunnel);
                }
                // The next connection meets the same, and reports it.
                Err((unexplained, _permit)) => {
                    let error = unexplained.bare();
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
        while let Some(due) = tunnel.stock.expire(Instant::now()) {
            sleep_until(due).await;
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
