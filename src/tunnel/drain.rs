//! During the drain, which begins when COMMAND ends, connections deliver the bytes that COMMAND has
//! already written.

use tokio::sync::{mpsc, watch};

/// A guard that each connection and each listener holds. The guard tells its holder when COMMAND
/// has ended, and the drain lasts until all guards are dropped.
#[derive(Debug, Clone)]
pub struct DrainGuard {
    /// A sender that never sends a message. The drain ends when all such senders are dropped.
    #[expect(dead_code, reason = "the drain ends when all connections have dropped their senders")]
    alive: mpsc::Sender<()>,
    command_ended: watch::Receiver<bool>,
}

/// Announces COMMAND's end to the holders of the [`DrainGuard`]s, and waits until all guards are
/// dropped.
#[derive(Debug)]
pub struct Drain {
    all_done: mpsc::Receiver<()>,
    command_ended: watch::Sender<bool>,
}

impl DrainGuard {
    pub fn new() -> (DrainGuard, Drain) {
        let (alive, all_done) = mpsc::channel(1);
        let (ended_sender, command_ended) = watch::channel(false);
        let drain = Drain { all_done, command_ended: ended_sender };
        (DrainGuard { alive, command_ended }, drain)
    }

    /// Waits until COMMAND has ended, or the launcher is ending.
    pub async fn command_ended(&mut self) {
        let _ = self.command_ended.wait_for(|ended| *ended).await;
    }
}

impl Drain {
    /// Tells all holders of guards that COMMAND has ended, and waits until all guards are dropped.
    /// The caller must drop its own [`DrainGuard`] first.
    pub async fn finish(mut self) {
        self.command_ended.send_replace(true);
        let _ = self.all_done.recv().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_lasts_until_the_last_connection_ends() {
        let (guard, drain) = DrainGuard::new();
        let mut guard = guard;
        for lifetime in [3, 1, 2] {
            let alive = guard.clone();
            tokio::spawn(async move {
                sleep(Duration::from_secs(lifetime)).await;
                drop(alive);
            });
        }
        // The listener drops its guard when COMMAND has ended.
        tokio::spawn(async move {
            guard.command_ended().await;
            drop(guard);
        });
        let started = tokio::time::Instant::now();
        drain.finish().await;
        assert_eq!(started.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_connections_is_over_at_once() {
        let (guard, drain) = DrainGuard::new();
        drop(guard);
        let started = tokio::time::Instant::now();
        drain.finish().await;
        assert_eq!(started.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_drain_also_waits_for_connections_that_begin_late() {
        let (guard, drain) = DrainGuard::new();
        tokio::spawn(async move {
            let mut guard = guard;
            guard.command_ended().await;
            // This guard stands for a connection that was accepted after COMMAND's end.
            let late = guard.clone();
            drop(guard);
            sleep(Duration::from_secs(2)).await;
            drop(late);
        });
        let started = tokio::time::Instant::now();
        drain.finish().await;
        assert_eq!(started.elapsed(), Duration::from_secs(2));
    }
}
