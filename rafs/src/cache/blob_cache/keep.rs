//! Putting chunks into the data file, and finding them damaged there.

use super::BlobCache;
use super::view::Bits;
use crate::cache::{CacheError, Description, lease};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long nothing is written after a failure such as a full disk.
const WRITE_PAUSE: Duration = Duration::from_secs(30);

/// A verified chunk to be kept.
#[derive(Clone, Copy, Debug)]
pub struct CachedChunk<'a> {
    /// Its index in the blob.
    pub chunk: u32,
    /// Where it belongs, and what it is.
    pub description: Description,
    /// Its plain bytes.
    pub plain: &'a [u8],
}

impl BlobCache {
    /// Has the map describe chunks like that; says of each whether it does. Not while chunks are taken away.
    pub(super) fn describe(&self, chunks: &[(u32, Description)]) -> Result<Vec<bool>, CacheError> {
        // Nobody writes to a file that has no map.
        let Some(map) = &self.map else { return Ok(vec![true; chunks.len()]) };
        map.describe(chunks)
    }

    /// A claimed or ready chunk is damaged: forget it.
    pub(super) fn reject(&self, chunk: u32) {
        self.unready(chunk);
        self.bad.set(chunk);
        if let Some(map) = &self.map
            && let Err(error) = map.clear(chunk)
        {
            tracing::debug!(%error, "damaged chunk stays in the map; it will be verified again");
        }
    }

    fn paused(&self) -> MutexGuard<'_, Option<Instant>> {
        self.paused_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// See [`CacheView::keep`](super::CacheView::keep), whose bits `bits` are.
    pub(super) fn keep(&self, chunks: &[CachedChunk<'_>], bits: &Bits) -> Result<bool, CacheError> {
        let mut paused = self.paused();
        if !self.writable || paused.is_some_and(|until| Instant::now() < until) {
            return Ok(false);
        }
        *paused = None;
        drop(paused);
        let bytes =
            chunks.iter().map(|c| u64::try_from(c.plain.len()).unwrap_or(u64::MAX).saturating_add(4096));
        let room = self.dir.as_ref().map(|dir| dir.room(bytes.fold(0, u64::saturating_add)));
        if matches!(room, Some(None)) {
            return Ok(false);
        }
        let kept = self.write_and_settle(chunks, bits);
        match &kept {
            Err(CacheError::File { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => {
                // Somebody holds the map for too long; the next chunk may have better luck.
                return Ok(false);
            }
            Err(_) => {
                let now = Instant::now();
                let mut paused = self.paused();
                // Of several threads that failed together one says so.
                if paused.is_some_and(|until| now < until) {
                    return Ok(false);
                }
                *paused = now.checked_add(WRITE_PAUSE);
            }
            Ok(_) => {}
        }
        kept
    }

    fn write_and_settle(&self, chunks: &[CachedChunk<'_>], bits: &Bits) -> Result<bool, CacheError> {
        let disputed = self.write(chunks, bits)?;
        let settled: Vec<_> =
            disputed.iter().filter(|c| self.settle(c.chunk, &c.description, bits)).copied().collect();
        let left = if settled.is_empty() { 0 } else { self.write(&settled, bits)?.len() };
        Ok(settled.len() == disputed.len() && left == 0)
    }

    /// Writes chunks that others agree about; returns the others.
    fn write<'a>(&self, chunks: &[CachedChunk<'a>], bits: &Bits) -> Result<Vec<CachedChunk<'a>>, CacheError> {
        let _nothing_is_taken_away = self.nothing_is_taken_away();
        let descriptions: Vec<_> = chunks.iter().map(|c| (c.chunk, c.description)).collect();
        let agreed = self.describe(&descriptions)?;
        let pick = |wanted| {
            let some = chunks.iter().zip(&agreed).filter(move |(_, agreed)| **agreed == wanted);
            some.map(|(chunk, _)| *chunk).collect::<Vec<_>>()
        };
        let (good, disputed) = (pick(true), pick(false));
        for chunk in &good {
            let fits = chunk.description.end() <= self.len
                && u32::try_from(chunk.plain.len()) == Ok(chunk.description.size());
            let result = if fits {
                self.data.write_all_at(chunk.plain, chunk.description.offset())
            } else {
                Err(io::Error::other("a chunk lies behind the end of its blob, or has another size"))
            };
            result.map_err(|source| CacheError::File {
                path: self.path.clone(),
                action: "write to it",
                source,
            })?;
            self.written.fetch_add(u64::try_from(chunk.plain.len()).unwrap_or(0), Ordering::Relaxed);
        }
        let indexes: Vec<u32> = good.iter().map(|c| c.chunk).collect();
        let mapped = self.map.as_ref().map_or(Ok(()), |map| map.set_live(&indexes));
        for chunk in &good {
            self.bad.clear(chunk.chunk);
            bits.set_ready(chunk.chunk, &chunk.description);
        }
        self.dirty.store(true, Ordering::Release);
        // The data is there and good; a map that cannot be written only costs a fetch after a restart.
        mapped.map(|()| disputed)
    }

    /// Somebody said something else of a chunk. If nobody else uses the file now, that is taken back: true.
    fn settle(&self, chunk: u32, description: &Description, bits: &Bits) -> bool {
        let Some(map) = &self.map else { return false };
        if !self.disagreement_said.swap(true, Ordering::Relaxed) {
            let views = self.views();
            let others =
                views.iter().filter_map(Weak::upgrade).filter(|v| !std::ptr::eq(&raw const **v, bits));
            let mut names: Vec<String> = others.map(|view| view.image.to_string()).collect();
            names.sort_unstable();
            let with = if names.is_empty() {
                "an image that was or is read elsewhere".into()
            } else {
                names.join(", ")
            };
            tracing::warn!(blob = self.blob_id(), chunk, image = &*bits.image, %with,
                "images describe a chunk of their blob differently: one of them is wrong; the later one is served \
                 without cached chunks where they differ");
        }
        let _nothing_is_written = self.nothing_is_written();
        if !self.leased || self.is_shared() || !lease::alone(&self.data).unwrap_or(false) {
            return false;
        }
        let in_the_way = map.in_the_way(chunk, description, 64);
        let taken_back = map.clear_for_good(&in_the_way).and_then(|()| map.forget(&in_the_way));
        if let Err(error) = &taken_back {
            tracing::debug!(%error, "what others said of a chunk stays");
        }
        in_the_way.iter().for_each(|&chunk| self.unready(chunk));
        self.epoch.fetch_add(1, Ordering::SeqCst);
        lease::share_again(&self.data);
        taken_back.is_ok()
    }
}
