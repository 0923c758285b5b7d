//! How long something took, how often.

use std::time::Duration;

use super::Counter;

/// The upper bounds of the buckets, in seconds; one without a bound follows.
pub const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// How many buckets there are, the last one included.
const COUNT: usize = BUCKETS.len() + 1;
/// The same in microseconds: no floating point while counting.
const BOUNDS_US: [u64; BUCKETS.len()] = {
    let mut bounds = [0; BUCKETS.len()];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = (BUCKETS[index] * 1e6) as u64;
        index += 1;
    }
    bounds
};

#[derive(Debug, Default)]
pub struct Histogram {
    counts: [Counter; COUNT],
    microseconds: Counter,
}

/// What a [`Histogram`] has observed.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Observed {
    /// By bucket, each for itself; the last is for what took longer than all bounds.
    pub counts: [u64; COUNT],
    pub seconds: f64,
}

impl Histogram {
    pub fn observe(&self, took: Duration) {
        let us = took.as_micros() as u64;
        self.counts[BOUNDS_US.iter().take_while(|bound| us > **bound).count()].add(1);
        self.microseconds.add(us);
    }

    pub fn counts(&self) -> [u64; COUNT] {
        self.counts.each_ref().map(Counter::get)
    }

    pub fn observed(&self) -> Observed {
        Observed { counts: self.counts(), seconds: self.microseconds.get() as f64 / 1e6 }
    }
}

impl Observed {
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What came since `before`.
    pub fn since(&self, before: &Observed) -> Observed {
        Observed {
            counts: std::array::from_fn(|index| self.counts[index] - before.counts[index]),
            seconds: self.seconds - before.seconds,
        }
    }
}

/// The time, in seconds, below which 95 of 100 of what is in the buckets lie, as Prometheus's
/// histogram_quantile reckons it: evenly spread within a bucket, and the last bound for what lies
/// beyond it. `None` when they are empty.
pub fn p95(counts: &[u64; COUNT]) -> Option<f64> {
    let all: u64 = counts.iter().sum();
    if all == 0 {
        return None;
    }
    let rank = all as f64 * 0.95;
    let (mut below, mut lower) = (0.0, 0.0);
    for (count, upper) in counts.iter().zip(BUCKETS) {
        let within = *count as f64;
        if *count > 0 && below + within >= rank {
            return Some(lower + (upper - lower) * (rank - below) / within);
        }
        (below, lower) = (below + within, upper);
    }
    Some(lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_what_took_no_longer_than_its_bound() {
        let histogram = Histogram::default();
        for ms in [0, 1, 2, 5_000, 10_000, 10_001] {
            histogram.observe(Duration::from_millis(ms));
        }
        let observed = histogram.observed();
        assert_eq!(observed.counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
        assert_eq!((observed.count(), observed.seconds), (6, 25.004));
        assert_eq!(observed.since(&observed), Observed::default());
    }

    #[test]
    fn the_percentile_is_that_of_prometheus() {
        let counts = |pairs: &[(usize, u64)]| {
            let mut counts = [0; COUNT];
            pairs.iter().for_each(|(bucket, count)| counts[*bucket] = *count);
            p95(&counts)
        };
        let near = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?}, not {expected}");
        };
        assert_eq!(counts(&[]), None);
        near(counts(&[(0, 100)]), 0.00095);
        near(counts(&[(0, 90), (4, 10)]), 0.01 + 0.015 * 0.5);
        near(counts(&[(3, 95), (13, 5)]), 0.01);
        near(counts(&[(13, 1)]), 10.0);
    }
}
