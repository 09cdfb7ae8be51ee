//! A small v6 image made by hand, for the forms that the reference builder does not write and for what none
//! should.

use crate::ids::{BlobIndex, ChunkIndex, InodeNumber};
use crate::image::{ChunkRef, FileKind, Image, Inode, InodeError};
use crate::layout::SuperFlags;
use crate::layout::blob::BlobFeatures;
use crate::layout::v6::*;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

const BLOB_TABLE: usize = 4096;
const META: usize = 8192;
/// nids with room for an extended inode and a tail each.
const ROOT: u64 = 128;
const FILE: u64 = 144;
const LINK: u64 = 160;
const DEVICE: u64 = 176;
const DIR: u64 = 192;
/// Byte offset of free data blocks.
const DATA: usize = META + 8192;
const DIR_MODE: u16 = 0o040_755;

fn at(nid: u64) -> usize {
    META + usize::try_from(nid).unwrap() * 32
}

fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    bytes[offset..offset + value.len()].copy_from_slice(value);
}

/// Superblocks, one blob of 16 MiB, and a root directory that lists `entries`.
fn image_bytes(tarfs: bool, entries: &[(&str, u64, u8)]) -> Vec<u8> {
    let mut bytes = vec![0; META + 8 * 4096];
    let bits = if tarfs { BLOCK_BITS_TARFS } else { BLOCK_BITS };
    let blocks = u32::try_from((16 << 20) >> bits).unwrap();
    let mut sb = SuperBlock::new_zeroed();
    sb.magic = MAGIC.into();
    sb.feature_compat = COMPAT_RAFS_V6.into();
    sb.block_bits = bits;
    sb.root_nid = 128.into();
    sb.inodes_count = (entries.len() as u64 - 1).into();
    sb.blocks = blocks.into();
    sb.meta_blkaddr = u32::try_from(META >> bits).unwrap().into();
    sb.feature_incompat = INCOMPAT.into();
    sb.extra_devices = 1.into();
    sb.device_table_slot = DEVICE_TABLE_SLOT.into();
    put(&mut bytes, SUPERBLOCK_OFFSET, sb.as_bytes());
    let mut flags = SuperFlags::COMPRESSION_NONE | SuperFlags::HASH_SHA256 | SuperFlags::EXPLICIT_UID_GID;
    flags.set(SuperFlags::TARFS_MODE, tarfs);
    let mut ext = ExtendedSuperBlock::new_zeroed();
    ext.flags = flags.bits().into();
    ext.blob_table_offset = (BLOB_TABLE as u64).into();
    ext.blob_table_size = 256.into();
    ext.chunk_size = 0x1000.into();
    put(&mut bytes, EXTENDED_SUPERBLOCK_OFFSET, ext.as_bytes());
    let mut slot = DeviceSlot::new_zeroed();
    slot.blob_id[..4].copy_from_slice(b"blob");
    slot.blocks = blocks.into();
    put(&mut bytes, DEVICE_SLOTS_OFFSET, slot.as_bytes());
    let mut blob = BlobEntry::new_zeroed();
    blob.blob_id[..4].copy_from_slice(b"blob");
    blob.chunk_size = 0x1000.into();
    blob.chunk_count = 4096.into();
    blob.uncompressed_size = (16 << 20).into();
    blob.compressed_size = (16 << 20).into();
    let features = if tarfs { BlobFeatures::TARFS } else { BlobFeatures::ALIGNED };
    blob.features = features.bits().into();
    if !tarfs {
        blob.ci_compressed_size = (16 * 4096).into();
        blob.ci_uncompressed_size = (16 * 4096).into();
    }
    put(&mut bytes, BLOB_TABLE, blob.as_bytes());
    directory(&mut bytes, ROOT, entries);
    bytes
}

/// The data of a directory that fits in one block.
fn block(entries: &[(&str, u64, u8)]) -> Vec<u8> {
    let mut heads = Vec::new();
    let mut names = Vec::new();
    for (name, nid, file_type) in entries {
        let name_offset = u16::try_from(entries.len() * 12 + names.len()).unwrap();
        let dirent = Dirent {
            nid: (*nid).into(),
            name_offset: name_offset.into(),
            file_type: *file_type,
            reserved: 0,
        };
        heads.extend(dirent.as_bytes());
        names.extend(name.as_bytes());
    }
    [heads, names].concat()
}

/// A compact directory inode with its data inline.
fn directory(bytes: &mut [u8], nid: u64, entries: &[(&str, u64, u8)]) {
    let data = block(entries);
    let mut inode = compact(LAYOUT_FLAT_INLINE, DIR_MODE, u32::try_from(data.len()).unwrap());
    inode.nlink = 2.into();
    put(bytes, at(nid), inode.as_bytes());
    put(bytes, at(nid) + 32, &data);
}

fn compact(layout: u16, mode: u16, size: u32) -> CompactInode {
    let mut inode = CompactInode::new_zeroed();
    inode.format = (layout << 1).into();
    inode.mode = mode.into();
    inode.nlink = 1.into();
    inode.size = size.into();
    inode.uid = 65_535.into();
    inode.gid = 12.into();
    inode
}

fn extended(layout: u16, mode: u16, size: u64) -> ExtendedInode {
    let mut inode = ExtendedInode::new_zeroed();
    inode.format = (layout << 1 | 1).into();
    inode.mode = mode.into();
    inode.nlink = 1.into();
    inode.size = size.into();
    inode
}

fn address(chunk: u32, device: u8, block: u32) -> ChunkAddress {
    let [lo0, lo1, hi, _] = chunk.to_le_bytes();
    ChunkAddress {
        chunk_lo: u16::from_le_bytes([lo0, lo1]).into(),
        device,
        chunk_hi: hi,
        block: block.into(),
    }
}

const ALL: &[(&str, u64, u8)] = &[
    (".", ROOT, file_type::DIRECTORY),
    ("..", ROOT, file_type::DIRECTORY),
    ("device", DEVICE, file_type::CHAR),
    ("file", FILE, file_type::REGULAR),
    ("link", LINK, file_type::SYMLINK),
];

/// All kinds of compact inodes.
fn compact_image() -> Vec<u8> {
    let mut bytes = image_bytes(false, ALL);
    let mut device = compact(LAYOUT_FLAT_PLAIN, 0o020_600, 0);
    device.u = 0x103.into();
    put(&mut bytes, at(DEVICE), device.as_bytes());
    let mut file = compact(LAYOUT_CHUNK_BASED, 0o104_755, 0x1801);
    // The chunk size bits for the kernel say 8 KiB; a reader must not listen.
    file.u = 0x21.into();
    file.xattr_icount = 5.into();
    put(&mut bytes, at(FILE), file.as_bytes());
    let xattrs: Vec<u8> = [
        &[0u8; 12][..],
        &[1, 1, 2, 0, b'a', b'v', b'w', 0], // user.a = vw
        &[0, 2, 3, 0, 1, 2, 3, 0],          // system.posix_acl_access = 1 2 3
    ]
    .concat();
    put(&mut bytes, at(FILE) + 32, &xattrs);
    // 32 bytes of inode and 28 of xattrs: the addresses start at the next multiple of 8.
    let addresses = [address(0x0102, 1, 7), address(0x0003, 1, 4095)];
    put(&mut bytes, at(FILE) + 64, addresses.as_bytes());
    put(&mut bytes, at(LINK), compact(LAYOUT_FLAT_INLINE, 0o120_777, 5).as_bytes());
    put(&mut bytes, at(LINK) + 32, b"where");
    bytes
}

fn open(bytes: Vec<u8>) -> Image {
    Image::from_bytes(bytes, "hand-made").unwrap()
}

fn by_name(image: &Image, name: &str) -> Inode {
    let root = image.inode(image.root()).unwrap();
    image.lookup(&root, name.as_bytes()).unwrap().unwrap()
}

#[test]
fn compact_inodes() {
    let image = open(compact_image());
    let root = image.inode(image.root()).unwrap();
    assert_eq!((root.kind, root.nlink, root.mtime_sec), (FileKind::Directory, 2, 0));
    for name in [".", ".."] {
        assert_eq!(by_name(&image, name).number, root.number);
    }
    let file = by_name(&image, "file");
    assert_eq!((file.mode, file.uid, file.gid, file.size, file.blocks), (0o104_755, 65_535, 12, 0x1801, 13));
    let chunks: Vec<_> = image.chunks(&file, 0, u64::MAX).unwrap().map(|c| c.unwrap()).collect();
    let chunk = |chunk, uncompressed_offset, uncompressed_size, file_offset| ChunkRef {
        blob: BlobIndex(0),
        chunk: ChunkIndex(chunk),
        uncompressed_offset,
        uncompressed_size,
        file_offset,
        record: 0,
    };
    assert_eq!(chunks, [chunk(0x0102, 7 << 12, 0x1000, 0), chunk(3, 4095 << 12, 0x801, 0x1000)]);
    let xattrs: Vec<_> = image.xattrs(&file).unwrap().map(|x| x.unwrap()).collect();
    let plain: Vec<_> = xattrs.iter().map(|x| (x.prefix, x.suffix, x.value)).collect();
    let acl = (&b"system.posix_acl_access"[..], &b""[..], &[1, 2, 3][..]);
    assert_eq!(plain, [(&b"user."[..], &b"a"[..], &b"vw"[..]), acl]);
    assert!(xattrs[0].is_called(b"user.a") && xattrs[1].is_called(b"system.posix_acl_access"));
    assert_eq!(image.read_link(&by_name(&image, "link")).unwrap(), b"where");
    // Compact inodes have no device number (rafs-v6.md section 15).
    assert_eq!(by_name(&image, "device").rdev, 0);
    let summary = image.check().unwrap();
    assert_eq!((summary.names(), summary.chunks, summary.xattrs), (4, 2, 2));
}

#[test]
fn an_extended_device_and_a_time_before_1970() {
    let mut bytes = compact_image();
    let mut device = extended(LAYOUT_FLAT_PLAIN, 0o060_600, 0);
    device.u = 0x0010_2af3.into();
    device.mtime_sec = (-1i64).cast_unsigned().into();
    device.mtime_nsec = 5.into();
    put(&mut bytes, at(DEVICE), device.as_bytes());
    let mut fifo = extended(LAYOUT_FLAT_PLAIN, 0o010_600, 0);
    fifo.u = u32::MAX.into();
    put(&mut bytes, at(LINK), fifo.as_bytes());
    let image = open(bytes);
    let device = by_name(&image, "device");
    assert_eq!(
        (device.kind, device.rdev, device.mtime_sec, device.mtime_nsec),
        (FileKind::BlockDevice, 0x0010_2af3, -1, 5)
    );
    assert_eq!(by_name(&image, "link").rdev, 0);
    let message = image.check().unwrap_err().to_string();
    assert_eq!(message, "/device: the directory entry says CharDevice, the inode BlockDevice");
}

#[test]
fn owners_of_images_without_any() {
    let mut bytes = compact_image();
    let ext = ExtendedSuperBlock::mut_from_bytes(&mut bytes[EXTENDED_SUPERBLOCK_OFFSET..DEVICE_SLOTS_OFFSET])
        .unwrap();
    ext.flags = (ext.flags.get() & !SuperFlags::EXPLICIT_UID_GID.bits()).into();
    let file = by_name(&open(bytes), "file");
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    assert_eq!((file.uid, file.gid), (uid, gid));
}

#[test]
fn tarfs_blocks_are_512_bytes() {
    let mut bytes = image_bytes(true, ALL);
    put(&mut bytes, at(DEVICE), extended(LAYOUT_FLAT_PLAIN, 0o020_600, 0).as_bytes());
    let file = extended(LAYOUT_CHUNK_BASED, 0o100_644, 0x1001);
    put(&mut bytes, at(FILE), file.as_bytes());
    // Chunk numbers of tar files have no meaning and no limit.
    put(&mut bytes, at(FILE) + 64, [address(0xff_ffff, 1, 3), address(0, 1, 11)].as_bytes());
    let mut link = extended(LAYOUT_FLAT_INLINE, 0o120_777, 1100);
    let target: Vec<u8> = (0..1100u32).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect();
    link.u = u32::try_from(DATA / 512).unwrap().into();
    put(&mut bytes, at(LINK), link.as_bytes());
    put(&mut bytes, DATA, &target[..1024]);
    put(&mut bytes, at(LINK) + 64, &target[1024..]);
    let image = open(bytes);
    assert_eq!(image.block_size(), 512);
    let file = by_name(&image, "file");
    let chunks: Vec<_> = image.chunks(&file, 0, u64::MAX).unwrap().map(|c| c.unwrap()).collect();
    let places: Vec<_> = chunks.iter().map(|c| (c.uncompressed_offset, c.uncompressed_size)).collect();
    assert_eq!(places, [(3 * 512, 0x1000), (11 * 512, 1)]);
    assert_eq!(image.read_link(&by_name(&image, "link")).unwrap(), target);
    assert_eq!(image.check().unwrap().names(), 4);
}

#[test]
fn directories_of_several_blocks_inline_and_plain() {
    let blocks: [&[(&str, u64, u8)]; 3] = [
        &[("!a", FILE, 1), (".", DIR, 2), ("..", ROOT, 2)],
        &[("b", FILE, 1)],
        &[("c", FILE, 1), ("d", FILE, 1)],
    ];
    let top = [(".", ROOT, 2), ("..", ROOT, 2), ("dir", DIR, 2)];
    for inline in [false, true] {
        let mut bytes = image_bytes(true, &top);
        bytes[SUPERBLOCK_OFFSET + 16] = 6;
        put(&mut bytes, at(FILE), extended(LAYOUT_CHUNK_BASED, 0o100_644, 0).as_bytes());
        let last = block(blocks[2]);
        let layout = if inline { LAYOUT_FLAT_INLINE } else { LAYOUT_FLAT_PLAIN };
        let mut dir = extended(layout, DIR_MODE, 1024 + last.len() as u64);
        dir.u = u32::try_from(DATA / 512).unwrap().into();
        put(&mut bytes, at(DIR), dir.as_bytes());
        put(&mut bytes, DATA, &block(blocks[0]));
        put(&mut bytes, DATA + 512, &block(blocks[1]));
        put(&mut bytes, if inline { at(DIR) + 64 } else { DATA + 1024 }, &last);
        let image = open(bytes);
        let dir = by_name(&image, "dir");
        let list = |cookie| -> Vec<(Vec<u8>, u64)> {
            let entries = image.read_dir(&dir, cookie).unwrap().map(|e| e.unwrap());
            entries.map(|e| (e.name.to_vec(), e.next_cookie)).collect()
        };
        let all = list(0);
        let names: Vec<_> = all.iter().map(|e| e.0.as_slice()).collect();
        assert_eq!(names, [&b"!a"[..], b".", b"..", b"b", b"c", b"d"]);
        for (position, (name, cookie)) in all.iter().enumerate() {
            assert_eq!(list(*cookie), all[position + 1..]);
            assert!(image.lookup(&dir, name).unwrap().is_some());
        }
        for name in [&b"!"[..], b"!b", b".a", b"aa", b"bb", b"cc", b"e"] {
            assert!(image.lookup(&dir, name).unwrap().is_none());
        }
        for cookie in [4, 2 << 16 | 3, 3 << 16, u64::MAX] {
            assert_eq!(list(cookie), [], "{cookie:#x}");
        }
        assert_eq!(image.lookup(&dir, b"..").unwrap().unwrap().number, image.root());
        assert_eq!(image.check().unwrap().files, 4);
    }
}

#[test]
fn entries_of_unknown_type_show_the_type_of_the_inode() {
    let mut entries = ALL.to_vec();
    entries[4].2 = file_type::UNKNOWN;
    let mut bytes = compact_image();
    directory(&mut bytes, ROOT, &entries);
    let image = open(bytes);
    let root = image.inode(image.root()).unwrap();
    let last = image.read_dir(&root, 0).unwrap().last().unwrap().unwrap();
    assert_eq!((last.name, last.kind), (&b"link"[..], FileKind::Symlink));
}

#[test]
fn any_number_is_answered() {
    let image = open(compact_image());
    let max = image.max_inode_number();
    assert!(max < 1 << 56);
    for number in [max + 1, 1 << 56, 1 << 59, u64::MAX / 32, u64::MAX].map(InodeNumber) {
        assert_eq!(image.inode(number).unwrap_err(), InodeError::NotFound(number));
    }
    let found = (0..=max).filter(|n| image.inode(InodeNumber(*n)).is_ok()).count();
    assert_eq!(found, 4);
}

#[test]
fn broken_inodes_are_refused() {
    type Break = fn(&mut ExtendedInode);
    let table: [(&str, Break); 16] = [
        ("unknown bits", |i| i.format = 0x11.into()),
        ("layout", |i| i.format = (1 << 1 | 1).into()),
        ("layout", |i| i.format = (3 << 1 | 1).into()),
        ("layout", |i| i.format = (LAYOUT_FLAT_PLAIN << 1 | 1).into()),
        ("layout", |i| i.mode = 0o120_777.into()),
        ("layout", |i| i.mode = 0o010_600.into()),
        ("file type", |i| i.mode = 0o644.into()),
        ("links", |i| i.nlink = 0.into()),
        ("nanoseconds", |i| i.mtime_nsec = u32::MAX.into()),
        ("chunk addresses", |i| i.size = u64::MAX.into()),
        ("chunk addresses", |i| i.size = (1 << 40).into()),
        ("xattrs", |i| i.xattr_icount = u16::MAX.into()),
        ("data blocks", |i| set(i, LAYOUT_FLAT_PLAIN, DIR_MODE, 4096, u32::MAX)),
        ("data blocks", |i| set(i, LAYOUT_FLAT_INLINE, DIR_MODE, u64::MAX, 0)),
        ("symlink target", |i| set(i, LAYOUT_FLAT_INLINE, 0o120_777, 0, 0)),
        ("symlink target", |i| set(i, LAYOUT_FLAT_PLAIN, 0o120_777, 4097, 0)),
    ];
    fn set(inode: &mut ExtendedInode, layout: u16, mode: u16, size: u64, u: u32) {
        inode.format = (layout << 1 | 1).into();
        inode.mode = mode.into();
        inode.size = size.into();
        inode.u = u.into();
    }
    for (what, break_it) in table {
        let mut inode = extended(LAYOUT_CHUNK_BASED, 0o100_644, 0x1000);
        break_it(&mut inode);
        let mut bytes = compact_image();
        put(&mut bytes, at(FILE), inode.as_bytes());
        let image = open(bytes);
        let error = image.inode(InodeNumber(FILE)).unwrap_err();
        assert!(matches!(error, InodeError::Corrupt { .. }), "{what}");
        assert!(error.to_string().contains(what), "{error} / {what}");
        assert!(image.check().unwrap_err().to_string().starts_with("/file: "));
    }
}

#[test]
fn broken_chunk_addresses_are_refused() {
    for (what, bad) in [
        ("no blob", address(0, 0, 0)),
        ("blob table", address(0, 2, 0)),
        ("outside its blob", address(4096, 1, 0)),
        ("outside its blob", address(0, 1, 4096)),
        ("outside its blob", address(0, 1, u32::MAX)),
    ] {
        let mut bytes = compact_image();
        put(&mut bytes, at(FILE) + 64, bad.as_bytes());
        let image = open(bytes);
        let file = by_name(&image, "file");
        let error = image.chunks(&file, 0, u64::MAX).unwrap().last().unwrap().unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        assert!(image.chunks(&file, 0x1000, 1).unwrap().all(|c| c.is_ok()));
    }
}

#[test]
fn broken_xattrs_are_refused() {
    for (what, offset, value) in [
        ("shared", 4, 1),
        ("prefix", 13, 5),
        ("prefix", 13, 0),
        ("not a name", 12, 0),
        ("not a name", 20, 1),
        ("fit", 14, 200),
        ("fit", 12, 200),
    ] {
        let mut bytes = compact_image();
        bytes[at(FILE) + 32 + offset] = value;
        let image = open(bytes);
        let file = by_name(&image, "file");
        let error = image.xattrs(&file).and_then(|mut all| all.find_map(Result::err).map_or(Ok(()), Err));
        let error = error.unwrap_err().to_string();
        assert!(error.contains(what), "{error} / {what}");
    }
}

#[test]
fn broken_directories_are_refused() {
    for (offset, value) in [(8, 0), (8, 13), (8, 255), (9, 255), (20, 60), (20, 255), (10, 8), (60, b'/')] {
        let mut bytes = compact_image();
        bytes[at(ROOT) + 32 + offset] = value;
        let image = open(bytes);
        let root = image.inode(image.root()).unwrap();
        let entries: Vec<_> = image.read_dir(&root, 0).unwrap().collect();
        let ends_in_error = matches!(entries.last(), Some(Err(InodeError::Corrupt { .. })));
        assert!(ends_in_error, "{offset} {value}: {entries:?}");
        assert!(image.check().is_err(), "{offset} {value}");
    }
}

#[test]
fn a_check_sees_dots_loops_and_order() {
    let check = |entries: &[(&str, u64, u8)]| {
        let mut bytes = compact_image();
        directory(&mut bytes, ROOT, entries);
        open(bytes).check().unwrap_err().to_string()
    };
    let with = |position: usize, entry| {
        let mut entries = ALL.to_vec();
        entries[position] = entry;
        check(&entries)
    };
    assert!(with(1, ("..", DIR, 2)).starts_with("/: "));
    assert!(with(0, (".", FILE, 1)).contains("entry \".\" leads to"));
    assert!(with(1, ("..", ROOT, 1)).contains("says Regular"));
    assert!(with(2, ("device", ROOT, 2)).contains("second name"));
    assert!(with(4, ("a", LINK, 7)).contains("does not sort behind"));
    assert!(check(&ALL[..4]).contains("counts 4 inodes, the tree has 3"));
}
