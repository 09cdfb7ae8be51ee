//! How many ranges one guest has locked.
//!
//! Owns: the limit. The host's kernel keeps each range in memory, walks through all of a file at each call, and knows no limit
//! itself (`RLIMIT_LOCKS` has none since Linux 2.6). How ranges merge and split is the kernel's knowledge: here they are
//! estimated, never too low, and counted when the estimate comes to the limit. Does not own: locks.

use super::os;
use crate::log_limit::LogLimit;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Ranges that one guest may have beyond doubt.
const RANGES: usize = 32_768;
/// Estimate at which they are counted.
const COUNTED_AT: usize = 2 * RANGES;
/// Ranges that there may be more after a lock was taken: one that is split into two, and its own.
const PER_LOCK: usize = 2;
/// How long a guest that has too many is told so without counting them again, at least.
const PAUSE: Duration = Duration::from_millis(100);
/// And for how many times as long as it took to count them: who locks on all the same has little of anybody's time.
const PAUSES: u32 = 20;

/// The ranges of one guest.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    estimate: AtomicUsize,
    /// Until when there are too many.
    refused: Mutex<Option<Instant>>,
    log: LogLimit,
}

impl Ranges {
    /// Room for one more lock; `count` says how many ranges there are.
    ///
    /// # Errors
    ///
    /// `ENOLCK`: there are too many.
    pub(super) fn take(&self, count: impl FnOnce() -> usize) -> io::Result<()> {
        if self.estimate.fetch_add(PER_LOCK, Ordering::Relaxed) < COUNTED_AT - PER_LOCK {
            return Ok(());
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        if refused.is_some_and(|until| begun < until) {
            return Err(os(libc::ENOLCK));
        }
        let held = count();
        if held >= RANGES - PER_LOCK {
            *refused = Some(Instant::now() + PAUSE.max(begun.elapsed().saturating_mul(PAUSES)));
            self.log.warn(|| {
                format!("a guest has {held} ranges of files locked that are passed through, and gets no more (ENOLCK)")
            });
            return Err(os(libc::ENOLCK));
        }
        *refused = None;
        self.estimate.store(held + PER_LOCK, Ordering::Relaxed);
        Ok(())
    }

    /// A part of a lock was dropped, which may have split it.
    pub(super) fn split(&self) {
        self.estimate.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_counted_only_when_there_may_be_too_many() {
        let ranges = Ranges::default();
        let (mut held, mut counted) = (0, 0);
        let mut take = |held: usize| {
            ranges.take(|| {
                counted += 1;
                held
            })
        };
        while take(held).is_ok() {
            held += 1;
            assert!(held <= RANGES);
        }
        assert!(held >= RANGES - PER_LOCK, "{held}");
        let before = (0..1000).filter(|_| take(0).is_ok()).count();
        assert_eq!(before, 0, "no count right after a refusal");
        std::thread::sleep(PAUSE);
        assert!((0..RANGES / 2).all(|_| take(0).is_ok()), "they were dropped");
        assert_eq!(counted, 2);
    }
}
