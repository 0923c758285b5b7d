//! Shows the state of a launcher to people and programs. All interfaces are read-only.
//!
//! A [`StatusReport`] contains a copy of the [`crate::figures`], and facts about the process.
//! People read the report as a [`page`] or as [`text`], which both use the same [`words`]. Programs
//! read the report as [`json`], as [`metrics`], or in the log as [`l2met`].
//!
//! The [`server`] answers HTTP requests at the [`address`] that the user has set, and on a
//! [`local`] socket. [`client`] implements `--status`, which connects to the local socket of each
//! launcher.

mod address;
pub mod client;
mod host;
mod json;
mod l2met;
mod local;
mod metrics;
mod page;
mod process;
mod server;
#[cfg(test)]
mod tests;
mod text;
mod words;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::yield_now;
use tokio::time::Instant;

pub use address::{StatusAddress, StatusListener};
pub use host::HostCheck;
pub use l2met::log_each;
pub use local::serve as serve_local;
use process::{ProcFiles, Process};
pub use server::{serve, serve_connection};

use crate::figures::{Command, Figures, TunnelSnapshot, unix_ms};

/// Makes reports about the launcher.
#[derive(Debug)]
pub struct Status {
    figures: Arc<Figures>,
    found_urls: bool,
    /// The time at which the launcher started, in milliseconds since 1970.
    started: u64,
    files: ProcFiles,
}

impl Status {
    /// `found_urls` is true if the launcher has found a variable with a Redis URL, even if the URL
    /// needs no tunnel.
    pub fn new(figures: Arc<Figures>, found_urls: bool) -> Arc<Status> {
        let started = unix_ms(SystemTime::now());
        Arc::new(Status { figures, found_urls, started, files: ProcFiles::open() })
    }

    /// Returns a report about the launcher's current state.
    pub async fn report(&self) -> StatusReport {
        // Measure how long this task waits until the launcher's only thread continues the task.
        // Other tasks wait for about the same time.
        let woken = Instant::now();
        yield_now().await;
        let now = Instant::now();
        StatusReport {
            at: unix_ms(SystemTime::now()),
            command: self.figures.command(),
            tunnels: self.figures.snapshot(now),
            found_urls: self.found_urls,
            started: self.started,
            loop_lag: now - woken,
            process: Process::now(&self.files),
        }
    }
}

/// The state of a launcher at one moment.
#[derive(Debug, Clone)]
pub struct StatusReport {
    /// The time of the report, in milliseconds since 1970.
    pub at: u64,
    pub command: Command,
    pub tunnels: Vec<TunnelSnapshot>,
    /// True if the launcher has found a variable with a Redis URL. If there is no Redis URL, the
    /// user may have misspelt a variable's name, so the status must not say that all is well.
    pub found_urls: bool,
    /// The time at which the launcher started, in milliseconds since 1970.
    pub started: u64,
    pub loop_lag: Duration,
    pub process: Process,
}

impl StatusReport {
    /// True if the launcher has found a Redis URL, and no tunnel is failing.
    pub fn is_well(&self) -> bool {
        self.found_urls && self.tunnels.iter().all(|tunnel| tunnel.failing_since.is_none())
    }
}
