//! Serving a ring: what a worker of the crew does when it visits one.
//!
//! Owns: the order take, handle, give back, notify; how much is done in one visit; and that nothing a request does ends
//! the worker. Does not own: when a ring is visited ([`super::crew`]), what requests mean.

use super::call::Call;
use super::crew::{Hand, Served, Visit};
use super::deferred::Deferred;
use super::pool::Pool;
use super::reply::{InHand, Reply};
use super::ring::RingLayout;
use super::ring_state::{RingState, SharedRing, give_back};
use crate::fuse::{GuestFs, Outcome, Server};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// A visit ends here: a guest that never stops asking still hears of what is done, and others get their turn.
const BATCH_REQUESTS: u32 = 16;
const BATCH_BYTES: usize = 256 << 10;
/// Bytes of replies after which a guest that sleeps is woken, before the visit ends.
const TELLING_BYTES: usize = 16 << 10;
/// Following descriptors takes time too, whether or not there is a request behind them.
const BATCH_DESCRIPTORS: u32 = 1024;

/// A ring with what serves it.
pub(super) struct Worker<F> {
    ring: Arc<SharedRing>,
    server: Arc<Server<F>>,
    pool: Arc<Pool>,
}

/// A request that was handled, to be given back together with taking the next.
struct Done {
    head: u16,
    /// The life of the ring it was taken in: a ring that was stopped meanwhile does not get it.
    life: u64,
    len: u32,
}

/// What the lock gave: the next request, or why there is none.
enum Next {
    Head { head: u16, life: u64 },
    Empty,
    Cut,
    Stopped,
}

/// What was done in a visit.
#[derive(Default)]
struct Batch {
    requests: u32,
    bytes: usize,
    descriptors: u32,
    /// Bytes when it was last asked whether the guest wants to be told; `None` before the first time.
    told: Option<usize>,
}

impl Batch {
    /// Whether it is time to ask if the guest wants to be told; asking costs as much as a small request.
    fn is_to_tell(&mut self) -> bool {
        let due = self.told.is_none_or(|bytes| self.bytes - bytes >= TELLING_BYTES);
        if due {
            self.told = Some(self.bytes);
        }
        due
    }

    fn is_full(&self) -> bool {
        self.requests >= BATCH_REQUESTS || self.bytes >= BATCH_BYTES || self.descriptors >= BATCH_DESCRIPTORS
    }
}

impl<F: GuestFs + 'static> Served for Worker<F> {
    fn visit(&self, hand: &mut Hand) -> Visit {
        let mut done: Option<Done> = None;
        let mut batch = Batch::default();
        loop {
            let (next, call) = self.turn(hand, done.take(), &mut batch);
            if let Some(call) = call {
                hand.signal(&call);
            }
            match next {
                Next::Head { head, life } => {
                    hand.step();
                    batch.requests += 1;
                    batch.descriptors += hand.chain.descriptors();
                    if let Some(len) = self.handle(hand, head, life) {
                        batch.bytes += len;
                        done = Some(Done { head, life, len: u32::try_from(len).unwrap_or(u32::MAX) });
                    }
                }
                Next::Empty if batch.requests == 0 => return Visit::Nothing,
                Next::Empty => return Visit::Drained,
                Next::Cut => return Visit::More,
                Next::Stopped => {
                    self.ring.worker_is_idle();
                    if let Some(alarm) = self.ring.alarm() {
                        hand.signal(&alarm);
                    }
                    return Visit::Stopped;
                }
            }
        }
    }

    fn rest(&self) -> bool {
        let mut guard = self.ring.lock();
        let state = &mut *guard;
        if !state.running() {
            return false;
        }
        let Some(ring) = &mut state.ring else { return false };
        let asked = ring.ask_for_kick().and_then(|more| {
            if more {
                ring.no_kicks()?;
            }
            Ok(more)
        });
        asked.unwrap_or_else(|fault| {
            self.ring.break_ring(state, &fault);
            // Once more, for whoever is to hear of it.
            true
        })
    }
}

impl<F: GuestFs + 'static> Worker<F> {
    /// What serves `ring`.
    pub(super) fn new(ring: Arc<SharedRing>, server: Arc<Server<F>>, pool: Arc<Pool>) -> Self {
        Self { ring, server, pool }
    }

    /// Serves all that is announced, in place.
    pub(super) fn serve(&self, hand: &mut Hand) {
        loop {
            match self.visit(hand) {
                Visit::More => {}
                Visit::Nothing | Visit::Drained if self.rest() => {}
                Visit::Nothing | Visit::Drained | Visit::Stopped => return,
            }
        }
    }

    /// Gives back what was done and takes the next, unless enough was done, under one hold of the lock. The guest is
    /// notified of the first request of a batch, so that it wakes up and asks for more while the others are served, now
    /// and then if they take their time, and at the end.
    fn turn(&self, hand: &mut Hand, done: Option<Done>, batch: &mut Batch) -> (Next, Option<Arc<Call>>) {
        let mut guard = self.ring.lock();
        let state = &mut *guard;
        let tell = done.is_some() && batch.is_to_tell();
        if let Some(done) = done.filter(|d| d.life == state.life)
            && let Err(fault) = give_back(state, done.head, done.len)
        {
            self.ring.break_ring(state, &fault);
        }
        if !state.running() {
            return (Next::Stopped, pending_call(state));
        }
        if batch.is_full() {
            return (Next::Cut, pending_call(state));
        }
        let Some(ring) = &mut state.ring else { return (Next::Stopped, None) };
        match ring.take() {
            Ok(Some(head)) => {
                let RingLayout { desc, size, .. } = ring.layout();
                let life = state.life;
                hand.chain.look_at(ring.view());
                let call = if tell { pending_call(state) } else { None };
                drop(guard);
                if let Err(fault) = hand.chain.walk(desc, size, head) {
                    self.ring.complain(|| format!("descriptor {head}: {fault}; the request gets an error"));
                    hand.chain.fault = true;
                }
                (Next::Head { head, life }, call)
            }
            Ok(None) => (Next::Empty, pending_call(state)),
            Err(fault) => {
                self.ring.break_ring(state, &fault);
                (Next::Stopped, pending_call(state))
            }
        }
    }

    /// Handles the request that was walked. Returns the bytes used of its reply, or `None` when it was parked.
    fn handle(&self, hand: &mut Hand, head: u16, life: u64) -> Option<usize> {
        let chain = &mut hand.chain;
        let total = chain.readable_len();
        let fault = chain.fault;
        let (bytes, request, buf) = chain.parts();
        let unique = bytes.get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        let mut reply = Reply { request, room: InHand { ring: &self.ring, life, head, unique, buf } };
        if fault {
            return Some(reply.room.error(libc::EFAULT));
        }
        let server = &self.server;
        let outcome = catch_unwind(AssertUnwindSafe(|| server.handle(bytes, total, &mut reply)));
        match outcome {
            Ok(Outcome::Replied(len)) => Some(len),
            Ok(Outcome::Parked) => None,
            Ok(Outcome::Blocks) => {
                let Some(parked) = reply.room.parked(bytes.len() + reply.request.weight()) else {
                    return Some(reply.room.error(libc::ENOMEM));
                };
                let deferred = Deferred::new(parked, bytes, reply.request.duplicate());
                let (ring, server) = (Arc::clone(&self.ring), Arc::clone(server));
                self.pool.run(Box::new(move || deferred.handle(&ring, &server)));
                None
            }
            Err(_) => {
                self.ring.complain(|| "a request made its handler panic; it gets EIO".to_owned());
                Some(reply.room.error(libc::EIO))
            }
        }
    }
}

/// The descriptor to signal for what was given back without looking whether the guest wants to know.
fn pending_call(state: &mut RingState) -> Option<Arc<Call>> {
    let owed = std::mem::take(&mut state.call_owed);
    let ring = state.ring.as_mut()?;
    if ring.wants_interrupt() || owed { state.setup.call.clone() } else { None }
}

#[cfg(test)]
mod tests {
    use crate::fuse::abi::op;
    use crate::virtio::Harness;
    use crate::virtio::test_fs::TestFs;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use std::os::fd::OwnedFd;
    use std::sync::{Arc, Mutex, OnceLock};

    #[test]
    fn a_guest_hears_of_the_first_of_many_replies_while_the_others_are_made() {
        let told: Arc<OnceLock<OwnedFd>> = Arc::default();
        let seen: Arc<Mutex<Vec<bool>>> = Arc::default();
        let fs = {
            let (told, seen) = (Arc::clone(&told), Arc::clone(&seen));
            TestFs::new(move || {
                let mut fds = [PollFd::new(told.get().unwrap(), PollFlags::IN)];
                let ready = poll(&mut fds, Some(&Timespec::default())).unwrap();
                seen.lock().unwrap().push(ready == 1);
            })
        };
        let harness = Harness::new(Arc::new(fs)).unwrap();
        told.set(harness.told().try_clone_to_owned().unwrap()).unwrap();
        let mut request = Vec::new();
        for field in [56, op::GETATTR, 1, 0, 1, 0] {
            request.extend_from_slice(&field.to_ne_bytes());
        }
        request.resize(56, 0);
        for slot in 0..4 {
            harness.prepare(slot, &request, 120, 0).unwrap();
        }
        harness.announce(4).unwrap();
        harness.worker().serve();
        assert_eq!(harness.given_back(), 4);
        assert_eq!(*seen.lock().unwrap(), [false, true, true, true]);
    }
}
