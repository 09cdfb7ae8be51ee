//! Medians over rounds, and their table.

use std::time::Duration;

use super::load::{Load, Sample};

/// Medians of the rounds of one daemon under one load.
#[derive(Debug, Clone, Copy)]
pub struct Figures {
    /// Operations a second.
    pub rate: f64,
    /// MiB of file data a second.
    pub mib: f64,
    /// Processor time of the daemon for each operation, in microseconds.
    pub cpu_us: f64,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A number of things for ratios; the rounds of a benchmark stay far below 2^52.
#[allow(clippy::cast_precision_loss, reason = "figures of a benchmark")]
fn float(value: u64) -> f64 {
    value as f64
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

impl Figures {
    /// The medians of `samples`.
    #[must_use]
    pub fn of(samples: &[Sample]) -> Self {
        let each = |f: &dyn Fn(&Sample) -> f64| median(samples.iter().map(f).collect());
        Self {
            rate: each(&|s| float(s.operations) / s.elapsed.as_secs_f64()),
            mib: each(&|s| float(s.bytes) / 1_048_576.0 / s.elapsed.as_secs_f64()),
            cpu_us: each(&|s| micros(s.cpu) / float(s.operations.max(1))),
        }
    }
}

/// The lines above the rows.
#[must_use]
pub fn head(peer: bool) -> String {
    let mut out =
        format!("{:<22} {:>5} {:>12} {:>10} {:>10}", "", "depth", "rafsd op/s", "MiB/s", "CPU us/op");
    if peer {
        out += &format!(
            " {:>16} {:>10} {:>10} {:>8} {:>8}",
            "virtiofsd op/s", "MiB/s", "CPU us/op", "rate x", "CPU x"
        );
    }
    out
}

/// One row; ratios are rafsd's rate over the peer's, and its CPU time over the peer's.
#[must_use]
pub fn row(load: Load, depth: usize, ours: Figures, peer: Option<Figures>) -> String {
    let mut out = format!(
        "{:<22} {depth:>5} {:>12.0} {:>10.0} {:>10.2}",
        load.name(),
        ours.rate,
        ours.mib,
        ours.cpu_us
    );
    if let Some(p) = peer {
        out += &format!(
            " {:>16.0} {:>10.0} {:>10.2} {:>8.2} {:>8.2}",
            p.rate,
            p.mib,
            p.cpu_us,
            ours.rate / p.rate,
            ours.cpu_us / p.cpu_us
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_sample_counts() {
        let sample = |operations, cpu_ms| Sample {
            operations,
            bytes: operations << 20,
            elapsed: Duration::from_secs(2),
            cpu: Duration::from_millis(cpu_ms),
        };
        let f = Figures::of(&[sample(10, 1), sample(2000, 20), sample(30, 3)]);
        assert!((f.rate - 15.0).abs() < 1e-9 && (f.mib - 15.0).abs() < 1e-9, "{f:?}");
        assert!((f.cpu_us - 100.0).abs() < 1e-9, "{f:?}");
    }
}
