//! The counts of the last ten minutes, in slots of 30 s.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::counts::Counts;

/// The length of a slot.
pub const SLOT: Duration = Duration::from_secs(30);
/// The number of slots in ten minutes, including the current one.
pub const POINTS: usize = 20;
/// [`History::recent`] covers this many past slots, and the current one.
const RECENT_SLOTS: usize = 10;

/// One slot of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The highest number of connections to Redis.
    pub peak: u64,
    pub failed: u64,
}

/// The counts at the end of each slot.
#[derive(Debug)]
pub struct History {
    /// When the current slot ends.
    slot_end: Instant,
    /// The first entry has the counts at the start of the oldest slot. Each further entry has the
    /// counts at the end of a past slot.
    marks: VecDeque<Counts>,
}

impl Default for History {
    fn default() -> History {
        History { slot_end: Instant::now() + SLOT, marks: VecDeque::from([Counts::default()]) }
    }
}

impl History {
    /// Ends the slots that are over at `now`.
    ///
    /// There is no timer. Callers call this before they count, so that `counts` still are the
    /// counts at the end of the slot.
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

    /// The counts of the last five minutes, or of up to one slot more. `now`: the current counts.
    pub fn recent(&self, now: &Counts) -> Counts {
        now.since(&self.marks[self.marks.len().saturating_sub(RECENT_SLOTS + 1)])
    }

    /// The slots of the last ten minutes, the oldest first. `now`: the current counts.
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
