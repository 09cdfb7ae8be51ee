//! Which mount gets which index, the top byte of its node ids.
//!
//! Owns: the choice. It is a function of the mount's path where possible, so that node ids are the same after a restart.
//! An index that something else had is given again last, and the one that has rested longest first: a guest may hold
//! node ids of a mount for as long as it likes after the mount is gone. Does not own: mounts.

use super::namespace::{Rested, generation_of};

/// The index of a mount at `/`.
const ROOT_INDEX: u8 = 1;
/// Indexes there are: 1 ..= 255.
const INDEXES: usize = 255;

/// What became of each index so far.
#[derive(Clone, Debug)]
pub(super) struct Indexes {
    slots: Vec<Slot>,
    clock: u64,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    /// Who has it, or had it last.
    owner: Option<Owner>,
    taken: bool,
    /// When it was given back.
    freed: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Owner {
    path: String,
    who: Who,
}

/// What a mount was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// An image, by its identity.
    Image(u64),
    /// An image of a predecessor, by the generation of its nodes.
    Former(u32),
    /// Something that is never the same again.
    Nameless,
}

impl Who {
    fn of(identity: Option<u64>) -> Self {
        identity.map_or(Self::Nameless, Self::Image)
    }

    fn generation(self) -> Option<u32> {
        match self {
            Self::Image(identity) => Some(generation_of(identity)),
            Self::Former(generation) => Some(generation),
            Self::Nameless => None,
        }
    }
}

impl Owner {
    /// Whether guests that hold node ids of this may find those of `path` and `identity` under them.
    fn is(&self, path: &str, identity: Option<u64>) -> bool {
        let Some(identity) = identity else { return false };
        let same = match self.who {
            Who::Image(was) => was == identity,
            Who::Former(generation) => generation == generation_of(identity),
            Who::Nameless => false,
        };
        same && self.path == path
    }
}

impl Indexes {
    pub(super) fn new() -> Self {
        Self { slots: vec![Slot::default(); INDEXES], clock: 0 }
    }

    /// An index for `path`; `None` when all are taken.
    pub(super) fn take(&mut self, path: &str, identity: Option<u64>) -> Option<u8> {
        let order = || {
            let first = usize::from(preferred(path)) - 1;
            (0..INDEXES).map(move |n| (first + n) % INDEXES)
        };
        let slot = |at: usize| self.slots.get(at);
        let same = order().find(|at| {
            slot(*at).is_some_and(|s| !s.taken && s.owner.as_ref().is_some_and(|o| o.is(path, identity)))
        });
        let fresh = || order().find(|at| slot(*at).is_some_and(|s| s.owner.is_none()));
        let rested = || {
            let free = order().filter(|at| slot(*at).is_some_and(|s| !s.taken));
            free.min_by_key(|at| slot(*at).map_or(u64::MAX, |s| s.freed))
        };
        let at = same.or_else(fresh).or_else(rested)?;
        let slot = self.slots.get_mut(at)?;
        slot.owner = Some(Owner { path: path.to_owned(), who: Who::of(identity) });
        slot.taken = true;
        u8::try_from(at + 1).ok()
    }

    /// Takes one index; false when it is taken or there is no such.
    pub(super) fn take_exactly(&mut self, index: u8, path: &str, identity: Option<u64>) -> bool {
        let slot = self.slots.get_mut(usize::from(index).wrapping_sub(1)).filter(|slot| !slot.taken);
        let Some(slot) = slot else { return false };
        slot.owner = Some(Owner { path: path.to_owned(), who: Who::of(identity) });
        slot.taken = true;
        true
    }

    /// Has an index rest that something else had which is not known here.
    pub(super) fn retire(&mut self, index: u8) {
        self.retire_known(&Rested { index, generation: None, path: String::new() });
    }

    /// Has an index rest that something had which is gone.
    pub(super) fn retire_known(&mut self, rested: &Rested) {
        self.clock += 1;
        let who = rested.generation.map_or(Who::Nameless, Who::Former);
        let slot = self.slots.get_mut(usize::from(rested.index).wrapping_sub(1)).filter(|slot| !slot.taken);
        if let Some(slot) = slot {
            let owner = Owner { path: rested.path.clone(), who };
            *slot = Slot { owner: Some(owner), taken: false, freed: self.clock };
        }
    }

    /// Indexes that something had and nothing has now, the one that has rested longest first, and what had them last.
    pub(super) fn rested(&self) -> Vec<Rested> {
        let mut rested: Vec<_> = (1..=u8::MAX)
            .zip(&self.slots)
            .filter(|(_, slot)| !slot.taken)
            .filter_map(|(index, slot)| Some((slot.freed, index, slot.owner.as_ref()?)))
            .collect();
        rested.sort_unstable_by_key(|(freed, index, _)| (*freed, *index));
        let all = rested.into_iter();
        all.map(|(_, index, owner)| Rested {
            index,
            generation: owner.who.generation(),
            path: owner.path.clone(),
        })
        .collect()
    }

    /// Undoes [`Indexes::free`] when nothing else was taken since.
    pub(super) fn retake(&mut self, index: u8) {
        if let Some(slot) = self.slots.get_mut(usize::from(index).wrapping_sub(1)) {
            slot.taken = true;
        }
    }

    /// Gives an index back.
    pub(super) fn free(&mut self, index: u8) {
        self.clock += 1;
        if let Some(slot) = self.slots.get_mut(usize::from(index).wrapping_sub(1)) {
            slot.taken = false;
            slot.freed = self.clock;
        }
    }
}

/// Where the search for an index begins.
fn preferred(path: &str) -> u8 {
    if path == "/" {
        return ROOT_INDEX;
    }
    let hash = super::pseudo::hash(0, path.as_bytes());
    // 2 ..= 255: the root's own is left to it as long as possible.
    u8::try_from(hash % 254).unwrap_or(0).saturating_add(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_after_a_restart_and_for_the_same_image() {
        let take = || {
            let mut indexes = Indexes::new();
            ["/", "/a", "/rafs/1/lowerdir"].map(|path| indexes.take(path, Some(7)).unwrap())
        };
        assert_eq!(take(), take());
        assert_eq!(take()[0], 1);
        let mut indexes = Indexes::new();
        let first = indexes.take("/a", Some(7)).unwrap();
        indexes.free(first);
        assert_eq!(indexes.take("/a", Some(7)), Some(first), "the same image again");
        indexes.free(first);
        let other = indexes.take("/a", Some(8)).unwrap();
        assert_ne!(other, first, "guests may still hold nodes of the one before");
        indexes.free(other);
        let nameless = indexes.take("/a", None).unwrap();
        indexes.free(nameless);
        assert_ne!(indexes.take("/a", None), Some(nameless));
    }

    #[test]
    fn all_255_and_then_the_longest_rested() {
        let mut indexes = Indexes::new();
        let mut taken: Vec<u8> = (0..255).map(|n| indexes.take(&format!("/{n}"), Some(n)).unwrap()).collect();
        assert_eq!(indexes.take("/more", Some(1)), None);
        for index in [9, 200, 30] {
            indexes.free(index);
        }
        assert_eq!(indexes.take("/more", Some(1)), Some(9));
        assert_eq!(indexes.take("/more2", Some(1)), Some(200));
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 255);
    }

    #[test]
    fn what_rests_goes_on_resting_elsewhere() {
        let mut before = Indexes::new();
        let [a, b, c] = ["/a", "/b", "/c"].map(|path| before.take(path, Some(1)).unwrap());
        before.free(b);
        before.free(a);
        let resting =
            |indexes: &Indexes| -> Vec<u8> { indexes.rested().iter().map(|rested| rested.index).collect() };
        assert_eq!(resting(&before), [b, a]);
        let mut after = Indexes::new();
        assert!(after.take_exactly(c, "/c", Some(1)));
        before.rested().iter().for_each(|rested| after.retire_known(rested));
        after.retire(c);
        assert_eq!(after.rested(), before.rested(), "one that is taken does not rest");
        let given: Vec<u8> = (0..252).map(|n| after.take(&format!("/{n}"), Some(n)).unwrap()).collect();
        assert!(!given.contains(&a) && !given.contains(&b), "while there are others");
        assert_eq!(after.take("/more", Some(1)), Some(b));
    }

    #[test]
    fn an_image_that_comes_back_elsewhere_has_the_index_that_it_had() {
        let mut before = Indexes::new();
        // Not the first choice of its path, which something else has.
        let other = before.take("/a", Some(2)).unwrap();
        let index = before.take("/a", Some(1)).unwrap();
        assert_ne!(other, index);
        before.free(index);
        let mut after = Indexes::new();
        before.rested().iter().for_each(|rested| after.retire_known(rested));
        assert_ne!(after.clone().take("/a", Some(3)), Some(index), "another image");
        assert_ne!(after.clone().take("/b", Some(1)), Some(index), "another path");
        assert_ne!(after.clone().take("/a", None), Some(index), "a directory");
        assert_eq!(after.take("/a", Some(1)), Some(index));
        assert_eq!(after.take("/a", Some(1)).map(|again| again == index), Some(false), "it is taken");
    }
}
