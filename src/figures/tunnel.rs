//! The figures of one tunnel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::counts::Counts;
use super::history::{History, Point};
use super::reason::{Handshake, PoolResult};
use super::unix_ms;

/// The texts that identify a tunnel in metrics, on the page and in the log. They hold no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelLabels {
    /// The variables that lead through the tunnel; never empty. The first one names the tunnel.
    pub variables: Vec<String>,
    /// The server, as `host:port`.
    pub upstream: String,
    /// The tunnel's `--verify` level.
    pub verify: &'static str,
}

/// The latest failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureText {
    /// Milliseconds since 1970.
    pub at: u64,
    /// The word of a [`super::FailureReason`], [`UNANSWERED`] or [`FULL`].
    pub reason: &'static str,
    pub error: String,
    pub hint: String,
}

/// The server's certificate as of the latest full handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateText {
    /// The certificate's names. The server chooses them, so they are not trusted.
    pub names: String,
    /// Seconds since 1970.
    pub expires: i64,
}

/// The reason shown if Redis closed a connection instead of answering.
pub const UNANSWERED: &str = "unanswered";
/// The reason shown if Redis's first reply was that it has too many clients.
pub const FULL: &str = "max_clients";

/// A failure counts as current for this long.
pub const LAPSE: Duration = Duration::from_secs(60);

/// One tunnel's figures.
#[derive(Debug)]
pub struct TunnelFigures {
    pub(super) labels: TunnelLabels,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub counts: Counts,
    history: History,
    /// Milliseconds since 1970; `None`: the latest attempt succeeded, or there was none.
    failing_since: Option<u64>,
    last_failed: Option<Instant>,
    failure: Option<FailureText>,
    certificate: Option<CertificateText>,
    /// For each connection that waits for a reply: when its oldest unanswered bytes were sent. The
    /// keys are those of [`super::ReplyClock`].
    pub waits: HashMap<u64, Instant>,
    /// The latest key given to a [`super::ReplyClock`].
    pub last_key: u64,
}

/// A tunnel's figures at one moment.
#[derive(Debug, Clone)]
pub struct TunnelSnapshot {
    pub labels: TunnelLabels,
    pub counts: Counts,
    /// The number of open connections from all tunnels to this tunnel's server.
    pub open_to_server: u64,
    /// The longest time that a connection has waited for Redis's next reply; zero if no connection
    /// waits.
    pub longest_wait_for_reply: Duration,
    /// When the tunnel first failed after its last success, in milliseconds since 1970. `None` if
    /// the tunnel works, or if its latest failure is older than [`LAPSE`].
    pub failing_since: Option<u64>,
    /// True if the latest attempt failed, and is older than [`LAPSE`].
    pub has_lapsed: bool,
    pub failure: Option<FailureText>,
    pub certificate: Option<CertificateText>,
    /// The counts of the last five minutes.
    pub recent: Counts,
    /// The last ten minutes, the oldest slot first.
    pub graph: Vec<Point>,
}

impl TunnelSnapshot {
    /// The variable that names the tunnel.
    pub fn variable(&self) -> &str {
        self.labels.variables.first().map_or("", String::as_str)
    }
}

impl State {
    /// True if the latest failure is too old to count as current.
    fn has_lapsed(&self, now: Instant) -> bool {
        self.last_failed.is_none_or(|failed| now - failed >= LAPSE)
    }

    pub fn fails(&mut self, reason: &'static str, error: String, hint: String) {
        let (at, now) = (unix_ms(SystemTime::now()), Instant::now());
        if self.failing_since.is_none() || self.has_lapsed(now) {
            self.failing_since = Some(at);
        }
        self.last_failed = Some(now);
        self.failure = Some(FailureText { at, reason, error, hint });
    }
}

impl TunnelFigures {
    pub fn new(labels: TunnelLabels) -> TunnelFigures {
        TunnelFigures { labels, state: Mutex::default() }
    }

    /// Figures nobody reads: for `--check` and tests.
    pub fn unread() -> Arc<TunnelFigures> {
        Arc::new(TunnelFigures::new(TunnelLabels::default()))
    }

    /// The state, for counts that the history does not show.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, with the history brought up to `now`.
    pub(super) fn state_at(&self, now: Instant) -> MutexGuard<'_, State> {
        let mut guard = self.state();
        let state = &mut *guard;
        state.history.roll(now, &mut state.counts);
        guard
    }

    /// Counts a failed attempt to accept an app connection. The tunnel counts as failing.
    pub fn accept_failed(&self, reason: &'static str, error: String, hint: String) {
        let mut state = self.state_at(Instant::now());
        state.counts.accept_errors += 1;
        state.fails(reason, error, hint);
    }

    /// Counts bytes written to Redis (`sent`) and to the app (`received`).
    pub fn moved(&self, sent: u64, received: u64) {
        let counts = &mut self.state().counts;
        counts.sent += sent;
        counts.received += received;
    }

    /// Redis has sent the first byte to an app connection. Only this proves that the tunnel works.
    pub fn answered(&self) {
        let mut state = self.state();
        state.counts.last_success = Some(unix_ms(SystemTime::now()));
        state.failing_since = None;
    }

    /// Redis has closed an app connection instead of answering it.
    pub fn unanswered(&self, error: String, hint: String) {
        self.state().fails(UNANSWERED, error, hint);
    }

    /// Redis's first reply to an app connection was that it has too many clients.
    pub fn refused_as_full(&self, error: String, hint: String) {
        self.state().fails(FULL, error, hint);
    }

    /// Counts a successful handshake.
    pub fn shook_hands(&self, resumed: bool, took: Duration) {
        let kind = if resumed { Handshake::Resumed } else { Handshake::Full };
        self.state().counts.handshakes[kind as usize].observe(took);
    }

    /// Notes the server's certificate. `expires`: seconds since 1970.
    pub fn saw_certificate(&self, names: String, expires: i64) {
        self.state().certificate = Some(CertificateText { names, expires });
    }

    /// Counts a connection that Redis refused, probably at its client limit: Redis said so, or
    /// closed the connection during the handshake while other connections of this launcher were
    /// open.
    pub fn turned_away(&self) {
        self.state_at(Instant::now()).counts.max_clients += 1;
    }

    /// The number of app connections that wait for a connection to Redis.
    pub fn waiting(&self) -> u64 {
        self.state().counts.waiting
    }

    /// The number of connections to Redis whose handshake is done.
    pub fn established(&self) -> u64 {
        self.state().counts.established()
    }

    /// Sets the limit on connections to Redis; `None`: no limit.
    pub fn set_limit(&self, limit: Option<usize>) {
        self.state().counts.limit = limit.map(|limit| limit as u64);
    }

    /// Counts a connection to Redis that an app connection got from the pool.
    pub fn pooled(&self, result: PoolResult) {
        self.state().counts.pool[result as usize] += 1;
    }

    pub(super) fn snapshot(&self, now: Instant) -> TunnelSnapshot {
        let state = self.state_at(now);
        let has_lapsed = state.has_lapsed(now);
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
