//! What is counted for one tunnel.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::counter::Gauge;
use super::counts::{Counts, TunnelLabels};
use super::guard::{Arrival, Held, Waiting};
use super::history::History;
use super::reason::{Handshake, PoolResult, UpstreamState};
use super::replies::{Replies, ReplyClock};
use super::snapshot::{CertificateText, FailureText, TunnelSnapshot};
use super::{LAPSE, Totals, unix_ms};

/// Everything that is known about one tunnel.
#[derive(Debug)]
pub struct TunnelFigures {
    labels: TunnelLabels,
    pub(super) counts: Counts,
    /// The highest number of connections to Redis in the history's current slot.
    slot_peak: Gauge,
    /// Milliseconds since 1970; 0: the latest attempt succeeded, or there was none.
    failing_since: Gauge,
    latest: Mutex<Latest>,
    history: History,
    pub(super) replies: Replies,
}

#[derive(Debug, Default)]
struct Latest {
    failed: Option<Instant>,
    failure: Option<FailureText>,
    certificate: Option<CertificateText>,
}

impl Latest {
    /// Whether the latest failure is too old to count as current.
    fn has_lapsed(&self, now: Instant) -> bool {
        self.failed.is_none_or(|failed| now - failed >= LAPSE)
    }
}

/// The reason shown when Redis closed a connection instead of answering.
pub const UNANSWERED: &str = "unanswered";
/// The reason shown when Redis's first reply was that it has too many clients.
pub const FULL: &str = "max_clients";

impl TunnelFigures {
    pub(super) fn new(labels: TunnelLabels) -> TunnelFigures {
        TunnelFigures {
            labels,
            counts: Counts::default(),
            slot_peak: Gauge::default(),
            failing_since: Gauge::default(),
            latest: Mutex::default(),
            history: History::new(),
            replies: Replies::new(),
        }
    }

    /// Figures that nobody reads: for `--check` and tests.
    pub fn unread() -> Arc<TunnelFigures> {
        Arc::new(TunnelFigures::new(TunnelLabels::default()))
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn totals(&self) -> Totals {
        self.counts.totals()
    }

    /// An app connection was accepted at `now`.
    pub fn accept(self: &Arc<Self>, now: Instant) -> Arrival {
        self.roll(now);
        Arrival::new(self.clone(), now)
    }

    /// accept(2) failed.
    pub fn accept_failed(&self) {
        self.counts.accept_errors.add(1);
    }

    /// So many bytes were written to Redis, and to the app.
    pub fn moved(&self, sent: u64, received: u64) {
        if sent > 0 {
            self.counts.sent.add(sent);
        }
        if received > 0 {
            self.counts.received.add(received);
        }
    }

    /// A clock for the replies on one connection.
    pub fn reply_clock(&self) -> ReplyClock<'_> {
        ReplyClock::new(self)
    }

    pub(super) fn replied(&self, waited: Duration, now: Instant) {
        self.roll(now);
        self.counts.reply_wait.observe(waited);
    }

    /// Redis has sent an app connection its first byte. Only this proves that the tunnel works.
    pub fn answered(&self) {
        self.counts.last_success.set(unix_ms(SystemTime::now()));
        self.failing_since.set(0);
    }

    /// Redis has closed an app connection instead of answering it.
    pub fn unanswered(&self, error: String, hint: String) {
        self.fails(UNANSWERED, error, hint);
    }

    /// Redis's first reply to an app connection was that it has too many clients.
    pub fn refused_as_full(&self, error: String, hint: String) {
        self.fails(FULL, error, hint);
    }

    pub(super) fn fails(&self, reason: &'static str, error: String, hint: String) {
        let (at, now) = (unix_ms(SystemTime::now()), Instant::now());
        let mut latest = self.latest();
        if self.failing_since.get() == 0 || latest.has_lapsed(now) {
            self.failing_since.set(at);
        }
        latest.failed = Some(now);
        latest.failure = Some(FailureText { at, reason, error, hint });
    }

    /// A handshake with the server succeeded.
    pub fn shook_hands(&self, resumed: bool, took: Duration) {
        let kind = if resumed { Handshake::Resumed } else { Handshake::Full };
        self.counts.handshakes[kind as usize].observe(took);
    }

    /// The server has shown its certificate for `names`, which expires at `expires`, in seconds
    /// since 1970.
    pub fn saw_certificate(&self, names: String, expires: i64) {
        self.latest().certificate = Some(CertificateText { names, expires });
    }

    /// Redis has turned a connection away because it has too many clients: it said so, or closed
    /// the connection during the handshake while other connections of this launcher were open.
    pub fn turned_away(&self) {
        self.roll(Instant::now());
        self.counts.max_clients.add(1);
    }

    /// Counts a connection to Redis until the guard is dropped.
    pub fn hold(self: &Arc<Self>, state: UpstreamState) -> Held {
        self.roll(Instant::now());
        let held = Held::new(self.clone(), state);
        self.note_peak();
        held
    }

    /// Sets the limit on connections to Redis; `None`: no limit.
    pub fn set_limit(&self, limit: Option<usize>) {
        self.counts.limit.set(limit.map_or(0, |limit| limit as u64));
    }

    /// Counts an app connection that waits for a connection to Redis, until the guard is dropped.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        Waiting::new(self.clone())
    }

    /// An app connection got a connection to Redis of this kind.
    pub fn pooled(&self, result: PoolResult) {
        self.counts.pool[result as usize].add(1);
    }

    fn note_peak(&self) {
        let held = self.counts.held();
        if held > self.slot_peak.get() {
            self.slot_peak.set(held);
            self.counts.peak.set(held.max(self.counts.peak.get()));
        }
    }

    /// Brings the history up to `now`. Called before anything is counted that the history covers.
    pub(super) fn roll(&self, now: Instant) {
        self.history.roll(now, || {
            let peak = self.slot_peak.get();
            self.slot_peak.set(self.counts.held());
            self.counts.mark(peak)
        });
    }

    pub(super) fn snapshot(&self, now: Instant) -> TunnelSnapshot {
        self.roll(now);
        let mark = self.counts.mark(self.slot_peak.get());
        let latest = self.latest();
        let failing_since = self.failing_since.get_set();
        TunnelSnapshot {
            labels: self.labels.clone(),
            counts: self.counts.clone(),
            open_to_server: 0,
            longest_wait_for_reply: self.replies.longest_wait(now),
            failing_since: failing_since.filter(|_| !latest.has_lapsed(now)),
            has_lapsed: failing_since.is_some() && latest.has_lapsed(now),
            failure: latest.failure.clone(),
            certificate: latest.certificate.clone(),
            recent: self.history.recent(&mark),
            graph: self.history.graph(&mark),
        }
    }
}
