//! Logs warnings about a tunnel's connections. Repeated warnings are summarised, so that an outage
//! cannot fill the log.
//!
//! The first five warnings with the same event and reason are written at once. Further warnings
//! with this event and reason are summarised every ten seconds, in one line with a count and the
//! latest error. After ten seconds without such a warning, the next five warnings are written at
//! once.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::sleep;

use crate::figures::Event;
use crate::logging::warning;

/// The number of warnings with the same event and reason that are written at once.
const AT_ONCE: usize = 5;
/// The time between two summaries of repeated warnings.
const PERIOD: Duration = Duration::from_secs(10);

/// A warning about a tunnel's connections.
#[derive(Debug)]
pub struct Warning {
    pub event: Event,
    /// The reason in the metrics if the app connection counts as failed, and otherwise `None`.
    pub reason: Option<&'static str>,
    pub error: String,
    pub hint: String,
}

/// The writer of one tunnel's warnings. Dropping this value writes the last summaries.
#[derive(Debug)]
pub struct Warnings {
    variable: String,
    upstream: String,
    summary: Mutex<Summary>,
}

impl Warnings {
    pub fn new(variable: String, upstream: String) -> Arc<Warnings> {
        Arc::new(Warnings { variable, upstream, summary: Mutex::default() })
    }

    fn summary(&self) -> MutexGuard<'_, Summary> {
        self.summary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a warning, either now or as part of a later summary.
    ///
    /// # Panics
    /// Panics if called outside a tokio runtime.
    pub fn warn(self: &Arc<Self>, warning: Warning) {
        let (at_once, is_first) = {
            let mut summary = self.summary();
            let is_first = summary.is_empty();
            (summary.add(warning), is_first)
        };
        if let Some(warning) = at_once {
            self.write(&warning, None);
        }
        if is_first {
            tokio::spawn(write_summaries(Arc::downgrade(self)));
        }
    }

    /// Writes the summaries of the warnings that were not written at once. Returns false if there
    /// are no warnings left to summarise.
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
        let Warning { event, reason, error, hint } = warning;
        warning!(at = event.word(), var, upstream, reason, error, hint, count);
    }
}

impl Drop for Warnings {
    fn drop(&mut self) {
        self.write_held_back();
    }
}

/// Writes summaries every [`PERIOD`], until there are no warnings left to summarise.
async fn write_summaries(warnings: Weak<Warnings>) {
    loop {
        sleep(PERIOD).await;
        match warnings.upgrade() {
            Some(warnings) if warnings.write_held_back() => {}
            _ => return,
        }
    }
}

/// The warnings since the last summary. This type decides which warnings are written at once, and
/// stores the other warnings for the next summary.
#[derive(Debug, Default)]
struct Summary(BTreeMap<(&'static str, Option<&'static str>), Burst>);

/// A series of warnings in quick succession that have the same event and reason.
#[derive(Debug, Default)]
struct Burst {
    at_once: usize,
    /// The number of warnings since the last summary that were held back for the next summary.
    count: u64,
    /// The latest warning since the last summary that was not written at once.
    held_back: Option<Warning>,
    /// True if there was a warning since the last summary.
    is_live: bool,
}

impl Summary {
    /// Returns the warning if it must be written at once. Otherwise, stores the warning for the
    /// next summary.
    fn add(&mut self, warning: Warning) -> Option<Warning> {
        let burst = self.0.entry((warning.event.word(), warning.reason)).or_default();
        burst.is_live = true;
        if burst.at_once < AT_ONCE {
            burst.at_once += 1;
            return Some(warning);
        }
        burst.count += 1;
        burst.held_back = Some(warning);
        None
    }

    /// For each pair of an event and a reason, returns the latest stored warning, and the number of
    /// warnings stored since the last call. Forgets each pair that had no warning since the last
    /// call.
    fn take_held_back(&mut self) -> Vec<(Warning, u64)> {
        self.0.retain(|_, burst| std::mem::take(&mut burst.is_live));
        let bursts = self.0.values_mut();
        let counted =
            |burst: &mut Burst| Some((burst.held_back.take()?, std::mem::take(&mut burst.count)));
        bursts.filter_map(counted).collect()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a warning with this reason, and with the number as its error text.
    fn failure(reason: &'static str, number: u64) -> Warning {
        let (error, hint) = (number.to_string(), String::new());
        Warning { event: Event::Failed, reason: Some(reason), error, hint }
    }

    #[test]
    fn five_lines_come_at_once_and_then_summaries() {
        let mut summary = Summary::default();
        let mut add = |reason, number| summary.add(failure(reason, number)).is_some();
        let at_once: Vec<_> = (0..9).filter(|number| add("tcp_refused", *number)).collect();
        assert_eq!(at_once, [0, 1, 2, 3, 4]);
        assert!(add("dns", 100), "each reason has lines of its own");
        let held_back = |summary: &mut Summary| -> Vec<_> {
            let counted = summary.take_held_back().into_iter();
            counted.map(|(warning, count)| (warning.error, count)).collect()
        };
        assert_eq!(held_back(&mut summary), [("8".to_owned(), 4)]);
        // There were warnings in the last ten seconds, so the next warning is summarised too.
        assert!(summary.add(failure("tcp_refused", 9)).is_none());
        assert_eq!(held_back(&mut summary), [("9".to_owned(), 1)]);
        assert!(held_back(&mut summary).is_empty() && summary.is_empty());
        assert!(summary.add(failure("tcp_refused", 10)).is_some(), "a new burst begins");
    }
}
