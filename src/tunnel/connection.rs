//! Serves one app connection: gets a connection to Redis, relays bytes, and closes both sides.

use std::future::Future;
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::app::AppStream;
use super::drain::DrainGuard;
use super::ends::Ends;
use super::failure::{Failure, is_hang_up};
use super::hints::Described;
use super::meter::Meter;
use super::refusal::{Requests, refuse};
use super::relay::{Relay, RelayEnd, Side};
use super::stream::TlsUpstream;
use super::tap::{NoTap, Progress, Tap};
use super::{Tunnel, attempts, hints, late_refusal, waiting};
use crate::figures::{self, Arrival, CloseReason, Event, UpstreamState};
use crate::logging::{debug, info};
use crate::tls::{Misconfiguration, is_own_failure};

/// The error in the log and on the status page if Redis closes a connection instead of answering.
const UNANSWERED: &str = "the server closed the connection without an answer";

/// Serves one app connection over a new connection to Redis. Returns the result of
/// [`Connection::close`].
pub async fn serve(
    mut app: AppStream,
    tunnel: &Tunnel,
    guard: &mut DrainGuard,
) -> Option<Duration> {
    let deadline = Instant::now() + tunnel.settings.connect_timeout;
    let upstream = attempts::connect(tunnel, deadline, app.spare.take());
    let mut connection = Connection::accept(app, tunnel);
    // Boxing keeps the task of a relayed connection small.
    let upstream = Box::pin(connection.connect(upstream, guard)).await?;
    let end = connection.relay(upstream, &mut NoTap).await;
    Box::pin(connection.close(end)).await
}

/// An app connection that the launcher has accepted, together with its connection to Redis.
pub struct Connection<'t> {
    tunnel: &'t Tunnel,
    arrival: Arrival,
    pub ends: Ends,
    moved: Progress,
    /// The requests that the app sent before Redis's first answer.
    requests: Requests,
    address: Option<SocketAddr>,
    /// True if Redis closed its side before the app closed the app's side.
    pub redis_ended_first: bool,
}

impl<'t> Connection<'t> {
    /// Counts and logs an app connection that has just been accepted.
    pub fn accept(app: AppStream, tunnel: &'t Tunnel) -> Connection<'t> {
        let arrival = tunnel.figures.accept(Instant::now());
        debug!(at = "connection-accepted", var = tunnel.variable(), peer = app.peer());
        Connection {
            tunnel,
            arrival,
            ends: Ends::new(app),
            moved: Progress::default(),
            requests: Requests::default(),
            address: None,
            redis_ended_first: false,
        }
    }

    /// Waits for `upstream`, a connection to Redis. Returns `None` if connecting fails, or if the
    /// app closes its connection before then. In both cases, this function has ended the app
    /// connection, and has logged its end.
    pub async fn connect(
        &mut self,
        upstream: impl Future<Output = Result<TlsUpstream, Failure>>,
        guard: &mut DrainGuard,
    ) -> Option<TlsUpstream> {
        tokio::select! {
            biased;
            connected = upstream => match connected {
                Ok(upstream) => {
                    self.arrival.ready(Instant::now());
                    return Some(upstream);
                }
                Err(failure) => {
                    self.fail(failure).await;
                    self.ends.finish();
                }
            },
            reset = waiting::departure(&mut self.ends.app, guard) => {
                match self.ends.app.speaks_tls() {
                    true => self.end_tls_app().await,
                    false => self.abandoned(reset.as_ref()),
                }
            }
        }
        None
    }

    /// Moves bytes between the app and Redis until the relay ends.
    pub async fn relay<T: Tap>(&mut self, mut upstream: TlsUpstream, tap: &mut T) -> RelayEnd {
        upstream.set_state(UpstreamState::Relaying);
        self.address = Some(upstream.address);
        let redis = self.ends.redis.insert(upstream);
        let mut meter = Meter::new(self.tunnel, tap, &mut self.requests);
        let idle_timeout = self.tunnel.settings.idle_timeout;
        let mut relay = Relay::new(&mut self.ends.app, redis, &mut meter, idle_timeout);
        let end = (&mut relay).await;
        self.moved = relay.progress();
        self.redis_ended_first = relay.redis_ended_first;
        end
    }

    /// Closes both sides after a clean end, or resets both sides after a failure, and logs the end.
    /// If Redis has answered, and the app was the first to close the connection, without an error,
    /// returns how long the connection lasted. Otherwise, returns `None`.
    pub async fn close(mut self, end: RelayEnd) -> Option<Duration> {
        if self.ends.app.speaks_tls() {
            self.end_tls_app().await;
            return None;
        }
        if matches!(end, RelayEnd::Reset(Side::Redis, _)) {
            // Free the slot of this dead connection first. The app may take seconds to receive its
            // last bytes, and `explain_late_refusal` may need the slot for an extra connection.
            self.ends.let_go_of_redis();
        }
        if let Some(refusal) = self.explain_late_refusal(&end).await {
            self.fail(Failure::Misconfigured(refusal)).await;
            self.ends.finish();
            return None;
        }
        if let RelayEnd::Reset(Side::Redis, error) = &end
            && is_own_failure(error)
        {
            self.fail(Failure::Internal(io::Error::other(error.to_string()))).await;
        }
        self.ends.close(&end).await;
        // Close the connection to Redis first, because the hint shows the number of the launcher's
        // open connections.
        self.ends.let_go_of_redis();
        if self.is_unanswered(&end) {
            self.unanswered();
        }
        self.closed(&end)
    }

    /// Returns the reason if the server has refused the client certificate after the handshake.
    async fn explain_late_refusal(&self, end: &RelayEnd) -> Option<Misconfiguration> {
        let RelayEnd::Reset(Side::Redis, error) = end else { return None };
        // A server that sends a reply, or closes its side cleanly, has accepted the client
        // certificate.
        if self.moved.received > 0 || self.redis_ended_first {
            return None;
        }
        late_refusal::behind(self.tunnel, error).await
    }

    /// True if Redis closed the connection instead of answering the app's requests.
    fn is_unanswered(&self, end: &RelayEnd) -> bool {
        let by_redis = match end {
            RelayEnd::Reset(Side::Redis, error) => is_hang_up(error) && !is_own_failure(error),
            _ => self.redis_ended_first,
        };
        by_redis && self.moved.sent > 0 && self.moved.received == 0
    }
}

/// The following functions report the end of a connection to the figures, the log and the app.
impl Connection<'_> {
    /// Counts and logs the end of the app connection. Returns the result of [`Connection::close`].
    fn closed(mut self, end: &RelayEnd) -> Option<Duration> {
        let (counted, reason, error) = match end {
            RelayEnd::Closed | RelayEnd::Kept(None) => (CloseReason::Closed, "closed", None),
            RelayEnd::Idle => (CloseReason::Idle, "idle", None),
            RelayEnd::Reset(Side::App, error) | RelayEnd::Kept(Some(error)) => {
                (CloseReason::AppReset, "reset-by-app", Some(error.to_string()))
            }
            RelayEnd::Reset(Side::Redis, error) => {
                (CloseReason::RedisReset, "reset-by-redis", Some(error.to_string()))
            }
        };
        self.arrival.closed(counted);
        let lasted = self.arrival.accepted.elapsed();
        info!(
            at = "connection-closed",
            var = self.tunnel.variable(),
            peer = self.ends.app.peer(),
            upstream = %self.tunnel.route.upstream,
            address = self.address.map(|address| address.to_string()),
            sent = self.moved.sent,
            received = self.moved.received,
            duration_ms = lasted.as_millis() as u64,
            reason,
            error,
        );
        let closed_by_app = counted == CloseReason::Closed && !self.redis_ended_first;
        (closed_by_app && self.moved.received > 0).then_some(lasted)
    }

    /// Counts and logs the reason why connecting to Redis failed. If a setting is wrong, the app
    /// gets a Redis error. During an outage, the app gets no Redis error, because the app would not
    /// get such an error without a tunnel either.
    async fn fail(&mut self, failure: Failure) {
        let tunnel = self.tunnel;
        let Described { reason, error, hint } = failure.describe(tunnel);
        self.arrival.failed(reason, error.clone(), hint.clone());
        tunnel.warn(failure.event(), Some(reason.word()), &error, &hint);
        if failure.is_temporary() {
            return;
        }
        let requests = mem::take(&mut self.requests);
        let answer = format!("{}: {error}; {hint}", tunnel.route.upstream);
        match refuse(&mut self.ends.app, &answer, requests).await {
            Ok(()) => {}
            Err(_) if self.ends.app.speaks_tls() => self.hang_up_on_tls().await,
            Err(error) => debug!(at = "connection-gone", var = tunnel.variable(), error = %error),
        }
    }

    /// Closes both sides of the connection of an app that speaks TLS itself. Redis has received no
    /// byte from this app.
    async fn end_tls_app(&mut self) {
        self.ends.close_unused_redis().await;
        self.ends.finish();
        self.hang_up_on_tls().await;
        self.arrival.closed(CloseReason::Closed);
    }

    /// Closes the app's side, and logs which client setting to remove.
    async fn hang_up_on_tls(&mut self) {
        let peer = self.ends.app.peer();
        if let Err(error) = self.ends.app.hang_up().await {
            debug!(at = "connection-gone", var = self.tunnel.variable(), error = %error);
        }
        let error = format!(
            "the app (at {peer}) speaks TLS to the local port, which expects plaintext: the \
             launcher adds TLS itself"
        );
        self.tunnel.warn(Event::AppSpeaksTls, None, &error, hints::APP_SPEAKS_TLS);
    }

    /// Counts and logs an app connection that the app closed or reset while waiting for Redis.
    /// `reset` is the error if the app reset the connection.
    fn abandoned(&mut self, reset: Option<&io::Error>) {
        self.arrival.closed(CloseReason::Abandoned);
        info!(
            at = "connection-abandoned",
            var = self.tunnel.variable(),
            peer = self.ends.app.peer(),
            waited_ms = self.arrival.accepted.elapsed().as_millis() as u64,
            error = reset.map(ToString::to_string),
        );
    }

    /// Counts and logs a connection that Redis closed instead of answering. A TLS proxy closes a
    /// connection without an answer if the Redis behind the proxy is down. The proxy may do the
    /// same if Redis is at its client limit: Redis sends an error and then a reset, and the reset
    /// makes the proxy lose the error.
    fn unanswered(&self) {
        let hint = hints::unanswered(self.tunnel);
        self.tunnel.warn(Event::Unanswered, None, UNANSWERED, &hint);
        self.tunnel.figures.fails(figures::UNANSWERED, UNANSWERED.to_owned(), hint);
    }
}
