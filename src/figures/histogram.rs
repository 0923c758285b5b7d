//! Durations, counted in buckets.

use std::time::Duration;

use super::Counter;

/// The upper bounds of the buckets, in seconds. One more bucket, without a bound, follows.
pub const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// The number of buckets, including the one without a bound.
pub const BUCKET_COUNT: usize = BUCKETS.len() + 1;
/// The same bounds in microseconds, so that counting needs no floating point.
const BOUNDS_US: [u64; BUCKETS.len()] = {
    let mut bounds = [0; BUCKETS.len()];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = (BUCKETS[index] * 1e6) as u64;
        index += 1;
    }
    bounds
};

/// How many durations fell into each bucket, and their sum.
#[derive(Debug, Default, Clone)]
pub struct Histogram {
    counts: [Counter; BUCKET_COUNT],
    microseconds: Counter,
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let us = duration.as_micros() as u64;
        self.counts[BOUNDS_US.iter().take_while(|bound| us > **bound).count()].add(1);
        self.microseconds.add(us);
    }

    /// The durations in each bucket. Unlike Prometheus's, these counts are not cumulative.
    pub fn counts(&self) -> [u64; BUCKET_COUNT] {
        self.counts.each_ref().map(Counter::get)
    }

    /// The durations in each bucket that `before`, an earlier copy, does not have.
    pub fn counts_since(&self, before: &Histogram) -> [u64; BUCKET_COUNT] {
        let (now, before) = (self.counts(), before.counts());
        std::array::from_fn(|index| now[index] - before[index])
    }

    /// The number of all durations.
    pub fn count(&self) -> u64 {
        self.counts().iter().sum()
    }

    /// The sum of all durations, in seconds.
    pub fn seconds(&self) -> f64 {
        self.microseconds.get() as f64 / 1e6
    }
}

/// The 95th percentile of durations counted in buckets, in seconds, computed like Prometheus's
/// `histogram_quantile`: durations are assumed to be evenly spread within a bucket, and those above
/// the last bound count as that bound. `None` if there are no durations.
pub fn p95(counts: &[u64; BUCKET_COUNT]) -> Option<f64> {
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
    fn a_bucket_includes_its_upper_bound() {
        let histogram = Histogram::default();
        for ms in [0, 1, 2, 5_000, 10_000, 10_001] {
            histogram.observe(Duration::from_millis(ms));
        }
        assert_eq!(histogram.counts(), [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
        assert_eq!((histogram.count(), histogram.seconds()), (6, 25.004));
        let before = histogram.clone();
        histogram.observe(Duration::ZERO);
        assert_eq!(histogram.counts_since(&before)[..2], [1, 0]);
    }

    #[test]
    fn p95_equals_prometheus_histogram_quantile() {
        let counts = |pairs: &[(usize, u64)]| {
            let mut counts = [0; BUCKET_COUNT];
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
