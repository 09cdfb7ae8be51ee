//! The table of contents at the tail of a blob (blob.md section 11).

use super::BlobError;
use crate::codec::{self, Compressor, Digest, Digester};
use crate::layout::tar::{TAR_HEADER_SIZE, TAR_MAGIC, TarHeader};
use crate::layout::toc::{self, TOC_SIZE_MAX, TocEntry};
use std::ops::Range;
use zerocopy::FromBytes;

/// Bytes read from the tail when the size of the table is not known (blob.md section 11).
const TAIL_SIZE: u64 = 4096;

/// One section of a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TocItem {
    /// Section name, such as [`toc::NAME_DIGEST`].
    pub name: String,
    /// How it is stored.
    pub compressor: Compressor,
    /// sha256 of the plain content.
    pub digest: Digest,
    /// Where it is in the file.
    pub range: Range<u64>,
    /// Plain bytes.
    pub uncompressed_size: u64,
}

/// A table of contents, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toc {
    items: Vec<TocItem>,
}

/// The bytes at the end of a file of `file_size` bytes that hold its table of contents; `known_size` is the
/// blob table's, 0 when that does not say. `None`: too small or too large for one.
#[must_use]
pub fn toc_tail_range(file_size: u64, known_size: u32) -> Option<Range<u64>> {
    let size = match known_size {
        0 => TAIL_SIZE.min(file_size / 128 * 128),
        n => u64::from(n),
    };
    let header = TAR_HEADER_SIZE as u64;
    (size > header && size <= TOC_SIZE_MAX && size <= file_size)
        .then(|| file_size.saturating_sub(size)..file_size)
}

impl Toc {
    /// Reads the table from the last bytes of the file of `blob`, which has `file_size` bytes. A `digest` that is
    /// not all zeros must be that of the table, with or without its tar header.
    ///
    /// # Errors
    /// No table, a damaged one, or sections that lie outside of the file.
    pub fn parse(blob: &str, tail: &[u8], file_size: u64, digest: &Digest) -> Result<Self, BlobError> {
        let corrupt = |why: String| BlobError::Corrupt { blob: blob.into(), what: "table of contents", why };
        let split = tail.len().saturating_sub(TAR_HEADER_SIZE);
        let (before, header) = tail.split_at_checked(split).unwrap_or_default();
        let header = TarHeader::read_from_bytes(header).map_err(|_| corrupt("no tar header".into()))?;
        let size = section_size(&header, toc::NAME_TOC).map_err(|why| corrupt(why.into()))?;
        let start = usize::try_from(size)
            .ok()
            .filter(|n| n % size_of::<TocEntry>() == 0)
            .and_then(|n| before.len().checked_sub(n))
            .ok_or_else(|| corrupt(format!("{size} bytes by its tar header, {} before it", before.len())))?;
        let entries = before.get(start..).unwrap_or_default();
        if *digest != [0; 32]
            && codec::digest(Digester::Sha256, tail.get(start..).unwrap_or_default()) != *digest
            && codec::digest(Digester::Sha256, entries) != *digest
        {
            return Err(corrupt("its digest is not the one in the image".into()));
        }
        let entries = <[TocEntry]>::ref_from_bytes(entries).map_err(|_| corrupt("odd size".into()))?;
        let mut items = Vec::with_capacity(entries.len());
        for entry in entries {
            let name: Vec<u8> = entry.name.iter().copied().take_while(|&b| b != 0).collect();
            let name = String::from_utf8(name).map_err(|_| corrupt("a name is not UTF-8".into()))?;
            let compressor = match entry.compressor.get() & toc::COMPRESSOR_MASK {
                toc::COMPRESSOR_NONE => Compressor::None,
                toc::COMPRESSOR_ZSTD => Compressor::Zstd,
                toc::COMPRESSOR_LZ4_BLOCK => Compressor::Lz4Block,
                n => return Err(corrupt(format!("{name} has the unknown compressor {n:#x}"))),
            };
            // Older builders wrote garbage as the offset of the data section, which starts at 0.
            let start = if name == toc::NAME_BLOB { 0 } else { entry.offset.get() };
            let end = start.checked_add(entry.compressed_size.get()).filter(|&end| end <= file_size);
            let end = end.ok_or_else(|| corrupt(format!("{name} ends behind the file")))?;
            items.push(TocItem {
                name,
                compressor,
                digest: entry.digest,
                range: start..end,
                uncompressed_size: entry.uncompressed_size.get(),
            });
        }
        Ok(Self { items })
    }

    /// The section of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&TocItem> {
        self.items.iter().find(|item| item.name == name)
    }

    /// All sections, in file order.
    #[must_use]
    pub fn items(&self) -> &[TocItem] {
        &self.items
    }
}

/// The size of the section before `header`, which must be called `name`.
fn section_size(header: &TarHeader, name: &str) -> Result<u64, &'static str> {
    if header.magic != TAR_MAGIC || !header.name.starts_with(name.as_bytes()) {
        return Err("its tar header has another name, or is none");
    }
    if header.name.get(name.len()) != Some(&0) {
        return Err("its tar header has a longer name");
    }
    let octal = |field: &[u8]| {
        let digits = field.iter().take_while(|b| (b'0'..=b'7').contains(b));
        digits.fold(0u64, |n, b| n.saturating_mul(8).saturating_add(u64::from(b - b'0')))
    };
    let bytes = zerocopy::IntoBytes::as_bytes(header);
    let sum: u64 = bytes.iter().map(|&b| u64::from(b)).sum();
    let own: u64 = header.checksum.iter().map(|&b| u64::from(b)).sum();
    let spaces = 8 * u64::from(b' ');
    if octal(&header.checksum) != sum.saturating_sub(own).saturating_add(spaces) {
        return Err("the checksum of its tar header is wrong");
    }
    Ok(octal(&header.size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tail of a corpus blob that has a table of contents, and the size of that blob.
    fn tail() -> (Vec<u8>, u64) {
        let blobs = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-tests/corpus/interop/v6-blob-toc/blobs");
        let path = std::fs::read_dir(blobs).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        let size = bytes.len() as u64;
        let range = toc_tail_range(size, 0).unwrap();
        (bytes[usize::try_from(range.start).unwrap()..].to_vec(), size)
    }

    #[test]
    fn finds_the_sections_of_a_reference_blob() {
        let (tail, size) = tail();
        let toc = Toc::parse("b", &tail, size, &[0; 32]).unwrap();
        let names: Vec<&str> = toc.items().iter().map(|item| item.name.as_str()).collect();
        assert_eq!(names, ["image.blob", "blob.meta", "blob.meta.header", "blob.digest"]);
        assert_eq!(toc.find("image.blob").unwrap().range.start, 0);
        assert_eq!(toc.find("blob.meta.header").unwrap().uncompressed_size, 4096);
        assert!(toc.find("image.boot").is_none());
        let whole = &tail[tail.len() - 512 - 4 * 128..];
        for digest in [whole, &whole[..4 * 128]].map(|bytes| codec::digest(Digester::Sha256, bytes)) {
            Toc::parse("b", &tail, size, &digest).unwrap();
        }
        Toc::parse("b", &tail, size, &[1; 32]).unwrap_err();
        assert!(Toc::parse("b", &tail, 1000, &[0; 32]).is_err(), "sections behind the end");
    }

    #[test]
    fn damaged_tails_are_errors_or_in_bounds() {
        let (tail, size) = tail();
        for len in 0..tail.len() {
            assert!(Toc::parse("b", &tail[..len], size, &[0; 32]).is_err(), "{len}");
        }
        for at in tail.len() - 512 - 4 * 128..tail.len() {
            let mut bad = tail.clone();
            bad[at] ^= 0x15;
            if let Ok(toc) = Toc::parse("b", &bad, size, &[0; 32]) {
                assert!(
                    toc.items()
                        .iter()
                        .all(|item| item.range.start <= item.range.end && item.range.end <= size)
                );
            }
        }
    }

    #[test]
    fn tail_ranges() {
        assert_eq!(toc_tail_range(10_000, 1024), Some(8976..10_000));
        assert_eq!(toc_tail_range(100_000, 0), Some(95_904..100_000));
        assert_eq!(toc_tail_range(1000, 0), Some(104..1000));
        for (file, known) in [(0, 0), (512, 0), (1000, 1024), (u64::MAX, 2 << 20), (10_000, 512)] {
            assert_eq!(toc_tail_range(file, known), None, "{file} {known}");
        }
    }
}
