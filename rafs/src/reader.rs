//! (image, cache, store) to the bytes of a file: "ready now" or "will be ready".
//!
//! Owns: planning a read, fetch threads, one flight for each unit however many ask for it, verification, deadlines,
//! and when cached chunks become durable. Does not own: the tree ([`crate::image`]), blob formats
//! ([`crate::blob`]), where bytes come from ([`crate::store`]), cache files ([`crate::cache`]), or whom it serves.
//!
//! A read is first [planned](Reader::plan). If all its chunks are ready, it is a list of runs in local files and costs
//! no lock and no allocation. If not, it is [handed over](Reader::fetch): a fetch thread cuts it into pieces, each
//! piece waits on the flight of its unit, and no thread waits at all.

mod blobs;
mod budget;
mod core;
mod engine;
mod error;
mod fetch;
mod flights;
mod line;
mod metrics;
mod neighbours;
mod numbering;
mod prefetch;
mod queue;
mod readahead;
mod request;
mod tables;

pub use engine::{Engine, EngineOptions};
pub use error::{ReadError, ReaderError};
pub use metrics::{
    EngineMetrics, KeptBlob, ReaderMetrics, STORE_LATENCY_BUCKETS_MS, STORE_SIZE_CLASSES, SizeMetrics,
    StoreMetrics,
};
pub use prefetch::Prefetch;
pub use request::ReadSink;

use self::blobs::plain_file_name;
use self::core::{Core, Job, overlap};
use self::engine::Work;
use self::prefetch::Prefetcher;
use self::request::{Owner, Request};
use crate::ids::BlobIndex;
use crate::image::{FileKind, Image, Inode, InodeError};
use crate::layout::blob::BlobFeatures;
use crate::store::{ErrorClass, Store, StoreError};
use crate::trace::TraceRecorder;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

/// How a [`Reader`] works.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// Nothing is served before it matched its digest. Default true.
    pub verify: bool,
    /// Where fetched chunks are kept; `None`, or a directory that cannot be used: in memory only.
    pub cache_dir: Option<PathBuf>,
    /// [`EngineOptions::workers`] of a reader with an engine of its own.
    pub workers: usize,
    /// [`EngineOptions::memory_limit`] of a reader with an engine of its own.
    pub memory_limit: usize,
    /// A read that has no data after this fails. Default 30 s.
    pub deadline: Duration,
    /// Most stored bytes that are fetched beside what is asked for, from stores that are far away, where that is likely to
    /// be read soon; 0: none. Default 1 MiB.
    pub amplify: u32,
    /// Most bytes of data in the cache directory; chunks that were not read for a while are taken away for others. 0: no
    /// limit. Default 0.
    pub cache_limit: u64,
    /// Where chunks are written when they are read first.
    pub trace: Option<Arc<TraceRecorder>>,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        let EngineOptions { workers, memory_limit } = EngineOptions::default();
        Self {
            verify: true,
            cache_dir: None,
            workers,
            memory_limit,
            deadline: Duration::from_secs(30),
            amplify: 1 << 20,
            cache_limit: 0,
            trace: None,
        }
    }
}

/// Part of a file's bytes that can be read from the file behind a blob now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Whose [file](Reader::file).
    pub blob: BlobIndex,
    /// Where in that file.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
    /// For [`Reader::confirm`].
    epoch: u64,
}

/// What became of planning a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// The runs hold all of it.
    Ready,
    /// Something has to be fetched or verified first, or is a hole: [`Reader::fetch`] does that.
    Pending,
}

/// Reads files of one image. Share it in an `Arc`.
pub struct Reader {
    core: Arc<Core>,
    engine: Arc<Engine>,
    owner: Owner,
    options: ReaderOptions,
    /// The engine was made for this reader and ends with it.
    own_engine: bool,
    closed: Arc<AtomicBool>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Reader {
    /// A reader with an [`Engine`] of its own.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub fn new(
        image: Arc<Image>,
        store: Arc<dyn Store>,
        options: ReaderOptions,
    ) -> Result<Self, ReaderError> {
        let ReaderOptions { workers, memory_limit, .. } = options;
        let engine = Engine::new(EngineOptions { workers, memory_limit })?;
        let core = engine.hub.core(image, store, &options);
        Ok(Self::of(engine, core, options, true))
    }

    fn of(engine: Arc<Engine>, core: Arc<Core>, options: ReaderOptions, own_engine: bool) -> Self {
        let reader = engine.hub.new_id();
        let owner = Owner {
            core: Some(Arc::clone(&core)),
            reader,
            patience: options.deadline,
            amplify: options.amplify,
            trace: options.trace.clone(),
            usage: Arc::default(),
        };
        let closed = Arc::new(AtomicBool::new(false));
        Self { core, engine, owner, options, own_engine, closed }
    }

    /// Has the chunk info of all blobs looked for now, so that the first read does not pay for it. Returns at once; a
    /// blob that is away is a log line.
    pub fn warm(&self) {
        for state in &self.core.blobs {
            self.core.push(Job::Warm(state.index));
        }
    }

    /// Begins to fetch what nobody has asked for yet, in a thread of its own, and returns. It ends when everything has been
    /// asked for, or with the reader.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn prefetch(&self, what: Prefetch) -> Result<(), ReaderError> {
        let prefetcher = Prefetcher::new(
            Arc::clone(&self.core),
            what,
            Arc::clone(&self.closed),
            Arc::clone(&self.owner.usage),
        );
        let thread = std::thread::Builder::new().name("rafs-prefetch".into());
        thread.spawn(move || prefetcher.run()).map(drop).map_err(ReaderError::Threads)
    }

    /// What its store is called in [`StoreMetrics::store`].
    #[must_use]
    pub fn store_name(&self) -> &str {
        &self.core.store_key
    }

    /// What it did so far.
    #[must_use]
    pub fn metrics(&self) -> ReaderMetrics {
        self.owner.usage.snapshot()
    }

    /// How much of each blob is in cache files, in the order of the image's blobs. Reads the maps of these.
    pub fn kept(&self) -> impl Iterator<Item = KeptBlob<'_>> {
        self.core.image.blobs().iter().zip(&self.core.blobs).map(|(blob, state)| {
            let access = state.access();
            let (chunks, all) =
                access.and_then(|a| a.cache()).map_or((0, 0), |c| (c.mapped_count(), c.dimensions().1));
            let complete = match access {
                Some(access) if access.cache().is_some() => chunks >= u64::from(all),
                Some(access) => access.is_local(),
                None => false,
            };
            KeptBlob { id: &blob.id, chunks, complete }
        })
    }

    /// The engine.
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The image.
    #[must_use]
    pub fn image(&self) -> &Image {
        &self.core.image
    }

    /// Looks where the bytes `[offset, offset + len)` of a file are, clipped to its size. [`Readiness::Ready`]:
    /// `runs` holds them in order, neighbours merged. Allocates only when `runs` has to grow; takes no lock.
    ///
    /// # Errors
    /// No regular file, or corrupt metadata.
    #[inline]
    pub fn plan(
        &self,
        inode: &Inode,
        offset: u64,
        len: u32,
        runs: &mut Vec<Run>,
    ) -> Result<Readiness, ReadError> {
        runs.clear();
        let core = &*self.core;
        let chunks = core.image.chunks(inode, offset, len.into())?;
        let end = offset.saturating_add(len.into()).min(inode.size);
        let mut position = offset;
        for chunk in chunks {
            let chunk = chunk?;
            let Some((start, len)) = overlap(&chunk, position, end) else { continue };
            let state = core.blobs.get(chunk.blob.as_usize()).ok_or(ReadError::NoSuchBlob(chunk.blob))?;
            let Some((_, at, epoch)) = state.hot(&core.image, &chunk).filter(|_| start == position) else {
                runs.clear();
                return Ok(Readiness::Pending);
            };
            let at = at.saturating_add(start - chunk.file_offset);
            position = start.saturating_add(len.into());
            match runs.last_mut() {
                Some(last)
                    if last.blob == chunk.blob && last.offset.checked_add(last.len.into()) == Some(at) =>
                {
                    // Of the earlier epoch, which is the one that must not have changed.
                    last.len = last.len.saturating_add(len);
                }
                _ => runs.push(Run { blob: chunk.blob, offset: at, len, epoch }),
            }
        }
        if position < end {
            runs.clear();
            return Ok(Readiness::Pending);
        }
        core.hub.metrics.hit(len);
        Ok(Readiness::Ready)
    }

    /// Whether bytes that were read from `runs` since they were planned are what they should be. A bounded cache takes
    /// chunks away, and it may have done so in between: then plan again, or [`fetch`](Self::fetch). Takes no lock.
    #[inline]
    #[must_use]
    pub fn confirm(&self, runs: &[Run]) -> bool {
        runs.iter().all(|run| {
            let access = self.core.blobs.get(run.blob.as_usize()).and_then(|state| state.access());
            access.is_some_and(|access| access.epoch() == run.epoch)
        })
    }

    /// Whether bytes of `runs` stay as they are, so that they may be read without a [`confirm`](Self::confirm)
    /// afterwards: no cache they are in has a limit, or is written by another image too.
    #[must_use]
    pub fn is_steady(&self, runs: &[Run]) -> bool {
        runs.iter().all(|run| {
            let access = self.core.blobs.get(run.blob.as_usize()).and_then(|state| state.access());
            access.is_some_and(|access| access.epoch() == run.epoch && access.is_steady())
        })
    }

    /// The file that the [`Run`]s of a blob are in. `None` as long as nothing of it was ready.
    #[inline]
    #[must_use]
    pub fn file(&self, blob: BlobIndex) -> Option<BorrowedFd<'_>> {
        self.core.blobs.get(blob.as_usize())?.access()?.file()
    }

    /// Hands a read over and returns. `sink` gets the bytes `[offset, offset + len)`, clipped to the file's size, from
    /// fetch threads; its `finish` is called exactly once, whatever happens: at the deadline at the latest, and from
    /// this thread only when the reader has been shut down.
    pub fn fetch(&self, inode: &Inode, offset: u64, len: u32, sink: Box<dyn ReadSink>) {
        let len = u64::from(len).min(inode.size.saturating_sub(offset));
        let request = Request::new(usize::try_from(len).unwrap_or(usize::MAX), self.owner.clone(), sink);
        let hub = &self.engine.hub;
        hub.metrics.read(len);
        self.owner.usage.fetched_reads.fetch_add(1, Ordering::Relaxed);
        hub.watch(&request);
        if self.closed.load(Ordering::SeqCst) {
            return request.fail(ReadError::Shutdown);
        }
        let job = Job::Read { request: Arc::clone(&request), inode: *inode, offset, len };
        if hub.queue.push(Work::Of(Arc::clone(&self.core), job)).is_err() {
            request.fail(ReadError::Shutdown);
        }
    }

    /// How long a read may take.
    #[must_use]
    pub fn deadline(&self) -> Duration {
        self.owner.patience
    }

    /// Reads and waits: the number of bytes is less than asked for only at the end of the file.
    ///
    /// # Errors
    /// As the read ends.
    pub fn read_at(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize, ReadError> {
        let mut done = 0;
        while done < buf.len() {
            let rest = buf.get_mut(done..).unwrap_or_default();
            let at = offset.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            let len = u32::try_from(rest.len()).unwrap_or(1 << 30).min(1 << 30);
            let (tx, rx) = mpsc::channel();
            let bytes = usize::try_from(u64::from(len).min(inode.size.saturating_sub(at))).unwrap_or(0);
            self.fetch(inode, at, len, Box::new(BufferSink { bytes: vec![0; bytes], done: tx }));
            let (bytes, result) = rx.recv().map_err(|_| ReadError::Internal)?;
            let n = result?;
            if n == 0 {
                break;
            }
            if let (Some(to), Some(from)) = (rest.get_mut(..n), bytes.get(..n)) {
                to.copy_from_slice(from);
            }
            done += n;
        }
        if buf.is_empty() && inode.kind != FileKind::Regular {
            return Err(InodeError::NotARegularFile(inode.number).into());
        }
        Ok(done)
    }

    /// Asks the store for every blob of the image: is it there, and long enough? For a start that rather fails
    /// than serves an incomplete image. Does what [`warm`](Self::warm) does when all is well.
    ///
    /// # Errors
    /// The first blob that is not as it should be.
    pub fn check_blobs(&self) -> Result<(), ReaderError> {
        for info in self.core.image.blobs() {
            let blob = || info.id.clone();
            if info.features.contains(BlobFeatures::EXTERNAL) {
                return Err(ReaderError::External { blob: blob() });
            }
            let expected = if info.features.contains(BlobFeatures::IS_CHUNKDICT_GENERATED) {
                0
            } else {
                info.compressed_size
            };
            match self.size_of(&info.id)? {
                Ok(actual) if actual >= expected => {}
                Ok(actual) => return Err(ReaderError::Short { blob: blob(), actual, expected }),
                Err(source) => {
                    let plain = self.size_of(&plain_file_name(&info.id))?;
                    let instead = source.class == ErrorClass::Missing
                        && plain.is_ok_and(|size| size >= info.uncompressed_size && size > 0);
                    if !instead {
                        return Err(ReaderError::Blob { blob: blob(), source });
                    }
                }
            }
        }
        self.warm();
        Ok(())
    }

    fn size_of(&self, object: &str) -> Result<Result<u64, StoreError>, ReaderError> {
        let (tx, rx) = mpsc::channel();
        self.core.store.size(object, Box::new(move |size| drop(tx.send(size))));
        let after = self.options.deadline;
        rx.recv_timeout(after).map_err(|_| ReaderError::Silent { blob: object.into(), after })
    }

    /// Ends this reader's reads in progress, and makes what is cached durable; reads of others go on. A reader with an
    /// engine of its own stops its threads. A second call does nothing.
    pub fn shutdown(&self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let hub = &self.engine.hub;
        hub.fail_all(|request| request.owner.reader == self.owner.reader);
        if self.own_engine {
            self.engine.shutdown();
        } else {
            hub.sync();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Collects a read for a thread that waits.
struct BufferSink {
    bytes: Vec<u8>,
    done: mpsc::Sender<(Vec<u8>, Result<usize, ReadError>)>,
}

impl ReadSink for BufferSink {
    fn fill(&mut self, at: usize, data: &[u8]) {
        if let Some(to) = at.checked_add(data.len()).and_then(|end| self.bytes.get_mut(at..end)) {
            to.copy_from_slice(data);
        }
    }

    fn fill_from(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<()> {
        let end = at.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
        let mut to = self.bytes.get_mut(at..end).ok_or(io::ErrorKind::InvalidInput)?;
        let mut offset = offset;
        while !to.is_empty() {
            let n = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *to, offset))?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            offset = offset.saturating_add(u64::try_from(n).unwrap_or(0));
            to = to.get_mut(n..).unwrap_or_default();
        }
        Ok(())
    }

    fn finish(self: Box<Self>, result: Result<usize, ReadError>) {
        // The reader may have given up waiting.
        drop(self.done.send((self.bytes, result)));
    }
}
