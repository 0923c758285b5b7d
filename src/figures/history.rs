//! The last ten minutes, in slots of 30 s.
//!
//! No timer ticks. Whoever counts something first calls [`History::roll`], which records the totals
//! for each slot that has ended since. The totals are still those of the slot's end, because
//! nothing was counted in between.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::histogram::BUCKET_COUNT;
use super::reason::FailureReason;

/// The length of a slot.
pub const SLOT: Duration = Duration::from_secs(30);
/// The number of slots in ten minutes, including the current one.
pub const POINTS: usize = 20;
/// [`Recent`] covers this many past slots and the current one.
const RECENT_SLOTS: usize = 10;
/// The shortest time that [`Recent`] covers, unless the launcher is younger.
pub const RECENT: Duration = Duration::from_secs(SLOT.as_secs() * RECENT_SLOTS as u64);

/// Totals at the end of a slot. Only differences are used, so a total may wrap around.
#[derive(Debug, Clone, Default)]
pub struct Mark {
    /// The highest number of connections to Redis within the slot.
    pub peak: u32,
    pub accepted: u32,
    pub turned_away: u32,
    pub failed: [u32; FailureReason::COUNT],
    pub connection_wait: [u32; BUCKET_COUNT],
    pub reply_wait: [u32; BUCKET_COUNT],
}

/// What was counted in the last five minutes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recent {
    pub accepted: u32,
    pub turned_away: u32,
    /// In the order of [`FailureReason::ALL`].
    pub failed: [u32; FailureReason::COUNT],
    /// By bucket of the histogram.
    pub connection_wait: [u32; BUCKET_COUNT],
    pub reply_wait: [u32; BUCKET_COUNT],
}

/// One slot of the graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The highest number of connections to Redis.
    pub peak: u32,
    pub accepted: u32,
    pub failed: u32,
}

fn differences<const N: usize>(later: &[u32; N], earlier: &[u32; N]) -> [u32; N] {
    std::array::from_fn(|index| later[index].wrapping_sub(earlier[index]))
}

impl Mark {
    fn since(&self, before: &Mark) -> Recent {
        Recent {
            accepted: self.accepted.wrapping_sub(before.accepted),
            turned_away: self.turned_away.wrapping_sub(before.turned_away),
            failed: differences(&self.failed, &before.failed),
            connection_wait: differences(&self.connection_wait, &before.connection_wait),
            reply_wait: differences(&self.reply_wait, &before.reply_wait),
        }
    }
}

impl Recent {
    pub fn failed_in_all(&self) -> u32 {
        self.failed.iter().sum()
    }

    /// The 95th percentile of the time from accepting an app connection until Redis was ready, in
    /// seconds.
    pub fn connection_p95(&self) -> Option<f64> {
        super::histogram::p95(&self.connection_wait.map(u64::from))
    }

    /// The 95th percentile of the time from a request to the first byte of its reply, in seconds.
    pub fn reply_p95(&self) -> Option<f64> {
        super::histogram::p95(&self.reply_wait.map(u64::from))
    }
}

#[derive(Debug)]
pub struct History {
    began: Instant,
    /// The end of the current slot, in milliseconds since `began`.
    due: AtomicU64,
    /// One mark for each past slot, the oldest first. There is one mark more than past slots in the
    /// graph: the oldest mark is the beginning of the graph's first slot.
    marks: Mutex<VecDeque<Mark>>,
}

impl History {
    pub fn new() -> History {
        let due = AtomicU64::new(SLOT.as_millis() as u64);
        History { began: Instant::now(), due, marks: Mutex::default() }
    }

    fn marks(&self) -> MutexGuard<'_, VecDeque<Mark>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the slots that are over at `now`, each with the totals that `mark` returns.
    pub fn roll(&self, now: Instant, mark: impl FnMut() -> Mark) {
        let elapsed = now.saturating_duration_since(self.began).as_millis() as u64;
        if elapsed >= self.due.load(Ordering::Relaxed) {
            self.end_slots(elapsed, mark);
        }
    }

    #[cold]
    fn end_slots(&self, elapsed: u64, mut mark: impl FnMut() -> Mark) {
        let (slot, due) = (SLOT.as_millis() as u64, self.due.load(Ordering::Relaxed));
        let over = (elapsed - due) / slot + 1;
        let mut marks = self.marks();
        for _ in 0..over.min(POINTS as u64 + 1) {
            marks.push_back(mark());
            if marks.len() > POINTS {
                marks.pop_front();
            }
        }
        self.due.store(due + over * slot, Ordering::Relaxed);
    }

    /// What was counted in the last five minutes before `now`; up to one slot more.
    pub fn recent(&self, now: &Mark) -> Recent {
        let marks = self.marks();
        let before = marks.len().checked_sub(RECENT_SLOTS + 1).map(|index| &marks[index]);
        now.since(before.unwrap_or(&Mark::default()))
    }

    /// The slots of the last ten minutes, the oldest first. `now` ends the current slot.
    pub fn graph(&self, now: &Mark) -> Vec<Point> {
        let marks = self.marks();
        let origin = Mark::default();
        let begins = std::iter::once(&origin).chain(marks.iter());
        let ends = marks.iter().chain(std::iter::once(now));
        let points = begins.zip(ends).map(|(before, mark)| {
            let came = mark.since(before);
            Point { peak: mark.peak, accepted: came.accepted, failed: came.failed_in_all() }
        });
        // Once the marks are complete, the oldest one only begins the first slot.
        points.skip((marks.len() + 1).saturating_sub(POINTS)).collect()
    }
}
