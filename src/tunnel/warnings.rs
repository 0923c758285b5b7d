//! Warnings about a tunnel's connections, summarised so that an outage cannot fill the log.
//!
//! The first five warnings of an event and reason are written at once. Further ones are written as
//! one line every ten seconds, with a count and the latest error. After ten seconds without a
//! warning of that event and reason, the next ones are written at once again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::sleep;

use crate::logging::warning;

/// Warnings of the same event and reason that are written at once.
const AT_ONCE: usize = 5;
/// The time between two summaries.
const PERIOD: Duration = Duration::from_secs(10);

/// A warning about a connection.
#[derive(Debug)]
pub enum Warning {
    /// The app spoke TLS to the local port.
    AppSpeaksTls { peer: String, msg: &'static str },
    /// The system gave no connection.
    AcceptFailed { error: String, hint: &'static str, reason: &'static str },
    /// Something went wrong between the launcher and Redis. `reason` is that of the metrics, if
    /// the connection counts as failed.
    Upstream { event: UpstreamEvent, reason: Option<&'static str>, error: String, hint: String },
}

/// What went wrong between the launcher and Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpstreamEvent {
    Failed,
    Refused,
    Unanswered,
    QueueTimeout,
    QueueWaiting,
}

impl UpstreamEvent {
    /// The word after `at=` in the log.
    fn event(self) -> &'static str {
        match self {
            UpstreamEvent::Failed => "connection-failed",
            UpstreamEvent::Refused => "connection-refused",
            UpstreamEvent::Unanswered => "connection-unanswered",
            UpstreamEvent::QueueTimeout => "queue-timeout",
            UpstreamEvent::QueueWaiting => "queue-waiting",
        }
    }
}

/// Warnings with the same event and reason are summarised together.
type Key = (&'static str, &'static str);

impl Warning {
    fn key(&self) -> Key {
        match self {
            Warning::AppSpeaksTls { .. } => ("app-speaks-tls", ""),
            Warning::AcceptFailed { reason, .. } => ("accept-failed", reason),
            Warning::Upstream { event, reason, .. } => (event.event(), reason.unwrap_or_default()),
        }
    }
}

/// Writes the warnings of one tunnel. Dropping it writes the last counts.
#[derive(Debug)]
pub struct Warnings {
    variable: String,
    upstream: String,
    summary: Mutex<Summary<Warning>>,
}

impl Warnings {
    pub fn new(variable: String, upstream: String) -> Arc<Warnings> {
        Arc::new(Warnings { variable, upstream, summary: Mutex::default() })
    }

    fn summary(&self) -> MutexGuard<'_, Summary<Warning>> {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a warning, now or as part of a summary. Needs tokio's runtime.
    pub fn warn(self: &Arc<Self>, warning: Warning) {
        let (at_once, is_first) = {
            let mut summary = self.summary();
            let is_first = summary.is_empty();
            (summary.add(warning.key(), warning), is_first)
        };
        if let Some(warning) = at_once {
            self.write(&warning, None);
        }
        if is_first {
            tokio::spawn(write_summaries(Arc::downgrade(self)));
        }
    }

    /// Writes what was held back. Returns whether more may follow.
    fn write_held_back(&self) -> bool {
        let (held_back, is_empty) = {
            let mut summary = self.summary();
            (summary.take_held_back(), summary.is_empty())
        };
        for (warning, count) in held_back {
            self.write(&warning, Some(count));
        }
        !is_empty
    }

    fn write(&self, warning: &Warning, count: Option<u64>) {
        let (var, upstream) = (&self.variable, &self.upstream);
        match warning {
            Warning::AppSpeaksTls { peer, msg } => {
                warning!(at = "app-speaks-tls", var, peer, msg, count);
            }
            Warning::AcceptFailed { error, hint, .. } => {
                warning!(at = "accept-failed", var, error, hint, count);
            }
            Warning::Upstream { event, reason, error, hint } => {
                warning!(at = event.event(), var, upstream, reason, error, hint, count);
            }
        }
    }
}

impl Drop for Warnings {
    fn drop(&mut self) {
        self.write_held_back();
    }
}

/// Writes a summary every [`PERIOD`], for as long as there is something to summarise.
async fn write_summaries(warnings: Weak<Warnings>) {
    loop {
        sleep(PERIOD).await;
        match warnings.upgrade() {
            Some(warnings) if warnings.write_held_back() => {}
            _ => return,
        }
    }
}

/// Decides which items are written at once, and holds the others back.
#[derive(Debug)]
struct Summary<T>(BTreeMap<Key, Burst<T>>);

/// Items with the same key in quick succession.
#[derive(Debug)]
struct Burst<T> {
    at_once: usize,
    /// The latest item that was held back, and how many were.
    held_back: Option<(T, u64)>,
    /// Whether an item has come since the last summary.
    is_live: bool,
}

impl<T> Default for Summary<T> {
    fn default() -> Summary<T> {
        Summary(BTreeMap::new())
    }
}

impl<T> Summary<T> {
    /// Returns `item` if it is to be written at once.
    fn add(&mut self, key: Key, item: T) -> Option<T> {
        let fresh = || Burst { at_once: 0, held_back: None, is_live: true };
        let burst = self.0.entry(key).or_insert_with(fresh);
        burst.is_live = true;
        if burst.at_once < AT_ONCE {
            burst.at_once += 1;
            return Some(item);
        }
        let before = burst.held_back.as_ref().map_or(0, |(_, count)| *count);
        burst.held_back = Some((item, before + 1));
        None
    }

    /// Of each key, the latest item that was held back since the last call, and how many were.
    /// Forgets keys without an item since the last call.
    fn take_held_back(&mut self) -> Vec<(T, u64)> {
        self.0.retain(|_, burst| std::mem::take(&mut burst.is_live));
        self.0.values_mut().filter_map(|burst| burst.held_back.take()).collect()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_lines_come_at_once_and_then_summaries() {
        let mut summary = Summary::default();
        let (refused, dns) = (("connection-failed", "tcp_refused"), ("connection-failed", "dns"));
        let at_once: Vec<_> = (0..9).filter_map(|n| summary.add(refused, n)).collect();
        assert_eq!(at_once, [0, 1, 2, 3, 4]);
        assert_eq!(summary.add(dns, 100), Some(100), "each reason has lines of its own");
        assert_eq!(summary.take_held_back(), [(8, 4)]);
        // The burst goes on.
        assert_eq!(summary.add(refused, 9), None);
        assert_eq!(summary.take_held_back(), [(9, 1)]);
        assert_eq!(summary.take_held_back(), []);
        assert!(summary.is_empty());
        assert_eq!(summary.add(refused, 10), Some(10), "a new burst begins");
    }
}
