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
use super::reuse::Reuse;
use super::socket::{reset_on_close, unacknowledged};
use super::stream::TlsUpstream;
use super::supply::{self, Supplied};
use super::warnings::{UpstreamEvent, Warning};
use super::{Tunnel, diagnosis, failure, hints, refusal};
use crate::figures::{Arrival, CloseReason};
use crate::logging::{debug, info};
use crate::pool::{HandOver, Place};
use crate::tls::is_own_failure;

/// What went wrong, as the status page and the log have it.
const UNANSWERED: &str = "the server closed the connection without an answer";
const FULL: &str = "Redis answered that it has too many clients";
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

/// Serves a connection of the app's to its end; returns the connection to Redis if that can have
/// another user.
pub async fn serve(mut app: AppStream, tunnel: &Arc<Tunnel>) -> Option<TlsUpstream> {
    let started = Instant::now();
    let mut arrival = tunnel.figures.accept(started);
    debug!(at = "connection-accepted", var = tunnel.variable(), peer = %app.peer());
    tunnel.stock.note_arrival(started);
    // Boxed, like all that happens once: an idle connection is to hold no room for it.
    match Box::pin(connect(&mut app, tunnel)).await {
        Some(Ok(supplied)) => {
            arrival.ready(Instant::now());
            relay_to_end(app, supplied, arrival, tunnel).await
        }
        Some(Err(failure)) => {
            Box::pin(report(&failure, &mut app, &mut arrival, tunnel)).await;
            None
        }
        None => {
            Box::pin(end_tls_app(&mut app, tunnel)).await;
            arrival.closed(CloseReason::Closed);
            None
        }
    }
}

/// Connects to Redis; `None` if the app turned out to speak TLS meanwhile.
async fn connect(app: &mut AppStream, tunnel: &Tunnel) -> Option<Result<Supplied, Failure>> {
    let tls = async {
        sleep(TLS_CHECK_DELAY).await;
        if !poll_fn(|cx| app.poll_speaks_tls(cx)).await {
            pending().await
        }
    };
    tokio::select! {
        biased;
        connected = supply::connect(tunnel, Place::Back) => Some(connected),
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
    let (peer, msg) = (peer.to_string(), hints::APP_SPEAKS_TLS);
    tunnel.warnings.warn(Warning::AppSpeaksTls { peer, msg });
}

/// Says in the log why a connection failed, and to the app if it is not an outage.
async fn report(failure: &Failure, app: &mut AppStream, arrival: &mut Arrival, tunnel: &Tunnel) {
    let hint = failure.hint(tunnel);
    arrival.failed(failure.reason(), failure.to_string(), hint.clone());
    tunnel.note_failure(failure);
    let upstream = &tunnel.route.upstream;
    let var = tunnel.variable();
    tunnel.warnings.warn(failure.warning(hint.clone()));
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

/// How a connection went.
struct Course {
    end: RelayEnd,
    sent: u64,
    received: u64,
    redis_ended_first: bool,
}

/// Relays between the app and Redis, and sees to it that each learns how the other ended; returns
/// the connection to Redis if that can have another user.
async fn relay_to_end(
    app: AppStream,
    supplied: Supplied,
    mut arrival: Arrival,
    tunnel: &Arc<Tunnel>,
) -> Option<TlsUpstream> {
    let Supplied { stream, mut hand_over, mut is_new } = supplied;
    let mut endpoints = Endpoints { app, redis: Some(stream), finished: false };
    let mut resend = Vec::new();
    let course = loop {
        let again = std::mem::take(&mut resend);
        let (course, copy) = relay(&mut endpoints, hand_over, is_new, again, tunnel).await;
        let Some(copy) = copy else { break course };
        let dead = endpoints.redis.take().expect("it was there");
        match Box::pin(supply::replace(tunnel, dead)).await {
            Ok(supplied) => {
                let stream;
                Supplied { stream, hand_over, is_new } = supplied;
                endpoints.redis = Some(stream);
                resend = copy;
            }
            Err(failure) => {
                Box::pin(report(&failure, &mut endpoints.app, &mut arrival, tunnel)).await;
                endpoints.finished = true;
                return None;
            }
        }
    };
    let address = endpoints.redis.as_ref().map(|redis| redis.address);
    let (returned, unanswered) = match course.end {
        RelayEnd::Returned(_) if !endpoints.app.speaks_tls() => {
            endpoints.finished = true;
            (endpoints.redis.take(), false)
        }
        _ => {
            tunnel.stock.note_loss(Instant::now());
            match Box::pin(end(&mut endpoints, &course, &mut arrival, tunnel)).await {
                Told::All => return None,
                Told::Nothing { unanswered } => (None, unanswered),
            }
        }
    };
    let peer = endpoints.app.peer();
    drop(endpoints);
    // Behind its end: it is none of those that the launcher holds.
    if unanswered {
        note_unanswered(tunnel);
    }
    let Course { end, sent, received, .. } = course;
    let (counted, reason, error) = match &end {
        RelayEnd::Closed | RelayEnd::Returned(None) => (CloseReason::Closed, "closed", None),
        RelayEnd::Idle => (CloseReason::Idle, "idle", None),
        RelayEnd::Reset(Side::App, error) | RelayEnd::Returned(Some(error)) => {
            (CloseReason::AppReset, "reset-by-app", Some(error.to_string()))
        }
        RelayEnd::Reset(Side::Redis, error) | RelayEnd::Stale(error) => {
            (CloseReason::RedisReset, "reset-by-redis", Some(error.to_string()))
        }
    };
    arrival.closed(counted);
    info!(
        at = "connection-closed",
        var = tunnel.variable(),
        peer = %peer,
        upstream = %tunnel.route.upstream,
        address = address.map(|address| address.to_string()),
        sent,
        received,
        duration_ms = arrival.accepted().elapsed().as_millis() as u64,
        reason,
        error,
    );
    returned
}

/// Relays until one of the ends is reached; what is to be sent on another connection, if this one
/// to Redis turned out to be dead before the app's first request was answered.
async fn relay(
    endpoints: &mut Endpoints,
    hand_over: HandOver,
    is_new: bool,
    resend: Vec<u8>,
    tunnel: &Arc<Tunnel>,
) -> (Course, Option<Vec<u8>>) {
    let redis = endpoints.redis.as_mut().expect("there is one until it is given back");
    let reuse = Reuse::new(hand_over == HandOver::ResetFirst, tunnel.stock.keeps(Instant::now()));
    let idle_timeout = tunnel.settings.idle_timeout;
    let mut relay = Relay::new(&mut endpoints.app, redis, idle_timeout, reuse, &tunnel.figures)
        .resending(resend);
    let mut answered = false;
    let end = poll_fn(|cx| {
        let end = Pin::new(&mut relay).poll(cx);
        // Not before: making a spare costs time in which the first request would wait.
        if !answered && (relay.received() > 0 || end.is_ready()) {
            answered = true;
            if relay.is_turned_away() {
                tunnel.figures.refused_as_full(FULL.to_owned(), hints::full());
            } else if relay.received() > 0 {
                tunnel.figures.answered();
            }
            tunnel.note_session(is_new && relay.received() > 0);
            supply::refill(tunnel);
        } else if !answered {
            // The server's tickets come before its first answer.
            tunnel.note_session(false);
        }
        end
    })
    .await;
    let not_reset = relay.was_not_reset();
    if not_reset {
        tunnel.stock.note_failed(Instant::now());
    }
    let mut copy = None;
    let mut redis_ended_first = relay.redis_ended_first();
    let unprovoked = match &end {
        RelayEnd::Stale(_) | RelayEnd::Reset(Side::Redis, _) => !not_reset,
        _ => redis_ended_first && relay.is_settled(),
    };
    let end = match end {
        RelayEnd::Stale(error) => {
            copy = relay.take_copy();
            redis_ended_first = true;
            // What cannot be sent once more ends as Redis ended it.
            match error.kind() {
                io::ErrorKind::UnexpectedEof => RelayEnd::Closed,
                _ => RelayEnd::Reset(Side::Redis, error),
            }
        }
        end => end,
    };
    let (sent, received) = (relay.sent(), relay.received());
    drop(relay);
    if unprovoked && let Some(redis) = &endpoints.redis {
        redis.permit().server_ended();
    }
    (Course { end, sent, received, redis_ended_first }, copy)
}

/// What the log has been told of a connection's end.
enum Told {
    All,
    Nothing {
        /// Redis closed instead of answering.
        unanswered: bool,
    },
}

/// Ends a connection that is not kept.
async fn end(
    endpoints: &mut Endpoints,
    course: &Course,
    arrival: &mut Arrival,
    tunnel: &Tunnel,
) -> Told {
    let Course { end, sent, received, .. } = course;
    let (failed, by_redis) = match end {
        RelayEnd::Reset(Side::Redis, error) if is_own_failure(error) => {
            (Some(Failure::Internal(io::Error::other(error.to_string()))), false)
        }
        RelayEnd::Reset(Side::Redis, error) => (None, failure::is_hang_up(error)),
        _ => (None, course.redis_ended_first),
    };
    if endpoints.app.speaks_tls() {
        // Redis has not been sent a byte, and sees an end as good as any.
        if let Some(redis) = &mut endpoints.redis {
            let _ = timeout(Duration::ZERO, redis.shutdown()).await;
        }
        endpoints.finished = true;
        end_tls_app(&mut endpoints.app, tunnel).await;
        arrival.closed(CloseReason::Closed);
        return Told::All;
    }
    if let RelayEnd::Reset(Side::Redis, error) = end
        && *received == 0
        && let Some(refusal) = {
            // It is dead, and its place is needed to ask.
            endpoints.redis = None;
            diagnosis::late_refusal(tunnel, error).await
        }
    {
        let failure = Failure::Misconfigured(refusal);
        report(&failure, &mut endpoints.app, arrival, tunnel).await;
        endpoints.finished = true;
        return Told::All;
    }
    if let Some(failure) = failed {
        report(&failure, &mut endpoints.app, arrival, tunnel).await;
    }
    endpoints.close_gracefully(end, tunnel.settings.drain_timeout).await;
    Told::Nothing { unanswered: by_redis && *sent > 0 && *received == 0 }
}

/// Counts, and says in the log, that Redis closed a connection instead of answering. A TLS front in
/// front of a Redis that is down closes so; in front of one at its maxclients, too, when the error
/// that Redis sends is overtaken by the reset that it causes.
fn note_unanswered(tunnel: &Tunnel) {
    let (error, hint) = (UNANSWERED.to_owned(), hints::unanswered(tunnel));
    tunnel.figures.unanswered(error.clone(), hint.clone());
    let event = UpstreamEvent::Unanswered;
    tunnel.warnings.warn(Warning::Upstream { event, reason: None, error, hint });
}

/// Both ends of a connection. Unless it came to a good end they are reset: a failure, a panic or a
/// drain that took too long must not look like a clean end of stream.
struct Endpoints {
    app: AppStream,
    /// `None` once it is another's, or closed.
    redis: Option<TlsUpstream>,
    finished: bool,
}

impl Endpoints {
    /// Delivers what was sent before a failure, within `limit`, and closes in good order what ended
    /// so.
    async fn close_gracefully(&mut self, end: &RelayEnd, limit: Duration) {
        match (end, &mut self.redis) {
            (RelayEnd::Closed, _) => self.finished = true,
            (RelayEnd::Idle, Some(redis)) => {
                // Nothing waits in the socket, so close_notify finds room there at once.
                let _ = timeout(Duration::ZERO, redis.shutdown()).await;
                self.finished = true;
            }
            // That the time is up is no news: the reset follows in any case.
            (RelayEnd::Reset(Side::App, _), Some(redis)) => {
                let _ = timeout(limit, await_redis_idle(redis)).await;
            }
            (RelayEnd::Reset(Side::Redis, _) | RelayEnd::Stale(_), _) => {
                // A Unix socket's reader finds what was written even when the writer has gone.
                let Some(tcp) = self.app.tcp() else { return };
                let _ = timeout(limit, acknowledged(tcp)).await;
            }
            (RelayEnd::Idle | RelayEnd::Reset(Side::App, _), None) | (RelayEnd::Returned(_), _) => {
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
            if let Some(redis) = &self.redis {
                reset_on_close(redis.tcp());
            }
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
