//! Waits for a slot of `--max-connections`, and logs long waits.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::failure::{Failure, Step};
use super::limit::Slot;
use super::{Tunnel, hints};
use crate::figures::Event;

/// The waiting time after which the launcher logs a warning about an app connection. Most clients
/// have a longer timeout.
const LONG_WAIT: Duration = Duration::from_secs(1);

/// Waits for a free slot. App connections get slots in order of arrival.
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
/// If `deadline` passes before `waiting` is ready.
pub async fn wait<T>(
    tunnel: &Tunnel,
    deadline: Instant,
    waiting: impl Future<Output = T>,
) -> Result<T, Failure> {
    let _counted = tunnel.figures.wait();
    let mut waiting = pin!(waiting);
    let patient = async {
        let mut warned = None;
        loop {
            if let Ok(got) = timeout(LONG_WAIT, &mut waiting).await {
                return got;
            }
            let event = match tunnel.limit.is_stuck(Instant::now()) {
                true => Event::QueueStuck,
                false => Event::QueueWaiting,
            };
            if warned.replace(event) != Some(event) {
                warn(tunnel, event);
            }
        }
    };
    timeout_at(deadline, patient).await.map_err(|_| match tunnel.route.max_connections {
        Some(limit) => Failure::QueueTimeout(limit),
        // Without a limit, a free slot always exists.
        None => Failure::timed_out(Step::Tls),
    })
}

fn warn(tunnel: &Tunnel, event: Event) {
    let error = match event {
        Event::QueueStuck => {
            "the same app connections have held all connections to Redis for 10 s, while other app \
             connections wait"
        }
        _ => {
            "an app connection has waited one second for a connection to Redis, because the \
             tunnel is at its connection limit"
        }
    };
    tunnel.warn(event, None, error, &hints::queue(tunnel));
}
