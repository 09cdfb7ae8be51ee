//! The thread of one ring: sleeps until there is something to do, then serves until there is not.
//!
//! Owns: the order take, handle, give back, notify; when to look again; and that nothing a request does
//! ends the thread. Does not own: what requests mean.

use super::chain::Chain;
use super::deferred::Deferred;
use super::guest_buf::GuestBuf;
use super::parked::Parked;
use super::pool::Pool;
use super::ring_state::{SharedRing, give_back, signal};
use crate::fuse::abi::OutHeader;
use crate::fuse::{GuestFs, Outcome, ParkedRead, ReadIo, ReplyBuf, Server};
use rustix::event::epoll;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use zerocopy::IntoBytes;

/// A batch is cut here: a guest that never stops asking still hears of what is done.
const BATCH_REQUESTS: u32 = 16;
const BATCH_BYTES: usize = 256 << 10;
const HEADER: usize = size_of::<OutHeader>();
const WAKE: u64 = 0;
const KICK: u64 = 1;

/// Runs a ring until its connection ends.
pub(super) fn run<F: GuestFs + 'static>(ring: &Arc<SharedRing>, server: &Arc<Server<F>>, pool: &Arc<Pool>) {
    let mut worker = match Worker::new(ring, server, pool) {
        Ok(worker) => worker,
        Err(error) => {
            tracing::error!("ring {}: cannot make its event loop: {error}", ring.index);
            return;
        }
    };
    while worker.wait() {
        while worker.serve() {}
    }
}

/// The state of a ring's thread.
pub(super) struct Worker<'a, F> {
    ring: &'a Arc<SharedRing>,
    server: &'a Arc<Server<F>>,
    pool: &'a Arc<Pool>,
    epoll: rustix::fd::OwnedFd,
    kick: Option<Arc<File>>,
    kick_generation: u64,
    chain: Option<Chain>,
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
    Stopped,
}

impl<'a, F: GuestFs + 'static> Worker<'a, F> {
    /// A worker that watches nothing but its wake descriptor yet.
    pub(super) fn new(
        ring: &'a Arc<SharedRing>,
        server: &'a Arc<Server<F>>,
        pool: &'a Arc<Pool>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = epoll::EventData::new_u64(WAKE);
        epoll::add(&epoll, ring.wake_fd(), wake, epoll::EventFlags::IN)?;
        Ok(Self { ring, server, pool, epoll, kick: None, kick_generation: 0, chain: None })
    }

    /// Sleeps. Returns false when the connection is over.
    ///
    /// The kick is watched edge-triggered and never read: every write to it wakes, and a front-end that
    /// reads its own kick descriptor cannot make this thread wait.
    fn wait(&mut self) -> bool {
        let mut events: [epoll::Event; 2] =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 2];
        let n = match epoll::wait(&self.epoll, &mut events, None) {
            Ok(n) => n,
            Err(rustix::io::Errno::INTR) => return true,
            Err(error) => {
                tracing::error!("ring {}: its event loop failed: {error}", self.ring.index);
                return false;
            }
        };
        if events.iter().take(n).any(|e| e.data.u64() == WAKE) {
            let mut counter = [0; 8];
            let _ = rustix::io::read(self.ring.wake_fd(), &mut counter);
            return self.follow_setup();
        }
        true
    }

    /// Follows a change of the kick descriptor. Returns false when the connection is over.
    fn follow_setup(&mut self) -> bool {
        let state = self.ring.lock();
        if state.quit {
            return false;
        }
        if state.kick_generation == self.kick_generation {
            return true;
        }
        self.kick_generation = state.kick_generation;
        let kick = state.setup.kick.clone();
        drop(state);
        if let Some(old) = self.kick.take() {
            let _ = epoll::delete(&self.epoll, old.as_fd());
        }
        if let Some(new) = &kick {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            if let Err(error) = epoll::add(&self.epoll, new.as_fd(), epoll::EventData::new_u64(KICK), flags) {
                self.ring.complain(|| format!("cannot watch its kick descriptor: {error}"));
                return true;
            }
        }
        self.kick = kick;
        true
    }

    /// Serves what is announced. Returns whether more arrived while falling asleep.
    pub(super) fn serve(&mut self) -> bool {
        let mut done: Option<Done> = None;
        let mut requests = 0;
        let mut bytes = 0;
        loop {
            let cut = requests >= BATCH_REQUESTS || bytes >= BATCH_BYTES;
            if cut {
                (requests, bytes) = (0, 0);
            }
            let (next, call) = self.turn(done.take(), cut);
            if let Some(call) = call {
                signal(&call);
            }
            match next {
                Next::Head { head, life } => {
                    let len = self.handle(head, life);
                    if let Some(len) = len {
                        requests += 1;
                        bytes += len;
                        done = Some(Done { head, life, len: u32::try_from(len).unwrap_or(u32::MAX) });
                    }
                }
                Next::Empty => return self.rest(),
                Next::Stopped => {
                    self.chain = None;
                    self.ring.worker_is_idle();
                    return false;
                }
            }
        }
    }

    /// Gives back what was done and takes the next, under one hold of the lock. The guest is notified at
    /// the end of a batch.
    fn turn(&mut self, done: Option<Done>, cut: bool) -> (Next, Option<Arc<File>>) {
        let mut guard = self.ring.lock();
        let state = &mut *guard;
        let mut call = None;
        if let Some(done) = done.filter(|d| d.life == state.life) {
            match give_back(state, done.head, done.len, cut) {
                Ok(c) => call = c,
                Err(fault) => self.ring.break_ring(state, &fault),
            }
        }
        if !state.running() {
            return (Next::Stopped, call.or_else(|| pending_call(state)));
        }
        let (Some(ring), Some(memory)) = (&mut state.ring, &state.memory) else {
            return (Next::Stopped, call);
        };
        match ring.take(memory) {
            Ok(Some(head)) => {
                let (desc, size, life) = (ring.layout.desc, ring.layout.size, state.life);
                let memory = Arc::clone(memory);
                drop(guard);
                self.walk(&memory, desc, size, head);
                (Next::Head { head, life }, call)
            }
            Ok(None) => (Next::Empty, call.or_else(|| pending_call(state))),
            Err(fault) => {
                self.ring.break_ring(state, &fault);
                (Next::Stopped, call.or_else(|| pending_call(state)))
            }
        }
    }

    /// Asks for a kick; returns whether there is something already.
    fn rest(&mut self) -> bool {
        let mut guard = self.ring.lock();
        let state = &mut *guard;
        let (Some(ring), Some(memory)) = (&mut state.ring, &state.memory) else { return false };
        match ring.ask_for_kick(memory) {
            Ok(true) => {
                if let Err(fault) = ring.no_kicks(memory) {
                    self.ring.break_ring(state, &fault);
                    return false;
                }
                true
            }
            Ok(false) => false,
            Err(fault) => {
                self.ring.break_ring(state, &fault);
                false
            }
        }
    }

    fn walk(&mut self, memory: &Arc<super::GuestMemory>, desc: u64, size: u16, head: u16) {
        let chain = self.chain.get_or_insert_with(|| Chain::new(memory));
        if let Err(fault) = chain.walk(memory, desc, size, head) {
            self.ring.complain(|| format!("descriptor {head}: {fault}; the request gets an error"));
            chain.fault = true;
        }
    }

    /// Handles the request that was walked. Returns the bytes used of its reply, or `None` when it was
    /// parked.
    fn handle(&mut self, head: u16, life: u64) -> Option<usize> {
        let chain = self.chain.as_mut()?;
        let total = chain.readable_len();
        let fault = chain.fault;
        let (request, readable, writable) = chain.parts();
        let unique = request.get(8..16).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        let mut reply = VirtioReply { ring: self.ring, life, head, unique, request: readable, buf: writable };
        if fault {
            return Some(reply.error(libc::EFAULT));
        }
        let server = self.server;
        let outcome = catch_unwind(AssertUnwindSafe(|| server.handle(request, total, &mut reply)));
        match outcome {
            Ok(Outcome::Replied(len)) => Some(len),
            Ok(Outcome::Parked) => None,
            Ok(Outcome::Blocks) => {
                let parked = Parked::new(self.ring, life, head, unique, reply.buf.duplicate());
                let deferred = Deferred::new(parked, request, reply.request.duplicate());
                let (ring, server) = (Arc::clone(self.ring), Arc::clone(server));
                self.pool.run(Box::new(move || deferred.handle(&ring, &server)));
                None
            }
            Err(_) => {
                self.ring.complain(|| "a request made its handler panic; it gets EIO".to_owned());
                Some(reply.error(libc::EIO))
            }
        }
    }
}

/// The descriptor to signal for what was given back without looking whether the guest wants to know.
fn pending_call(state: &mut super::ring_state::RingState) -> Option<Arc<File>> {
    let (Some(ring), Some(memory)) = (&mut state.ring, &state.memory) else { return None };
    if ring.wants_interrupt(memory) { state.setup.call.clone() } else { None }
}

/// A chain as the FUSE layer sees it.
struct VirtioReply<'a> {
    ring: &'a Arc<SharedRing>,
    life: u64,
    head: u16,
    unique: u64,
    request: &'a mut GuestBuf,
    buf: &'a mut GuestBuf,
}

impl VirtioReply<'_> {
    fn error(&mut self, errno: i32) -> usize {
        if self.buf.len() < HEADER {
            return 0;
        }
        self.buf.write(0, OutHeader { len: 16, error: -errno, unique: self.unique }.as_bytes());
        HEADER
    }
}

impl ReplyBuf for VirtioReply<'_> {
    fn capacity(&self) -> usize {
        self.buf.len()
    }

    fn put(&mut self, at: usize, data: &[u8]) {
        self.buf.write(at, data);
    }

    fn request_bytes(&mut self, at: usize, to: &mut [u8]) -> usize {
        self.request.read(at, to)
    }

    fn write_request(
        &mut self,
        at: usize,
        len: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<usize> {
        self.request.pwritev(at, file, offset, len)
    }
}

impl ReadIo for VirtioReply<'_> {
    fn room(&self) -> usize {
        self.buf.len().saturating_sub(HEADER)
    }

    fn read_nowait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
        match self.buf.preadv(HEADER + at, file, offset, len, libc::RWF_NOWAIT) {
            Ok(n) => Ok(n),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EOPNOTSUPP | libc::EINTR)) => {
                Ok(0)
            }
            Err(e) => Err(e),
        }
    }

    fn read_wait(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<usize> {
        self.buf.preadv(HEADER + at, file, offset, len, 0)
    }

    fn zero(&mut self, at: usize, len: usize) {
        self.buf.zero(HEADER + at, len);
    }

    fn park(&mut self) -> Option<Box<dyn ParkedRead>> {
        let buf = self.buf.duplicate();
        Some(Box::new(Parked::new(self.ring, self.life, self.head, self.unique, buf)))
    }
}
