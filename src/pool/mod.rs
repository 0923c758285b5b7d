//! Connections to Redis between two users: made beforehand, used before, limits, queue.
//!
//! Whoever gets a connection must find what a new one has, whatever its last user did. Four things
//! see to that, and each alone would nearly do:
//!
//! - the [`ledger`] follows a connection from its first byte, and lets it be kept only if it knows
//!   each request to leave nothing behind that a reset does not clear, and no reply to be owed;
//! - `RESET` is sent when the user has gone, and once more in front of the next one's first
//!   request;
//! - the [`canary`] has tried what `RESET` does on this server;
//! - [`stock`] hands over only what is known to be good, and `tunnel` only what has been silent.
//!
//! Nothing here knows the network.

pub mod canary;
pub mod commands;
mod demand;
pub mod ledger;
pub mod stock;

pub use ledger::Ledger;
pub use stock::{Granted, HandOver, Kept, Origin, Permit, Place, Stock};

/// The most connections that a tunnel makes beforehand.
pub const MOST_SPARES: usize = 8;

/// Whether the app's next connection gets one that the app has closed: `--pool`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// Never: a plain tunnel.
    Off,
    /// Always, where that is safe.
    On,
    /// Only while the app reconnects frequently.
    Auto,
}

/// What a [`Stock`] has to keep to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    pub mode: PoolMode,
    /// The most connections at a time; `None`: as many as are asked for.
    pub limit: Option<usize>,
    /// `--spares`: as many under little demand, at most [`MOST_SPARES`]; 0: none.
    pub spares: usize,
    /// Whether each user logs in on every connection.
    pub all_have_passwords: bool,
    /// Whether TLS sessions are resumed, if the server agrees.
    pub resumes: bool,
}
