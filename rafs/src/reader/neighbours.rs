//! Which chunk belongs to which directory, and v5's chunks by number: what speculation and traces look up.

use super::core::{Core, Job};
use super::fetch::MERGE_MAX;
use super::line::Guess;
use super::readahead::{First, Neighbour, Touch};
use super::{blobs::BlobState, blobs::Source, fetch::Planned, flights::Boarded, flights::FlightKey};
use crate::blob::Unit;
use crate::ids::{BlobIndex, ChunkIndex, InodeNumber};
use crate::image::{BlobInfo, ChunkRef, FileKind, FsVersion, Image};
use crate::store::Priority;
use std::collections::HashMap;
use std::sync::Arc;

/// Images with more chunks are served without an index.
const CHUNKS_MAX: usize = 1 << 22;
/// Chunks of a v5 blob that are found by number.
const V5_CHUNKS_MAX: usize = 1 << 20;
/// Neighbouring guesses that become one request, stored bytes.
const GUESS_MAX: u64 = 64 << 10;
/// Directories inside each other that are followed.
const DEPTH_MAX: usize = 1024;

/// An index of an image's chunks.
#[derive(Debug, Default)]
pub(super) struct Index {
    blobs: Vec<BlobChunks>,
    /// Entries of all blobs together: a hostile image may use high chunk indexes in many blobs.
    entries: usize,
}

#[derive(Debug, Default)]
struct BlobChunks {
    /// Directory of each chunk, counted from 1; 0: unknown.
    homes: Vec<u32>,
    /// v5: the chunks.
    chunks: HashMap<u32, ChunkRef>,
}

impl Index {
    /// Walks the tree once. What is corrupt is left out.
    pub fn of_image(image: &Image) -> Self {
        let mut index = Self::default();
        index.blobs.resize_with(image.blobs().len(), BlobChunks::default);
        let keep_chunks = image.version() == FsVersion::V5;
        let (mut directory, mut total) = (0u32, 0usize);
        let mut stack = vec![(image.root(), 0usize)];
        while let Some((number, depth)) = stack.pop() {
            directory = directory.saturating_add(1);
            let Ok(dir) = image.inode(number) else { continue };
            for entry in image.read_dir(&dir, 0).into_iter().flatten().flatten() {
                if entry.name == b"." || entry.name == b".." {
                    continue;
                }
                match entry.kind {
                    FileKind::Directory if depth < DEPTH_MAX => stack.push((entry.number, depth + 1)),
                    FileKind::Regular => total += index.add(image, entry.number, directory, keep_chunks),
                    _ => {}
                }
                // A hostile image may name one directory many times.
                if total > CHUNKS_MAX || stack.len() > CHUNKS_MAX || directory > 1 << 22 {
                    return index;
                }
            }
        }
        index
    }

    fn add(&mut self, image: &Image, number: InodeNumber, directory: u32, keep_chunks: bool) -> usize {
        let Ok(inode) = image.inode(number) else { return 1 };
        let mut seen = 1;
        for chunk in image.chunks(&inode, 0, inode.size).into_iter().flatten().flatten() {
            let Some(blob) = self.blobs.get_mut(chunk.blob.as_usize()) else { continue };
            let at = chunk.chunk.as_usize();
            seen += 1;
            let more = (at + 1).saturating_sub(blob.homes.len());
            if self.entries.saturating_add(more) <= CHUNKS_MAX {
                self.entries += more;
                blob.homes.resize(blob.homes.len() + more, 0);
                if let Some(home) = blob.homes.get_mut(at).filter(|home| **home == 0) {
                    *home = directory;
                }
            }
            if keep_chunks && blob.chunks.len() < V5_CHUNKS_MAX {
                blob.chunks.entry(chunk.chunk.0).or_insert(ChunkRef { file_offset: 0, ..chunk });
            }
        }
        seen
    }

    fn home(&self, blob: BlobIndex, chunk: u32) -> Option<u32> {
        let homes = &self.blobs.get(blob.as_usize())?.homes;
        homes.get(usize::try_from(chunk).ok()?).copied().filter(|home| *home > 0)
    }

    fn chunk(&self, blob: BlobIndex, chunk: u32) -> Option<ChunkRef> {
        self.blobs.get(blob.as_usize())?.chunks.get(&chunk).copied()
    }
}

impl Core {
    /// A chunk by its index. v5 needs the index of the image.
    pub fn chunk_by_index(&self, blob: BlobIndex, source: &Source, chunk: u32) -> Option<ChunkRef> {
        match source {
            Source::Table(table) => {
                let entry = table.chunk(ChunkIndex(chunk)).ok()?;
                Some(ChunkRef {
                    blob,
                    chunk: ChunkIndex(chunk),
                    uncompressed_offset: entry.uncompressed_offset,
                    uncompressed_size: entry.uncompressed_size,
                    file_offset: 0,
                    record: 0,
                })
            }
            Source::Records => self.index.get()?.chunk(blob, chunk),
            Source::Plain(_) | Source::Tar => None,
        }
    }

    /// Makes the index now, if it has not been made.
    pub fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::of_image(&self.image))
    }

    /// A chunk, its unit, and its number, if it is worth fetching: it is not here, as far as can be told without reading it.
    pub fn absent_unit(
        &self,
        state: &BlobState,
        info: &BlobInfo,
        source: &Source,
        chunk: &ChunkRef,
    ) -> Option<(Unit, u32)> {
        let access = state.open(&self.open_context(info)).ok()?;
        let number = state.number(access, chunk)?;
        let here = access.is_local()
            || state.ready(&self.image, chunk).is_some()
            || access.cache().is_some_and(|cache| {
                cache.is_mapped(number) && cache.is_claimed(number, chunk.uncompressed_offset)
            });
        if here {
            return None;
        }
        let unit = source.unit(&self.image, info, chunk, number).ok()?;
        self.hub.lru.get(state.view, unit.id).is_none().then_some((unit, number))
    }

    /// Begins a flight that nobody waits for; `None` when somebody flies already, or has.
    pub fn depart(
        self: &Arc<Self>,
        state: &BlobState,
        source: &Source,
        chunk: &ChunkRef,
        unit: Unit,
    ) -> Option<Planned> {
        let own = state.access().is_some_and(|access| access.has_own_numbers());
        let key = match own {
            true => FlightKey::Own(state.view, unit.id),
            false => FlightKey::Unit(*state.shared, unit.id),
        };
        let landed = || state.ready(&self.image, chunk).is_some();
        match self.hub.board(key, chunk.blob, None, landed) {
            Boarded::Flies(ticket) => {
                let (chunk, source) = (*chunk, source.clone());
                Some(Planned {
                    ticket,
                    unit,
                    chunk,
                    source,
                    attempt: 0,
                    priority: Priority::Prefetch,
                    slot: None,
                })
            }
            Boarded::Waits | Boarded::Landed(_) => None,
        }
    }

    /// Chunks of `touches` have been read for the first time: what is likely to be read next sets off beside them.
    pub fn widen(self: &Arc<Self>, touches: &[Touched], planned: &mut Vec<Planned>) {
        for touched in touches {
            let Ok((state, info)) = self.blob(touched.blob) else { continue };
            let (Some(source), Some(access)) = (state.known_source(), state.access()) else { continue };
            if access.has_own_numbers() {
                continue;
            }
            if self.index.get().is_none() {
                if !self.indexing.swap(true, std::sync::atomic::Ordering::AcqRel) {
                    self.push_idle(Job::Index);
                }
                if matches!(source, Source::Records) {
                    continue;
                }
            }
            let index = self.index.get();
            let find = |n: u32| {
                let chunk = self.chunk_by_index(touched.blob, &source, n)?;
                let unit = source.unit(&self.image, info, &chunk, n).ok()?;
                Some((chunk, unit))
            };
            let look = |n: u32| {
                let (_, unit) = find(n)?;
                let home = index.and_then(|index| index.home(touched.blob, n));
                Some(Neighbour { stored: unit.stored_size, home })
            };
            let absent = |n: u32| {
                find(n).is_some_and(|(chunk, _)| self.absent_unit(state, info, &source, &chunk).is_some())
            };
            let first = First {
                chunk: touched.chunk,
                touch: touched.touch,
                missed: touched.missed,
                goes_on: touched.plain >= self.image.chunk_size(),
                ceiling: touched.ceiling,
            };
            if first.touch == Touch::Guessed || first.missed {
                let stored = look(first.chunk).map_or(0, |own| own.stored);
                self.hub.metrics.count(|m| &m.wanted_bytes, stored);
            }
            let picked = state.ahead.plan(access.chunk_count(), first, look, absent);
            self.set_off(touched.blob, &picked.now, planned);
            let (mut later, mut bytes): (Vec<Guess>, u64) = (Vec::new(), 0);
            for n in picked.later {
                let stored = find(n).map_or(0, |(_, unit)| u64::from(unit.stored_size));
                bytes = bytes.saturating_add(stored);
                let last = later.last_mut().map(|guess| &mut guess.chunks);
                match last.filter(|chunks| chunks.last().is_some_and(|l| l.abs_diff(n) == 1)) {
                    Some(chunks) if bytes <= GUESS_MAX => chunks.push(n),
                    _ => {
                        bytes = stored;
                        let core = Arc::downgrade(self);
                        later.push(Guess { core, blob: touched.blob, chunks: vec![n] });
                    }
                }
            }
            self.hub.line.wait(later);
        }
    }

    /// Begins flights for chunks that nobody has asked for.
    fn set_off(self: &Arc<Self>, blob: BlobIndex, chunks: &[u32], planned: &mut Vec<Planned>) {
        let Ok((state, info)) = self.blob(blob) else { return };
        let Some(source) = state.known_source() else { return };
        for &n in chunks {
            let Some(chunk) = self.chunk_by_index(blob, &source, n) else { continue };
            let Some((unit, _)) = self.absent_unit(state, info, &source, &chunk) else { continue };
            if let Some(one) = self.depart(state, &source, &chunk, unit) {
                self.hub.metrics.count(|m| &m.guessed_bytes, chunk.uncompressed_size);
                planned.push(one);
            }
        }
    }

    /// Sends off guesses as long as there is room on the line.
    pub fn guess(self: &Arc<Self>) {
        while let Some(guess) = self.hub.line.next() {
            let Some(core) = guess.core.upgrade() else { continue };
            let mut planned = Vec::new();
            core.set_off(guess.blob, &guess.chunks, &mut planned);
            core.launch(planned, MERGE_MAX);
        }
    }
}

/// A chunk that has been read for the first time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Touched {
    pub blob: BlobIndex,
    pub chunk: u32,
    pub touch: Touch,
    /// Plain bytes of it.
    pub plain: u32,
    /// Its reader has to wait for the store.
    pub missed: bool,
    /// Most bytes to fetch beside it.
    pub ceiling: u64,
}
