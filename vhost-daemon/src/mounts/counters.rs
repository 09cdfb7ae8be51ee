//! What guests ask of one mount, counted: calls, errors, bytes, latencies.
//!
//! Owns: the counters and their classes (those of nydusd's `/metrics`). Counting costs a few additions in a lane that few
//! threads share ([`rafs::lanes`]); nothing is allocated or locked. Does not own: how they are shown.

use rafs::lanes::{LANES, Lane};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Kinds of calls, in the order of the contract's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs, reason = "each is the FUSE call of its name")]
pub enum Op {
    Getattr = 0,
    Readlink = 1,
    Open = 2,
    Release = 3,
    Read = 4,
    Statfs = 5,
    Getxattr = 6,
    Listxattr = 7,
    Opendir = 8,
    Lookup = 9,
    Readdir = 10,
    Readdirplus = 11,
    Access = 12,
    Forget = 13,
    BatchForget = 14,
}

/// Kinds of calls.
pub const OPS: usize = 15;
/// Names of the kinds, in order.
pub const OP_NAMES: [&str; OPS] = [
    "getattr",
    "readlink",
    "open",
    "release",
    "read",
    "statfs",
    "getxattr",
    "listxattr",
    "opendir",
    "lookup",
    "readdir",
    "readdirplus",
    "access",
    "forget",
    "batch_forget",
];
/// Classes of read sizes and of read latencies.
pub const CLASSES: usize = 8;
/// Upper bounds of the size classes, bytes, exclusive; the last class has none.
pub const SIZE_BOUNDS: [u64; CLASSES - 1] =
    [1 << 10, 4 << 10, 16 << 10, 64 << 10, 128 << 10, 512 << 10, 1 << 20];
/// Upper bounds of the latency classes, microseconds, inclusive; the last class has none.
pub const LATENCY_BOUNDS_US: [u64; CLASSES - 1] = [200, 1_000, 20_000, 50_000, 500_000, 1_000_000, 2_000_000];

/// Calls of each kind that are all timed, for each lane.
const ALL_TIMED: u64 = 64;
/// Of further ones one in so many is, and counts as many: reading the clock costs a fifth of a GETATTR.
const TIMED_ONE_IN: u64 = 8;

/// When a call began, if it is timed, and how many it stands for.
#[derive(Clone, Copy, Debug)]
pub struct Timing(Option<(Instant, u64)>);

/// The counters of one mount.
#[derive(Debug, Default)]
pub struct OpCounters([Shard; LANES]);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    hits: [AtomicU64; OPS],
    errors: [AtomicU64; OPS],
    read_bytes: AtomicU64,
    sizes: [AtomicU64; CLASSES],
    latencies: [AtomicU64; CLASSES],
    /// Reads since the last one whose time was taken: they count as having taken as long as the next.
    untimed_reads: AtomicU64,
    /// Nanoseconds, so that calls of a microsecond add up.
    nanos: [AtomicU64; OPS],
}

/// The sum of all shards at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpTotals {
    /// Calls of each kind that were answered, failures included.
    pub hits: [u64; OPS],
    /// Those that failed.
    pub errors: [u64; OPS],
    /// Bytes read.
    pub read_bytes: u64,
    /// Reads by size class.
    pub sizes: [u64; CLASSES],
    /// Reads by latency class.
    pub latencies: [u64; CLASSES],
    /// What all calls of each kind took together, microseconds. Once there were many, of calls that are answered in place
    /// one in eight is timed and stands for the others; reads that had to wait are all timed.
    pub micros: [u64; OPS],
}

impl Shard {
    #[inline]
    fn read_of(&self, lane: Lane, bytes: usize) {
        let bytes = bytes as u64;
        add(lane, self.hits.get(Op::Read as usize), 1);
        lane.add(&self.read_bytes, bytes);
        let size = SIZE_BOUNDS.iter().position(|bound| bytes < *bound).unwrap_or(CLASSES - 1);
        add(lane, self.sizes.get(size), 1);
    }

    /// `count` reads took that long each.
    #[inline]
    fn read_took(&self, lane: Lane, took: Duration, count: u64) {
        let nanos = nanos(took);
        let micros = nanos / 1000;
        let latency = LATENCY_BOUNDS_US.iter().position(|bound| micros <= *bound).unwrap_or(CLASSES - 1);
        add(lane, self.latencies.get(latency), count);
        add(lane, self.nanos.get(Op::Read as usize), nanos.saturating_mul(count));
    }
}

impl OpCounters {
    /// What this thread counts in.
    #[inline]
    fn shard(&self) -> (Lane, &Shard) {
        let lane = Lane::mine();
        // The number is below LANES; the fallback is never taken.
        (lane, self.0.get(lane.index()).unwrap_or(&self.0[0]))
    }

    /// Begins a READ.
    #[inline]
    #[must_use]
    pub fn begin_read(&self) -> Timing {
        let (_, shard) = self.shard();
        let untimed = shard.untimed_reads.load(Ordering::Relaxed);
        let first = shard.hits.get(Op::Read as usize).is_none_or(|n| n.load(Ordering::Relaxed) < ALL_TIMED);
        Timing((first || untimed + 1 >= TIMED_ONE_IN).then(|| (Instant::now(), 1)))
    }

    /// Begins a call other than READ.
    #[inline]
    #[must_use]
    pub fn begin(&self, op: Op) -> Timing {
        let (_, shard) = self.shard();
        let before = shard.hits.get(op as usize).map_or(0, |hits| hits.load(Ordering::Relaxed));
        let weight = if before < ALL_TIMED {
            1
        } else if before.is_multiple_of(TIMED_ONE_IN) {
            TIMED_ONE_IN
        } else {
            return Timing(None);
        };
        Timing(Some((Instant::now(), weight)))
    }

    /// Counts a call that ended.
    #[inline]
    pub fn count(&self, op: Op, failed: bool, timing: Timing) {
        let (lane, shard) = self.shard();
        add(lane, shard.hits.get(op as usize), 1);
        if failed {
            add(lane, shard.errors.get(op as usize), 1);
        }
        if let Some((start, weight)) = timing.0 {
            add(lane, shard.nanos.get(op as usize), nanos(start.elapsed()).saturating_mul(weight));
        }
    }

    /// Counts a READ that failed.
    pub fn read_failed(&self) {
        let (lane, shard) = self.shard();
        add(lane, shard.hits.get(Op::Read as usize), 1);
        add(lane, shard.errors.get(Op::Read as usize), 1);
    }

    /// Counts a READ of so many bytes that was answered in place.
    #[inline]
    pub fn read_in_place(&self, bytes: usize, timing: Timing) {
        let (lane, shard) = self.shard();
        shard.read_of(lane, bytes);
        match timing.0 {
            Some((start, own)) => {
                let others = lane.drain(&shard.untimed_reads);
                shard.read_took(lane, start.elapsed(), others + own);
            }
            None => lane.add(&shard.untimed_reads, 1),
        }
    }

    /// Counts a READ of so many bytes that had to wait.
    pub fn read_waited(&self, bytes: usize, took: Duration) {
        let (lane, shard) = self.shard();
        shard.read_of(lane, bytes);
        shard.read_took(lane, took, 1);
    }

    /// All of it.
    #[must_use]
    pub fn totals(&self) -> OpTotals {
        let mut sum = OpTotals::default();
        for shard in &self.0 {
            merge(&mut sum.hits, &shard.hits);
            merge(&mut sum.errors, &shard.errors);
            merge(&mut sum.sizes, &shard.sizes);
            merge(&mut sum.latencies, &shard.latencies);
            // Not long ago, in place: the first class, until the next one that is timed says otherwise.
            let [first, ..] = &mut sum.latencies;
            *first = first.wrapping_add(shard.untimed_reads.load(Ordering::Relaxed));
            sum.read_bytes = sum.read_bytes.wrapping_add(shard.read_bytes.load(Ordering::Relaxed));
            merge(&mut sum.micros, &shard.nanos);
        }
        for micros in &mut sum.micros {
            *micros /= 1000;
        }
        sum
    }
}

fn nanos(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

#[inline]
fn add(lane: Lane, counter: Option<&AtomicU64>, n: u64) {
    if let Some(counter) = counter {
        lane.add(counter, n);
    }
}

fn merge(to: &mut [u64], from: &[AtomicU64]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = to.wrapping_add(from.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_those_of_the_contract() {
        let counters = OpCounters::default();
        let mut timed = Vec::new();
        for (bytes, micros) in [(1023, 200), (1024, 201), (4096, 1_001), (1 << 20, 2_000_001)] {
            counters.read_waited(bytes, Duration::from_micros(micros));
        }
        counters.read_failed();
        for _ in 0..ALL_TIMED + 3 * TIMED_ONE_IN {
            let timing = counters.begin(Op::Lookup);
            let stands_for = timing.0.map_or(0, |(_, weight)| weight);
            timed.push(stands_for);
            counters.count(Op::Lookup, true, timing);
        }
        assert_eq!(
            timed.iter().sum::<u64>(),
            ALL_TIMED + 3 * TIMED_ONE_IN,
            "nothing is counted twice or lost"
        );
        assert_eq!(timed.iter().filter(|n| **n > 0).count() as u64, ALL_TIMED + 3);
        let totals = counters.totals();
        assert_eq!(totals.sizes, [1, 1, 1, 0, 0, 0, 0, 1]);
        assert_eq!(totals.latencies, [1, 1, 1, 0, 0, 0, 0, 1]);
        assert_eq!((totals.hits[4], totals.errors[4], totals.hits[9], totals.errors[9]), (5, 1, 88, 88));
        assert_eq!(totals.read_bytes, 1023 + 1024 + 4096 + (1 << 20));
        assert_eq!(totals.micros[4], 200 + 201 + 1_001 + 2_000_001);
    }
    #[test]
    fn every_read_in_place_is_in_one_class_of_each_kind() {
        let counters = OpCounters::default();
        let mut timed = 0;
        for n in 1..=ALL_TIMED + 3 * TIMED_ONE_IN + 5 {
            let timing = counters.begin_read();
            timed += u64::from(timing.0.is_some());
            counters.read_in_place(4096, timing);
            let totals = counters.totals();
            assert_eq!(totals.hits[Op::Read as usize], n);
            assert_eq!(totals.sizes.iter().sum::<u64>(), n);
            assert_eq!(totals.latencies.iter().sum::<u64>(), n);
        }
        assert_eq!(timed, ALL_TIMED + 3);
        // One that was timed and then had to wait takes nothing of the others with it.
        let _ = counters.begin_read();
        counters.read_waited(4096, Duration::from_secs(3));
        let totals = counters.totals();
        assert_eq!(totals.latencies.iter().sum::<u64>(), totals.hits[Op::Read as usize]);
        assert_eq!(totals.latencies.last(), Some(&1));
    }
}
