//! The last ten minutes, without a clock of their own: totals are put down at the end of each slot
//! of time, by whoever comes next. Nothing has changed in between, or somebody would have come.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::histogram::BUCKETS;
use super::reason::FailureReason;

/// How long a slot is.
pub const SLOT: Duration = Duration::from_secs(30);
/// As many points as ten minutes have, the running slot included.
pub const POINTS: usize = 20;
/// What [`Recent`] is about: these last slots, and the running one.
const RECENT_SLOTS: usize = 10;
/// The least time that [`Recent`] is about, if the launcher has run for so long.
pub const RECENT: Duration = Duration::from_secs(SLOT.as_secs() * RECENT_SLOTS as u64);

/// Totals at the end of a slot; differences of two are right even when they have wrapped around.
#[derive(Debug, Clone, Default)]
pub struct Mark {
    /// The most connections to Redis within the slot.
    pub peak: u32,
    pub accepted: u32,
    pub turned_away: u32,
    pub failed: [u32; FailureReason::COUNT],
    pub connection_wait: [u32; BUCKETS.len() + 1],
    pub reply_wait: [u32; BUCKETS.len() + 1],
}

/// What came in the last five minutes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recent {
    pub accepted: u32,
    pub turned_away: u32,
    /// In the order of [`FailureReason::ALL`].
    pub failed: [u32; FailureReason::COUNT],
    /// By bucket of the histograms.
    pub connection_wait: [u32; BUCKETS.len() + 1],
    pub reply_wait: [u32; BUCKETS.len() + 1],
}

/// What came in one slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// The most connections to Redis.
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

    /// The time, in seconds, within which 95 of 100 connections got to Redis.
    pub fn connection_p95(&self) -> Option<f64> {
        super::histogram::p95(&self.connection_wait.map(u64::from))
    }

    /// The time, in seconds, within which 95 of 100 replies began.
    pub fn reply_p95(&self) -> Option<f64> {
        super::histogram::p95(&self.reply_wait.map(u64::from))
    }
}

#[derive(Debug)]
pub struct History {
    began: Instant,
    /// When the running slot ends, in milliseconds since `began`.
    due: AtomicU64,
    /// Of the slots that have ended, the oldest first: one more than points are shown, which is
    /// where the oldest of them begins.
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

    /// Ends the slots that are over at `now`, each with what `mark` says.
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

    /// What came in the last five minutes until `now`, and up to a slot before.
    pub fn recent(&self, now: &Mark) -> Recent {
        let marks = self.marks();
        let before = marks.len().checked_sub(RECENT_SLOTS + 1).map(|index| &marks[index]);
        now.since(before.unwrap_or(&Mark::default()))
    }

    /// The last ten minutes, the running slot, which `now` ends, last.
    pub fn graph(&self, now: &Mark) -> Vec<Point> {
        let marks = self.marks();
        let origin = Mark::default();
        let begins = std::iter::once(&origin).chain(marks.iter());
        let ends = marks.iter().chain(std::iter::once(now));
        let points = begins.zip(ends).map(|(before, mark)| {
            let came = mark.since(before);
            Point { peak: mark.peak, accepted: came.accepted, failed: came.failed_in_all() }
        });
        // The oldest mark is where the first point begins, unless the launcher is as young.
        points.skip((marks.len() + 1).saturating_sub(POINTS)).collect()
    }
}
