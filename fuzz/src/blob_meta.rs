//! What the blob targets do: chunk info tables, tables of contents, and the decoding of units.
//!
//! Invariants: no panic, no overflow, no allocation beyond the stated bounds; a table that is accepted describes
//! units inside the blob file, and chunks inside their units.

use rafs::blob::{self, Toc, UNIT_SIZE_MAX};
use rafs::codec::{CipherKey, Compressor, Digester};
use rafs::ids::{BlobIndex, ChunkIndex};
use rafs::image::{BlobInfo, ChunkInfoLocation};
use rafs::layout::blob::{BlobFeatures, CI_MAGIC};

/// Bytes of the settings before the table.
const SETTINGS: usize = 16;
/// Units that are larger are not decoded: the fuzzer is to see many.
const DECODE_MAX: u32 = 1 << 16;

/// The first 16 bytes choose features, compressor and sizes; the rest is the plain table.
pub fn blob_meta(input: &[u8]) {
    let Some((settings, table)) = input.split_at_checked(SETTINGS) else { return };
    let word = |at: usize| u32::from_le_bytes(settings[at..at + 4].try_into().expect("4 bytes"));
    let features = BlobFeatures::from_bits_truncate(
        word(0)
            & (BlobFeatures::CHUNK_INFO_V2
                | BlobFeatures::ZRAN
                | BlobFeatures::BATCH
                | BlobFeatures::ENCRYPTED
                | BlobFeatures::SEPARATE
                | BlobFeatures::IS_CHUNKDICT_GENERATED)
                .bits(),
    ) | BlobFeatures::ALIGNED;
    let compressor = Compressor::from_number(word(0) >> 28 & 3).expect("0 to 3");
    let chunk_count = word(4) & 0xfff;
    let context_count = word(4) >> 16 & 0xfff;
    let info = BlobInfo {
        index: BlobIndex(0),
        id: "fuzz".into(),
        features,
        compressor,
        digester: Digester::Blake3,
        cipher: features.contains(BlobFeatures::ENCRYPTED).then_some(CipherKey { key: [3; 32], iv: [4; 16] }),
        chunk_size: 1 << 20,
        chunk_count: Some(chunk_count),
        compressed_size: u64::from(word(8)),
        uncompressed_size: u64::from(word(12)) << 8,
        chunk_info: Some(ChunkInfoLocation {
            offset: u64::from(word(8)),
            compressed_size: table.len() as u64,
            uncompressed_size: table.len() as u64,
            compressor: Compressor::None,
        }),
        toc_size: 0,
        toc_digest: [0; 32],
        meta_blob: None,
        prefetch_size: 0,
        mapped_blkaddr: 0,
    };
    let entry = if features.contains(BlobFeatures::CHUNK_INFO_V2) { 24 } else { 16 };
    let mut header = vec![0; 4096];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &CI_MAGIC.to_le_bytes());
    put(12, &chunk_count.to_le_bytes());
    put(16, &u64::from(word(8)).to_le_bytes());
    put(24, &(table.len() as u64).to_le_bytes());
    put(32, &(table.len() as u64).to_le_bytes());
    put(40, &u64::from(chunk_count * entry).to_le_bytes());
    put(56, &context_count.to_le_bytes());
    put(4092, &CI_MAGIC.to_le_bytes());
    let mut file = table.to_vec();
    file.resize(table.len().next_multiple_of(4096), 0);
    file.extend_from_slice(&header);
    if let Ok(parsed) = blob::parse_table(&info, file) {
        units(&info, &parsed, input);
    }
    // The same bytes as they could come from a store, and as a tail.
    let _ = blob::plain_table(&info, input);
    let _ = Toc::parse("fuzz", input, input.len() as u64, &[0; 32]);
}

fn units(info: &BlobInfo, table: &blob::ChunkTable, input: &[u8]) {
    let loose = info.features.contains(BlobFeatures::IS_CHUNKDICT_GENERATED);
    let (mut scratch, mut plain) = (Vec::new(), Vec::new());
    // Each look at a unit walks its members: a bound keeps the fuzzer fast.
    for i in 0..table.chunk_count().min(256) {
        let entry = table.chunk(ChunkIndex(i)).expect("counted");
        assert!(entry.uncompressed_size > 0);
        let unit = table.unit_of(ChunkIndex(i)).expect("checked");
        assert!(unit.plain_size <= UNIT_SIZE_MAX && unit.stored_size > 0);
        assert!(loose || unit.stored_end() <= blob::data_size(info));
        let own = table.cut(unit.id).find(|m| m.chunk == ChunkIndex(i)).expect("a member of its own unit");
        assert!(own.range.end <= usize::try_from(unit.plain_size).expect("32 bits"));
        assert_eq!(own.range.len(), usize::try_from(entry.uncompressed_size).expect("32 bits"));
        if unit.plain_size <= DECODE_MAX && unit.stored_size <= DECODE_MAX && i < 8 {
            let stored: Vec<u8> =
                input.iter().copied().cycle().skip(i as usize).take(unit.stored_size as usize).collect();
            if unit.decode(info, Some(table), &stored, &mut scratch, &mut plain).is_ok() {
                assert_eq!(plain.len(), unit.plain_size as usize);
            }
        }
    }
    assert!(table.chunk(ChunkIndex(table.chunk_count())).is_err());
}
