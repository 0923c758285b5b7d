//! The idle timeout of a relay.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// Watches for the idle timeout. The timer is moved only when it fires, not with every byte.
#[derive(Debug)]
pub struct Idle {
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    pub fn new(timeout: Duration) -> Idle {
        Idle { timeout, timer: Box::pin(sleep_until(later(Instant::now(), timeout))) }
    }

    /// Ready when nothing has moved for the timeout.
    pub fn poll(&mut self, cx: &mut Context<'_>, last_moved: Instant) -> Poll<()> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let due = later(last_moved, self.timeout);
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(due);
        }
    }
}

/// A moment `timeout` after `moment`, or so late that it does not matter.
fn later(moment: Instant, timeout: Duration) -> Instant {
    const A_CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);
    moment + timeout.min(A_CENTURY)
}
