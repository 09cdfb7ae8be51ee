//! One split virtqueue: everything that is known of a ring.
//!
//! Owns: the indexes, the heads in flight, taking a head and giving it back (one function each), and who
//! has to be notified. Does not own: locks, descriptors' contents, event descriptors.
//!
//! A ring is written by a guest that may be hostile. Whatever it does, taking a head either makes
//! progress, says that there is nothing, or fails once and for all.

use super::GuestMemory;
use super::view::{Fault, View};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Largest ring, entries (virtio 1.2 section 2.7).
pub(super) const SIZE_MAX: u16 = 32768;
const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;

/// Why a ring cannot go on. Only a reset by the front-end brings it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RingFault {
    /// More buffers announced than the ring has places.
    #[error(
        "the guest announced {announced} buffers at once on a ring of {size} (avail index {avail}, expected from {next})"
    )]
    IndexJump {
        /// The guest's avail index.
        avail: u16,
        /// Ours.
        next: u16,
        /// Their distance.
        announced: u16,
        /// Ring size.
        size: u16,
    },
    /// A head that is no descriptor.
    #[error("the guest announced descriptor {head} on a ring of {size}")]
    Head {
        /// The head.
        head: u16,
        /// Ring size.
        size: u16,
    },
    /// A head that the guest has not got back yet.
    #[error("the guest announced descriptor {head} again while it is in flight")]
    HeadTwice {
        /// The head.
        head: u16,
    },
    /// The rings are not in guest memory, or not aligned.
    #[error("a part of the ring is not in guest memory")]
    Memory,
    /// The file behind guest memory has lost bytes.
    #[error("bytes of guest memory are gone: the front-end shortened its file, or huge pages ran out")]
    Lost,
}

impl From<Fault> for RingFault {
    fn from(_: Fault) -> Self {
        Self::Memory
    }
}

/// Guest addresses of a ring's three parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RingLayout {
    /// Entries, a power of two.
    pub(super) size: u16,
    /// Descriptor table.
    pub(super) desc: u64,
    /// Available ring.
    pub(super) avail: u64,
    /// Used ring.
    pub(super) used: u64,
    /// Whether EVENT_IDX was agreed on.
    pub(super) event_idx: bool,
}

impl RingLayout {
    fn avail_field(&self, offset: u64) -> u64 {
        self.avail.wrapping_add(offset)
    }

    fn used_field(&self, offset: u64) -> u64 {
        self.used.wrapping_add(offset)
    }
}

/// A running ring. With all heads given back `next_avail - next_used` is what it was at the start; in
/// between it grows by one for each head in flight, so a successor can derive one from the other.
#[derive(Debug)]
pub(super) struct Ring {
    layout: RingLayout,
    view: View,
    next_avail: u16,
    next_used: u16,
    signalled: u16,
    in_flight: Vec<u64>,
    in_flight_count: u16,
}

impl Ring {
    /// A ring that goes on at avail index `base`.
    ///
    /// # Errors
    ///
    /// [`RingFault::Memory`] when the used index cannot be read.
    pub(super) fn new(layout: RingLayout, base: u16, memory: &Arc<GuestMemory>) -> Result<Self, RingFault> {
        let mut view = View::new(memory);
        let used = view.load_u16(layout.used_field(2), Ordering::Acquire)?;
        let words = usize::from(layout.size).div_ceil(64);
        Ok(Self {
            layout,
            view,
            next_avail: base,
            next_used: used,
            signalled: used,
            in_flight: vec![0; words],
            in_flight_count: 0,
        })
    }

    /// Where it is.
    pub(super) fn layout(&self) -> RingLayout {
        self.layout
    }

    /// The memory it is in.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// It is somewhere else from now on, or its memory is known by another name.
    pub(super) fn move_to(&mut self, layout: RingLayout, memory: &Arc<GuestMemory>) {
        self.layout = layout;
        self.view = View::new(memory);
    }

    /// The avail index of the next head to take.
    pub(super) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Heads taken and not given back.
    pub(super) fn in_flight(&self) -> u16 {
        self.in_flight_count
    }

    /// Takes the next head; `None` when the guest has announced nothing more.
    ///
    /// # Errors
    ///
    /// See [`RingFault`]; the ring is then broken.
    pub(super) fn take(&mut self) -> Result<Option<u16>, RingFault> {
        let RingLayout { size, .. } = self.layout;
        let avail = self.view.load_u16(self.layout.avail_field(2), Ordering::Acquire)?;
        let announced = avail.wrapping_sub(self.next_avail);
        if announced == 0 {
            return Ok(None);
        }
        if !self.view.memory().is_whole() {
            return Err(RingFault::Lost);
        }
        if announced > size {
            return Err(RingFault::IndexJump { avail, next: self.next_avail, announced, size });
        }
        let slot = u64::from(self.next_avail & (size - 1));
        let head = self.view.load_u16(self.layout.avail_field(4 + 2 * slot), Ordering::Relaxed)?;
        if head >= size {
            return Err(RingFault::Head { head, size });
        }
        let (word, bit) = position(head);
        match self.in_flight.get_mut(word) {
            Some(w) if *w & bit == 0 => *w |= bit,
            _ => return Err(RingFault::HeadTwice { head }),
        }
        self.in_flight_count += 1;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(head))
    }

    /// Gives a head back with `len` bytes written. A head that is not in flight is left alone.
    ///
    /// # Errors
    ///
    /// [`RingFault::Memory`] when the used ring is not in guest memory.
    pub(super) fn give_back(&mut self, head: u16, len: u32) -> Result<(), RingFault> {
        let (word, bit) = position(head);
        match self.in_flight.get_mut(word) {
            Some(w) if *w & bit != 0 => *w &= !bit,
            _ => return Ok(()),
        }
        self.in_flight_count -= 1;
        let slot = u64::from(self.next_used & (self.layout.size - 1));
        let element = 4 + 8 * slot;
        self.view.store_u32(self.layout.used_field(element), u32::from(head), Ordering::Relaxed)?;
        self.view.store_u32(self.layout.used_field(element + 4), len, Ordering::Relaxed)?;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(self.view.store_u16(self.layout.used_field(2), self.next_used, Ordering::Release)?)
    }

    /// Whether the guest wants to hear of the heads given back since the last time this said yes.
    pub(super) fn wants_interrupt(&mut self) -> bool {
        if self.signalled == self.next_used {
            return false;
        }
        // The used index must be visible before the guest's wish is read, else both may sleep.
        fence(Ordering::SeqCst);
        let (old, new) = (self.signalled, self.next_used);
        let wanted = if self.layout.event_idx {
            let at = self.layout.avail_field(4 + 2 * u64::from(self.layout.size));
            // vring_need_event of the virtio specification: is `event` among old .. new?
            self.view
                .load_u16(at, Ordering::Relaxed)
                .map_or(true, |event| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            self.view
                .load_u16(self.layout.avail_field(0), Ordering::Relaxed)
                .map_or(true, |flags| flags & NO_INTERRUPT == 0)
        };
        self.signalled = new;
        wanted
    }

    /// Asks the guest to kick for the next buffer. Returns whether one is there already.
    ///
    /// # Errors
    ///
    /// [`RingFault::Memory`].
    pub(super) fn ask_for_kick(&mut self) -> Result<bool, RingFault> {
        if self.layout.event_idx {
            let at = self.layout.used_field(4 + 8 * u64::from(self.layout.size));
            self.view.store_u16(at, self.next_avail, Ordering::Relaxed)?;
        } else {
            self.view.store_u16(self.layout.used_field(0), 0, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        let avail = self.view.load_u16(self.layout.avail_field(2), Ordering::Acquire)?;
        Ok(avail != self.next_avail)
    }

    /// Tells the guest not to kick while its buffers are being taken anyway. With EVENT_IDX nothing need
    /// be said: the guest kicks only when it passes the index that was asked for last.
    ///
    /// # Errors
    ///
    /// [`RingFault::Memory`].
    pub(super) fn no_kicks(&mut self) -> Result<(), RingFault> {
        if self.layout.event_idx {
            return Ok(());
        }
        Ok(self.view.store_u16(self.layout.used_field(0), NO_NOTIFY, Ordering::Relaxed)?)
    }
}

fn position(head: u16) -> (usize, u64) {
    (usize::from(head / 64), 1 << (head % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    const SIZE: u16 = 8;

    struct Guest {
        memory: Arc<GuestMemory>,
        layout: RingLayout,
        avail: u16,
    }

    impl Guest {
        fn new(event_idx: bool) -> Self {
            let memory = Arc::new(GuestMemory::from_ranges(&[(GuestAddress(0), 0x4000)]).unwrap());
            let layout = RingLayout { size: SIZE, desc: 0, avail: 0x1000, used: 0x2000, event_idx };
            Self { memory, layout, avail: 0 }
        }

        fn ring(&self) -> Ring {
            Ring::new(self.layout, 0, &self.memory).unwrap()
        }

        fn announce(&mut self, head: u16) {
            let slot = u64::from(self.avail % SIZE);
            self.memory.write_obj(head, GuestAddress(0x1004 + 2 * slot)).unwrap();
            self.avail = self.avail.wrapping_add(1);
            self.memory.write_obj(self.avail, GuestAddress(0x1002)).unwrap();
        }
    }

    #[test]
    fn takes_and_gives_back_out_of_order() {
        let mut guest = Guest::new(true);
        let mut ring = guest.ring();
        assert_eq!(ring.take(), Ok(None));
        for head in [3, 1, 7] {
            guest.announce(head);
        }
        for head in [3, 1, 7] {
            assert_eq!(ring.take(), Ok(Some(head)));
        }
        assert_eq!((ring.take(), ring.in_flight()), (Ok(None), 3));
        ring.give_back(7, 100).unwrap();
        ring.give_back(3, 16).unwrap();
        ring.give_back(3, 16).unwrap();
        let used: u16 = guest.memory.read_obj(GuestAddress(0x2002)).unwrap();
        assert_eq!((used, ring.in_flight()), (2, 1));
        let first: [u8; 8] = guest.memory.read_obj(GuestAddress(0x2004)).unwrap();
        assert_eq!(first, [7, 0, 0, 0, 100, 0, 0, 0]);
    }

    #[test]
    fn indexes_wrap() {
        let mut guest = Guest::new(true);
        let mut ring = guest.ring();
        for n in 0..70_000u32 {
            let head = u16::try_from(n % 8).unwrap();
            guest.announce(head);
            assert_eq!(ring.take(), Ok(Some(head)));
            ring.give_back(head, 0).unwrap();
        }
        assert_eq!(ring.take(), Ok(None));
    }

    #[test]
    fn a_hostile_index_or_head_breaks_the_ring() {
        let guest = Guest::new(true);
        let mut ring = guest.ring();
        guest.memory.write_obj(9u16, GuestAddress(0x1002)).unwrap();
        assert!(matches!(ring.take(), Err(RingFault::IndexJump { announced: 9, .. })));
        let mut guest = Guest::new(true);
        let mut ring = guest.ring();
        guest.announce(8);
        assert_eq!(ring.take(), Err(RingFault::Head { head: 8, size: 8 }));
        let mut guest = Guest::new(true);
        let mut ring = guest.ring();
        guest.announce(2);
        guest.announce(2);
        assert_eq!(ring.take(), Ok(Some(2)));
        assert_eq!(ring.take(), Err(RingFault::HeadTwice { head: 2 }));
    }

    #[test]
    fn rings_outside_memory_fail() {
        let guest = Guest::new(true);
        for (avail, used) in
            [(0x9000, 0x2000), (0x1000, 0x9000), (u64::MAX - 0xffff, 0x2000), (0x1001, 0x2000)]
        {
            let layout = RingLayout { avail, used, ..guest.layout };
            let failed = match Ring::new(layout, 0, &guest.memory) {
                Err(fault) => Err(fault),
                Ok(mut ring) => ring.take(),
            };
            assert_eq!(failed, Err(RingFault::Memory), "{avail:#x} {used:#x}");
        }
    }

    #[test]
    fn interrupts_as_asked_for() {
        let mut guest = Guest::new(true);
        let mut ring = guest.ring();
        for head in 0..4 {
            guest.announce(head);
            ring.take().unwrap();
        }
        let event_at = GuestAddress(0x1004 + 16);
        guest.memory.write_obj(1u16, event_at).unwrap();
        ring.give_back(0, 0).unwrap();
        assert!(!ring.wants_interrupt());
        ring.give_back(1, 0).unwrap();
        assert!(ring.wants_interrupt());
        ring.give_back(2, 0).unwrap();
        assert!(!ring.wants_interrupt());

        let mut guest = Guest::new(false);
        let mut ring = guest.ring();
        guest.announce(0);
        ring.take().unwrap();
        guest.memory.write_obj(1u16, GuestAddress(0x1000)).unwrap();
        ring.give_back(0, 0).unwrap();
        assert!(!ring.wants_interrupt());
        guest.announce(0);
        ring.take().unwrap();
        guest.memory.write_obj(0u16, GuestAddress(0x1000)).unwrap();
        ring.give_back(0, 0).unwrap();
        assert!(ring.wants_interrupt());
        assert!(!ring.wants_interrupt());
    }

    #[test]
    fn kicks_are_asked_for_where_the_ring_stands() {
        let mut guest = Guest::new(true);
        let mut ring = guest.ring();
        guest.announce(5);
        assert_eq!(ring.ask_for_kick(), Ok(true));
        ring.take().unwrap();
        assert_eq!(ring.ask_for_kick(), Ok(false));
        let event: u16 = guest.memory.read_obj(GuestAddress(0x2004 + 64)).unwrap();
        assert_eq!(event, 1);
    }
}
