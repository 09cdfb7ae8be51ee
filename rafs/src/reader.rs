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
mod error;
mod fetch;
mod queue;
mod request;
mod tables;

pub use error::{ReadError, ReaderError};
pub use request::ReadSink;

use self::blobs::plain_file_name;
use self::core::{Core, Job, overlap};
use self::request::Request;
use crate::cache::CacheDir;
use crate::ids::BlobIndex;
use crate::image::{FileKind, Image, Inode, InodeError};
use crate::layout::blob::BlobFeatures;
use crate::store::{ErrorClass, Store, StoreError};
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often written chunks become durable.
const SYNC_PERIOD: Duration = Duration::from_secs(30);
/// How soon a request whose sink was busy at its deadline is looked at again.
const BUSY_PAUSE: Duration = Duration::from_millis(20);

/// How a [`Reader`] works.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// Nothing is served before it matched its digest. Default true.
    pub verify: bool,
    /// Where fetched chunks are kept; `None`, or a directory that cannot be used: in memory only.
    pub cache_dir: Option<PathBuf>,
    /// Threads that decode and verify, at least 1. Default: processors, up to 4.
    pub workers: usize,
    /// Bytes of buffers for chunks on their way. A single unit larger than that still passes, alone. Blobs without a
    /// cache file keep decoded units in memory up to as many bytes again. Default 32 MiB.
    pub memory_limit: usize,
    /// A read that has no data after this fails. Default 30 s.
    pub deadline: Duration,
}

impl Default for ReaderOptions {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            verify: true,
            cache_dir: None,
            workers: processors.min(4),
            memory_limit: 32 << 20,
            deadline: Duration::from_secs(30),
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
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("options", &self.core.options).finish_non_exhaustive()
    }
}

impl Reader {
    /// Starts the fetch threads, and has them look for the chunk info of all blobs. A blob that is away is no error
    /// here (see [`check_blobs`](Self::check_blobs)); a cache directory that cannot be used is a warning.
    ///
    /// # Errors
    /// Threads cannot be started.
    pub fn new(
        image: Arc<Image>,
        store: Arc<dyn Store>,
        options: ReaderOptions,
    ) -> Result<Self, ReaderError> {
        let cache_dir = options.cache_dir.as_ref().and_then(|path| {
            CacheDir::open(path)
                .inspect_err(|error| tracing::warn!(%error, "serving without cache files"))
                .ok()
        });
        let workers = options.workers.max(1);
        let core = Arc::new(Core::new(image, store, options, cache_dir));
        let reader = Self { core, threads: Mutex::default() };
        for n in 0..workers {
            let core = Arc::clone(&reader.core);
            reader.spawn(format!("rafs-fetch-{n}"), move || work(&core))?;
        }
        let core = Arc::clone(&reader.core);
        reader.spawn("rafs-timer".into(), move || keep_time(&core))?;
        for state in &reader.core.blobs {
            reader.core.push(Job::Warm(state.index));
        }
        Ok(reader)
    }

    fn spawn(&self, name: String, run: impl FnOnce() + Send + 'static) -> Result<(), ReaderError> {
        let thread = std::thread::Builder::new().name(name).spawn(run).map_err(ReaderError::Threads)?;
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        Ok(())
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
            let Some((_, at)) = state.ready(&core.image, &chunk).filter(|_| start == position) else {
                runs.clear();
                return Ok(Readiness::Pending);
            };
            let at = at.saturating_add(start - chunk.file_offset);
            position = start.saturating_add(len.into());
            match runs.last_mut() {
                Some(last)
                    if last.blob == chunk.blob && last.offset.checked_add(last.len.into()) == Some(at) =>
                {
                    last.len = last.len.saturating_add(len);
                }
                _ => runs.push(Run { blob: chunk.blob, offset: at, len }),
            }
        }
        if position < end {
            runs.clear();
            return Ok(Readiness::Pending);
        }
        Ok(Readiness::Ready)
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
        let now = Instant::now();
        let deadline = now.checked_add(self.core.options.deadline).unwrap_or(now);
        let request = Request::new(usize::try_from(len).unwrap_or(usize::MAX), deadline, sink);
        self.core.watch(&request);
        let job = Job::Read { request: Arc::clone(&request), inode: *inode, offset, len };
        if self.core.queue.push(job).is_err() {
            request.fail(ReadError::Shutdown);
        }
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
    /// than serves an incomplete image.
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
        Ok(())
    }

    fn size_of(&self, object: &str) -> Result<Result<u64, StoreError>, ReaderError> {
        let (tx, rx) = mpsc::channel();
        self.core.store.size(object, Box::new(move |size| drop(tx.send(size))));
        let after = self.core.patience();
        rx.recv_timeout(after).map_err(|_| ReaderError::Silent { blob: object.into(), after })
    }

    /// Ends all reads in progress, stops the threads, and makes what is cached durable. A second call does nothing.
    pub fn shutdown(&self) {
        let core = &self.core;
        let jobs = core.queue.close();
        for request in std::mem::take(&mut *core.deadlines()).iter().filter_map(std::sync::Weak::upgrade) {
            request.fail(ReadError::Shutdown);
        }
        core.deadline_set.notify_all();
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            let _ = thread.join();
        }
        drop(core.budget.clear());
        drop(jobs);
        for state in &core.blobs {
            drop(state.forget_source());
        }
        drop(core.cancel_all());
        core.sync();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// A fetch thread.
fn work(core: &Arc<Core>) {
    while let Some(job) = core.queue.pop() {
        // A panic ends what the job was about (tickets and requests see to that), never the thread.
        if catch_unwind(AssertUnwindSafe(|| core.run(job))).is_err() {
            tracing::error!("a fetch job failed with a panic; its reads end with an error");
        }
    }
}

/// The timer thread: deadlines, and the durable step now and then.
fn keep_time(core: &Arc<Core>) {
    let mut next_sync = Instant::now().checked_add(SYNC_PERIOD);
    while !core.queue.is_closed() {
        let now = Instant::now();
        if next_sync.is_some_and(|at| now >= at) {
            next_sync = now.checked_add(SYNC_PERIOD);
            core.push(Job::Sync);
        }
        let mut wait = next_sync.map_or(SYNC_PERIOD, |at| at.saturating_duration_since(now));
        let mut due = Vec::new();
        let mut deadlines = core.deadlines();
        while let Some(front) = deadlines.front() {
            match front.upgrade() {
                Some(request) if request.deadline > now => {
                    wait = wait.min(request.deadline.saturating_duration_since(now));
                    break;
                }
                other => {
                    due.extend(other);
                    deadlines.pop_front();
                }
            }
        }
        drop(deadlines);
        for request in due {
            if !request.try_fail(ReadError::Deadline(core.options.deadline)) {
                core.deadlines().push_front(Arc::downgrade(&request));
                wait = BUSY_PAUSE;
            }
        }
        let deadlines = core.deadlines();
        if !core.queue.is_closed() {
            drop(core.deadline_set.wait_timeout(deadlines, wait));
        }
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
