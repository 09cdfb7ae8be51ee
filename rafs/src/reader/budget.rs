//! The bound on chunk buffers in flight, and the buffers themselves.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers kept for reuse; bigger ones are freed.
const SPARE_BUFFERS: usize = 16;
const SPARE_BUFFER_SIZE: usize = 4 << 20;

/// Admits work as long as its bytes fit under the limit; the rest waits in order. One piece of work that is larger
/// than the limit passes when nothing else is in flight. Work that nobody waits for gets half of the limit, and nothing
/// as long as other work waits.
#[derive(Debug)]
pub(super) struct Budget<W> {
    limit: usize,
    state: Mutex<State<W>>,
}

#[derive(Debug)]
struct State<W> {
    used: usize,
    waiting: VecDeque<(usize, W)>,
    idle: VecDeque<(usize, W)>,
    spare: Vec<Vec<u8>>,
}

/// Bytes that were admitted. Must be given back with [`Budget::release`].
#[derive(Debug)]
pub(super) struct Admitted(usize);

impl<W> Budget<W> {
    pub fn new(limit: usize) -> Self {
        let state = State { used: 0, waiting: VecDeque::new(), idle: VecDeque::new(), spare: Vec::new() };
        Self { limit, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Admits `work` of `bytes`, or keeps it until there is room.
    pub fn admit(&self, bytes: usize, work: W) -> Option<(Admitted, W)> {
        let mut state = self.state();
        if state.waiting.is_empty() && self.fits(&state, bytes) {
            state.used = state.used.saturating_add(bytes);
            return Some((Admitted(bytes), work));
        }
        state.waiting.push_back((bytes, work));
        None
    }

    /// As [`admit`](Self::admit), for work that nobody waits for.
    pub fn admit_idle(&self, bytes: usize, work: W) -> Option<(Admitted, W)> {
        let mut state = self.state();
        if state.waiting.is_empty() && state.idle.is_empty() && self.fits_idle(&state, bytes) {
            state.used = state.used.saturating_add(bytes);
            return Some((Admitted(bytes), work));
        }
        state.idle.push_back((bytes, work));
        None
    }

    fn fits_idle(&self, state: &State<W>, bytes: usize) -> bool {
        state.used == 0 || state.used.saturating_add(bytes) <= self.limit / 2
    }

    fn fits(&self, state: &State<W>, bytes: usize) -> bool {
        state.used == 0 || state.used.saturating_add(bytes) <= self.limit
    }

    /// Gives bytes back; returns what may start now.
    pub fn release(&self, admitted: Admitted) -> Vec<(Admitted, W)> {
        let mut state = self.state();
        state.used = state.used.saturating_sub(admitted.0);
        let mut started = Vec::new();
        while let Some(&(bytes, _)) = state.waiting.front()
            && self.fits(&state, bytes)
            && let Some((bytes, work)) = state.waiting.pop_front()
        {
            state.used = state.used.saturating_add(bytes);
            started.push((Admitted(bytes), work));
        }
        while state.waiting.is_empty()
            && let Some(&(bytes, _)) = state.idle.front()
            && self.fits_idle(&state, bytes)
            && let Some((bytes, work)) = state.idle.pop_front()
        {
            state.used = state.used.saturating_add(bytes);
            started.push((Admitted(bytes), work));
        }
        started
    }

    /// Drops all that waits.
    pub fn clear(&self) -> Vec<W> {
        let mut state = self.state();
        let State { waiting, idle, .. } = &mut *state;
        waiting.drain(..).chain(idle.drain(..)).map(|(_, work)| work).collect()
    }

    /// A buffer, empty or with old contents.
    pub fn buffer(&self) -> Vec<u8> {
        self.state().spare.pop().unwrap_or_default()
    }

    /// Takes a buffer back.
    pub fn recycle(&self, buffer: Vec<u8>) {
        let mut state = self.state();
        if state.spare.len() < SPARE_BUFFERS
            && buffer.capacity() > 0
            && buffer.capacity() <= SPARE_BUFFER_SIZE
        {
            state.spare.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_in_order_and_lets_a_giant_pass_alone() {
        let budget = Budget::new(100);
        let (a, _) = budget.admit(60, 'a').unwrap();
        assert!(budget.admit(50, 'b').is_none());
        assert!(budget.admit(10, 'c').is_none(), "no overtaking");
        assert!(budget.admit(500, 'd').is_none());
        assert!(budget.admit(1, 'e').is_none());
        let mut started = budget.release(a);
        assert_eq!(started.iter().map(|s| s.1).collect::<String>(), "bc");
        assert!(budget.release(started.pop().unwrap().0).is_empty());
        let mut started = budget.release(started.pop().unwrap().0);
        assert_eq!(started.iter().map(|s| s.1).collect::<String>(), "d");
        let started = budget.release(started.pop().unwrap().0);
        assert_eq!(started.iter().map(|s| s.1).collect::<String>(), "e");
        assert!(budget.clear().is_empty());
    }

    #[test]
    fn idle_work_comes_last_and_gets_half() {
        let budget = Budget::new(100);
        let (a, _) = budget.admit(90, 'a').unwrap();
        assert!(budget.admit_idle(10, 'i').is_none());
        assert!(budget.admit_idle(45, 'j').is_none());
        assert!(budget.admit(60, 'b').is_none());
        let started = budget.release(a);
        assert_eq!(started.iter().map(|s| s.1).collect::<String>(), "b", "no room for more than half");
        let started = started.into_iter().flat_map(|(b, _)| budget.release(b)).collect::<Vec<_>>();
        assert_eq!(started.iter().map(|s| s.1).collect::<String>(), "i");
    }
}
