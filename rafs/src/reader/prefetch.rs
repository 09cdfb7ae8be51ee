//! Fetching what nobody has asked for yet: traces, the image's own list, chosen files, whole blobs.
//!
//! A thread a reader goes through a list and keeps a bounded number of bytes on their way, less while readers wait for
//! the store. What readers ask for meanwhile is fetched at once, or is on its way already.

use super::blobs::Source;
use super::core::{Core, Job};
use super::metrics::Usage;
use crate::blob::Unit;
use crate::ids::{BlobIndex, InodeNumber};
use crate::image::{ChunkRef, FileKind, Inode};
use crate::trace::Trace;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes on their way for each configured thread.
const BYTES_PER_THREAD: u64 = 256 << 10;
/// Units that are looked at together, so that neighbours become one request, stored bytes.
const LOOK_AHEAD: u64 = 2 << 20;
/// How long the chunk info of a blob is waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Units that are remembered as asked for.
const QUEUED_MAX: usize = 1 << 18;
const PAUSE: Duration = Duration::from_millis(5);

/// What to prefetch, in this order, and how.
#[derive(Clone, Debug)]
pub struct Prefetch {
    /// Chunks that a guest read elsewhere.
    pub trace: Option<Arc<Trace>>,
    /// The list in the image.
    pub image_list: bool,
    /// Files and directories, as absolute paths in the image; those that are not there are left out.
    pub files: Vec<Vec<u8>>,
    /// Everything.
    pub all: bool,
    /// How much happens at once, 1 to 1024: 256 KiB on their way each. Default 8.
    pub threads: u32,
    /// Most stored bytes of one request. Default 1 MiB.
    pub batch_size: u32,
    /// Stored bytes a second, 0 for no limit.
    pub bandwidth: u64,
}

impl Default for Prefetch {
    fn default() -> Self {
        Self {
            trace: None,
            image_list: true,
            files: Vec::new(),
            all: false,
            threads: 8,
            batch_size: 1 << 20,
            bandwidth: 0,
        }
    }
}

/// What is on its way for prefetch.
#[derive(Debug, Default)]
pub(super) struct Window {
    state: Mutex<(u32, u64)>,
    changed: Condvar,
}

impl Window {
    fn state(&self) -> MutexGuard<'_, (u32, u64)> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request's place in the window, given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    window: Arc<Window>,
    bytes: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.window.state();
        state.0 = state.0.saturating_sub(1);
        state.1 = state.1.saturating_sub(self.bytes);
        self.window.changed.notify_all();
    }
}

/// One prefetch at work.
pub(super) struct Prefetcher {
    pub core: Arc<Core>,
    pub what: Prefetch,
    /// Set when the reader ends.
    pub stop: Arc<AtomicBool>,
    usage: Arc<Usage>,
    window: Arc<Window>,
    pending: Vec<Wanted>,
    pending_bytes: u64,
    queued: HashSet<(BlobIndex, crate::blob::UnitId)>,
    sources: HashMap<BlobIndex, Option<Source>>,
    /// When what was asked for so far is paid for.
    paid: Instant,
}

struct Wanted {
    blob: BlobIndex,
    chunk: ChunkRef,
    unit: Unit,
}

impl Prefetcher {
    pub fn new(core: Arc<Core>, what: Prefetch, stop: Arc<AtomicBool>, usage: Arc<Usage>) -> Self {
        if what.trace.is_some() {
            core.replaying.store(true, Ordering::Relaxed);
        }
        Self {
            core,
            what,
            stop,
            usage,
            window: Arc::default(),
            pending: Vec::new(),
            pending_bytes: 0,
            queued: HashSet::new(),
            sources: HashMap::new(),
            paid: Instant::now(),
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire) || self.core.hub.queue.is_closed()
    }

    /// Goes through all of it.
    pub fn run(mut self) {
        let begun = Instant::now();
        self.usage.prefetch_begins();
        if let Some(trace) = self.what.trace.take() {
            self.trace(&trace);
            self.flush();
            // What the guest reads beyond the trace may be guessed again once all of it is here.
            self.wait_for_all();
        }
        self.core.replaying.store(false, Ordering::Relaxed);
        if self.what.image_list {
            let list = self.core.image.prefetch_list();
            for number in list {
                self.tree(number);
            }
        }
        for path in std::mem::take(&mut self.what.files) {
            if let Some(inode) = self.find(&path) {
                self.tree(inode.number);
            }
        }
        self.flush();
        if self.what.all {
            self.all();
        }
        self.flush();
        tracing::debug!(took = ?begun.elapsed(), image = self.core.image.name(), "prefetch has asked for everything");
        self.wait_for_all();
        self.usage.prefetch_is_over();
    }

    fn wait_for_all(&self) {
        let mut state = self.window.state();
        while state.0 > 0 && !self.is_stopped() {
            let waited = self.window.changed.wait_timeout(state, PAUSE * 4);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn find(&self, path: &[u8]) -> Option<Inode> {
        let image = &self.core.image;
        let mut inode = image.inode(image.root()).ok()?;
        for name in path.split(|&b| b == b'/').filter(|name| !name.is_empty() && *name != b".") {
            inode = image.lookup(&inode, name).ok().flatten()?;
        }
        Some(inode)
    }

    fn trace(&mut self, trace: &Trace) {
        let ids = self.core.image.blobs().iter().map(|info| (info.id.clone(), info.index));
        let ids: HashMap<String, BlobIndex> = ids.collect();
        let (mut used, mut unknown) = (0u64, 0u64);
        for traced in &trace.chunks {
            if self.is_stopped() {
                return;
            }
            let chunk = ids.get(&*traced.blob).copied().and_then(|blob| {
                let source = self.source(blob)?;
                let chunk = self.core.chunk_by_index(blob, &source, traced.chunk)?;
                (chunk.uncompressed_offset == traced.uncompressed_offset).then_some(chunk)
            });
            match chunk {
                Some(chunk) => {
                    used += 1;
                    self.want(&chunk);
                }
                None => unknown += 1,
            }
        }
        if unknown > 0 {
            tracing::info!(used, unknown, "the trace has chunks that this image does not have");
        }
    }

    /// A file, or all files below a directory.
    fn tree(&mut self, number: InodeNumber) {
        let core = Arc::clone(&self.core);
        let image = &core.image;
        let (mut stack, mut seen) = (vec![number], HashSet::new());
        while let Some(number) = stack.pop() {
            if self.is_stopped() {
                return;
            }
            let Ok(inode) = image.inode(number) else { continue };
            match inode.kind {
                FileKind::Regular => {
                    for chunk in image.chunks(&inode, 0, inode.size).into_iter().flatten().flatten() {
                        self.want(&ChunkRef { file_offset: 0, ..chunk });
                    }
                }
                FileKind::Directory if seen.insert(number) => {
                    let entries = image.read_dir(&inode, 0).into_iter().flatten().flatten();
                    let names = entries.filter(|e| e.name != b"." && e.name != b"..");
                    let mut children: Vec<_> = names.map(|e| e.number).collect();
                    children.reverse();
                    stack.extend(children);
                }
                _ => {}
            }
        }
    }

    /// Every chunk of every blob, in the order of the blobs.
    fn all(&mut self) {
        let core = Arc::clone(&self.core);
        for info in core.image.blobs() {
            let Some(source) = self.source(info.index) else { continue };
            if !matches!(source, Source::Table(_)) {
                return self.tree(core.image.root());
            }
            for n in 0..info.chunk_count.unwrap_or(0) {
                if self.is_stopped() {
                    return;
                }
                if let Some(chunk) = self.core.chunk_by_index(info.index, &source, n) {
                    self.want(&chunk);
                }
            }
        }
    }

    /// Where a blob's chunks come from, as soon as that is known.
    fn source(&mut self, blob: BlobIndex) -> Option<Source> {
        if let Some(known) = self.sources.get(&blob) {
            return known.clone();
        }
        let core = Arc::clone(&self.core);
        let (state, _) = core.blob(blob).ok()?;
        let begun = Instant::now();
        core.push(Job::Warm(blob));
        let source = loop {
            if let Some(source) = state.known_source() {
                break Some(source);
            }
            if self.is_stopped() || begun.elapsed() > PATIENCE {
                break None;
            }
            std::thread::sleep(PAUSE);
            if state.is_idle() {
                // It could not be had; again, but not at once.
                std::thread::sleep(PAUSE * 40);
                core.push(Job::Warm(blob));
            }
        };
        if matches!(source, Some(Source::Records)) {
            self.core.index();
        }
        self.sources.insert(blob, source.clone());
        source
    }

    fn want(&mut self, chunk: &ChunkRef) {
        let core = Arc::clone(&self.core);
        let (Ok((state, info)), Some(source)) = (core.blob(chunk.blob), self.source(chunk.blob)) else {
            return;
        };
        let Some((unit, _)) = core.absent_unit(state, info, &source, chunk) else { return };
        if self.queued.len() >= QUEUED_MAX {
            // What is on its way or here already is left out anyway.
            self.queued.clear();
        }
        if self.queued.insert((chunk.blob, unit.id)) {
            self.pending_bytes = self.pending_bytes.saturating_add(unit.stored_size.into());
            self.pending.push(Wanted { blob: chunk.blob, chunk: *chunk, unit });
        }
        if self.pending_bytes >= LOOK_AHEAD {
            self.flush();
        }
    }

    /// Asks for all that is pending, neighbours together.
    fn flush(&mut self) {
        let mut pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        pending.sort_by_key(|w| (w.blob, w.unit.stored_offset));
        let mut batch: Vec<Wanted> = Vec::new();
        let batch_size = u64::from(self.what.batch_size.max(1));
        for wanted in pending {
            let continues = batch.first().zip(batch.last()).is_some_and(|(first, last)| {
                last.blob == wanted.blob
                    && wanted.unit.stored_offset <= last.unit.stored_end()
                    && wanted.unit.stored_end().saturating_sub(first.unit.stored_offset) <= batch_size
            });
            if !continues {
                self.send(std::mem::take(&mut batch));
            }
            batch.push(wanted);
        }
        self.send(batch);
    }

    fn send(&mut self, batch: Vec<Wanted>) {
        let bytes: u64 = batch.iter().map(|w| u64::from(w.unit.stored_size)).sum();
        let Some(slot) = self.slot(bytes) else { return };
        let core = Arc::clone(&self.core);
        let mut planned = Vec::new();
        for wanted in batch {
            let Ok((state, info)) = core.blob(wanted.blob) else { continue };
            let Some(source) = self.source(wanted.blob) else { continue };
            // Somebody may have read it while we waited.
            if core.absent_unit(state, info, &source, &wanted.chunk).is_none() {
                continue;
            }
            if let Some(mut one) = core.depart(state, &source, &wanted.chunk, wanted.unit) {
                core.hub.metrics.count(|m| &m.prefetched_bytes, one.unit.stored_size);
                self.usage.prefetched_bytes.fetch_add(one.unit.stored_size.into(), Ordering::Relaxed);
                one.slot = Some(Arc::clone(&slot));
                planned.push(one);
            }
        }
        self.usage.prefetches.fetch_add(u64::from(!planned.is_empty()), Ordering::Relaxed);
        core.launch(planned, self.what.batch_size.into());
    }

    /// Waits for room on the way and for the bandwidth. `None`: stopped.
    fn slot(&mut self, bytes: u64) -> Option<Arc<Slot>> {
        if bytes == 0 {
            return None;
        }
        if self.what.bandwidth > 0 {
            let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(self.what.bandwidth);
            let now = Instant::now();
            while self.paid > Instant::now() {
                if self.is_stopped() {
                    return None;
                }
                std::thread::sleep(self.paid.saturating_duration_since(Instant::now()).min(PAUSE * 10));
            }
            let cost = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            self.paid = self.paid.max(now).checked_add(cost).unwrap_or(now);
        }
        let window = Arc::clone(&self.window);
        let mut state = window.state();
        loop {
            if self.is_stopped() {
                return None;
            }
            let most = u64::from(self.what.threads.max(1)).saturating_mul(BYTES_PER_THREAD);
            let most = if self.core.hub.demand_in_flight() > 0 { most / 4 } else { most };
            if state.0 == 0 || state.1.saturating_add(bytes) <= most {
                state.0 += 1;
                state.1 = state.1.saturating_add(bytes);
                return Some(Arc::new(Slot { window: Arc::clone(&window), bytes }));
            }
            let waited = window.changed.wait_timeout(state, PAUSE * 4);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
