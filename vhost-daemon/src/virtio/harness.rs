//! A ring that is driven in place, without a socket, an eventfd or a second thread: the whole way from
//! descriptors to a reply, for benchmarks and fuzzing.
//!
//! Owns: a small guest memory and the guest's side of one ring in it. Does not own: anything a real device
//! uses.

use super::GuestMemory;
use super::call::Call;
use super::crew::Hand;
use super::pool::Pool;
use super::ring::RingLayout;
use super::ring_state::SharedRing;
use super::worker::Worker;
use crate::fuse::{GuestFs, InitLimits, Server};
use rustix::event::{EventfdFlags, eventfd};
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::{Bytes, GuestAddress};

const RING_SIZE: u16 = 256;
const DESC: u64 = 0;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const REQUESTS: u64 = 0x1_0000;
const REPLIES: u64 = 0x20_0000;
const MEMORY_SIZE: usize = 64 << 20;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
/// A request's place and a reply's place, bytes.
const REQUEST_ROOM: u64 = 0x1000;
/// Largest reply, bytes: a header and 2 MiB.
const REPLY_ROOM: u64 = 0x21_0000;

/// One descriptor as a guest writes it.
#[derive(Clone, Copy, Debug)]
pub struct RawDescriptor {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// 1 next, 2 writable, 4 indirect.
    pub flags: u16,
    /// Next descriptor.
    pub next: u16,
}

/// A guest and a device in one thread.
pub struct Harness<F> {
    server: Arc<Server<F>>,
    pool: Arc<Pool>,
    ring: Arc<SharedRing>,
    memory: Arc<GuestMemory>,
    avail: Cell<u16>,
    told: File,
}

impl<F> std::fmt::Debug for Harness<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Harness").field("avail", &self.avail.get()).finish_non_exhaustive()
    }
}

impl<F: GuestFs + 'static> Harness<F> {
    /// Guest memory of 64 MiB and one running ring of 256 entries.
    ///
    /// # Errors
    ///
    /// Memory or descriptors cannot be had.
    pub fn new(fs: Arc<F>) -> io::Result<Self> {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE)])
            .map(Arc::new)
            .map_err(|e| io::Error::other(e.to_string()))?;
        let ring = Arc::new(SharedRing::new(1, Arc::default()));
        let told = File::from(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let call = Arc::new(Call::new(told.try_clone()?));
        let layout = RingLayout { size: RING_SIZE, desc: DESC, avail: AVAIL, used: USED, event_idx: true };
        ring.change(|r| {
            r.memory = Some(Arc::clone(&memory));
            r.setup.size = RING_SIZE;
            r.setup.layout = Some(layout);
            r.setup.call = Some(call);
            r.setup.enabled = true;
            r.setup.started = true;
        });
        let server = Arc::new(Server::new(fs, InitLimits { request_queues: 1, flags: 0 }));
        let pool = Pool::new(1);
        Ok(Self { server, pool, ring, memory, avail: Cell::new(0), told })
    }

    /// Writes a request with room for a reply of `room` bytes, in pieces of `piece` bytes that do not
    /// touch each other (0: in one piece), into place `slot` (0 ..= 15). It is announced by
    /// [`Harness::announce`], as often as wanted.
    ///
    /// # Errors
    ///
    /// The request or the room is too large.
    pub fn prepare(&self, slot: u16, request: &[u8], room: u32, piece: u32) -> io::Result<()> {
        let too_large = || io::Error::from(io::ErrorKind::InvalidInput);
        if request.len() as u64 > REQUEST_ROOM || u64::from(room) > REPLY_ROOM / 2 || slot > 15 {
            return Err(too_large());
        }
        let base = slot * 16;
        let at = REQUESTS + u64::from(slot) * REQUEST_ROOM;
        self.memory.write_slice(request, GuestAddress(at)).map_err(|_| too_large())?;
        let len = u32::try_from(request.len()).map_err(|_| too_large())?;
        // Replies of real guests go to pages: here, an indirect table names them, behind the header.
        let reply = REPLIES + u64::from(slot) * REPLY_ROOM;
        let table = REQUESTS + 16 * REQUEST_ROOM + u64::from(slot) * 0x8000;
        let mut entries = vec![RawDescriptor { addr: at, len, flags: F_NEXT, next: 1 }];
        let mut left = room;
        let mut place = reply;
        while left > 0 {
            let n = if entries.len() == 1 {
                left.min(16)
            } else {
                left.min(if piece == 0 { left } else { piece })
            };
            let next = u16::try_from(entries.len() + 1).map_err(|_| too_large())?;
            entries.push(RawDescriptor { addr: place, len: n, flags: F_NEXT | F_WRITE, next });
            left -= n;
            // The header stands alone on a page, as in guests; pieces lie a page apart from each other.
            place += match (entries.len(), piece) {
                (2, _) => 0x1000,
                (_, 0) => u64::from(n),
                (_, p) => u64::from(p) * 2,
            };
        }
        if let Some(last) = entries.last_mut() {
            last.flags &= !F_NEXT;
        }
        for (i, entry) in entries.iter().enumerate() {
            self.write_descriptor(table + 16 * i as u64, *entry)?;
        }
        let table_len = u32::try_from(entries.len() * 16).map_err(|_| too_large())?;
        self.set_descriptor(base, RawDescriptor { addr: table, len: table_len, flags: 4, next: 0 })
    }

    /// Writes descriptor `index` of the ring's own table, whatever it says.
    ///
    /// # Errors
    ///
    /// The index is beyond the table.
    pub fn set_descriptor(&self, index: u16, descriptor: RawDescriptor) -> io::Result<()> {
        if index >= RING_SIZE {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.write_descriptor(DESC + 16 * u64::from(index), descriptor)
    }

    fn write_descriptor(&self, at: u64, d: RawDescriptor) -> io::Result<()> {
        let mut bytes = [0; 16];
        for (to, from) in bytes.iter_mut().zip(
            d.addr
                .to_le_bytes()
                .into_iter()
                .chain(d.len.to_le_bytes())
                .chain(d.flags.to_le_bytes())
                .chain(d.next.to_le_bytes()),
        ) {
            *to = from;
        }
        self.memory.write_slice(&bytes, GuestAddress(at)).map_err(|e| io::Error::other(e.to_string()))
    }

    /// Writes bytes anywhere in guest memory; what does not fit is refused.
    ///
    /// # Errors
    ///
    /// The range is not guest memory.
    pub fn write_memory(&self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.memory.write_slice(bytes, GuestAddress(at)).map_err(|e| io::Error::other(e.to_string()))
    }

    /// Announces descriptors, all at once.
    ///
    /// # Errors
    ///
    /// The ring cannot be written.
    pub fn announce_heads(&self, heads: impl IntoIterator<Item = u16>) -> io::Result<()> {
        let other = |e: vm_memory::GuestMemoryError| io::Error::other(e.to_string());
        let mut avail = self.avail.get();
        for head in heads {
            let slot = u64::from(avail % RING_SIZE);
            self.memory.store(head, GuestAddress(AVAIL + 4 + 2 * slot), Ordering::Relaxed).map_err(other)?;
            avail = avail.wrapping_add(1);
        }
        self.avail.set(avail);
        self.memory.store(avail, GuestAddress(AVAIL + 2), Ordering::Release).map_err(other)
    }

    /// Announces the requests in places 0 .. `count`, all at once.
    ///
    /// # Errors
    ///
    /// The ring cannot be written.
    pub fn announce(&self, count: u16) -> io::Result<()> {
        self.announce_heads((0..count).map(|slot| slot * 16))
    }

    /// The worker of the ring, to be run in place with [`HarnessWorker::serve`].
    #[must_use]
    pub fn worker(&self) -> HarnessWorker<F> {
        let (ring, server) = (Arc::clone(&self.ring), Arc::clone(&self.server));
        HarnessWorker { worker: Worker::new(ring, server, Arc::clone(&self.pool)), hand: Hand::alone() }
    }

    /// The descriptor by which the guest is told of replies: readable from the first time on.
    #[must_use]
    pub fn told(&self) -> BorrowedFd<'_> {
        self.told.as_fd()
    }

    /// Heads given back since the start, modulo 2^16.
    #[must_use]
    pub fn given_back(&self) -> u16 {
        self.memory.read_obj(GuestAddress(USED + 2)).unwrap_or(0)
    }

    /// Heads announced since the start, modulo 2^16.
    #[must_use]
    pub fn announced(&self) -> u16 {
        self.avail.get()
    }

    /// The reply header of place `slot`: length, error, unique.
    #[must_use]
    pub fn reply_header(&self, slot: u16) -> (u32, i32, u64) {
        let mut bytes = [0; 16];
        let at = GuestAddress(REPLIES + u64::from(slot) * REPLY_ROOM);
        if self.memory.read_slice(&mut bytes, at).is_err() {
            return (0, 0, 0);
        }
        let [a, b, c, d, e, f, g, h, unique @ ..] = bytes;
        let len = u32::from_le_bytes([a, b, c, d]);
        (len, i32::from_le_bytes([e, f, g, h]), u64::from_le_bytes(unique))
    }

    /// The first `len` bytes behind the header of the reply of place `slot`, prepared in one piece.
    #[must_use]
    pub fn reply_payload(&self, slot: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.min(usize::try_from(REPLY_ROOM).unwrap_or(0))];
        // The header stands alone on a page.
        let at = GuestAddress(REPLIES + u64::from(slot) * REPLY_ROOM + 0x1000);
        match self.memory.read_slice(&mut bytes, at) {
            Ok(()) => bytes,
            Err(_) => Vec::new(),
        }
    }
}

/// The worker of a [`Harness`].
pub struct HarnessWorker<F> {
    worker: Worker<F>,
    hand: Hand,
}

impl<F> std::fmt::Debug for HarnessWorker<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HarnessWorker")
    }
}

impl<F: GuestFs + 'static> HarnessWorker<F> {
    /// Serves all that is announced.
    pub fn serve(&mut self) {
        self.worker.serve(&mut self.hand);
    }
}
