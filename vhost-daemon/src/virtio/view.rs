//! Guest memory as one thread at a time sees it.
//!
//! Owns: the translation of guest addresses to host addresses, which tries the region of the last one first (rings, tables
//! and buffers of a guest nearly always share one), and single fields that guest and device both use. Does not own:
//! copies of whole buffers ([`super::guest_buf`]).
//!
//! Unsafe code is here because those fields belong to a guest that changes them at will: they are reached as atomics,
//! through raw pointers.
#![allow(unsafe_code)]

use super::GuestMemory;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// The guest named memory that it does not have, or a field that is not aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault;

/// Guest memory, and the region that was used last.
#[derive(Clone)]
pub(super) struct View {
    memory: Arc<GuestMemory>,
    /// Guest address, bytes and host address of that region; no bytes before the first use.
    start: u64,
    len: u64,
    host: *mut u8,
}

// SAFETY: `host` points into `memory`, which is kept mapped by the Arc and may be used from any thread; nothing else in the
// structure is bound to a thread.
unsafe impl Send for View {}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("start", &self.start).field("len", &self.len).finish_non_exhaustive()
    }
}

impl View {
    /// A view of `memory`.
    pub(super) fn new(memory: &Arc<GuestMemory>) -> Self {
        Self { memory: Arc::clone(memory), start: 0, len: 0, host: std::ptr::null_mut() }
    }

    /// What it is a view of.
    pub(super) fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The host address of guest address `addr`, and how many bytes from there on are in the same region. The pointer is
    /// good for as long as `self`'s memory is held.
    ///
    /// # Errors
    ///
    /// [`Fault`]: it is not guest memory.
    #[inline]
    pub(super) fn at(&mut self, addr: u64) -> Result<(*mut u8, u64), Fault> {
        let mut offset = addr.wrapping_sub(self.start);
        if offset >= self.len {
            self.find(addr)?;
            offset = addr.wrapping_sub(self.start);
        }
        let skip = usize::try_from(offset).map_err(|_| Fault)?;
        Ok((self.host.wrapping_add(skip), self.len - offset))
    }

    /// Remembers the region of `addr`.
    #[cold]
    fn find(&mut self, addr: u64) -> Result<(), Fault> {
        let region = self.memory.find_region(GuestAddress(addr)).ok_or(Fault)?;
        let host = region.get_host_address(MemoryRegionAddress(0)).map_err(|_| Fault)?;
        (self.start, self.len, self.host) = (region.start_addr().0, region.len(), host);
        Ok(())
    }

    /// The host address of a field of `T`.
    #[inline]
    fn field<T>(&mut self, addr: u64) -> Result<*mut T, Fault> {
        let (host, left) = self.at(addr)?;
        let field = host.cast::<T>();
        if left < size_of::<T>() as u64 || !field.is_aligned() {
            return Err(Fault);
        }
        Ok(field)
    }

    /// Reads a field of 16 bits.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    #[inline]
    pub(super) fn load_u16(&mut self, addr: u64, order: Ordering) -> Result<u16, Fault> {
        let field = self.field::<u16>(addr)?;
        // SAFETY: two bytes of a region that `self` keeps mapped, aligned, to which no Rust reference exists. A guest that
        // names the same bytes as a buffer has this process copy them too, through raw pointers; as with the guest's own
        // writes no order is promised then, any value is a valid one, and what is read is checked before it is used.
        Ok(unsafe { AtomicU16::from_ptr(field) }.load(order))
    }

    /// Writes a field of 16 bits.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    #[inline]
    pub(super) fn store_u16(&mut self, addr: u64, value: u16, order: Ordering) -> Result<(), Fault> {
        let field = self.field::<u16>(addr)?;
        // SAFETY: as in `load_u16`.
        unsafe { AtomicU16::from_ptr(field) }.store(value, order);
        Ok(())
    }

    /// Writes a field of 32 bits.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    #[inline]
    pub(super) fn store_u32(&mut self, addr: u64, value: u32, order: Ordering) -> Result<(), Fault> {
        let field = self.field::<u32>(addr)?;
        // SAFETY: as in `load_u16`, with four bytes.
        unsafe { AtomicU32::from_ptr(field) }.store(value, order);
        Ok(())
    }

    /// Copies a descriptor out of guest memory.
    ///
    /// # Errors
    ///
    /// [`Fault`].
    #[inline]
    pub(super) fn descriptor(&mut self, addr: u64) -> Result<Descriptor, Fault> {
        let (host, left) = self.at(addr)?;
        if left < size_of::<Descriptor>() as u64 {
            // Over the border of two regions, if it is memory at all.
            return self.memory.read_obj(GuestAddress(addr)).map_err(|_| Fault);
        }
        let mut descriptor = Descriptor::default();
        // SAFETY: that many bytes of a region that `self` keeps mapped. The guest may change them meanwhile; a descriptor is
        // integers, for which any value is valid, and the copy is what is used from here on.
        unsafe {
            std::ptr::copy_nonoverlapping(
                host.cast_const(),
                std::ptr::from_mut(&mut descriptor).cast::<u8>(),
                size_of::<Descriptor>(),
            );
        }
        Ok(descriptor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let ranges =
            [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x2000), 0x1000), (GuestAddress(0x8000), 0x1000)];
        View::new(&Arc::new(GuestMemory::from_ranges(&ranges).unwrap()))
    }

    #[test]
    fn translates_as_the_memory_does() {
        let mut view = view();
        for addr in [0x1000, 0x1fff, 0x2000, 0x8123, 0x1001, 0x8fff, 0x2fff, 0x1000] {
            let (host, left) = view.at(addr).unwrap();
            let (region, offset) = view.memory.to_region_addr(GuestAddress(addr)).unwrap();
            assert_eq!(host, region.get_host_address(offset).unwrap(), "{addr:#x}");
            assert_eq!(left, 0x1000 - addr % 0x1000, "{addr:#x}");
        }
        for addr in [0, 0xfff, 0x3000, 0x7fff, 0x9000, u64::MAX] {
            assert_eq!(view.at(addr), Err(Fault), "{addr:#x}");
            assert!(view.at(0x1800).is_ok(), "a miss does no harm");
        }
    }

    #[test]
    fn fields_are_whole_and_aligned() {
        let mut view = view();
        view.store_u16(0x8ffe, 0xabcd, Ordering::Release).unwrap();
        assert_eq!(view.load_u16(0x8ffe, Ordering::Acquire), Ok(0xabcd));
        view.store_u32(0x1ffc, 0x0102_0304, Ordering::Relaxed).unwrap();
        assert_eq!(view.load_u16(0x1ffc, Ordering::Relaxed), Ok(0x0304));
        for addr in [0x8fff, 0x1001, 0x9000] {
            assert_eq!(view.load_u16(addr, Ordering::Relaxed), Err(Fault), "{addr:#x}");
            assert_eq!(view.store_u16(addr, 1, Ordering::Relaxed), Err(Fault), "{addr:#x}");
        }
        for addr in [0x8ffe, 0x1002, 0x8ffd] {
            assert_eq!(view.store_u32(addr, 1, Ordering::Relaxed), Err(Fault), "{addr:#x}");
        }
    }

    #[test]
    fn descriptors_may_cross_regions() {
        let mut view = view();
        let written = Descriptor::new(0x1234_5678_9abc, 77, 3, 9);
        for addr in [0x1000, 0x1ff8, 0x1ff0, 0x8ff0, 0x8001] {
            view.memory.write_obj(written, GuestAddress(addr)).unwrap();
            let read = view.descriptor(addr).unwrap();
            assert_eq!((read.addr().0, read.len(), read.flags(), read.next()), (0x1234_5678_9abc, 77, 3, 9));
        }
        for addr in [0x2ff8, 0x8ff1, 0x4000] {
            assert!(view.descriptor(addr).is_err(), "{addr:#x}");
        }
    }
}
