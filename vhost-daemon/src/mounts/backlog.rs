//! Reads of one guest that wait for data: how much of them the fetch side is told of at once.
//!
//! Owns: the limit, and the reads behind it. The fetch side keeps a piece for each chunk of each read until the chunk is
//! here; a guest decides how many reads of how many chunks there are, and a store that hangs lets them all be there at once.
//! A read that waits here costs the same however large it is. Does not own: how long a read may take, nor its answer.

use super::rafs_mount::Shared;
use super::read::{Flight, Sink};
use crate::fuse::ParkedRead;
use rafs::image::Inode;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Chunks that reads of one guest on one mount may be waiting for: a GiB in the smallest chunks there are. Only who asks for
/// what no kernel asks for has more.
const CHUNKS_MAX: u64 = 1 << 18;

/// What a read is to bring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) inode: Inode,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// A read that nobody has been told of yet.
struct Waiting {
    wanted: Wanted,
    parked: Box<dyn ParkedRead>,
    flight: Flight,
}

#[derive(Default)]
struct State {
    /// Chunks of reads that the fetch side has, at most.
    chunks: u64,
    waiting: VecDeque<Waiting>,
    /// Somebody hands on what waits: ends that come of that, in the same thread, leave it to him.
    handing_on: bool,
}

/// The reads of one guest on one mount.
#[derive(Default)]
pub(super) struct Backlog(Mutex<State>);

impl std::fmt::Debug for Backlog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state();
        f.debug_struct("Backlog")
            .field("chunks", &state.chunks)
            .field("waiting", &state.waiting.len())
            .finish()
    }
}

/// The room that a read takes, until it is dropped.
pub(super) struct Pass {
    backlog: Arc<Backlog>,
    chunks: u64,
    /// Not kept by reads on their way: see [`Shared::parked`].
    shared: Weak<Shared>,
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.backlog.leave(self.chunks, &self.shared);
    }
}

impl Backlog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a read fetched, now or when others have ended.
    pub(super) fn fetch(self: &Arc<Self>, shared: &Arc<Shared>, wanted: Wanted, parked: Box<dyn ParkedRead>) {
        let flight = Flight::new(shared);
        let chunks = chunks(shared, &wanted);
        let mut state = self.state();
        if !state.waiting.is_empty() || !state.has_room(chunks) {
            return state.waiting.push_back(Waiting { wanted, parked, flight });
        }
        state.chunks += chunks;
        drop(state);
        self.start(shared, chunks, Waiting { wanted, parked, flight });
    }

    fn start(self: &Arc<Self>, shared: &Arc<Shared>, chunks: u64, read: Waiting) {
        let pass = Pass { backlog: Arc::clone(self), chunks, shared: Arc::downgrade(shared) };
        let Waiting { wanted: Wanted { inode, offset, len }, parked, flight } = read;
        shared.reader.fetch(&inode, offset, len, Box::new(Sink { parked, flight, pass }));
    }

    /// A read has ended: those that waited for that may begin.
    fn leave(self: &Arc<Self>, chunks: u64, shared: &Weak<Shared>) {
        let mut state = self.state();
        state.chunks = state.chunks.saturating_sub(chunks);
        if state.handing_on || state.waiting.is_empty() {
            return;
        }
        state.handing_on = true;
        drop(state);
        // Whoever waits counts as a read of the mount, which is kept until it has none.
        let shared = shared.upgrade();
        while let Some((chunks, read)) = self.next(shared.as_deref()) {
            let patient = |shared: &&Arc<Shared>| read.flight.elapsed() < shared.reader.deadline();
            match shared.as_ref().filter(patient) {
                Some(shared) => self.start(shared, chunks, read),
                None => {
                    let Waiting { parked, flight, .. } = read;
                    flight.failed();
                    parked.finish(Err(libc::EIO));
                    let mut state = self.state();
                    state.chunks = state.chunks.saturating_sub(chunks);
                }
            }
        }
    }

    /// The next read that may begin, and the room that it has got. With none nobody hands on any more.
    fn next(&self, shared: Option<&Shared>) -> Option<(u64, Waiting)> {
        let mut state = self.state();
        let first = state.waiting.front().map(|read| shared.map_or(0, |shared| chunks(shared, &read.wanted)));
        let next = match first {
            Some(chunks) if state.has_room(chunks) => {
                state.chunks += chunks;
                state.waiting.pop_front().map(|read| (chunks, read))
            }
            _ => None,
        };
        state.handing_on = next.is_some();
        next
    }
}

impl State {
    /// A read that is too large for all there is may be the only one.
    fn has_room(&self, chunks: u64) -> bool {
        self.chunks == 0 || self.chunks.saturating_add(chunks) <= CHUNKS_MAX
    }
}

/// Chunks that a read may touch.
fn chunks(shared: &Shared, wanted: &Wanted) -> u64 {
    u64::from(wanted.len) / u64::from(shared.reader.image().chunk_size().max(1)) + 2
}
