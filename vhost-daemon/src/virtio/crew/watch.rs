//! The watcher: sees to it that a worker that does not get on holds up nobody else.
//!
//! Owns: when a further worker is woken, because the others have all they can do, or hired, because one of them waits in
//! the kernel. So a guest whose disk hangs takes one worker a ring at most, each of which is replaced: at worst there is
//! a thread for each ring, and the others are served as if each had its own. Does not own: the workers.
//!
//! It looks every few milliseconds while rings are served, and sleeps with the crew.

use super::Shared;
use super::hand::Mark;
use super::queue::Counts;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

/// Between two looks.
const TICK: Duration = Duration::from_millis(2);

/// Watches until the crew ends.
pub(super) fn run(shared: &Arc<Shared>) {
    let mut last = Look::default();
    while let Some(now) = look(shared, &last) {
        last = now;
    }
}

/// What was seen.
#[derive(Default)]
struct Look {
    counts: Counts,
    wakes: u64,
    marks: Vec<Mark>,
}

/// Waits, looks, and does what is to be done. `None` at the end.
fn look(shared: &Arc<Shared>, last: &Look) -> Option<Look> {
    let mut state = shared.lock();
    while !state.watching && !state.ended {
        state = shared.watch.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    if !state.ended {
        state = shared.watch.wait_timeout(state, TICK).unwrap_or_else(PoisonError::into_inner).0;
    }
    if state.ended {
        return None;
    }
    let marks: Vec<Mark> = state.workers.iter().map(|w| w.progress.mark()).collect();
    let now = Look { counts: state.queue.counts, wakes: state.wakes, marks };
    if state.awake == 0 {
        state.stuck = 0;
        if now.wakes == last.wakes {
            state.watching = false;
        }
        return Some(now);
    }
    let still = |mark: &&Mark| mark.is_busy() && last.marks.contains(mark);
    let suspects = now.marks.iter().filter(still).count();
    if suspects > 0 {
        let suspects: Vec<_> = state
            .workers
            .iter()
            .filter(|w| w.progress.mark().is_busy() && last.marks.contains(&w.progress.mark()))
            .map(|w| Arc::clone(&w.progress))
            .collect();
        drop(state);
        let stuck = suspects.iter().filter(|progress| progress.waits()).count();
        state = shared.lock();
        state.stuck = stuck;
    } else {
        state.stuck = 0;
    }
    let asleep = state.workers.len() - state.awake;
    if asleep > 0 {
        let (visits, empty) = (now.counts.visits - last.counts.visits, now.counts.empty - last.counts.empty);
        // Workers that find hardly a ring empty have more to do than they can.
        let behind = state.queue.waiting() > 0 && (empty * 8 < visits || visits == 0 || state.stuck > 0);
        drop(state);
        if behind {
            shared.ring_bell();
        }
    } else if state.stuck > 0
        && state.workers.len() - state.stuck < shared.size
        && state.workers.len() < shared.size + state.queue.members()
        && let Err(error) = shared.hire(&mut state)
    {
        tracing::warn!("a request hangs in the kernel, and its worker cannot be replaced: {error}");
    }
    Some(now)
}
