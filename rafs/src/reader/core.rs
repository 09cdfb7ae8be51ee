//! The fetch side of one image: from pieces of reads to flights.

use super::ReadError;
use super::blobs::{BlobState, OpenContext, Source, SourceState, V5Summary};
use super::engine::{Hub, Work};
use super::fetch::{Group, Loaded, MERGE_MAX, Planned};
use super::flights::{Boarded, FlightKey, Ticket};
use super::metrics::StoreCounters;
use super::neighbours::{Index, Touched};
use super::readahead::Touch;
use super::request::{Piece, Request};
use crate::blob::{DigestIndex, Expected, Member, Unit};
use crate::cache::{Agreement, CacheDir, Description};
use crate::codec::{self, Digest, Digester};
use crate::ids::{BlobIndex, ChunkIndex};
use crate::image::{BlobInfo, ChunkRef, FsVersion, Image, Inode};
use crate::store::{Priority, Store, StoreError};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// What fetch threads do for an image.
pub(super) enum Job {
    /// Plan a read.
    Read { request: Arc<Request>, inode: Inode, offset: u64, len: u64 },
    /// Look again at pieces that waited for something.
    Pieces(Vec<Piece>),
    /// Verify a chunk of a cache file.
    Verify { ticket: Ticket, chunk: ChunkRef, number: u32 },
    /// Ask the store.
    Start(Group),
    /// The store has answered.
    Answered(Group, Result<Vec<u8>, StoreError>),
    /// Decode and deliver a unit.
    Decode { loaded: Arc<Loaded>, planned: Planned },
    /// A chunk info table has arrived, or not.
    Table(Box<super::tables::Arrival>),
    /// See whether a blob is there, and load its chunk info table.
    Warm(BlobIndex),
    /// Find out which chunk belongs where.
    Index,
    /// Send off guesses that waited for room.
    Guesses,
}

/// What is known of one image in one store.
pub(super) struct Core {
    pub hub: Arc<Hub>,
    pub image: Arc<Image>,
    pub store: Arc<dyn Store>,
    /// Which store it is.
    pub store_key: String,
    /// Nothing is served before it matched its digest.
    pub verify: bool,
    pub cache_dir: Option<Arc<CacheDir>>,
    pub blobs: Vec<BlobState>,
    /// Asking it takes long.
    pub remote: bool,
    pub counters: Arc<StoreCounters>,
    pub index: OnceLock<Index>,
    /// Somebody makes the index.
    pub indexing: AtomicBool,
    /// A trace says what comes next: nothing else is guessed.
    pub replaying: AtomicBool,
    digests: OnceLock<DigestIndex>,
    v5_summaries: OnceLock<Vec<V5Summary>>,
}

/// At most one line a second of a kind of message that hostile input can cause at will.
#[derive(Debug)]
pub(super) struct LogLimit {
    start: Instant,
    next_ms: AtomicU64,
    suppressed: AtomicU64,
}

impl LogLimit {
    const PAUSE_MS: u64 = 1000;

    pub fn new() -> Self {
        Self { start: Instant::now(), next_ms: AtomicU64::new(0), suppressed: AtomicU64::new(0) }
    }

    /// `Some(n)`: log, and say that `n` lines were left out before.
    pub fn admit(&self) -> Option<u64> {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let next = self.next_ms.load(Ordering::Relaxed);
        let won = now >= next
            && self
                .next_ms
                .compare_exchange(
                    next,
                    now.saturating_add(Self::PAUSE_MS),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                )
                .is_ok();
        if won {
            return Some(self.suppressed.swap(0, Ordering::Relaxed));
        }
        self.suppressed.fetch_add(1, Ordering::Relaxed);
        None
    }
}

impl Core {
    /// `shared`: a number for each blob of the image, the same for all images that have that blob in this store.
    pub fn new(
        hub: Arc<Hub>,
        image: Arc<Image>,
        store: Arc<dyn Store>,
        store_key: String,
        verify: bool,
        cache_dir: Option<Arc<CacheDir>>,
        shared: Vec<Arc<u64>>,
    ) -> Self {
        let infos = image.blobs().iter().zip(shared);
        let blobs = infos.map(|(info, shared)| BlobState::new(info, hub.new_id(), shared)).collect();
        Self {
            blobs,
            remote: store.is_remote(),
            counters: hub.metrics.store(&store_key),
            index: OnceLock::new(),
            indexing: AtomicBool::new(false),
            replaying: AtomicBool::new(false),
            hub,
            image,
            store,
            store_key,
            verify,
            cache_dir,
            digests: OnceLock::new(),
            v5_summaries: OnceLock::new(),
        }
    }

    pub fn blob(&self, index: BlobIndex) -> Result<(&BlobState, &BlobInfo), ReadError> {
        let missing = || ReadError::NoSuchBlob(index);
        let state = self.blobs.get(index.as_usize()).ok_or_else(missing)?;
        Ok((state, self.image.blobs().get(index.as_usize()).ok_or_else(missing)?))
    }

    /// What is needed to open a blob's files.
    pub fn open_context<'a>(&'a self, info: &'a BlobInfo) -> OpenContext<'a> {
        let unknown = self.image.version() == FsVersion::V5 && info.chunk_count.is_none();
        let summary = unknown
            .then(|| {
                let all = self.v5_summaries.get_or_init(|| V5Summary::of_image(&self.image));
                all.get(info.index.as_usize())
            })
            .flatten();
        OpenContext {
            hub: &self.hub,
            image: self.image.name(),
            version: self.image.version(),
            info,
            store: &*self.store,
            cache_dir: self.cache_dir.as_ref(),
            summary,
        }
    }

    /// Puts a job into the queue; a closed queue drops it, which ends what depends on it.
    pub fn push(self: &Arc<Self>, job: Job) {
        drop(self.hub.queue.push(Work::Of(Arc::clone(self), job)));
    }

    /// Puts a job behind all that somebody waits for.
    pub fn push_idle(self: &Arc<Self>, job: Job) {
        drop(self.hub.queue.push_idle(Work::Of(Arc::clone(self), job)));
    }

    /// Runs one job.
    pub fn run(self: &Arc<Self>, job: Job) {
        match job {
            Job::Read { request, inode, offset, len } => self.plan_read(&request, &inode, offset, len),
            Job::Pieces(pieces) => self.submit(pieces),
            Job::Verify { ticket, chunk, number } => self.verify_cached(ticket, &chunk, number),
            Job::Start(group) => self.start(group),
            Job::Answered(group, result) => self.answered(group, result),
            Job::Decode { loaded, planned } => self.decode(&loaded, planned),
            Job::Table(arrival) => self.table_arrived(*arrival),
            Job::Warm(blob) => self.warm(blob),
            Job::Guesses => self.guess(),
            Job::Index => {
                self.index();
            }
        }
    }

    /// Cuts a read into pieces, and hands them on.
    fn plan_read(self: &Arc<Self>, request: &Arc<Request>, inode: &Inode, offset: u64, len: u64) {
        let mut pieces = Vec::new();
        let mut ready = 0;
        let mut position = offset;
        let end = offset.saturating_add(len);
        let at = |position: u64| usize::try_from(position.saturating_sub(offset)).unwrap_or(usize::MAX);
        let chunks = match self.image.chunks(inode, offset, len) {
            Ok(chunks) => chunks,
            Err(error) => return request.fail(error.into()),
        };
        for chunk in chunks {
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => return request.fail(error.into()),
            };
            let Some((start, n)) = overlap(&chunk, position, end) else { continue };
            if start > position {
                request.fill_zeros(at(position), start - position);
            }
            let skip = u32::try_from(start - chunk.file_offset).unwrap_or(u32::MAX);
            ready += usize::from(self.is_ready(&chunk));
            pieces.push(request.piece(chunk, skip, n, at(start)));
            position = start.saturating_add(n.into());
        }
        if position < end {
            request.fill_zeros(at(position), end - position);
        }
        if (1..pieces.len()).contains(&ready) {
            request.is_partly_ready();
        }
        self.submit(pieces);
        request.done();
    }

    fn is_ready(&self, chunk: &ChunkRef) -> bool {
        self.blobs.get(chunk.blob.as_usize()).is_some_and(|state| state.ready(&self.image, chunk).is_some())
    }

    /// Ends pieces that can be ended now, and makes the others wait on flights.
    pub fn submit(self: &Arc<Self>, pieces: Vec<Piece>) {
        let (mut planned, mut touches) = (Vec::new(), Vec::new());
        for piece in pieces {
            if !piece.is_over() {
                let before = planned.len();
                let touched = self.observe(&piece);
                self.submit_one(piece, &mut planned);
                if let Some(mut touched) = touched {
                    touched.missed = planned.len() > before;
                    touches.push(touched);
                }
            }
        }
        if self.remote && !self.replaying.load(Ordering::Relaxed) {
            self.widen(&touches, &mut planned);
        }
        self.launch(planned, MERGE_MAX);
        self.guess();
    }

    /// Notes that a chunk is being read. The first time that says what it means.
    fn observe(&self, piece: &Piece) -> Option<Touched> {
        let chunk = piece.chunk;
        let state = self.blobs.get(chunk.blob.as_usize())?;
        if let Some(trace) = &piece.owner().trace {
            trace.touch(&state.id, chunk.chunk.0, chunk.uncompressed_offset);
        }
        let count = state.access().map(|access| access.chunk_count()).filter(|&count| count > 0)?;
        let touch = state.ahead.touch(count, chunk.chunk.0);
        let ceiling = u64::from(piece.owner().amplify);
        (touch != Touch::Known).then_some(Touched {
            blob: chunk.blob,
            chunk: chunk.chunk.0,
            touch,
            plain: chunk.uncompressed_size,
            missed: false,
            ceiling,
        })
    }

    fn submit_one(self: &Arc<Self>, piece: Piece, planned: &mut Vec<Planned>) {
        let chunk = piece.chunk;
        let (state, info) = match self.blob(chunk.blob) {
            Ok(found) => found,
            Err(error) => return piece.fail(error),
        };
        let access = match state.open(&self.open_context(info)) {
            Ok(access) => access,
            Err(error) => return piece.fail(error.into()),
        };
        let Some(number) = state.number(access, &chunk) else {
            return piece.fail(ReadError::Mismatch { blob: info.id.clone(), chunk: chunk.chunk });
        };
        if let Some((file, offset, epoch)) = state.ready(&self.image, &chunk) {
            match piece.finish_from_file(file, offset, || access.epoch() == epoch) {
                Ok(()) => {
                    if let Some(cache) = access.cache() {
                        cache.touch(number);
                    }
                    return;
                }
                Err(_) if access.epoch() != epoch => return self.push(Job::Pieces(vec![piece])),
                Err(error) if access.unready(number) => {
                    tracing::warn!(%error, file = access.path(), offset, "cached data is gone; fetching it again");
                }
                Err(source) => {
                    let (file, source) = (access.path().into(), Arc::new(source));
                    return piece.fail(ReadError::File { file, offset, source });
                }
            }
        }
        let description = self.describe(info, &chunk, None).ok();
        let landed_in_file = || {
            // Another image of this blob may have brought it meanwhile.
            access.cache().zip(description.as_ref()).is_some_and(|(cache, description)| {
                cache.is_shared()
                    && cache.is_mapped(number)
                    && cache.is_claimed(number, chunk.uncompressed_offset)
                    && cache.agreement(number, description) == Agreement::Same
            })
        };
        if let Some(cache) = access.cache()
            && cache.is_claimed(number, chunk.uncompressed_offset)
            && let Some(description) = &description
            && let agreement = cache.agreement(number, description)
            && agreement != Agreement::Other
        {
            // Without a digest the word of who wrote it has to do, if that is of the same opinion.
            let vouched = cache.is_mapped(number) && (!self.verify || agreement == Agreement::Same);
            let unverifiable =
                !self.verify || matches!(self.expected(info, &chunk, None), Ok(Expected::Nothing));
            if unverifiable && vouched {
                let epoch = cache.epoch();
                match piece
                    .finish_from_file(cache.file(), chunk.uncompressed_offset, || cache.epoch() == epoch)
                {
                    Ok(()) => {
                        cache.set_ready(number, description, epoch);
                        cache.touch(number);
                        return;
                    }
                    Err(_) if cache.epoch() != epoch => return self.push(Job::Pieces(vec![piece])),
                    Err(_) => cache.reject(number, description),
                }
            } else if !unverifiable {
                let key = FlightKey::Cached(state.view, number);
                let landed = || state.ready(&self.image, &chunk).is_some();
                match self.hub.board(key, chunk.blob, Some(piece), landed) {
                    Boarded::Waits => return,
                    Boarded::Flies(ticket) => return self.push(Job::Verify { ticket, chunk, number }),
                    Boarded::Landed(back) => return self.push(Job::Pieces(back.into_iter().collect())),
                }
            }
        }
        let source = {
            let mut source = state.source();
            match &mut *source {
                SourceState::Ready(source) => source.clone(),
                SourceState::Loading(waiting) => return waiting.push(piece),
                SourceState::Idle => {
                    *source = SourceState::Loading(vec![piece]);
                    drop(source);
                    return self.load_source(state, info);
                }
            }
        };
        let unit = match source.unit(&self.image, info, &chunk, number) {
            Ok(unit) => unit,
            Err(error) => {
                let table = matches!(source, Source::Table(_));
                if self.source_is_wrong(state, info, &chunk, &error) && table {
                    return self.push(Job::Pieces(vec![piece]));
                }
                return piece.fail(error);
            }
        };
        if let Some(plain) = self.hub.lru.get(state.view, unit.id) {
            return finish_from_unit(&piece, &source, &unit, info, &plain);
        }
        let key = if piece.alone || access.has_own_numbers() {
            FlightKey::Own(state.view, unit.id)
        } else {
            FlightKey::Unit(*state.shared, unit.id)
        };
        let alone = piece.alone;
        let landed = || {
            state.ready(&self.image, &chunk).is_some()
                || self.hub.lru.get(state.view, unit.id).is_some()
                || (!alone && landed_in_file())
        };
        match self.hub.board(key, chunk.blob, Some(piece), landed) {
            Boarded::Waits => {}
            Boarded::Flies(ticket) => {
                planned.push(Planned {
                    ticket,
                    unit,
                    chunk,
                    source,
                    attempt: 0,
                    priority: Priority::Demand,
                    slot: None,
                });
                self.hub.metrics.count(|m| &m.misses, 1u32);
            }
            Boarded::Landed(back) => self.push(Job::Pieces(back.into_iter().collect())),
        }
    }

    /// Ends a piece of this image with a chunk that another image of the same blob has fetched, if that is right for
    /// this one too. `plain` is the chunk at the piece's place, if there is one.
    pub fn adopt(self: &Arc<Self>, mut piece: Piece, plain: Option<&[u8]>) {
        let good = plain.is_some_and(|plain| {
            let Ok((_, info)) = self.blob(piece.chunk.blob) else { return false };
            let expected = self.expected(info, &piece.chunk, None);
            let right = !self.verify || expected.is_ok_and(|expected| expected.matches(plain));
            right && piece.finish_from_chunk(plain)
        });
        if !good {
            piece.alone = true;
            self.push(Job::Pieces(vec![piece]));
        }
    }

    /// What the plain bytes of a chunk must match. `member` is the chunk as the blob's own table describes it.
    pub fn expected(
        &self,
        info: &BlobInfo,
        chunk: &ChunkRef,
        member: Option<&Member>,
    ) -> Result<Expected, ReadError> {
        let expected = self.expected_of(info, chunk, member)?;
        // A digest that was lost looks like one that never was.
        self.image.confirm()?;
        Ok(expected)
    }

    fn expected_of(
        &self,
        info: &BlobInfo,
        chunk: &ChunkRef,
        member: Option<&Member>,
    ) -> Result<Expected, ReadError> {
        if self.image.version() == FsVersion::V5 {
            let record = self.image.chunk_record(chunk);
            return Ok(record.map_or(Expected::Nothing, |r| Expected::of_record(info.digester, &r)));
        }
        let index = member.map_or(chunk.chunk, |m| m.chunk);
        let offset = member.map_or(chunk.uncompressed_offset, |m| m.uncompressed_offset);
        match self.record(info, index) {
            Some(record) => {
                if record.uncompressed_offset.get() != offset {
                    return Err(ReadError::Mismatch { blob: info.id.clone(), chunk: index });
                }
                Ok(Expected::of_record(info.digester, record))
            }
            None => {
                let own = self.blob(info.index)?.0.digest(index);
                let crc = || member.and_then(|m| m.crc32c).map_or(Expected::Nothing, Expected::Crc32c);
                Ok(own.map_or_else(crc, |digest| Expected::Digest(info.digester, digest)))
            }
        }
    }

    /// What this image says of a chunk, for those who share its blob's cache file. `member` as for
    /// [`expected`](Self::expected).
    pub fn describe(
        &self,
        info: &BlobInfo,
        chunk: &ChunkRef,
        member: Option<&Member>,
    ) -> Result<Description, ReadError> {
        let offset = member.map_or(chunk.uncompressed_offset, |m| m.uncompressed_offset);
        let size = member.map_or(Some(chunk.uncompressed_size), |m| u32::try_from(m.range.len()).ok());
        let (kind, what) = match self.expected(info, chunk, member)? {
            Expected::Digest(Digester::Blake3, digest) => (1, digest),
            Expected::Digest(Digester::Sha256, digest) => (2, digest),
            // Whatever the same place of the same store gives.
            Expected::Crc32c(_) | Expected::Nothing => (3, self.voucher(info)),
        };
        // What nobody has verified is not what somebody has.
        let kind = if self.verify { kind } else { kind | 0x100 };
        Ok(Description::new(offset, size.unwrap_or(0), kind, what))
    }

    /// Stands for the store of a blob, and for where its chunk info is.
    fn voucher(&self, info: &BlobInfo) -> Digest {
        let store = self.store.identity().unwrap_or_default();
        let text = format!("{store}\n{:?}\n{:?}", info.chunk_info, info.meta_blob);
        codec::digest(Digester::Sha256, text.as_bytes())
    }

    /// v6: whether the chunk table says anything about a blob.
    pub fn has_records(&self, info: &BlobInfo) -> bool {
        self.image.chunk_table().iter().any(|r| r.blob_index.get() == info.index.0)
    }

    /// v6: the chunk table's record of a chunk.
    fn record(&self, info: &BlobInfo, chunk: ChunkIndex) -> Option<&crate::layout::chunk::ChunkRecord> {
        let records = self.image.chunk_table();
        let index = self.digests.get_or_init(|| DigestIndex::new(records, self.image.blobs().len()));
        index.find(records, info.index, chunk)
    }

    /// Verifies a chunk that the cache file claims to hold.
    fn verify_cached(self: &Arc<Self>, ticket: Ticket, chunk: &ChunkRef, number: u32) {
        let Ok((state, info)) = self.blob(chunk.blob) else { return };
        let Some(cache) = state.access().and_then(|a| a.cache()) else { return };
        let Ok(description) = self.describe(info, chunk, None) else { return };
        let epoch = cache.epoch();
        let mut plain = self.hub.budget.buffer();
        plain.resize(usize::try_from(chunk.uncompressed_size).unwrap_or(0), 0);
        let good = cache.read(chunk.uncompressed_offset, &mut plain).is_ok()
            && self.expected(info, chunk, None).is_ok_and(|expected| expected.matches(&plain));
        if good {
            cache.set_ready_as(number, &description, epoch, &plain);
            cache.touch(number);
            loop {
                let pieces = self.hub.flights.land(&ticket);
                if pieces.is_empty() {
                    break;
                }
                for piece in pieces {
                    if !piece.finish_from_chunk(&plain) {
                        piece.fail(ReadError::Mismatch { blob: info.id.clone(), chunk: chunk.chunk });
                    }
                }
            }
        } else {
            if cache.epoch() == epoch {
                if cache.is_mapped(number)
                    && let Some(left_out) = self.hub.log_limit.admit()
                {
                    tracing::warn!(blob = %info.id, chunk = %chunk.chunk, file = cache.path(), left_out,
                        "cached chunk is damaged; fetching it again");
                }
                cache.reject(number, &description);
            }
            self.submit(self.hub.flights.cancel(&ticket));
        }
        self.hub.budget.recycle(plain);
    }
}

/// Ends a piece with its part of a decoded unit.
fn finish_from_unit(piece: &Piece, source: &Source, unit: &Unit, info: &BlobInfo, plain: &[u8]) {
    let members = source.members(unit, &piece.chunk);
    let member = members.iter().find(|m| m.uncompressed_offset == piece.chunk.uncompressed_offset);
    let done =
        member.and_then(|m| plain.get(m.range.clone())).is_some_and(|plain| piece.finish_from_chunk(plain));
    if !done {
        piece.fail(ReadError::Mismatch { blob: info.id.clone(), chunk: piece.chunk.chunk });
    }
}

/// The part of `[position, end)` that lies in a chunk: its start in the file and its length.
#[inline]
pub(super) fn overlap(chunk: &ChunkRef, position: u64, end: u64) -> Option<(u64, u32)> {
    let start = position.max(chunk.file_offset);
    let chunk_end = chunk.file_offset.saturating_add(chunk.uncompressed_size.into());
    let stop = chunk_end.min(end);
    let len = u32::try_from(stop.checked_sub(start)?).ok()?;
    (len > 0).then_some((start, len))
}
