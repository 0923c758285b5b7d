//! The numbers that are counted for one tunnel.

use super::histogram::{Histogram, differences};
use super::reason::{CloseReason, FailureReason, Handshake, PoolResult, UpstreamState};

/// One tunnel's numbers. Unless said otherwise, they only grow.
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// App connections that are open now.
    pub open: u64,
    pub accepted: u64,
    /// In the order of [`CloseReason::ALL`].
    pub closed: [u64; CloseReason::COUNT],
    /// In the order of [`FailureReason::ALL`].
    pub failed: [u64; FailureReason::COUNT],
    /// App connections that wait for a connection to Redis now.
    pub waiting: u64,
    /// How often accept(2) failed.
    pub accept_errors: u64,
    /// Connections that Redis turned away because it has too many clients.
    pub max_clients: u64,
    /// Bytes from the app to Redis, before TLS.
    pub sent: u64,
    /// Bytes from Redis to the app, before TLS.
    pub received: u64,
    /// Connections to Redis now, in the order of [`UpstreamState::ALL`].
    pub upstream: [u64; UpstreamState::COUNT],
    /// The highest number of connections to Redis since the launcher started.
    pub peak: u64,
    /// The highest number of connections to Redis in the current slot of the history.
    pub slot_peak: u64,
    /// The limit on connections to Redis.
    pub limit: Option<u64>,
    /// In the order of [`PoolResult::ALL`].
    pub pool: [u64; PoolResult::COUNT],
    /// Durations of successful handshakes, in the order of [`Handshake::ALL`].
    pub handshakes: [Histogram; Handshake::COUNT],
    /// From accepting an app connection until Redis was ready for it.
    pub connection_wait: Histogram,
    /// From a request to the first byte of its reply.
    pub reply_wait: Histogram,
    /// Milliseconds since 1970.
    pub last_success: Option<u64>,
}

impl Counts {
    /// Connections to Redis in any state.
    pub fn held(&self) -> u64 {
        self.upstream.iter().sum()
    }

    /// Connections whose handshake is done. Attempts do not count: when several fail together, that
    /// is no sign of Redis's client limit.
    pub fn established(&self) -> u64 {
        self.held() - self.upstream[UpstreamState::Connecting as usize]
    }

    pub fn failed_in_all(&self) -> u64 {
        self.failed.iter().sum()
    }

    /// What was counted since `before`, an earlier copy. Numbers that do not only grow stay as they
    /// are.
    pub fn since(&self, before: &Counts) -> Counts {
        let handshakes = |mode: usize| self.handshakes[mode].since(&before.handshakes[mode]);
        Counts {
            accepted: self.accepted - before.accepted,
            closed: differences(&self.closed, &before.closed),
            failed: differences(&self.failed, &before.failed),
            accept_errors: self.accept_errors - before.accept_errors,
            max_clients: self.max_clients - before.max_clients,
            sent: self.sent - before.sent,
            received: self.received - before.received,
            pool: differences(&self.pool, &before.pool),
            handshakes: std::array::from_fn(handshakes),
            connection_wait: self.connection_wait.since(&before.connection_wait),
            reply_wait: self.reply_wait.since(&before.reply_wait),
            ..self.clone()
        }
    }
}
