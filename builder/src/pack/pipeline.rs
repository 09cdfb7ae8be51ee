//! The threads and what they share.
//!
//! Owns: locks, order, the bound on data in flight, stopping at the first error. Does not own: the work.
//!
//! Bound: a task is only begun while fewer than a fixed number are between begin and append, so memory
//! depends on threads and chunk size and never on the amount of data. The oldest task is always in some
//! thread's hands, so waiting for room cannot wait for ever.

use super::append::{Appender, PackSettings, Packed};
use super::batch::Jobs;
use super::blob_file::BlobFile;
use super::chunk::Chunk;
use super::table::ChunkTable;
use super::worker::{Done, WorkError, Worker};
use crate::error::BuildError;
use crate::progress::Progress;
use crate::source::{Source, Task};
use crate::tree::Tree;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Stored bytes that may wait for their turn, when chunks are small.
const WAITING_BYTES: usize = 32 << 20;

struct Shared<'a> {
    settings: PackSettings,
    feed: Mutex<Feed<'a>>,
    table: Mutex<ChunkTable>,
    turn: Mutex<Turn>,
    room: Condvar,
    appender: Mutex<Appender<'a>>,
    jobs: &'a Jobs,
    tasks_max: usize,
}

struct Feed<'a> {
    source: &'a mut dyn Source,
    tree: &'a mut Tree,
    next: u64,
}

#[derive(Default)]
struct Turn {
    /// Finished tasks that wait for an earlier one.
    finished: BTreeMap<u64, Done>,
    /// Number of the task that is appended next.
    next: u64,
    /// Tasks between begin and append.
    in_flight: usize,
    /// Whether some thread serves the ordered stage.
    serving: bool,
    /// Results whose memory can be used again.
    spare: Vec<Done>,
    error: Option<BuildError>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked ends the build anyway: its panic is passed on when it is joined.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packs everything that `source` has into `blob`, apart from `known` chunks; new references follow those given. Returns all chunks and what is known of the blob.
///
/// # Errors
/// The first error of any thread.
pub(crate) fn run(
    settings: PackSettings,
    (known, references): (ChunkTable, Vec<u32>),
    source: &mut dyn Source,
    tree: &mut Tree,
    blob: &mut BlobFile,
    progress: &Progress,
) -> Result<(Packed, Vec<Chunk>), BuildError> {
    let threads = settings.threads.get();
    let chunk = settings.chunk_size.get() as usize;
    let jobs = Jobs::default();
    let shared = Shared {
        jobs: &jobs,
        settings: settings.clone(),
        feed: Mutex::new(Feed { source, tree, next: 0 }),
        table: Mutex::new(known),
        turn: Mutex::new(Turn::default()),
        room: Condvar::new(),
        appender: Mutex::new(Appender::new(settings, references, blob, progress, &jobs)),
        tasks_max: (threads + 1).max((WAITING_BYTES / chunk).min(threads * 4)),
    };
    std::thread::scope(|scope| -> Result<(), BuildError> {
        for n in 1..threads {
            std::thread::Builder::new()
                .name(format!("pack-{n}"))
                .spawn_scoped(scope, || shared.work())
                .map_err(|e| {
                    shared.fail(BuildError::Options(String::new()));
                    BuildError::Options(format!(
                        "cannot start {threads} threads: {e}; ask for fewer with --threads"
                    ))
                })?;
        }
        shared.work();
        Ok(())
    })?;
    let turn = shared.turn.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(error) = turn.error {
        return Err(error);
    }
    let packed =
        shared.appender.into_inner().unwrap_or_else(PoisonError::into_inner).finish(&shared.table)?;
    let chunks = shared.table.into_inner().unwrap_or_else(PoisonError::into_inner).into_chunks();
    Ok((packed, chunks))
}

impl Shared<'_> {
    fn work(&self) {
        // Should this thread panic, the others must not wait for its task for ever.
        let guard = StopOnPanic(self);
        let mut worker = Worker::new(&self.settings);
        let mut task = Task::default();
        while let Some(mut done) = self.begin(&mut worker) {
            let number = match self.take(&mut task) {
                Ok(Some(number)) => number,
                Ok(None) => break,
                Err(e) => return self.fail(e),
            };
            if let Err(e) = worker.work(number, &mut task, &self.settings, &self.table, &mut done) {
                return self.fail(self.named(e));
            }
            task.clear();
            if let Err(e) = self.hand_in(number, done) {
                return self.fail(e);
            }
        }
        drop(guard);
    }

    /// Waits for room, and compresses batches meanwhile. `None`: the build has failed.
    fn begin(&self, worker: &mut Worker) -> Option<Done> {
        let full = |turn: &mut Turn| {
            turn.in_flight >= self.tasks_max && turn.error.is_none() && self.jobs.is_empty()
        };
        let mut turn = loop {
            while worker.compress_batch(self.jobs, &self.settings) {}
            let turn = self.room.wait_while(lock(&self.turn), full).unwrap_or_else(PoisonError::into_inner);
            if turn.in_flight < self.tasks_max || turn.error.is_some() {
                break turn;
            }
        };
        if turn.error.is_some() {
            return None;
        }
        turn.in_flight += 1;
        Some(turn.spare.pop().unwrap_or_default())
    }

    fn take(&self, task: &mut Task) -> Result<Option<u64>, BuildError> {
        let mut feed = lock(&self.feed);
        let Feed { source, tree, next } = &mut *feed;
        let number = *next;
        *next += 1;
        Ok(source.fill(tree, task)?.then_some(number))
    }

    /// Puts a finished task in its place and, unless another thread is at it, appends all whose turn it is.
    fn hand_in(&self, number: u64, done: Done) -> Result<(), BuildError> {
        let mut turn = lock(&self.turn);
        turn.finished.insert(number, done);
        if turn.serving {
            return Ok(());
        }
        turn.serving = true;
        loop {
            let next = turn.next;
            let Some(done) = turn.finished.remove(&next).filter(|_| turn.error.is_none()) else { break };
            drop(turn);
            lock(&self.appender).append(&done, &self.table)?;
            turn = lock(&self.turn);
            turn.next += 1;
            turn.in_flight -= 1;
            turn.spare.push(done);
            self.room.notify_one();
        }
        turn.serving = false;
        Ok(())
    }

    fn fail(&self, error: BuildError) {
        lock(&self.turn).error.get_or_insert(error);
        self.room.notify_all();
    }

    fn named(&self, error: WorkError) -> BuildError {
        let feed = lock(&self.feed);
        match error {
            WorkError::Read(node, e) => e.at(&feed.source.shown(feed.tree, node)),
            WorkError::Compress(node, e) => {
                BuildError::Compress { path: feed.source.shown(feed.tree, node), reason: e.to_string() }
            }
        }
    }
}

struct StopOnPanic<'a, 'b>(&'a Shared<'b>);

impl Drop for StopOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.fail(BuildError::Options("a packing thread panicked".to_owned()));
        }
    }
}
