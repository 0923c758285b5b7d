//! Paces a warning that an app may cause hundreds of times a second.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// One warning, at most once a minute.
#[derive(Debug, Default)]
pub struct Pace(Mutex<Option<Instant>>);

impl Pace {
    const AT_MOST_EVERY: Duration = Duration::from_secs(60);

    /// Whether the warning is due now. If so, the next one is due a minute later.
    pub fn take_turn(&self, now: Instant) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let due = last.is_none_or(|last| now - last >= Pace::AT_MOST_EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_warning_is_due_at_once_and_then_once_a_minute() {
        let (pace, now) = (Pace::default(), Instant::now());
        let due_after = [0, 0, 59, 60, 61, 119, 120]
            .map(|seconds| pace.take_turn(now + Duration::from_secs(seconds)));
        assert_eq!(due_after, [true, false, false, true, false, false, true]);
    }
}
