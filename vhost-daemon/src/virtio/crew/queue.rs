//! Whose turn it is: all rings of all guests, in one line.
//!
//! Owns: who rests, who waits, who is being served, and when a ring that was found empty is looked at again instead of
//! being put to rest. Does not own: threads, descriptors, what serving means. No lock: the crew has one around it.

use super::{Served, Visit};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often in a row an empty ring is looked at while others have work. A kick and the asking for it cost as much as
/// that many looks.
const LOOKS: u8 = 64;
/// How long empty rings are looked at when nobody has work, if that has been worth it lately: what it takes to fall asleep
/// and to be woken, twice, as a guest that waits for one answer at a time does it too before it asks again. With 20 us such
/// a guest and the crew had to wake each other for every request: two to four times slower.
const SPIN: Duration = Duration::from_micros(50);
/// After a look that took so long somebody else had the processor for a slice of time.
const TAKEN: Duration = Duration::from_micros(500);
/// Then nobody looks on for a while: who sleeps is let in at once when there is work, who uses up his share waits.
const PAUSE: Duration = Duration::from_millis(100);
/// How sure one can be that it is worth it.
const CREDIT_MAX: u8 = 8;
/// Where it was not, it is tried again when there was no work that often.
const PROBE: u8 = 32;

/// Names a ring; never used for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_u64(key: u64) -> Self {
        let [a, b, c, d, e, f, g, h] = key.to_be_bytes();
        Self { generation: u32::from_be_bytes([a, b, c, d]), index: u32::from_be_bytes([e, f, g, h]) }
    }
}

/// A ring in a worker's hands. It has to come back by [`Queue::after`] or [`Queue::rested`].
pub(super) struct Pick {
    pub(super) key: Key,
    pub(super) task: Arc<dyn Served>,
}

/// What is to be done with a ring after a visit.
pub(super) enum After {
    /// Nothing more.
    Settled,
    /// It is gone, and somebody waits to hear that.
    Left,
    /// It has to be put to rest; then [`Queue::rested`] takes it.
    Rest(Pick),
}

/// How much was done, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Visits to rings.
    pub(super) visits: u64,
    /// Visits that found nothing.
    pub(super) empty: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Rests,
    Waits,
    Served { again: bool },
}

struct Member {
    /// With the worker while it is served.
    task: Option<Arc<dyn Served>>,
    turn: Turn,
    looks: u8,
    /// What [`Queue::productive`] was when it was looked at last.
    seen: u64,
    leaving: bool,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    member: Option<Member>,
}

/// What is done when no ring has work: whether rings are looked at a little longer. A guest that asks again at once is
/// spared its kick, and a worker its sleep; with any other, nearly nothing is spent.
#[derive(Default)]
struct Quiet {
    /// Since when, if rings are looked at.
    since: Option<Instant>,
    /// Whether it was decided that they are to rest.
    over: bool,
    credit: u8,
    skipped: u8,
    /// Others want the processor until then.
    paused_until: Option<Instant>,
}

impl Quiet {
    /// There was work.
    fn end(&mut self) {
        if self.since.take().is_some() && !self.over {
            self.credit = CREDIT_MAX.min(self.credit + 1);
        }
        self.over = false;
    }

    /// Somebody says that there is work.
    fn interrupt(&mut self) {
        self.since = None;
        self.over = false;
    }

    /// No ring has work: whether to go on looking.
    fn lasts(&mut self, now: impl Fn() -> Instant) -> bool {
        if self.over {
            return false;
        }
        let Some(since) = self.since else {
            self.skipped = (self.skipped + 1) % PROBE;
            self.over = self.credit == 0 && self.skipped != 0;
            if !self.over {
                let now = now();
                self.over = self.paused_until.is_some_and(|until| now < until);
                self.since = (!self.over).then_some(now);
            }
            return !self.over;
        };
        let now = now();
        let looked = now.duration_since(since);
        if looked >= TAKEN {
            self.over = true;
            self.paused_until = now.checked_add(PAUSE);
        } else if looked >= SPIN {
            self.over = true;
            self.credit = self.credit.saturating_sub(1);
        }
        !self.over
    }
}

/// The line.
#[derive(Default)]
pub(super) struct Queue {
    slots: Vec<Slot>,
    free: Vec<u32>,
    line: VecDeque<Key>,
    members: usize,
    /// Visits that found something.
    productive: u64,
    quiet: Quiet,
    pub(super) counts: Counts,
}

impl Queue {
    /// Adds a ring, at rest.
    pub(super) fn enter(&mut self, task: Arc<dyn Served>) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let member = Member { task: Some(task), turn: Turn::Rests, looks: 0, seen: 0, leaving: false };
        let Some(slot) = self.slot(index) else { return Key { index, generation: 0 } };
        slot.member = Some(member);
        let key = Key { index, generation: slot.generation };
        self.members += 1;
        key
    }

    /// Rings.
    pub(super) fn members(&self) -> usize {
        self.members
    }

    /// Whether no ring has work.
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet.since.is_some() || self.quiet.over
    }

    /// Rings that wait.
    pub(super) fn waiting(&self) -> usize {
        self.line.len()
    }

    fn slot(&mut self, index: u32) -> Option<&mut Slot> {
        usize::try_from(index).ok().and_then(|i| self.slots.get_mut(i))
    }

    fn member(&mut self, key: Key) -> Option<&mut Member> {
        let slot = self.slot(key.index).filter(|slot| slot.generation == key.generation)?;
        slot.member.as_mut()
    }

    /// Takes a ring out. Returns whether a worker still has it, who hears of it afterwards.
    pub(super) fn leave(&mut self, key: Key) -> bool {
        let Some(member) = self.member(key) else { return false };
        member.leaving = true;
        match member.turn {
            Turn::Served { .. } => return true,
            Turn::Waits => self.line.retain(|k| *k != key),
            Turn::Rests => {}
        }
        self.clear(key);
        false
    }

    /// Whether a ring that was told to leave is still in a worker's hands.
    pub(super) fn is_leaving(&mut self, key: Key) -> bool {
        self.member(key).is_some_and(|member| member.leaving)
    }

    fn clear(&mut self, key: Key) {
        if let Some(slot) = self.slot(key.index) {
            slot.member = None;
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(key.index);
            self.members -= 1;
        }
    }

    /// Puts a ring in line, unless it is there, or is gone. Returns whether it was put there.
    pub(super) fn wake(&mut self, key: Key) -> bool {
        let Some(member) = self.member(key).filter(|member| !member.leaving) else { return false };
        match &mut member.turn {
            Turn::Rests => {
                member.turn = Turn::Waits;
                member.looks = 0;
                self.line.push_back(key);
                self.quiet.interrupt();
                true
            }
            Turn::Waits => false,
            Turn::Served { again } => {
                *again = true;
                false
            }
        }
    }

    /// The ring whose turn it is.
    pub(super) fn next(&mut self) -> Option<Pick> {
        while let Some(key) = self.line.pop_front() {
            let Some(member) = self.member(key) else { continue };
            member.turn = Turn::Served { again: false };
            if let Some(task) = member.task.take() {
                return Some(Pick { key, task });
            }
        }
        None
    }

    /// Takes a ring back after a visit.
    pub(super) fn after(&mut self, pick: Pick, visit: Visit, now: impl Fn() -> Instant) -> After {
        self.counts.visits += 1;
        match visit {
            Visit::More | Visit::Drained => {
                self.productive += 1;
                self.quiet.end();
            }
            Visit::Nothing | Visit::Stopped => self.counts.empty += 1,
        }
        let (productive, alone) = (self.productive, self.line.is_empty());
        let Pick { key, task } = pick;
        let Some(member) = self.member(key) else { return After::Settled };
        if member.leaving {
            self.clear(key);
            return After::Left;
        }
        let others_had_work = member.seen != productive;
        member.seen = productive;
        let again = match visit {
            Visit::More => {
                member.looks = 0;
                true
            }
            Visit::Drained => {
                member.looks = 0;
                true
            }
            Visit::Nothing if others_had_work && !alone => {
                member.looks += 1;
                member.looks < LOOKS
            }
            Visit::Nothing => self.quiet.lasts(now),
            Visit::Stopped => {
                member.task = Some(task);
                return self.settle(key, false);
            }
        };
        if !again {
            return After::Rest(Pick { key, task });
        }
        if let Some(member) = self.member(key) {
            member.task = Some(task);
        }
        self.settle(key, true)
    }

    /// Takes a ring back that was put to rest, or was found to have more.
    pub(super) fn rested(&mut self, pick: Pick, more: bool) -> After {
        let Pick { key, task } = pick;
        let Some(member) = self.member(key) else { return After::Settled };
        if member.leaving {
            self.clear(key);
            return After::Left;
        }
        member.task = Some(task);
        self.settle(key, more)
    }

    fn settle(&mut self, key: Key, again: bool) -> After {
        let Some(member) = self.member(key) else { return After::Settled };
        if again || member.turn == (Turn::Served { again: true }) {
            member.turn = Turn::Waits;
            self.line.push_back(key);
        } else {
            member.turn = Turn::Rests;
        }
        After::Settled
    }
}

#[cfg(test)]
mod tests {
    use super::super::Hand;
    use super::*;
    use std::cell::Cell;

    struct Nobody;

    impl Served for Nobody {
        fn visit(&self, _hand: &mut Hand) -> Visit {
            Visit::Nothing
        }

        fn rest(&self) -> bool {
            false
        }
    }

    fn queue_of(count: usize) -> (Queue, Vec<Key>) {
        let mut queue = Queue::default();
        let keys = (0..count).map(|_| queue.enter(Arc::new(Nobody))).collect();
        (queue, keys)
    }

    /// Takes the next ring and gives it back with what `visit` says; puts it to rest where that is wanted.
    fn turn(queue: &mut Queue, now: &Cell<Instant>, visit: impl FnOnce(Key) -> Visit) -> Option<Key> {
        let pick = queue.next()?;
        let key = pick.key;
        let visit = visit(key);
        if let After::Rest(pick) = queue.after(pick, visit, || now.get()) {
            assert!(matches!(queue.rested(pick, false), After::Settled));
        }
        Some(key)
    }

    #[test]
    fn a_ring_that_is_always_full_leaves_others_their_share() {
        let (mut queue, keys) = queue_of(4);
        let now = Cell::new(Instant::now());
        for key in &keys {
            queue.wake(*key);
        }
        let mut visits = [0; 4];
        for _ in 0..4000 {
            // The first has always more, the others are empty at every other look, and woken again.
            let odd = visits.iter().sum::<i32>() % 2 == 0;
            let greedy = keys[0];
            let got = turn(&mut queue, &now, |key| match key == greedy {
                true => Visit::More,
                false if odd => Visit::Drained,
                false => Visit::Nothing,
            });
            let at = keys.iter().position(|key| Some(*key) == got).unwrap();
            visits[at] += 1;
            queue.wake(keys[at]);
        }
        assert_eq!(visits, [1000; 4]);
    }

    #[test]
    fn an_empty_ring_is_looked_at_while_others_have_work_and_no_longer() {
        let (mut queue, keys) = queue_of(2);
        let now = Cell::new(Instant::now());
        queue.wake(keys[0]);
        queue.wake(keys[1]);
        let mut looks = 0;
        for _ in 0..1000 {
            let got = turn(&mut queue, &now, |key| match key == keys[0] {
                true => Visit::More,
                false => Visit::Nothing,
            });
            looks += u8::from(got == Some(keys[1]));
        }
        assert_eq!(looks, LOOKS);
        // Nobody has work: the busy one is looked at once more.
        assert_eq!(turn(&mut queue, &now, |_| Visit::Nothing), Some(keys[0]));
        while turn(&mut queue, &now, |_| Visit::Nothing).is_some() {
            now.set(now.get() + SPIN / 2);
        }
        assert_eq!(queue.waiting(), 0);
    }

    #[test]
    fn looking_on_has_to_be_worth_it() {
        let (mut queue, keys) = queue_of(1);
        let now = Cell::new(Instant::now());
        // A guest that comes back late: hardly a look.
        let mut looks = 0;
        for _ in 0..1000 {
            queue.wake(keys[0]);
            turn(&mut queue, &now, |_| Visit::Drained).unwrap();
            while turn(&mut queue, &now, |_| Visit::Nothing).is_some() {
                looks += 1;
                now.set(now.get() + SPIN / 10);
            }
        }
        assert!((1000..1500).contains(&looks), "{looks} looks for 1000 requests");
        // One that comes back at once: after a while it never sleeps.
        let mut woken = 0;
        for _ in 0..1000 {
            woken += usize::from(queue.wake(keys[0]));
            turn(&mut queue, &now, |_| Visit::Drained).unwrap();
            now.set(now.get() + SPIN / 10);
            turn(&mut queue, &now, |_| Visit::Nothing);
            now.set(now.get() + SPIN / 10);
        }
        assert!(woken < 100, "it was put to rest {woken} times");
    }

    #[test]
    fn nobody_looks_on_where_others_want_the_processor() {
        let (mut queue, keys) = queue_of(1);
        let now = Cell::new(Instant::now());
        let mut looks_of = |pause: Duration| {
            let mut looks = 0;
            queue.wake(keys[0]);
            turn(&mut queue, &now, |_| Visit::Drained).unwrap();
            // It has been worth it so far.
            queue.quiet.credit = CREDIT_MAX;
            while turn(&mut queue, &now, |_| Visit::Nothing).is_some() {
                looks += 1;
                now.set(now.get() + pause);
            }
            (looks, queue.quiet.credit)
        };
        let micros = Duration::from_micros;
        assert_eq!(looks_of(micros(1)), (51, CREDIT_MAX - 1), "in vain");
        assert_eq!(looks_of(TAKEN), (2, CREDIT_MAX), "late, which says nothing of the guest");
        for _ in 0..90 {
            assert_eq!(looks_of(PAUSE / 100), (1, CREDIT_MAX), "for a while");
        }
        looks_of(PAUSE / 10);
        assert_eq!(looks_of(micros(1)).0, 51, "not for ever");
    }

    #[test]
    fn a_kick_during_a_visit_is_not_lost() {
        let (mut queue, keys) = queue_of(1);
        let now = Cell::new(Instant::now());
        queue.wake(keys[0]);
        let pick = queue.next().unwrap();
        assert!(!queue.wake(keys[0]), "it is being served");
        queue.after(pick, Visit::Stopped, || now.get());
        assert_eq!(queue.waiting(), 1);
        let pick = queue.next().unwrap();
        let After::Rest(pick) = queue.after(pick, Visit::Nothing, || now.get()) else { return };
        queue.wake(keys[0]);
        queue.rested(pick, false);
        assert_eq!(queue.waiting(), 1, "the kick came while the guest was being asked for one");
    }

    #[test]
    fn who_has_left_is_not_served_and_its_key_is_nobody_elses() {
        let (mut queue, keys) = queue_of(3);
        let now = Cell::new(Instant::now());
        for key in &keys {
            queue.wake(*key);
        }
        let pick = queue.next().unwrap();
        assert!(queue.leave(keys[0]) && queue.is_leaving(keys[0]), "a worker has it");
        assert!(!queue.leave(keys[1]) && !queue.is_leaving(keys[1]));
        queue.wake(keys[0]);
        assert!(matches!(queue.after(pick, Visit::More, || now.get()), After::Left));
        assert!(!queue.is_leaving(keys[0]));
        let new = [queue.enter(Arc::new(Nobody)), queue.enter(Arc::new(Nobody))];
        assert!(new.iter().all(|key| !keys.contains(key)));
        assert!(!queue.wake(keys[0]) && !queue.wake(keys[1]), "a late kick of the old rings");
        assert_eq!((queue.waiting(), queue.members()), (1, 3));
        assert_eq!(Key::from_u64(new[0].to_u64()), new[0]);
    }
}
