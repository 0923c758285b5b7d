//! Serves a tunnel's app connections, with or without the pool.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

use super::handover::{HandOver, NotHandedOver};
use super::supply::{Supplied, Unfit, note_discarded, supply};
use super::tap::PoolTap;
use super::trial::{RESET, RESET_DONE};
use super::{Pool, PoolMode};
use crate::figures::UpstreamState;
use crate::logging::debug;
use crate::tunnel::app::AppStream;
use crate::tunnel::connection::{self, Connection, Course, Outcome};
use crate::tunnel::relay::{Begun, RelayEnd, Side};
use crate::tunnel::stream::TlsUpstream;
use crate::tunnel::{self, DrainGuard, Listener, Tunnel};

/// Time limit for the reply to the `RESET` that follows a user.
const RESET_TIME: Duration = Duration::from_secs(1);

/// The interval at which expired idle connections are closed.
const CHECK: Duration = Duration::from_millis(250);

/// Serves a tunnel until COMMAND has ended.
///
/// # Errors
/// As [`tunnel::serve`].
pub async fn serve(
    mode: PoolMode,
    listener: Listener,
    tunnel: Arc<Tunnel>,
    guard: DrainGuard,
) -> io::Result<()> {
    // If Redis logs clients in by their certificate, RESET selects another user.
    if mode == PoolMode::Off || tunnel.route.trust.identity.is_some() {
        let plain = |app, mut guard: DrainGuard| {
            let tunnel = tunnel.clone();
            async move {
                connection::serve(app, &tunnel, &mut guard).await;
            }
        };
        return tunnel::serve(listener, &tunnel, guard, plain).await;
    }
    let pool = Arc::new(Pool::new(tunnel.clone(), mode));
    let mut end = guard.clone();
    let closing = pool.clone();
    tokio::spawn(async move {
        end.command_ended().await;
        closing.close();
    });
    let handle = |app, guard| serve_app(app, pool.clone(), guard);
    tunnel::serve(listener, &tunnel, guard, handle).await
}

async fn serve_app(app: AppStream, pool: Arc<Pool>, mut guard: DrainGuard) {
    let (outcome, left) = match pool.is_on(Instant::now()) {
        true => with_pool(app, &pool, &mut guard).await,
        false => (connection::serve(app, &pool.tunnel, &mut guard).await, None),
    };
    pool.state().engagement.note(&outcome, Instant::now());
    // The app has received all replies, so the drain need not wait for the RESET.
    drop(guard);
    if let Some(upstream) = left {
        Box::pin(take_back(&pool, upstream)).await;
    }
}

/// Serves one app connection. Also returns the connection to Redis if it may be kept.
async fn with_pool(
    mut app: AppStream,
    pool: &Pool,
    guard: &mut DrainGuard,
) -> (Outcome, Option<TlsUpstream>) {
    let upstream = supply(pool, app.take_spare());
    let mut connection = Connection::accept(app, &pool.tunnel);
    // Boxed, so that the task of a waiting app connection stays small.
    let supplied = Box::pin(connection.connect(upstream, guard)).await;
    let (mut tap, handed_over) = match supplied {
        None => return (connection.outcome(), None),
        Some(Supplied::New(upstream)) => {
            (PoolTap::new(pool, upstream.made), Ok((upstream, Begun::default())))
        }
        Some(Supplied::Kept(kept)) => {
            let mut tap = PoolTap::new(pool, kept.made);
            let connection = &mut connection;
            let hand_over = HandOver { connection, guard, tap: &mut tap, pool };
            let handed_over = Box::pin(hand_over.begin(kept)).await;
            (tap, handed_over)
        }
    };
    let course = match handed_over {
        Ok((upstream, begun)) => {
            let course = connection.relay(upstream, &mut tap, begun).await;
            let by_redis = matches!(course.end, RelayEnd::Reset(Side::Redis, _));
            if by_redis || (course.redis_ended_first && tap.ledger.is_settled()) {
                pool.server_ended(Instant::now());
            }
            course
        }
        // The hand-over has already reported the server's state to the pool.
        Err(NotHandedOver::Ended(course)) => course,
        Err(NotHandedOver::Failed) => return (connection.outcome(), None),
    };
    end(connection, course).await
}

/// Ends an app connection. Also returns the connection to Redis if it may be kept.
async fn end(mut connection: Connection<'_>, course: Course) -> (Outcome, Option<TlsUpstream>) {
    if matches!(course.end, RelayEnd::Kept(_)) && !connection.ends.app.speaks_tls() {
        connection.ends.finish();
        let left = connection.ends.redis.take();
        return (connection.closed(&course), left);
    }
    (Box::pin(connection.close(course)).await, None)
}

/// Resets a connection whose user has left, and keeps it.
async fn take_back(pool: &Arc<Pool>, mut upstream: TlsUpstream) {
    if !pool.may_keep(upstream.made, Instant::now()) {
        // No reply is outstanding, so the connection can close cleanly.
        let _ = timeout(Duration::ZERO, upstream.shutdown()).await;
        return;
    }
    upstream.set_state(UpstreamState::Connecting);
    match timeout(RESET_TIME, reset(&mut upstream)).await {
        Ok(Ok(ResetReply::Right)) => {}
        other => {
            if let Ok(Ok(ResetReply::Wrong)) = other {
                pool.note_wrong_reset(upstream.made, Instant::now());
            }
            note_discarded(pool, Unfit::NotReset);
            return;
        }
    }
    upstream.set_state(UpstreamState::Idle);
    if pool.keep(upstream, Instant::now()) {
        tokio::spawn(close_unused(pool.clone()));
    }
}

/// The reply to `RESET`.
enum ResetReply {
    Right,
    Wrong,
}

/// Resets a connection.
///
/// # Errors
/// If the connection broke, or Redis sent more than the reply.
async fn reset(upstream: &mut TlsUpstream) -> io::Result<ResetReply> {
    let mut reply = [0; RESET_DONE.len()];
    upstream.write_all(RESET).await?;
    upstream.flush().await?;
    upstream.read_exact(&mut reply).await?;
    match reply == RESET_DONE {
        false => Ok(ResetReply::Wrong),
        true if upstream.is_untouched().await => Ok(ResetReply::Right),
        true => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Closes expired idle connections, until none is left.
async fn close_unused(pool: Arc<Pool>) {
    while pool.expire(Instant::now()) {
        // A short pause: surplus connections expire after a second.
        sleep(CHECK).await;
    }
    debug!(at = "pool-empty", var = pool.tunnel.variable());
}
