//! A tunnel's first TLS handshake runs alone, so that later handshakes can resume its session.
//!
//! This saves CPU time at Redis if many apps connect at once and there is no session yet: Redis
//! needs 0.78 times the CPU time that it needs behind nginx; without this rule 1.2 times
//! (docs/performance.md). Once per tunnel, other connections wait briefly for the first handshake.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use crate::tls::Sessions;

/// Other connections wait at most this long, or a quarter of the connect timeout if that is less.
const PATIENCE: Duration = Duration::from_millis(250);
/// If the TCP connect takes longer than this, the server is far away, and other connections do not
/// wait.
const SLOW_TCP: Duration = Duration::from_millis(80);

/// Lets one connection of a tunnel make the first handshake.
#[derive(Debug)]
pub struct FirstHandshake {
    has_begun: AtomicBool,
    sessions: Arc<Sessions>,
}

impl FirstHandshake {
    pub fn new(sessions: Arc<Sessions>) -> FirstHandshake {
        FirstHandshake { has_begun: AtomicBool::new(false), sessions }
    }

    /// Ends the wait for all connections, including later connections.
    pub fn finish(&self) {
        self.sessions.settle();
    }

    /// Returns [`First`] to the connection that must make the first handshake. All others wait here
    /// for the first session, or until the wait is over.
    pub async fn turn(&self, connect_timeout: Duration) -> Option<First<'_>> {
        if self.sessions.is_settled() {
            return None;
        }
        if !self.has_begun.swap(true, Ordering::Relaxed) {
            return Some(First(self));
        }
        // However the wait ended, no connection waits again.
        let _ = timeout(PATIENCE.min(connect_timeout / 4), self.sessions.settled()).await;
        self.finish();
        None
    }
}

/// The tunnel's first handshake. Dropping this ends the wait of the other connections. It is
/// dropped if the handshake fails, or if the server is far away.
#[derive(Debug)]
#[must_use]
pub struct First<'a>(&'a FirstHandshake);

impl First<'_> {
    /// Awaits `connecting` by TCP. If that takes long, drops the first handshake: the server is far
    /// away.
    pub async fn while_near<T>(
        first: &mut Option<First<'_>>,
        connecting: impl Future<Output = T>,
    ) -> T {
        let mut connecting = pin!(connecting);
        match timeout(SLOW_TCP, &mut connecting).await {
            Ok(connected) => connected,
            Err(_) => {
                *first = None;
                connecting.await
            }
        }
    }

    /// Call this when the handshake has succeeded. The other connections go on waiting for the
    /// session, which a server sends after the handshake (RFC 8446 section 4.6.1).
    pub fn succeeded(self) {
        std::mem::forget(self);
    }
}

impl Drop for First<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn other_connections_wait_once_for_at_most_250_ms() {
        for (connect_timeout, patience) in
            [(LONG, PATIENCE), (Duration::from_millis(400), Duration::from_millis(100))]
        {
            let gate = FirstHandshake::new(Arc::default());
            let turn = || gate.turn(connect_timeout);
            let began = Instant::now();
            turn().await.unwrap().succeeded();
            let (second, third) = tokio::join!(turn(), turn());
            assert!(second.is_none() && third.is_none());
            assert_eq!(began.elapsed(), patience);
            assert!(turn().await.is_none());
            assert_eq!(began.elapsed(), patience);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_after_a_failed_first_handshake() {
        let gate = FirstHandshake::new(Arc::default());
        let began = Instant::now();
        let first = gate.turn(LONG).await;
        let (second, ()) = tokio::join!(gate.turn(LONG), async { drop(first) });
        assert!(second.is_none());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
