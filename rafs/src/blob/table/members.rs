//! Which chunks a batch or a zran context holds.

use super::{ChunkTable, Place};

/// Chunks by context: those of context `c` are `chunks[starts[c] .. starts[c + 1]]`.
#[derive(Debug, Default)]
pub(super) struct Members {
    starts: Vec<u32>,
    chunks: Vec<u32>,
}

impl Members {
    pub fn of(&self, context: u32) -> &[u32] {
        let range = || {
            let context = usize::try_from(context).ok()?;
            let start = usize::try_from(*self.starts.get(context)?).ok()?;
            let end = usize::try_from(*self.starts.get(context.checked_add(1)?)?).ok()?;
            self.chunks.get(start..end)
        };
        range().unwrap_or_default()
    }
}

impl ChunkTable {
    /// Sorts the chunks of batches and zran contexts by context.
    pub(super) fn collect_members(&self) -> Result<Members, String> {
        let contexts = usize::try_from(self.context_count).map_err(|e| e.to_string())?;
        if contexts == 0 {
            return Ok(Members::default());
        }
        let mut starts = vec![0u32; contexts.saturating_add(1)];
        let mut plain = vec![0u64; contexts];
        let in_context = |i: u32| match self.get(i as usize)?.place {
            Place::Raw | Place::Compressed => None,
            Place::Batch { context, .. } | Place::Zran { context, .. } => usize::try_from(context).ok(),
        };
        for i in 0..self.chunk_count() {
            let Some(context) = in_context(i) else { continue };
            if let Some(n) = starts.get_mut(context.saturating_add(1)) {
                *n += 1;
            }
            if let (Some(sum), Some(entry)) = (plain.get_mut(context), self.get(i as usize)) {
                *sum += u64::from(entry.uncompressed_size);
            }
        }
        for (context, &sum) in (0u32..).zip(&plain) {
            // Without this bound one small context could make us hash for hours.
            let room = if self.batch {
                self.batch_context(context).map_or(0, |(_, plain)| plain)
            } else {
                self.zran_context(context).map_or(0, |zran| zran.out_size.get())
            };
            if sum > u64::from(room) {
                return Err(format!("chunks of context {context} overlap: {sum} bytes in {room}"));
            }
        }
        let mut total = 0u32;
        for start in &mut starts {
            total += *start;
            *start = total;
        }
        let mut next = starts.clone();
        let mut chunks = vec![0u32; usize::try_from(total).map_err(|e| e.to_string())?];
        for i in 0..self.chunk_count() {
            let Some(slot) = in_context(i).and_then(|c| next.get_mut(c)) else { continue };
            if let Some(place) = usize::try_from(*slot).ok().and_then(|s| chunks.get_mut(s)) {
                *place = i;
            }
            *slot += 1;
        }
        Ok(Members { starts, chunks })
    }
}
