//! The counts of the last ten minutes, in time slots of 30 seconds.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::counts::Counts;

/// The length of a time slot.
pub const SLOT: Duration = Duration::from_secs(30);
/// The number of slots in ten minutes, including the current slot.
pub const POINTS: usize = 20;
/// [`History::recent`] covers this many past slots, and the current slot.
const RECENT_SLOTS: usize = 10;

/// The bar of the graph for one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The highest number of connections to Redis.
    pub peak: u64,
    pub failed: u64,
}

/// The counts at the end of each slot.
#[derive(Debug)]
pub struct History {
    /// The end of the current slot.
    slot_end: Instant,
    /// The counts at the beginning of the oldest slot, and then the counts at the end of each past
    /// slot.
    marks: VecDeque<Counts>,
}

impl Default for History {
    fn default() -> History {
        History { slot_end: Instant::now() + SLOT, marks: VecDeque::from([Counts::default()]) }
    }
}

impl History {
    /// Ends the slots that are over at the time `now`.
    ///
    /// No timer ends the slots. Instead, callers call this function before they change `counts`, so
    /// that `counts` are still the counts at the end of the slot.
    pub fn roll(&mut self, now: Instant, counts: &mut Counts) {
        while now >= self.slot_end {
            self.slot_end += SLOT;
            self.marks.push_back(counts.clone());
            if self.marks.len() > POINTS {
                self.marks.pop_front();
            }
            counts.slot_peak = counts.held();
        }
    }

    /// The counts of the last five minutes, or of up to one slot more. `now` has the current
    /// counts.
    pub fn recent(&self, now: &Counts) -> Counts {
        now.since(&self.marks[self.marks.len().saturating_sub(RECENT_SLOTS + 1)])
    }

    /// The bars of the last ten minutes, the oldest slot first. `now` has the current counts.
    pub fn graph(&self, now: &Counts) -> Vec<Point> {
        let ends = self.marks.iter().skip(1).chain([now]);
        let slots = self.marks.iter().zip(ends);
        let point = |(before, end): (&Counts, &Counts)| Point {
            peak: end.slot_peak,
            failed: end.failed_in_all() - before.failed_in_all(),
        };
        slots.map(point).collect()
    }
}
