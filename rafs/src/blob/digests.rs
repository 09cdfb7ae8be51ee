//! Which digest a chunk must have (blob.md section 14.5).

use crate::codec::{self, Digest, Digester};
use crate::ids::{BlobIndex, ChunkIndex};
use crate::layout::chunk::{ChunkFlags, ChunkRecord};

/// What a chunk's plain bytes are checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A digest.
    Digest(Digester, Digest),
    /// A CRC-32C, where the image has no digest.
    Crc32c(u32),
    /// The image says nothing.
    Nothing,
}

impl Expected {
    /// What a chunk record promises. A digest of zeros stands for none (external and TARFS chunks).
    #[must_use]
    pub fn of_record(digester: Digester, record: &ChunkRecord) -> Self {
        if record.digest != [0; 32] {
            Self::Digest(digester, record.digest)
        } else if record.flags.get() & ChunkFlags::HAS_CRC32.bits() != 0 {
            Self::Crc32c(record.crc32c.get())
        } else {
            Self::Nothing
        }
    }

    /// Whether `plain` is what was promised; true when nothing was.
    #[must_use]
    pub fn matches(&self, plain: &[u8]) -> bool {
        match self {
            Self::Digest(digester, digest) => codec::digest(*digester, plain) == *digest,
            Self::Crc32c(crc) => codec::crc32c(plain) == *crc,
            Self::Nothing => true,
        }
    }
}

/// Finds the record of a chunk in a v6 chunk table, which is sorted by digest. 8 bytes a record.
#[derive(Debug, Default)]
pub struct DigestIndex {
    /// Chunk index and record position, sorted; one list a blob.
    blobs: Vec<Vec<(u32, u32)>>,
}

impl DigestIndex {
    /// Reads `records` once. Records of blobs that do not exist are left out.
    #[must_use]
    pub fn new(records: &[ChunkRecord], blob_count: usize) -> Self {
        let mut blobs = vec![Vec::new(); blob_count];
        for (position, record) in (0u32..).zip(records) {
            let blob = BlobIndex(record.blob_index.get()).as_usize();
            if let Some(list) = blobs.get_mut(blob) {
                list.push((record.index.get(), position));
            }
        }
        for list in &mut blobs {
            list.sort_unstable();
            list.shrink_to_fit();
        }
        Self { blobs }
    }

    /// The record of a chunk, in the `records` the index was made from.
    #[must_use]
    pub fn find<'a>(
        &self,
        records: &'a [ChunkRecord],
        blob: BlobIndex,
        chunk: ChunkIndex,
    ) -> Option<&'a ChunkRecord> {
        let list = self.blobs.get(blob.as_usize())?;
        let at = list.partition_point(|&(index, _)| index < chunk.0);
        let &(index, position) = list.get(at)?;
        (index == chunk.0).then(|| records.get(usize::try_from(position).ok()?)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn record(blob: u32, index: u32, fill: u8) -> ChunkRecord {
        let mut record = ChunkRecord::new_zeroed();
        record.blob_index.set(blob);
        record.index.set(index);
        record.digest = [fill; 32];
        record
    }

    #[test]
    fn finds_by_blob_and_chunk() {
        let records =
            [record(0, 7, 1), record(1, 0, 2), record(0, 2, 3), record(9, 0, 4), record(1, 0xff_fffe, 5)];
        let index = DigestIndex::new(&records, 2);
        let fill = |blob, chunk| {
            index.find(&records, BlobIndex(blob), ChunkIndex(chunk)).map(|record| record.digest[0])
        };
        assert_eq!(fill(0, 7), Some(1));
        assert_eq!(fill(0, 2), Some(3));
        assert_eq!(fill(0, 3), None);
        assert_eq!(fill(0, 8), None);
        assert_eq!(fill(1, 0), Some(2));
        assert_eq!(fill(1, 0xff_fffe), Some(5));
        assert_eq!(fill(9, 0), None);
    }

    #[test]
    fn digest_before_checksum_before_nothing() {
        let mut r = record(0, 0, 0);
        assert_eq!(Expected::of_record(Digester::Blake3, &r), Expected::Nothing);
        r.flags.set(ChunkFlags::HAS_CRC32.bits());
        r.crc32c.set(codec::crc32c(b"abc"));
        let crc = Expected::of_record(Digester::Blake3, &r);
        assert!(crc.matches(b"abc") && !crc.matches(b"abd"));
        r.digest = codec::digest(Digester::Sha256, b"abc");
        let digest = Expected::of_record(Digester::Sha256, &r);
        assert!(digest.matches(b"abc") && !digest.matches(b"abd"));
        assert!(!Expected::of_record(Digester::Blake3, &r).matches(b"abc"));
    }
}
