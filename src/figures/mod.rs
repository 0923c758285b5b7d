//! Counts connections, bytes, failures and waits.
//!
//! [`crate::tunnel`], [`crate::pool`] and [`crate::supervisor`] count. [`crate::status`] reads a
//! [`TunnelSnapshot`]. The code that moves bytes never reads a figure.
//!
//! A mutex protects the figures of each tunnel. The mutex is always free, because one thread does
//! all the counting.

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

/// COMMAND's pid, start and state.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    pub pid: i32,
    /// Milliseconds since 1970.
    pub started: u64,
    pub state: CommandState,
}

impl Figures {
    /// `tunnels`: one entry per tunnel. `command`: the pid of COMMAND, which has just started.
    pub fn new(tunnels: Vec<TunnelLabels>, command: i32) -> Figures {
        let tunnels = tunnels.into_iter().map(|labels| Arc::new(TunnelFigures::new(labels)));
        let (started, state) = (unix_ms(SystemTime::now()), CommandState::Running);
        let command = Mutex::new(Command { pid: command, started, state });
        Figures { tunnels: tunnels.collect(), command }
    }

    /// In the order of the labels given to [`Figures::new`].
    pub fn tunnels(&self) -> &[Arc<TunnelFigures>] {
        &self.tunnels
    }

    pub fn set_command_state(&self, state: CommandState) {
        self.command.lock().unwrap_or_else(PoisonError::into_inner).state = state;
    }

    pub fn command(&self) -> Command {
        *self.command.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The figures of all tunnels at the moment `now`.
    pub fn snapshot(&self, now: Instant) -> Vec<TunnelSnapshot> {
        let tunnels = self.tunnels.iter().map(|tunnel| tunnel.snapshot(now));
        let mut tunnels: Vec<TunnelSnapshot> = tunnels.collect();
        // Several tunnels may lead to the same server: add up their connections.
        for index in 0..tunnels.len() {
            let upstream = &tunnels[index].labels.upstream;
            let same_server = tunnels.iter().filter(|other| other.labels.upstream == *upstream);
            tunnels[index].open_to_server = same_server.map(|t| t.counts.established()).sum();
        }
        tunnels
    }

    /// Adds up a count over all tunnels.
    pub fn sum(&self, count: fn(&Counts) -> u64) -> u64 {
        self.tunnels.iter().map(|tunnel| count(&tunnel.state().counts)).sum()
    }
}

/// Milliseconds since 1970.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
