//! Data blobs of an existing image, read one unit at a time.
//!
//! Owns: finding a blob's files in a directory, its chunk table, reading and decoding units, what a chunk must
//! match. Does not own: what chunks are read for. No cache: whoever uses this reads each unit once.

mod copy;
mod error;
mod files;
mod object;
mod stored;
mod units;
mod verify;

pub use error::BlobDataError;
pub(crate) use files::FileData;
pub use object::BlobPlace;
pub(crate) use object::Object;
pub use verify::{VerifyReport, verify};

use rafs::blob::{self, ChunkTable, DigestIndex, Expected, Toc, Unit};
use rafs::codec::Digest;
use rafs::ids::{BlobIndex, ChunkIndex};
use rafs::image::{BlobInfo, FsVersion, Image, MetaBlob};
use rafs::layout::blob::BlobFeatures;
use rafs::layout::toc::NAME_DIGEST;
use std::fs::File;
use std::path::{Path, PathBuf};

/// All blobs of one image, open.
#[derive(Debug)]
pub(crate) struct Blobs<'a> {
    image: &'a Image,
    /// By position in the blob table; `None` for those that were not asked for.
    blobs: Vec<Option<OpenBlob<'a>>>,
    digests: DigestIndex,
}

/// One blob.
#[derive(Debug)]
pub(crate) struct OpenBlob<'a> {
    /// What the image says of it.
    pub info: &'a BlobInfo,
    /// Its file.
    pub path: PathBuf,
    object: Box<dyn Object>,
    size: u64,
    place: BlobPlace,
    /// v6: its chunk table. TARFS blobs and v5 ones have none.
    table: Option<ChunkTable>,
    toc: Option<Toc>,
    /// Digest array, when there is one.
    digests: Vec<Digest>,
    /// The file holds the plain address space (`ID.blob.data`).
    plain: bool,
}

/// Memory that reading units reuses.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    /// What was read for it.
    pub stored: Vec<u8>,
    scratch: Vec<u8>,
    /// The unit that was read last.
    pub plain: Vec<u8>,
}

impl<'a> Blobs<'a> {
    /// Opens every blob of `image`, whose bootstrap is `bootstrap`.
    ///
    /// # Errors
    /// The first blob that is missing, too short, or whose tables contradict the image.
    pub(crate) fn open(image: &'a Image, bootstrap: &Path, place: &BlobPlace) -> Result<Self, BlobDataError> {
        Self::open_some(image, bootstrap, place, &|_| true)
    }

    /// Opens the blobs of `image` that are `wanted`.
    ///
    /// # Errors
    /// As [`Blobs::open`].
    pub(crate) fn open_some(
        image: &'a Image,
        bootstrap: &Path,
        place: &BlobPlace,
        wanted: &dyn Fn(&BlobInfo) -> bool,
    ) -> Result<Self, BlobDataError> {
        let digests = match image.version() {
            FsVersion::V5 => DigestIndex::default(),
            FsVersion::V6 => DigestIndex::new(image.chunk_table(), image.blobs().len()),
        };
        let open = |info| wanted(info).then(|| OpenBlob::open(image, info, bootstrap, place)).transpose();
        let blobs = image.blobs().iter().map(open).collect::<Result<_, _>>()?;
        Ok(Self { image, blobs, digests })
    }

    /// The blobs, in table order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &OpenBlob<'a>> {
        self.blobs.iter().flatten()
    }

    /// The blob at a position of the blob table.
    pub(crate) fn get(&self, at: usize) -> Option<&OpenBlob<'a>> {
        self.blobs.get(at)?.as_ref()
    }

    /// What a chunk of a v6 blob must match.
    fn expected(&self, blob: &OpenBlob<'_>, chunk: ChunkIndex, crc32c: Option<u32>) -> Expected {
        let records = self.image.chunk_table();
        if let Some(record) = self.digests.find(records, blob.info.index, chunk) {
            return Expected::of_record(blob.info.digester, record);
        }
        match (blob.digests.get(chunk.as_usize()), crc32c) {
            (Some(digest), _) => Expected::Digest(blob.info.digester, *digest),
            (None, Some(crc)) => Expected::Crc32c(crc),
            (None, None) => Expected::Nothing,
        }
    }
}

impl<'a> OpenBlob<'a> {
    fn open(
        image: &Image,
        info: &'a BlobInfo,
        bootstrap: &Path,
        place: &BlobPlace,
    ) -> Result<Self, BlobDataError> {
        let external = info.features.contains(BlobFeatures::EXTERNAL);
        if external || info.id.contains('/') || matches!(info.id.as_str(), "" | "." | "..") {
            return Err(BlobDataError::Unusable { blob: info.id.clone(), external });
        }
        let (path, opened) = place.open(&info.id);
        let (path, object, plain) = match opened {
            Ok(object) => (path, object, false),
            // The form of `--blob-cache-dir`: plain data, and the table beside it.
            Err(e) => match place.open_beside(&format!("{}.blob.data", info.id)) {
                (beside, Ok(object)) if !place.is_store() => (beside, object, true),
                _ => return Err(BlobDataError::io(&info.id, "open", &path)(e)),
            },
        };
        let size = object.size().map_err(BlobDataError::io(&info.id, "stat", &path))?;
        let expected = if plain { info.uncompressed_size } else { blob::data_size(info) };
        let estimated =
            blob::is_legacy_stargz(info) || info.features.contains(BlobFeatures::IS_CHUNKDICT_GENERATED);
        if size < expected && !estimated {
            return Err(BlobDataError::Short { blob: info.id.clone(), path, actual: size, expected });
        }
        let mut open = Self {
            info,
            path,
            object,
            size,
            place: place.clone(),
            table: None,
            toc: None,
            digests: Vec::new(),
            plain,
        };
        if image.version() == FsVersion::V6 && !info.features.contains(BlobFeatures::TARFS) {
            open.read_tables(image, bootstrap)?;
        }
        Ok(open)
    }

    fn read_tables(&mut self, image: &Image, bootstrap: &Path) -> Result<(), BlobDataError> {
        let info = self.info;
        let cached = format!("{}.blob.meta", info.id);
        let legacy = blob::is_legacy_stargz(info);
        if self.plain || legacy {
            match self.place.open_beside(&cached) {
                (path, Ok(object)) => {
                    let size = object.size().map_err(BlobDataError::io(&info.id, "stat", &path))?;
                    let bytes = read_range(object.as_ref(), 0..size, size)
                        .map_err(BlobDataError::io(&info.id, "read", &path))?;
                    self.table = Some(blob::parse_table(info, bytes)?);
                }
                (path, Err(e)) if !legacy => return Err(BlobDataError::io(&info.id, "open", &path)(e)),
                _ => self.table = Some(ChunkTable::from_records(info, image.chunk_table())?),
            }
            return Ok(());
        }
        let (path, other) = match &info.meta_blob {
            None => (self.path.clone(), None),
            Some(MetaBlob::Named { id, .. }) => {
                let (path, opened) = self.place.open_beside(id);
                (path.clone(), Some(opened.map_err(BlobDataError::io(&info.id, "open", &path))?))
            }
            Some(MetaBlob::BootstrapFile { id }) => match self.place.open_beside(id) {
                (path, Ok(object)) => (path, Some(object)),
                _ => {
                    let file =
                        File::open(bootstrap).map_err(BlobDataError::io(&info.id, "open", bootstrap))?;
                    (bootstrap.to_path_buf(), Some(Box::new(file) as Box<dyn Object>))
                }
            },
        };
        let file = other.as_ref().unwrap_or(&self.object).as_ref();
        let size = file.size().map_err(BlobDataError::io(&info.id, "stat", &path))?;
        let range = blob::stored_table_range(info)?;
        let table = read_range(file, range, size).map_err(BlobDataError::io(
            &info.id,
            "read the chunk info table of",
            &path,
        ))?;
        self.table = Some(blob::parse_table(info, blob::plain_table(info, &table)?)?);
        if info.features.contains(BlobFeatures::HAS_TOC)
            && let Some(tail) = blob::toc_tail_range(size, info.toc_size)
        {
            let bytes = read_range(file, tail, size).map_err(BlobDataError::io(
                &info.id,
                "read the table of contents of",
                &path,
            ))?;
            let toc = Toc::parse(&info.id, &bytes, size, &info.toc_digest)?;
            if let Some(item) = toc.find(NAME_DIGEST) {
                let bytes = read_range(file, item.range.clone(), size).map_err(BlobDataError::io(
                    &info.id,
                    "read the digests of",
                    &path,
                ))?;
                let (digests, _) = bytes.as_chunks();
                self.digests = digests.to_vec();
            }
            self.toc = Some(toc);
        }
        Ok(())
    }

    /// Reads and decodes a unit into `buffers.plain`.
    pub(crate) fn read_unit(&self, unit: &Unit, buffers: &mut Buffers) -> Result<(), BlobDataError> {
        // Stored sizes in a stargz layer are estimates: what is behind its end is not needed.
        let end = if blob::is_legacy_stargz(self.info) {
            unit.stored_end().min(self.size)
        } else {
            unit.stored_end()
        };
        if end > self.size || unit.stored_offset > end {
            let (blob, path) = (self.info.id.clone(), self.path.clone());
            return Err(BlobDataError::Short { blob, path, actual: self.size, expected: unit.stored_end() });
        }
        let len = usize::try_from(end - unit.stored_offset).unwrap_or(usize::MAX);
        buffers.stored.resize(len, 0);
        self.object.read_exact_at(&mut buffers.stored, unit.stored_offset).map_err(BlobDataError::io(
            &self.info.id,
            "read",
            &self.path,
        ))?;
        let Buffers { stored, scratch, plain } = buffers;
        Ok(unit.decode(self.info, self.table.as_ref(), stored, scratch, plain)?)
    }

    /// Position in the blob table.
    pub(crate) fn index(&self) -> BlobIndex {
        self.info.index
    }
}

/// Reads a range that must lie within a file of `size` bytes, before memory is taken for it.
fn read_range(file: &dyn Object, range: std::ops::Range<u64>, size: u64) -> std::io::Result<Vec<u8>> {
    let short =
        || std::io::Error::other(format!("bytes {range:?} are outside of the file, which has {size}"));
    let len = range.end.checked_sub(range.start).filter(|_| range.end <= size).ok_or_else(short)?;
    let mut bytes = vec![0; usize::try_from(len).map_err(|_| short())?];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}
