//! The watcher: sees to it that a worker that does not get on holds up nobody else.
//!
//! Owns: when a further worker is woken, because the others have all they can do, or hired, because one of them waits in
//! the kernel. So a guest whose disk hangs takes one worker a ring at most, each of which is replaced: at worst there is
//! a thread for each ring, and the others are served as if each had its own. Does not own: the workers.
//!
//! It looks every few milliseconds while rings are served, and sleeps with the crew.

use super::crowd::Seen;
use super::hand::Mark;
use super::queue::Counts;
use super::{Shared, State};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Between two looks.
const TICK: Duration = Duration::from_millis(4);

/// Looks in a row at which nobody was left to serve until somebody is hired. Who waits for a moment is not replaced.
const HIRING: u32 = 3;

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
    /// Looks in a row at which somebody hung and nobody slept.
    short: u32,
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
    let mut now = Look { counts: state.queue.counts, wakes: state.wakes, marks, short: 0 };
    if state.awake == 0 {
        state.stuck = 0;
        state.watching = now.wakes != last.wakes;
        return Some(now);
    }
    let suspects: Vec<_> = state
        .workers
        .iter()
        .zip(&now.marks)
        .filter(|(_, mark)| mark.is_busy() && last.marks.contains(mark))
        .map(|(worker, _)| Arc::clone(&worker.progress))
        .collect();
    state.stuck = suspects.len();
    let (visits, empty) = (now.counts.visits - last.counts.visits, now.counts.empty - last.counts.empty);
    // Workers that find hardly a ring empty have more to do than they can.
    let behind = state.queue.waiting() > 0 && (empty * 8 < visits || visits == 0 || state.stuck > 0);
    let seen = Seen {
        now: Instant::now(),
        behind,
        workers: state.serving(),
        requests: now.marks.iter().map(|mark| mark.steps()).sum(),
    };
    let State { crowd, workers, .. } = &mut *state;
    crowd.look(seen, || workers.iter().map(|worker| worker.progress.put_off()).sum());
    let deaf = state.awake <= state.stuck && !state.is_heard();
    if state.benched > 0 {
        if deaf {
            shared.want(&mut state);
        } else if behind {
            shared.want_more(&mut state);
        }
    } else if state.is_heard() {
        let more = behind && !state.is_full(state.serving() + 1);
        drop(state);
        if more {
            shared.ring_bell();
        }
    } else if state.stuck > 0 {
        drop(state);
        now.short = last.short + 1;
        if now.short < HIRING {
            return Some(now);
        }
        let hanging = suspects.iter().filter(|progress| progress.waits()).count();
        let mut state = shared.lock();
        // Those that run will end some time; whoever waits in the kernel is replaced.
        if hanging > 0
            && state.workers.len() - hanging.min(state.workers.len()) < shared.size
            && state.workers.len() < shared.size + state.queue.members()
            && let Err(error) = shared.hire(&mut state)
        {
            tracing::warn!("a request hangs in the kernel, and its worker cannot be replaced: {error}");
        }
    }
    Some(now)
}
