//! Counts what goes through a launcher.
//!
//! [`crate::tunnel`], [`crate::pool`] and [`crate::launch`] count; [`crate::status`] reads a
//! [`Snapshot`]. Nothing that moves bytes reads a figure, and counting does not depend on whether
//! anybody reads.
//!
//! To count is to add to an atomic number: no allocation, no system call, no clock of its own.

mod counter;
mod counts;
mod guard;
mod histogram;
mod history;
mod reason;
mod replies;
mod snapshot;
mod tunnel;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

pub use counter::{Counter, Gauge};
pub use counts::{Counts, TunnelLabels};
pub use guard::{Arrival, Held, Waiting};
pub use histogram::{BUCKETS, Histogram, p95};
pub use history::{POINTS, Point, RECENT, Recent, SLOT};
pub use reason::{CloseReason, CommandState, FailureReason, Handshake, PoolResult, UpstreamState};
pub use replies::ReplyClock;
pub use snapshot::{CertificateText, CommandSnapshot, FailureText, Snapshot, TunnelSnapshot};
pub use tunnel::{FULL, TunnelFigures, UNANSWERED};

/// A failure counts as current for this long.
pub const LAPSE: Duration = Duration::from_secs(60);

/// A launcher's figures.
#[derive(Debug)]
pub struct Figures {
    pub command: Command,
    tunnels: Vec<Arc<TunnelFigures>>,
}

/// What is known about COMMAND.
#[derive(Debug)]
pub struct Command {
    pub pid: i32,
    started: SystemTime,
    state: AtomicU8,
}

impl Command {
    /// For a COMMAND that has just been started.
    fn new(pid: i32) -> Command {
        let state = AtomicU8::new(CommandState::Running as u8);
        Command { pid, started: SystemTime::now(), state }
    }

    pub fn set_state(&self, state: CommandState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn snapshot(&self) -> CommandSnapshot {
        let state = self.state.load(Ordering::Relaxed);
        CommandSnapshot {
            pid: self.pid,
            started: unix_ms(self.started),
            state: CommandState::ALL[usize::from(state)],
        }
    }
}

impl Figures {
    /// For tunnels with these labels, and a COMMAND that has just been started.
    pub fn new(tunnels: Vec<TunnelLabels>, command: i32) -> Figures {
        let tunnels = tunnels.into_iter().map(|labels| Arc::new(TunnelFigures::new(labels)));
        Figures { tunnels: tunnels.collect(), command: Command::new(command) }
    }

    /// The tunnels' figures, in the order of their labels.
    pub fn tunnels(&self) -> &[Arc<TunnelFigures>] {
        &self.tunnels
    }

    /// The figures at the moment `now`.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let tunnels = self.tunnels.iter().map(|tunnel| tunnel.snapshot(now));
        let mut tunnels: Vec<TunnelSnapshot> = tunnels.collect();
        snapshot::add_up_by_server(&mut tunnels);
        Snapshot { at: unix_ms(SystemTime::now()), command: self.command.snapshot(), tunnels }
    }

    /// The totals of all tunnels.
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

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Accepted app connections.
    pub connections: u64,
    /// Those of them that got no connection to Redis.
    pub failed: u64,
    /// Bytes from the app to Redis, before TLS.
    pub sent: u64,
    /// Bytes from Redis to the app, before TLS.
    pub received: u64,
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
