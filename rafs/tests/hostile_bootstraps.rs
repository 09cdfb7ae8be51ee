//! Damaged bootstraps: one clear line, or values that stay inside the file; never a panic, never a hang.
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use rafs::ids::InodeNumber;
use rafs::image::{FileKind, FsVersion, Image, ImageError, Inode};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

fn corpus(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/interop").join(path)
}

fn read(case: &str) -> Vec<u8> {
    std::fs::read(corpus(case)).unwrap()
}

/// Numbers for damage, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// Reads everything there is, following what the image says, within a budget.
fn read_everything(image: &Image) -> usize {
    let mut budget = 3_000usize;
    let mut seen = HashSet::new();
    let mut todo: Vec<Inode> = image.inode(image.root()).into_iter().collect();
    while let Some(inode) = todo.pop() {
        if !seen.insert(inode.number) {
            continue;
        }
        attributes(image, &inode);
        if inode.kind != FileKind::Directory {
            continue;
        }
        for entry in image.read_dir(&inode, 0).unwrap().map_while(Result::ok) {
            let Some(left) = budget.checked_sub(1) else { return seen.len() };
            budget = left;
            assert!(!entry.name.is_empty() && entry.name.len() <= 256);
            assert!(entry.next_cookie > 0 && entry.next_cookie < 1 << 63);
            image.lookup(&inode, entry.name).ok();
            todo.extend(image.inode(entry.number));
        }
    }
    seen.len()
}

fn attributes(image: &Image, inode: &Inode) {
    assert!(inode.nlink != 0 && inode.mtime_nsec < 1_000_000_000 && i64::try_from(inode.size).is_ok());
    if let Ok(xattrs) = image.xattrs(inode) {
        xattrs.take_while(Result::is_ok).for_each(drop);
    }
    image.read_link(inode).ok();
    image.lookup(inode, b"..").ok();
    if let Ok(chunks) = image.chunks(inode, 0, u64::MAX) {
        for chunk in chunks.take(1000).map_while(Result::ok) {
            let blob = &image.blobs()[chunk.blob.as_usize()];
            assert!(chunk.uncompressed_size > 0 && chunk.uncompressed_size <= image.chunk_size());
            assert!(chunk.file_offset < inode.size);
            if blob.uncompressed_size != 0 {
                let end = chunk.uncompressed_offset + u64::from(chunk.uncompressed_size);
                assert!(end <= blob.uncompressed_size);
            }
            assert_eq!(image.chunk_record(&chunk).is_some(), image.version() == FsVersion::V5);
        }
    }
}

/// Opens damaged bytes and uses whatever opens. True when the damage was noticed anywhere.
fn survive(bytes: Vec<u8>) -> bool {
    match Image::from_bytes(bytes, "damaged") {
        Ok(image) => {
            read_everything(&image);
            for number in [0, 1, 5, image.max_inode_number(), u64::MAX] {
                if let Ok(inode) = image.inode(InodeNumber(number)) {
                    attributes(&image, &inode);
                }
            }
            let _ = image.prefetch_list();
            let _ = image.chunk_table();
            let _ = image.v5_chunk_indexes_missing();
            image.for_each_chunk_record(&mut |_| {});
            image.check().is_err()
        }
        Err(e) => {
            let line = e.to_string();
            assert!(line.contains("damaged") && !line.contains('\n'), "{line}");
            true
        }
    }
}

const V5: &str = "v5-zstd-blake3/bootstrap";
const V6: &str = "v6-zstd-blake3/bootstrap";

fn u32le(value: u32) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

fn u64le(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// Every field of the superblocks, tables and slots that a reader checks: case, offset, value, and what the
/// message must say.
fn fields() -> Vec<(&'static str, usize, Vec<u8>, &'static str)> {
    let v6_blob = 4096;
    vec![
        (V5, 0, u32le(0), "is no RAFS bootstrap"),
        (V5, 4, u32le(0x400), "version is 0x400, expected 0x500"),
        (V5, 8, u32le(4096), "superblock's size"),
        (V5, 12, u32le(0x800), "chunk size"),
        (V5, 12, u32le(0x10_0001), "chunk size"),
        (V5, 12, u32le(0x200_0000), "chunk size"),
        (V5, 16, u64le(0x400), "flags"),
        (V5, 16, u64le(1 << 40), "flags"),
        (V5, 24, u64le(1 << 40), "inode count"),
        (V5, 32, u64le(8196), "inode table"),
        (V5, 32, u64le(0), "inode table"),
        (V5, 32, u64le(u64::MAX - 7), "inode table ends at byte"),
        (V5, 48, u64le(8192), "overlap"),
        (V5, 48, u64le(1 << 40), "blob table ends at byte"),
        (V5, 56, u32le(0), "entry count"),
        (V5, 56, u32le(u32::MAX), "inode table ends at byte"),
        (V5, 60, u32le(u32::MAX), "prefetch table ends at byte"),
        (V5, 64, u32le(u32::MAX), "blob table ends at byte"),
        (V5, 68, u32le(u32::MAX), "extended blob table ends at byte"),
        (V5, 72, u64le(8192), "overlap"),
        (V6, 1024, u32le(0), "is no RAFS bootstrap"),
        (V6, 1028, u32le(1), "checksum"),
        (V6, 1032, u32le(0), "compatible features"),
        (V6, 1036, vec![9], "block size bits"),
        (V6, 1036, vec![255], "block size bits"),
        (V6, 1038, vec![0, 0], "root"),
        (V6, 1038, vec![255, 255], "root"),
        (V6, 1040, u64le(0), "inode count"),
        (V6, 1064, u32le(u32::MAX), "meta area"),
        (V6, 1068, u32le(1), "xattr_blkaddr"),
        (V6, 1104, u32le(0x1c), "incompatible features"),
        (V6, 1108, vec![1, 0], "compression algorithms"),
        (V6, 1110, vec![0, 0], "block count is"),
        (V6, 1110, vec![2, 0], "entry count"),
        (V6, 1110, vec![255, 0], "at most 254"),
        (V6, 1112, vec![12, 0], "device table's slot"),
        (V6, 1152, u64le(0x1_0000), "flags"),
        (V6, 1152, u64le(0x84 | 1), "exactly one compressor"),
        (V6, 1152, u64le(0x4), "exactly one compressor"),
        (V6, 1152, u64le(0x80), "exactly one digest"),
        (V6, 1152, u64le(0x8c), "exactly one digest"),
        (V6, 1152, u64le(0x284), "block size bits"),
        (V6, 1160, u64le(1), "blob table's offset"),
        (V6, 1160, u64le(0), "blob table is 0x0, expected to start at byte 4096"),
        (V6, 1160, u64le(1 << 40), "blob table ends at byte"),
        (V6, 1168, u32le(255), "blob table's size"),
        (V6, 1168, u32le(512), "entry count"),
        (V6, 1172, u32le(3), "chunk size"),
        (V6, 1172, u32le(0x1000), "chunk size is not the superblock's"),
        (V6, 1176, u64le(4096), "overlap"),
        (V6, 1176, u64le(!4095), "chunk table ends at byte"),
        (V6, 1184, u64le(79), "chunk table's size"),
        (V6, 1184, u64le(80 << 40), "chunk table ends at byte"),
        (V6, 1200, u32le(8), "prefetch table"),
        (V6, 1408, vec![0; 64], "blob 0: its id"),
        (V6, 1408, b"../".to_vec(), "cannot be a file name"),
        (V6, 1408, vec![0xff], "not UTF-8"),
        (V6, 1472, u32le(0), "no blocks"),
        (V6, v6_blob, vec![0; 64], "blob 0: its id"),
        (V6, v6_blob, b"a/b".to_vec(), "cannot be a file name"),
        (V6, v6_blob + 64, u32le(1), "index"),
        (V6, v6_blob + 68, u32le(1), "chunk size"),
        (V6, v6_blob + 72, u32le(u32::MAX), "chunks"),
        (V6, v6_blob + 72, u32le(1), "number of chunks"),
        (V6, v6_blob + 76, u32le(9), "compressor"),
        (V6, v6_blob + 80, u32le(9), "digest"),
        (V6, v6_blob + 84, u32le(0x1001), "newer reader"),
        (V6, v6_blob + 84, u32le(0x8000_0001), "newer reader"),
        (V6, v6_blob + 84, u32le(0), "ALIGNED"),
        (V6, v6_blob + 84, u32le(0x41), "ALIGNED"),
        (V6, v6_blob + 84, u32le(0x101), "ENCRYPTED"),
        (V6, v6_blob + 84, u32le(0x5), "number of chunks"),
        (V6, v6_blob + 88, u64le(u64::MAX), "larger"),
        (V6, v6_blob + 96, u64le(u64::MAX), "larger"),
        (V6, v6_blob + 96, u64le(4097), "4096"),
        (V6, v6_blob + 108, u32le(9), "compressor of its chunk info table"),
        (V6, v6_blob + 112, u64le(u64::MAX), "largest blob"),
        (V6, v6_blob + 120, u64le(u64::MAX), "larger compressed"),
        (V6, v6_blob + 216, u32le(2), "cipher"),
        (V6, v6_blob + 216, u32le(1), "ENCRYPTED"),
    ]
}

#[test]
fn every_bad_field_is_named() {
    for (case, offset, value, expected) in fields() {
        let mut bytes = read(case);
        bytes[offset..offset + value.len()].copy_from_slice(&value);
        let what = format!("{case} {offset} {value:?}");
        let line = Image::from_bytes(bytes, "dir/damaged").map(|_| ()).expect_err(&what).to_string();
        assert!(
            line.contains("dir/damaged") && line.contains(expected) && !line.contains('\n'),
            "{what}: {line}"
        );
    }
}

#[test]
fn any_value_of_any_header_field_is_survived() {
    for case in [
        V5,
        V6,
        "v6-tarfs/bootstrap",
        "v6-encrypt/bootstrap",
        "v6-targz-ref/bootstrap",
        "v5-prefetch-fs/bootstrap",
    ] {
        let good = read(case);
        let words =
            if case.starts_with("v5") { (0..80).chain(8192..8704) } else { (1024..1664).chain(4096..4352) };
        for offset in words.step_by(4) {
            for value in [0u32, 1, 7, 0x7fff_ffff, u32::MAX, 0x0101_0101] {
                let mut bytes = good.clone();
                bytes[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
                survive(bytes);
            }
        }
    }
}

#[test]
fn truncated_files_are_refused_or_stay_inside() {
    for case in [V5, V6, "v6-empty/bootstrap", "v5-empty/bootstrap", "v6-tarfs/bootstrap"] {
        let good = read(case);
        let lengths =
            (0..good.len()).step_by(211).chain([1023, 1024, 1152, 1408, 4095, 4096, 8191, 8192, 8200]);
        for len in lengths.filter(|len| *len < good.len()) {
            assert!(survive(good[..len].to_vec()), "{case} cut to {len} bytes went unnoticed");
        }
        for page in (4096..good.len()).step_by(4096) {
            assert!(survive(good[..page].to_vec()), "{case} cut to {page} bytes went unnoticed");
        }
    }
}

#[test]
fn flipped_bytes_are_survived() {
    let mut random = Random(0x5eed_0001);
    for case in
        [V5, V6, "v6-tarfs/bootstrap", "v6-batch/bootstrap", "v5-tar-rafs/bootstrap", "v6-merge/bootstrap"]
    {
        let good = read(case);
        // The reserved rest of a v5 superblock is never read; damage the rest.
        let start = if case.starts_with("v5") { 8192 } else { 1024 };
        for round in 0..600 {
            let mut bytes = good.clone();
            for _ in 0..1 + round % 16 {
                let at = start + random.below(good.len() - start);
                bytes[at] = u8::try_from(random.next() & 0xff).unwrap();
            }
            survive(bytes);
        }
    }
}

#[test]
fn damage_around_inlined_bootstraps_is_noticed() {
    let (with_toc, raw) = (
        "v6-inline-meta-toc/blobs/205de6a0d31132c4344708b899c441070f18a27075a79f9c834d6d766eb2ba9c",
        "v6-inline-meta/blobs/970379fe29b0f86ae9d206ea08ff893cb81c584dcf92df01a0d4eb502a224297",
    );
    let mut random = Random(0x5eed_0002);
    for (case, tail) in [(with_toc, 512 + 6 * 128), (raw, 512)] {
        let good = read(case);
        assert!(!survive(good.clone()));
        for round in 0..400 {
            let mut bytes = good.clone();
            let at = bytes.len() - 1 - random.below(if round % 2 == 0 { tail } else { good.len() });
            bytes[at] ^= 1 << (round % 8);
            survive(bytes);
        }
        for cut in [1, 512, 4096, good.len() - 1, good.len()] {
            assert!(survive(good[..good.len() - cut].to_vec()));
        }
    }
    // The digest in the table of contents covers the compressed bootstrap.
    let good = read(with_toc);
    let entry = good.windows(16).rposition(|w| w == b"image.boot\0\0\0\0\0\0").unwrap();
    for (offset, value, expected) in [
        (entry + 16, 0u64, "sha256"),
        (entry + 48, u64::MAX, "outside the file"),
        (entry + 56, u64::MAX, "outside the file"),
        (entry + 64, 1 << 40, "1 GiB"),
        (entry + 64, 4096, "zstd frame"),
        (entry + 64, 1 << 29, "zstd frame"),
    ] {
        let mut bytes = good.clone();
        bytes[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        let line = Image::from_bytes(bytes, "blob").unwrap_err().to_string();
        assert!(line.contains(expected), "{line}");
    }
}

#[test]
fn files_that_are_no_images() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let missing = dir.path().join("missing");
    let fifo = dir.path().join("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    for (path, expected) in [
        (missing, "No such file"),
        (dir.path().to_owned(), "not a regular file"),
        (fifo, "not a regular file"),
        (file("empty", b""), "its 0 bytes"),
        (file("text", b"hello"), "its 5 bytes"),
        (file("zeros", &[0; 20_000]), "no RAFS bootstrap"),
        (file("cut", &read(V5)[..8000]), "only 8000 bytes"),
        (file("cut6", &read(V6)[..2000]), "only 2000 bytes"),
    ] {
        let error = Image::open(&path).unwrap_err();
        let line = error.to_string();
        assert!(line.contains(&path.display().to_string()) && line.contains(expected), "{line}");
        assert!(!line.contains('\n'), "{line}");
    }
    assert!(matches!(Image::open(&dir.path().join("none")).unwrap_err(), ImageError::Io { .. }));
}

#[test]
fn a_bootstrap_extracted_from_a_blob_names_its_blob() {
    let name = "970379fe29b0f86ae9d206ea08ff893cb81c584dcf92df01a0d4eb502a224297";
    let blob = read(&format!("v6-inline-meta/blobs/{name}"));
    // The tar header behind the bootstrap says its size.
    let header = &blob[blob.len() - 512..];
    let size = std::str::from_utf8(&header[124..135]).unwrap();
    let size = usize::from_str_radix(size, 8).unwrap();
    let bootstrap = &blob[blob.len() - 512 - size..blob.len() - 512];
    let dir = tempfile::tempdir().unwrap();
    for (file, expected) in
        [(format!("{name}.boot"), name), (name.to_owned(), name), ("image.boot".to_owned(), "image")]
    {
        let path = dir.path().join(file);
        std::fs::write(&path, bootstrap).unwrap();
        let image = Image::open(&path).unwrap();
        assert_eq!(image.blobs()[0].id, expected);
    }
}
