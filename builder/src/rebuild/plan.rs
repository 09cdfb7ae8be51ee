//! Which blobs a compaction drops, rebuilds and puts together (build-rules.md section 13).
//!
//! Owns: the decision. Does not own: moving data. Pure arithmetic on what is known of the blobs.

use super::CompactSettings;
use rafs::codec::{CipherKey, Compressor, Digester};
use rafs::layout::blob::BlobFeatures;

/// What is known of one blob.
#[derive(Clone, Debug)]
pub(super) struct BlobUse {
    /// Bytes of its file.
    pub file_size: u64,
    /// Bytes of chunk data in it; the rest are tables.
    pub data_size: u64,
    /// Stored bytes of the chunks in use.
    pub used_bytes: u64,
    /// Whether any chunk is in use.
    pub used: bool,
    /// Blobs of the same kind can become one. `None`: this one is left alone.
    pub kind: Option<Kind>,
}

/// What blobs must share to become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub compressor: Compressor,
    pub digester: Digester,
    pub cipher: Option<CipherKey>,
    pub features: BlobFeatures,
    /// Whether uncompressed offsets are multiples of 4096.
    pub aligned: bool,
}

/// What becomes of the blobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Blobs that go without replacement, ascending.
    pub dropped: Vec<usize>,
    /// Blobs that become one, each group ascending, groups by their first.
    pub groups: Vec<Vec<usize>>,
}

impl Plan {
    /// Decides for `blobs`, in table order.
    pub(super) fn new(blobs: &[BlobUse], settings: &CompactSettings) -> Self {
        let dropped: Vec<usize> = (0..blobs.len()).filter(|at| !blobs[*at].used).collect();
        let sparse = |blob: &BlobUse| {
            let used = u128::from(blob.used_bytes) * 100;
            // Tables weigh much in a tiny blob, and are no reason to make it anew.
            used < u128::from(settings.min_used_ratio) * u128::from(blob.file_size)
                && blob.used_bytes < blob.data_size
        };
        let movable = |at: &usize| blobs[*at].used && blobs[*at].kind.is_some();
        let size = |at: usize| {
            let blob = &blobs[at];
            if sparse(blob) { blob.used_bytes } else { blob.file_size }
        };
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut small: Vec<usize> = Vec::new();
        for at in (0..blobs.len()).filter(movable) {
            if size(at) < settings.compact_blob_size {
                small.push(at);
            } else if sparse(&blobs[at]) {
                groups.push(vec![at]);
            }
        }
        small.sort_by_key(|at| (size(*at), *at));
        // Of each kind the group that is being filled, and its bytes.
        let mut open: Vec<(Vec<usize>, u64)> = Vec::new();
        for at in small {
            let used = blobs[at].used_bytes;
            let same = open.iter().position(|(members, _)| {
                members.first().is_some_and(|first| blobs[*first].kind == blobs[at].kind)
            });
            match same {
                Some(n) if open[n].1.saturating_add(used) <= settings.max_compact_size => {
                    open[n].0.push(at);
                    open[n].1 += used;
                }
                Some(n) => {
                    let full = std::mem::replace(&mut open[n], (vec![at], used));
                    groups.push(full.0);
                }
                None => open.push((vec![at], used)),
            }
        }
        groups.extend(open.into_iter().map(|(members, _)| members));
        groups.retain(|members| members.len() > 1 || members.first().is_some_and(|at| sparse(&blobs[*at])));
        for members in &mut groups {
            members.sort_unstable();
        }
        groups.sort();
        Self { dropped, groups }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.groups.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(file_size: u64, used_bytes: u64, kind: Option<Compressor>) -> BlobUse {
        let kind = kind.map(|compressor| Kind {
            compressor,
            digester: Digester::Blake3,
            cipher: None,
            features: BlobFeatures::empty(),
            aligned: true,
        });
        BlobUse { file_size, data_size: file_size - file_size / 10, used_bytes, used: used_bytes > 0, kind }
    }

    #[test]
    fn small_ones_meet_and_sparse_ones_shrink() {
        let settings = CompactSettings {
            min_used_ratio: 50,
            compact_blob_size: 100,
            max_compact_size: 150,
            layers_to_compact: 0,
        };
        let zstd = Some(Compressor::Zstd);
        for (blobs, dropped, groups) in [
            (vec![blob(1000, 900, zstd)], vec![], vec![]),
            (vec![blob(1000, 400, zstd)], vec![], vec![vec![0]]),
            (vec![blob(1000, 0, zstd), blob(1000, 900, zstd)], vec![0], vec![]),
            (vec![blob(50, 50, zstd)], vec![], vec![]),
            (vec![blob(50, 50, zstd), blob(1000, 1000, zstd), blob(40, 40, zstd)], vec![], vec![vec![0, 2]]),
            // 30 + 60 + 60, then 70 + 80.
            (
                [80, 70, 60, 60, 30].iter().map(|n| blob(*n, *n, zstd)).collect(),
                vec![],
                vec![vec![0, 1], vec![2, 3, 4]],
            ),
            (
                vec![blob(50, 50, zstd), blob(50, 50, Some(Compressor::None)), blob(50, 50, None)],
                vec![],
                vec![],
            ),
            // A sparse one counts by what is used of it.
            (vec![blob(1000, 60, zstd), blob(50, 50, zstd)], vec![], vec![vec![0, 1]]),
            (vec![blob(1000, 60, zstd), blob(99, 99, zstd)], vec![], vec![vec![0]]),
            // All of its data is in use, however little of it that is.
            (vec![BlobUse { data_size: 60, ..blob(1000, 60, zstd) }], vec![], vec![]),
        ] {
            assert_eq!(Plan::new(&blobs, &settings), Plan { dropped, groups }, "{blobs:?}");
        }
        let off = CompactSettings { min_used_ratio: 0, ..settings };
        assert!(Plan::new(&[blob(1000, 1, zstd)], &off).is_empty());
    }
}
