//! The map file `ID.chunk_map`: which chunks of a blob are in its data file.
//!
//! ```text
//! 0     header, 4096 bytes: magic, version, chunk count, blob id digest, boot id, CRC-32C of all that
//! 4096  `live`: one bit a chunk, low bits first, padded to 4096 bytes
//! ...   `durable`: the same
//! ...   which chunks have an entry: the same
//! ...   entries, 48 bytes a chunk: where it lies and what it is (`descriptions`)
//! ```
//!
//! Several processes may use one map. Changes are made under `flock`; a reader needs no lock, since each bit of the first
//! two bitmaps is only a claim that gets verified: one that is lost to a race costs a fetch, never a wrong byte. Entries
//! are only ever made under the lock.

mod descriptions;

pub use descriptions::{Agreement, Description};

use super::{CacheDir, CacheError};
use crate::codec::{self, Digester};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// "RAFSMAP1", little-endian words of ASCII.
const MAGIC: [u8; 8] = *b"RAFSMAP1";
/// 1 had no entries.
const VERSION: u32 = 2;
/// Bytes before the first bitmap, and alignment of bitmaps.
const HEADER_SPACE: u64 = 4096;
/// How often, and how long apart, a lock is tried. Holders keep it for microseconds; a stopped one must not stop us.
const LOCK_TRIES: u32 = 50;
const LOCK_PAUSE: Duration = Duration::from_micros(200);

/// Header at the start of the file.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    /// [`MAGIC`].
    magic: [u8; 8],
    /// [`VERSION`].
    version: U32,
    /// Chunks of the blob.
    chunk_count: U32,

    /// Boot in which `live` was written.
    boot_id: [u8; 16],

    /// sha256 of the blob id.
    blob: [u8; 32],

    /// CRC-32C of the fields before.
    crc32c: U32,
}

const _: () = assert!(size_of::<Header>() == 68);

/// What a map looked like when it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapOrigin {
    /// Written in this boot: `live` counts.
    ThisBoot,
    /// Written in an earlier boot: `live` has been set back to `durable`.
    EarlierBoot,
    /// Not there, or not usable: made anew, all zeros.
    New,
}

/// An open map file.
#[derive(Debug)]
pub struct ChunkMap {
    file: File,
    path: String,
    writable: bool,
    bits_len: u64,
    chunk_count: u32,
    /// Keeps the threads of this process apart: `flock` only keeps open files apart.
    threads: Mutex<()>,
    /// Somebody kept the lock for too long the last time: do not wait so long again.
    stuck: AtomicBool,
}

/// Releases a lock when dropped.
struct Locked<'a> {
    /// What is locked; `None` when the lock between processes could not be had, or there are none.
    file: Option<&'a File>,
    /// No other process changes the map now.
    holds: bool,
    _threads: MutexGuard<'a, ()>,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if let Some(file) = self.file {
            let _ = rustix::fs::flock(file, FlockOperation::Unlock);
        }
    }
}

impl ChunkMap {
    /// Opens the map of a blob, and makes it when it is not there or does not belong to this blob. A map that can
    /// only be read is used as far as it is good. `alone`: nobody else uses the data file now; only then a map that
    /// says something else about the blob is made anew. `no_data`: the data file was empty, so that there need be no map.
    ///
    /// # Errors
    /// [`CacheError::Conflict`] when others use another map; it cannot be opened, or cannot be written where it must be.
    pub fn open(
        dir: &CacheDir,
        blob_id: &str,
        chunk_count: u32,
        alone: bool,
        no_data: bool,
    ) -> Result<(Self, MapOrigin), CacheError> {
        let name = format!("{blob_id}.chunk_map");
        let (file, writable) = dir.open_file(&name, true)?;
        Self::over(file, writable, dir.path_of(&name), dir, blob_id, chunk_count, (alone, no_data))
    }

    /// A map that nobody else sees and that ends with this process.
    ///
    /// # Errors
    /// The directory does not take it.
    pub fn unnamed(dir: &CacheDir, chunk_count: u32) -> Result<Self, CacheError> {
        let (file, path) = dir.unnamed_file()?;
        Self::over(file, true, path, dir, "", chunk_count, (true, true)).map(|(map, _)| map)
    }

    fn over(
        file: File,
        writable: bool,
        path: String,
        dir: &CacheDir,
        blob_id: &str,
        chunk_count: u32,
        (alone, no_data): (bool, bool),
    ) -> Result<(Self, MapOrigin), CacheError> {
        let bits_len = u64::from(chunk_count).div_ceil(8).next_multiple_of(HEADER_SPACE);
        let map = Self {
            file,
            path,
            writable,
            bits_len,
            chunk_count,
            threads: Mutex::new(()),
            stuck: AtomicBool::new(false),
        };
        let mut header = Header {
            magic: MAGIC,
            version: U32::new(VERSION),
            chunk_count: U32::new(chunk_count),
            boot_id: dir.boot_id(),
            blob: codec::digest(Digester::Sha256, blob_id.as_bytes()),
            crc32c: U32::new(0),
        };
        header.crc32c.set(header_crc(&header));
        let locked = map.lock();
        let origin =
            map.take_over(&header, (alone, no_data)).map_err(|source| map.error("set it up", source))?;
        if alone && map.writable {
            map.forget_absent().map_err(|source| map.error("clear old entries in it", source))?;
        }
        drop(locked);
        let conflict = || CacheError::Conflict { blob: blob_id.into(), with: "a daemon that uses it".into() };
        origin.map(|origin| (map, origin)).ok_or_else(conflict)
    }

    fn error(&self, action: &'static str, source: io::Error) -> CacheError {
        CacheError::File { path: self.path.clone(), action, source }
    }

    /// Brings the file into the state that `wanted` describes; `None` when others need it as it is.
    fn take_over(&self, wanted: &Header, (alone, no_data): (bool, bool)) -> io::Result<Option<MapOrigin>> {
        let mut bytes = [0; size_of::<Header>()];
        let entries_len = u64::from(self.chunk_count).saturating_mul(descriptions::ENTRY);
        let full_len = self.entries_at().saturating_add(entries_len);
        let len = self.file.metadata()?.len();
        let found = if len == full_len && self.file.read_exact_at(&mut bytes, 0).is_ok() {
            Header::read_from_bytes(&bytes).ok()
        } else {
            None
        };
        let found = found.filter(|h| {
            h.magic == wanted.magic
                && h.version == wanted.version
                && h.chunk_count == wanted.chunk_count
                && h.blob == wanted.blob
                && h.crc32c.get() == header_crc(h)
        });
        // A host that does not tell its boots apart may have rebooted each time.
        let same_boot = |h: &Header| h.boot_id == wanted.boot_id && h.boot_id != [0; 16];
        let origin = match found {
            Some(h) if same_boot(&h) => return Ok(Some(MapOrigin::ThisBoot)),
            Some(_) => MapOrigin::EarlierBoot,
            // Who uses the data has this map, or had one that has been put away.
            None if !alone && (len > 0 || !no_data) => return Ok(None),
            None => MapOrigin::New,
        };
        if !self.writable {
            return Err(io::Error::other("its bits are from another boot, and it cannot be written"));
        }
        if origin == MapOrigin::EarlierBoot {
            let mut durable = vec![0; usize::try_from(self.bits_len).map_err(io::Error::other)?];
            self.file.read_exact_at(&mut durable, self.durable_at())?;
            self.file.write_all_at(&durable, HEADER_SPACE)?;
        } else {
            self.file.set_len(0)?;
            self.file.set_len(full_len)?;
        }
        self.file.write_all_at(wanted.as_bytes(), 0)?;
        Ok(Some(origin))
    }

    fn durable_at(&self) -> u64 {
        HEADER_SPACE.saturating_add(self.bits_len)
    }

    fn lock(&self) -> Locked<'_> {
        let _threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let tries = if self.stuck.load(Ordering::Relaxed) { 1 } else { LOCK_TRIES };
        for _ in 0..tries {
            match rustix::fs::flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    self.stuck.store(false, Ordering::Relaxed);
                    return Locked { file: Some(&self.file), holds: true, _threads };
                }
                Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(LOCK_PAUSE),
                // A file system without such locks: then no other process can be told apart from this one.
                Err(_) => return Locked { file: None, holds: true, _threads },
            }
        }
        self.stuck.store(true, Ordering::Relaxed);
        Locked { file: None, holds: false, _threads }
    }

    /// Whether the map can be written.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// Whether `live` claims a chunk. Reads the file: another process may have set it.
    #[must_use]
    pub fn is_live(&self, chunk: u32) -> bool {
        self.bit(HEADER_SPACE, chunk)
    }

    /// One bit of the bitmap at `region`.
    fn bit(&self, region: u64, chunk: u32) -> bool {
        let mut byte = [0];
        let at = region.saturating_add(u64::from(chunk / 8));
        let read = chunk < self.chunk_count && self.file.read_exact_at(&mut byte, at).is_ok();
        read && byte[0] >> (chunk % 8) & 1 == 1
    }

    /// Sets `live` for chunks whose data has been written.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn set_live(&self, chunks: &[u32]) -> Result<(), CacheError> {
        let _locked = self.lock();
        self.change(HEADER_SPACE, chunks, |byte, mask| byte | mask)
    }

    /// Clears `live` and `durable` of a chunk that turned out to be damaged.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn clear(&self, chunk: u32) -> Result<(), CacheError> {
        self.clear_all(&[chunk])
    }

    fn clear_all(&self, chunks: &[u32]) -> Result<(), CacheError> {
        let _locked = self.lock();
        self.change(self.durable_at(), chunks, |byte, mask| byte & !mask)?;
        self.change(HEADER_SPACE, chunks, |byte, mask| byte & !mask)
    }

    /// Clears `live` and `durable` of chunks whose data is about to be taken away, on the disk too: a map never claims
    /// what a crash may have left as zeros.
    ///
    /// # Errors
    /// The file cannot be written or synced; the data must then stay.
    pub fn clear_for_good(&self, chunks: &[u32]) -> Result<(), CacheError> {
        if !self.writable {
            return Err(self.error("write its bits", io::ErrorKind::PermissionDenied.into()));
        }
        self.clear_all(chunks)?;
        self.file.sync_data().map_err(|e| self.error("sync it", e))
    }

    /// The `live` bitmap as it is in the file now.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn live_bits(&self) -> Result<Vec<u8>, CacheError> {
        let mut live = vec![0; usize::try_from(self.bits_len).unwrap_or(0)];
        self.file.read_exact_at(&mut live, HEADER_SPACE).map_err(|e| self.error("read its bits", e))?;
        Ok(live)
    }

    /// Claims chunks in bulk: `bits` is a bitmap as in the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn seed(&self, bits: &[u8]) -> Result<(), CacheError> {
        let len = u64::try_from(bits.len()).unwrap_or(u64::MAX).min(self.bits_len);
        let bits = bits.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
        let _locked = self.lock();
        self.file.write_all_at(bits, HEADER_SPACE).map_err(|e| self.error("write its bits", e))
    }

    /// Changes bits, under the lock.
    fn change(&self, region: u64, chunks: &[u32], f: impl Fn(u8, u8) -> u8) -> Result<(), CacheError> {
        let (Some(&first), Some(&last)) = (chunks.iter().min(), chunks.iter().max()) else { return Ok(()) };
        if !self.writable || last >= self.chunk_count {
            return Ok(());
        }
        let (start, end) = (first / 8, last / 8);
        let mut bytes = vec![0; (end - start) as usize + 1];
        let at = region.saturating_add(start.into());
        self.file.read_exact_at(&mut bytes, at).map_err(|e| self.error("read its bits", e))?;
        for chunk in chunks {
            if let Some(byte) = bytes.get_mut((chunk / 8 - start) as usize) {
                *byte = f(*byte, 1 << (chunk % 8));
            }
        }
        self.file.write_all_at(&bytes, at).map_err(|e| self.error("write its bits", e))
    }

    /// The durable step: what is `live` now is `durable` once `data` is on the disk.
    ///
    /// # Errors
    /// A file cannot be read, written or synced; `durable` then claims no more than before.
    pub fn make_durable(&self, data: &File) -> Result<(), CacheError> {
        if !self.writable {
            return Ok(());
        }
        let len = usize::try_from(self.bits_len).unwrap_or(0);
        let (mut live, mut durable) = (vec![0; len], vec![0; len]);
        self.file.read_exact_at(&mut live, HEADER_SPACE).map_err(|e| self.error("read its bits", e))?;
        data.sync_data().map_err(|e| self.error("sync the data of", e))?;
        {
            let _locked = self.lock();
            self.file
                .read_exact_at(&mut durable, self.durable_at())
                .map_err(|e| self.error("read its bits", e))?;
            for (d, l) in durable.iter_mut().zip(&live) {
                *d |= l;
            }
            self.file
                .write_all_at(&durable, self.durable_at())
                .map_err(|e| self.error("write its bits", e))?;
        }
        self.file.sync_data().map_err(|e| self.error("sync it", e))
    }
}

fn header_crc(header: &Header) -> u32 {
    let bytes = header.as_bytes();
    codec::crc32c(bytes.get(..bytes.len().saturating_sub(4)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dir() -> (tempfile::TempDir, CacheDir) {
        let tmp = tempfile::tempdir().unwrap();
        let dir = CacheDir::open(tmp.path()).unwrap();
        (tmp, dir)
    }

    fn bits(map: &ChunkMap) -> Vec<u32> {
        (0..map.chunk_count).filter(|&i| map.is_live(i)).collect()
    }

    #[test]
    fn live_survives_a_reopen_and_is_shared() {
        let (_tmp, dir) = dir();
        let (map, origin) = ChunkMap::open(&dir, "blob", 100_000, true, true).unwrap();
        assert_eq!(origin, MapOrigin::New);
        map.set_live(&[99_999, 5, 6, 70]).unwrap();
        let (other, origin) = ChunkMap::open(&dir, "blob", 100_000, true, true).unwrap();
        assert_eq!(origin, MapOrigin::ThisBoot);
        assert_eq!(bits(&other), [5, 6, 70, 99_999]);
        other.clear(6).unwrap();
        assert!(!map.is_live(6));
        assert!(!map.is_live(100_000) && !map.is_live(u32::MAX));
    }

    #[test]
    fn another_boot_starts_from_durable() {
        let (tmp, dir) = dir();
        let data = File::create(tmp.path().join("data")).unwrap();
        let (map, _) = ChunkMap::open(&dir, "blob", 50, true, true).unwrap();
        map.set_live(&[1, 2]).unwrap();
        map.make_durable(&data).unwrap();
        map.set_live(&[3]).unwrap();
        let mut header = [0; size_of::<Header>()];
        map.file.read_exact_at(&mut header, 0).unwrap();
        let mut header = Header::read_from_bytes(&header).unwrap();
        header.boot_id[0] ^= 1;
        header.crc32c.set(header_crc(&header));
        map.file.write_all_at(header.as_bytes(), 0).unwrap();
        let (map, origin) = ChunkMap::open(&dir, "blob", 50, true, true).unwrap();
        assert_eq!(origin, MapOrigin::EarlierBoot);
        assert_eq!(bits(&map), [1, 2]);
    }

    #[test]
    fn what_is_not_ours_is_made_anew() {
        let (tmp, dir) = dir();
        let path = tmp.path().join("blob.chunk_map");
        let (map, _) = ChunkMap::open(&dir, "blob", 50, true, true).unwrap();
        map.set_live(&[1]).unwrap();
        let good = std::fs::read(&path).unwrap();
        let flipped: Vec<Vec<u8>> = (0..size_of::<Header>())
            .map(|i| {
                let mut bad = good.clone();
                bad[i] ^= 0x10;
                bad
            })
            .collect();
        for bad in flipped.iter().map(Vec::as_slice).chain([&good[..4096], &good[..10], b""]) {
            std::fs::write(&path, bad).unwrap();
            let (map, origin) = ChunkMap::open(&dir, "blob", 50, true, true).unwrap();
            assert_eq!(origin, MapOrigin::New);
            assert_eq!(bits(&map), [0u32; 0]);
        }
        std::fs::write(&path, &good).unwrap();
        let others_need_it = ChunkMap::open(&dir, "blob", 51, false, true);
        assert!(matches!(others_need_it, Err(CacheError::Conflict { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), good);
        assert_eq!(ChunkMap::open(&dir, "blob", 51, true, true).unwrap().1, MapOrigin::New);
    }

    #[test]
    fn threads_and_open_files_lose_no_bits() {
        let (_tmp, dir) = dir();
        let maps = [0, 1].map(|_| ChunkMap::open(&dir, "blob", 64, false, true).unwrap().0);
        for _ in 0..50 {
            std::thread::scope(|scope| {
                for chunk in 0..8u32 {
                    let map = &maps[chunk as usize % 2];
                    scope.spawn(move || map.set_live(&[chunk, 63 - chunk]).unwrap());
                }
            });
            assert_eq!(bits(&maps[0]).len(), 16);
            (0..64).for_each(|chunk| maps[1].clear(chunk).unwrap());
        }
    }

    #[test]
    fn a_held_lock_does_not_stop_us() {
        let (tmp, dir) = dir();
        let (map, _) = ChunkMap::open(&dir, "blob", 50, true, true).unwrap();
        let other = File::open(tmp.path().join("blob.chunk_map")).unwrap();
        rustix::fs::flock(&other, FlockOperation::LockExclusive).unwrap();
        map.set_live(&[7]).unwrap();
        assert!(map.is_live(7));
    }
}
