//! Threads for requests that wait: for a disk, for an fsync.
//!
//! Owns: how many threads there are, and the queue in front of them. Does not own: what they run. The queue is bounded
//! by the rings: each request in it is a head that a ring has given out.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// How long a thread waits for more: a daemon may have many guests, of which few write.
const IDLE: Duration = Duration::from_millis(250);

/// Something to run.
pub(super) type Job = Box<dyn FnOnce() + Send>;

/// Threads are started when they are wanted: a daemon that serves images alone has none.
pub(super) struct Pool {
    most: usize,
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    ended: bool,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("most", &self.most).finish_non_exhaustive()
    }
}

impl Pool {
    /// A pool of up to `most` threads.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), state: Mutex::default(), wake: Condvar::new() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `job` on one of the threads; in place if not even one can be started.
    pub(super) fn run(self: &Arc<Self>, job: Job) {
        let mut state = self.state();
        if state.idle <= state.jobs.len() && state.threads < self.most {
            let pool = Arc::clone(self);
            let name = format!("wait {}", state.threads);
            match thread::Builder::new().name(name).spawn(move || pool.serve()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    drop(state);
                    tracing::warn!("cannot start a thread ({error}); the request delays its ring");
                    job();
                    return;
                }
                Err(_) => {}
            }
        }
        state.jobs.push_back(job);
        drop(state);
        self.wake.notify_one();
    }

    /// Lets the threads end once the queue is empty.
    pub(super) fn end(&self) {
        self.state().ended = true;
        self.wake.notify_all();
    }

    fn serve(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                drop(state);
                // The job's own guard answers its request; here it only must not end the thread.
                let _ = catch_unwind(AssertUnwindSafe(job));
                state = self.state();
                continue;
            }
            if state.ended {
                state.threads -= 1;
                return;
            }
            state.idle += 1;
            let (next, waited) = self.wake.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if waited.timed_out() && state.jobs.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn runs_beside_each_other_up_to_the_limit_and_survives_panics() {
        let pool = Pool::new(3);
        let (started, all_started) = channel();
        let (go, gate) = channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        for i in 0..9 {
            let (started, gate) = (started.clone(), Arc::clone(&gate));
            pool.run(Box::new(move || {
                started.send(i).unwrap();
                if i < 3 {
                    gate.lock().unwrap().recv().unwrap();
                }
                assert!(i != 4, "one job panics");
            }));
        }
        let mut first: Vec<_> = (0..3).map(|_| all_started.recv().unwrap()).collect();
        first.sort_unstable();
        assert_eq!(first, [0, 1, 2], "three at once, in order");
        assert!(all_started.try_recv().is_err(), "no fourth");
        for _ in 0..3 {
            go.send(()).unwrap();
        }
        let rest: Vec<_> = (0..6).map(|_| all_started.recv().unwrap()).collect();
        assert_eq!(rest.len(), 6);
        pool.end();
    }
}
