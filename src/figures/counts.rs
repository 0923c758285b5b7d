//! The counters and gauges of one tunnel.

use super::histogram::{Histogram, differences};
use super::reason::{CloseReason, FailureReason, Handshake, PoolResult, UpstreamState};

/// The numbers of one tunnel. Each number only grows, unless its comment says "now", "highest" or
/// "latest".
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// Open app connections now.
    pub open: u64,
    pub accepted: u64,
    /// Ended app connections by reason, in the order of [`CloseReason::WORDS`].
    pub closed: [u64; CloseReason::COUNT],
    /// Failed app connections by reason, in the order of [`FailureReason::WORDS`].
    pub failed: [u64; FailureReason::COUNT],
    /// App connections that wait for a connection to Redis now.
    pub waiting: u64,
    /// Failed attempts to accept an app connection.
    pub accept_errors: u64,
    /// Connections that Redis refused, probably because Redis was at its client limit.
    pub max_clients: u64,
    /// Plaintext bytes from the app to Redis, without TLS overhead.
    pub sent: u64,
    /// Plaintext bytes from Redis to the app, without TLS overhead.
    pub received: u64,
    /// Connections to Redis now, in the order of [`UpstreamState::WORDS`].
    pub upstream: [u64; UpstreamState::COUNT],
    /// The highest number of connections to Redis since the launcher started.
    pub peak: u64,
    /// The highest number of connections to Redis since the current [`super::history::SLOT`] began.
    pub slot_peak: u64,
    /// Connections that the pool gave to apps, in the order of [`PoolResult::WORDS`].
    pub pool: [u64; PoolResult::COUNT],
    /// Durations of successful handshakes, in the order of [`Handshake::WORDS`].
    pub handshakes: [Histogram; Handshake::COUNT],
    /// The times from accepting an app connection until its connection to Redis was ready.
    pub connection_wait: Histogram,
    /// The times from a request to the first byte of its reply.
    pub reply_wait: Histogram,
    /// The time of Redis's latest answer to an app, in milliseconds since 1970.
    pub last_success: Option<u64>,
}

impl Counts {
    /// The number of connections to Redis in all states.
    pub fn held(&self) -> u64 {
        self.upstream.iter().sum()
    }

    /// The number of connections to Redis that have finished the TLS handshake.
    pub fn established(&self) -> u64 {
        self.held() - self.upstream[UpstreamState::Connecting as usize]
    }

    pub fn failed_in_all(&self) -> u64 {
        self.failed.iter().sum()
    }

    /// The increase of each counter since `before`, an earlier copy of these counts. Numbers that
    /// do not only grow are copied from `self`.
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
