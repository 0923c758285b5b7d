//! How long Redis takes to reply, and how long it has not replied.
//!
//! Each relayed connection has a slot: the time of the oldest bytes sent to Redis after its last
//! reply. Writing to the slot is one store of an atomic number, so that requests cost nothing. Only
//! a reader of the status looks at all the slots.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::TunnelFigures;

/// The slots of a tunnel's relayed connections.
#[derive(Debug)]
pub(super) struct Replies {
    began: Instant,
    slots: Mutex<Slots>,
}

#[derive(Debug, Default)]
struct Slots {
    last_key: u64,
    /// When the wait for a reply began, as [`Replies::microseconds`]; 0: no wait.
    waiting_since: HashMap<u64, Arc<AtomicU64>>,
}

impl Replies {
    pub fn new() -> Replies {
        Replies { began: Instant::now(), slots: Mutex::default() }
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The moment `now` as slots have it; never 0.
    fn microseconds(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_micros() as u64 + 1
    }

    /// The longest of the connections' waits at the moment `now`; zero if none waits.
    pub fn longest_wait(&self, now: Instant) -> Duration {
        let slots = self.slots();
        let since = slots.waiting_since.values().map(|slot| slot.load(Ordering::Relaxed));
        let oldest = since.filter(|since| *since > 0).min();
        let waited = oldest.map_or(0, |oldest| self.microseconds(now).saturating_sub(oldest));
        Duration::from_micros(waited)
    }
}

/// The clock of one relayed connection. Dropping it ends the wait.
#[derive(Debug)]
pub struct ReplyClock<'a> {
    figures: &'a TunnelFigures,
    key: u64,
    waiting_since: Arc<AtomicU64>,
}

impl<'a> ReplyClock<'a> {
    pub(super) fn new(figures: &'a TunnelFigures) -> ReplyClock<'a> {
        let waiting_since = Arc::new(AtomicU64::new(0));
        let mut slots = figures.replies.slots();
        slots.last_key += 1;
        let key = slots.last_key;
        slots.waiting_since.insert(key, waiting_since.clone());
        drop(slots);
        ReplyClock { figures, key, waiting_since }
    }

    /// Bytes were sent to Redis. A wait begins, unless one is under way.
    pub fn sent(&self, now: Instant) {
        if self.waiting_since.load(Ordering::Relaxed) == 0 {
            let now = self.figures.replies.microseconds(now);
            self.waiting_since.store(now, Ordering::Relaxed);
        }
    }

    /// Bytes came from Redis. The wait, if there is one, is over.
    pub fn received(&self, now: Instant) {
        let since = self.waiting_since.load(Ordering::Relaxed);
        if since > 0 {
            self.waiting_since.store(0, Ordering::Relaxed);
            let waited = self.figures.replies.microseconds(now).saturating_sub(since);
            self.figures.replied(Duration::from_micros(waited), now);
        }
    }
}

impl Drop for ReplyClock<'_> {
    fn drop(&mut self) {
        self.figures.replies.slots().waiting_since.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_longest_wait_is_the_oldest_unanswered_request() {
        let figures = TunnelFigures::unread();
        let longest = || figures.replies.longest_wait(Instant::now());
        let second = Duration::from_secs(1);
        let (first, other) = (figures.reply_clock(), figures.reply_clock());
        assert_eq!(longest(), Duration::ZERO);
        first.sent(Instant::now());
        tokio::time::advance(second).await;
        other.sent(Instant::now());
        tokio::time::advance(second).await;
        // More bytes do not restart the wait.
        first.sent(Instant::now());
        assert_eq!(longest(), 2 * second);
        first.received(Instant::now());
        assert_eq!(longest(), second);
        // Bytes that nobody asked for end no wait.
        first.received(Instant::now());
        assert_eq!(figures.counts.reply_wait.count(), 1);
        assert_eq!(figures.counts.reply_wait.seconds(), 2.0);
        drop(other);
        assert_eq!(longest(), Duration::ZERO);
    }
}
