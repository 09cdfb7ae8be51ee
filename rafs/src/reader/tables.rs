//! Finding out where a blob's chunks are: chunk info tables from the cache directory, the blob, or a file that a
//! snapshotter shipped (blob.md section 14).

use super::ReadError;
use super::blobs::{BlobState, Source, plain_file_name, table_file_name};
use super::core::{Core, Job};
use crate::blob::{self, BlobError, ChunkTable, Toc};
use crate::codec::{self, Digest, Digester};
use crate::ids::BlobIndex;
use crate::image::{BlobInfo, ChunkRef, FsVersion, MetaBlob};
use crate::layout::DIGEST_SIZE;
use crate::layout::blob::BlobFeatures;
use crate::layout::toc::NAME_DIGEST;
use crate::store::{ErrorClass, FetchRequest, Priority, StoreError};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Which way a table came.
enum Way {
    /// As the builder stored it, in the blob or the meta blob.
    Stored { attempt: u32 },
    /// As `ID.blob.meta`, after the first way failed so.
    Shipped(ReadError),
    /// Not the table, which is here, but the blob's table of contents, from the tail of a file of this size.
    Contents(ChunkTable, u64),
    /// Not the table, which is here, but the digests of its chunks, and their own digest.
    Digests(ChunkTable, Digest),
}

/// A table, or why there is none.
pub(super) struct Arrival {
    blob: BlobIndex,
    way: Way,
    result: Result<Vec<u8>, StoreError>,
}

/// The object that holds a blob's chunk info, and its table of contents.
fn table_object(info: &BlobInfo) -> Arc<str> {
    match &info.meta_blob {
        Some(MetaBlob::Named { id, .. } | MetaBlob::BootstrapFile { id }) => id.as_str().into(),
        None => info.id.as_str().into(),
    }
}

impl Core {
    /// Begins to look for the source of a blob. Those who wait are in its state.
    pub fn load_source(self: &Arc<Self>, state: &BlobState, info: &BlobInfo) {
        if info.features.contains(BlobFeatures::EXTERNAL) {
            let why =
                "it is in an external store (EXTERNAL), which is not supported; convert the image without it";
            let error = BlobError::Unsupported { blob: info.id.clone(), why };
            return self.source_failed(state, &error.into());
        }
        if info.features.contains(BlobFeatures::TARFS) {
            return self.source_found(state, Source::Tar);
        }
        if self.image.version() == FsVersion::V5 {
            return self.source_found(state, Source::Records);
        }
        if let Some(table) = self.cached_table(state, info) {
            if blob::is_legacy_stargz(info) {
                return self.stargz_table_found(state.index, info, table);
            }
            return self.table_found(state, info, table);
        }
        self.ask_for_table(state.index, info, 0);
    }

    /// The table in the cache directory.
    fn cached_table(&self, state: &BlobState, info: &BlobInfo) -> Option<ChunkTable> {
        let dir = self.cache_dir.as_ref().filter(|_| !state.distrust_cached_table.load(Ordering::Relaxed))?;
        if !crate::store::is_safe_object_name(&info.id) {
            return None;
        }
        let name = table_file_name(&info.id);
        let (file, _) = dir.open_file(&name, false).ok()?;
        let len = blob::cached_table_len(info).ok()?;
        if file.metadata().ok()?.len() != len {
            return None;
        }
        let mut bytes = vec![0; usize::try_from(len).ok()?];
        file.read_exact_at(&mut bytes, 0).ok()?;
        match blob::parse_table(info, bytes) {
            Ok(table) => Some(table),
            Err(error) => {
                tracing::warn!(%error, file = %dir.path_of(&name), "cached chunk info not used");
                None
            }
        }
    }

    fn ask_for_table(self: &Arc<Self>, blob: BlobIndex, info: &BlobInfo, attempt: u32) {
        let way = Way::Stored { attempt };
        if blob::is_legacy_stargz(info) {
            let why = "legacy eStargz blobs carry no chunk info";
            let error = BlobError::Unsupported { blob: info.id.clone(), why };
            return self.ask_for_shipped_table(blob, info, error.into());
        }
        let object = table_object(info);
        match blob::stored_table_range(info) {
            Ok(range) => self.ask(blob, way, object, range, attempt),
            Err(error) => self.ask_for_shipped_table(blob, info, error.into()),
        }
    }

    fn ask_for_shipped_table(self: &Arc<Self>, blob: BlobIndex, info: &BlobInfo, first: ReadError) {
        match blob::cached_table_len(info) {
            Ok(len) => self.ask(blob, Way::Shipped(first), table_file_name(&info.id).into(), 0..len, 0),
            Err(_) => self.no_table(blob, info, first),
        }
    }

    fn ask(self: &Arc<Self>, blob: BlobIndex, way: Way, object: Arc<str>, range: Range<u64>, attempt: u32) {
        let request = FetchRequest { object, range, buffer: Vec::new(), attempt, priority: Priority::Demand };
        let core = Arc::clone(self);
        let done = move |result| core.push(Job::Table(Box::new(Arrival { blob, way, result })));
        self.store.fetch(request, Box::new(done));
    }

    /// A table has come, or has not.
    pub fn table_arrived(self: &Arc<Self>, arrival: Arrival) {
        let Arrival { blob, way, result } = arrival;
        let Ok((state, info)) = self.blob(blob) else { return };
        match way {
            Way::Stored { attempt } => {
                let transient = result.as_ref().is_err_and(|e| e.class == ErrorClass::Transient);
                let parsed =
                    result.map_err(ReadError::from).and_then(|bytes| Ok(self.parse_and_keep(info, &bytes)?));
                match parsed {
                    Ok(table) => self.table_found(state, info, table),
                    Err(error) if attempt == 0 && (transient || matches!(error, ReadError::Blob(_))) => {
                        self.ask_for_table(blob, info, 1);
                    }
                    Err(error) => self.ask_for_shipped_table(blob, info, error),
                }
            }
            Way::Shipped(first) => {
                let parsed = result
                    .map_err(ReadError::from)
                    .and_then(|bytes| blob::parse_table(info, bytes).map_err(ReadError::from));
                match parsed {
                    Ok(table) => self.shipped_table_found(blob, table),
                    Err(_) => self.no_table(blob, info, first),
                }
            }
            Way::Contents(table, file_size) => {
                let item = result.map_err(ReadError::from).and_then(|tail| {
                    let toc = Toc::parse(&info.id, &tail, file_size, &info.toc_digest)?;
                    Ok(toc.find(NAME_DIGEST).cloned())
                });
                let wanted = u64::from(table.chunk_count()).saturating_mul(DIGEST_SIZE as u64);
                match item {
                    Ok(Some(item)) if item.range.end - item.range.start == wanted => {
                        let object = table_object(info);
                        self.ask(blob, Way::Digests(table, item.digest), object, item.range, 0);
                    }
                    other => {
                        tracing::warn!(blob = %info.id, error = ?other.err(), "no chunk digests in the blob");
                        self.source_found(state, Source::Table(Arc::new(table)));
                    }
                }
            }
            Way::Digests(table, digest) => {
                match result {
                    Ok(bytes) if codec::digest(Digester::Sha256, &bytes) == digest => {
                        state.set_digests(bytes)
                    }
                    other => {
                        tracing::warn!(blob = %info.id, error = ?other.err(), "chunk digests of the blob not used");
                    }
                }
                self.source_found(state, Source::Table(Arc::new(table)));
            }
        }
    }

    /// The table is there. Blobs that the image has no digests for may carry some of their own.
    fn table_found(self: &Arc<Self>, state: &BlobState, info: &BlobInfo, table: ChunkTable) {
        let wanted = self.verify
            && info.features.contains(BlobFeatures::INLINED_CHUNK_DIGEST)
            && !state.has_digests()
            && !self.has_records(info);
        if !wanted {
            return self.source_found(state, Source::Table(Arc::new(table)));
        }
        let (core, blob) = (Arc::clone(self), state.index);
        let object = table_object(info);
        let tail_of = Arc::clone(&object);
        let known_size = info.toc_size;
        let size_known = move |size: Result<u64, StoreError>| {
            let size = size.unwrap_or(0);
            match blob::toc_tail_range(size, known_size) {
                Some(range) => core.ask(blob, Way::Contents(table, size), tail_of, range, 0),
                None => {
                    if let Ok((state, _)) = core.blob(blob) {
                        core.source_found(state, Source::Table(Arc::new(table)));
                    }
                }
            }
        };
        self.store.size(&object, Box::new(size_known));
    }

    /// The table is there; is it the blob's data that is there as well, or a file of plain data?
    fn shipped_table_found(self: &Arc<Self>, blob: BlobIndex, table: ChunkTable) {
        let Ok((_, info)) = self.blob(blob) else { return };
        let plain: Arc<str> = plain_file_name(&info.id).into();
        let core = Arc::clone(self);
        let decide = move |plain_size: Option<u64>, own_size: Option<u64>, core: &Arc<Self>| {
            let Ok((state, info)) = core.blob(blob) else { return };
            let source = match plain_size {
                Some(size) if size >= info.uncompressed_size => {
                    Source::Plain(plain_file_name(&info.id).into())
                }
                _ => Source::Table(Arc::new(table.with_blob_size(own_size.unwrap_or(u64::MAX)))),
            };
            core.source_found(state, source);
        };
        self.store.size(
            &info.id,
            Box::new(move |own| match own {
                Ok(size) => decide(None, Some(size), &core),
                Err(_) => {
                    let again = Arc::clone(&core);
                    core.store.size(&plain, Box::new(move |size| decide(size.ok(), None, &again)));
                }
            }),
        );
    }

    /// No table anywhere: legacy eStargz blobs get one from the image, others cannot be read.
    fn no_table(self: &Arc<Self>, blob: BlobIndex, info: &BlobInfo, error: ReadError) {
        let Ok((state, _)) = self.blob(blob) else { return };
        if blob::is_legacy_stargz(info) {
            return match ChunkTable::from_records(info, self.image.chunk_table()) {
                Ok(table) => self.stargz_table_found(blob, info, table),
                Err(error) => self.source_failed(state, &error.into()),
            };
        }
        self.source_failed(state, &error);
    }

    /// The table of a legacy stargz layer is there; how large the layer is bounds what is asked of it.
    fn stargz_table_found(self: &Arc<Self>, blob: BlobIndex, info: &BlobInfo, table: ChunkTable) {
        let core = Arc::clone(self);
        let size_known = move |size: Result<u64, StoreError>| {
            let Ok((state, _)) = core.blob(blob) else { return };
            let table = match size {
                Ok(size) => table.with_blob_size(size),
                Err(_) => table,
            };
            core.source_found(state, Source::Table(Arc::new(table)));
        };
        self.store.size(&info.id, Box::new(size_known));
    }

    fn source_found(self: &Arc<Self>, state: &BlobState, source: Source) {
        let pieces = state.set_source(source);
        if !pieces.is_empty() {
            self.push(Job::Pieces(pieces));
        }
    }

    fn source_failed(&self, state: &BlobState, error: &ReadError) {
        let pieces = state.forget_source();
        if let Some(left_out) = self.hub.log_limit.admit() {
            tracing::error!(left_out, "chunks of a blob cannot be located: {error}");
        }
        for piece in pieces {
            piece.fail(error.clone());
        }
    }

    /// Data does not fit to the chunk info: get that anew, and not from the cache directory. True the first time, when
    /// the new one may be better.
    pub fn source_is_wrong(
        self: &Arc<Self>,
        state: &BlobState,
        info: &BlobInfo,
        chunk: &ChunkRef,
        error: &ReadError,
    ) -> bool {
        tracing::debug!(blob = %info.id, chunk = %chunk.chunk, %error, "chunk info is looked up again");
        let first = !state.distrust_cached_table.swap(true, Ordering::Relaxed);
        let pieces = state.forget_source();
        if !pieces.is_empty() {
            self.push(Job::Pieces(pieces));
        }
        first
    }

    /// Builds the table, and leaves it in the cache directory, so that a restart needs no store for it.
    fn parse_and_keep(&self, info: &BlobInfo, stored: &[u8]) -> Result<ChunkTable, BlobError> {
        let plain = blob::plain_table(info, stored)?;
        let Some(dir) = self.cache_dir.as_ref().filter(|_| crate::store::is_safe_object_name(&info.id))
        else {
            return blob::parse_table(info, plain);
        };
        let table = blob::parse_table(info, plain.clone())?;
        if let Err(error) = dir.write_file(&table_file_name(&info.id), &plain) {
            tracing::debug!(%error, "chunk info is not cached");
        }
        Ok(table)
    }

    /// At start: says which blobs are missing, and loads chunk info ahead of the first read.
    pub fn warm(self: &Arc<Self>, blob: BlobIndex) {
        let Ok((state, info)) = self.blob(blob) else { return };
        if self.image.version() != FsVersion::V6 || info.features.contains(BlobFeatures::TARFS) {
            let id = info.id.clone();
            return self.store.size(
                &info.id,
                Box::new(move |size| {
                    if let Err(error) = size {
                        tracing::warn!(blob = %id, "blob is not there now, reads of it will fail: {error}");
                    }
                }),
            );
        }
        let mut source = state.source();
        if matches!(*source, super::blobs::SourceState::Idle) {
            *source = super::blobs::SourceState::Loading(Vec::new());
            drop(source);
            self.load_source(state, info);
        }
    }
}
