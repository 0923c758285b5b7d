//! Gets a connection to Redis for an app connection: an idle connection, or a new connection.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::trial::{self, Verdict};
use super::{Granted, Pool, leads_to};
use crate::figures::{PoolResult, UpstreamState};
use crate::logging::debug;
use crate::tunnel::failure::{Failure, Step};
use crate::tunnel::stream::TlsUpstream;
use crate::tunnel::{Slot, attempts, queue, upstream};

/// Time limit for a trial.
const TRIAL: Duration = Duration::from_secs(1);

/// A connection to Redis for one app connection.
#[derive(Debug)]
pub enum Supplied {
    /// A new connection.
    New(TlsUpstream),
    /// An idle connection, which had another user.
    Kept(TlsUpstream),
}

/// Why a connection is not reused.
#[derive(Debug, Clone, Copy)]
pub enum Unfit {
    /// The host name no longer resolves to the connection's address.
    Outdated,
    /// Redis has closed the connection, or has sent bytes on it.
    Touched,
    /// `RESET` got a wrong reply, or no reply in time.
    NotReset,
    /// Redis closed the connection during the hand-over.
    Dead,
}

/// Gets a connection within the connect timeout, for an app that has just connected and has this
/// spare descriptor.
///
/// # Errors
/// The last attempt's failure.
pub async fn supply(pool: &Pool, spare: Option<OwnedFd>) -> Result<Supplied, Failure> {
    let deadline = Instant::now() + pool.tunnel.settings.connect_timeout;
    attempts::retry(&pool.tunnel, deadline, spare, || attempt(pool, deadline)).await
}

async fn attempt(pool: &Pool, deadline: Instant) -> Result<Supplied, Failure> {
    let began = Instant::now();
    let addresses = timeout_at(deadline, upstream::look_up(&pool.tunnel)).await;
    let addresses = addresses.unwrap_or_else(|_| Err(Failure::timed_out(Step::LookUp)))?;
    let outdated = pool.keep_only(&addresses, began);
    if outdated > 0 {
        debug!(at = "kept-outdated", var = pool.tunnel.variable(), count = outdated);
    }
    let slot = match granted(pool, deadline).await? {
        Granted::Slot(slot) => slot,
        Granted::Kept(kept) => match fit(pool, kept, &addresses).await {
            Ok(kept) => return Ok(Supplied::Kept(kept)),
            Err(slot) => slot,
        },
    };
    make(pool, slot, deadline).await.map(Supplied::New)
}

/// Waits for an idle connection or a slot, whichever is available first.
async fn granted(pool: &Pool, deadline: Instant) -> Result<Granted, Failure> {
    let kept = match pool.ask() {
        Ok(granted) => return Ok(granted),
        Err(waiting) => waiting,
    };
    let first = async {
        tokio::select! {
            biased;
            Ok(kept) = kept => Granted::Kept(kept),
            slot = pool.tunnel.limit.slot() => Granted::Slot(slot),
        }
    };
    queue::wait(&pool.tunnel, deadline, first).await
}

/// Returns the idle connection if it leads to one of `addresses` and nothing has arrived on it;
/// otherwise only its slot.
async fn fit(
    pool: &Pool,
    mut kept: TlsUpstream,
    addresses: &[SocketAddr],
) -> Result<TlsUpstream, Slot> {
    let unfit = if !leads_to(&kept, addresses) {
        Unfit::Outdated
    } else if !kept.is_untouched().await {
        pool.server_ended(Instant::now());
        Unfit::Touched
    } else {
        kept.slot().note_new_user();
        kept.set_state(UpstreamState::Relaying);
        return Ok(kept);
    };
    note_discarded(pool, unfit);
    Err(kept.into_slot())
}

/// Logs that a connection is not reused.
pub fn note_discarded(pool: &Pool, reason: Unfit) {
    debug!(at = "kept-discarded", var = pool.tunnel.variable(), reason = ?reason);
}

/// Makes a new connection. If a trial is due, runs it on this connection first.
pub async fn make(pool: &Pool, slot: Slot, deadline: Instant) -> Result<TlsUpstream, Failure> {
    let tunnel = &pool.tunnel;
    let mut upstream = attempts::connect_in(tunnel, slot, deadline).await?;
    let is_trial_due = pool.state().trial.begin(Instant::now());
    if is_trial_due {
        // If the server does not answer, there must be time left for another connection.
        let limit = TRIAL.min(deadline.saturating_duration_since(Instant::now()) / 2);
        let verdict = timeout(limit, trial::run(&mut upstream)).await;
        let verdict = verdict.unwrap_or(Verdict::Unclear);
        debug!(at = "pool-tried", var = tunnel.variable(), verdict = ?verdict);
        pool.end_trial(verdict, upstream.made, Instant::now());
        if verdict != Verdict::Passed {
            // The state of the tried connection is unknown, so the app gets another connection.
            let slot = upstream.into_slot();
            upstream = attempts::connect_in(tunnel, slot, deadline).await?;
        }
    }
    tunnel.figures.pooled(PoolResult::New);
    Ok(upstream)
}
