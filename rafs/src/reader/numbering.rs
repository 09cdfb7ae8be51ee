//! Numbers of chunks that have none: images of version 5 whose records carry no indexes.
//!
//! Owns: the way from a chunk's place to its number, its rank among the places of its blob. A READ takes it once for each
//! chunk, so the rank is looked for where it must be about, not by halves from the middle. Does not own: where places come
//! from.

/// Places of the chunks of a blob.
#[derive(Debug)]
pub(super) struct Numbering {
    /// Uncompressed offsets, in order, each once.
    offsets: Box<[u64]>,
    /// Where the address space is cut into stretches of `1 << shift` bytes: the rank of the first chunk that starts in
    /// each or behind it, and one more entry for the end.
    starts: Box<[u32]>,
    shift: u32,
}

impl Numbering {
    /// The numbers of chunks at `offsets`, which are in order and each there once.
    pub fn new(offsets: &[u64]) -> Self {
        let last = offsets.last().copied().unwrap_or(0);
        // Stretches are longer than chunks are apart on average, so there are not more of them than chunks.
        let shift = 64 - (last / (offsets.len() as u64).max(1)).leading_zeros();
        let mut starts = Vec::with_capacity(offsets.len() + 1);
        let mut end = 0;
        for (offset, rank) in offsets.iter().zip(0..u32::MAX) {
            let stretch = offset.checked_shr(shift).unwrap_or(0);
            while starts.len() as u64 <= stretch {
                starts.push(rank);
            }
            end = rank + 1;
        }
        starts.push(end);
        Self { offsets: offsets.into(), starts: starts.into(), shift }
    }

    /// Rank of the chunk at `offset`; `None` where no chunk starts.
    #[inline]
    pub fn number(&self, offset: u64) -> Option<u32> {
        let stretch = usize::try_from(offset.checked_shr(self.shift).unwrap_or(0)).ok()?;
        let [start, end] = *self.starts.get(stretch..)?.first_chunk()?;
        let near = self.offsets.get(start as usize..end as usize)?;
        let at = near.binary_search(&offset).ok()?;
        Some(start + u32::try_from(at).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_those_of_a_search_by_halves() {
        let even: Vec<u64> = (0..1000).map(|n| n * 4096).collect();
        // Close together at first, then far apart.
        let uneven: Vec<u64> = (0..500).map(|n| n * 7).chain((1..20).map(|n| 1 << (12 + 2 * n))).collect();
        let lists: [&[u64]; 8] =
            [&[], &[0], &[5], &[u64::MAX], &[0, u64::MAX], &[u64::MAX - 1, u64::MAX], &even, &uneven];
        for offsets in lists {
            let numbering = Numbering::new(offsets);
            assert!(numbering.starts.len() <= offsets.len() + 1, "{} stretches", numbering.starts.len());
            let near = offsets.iter().flat_map(|at| [at.saturating_sub(1), *at, at.saturating_add(1)]);
            for at in near.chain([0, 1, 4095, 1 << 40, u64::MAX]) {
                let rank = offsets.binary_search(&at).ok().and_then(|n| u32::try_from(n).ok());
                assert_eq!(numbering.number(at), rank, "{at} in {offsets:?}");
            }
        }
    }
}
