//! The guest's RAM: memfd regions at guest-physical addresses, mapped here and handed to the daemon.
//!
//! Owns mapping and bounds checks; knows nothing of rings or FUSE. The daemon writes this memory at any
//! time, so every access is a volatile copy or an atomic.

use std::fs::File;
use std::sync::atomic::{AtomicU16, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

use super::error::{FrontendError, Result};

/// What a front-end process adds to a guest-physical address to name it in SET_VRING_ADDR and in the
/// memory table. Any number works as long as both messages agree; a large one makes a daemon that
/// confuses the two address spaces fail at once.
pub const USER_OFFSET: u64 = 0x7100_0000_0000;

/// One region: `size` bytes of a memfd of their own at guest address `gpa`.
#[derive(Debug)]
pub struct Region {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub size: u64,
    /// The memfd, shared with the daemon; its offset 0 is `gpa`.
    pub file: File,
    map: MmapRegion,
}

impl Region {
    /// Creates a region of `size` bytes at `gpa`.
    ///
    /// # Errors
    /// When the memfd cannot be made or mapped.
    pub fn new(gpa: u64, size: u64) -> Result<Self> {
        let fd =
            memfd_create("guest-ram", MemfdFlags::CLOEXEC).map_err(FrontendError::sys("memfd_create"))?;
        ftruncate(&fd, size).map_err(FrontendError::sys("sizing guest memory"))?;
        let file = File::from(fd);
        let mapped = file.try_clone().map_err(FrontendError::io("duplicating the memfd"))?;
        let bytes = usize::try_from(size).map_err(|e| FrontendError::Memory(e.to_string()))?;
        let map = MmapRegion::from_file(FileOffset::new(mapped, 0), bytes)
            .map_err(|e| FrontendError::Memory(format!("mapping {size} bytes: {e}")))?;
        Ok(Self { gpa, size, file, map })
    }
}

/// All regions of one guest.
#[derive(Debug)]
pub struct GuestMemory {
    regions: Vec<Region>,
}

impl GuestMemory {
    /// A guest with the given regions, each `(gpa, size)`, which must not overlap.
    ///
    /// # Errors
    /// When a region cannot be made.
    pub fn new(ranges: &[(u64, u64)]) -> Result<Self> {
        let regions = ranges.iter().map(|&(gpa, size)| Region::new(gpa, size)).collect::<Result<_>>()?;
        Ok(Self { regions })
    }

    /// The regions, in the order given.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    fn slice(&self, gpa: u64, len: usize) -> Result<VolatileSlice<'_, impl BitmapSlice>> {
        let bad = || FrontendError::Memory(format!("{len} bytes at {gpa:#x} are not in one region"));
        for region in &self.regions {
            if gpa >= region.gpa && gpa - region.gpa < region.size {
                let offset = usize::try_from(gpa - region.gpa).map_err(|_| bad())?;
                return region.map.get_slice(offset, len).map_err(|_| bad());
            }
        }
        Err(bad())
    }

    /// Copies `bytes` to guest address `gpa`.
    ///
    /// # Errors
    /// When the range is not inside one region.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        self.slice(gpa, bytes.len())?.write_slice(bytes, 0).map_err(|e| FrontendError::Memory(e.to_string()))
    }

    /// Fills `bytes` from guest address `gpa`.
    ///
    /// # Errors
    /// When the range is not inside one region.
    pub fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<()> {
        self.slice(gpa, bytes.len())?.read_slice(bytes, 0).map_err(|e| FrontendError::Memory(e.to_string()))
    }

    /// Fills `len` bytes at `gpa` with `value`.
    ///
    /// # Errors
    /// When the range is not inside one region.
    pub fn fill(&self, gpa: u64, len: usize, value: u8) -> Result<()> {
        self.write(gpa, &vec![value; len])
    }

    /// Loads a little-endian u16 that the daemon may be writing.
    ///
    /// # Errors
    /// When the address is outside memory or odd.
    pub fn load_u16(&self, gpa: u64) -> Result<u16> {
        let slice = self.slice(gpa, 2)?;
        let cell: &AtomicU16 = slice.get_atomic_ref(0).map_err(|e| FrontendError::Memory(e.to_string()))?;
        Ok(u16::from_le(cell.load(Ordering::Acquire)))
    }

    /// Stores a little-endian u16 that the daemon may be reading; all earlier writes are visible before.
    ///
    /// # Errors
    /// When the address is outside memory or odd.
    pub fn store_u16(&self, gpa: u64, value: u16) -> Result<()> {
        let slice = self.slice(gpa, 2)?;
        let cell: &AtomicU16 = slice.get_atomic_ref(0).map_err(|e| FrontendError::Memory(e.to_string()))?;
        cell.store(value.to_le(), Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_back_what_was_written_and_refuses_strangers() {
        let mem = GuestMemory::new(&[(0, 0x2000), (0x2000, 0x1000), (1 << 32, 0x1000)]).unwrap();
        mem.write(0x1ffe, b"ab").unwrap();
        mem.write((1 << 32) + 0xffd, b"xyz").unwrap();
        let mut two = [0; 2];
        mem.read(0x1ffe, &mut two).unwrap();
        assert_eq!(&two, b"ab");
        assert_eq!(mem.load_u16(0x1ffe).unwrap(), u16::from_le_bytes(*b"ab"));
        for (gpa, len) in [(0x1fff_u64, 2_usize), (0x3000, 1), ((1 << 32) + 0xfff, 2), (u64::MAX, 1)] {
            assert!(mem.read(gpa, &mut vec![0; len]).is_err(), "{gpa:#x}+{len}");
        }
    }
}
