//! How often connections come, and how many that are made beforehand that is worth.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use super::MOST_SPARES;

/// Two connections within this time are demand.
const DEMAND: Duration = Duration::from_secs(10);
/// How long the number stays up after a burst, for each spare.
const SHRINK: Duration = Duration::from_secs(1);
/// For so long it counts how many connections were in use at once, in so many steps.
const PEAK: Duration = Duration::from_secs(30);
const PEAK_STEPS: usize = 6;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Demand {
    /// The latest arrivals, as many as could matter.
    arrivals: VecDeque<Instant>,
    /// How long the last spare took to make.
    pub handshake: Duration,
    pub wanted: usize,
    /// When `wanted` was last changed, or confirmed.
    changed: Option<Instant>,
}

impl Demand {
    fn last(&self) -> Option<Instant> {
        self.arrivals.back().copied()
    }

    /// Takes note of a connection. Under demand at least `least` spares are wanted, and as many as
    /// arrive while one is made; fewer again only bit by bit, so that a pause in a burst closes
    /// none. Without demand none is wanted, whatever was before.
    pub fn arrival(&mut self, now: Instant, least: usize) {
        let demanded = self.last().is_some_and(|last| now - last <= DEMAND);
        self.arrivals.push_back(now);
        while self.arrivals.len() > MOST_SPARES {
            self.arrivals.pop_front();
        }
        if !demanded {
            (self.wanted, self.changed) = (0, Some(now));
            return;
        }
        let arrived = self.arrivals.iter().filter(|then| now - **then <= self.handshake).count();
        let due = arrived.clamp(least.min(MOST_SPARES), MOST_SPARES);
        let since = self.changed.map_or(Duration::ZERO, |changed| now - changed);
        let fewer = (since.as_millis() / SHRINK.as_millis()) as usize;
        if due >= self.wanted || fewer > 0 {
            (self.wanted, self.changed) = (due.max(self.wanted.saturating_sub(fewer)), Some(now));
        }
    }
}

/// How many connections were in use at once lately.
#[derive(Debug, Default)]
pub struct Peak {
    /// The most of each step of time, the latest last.
    steps: VecDeque<(Instant, usize)>,
}

impl Peak {
    pub fn note(&mut self, now: Instant, in_use: usize) {
        self.forget(now);
        let step = PEAK / PEAK_STEPS as u32;
        match self.steps.back_mut() {
            Some((began, most)) if now - *began < step => *most = in_use.max(*most),
            _ => self.steps.push_back((now, in_use)),
        }
    }

    /// The most within the last 30 s, give or take a step.
    pub fn most(&mut self, now: Instant) -> usize {
        self.forget(now);
        self.steps.iter().map(|(_, most)| *most).max().unwrap_or(0)
    }

    fn forget(&mut self, now: Instant) {
        while self.steps.front().is_some_and(|(began, _)| now - *began >= PEAK) {
            self.steps.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted_after(
        demand: &mut Demand,
        start: Instant,
        arrivals_ms: &[u64],
        least: usize,
    ) -> usize {
        for arrival in arrivals_ms {
            demand.arrival(start + Duration::from_millis(*arrival), least);
        }
        demand.wanted
    }

    #[tokio::test]
    async fn one_connection_is_no_demand_and_two_within_ten_seconds_are() {
        let start = Instant::now();
        for (arrivals, wanted) in [
            (&[0][..], 0),
            (&[0, 10_001], 0),
            (&[0, 10_000], 1),
            (&[0, 20_000, 25_000], 1),
            (&[0, 1, 2, 10_003], 0),
        ] {
            assert_eq!(wanted_after(&mut Demand::default(), start, arrivals, 1), wanted);
        }
        assert_eq!(wanted_after(&mut Demand::default(), start, &[0, 1], 3), 3);
    }

    #[tokio::test]
    async fn the_number_grows_to_what_arrives_in_one_handshakes_time_and_shrinks_slowly() {
        let start = Instant::now();
        let mut demand = Demand { handshake: Duration::from_millis(5), ..Demand::default() };
        assert_eq!(wanted_after(&mut demand, start, &[0, 1, 2, 3], 1), 4);
        assert_eq!(wanted_after(&mut demand, start, &[4; 50], 1), MOST_SPARES);
        assert_eq!(wanted_after(&mut demand, start, &[500], 1), MOST_SPARES);
        assert_eq!(wanted_after(&mut demand, start, &[1_100, 1_200], 1), MOST_SPARES - 1);
        let every_second: Vec<u64> = (2..20).map(|second| second * 1_101).collect();
        assert_eq!(wanted_after(&mut demand, start, &every_second, 1), 1);
        // By the time that has passed, however few connections come.
        assert_eq!(wanted_after(&mut demand, start, &[30_000; 50], 1), MOST_SPARES);
        assert_eq!(wanted_after(&mut demand, start, &[36_500], 1), MOST_SPARES - 6);
    }

    #[tokio::test]
    async fn the_most_that_were_in_use_at_once_counts_for_half_a_minute() {
        let (start, mut peak) = (Instant::now(), Peak::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(peak.most(start), 0);
        for (second, in_use) in [(0, 7), (1, 9), (6, 3), (20, 5)] {
            peak.note(at(second), in_use);
        }
        assert_eq!([29, 30, 36, 49, 50].map(|second| peak.most(at(second))), [9, 5, 5, 5, 0]);
    }
}
