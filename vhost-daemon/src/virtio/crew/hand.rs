//! What a worker has with it from ring to ring.
//!
//! Owns: buffers that are used again, so that a hot request allocates nothing, and the marks by which others see how a
//! worker gets on. Does not own: what the worker does.

use super::queue::{Key, Pick};
use super::{Served, Visit};
use crate::virtio::call::Call;
use crate::virtio::chain::Chain;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// How a worker gets on, for others to see.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Key of the ring it has, plus 1; 0 for none.
    serving: AtomicU64,
    /// Grows with every request.
    steps: AtomicU64,
    /// It is telling a front-end of something.
    calling: AtomicBool,
    thread: AtomicI32,
}

/// Where a worker was when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    serving: u64,
    steps: u64,
}

impl Mark {
    /// Whether it had a ring.
    pub(super) fn is_busy(self) -> bool {
        self.serving != 0
    }

    /// Requests it has begun with.
    pub(super) fn steps(self) -> u64 {
        self.steps
    }
}

impl Progress {
    /// Called by the worker's thread.
    pub(super) fn started(&self) {
        let id = rustix::thread::gettid().as_raw_nonzero().get();
        self.thread.store(id, Ordering::Relaxed);
    }

    fn step(&self) {
        // One thread writes it.
        self.steps.store(self.steps.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// Where it is.
    pub(super) fn mark(&self) -> Mark {
        Mark { serving: self.serving.load(Ordering::Relaxed), steps: self.steps.load(Ordering::Relaxed) }
    }

    /// Whether it is telling the front-end of ring `key` of something.
    pub(super) fn is_calling(&self, key: Key) -> bool {
        self.calling.load(Ordering::Relaxed)
            && self.serving.load(Ordering::Relaxed) == key.to_u64().wrapping_add(1)
    }

    /// How often its thread was put off a processor that it would have gone on using; `None` where the kernel does not say.
    pub(super) fn put_off(&self) -> Option<u64> {
        let path = format!("/proc/self/task/{}/status", self.thread.load(Ordering::Relaxed));
        let status = std::fs::read_to_string(path).ok()?;
        status.lines().find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))?.trim().parse().ok()
    }

    /// Whether its thread waits in the kernel, rather than for a processor.
    pub(super) fn waits(&self) -> bool {
        let path = format!("/proc/self/task/{}/stat", self.thread.load(Ordering::Relaxed));
        let Ok(stat) = std::fs::read_to_string(path) else { return true };
        // "pid (name) state ...", and a name may have parentheses.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| !rest.starts_with('R'))
    }
}

/// A worker's own things.
#[derive(Debug)]
pub struct Hand {
    /// The request at hand.
    pub(in crate::virtio) chain: Chain,
    progress: Arc<Progress>,
}

impl Hand {
    pub(super) fn new(progress: Arc<Progress>) -> Self {
        Self { chain: Chain::new(), progress }
    }

    /// One that nobody looks at.
    pub(in crate::virtio) fn alone() -> Self {
        Self::new(Arc::default())
    }

    /// Visits a ring.
    pub(super) fn visit(&mut self, pick: &Pick) -> Visit {
        let key = pick.key.to_u64().wrapping_add(1);
        self.progress.serving.store(key, Ordering::Relaxed);
        let task: &dyn Served = pick.task.as_ref();
        let visit = catch_unwind(AssertUnwindSafe(|| task.visit(self))).unwrap_or_else(|_| {
            tracing::error!("serving a ring panicked; it rests until it is set up anew");
            Visit::Stopped
        });
        self.progress.serving.store(0, Ordering::Relaxed);
        visit
    }

    /// Puts a ring to rest; returns whether it has something to do already.
    pub(super) fn rest(pick: &Pick) -> bool {
        catch_unwind(AssertUnwindSafe(|| pick.task.rest())).unwrap_or(false)
    }

    /// Called before each request.
    pub(in crate::virtio) fn step(&self) {
        self.progress.step();
    }

    /// Tells a front-end of something.
    pub(in crate::virtio) fn signal(&self, call: &Call) {
        self.progress.calling.store(true, Ordering::Relaxed);
        call.signal();
        self.progress.calling.store(false, Ordering::Relaxed);
    }

    /// Nothing will be done for a while: no guest's memory is held on to.
    pub(super) fn idle(&mut self) {
        self.chain.release();
    }
}
