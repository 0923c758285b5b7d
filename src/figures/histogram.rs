//! Counts durations in buckets.

use std::time::Duration;

/// The upper bounds of the buckets, in seconds. A histogram has one more bucket, for longer
/// durations.
pub const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// The number of durations in each bucket, and the sum of all durations.
#[derive(Debug, Default, Clone)]
pub struct Histogram {
    /// The number of durations in each bucket. Each duration counts in one bucket only, whereas
    /// Prometheus's buckets are cumulative.
    pub counts: [u64; BUCKETS.len() + 1],
    pub sum: Duration,
}

impl Histogram {
    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        self.counts[BUCKETS.iter().take_while(|bound| seconds > **bound).count()] += 1;
        self.sum += duration;
    }

    /// Returns the number of all durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Returns the durations that were added since `before`, an earlier copy of this histogram.
    pub fn since(&self, before: &Histogram) -> Histogram {
        let counts = differences(&self.counts, &before.counts);
        Histogram { counts, sum: self.sum - before.sum }
    }

    /// Returns the 95th percentile of the durations in seconds, or `None` if there are no
    /// durations. Like Prometheus's function `histogram_quantile`, this function assumes that the
    /// durations in a bucket are evenly spread, and that no duration exceeds the last bound.
    pub fn p95(&self) -> Option<f64> {
        let all = self.count();
        if all == 0 {
            return None;
        }
        let rank = all as f64 * 0.95;
        let (mut below, mut lower) = (0.0, 0.0);
        for (count, upper) in self.counts.iter().zip(BUCKETS) {
            let within = *count as f64;
            if *count > 0 && below + within >= rank {
                return Some(lower + (upper - lower) * (rank - below) / within);
            }
            (below, lower) = (below + within, upper);
        }
        Some(lower)
    }
}

pub(super) fn differences<const N: usize>(now: &[u64; N], before: &[u64; N]) -> [u64; N] {
    std::array::from_fn(|index| now[index] - before[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_includes_its_upper_bound() {
        let mut histogram = Histogram::default();
        for ms in [0, 1, 2, 5_000, 10_000, 10_001] {
            histogram.observe(Duration::from_millis(ms));
        }
        assert_eq!(histogram.counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]);
        assert_eq!((histogram.count(), histogram.sum.as_millis()), (6, 25_004));
        let before = histogram.clone();
        histogram.observe(Duration::ZERO);
        assert_eq!(histogram.since(&before).counts[..2], [1, 0]);
    }

    #[test]
    fn p95_equals_prometheus_histogram_quantile() {
        let p95 = |pairs: &[(usize, u64)]| {
            let mut histogram = Histogram::default();
            pairs.iter().for_each(|(bucket, count)| histogram.counts[*bucket] = *count);
            histogram.p95()
        };
        let near = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-9, "{found:?}, not {expected}");
        };
        assert_eq!(p95(&[]), None);
        near(p95(&[(0, 100)]), 0.00095);
        near(p95(&[(0, 90), (4, 10)]), 0.01 + 0.015 * 0.5);
        near(p95(&[(3, 95), (13, 5)]), 0.01);
        near(p95(&[(13, 1)]), 10.0);
    }
}
