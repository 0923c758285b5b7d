//! One connection's life: from the app's connect to the end of both sides.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::app::AppStream;
use super::failure::Failure;
use super::relay::{Relay, RelayEnd, Side};
use super::socket::{reset_on_close, unacknowledged};
use super::stream::TlsUpstream;
use super::{Tunnel, diagnosis, failure, refusal, spares, upstream};
use crate::logging::{debug, info, warning};
use crate::tls::is_own_failure;

/// How long Redis sends nothing once it has answered everything.
const QUIET: Duration = Duration::from_millis(50);
/// How long it may go on sending after an app has broken off: what it was asked for is worked off
/// by then, and what nobody asked for has no end.
const LONGEST_UNREST: Duration = Duration::from_secs(1);
/// How often the kernel is asked whether a broken connection's last bytes have been taken.
const FLUSH_CHECK: Duration = Duration::from_millis(5);
/// Bytes that are read at once to be thrown away.
const IGNORED: usize = 4096;
/// When an app that waits for a connection to Redis is checked for TLS. Not at once: it costs a
/// system call, and a Redis that works is there sooner.
const TLS_CHECK_DELAY: Duration = Duration::from_millis(100);
/// What to change when an app speaks TLS itself.
const APP_SPEAKS_TLS: &str = "the app speaks TLS to the local port, which speaks none: the \
                              launcher does TLS; take it out of the client's settings: ssl=True \
                              (redis-py), tls: {} (ioredis), socket.tls (node-redis), ssl: true \
                              and ssl_params (Ruby), or code that changes the URL back to \
                              rediss://";

/// Serves a connection of the app's to its end.
pub async fn serve(mut app: AppStream, tunnel: &Arc<Tunnel>) {
    let started = Instant::now();
    tunnel.totals.connection();
    debug!(at = "connection-accepted", var = tunnel.variable(), peer = %app.peer());
    spares::note_arrival(tunnel);
    // Boxed, like all that happens once: an idle connection is to hold no room for it.
    match Box::pin(connect(&mut app, tunnel)).await {
        Some(Ok(redis)) => relay_to_end(app, redis, started, tunnel).await,
        Some(Err(failure)) => Box::pin(report(&failure, &mut app, tunnel)).await,
        None => Box::pin(end_tls_app(&mut app, tunnel)).await,
    }
}

/// Connects to Redis; `None` if the app turned out to speak TLS meanwhile.
async fn connect(app: &mut AppStream, tunnel: &Tunnel) -> Option<Result<TlsUpstream, Failure>> {
    let tls = async {
        sleep(TLS_CHECK_DELAY).await;
        if !poll_fn(|cx| app.poll_speaks_tls(cx)).await {
            pending().await
        }
    };
    tokio::select! {
        biased;
        connected = upstream::connect(tunnel) => Some(connected),
        () = tls => None,
    }
}

/// Closes a connection of an app that speaks TLS, and says in the log what to change. It is no
/// failure of Redis's.
async fn end_tls_app(app: &mut AppStream, tunnel: &Tunnel) {
    let (var, peer) = (tunnel.variable(), app.peer());
    if let Err(error) = app.hang_up().await {
        debug!(at = "connection-gone", var, error = %error);
    }
    // An app may try again a hundred times a second.
    if tunnel.tls_warning.is_due(Instant::now()) {
        warning!(at = "app-speaks-tls", var, peer = %peer, msg = APP_SPEAKS_TLS);
    } else {
        info!(at = "app-speaks-tls", var, peer = %peer, msg = APP_SPEAKS_TLS);
    }
}

/// Says in the log why a connection failed, and to the app if it is not an outage.
async fn report(failure: &Failure, app: &mut AppStream, tunnel: &Tunnel) {
    tunnel.totals.failure();
    let hint = failure.hint(tunnel);
    let upstream = &tunnel.route.upstream;
    let var = tunnel.variable();
    warning!(at = failure.event(), var, upstream = %upstream, error = %failure, hint);
    if !failure.is_outage() {
        let answer = format!("{upstream}: {failure}; {hint}");
        if let Err(error) = refusal::refuse(app, &answer).await {
            if app.speaks_tls() {
                return end_tls_app(app, tunnel).await;
            }
            debug!(at = "connection-gone", var, error = %error);
        }
    }
}

/// Relays between the app and Redis, and sees to it that each learns how the other ended.
async fn relay_to_end(app: AppStream, redis: TlsUpstream, started: Instant, tunnel: &Arc<Tunnel>) {
    let mut endpoints = Endpoints { app, redis, finished: false };
    let address = endpoints.redis.tcp().peer_addr();
    let idle_timeout = tunnel.settings.idle_timeout;
    let mut relay =
        Relay::new(&mut endpoints.app, &mut endpoints.redis, idle_timeout, &tunnel.totals);
    let mut answered = false;
    let end = poll_fn(|cx| {
        let end = Pin::new(&mut relay).poll(cx);
        // Not before: making a spare costs time in which the first request would wait.
        if !answered && (relay.received() > 0 || end.is_ready()) {
            answered = true;
            spares::refill(tunnel);
        }
        end
    })
    .await;
    let (sent, received) = (relay.sent(), relay.received());
    let (failed, by_redis) = match &end {
        RelayEnd::Reset(Side::Redis, error) if is_own_failure(error) => {
            (Some(Failure::Internal(io::Error::other(error.to_string()))), false)
        }
        RelayEnd::Reset(Side::Redis, error) => (None, failure::is_hang_up(error)),
        _ => (None, relay.redis_ended_first()),
    };
    drop(relay);

    if endpoints.app.speaks_tls() {
        // Redis has not been sent a byte, and sees an end as good as any.
        let _ = timeout(Duration::ZERO, endpoints.redis.shutdown()).await;
        endpoints.finished = true;
        return Box::pin(end_tls_app(&mut endpoints.app, tunnel)).await;
    }
    if let RelayEnd::Reset(Side::Redis, error) = &end
        && received == 0
        && let Some(refusal) = Box::pin(diagnosis::late_refusal(tunnel, error)).await
    {
        Box::pin(report(&Failure::Misconfigured(refusal), &mut endpoints.app, tunnel)).await;
        endpoints.finished = true;
        return;
    }
    if let Some(failure) = failed {
        Box::pin(report(&failure, &mut endpoints.app, tunnel)).await;
    }
    Box::pin(endpoints.close_gracefully(&end, tunnel.settings.drain_timeout)).await;
    let peer = endpoints.app.peer();
    drop(endpoints);
    if by_redis && sent > 0 && received == 0 && tunnel.unanswered_warning.is_due(Instant::now()) {
        warn_unanswered(tunnel);
    }
    let (reason, error) = match &end {
        RelayEnd::Closed => ("closed", None),
        RelayEnd::Idle => ("idle", None),
        RelayEnd::Reset(Side::App, error) => ("reset-by-app", Some(error.to_string())),
        RelayEnd::Reset(Side::Redis, error) => ("reset-by-redis", Some(error.to_string())),
    };
    info!(
        at = "connection-closed",
        var = tunnel.variable(),
        peer = %peer,
        upstream = %tunnel.route.upstream,
        address = address.ok().map(|address| address.to_string()),
        sent,
        received,
        duration_ms = started.elapsed().as_millis() as u64,
        reason,
        error,
    );
}

/// Says in the log that Redis closed a connection instead of answering. A TLS front in front of a
/// Redis that is down closes so; in front of one at its maxclients, too, when the error that Redis
/// sends is overtaken by the reset that it causes.
fn warn_unanswered(tunnel: &Tunnel) {
    let limit = failure::connection_limit(tunnel);
    warning!(
        at = "connection-unanswered",
        var = tunnel.variable(),
        upstream = %tunnel.route.upstream,
        error = "the server closed the connection without an answer",
        hint = format!("{limit}, or Redis may be down or starting behind what speaks TLS for it"),
    );
}

/// Both ends of a connection. Unless it came to a good end they are reset: a failure, a panic or a
/// drain that took too long must not look like a clean end of stream.
struct Endpoints {
    app: AppStream,
    redis: TlsUpstream,
    finished: bool,
}

impl Endpoints {
    /// Delivers what was sent before a failure, within `limit`, and closes in good order what ended
    /// so.
    async fn close_gracefully(&mut self, end: &RelayEnd, limit: Duration) {
        match end {
            RelayEnd::Closed => self.finished = true,
            RelayEnd::Idle => {
                // Nothing waits in the socket, so close_notify finds room there at once.
                let _ = timeout(Duration::ZERO, self.redis.shutdown()).await;
                self.finished = true;
            }
            // That the time is up is no news: the reset follows in any case.
            RelayEnd::Reset(Side::App, _) => {
                let _ = timeout(limit, await_redis_idle(&mut self.redis)).await;
            }
            RelayEnd::Reset(Side::Redis, _) => {
                // A Unix socket's reader finds what was written even when the writer has gone.
                let Some(tcp) = self.app.tcp() else { return };
                let _ = timeout(limit, acknowledged(tcp)).await;
            }
        }
    }
}

impl Drop for Endpoints {
    fn drop(&mut self) {
        if !self.finished {
            if let Some(tcp) = self.app.tcp() {
                reset_on_close(tcp);
            }
            reset_on_close(self.redis.tcp());
        }
    }
}

/// Waits until the peer's kernel has all that was written.
async fn acknowledged(stream: &TcpStream) {
    while unacknowledged(stream) > 0 {
        sleep(FLUSH_CHECK).await;
    }
}

/// Waits until Redis has worked off what the app had sent before it broke off: until it has all,
/// and sends no more replies. A reset that came earlier would make Redis fail to reply, and drop
/// requests that it has not read yet.
async fn await_redis_idle(redis: &mut TlsUpstream) {
    acknowledged(redis.tcp()).await;
    let mut ignored = [0; IGNORED];
    let quiet = async { while let Ok(Ok(1..)) = timeout(QUIET, redis.read(&mut ignored)).await {} };
    // A subscription, or a flood, is never quiet: then the reset has to come all the same.
    let _ = timeout(LONGEST_UNREST, quiet).await;
}
