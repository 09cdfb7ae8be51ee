//! Counters that many threads write without meeting.
//!
//! Owns: which lane of a set of counters a thread writes. The first threads that count have a lane each, which nobody else
//! writes, so that counting costs them a load and a store; all later ones share the other lanes. Does not own: counters.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Lanes that a set of counters has.
pub const LANES: usize = 16;
/// Lanes of one thread each.
const OWN: usize = 8;

thread_local! {
    static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// The lane of a thread.
#[derive(Clone, Copy, Debug)]
pub struct Lane {
    index: usize,
    /// Not `Send`: another thread would write beside its owner.
    thread: std::marker::PhantomData<*const ()>,
}

impl Lane {
    /// That of the thread that calls.
    #[inline]
    #[must_use]
    pub fn mine() -> Self {
        let index = MINE.with(|mine| if mine.get() == usize::MAX { take(mine) } else { mine.get() });
        Self { index, thread: std::marker::PhantomData }
    }

    /// Which of a set of counters it is, below [`LANES`].
    #[inline]
    #[must_use]
    pub fn index(self) -> usize {
        self.index
    }

    /// Adds to a counter of this lane.
    #[inline]
    pub fn add(self, counter: &AtomicU64, n: u64) {
        if self.index < OWN {
            counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
        } else {
            counter.fetch_add(n, Ordering::Relaxed);
        }
    }

    /// Empties a counter of this lane and returns what was in it.
    #[inline]
    #[must_use]
    pub fn drain(self, counter: &AtomicU64) -> u64 {
        if self.index < OWN {
            let n = counter.load(Ordering::Relaxed);
            counter.store(0, Ordering::Relaxed);
            n
        } else {
            counter.swap(0, Ordering::Relaxed)
        }
    }
}

/// Gives a thread its lane.
#[cold]
fn take(mine: &Cell<usize>) -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let turn = NEXT.fetch_add(1, Ordering::Relaxed);
    let index = if turn < OWN { turn } else { OWN + turn % (LANES - OWN) };
    mine.set(index);
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::thread;

    #[test]
    fn nothing_is_lost_however_many_threads_count() {
        let counters: [AtomicU64; LANES] = std::array::from_fn(|_| AtomicU64::new(0));
        let drained = AtomicU64::new(0);
        let mut lanes = HashMap::new();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..40)
                .map(|_| {
                    scope.spawn(|| {
                        let lane = Lane::mine();
                        for n in 0..10_000u64 {
                            lane.add(&counters[lane.index()], 1);
                            if n % 100 == 0 {
                                drained.fetch_add(lane.drain(&counters[lane.index()]), Ordering::Relaxed);
                            }
                        }
                        assert_eq!(Lane::mine().index(), lane.index());
                        lane.index()
                    })
                })
                .collect();
            for thread in threads {
                *lanes.entry(thread.join().unwrap()).or_insert(0) += 1;
            }
        });
        let left: u64 = counters.iter().map(|c| c.load(Ordering::Relaxed)).sum();
        assert_eq!(left + drained.load(Ordering::Relaxed), 400_000);
        assert!(lanes.iter().all(|(lane, threads)| *lane >= OWN || *threads == 1), "{lanes:?}");
        assert!((OWN..LANES).all(|lane| lanes.contains_key(&lane)), "{lanes:?}");
    }
}
