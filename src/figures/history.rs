//! Keeps the counts of the last ten minutes, in time slots of 30 seconds.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::counts::Counts;

/// The length of a time slot of the history.
pub const SLOT: Duration = Duration::from_secs(30);
/// The number of time slots in ten minutes, including the current slot.
pub const POINTS: usize = 20;
/// The number of past time slots that [`History::recent`] covers in addition to the current slot.
const RECENT_SLOTS: usize = 10;

/// The numbers that the graphs show for one time slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The highest number of connections to Redis in the time slot.
    pub peak: u64,
    pub failed: u64,
}

/// A tunnel's counts at the end of each past time slot.
#[derive(Debug)]
pub struct History {
    /// The time at which the current slot ends.
    slot_end: Instant,
    /// The counts at the beginning of the oldest slot, followed by the counts at the end of each
    /// past slot.
    marks: VecDeque<Counts>,
}

impl Default for History {
    fn default() -> History {
        History { slot_end: Instant::now() + SLOT, marks: VecDeque::from([Counts::default()]) }
    }
}

impl History {
    /// Ends each time slot that is over at the time `now`.
    ///
    /// No timer ends the slots. Instead, each caller calls this function before the caller changes
    /// `counts`, so that `counts` still has the values from the end of the slot.
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

    /// Returns the counts of the current slot and of the ten slots before this slot. These slots
    /// cover the last five minutes, and up to 30 seconds more. `now` contains the current counts.
    pub fn recent(&self, now: &Counts) -> Counts {
        now.since(&self.marks[self.marks.len().saturating_sub(RECENT_SLOTS + 1)])
    }

    /// Returns the numbers of each time slot in the last ten minutes, the oldest slot first. `now`
    /// has the current counts.
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
