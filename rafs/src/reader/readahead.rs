//! What to fetch beside what is asked for.
//!
//! A store that is far away is worth asking for more at once, if that is read soon. Two kinds of neighbours are likely to
//! be: what follows a reader that goes through a blob in order, and files in the directory of a file that is read. Both
//! windows grow as long as what was fetched ahead is read, and close when it is not; and all in all no more is fetched on
//! speculation than a part of what was really read. Decides; does not fetch.

use crate::cache::AtomicBitmap;
use std::collections::{HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// First window around a file, plain bytes.
const FIRST_WINDOW: u64 = 256 << 10;
/// Speculation that is free, plain bytes.
const CREDIT: u64 = 2 << 20;
/// Speculation that was not read yet may be so many percent of what was read.
const CREDIT_PERCENT: u64 = 88;
/// Readers that are told apart.
const STREAMS_MAX: usize = 8;
/// Chunks that a reader in order may leave out.
const GAP_MAX: u32 = 4;
/// Neighbours that are looked at.
const SCAN_MAX: u32 = 512;
/// Larger chunks are parts of large files, which are read for themselves and not for their neighbours, plain bytes.
const SMALL: u32 = 256 << 10;
/// Read of a directory before large files in it are guessed.
const LARGE: u64 = 1 << 20;
/// Bytes read after which half of what was known of guesses is forgotten.
const MEMORY: u64 = 8 << 20;
/// Directories that are remembered.
const RUNS_MAX: usize = 1 << 16;

/// Speculation in one blob.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    bits: OnceLock<Bits>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct Bits {
    /// Read by somebody.
    touched: AtomicBitmap,
    /// Asked for ahead of reading.
    guessed: AtomicBitmap,
}

#[derive(Debug, Default)]
struct State {
    totals: Totals,
    /// What happened lately counts more.
    recent: Totals,
    streams: VecDeque<Stream>,
    runs: HashMap<u32, Totals>,
}

/// Plain bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    touched: u64,
    guessed: u64,
    /// Guessed and then touched.
    used: u64,
}

impl Totals {
    /// Whether guessing beyond a directory is worth it, as far as can be told.
    fn pays(&self) -> bool {
        self.guessed < CREDIT || self.used >= self.guessed / 3
    }

    fn unread(&self) -> u64 {
        self.guessed.saturating_sub(self.used)
    }
}

/// Somebody who reads in order.
#[derive(Debug)]
struct Stream {
    /// The chunk expected next.
    next: u32,
    /// The first one not asked for yet.
    ahead: u32,
    /// Read in order so far, without the first chunk.
    consumed: u64,
}

/// A chunk as speculation sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// Plain bytes.
    pub plain: u32,
    /// Stored bytes that a fetch of it costs.
    pub stored: u32,
    /// Its directory; `None` when that is not known.
    pub home: Option<u32>,
    /// It is not here, and nobody is fetching it.
    pub absent: bool,
}

/// What a touch means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    /// It has been read before.
    Known,
    /// First read.
    First,
    /// First read of what was fetched ahead.
    Guessed,
}

impl Ahead {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bits(&self, count: u32) -> &Bits {
        self.bits
            .get_or_init(|| Bits { touched: AtomicBitmap::new(count), guessed: AtomicBitmap::new(count) })
    }

    /// A chunk of a blob with `count` chunks is read.
    pub fn touch(&self, count: u32, chunk: u32) -> Touch {
        let bits = self.bits(count);
        if bits.touched.get(chunk) {
            return Touch::Known;
        }
        bits.touched.set(chunk);
        if bits.guessed.get(chunk) { Touch::Guessed } else { Touch::First }
    }

    /// Chunks to fetch because `chunk` is read for the first time. `missed`: somebody has to wait for it. `ceiling`: most
    /// bytes beside it; `full`: plain bytes of a chunk that its file goes on after. `look` knows the blob's chunks.
    pub fn plan(
        &self,
        count: u32,
        chunk: u32,
        touch: Touch,
        missed: bool,
        (ceiling, full): (u64, u32),
        look: impl Fn(u32) -> Option<Neighbour>,
    ) -> Vec<u32> {
        let Some(own) = look(chunk) else { return Vec::new() };
        let bits = self.bits(count);
        let mut state = self.state();
        let state = &mut *state;
        let account = |totals: &mut Totals| {
            totals.touched += u64::from(own.plain);
            if touch == Touch::Guessed {
                totals.used += u64::from(own.plain);
            }
        };
        account(&mut state.totals);
        account(&mut state.recent);
        if state.recent.touched > MEMORY {
            let Totals { touched, guessed, used } = state.recent;
            state.recent = Totals { touched: touched / 2, guessed: guessed / 2, used: used / 2 };
        }
        if state.runs.len() >= RUNS_MAX {
            state.runs.clear();
        }
        if let Some(home) = own.home {
            account(state.runs.entry(home).or_default());
        }
        let unread = state.totals.unread();
        let pays = state.recent.pays();
        let credit = (CREDIT + state.totals.touched / 100 * CREDIT_PERCENT).saturating_sub(unread);
        let mut picker = Picker { bits, look: &look, credit, picked: Vec::new() };
        let stream = follow(&mut state.streams, chunk, u64::from(own.plain));
        // Who reads the start of a large file mostly goes on.
        let window = if own.plain >= full { stream.consumed.max(own.stored.into()) } else { stream.consumed };
        // What is here by other means was fetched for a reason of its own.
        if window > 0 && (missed || touch == Touch::Guessed) {
            let window = window.min(ceiling);
            if stream.ahead <= chunk {
                stream.ahead = chunk.saturating_add(1);
            }
            let here = picker.stored(chunk.saturating_add(1)..=stream.ahead.saturating_sub(1));
            if here <= window / 2 {
                stream.ahead = picker.forward(stream.ahead, window - here, None, u32::MAX);
            }
        }
        let known = own.home.and_then(|home| state.runs.get(&home)).copied().unwrap_or_default();
        // Large files beside large files, where those before were.
        let large = known.touched >= LARGE
            && (known.guessed < 2 * LARGE || known.used >= known.guessed / 4)
            && state.totals.guessed / 2 <= state.totals.touched;
        let most = if large { u32::MAX } else { SMALL };
        if let Some(home) = own.home.filter(|_| own.plain <= most) {
            let run = state.runs.entry(home).or_default();
            // As much as was read of it, and as much again: what is guessed here is often read only in the end.
            let window =
                FIRST_WINDOW.max(run.touched.saturating_mul(2)).saturating_sub(run.unread()).min(ceiling);
            let wanted = missed || (touch == Touch::Guessed && run.unread() < run.touched);
            if wanted && window > 0 {
                let before = picker.total();
                picker.forward(chunk.saturating_add(1), window, Some(home), most);
                let rest = window.saturating_sub(picker.total().saturating_sub(before));
                picker.backward(chunk, rest, home, most);
                // Directories in a row are often read in a row.
                if missed {
                    let most = if pays { ceiling } else { FIRST_WINDOW.min(ceiling) };
                    let rest = most.saturating_sub(picker.total().saturating_sub(before));
                    picker.forward(chunk.saturating_add(1), rest, None, SMALL);
                }
            }
        }
        let picked = picker.picked;
        for &(chunk, neighbour) in &picked {
            bits.guessed.set(chunk);
            state.totals.guessed += u64::from(neighbour.plain);
            state.recent.guessed += u64::from(neighbour.plain);
            if let Some(home) = neighbour.home {
                state.runs.entry(home).or_default().guessed += u64::from(neighbour.plain);
            }
        }
        picked.into_iter().map(|(chunk, _)| chunk).collect()
    }
}

/// The stream that `chunk` continues, or a new one.
fn follow(streams: &mut VecDeque<Stream>, chunk: u32, plain: u64) -> &mut Stream {
    let continues = |s: &Stream| (s.next..=s.next.saturating_add(GAP_MAX)).contains(&chunk);
    let next = chunk.saturating_add(1);
    let stream = match streams.iter().position(continues).and_then(|at| streams.remove(at)) {
        Some(old) => Stream { next, consumed: old.consumed.saturating_add(plain), ..old },
        None => Stream { next, ahead: next, consumed: 0 },
    };
    streams.truncate(STREAMS_MAX - 1);
    streams.push_front(stream);
    &mut streams[0]
}

/// Picks absent chunks as long as there is credit.
struct Picker<'a, L> {
    bits: &'a Bits,
    look: &'a L,
    credit: u64,
    picked: Vec<(u32, Neighbour)>,
}

impl<L: Fn(u32) -> Option<Neighbour>> Picker<'_, L> {
    fn total(&self) -> u64 {
        self.picked.iter().map(|(_, n)| u64::from(n.stored)).sum()
    }

    /// Stored bytes of chunks.
    fn stored(&self, chunks: RangeInclusive<u32>) -> u64 {
        chunks.take(SCAN_MAX as usize).filter_map(|c| (self.look)(c)).map(|n| u64::from(n.stored)).sum()
    }

    fn is_new(&self, chunk: u32, neighbour: Neighbour) -> bool {
        neighbour.absent && !self.bits.guessed.get(chunk) && !self.picked.iter().any(|(c, _)| *c == chunk)
    }

    /// Takes a chunk if that makes sense. `None`: no more.
    fn take(&mut self, chunk: u32, neighbour: Neighbour) -> Option<()> {
        if !self.is_new(chunk, neighbour) {
            return Some(());
        }
        self.credit = self.credit.checked_sub(neighbour.plain.into())?;
        self.picked.push((chunk, neighbour));
        Some(())
    }

    /// From `chunk` on until `window` stored bytes, or the end of the directory. Where it stopped.
    fn forward(&mut self, chunk: u32, window: u64, home: Option<u32>, most: u32) -> u32 {
        let in_order = home.is_none() && most == u32::MAX;
        let mut seen = 0u64;
        for at in chunk..chunk.saturating_add(SCAN_MAX) {
            let Some(neighbour) = (self.look)(at) else { return at };
            if home.is_some() && neighbour.home != home {
                return at;
            }
            if neighbour.plain > most {
                continue;
            }
            // A reader in order has what is here already before it; elsewhere only what is new counts.
            if in_order || self.is_new(at, neighbour) {
                seen = seen.saturating_add(neighbour.stored.into());
            }
            // One chunk is taken even if it is larger than the window, when it is not by much.
            let fits = seen <= window || (at == chunk && seen <= window.saturating_mul(2));
            if !fits || self.take(at, neighbour).is_none() {
                return at;
            }
        }
        chunk.saturating_add(SCAN_MAX)
    }

    fn backward(&mut self, chunk: u32, window: u64, home: u32, most: u32) {
        let mut seen = 0u64;
        for at in (chunk.saturating_sub(SCAN_MAX)..chunk).rev() {
            let Some(neighbour) = (self.look)(at) else { return };
            if neighbour.plain > most {
                continue;
            }
            if self.is_new(at, neighbour) {
                seen = seen.saturating_add(neighbour.stored.into());
            }
            if neighbour.home != Some(home) || seen > window || self.take(at, neighbour).is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const SIZE: u32 = 16 << 10;
    const COUNT: u32 = 4000;

    /// A blob of equal chunks, 20 to a directory.
    struct Blob {
        ahead: Ahead,
        here: RefCell<Vec<bool>>,
        fetched: u64,
        misses: u32,
    }

    impl Blob {
        fn new() -> Self {
            let here = RefCell::new(vec![false; COUNT as usize]);
            Self { ahead: Ahead::default(), here, fetched: 0, misses: 0 }
        }

        fn read(&mut self, chunk: u32) {
            let missed = !self.here.borrow()[chunk as usize];
            let touch = self.ahead.touch(COUNT, chunk);
            self.misses += u32::from(missed);
            self.fetched += u64::from(missed);
            self.here.borrow_mut()[chunk as usize] = true;
            let look = |c: u32| {
                let absent = !*self.here.borrow().get(c as usize)?;
                Some(Neighbour { plain: SIZE, stored: SIZE / 2, home: Some(c / 20), absent })
            };
            if touch != Touch::Known {
                for c in self.ahead.plan(COUNT, chunk, touch, missed, (1 << 20, u32::MAX), look) {
                    assert!(!self.here.borrow()[c as usize], "{c} is here already");
                    self.here.borrow_mut()[c as usize] = true;
                    self.fetched += 1;
                }
            }
        }
    }

    #[test]
    fn reading_in_order_seldom_waits() {
        let mut blob = Blob::new();
        (0..COUNT).for_each(|c| blob.read(c));
        assert!(blob.misses <= 4, "{}", blob.misses);
        assert_eq!(blob.fetched, COUNT.into());
    }

    #[test]
    fn reading_at_random_costs_little_more_than_what_is_read() {
        let mut blob = Blob::new();
        // One chunk in every third directory, in no order.
        let mut reads = 0;
        for i in 0..66u32 {
            blob.read(i * 7 % 66 * 60 + 7);
            reads += 1;
        }
        let free = CREDIT / u64::from(SIZE);
        assert!(blob.fetched <= free + 2 * reads, "{} for {reads}", blob.fetched);
    }

    #[test]
    fn directories_that_are_read_come_as_a_whole() {
        let mut blob = Blob::new();
        // Whole directories, backwards in each, every fourth directory.
        for dir in (0..COUNT / 20).step_by(4) {
            (0..20).rev().for_each(|c| blob.read(dir * 20 + c));
        }
        let reads = COUNT / 4;
        assert!(blob.misses < reads / 4, "{} of {reads}", blob.misses);
        // Directories between them are guessed too, within the credit.
        assert!(blob.fetched <= u64::from(reads) * 21 / 10, "{} for {reads}", blob.fetched);
    }

    #[test]
    fn the_ceiling_is_kept() {
        let ahead = Ahead::default();
        let look = |c: u32| {
            (c < COUNT).then_some(Neighbour { plain: SIZE, stored: SIZE, home: Some(0), absent: true })
        };
        for chunk in 0..100 {
            let touch = ahead.touch(COUNT, chunk);
            assert!(ahead.plan(COUNT, chunk, touch, true, (0, SIZE), look).is_empty());
        }
        assert_eq!(ahead.touch(COUNT, 5), Touch::Known);
    }
}
