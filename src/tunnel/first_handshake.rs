//! A tunnel's first TLS handshake runs alone. The tunnel's other connections wait briefly for this
//! handshake, so that they can resume the session of the first connection.
//!
//! Waiting saves CPU time at Redis if many apps connect at once: `bin/bench` measures this with the
//! load "storm of 10 x 20" (docs/performance.md).

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use crate::tls::Sessions;

/// The longest time that other connections wait for the first handshake. If the connect timeout is
/// short, other connections wait at most a quarter of the connect timeout.
const PATIENCE: Duration = Duration::from_millis(250);
/// The duration of a TCP connect above which the server counts as far away. Other connections do
/// not wait for the first handshake with such a server.
const SLOW_TCP: Duration = Duration::from_millis(80);

/// Lets one connection of a tunnel make the first handshake, while other connections wait.
#[derive(Debug)]
pub struct FirstHandshake {
    has_begun: AtomicBool,
    sessions: Arc<Sessions>,
}

impl FirstHandshake {
    pub fn new(sessions: Arc<Sessions>) -> FirstHandshake {
        FirstHandshake { has_begun: AtomicBool::new(false), sessions }
    }

    /// Ends the wait of all connections for the first handshake. Later connections do not wait
    /// either.
    pub fn finish(&self) {
        // Setting the value fails only if the wait is over already.
        let _ = self.sessions.wait_over.set(());
    }

    /// Returns [`First`] to the connection that must make the first handshake. All other
    /// connections wait here, until the first session arrives or the wait ends for another reason.
    pub async fn turn(&self, connect_timeout: Duration) -> Option<First<'_>> {
        if self.sessions.wait_over.initialized() {
            return None;
        }
        if !self.has_begun.swap(true, Ordering::Relaxed) {
            return Some(First(self));
        }
        // The connections of a tunnel wait only once. After a timeout, later connections do not
        // wait.
        let _ = timeout(PATIENCE.min(connect_timeout / 4), self.sessions.wait_over.wait()).await;
        self.finish();
        None
    }
}

/// A guard for the tunnel's first handshake. When the guard is dropped, the other connections stop
/// waiting. The caller drops the guard if the handshake fails or the server is far away.
#[derive(Debug)]
#[must_use]
pub struct First<'a>(&'a FirstHandshake);

impl First<'_> {
    /// Awaits `connecting`, a TCP connect. If the TCP connect takes longer than [`SLOW_TCP`], drops
    /// `first`.
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

    /// Disarms the guard after a successful handshake. The other connections keep waiting for the
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
    async fn connections_do_not_wait_after_a_failed_first_handshake() {
        let gate = FirstHandshake::new(Arc::default());
        let began = Instant::now();
        let first = gate.turn(LONG).await;
        let (second, ()) = tokio::join!(gate.turn(LONG), async { drop(first) });
        assert!(second.is_none());
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
