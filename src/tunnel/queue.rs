//! Waits for a slot of `--max-connections`, and logs long waits.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::failure::{Failure, Step};
use super::limit::Slot;
use super::warnings::{UpstreamEvent, Warning};
use super::{Tunnel, hints};
use crate::logging::warning;

/// If an app connection has waited for this long, the launcher logs a warning. Most clients have a
/// longer timeout.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// Waits for a free slot, in order of arrival.
///
/// # Errors
/// If no slot became free before `deadline`.
pub async fn slot(tunnel: &Tunnel, deadline: Instant) -> Result<Slot, Failure> {
    match tunnel.limit.try_slot() {
        Some(slot) => Ok(slot),
        None => wait(tunnel, deadline, tunnel.limit.slot()).await,
    }
}

/// Awaits `waiting` until `deadline`, and logs long waits.
///
/// # Errors
/// If `deadline` passes.
pub async fn wait<T>(
    tunnel: &Tunnel,
    deadline: Instant,
    waiting: impl Future<Output = T>,
) -> Result<T, Failure> {
    let _counted = tunnel.figures.wait();
    let mut waiting = pin!(waiting);
    let patient = async {
        let mut is_logged = false;
        loop {
            if let Ok(got) = timeout(LONG_WAIT, &mut waiting).await {
                return got;
            }
            if !warn_if_stuck(tunnel) && !is_logged {
                warn_of_long_wait(tunnel);
            }
            is_logged = true;
        }
    };
    timeout_at(deadline, patient).await.map_err(|_| match tunnel.route.max_connections {
        Some(limit) => Failure::QueueTimeout(limit),
        // Without a limit, there is always a free slot.
        None => Failure::timed_out(Step::Tls),
    })
}

/// Warns about an app connection that has waited for a second.
fn warn_of_long_wait(tunnel: &Tunnel) {
    let error = "an app connection has waited for a second: the tunnel is at its connection limit";
    let (event, hint) = (UpstreamEvent::QueueWaiting, hints::queue(tunnel));
    let warning = Warning::Upstream { event, reason: None, error: error.to_owned(), hint };
    tunnel.warnings.warn(warning);
}

/// Warns about a stuck queue, at most once a minute. Returns whether there was a warning.
fn warn_if_stuck(tunnel: &Tunnel) -> bool {
    let is_due = tunnel.limit.take_stuck_warning(Instant::now());
    if is_due {
        warning!(
            at = "queue-stuck",
            var = tunnel.variable(),
            upstream = %tunnel.route.upstream,
            error = "the same app connections have held all connections to Redis for 10 s, while \
                     other app connections wait",
            hint = hints::queue_stuck(tunnel),
        );
    }
    is_due
}
