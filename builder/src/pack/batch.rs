//! Batches: small chunks compressed together (build-rules.md section 4, blob.md section 8).
//!
//! Owns: which chunks are batched, the buffer, where members lie, compressing as work for any thread. Does not own:
//! writing.

use super::append::PackSettings;
use rafs::codec::{self, Cipher, CodecError, Compressor};
use rafs::layout::blob::BatchContext;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use zerocopy::FromZeros;

/// Where a chunk lies in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchPlace {
    /// Index of the chunk in its blob.
    pub chunk: u32,
    /// Where the batch starts in the blob file.
    pub start: u64,
    /// Number of the batch.
    pub context: u32,
    /// Where the chunk starts in the plain batch.
    pub offset: u32,
}

/// Batches of one blob.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    buffer: Vec<u8>,
    /// Members of the batch that is being filled: from here on.
    first_place: usize,
    /// Members of all batches, by chunk index.
    pub places: Vec<BatchPlace>,
    /// Batches, those that are still to be compressed without their stored size.
    pub contexts: Vec<BatchContext>,
}

/// Whether a file of one chunk of `len` bytes goes into a batch.
pub(super) fn is_small(settings: &PackSettings, len: u32, file_size: u64) -> bool {
    // Below 16 bytes an encrypted batch that stays alone would be padded to a length that the reference takes
    // for another thing (blob.md section 8).
    let long_enough = settings.cipher.is_none() || len >= 16;
    u64::from(len) == file_size && len < settings.batch_size / 2 && long_enough
}

impl Batches {
    /// Whether a chunk of `len` bytes must not go into the batch that is being filled.
    pub(super) fn is_full_for(&self, settings: &PackSettings, len: usize) -> bool {
        !self.buffer.is_empty() && self.buffer.len() + len >= settings.batch_size as usize
    }

    /// Puts chunk number `chunk` into the batch that is being filled.
    pub(super) fn add(&mut self, chunk: u32, plain: &[u8]) -> Option<()> {
        let context = u32::try_from(self.contexts.len()).ok()?;
        let offset = u32::try_from(self.buffer.len()).ok()?;
        self.places.push(BatchPlace { chunk, start: 0, context, offset });
        self.buffer.extend_from_slice(plain);
        Some(())
    }

    /// Ends the batch; `None` when it is empty.
    pub(super) fn end(&mut self) -> Option<Ended> {
        if self.buffer.is_empty() {
            return None;
        }
        let mut context = BatchContext::new_zeroed();
        // Bounded by the batch size, which is 16 MiB at most.
        context.uncompressed_size = u32::try_from(self.buffer.len()).unwrap_or_default().into();
        self.contexts.push(context);
        let capacity = self.buffer.capacity();
        let plain = std::mem::replace(&mut self.buffer, Vec::with_capacity(capacity));
        let places = self.first_place..self.places.len();
        self.first_place = self.places.len();
        Some(Ended {
            plain_len: plain.len(),
            job: Arc::new(Job::new(plain)),
            context: self.contexts.len() - 1,
            places,
        })
    }

    /// Notes where an ended batch was written.
    pub(super) fn written(&mut self, batch: &Ended, start: u64, stored: &[u8]) {
        if let Some(context) = self.contexts.get_mut(batch.context) {
            context.compressed_size = u32::try_from(stored.len()).unwrap_or_default().into();
        }
        for place in self.places.get_mut(batch.places.clone()).unwrap_or_default() {
            place.start = start;
        }
    }
}

/// A batch that is complete.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) job: Arc<Job>,
    pub(super) plain_len: usize,
    context: usize,
    places: Range<usize>,
}

/// The stored form of one batch, in the making.
#[derive(Debug)]
pub(super) struct Job {
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug)]
enum State {
    Plain(Vec<u8>),
    Taken,
    Done(Result<Vec<u8>, CodecError>),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Job {
    fn new(plain: Vec<u8>) -> Self {
        Self { state: Mutex::new(State::Plain(plain)), done: Condvar::new() }
    }

    /// Does the work unless somebody did or does it.
    pub(super) fn run(&self, compressor: Compressor, cipher: Option<&Cipher>) {
        let plain = {
            let mut state = lock(&self.state);
            let State::Plain(plain) = &mut *state else { return };
            let plain = std::mem::take(plain);
            *state = State::Taken;
            plain
        };
        // Whatever happens in between, nobody may wait for ever.
        let mut result = Finish { job: self, result: None };
        let mut compressed = Vec::new();
        let form = match codec::compress(compressor, &plain, &mut compressed) {
            Ok(true) => &compressed,
            Ok(false) => &plain,
            Err(e) => {
                result.result = Some(Err(e));
                return;
            }
        };
        let mut stored = Vec::new();
        match cipher {
            Some(cipher) => cipher.encrypt(form, &mut stored),
            None => stored.clone_from(form),
        }
        result.result = Some(Ok(stored));
    }

    /// Whether the stored form is there.
    pub(super) fn is_done(&self) -> bool {
        matches!(*lock(&self.state), State::Done(_))
    }

    /// Waits for the stored form, which somebody is making, and takes it.
    pub(super) fn take(&self) -> Result<Vec<u8>, CodecError> {
        let state = lock(&self.state);
        let busy = |state: &mut State| !matches!(state, State::Done(_));
        let mut state = self.done.wait_while(state, busy).unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut *state, State::Taken) {
            State::Done(result) => result,
            State::Plain(_) | State::Taken => Ok(Vec::new()),
        }
    }
}

struct Finish<'a> {
    job: &'a Job,
    result: Option<Result<Vec<u8>, CodecError>>,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let lost =
            CodecError::Compress { compressor: Compressor::None, plain: 0, reason: "its thread panicked" };
        *lock(&self.job.state) = State::Done(self.result.take().unwrap_or(Err(lost)));
        self.job.done.notify_all();
    }
}

/// Batches that wait for a thread.
#[derive(Debug, Default)]
pub(super) struct Jobs(Mutex<VecDeque<Arc<Job>>>);

impl Jobs {
    pub(super) fn push(&self, job: Arc<Job>) {
        lock(&self.0).push_back(job);
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.0).is_empty()
    }

    /// Does the oldest one. `false`: there was none.
    pub(super) fn run_one(&self, compressor: Compressor, cipher: Option<&Cipher>) -> bool {
        let job = lock(&self.0).pop_front();
        job.is_some_and(|job| {
            job.run(compressor, cipher);
            true
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_once_and_waited_for() {
        let job = Job::new(vec![7; 100_000]);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| job.run(Compressor::Lz4Block, None));
            }
            let stored = job.take().unwrap();
            let mut plain = vec![0; 100_000];
            codec::decompress(Compressor::Lz4Block, &stored, &mut plain).unwrap();
            assert_eq!(plain, vec![7; 100_000]);
        });
    }

    #[test]
    fn a_batch_that_is_lost_is_an_error() {
        let job = Job::new(vec![1]);
        *lock(&job.state) = State::Taken;
        drop(Finish { job: &job, result: None });
        assert!(job.is_done());
        job.take().unwrap_err();
    }
}
