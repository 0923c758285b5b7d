//! Stores the idle connections, and the queue of app connections that wait for an idle connection.
//!
//! Idle connections form a stack. The pool reuses the connection at the top, which became idle
//! last. The connection at the bottom has been idle longest.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// The time after which the launcher closes an idle connection. Heroku closes an idle connection
/// after 300 s (<https://devcenter.heroku.com/articles/heroku-redis#timeout>).
const IDLE: Duration = Duration::from_secs(30);
/// The number of idle connections that stay open for [`IDLE`] if `--max-connections` is not set.
/// The number is small, because other processes need connections to Redis, too.
pub const FEW: usize = 2;
/// The time after which the launcher closes an idle connection beyond the number that may stay open
/// for [`IDLE`].
const SURPLUS_IDLE: Duration = Duration::from_secs(1);

/// The idle connections, and the apps that wait for an idle connection. `C` is the type of the
/// connections.
pub struct Idle<C> {
    /// The idle connections. The connection that became idle last is at the end.
    kept: Vec<Kept<C>>,
    waiting: VecDeque<oneshot::Sender<C>>,
    /// The number of connections that may stay open for [`IDLE`].
    may_stay: usize,
}

struct Kept<C> {
    connection: C,
    since: Instant,
}

impl<C> Idle<C> {
    /// Makes a value without idle connections. `may_stay` is the number of connections that may
    /// stay open for [`IDLE`].
    pub fn new(may_stay: usize) -> Idle<C> {
        Idle { kept: Vec::new(), waiting: VecDeque::new(), may_stay }
    }

    /// Returns and removes the connection that became idle last.
    pub fn take(&mut self) -> Option<C> {
        self.kept.pop().map(|kept| kept.connection)
    }

    /// Gives a connection to the app that has waited longest, or keeps the connection if no app
    /// waits.
    pub fn add(&mut self, mut connection: C, now: Instant) {
        while let Some(first) = self.waiting.pop_front() {
            match first.send(connection) {
                Ok(()) => return,
                // The first app in the queue no longer waits, so try the next app.
                Err(returned) => connection = returned,
            }
        }
        self.kept.push(Kept { connection, since: now });
    }

    /// Adds an app to the queue. Returns the receiver that will get an idle connection for this
    /// app.
    pub fn wait(&mut self) -> oneshot::Receiver<C> {
        // Remove the apps that no longer wait.
        self.waiting.retain(|waiting| !waiting.is_closed());
        let (sender, receiver) = oneshot::channel();
        self.waiting.push_back(sender);
        receiver
    }

    /// True if apps wait in the queue.
    pub fn has_waiters(&self) -> bool {
        self.waiting.iter().any(|waiting| !waiting.is_closed())
    }

    /// Closes the connections for which `is_useless` returns true. Returns the number of closed
    /// connections.
    pub fn remove(&mut self, is_useless: impl Fn(&C) -> bool) -> usize {
        let before = self.kept.len();
        self.kept.retain(|kept| !is_useless(&kept.connection));
        before - self.kept.len()
    }

    /// True if no connection is idle.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Closes the connections that have been idle for too long.
    pub fn expire(&mut self, now: Instant) {
        while let Some(oldest) = self.kept.first() {
            let time = if self.kept.len() > self.may_stay { SURPLUS_IDLE } else { IDLE };
            if now < oldest.since + time {
                return;
            }
            self.kept.remove(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test]
    async fn the_latest_connection_is_reused_first() {
        let (mut idle, now) = (Idle::new(FEW), Instant::now());
        (1..4).for_each(|name| idle.add(name, now));
        assert_eq!([idle.take(), idle.take(), idle.take()], [Some(3), Some(2), Some(1)]);
        assert_eq!(idle.take(), None);
    }

    #[tokio::test]
    async fn the_longest_waiter_gets_the_next_connection() {
        let (mut idle, now) = (Idle::new(FEW), Instant::now());
        let (first, gone, mut third) = (idle.wait(), idle.wait(), idle.wait());
        drop(gone);
        idle.add(1, now);
        idle.add(2, now);
        assert_eq!((first.await, third.try_recv()), (Ok(1), Ok(2)));
        assert!(!idle.has_waiters());
        idle.add(3, now);
        assert_eq!(idle.take(), Some(3));
    }

    #[tokio::test]
    async fn two_connections_stay_for_30_s_and_further_ones_for_1_s() {
        let (mut idle, start) = (Idle::new(FEW), Instant::now());
        (1..5).for_each(|name| idle.add(name, start));
        idle.expire(start + SURPLUS_IDLE - MS);
        assert_eq!(idle.kept.len(), 4);
        idle.expire(start + SURPLUS_IDLE);
        let left: Vec<_> = idle.kept.iter().map(|kept| kept.connection).collect();
        assert_eq!(left, [3, 4]);
        idle.expire(start + IDLE - MS);
        assert_eq!(idle.kept.len(), 2);
        idle.expire(start + IDLE);
        assert!(idle.is_empty());
    }

    #[tokio::test]
    async fn with_a_limit_all_connections_stay_for_30_s() {
        let (mut idle, start) = (Idle::new(usize::MAX), Instant::now());
        (0..20).for_each(|name| idle.add(name, start));
        idle.expire(start + IDLE - MS);
        assert_eq!(idle.kept.len(), 20);
        idle.expire(start + IDLE);
        assert!(idle.is_empty());
    }
}
