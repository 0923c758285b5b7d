//! The figures of one tunnel.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::counts::Counts;
use super::history::{History, Point};
use super::reason::{FailureReason, Handshake, PoolResult};
use super::unix_ms;

/// The facts about a tunnel that do not change. The facts contain no secret, because the metrics,
/// the status page and the log show these facts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelLabels {
    /// The names of the variables whose URLs lead through the tunnel. There is at least one name,
    /// and the first name is also the tunnel's name.
    pub variables: Vec<String>,
    /// The server to which the tunnel leads, as `host:port`.
    pub upstream: String,
    /// The tunnel's `--verify` level.
    pub verify: &'static str,
    /// True if a pin is set, which authenticates the server at every `--verify` level.
    pub pinned: bool,
    /// The limit on the tunnel's connections to Redis. `None` if there is no limit.
    pub limit: Option<u64>,
}

/// A tunnel's latest failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureText {
    /// The time of the failure, in milliseconds since 1970.
    pub at: u64,
    /// The reason for the failure: the word of a [`super::FailureReason`], [`UNANSWERED`] or
    /// [`FULL`].
    pub reason: &'static str,
    pub error: String,
    pub hint: String,
}

/// The server's certificate in the latest full TLS handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateText {
    /// The host names in the certificate. A hostile server can put any text into the names.
    pub names: String,
    /// The end of the certificate's validity, in seconds since 1970.
    pub expires: i64,
}

/// The reason for a failure in which Redis closed a connection instead of answering a request.
pub const UNANSWERED: &str = "unanswered";
/// The reason for a failure in which Redis's first reply said that Redis has too many clients.
pub const FULL: &str = "max_clients";

/// A tunnel counts as failing for this long after its latest failure, unless Redis answers a new
/// connection earlier.
pub const LAPSE: Duration = Duration::from_secs(60);

/// The figures of one tunnel.
#[derive(Debug, Default)]
pub struct TunnelFigures {
    pub(super) labels: TunnelLabels,
    pub(super) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub counts: Counts,
    history: History,
    /// The time of the first failure since Redis last answered a new connection, in milliseconds
    /// since 1970. `None` if there was no such failure.
    failing_since: Option<u64>,
    last_failed: Option<Instant>,
    failure: Option<FailureText>,
    certificate: Option<CertificateText>,
    /// For each connection that waits for a reply, the time at which the oldest unanswered bytes
    /// were sent. The keys of the map are the keys of the [`super::ReplyClock`]s.
    pub waits: HashMap<u64, Instant>,
    /// The key that the latest [`super::ReplyClock`] got.
    pub last_key: u64,
}

/// A copy of a tunnel's figures at one moment.
#[derive(Debug, Clone)]
pub struct TunnelSnapshot {
    pub labels: TunnelLabels,
    pub counts: Counts,
    /// The number of connections from all tunnels to this tunnel's server. Connections that have
    /// not finished the TLS handshake do not count.
    pub open_to_server: u64,
    /// The time that the oldest unanswered request has waited for a reply. Zero if no request
    /// waits.
    pub longest_wait_for_reply: Duration,
    /// The time of the tunnel's first failure since Redis last answered a new connection, in
    /// milliseconds since 1970. `None` if there was none, or if the latest failure is older than
    /// [`LAPSE`].
    pub failing_since: Option<u64>,
    /// True if Redis has answered no new connection since the tunnel's latest failure, and the
    /// failure is older than [`LAPSE`].
    pub has_lapsed: bool,
    pub failure: Option<FailureText>,
    pub certificate: Option<CertificateText>,
    /// The counts of the last five minutes.
    pub recent: Counts,
    /// The numbers of each time slot in the last ten minutes, the oldest slot first.
    pub graph: Vec<Point>,
}

impl TunnelSnapshot {
    /// Returns the name of the tunnel's first variable, which is also the tunnel's name.
    pub fn variable(&self) -> &str {
        self.labels.variables.first().map_or("", String::as_str)
    }
}

impl State {
    /// True if the tunnel has not failed, or if its latest failure is too old to tell whether the
    /// tunnel works now.
    fn has_no_recent_failure(&self, now: Instant) -> bool {
        self.last_failed.is_none_or(|failed| now - failed >= LAPSE)
    }

    /// Counts a failed app connection. Afterwards, the tunnel counts as failing. The exception is a
    /// timeout in the queue for a connection: if Redis has ever answered, such a timeout shows only
    /// that all connections are in use.
    pub fn failed(&mut self, reason: FailureReason, error: String, hint: String) {
        self.counts.failed[reason as usize] += 1;
        let is_queue = reason == FailureReason::QueueTimeout;
        if !is_queue || self.counts.last_success.is_none() {
            self.fails(reason.word(), error, hint);
        } else if self.failing_since.is_none() {
            self.note_failure(reason.word(), error, hint);
        }
    }

    /// Makes the tunnel count as failing.
    fn fails(&mut self, reason: &'static str, error: String, hint: String) {
        let now = Instant::now();
        if self.failing_since.is_none() || self.has_no_recent_failure(now) {
            self.failing_since = Some(unix_ms(SystemTime::now()));
        }
        self.last_failed = Some(now);
        self.note_failure(reason, error, hint);
    }

    /// Notes the failure that the status page shows.
    fn note_failure(&mut self, reason: &'static str, error: String, hint: String) {
        let at = unix_ms(SystemTime::now());
        self.failure = Some(FailureText { at, reason, error, hint });
    }
}

impl TunnelFigures {
    /// Locks the tunnel's figures. Callers may change only counts that the history does not show.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the tunnel's figures, and ends each time slot of the history that is over at the time
    /// `now`.
    pub(super) fn state_at(&self, now: Instant) -> MutexGuard<'_, State> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.history.roll(now, &mut state.counts);
        guard
    }

    /// Counts a failed attempt to accept an app connection. From now on, the tunnel counts as
    /// failing.
    pub fn accept_failed(&self, reason: &'static str, error: String, hint: String) {
        let mut state = self.state_at(Instant::now());
        state.counts.accept_errors += 1;
        state.fails(reason, error, hint);
    }

    /// Counts bytes that the launcher wrote to Redis (`sent`) and to the app (`received`).
    pub fn moved(&self, sent: u64, received: u64) {
        let counts = &mut self.state().counts;
        counts.sent += sent;
        counts.received += received;
    }

    /// Notes that Redis has sent the first byte on an app connection, which shows that the tunnel
    /// works.
    pub fn answered(&self) {
        self.state().failing_since = None;
    }

    /// Notes a failure. The tunnel counts as failing until Redis answers a new connection, or until
    /// the failure is older than [`LAPSE`]. `reason` is [`UNANSWERED`] or [`FULL`].
    pub fn fails(&self, reason: &'static str, error: String, hint: String) {
        self.state().fails(reason, error, hint);
    }

    /// Counts a successful TLS handshake. `took` is the handshake's duration.
    pub fn shook_hands(&self, resumed: bool, took: Duration) {
        let kind = if resumed { Handshake::Resumed } else { Handshake::Full };
        self.state().counts.handshakes[kind as usize].observe(took);
    }

    /// Notes the names in the server's certificate. `expires` is the end of the certificate's
    /// validity, in seconds since 1970.
    pub fn saw_certificate(&self, names: String, expires: i64) {
        self.state().certificate = Some(CertificateText { names, expires });
    }

    /// Counts a connection that Redis refused, probably because Redis was at its client limit.
    /// Redis either replied that it has too many clients, or closed the connection during the TLS
    /// handshake while this launcher had other connections.
    pub fn turned_away(&self) {
        self.state_at(Instant::now()).counts.max_clients += 1;
    }

    /// Returns one of the tunnel's counts. `count` selects the count.
    pub fn count(&self, count: fn(&Counts) -> u64) -> u64 {
        count(&self.state().counts)
    }

    /// Counts a connection to Redis that the pool gave to an app connection.
    pub fn pooled(&self, result: PoolResult) {
        self.state().counts.pool[result as usize] += 1;
    }

    pub(super) fn snapshot(&self, now: Instant) -> TunnelSnapshot {
        let state = self.state_at(now);
        let has_lapsed = state.has_no_recent_failure(now);
        let oldest_wait = state.waits.values().min();
        TunnelSnapshot {
            labels: self.labels.clone(),
            counts: state.counts.clone(),
            open_to_server: 0,
            longest_wait_for_reply: oldest_wait.map_or(Duration::ZERO, |since| now - *since),
            failing_since: state.failing_since.filter(|_| !has_lapsed),
            has_lapsed: state.failing_since.is_some() && has_lapsed,
            failure: state.failure.clone(),
            certificate: state.certificate.clone(),
            recent: state.history.recent(&state.counts),
            graph: state.history.graph(&state.counts),
        }
    }
}
