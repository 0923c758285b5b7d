//! Serves a tunnel's app connections, with or without the pool.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::supply::supply;
use super::{Ledger, Pool, PoolMode};
use crate::figures::UpstreamState;
use crate::logging::debug;
use crate::tunnel::app::AppStream;
use crate::tunnel::connection::{self, Connection};
use crate::tunnel::relay::{RelayEnd, Side};
use crate::tunnel::stream::TlsUpstream;
use crate::tunnel::tap::Tap;
use crate::tunnel::{self, DrainGuard, Listener, Tunnel};

/// The interval at which the pool closes expired idle connections.
const CHECK: Duration = Duration::from_millis(250);

/// Serves a tunnel until COMMAND has ended.
///
/// # Errors
/// Returns the error of [`tunnel::serve`].
pub async fn serve(
    mode: PoolMode,
    listener: Listener,
    tunnel: Arc<Tunnel>,
    guard: DrainGuard,
) -> io::Result<()> {
    let has_certificate = tunnel.route.trust.identity.is_some();
    // Switch the pool off, because some servers log a client in by its certificate, and RESET would
    // then log the app in as another user.
    let mode = if has_certificate { PoolMode::Off } else { mode };
    let pool = Arc::new(Pool::new(tunnel.clone(), mode));
    let handle = |app, guard| serve_app(app, pool.clone(), guard);
    tunnel::serve(listener, &tunnel, guard, handle).await
}

async fn serve_app(app: AppStream, pool: Arc<Pool>, mut guard: DrainGuard) {
    let lasted = match pool.is_on(Instant::now()) {
        // Boxing keeps the tasks of connections without the pool small.
        true => Box::pin(with_pool(app, &pool, &mut guard)).await,
        false => connection::serve(app, &pool.tunnel, &mut guard).await,
    };
    pool.state().engagement.note(lasted, Instant::now());
}

/// Serves one app connection, and then keeps the connection to Redis if possible. Returns the
/// result of [`Connection::close`].
async fn with_pool(
    mut app: AppStream,
    pool: &Arc<Pool>,
    guard: &mut DrainGuard,
) -> Option<Duration> {
    let upstream = supply(pool, app.spare.take());
    let mut connection = Connection::accept(app, &pool.tunnel);
    // Boxing keeps the task of a relayed connection small.
    let upstream = Box::pin(connection.connect(upstream, guard)).await?;
    let mut tap = PoolTap { pool, made: upstream.made, ledger: Ledger::default() };
    let end = connection.relay(upstream, &mut tap).await;
    let by_redis = matches!(end, RelayEnd::Reset(Side::Redis, _));
    if by_redis || (connection.redis_ended_first && tap.ledger.is_reusable()) {
        pool.state().forget_server(Instant::now());
    }
    if matches!(end, RelayEnd::Kept(_)) && !connection.ends.app.speaks_tls() {
        let upstream = connection.ends.redis.take();
        keep(pool, upstream.expect("the relay leaves the connection open"));
    }
    Box::pin(connection.close(end)).await
}

fn keep(pool: &Arc<Pool>, mut upstream: TlsUpstream) {
    upstream.set_state(UpstreamState::Idle);
    if pool.keep(upstream, Instant::now()) {
        tokio::spawn(close_unused(pool.clone()));
    }
}

/// Closes expired idle connections, until no idle connection is left.
async fn close_unused(pool: Arc<Pool>) {
    while pool.expire(Instant::now()) {
        // The pause is short, because surplus connections expire after a second.
        sleep(CHECK).await;
    }
    debug!(at = "pool-empty", var = pool.tunnel.variable());
}

/// A tap that follows the requests of one app, and Redis's replies to these requests.
struct PoolTap<'a> {
    pool: &'a Pool,
    /// The time at which the connection to Redis was made.
    made: Instant,
    ledger: Ledger,
}

impl Tap for PoolTap<'_> {
    fn from_app(&mut self, bytes: &[u8]) {
        self.ledger.sent(bytes);
    }

    fn from_redis(&mut self, bytes: &[u8]) {
        self.ledger.received(bytes);
        if self.ledger.take_role_change() {
            self.pool.retire(self.made);
        }
    }

    fn keeps_upstream(&self) -> bool {
        self.ledger.is_reusable() && self.pool.may_keep(self.made, Instant::now())
    }
}
