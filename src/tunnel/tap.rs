//! The seam between moving bytes and understanding them.
//!
//! A relay shows all bytes to one tap, which is chosen when the relay is built. The compiler makes
//! a copy of the relay for each kind of tap, so that [`NoTap`] costs nothing.

use tokio::time::Instant;

/// Sees the bytes that pass through a relay, and cannot change them.
#[expect(clippy::wrong_self_convention, reason = "`from_app` receives bytes from the app")]
pub trait Tap {
    /// The app has sent these bytes. The relay is about to write them to Redis, or to discard them
    /// if writing to Redis has failed.
    fn from_app(&mut self, _bytes: &[u8]) {}

    /// Redis has sent these bytes. The relay is about to write them to the app, or to discard them
    /// if writing to the app has failed.
    fn from_redis(&mut self, _bytes: &[u8]) {}

    /// Bytes were read or written.
    fn moved(&mut self, _progress: Progress, _now: Instant) {}

    /// Called when the app has ended. If true, the relay ends and leaves the connection to Redis
    /// open.
    fn keeps_upstream(&self) -> bool {
        false
    }
}

/// The numbers of bytes that a relay has delivered so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes from the app that Redis's side has taken.
    pub sent: u64,
    /// Bytes from Redis that the app's side has taken.
    pub received: u64,
}

/// A tap that ignores all bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTap;

impl Tap for NoTap {}
