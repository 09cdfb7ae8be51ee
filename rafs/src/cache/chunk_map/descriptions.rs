//! What the chunks of a data file are, as those have said who wrote them.
//!
//! Images that name one blob share its data file, and one of them may lie about it. So who writes a chunk, or is going to
//! read it without looking at it again, first enters here where it lies and what it is; from then on nobody writes anything
//! else there, in whatever process, until the entry has been taken out again. The entries of a file never overlap, and lie
//! in the order of their numbers: that is how builders lay chunks out, and it makes both sides of a place two short searches.

use super::ChunkMap;
use crate::cache::CacheError;
use std::io;
use std::os::unix::fs::FileExt;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What an image says of a chunk. Who says the same of it may use the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Description {
    /// Where it starts in the uncompressed address space, bytes.
    offset: U64,
    /// Its plain bytes.
    size: U32,
    /// What kind of thing `what` is; how the bytes are known to be right.
    kind: U32,
    /// Its digest, or who else vouches for it.
    what: [u8; 32],
}

pub(super) const ENTRY: u64 = size_of::<Description>() as u64;
const _: () = assert!(size_of::<Description>() == 48);

impl Description {
    /// A chunk of `size` bytes at `offset` that is `what` in the sense of `kind`; which kinds there are is the caller's
    /// affair.
    #[must_use]
    pub fn new(offset: u64, size: u32, kind: u32, what: [u8; 32]) -> Self {
        Self { offset: U64::new(offset), size: U32::new(size), kind: U32::new(kind), what }
    }

    /// First byte in the uncompressed address space.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset.get()
    }

    /// Plain bytes.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.size.get()
    }

    /// First byte behind it.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset.get().saturating_add(self.size.get().into())
    }
}

/// What the map knows of a chunk that somebody describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// The same.
    Same,
    /// Nothing.
    Unknown,
    /// Something else, of this chunk or of its place.
    Other,
}

impl ChunkMap {
    pub(super) fn taken_at(&self) -> u64 {
        self.durable_at().saturating_add(self.bits_len)
    }

    pub(super) fn entries_at(&self) -> u64 {
        self.taken_at().saturating_add(self.bits_len)
    }

    /// The entry of a chunk, if it has one. An entry that cannot be read is one that says something else.
    #[must_use]
    pub fn description(&self, chunk: u32) -> Option<Description> {
        if !self.bit(self.taken_at(), chunk) {
            return None;
        }
        let mut entry = Description::new_zeroed();
        let at = self.entries_at().saturating_add(u64::from(chunk).saturating_mul(ENTRY));
        let _unread_is_zeros = self.file.read_exact_at(entry.as_mut_bytes(), at);
        Some(entry)
    }

    /// How `description` fits to what the map knows of `chunk`, its neighbours aside.
    #[must_use]
    pub fn agreement(&self, chunk: u32, description: &Description) -> Agreement {
        match self.description(chunk) {
            None => Agreement::Unknown,
            Some(known) if known == *description => Agreement::Same,
            Some(_) => Agreement::Other,
        }
    }

    /// Enters chunks that have no entry, as far as nothing stands in their way. Says of each whether the map describes it
    /// like that now.
    ///
    /// # Errors
    /// The file cannot be locked or written: nothing may be assumed.
    pub fn describe(&self, chunks: &[(u32, Description)]) -> Result<Vec<bool>, CacheError> {
        let known: Vec<Agreement> = chunks.iter().map(|(chunk, d)| self.agreement(*chunk, d)).collect();
        if !known.contains(&Agreement::Unknown) || !self.writable {
            // The neighbours too: a map that was written by hand may have entries that overlap.
            let same = |(known, (chunk, d)): (Agreement, &(u32, Description))| {
                known == Agreement::Same && self.in_the_way(*chunk, d, 1).is_empty()
            };
            return Ok(known.into_iter().zip(chunks).map(same).collect());
        }
        let locked = self.lock();
        if !locked.holds {
            let held = io::Error::from(io::ErrorKind::WouldBlock);
            return Err(self.error("lock it", held));
        }
        let mut result = Vec::with_capacity(chunks.len());
        for (chunk, description) in chunks {
            let mut known = self.agreement(*chunk, description);
            let free = *chunk < self.chunk_count && self.in_the_way(*chunk, description, 1).is_empty();
            if known == Agreement::Unknown && free {
                let at = self.entries_at().saturating_add(u64::from(*chunk).saturating_mul(ENTRY));
                self.file
                    .write_all_at(description.as_bytes(), at)
                    .map_err(|e| self.error("write an entry", e))?;
                self.change(self.taken_at(), &[*chunk], |byte, mask| byte | mask)?;
                known = Agreement::Same;
            }
            result.push(known == Agreement::Same && free);
        }
        drop(locked);
        Ok(result)
    }

    /// The chunks whose entries keep `chunk` from being described so, `most` at most.
    #[must_use]
    pub fn in_the_way(&self, chunk: u32, description: &Description, most: usize) -> Vec<u32> {
        let mut found = Vec::new();
        if self.agreement(chunk, description) == Agreement::Other {
            found.push(chunk);
        }
        let mut before = chunk;
        while found.len() < most
            && let Some((number, entry)) = self.entry_before(before)
            && entry.end() > description.offset()
        {
            found.push(number);
            before = number;
        }
        let mut behind = chunk;
        while found.len() < most
            && let Some((number, entry)) = self.entry_behind(behind)
            && entry.offset() < description.end()
        {
            found.push(number);
            behind = number;
        }
        found
    }

    /// The nearest chunk of a lower number that has an entry.
    #[must_use]
    pub fn entry_before(&self, chunk: u32) -> Option<(u32, Description)> {
        let (mut end, mut most) = (chunk.min(self.chunk_count), FIRST_LOOK);
        while end > 0 {
            let past = end.div_ceil(64);
            let first = past.saturating_sub(most);
            let words = self.words(first, past)?;
            let own = u64::MAX >> ((64 - end % 64) % 64);
            let masks = std::iter::once(own).chain(std::iter::repeat(u64::MAX));
            let found =
                (first..past).rev().zip(words.iter().rev().zip(masks)).find_map(|(at, (word, mask))| {
                    let left = word.get() & mask;
                    (left != 0).then(|| at * 64 + 63 - left.leading_zeros())
                });
            if let Some(number) = found {
                return self.description(number).map(|entry| (number, entry));
            }
            (end, most) = (first * 64, (most * 8).min(LOOK_MAX));
        }
        None
    }

    /// The nearest chunk of a higher number that has an entry.
    #[must_use]
    pub fn entry_behind(&self, chunk: u32) -> Option<(u32, Description)> {
        let (mut next, mut most) = (chunk.checked_add(1)?, FIRST_LOOK);
        while next < self.chunk_count {
            let first = next / 64;
            let past = first.saturating_add(most).min(self.chunk_count.div_ceil(64));
            let words = self.words(first, past)?;
            let own = u64::MAX << (next % 64);
            let masks = std::iter::once(own).chain(std::iter::repeat(u64::MAX));
            let found = (first..past).zip(words.iter().zip(masks)).find_map(|(at, (word, mask))| {
                let left = word.get() & mask;
                (left != 0).then(|| at * 64 + left.trailing_zeros())
            });
            if let Some(number) = found {
                // Bits behind the last chunk are nobody's.
                let number = Some(number).filter(|n| *n < self.chunk_count)?;
                return self.description(number).map(|entry| (number, entry));
            }
            (next, most) = (past.saturating_mul(64), (most * 8).min(LOOK_MAX));
        }
        None
    }

    /// Takes entries out. Only for who uses the file alone.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn forget(&self, chunks: &[u32]) -> Result<(), CacheError> {
        let _locked = self.lock();
        self.change(self.taken_at(), chunks, |byte, mask| byte & !mask)
    }

    /// Takes out the entries of chunks that are not there: somebody was going to write them and did not, or died before
    /// they were durable. Only for who uses the file alone, under the lock.
    pub(super) fn forget_absent(&self) -> io::Result<()> {
        let len = usize::try_from(self.bits_len).map_err(io::Error::other)?;
        let (mut live, mut taken) = (vec![0; len], vec![0; len]);
        self.file.read_exact_at(&mut live, super::HEADER_SPACE)?;
        self.file.read_exact_at(&mut taken, self.taken_at())?;
        let before = taken.clone();
        taken.iter_mut().zip(&live).for_each(|(taken, live)| *taken &= live);
        if taken == before { Ok(()) } else { self.file.write_all_at(&taken, self.taken_at()) }
    }

    /// Words `first` to `past` of the bitmap of entries.
    fn words(&self, first: u32, past: u32) -> Option<Vec<U64>> {
        let mut words = vec![U64::ZERO; usize::try_from(past.checked_sub(first)?).ok()?];
        let at = u64::from(first).checked_mul(8)?.checked_add(self.taken_at())?;
        self.file.read_exact_at(words.as_mut_bytes(), at).ok().map(|()| words)
    }
}

/// Words of the bitmap that a search for a neighbour reads at first: mostly one is near. Then eight times as many, ...
const FIRST_LOOK: u32 = 64;
/// ... up to so many: those of half a million chunks.
const LOOK_MAX: u32 = 8192;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::CacheDir;

    fn map(count: u32) -> (tempfile::TempDir, ChunkMap) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = CacheDir::open(tmp.path()).unwrap();
        let map = ChunkMap::open(&dir, "blob", count, true, true).unwrap().0;
        (tmp, map)
    }

    fn chunk(offset: u64, size: u32) -> Description {
        Description::new(offset, size, 1, [offset.to_le_bytes()[0]; 32])
    }

    #[test]
    fn entries_never_overlap_and_keep_their_order() {
        let (_tmp, map) = map(200_000);
        let enter = |n, offset, size| map.describe(&[(n, chunk(offset, size))]).unwrap()[0];
        assert!(enter(100, 1000, 50));
        assert!(enter(100, 1000, 50), "once more");
        assert!(!enter(100, 1000, 49) && !enter(100, 1001, 50), "said to be something else");
        assert!(
            !enter(150_000, 999, 2) && !enter(150_000, 1049, 2) && !enter(5, 1049, 1) && !enter(5, 990, 11)
        );
        assert!(!enter(101, 10, 5) && !enter(99, 2000, 5), "out of order");
        assert!(enter(150_000, 1050, 5) && enter(0, 990, 10));
        assert!(!enter(200_000, 5000, 1), "no such chunk");
        assert_eq!(map.in_the_way(101, &chunk(900, 500), 9), [100, 0, 150_000]);
        assert_eq!(map.in_the_way(100, &chunk(995, 500), 9), [100, 0, 150_000]);
        assert_eq!(map.entry_before(100).unwrap().0, 0);
        assert_eq!(map.entry_behind(100).unwrap(), (150_000, chunk(1050, 5)));
        assert!(map.entry_before(0).is_none() && map.entry_behind(150_000).is_none());
        map.forget(&[100]).unwrap();
        assert_eq!(map.agreement(100, &chunk(1000, 50)), Agreement::Unknown);
        assert!(enter(70, 1000, 49));
    }

    #[test]
    fn neighbours_are_found_over_any_distance() {
        const COUNT: u32 = 1_300_001;
        let (_tmp, map) = map(COUNT);
        // Around the borders of words, of what is read at a time, and of the map.
        let mut taken = vec![0, 1, 63, 64, 130, 4095, 4096, 36_864, 36_900, 561_151, 561_153, COUNT - 1];
        for _ in 0..3 {
            for &n in &taken {
                let at = u64::from(n) * 10;
                assert_eq!(map.describe(&[(n, chunk(at, 10))]).unwrap(), [true], "{n}");
            }
            let places = taken.iter().flat_map(|n| [n.saturating_sub(1), *n, n + 1, n + 2]);
            for n in places.chain([2000, 300_000, 1_000_000, COUNT, COUNT + 70, u32::MAX]) {
                let before = taken.iter().copied().filter(|t| *t < n).max();
                let behind = taken.iter().copied().filter(|t| *t > n).min();
                assert_eq!(map.entry_before(n).map(|(n, _)| n), before, "{n}");
                assert_eq!(map.entry_behind(n).map(|(n, _)| n), behind, "{n}");
            }
            // Fewer, further apart.
            let (gone, left) = taken.iter().partition::<Vec<_>, _>(|n| **n % 3 == 1);
            map.forget(&gone).unwrap();
            taken = left;
        }
    }

    #[test]
    fn bits_behind_the_last_chunk_are_no_entries() {
        let (_tmp, map) = map(70);
        map.file.write_all_at(&[0xff], map.taken_at() + 9).unwrap();
        assert_eq!(map.entry_behind(3).map(|(n, _)| n), None);
    }

    #[test]
    fn only_what_is_there_keeps_its_entry_when_nobody_uses_the_file() {
        let (tmp, map) = map(100);
        for n in 0..4 {
            map.describe(&[(n, chunk(u64::from(n) * 10, 10))]).unwrap();
        }
        map.set_live(&[1, 3]).unwrap();
        let dir = CacheDir::open(tmp.path()).unwrap();
        let entries = |alone| {
            let map = ChunkMap::open(&dir, "blob", 100, alone, true).unwrap().0;
            (0..100).filter(|&n| map.description(n).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(entries(false), [0, 1, 2, 3]);
        assert_eq!(entries(true), [1, 3]);
    }

    #[test]
    fn without_the_lock_nothing_is_entered() {
        let (tmp, map) = map(10);
        let other = std::fs::File::open(tmp.path().join("blob.chunk_map")).unwrap();
        rustix::fs::flock(&other, rustix::fs::FlockOperation::LockExclusive).unwrap();
        map.describe(&[(1, chunk(0, 1))]).unwrap_err();
        assert_eq!(map.agreement(1, &chunk(0, 1)), Agreement::Unknown);
    }
}
