//! What goes through, told to whoever asks: a person ([`page`], [`text`]), a metrics system
//! ([`metrics`], [`l2met`]), a health check, a program ([`json`]). [`server`] answers over HTTP,
//! [`local`] is where `--status` finds a launcher, and [`client`] is `--status` itself.
//!
//! Everything here is made of one [`Report`], which is [`crate::figures`] at one moment and what
//! the system says of the process: they are two rooms, since the one who counts must not know who
//! reads. Nothing can be changed through any of it.

mod address;
pub mod client;
mod json;
mod l2met;
mod local;
mod metrics;
mod page;
mod process;
mod server;
mod text;
mod words;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::task::yield_now;
use tokio::time::Instant;

pub use address::{Listener, StatusAddress};
pub use l2met::log_each;
pub use local::serve as serve_local;
use process::{ProcFiles, Process};
pub use server::{Hosts, serve, serve_connection};

use crate::figures::{Figures, Snapshot};
use crate::logging;
use crate::sandbox;

/// Whether and where figures are told without being asked for by `--status`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSettings {
    pub address: Option<StatusAddress>,
    /// Between two lines of figures in the log; `None`: there are none.
    pub metrics_interval: Option<Duration>,
}

/// A launcher that can be asked.
#[derive(Debug)]
pub struct Status {
    figures: Arc<Figures>,
    pid: u32,
    /// Seconds since 1970.
    started: f64,
    files: ProcFiles,
}

impl Status {
    pub fn new(figures: Arc<Figures>) -> Arc<Status> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Arc::new(Status {
            figures,
            pid: std::process::id(),
            started: started.as_secs_f64(),
            files: ProcFiles::open(),
        })
    }

    /// Everything that there is to tell now.
    pub async fn report(&self) -> Report {
        // From being woken to being served: what any connection waits for the loop meanwhile.
        let woken = Instant::now();
        yield_now().await;
        let now = Instant::now();
        Report {
            snapshot: self.figures.snapshot(now),
            pid: self.pid,
            started: self.started,
            loop_lag: now - woken,
            dropped_lines: logging::dropped_lines(),
            process: Process::now(&self.files),
            sandbox: sandbox::state(),
        }
    }
}

/// A launcher at one moment.
#[derive(Debug, Clone)]
pub struct Report {
    pub snapshot: Snapshot,
    pub pid: u32,
    /// Seconds since 1970.
    pub started: f64,
    pub loop_lag: Duration,
    pub dropped_lines: u64,
    pub process: Process,
    pub sandbox: &'static sandbox::State,
}

impl Report {
    /// Whether no tunnel fails.
    pub fn is_well(&self) -> bool {
        self.snapshot.tunnels.iter().all(|tunnel| tunnel.failing_since.is_none())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::figures::{CloseReason, FailureReason, PoolResult, TunnelLabels, UpstreamState};

    /// What a certificate's name, or a server's error, may hold.
    pub const HOSTILE: &str = "</td><script>alert(1)</script>\"' &amp; \u{1b}[31m \n{}\\";

    /// A launcher with a tunnel that works, one that fails, and one that nobody has used.
    pub fn figures() -> Arc<Figures> {
        let labels = |variable: &str, upstream: &str| TunnelLabels {
            variables: vec![variable.to_owned()],
            upstream: upstream.to_owned(),
            verify: "none",
        };
        let tunnels = vec![
            labels("REDIS_URL", "redis.example.com:6380"),
            labels("CACHE_URL", "cache.example.com:6379"),
            labels("OTHER_URL", "other.example.com:6379"),
        ];
        let figures = Figures::new(tunnels, 7);
        let [works, fails, _] = figures.tunnels() else { panic!("three") };
        let now = Instant::now();
        let ms = Duration::from_millis;
        for n in 0..12 {
            let mut arrival = works.accept(now);
            arrival.ready(now + ms(20 + n));
            works.answered();
            works.pooled([PoolResult::New, PoolResult::Spare, PoolResult::Reused][n as usize % 3]);
            works.shook_hands(n > 0, ms(9));
            works.replied(now, now + ms(2));
            works.moved(100, 2_000_000);
            arrival.closed(CloseReason::Closed);
        }
        works.saw_certificate(HOSTILE.to_owned(), (unix_seconds() + 34_100_000.0) as i64);
        std::mem::forget(works.hold(UpstreamState::Relaying));
        std::mem::forget(works.hold(UpstreamState::Idle));
        for _ in 0..9 {
            fails.turned_away();
            let error = format!("the server closed the connection in the handshake {HOSTILE}");
            fails.accept(now).failed(FailureReason::TlsEof, error, "set less".to_owned());
        }
        for _ in 0..18 {
            std::mem::forget(fails.hold(UpstreamState::Relaying));
        }
        fails.set_limit(Some(20));
        std::mem::forget([fails.wait(), fails.wait()]);
        Arc::new(figures)
    }

    fn unix_seconds() -> f64 {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
    }

    /// The report of [`figures`].
    pub fn report() -> Report {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(Status::new(figures()).report())
    }

    #[test]
    fn a_launcher_is_well_unless_a_tunnel_fails() {
        let mut report = report();
        assert!(!report.is_well());
        report.snapshot.tunnels.remove(1);
        assert!(report.is_well());
    }
}
