//! Every figure about what goes through a launcher, counted as things move.
//!
//! [`crate::tunnel`], [`crate::pool`], and [`crate::launch`] only add to them; [`crate::status`]
//! reads a [`Snapshot`]. They are two rooms, since the one who counts must not know who reads: this
//! one is below everything that moves a byte, that one above all that can be asked.
//!
//! Counting is an addition to a number: it allocates nothing and asks the system nothing, and what
//! moves bytes takes no clock for it. What was when is known nevertheless ([`history`]).

mod histogram;
mod history;
mod reason;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

pub use histogram::{BUCKETS, Histogram, Observed, p95};
use history::History;
pub use history::{POINTS, Point, RECENT, Recent, SLOT};
pub use reason::{CloseReason, FailureReason, PoolResult};

/// How long a failure says that a tunnel fails, if nobody tries again.
pub const LAPSE: Duration = Duration::from_secs(60);

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn up(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn down(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// By what a tunnel is known to those who read its figures. Holds no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelLabels {
    /// The variables that lead through it, the first one first; never empty.
    pub variables: Vec<String>,
    /// Where TLS goes, `host:port`.
    pub upstream: String,
    /// How much of the certificate must hold, in the word of `--verify`.
    pub verify: &'static str,
}

/// COMMAND's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum CommandState {
    Running,
    Stopped,
    /// It has ended; its last bytes are delivered.
    Draining,
}

impl CommandState {
    pub const ALL: [CommandState; 3] =
        [CommandState::Running, CommandState::Stopped, CommandState::Draining];

    pub fn word(self) -> &'static str {
        match self {
            CommandState::Running => "running",
            CommandState::Stopped => "stopped",
            CommandState::Draining => "draining",
        }
    }
}

/// What is known of COMMAND.
#[derive(Debug)]
pub struct Command {
    pub pid: i32,
    started: SystemTime,
    state: AtomicU8,
}

impl Command {
    pub fn is_now(&self, state: CommandState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn state(&self) -> CommandState {
        let state = self.state.load(Ordering::Relaxed);
        let known = CommandState::ALL.into_iter().find(|known| *known as u8 == state);
        known.unwrap_or(CommandState::Running)
    }
}

/// A launcher's figures.
#[derive(Debug)]
pub struct Figures {
    pub command: Command,
    tunnels: Vec<Arc<TunnelFigures>>,
}

impl Figures {
    /// For tunnels of these labels, and a COMMAND that has just been started.
    pub fn new(tunnels: Vec<TunnelLabels>, command: i32) -> Figures {
        let mut open: HashMap<String, Arc<Gauge>> = HashMap::new();
        let tunnels = tunnels.into_iter().map(|labels| {
            // Tunnels of different settings may lead to the same server.
            let of_server = open.entry(labels.upstream.clone()).or_default().clone();
            Arc::new(TunnelFigures::new(labels, of_server))
        });
        Figures {
            tunnels: tunnels.collect(),
            command: Command {
                pid: command,
                started: SystemTime::now(),
                state: AtomicU8::new(CommandState::Running as u8),
            },
        }
    }

    /// Those of the tunnels, in their order.
    pub fn tunnels(&self) -> &[Arc<TunnelFigures>] {
        &self.tunnels
    }

    /// What they are at the moment `now`.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        Snapshot {
            at: unix_ms(SystemTime::now()),
            command: CommandSnapshot {
                pid: self.command.pid,
                started: unix_ms(self.command.started),
                state: self.command.state(),
            },
            tunnels: self.tunnels.iter().map(|tunnel| tunnel.snapshot(now)).collect(),
        }
    }

    /// What went through all tunnels.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for tunnel in self.tunnels.iter().map(|tunnel| tunnel.totals()) {
            totals.connections += tunnel.connections;
            totals.failed += tunnel.failed;
            totals.sent += tunnel.sent;
            totals.received += tunnel.received;
        }
        totals
    }
}

/// What went through a launcher's tunnels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Accepted from the app.
    pub connections: u64,
    /// Of these, those for which Redis could not be reached or was refused.
    pub failed: u64,
    /// Bytes from the app to Redis, before TLS.
    pub sent: u64,
    /// Bytes from Redis to the app, before TLS.
    pub received: u64,
}

/// One tunnel's figures.
#[derive(Debug)]
pub struct TunnelFigures {
    labels: TunnelLabels,
    open: Gauge,
    accepted: Counter,
    closed: [Counter; CloseReason::COUNT],
    failed: [Counter; FailureReason::COUNT],
    sent: Counter,
    received: Counter,
    accept_errors: Counter,
    max_clients: Counter,
    relaying: Gauge,
    idle: Gauge,
    connecting: Gauge,
    /// 0: none.
    limit: Gauge,
    waiting: Gauge,
    pool: [Counter; PoolResult::COUNT],
    handshakes_full: Histogram,
    handshakes_resumed: Histogram,
    connection_wait: Histogram,
    reply_wait: Histogram,
    /// The most connections to Redis since the launcher began, and since the history's last slot.
    peak: Gauge,
    slot_peak: Gauge,
    /// To the server, of all tunnels that lead there.
    of_server: Arc<Gauge>,
    /// Milliseconds since 1970; 0: never.
    last_success: Gauge,
    failing_since: Gauge,
    latest: Mutex<Latest>,
    history: History,
}

/// What is told in words.
#[derive(Debug, Default)]
struct Latest {
    failed: Option<Instant>,
    failure: Option<FailureText>,
    certificate: Option<CertificateText>,
}

impl Latest {
    /// Whether the latest failure says nothing of the moment `now` any more.
    fn has_lapsed(&self, now: Instant) -> bool {
        self.failed.is_none_or(|failed| now - failed >= LAPSE)
    }
}

/// What went wrong with a connection that had reached Redis, or what speaks TLS for it: it was
/// closed without an answer.
pub const UNANSWERED: &str = "unanswered";
/// The same: its first answer was that Redis has too many clients.
pub const FULL: &str = "max_clients";

/// The latest failure, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureText {
    /// Milliseconds since 1970.
    pub at: u64,
    /// The word of a [`FailureReason`], [`UNANSWERED`], or [`FULL`].
    pub reason: &'static str,
    pub error: String,
    pub hint: String,
}

/// The server's certificate, as it was shown in the latest full handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateText {
    /// The names that it is for: the server's own words.
    pub names: String,
    /// Seconds since 1970.
    pub expires: i64,
}

impl TunnelFigures {
    fn new(labels: TunnelLabels, of_server: Arc<Gauge>) -> TunnelFigures {
        TunnelFigures {
            labels,
            open: Gauge::default(),
            accepted: Counter::default(),
            closed: Default::default(),
            failed: Default::default(),
            sent: Counter::default(),
            received: Counter::default(),
            accept_errors: Counter::default(),
            max_clients: Counter::default(),
            relaying: Gauge::default(),
            idle: Gauge::default(),
            connecting: Gauge::default(),
            limit: Gauge::default(),
            waiting: Gauge::default(),
            pool: Default::default(),
            handshakes_full: Histogram::default(),
            handshakes_resumed: Histogram::default(),
            connection_wait: Histogram::default(),
            reply_wait: Histogram::default(),
            peak: Gauge::default(),
            slot_peak: Gauge::default(),
            of_server,
            last_success: Gauge::default(),
            failing_since: Gauge::default(),
            latest: Mutex::default(),
            history: History::new(),
        }
    }

    /// Of a tunnel that nobody reads the figures of: for `--check`, and tests.
    pub fn unread() -> Arc<TunnelFigures> {
        Arc::new(TunnelFigures::new(TunnelLabels::default(), Arc::default()))
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What went through it.
    pub fn totals(&self) -> Totals {
        Totals {
            connections: self.accepted.get(),
            failed: self.failed.iter().map(Counter::get).sum(),
            sent: self.sent.get(),
            received: self.received.get(),
        }
    }

    /// A connection of the app's, accepted at `now`.
    pub fn accept(self: &Arc<Self>, now: Instant) -> Arrival {
        self.roll(now);
        self.accepted.add(1);
        self.open.up();
        Arrival { figures: self.clone(), accepted: now, decided: false }
    }

    /// The system gave no connection.
    pub fn accept_failed(&self) {
        self.accept_errors.add(1);
    }

    /// Bytes that the app's side, and Redis's side, took.
    pub fn moved(&self, sent: u64, received: u64) {
        if sent > 0 {
            self.sent.add(sent);
        }
        if received > 0 {
            self.received.add(received);
        }
    }

    /// A request was sent at `since` while nothing was pending, and the first byte of its reply has
    /// come at `now`.
    pub fn replied(&self, since: Instant, now: Instant) {
        self.roll(now);
        self.reply_wait.observe(now - since);
    }

    /// Redis has sent a connection of the app's its first byte, which is what says that it works.
    pub fn answered(&self) {
        self.last_success.set(unix_ms(SystemTime::now()));
        self.failing_since.set(0);
    }

    /// Redis has closed a connection of the app's instead of answering it.
    pub fn unanswered(&self, error: String, hint: String) {
        self.fails(UNANSWERED, error, hint);
    }

    /// Redis has answered a connection of the app's that it has no room for it.
    pub fn refused_as_full(&self, error: String, hint: String) {
        self.fails(FULL, error, hint);
    }

    fn fails(&self, reason: &'static str, error: String, hint: String) {
        let (at, now) = (unix_ms(SystemTime::now()), Instant::now());
        let mut latest = self.latest();
        if self.failing_since.get() == 0 || latest.has_lapsed(now) {
            self.failing_since.set(at);
        }
        latest.failed = Some(now);
        latest.failure = Some(FailureText { at, reason, error, hint });
    }

    /// A handshake with the server is done.
    pub fn shook_hands(&self, resumed: bool, took: Duration) {
        let histogram = if resumed { &self.handshakes_resumed } else { &self.handshakes_full };
        histogram.observe(took);
    }

    /// The server has shown its certificate.
    /// `names`: those that it is for; `expires` in seconds since 1970.
    pub fn saw_certificate(&self, names: String, expires: i64) {
        self.latest().certificate = Some(CertificateText { names, expires });
    }

    /// The server has turned a connection away since it has too many: said so, or closed it in the
    /// handshake while others of this launcher's live.
    pub fn turned_away(&self) {
        self.max_clients.add(1);
    }

    /// Counts a connection to the server for as long as what is returned lives.
    pub fn hold(self: &Arc<Self>, state: UpstreamState) -> Held {
        self.roll(Instant::now());
        self.of(state).up();
        if state.is_made() {
            self.of_server.up();
        }
        self.note_peak();
        Held { figures: self.clone(), state }
    }

    /// How many connections all tunnels to the server hold now, spares included, and those that are
    /// only being made not: attempts that fail together are no sign of a limit.
    pub fn open_to_server(&self) -> u64 {
        self.of_server.get()
    }

    /// How many connections the tunnel may hold; `None`: as many as it likes.
    pub fn set_limit(&self, limit: Option<usize>) {
        self.limit.set(limit.map_or(0, |limit| limit as u64));
    }

    /// Counts a connection of the app's that waits for one to Redis to come free, or for its turn
    /// to make one, for as long as what is returned lives.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        self.waiting.up();
        Waiting(self.clone())
    }

    /// Where the connection to Redis came from that a connection of the app's got.
    pub fn pooled(&self, result: PoolResult) {
        self.pool[result as usize].add(1);
    }

    fn of(&self, state: UpstreamState) -> &Gauge {
        match state {
            UpstreamState::Relaying => &self.relaying,
            UpstreamState::Idle => &self.idle,
            UpstreamState::Connecting => &self.connecting,
        }
    }

    fn held(&self) -> u64 {
        self.relaying.get() + self.idle.get() + self.connecting.get()
    }

    fn note_peak(&self) {
        let held = self.held();
        if held > self.slot_peak.get() {
            self.slot_peak.set(held);
            self.peak.set(held.max(self.peak.get()));
        }
    }

    /// Takes the history on to `now`, which is what comes before anything is counted that it has.
    fn roll(&self, now: Instant) {
        self.history.roll(now, || {
            let peak = self.slot_peak.get();
            self.slot_peak.set(self.held());
            self.mark(peak)
        });
    }

    fn mark(&self, peak: u64) -> history::Mark {
        history::Mark {
            peak: peak as u32,
            accepted: self.accepted.get() as u32,
            turned_away: self.max_clients.get() as u32,
            failed: std::array::from_fn(|index| self.failed[index].get() as u32),
            connection_wait: self.connection_wait.counts().map(|count| count as u32),
            reply_wait: self.reply_wait.counts().map(|count| count as u32),
        }
    }

    fn snapshot(&self, now: Instant) -> TunnelSnapshot {
        self.roll(now);
        let latest = self.latest();
        let set = |gauge: &Gauge| Some(gauge.get()).filter(|value| *value > 0);
        TunnelSnapshot {
            labels: self.labels.clone(),
            open: self.open.get(),
            accepted: self.accepted.get(),
            closed: self.closed.each_ref().map(Counter::get),
            failed: self.failed.each_ref().map(Counter::get),
            sent: self.sent.get(),
            received: self.received.get(),
            accept_errors: self.accept_errors.get(),
            max_clients: self.max_clients.get(),
            relaying: self.relaying.get(),
            idle: self.idle.get(),
            connecting: self.connecting.get(),
            peak: self.peak.get(),
            to_server: self.of_server.get(),
            limit: set(&self.limit),
            waiting: self.waiting.get(),
            pool: self.pool.each_ref().map(Counter::get),
            handshakes_full: self.handshakes_full.observed(),
            handshakes_resumed: self.handshakes_resumed.observed(),
            connection_wait: self.connection_wait.observed(),
            reply_wait: self.reply_wait.observed(),
            last_success: set(&self.last_success),
            failing_since: set(&self.failing_since).filter(|_| !latest.has_lapsed(now)),
            has_lapsed: set(&self.failing_since).is_some() && latest.has_lapsed(now),
            failure: latest.failure.clone(),
            certificate: latest.certificate.clone(),
            recent: self.history.recent(&self.mark(self.slot_peak.get())),
            graph: self.history.graph(&self.mark(self.slot_peak.get())),
        }
    }
}

/// One connection of the app's that waits, until this is dropped.
#[derive(Debug)]
pub struct Waiting(Arc<TunnelFigures>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.down();
    }
}

/// What a connection to Redis does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamState {
    /// It serves a connection of the app's.
    Relaying,
    /// It was made beforehand or is kept, for whoever comes next.
    Idle,
    /// It is being made, or made ready for its next user.
    Connecting,
}

impl UpstreamState {
    fn is_made(self) -> bool {
        self != UpstreamState::Connecting
    }
}

/// One connection to Redis, which counts until this is dropped.
#[derive(Debug)]
pub struct Held {
    figures: Arc<TunnelFigures>,
    state: UpstreamState,
}

impl Held {
    pub fn is_now(&mut self, state: UpstreamState) {
        self.figures.of(self.state).down();
        self.figures.of(state).up();
        match (self.state.is_made(), state.is_made()) {
            (false, true) => self.figures.of_server.up(),
            (true, false) => self.figures.of_server.down(),
            _ => {}
        }
        self.state = state;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.figures.roll(Instant::now());
        self.figures.of(self.state).down();
        if self.state.is_made() {
            self.figures.of_server.down();
        }
    }
}

/// What the status page says of a connection that ended by a panic, and what to do.
const DEFECT: &str = "start-stunnel has a defect";
const DEFECT_HINT: &str = "please report the log line at=internal-error";

/// One connection of the app's: open until this is dropped, and then closed or failed, for one
/// reason. Dropped before anybody has given one, it was cut by the drain or by a panic.
#[derive(Debug)]
pub struct Arrival {
    figures: Arc<TunnelFigures>,
    accepted: Instant,
    decided: bool,
}

impl Arrival {
    pub fn accepted(&self) -> Instant {
        self.accepted
    }

    /// It has a connection to the server: to Redis, or to what speaks TLS for it.
    pub fn ready(&self, now: Instant) {
        self.figures.roll(now);
        self.figures.connection_wait.observe(now - self.accepted);
    }

    /// It has failed; what was counted first, counts.
    pub fn failed(&mut self, reason: FailureReason, error: String, hint: String) {
        if std::mem::replace(&mut self.decided, true) {
            return;
        }
        let figures = &self.figures;
        figures.roll(Instant::now());
        figures.failed[reason as usize].add(1);
        figures.fails(reason.word(), error, hint);
    }

    /// It was closed; what was counted first, counts.
    pub fn closed(&mut self, reason: CloseReason) {
        if !std::mem::replace(&mut self.decided, true) {
            self.figures.closed[reason as usize].add(1);
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if thread::panicking() {
            self.failed(FailureReason::Internal, DEFECT.to_owned(), DEFECT_HINT.to_owned());
        }
        self.closed(CloseReason::Drain);
        self.figures.open.down();
    }
}

/// All figures at one moment. Times are milliseconds since 1970.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub at: u64,
    pub command: CommandSnapshot,
    pub tunnels: Vec<TunnelSnapshot>,
}

#[derive(Debug, Clone, Copy)]
pub struct CommandSnapshot {
    pub pid: i32,
    pub started: u64,
    pub state: CommandState,
}

/// One tunnel's figures at one moment.
#[derive(Debug, Clone)]
pub struct TunnelSnapshot {
    pub labels: TunnelLabels,
    pub open: u64,
    pub accepted: u64,
    /// In the order of [`CloseReason::ALL`].
    pub closed: [u64; CloseReason::COUNT],
    /// In the order of [`FailureReason::ALL`].
    pub failed: [u64; FailureReason::COUNT],
    pub sent: u64,
    pub received: u64,
    pub accept_errors: u64,
    pub max_clients: u64,
    pub relaying: u64,
    pub idle: u64,
    pub connecting: u64,
    pub peak: u64,
    /// Of all tunnels to the same server.
    pub to_server: u64,
    pub limit: Option<u64>,
    pub waiting: u64,
    /// In the order of [`PoolResult::ALL`].
    pub pool: [u64; PoolResult::COUNT],
    pub handshakes_full: Observed,
    pub handshakes_resumed: Observed,
    pub connection_wait: Observed,
    pub reply_wait: Observed,
    pub last_success: Option<u64>,
    /// The first of the failures since the last success of which each came within [`LAPSE`] of the
    /// one before; `None`: it works, or nobody has tried for so long.
    pub failing_since: Option<u64>,
    /// Whether the latest attempt failed, but longer ago than [`LAPSE`].
    pub has_lapsed: bool,
    pub failure: Option<FailureText>,
    pub certificate: Option<CertificateText>,
    pub recent: Recent,
    /// The last ten minutes, the oldest first, the running slot last.
    pub graph: Vec<Point>,
}

impl TunnelSnapshot {
    /// The variable by which the tunnel is called.
    pub fn variable(&self) -> &str {
        self.labels.variables.first().map_or("", String::as_str)
    }

    /// Connections to Redis.
    pub fn held(&self) -> u64 {
        self.relaying + self.idle + self.connecting
    }

    pub fn failed_in_all(&self) -> u64 {
        self.failed.iter().sum()
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn figures() -> Figures {
        let labels = |variable: &str, upstream: &str| TunnelLabels {
            variables: vec![variable.to_owned()],
            upstream: upstream.to_owned(),
            verify: "none",
        };
        Figures::new(vec![labels("A", "h:1"), labels("B", "h:1"), labels("C", "g:1")], 7)
    }

    fn fail(figures: &Figures) {
        let mut arrival = figures.tunnels()[0].accept(Instant::now());
        arrival.failed(FailureReason::TlsEof, "cut".to_owned(), "less".to_owned());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_was_accepted_is_open_or_was_closed_or_failed_for_one_reason() {
        let figures = figures();
        let tunnel = &figures.tunnels()[0];
        let _open = tunnel.accept(Instant::now());
        tunnel.accept(Instant::now()).closed(CloseReason::Idle);
        drop(tunnel.accept(Instant::now()));
        fail(&figures);
        let mut both = tunnel.accept(Instant::now());
        both.failed(FailureReason::Internal, String::new(), String::new());
        both.closed(CloseReason::RedisReset);
        drop(both);
        let seen = &figures.snapshot(Instant::now()).tunnels[0];
        assert_eq!((seen.accepted, seen.open, seen.failed_in_all()), (5, 1, 2));
        assert_eq!(seen.closed.iter().sum::<u64>(), 2);
        assert_eq!(seen.closed[CloseReason::Drain as usize], 1);
        assert_eq!(figures.totals().connections, 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_by_a_panic_counts_as_failed() {
        let figures = figures();
        let arrival = figures.tunnels()[0].accept(Instant::now());
        let task = tokio::spawn(async move {
            let _arrival = arrival;
            panic!("on purpose");
        });
        assert!(task.await.unwrap_err().is_panic());
        let seen = &figures.snapshot(Instant::now()).tunnels[0];
        assert_eq!((seen.open, seen.failed[FailureReason::Internal as usize]), (0, 1));
        assert_eq!(seen.failure.as_ref().map(|failure| failure.error.as_str()), Some(DEFECT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_tunnel_fails_from_its_first_failure_until_it_works_again() {
        let figures = figures();
        let since = || figures.snapshot(Instant::now()).tunnels[0].failing_since;
        assert_eq!(since(), None);
        fail(&figures);
        let first = since();
        fail(&figures);
        assert!(first.is_some() && since() == first);
        let tunnel = &figures.tunnels()[0];
        tunnel.accept(Instant::now()).ready(Instant::now());
        assert_eq!(since(), first, "what speaks TLS may be there without Redis");
        tunnel.answered();
        assert_eq!(since(), None);
        // What it was is still told.
        let failure = figures.snapshot(Instant::now()).tunnels[0].failure.clone();
        assert_eq!(failure.map(|failure| failure.error), Some("cut".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_says_nothing_any_more_after_a_minute_without_an_attempt() {
        let figures = figures();
        let seen = || {
            let tunnel = &figures.snapshot(Instant::now()).tunnels[0];
            (tunnel.failing_since.is_some(), tunnel.has_lapsed)
        };
        assert_eq!(seen(), (false, false));
        for _ in 0..3 {
            fail(&figures);
            tokio::time::advance(LAPSE - SECOND).await;
            assert_eq!(seen(), (true, false));
        }
        tokio::time::advance(SECOND).await;
        assert_eq!(seen(), (false, true));
        fail(&figures);
        assert_eq!(seen(), (true, false));
        figures.tunnels()[0].answered();
        assert_eq!(seen(), (false, false));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_to_one_server_are_counted_together_and_the_peak_is_the_most_of_a_tunnel() {
        let figures = figures();
        let [a, b, c] = figures.tunnels() else { panic!("three") };
        let mut first = a.hold(UpstreamState::Connecting);
        assert_eq!(a.open_to_server(), 0, "it is only being made");
        let second = a.hold(UpstreamState::Idle);
        let _other = b.hold(UpstreamState::Relaying);
        let _elsewhere = c.hold(UpstreamState::Relaying);
        first.is_now(UpstreamState::Relaying);
        assert_eq!((a.open_to_server(), c.open_to_server()), (3, 1));
        drop(second);
        let seen = &figures.snapshot(Instant::now()).tunnels[0];
        assert_eq!((seen.relaying, seen.idle, seen.connecting), (1, 0, 0));
        assert_eq!((seen.held(), seen.peak, seen.to_server), (1, 2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_minutes_are_told_without_a_clock_that_ticks() {
        let figures = figures();
        let tunnel = &figures.tunnels()[0];
        fail(&figures);
        let held = tunnel.hold(UpstreamState::Relaying);
        tokio::time::advance(200 * SECOND).await;
        drop(held);
        tunnel.replied(Instant::now() - SECOND / 100, Instant::now());
        let seen = &figures.snapshot(Instant::now()).tunnels[0];
        assert_eq!((seen.recent.accepted, seen.recent.failed_in_all()), (1, 1));
        let peaks: Vec<_> = seen.graph.iter().map(|point| point.peak).collect();
        // 200 s are six slots of 30 s; in the seventh it was given up.
        assert_eq!(peaks, [1, 1, 1, 1, 1, 1, 1]);
        tokio::time::advance(SLOT).await;
        let seen = &figures.snapshot(Instant::now()).tunnels[0];
        assert_eq!(seen.graph.last().map(|point| point.peak), Some(0));
        assert!(seen.recent.reply_wait.iter().sum::<u32>() == 1);
        tokio::time::advance(RECENT + SLOT).await;
        let seen = &figures.snapshot(Instant::now()).tunnels[0];
        assert_eq!((seen.recent.accepted, seen.recent.failed_in_all()), (0, 0));
        tokio::time::advance(3600 * SECOND).await;
        let seen = &figures.snapshot(Instant::now()).tunnels[0];
        assert_eq!((seen.graph.len(), seen.accepted), (POINTS, 1));
    }
}
