//! What both versions have in common once a bootstrap is open.
//!
//! Owns: superblock facts, the blob table in its common form, rules for blob ids. Does not own: inodes.

use super::blob_info::BlobInfo;
use super::error::Defect;
use super::inode::{FileKind, Inode};
use super::map::Bytes;
use crate::codec::{Compressor, Digester};
use crate::ids::InodeNumber;
use crate::layout::blob::BlobFeatures;
use crate::layout::{CHUNK_SIZE_MAX, CHUNK_SIZE_MIN, SuperFlags};

/// Longest blob id, bytes.
pub(crate) const BLOB_ID_MAX: usize = 64;
/// Largest blob file, bytes (rafs-v6.md section 5; v5 is held to the same).
pub(crate) const COMPRESSED_SIZE_MAX: u64 = 1 << 40;
/// Largest uncompressed address space, bytes (same source).
pub(crate) const UNCOMPRESSED_SIZE_MAX: u64 = 1 << 44;
/// The only name with a slash that exists: the file of a generated chunk dictionary (build-rules.md section 7).
const CHUNK_DICT_NAME: &[u8] = b"/chunkdict";

/// Everything the decoders of both versions work on.
#[derive(Debug)]
pub(crate) struct Base {
    pub(crate) bytes: Bytes,
    pub(crate) flags: SuperFlags,
    pub(crate) chunk_size: u32,
    pub(crate) block_size: u32,
    pub(crate) compressor: Compressor,
    pub(crate) digester: Digester,
    pub(crate) root: InodeNumber,
    pub(crate) inode_count: u64,
    pub(crate) max_inode_number: u64,
    pub(crate) blobs: Vec<BlobInfo>,
    /// One for each blob: what a chunk reference is checked against, without the cold rest.
    pub(crate) limits: Vec<BlobLimits>,
    /// Owner of every inode when the image does not say.
    pub(crate) owner: Option<(u32, u32)>,
}

/// Bounds for chunk references into one blob.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlobLimits {
    /// Chunk indexes are below this; `u32::MAX` when unknown.
    chunks: u32,
    /// Uncompressed ends are at most this; the format's maximum when unknown.
    uncompressed_size: u64,
}

impl BlobLimits {
    pub(crate) fn of(blob: &BlobInfo) -> Self {
        let free = blob.features.intersects(BlobFeatures::TARFS | BlobFeatures::IS_CHUNKDICT_GENERATED);
        let chunks = if free { None } else { blob.chunk_count };
        let size = blob.uncompressed_size;
        let unknown = size == 0 || blob.features.contains(BlobFeatures::IS_CHUNKDICT_GENERATED);
        Self {
            chunks: chunks.unwrap_or(u32::MAX),
            uncompressed_size: if unknown { UNCOMPRESSED_SIZE_MAX } else { size },
        }
    }

    /// Whether chunk `index` at `offset` with `size` plain bytes can exist.
    #[inline]
    pub(crate) fn admit(&self, index: u32, offset: u64, size: u32) -> bool {
        index < self.chunks
            && offset.checked_add(u64::from(size)).is_some_and(|end| end <= self.uncompressed_size)
    }
}

/// The file name that a bootstrap was read from, as far as blob ids depend on it (blob.md section 6).
pub(crate) struct Origin<'a> {
    /// File name up to the first dot.
    pub(crate) stem: &'a str,
    /// True when the bootstrap lay inside that file.
    pub(crate) inlined: bool,
    /// True when the file is named like a bootstrap extracted from a blob: 64 hex digits and an extension.
    pub(crate) extracted: bool,
}

impl<'a> Origin<'a> {
    pub(crate) fn new(file_name: &'a str, inlined: bool) -> Self {
        let (stem, extension) = match file_name.split_once('.') {
            Some((stem, _)) => (stem, true),
            None => (file_name, false),
        };
        let hex = stem.len() == BLOB_ID_MAX && stem.bytes().all(|b| b.is_ascii_hexdigit());
        Self { stem, inlined, extracted: extension && hex }
    }

    /// The id of a blob that the table calls `stored`. A builder cannot know the id of the blob it is about
    /// to put the bootstrap into, so there the file name counts. Before CAP_TAR_TOC such a blob, the
    /// last one, is not even marked.
    pub(crate) fn blob_id(&self, stored: &str, features: BlobFeatures, last: bool) -> String {
        let own =
            features.contains(BlobFeatures::INLINED_FS_META) && !features.contains(BlobFeatures::SEPARATE);
        let placeholder = stored.len() == BLOB_ID_MAX && stored.bytes().all(|b| b == b'x');
        let old = last && !features.contains(BlobFeatures::CAP_TAR_TOC);
        let from_blob = self.inlined || self.extracted;
        if (own && (from_blob || placeholder)) || (old && from_blob) {
            return self.stem.to_owned();
        }
        stored.to_owned()
    }
}

/// The text of a blob id. Ids become file names and object names, so one that could lead elsewhere is
/// refused.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn blob_id(bytes: &[u8]) -> Result<&str, &'static str> {
    if bytes.is_empty() || bytes.len() > BLOB_ID_MAX {
        return Err("its id is not 1 to 64 bytes long");
    }
    let id = std::str::from_utf8(bytes).map_err(|_| "its id is not UTF-8")?;
    if id == "." || id == ".." || id.bytes().any(|b| b == b'/' || b == 0) {
        return Err("its id cannot be a file name");
    }
    Ok(id)
}

/// Checks a superblock's chunk size.
///
/// # Errors
/// [`Defect::Field`].
pub(crate) fn check_chunk_size(size: u32) -> Result<(), Defect> {
    if size.is_power_of_two() && (CHUNK_SIZE_MIN..=CHUNK_SIZE_MAX).contains(&size) {
        return Ok(());
    }
    let expected = "a power of two from 0x1000 to 0x1000000";
    Err(Defect::Field { field: "the superblock's chunk size", value: u64::from(size), expected })
}

/// The flags, all of them known.
///
/// # Errors
/// [`Defect::Flags`].
pub(crate) fn super_flags(bits: u64) -> Result<SuperFlags, Defect> {
    SuperFlags::from_bits(bits)
        .ok_or(Defect::Flags { flags: bits, what: "have bits of an unknown, newer feature" })
}

/// Effective ids of this process when the image has no owners of its own.
pub(crate) fn owner(flags: SuperFlags) -> Option<(u32, u32)> {
    if flags.contains(SuperFlags::EXPLICIT_UID_GID) {
        return None;
    }
    Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()))
}

/// File type in the high bits of `mode`.
#[inline]
pub(crate) fn kind_of_mode(mode: u32) -> Option<FileKind> {
    Some(match mode >> 12 {
        0o01 => FileKind::Fifo,
        0o02 => FileKind::CharDevice,
        0o04 => FileKind::Directory,
        0o06 => FileKind::BlockDevice,
        0o10 => FileKind::Regular,
        0o12 => FileKind::Symlink,
        0o14 => FileKind::Socket,
        _ => return None,
    })
}

/// A slash in each byte.
const SLASHES: u64 = u64::from_ne_bytes([b'/'; 8]);

/// Not 0 exactly when one of the bytes of `word` is 0.
#[inline]
fn zero_bytes(word: u64) -> u64 {
    word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080
}

/// Whether a stored name may be listed: no NUL, no slash. The FUSE client refuses a listing with such a name,
/// and tools would follow it out of the tree.
#[inline]
pub(crate) fn name_is_sound(name: &[u8]) -> bool {
    // Eight bytes at a time: names are listed by the thousand, and a byte loop was a third of the cost.
    let (words, rest) = name.as_chunks::<8>();
    let words = words.iter().map(|w| u64::from_ne_bytes(*w));
    let bad = words.fold(0, |bad, w| bad | zero_bytes(w) | zero_bytes(w ^ SLASHES)) != 0
        || rest.iter().any(|b| *b == 0 || *b == b'/');
    !name.is_empty() && (!bad || name == CHUNK_DICT_NAME)
}

/// Checks on an inode that do not depend on the version.
#[inline]
pub(crate) fn check_common(inode: &Inode) -> Result<(), &'static str> {
    if inode.nlink == 0 {
        return Err("it has no links");
    }
    if inode.mtime_nsec >= 1_000_000_000 {
        return Err("its modification time has more than 999999999 nanoseconds");
    }
    if inode.size > i64::MAX.cast_unsigned() {
        return Err("its size is 2^63 or more");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "a8636169b4beb51f72927459245fefad6e553441bf92c40c2a0bd2921b2ab6f6";

    #[test]
    fn ids_that_could_lead_elsewhere_are_refused() {
        for good in ["a", HEX, "my blob", "...", "é"] {
            assert_eq!(blob_id(good.as_bytes()), Ok(good));
        }
        let long = [b'a'; 65];
        for bad in [&b""[..], b".", b"..", b"a/b", b"/etc/passwd", b"\xff", b"a\0b", &long] {
            assert!(blob_id(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn ids_come_from_the_file_name_only_for_the_own_blob() {
        let x = "x".repeat(64);
        let (plain, own) =
            (BlobFeatures::CAP_TAR_TOC, BlobFeatures::CAP_TAR_TOC | BlobFeatures::INLINED_FS_META);
        let dotted = format!("{HEX}.boot");
        let inlined = Origin::new(HEX, true);
        let extracted = Origin::new(&dotted, false);
        let ordinary = Origin::new("image.boot", false);
        let by_digest = Origin::new(HEX, false);
        for (origin, stored, features, last, expected) in [
            (&inlined, x.as_str(), own, true, HEX),
            (&inlined, "base", plain, false, "base"),
            (&inlined, "sep", own | BlobFeatures::SEPARATE, true, "sep"),
            (&inlined, "old", BlobFeatures::empty(), true, HEX),
            (&inlined, "old", BlobFeatures::empty(), false, "old"),
            (&extracted, x.as_str(), own, true, HEX),
            (&extracted, "old", BlobFeatures::empty(), true, HEX),
            (&ordinary, "known", own, true, "known"),
            (&ordinary, x.as_str(), own, true, "image"),
            (&ordinary, "old", BlobFeatures::empty(), true, "old"),
            (&by_digest, "old", BlobFeatures::empty(), true, "old"),
        ] {
            assert_eq!(origin.blob_id(stored, features, last), expected, "{stored} {features:?}");
        }
    }

    #[test]
    fn names() {
        for good in
            [&b"a"[..], b"..", b"\xff", b"/chunkdict", b"0123456.", b"\x01\x80\x2e\x30\xaf\xff\x81\x01"]
        {
            assert!(name_is_sound(good), "{good:?}");
        }
        for bad in *b"/\0" {
            for position in 0..20 {
                let mut name = vec![b'a'; 20];
                name[position] = bad;
                assert!(!name_is_sound(&name), "{name:?}");
            }
        }
        for bad in [&b""[..], b"/", b"a/b", b"a\0", b"/chunkdict/x"] {
            assert!(!name_is_sound(bad), "{bad:?}");
        }
    }
}
