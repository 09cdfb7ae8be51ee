//! A ring as the crew, the control connection and the fetch side share it.
//!
//! Owns: the lock around a ring, its event descriptors, whether it runs, and the replies that are parked
//! on it. Does not own: taking requests (worker) or the vhost-user messages (device).
//!
//! Lock order: `state` before `parked`; a parked reply's own lock is taken with neither held.

use super::GuestMemory;
use super::call::Call;
use super::crew::Seat;
use super::lot::{Lot, Space};
use super::parked::Slot;
use super::ring::{Ring, RingFault, RingLayout};
use crate::log_limit::LogLimit;
use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long a ring that is stopped waits for the requests it has taken; then they get EIO.
const DRAIN_TIME: Duration = Duration::from_secs(5);

/// What the front-end has said of a ring so far.
#[derive(Debug, Default)]
pub(super) struct RingSetup {
    /// Entries; 0 until said.
    pub(super) size: u16,
    /// Guest addresses, once they could be translated.
    pub(super) layout: Option<RingLayout>,
    /// Avail index to start from.
    pub(super) base: u16,
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: Option<Arc<Call>>,
    pub(super) err: Option<Arc<Call>>,
    /// Between SET_VRING_KICK and GET_VRING_BASE.
    pub(super) started: bool,
    /// SET_VRING_ENABLE.
    pub(super) enabled: bool,
}

/// Who tells the guest of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notify {
    /// The thread that gives it back, which serves this guest alone.
    Here,
    /// A worker of the crew.
    Worker,
}

/// The state behind the lock.
#[derive(Debug, Default)]
pub(super) struct RingState {
    pub(super) setup: RingSetup,
    pub(super) memory: Option<Arc<GuestMemory>>,
    /// The ring itself, from its first start to its stop.
    pub(super) ring: Option<Ring>,
    /// Counts the lives of the ring: what was taken in an earlier one is not given back to this one.
    pub(super) life: u64,
    /// The guest is to be interrupted for what somebody else than a worker gave back.
    pub(super) call_owed: bool,
    /// The front-end is to be told that the ring is broken.
    alarm: Option<Arc<Call>>,
    /// The guest or front-end broke it; only a stop and a new start mend it.
    pub(super) broken: bool,
    /// The connection is over.
    pub(super) quit: bool,
}

/// One ring, shared.
#[derive(Debug)]
pub(super) struct SharedRing {
    /// 0 is the high-priority ring.
    pub(super) index: usize,
    state: Mutex<RingState>,
    drained: Condvar,
    parked: Mutex<HashMap<u16, Arc<Slot>>>,
    /// Shared with the socket's other rings.
    lot: Arc<Lot>,
    /// Its place in the crew, once it has one.
    seat: OnceLock<Seat>,
    log: LogLimit,
}

impl RingState {
    /// Whether requests may be taken.
    pub(super) fn running(&self) -> bool {
        self.setup.started && self.setup.enabled && !self.broken && !self.quit && self.ring.is_some()
    }

    /// Starts the ring if all that it needs is there.
    fn start_if_complete(&mut self) -> Result<(), RingFault> {
        if self.ring.is_some() || !self.setup.started || self.broken {
            return Ok(());
        }
        let (Some(layout), Some(memory)) = (self.setup.layout, &self.memory) else { return Ok(()) };
        self.ring = Some(Ring::new(layout, self.setup.base, memory)?);
        self.life += 1;
        Ok(())
    }
}

impl SharedRing {
    /// A ring that nothing is known of yet.
    pub(super) fn new(index: usize, lot: Arc<Lot>) -> Self {
        Self {
            index,
            state: Mutex::default(),
            drained: Condvar::new(),
            parked: Mutex::default(),
            lot,
            seat: OnceLock::new(),
            log: LogLimit::default(),
        }
    }

    /// Gives it its place in the crew.
    pub(super) fn sit(&self, seat: Seat) {
        let _ = self.seat.set(seat);
    }

    /// The state. A panic while it was held leaves no half-done step behind that matters more than
    /// serving on, so poisoning is ignored.
    pub(super) fn lock(&self) -> MutexGuard<'_, RingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the setup and has the result looked at.
    pub(super) fn change(&self, f: impl FnOnce(&mut RingState)) {
        let mut state = self.lock();
        f(&mut state);
        if let Err(fault) = state.start_if_complete() {
            self.break_ring(&mut state, &fault);
        }
        drop(state);
        self.wake();
    }

    /// Has the ring visited.
    pub(super) fn wake(&self) {
        if let Some(seat) = self.seat.get() {
            seat.wake();
        }
    }

    /// Puts another kick descriptor, or none, in the place of the one there is.
    pub(super) fn change_kick(&self, kick: Option<File>) {
        let kick = kick.map(Arc::new);
        let mut state = self.lock();
        let old = std::mem::replace(&mut state.setup.kick, kick.clone());
        drop(state);
        let Some(seat) = self.seat.get() else { return };
        if let Some(old) = old {
            seat.unwatch(&old);
        }
        if let Some(new) = kick
            && let Err(error) = seat.watch(&new)
        {
            self.complain(|| format!("cannot watch its kick descriptor: {error}"));
        }
    }

    /// Marks the ring broken: no request is taken until it is stopped and started again.
    pub(super) fn break_ring(&self, state: &mut RingState, fault: &RingFault) {
        state.broken = true;
        self.log.warn(|| format!("ring {}: {fault}; it rests until the front-end resets it", self.index));
        state.alarm.clone_from(&state.setup.err);
    }

    /// What is to be signalled because the ring broke. Not under the lock, so a worker asks for it.
    pub(super) fn alarm(&self) -> Option<Arc<Call>> {
        self.lock().alarm.take()
    }

    /// Logs what a guest did wrong, not more often than is good for the log.
    pub(super) fn complain(&self, what: impl FnOnce() -> String) {
        self.log.warn(|| format!("ring {}: {}", self.index, what()));
    }

    /// Gives back a head that was parked in `life`. The guest is notified by this thread if it serves nobody else, or
    /// else by a worker: a front-end may make whoever tells it wait.
    pub(super) fn give_back_parked(&self, life: u64, head: u16, len: u32, by: Notify) {
        self.parked().remove(&head);
        let mut guard = self.lock();
        let state = &mut *guard;
        if state.life != life {
            return;
        }
        let given = give_back(state, head, len);
        if let Err(fault) = &given {
            self.break_ring(state, fault);
        }
        let wanted = state.ring.as_mut().is_some_and(Ring::wants_interrupt);
        let call = if wanted && by == Notify::Here { state.setup.call.clone() } else { None };
        let owed = wanted && by == Notify::Worker;
        state.call_owed |= owed;
        let idle = state.ring.as_ref().is_none_or(|r| r.in_flight() == 0);
        drop(guard);
        if idle {
            self.drained.notify_all();
        }
        if let Some(call) = call {
            call.signal();
        }
        if owed || given.is_err() {
            self.wake();
        }
    }

    /// Room for something that waits.
    pub(super) fn room(&self, bytes: usize) -> Option<Space> {
        // Of what is counted nowhere: the reply's own place, and what whoever answers it keeps.
        const BESIDE: usize = 512;
        let space = self.lot.take(bytes + BESIDE);
        if space.is_none() {
            self.complain(|| "more requests wait than there is room for; they get errors".to_owned());
        }
        space
    }

    /// Remembers a parked reply, so that a stop can answer it.
    pub(super) fn park(&self, head: u16, slot: Arc<Slot>) {
        self.parked().insert(head, slot);
    }

    fn parked(&self) -> MutexGuard<'_, HashMap<u16, Arc<Slot>>> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called by the worker when it holds no request: whoever waits for that may go on.
    pub(super) fn worker_is_idle(&self) {
        self.drained.notify_all();
    }

    /// Stops the ring: takes nothing more, waits for what was taken, answers with EIO what does not end
    /// in time. Returns the avail index to go on from.
    pub(super) fn stop(&self) -> u16 {
        let mut state = self.lock();
        state.setup.started = false;
        drop(state);
        self.wake();
        let deadline = Instant::now() + DRAIN_TIME;
        let mut state = self.lock();
        while state.ring.as_ref().is_some_and(|r| r.in_flight() > 0) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                let slots: Vec<_> = self.parked().values().cloned().collect();
                let hanging = slots.iter().filter(|slot| !slot.answer_if_idle()).count();
                tracing::warn!(
                    "ring {}: {} requests did not end in time and get EIO, {hanging} hang in the kernel",
                    self.index,
                    slots.len() - hanging
                );
                state = self.lock();
                break;
            }
            state = self.drained.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let base = state.ring.as_ref().map_or(state.setup.base, Ring::next_avail);
        state.ring = None;
        state.life += 1;
        state.broken = false;
        state.setup.base = base;
        let owed = std::mem::take(&mut state.call_owed);
        let call = state.setup.call.take().filter(|_| owed);
        drop(state);
        if let Some(call) = call {
            call.signal();
        }
        self.change_kick(None);
        base
    }

    /// The connection is over: nobody serves the ring any more, parked replies are dropped, guest memory is let go.
    pub(super) fn quit(&self) {
        let mut state = self.lock();
        state.quit = true;
        state.life += 1;
        state.ring = None;
        state.memory = None;
        drop(state);
        self.change_kick(None);
        if let Some(seat) = self.seat.get() {
            seat.leave();
        }
        let slots: Vec<_> = self.parked().drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            slot.forget();
        }
    }
}

/// Gives a head back.
///
/// # Errors
///
/// See [`Ring::give_back`].
pub(super) fn give_back(state: &mut RingState, head: u16, len: u32) -> Result<(), RingFault> {
    state.ring.as_mut().map_or(Ok(()), |ring| ring.give_back(head, len))
}
