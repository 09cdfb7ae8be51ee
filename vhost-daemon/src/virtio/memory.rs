//! Guest memory of one connection.
//!
//! Owns: its regions, which stay mapped as long as anybody holds a reference, and whether their bytes are still there: a
//! front-end that shortens its file, or runs out of huge pages, loses its own device and nobody else's. Does not own:
//! accesses ([`super::view`], [`super::guest_buf`]).
//!
//! Unsafe code is here because a mapping is watched by its address.
#![allow(unsafe_code)]

use rafs::guard::Watch;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use vm_memory::mmap::FromRangesError;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

/// `f_type` of files that consist of huge pages (statfs(2)).
const HUGETLBFS: i64 = 0x9584_58f6;

/// Whether `len` bytes of `file` are whole pages, should these be huge ones: others can be mapped, but neither unmapped nor
/// exchanged.
pub(super) fn in_whole_pages(file: &File, len: u64) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| {
        let page = u64::try_from(fs.f_bsize).unwrap_or(0);
        fs.f_type != HUGETLBFS || (page > 0 && len.is_multiple_of(page))
    })
}

/// One region, watched.
#[derive(Clone, Debug)]
pub(super) struct Mapped {
    watch: Arc<Watch>,
    map: Arc<GuestRegionMmap<()>>,
}

/// All regions.
#[derive(Debug)]
pub(super) struct GuestMemory {
    /// Dropped first: whoever keeps a region mapped keeps its watch until just before.
    watches: Vec<Arc<Watch>>,
    map: GuestMemoryMmap<()>,
}

impl Mapped {
    /// Watches `map` from now on.
    ///
    /// # Errors
    ///
    /// It has no address.
    pub(super) fn new(map: GuestRegionMmap<()>) -> io::Result<Self> {
        let no_address = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let start = map.get_host_address(MemoryRegionAddress(0)).map_err(no_address)?;
        let len = usize::try_from(map.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the pages are those of `map`, which is kept by an Arc that is always held together with one of the watch
        // and dropped behind it. Its bytes are a guest's, and nobody has a Rust reference to them.
        let watch = unsafe { Watch::new(start, len, true) };
        Ok(Self { watch: Arc::new(watch), map: Arc::new(map) })
    }
}

impl GuestMemory {
    /// The memory of `regions`, sorted by guest address. There may be none.
    ///
    /// # Errors
    ///
    /// They overlap.
    pub(super) fn new(regions: &[Mapped]) -> Result<Self, FromRangesError> {
        let maps: Vec<_> = regions.iter().map(|region| Arc::clone(&region.map)).collect();
        // What has no regions has a constructor of its own.
        let map =
            if maps.is_empty() { GuestMemoryMmap::new() } else { GuestMemoryMmap::from_arc_regions(maps)? };
        Ok(Self { watches: regions.iter().map(|region| Arc::clone(&region.watch)).collect(), map })
    }

    /// Memory of this process's own.
    ///
    /// # Errors
    ///
    /// It cannot be had.
    pub(super) fn from_ranges(ranges: &[(GuestAddress, usize)]) -> Result<Self, FromRangesError> {
        Ok(Self { watches: Vec::new(), map: GuestMemoryMmap::from_ranges(ranges)? })
    }

    /// Whether all bytes that were looked for so far were there.
    #[inline]
    pub(super) fn is_whole(&self) -> bool {
        rafs::guard::nothing_lost() || self.watches.iter().all(|watch| watch.is_whole())
    }
}

impl Deref for GuestMemory {
    type Target = GuestMemoryMmap<()>;

    fn deref(&self) -> &Self::Target {
        &self.map
    }
}
