//! The crew: a few threads that serve all rings of all guests of a daemon.
//!
//! Owns: the threads, the one epoll they sleep on, who sleeps and who works. Does not own: whose turn it is ([`queue`]),
//! what is done when a worker does not get on ([`watch`]), what serving a ring means ([`Served`]).
//!
//! A ring is served by one worker at a time, a batch; then it goes to the end of the line. A ring that was found empty is
//! looked at again while others have work, without asking its guest for a kick: a busy crew costs guests no system call,
//! however little each of them has in flight. When a whole round finds nothing, rings are put to rest, and the workers
//! sleep: an idle crew uses no processor.

mod crowd;
mod hand;
mod queue;
mod seat;
#[cfg(test)]
mod tests;
mod watch;

pub(super) use hand::Hand;
pub(super) use seat::Seat;

use crate::interrupt;
use crowd::Crowd;
use hand::Progress;
use queue::{After, Key, Pick, Queue};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Events taken at once.
const EVENTS: usize = 32;
/// The bell's key; no ring gets it while there are fewer than 2^32 of them.
const BELL: u64 = u64::MAX;
/// Visits after which kicks are looked for where nobody sleeps on them, and the clock is.
const VISITS_BETWEEN_LOOKS: u32 = 16;
/// The same for visits that took their time.
const TIME_BETWEEN_LOOKS: Duration = Duration::from_micros(20);
/// Visits that take longer are worth waking another worker for each, shorter ones are not.
const WORTH_WAKING: Duration = Duration::from_micros(20);
/// Visits over which a worker judges whether it is needed.
const SPELL: u32 = 64;
/// How long a worker that is too many sleeps before it ends.
const PATIENCE: Duration = Duration::from_millis(200);

/// How a visit to a ring ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// There was nothing to do.
    Nothing,
    /// Something was done, and there is no more.
    Drained,
    /// A batch was done; there may be more.
    More,
    /// The ring does not run. It is not looked at before somebody wakes it.
    Stopped,
}

/// A ring, as the crew sees it. Calls never overlap.
pub(super) trait Served: Send + Sync {
    /// Serves a batch at most.
    fn visit(&self, hand: &mut Hand) -> Visit;

    /// Asks the guest to kick; returns whether there is something already.
    fn rest(&self) -> bool;
}

/// The crew of a daemon. It ends when this is dropped.
#[derive(Debug)]
pub struct Crew(Arc<Shared>);

struct Shared {
    epoll: OwnedFd,
    /// Wakes one worker, edge-triggered and never read.
    bell: OwnedFd,
    /// Workers that are to get on at a time.
    size: usize,
    state: Mutex<State>,
    /// A ring that was told to leave has left its worker.
    left: Condvar,
    /// The watcher has something to watch, or is to end.
    watch: Condvar,
    /// A worker on the bench is wanted.
    bench: Condvar,
}

#[derive(Default)]
struct State {
    queue: Queue,
    workers: Vec<Worker>,
    /// Workers that do not sleep.
    awake: usize,
    /// Workers on the bench: asleep, but not for kicks.
    benched: usize,
    /// How many of those are to get up.
    wanted: usize,
    /// Workers that did not get on when the watcher looked last.
    stuck: usize,
    /// How long a visit takes, smoothed.
    visit_time: Duration,
    /// How many workers are to serve at most.
    crowd: Crowd,
    /// Times that a worker woke.
    wakes: u64,
    watcher: bool,
    watching: bool,
    ended: bool,
}

struct Worker {
    progress: Arc<Progress>,
    thread: JoinHandle<()>,
}

/// What a worker is to do next.
enum Step {
    Visit(Pick),
    Rest(Pick),
    /// Look for kicks without sleeping.
    Look,
    /// Sleep until a kick; if it is one too many, not for ever.
    Sleep {
        surplus: bool,
    },
    /// Sleep until others cannot do without.
    Bench,
    End,
}

/// What a worker has found lately.
#[derive(Default)]
struct Spell {
    visits: u32,
    empty: u32,
    since_look: u32,
    looked: Option<Instant>,
    /// Visits in all.
    all: u32,
}

impl Spell {
    fn count(&mut self, visit: Visit) {
        self.visits += 1;
        self.all = self.all.wrapping_add(1);
        self.since_look += 1;
        self.empty += u32::from(matches!(visit, Visit::Nothing | Visit::Stopped));
        // The clock is for visits that are long enough not to feel it.
        if visit == Visit::More && self.looked.is_none_or(|at| at.elapsed() >= TIME_BETWEEN_LOOKS) {
            self.since_look = VISITS_BETWEEN_LOOKS;
        }
    }

    /// Whether the next visit's time is to be taken.
    fn is_sample(&self) -> bool {
        self.all.is_multiple_of(VISITS_BETWEEN_LOOKS)
    }

    /// It begins anew.
    fn renew(&mut self) {
        *self = Self { all: self.all, ..Self::default() };
    }

    /// Whether the others would have done it alone.
    fn is_idle(&mut self) -> bool {
        if self.visits < SPELL {
            return false;
        }
        let idle = self.empty * 2 > self.visits;
        (self.visits, self.empty) = (0, 0);
        idle
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Crew").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Crew {
    /// A crew of as many workers as there are processors, two at least; they are started with the first rings.
    ///
    /// # Errors
    ///
    /// That of epoll_create(2), eventfd(2) or sigaction(2).
    pub fn new() -> io::Result<Self> {
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::of(processors.max(2))
    }

    /// A crew of so many workers.
    pub(super) fn of(size: usize) -> io::Result<Self> {
        interrupt::allow()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &bell, epoll::EventData::new_u64(BELL), flags)?;
        Ok(Self(Arc::new(Shared {
            epoll,
            bell,
            size,
            state: Mutex::default(),
            left: Condvar::new(),
            watch: Condvar::new(),
            bench: Condvar::new(),
        })))
    }

    /// Adds a ring, at rest. It stays until [`Seat::leave`].
    ///
    /// # Errors
    ///
    /// No thread can be started.
    pub(super) fn enter(&self, task: Arc<dyn Served>) -> io::Result<Seat> {
        let shared = &self.0;
        let mut state = shared.lock();
        if !state.watcher {
            let watched = Arc::clone(shared);
            thread::Builder::new().name("watch".to_owned()).spawn(move || watch::run(&watched))?;
            state.watcher = true;
        }
        let key = state.queue.enter(task);
        let wanted = shared.size.min(state.queue.members());
        while state.workers.len() < wanted {
            match shared.hire(&mut state) {
                Err(error) if state.workers.is_empty() => {
                    state.queue.leave(key);
                    return Err(error);
                }
                Err(error) => {
                    tracing::warn!("only {} threads serve guests: {error}", state.workers.len());
                    break;
                }
                Ok(()) => {}
            }
        }
        Ok(Seat::new(Arc::clone(shared), key))
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.watch.notify_all();
        self.0.bench.notify_all();
        self.0.ring_bell();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring_bell(&self) {
        // A counter that is full has woken somebody.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Starts a worker.
    fn hire(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        let progress = Arc::new(Progress::default());
        let (shared, mine) = (Arc::clone(self), Arc::clone(&progress));
        let name = format!("crew {}", state.workers.len());
        let thread = thread::Builder::new().name(name).spawn(move || shared.work(&mine))?;
        state.workers.push(Worker { progress, thread });
        state.awake += 1;
        self.watch_over(state);
        Ok(())
    }

    /// Whoever is awake is watched.
    fn watch_over(&self, state: &mut State) {
        if !state.watching {
            state.watching = true;
            self.watch.notify_one();
        }
    }

    /// The life of a worker.
    fn work(self: &Arc<Self>, progress: &Arc<Progress>) {
        progress.started();
        let mut hand = Hand::new(Arc::clone(progress));
        let mut spell = Spell::default();
        let mut step = self.next(&mut spell, None);
        loop {
            step = match step {
                Step::Visit(pick) => {
                    let begun = spell.is_sample().then(Instant::now);
                    let visit = hand.visit(&pick);
                    spell.count(visit);
                    self.next(&mut spell, Some((pick, visit, begun)))
                }
                Step::Rest(pick) => {
                    let more = Hand::rest(&pick);
                    let mut state = self.lock();
                    let after = state.queue.rested(pick, more);
                    self.settled(&after);
                    self.step(&mut state, &mut spell)
                }
                Step::Look => self.look(&mut spell, Some(&timespec(Duration::ZERO)), false),
                Step::Sleep { surplus } => {
                    self.look(&mut spell, surplus.then(|| timespec(PATIENCE)).as_ref(), true)
                }
                Step::Bench => self.sit_out(&mut spell),
                Step::End => break,
            };
            if matches!(step, Step::Sleep { .. } | Step::Bench) {
                hand.idle();
            }
        }
        // One bell wakes one worker.
        self.ring_bell();
    }

    /// Gives a ring back and says what is next.
    fn next(&self, spell: &mut Spell, done: Option<(Pick, Visit, Option<Instant>)>) -> Step {
        let mut state = self.lock();
        if let Some((pick, visit, begun)) = done {
            if let Some(begun) = begun.filter(|_| matches!(visit, Visit::More | Visit::Drained)) {
                state.visit_time = (state.visit_time * 3 + begun.elapsed()) / 4;
            }
            match state.queue.after(pick, visit, Instant::now) {
                After::Rest(pick) => return Step::Rest(pick),
                after => self.settled(&after),
            }
        }
        self.step(&mut state, spell)
    }

    /// What the caller, who is awake, is to do next.
    fn step(&self, state: &mut State, spell: &mut Spell) -> Step {
        if state.benched > state.wanted && state.visit_time >= WORTH_WAKING && !state.is_heard() {
            self.want_more(state);
        }
        state.step(spell, self.size)
    }

    /// Gets a worker up from the bench, unless there are enough.
    fn want_more(&self, state: &mut State) {
        if !state.is_full(state.serving() + state.wanted + 1) {
            self.want(state);
        }
    }

    /// Gets a worker up from the bench.
    fn want(&self, state: &mut State) {
        if state.wanted < state.benched {
            state.wanted += 1;
            self.bench.notify_one();
        }
    }

    /// Sleeps on the bench.
    fn sit_out(&self, spell: &mut Spell) -> Step {
        let mut state = self.lock();
        while state.wanted == 0 && !state.ended {
            if state.workers.len() <= self.size {
                state = self.bench.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (next, waited) =
                self.bench.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
            state = next;
            if waited.timed_out() && state.wanted == 0 && state.surplus(self.size) {
                state.benched -= 1;
                state.dismiss();
                return Step::End;
            }
        }
        state.wanted = state.wanted.saturating_sub(1);
        state.benched -= 1;
        state.awake += 1;
        spell.renew();
        self.step(&mut state, spell)
    }

    fn settled(&self, after: &After) {
        if matches!(after, After::Left) {
            self.left.notify_all();
        }
    }

    /// Takes kicks, waiting for them or not, and says what is next.
    fn look(&self, spell: &mut Spell, wait: Option<&Timespec>, slept: bool) -> Step {
        let mut events: [epoll::Event; EVENTS] =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(BELL) };
                EVENTS];
        let (count, failed) = match epoll::wait(&self.epoll, &mut events, wait) {
            Ok(count) => (count, false),
            Err(rustix::io::Errno::INTR) => (0, false),
            Err(error) => {
                tracing::error!("waiting for kicks failed: {error}");
                (0, true)
            }
        };
        let mut state = self.lock();
        if slept {
            state.awake += 1;
            state.wakes += 1;
            spell.renew();
        }
        spell.since_look = 0;
        spell.looked = Some(Instant::now());
        for event in events.iter().take(count).map(|event| event.data.u64()).filter(|key| *key != BELL) {
            state.queue.wake(Key::from_u64(event));
        }
        self.watch_over(&mut state);
        let dismissed = slept && wait.is_some() && count == 0 && state.surplus(self.size);
        if dismissed || failed {
            state.dismiss();
            state.awake -= 1;
            // Somebody has to hear kicks.
            if state.awake == 0 && !state.is_heard() {
                self.want(&mut state);
            }
            return Step::End;
        }
        self.step(&mut state, spell)
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: time.subsec_nanos().into(),
    }
}

impl State {
    /// See [`Shared::step`].
    fn step(&mut self, spell: &mut Spell, size: usize) -> Step {
        if self.ended {
            return Step::End;
        }
        let others = self.serving() > 1;
        if others && self.is_full(self.serving()) {
            self.awake -= 1;
            self.benched += 1;
            return Step::Bench;
        }
        if !self.is_heard() && spell.since_look >= VISITS_BETWEEN_LOOKS {
            return Step::Look;
        }
        let needless = others && (self.queue.is_quiet() || spell.is_idle());
        if !needless && let Some(pick) = self.queue.next() {
            return Step::Visit(pick);
        }
        self.awake -= 1;
        // Somebody who is awake takes kicks soon enough, if what they ask for is short.
        if others && self.visit_time < WORTH_WAKING {
            self.benched += 1;
            return Step::Bench;
        }
        Step::Sleep { surplus: self.workers.len() > size }
    }

    /// Forgets the worker that calls.
    fn dismiss(&mut self) {
        let me = thread::current().id();
        self.workers.retain(|worker| worker.thread.thread().id() != me);
    }

    /// Workers that get on.
    fn serving(&self) -> usize {
        self.awake.saturating_sub(self.stuck)
    }

    /// Whether so many workers are too many.
    fn is_full(&self, serving: usize) -> bool {
        self.crowd.limit().is_some_and(|limit| serving > limit)
    }

    /// Whether somebody sleeps until a kick.
    fn is_heard(&self) -> bool {
        self.awake + self.benched < self.workers.len()
    }

    /// Whether there is a worker too many.
    fn surplus(&self, size: usize) -> bool {
        self.workers.len().saturating_sub(self.stuck) > size
    }
}
