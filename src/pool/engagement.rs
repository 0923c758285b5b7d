//! Decides when `--pool auto` switches the pool on and off, by counting short app connections.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The number of short app connections within [`WINDOW`] that switches the pool on.
const MANY: usize = 16;
const WINDOW: Duration = Duration::from_secs(10);
/// The duration below which an app connection counts as short.
const SHORT: Duration = Duration::from_secs(10);
/// The time for which the pool stays on after the app has made [`MANY`] short connections within
/// [`WINDOW`].
const LINGER: Duration = Duration::from_secs(60);

/// A counter of short app connections, which switches the pool on and off.
#[derive(Debug, Default)]
pub struct Engagement {
    /// The times at which the latest short connections ended. The list has at most [`MANY`]
    /// entries.
    ends: VecDeque<Instant>,
    /// The time at which the pool switches off, or `None` if the pool was never switched on.
    until: Option<Instant>,
}

impl Engagement {
    pub fn is_on(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Counts an app connection that has ended, if this connection was short. `lasted` is the
    /// connection's duration if Redis replied to the app, and if the app then closed the connection
    /// without an error. Otherwise, `lasted` is `None`, and the connection does not count.
    pub fn note(&mut self, lasted: Option<Duration>, now: Instant) {
        if lasted.is_none_or(|lasted| lasted >= SHORT) {
            return;
        }
        self.ends.push_back(now);
        if self.ends.len() > MANY {
            self.ends.pop_front();
        }
        let first = self.ends.front().copied().unwrap_or(now);
        if self.ends.len() == MANY && now - first <= WINDOW {
            self.until = Some(now + LINGER);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Option<Duration> = Some(Duration::from_secs(1));

    /// True if the pool is on after `count` app connections. They end one after the other, with the
    /// time `pause` between their ends. [`Engagement::note`] explains `lasted`.
    fn is_on_after(count: usize, pause: Duration, lasted: Option<Duration>) -> bool {
        let (mut engagement, mut now) = (Engagement::default(), Instant::now());
        for _ in 0..count {
            now += pause;
            engagement.note(lasted, now);
        }
        engagement.is_on(now)
    }

    #[tokio::test]
    async fn sixteen_short_connections_in_10_s_switch_the_pool_on() {
        let ms = Duration::from_millis;
        assert!(!is_on_after(15, ms(1), GOOD));
        assert!(is_on_after(16, ms(1), GOOD));
        assert!(is_on_after(16, WINDOW / 15, GOOD));
        assert!(!is_on_after(100, WINDOW / 15 + ms(1), GOOD));
    }

    #[tokio::test]
    async fn long_and_unanswered_connections_do_not_count() {
        for other in [Some(SHORT), None] {
            assert!(!is_on_after(100, Duration::from_millis(1), other), "{other:?}");
        }
    }

    #[tokio::test]
    async fn a_minute_without_16_short_ones_switches_the_pool_off() {
        let (mut engagement, start) = (Engagement::default(), Instant::now());
        for _ in 0..MANY {
            engagement.note(GOOD, start);
        }
        // One short connection per second is not enough to keep the pool on.
        for second in 1..60 {
            engagement.note(GOOD, start + Duration::from_secs(second));
        }
        assert!(engagement.is_on(start + Duration::from_secs(60)));
        assert!(!engagement.is_on(start + Duration::from_secs(5) + LINGER + LINGER / 2));
    }
}
