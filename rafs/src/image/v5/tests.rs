//! A small v5 image made by hand, for what no builder writes any more and what none should.

use crate::ids::{BlobIndex, ChunkIndex, InodeNumber};
use crate::image::{ChunkRef, FileKind, Image, InodeError};
use crate::layout::SuperFlags;
use crate::layout::chunk::ChunkRecord;
use crate::layout::v5::{Inode, InodeFlags, MAGIC, SuperBlock, VERSION};
use zerocopy::IntoBytes;

const CHUNK_SIZE: u32 = 0x1000;
const SUPERBLOCK: usize = 8192;

/// One record: name, fixed part, symlink target, xattr content, chunk records.
struct Record {
    name: &'static str,
    fixed: Inode,
    target: &'static str,
    xattrs: Vec<u8>,
    chunks: Vec<ChunkRecord>,
}

fn record(name: &'static str, ino: u64, parent: u64, mode: u32) -> Record {
    let fixed = Inode {
        ino: ino.into(),
        parent: parent.into(),
        mode: mode.into(),
        nlink: 1.into(),
        ..Inode::default()
    };
    Record { name, fixed, target: "", xattrs: Vec::new(), chunks: Vec::new() }
}

fn chunk(file_offset: u64, size: u32, index: u32) -> ChunkRecord {
    ChunkRecord {
        uncompressed_size: size.into(),
        compressed_size: size.into(),
        file_offset: file_offset.into(),
        uncompressed_offset: (u64::from(index) << 12).into(),
        compressed_offset: (u64::from(index) << 12).into(),
        index: index.into(),
        ..ChunkRecord::default()
    }
}

fn pad8(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// The bootstrap of `records`, in inode table order, with one blob and no extended blob table.
fn build(records: Vec<Record>) -> Vec<u8> {
    let mut body = Vec::new();
    let entries = u32::try_from(records.len()).unwrap();
    let table_len = (records.len() * 4).next_multiple_of(8);
    let blob_table: Vec<u8> = [&[0u8; 8][..], b"blob-id", &[0]].concat();
    let body_at = SUPERBLOCK + table_len + blob_table.len();
    let mut table = Vec::new();
    for mut r in records {
        table.extend(u32::try_from((body_at + body.len()) / 8).unwrap().to_le_bytes());
        r.fixed.name_size = u16::try_from(r.name.len()).unwrap().into();
        r.fixed.symlink_size = u16::try_from(r.target.len()).unwrap().into();
        if !r.xattrs.is_empty() {
            r.fixed.flags = (r.fixed.flags.get() | InodeFlags::XATTR.bits()).into();
        }
        if !r.chunks.is_empty() {
            r.fixed.child_count = u32::try_from(r.chunks.len()).unwrap().into();
        }
        body.extend(r.fixed.as_bytes());
        body.extend(r.name.as_bytes());
        pad8(&mut body);
        body.extend(r.target.as_bytes());
        pad8(&mut body);
        if !r.xattrs.is_empty() {
            body.extend((r.xattrs.len() as u64).to_le_bytes());
            body.extend(&r.xattrs);
            pad8(&mut body);
        }
        body.extend(r.chunks.as_bytes());
    }
    pad8(&mut table);
    let superblock = SuperBlock {
        magic: MAGIC.into(),
        version: VERSION.into(),
        superblock_size: 8192.into(),
        chunk_size: CHUNK_SIZE.into(),
        flags: SuperFlags::EXPLICIT_UID_GID.bits().into(),
        inodes_count: u64::from(entries).into(),
        inode_table_offset: (SUPERBLOCK as u64).into(),
        inode_table_entries: entries.into(),
        blob_table_offset: ((SUPERBLOCK + table_len) as u64).into(),
        blob_table_size: u32::try_from(blob_table.len()).unwrap().into(),
        ..SuperBlock::default()
    };
    let mut bytes = superblock.as_bytes().to_vec();
    bytes.resize(SUPERBLOCK, 0);
    [bytes, table, blob_table, body].concat()
}

fn root(child_count: u32) -> Record {
    let mut root = record("/", 1, 0, 0o040_755);
    root.fixed.child_index = 2.into();
    root.fixed.child_count = child_count.into();
    root
}

fn open(records: Vec<Record>) -> Image {
    Image::from_bytes(build(records), "hand-made").unwrap()
}

#[test]
fn an_image_without_extended_blob_table() {
    let mut file = record("f", 2, 1, 0o100_644);
    file.fixed.size = 0x1800.into();
    file.chunks = vec![chunk(0, 0x1000, 0), chunk(0x1000, 0x800, 0)];
    file.chunks[1].uncompressed_offset = 0x1000.into();
    let image = open(vec![root(1), file]);
    let blob = &image.blobs()[0];
    assert_eq!((blob.id.as_str(), blob.chunk_count, blob.uncompressed_size), ("blob-id", None, 0));
    assert!(image.v5_chunk_indexes_missing());
    let f = image.lookup(&image.inode(InodeNumber(1)).unwrap(), b"f").unwrap().unwrap();
    let offsets: Vec<_> =
        image.chunks(&f, 0, u64::MAX).unwrap().map(|c| c.unwrap().uncompressed_offset).collect();
    assert_eq!(offsets, [0, 0x1000]);
    assert_eq!(image.check().unwrap().chunks, 2);
}

#[test]
fn no_image_lacks_chunk_indexes_when_one_is_set_or_there_are_none() {
    let mut file = record("f", 2, 1, 0o100_644);
    file.fixed.size = 0x1800.into();
    file.chunks = vec![chunk(0, 0x1000, 0), chunk(0x1000, 0x800, 1)];
    assert!(!open(vec![root(1), file]).v5_chunk_indexes_missing());
    assert!(!open(vec![root(0)]).v5_chunk_indexes_missing());
}

#[test]
fn holes_are_gaps_between_chunks() {
    let mut file = record("f", 2, 1, 0o100_644);
    file.fixed.size = 0x10_0000.into();
    file.fixed.flags = InodeFlags::HAS_HOLE.bits().into();
    file.chunks = vec![chunk(0x1000, 0x1000, 0), chunk(0x2000, 0x10, 1), chunk(0x8_0123, 0x1000, 2)];
    let image = open(vec![root(1), file]);
    let f = image.inode(InodeNumber(2)).unwrap();
    let starts = |offset, len| -> Vec<u64> {
        image.chunks(&f, offset, len).unwrap().map(|c| c.unwrap().file_offset).collect()
    };
    for (offset, len, expected) in [
        (0, u64::MAX, &[0x1000, 0x2000, 0x8_0123][..]),
        (0, 0x1000, &[]),
        (0, 0x1001, &[0x1000]),
        (0x1fff, 1, &[0x1000]),
        (0x1fff, 2, &[0x1000, 0x2000]),
        (0x2010, 0x7_e113, &[]),
        (0x2010, 0x7_e114, &[0x8_0123]),
        (0x8_1123, u64::MAX, &[]),
        (0x10_0000, 1, &[]),
    ] {
        assert_eq!(starts(offset, len), expected, "{offset:#x} {len:#x}");
    }
    let second = image.chunks(&f, 0x2000, 1).unwrap().next().unwrap().unwrap();
    let record = image.chunk_record(&second).unwrap();
    assert_eq!((record.index.get(), record.uncompressed_size.get()), (1, 0x10));
    let expected = ChunkRef {
        blob: BlobIndex(0),
        chunk: ChunkIndex(1),
        uncompressed_offset: 0x1000,
        uncompressed_size: 0x10,
        file_offset: 0x2000,
        record: second.record,
    };
    assert_eq!(second, expected);
    assert_eq!(image.check().unwrap().chunks, 3);
}

#[test]
fn chunks_that_overlap_or_leave_the_file_are_corrupt() {
    for chunks in [
        vec![chunk(0, 0x1000, 0), chunk(0xfff, 0x1000, 1)],
        vec![chunk(0x1001, 0x1000, 0)],
        vec![chunk(u64::MAX, 0x1000, 0)],
        vec![chunk(0, 0, 0)],
        vec![chunk(0, 0x1001, 0)],
    ] {
        let mut file = record("f", 2, 1, 0o100_644);
        file.fixed.size = 0x2000.into();
        file.fixed.flags = InodeFlags::HAS_HOLE.bits().into();
        file.chunks = chunks;
        let image = open(vec![root(1), file]);
        let f = image.inode(InodeNumber(2)).unwrap();
        let results: Vec<_> = image.chunks(&f, 0, u64::MAX).unwrap().collect();
        assert!(matches!(results.last(), Some(Err(InodeError::Corrupt { .. }))), "{results:?}");
        image.check().unwrap_err();
    }
}

#[test]
fn every_name_of_a_hardlink_shows_the_first_record() {
    let mut first = record("a", 2, 1, 0o100_644);
    first.fixed.nlink = 2.into();
    first.fixed.uid = 7.into();
    let mut second = record("b", 2, 1, 0o100_600);
    second.fixed.nlink = 2.into();
    second.fixed.uid = 8.into();
    second.fixed.rdev = u32::MAX.into();
    let mut bytes = build(vec![root(2), first, second]);
    bytes[24] = 2;
    let image = Image::from_bytes(bytes, "hardlink").unwrap();
    let dir = image.inode(image.root()).unwrap();
    for name in [b"a", b"b"] {
        let inode = image.lookup(&dir, name).unwrap().unwrap();
        assert_eq!((inode.number.0, inode.mode, inode.uid, inode.rdev), (2, 0o100_644, 7, 0));
    }
    let numbers: Vec<_> = image.read_dir(&dir, 2).unwrap().map(|e| e.unwrap().number.0).collect();
    assert_eq!(numbers, [2, 2]);
    assert_eq!(image.inode(InodeNumber(3)).unwrap_err(), InodeError::NotFound(InodeNumber(3)));
    let summary = image.check().unwrap();
    assert_eq!((summary.files, summary.hardlinks), (2, 1));
}

#[test]
fn numbers_outside_the_table_are_not_found() {
    let image = open(vec![root(0)]);
    assert_eq!(image.max_inode_number(), 1);
    for number in [0, 2, u64::from(u32::MAX), 1 << 32 | 1, 1 << 56, u64::MAX].map(InodeNumber) {
        assert_eq!(image.inode(number).unwrap_err(), InodeError::NotFound(number));
    }
}

#[test]
fn times_devices_targets_and_xattrs() {
    let mut device = record("dev", 2, 1, 0o020_600);
    device.fixed.rdev = 0x0010_2af3.into();
    device.fixed.mtime_sec = (-5i64).cast_unsigned().into();
    device.fixed.mtime_nsec = 999_999_999.into();
    let mut fifo = record("fifo", 3, 1, 0o010_600);
    fifo.fixed.rdev = u32::MAX.into();
    let mut link = record("link", 4, 1, 0o120_777);
    link.target = "some/where";
    link.fixed.size = 10.into();
    link.xattrs =
        [&11u32.to_le_bytes()[..], b"user.a\0", b"\0xy\xff", &8u32.to_le_bytes(), b"user.bc\0"].concat();
    let image = open(vec![root(3), device, fifo, link]);
    let device = image.inode(InodeNumber(2)).unwrap();
    assert_eq!(
        (device.kind, device.rdev, device.mtime_sec, device.mtime_nsec),
        (FileKind::CharDevice, 0x0010_2af3, -5, 999_999_999)
    );
    assert_eq!(image.inode(InodeNumber(3)).unwrap().rdev, 0);
    let link = image.inode(InodeNumber(4)).unwrap();
    assert_eq!(image.read_link(&link).unwrap(), b"some/where");
    assert_eq!(image.read_link(&device), Err(InodeError::NotASymlink(device.number)));
    let xattrs: Vec<_> =
        image.xattrs(&link).unwrap().map(|x| x.unwrap()).map(|x| (x.suffix, x.value)).collect();
    assert_eq!(xattrs, [(&b"user.a"[..], &b"\0xy\xff"[..]), (b"user.bc", b"")]);
}

#[test]
fn broken_records_are_refused() {
    type Break = fn(&mut Record);
    let table: [(&str, Break); 14] = [
        ("links", |r| r.fixed.nlink = 0.into()),
        ("file type", |r| r.fixed.mode = 0o644.into()),
        ("file type", |r| r.fixed.mode = 0x1_81a4.into()),
        ("another number", |r| r.fixed.ino = 1.into()),
        ("another number", |r| r.fixed.ino = 3.into()),
        ("parent", |r| r.fixed.parent = 0.into()),
        ("parent", |r| r.fixed.parent = 2.into()),
        ("nanoseconds", |r| r.fixed.mtime_nsec = 1_000_000_000.into()),
        ("size", |r| r.fixed.size = 1.into()),
        ("number of chunks", |r| r.fixed.child_count = 1.into()),
        ("outside the file", |r| r.fixed.child_count = u32::MAX.into()),
        ("children", |r| (r.fixed.mode, r.fixed.child_count) = (0o040_755.into(), 1.into())),
        ("children", |r| {
            r.fixed.mode = 0o040_755.into();
            (r.fixed.child_index, r.fixed.child_count) = (u32::MAX.into(), u32::MAX.into());
        }),
        ("target", |r| r.fixed.mode = 0o120_777.into()),
    ];
    for (what, break_it) in table {
        // One record more, so that the chunk records asked for are inside the file.
        let (mut broken, mut last) = (record("f", 2, 1, 0o100_644), record("g", 3, 1, 0o100_644));
        last.fixed.size = 0x1000.into();
        last.chunks = vec![chunk(0, 0x1000, 0)];
        break_it(&mut broken);
        let image = open(vec![root(2), broken, last]);
        let error = image.inode(InodeNumber(2)).unwrap_err();
        assert!(matches!(error, InodeError::Corrupt { .. }), "{what}");
        assert!(error.to_string().contains(what), "{error} / {what}");
        let message = image.check().unwrap_err().to_string();
        assert!(message.starts_with('/'), "{message}");
    }
}

#[test]
fn names_that_lead_elsewhere_are_not_listed() {
    for name in ["..", ".", "a/b", "/", "a\0b"] {
        let image = open(vec![root(1), record(name, 2, 1, 0o100_644)]);
        let dir = image.inode(image.root()).unwrap();
        let entries: Vec<_> = image.read_dir(&dir, 0).unwrap().collect();
        assert_eq!(entries.len(), 3);
        assert!(matches!(entries[2], Err(InodeError::Corrupt { .. })), "{name:?}");
        image.check().unwrap_err();
    }
}

#[test]
fn a_check_sees_the_order_of_names_and_shared_slots() {
    let files = |a, b| vec![root(2), record(a, 2, 1, 0o100_644), record(b, 3, 1, 0o100_644)];
    assert_eq!(open(files("a", "b")).check().unwrap().files, 2);
    let message = open(files("b", "a")).check().unwrap_err().to_string();
    assert_eq!(message, "/a: entry \"a\" does not sort behind \"b\"");
    open(files("a", "a")).check().unwrap_err();

    let dir = |name, ino| {
        let mut dir = record(name, ino, 1, 0o040_755);
        (dir.fixed.child_index, dir.fixed.child_count) = (4.into(), 1.into());
        dir
    };
    let shared = vec![root(2), dir("a", 2), dir("b", 3), record("f", 4, 2, 0o100_644)];
    assert_eq!(
        open(shared).check().unwrap_err().to_string(),
        "/b: inode table slot 4 belongs to two directories"
    );
}
