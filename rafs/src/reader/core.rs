//! The fetch side's centre: from pieces of reads to flights, one for each unit however many ask for it.

use super::blobs::{BlobState, OpenContext, Source, SourceState, V5Summary};
use super::budget::Budget;
use super::fetch::{Group, Loaded, Planned};
use super::queue::Queue;
use super::request::{Piece, Request};
use super::{ReadError, ReaderOptions};
use crate::blob::{DigestIndex, Expected, Member, Unit, UnitId};
use crate::cache::{CacheDir, UnitLru};
use crate::ids::{BlobIndex, ChunkIndex};
use crate::image::{BlobInfo, ChunkRef, FsVersion, Image, Inode};
use crate::store::{Store, StoreError};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Names a flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum FlightKey {
    /// A unit comes from the store.
    Unit(BlobIndex, UnitId),
    /// A chunk that the cache file claims to hold is being verified.
    Cached(BlobIndex, u32),
}

/// What fetch threads do.
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
    /// Bring the `durable` bitmaps up to date.
    Sync,
}

/// Everything that fetch threads share.
pub(super) struct Core {
    pub image: Arc<Image>,
    pub store: Arc<dyn Store>,
    pub options: ReaderOptions,
    pub cache_dir: Option<CacheDir>,
    pub blobs: Vec<BlobState>,
    pub queue: Queue<Job>,
    pub budget: Budget<Group>,
    pub lru: UnitLru,
    pub log_limit: LogLimit,
    flights: Mutex<Flights>,
    deadlines: Mutex<VecDeque<Weak<Request>>>,
    pub deadline_set: Condvar,
    digests: OnceLock<DigestIndex>,
    v5_summaries: OnceLock<Vec<V5Summary>>,
    pub sync_queued: AtomicBool,
}

/// The right to end one flight. Dropped without use (a panic, a store that forgets its completion) it ends the
/// flight with an error.
pub(super) struct Ticket {
    core: Weak<Core>,
    key: FlightKey,
    /// Tells this flight from a later one of the same key.
    flight: u64,
}

impl Ticket {
    pub fn key(&self) -> FlightKey {
        self.key
    }

    pub fn blob(&self) -> BlobIndex {
        match self.key {
            FlightKey::Unit(blob, _) | FlightKey::Cached(blob, _) => blob,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            for piece in core.cancel(self) {
                piece.fail(ReadError::Internal);
            }
        }
    }
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

/// Flights in progress, and who waits for each.
#[derive(Default)]
struct Flights {
    by_key: HashMap<FlightKey, (u64, Vec<Piece>)>,
    last: u64,
}

impl Flights {
    fn take(&mut self, ticket: &Ticket) -> Vec<Piece> {
        match self.by_key.get_mut(&ticket.key) {
            Some((flight, waiting)) if *flight == ticket.flight => std::mem::take(waiting),
            _ => Vec::new(),
        }
    }

    fn end(&mut self, ticket: &Ticket) {
        if self.by_key.get(&ticket.key).is_some_and(|(flight, _)| *flight == ticket.flight) {
            self.by_key.remove(&ticket.key);
        }
    }
}

impl Core {
    pub fn new(
        image: Arc<Image>,
        store: Arc<dyn Store>,
        options: ReaderOptions,
        cache_dir: Option<CacheDir>,
    ) -> Self {
        let blobs = (0u32..).zip(image.blobs()).map(|(i, _)| BlobState::new(BlobIndex(i))).collect();
        Self {
            blobs,
            queue: Queue::new(),
            budget: Budget::new(options.memory_limit),
            lru: UnitLru::new(options.memory_limit),
            log_limit: LogLimit::new(),
            flights: Mutex::default(),
            deadlines: Mutex::default(),
            deadline_set: Condvar::new(),
            digests: OnceLock::new(),
            v5_summaries: OnceLock::new(),
            sync_queued: AtomicBool::new(false),
            image,
            store,
            options,
            cache_dir,
        }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn deadlines(&self) -> MutexGuard<'_, VecDeque<Weak<Request>>> {
        self.deadlines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that a request ends at its deadline.
    pub fn watch(&self, request: &Arc<Request>) {
        let mut deadlines = self.deadlines();
        // Requests end mostly in the order they came: this keeps the list as short as what is in flight.
        while deadlines.front().is_some_and(|r| r.upgrade().is_none_or(|r| r.is_over())) {
            deadlines.pop_front();
        }
        deadlines.push_back(Arc::downgrade(request));
        if deadlines.len() == 1 {
            self.deadline_set.notify_one();
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
        OpenContext { info, store: &*self.store, cache_dir: self.cache_dir.as_ref(), summary }
    }

    /// Puts a job into the queue; a closed queue drops it, which ends what depends on it.
    pub fn push(&self, job: Job) {
        drop(self.queue.push(job));
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
            Job::Sync => self.sync(),
        }
    }

    /// Cuts a read into pieces, and hands them on.
    fn plan_read(self: &Arc<Self>, request: &Arc<Request>, inode: &Inode, offset: u64, len: u64) {
        let mut pieces = Vec::new();
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
            pieces.push(request.piece(chunk, skip, n, at(start)));
            position = start.saturating_add(n.into());
        }
        if position < end {
            request.fill_zeros(at(position), end - position);
        }
        self.submit(pieces);
        request.done();
    }

    /// Ends pieces that can be ended now, and makes the others wait on flights.
    pub fn submit(self: &Arc<Self>, pieces: Vec<Piece>) {
        let mut planned = Vec::new();
        for piece in pieces {
            if !piece.is_over() {
                self.submit_one(piece, &mut planned);
            }
        }
        self.launch(planned);
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
        if let Some((file, offset)) = state.ready(&self.image, &chunk) {
            match piece.finish_from_file(file, offset) {
                Ok(()) => return,
                Err(error) if access.unready(number) => {
                    tracing::warn!(%error, file = access.path(), offset, "cached data is gone; fetching it again");
                }
                Err(source) => {
                    let (file, source) = (access.path().into(), Arc::new(source));
                    return piece.fail(ReadError::File { file, offset, source });
                }
            }
        }
        if let Some(cache) = access.cache()
            && cache.is_claimed(number, chunk.uncompressed_offset)
        {
            let mapped = cache.is_mapped(number);
            let unverifiable =
                !self.options.verify || matches!(self.expected(info, &chunk, None), Ok(Expected::Nothing));
            if unverifiable && mapped {
                cache.set_ready(number);
                match piece.finish_from_file(cache.file(), chunk.uncompressed_offset) {
                    Ok(()) => return,
                    Err(_) => cache.reject(number),
                }
            } else if !unverifiable {
                let key = FlightKey::Cached(chunk.blob, number);
                match self.board(key, piece, || state.ready(&self.image, &chunk).is_some()) {
                    Boarded::Waits => return,
                    Boarded::Flies(ticket) => return self.push(Job::Verify { ticket, chunk, number }),
                    Boarded::Landed(back) => return self.push(Job::Pieces(vec![back])),
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
                self.source_is_wrong(state, info, &chunk, &error);
                return piece.fail(error);
            }
        };
        if let Some(plain) = self.lru.get(chunk.blob, unit.id) {
            return finish_from_unit(&piece, &source, &unit, info, &plain);
        }
        let key = FlightKey::Unit(chunk.blob, unit.id);
        let landed =
            || state.ready(&self.image, &chunk).is_some() || self.lru.get(chunk.blob, unit.id).is_some();
        match self.board(key, piece, landed) {
            Boarded::Waits => {}
            Boarded::Flies(ticket) => planned.push(Planned { ticket, unit, chunk, source, attempt: 0 }),
            Boarded::Landed(piece) => self.push(Job::Pieces(vec![piece])),
        }
    }

    /// Joins the flight `key`, or begins it. `landed` tells, while nobody can end the flight, whether it is over
    /// already.
    fn board(self: &Arc<Self>, key: FlightKey, piece: Piece, landed: impl Fn() -> bool) -> Boarded {
        let mut flights = self.flights();
        if let Some((_, waiting)) = flights.by_key.get_mut(&key) {
            waiting.push(piece);
            return Boarded::Waits;
        }
        if landed() {
            return Boarded::Landed(piece);
        }
        flights.last += 1;
        let flight = flights.last;
        flights.by_key.insert(key, (flight, vec![piece]));
        Boarded::Flies(Ticket { core: Arc::downgrade(self), key, flight })
    }

    /// Those who wait for a flight now; more may come.
    pub fn waiting(&self, ticket: &Ticket) -> Vec<Piece> {
        self.flights().take(ticket)
    }

    /// Ends a flight if nobody waits any more; else returns those who do, and the flight goes on.
    pub fn land(&self, ticket: &Ticket) -> Vec<Piece> {
        let mut flights = self.flights();
        let waiting = flights.take(ticket);
        if waiting.is_empty() {
            flights.end(ticket);
        }
        waiting
    }

    /// Ends a flight and returns all who waited.
    pub fn cancel(&self, ticket: &Ticket) -> Vec<Piece> {
        let mut flights = self.flights();
        let waiting = flights.take(ticket);
        flights.end(ticket);
        waiting
    }

    /// Ends every flight.
    pub fn cancel_all(&self) -> Vec<Piece> {
        let flights = std::mem::take(&mut self.flights().by_key);
        flights.into_values().flat_map(|(_, pieces)| pieces).collect()
    }

    /// What the plain bytes of a chunk must match. `member` is the chunk as the blob's own table describes it.
    pub fn expected(
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
        let mut plain = self.budget.buffer();
        plain.resize(usize::try_from(chunk.uncompressed_size).unwrap_or(0), 0);
        let good = cache.read(chunk.uncompressed_offset, &mut plain).is_ok()
            && self.expected(info, chunk, None).is_ok_and(|expected| expected.matches(&plain));
        if good {
            cache.set_ready(number);
            loop {
                let pieces = self.land(&ticket);
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
            if cache.is_mapped(number)
                && let Some(left_out) = self.log_limit.admit()
            {
                tracing::warn!(blob = %info.id, chunk = %chunk.chunk, file = cache.path(), left_out,
                    "cached chunk is damaged; fetching it again");
            }
            cache.reject(number);
            self.submit(self.cancel(&ticket));
        }
        self.budget.recycle(plain);
    }

    /// The durable step for every blob.
    pub fn sync(&self) {
        self.sync_queued.store(false, Ordering::Release);
        for state in &self.blobs {
            if let Some(cache) = state.access().and_then(|a| a.cache())
                && let Err(error) = cache.make_durable()
            {
                tracing::warn!(%error, "cached chunks may not survive a crash of the host");
            }
        }
    }

    /// Asks for the durable step when much has been written since the last one.
    pub fn sync_if_much_is_dirty(&self, unsynced: u64) {
        const MUCH: u64 = 256 << 20;
        if unsynced >= MUCH && !self.sync_queued.swap(true, Ordering::AcqRel) {
            self.push(Job::Sync);
        }
    }

    /// Time to wait for a store where a thread has to.
    pub fn patience(&self) -> Duration {
        self.options.deadline
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

/// Result of [`Core::board`].
enum Boarded {
    /// Somebody else flies.
    Waits,
    /// The caller has to fly.
    Flies(Ticket),
    /// It is over; the caller gets its piece back.
    Landed(Piece),
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
