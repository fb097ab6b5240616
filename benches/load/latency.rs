//! Latencies: HdrHistograms of nanoseconds, read in microseconds or milliseconds.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::Outcome;

/// The longest latency told apart: whatever is longer counts as this.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Latencies of one measurement.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub(crate) fn new() -> Outcome<Self> {
        Ok(Self(Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)?))
    }

    /// Counts one.
    pub(crate) fn record(&mut self, latency: Duration) {
        let nanoseconds = u64::try_from(latency.as_nanos()).unwrap_or(LATENCY_NS_MAX);
        self.0.saturating_record(nanoseconds.max(1));
    }

    /// Adds another measurement's.
    pub(crate) fn merge(&mut self, other: &Self) -> Outcome<()> {
        Ok(self.0.add(&other.0)?)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> u64 {
        self.0.len()
    }

    /// Of one thing after the other without a pause: what is left, in microseconds, of the one under way for
    /// whoever comes at any time, which this share of them does not exceed.
    pub(crate) fn under_way_us(&self, quantile: f64) -> f64 {
        let each = || {
            let recorded = self.0.iter_recorded();
            recorded.map(|step| {
                (
                    step.value_iterated_to() as f64,
                    step.count_at_value() as f64,
                )
            })
        };
        let total: f64 = each().map(|(value, count)| value * count).sum();
        let longer = |left: f64| {
            let beyond = each().map(|(value, count)| (value - left).max(0.0) * count);
            beyond.sum::<f64>()
        };
        let (mut least, mut most) = (0.0, self.0.max() as f64);
        for _ in 0..64 {
            let middle = f64::midpoint(least, most);
            match longer(middle) > total * (1.0 - quantile) {
                true => least = middle,
                false => most = middle,
            }
        }
        most / 1e3
    }

    /// The latency that this share of them does not exceed, in microseconds.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e3
    }

    /// The median in microseconds.
    pub(crate) fn p50_us(&self) -> f64 {
        self.quantile_us(0.5)
    }

    /// What one in a hundred exceeds, in microseconds.
    pub(crate) fn p99_us(&self) -> f64 {
        self.quantile_us(0.99)
    }
}
