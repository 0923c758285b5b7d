//! Counts connections, bytes, failures and waits.
//!
//! The modules [`crate::tunnel`], [`crate::pool`] and [`crate::supervisor`] change the figures.
//! [`crate::status`] reads the figures as a [`TunnelSnapshot`]. The code that moves bytes never
//! reads a figure.
//!
//! A mutex protects the figures of each tunnel. Locking the mutex never waits, because a single
//! thread changes and reads the figures.

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
pub use reason::{
    CloseReason, CommandState, Event, FailureReason, Handshake, PoolResult, UpstreamState,
};
pub use tunnel::{
    CertificateText, FULL, FailureText, TunnelFigures, TunnelLabels, TunnelSnapshot, UNANSWERED,
};

/// The figures of all tunnels, and COMMAND's state.
#[derive(Debug)]
pub struct Figures {
    command: Mutex<Command>,
    tunnels: Vec<Arc<TunnelFigures>>,
}

/// The pid, the start time and the state of COMMAND.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    pub pid: i32,
    /// The time at which COMMAND was started, in milliseconds since 1970.
    pub started: u64,
    pub state: CommandState,
}

impl Figures {
    /// Makes figures that are all 0. `tunnels` has the labels of each tunnel, and `command` is the
    /// pid of COMMAND, which has just started.
    pub fn new(tunnels: Vec<TunnelLabels>, command: i32) -> Figures {
        let with_labels = |labels| TunnelFigures { labels, state: Mutex::default() };
        let tunnels = tunnels.into_iter().map(|labels| Arc::new(with_labels(labels)));
        let (started, state) = (unix_ms(SystemTime::now()), CommandState::Running);
        let command = Mutex::new(Command { pid: command, started, state });
        Figures { tunnels: tunnels.collect(), command }
    }

    /// Returns the figures of each tunnel, in the order of the labels that [`Figures::new`] got.
    pub fn tunnels(&self) -> &[Arc<TunnelFigures>] {
        &self.tunnels
    }

    /// Returns the figures of each tunnel to one server. `upstream` is the server's name in
    /// [`TunnelLabels::upstream`].
    pub fn of_server(&self, upstream: &str) -> Vec<Arc<TunnelFigures>> {
        self.tunnels.iter().filter(|tunnel| tunnel.labels.upstream == upstream).cloned().collect()
    }

    pub fn set_command_state(&self, state: CommandState) {
        self.command.lock().unwrap_or_else(PoisonError::into_inner).state = state;
    }

    pub fn command(&self) -> Command {
        *self.command.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies the figures of all tunnels. `now` is the current time.
    pub fn snapshot(&self, now: Instant) -> Vec<TunnelSnapshot> {
        let tunnels = self.tunnels.iter().map(|tunnel| tunnel.snapshot(now));
        let mut tunnels: Vec<TunnelSnapshot> = tunnels.collect();
        for tunnel in &mut tunnels {
            let same_server = self.of_server(&tunnel.labels.upstream);
            tunnel.open_to_server =
                same_server.iter().map(|figures| figures.count(Counts::established)).sum();
        }
        tunnels
    }

    /// Returns the sum of one count over all tunnels. `count` selects the count.
    pub fn sum(&self, count: fn(&Counts) -> u64) -> u64 {
        self.tunnels.iter().map(|tunnel| tunnel.count(count)).sum()
    }
}

/// Converts `time` to milliseconds since 1970.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
