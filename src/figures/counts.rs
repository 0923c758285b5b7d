//! The counters and gauges of one tunnel.

use super::histogram::{Histogram, differences};
use super::reason::{CloseReason, FailureReason, Handshake, PoolResult, UpstreamState};

/// The counts of one tunnel. Each count only grows, unless its comment says "now", "highest" or
/// "latest".
#[derive(Debug, Default, Clone)]
pub struct Counts {
    /// The number of app connections that are open now.
    pub open: u64,
    pub accepted: u64,
    /// The number of app connections that ended without a failure, for each reason in
    /// [`CloseReason::WORDS`].
    pub closed: [u64; CloseReason::COUNT],
    /// The number of app connections that failed, for each reason in [`FailureReason::WORDS`].
    pub failed: [u64; FailureReason::COUNT],
    /// The number of app connections that wait for a connection to Redis now.
    pub waiting: u64,
    /// The number of failed attempts to accept an app connection.
    pub accept_errors: u64,
    /// The number of connections that Redis refused, probably because Redis was at its client
    /// limit.
    pub max_clients: u64,
    /// The number of plaintext bytes from the app to Redis, without TLS overhead.
    pub sent: u64,
    /// The number of plaintext bytes from Redis to the app, without TLS overhead.
    pub received: u64,
    /// The number of connections to Redis now, for each state in [`UpstreamState::WORDS`].
    pub upstream: [u64; UpstreamState::COUNT],
    /// The highest number of connections to Redis since the launcher started.
    pub peak: u64,
    /// The highest number of connections to Redis since the current time slot of the history began.
    /// [`super::history::SLOT`] is the length of a time slot.
    pub slot_peak: u64,
    /// The number of connections that the pool gave to apps, for each result in
    /// [`PoolResult::WORDS`].
    pub pool: [u64; PoolResult::COUNT],
    /// The durations of successful TLS handshakes, for each kind in [`Handshake::WORDS`].
    pub handshakes: [Histogram; Handshake::COUNT],
    /// The times that app connections waited, from their acceptance until a connection to Redis was
    /// ready.
    pub connection_wait: Histogram,
    /// The times from a request of the app to the first byte of Redis's reply.
    pub reply_wait: Histogram,
    /// The time of Redis's latest reply to an app, in milliseconds since 1970.
    pub last_success: Option<u64>,
}

impl Counts {
    /// Returns the number of connections to Redis in all states.
    pub fn held(&self) -> u64 {
        self.upstream.iter().sum()
    }

    /// Returns the number of connections to Redis that have finished the TLS handshake.
    pub fn established(&self) -> u64 {
        self.held() - self.upstream[UpstreamState::Connecting as usize]
    }

    pub fn failed_in_all(&self) -> u64 {
        self.failed.iter().sum()
    }

    /// Returns how much the counts that users see over time have grown since `before`, an earlier
    /// copy of these counts. Copies all other counts from `self`.
    pub fn since(&self, before: &Counts) -> Counts {
        Counts {
            accepted: self.accepted - before.accepted,
            failed: differences(&self.failed, &before.failed),
            max_clients: self.max_clients - before.max_clients,
            sent: self.sent - before.sent,
            received: self.received - before.received,
            connection_wait: self.connection_wait.since(&before.connection_wait),
            reply_wait: self.reply_wait.since(&before.reply_wait),
            ..self.clone()
        }
    }
}
