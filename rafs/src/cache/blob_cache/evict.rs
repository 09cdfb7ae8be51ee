//! Taking cold chunks away, to keep to a limit.

use super::BlobCache;
use super::view::Bits;
use crate::cache::{CacheError, ChunkMap, lease};
use rustix::fs::FallocateFlags as Flags;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

/// What holes consist of: less is only overwritten with zeros.
const BLOCK: u64 = 4096;

impl BlobCache {
    /// Takes chunks away until `wanted` bytes are free, if nobody else has the file open. Those that were read since the
    /// last time lose their mark; with `marked` they go too.
    pub(in crate::cache) fn evict(&self, wanted: u64, marked: bool) {
        if !self.leased {
            return;
        }
        let _nothing_is_written = self.nothing_is_written();
        if !lease::alone(&self.data).unwrap_or(false) {
            return;
        }
        match self.evict_alone(wanted, marked) {
            Ok(freed) => drop(self.evicted.fetch_add(freed, Ordering::Relaxed)),
            Err(error) => tracing::warn!(%error, "cold chunks stay"),
        }
        lease::share_again(&self.data);
    }

    fn evict_alone(&self, wanted: u64, marked: bool) -> Result<u64, CacheError> {
        let Some(map) = &self.map else { return Ok(0) };
        let before = self.bytes();
        if marked && self.unknown_bytes.swap(false, Ordering::Relaxed) {
            self.free_unknown(map)?;
        }
        let mut freed = before.saturating_sub(self.bytes());
        let victims = self.pick(map, wanted.saturating_sub(freed), marked)?;
        if victims.is_empty() {
            return Ok(freed);
        }
        map.clear_for_good(&victims)?;
        for &chunk in &victims {
            self.unready(chunk);
        }
        // From here on nobody begins to read them, and who has begun notices that this has changed.
        self.epoch.fetch_add(1, Ordering::SeqCst);
        let places: Vec<_> = victims.iter().filter_map(|&c| Some((c, map.description(c)?))).collect();
        map.forget(&victims)?;
        for (chunk, description) in places {
            // Blocks at both ends go as well, but never a byte of a neighbour.
            let before = map.entry_before(chunk).map_or(0, |(_, before)| before.end());
            let behind = map.entry_behind(chunk).map_or(u64::MAX, |(_, behind)| behind.offset());
            let start = (description.offset() / BLOCK * BLOCK).max(before);
            let end = description.end().checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX).min(behind);
            self.punch(start, end)?;
            freed = freed.saturating_add(end.min(self.len).saturating_sub(start));
        }
        Ok(freed)
    }

    /// Chunks to take away, `wanted` bytes of them.
    fn pick(&self, map: &ChunkMap, wanted: u64, marked: bool) -> Result<Vec<u32>, CacheError> {
        let live = map.live_bits()?;
        let views: Vec<Arc<Bits>> = self.views().iter().filter_map(Weak::upgrade).collect();
        let is_live = |chunk: u32| {
            live.get((chunk / 8) as usize).is_some_and(|byte| byte >> (chunk % 8) & 1 == 1)
                || views.iter().any(|view| view.ready.get(chunk))
        };
        let (mut victims, mut found) = (Vec::new(), 0u64);
        let first = self.hand.load(Ordering::Relaxed).min(self.chunk_count);
        for chunk in (first..self.chunk_count).chain(0..first) {
            if found >= wanted {
                break;
            }
            self.hand.store(chunk.saturating_add(1), Ordering::Relaxed);
            let live = is_live(chunk);
            if !live && !marked {
                continue;
            }
            let mut hot = false;
            for view in &views {
                hot |= view.hot.get(chunk);
                view.hot.clear(chunk);
            }
            if hot && !marked {
                continue;
            }
            if let Some(description) = map.description(chunk)
                // Written, but a crash or a race came before the map: nobody else would ever find it.
                && (live || self.has_data_at(description.offset()))
            {
                victims.push(chunk);
                found = found.saturating_add(description.size().into());
            }
        }
        Ok(victims)
    }

    /// Frees all bytes that belong to no chunk the map describes: what other programs left here, and what was being
    /// written when a process died.
    fn free_unknown(&self, map: &ChunkMap) -> Result<(), CacheError> {
        let live = map.live_bits()?;
        let is_live = |chunk: &u32| live.get((chunk / 8) as usize).is_some_and(|b| b >> (chunk % 8) & 1 == 1);
        let undescribed: Vec<u32> =
            (0..self.chunk_count).filter(|c| is_live(c) && map.description(*c).is_none()).collect();
        if !undescribed.is_empty() {
            map.clear_for_good(&undescribed)?;
        }
        let (mut from, mut next) = (0u64, map.description(0).map(|first| (0, first)));
        if next.is_none() {
            next = map.entry_behind(0);
        }
        while let Some((chunk, description)) = next {
            self.punch(from.next_multiple_of(BLOCK), description.offset() / BLOCK * BLOCK)?;
            from = from.max(description.end().min(self.len));
            next = map.entry_behind(chunk);
        }
        self.punch(from.next_multiple_of(BLOCK), self.len.next_multiple_of(BLOCK))
    }

    fn punch(&self, start: u64, end: u64) -> Result<(), CacheError> {
        let end = end.min(self.len.next_multiple_of(BLOCK));
        let Some(len) = end.checked_sub(start).filter(|&len| len > 0) else { return Ok(()) };
        let punch = || rustix::fs::fallocate(&self.data, Flags::PUNCH_HOLE | Flags::KEEP_SIZE, start, len);
        rustix::io::retry_on_intr(punch).map_err(|errno| CacheError::File {
            path: self.path.clone(),
            action: "free a part of it",
            source: errno.into(),
        })
    }
}
