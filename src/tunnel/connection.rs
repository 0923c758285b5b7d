//! One connection's life: get an upstream, relay, close both sides.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use super::app::AppStream;
use super::drain::DrainGuard;
use super::ends::Ends;
use super::failure::{Failure, is_hang_up};
use super::hints::Described;
use super::meter::Meter;
use super::refusal::{FirstRequest, refuse};
use super::relay::{Relay, RelayEnd, Side};
use super::stream::TlsUpstream;
use super::tap::{NoTap, Progress, Tap};
use super::waiting::{self, Departure};
use super::warnings::{UpstreamEvent, Warning};
use super::{Tunnel, attempts, hints, late_refusal};
use crate::figures::{self, Arrival, CloseReason, UpstreamState};
use crate::logging::{debug, info};
use crate::tls::{Misconfiguration, is_own_failure};

/// The error in the log and on the status page if Redis closes a connection instead of answering.
const UNANSWERED: &str = "the server closed the connection without an answer";

/// Serves one app connection over a new connection to Redis.
pub async fn serve(mut app: AppStream, tunnel: &Tunnel, guard: &mut DrainGuard) -> Outcome {
    let upstream = attempts::connect(tunnel, app.take_spare());
    let mut connection = Connection::accept(app, tunnel);
    // Boxing keeps the task of a relayed connection small.
    let connected = Box::pin(connection.connect(upstream, guard)).await;
    let Some(upstream) = connected else { return connection.outcome() };
    let course = connection.relay(upstream, &mut NoTap).await;
    Box::pin(connection.close(course)).await
}

/// An app connection, from accept to close.
pub struct Connection<'t> {
    tunnel: &'t Tunnel,
    arrival: Arrival,
    pub ends: Ends,
    moved: Progress,
    address: Option<SocketAddr>,
}

/// How a relay ended.
#[derive(Debug)]
pub struct Course {
    pub end: RelayEnd,
    /// Redis closed its side before the app closed its own.
    pub redis_ended_first: bool,
}

/// A summary of an app connection that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    pub lasted: Duration,
    /// Redis has sent the app at least one byte.
    pub answered: bool,
    /// The app closed the connection, without an error and before Redis did.
    pub closed_by_app: bool,
}

impl<'t> Connection<'t> {
    /// Counts and logs an app connection that has just been accepted.
    pub fn accept(app: AppStream, tunnel: &'t Tunnel) -> Connection<'t> {
        let arrival = tunnel.figures.accept(Instant::now());
        debug!(at = "connection-accepted", var = tunnel.variable(), peer = app.peer());
        let (ends, moved) = (Ends::new(app), Progress::default());
        Connection { tunnel, arrival, ends, moved, address: None }
    }

    /// Waits for `upstream`, a connection to Redis. Returns `None` if connecting fails, or if the
    /// app leaves meanwhile. In both cases, the app connection has ended, and its end is logged.
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
            departure = waiting::departure(&mut self.ends.app, guard) => match departure {
                Departure::SpeaksTls => self.end_tls_app().await,
                Departure::GaveUp(reset) => self.abandoned(reset.as_ref()),
            },
        }
        None
    }

    /// Relays between the app and Redis.
    pub async fn relay<T: Tap>(&mut self, mut upstream: TlsUpstream, tap: &mut T) -> Course {
        upstream.set_state(UpstreamState::Relaying);
        self.address = Some(upstream.address);
        let redis = self.ends.redis.insert(upstream);
        let mut meter = Meter::new(self.tunnel, tap);
        let idle_timeout = self.tunnel.settings.idle_timeout;
        let mut relay = Relay::new(&mut self.ends.app, redis, &mut meter, idle_timeout);
        let end = (&mut relay).await;
        self.moved = relay.progress();
        Course { end, redis_ended_first: relay.redis_ended_first }
    }

    /// Closes or resets each side as the other side did, and logs the end.
    pub async fn close(mut self, course: Course) -> Outcome {
        if self.ends.app.speaks_tls() {
            self.end_tls_app().await;
            return self.outcome();
        }
        let late_refusal = self.explain_late_refusal(&course).await;
        if let Some(refusal) = late_refusal {
            self.fail(Failure::Misconfigured(refusal)).await;
            self.ends.finish();
            return self.outcome();
        }
        if let RelayEnd::Reset(Side::Redis, error) = &course.end
            && is_own_failure(error)
        {
            self.fail(Failure::Internal(io::Error::other(error.to_string()))).await;
        }
        self.ends.close(&course.end).await;
        // Close this connection first, because the hint counts the launcher's connections.
        self.ends.let_go_of_redis();
        if self.is_unanswered(&course) {
            self.unanswered();
        }
        self.closed(&course)
    }

    /// If the server refused the client's certificate after the handshake, asks the server for the
    /// reason. This closes the connection.
    async fn explain_late_refusal(&mut self, course: &Course) -> Option<Misconfiguration> {
        let RelayEnd::Reset(Side::Redis, error) = &course.end else { return None };
        // A server that sends a reply, or closes its side cleanly, has accepted the client.
        if self.moved.received > 0 || course.redis_ended_first {
            return None;
        }
        // Asking the server for the reason may need the slot of this dead connection.
        self.ends.let_go_of_redis();
        late_refusal::behind(self.tunnel, error).await
    }

    /// True if Redis closed the connection instead of answering.
    fn is_unanswered(&self, course: &Course) -> bool {
        let by_redis = match &course.end {
            RelayEnd::Reset(Side::Redis, error) => is_hang_up(error) && !is_own_failure(error),
            _ => course.redis_ended_first,
        };
        by_redis && self.moved.sent > 0 && self.moved.received == 0
    }

    /// The summary so far, in which the app has not closed its connection.
    pub fn outcome(&self) -> Outcome {
        let (lasted, answered) = (self.arrival.accepted.elapsed(), self.moved.received > 0);
        Outcome { lasted, answered, closed_by_app: false }
    }
}

/// Reports how the connection ended, to the figures, the log and the app.
impl Connection<'_> {
    /// Counts and logs the end of the app connection.
    fn closed(mut self, course: &Course) -> Outcome {
        let (counted, reason, error) = match &course.end {
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
        let mut outcome = self.outcome();
        outcome.closed_by_app = counted == CloseReason::Closed && !course.redis_ended_first;
        info!(
            at = "connection-closed",
            var = self.tunnel.variable(),
            peer = self.ends.app.peer(),
            upstream = %self.tunnel.route.upstream,
            address = self.address.map(|address| address.to_string()),
            sent = self.moved.sent,
            received = self.moved.received,
            duration_ms = outcome.lasted.as_millis() as u64,
            reason,
            error,
        );
        outcome
    }

    /// Counts and logs why there is no connection to Redis. If a setting is wrong, the app gets an
    /// error. During an outage, the app gets no error, as without a tunnel.
    async fn fail(&mut self, failure: Failure) {
        let tunnel = self.tunnel;
        let described = failure.describe(tunnel);
        tunnel.warnings.warn(described.warning(failure.event()));
        let Described { reason, error, hint } = described;
        self.arrival.failed(reason, error.clone(), hint.clone());
        if failure.is_outage() {
            return;
        }
        let first = match self.moved.sent > 0 {
            true => FirstRequest::Read,
            false => FirstRequest::ToCome,
        };
        let answer = format!("{}: {error}; {hint}", tunnel.route.upstream);
        match refuse(&mut self.ends.app, &answer, first).await {
            Ok(()) => {}
            Err(_) if self.ends.app.speaks_tls() => self.hang_up_on_tls().await,
            Err(error) => debug!(at = "connection-gone", var = tunnel.variable(), error = %error),
        }
    }

    /// Closes both sides if the app speaks TLS itself. Redis has received no byte from the app.
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
        self.tunnel.warnings.warn(Warning::AppSpeaksTls { peer, msg: hints::APP_SPEAKS_TLS });
    }

    /// Counts and logs that the app has closed or reset its connection while it waited for Redis.
    /// `reset` is the error of a reset.
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

    /// Counts and logs that Redis closed the connection instead of answering. A TLS proxy does this
    /// if the Redis behind it is down or at its client limit, because a reset overtakes Redis's
    /// error.
    fn unanswered(&self) {
        let (error, hint) = (UNANSWERED.to_owned(), hints::unanswered(self.tunnel));
        self.tunnel.figures.fails(figures::UNANSWERED, error.clone(), hint.clone());
        let event = UpstreamEvent::Unanswered;
        self.tunnel.warnings.warn(Warning::Upstream { event, reason: None, error, hint });
    }
}
