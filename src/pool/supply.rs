//! An app connection's connection to Redis: an idle one that is as good as new, or a new one.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::trial::{self, Verdict};
use super::{Granted, Pool, leads_to};
use crate::figures::{PoolResult, UpstreamState};
use crate::logging::debug;
use crate::tunnel::failure::{Failure, Step};
use crate::tunnel::stream::TlsUpstream;
use crate::tunnel::{Slot, attempts, queue, upstream};

/// How long a server may take to answer a trial.
const TRIAL: Duration = Duration::from_secs(1);

/// A connection to Redis for one app connection.
#[derive(Debug)]
pub enum Supplied {
    /// It has just been made, for this user.
    New(TlsUpstream),
    /// It had another user.
    Kept(TlsUpstream),
}

/// Why an idle connection is not used again.
#[derive(Debug, Clone, Copy)]
pub enum Unfit {
    /// Its name leads elsewhere now.
    Outdated,
    /// It was closed, or something has arrived on it.
    Touched,
    /// It was not reset as it should be.
    NotReset,
    /// It was closed as it was handed over.
    Dead,
}

/// A connection within the connect timeout, for an app that has just connected.
///
/// # Errors
/// What failed last.
pub async fn supply(pool: &Pool) -> Result<Supplied, Failure> {
    let deadline = Instant::now() + pool.tunnel.settings.connect_timeout;
    attempts::retry(&pool.tunnel, deadline, || attempt(pool, deadline)).await
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

/// An idle connection or a slot, whichever comes first.
async fn granted(pool: &Pool, deadline: Instant) -> Result<Granted, Failure> {
    let kept = match pool.ask(Instant::now()) {
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

/// The idle connection, if it leads where the name leads now, and nothing has arrived on it; else
/// its slot.
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

pub fn note_discarded(pool: &Pool, reason: Unfit) {
    debug!(at = "kept-discarded", var = pool.tunnel.variable(), reason = ?reason);
}

/// Makes a connection. If a trial is due, runs it on this connection first.
pub async fn make(pool: &Pool, slot: Slot, deadline: Instant) -> Result<TlsUpstream, Failure> {
    let tunnel = &pool.tunnel;
    let mut upstream = attempts::connect_in(tunnel, slot, deadline).await?;
    tunnel.figures.pooled(PoolResult::New);
    if let Some(trial) = pool.begin_trial(Instant::now()) {
        // If the server does not answer, there must be time for another connection.
        let limit = TRIAL.min(deadline.saturating_duration_since(Instant::now()) / 2);
        let verdict = timeout(limit, trial::run(&mut upstream)).await;
        let verdict = verdict.unwrap_or(Verdict::Unclear);
        debug!(at = "pool-tried", var = tunnel.variable(), verdict = ?verdict);
        trial.end(verdict, upstream.made, Instant::now());
        if verdict != Verdict::Passed {
            // Nobody knows what state that connection is in.
            let slot = upstream.into_slot();
            upstream = attempts::connect_in(tunnel, slot, deadline).await?;
        }
    }
    Ok(upstream)
}
