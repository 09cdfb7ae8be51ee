//! Whose turn it is: all rings of all guests, in one line.
//!
//! Owns: who rests, who waits, who is being served, and when a ring that was found empty is looked at again instead of
//! being put to rest. Does not own: threads, descriptors, what serving means. No lock: the crew has one around it.

use super::{Served, Visit};
use std::collections::VecDeque;
use std::sync::Arc;

/// How often in a row an empty ring is looked at while others have work. A kick and the asking for it cost as much as
/// that many looks.
const LOOKS: u8 = 64;

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

/// The line.
#[derive(Default)]
pub(super) struct Queue {
    slots: Vec<Slot>,
    free: Vec<u32>,
    line: VecDeque<Key>,
    members: usize,
    /// Visits that found something.
    productive: u64,
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
    pub(super) fn after(&mut self, pick: Pick, visit: Visit) -> After {
        self.counts.visits += 1;
        match visit {
            Visit::More | Visit::Drained => self.productive += 1,
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
                !alone
            }
            Visit::Nothing if others_had_work && !alone && member.looks < LOOKS => {
                member.looks += 1;
                true
            }
            Visit::Nothing => false,
            Visit::Stopped => {
                member.task = Some(task);
                return self.settle(key, false);
            }
        };
        if !again {
            return After::Rest(Pick { key, task });
        }
        member.task = Some(task);
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
