//! The queue that fetch threads live on.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A queue of jobs that can be closed. Jobs that somebody waits for come before those that nobody does.
#[derive(Debug)]
pub(super) struct Queue<J> {
    state: Mutex<State<J>>,
    arrived: Condvar,
}

#[derive(Debug)]
struct State<J> {
    jobs: VecDeque<J>,
    idle: VecDeque<J>,
    /// Jobs given out since an idle one was.
    passed_over: u32,
    closed: bool,
}

/// One idle job comes after so many others at the latest: somebody may have begun to wait for it meanwhile.
const PASSED_OVER_MAX: u32 = 8;

impl<J> Queue<J> {
    pub fn new() -> Self {
        let state = State { jobs: VecDeque::new(), idle: VecDeque::new(), passed_over: 0, closed: false };
        Self { state: Mutex::new(state), arrived: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job at the end; gives it back when the queue is closed.
    pub fn push(&self, job: J) -> Result<(), J> {
        self.add(job, |state| &mut state.jobs)
    }

    /// Adds a job that is done when there is nothing else to do.
    pub fn push_idle(&self, job: J) -> Result<(), J> {
        self.add(job, |state| &mut state.idle)
    }

    fn add(&self, job: J, to: impl FnOnce(&mut State<J>) -> &mut VecDeque<J>) -> Result<(), J> {
        let mut state = self.state();
        if state.closed {
            return Err(job);
        }
        to(&mut state).push_back(job);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// The next job; waits for one. `None`: closed.
    pub fn pop(&self) -> Option<J> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            if state.passed_over < PASSED_OVER_MAX
                && let Some(job) = state.jobs.pop_front()
            {
                state.passed_over += u32::from(!state.idle.is_empty());
                return Some(job);
            }
            state.passed_over = 0;
            let State { jobs, idle, .. } = &mut *state;
            if let Some(job) = idle.pop_front().or_else(|| jobs.pop_front()) {
                return Some(job);
            }
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Closes the queue and takes what was in it.
    pub fn close(&self) -> Vec<J> {
        let mut state = self.state();
        state.closed = true;
        let mut rest: Vec<J> = state.jobs.drain(..).collect();
        rest.extend(state.idle.drain(..));
        drop(state);
        self.arrived.notify_all();
        rest
    }

    /// Whether it has been closed.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_jobs_come_late_but_come() {
        let queue = Queue::new();
        queue.push_idle(1000).unwrap();
        (0..20).for_each(|n| queue.push(n).unwrap());
        let order: Vec<i32> = (0..21).filter_map(|_| queue.pop()).collect();
        assert_eq!(order.iter().position(|&n| n == 1000), Some(8));
        assert!(order.iter().filter(|&&n| n < 1000).is_sorted());
        queue.push(1).unwrap();
        assert_eq!(queue.close(), [1]);
        assert_eq!((queue.pop(), queue.push(2)), (None, Err(2)));
    }
}
