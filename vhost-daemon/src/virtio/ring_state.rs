//! A ring as its worker, the control connection and the fetch side share it.
//!
//! Owns: the lock around a ring, its event descriptors, whether it runs, and the replies that are parked
//! on it. Does not own: taking requests (worker) or the vhost-user messages (device).
//!
//! Lock order: `state` before `parked`; a parked reply's own lock is taken with neither held.

use super::GuestMemory;
use super::parked::Slot;
use super::ring::{Ring, RingFault, RingLayout};
use crate::log_limit::LogLimit;
use rustix::event::{EventfdFlags, eventfd};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
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
    pub(super) call: Option<Arc<File>>,
    pub(super) err: Option<Arc<File>>,
    /// Between SET_VRING_KICK and GET_VRING_BASE.
    pub(super) started: bool,
    /// SET_VRING_ENABLE.
    pub(super) enabled: bool,
}

/// The state behind the lock.
#[derive(Debug)]
pub(super) struct RingState {
    pub(super) setup: RingSetup,
    pub(super) memory: Option<Arc<GuestMemory>>,
    /// The ring itself, from its first start to its stop.
    pub(super) ring: Option<Ring>,
    /// Counts the lives of the ring: what was taken in an earlier one is not given back to this one.
    pub(super) life: u64,
    /// Counts changes of the kick descriptor.
    pub(super) kick_generation: u64,
    /// The guest or front-end broke it; only a stop and a new start mend it.
    pub(super) broken: bool,
    /// The connection is over: the worker ends.
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
    wake: OwnedFd,
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
    ///
    /// # Errors
    ///
    /// That of eventfd(2).
    pub(super) fn new(index: usize) -> io::Result<Self> {
        let state = RingState {
            setup: RingSetup::default(),
            memory: None,
            ring: None,
            life: 0,
            kick_generation: 0,
            broken: false,
            quit: false,
        };
        Ok(Self {
            index,
            state: Mutex::new(state),
            drained: Condvar::new(),
            parked: Mutex::new(HashMap::new()),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            log: LogLimit::default(),
        })
    }

    /// The state. A panic while it was held leaves no half-done step behind that matters more than
    /// serving on, so poisoning is ignored.
    pub(super) fn lock(&self) -> MutexGuard<'_, RingState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The descriptor the worker sleeps on beside the kick.
    pub(super) fn wake_fd(&self) -> &OwnedFd {
        &self.wake
    }

    /// Changes the setup and lets the worker look at the result.
    pub(super) fn change(&self, f: impl FnOnce(&mut RingState)) {
        let mut state = self.lock();
        f(&mut state);
        if let Err(fault) = state.start_if_complete() {
            self.break_ring(&mut state, &fault);
        }
        drop(state);
        self.wake();
    }

    /// Lets the worker look at the ring and its state.
    pub(super) fn wake(&self) {
        // A full counter means that the worker has been woken already.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Marks the ring broken: no request is taken until it is stopped and started again.
    pub(super) fn break_ring(&self, state: &mut RingState, fault: &RingFault) {
        state.broken = true;
        self.log.warn(|| format!("ring {}: {fault}; it rests until the front-end resets it", self.index));
        if let Some(err) = &state.setup.err {
            let _ = rustix::io::write(err.as_ref(), &1u64.to_ne_bytes());
        }
    }

    /// Logs what a guest did wrong, not more often than is good for the log.
    pub(super) fn complain(&self, what: impl FnOnce() -> String) {
        self.log.warn(|| format!("ring {}: {}", self.index, what()));
    }

    /// Gives back a head that was parked in `life`, and notifies the guest.
    pub(super) fn give_back_parked(&self, life: u64, head: u16, len: u32) {
        self.parked().remove(&head);
        let mut state = self.lock();
        if state.life != life {
            return;
        }
        let call = give_back(&mut state, head, len, true);
        let idle = state.ring.as_ref().is_none_or(|r| r.in_flight() == 0);
        let fault = call.as_ref().err().copied();
        if let Some(fault) = fault {
            self.break_ring(&mut state, &fault);
        }
        drop(state);
        if idle {
            self.drained.notify_all();
        }
        if let Ok(Some(call)) = call {
            signal(&call);
        }
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
        state.setup.kick = None;
        state.setup.call = None;
        state.kick_generation += 1;
        base
    }

    /// The connection is over: the worker ends, parked replies are dropped, guest memory is let go.
    pub(super) fn quit(&self) {
        let mut state = self.lock();
        state.quit = true;
        state.life += 1;
        state.ring = None;
        state.memory = None;
        drop(state);
        self.wake();
        let slots: Vec<_> = self.parked().drain().map(|(_, slot)| slot).collect();
        for slot in slots {
            slot.forget();
        }
    }
}

/// Gives a head back; returns the descriptor to signal when the guest wants it and `check` is set.
///
/// # Errors
///
/// See [`Ring::give_back`].
pub(super) fn give_back(
    state: &mut RingState,
    head: u16,
    len: u32,
    check: bool,
) -> Result<Option<Arc<File>>, RingFault> {
    let (Some(ring), Some(memory)) = (&mut state.ring, &state.memory) else { return Ok(None) };
    ring.give_back(memory, head, len)?;
    if check && ring.wants_interrupt(memory) { Ok(state.setup.call.clone()) } else { Ok(None) }
}

/// Interrupts the guest.
pub(super) fn signal(call: &File) {
    let _ = rustix::io::write(call, &1u64.to_ne_bytes());
}
