use super::*;
use crate::blob::{cached_table_len, parse_table};
use crate::codec::{Compressor, Digester, compress};
use crate::ids::BlobIndex;
use crate::image::ChunkInfoLocation;
use crate::layout::blob::CI_MAGIC;
use crate::layout::chunk::ChunkFlags;
use zerocopy::IntoBytes;

fn info(features: BlobFeatures, chunk_count: u32, table_size: usize) -> BlobInfo {
    BlobInfo {
        index: BlobIndex(0),
        id: "b".into(),
        features: features | BlobFeatures::ALIGNED | BlobFeatures::CAP_TAR_TOC,
        compressor: Compressor::Zstd,
        digester: Digester::Blake3,
        cipher: None,
        chunk_size: 1 << 20,
        chunk_count: Some(chunk_count),
        compressed_size: 1 << 20,
        uncompressed_size: 1 << 24,
        chunk_info: Some(ChunkInfoLocation {
            offset: 1 << 20,
            compressed_size: table_size as u64,
            uncompressed_size: table_size as u64,
            compressor: Compressor::None,
        }),
        toc_size: 0,
        toc_digest: [0; 32],
        meta_blob: None,
        prefetch_size: 0,
        mapped_blkaddr: 0,
    }
}

/// The table file of a blob: entries, contexts, header.
fn file(info: &BlobInfo, table: &[u8], contexts: u32) -> Vec<u8> {
    let place = info.chunk_info.unwrap();
    let mut header = ChunkInfoHeader::read_from_bytes(&[0; 4096]).unwrap();
    header.magic.set(CI_MAGIC);
    header.magic2.set(CI_MAGIC);
    header.chunk_count.set(info.chunk_count.unwrap());
    header.ci_offset.set(place.offset);
    header.ci_compressed_size.set(place.compressed_size);
    header.ci_uncompressed_size.set(place.uncompressed_size);
    header.context_offset.set(24 * u64::from(info.chunk_count.unwrap()));
    header.context_count.set(contexts);
    let mut file = table.to_vec();
    file.resize(usize::try_from(cached_table_len(info).unwrap()).unwrap() - 4096, 0);
    file.extend_from_slice(header.as_bytes());
    file
}

fn v1(uncompressed_offset: u64, size: u64, compressed_offset: u64, stored: u64) -> [u8; 16] {
    let (u, c) = (size - 1, stored - 1);
    let mut entry = [0; 16];
    let first = (u & 0xf_ffff) << 44 | uncompressed_offset | (u >> 20) << 8;
    let second = (c & 0xf_ffff) << 44 | (c >> 20) << 40 | compressed_offset;
    entry[..8].copy_from_slice(&first.to_le_bytes());
    entry[8..].copy_from_slice(&second.to_le_bytes());
    entry
}

fn v2(uncompressed_offset: u64, size: u64, flags: u64, compressed: (u64, u64), data: u64) -> [u8; 24] {
    let mut entry = [0; 24];
    let first = uncompressed_offset >> 12 | (size - 1) << 32 | flags << 56;
    entry[..8].copy_from_slice(&first.to_le_bytes());
    entry[8..16].copy_from_slice(&(compressed.0 | compressed.1 << 40).to_le_bytes());
    entry[16..].copy_from_slice(&data.to_le_bytes());
    entry
}

fn parse(features: BlobFeatures, count: u32, table: &[u8], contexts: u32) -> Result<ChunkTable, BlobError> {
    let info = info(features, count, table.len());
    let file = file(&info, table, contexts);
    parse_table(&info, file)
}

#[test]
fn v1_fields() {
    let table = [v1(0, 4097, 0, 100), v1(0x3000, 0x10_0000, 100, 0x10_0000 - 100)].concat();
    let table = parse(BlobFeatures::empty(), 2, &table, 0).unwrap();
    let second = table.chunk(ChunkIndex(1)).unwrap();
    assert_eq!(second.uncompressed_offset, 0x3000);
    assert_eq!(second.uncompressed_size, 0x10_0000);
    assert_eq!((second.compressed_offset, second.compressed_size), (100, 0x10_0000 - 100));
    assert_eq!(second.place, Place::Compressed);
    assert!(matches!(table.chunk(ChunkIndex(2)), Err(BlobError::NoSuchChunk { count: 2, .. })));
}

#[test]
fn rules_of_entries() {
    let none = BlobFeatures::empty();
    let v2_features = BlobFeatures::CHUNK_INFO_V2;
    let good = v1(0, 5000, 0, 200);
    parse(none, 1, &good, 0).unwrap();
    for (what, features, table) in [
        ("overlap", none, [good, v1(0x1000, 10, 200, 10)].concat()),
        ("behind the data", none, v1(0, 5000, (1 << 20) - 10, 20).to_vec()),
        ("behind the blob", none, v1((1 << 24) - 4096, 5000, 0, 20).to_vec()),
        ("stored too large", none, v1(0, 100, 0, 10_000).to_vec()),
        ("raw with two sizes", v2_features, v2(0, 100, 0, (0, 99), 0).to_vec()),
        ("stored empty", v2_features, v2(0, 100, 1, (0, 0), 0).to_vec()),
        ("checksum 0", v2_features, v2(0, 100, 16, (0, 100), 0).to_vec()),
        ("no batches", v2_features, v2(0, 100, 5, (0, 0), 0).to_vec()),
        ("no contexts", v2_features, v2(0, 100, 3, (0, 50), 0).to_vec()),
        ("no key", v2_features, v2(0, 100, 9, (0, 50), 0).to_vec()),
    ] {
        let count = u32::try_from(table.len() / if features == none { 16 } else { 24 }).unwrap();
        assert!(matches!(parse(features, count, &table, 0), Err(BlobError::Corrupt { .. })), "{what}");
    }
    let crc = parse(v2_features, 1, &v2(0, 100, 16, (0, 100), 0xabcd_1234), 0).unwrap();
    assert_eq!(crc.chunk(ChunkIndex(0)).unwrap().crc32c, Some(0xabcd_1234));
}

#[test]
fn batches_are_cut_into_their_members() {
    let features = BlobFeatures::CHUNK_INFO_V2 | BlobFeatures::BATCH;
    let batch = [b"first chunk, ".repeat(20), b"second one. ".repeat(30)].concat();
    let mut stored = Vec::new();
    assert!(compress(Compressor::Zstd, &batch, &mut stored).unwrap());
    let context = |stored: usize, plain: usize| {
        let mut context = [0; 40];
        context[..4].copy_from_slice(&u32::try_from(stored).unwrap().to_le_bytes());
        context[4..8].copy_from_slice(&u32::try_from(plain).unwrap().to_le_bytes());
        context
    };
    let table = |second: u64, context: [u8; 40]| {
        let entries = [v2(0, 260, 5, (64, 0), 0), v2(0x1000, 360, 5, (64, 0), second)].concat();
        parse(features, 2, &[&entries[..], &context].concat(), 1)
    };
    let parsed = table(260, context(stored.len(), batch.len())).unwrap();
    let unit = parsed.unit_of(ChunkIndex(1)).unwrap();
    assert_eq!((unit.id, unit.stored_offset), (UnitId::Batch(0), 64));
    let (mut scratch, mut plain) = (Vec::new(), Vec::new());
    let info = info(features, 2, 88);
    unit.decode(&info, Some(&parsed), &stored, &mut scratch, &mut plain).unwrap();
    let members: Vec<_> = parsed.cut(unit.id).collect();
    assert_eq!(members.len(), 2);
    assert_eq!(plain[members[1].range.clone()], b"second one. ".repeat(30)[..]);
    // A batch that is stored raw, one that is too small for its members, members that overlap, no such context.
    let raw = table(260, context(batch.len(), batch.len())).unwrap();
    let unit = raw.unit_of(ChunkIndex(0)).unwrap();
    unit.decode(&info, Some(&raw), &batch, &mut scratch, &mut plain).unwrap();
    assert_eq!(plain, batch);
    table(260, context(stored.len(), batch.len() - 1)).unwrap_err();
    table(1 << 32 | 260, context(stored.len(), batch.len())).unwrap_err();
    let three = [v2(0, 300, 5, (0, 0), 0), v2(0x1000, 300, 5, (0, 0), 0), v2(0x2000, 300, 5, (0, 0), 0)];
    parse(features, 3, &[&three.concat()[..], &context(500, 620)].concat(), 1).unwrap_err();
}

#[test]
fn headers_must_agree_with_the_image() {
    let table = v1(0, 5000, 0, 200);
    let info = info(BlobFeatures::empty(), 1, 16);
    let good = file(&info, &table, 0);
    parse_table(&info, good.clone()).unwrap();
    for at in [0, 8, 12, 16, 24, 32, 4092] {
        let mut bad = good.clone();
        bad[4096 + at] ^= 1;
        assert!(parse_table(&info, bad).is_err(), "header byte {at}");
    }
    for len in [0, 16, 4095, 4096, good.len() - 1, good.len() + 1] {
        let mut bad = good.clone();
        bad.resize(len, 0);
        assert!(parse_table(&info, bad).is_err(), "{len} bytes");
    }
}

#[test]
fn absurd_sizes_are_refused_before_memory_is_taken() {
    let mut info = info(BlobFeatures::empty(), 1, 16);
    let place = info.chunk_info.as_mut().unwrap();
    place.uncompressed_size = u64::MAX;
    assert!(matches!(parse_table(&info, vec![0; 4096]), Err(BlobError::Corrupt { .. })));
    crate::blob::stored_table_range(&info).unwrap_err();
    let place = info.chunk_info.as_mut().unwrap();
    (place.uncompressed_size, place.offset) = (16, u64::MAX - 10);
    crate::blob::stored_table_range(&info).unwrap_err();
}

#[test]
fn legacy_stargz_tables_come_from_the_image() {
    let mut info = info(BlobFeatures::empty(), 2, 32);
    info.compressor = Compressor::Gzip;
    let record = |index: u32, offset: u64| {
        let mut record = ChunkRecord::default();
        record.index.set(index);
        record.flags.set(ChunkFlags::COMPRESSED.bits());
        record.uncompressed_size.set(5000);
        record.uncompressed_offset.set(offset);
        record.compressed_size.set(5152);
        record.compressed_offset.set(u64::from(index) * 6000);
        record
    };
    let table = ChunkTable::from_records(&info, &[record(1, 0x2000), record(0, 0)]).unwrap();
    assert_eq!(table.chunk_count(), 2);
    let unit = table.unit_of(ChunkIndex(1)).unwrap();
    assert_eq!((unit.stored_offset, unit.stored_size), (6000, 5152));
    let plain = b"stargz ".repeat(1000);
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, &plain).unwrap();
    let stored = encoder.finish().unwrap();
    let (mut scratch, mut out) = (Vec::new(), Vec::new());
    unit.decode(&info, Some(&table), &stored, &mut scratch, &mut out).unwrap();
    assert_eq!(out, plain[..5000], "the member goes on, the chunk does not");
    ChunkTable::from_records(&info, &[record(1, 0x2000)]).unwrap_err();
}
