//! Counts what goes through a launcher.
//!
//! [`crate::tunnel`], [`crate::pool`] and [`crate::launch`] count; [`crate::status`] reads a
//! [`Snapshot`]. Nothing that moves bytes reads a figure, and counting does not depend on whether
//! anybody reads.
//!
//! To count is to lock a mutex that is free, because one thread does it all, and to add: no system
//! call, no clock of its own.

mod counts;
mod guard;
mod histogram;
mod history;
mod reason;
mod tunnel;

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

pub use counts::Counts;
pub use guard::{Arrival, Held, ReplyClock, Waiting};
pub use histogram::{BUCKETS, Histogram};
pub use history::{POINTS, Point};
pub use reason::{CloseReason, CommandState, FailureReason, Handshake, PoolResult, UpstreamState};
pub use tunnel::{
    CertificateText, FULL, FailureText, TunnelFigures, TunnelLabels, TunnelSnapshot, UNANSWERED,
};

/// A launcher's figures.
#[derive(Debug)]
pub struct Figures {
    command: Mutex<Command>,
    tunnels: Vec<Arc<TunnelFigures>>,
}

/// What is known about COMMAND.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    pub pid: i32,
    /// Milliseconds since 1970.
    pub started: u64,
    pub state: CommandState,
}

/// A launcher's figures at one moment.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Milliseconds since 1970.
    pub at: u64,
    pub command: Command,
    pub tunnels: Vec<TunnelSnapshot>,
}

impl Figures {
    /// For tunnels with these labels, and a COMMAND that has just been started.
    pub fn new(tunnels: Vec<TunnelLabels>, command: i32) -> Figures {
        let tunnels = tunnels.into_iter().map(|labels| Arc::new(TunnelFigures::new(labels)));
        let (started, state) = (unix_ms(SystemTime::now()), CommandState::Running);
        let command = Mutex::new(Command { pid: command, started, state });
        Figures { tunnels: tunnels.collect(), command }
    }

    /// The tunnels' figures, in the order of their labels.
    pub fn tunnels(&self) -> &[Arc<TunnelFigures>] {
        &self.tunnels
    }

    pub fn set_command_state(&self, state: CommandState) {
        self.command.lock().unwrap_or_else(PoisonError::into_inner).state = state;
    }

    /// The figures at the moment `now`.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        let tunnels = self.tunnels.iter().map(|tunnel| tunnel.snapshot(now));
        let mut tunnels: Vec<TunnelSnapshot> = tunnels.collect();
        // Several tunnels may lead to the same server.
        for index in 0..tunnels.len() {
            let upstream = &tunnels[index].labels.upstream;
            let same_server = tunnels.iter().filter(|other| other.labels.upstream == *upstream);
            tunnels[index].open_to_server = same_server.map(|t| t.counts.established()).sum();
        }
        let command = *self.command.lock().unwrap_or_else(PoisonError::into_inner);
        Snapshot { at: unix_ms(SystemTime::now()), command, tunnels }
    }

    /// The sum of a count of all tunnels.
    pub fn sum(&self, count: fn(&Counts) -> u64) -> u64 {
        self.tunnels.iter().map(|tunnel| count(&tunnel.state().counts)).sum()
    }
}

fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
