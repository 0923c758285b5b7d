//! Enforces `--max-connections`, the maximum number of connections to Redis per tunnel.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// The queue counts as stuck if app connections wait, and for this time no slot was taken, released
/// or passed on to another app.
const STUCK: Duration = Duration::from_secs(10);
/// The time for which Redis may still count a connection as a client after the launcher has closed
/// the connection.
const FREEING: Duration = Duration::from_secs(1);

/// The limit on one tunnel's connections to Redis, each of which needs a slot. App connections that
/// wait for a slot form a queue in order of arrival. To leave the queue, an app connection drops
/// the future of [`Limit::slot`].
#[derive(Debug)]
pub struct Limit {
    slots: Arc<Semaphore>,
    moves: Mutex<Moves>,
}

/// The times of the latest changes of a tunnel's slots.
#[derive(Debug, Clone, Copy, Default)]
struct Moves {
    /// The time at which a slot was last taken, released or passed on to another app.
    changed: Option<Instant>,
    /// The time at which a connection to Redis was last closed.
    closed: Option<Instant>,
}

impl Limit {
    /// Makes a limit of `most` connections at the same time. If `most` is `None`, there is no
    /// limit.
    pub fn new(most: Option<NonZeroUsize>) -> Arc<Limit> {
        let most = most.map_or(Semaphore::MAX_PERMITS, NonZeroUsize::get);
        let slots = Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        Arc::new(Limit { slots, moves: Mutex::default() })
    }

    /// Takes a slot if a slot is free now.
    pub fn try_slot(self: &Arc<Self>) -> Option<Slot> {
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        Some(self.hand_out(permit))
    }

    /// Waits for a slot. App connections get slots in order of arrival.
    pub async fn slot(self: &Arc<Self>) -> Slot {
        let permit =
            self.slots.clone().acquire_owned().await.expect("the semaphore is never closed");
        self.hand_out(permit)
    }

    fn hand_out(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> Slot {
        self.moves().changed = Some(Instant::now());
        Slot { limit: self.clone(), _permit: permit }
    }

    /// True if every slot is taken.
    pub fn is_full(&self) -> bool {
        self.slots.available_permits() == 0
    }

    /// True if the same app connections have held all slots for ten seconds.
    pub fn is_stuck(&self, now: Instant) -> bool {
        self.is_full() && self.moves().changed.is_some_and(|changed| now - changed >= STUCK)
    }

    /// True if every slot is taken, and this tunnel has closed a connection so recently that Redis
    /// may still count the connection as a client.
    pub fn may_still_be_counted(&self, now: Instant) -> bool {
        self.is_full() && self.moves().closed.is_some_and(|closed| now - closed < FREEING)
    }

    fn moves(&self) -> MutexGuard<'_, Moves> {
        self.moves.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The permission to have one connection to Redis. The permission ends when the slot is dropped.
#[derive(Debug)]
pub struct Slot {
    limit: Arc<Limit>,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    /// Notes that another app now uses the connection that holds this slot.
    pub fn note_new_user(&self) {
        self.limit.moves().changed = Some(Instant::now());
    }

    /// Notes that the connection that held this slot is closed, so Redis will soon accept another
    /// client.
    pub fn note_closed(&self) {
        self.limit.moves().closed = Some(Instant::now());
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.note_new_user();
        self.note_closed();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::time::{advance, timeout};

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    fn limit(most: usize) -> Arc<Limit> {
        Limit::new(NonZeroUsize::new(most))
    }

    #[tokio::test(start_paused = true)]
    async fn the_longest_waiting_app_gets_the_next_slot() {
        let limit = limit(1);
        let held = limit.try_slot().unwrap();
        assert!(limit.try_slot().is_none() && limit.is_full());
        let (mut first, mut second) = (pin!(limit.slot()), pin!(limit.slot()));
        assert!(timeout(MOMENT, &mut first).await.is_err());
        assert!(timeout(MOMENT, &mut second).await.is_err());
        drop(held);
        assert!(limit.try_slot().is_none(), "no app jumps the queue");
        assert!(timeout(MOMENT, &mut second).await.is_err());
        let got = timeout(MOMENT, &mut first).await.unwrap();
        drop(got);
        assert!(timeout(MOMENT, &mut second).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn if_a_waiting_app_leaves_the_next_app_gets_the_slot() {
        let limit = limit(1);
        let held = limit.try_slot().unwrap();
        {
            let mut gone = pin!(limit.slot());
            assert!(timeout(MOMENT, &mut gone).await.is_err());
        }
        drop(held);
        assert!(limit.try_slot().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_queue_is_stuck_after_ten_seconds_without_a_change() {
        let limit = limit(1);
        let slot = limit.try_slot().unwrap();
        advance(STUCK - MOMENT).await;
        assert!(!limit.is_stuck(Instant::now()));
        advance(MOMENT).await;
        assert!(limit.is_stuck(Instant::now()));
        slot.note_new_user();
        assert!(!limit.is_stuck(Instant::now()));
        advance(STUCK).await;
        drop(slot);
        assert!(!limit.is_stuck(Instant::now()), "a slot is free");
    }

    #[tokio::test(start_paused = true)]
    async fn redis_may_count_a_closed_connection_for_a_second() {
        let limit = limit(2);
        let (first, second) = (limit.try_slot().unwrap(), limit.try_slot().unwrap());
        assert!(!limit.may_still_be_counted(Instant::now()), "nothing was closed");
        second.note_closed();
        assert!(limit.may_still_be_counted(Instant::now()));
        advance(FREEING).await;
        assert!(!limit.may_still_be_counted(Instant::now()));
        drop(first);
        assert!(!limit.may_still_be_counted(Instant::now()), "a slot is free");
        let _third = limit.try_slot().unwrap();
        assert!(limit.may_still_be_counted(Instant::now()));
    }

    #[tokio::test]
    async fn without_a_limit_there_is_always_a_slot() {
        let limit = Limit::new(None);
        let slots: Vec<_> = (0..100).map(|_| limit.try_slot().unwrap()).collect();
        assert!(!limit.is_full() && !limit.is_stuck(Instant::now()));
        drop(slots);
    }
}
