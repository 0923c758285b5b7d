//! The numbers that are counted for one tunnel.

use super::Totals;
use super::counter::{Counter, Gauge};
use super::histogram::Histogram;
use super::history::Mark;
use super::reason::{CloseReason, FailureReason, Handshake, PoolResult, UpstreamState};

/// How a tunnel is named to readers of its figures. Holds no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelLabels {
    /// The variables that lead through the tunnel; never empty. The first one names the tunnel.
    pub variables: Vec<String>,
    /// The server, as `host:port`.
    pub upstream: String,
    /// The tunnel's `--verify` level.
    pub verify: &'static str,
}

/// One tunnel's numbers. A clone is a copy at one moment.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// App connections.
    pub open: Gauge,
    pub accepted: Counter,
    /// In the order of [`CloseReason::ALL`].
    pub closed: [Counter; CloseReason::COUNT],
    /// In the order of [`FailureReason::ALL`].
    pub failed: [Counter; FailureReason::COUNT],
    /// App connections that wait for a connection to Redis.
    pub waiting: Gauge,
    /// How often accept(2) failed.
    pub accept_errors: Counter,
    /// Connections that Redis turned away because it has too many clients.
    pub max_clients: Counter,
    /// Bytes from the app to Redis, before TLS.
    pub sent: Counter,
    /// Bytes from Redis to the app, before TLS.
    pub received: Counter,
    /// Connections to Redis, in the order of [`UpstreamState::ALL`].
    pub upstream: [Gauge; UpstreamState::COUNT],
    /// The highest number of connections to Redis since the launcher started.
    pub peak: Gauge,
    /// The limit on connections to Redis; 0: none.
    pub limit: Gauge,
    /// In the order of [`PoolResult::ALL`].
    pub pool: [Counter; PoolResult::COUNT],
    /// Durations of successful handshakes, in the order of [`Handshake::ALL`].
    pub handshakes: [Histogram; Handshake::COUNT],
    /// From accepting an app connection until Redis was ready for it.
    pub connection_wait: Histogram,
    /// From a request to the first byte of its reply.
    pub reply_wait: Histogram,
    /// Milliseconds since 1970; 0: never.
    pub last_success: Gauge,
}

impl Counts {
    pub fn upstream(&self, state: UpstreamState) -> u64 {
        self.upstream[state as usize].get()
    }

    /// Connections to Redis in any state.
    pub fn held(&self) -> u64 {
        self.upstream.iter().map(Gauge::get).sum()
    }

    pub fn failed_in_all(&self) -> u64 {
        self.failed.iter().map(Counter::get).sum()
    }

    pub fn totals(&self) -> Totals {
        Totals {
            connections: self.accepted.get(),
            failed: self.failed_in_all(),
            sent: self.sent.get(),
            received: self.received.get(),
        }
    }

    pub(super) fn mark(&self, peak: u64) -> Mark {
        Mark {
            peak: peak as u32,
            accepted: self.accepted.get() as u32,
            turned_away: self.max_clients.get() as u32,
            failed: self.failed.each_ref().map(|count| count.get() as u32),
            connection_wait: self.connection_wait.counts().map(|count| count as u32),
            reply_wait: self.reply_wait.counts().map(|count| count as u32),
        }
    }
}
