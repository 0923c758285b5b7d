//! Counts connections, bytes, failures and waits.
//!
//! The modules [`crate::tunnel`], [`crate::pool`] and [`crate::supervisor`] change the figures.
//! [`crate::status`] reads them as a [`TunnelSnapshot`]. The code that moves bytes never reads a
//! figure.
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

/// COMMAND's pid, start and state.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    pub pid: i32,
    /// Milliseconds since 1970.
    pub started: u64,
    pub state: CommandState,
}

impl Figures {
    /// `tunnels` has one entry per tunnel. `command` is the pid of COMMAND, which has just started.
    pub fn new(tunnels: Vec<TunnelLabels>, command: i32) -> Figures {
        let with_labels = |labels| TunnelFigures { labels, state: Mutex::default() };
        let tunnels = tunnels.into_iter().map(|labels| Arc::new(with_labels(labels)));
        let (started, state) = (unix_ms(SystemTime::now()), CommandState::Running);
        let command = Mutex::new(Command { pid: command, started, state });
        Figures { tunnels: tunnels.collect(), command }
    }

    /// The tunnels, in the order of the labels that [`Figures::new`] got.
    pub fn tunnels(&self) -> &[Arc<TunnelFigures>] {
        &self.tunnels
    }

    /// The figures of the tunnels to this server, as in [`TunnelLabels::upstream`].
    pub fn of_server(&self, upstream: &str) -> Vec<Arc<TunnelFigures>> {
        self.tunnels.iter().filter(|tunnel| tunnel.labels.upstream == upstream).cloned().collect()
    }

    pub fn set_command_state(&self, state: CommandState) {
        self.command.lock().unwrap_or_else(PoisonError::into_inner).state = state;
    }

    pub fn command(&self) -> Command {
        *self.command.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of the figures of all tunnels. `now` is the current time.
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

    /// The sum of a count over all tunnels.
    pub fn sum(&self, count: fn(&Counts) -> u64) -> u64 {
        self.tunnels.iter().map(|tunnel| tunnel.count(count)).sum()
    }
}

/// `time` in milliseconds since 1970.
pub fn unix_ms(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
