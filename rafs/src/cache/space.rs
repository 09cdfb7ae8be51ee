//! The limit on the bytes that a cache directory holds.
//!
//! Before a chunk is written, room is made for it: cache files of images that nobody uses go first, then chunks that have
//! not been read for a while. Where no room can be made (others use the files too, or everything is larger than the limit)
//! nothing is written. Blocks are counted as the file system counts them, so that the sum is right whoever wrote; and from
//! the count until the chunk is written no other process that has a limit may write, so that it stays right.

use super::{BlobCache, CacheDir, CacheError, lease};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime};

/// How long a look at files that nobody uses is good for.
const IDLE_PERIOD: Duration = Duration::from_secs(10);
/// Bytes that writing a chunk may take beyond its size: blocks at both ends, and the file system's own.
const SLACK: u64 = 8192;
/// How often, and how long apart, the right to write is tried while another process has it. Who does not get it serves the
/// chunk without keeping it: nobody waits for a process that may be stopped.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(1);

/// What a directory holds, and how much it may.
#[derive(Debug, Default)]
pub(super) struct Space {
    state: Mutex<State>,
    /// There is a limit: never unset.
    limited: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// 0: none.
    limit: u64,
    open: Vec<Weak<BlobCache>>,
    /// Bytes of files that are not open here, and when that was counted.
    idle: Option<(u64, Instant)>,
    /// Bytes that are being written.
    reserved: u64,
    /// Pieces of writing that have room. As long as there is one, other processes write nothing.
    writers: u32,
}

/// Room for bytes that are being written.
#[derive(Debug)]
pub(super) struct Room<'a> {
    /// `None`: there is no limit, and nothing is counted.
    dir: Option<&'a CacheDir>,
    bytes: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let Some(dir) = self.dir else { return };
        let mut state = dir.space.state();
        state.reserved = state.reserved.saturating_sub(self.bytes);
        state.writers = state.writers.saturating_sub(1);
        if state.writers == 0 {
            dir.let_others_write();
        }
    }
}

/// A blob in a cache directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedBlob {
    /// Blob id.
    pub id: String,
    /// Bytes its data takes on the disk.
    pub bytes: u64,
    /// Bytes of its whole plain data.
    pub size: u64,
    /// When data was written to it last.
    pub modified: SystemTime,
    /// A daemon uses it.
    pub in_use: bool,
}

impl Space {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes that a file takes on the disk.
pub(super) fn blocks(file: &File) -> u64 {
    file.metadata().map_or(0, |meta| meta.blocks().saturating_mul(512))
}

impl CacheDir {
    /// Sets the limit of bytes of data; 0: none. Of several limits the smallest counts.
    pub fn limit_to(&self, bytes: u64) {
        let mut state = self.space.state();
        if bytes > 0 && (state.limit == 0 || bytes < state.limit) {
            state.limit = bytes;
            self.space.limited.store(true, Ordering::SeqCst);
        }
    }

    /// Whether there is a limit, so that chunks may be taken away.
    pub(super) fn is_limited(&self) -> bool {
        self.space.limited.load(Ordering::SeqCst)
    }

    /// Has `cache` counted, and chunks of it taken away when room is needed.
    pub fn register(&self, cache: &Arc<BlobCache>) {
        let mut state = self.space.state();
        state.open.retain(|cache| cache.strong_count() > 0);
        state.open.push(Arc::downgrade(cache));
        state.idle = None;
    }

    /// Room for `bytes` in one piece of writing. `None`: there is none, and none can be made.
    pub(super) fn room(&self, bytes: u64) -> Option<Room<'_>> {
        let mut state = self.space.state();
        if state.limit == 0 {
            return Some(Room { dir: None, bytes: 0 });
        }
        let bytes = bytes.saturating_add(SLACK);
        let limit = state.limit;
        let wanted = limit.checked_sub(bytes)?;
        if state.writers == 0 && !self.keep_others_from_writing() {
            return None;
        }
        state.writers = state.writers.saturating_add(1);
        // Dropped when there turns out to be none; `state` is let go before.
        let mut room = Room { dir: Some(self), bytes: 0 };
        let open: Vec<Arc<BlobCache>> = state.open.iter().filter_map(Weak::upgrade).collect();
        let in_use =
            |state: &State| open.iter().map(|c| c.bytes()).sum::<u64>().saturating_add(state.reserved);
        if state.idle.is_none_or(|(_, at)| at.elapsed() > IDLE_PERIOD) {
            let idle = self.idle_blobs(&open).iter().map(|blob| blob.bytes).sum();
            state.idle = Some((idle, Instant::now()));
        }
        let used = |state: &State| in_use(state).saturating_add(state.idle.map_or(0, |(bytes, _)| bytes));
        if used(&state) > wanted {
            // Some more, so that not every chunk has to do this.
            let target = wanted.saturating_sub(limit / 8);
            if state.idle.is_some_and(|(bytes, _)| bytes > 0) {
                self.drop_idle(&open, used(&state).saturating_sub(target));
                let idle = self.idle_blobs(&open).iter().map(|blob| blob.bytes).sum();
                state.idle = Some((idle, Instant::now()));
            }
            for round in 0..2 {
                for cache in &open {
                    let excess = used(&state).saturating_sub(target);
                    if excess > 0 {
                        cache.evict(excess, round > 0);
                    }
                }
            }
        }
        if used(&state) > wanted {
            drop(state);
            return None;
        }
        state.reserved = state.reserved.saturating_add(bytes);
        room.bytes = bytes;
        Some(room)
    }

    /// Brings what is over the limit back to it, as far as that can be done now.
    pub(super) fn keep_to_limit(&self) {
        drop(self.room(0));
    }

    fn keep_others_from_writing(&self) -> bool {
        for turn in 0..TRIES {
            if turn > 0 {
                std::thread::sleep(PAUSE);
            }
            match rustix::fs::flock(self.fd(), FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return true,
                Err(Errno::WOULDBLOCK | Errno::INTR) => {}
                // A file system without such locks: then the limit is this process's own.
                Err(_) => return true,
            }
        }
        false
    }

    fn let_others_write(&self) {
        if let Err(error) = rustix::fs::flock(self.fd(), FlockOperation::Unlock) {
            tracing::debug!(%error, "the cache directory stays locked until the next chunk is written");
        }
    }

    /// Blobs that are not among `open`.
    fn idle_blobs(&self, open: &[Arc<BlobCache>]) -> Vec<CachedBlob> {
        let open: HashSet<&str> = open.iter().filter_map(|cache| cache.blob_id()).collect();
        self.list_without_use().into_iter().filter(|blob| !open.contains(blob.id.as_str())).collect()
    }

    /// Drops blobs that nobody uses, the oldest first, until `excess` bytes are free.
    fn drop_idle(&self, open: &[Arc<BlobCache>], excess: u64) {
        let mut idle = self.idle_blobs(open);
        idle.sort_by_key(|blob| blob.modified);
        let mut freed = 0u64;
        for blob in idle {
            if freed >= excess {
                return;
            }
            match self.drop_blob(&blob.id) {
                Ok(()) => freed = freed.saturating_add(blob.bytes),
                Err(error) => tracing::debug!(%error, "stays"),
            }
        }
    }

    /// The blobs that have a data file and a map of ours here, by id.
    #[must_use]
    pub fn list(&self) -> Vec<CachedBlob> {
        let mut blobs = self.list_without_use();
        for blob in &mut blobs {
            let file = self.open_file(&format!("{}.blob.data", blob.id), false);
            blob.in_use = file.is_ok_and(|(file, _)| !lease::alone(&file).unwrap_or(true));
        }
        blobs
    }

    fn list_without_use(&self) -> Vec<CachedBlob> {
        let mut blobs = Vec::new();
        for name in self.names() {
            let Some(id) = name.strip_suffix(".chunk_map").filter(|id| !id.ends_with(".blob.data")) else {
                continue;
            };
            let Ok((file, _)) = self.open_file(&format!("{id}.blob.data"), false) else { continue };
            let Ok(meta) = file.metadata() else { continue };
            blobs.push(CachedBlob {
                id: id.to_owned(),
                bytes: meta.blocks().saturating_mul(512),
                size: meta.len(),
                modified: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                in_use: false,
            });
        }
        blobs.sort_by(|a, b| a.id.cmp(&b.id));
        blobs
    }

    /// Removes a blob's cache files.
    ///
    /// # Errors
    /// [`CacheError::InUse`] when a daemon has it open; others when there is no such blob or it cannot be removed.
    pub fn drop_blob(&self, id: &str) -> Result<(), CacheError> {
        if !crate::store::is_safe_object_name(id) {
            return Err(CacheError::BadName(id.into()));
        }
        let data = format!("{id}.blob.data");
        let (file, _) = self.open_file(&data, false)?;
        // Without locks nobody can tell: then it is the operator's word against nobody's.
        if !lease::alone(&file).unwrap_or(true) {
            return Err(CacheError::InUse { path: self.path_of(&data) });
        }
        // The map first: data without a map is verified like anything else, a map without data promises too much.
        for name in [format!("{id}.chunk_map"), data, format!("{id}.blob.meta")] {
            self.remove(&name)?;
        }
        Ok(())
    }
}
