//! A tap connects the relay, which only moves bytes, with code that understands the bytes.
//!
//! A relay shows all bytes to one tap, which is chosen when the relay is built. The compiler makes
//! a copy of the relay for each kind of tap, so that [`NoTap`] costs nothing.

use tokio::time::Instant;

/// An observer of the bytes that pass through a relay. A tap cannot change the bytes.
#[expect(clippy::wrong_self_convention, reason = "`from_app` receives bytes from the app")]
pub trait Tap {
    /// Called with bytes that the app has sent, before the relay writes these bytes to Redis, or
    /// discards them because writing to Redis has failed.
    fn from_app(&mut self, _bytes: &[u8]) {}

    /// Called with bytes that Redis has sent, before the relay writes these bytes to the app, or
    /// discards them because writing to the app has failed.
    fn from_redis(&mut self, _bytes: &[u8]) {}

    /// Called after the relay has read or written bytes.
    fn moved(&mut self, _progress: Progress, _now: Instant) {}

    /// Called when the app's stream has ended. If this function returns true, the relay ends and
    /// leaves the connection to Redis open.
    fn keeps_upstream(&self) -> bool {
        false
    }
}

/// The numbers of bytes that a relay has delivered so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// The number of bytes from the app that the relay has written to Redis.
    pub sent: u64,
    /// The number of bytes from Redis that the relay has written to the app.
    pub received: u64,
}

/// A tap that ignores all bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {}
