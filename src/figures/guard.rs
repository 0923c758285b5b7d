//! Provides the guards that count connections. A connection counts until its guard is dropped.

use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use tokio::time::Instant;

use super::reason::{CloseReason, FailureReason, UpstreamState};
use super::{TunnelFigures, unix_ms};

impl TunnelFigures {
    /// Counts an app connection that the launcher accepted at the time `now`.
    pub fn accept(self: &Arc<Self>, now: Instant) -> Arrival {
        let counts = &mut self.state_at(now).counts;
        counts.accepted += 1;
        counts.open += 1;
        Arrival { figures: self.clone(), accepted: now, is_ready: false, decided: false }
    }

    /// Counts an app connection as waiting for a connection to Redis, until the returned guard is
    /// dropped.
    pub fn wait(self: &Arc<Self>) -> Waiting {
        self.state().counts.waiting += 1;
        Waiting(self.clone())
    }

    /// Counts a connection to Redis in the state `state`, until the returned guard is dropped.
    pub fn hold(self: &Arc<Self>, state: UpstreamState) -> Held {
        let counts = &mut self.state_at(Instant::now()).counts;
        counts.upstream[state as usize] += 1;
        counts.slot_peak = counts.slot_peak.max(counts.held());
        counts.peak = counts.peak.max(counts.slot_peak);
        Held { figures: self.clone(), state }
    }

    /// Returns a clock that measures how long one connection waits for Redis's replies.
    pub fn reply_clock(&self) -> ReplyClock<'_> {
        let mut state = self.state();
        state.last_key += 1;
        ReplyClock { figures: self, key: state.last_key }
    }
}

/// A guard that counts an app connection as waiting for a connection to Redis.
#[derive(Debug)]
pub struct Waiting(Arc<TunnelFigures>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.state().counts.waiting -= 1;
    }
}

/// A guard that counts a connection to Redis.
#[derive(Debug)]
pub struct Held {
    figures: Arc<TunnelFigures>,
    state: UpstreamState,
}

impl Held {
    /// Counts the connection to Redis in the state `state` from now on.
    pub fn set_state(&mut self, state: UpstreamState) {
        let upstream = &mut self.figures.state().counts.upstream;
        upstream[self.state as usize] -= 1;
        upstream[state as usize] += 1;
        self.state = state;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.figures.state_at(Instant::now()).counts.upstream[self.state as usize] -= 1;
    }
}

/// The error that the status page shows after the launcher has panicked. `DEFECT_HINT` is the hint
/// for this error.
const DEFECT: &str = "start-stunnel has a defect";
const DEFECT_HINT: &str = "please report the log line at=internal-error";

/// A guard that counts an app connection as open until the guard is dropped. The guard also counts
/// the connection once as closed or failed, with the reason from the first call of
/// [`Arrival::closed`] or [`Arrival::failed`]. Without such a call, dropping the guard counts the
/// connection: as failed during a panic, and otherwise as closed by the drain.
#[derive(Debug)]
pub struct Arrival {
    figures: Arc<TunnelFigures>,
    pub accepted: Instant,
    is_ready: bool,
    decided: bool,
}

impl Arrival {
    /// Records how long the app connection has waited for its connection to Redis. Only the first
    /// call of this function records a time.
    pub fn ready(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_ready, true) {
            self.figures.state_at(now).counts.connection_wait.observe(now - self.accepted);
        }
    }

    pub fn failed(&mut self, reason: FailureReason, error: String, hint: String) {
        if !std::mem::replace(&mut self.decided, true) {
            self.figures.state_at(Instant::now()).failed(reason, error, hint);
        }
    }

    pub fn closed(&mut self, reason: CloseReason) {
        if !std::mem::replace(&mut self.decided, true) {
            self.figures.state().counts.closed[reason as usize] += 1;
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if thread::panicking() {
            self.failed(FailureReason::Internal, DEFECT.to_owned(), DEFECT_HINT.to_owned());
        }
        self.closed(CloseReason::Drain);
        self.figures.state().counts.open -= 1;
    }
}

/// Measures how long one connection waits for Redis's replies, until the clock is dropped.
#[derive(Debug)]
pub struct ReplyClock<'a> {
    figures: &'a TunnelFigures,
    key: u64,
}

impl ReplyClock<'_> {
    /// Notes that bytes were sent to Redis at the time `now`. If the connection was not waiting for
    /// a reply, a wait begins.
    pub fn sent(&self, now: Instant) {
        self.figures.state().waits.entry(self.key).or_insert(now);
    }

    /// Notes that bytes came from Redis at the time `now`, which is the tunnel's latest success. If
    /// the connection was waiting for a reply, the wait ends.
    pub fn received(&self, now: Instant) {
        let mut state = self.figures.state_at(now);
        state.counts.last_success = Some(unix_ms(SystemTime::now()));
        let began = state.waits.remove(&self.key);
        if let Some(began) = began {
            state.counts.reply_wait.observe(now - began);
        }
    }
}

impl Drop for ReplyClock<'_> {
    fn drop(&mut self) {
        self.figures.state().waits.remove(&self.key);
    }
}
