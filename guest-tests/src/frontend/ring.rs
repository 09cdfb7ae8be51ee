//! One split virtqueue from the driver's side (virtio 1.2, section 2.7).
//!
//! Owns descriptor table, available and used ring of one queue, free descriptors and notification
//! suppression. Does not know what the buffers mean. Hostile tests use the `raw_*` methods to write what no
//! driver would.

use std::sync::atomic::{Ordering, fence};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use super::buffers::Buffers;
use super::error::{FrontendError, Result};
use super::memory::GuestMemory;

/// Descriptor flag: another one follows.
pub const NEXT: u16 = 1;
/// Descriptor flag: the device writes it.
pub const WRITE: u16 = 2;
/// Descriptor flag: it points to a table.
pub const INDIRECT: u16 = 4;

/// One piece of a request: a readable or writable range of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u32,
    /// Written by the device.
    pub writable: bool,
}

/// One descriptor as it lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// NEXT, WRITE and INDIRECT.
    pub flags: u16,
    /// Index of the next descriptor if NEXT is set.
    pub next: u16,
}

impl Descriptor {
    /// The 16 bytes of the descriptor.
    #[must_use]
    pub fn bytes(&self) -> [u8; 16] {
        let mut out = [0; 16];
        out[..8].copy_from_slice(&self.addr.to_le_bytes());
        out[8..12].copy_from_slice(&self.len.to_le_bytes());
        out[12..14].copy_from_slice(&self.flags.to_le_bytes());
        out[14..].copy_from_slice(&self.next.to_le_bytes());
        out
    }
}

/// A queue and its event descriptors.
#[derive(Debug)]
pub struct Ring {
    /// Queue index at the device.
    pub index: usize,
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Guest addresses of descriptor table, available ring and used ring.
    pub desc: u64,
    /// See `desc`.
    pub avail: u64,
    /// See `desc`.
    pub used: u64,
    /// Written to tell the device of new requests.
    pub kick: OwnedFd,
    /// Written by the device when requests are done.
    pub call: OwnedFd,
    event_idx: bool,
    next_free: Vec<u16>,
    free_head: u16,
    free_count: u16,
    outstanding: Vec<bool>,
    avail_idx: u16,
    published: u16,
    last_used: u16,
    scratch: Vec<u8>,
}

impl Ring {
    /// Lays a ring of `size` descriptors into memory taken from `buffers`.
    ///
    /// # Errors
    /// When there is no memory, or no event descriptor.
    pub fn new(
        index: usize,
        size: u16,
        event_idx: bool,
        mem: &GuestMemory,
        buffers: &mut Buffers,
    ) -> Result<Self> {
        let entries = usize::from(size);
        let event = || {
            eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(FrontendError::sys("eventfd"))
        };
        let desc = buffers.alloc((16 * entries).max(4096))?.gpa;
        let avail = buffers.alloc((6 + 2 * entries).max(4096))?.gpa;
        let used = buffers.alloc((6 + 8 * entries).max(4096))?.gpa;
        let ring = Self {
            index,
            size,
            desc,
            avail,
            used,
            kick: event()?,
            call: event()?,
            event_idx,
            next_free: (1..=size).collect(),
            free_head: 0,
            free_count: size,
            outstanding: vec![false; entries],
            avail_idx: 0,
            published: 0,
            last_used: 0,
            scratch: Vec::new(),
        };
        mem.fill(desc, 16 * entries, 0)?;
        mem.fill(avail, 6 + 2 * entries, 0)?;
        mem.fill(used, 6 + 8 * entries, 0)?;
        Ok(ring)
    }

    /// Descriptors not in use.
    #[must_use]
    pub fn free(&self) -> u16 {
        self.free_count
    }

    /// Adds a request made of `segments`, readable ones first; with `table`, through an indirect table written
    /// at that address. Not visible to the device before [`Ring::publish`].
    ///
    /// Answers the head that names the request until it is used.
    ///
    /// # Errors
    /// [`FrontendError::RingFull`] when there are too few free descriptors.
    pub fn add(&mut self, mem: &GuestMemory, segments: &[Segment], table: Option<u64>) -> Result<u16> {
        let needed = if table.is_some() { 1 } else { segments.len() };
        if needed > usize::from(self.free_count) || segments.is_empty() {
            return Err(FrontendError::RingFull(self.index));
        }
        let head = self.free_head;
        let last = segments.len() - 1;
        if let Some(table) = table {
            let bytes = &mut self.scratch;
            bytes.clear();
            for (i, s) in segments.iter().enumerate() {
                let next = u16::try_from(i + 1).map_err(|_| FrontendError::RingFull(self.index))?;
                bytes.extend_from_slice(&segment_descriptor(s, i != last, next).bytes());
            }
            mem.write(table, bytes)?;
            let len = u32::try_from(bytes.len()).map_err(|_| FrontendError::RingFull(self.index))?;
            let d = Descriptor { addr: table, len, flags: INDIRECT, next: 0 };
            mem.write(self.desc + 16 * u64::from(head), &d.bytes())?;
            self.free_head = self.next_free[usize::from(head)];
            self.free_count -= 1;
            // A chain of one: its link must not lead into the free list when it is taken back.
            self.next_free[usize::from(head)] = self.size;
        } else {
            let mut at = head;
            for (i, s) in segments.iter().enumerate() {
                let next = self.next_free[usize::from(at)];
                let d = segment_descriptor(s, i != last, next);
                mem.write(self.desc + 16 * u64::from(at), &d.bytes())?;
                self.free_count -= 1;
                if i == last {
                    self.next_free[usize::from(at)] = self.size;
                    self.free_head = next;
                }
                at = next;
            }
        }
        self.outstanding[usize::from(head)] = true;
        self.raw_push(mem, head)?;
        Ok(head)
    }

    /// Puts `head` into the next slot of the available ring, whatever it is.
    ///
    /// # Errors
    /// Only for a ring that lies outside memory.
    pub fn raw_push(&mut self, mem: &GuestMemory, head: u16) -> Result<()> {
        let slot = self.avail + 4 + 2 * u64::from(self.avail_idx % self.size);
        mem.write(slot, &head.to_le_bytes())?;
        self.avail_idx = self.avail_idx.wrapping_add(1);
        Ok(())
    }

    /// Moves the available index by `count` without filling slots.
    pub fn raw_skip(&mut self, count: u16) {
        self.avail_idx = self.avail_idx.wrapping_add(count);
    }

    /// Writes descriptor `index` as given.
    ///
    /// # Errors
    /// When the index lies outside guest memory.
    pub fn raw_descriptor(&self, mem: &GuestMemory, index: u16, d: Descriptor) -> Result<()> {
        mem.write(self.desc + 16 * u64::from(index), &d.bytes())
    }

    /// Makes all added requests visible and kicks the device if it asked for that. Answers whether it did.
    ///
    /// # Errors
    /// Only for a ring that lies outside memory.
    pub fn publish(&mut self, mem: &GuestMemory) -> Result<bool> {
        if self.avail_idx == self.published {
            return Ok(false);
        }
        let old = self.published;
        mem.store_u16(self.avail + 2, self.avail_idx)?;
        self.published = self.avail_idx;
        // The index must be visible before the device's wish is read (virtio 1.2, 2.7.13.4).
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = mem.load_u16(self.used + 4 + 8 * u64::from(self.size))?;
            need_event(event, self.avail_idx, old)
        } else {
            mem.load_u16(self.used)? & 1 == 0
        };
        if wanted {
            self.kick_now()?;
        }
        Ok(wanted)
    }

    /// Kicks the device, asked for or not.
    ///
    /// # Errors
    /// When the event descriptor is broken.
    pub fn kick_now(&self) -> Result<()> {
        match rustix::io::write(&self.kick, &1_u64.to_ne_bytes()) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(e) => Err(FrontendError::sys("kicking a ring")(e)),
        }
    }

    /// Empties the call descriptor.
    pub fn clear_call(&self) {
        let mut count = [0; 8];
        // EAGAIN says that it was empty, which is what is wanted.
        let _ = rustix::io::read(&self.call, &mut count);
    }

    /// Takes the next used entry: the head of a request that is done, and the bytes written.
    ///
    /// # Errors
    /// [`FrontendError::BadReply`] when the device names a request that is not outstanding.
    pub fn pop_used(&mut self, mem: &GuestMemory) -> Result<Option<(u16, u32)>> {
        let idx = mem.load_u16(self.used + 2)?;
        let ready = idx.wrapping_sub(self.last_used);
        if ready == 0 {
            return Ok(None);
        }
        if ready > self.size {
            return Err(FrontendError::BadReply(format!(
                "ring {}: used index {idx} runs ahead of {}",
                self.index, self.last_used
            )));
        }
        let mut entry = [0; 8];
        mem.read(self.used + 4 + 8 * u64::from(self.last_used % self.size), &mut entry)?;
        let [a, b, c, d, len @ ..] = entry;
        let (id, len) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(len));
        self.last_used = self.last_used.wrapping_add(1);
        let head = u16::try_from(id).ok().filter(|h| *h < self.size && self.outstanding[usize::from(*h)]);
        let Some(head) = head else {
            return Err(FrontendError::BadReply(format!(
                "ring {}: used head {id}: not outstanding",
                self.index
            )));
        };
        self.outstanding[usize::from(head)] = false;
        let mut at = head;
        loop {
            self.free_count += 1;
            let next = self.next_free[usize::from(at)];
            if next == self.size {
                self.next_free[usize::from(at)] = self.free_head;
                break;
            }
            at = next;
        }
        self.free_head = head;
        Ok(Some((head, len)))
    }

    /// Takes the next used entry as it is, id and length, without asking whether such a request exists.
    ///
    /// # Errors
    /// Only for a ring that lies outside memory.
    pub fn raw_pop(&mut self, mem: &GuestMemory) -> Result<Option<(u32, u32)>> {
        if self.raw_used_ahead(mem)? == 0 {
            return Ok(None);
        }
        let mut entry = [0; 8];
        mem.read(self.used + 4 + 8 * u64::from(self.last_used % self.size), &mut entry)?;
        self.last_used = self.last_used.wrapping_add(1);
        let [a, b, c, d, len @ ..] = entry;
        Ok(Some((u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(len))))
    }

    /// How far the device's used index is ahead of what was taken; reads nothing else.
    ///
    /// # Errors
    /// Only for a ring that lies outside memory.
    pub fn raw_used_ahead(&self, mem: &GuestMemory) -> Result<u16> {
        Ok(mem.load_u16(self.used + 2)?.wrapping_sub(self.last_used))
    }

    /// Asks for a call at the next used entry; answers whether one is there already.
    ///
    /// # Errors
    /// Only for a ring that lies outside memory.
    pub fn arm(&self, mem: &GuestMemory) -> Result<bool> {
        if self.event_idx {
            mem.store_u16(self.avail + 4 + 2 * u64::from(self.size), self.last_used)?;
        } else {
            mem.store_u16(self.avail, 0)?;
        }
        fence(Ordering::SeqCst);
        Ok(mem.load_u16(self.used + 2)? != self.last_used)
    }

    /// Asks for no calls: the caller polls.
    ///
    /// # Errors
    /// Only for a ring that lies outside memory.
    pub fn disarm(&self, mem: &GuestMemory) -> Result<()> {
        if self.event_idx {
            // An index just passed comes again only after 65535 more requests.
            mem.store_u16(self.avail + 4 + 2 * u64::from(self.size), self.last_used.wrapping_sub(1))
        } else {
            mem.store_u16(self.avail, 1)
        }
    }
}

fn segment_descriptor(s: &Segment, more: bool, next: u16) -> Descriptor {
    let flags = if more { NEXT } else { 0 } | if s.writable { WRITE } else { 0 };
    Descriptor { addr: s.gpa, len: s.len, flags, next: if more { next } else { 0 } }
}

/// Virtio's test for notifications with event indexes: has `event` been passed between `old` and `new`?
fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notifies_exactly_when_the_event_index_is_passed() {
        for (event, new, old, want) in
            [(0, 1, 0, true), (1, 1, 0, false), (5, 6, 3, true), (6, 6, 3, false), (65535, 0, 65534, true)]
        {
            assert_eq!(need_event(event, new, old), want, "{event} {new} {old}");
        }
    }

    #[test]
    fn descriptors_come_back_and_strangers_are_refused() {
        let mem = GuestMemory::new(&[(0, 1 << 20)]).unwrap();
        let mut buffers = Buffers::new(0x1000, 1 << 20);
        let mut ring = Ring::new(0, 8, true, &mem, &mut buffers).unwrap();
        let seg = |writable| Segment { gpa: 0x8000, len: 16, writable };
        let a = ring.add(&mem, &[seg(false), seg(true), seg(true)], None).unwrap();
        let b = ring.add(&mem, &[seg(false), seg(true)], Some(0x9000)).unwrap();
        assert_eq!(ring.free(), 4);
        assert!(matches!(ring.add(&mem, &[seg(true); 5], None), Err(FrontendError::RingFull(0))));
        ring.publish(&mem).unwrap();
        for (slot, head) in [(0_u64, b), (1, a), (2, a)] {
            mem.write(ring.used + 4 + 8 * slot, &[u8::try_from(head).unwrap(), 0, 0, 0, 16, 0, 0, 0])
                .unwrap();
        }
        mem.store_u16(ring.used + 2, 3).unwrap();
        assert_eq!(ring.pop_used(&mem).unwrap(), Some((b, 16)));
        assert_eq!(ring.pop_used(&mem).unwrap(), Some((a, 16)));
        assert_eq!(ring.free(), 8);
        assert!(matches!(ring.pop_used(&mem), Err(FrontendError::BadReply(_))));
        ring.add(&mem, &[seg(true); 8], None).unwrap();
    }
}
