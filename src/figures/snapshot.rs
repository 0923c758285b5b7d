//! All figures at one moment. Unless said otherwise, times are milliseconds since 1970.

use std::time::Duration;

use super::counts::{Counts, TunnelLabels};
use super::history::{Point, Recent};
use super::reason::{CommandState, UpstreamState};

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

/// The latest failure, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailureText {
    pub at: u64,
    /// The word of a [`super::FailureReason`], or [`super::UNANSWERED`], or [`super::FULL`].
    pub reason: &'static str,
    pub error: String,
    pub hint: String,
}

/// The server's certificate in the latest full handshake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateText {
    /// The certificate's names, in the server's own words.
    pub names: String,
    /// Seconds since 1970.
    pub expires: i64,
}

#[derive(Debug, Clone)]
pub struct TunnelSnapshot {
    pub labels: TunnelLabels,
    pub counts: Counts,
    /// Open connections to this tunnel's server, of all tunnels.
    pub open_to_server: u64,
    /// The longest time since a connection's oldest bytes that were sent after Redis's last reply.
    pub longest_wait_for_reply: Duration,
    /// The first failure since the last success. `None` if the tunnel works, or if nobody has tried
    /// for [`super::LAPSE`].
    pub failing_since: Option<u64>,
    /// Whether the latest attempt failed, but longer ago than [`super::LAPSE`].
    pub has_lapsed: bool,
    pub failure: Option<FailureText>,
    pub certificate: Option<CertificateText>,
    pub recent: Recent,
    /// The last ten minutes, the oldest slot first.
    pub graph: Vec<Point>,
}

impl TunnelSnapshot {
    /// The variable that names the tunnel.
    pub fn variable(&self) -> &str {
        self.labels.variables.first().map_or("", String::as_str)
    }

    /// Connections whose handshake is done. Attempts do not count: when several fail together, that
    /// is no sign of Redis's client limit.
    fn established(&self) -> u64 {
        self.counts.upstream(UpstreamState::Relaying) + self.counts.upstream(UpstreamState::Idle)
    }
}

/// Sets `open_to_server` of each tunnel: several tunnels may lead to the same server.
pub(super) fn add_up_by_server(tunnels: &mut [TunnelSnapshot]) {
    for index in 0..tunnels.len() {
        let upstream = &tunnels[index].labels.upstream;
        let same_server = tunnels.iter().filter(|other| other.labels.upstream == *upstream);
        tunnels[index].open_to_server = same_server.map(TunnelSnapshot::established).sum();
    }
}
