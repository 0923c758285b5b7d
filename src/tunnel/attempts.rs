//! Connects to Redis within the connect timeout, with retries if `--connect-retry` is set.

use std::future::Future;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::failure::Failure;
use super::limit::Slot;
use super::stream::TlsUpstream;
use super::{Tunnel, queue, upstream};

/// The longest random pause after the first failed attempt. The longest pause doubles with each
/// further failure, up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The pause before the launcher repeats an attempt that Redis cut off, probably at its client
/// limit. In this time, Redis can notice that the launcher has closed another connection.
const PAUSE_FOR_REDIS: Duration = Duration::from_millis(50);

/// Returns the pause before the next attempt. The pause is random up to an upper bound (full
/// jitter), so that many launchers do not retry at the same moment
/// (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>).
fn pause_after(failures: u32, random: &mut fastrand::Rng) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(2_u32.saturating_pow(failures - 1));
    longest.min(LONGEST_PAUSE).mul_f64(random.f64())
}

/// Makes a connection to Redis before `deadline`. `spare` is a file descriptor that this function
/// closes if no other descriptor is free.
///
/// # Errors
/// Returns the failure of the last attempt.
pub async fn connect(
    tunnel: &Tunnel,
    deadline: Instant,
    spare: Option<OwnedFd>,
) -> Result<TlsUpstream, Failure> {
    retry(tunnel, deadline, spare, || async {
        let slot = queue::slot(tunnel, deadline).await?;
        connect_in(tunnel, slot, deadline).await
    })
    .await
}

/// Makes one attempt. With `--connect-retry`, repeats failed attempts until `deadline`. If no file
/// descriptor is free, closes `spare` and makes the next attempt at once.
///
/// # Errors
/// Returns the failure of the last attempt.
pub async fn retry<T, A>(
    tunnel: &Tunnel,
    deadline: Instant,
    mut spare: Option<OwnedFd>,
    attempt: impl Fn() -> A,
) -> Result<T, Failure>
where
    A: Future<Output = Result<T, Failure>>,
{
    let (mut failures, mut random) = (0, fastrand::Rng::new());
    loop {
        let failure = match attempt().await {
            Err(failure) => failure,
            connected => return connected,
        };
        // If no file descriptor is free, a name lookup may fail with an error that does not mention
        // descriptors.
        let is_last = |spare: &OwnedFd| spare.try_clone().is_err();
        if spare.as_ref().is_some_and(|spare| failure.is_out_of_descriptors() || is_last(spare)) {
            spare = None;
            continue;
        }
        if !(tunnel.settings.connect_retry && failure.is_temporary()) {
            return Err(failure);
        }
        failures += 1;
        let pause = pause_after(failures, &mut random);
        if Instant::now() + pause >= deadline {
            return Err(failure);
        }
        sleep(pause).await;
    }
}

/// Connects to Redis. The connection keeps `slot`, its place under the limit, until it closes.
///
/// # Errors
/// Returns the failure of the last attempt.
pub async fn connect_in(
    tunnel: &Tunnel,
    slot: Slot,
    deadline: Instant,
) -> Result<TlsUpstream, Failure> {
    let mut connected = upstream::connect(tunnel, deadline).await;
    let is_cut = connected.as_ref().is_err_and(Failure::is_cut);
    let now = Instant::now();
    if is_cut && tunnel.limit.may_still_be_counted(now) && now + PAUSE_FOR_REDIS < deadline {
        sleep(PAUSE_FOR_REDIS).await;
        connected = upstream::connect(tunnel, deadline).await;
    }
    match connected {
        Ok((tls, address)) => Ok(TlsUpstream::new(tls, slot, address)),
        Err(failure) => {
            // If the server closes a connection during the handshake while other connections of
            // this launcher stay open, Redis is probably at its client limit.
            if failure.is_cut() && tunnel.open_to_server() > 0 {
                tunnel.figures.turned_away();
            }
            Err(failure)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_cap_with_full_jitter() {
        const DRAWN: u32 = 10_000;
        let bounds = [50, 100, 200, 400, 800, 1000, 1000, 1000];
        let cases = (1..).zip(bounds).chain([(32, 1000), (33, 1000), (u32::MAX, 1000)]);
        let mut random = fastrand::Rng::with_seed(0);
        for (failures, bound) in cases {
            let pauses: Vec<_> = (0..DRAWN).map(|_| pause_after(failures, &mut random)).collect();
            let longest = *pauses.iter().max().unwrap();
            let mean = pauses.iter().sum::<Duration>() / DRAWN;
            let bound = Duration::from_millis(bound);
            assert!(longest <= bound && longest > bound.mul_f64(0.99), "{longest:?} of {bound:?}");
            assert!(mean > bound.mul_f64(0.48) && mean < bound.mul_f64(0.52), "{mean:?}");
        }
    }
}
