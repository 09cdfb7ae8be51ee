//! One read that could not be answered at once, and the pieces it is made of.

use super::ReadError;
use super::core::Core;
use super::metrics::Usage;
use crate::image::ChunkRef;
use crate::trace::TraceRecorder;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Takes the bytes of a read. Calls come from fetch threads, one at a time, in any order of positions.
pub trait ReadSink: Send {
    /// Copies `data` to byte `at` of the reply.
    fn fill(&mut self, at: usize, data: &[u8]);

    /// Copies `len` bytes at `offset` of `file` to byte `at` of the reply.
    ///
    /// # Errors
    /// The file cannot be read, or ends before that (then [`io::ErrorKind::UnexpectedEof`]). The same piece may
    /// then come again by another way.
    fn fill_from(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<()>;

    /// The read is over: the number of bytes, all of them filled, or why not. Called exactly once.
    fn finish(self: Box<Self>, result: Result<usize, ReadError>);
}

/// A read in progress. Ends when all its pieces have ended, when one fails, at its deadline, or when everybody
/// forgot about it: its sink hears of the end in each case, exactly once.
pub(super) struct Request {
    /// Whose it is.
    pub owner: Owner,
    len: usize,
    /// When it fails.
    pub deadline: Instant,
    state: Mutex<State>,
}

/// Who asks, and how.
#[derive(Clone)]
pub(super) struct Owner {
    /// The image's fetch side. `None` only in tests of this module.
    pub core: Option<Arc<Core>>,
    /// Which reader of it.
    pub reader: u64,
    /// How long a read may take.
    pub patience: Duration,
    /// Most bytes to fetch beside what it asks for.
    pub amplify: u32,
    /// Where first touches are written.
    pub trace: Option<Arc<TraceRecorder>>,
    /// What the reader did so far.
    pub usage: Arc<Usage>,
}

struct State {
    sink: Option<Box<dyn ReadSink>>,
    /// Pieces that are not done, and one for the planning itself.
    outstanding: usize,
}

impl Request {
    pub fn new(len: usize, owner: Owner, sink: Box<dyn ReadSink>) -> Arc<Self> {
        let now = Instant::now();
        let deadline = now.checked_add(owner.patience).unwrap_or(now);
        let state = Mutex::new(State { sink: Some(sink), outstanding: 1 });
        Arc::new(Self { owner, len, deadline, state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the sink has heard of the end. True also for a moment before that.
    pub fn is_over(&self) -> bool {
        self.state.try_lock().is_ok_and(|state| state.sink.is_none())
    }

    /// A piece of it to be done: `len` bytes of `chunk` from its byte `skip` on go to byte `at`.
    pub fn piece(self: &Arc<Self>, chunk: ChunkRef, skip: u32, len: u32, at: usize) -> Piece {
        self.state().outstanding += 1;
        Piece { request: Arc::clone(self), chunk, skip, len, at, alone: false }
    }

    /// Counts it as one that has some of its chunks to wait for, but not all.
    pub fn is_partly_ready(&self) {
        self.owner.usage.partial_reads.fetch_add(1, Ordering::Relaxed);
    }

    /// Zeros `len` bytes at byte `at`.
    pub fn fill_zeros(&self, at: usize, len: u64) {
        const ZEROS: [u8; 4096] = [0; 4096];
        if let Some(sink) = &mut self.state().sink {
            let mut done = 0;
            while done < len {
                let n = usize::try_from(len - done).unwrap_or(usize::MAX).min(ZEROS.len());
                let position = usize::try_from(done).unwrap_or(usize::MAX).saturating_add(at);
                sink.fill(position, ZEROS.get(..n).unwrap_or_default());
                done += n as u64;
            }
        }
    }

    fn over(&self, error: Option<&ReadError>) {
        if let Some(core) = &self.owner.core {
            core.hub.metrics.read_over(error);
            // Other errors are told of where they come from; this one comes from nothing happening.
            if let Some(error @ ReadError::Deadline(_)) = error
                && let Some(left_out) = core.hub.log_limit.admit()
            {
                // What follows is a hash over passwords too.
                let kind = core.store_key.split(' ').next().unwrap_or_default();
                tracing::error!(store = kind, bytes = self.len, left_out, "reading failed: {error}");
            }
        }
    }

    /// One piece, or the planning, is done.
    pub fn done(&self) {
        let mut state = self.state();
        state.outstanding = state.outstanding.saturating_sub(1);
        if state.outstanding > 0 {
            return;
        }
        let sink = state.sink.take();
        drop(state);
        let Some(sink) = sink else { return };
        match self.owner.core.as_ref().map_or(Ok(()), |core| core.image.confirm()) {
            Ok(()) => {
                self.over(None);
                sink.finish(Ok(self.len));
            }
            Err(lost) => {
                let error = ReadError::from(lost);
                self.over(Some(&error));
                sink.finish(Err(error));
            }
        }
    }

    /// Ends the read with an error, unless it is over.
    pub fn fail(&self, error: ReadError) {
        let sink = self.state().sink.take();
        if let Some(sink) = sink {
            self.over(Some(&error));
            sink.finish(Err(error));
        }
    }

    /// As [`fail`](Self::fail), but gives up when the sink is being filled at this moment. Says whether the
    /// read is over.
    pub fn try_fail(&self, error: ReadError) -> bool {
        let Ok(mut state) = self.state.try_lock() else { return false };
        let sink = state.sink.take();
        drop(state);
        if let Some(sink) = sink {
            self.over(Some(&error));
            sink.finish(Err(error));
        }
        true
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.fail(ReadError::Internal);
    }
}

/// A piece of a read that lies in one chunk. Dropped without an end it leaves the request to its deadline, or
/// to its own drop if it was the last one.
pub(super) struct Piece {
    request: Arc<Request>,
    /// The chunk.
    pub chunk: ChunkRef,
    skip: u32,
    len: u32,
    at: usize,
    /// What another image fetched of this blob did not suit: fetch it for this image alone.
    pub alone: bool,
}

impl Piece {
    /// The fetch side of the image it reads.
    pub fn core(&self) -> Option<&Arc<Core>> {
        self.request.owner.core.as_ref()
    }

    /// Whether nobody waits for it any more.
    pub fn is_over(&self) -> bool {
        self.request.is_over()
    }

    /// Who asks.
    pub fn owner(&self) -> &Owner {
        &self.request.owner
    }

    /// Ends it with data from the plain chunk; false when the chunk is too short for it.
    pub fn finish_from_chunk(&self, plain: &[u8]) -> bool {
        let range = || {
            let start = usize::try_from(self.skip).ok()?;
            plain.get(start..start.checked_add(usize::try_from(self.len).ok()?)?)
        };
        let Some(data) = range() else { return false };
        if let Some(sink) = &mut self.request.state().sink {
            sink.fill(self.at, data);
        }
        self.request.done();
        true
    }

    /// Ends it with data from a file in which the chunk starts at `chunk_offset`, if `still_there` says, after it was
    /// read, that it was what it should be.
    pub fn finish_from_file(
        &self,
        file: BorrowedFd<'_>,
        chunk_offset: u64,
        still_there: impl FnOnce() -> bool,
    ) -> io::Result<()> {
        let len = usize::try_from(self.len).map_err(io::Error::other)?;
        if let Some(sink) = &mut self.request.state().sink {
            sink.fill_from(self.at, file, chunk_offset.saturating_add(self.skip.into()), len)?;
            if !still_there() {
                return Err(io::Error::other("it was taken away meanwhile"));
            }
        }
        self.request.done();
        Ok(())
    }

    /// Ends the whole read with an error.
    pub fn fail(&self, error: ReadError) {
        self.request.fail(error);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{BlobIndex, ChunkIndex};
    use std::sync::mpsc::{Receiver, Sender, channel};

    type End = (Vec<u8>, Result<usize, ReadError>);

    struct Probe(Vec<u8>, Sender<End>);

    impl ReadSink for Probe {
        fn fill(&mut self, at: usize, data: &[u8]) {
            self.0[at..at + data.len()].copy_from_slice(data);
        }
        fn fill_from(&mut self, _: usize, _: BorrowedFd<'_>, _: u64, _: usize) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
        fn finish(self: Box<Self>, result: Result<usize, ReadError>) {
            self.1.send((self.0, result)).unwrap();
        }
    }

    fn request(len: usize) -> (Arc<Request>, Receiver<End>) {
        let (tx, rx) = channel();
        let owner = Owner {
            core: None,
            reader: 0,
            patience: Duration::ZERO,
            amplify: 0,
            trace: None,
            usage: Arc::default(),
        };
        (Request::new(len, owner, Box::new(Probe(vec![9; len], tx))), rx)
    }

    fn chunk() -> ChunkRef {
        ChunkRef {
            blob: BlobIndex(0),
            chunk: ChunkIndex(0),
            uncompressed_offset: 0,
            uncompressed_size: 4,
            file_offset: 0,
            record: 0,
        }
    }

    #[test]
    fn ends_once_when_all_pieces_have() {
        let (request, rx) = request(7);
        let (a, b) = (request.piece(chunk(), 1, 2, 0), request.piece(chunk(), 0, 4, 2));
        request.fill_zeros(6, 1);
        request.done();
        assert!(a.finish_from_chunk(b"abcd"));
        assert!(!b.finish_from_chunk(b"abc"), "chunk too short");
        rx.try_recv().unwrap_err();
        assert!(b.finish_from_chunk(b"efgh"));
        assert!(request.is_over());
        let (bytes, result) = rx.try_recv().unwrap();
        assert_eq!((bytes.as_slice(), result.unwrap()), (&b"bcefgh\0"[..], 7));
        request.fail(ReadError::Shutdown);
        drop((request, a, b));
        rx.try_recv().unwrap_err();
    }

    #[test]
    fn a_failure_ends_it_and_later_pieces_do_nothing() {
        let (request, rx) = request(4);
        let piece = request.piece(chunk(), 0, 4, 0);
        request.done();
        assert!(request.try_fail(ReadError::Shutdown));
        assert!(matches!(rx.try_recv().unwrap().1, Err(ReadError::Shutdown)));
        assert!(piece.finish_from_chunk(b"abcd"));
        rx.try_recv().unwrap_err();
    }

    #[test]
    fn forgotten_reads_still_end() {
        let (request, rx) = request(4);
        let piece = request.piece(chunk(), 0, 4, 0);
        request.done();
        drop(request);
        rx.try_recv().unwrap_err();
        drop(piece);
        assert!(matches!(rx.try_recv().unwrap().1, Err(ReadError::Internal)));
    }
}
