//! Guards, which count a connection until they are dropped.

use std::sync::Arc;
use std::thread;

use tokio::time::Instant;

use super::TunnelFigures;
use super::reason::{CloseReason, FailureReason, UpstreamState};

/// An app connection that waits for a connection to Redis.
#[derive(Debug)]
pub struct Waiting(Arc<TunnelFigures>);

impl Waiting {
    pub(super) fn new(figures: Arc<TunnelFigures>) -> Waiting {
        figures.counts.waiting.up();
        Waiting(figures)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.counts.waiting.down();
    }
}

/// A connection to Redis.
#[derive(Debug)]
pub struct Held {
    figures: Arc<TunnelFigures>,
    state: UpstreamState,
}

impl Held {
    pub(super) fn new(figures: Arc<TunnelFigures>, state: UpstreamState) -> Held {
        figures.counts.upstream[state as usize].up();
        Held { figures, state }
    }

    /// Moves the connection to another state.
    pub fn set_state(&mut self, state: UpstreamState) {
        let upstream = &self.figures.counts.upstream;
        upstream[self.state as usize].down();
        upstream[state as usize].up();
        self.state = state;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.figures.roll(Instant::now());
        self.figures.counts.upstream[self.state as usize].down();
    }
}

/// The status page's error for a connection that ended in a panic.
const DEFECT: &str = "start-stunnel has a defect";
const DEFECT_HINT: &str = "please report the log line at=internal-error";

/// An app connection. It counts as open until this is dropped, and then as closed or failed, with
/// the first reason that was given. Without a reason, the drain or a panic has cut the connection.
#[derive(Debug)]
pub struct Arrival {
    figures: Arc<TunnelFigures>,
    accepted: Instant,
    is_ready: bool,
    decided: bool,
}

impl Arrival {
    pub(super) fn new(figures: Arc<TunnelFigures>, accepted: Instant) -> Arrival {
        figures.counts.accepted.add(1);
        figures.counts.open.up();
        Arrival { figures, accepted, is_ready: false, decided: false }
    }

    pub fn accepted(&self) -> Instant {
        self.accepted
    }

    /// Notes the first connection to the server, which is Redis or a TLS proxy before Redis.
    pub fn ready(&mut self, now: Instant) {
        if !std::mem::replace(&mut self.is_ready, true) {
            self.figures.roll(now);
            self.figures.counts.connection_wait.observe(now - self.accepted);
        }
    }

    pub fn failed(&mut self, reason: FailureReason, error: String, hint: String) {
        if std::mem::replace(&mut self.decided, true) {
            return;
        }
        self.figures.roll(Instant::now());
        self.figures.counts.failed[reason as usize].add(1);
        self.figures.fails(reason.word(), error, hint);
    }

    pub fn closed(&mut self, reason: CloseReason) {
        if !std::mem::replace(&mut self.decided, true) {
            self.figures.counts.closed[reason as usize].add(1);
        }
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if thread::panicking() {
            self.failed(FailureReason::Internal, DEFECT.to_owned(), DEFECT_HINT.to_owned());
        }
        self.closed(CloseReason::Drain);
        self.figures.counts.open.down();
    }
}
