//! What to fetch beside what is asked for.
//!
//! Where a request takes long, what is read is worth little beside what is waited for: each miss that a guess saves is
//! worth the bytes that the line carries in one round trip. Three kinds of neighbours are likely to be read next: the
//! rest of the directory that is being read, what follows in the blob, and what lies before a reader who goes through it
//! in order. Guessing ends as long as hardly anything of it is read, and keeps within a part of what was read. Decides;
//! does not fetch. All sizes are stored bytes: they are what guesses cost.

use crate::cache::AtomicBitmap;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// Guessed before it is asked whether that pays.
const TRIAL: u64 = 2 << 20;
/// It does while one byte in so many is read.
const PAYS: u64 = 16;
/// Read after which half of what was known of guesses is forgotten, so that a reader who changes is noticed.
const MEMORY: u64 = 8 << 20;
/// Guessed and not read: so much, ...
const UNREAD: u64 = 10 << 20;
/// ... and so many percent of what was read.
const UNREAD_PERCENT: u64 = 60;
/// Larger chunks are guessed only in the directory that is being read.
const SMALL: u32 = 128 << 10;
/// Read in order after which a reader is taken to go on like that.
const IN_ORDER: u64 = 1 << 20;
/// What lies before a reader in order is so many times what is fetched beside a miss.
const DEPTH: u64 = 4;
/// Readers that are told apart.
const STREAMS_MAX: usize = 8;
/// Chunks that a reader in order may leave out.
const GAP_MAX: u32 = 4;
/// Neighbours that are looked at.
const SCAN_MAX: u32 = 1024;
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
    /// By directory.
    runs: HashMap<u32, Run>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    touched: u64,
    guessed: u64,
    /// Guessed and then touched.
    used: u64,
}

impl Totals {
    fn pays(&self) -> bool {
        self.guessed < TRIAL || self.used >= self.guessed / PAYS
    }

    fn touch(&mut self, stored: u64, guessed: bool) {
        self.touched += stored;
        self.used += if guessed { stored } else { 0 };
    }
}

/// A directory that is being read.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// More than one chunk of it was read.
    again: bool,
    /// Guessed and not read.
    unread: u64,
}

/// Somebody who reads in order.
#[derive(Debug)]
struct Stream {
    /// The chunk expected next.
    next: u32,
    /// The first one not looked at yet.
    ahead: u32,
    /// Stored bytes from `next` to `ahead`, about.
    before: u64,
    /// Read in order so far, without the first chunk.
    consumed: u64,
}

/// A chunk as speculation sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    /// Stored bytes that a fetch of it costs.
    pub stored: u32,
    /// Its directory; `None` when that is not known.
    pub home: Option<u32>,
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

/// What to fetch.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Picked {
    /// At once.
    pub now: Vec<u32>,
    /// When there is room on the line, in this order.
    pub later: Vec<u32>,
}

/// A chunk that is read for the first time.
#[derive(Clone, Copy, Debug)]
pub(super) struct First {
    pub chunk: u32,
    /// Or [`Touch::Guessed`].
    pub touch: Touch,
    /// Somebody has to wait for it.
    pub missed: bool,
    /// Its file may go on in the next chunk.
    pub goes_on: bool,
    /// Most bytes to fetch beside it.
    pub ceiling: u64,
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

    /// What to fetch because of a first read. `look` knows the blob's chunks, `absent` which of them are neither here nor
    /// on their way.
    pub fn plan(
        &self,
        count: u32,
        first: First,
        look: impl Fn(u32) -> Option<Neighbour>,
        absent: impl Fn(u32) -> bool,
    ) -> Picked {
        let First { chunk, touch, missed, goes_on, ceiling } = first;
        let Some(own) = look(chunk) else { return Picked::default() };
        let bits = self.bits(count);
        let mut state = self.state();
        let state = &mut *state;
        let (stored, guessed) = (u64::from(own.stored), touch == Touch::Guessed);
        state.totals.touch(stored, guessed);
        state.recent.touch(stored, guessed);
        if state.recent.touched > MEMORY {
            let Totals { touched, guessed, used } = state.recent;
            state.recent = Totals { touched: touched / 2, guessed: guessed / 2, used: used / 2 };
        }
        if state.runs.len() >= RUNS_MAX {
            state.runs.clear();
        }
        let Totals { touched, guessed: all, used } = state.totals;
        let credit = (UNREAD + touched / 100 * UNREAD_PERCENT).saturating_sub(all.saturating_sub(used));
        let mut picker = Picker { bits, look: &look, absent: &absent, credit, bytes: 0, picked: Vec::new() };
        let stream = follow(&mut state.streams, chunk, stored);
        let run = own.home.map(|home| (home, state.runs.entry(home).or_default()));
        let (mut again, mut unread) = (false, 0);
        if let Some((_, run)) = run {
            run.unread = run.unread.saturating_sub(if guessed { stored } else { 0 });
            (again, unread) = (run.again, run.unread);
            run.again = true;
        }
        // What is here by other means was fetched for a reason of its own.
        if ceiling == 0 || !(missed || guessed) {
            return Picked::default();
        }
        picker.before(stream, goes_on.then_some(stored), ceiling);
        let ordered = picker.picked.len();
        if stream.consumed < IN_ORDER && state.recent.pays() {
            // All of a small directory. Less at first: many are only passed through.
            let window = if again { ceiling } else { ceiling / 2 }.saturating_sub(unread);
            // What is guessed here is read in any order, so hits count too; but not for a few more bytes.
            if let Some(home) = own.home.filter(|_| missed || window >= ceiling / 4) {
                picker.directory(chunk, home, window);
            }
            if missed {
                picker.beyond(chunk, ceiling / 8 * 3);
            }
        }
        for (_, neighbour) in &picker.picked {
            let stored = u64::from(neighbour.stored);
            state.totals.guessed += stored;
            state.recent.guessed += stored;
            if let Some(home) = neighbour.home {
                state.runs.entry(home).or_default().unread += stored;
            }
        }
        let mut all =
            picker.picked.into_iter().map(|(chunk, neighbour)| (chunk, u64::from(neighbour.stored)));
        let now = all.by_ref().take(ordered).map(|(chunk, _)| chunk).collect();
        let mut picked = Picked { now, later: Vec::new() };
        // What lies behind a miss comes with it.
        let (mut next, mut room) = (chunk.saturating_add(1), if missed { ceiling / 8 * 3 } else { 0 });
        for (chunk, stored) in all {
            match room.checked_sub(stored).filter(|_| chunk == next) {
                Some(rest) => {
                    (next, room) = (next.saturating_add(1), rest);
                    picked.now.push(chunk);
                }
                None => picked.later.push(chunk),
            }
        }
        picked
    }
}

/// The stream that `chunk` continues, or a new one.
fn follow(streams: &mut VecDeque<Stream>, chunk: u32, stored: u64) -> &mut Stream {
    let continues = |s: &Stream| (s.next..=s.next.saturating_add(GAP_MAX)).contains(&chunk);
    let next = chunk.saturating_add(1);
    let stream = match streams.iter().position(continues).and_then(|at| streams.remove(at)) {
        Some(old) => Stream {
            next,
            ahead: old.ahead.max(next),
            before: if old.ahead > next { old.before.saturating_sub(stored) } else { 0 },
            consumed: old.consumed.saturating_add(stored),
        },
        None => Stream { next, ahead: next, before: 0, consumed: 0 },
    };
    streams.truncate(STREAMS_MAX - 1);
    streams.push_front(stream);
    &mut streams[0]
}

/// Picks absent chunks as long as there is credit.
struct Picker<'a, L, A> {
    bits: &'a Bits,
    look: &'a L,
    absent: &'a A,
    credit: u64,
    /// Picked so far.
    bytes: u64,
    picked: Vec<(u32, Neighbour)>,
}

impl<L: Fn(u32) -> Option<Neighbour>, A: Fn(u32) -> bool> Picker<'_, L, A> {
    fn is_new(&self, chunk: u32) -> bool {
        !self.bits.touched.get(chunk) && !self.bits.guessed.get(chunk) && (self.absent)(chunk)
    }

    /// Takes a chunk. `None`: no credit.
    fn take(&mut self, chunk: u32, neighbour: Neighbour) -> Option<()> {
        self.credit = self.credit.checked_sub(neighbour.stored.into())?;
        self.bytes += u64::from(neighbour.stored);
        self.bits.guessed.set(chunk);
        self.picked.push((chunk, neighbour));
        Some(())
    }

    /// What lies before a reader in order: as much as was read like that, within limits. `rest`: the file goes on, and
    /// a chunk of it has so many bytes.
    fn before(&mut self, stream: &mut Stream, rest: Option<u64>, ceiling: u64) {
        // Who reads the start of a large file mostly goes on.
        let window = stream.consumed.max(rest.unwrap_or(0)).min(ceiling.saturating_mul(DEPTH));
        // Not for each chunk a request.
        if stream.before > window - window / 4 || window == 0 {
            return;
        }
        let most = window.saturating_sub(stream.before).min(ceiling);
        let mut seen = 0u64;
        for _ in 0..SCAN_MAX {
            let Some(neighbour) = (self.look)(stream.ahead) else { return };
            // One chunk is taken even if it is larger than the window, when it is not by much.
            seen = seen.saturating_add(neighbour.stored.into());
            let fits = seen <= most || (stream.before == 0 && seen <= window.saturating_mul(2));
            if !fits || (self.is_new(stream.ahead) && self.take(stream.ahead, neighbour).is_none()) {
                return;
            }
            stream.before = stream.before.saturating_add(neighbour.stored.into());
            stream.ahead = stream.ahead.saturating_add(1);
        }
    }

    /// The rest of a directory, up to `window`: first what comes after `chunk`, then what came before.
    fn directory(&mut self, chunk: u32, home: u32, window: u64) {
        let end = self.bytes.saturating_add(window);
        let after = chunk.saturating_add(1)..chunk.saturating_add(SCAN_MAX);
        let before = (chunk.saturating_sub(SCAN_MAX)..chunk).rev();
        let mut walk = |chunks: &mut dyn Iterator<Item = u32>| {
            for at in chunks {
                let Some(neighbour) = (self.look)(at).filter(|n| n.home == Some(home)) else { return };
                if !self.is_new(at) {
                    continue;
                }
                let fits = self.bytes.saturating_add(neighbour.stored.into()) <= end;
                if !fits || self.take(at, neighbour).is_none() {
                    return;
                }
            }
        };
        walk(&mut after.into_iter());
        walk(&mut before.into_iter());
    }

    /// What is small in the `window` bytes that follow in the blob, if the directory was not enough to fill them.
    fn beyond(&mut self, chunk: u32, window: u64) {
        let mut seen = 0u64;
        for at in chunk.saturating_add(1)..chunk.saturating_add(SCAN_MAX) {
            let Some(neighbour) = (self.look)(at) else { return };
            seen = seen.saturating_add(neighbour.stored.into());
            if seen > window {
                return;
            }
            if neighbour.stored > SMALL || !self.is_new(at) {
                continue;
            }
            let fits = self.bytes.saturating_add(neighbour.stored.into()) <= window;
            if !fits || self.take(at, neighbour).is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const SIZE: u32 = 8 << 10;
    const COUNT: u32 = 20_000;

    /// A blob of equal chunks, 20 to a directory.
    struct Blob {
        ahead: Ahead,
        here: RefCell<Vec<bool>>,
        fetched: u32,
        read: u32,
        misses: u32,
        /// Most that came with one touch.
        most: usize,
    }

    impl Blob {
        fn new() -> Self {
            let here = RefCell::new(vec![false; COUNT as usize]);
            Self { ahead: Ahead::default(), here, fetched: 0, read: 0, misses: 0, most: 0 }
        }

        fn read(&mut self, chunk: u32) {
            let missed = !self.here.borrow()[chunk as usize];
            let touch = self.ahead.touch(COUNT, chunk);
            self.read += 1;
            self.misses += u32::from(missed);
            self.fetched += u32::from(missed);
            self.here.borrow_mut()[chunk as usize] = true;
            let look = |c: u32| (c < COUNT).then_some(Neighbour { stored: SIZE, home: Some(c / 20) });
            let absent = |c: u32| !self.here.borrow()[c as usize];
            if touch != Touch::Known {
                let first = First { chunk, touch, missed, goes_on: false, ceiling: 1 << 20 };
                let Picked { now: mut picked, later } = self.ahead.plan(COUNT, first, look, absent);
                picked.extend(later);
                self.most = self.most.max(picked.len());
                for c in picked {
                    assert!(!self.here.borrow()[c as usize], "{c} is here already");
                    self.here.borrow_mut()[c as usize] = true;
                    self.fetched += 1;
                }
            }
        }

        /// Fetched and not read, in percent of what was read.
        fn waste(&self) -> u32 {
            (self.fetched - self.read) * 100 / self.read
        }
    }

    /// Numbers below `below` that look like chance.
    fn random(below: u32) -> impl FnMut() -> u32 {
        let mut state = 7u64;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            u32::try_from((state >> 33) % u64::from(below)).unwrap()
        }
    }

    #[test]
    fn reading_in_order_seldom_waits() {
        let mut blob = Blob::new();
        (0..COUNT).for_each(|c| blob.read(c));
        assert!(blob.misses <= 4, "{}", blob.misses);
        assert_eq!(blob.fetched, COUNT);
        assert!(blob.most <= (1 << 20) / SIZE as usize, "{}", blob.most);
    }

    #[test]
    fn who_stops_reading_in_order_wastes_no_more_than_what_lies_before_him() {
        let mut blob = Blob::new();
        (0..5000).for_each(|c| blob.read(c));
        assert!(u64::from(blob.fetched - blob.read) <= (DEPTH << 20) / u64::from(SIZE), "{}", blob.fetched);
    }

    #[test]
    fn reading_at_random_ends_guessing() {
        let mut blob = Blob::new();
        let mut random = random(COUNT / 20 / 8);
        // One chunk of a directory, far from others.
        let mut seen = std::collections::HashSet::new();
        for _ in 0..10_000 {
            let dir = random();
            if seen.insert(dir) {
                blob.read(dir * 160);
            }
        }
        let trial = u32::try_from(TRIAL).unwrap() / SIZE;
        assert!(
            blob.read > 100 && blob.fetched <= blob.read + trial * 5 / 4,
            "{} for {}",
            blob.fetched,
            blob.read
        );
    }

    #[test]
    fn guesses_that_seldom_pay_keep_to_their_part() {
        let mut blob = Blob::new();
        let mut random = random(COUNT);
        let mut seen = std::collections::HashSet::new();
        // Chance, thick enough for guesses to be read now and then.
        while blob.read < COUNT / 8 {
            let chunk = random();
            if seen.insert(chunk) {
                blob.read(chunk);
            }
        }
        let free = u32::try_from(UNREAD).unwrap() / SIZE;
        let most = blob.read / 100 * u32::try_from(UNREAD_PERCENT).unwrap() + free;
        assert!(blob.fetched - blob.read <= most, "{} for {}", blob.fetched, blob.read);
    }

    #[test]
    fn directories_that_are_read_come_as_a_whole() {
        let mut blob = Blob::new();
        // Whole directories, backwards in each, every fourth one, in no order.
        let dirs = COUNT / 20 / 4;
        for dir in (0..dirs).map(|n| n * 89 % dirs * 4) {
            (0..20).rev().for_each(|c| blob.read(dir * 20 + c));
        }
        assert!(blob.misses <= dirs + 1, "{} of {}", blob.misses, blob.read);
        // Directories between them are guessed too, within the credit.
        assert!(blob.waste() <= 100, "{} for {}", blob.fetched, blob.read);
    }

    #[test]
    fn a_directory_comes_in_two_steps() {
        let ahead = Ahead::default();
        // One directory of large chunks.
        let look = |c: u32| (c < 100).then_some(Neighbour { stored: 200 << 10, home: Some(0) });
        let read = |chunk, missed| {
            let touch = ahead.touch(100, chunk);
            let first = First { chunk, touch, missed, goes_on: false, ceiling: 1 << 20 };
            let Picked { now: mut picked, later } = ahead.plan(100, first, look, |_| true);
            picked.extend(later);
            picked
        };
        assert_eq!(read(50, true), [51, 52], "half, for the first touch");
        assert_eq!(read(60, true), [61, 62, 63], "the other half");
        assert_eq!(read(70, true), [0; 0], "until something of it was read");
        assert_eq!(read(52, false), [53], "who goes on in order");
        assert_eq!(read(62, false), [0; 0], "not for a few bytes");
        assert_eq!((read(51, false), read(61, false)), (vec![54, 55], vec![]), "some of it was");
    }

    #[test]
    fn off_is_off() {
        let ahead = Ahead::default();
        let look = |c: u32| (c < COUNT).then_some(Neighbour { stored: SIZE, home: Some(0) });
        for chunk in 0..100 {
            let touch = ahead.touch(COUNT, chunk);
            let first = First { chunk, touch, missed: true, goes_on: true, ceiling: 0 };
            assert_eq!(ahead.plan(COUNT, first, look, |_| true), Picked::default());
        }
        assert_eq!(ahead.touch(COUNT, 5), Touch::Known);
    }
}
