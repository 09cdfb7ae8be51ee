//! From units to bytes: grouped store requests, decoding, verification, delivery, and keeping the result.

use super::ReadError;
use super::blobs::{BlobState, Source};
use super::budget::Admitted;
use super::core::{Core, Job};
use super::engine::Hub;
use super::flights::Ticket;
use super::line::Sent;
use super::metrics::StoreCounters;
use super::prefetch::Slot;
use super::request::Piece;
use crate::blob::{Expected, Member, Unit};
use crate::cache::CachedChunk;
use crate::image::{BlobInfo, ChunkRef};
use crate::store::{ErrorClass, FetchRequest, FetchSink, Priority, StoreError};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

/// Most bytes that adjacent units are merged to in one store request on demand.
pub(super) const MERGE_MAX: u64 = 1 << 20;

/// A unit on its way.
pub(super) struct Planned {
    pub ticket: Ticket,
    pub unit: Unit,
    /// The chunk that it was first wanted for.
    pub chunk: ChunkRef,
    pub source: Source,
    /// 0 the first time, 1 when the first answer was no good.
    pub attempt: u32,
    /// Whether somebody waits.
    pub priority: Priority,
    /// Its place among what prefetch has on its way.
    pub slot: Option<Arc<Slot>>,
}

/// Adjacent units that are asked for together; one object, one attempt.
pub(super) struct Group {
    core: Arc<Core>,
    object: Arc<str>,
    range: Range<u64>,
    units: VecDeque<Planned>,
    permit: Option<Arc<Permit>>,
    asked: Option<Asked>,
}

/// A request that the store has not answered.
struct Asked {
    hub: Arc<Hub>,
    counters: Arc<StoreCounters>,
    at: Instant,
    demand: bool,
    answered: bool,
    sent: Sent,
}

impl Asked {
    fn new(core: &Core, demand: bool, bytes: u64) -> Self {
        core.counters.asked(!demand);
        core.hub.demand_sent(demand);
        let (hub, counters) = (Arc::clone(&core.hub), Arc::clone(&core.counters));
        let sent = hub.line.send(bytes);
        Self { hub, counters, at: Instant::now(), demand, answered: false, sent }
    }

    fn answered(&mut self, result: Result<usize, ErrorClass>) {
        self.answered = true;
        self.counters.answered(result, self.at.elapsed());
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.hub.demand_over(self.demand);
        if !self.answered {
            self.answered(Err(ErrorClass::Transient));
        }
    }
}

/// Memory that a group may use. Given back when dropped, which starts groups that wait.
pub(super) struct Permit {
    hub: Arc<Hub>,
    admitted: Option<Admitted>,
}

impl Permit {
    pub fn new(hub: &Arc<Hub>, admitted: Admitted) -> Arc<Self> {
        Arc::new(Self { hub: Arc::clone(hub), admitted: Some(admitted) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(admitted) = self.admitted.take() {
            self.hub.admitted(self.hub.budget.release(admitted));
        }
    }
}

/// Stored bytes that have come, shared by the jobs that decode the units in them.
pub(super) struct Loaded {
    hub: Arc<Hub>,
    stored: Vec<u8>,
    start: u64,
    _permit: Option<Arc<Permit>>,
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.hub.budget.recycle(std::mem::take(&mut self.stored));
    }
}

impl Loaded {
    fn of_unit(&self, unit: &Unit) -> &[u8] {
        part_of(&self.stored, self.start, unit).unwrap_or_default()
    }
}

/// The stored bytes of a unit in `stored`, which begins at byte `start` of the object; `None` when they are not all there.
fn part_of<'a>(stored: &'a [u8], start: u64, unit: &Unit) -> Option<&'a [u8]> {
    let start = usize::try_from(unit.stored_offset.checked_sub(start)?).ok()?;
    stored.get(start..start.checked_add(usize::try_from(unit.stored_size).ok()?)?)
}

/// Takes an answer as it arrives: each unit goes to the fetch threads as soon as all of it is here.
struct Arriving(Group);

impl FetchSink for Arriving {
    fn arrived(&mut self, prefix: &[u8]) {
        let Self(group) = self;
        if let Some(asked) = &mut group.asked {
            asked.sent.arrived(u64::try_from(prefix.len()).unwrap_or(u64::MAX));
            if group.core.hub.line.is_ready() {
                group.core.push(Job::Guesses);
            }
        }
        while let Some(front) = group.units.front()
            && let Some(part) = part_of(prefix, group.range.start, &front.unit)
            && let Some(planned) = group.units.pop_front()
        {
            let hub = &group.core.hub;
            let mut stored = hub.budget.buffer();
            stored.clear();
            stored.extend_from_slice(part);
            let loaded = Arc::new(Loaded {
                hub: Arc::clone(hub),
                stored,
                start: planned.unit.stored_offset,
                _permit: group.permit.clone(),
            });
            group.core.push_decode(loaded, planned);
        }
    }

    fn finish(self: Box<Self>, result: Result<Vec<u8>, StoreError>) {
        let Self(group) = *self;
        let core = Arc::clone(&group.core);
        core.push(Job::Answered(group, result));
    }
}

impl Group {
    fn single(core: &Arc<Core>, info: &BlobInfo, planned: Planned) -> Self {
        Self {
            core: Arc::clone(core),
            object: planned.source.object(info),
            range: planned.unit.stored_offset..planned.unit.stored_end(),
            units: VecDeque::from([planned]),
            permit: None,
            asked: None,
        }
    }

    /// Adds a unit that continues this group's range; gives back one that does not.
    fn extend(&mut self, info: &BlobInfo, planned: Planned, most: u64) -> Option<Planned> {
        let end = planned.unit.stored_end();
        let fits = self.units.front().is_some_and(|first| first.ticket.blob == planned.ticket.blob)
            && planned.source.object(info) == self.object
            && (self.range.start..=self.range.end).contains(&planned.unit.stored_offset)
            && end.saturating_sub(self.range.start) <= most
            // What somebody waits for does not come behind what nobody does.
            && (planned.priority == Priority::Prefetch || self.priority() == Priority::Demand);
        if !fits {
            return Some(planned);
        }
        self.range.end = self.range.end.max(end);
        self.units.push_back(planned);
        None
    }

    /// Bytes of buffers it needs.
    fn cost(&self) -> usize {
        let plain: u64 = self.units.iter().map(|p| u64::from(p.unit.plain_size)).sum();
        let stored = self.range.end.saturating_sub(self.range.start);
        usize::try_from(plain.saturating_add(stored)).unwrap_or(usize::MAX)
    }

    fn priority(&self) -> Priority {
        self.units.iter().map(|p| p.priority).max().unwrap_or(Priority::Demand)
    }

    /// It may use memory now. Whose it is.
    pub fn admit(&mut self, permit: Arc<Permit>) -> Arc<Core> {
        self.permit = Some(permit);
        Arc::clone(&self.core)
    }
}

impl Core {
    /// Merges units into groups and sends these off as far as memory allows.
    pub fn launch(self: &Arc<Self>, mut planned: Vec<Planned>, most: u64) {
        planned.sort_by_key(|p| (p.ticket.blob, p.unit.stored_offset));
        let mut groups: Vec<Group> = Vec::new();
        for one in planned {
            let Ok((_, info)) = self.blob(one.ticket.blob) else { continue };
            let left = match groups.last_mut() {
                Some(group) => group.extend(info, one, most),
                None => Some(one),
            };
            groups.extend(left.map(|one| Group::single(self, info, one)));
        }
        // Those that somebody waits for first.
        groups.sort_by_key(|group| std::cmp::Reverse(group.priority()));
        for group in groups {
            self.send(group);
        }
    }

    fn send(self: &Arc<Self>, group: Group) {
        let admitted = match group.priority() {
            Priority::Demand => self.hub.budget.admit(group.cost(), group),
            Priority::Prefetch => self.hub.budget.admit_idle(group.cost(), group),
        };
        if let Some((admitted, mut group)) = admitted {
            group.permit = Some(Permit::new(&self.hub, admitted));
            self.start(group);
        }
    }

    /// Asks the store. A local store answers within the call.
    pub fn start(self: &Arc<Self>, mut group: Group) {
        let bytes = group.range.end.saturating_sub(group.range.start);
        group.asked = Some(Asked::new(self, group.priority() == Priority::Demand, bytes));
        let request = FetchRequest {
            object: Arc::clone(&group.object),
            range: group.range.clone(),
            buffer: self.hub.budget.buffer(),
            attempt: group.units.iter().map(|p| p.attempt).max().unwrap_or(0),
            priority: group.priority(),
        };
        self.store.fetch_streamed(request, Box::new(Arriving(group)));
    }

    /// Has a unit decoded, before or behind other work.
    fn push_decode(self: &Arc<Self>, loaded: Arc<Loaded>, planned: Planned) {
        let demand = planned.priority == Priority::Demand || self.hub.flights.is_awaited(&planned.ticket);
        let job = Job::Decode { loaded, planned };
        if demand { self.push(job) } else { self.push_idle(job) }
    }

    /// The store has answered: spread the units over the fetch threads, or see what to do about the failure.
    pub fn answered(self: &Arc<Self>, mut group: Group, result: Result<Vec<u8>, StoreError>) {
        let wanted = group.range.end.saturating_sub(group.range.start);
        let result = result.and_then(|stored| {
            if u64::try_from(stored.len()) == Ok(wanted) {
                return Ok(stored);
            }
            let reason = format!("the store answered with {} bytes instead of {wanted}", stored.len());
            let (object, range) = (group.object.to_string(), Some(group.range.clone()));
            Err(StoreError { class: ErrorClass::Transient, object, range, reason })
        });
        if let Some(mut asked) = group.asked.take() {
            asked.answered(result.as_ref().map(Vec::len).map_err(|e| e.class));
        }
        self.guess();
        let permit = group.permit.take();
        match result {
            Ok(stored) => {
                let loaded = Arc::new(Loaded {
                    hub: Arc::clone(&self.hub),
                    stored,
                    start: group.range.start,
                    _permit: permit,
                });
                let mut units = group.units.into_iter();
                let last = units.next_back();
                for planned in units {
                    self.push_decode(Arc::clone(&loaded), planned);
                }
                if let Some(planned) = last {
                    self.decode(&loaded, planned);
                }
            }
            Err(error) => {
                drop(permit);
                let retry = matches!(error.class, ErrorClass::Transient | ErrorClass::Corrupt);
                let error = Arc::new(error);
                for planned in group.units {
                    if retry && planned.attempt == 0 && planned.priority == Priority::Demand {
                        self.again(planned);
                    } else {
                        self.failed(planned, ReadError::Store(Arc::clone(&error)));
                    }
                }
            }
        }
    }

    /// A second and last try, alone, by-passing what failed.
    fn again(self: &Arc<Self>, mut planned: Planned) {
        planned.attempt += 1;
        planned.slot = None;
        let Ok((_, info)) = self.blob(planned.ticket.blob) else { return };
        self.send(Group::single(self, info, planned));
    }

    /// Decodes and verifies a unit, ends the pieces that wait for it, and keeps it.
    pub fn decode(self: &Arc<Self>, loaded: &Arc<Loaded>, planned: Planned) {
        let Ok((state, info)) = self.blob(planned.ticket.blob) else { return };
        let (mut plain, mut scratch) = (self.hub.budget.buffer(), self.hub.budget.buffer());
        let decoded = planned.source.decode(
            info,
            &planned.unit,
            loaded.of_unit(&planned.unit),
            &mut scratch,
            &mut plain,
        );
        self.hub.budget.recycle(scratch);
        let verified = decoded.map_err(ReadError::from).map(|()| self.verify(info, &planned, &plain));
        let wrong = match &verified {
            Ok(verified) => verified.bad.first().map(|(_, error)| error),
            Err(error) => Some(error),
        };
        if let Some(error) = wrong
            && planned.attempt > 0
            && matches!(planned.source, Source::Table(_))
            && self.source_is_wrong(state, info, &planned.chunk, error)
        {
            // The chunk info may be what is wrong, if it came from the cache directory.
            self.push(Job::Pieces(self.hub.flights.cancel(&planned.ticket)));
            return self.hub.budget.recycle(plain);
        }
        match verified {
            Ok(verified) if verified.bad.is_empty() || planned.attempt > 0 => {
                self.deliver(state, info, planned, &verified, &plain);
            }
            Ok(_) => self.again(planned),
            Err(_) if planned.attempt == 0 => self.again(planned),
            Err(error) => self.failed(planned, error),
        }
        self.hub.budget.recycle(plain);
    }

    /// Sorts the chunks of a decoded unit into good and bad.
    fn verify(&self, info: &BlobInfo, planned: &Planned, plain: &[u8]) -> Verified {
        let mut verified = Verified::default();
        let table = matches!(planned.source, Source::Table(_));
        for member in planned.source.members(&planned.unit, &planned.chunk) {
            let Some(bytes) = plain.get(member.range.clone()) else { continue };
            if !self.verify {
                verified.good.push((member, true));
                continue;
            }
            match self.expected(info, &planned.chunk, table.then_some(&member)) {
                // Served to who asks, as the image wants it, but other chunks of the unit are not kept on trust.
                Ok(Expected::Nothing) => verified.good.push((member, false)),
                Ok(expected) if expected.matches(bytes) => verified.good.push((member, true)),
                Ok(_) => {
                    let error = ReadError::Digest {
                        blob: info.id.clone(),
                        chunk: member.chunk,
                        uncompressed_offset: member.uncompressed_offset,
                    };
                    verified.bad.push((member, error));
                }
                Err(error) => verified.bad.push((member, error)),
            }
        }
        verified
    }

    fn deliver(
        self: &Arc<Self>,
        state: &BlobState,
        info: &BlobInfo,
        planned: Planned,
        verified: &Verified,
        plain: &[u8],
    ) {
        let waiting = self.hub.flights.waiting(&planned.ticket);
        if let Some((member, error)) = verified.bad.first() {
            self.log_failure(info, waiting.first().map_or(&planned.chunk, |p| &p.chunk), error);
            if matches!(planned.source, Source::Table(_)) {
                self.source_is_wrong(state, info, &planned.chunk, error);
            }
            self.hub.metrics.count(|m| &m.damaged_units, 1u32);
            tracing::debug!(blob = %info.id, chunk = %member.chunk, "unit has damaged chunks");
        }
        let mut read: Vec<u32> = waiting.iter().map(|piece| piece.chunk.chunk.0).collect();
        self.end_pieces(info, waiting, verified, plain);
        self.keep(state, info, &planned, verified, plain);
        loop {
            let late = self.hub.flights.land(&planned.ticket);
            if late.is_empty() {
                break;
            }
            read.extend(late.iter().map(|piece| piece.chunk.chunk.0));
            self.end_pieces(info, late, verified, plain);
        }
        if let Some(cache) = state.access().and_then(|access| access.cache()) {
            // Of a unit of one chunk the number is known, whatever the image calls it.
            let single = verified.good.len() == 1 && !read.is_empty();
            read.extend(single.then_some(planned.unit.chunk.0));
            read.into_iter().for_each(|chunk| cache.touch(chunk));
        }
    }

    /// Puts verified chunks where the next read finds them.
    fn keep(&self, state: &BlobState, info: &BlobInfo, planned: &Planned, verified: &Verified, plain: &[u8]) {
        let Some(access) = state.access() else { return };
        if let Some(cache) = access.cache() {
            let wanted = planned.unit.chunk;
            let table = matches!(planned.source, Source::Table(_));
            let chunks: Vec<CachedChunk<'_>> = verified
                .good
                .iter()
                .filter(|(member, known)| *known || member.chunk == wanted)
                .filter_map(|(member, _)| {
                    Some(CachedChunk {
                        chunk: member.chunk.0,
                        description: self.describe(info, &planned.chunk, table.then_some(member)).ok()?,
                        plain: plain.get(member.range.clone())?,
                    })
                })
                .collect();
            match cache.keep(&chunks) {
                Ok(true) => return self.hub.sync_if_much_is_dirty(cache.unsynced_bytes()),
                Ok(false) => {}
                Err(error) => tracing::warn!(%error, blob = %info.id, "not cached in a file for now"),
            }
        } else if planned.unit.is_raw()
            && verified.bad.is_empty()
            && state.set_raw_ready(access, &planned.source, planned.unit.chunk.0)
        {
            return;
        }
        self.hub.metrics.count(|m| &m.uncached_units, 1u32);
        if verified.bad.is_empty() {
            self.hub.lru.put(state.view, planned.unit.id, plain);
        }
    }

    /// A unit cannot be had.
    fn failed(self: &Arc<Self>, planned: Planned, error: ReadError) {
        let pieces = self.hub.flights.cancel(&planned.ticket);
        if let Ok((state, info)) = self.blob(planned.ticket.blob) {
            if !pieces.is_empty() || planned.priority == Priority::Demand {
                self.log_failure(info, pieces.first().map_or(&planned.chunk, |p| &p.chunk), &error);
            }
            let gone = matches!(&error, ReadError::Store(e) if e.class == ErrorClass::Missing);
            if gone && matches!(planned.source, Source::Plain(_)) {
                drop(state.forget_source());
            } else if matches!(error, ReadError::Blob(_)) {
                self.source_is_wrong(state, info, &planned.chunk, &error);
            }
        }
        if planned.priority == Priority::Prefetch && matches!(error, ReadError::Store(_)) {
            // Prefetch gives up sooner than those who wait: they ask again for themselves.
            return self.push(Job::Pieces(pieces));
        }
        for piece in pieces {
            match piece.core() {
                // Another image has to ask for itself: it may know better what to ask for.
                Some(other) if !Arc::ptr_eq(other, self) => Arc::clone(other).adopt(piece, None),
                _ => piece.fail(error.clone()),
            }
        }
    }

    /// Ends pieces that waited for a unit.
    fn end_pieces(self: &Arc<Self>, info: &BlobInfo, pieces: Vec<Piece>, verified: &Verified, plain: &[u8]) {
        for piece in pieces {
            let at = piece.chunk.uncompressed_offset;
            let same = |member: &Member| {
                member.uncompressed_offset == at
                    && u32::try_from(member.range.len()) == Ok(piece.chunk.uncompressed_size)
            };
            let other = piece.core().filter(|core| !Arc::ptr_eq(core, self)).map(Arc::clone);
            if other.is_none()
                && let Some((_, error)) =
                    verified.bad.iter().find(|(member, _)| member.uncompressed_offset == at)
            {
                piece.fail(error.clone());
                continue;
            }
            let bytes = verified
                .good
                .iter()
                .find(|(member, _)| same(member))
                .and_then(|(member, _)| plain.get(member.range.clone()));
            if let Some(other) = other {
                other.adopt(piece, bytes);
                continue;
            }
            if !bytes.is_some_and(|bytes| piece.finish_from_chunk(bytes)) {
                piece.fail(ReadError::Mismatch { blob: info.id.clone(), chunk: piece.chunk.chunk });
            }
        }
    }

    fn log_failure(&self, info: &BlobInfo, chunk: &ChunkRef, error: &ReadError) {
        if let Some(left_out) = self.hub.log_limit.admit() {
            tracing::error!(blob = %info.id, chunk = %chunk.chunk, file_offset = chunk.file_offset, left_out,
                "reading failed: {error}");
        }
    }
}

/// The chunks of a decoded unit. Good ones say whether something was known to check them against.
#[derive(Default)]
struct Verified {
    good: Vec<(Member, bool)>,
    bad: Vec<(Member, ReadError)>,
}
