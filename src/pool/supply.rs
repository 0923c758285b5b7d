//! Gets an idle or a new connection to Redis for an app that has just connected.

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

/// The time limit for the replies to a trial, and for the reply to `RESET`.
const REPLY_LIMIT: Duration = Duration::from_secs(1);

/// The reason why an idle connection is not reused.
#[derive(Debug, Clone, Copy)]
enum Unfit {
    /// The host name no longer resolves to the connection's address.
    Outdated,
    /// Redis has closed the connection, or has sent unexpected bytes.
    Touched,
    /// `RESET` got a wrong reply.
    WrongReset,
    /// `RESET` got no reply in time.
    Silent,
}

/// Gets a connection to Redis within the connect timeout, for an app that has just connected.
/// `spare` is a file descriptor that is closed if no other descriptor is free.
///
/// # Errors
/// Returns the failure of the last attempt.
pub async fn supply(pool: &Pool, spare: Option<OwnedFd>) -> Result<TlsUpstream, Failure> {
    let deadline = Instant::now() + pool.tunnel.settings.connect_timeout;
    attempts::retry(&pool.tunnel, deadline, spare, || attempt(pool, deadline)).await
}

async fn attempt(pool: &Pool, deadline: Instant) -> Result<TlsUpstream, Failure> {
    let began = Instant::now();
    let addresses = timeout_at(deadline, upstream::look_up(&pool.tunnel)).await;
    let addresses = addresses.unwrap_or_else(|_| Err(Failure::timed_out(Step::LookUp)))?;
    let outdated = pool.keep_only(&addresses, began);
    if outdated > 0 {
        debug!(at = "kept-outdated", var = pool.tunnel.variable(), count = outdated);
    }
    let slot = match granted(pool, deadline).await? {
        Granted::Slot(slot) => slot,
        Granted::Kept(mut kept) => match renew(pool, &mut kept, &addresses, deadline).await {
            Ok(()) => return Ok(kept),
            Err(reason) => {
                debug!(at = "kept-discarded", var = pool.tunnel.variable(), reason = ?reason);
                kept.into_slot()
            }
        },
    };
    make(pool, slot, deadline).await
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

/// Resets an idle connection for its next user.
///
/// # Errors
/// If the connection must not be reused.
async fn renew(
    pool: &Pool,
    kept: &mut TlsUpstream,
    addresses: &[SocketAddr],
    deadline: Instant,
) -> Result<(), Unfit> {
    kept.note_new_user();
    kept.set_state(UpstreamState::Connecting);
    if !leads_to(kept, addresses) {
        return Err(Unfit::Outdated);
    }
    let limit = reply_limit(deadline);
    let reset = timeout(limit, reset(kept)).await.unwrap_or(Err(Unfit::Silent));
    let now = Instant::now();
    match reset {
        Ok(()) => pool.tunnel.figures.pooled(PoolResult::Reused),
        Err(Unfit::Touched) => pool.state().forget_server(now),
        // Redis did not reply within a second, so a new trial is due. Without a new trial, each app
        // that gets an idle connection would wait a second for the reply to `RESET`.
        Err(Unfit::Silent) if limit == REPLY_LIMIT => pool.state().forget_server(now),
        Err(Unfit::WrongReset) => pool.judge(Verdict::Failed, kept.made, now),
        Err(Unfit::Outdated | Unfit::Silent) => {}
    }
    reset
}

/// Sends `RESET`, and checks the reply. Fails if Redis has sent bytes before the reply, or sends
/// more bytes than the reply.
async fn reset(kept: &mut TlsUpstream) -> Result<(), Unfit> {
    if !kept.is_untouched().await {
        return Err(Unfit::Touched);
    }
    let [reply] = trial::ask(kept, trial::RESET).await.map_err(|_| Unfit::Touched)?;
    if reply != trial::RESET_DONE {
        return Err(Unfit::WrongReset);
    }
    match kept.is_untouched().await {
        true => Ok(()),
        false => Err(Unfit::Touched),
    }
}

/// Returns the time limit for the replies to the pool's own requests (a trial or `RESET`). The
/// limit is at most half of the time until `deadline`. If Redis does not reply, the launcher has
/// the other half to make a new connection.
fn reply_limit(deadline: Instant) -> Duration {
    REPLY_LIMIT.min(deadline.saturating_duration_since(Instant::now()) / 2)
}

/// Makes a new connection to Redis. If a trial is due, runs the trial on this connection first.
async fn make(pool: &Pool, slot: Slot, deadline: Instant) -> Result<TlsUpstream, Failure> {
    let tunnel = &pool.tunnel;
    let mut upstream = attempts::connect_in(tunnel, slot, deadline).await?;
    let is_trial_due = pool.state().trial.begin(Instant::now());
    if is_trial_due {
        let verdict = timeout(reply_limit(deadline), trial::run(&mut upstream)).await;
        let verdict = verdict.unwrap_or(Verdict::Unclear);
        debug!(at = "pool-tried", var = tunnel.variable(), verdict = ?verdict);
        pool.judge(verdict, upstream.made, Instant::now());
        if verdict != Verdict::Passed {
            // The trial has left this connection in an unknown state, so the app gets another
            // connection.
            let slot = upstream.into_slot();
            upstream = attempts::connect_in(tunnel, slot, deadline).await?;
        }
    }
    tunnel.figures.pooled(PoolResult::New);
    Ok(upstream)
}
