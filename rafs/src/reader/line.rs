//! How full the way to the stores is, and guesses that wait for room on it.
//!
//! What is guessed shares the line with what somebody waits for, so no more of it is on its way than keeps the line busy:
//! about what arrives in the time that a request takes to be answered. The rest waits here, the newest first, and may be
//! read meanwhile. Does not decide what is guessed (`readahead`), nor fetch it (`neighbours`).

use super::core::Core;
use crate::ids::BlobIndex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Bytes that may be on their way before anything is known of the line.
const ROOM_MIN: u64 = 256 << 10;
const ROOM_MAX: u64 = 16 << 20;
/// Guesses that wait.
const WAITING_MAX: usize = 4096;

/// Neighbouring chunks of a blob that nobody has asked for yet.
pub(super) struct Guess {
    pub core: Weak<Core>,
    pub blob: BlobIndex,
    pub chunks: Vec<u32>,
}

/// The way to all stores.
#[derive(Default)]
pub(super) struct Line {
    on_the_way: AtomicU64,
    /// All that ever arrived.
    arrived: AtomicU64,
    /// What arrives while a request waits for its first byte, lately.
    full: AtomicU64,
    waiting: Mutex<VecDeque<Guess>>,
    /// Number of those.
    count: AtomicUsize,
}

impl Line {
    fn waiting(&self) -> MutexGuard<'_, VecDeque<Guess>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request for `bytes` sets off.
    pub fn send(self: &Arc<Self>, bytes: u64) -> Sent {
        self.on_the_way.fetch_add(bytes, Ordering::Relaxed);
        Sent {
            line: Arc::clone(self),
            left: bytes,
            bytes,
            before: Some(self.arrived.load(Ordering::Relaxed)),
        }
    }

    /// Whether a guess may set off now.
    fn has_room(&self) -> bool {
        let full = self.full.load(Ordering::Relaxed);
        let room = full.saturating_add(full / 8).clamp(ROOM_MIN, ROOM_MAX);
        self.on_the_way.load(Ordering::Relaxed) < room
    }

    /// Whether [`next`](Self::next) would give something. Costs no lock.
    pub fn is_ready(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0 && self.has_room()
    }

    /// Lets guesses wait, in this order, before those that wait already; the oldest are forgotten when they are too many.
    pub fn wait(&self, guesses: Vec<Guess>) {
        let mut waiting = self.waiting();
        guesses.into_iter().rev().for_each(|guess| waiting.push_front(guess));
        waiting.truncate(WAITING_MAX);
        self.count.store(waiting.len(), Ordering::Relaxed);
    }

    /// The next guess, if there is room for it.
    pub fn next(&self) -> Option<Guess> {
        let mut waiting = self.waiting();
        let next = if self.has_room() { waiting.pop_front() } else { None };
        self.count.store(waiting.len(), Ordering::Relaxed);
        next
    }
}

/// A request on its way; its bytes are off the line when it is dropped.
pub(super) struct Sent {
    line: Arc<Line>,
    bytes: u64,
    left: u64,
    /// What had arrived of all requests when it set off, until its own first byte.
    before: Option<u64>,
}

impl Sent {
    /// The first `bytes` of it are here.
    pub fn arrived(&mut self, bytes: u64) {
        let now = self.bytes.saturating_sub(bytes).min(self.left);
        let new = self.left - now;
        self.left = now;
        self.line.on_the_way.fetch_sub(new, Ordering::Relaxed);
        let arrived = self.line.arrived.fetch_add(new, Ordering::Relaxed);
        if let Some(before) = self.before.take() {
            let full = self.line.full.load(Ordering::Relaxed);
            let seen = arrived.saturating_sub(before);
            // Only as much as was asked for can arrive: a smaller figure says little.
            self.line.full.store(seen.max(full - full / 16), Ordering::Relaxed);
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.line.on_the_way.fetch_sub(self.left, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guess(n: u32) -> Guess {
        Guess { core: Weak::new(), blob: BlobIndex(0), chunks: vec![n] }
    }

    fn next(line: &Line) -> Option<u32> {
        line.next().map(|guess| guess.chunks[0])
    }

    #[test]
    fn the_newest_guess_goes_first_and_only_where_there_is_room() {
        let line = Arc::new(Line::default());
        line.wait(vec![guess(1), guess(2)]);
        line.wait(vec![guess(3), guess(4)]);
        assert_eq!(next(&line), Some(3));
        let mut sent = line.send(300 << 10);
        assert!(!line.is_ready());
        assert_eq!(next(&line), None);
        sent.arrived(100 << 10);
        assert!(line.is_ready());
        assert_eq!((next(&line), next(&line)), (Some(4), Some(1)));
        let more = line.send(200 << 10);
        assert_eq!(next(&line), None);
        drop((sent, more));
        assert_eq!((next(&line), next(&line)), (Some(2), None));
        assert_eq!(line.on_the_way.load(Ordering::Relaxed), 0);
        line.wait((0..5000).map(guess).collect());
        assert_eq!(line.count.load(Ordering::Relaxed), WAITING_MAX);
    }

    #[test]
    fn a_long_line_has_more_room() {
        let line = Arc::new(Line::default());
        line.wait(vec![guess(1), guess(2)]);
        // 1 MiB arrives while a request waits for its first byte.
        let mut one = line.send(1 << 20);
        let mut other = line.send(1 << 20);
        one.arrived(1 << 20);
        other.arrived(1);
        assert!(line.is_ready());
        drop(other);
        let _large = line.send(1 << 20);
        assert_eq!(next(&line), Some(1));
        // It is forgotten when it is no longer so.
        for _ in 0..64 {
            line.send(1000).arrived(1000);
        }
        assert_eq!(next(&line), None);
    }
}
