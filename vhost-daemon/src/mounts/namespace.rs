//! What one socket's guests see: mounts at paths, and the directories that lead to them.
//!
//! Owns: which mounts there are, their indexes and generations, and changes of both while requests run. Requests read
//! the table of the moment without a lock; whoever changes it puts a new one in its place. Does not own: what a
//! request means ([`super::namespace_fs`]), when a mount may go.

use super::backend::{Backend, INODE_BITS, Place};
use super::counters::OpCounters;
use super::indexes::Indexes;
use super::path::MountPath;
use super::pseudo::Pseudo;
use crate::fuse::GuestFs;
use crate::fuse::abi::ROOT_NODE;
use arc_swap::ArcSwap;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A namespace. Share it in an `Arc`.
#[derive(Debug)]
pub struct Namespace {
    pub(super) table: ArcSwap<Table>,
    indexes: Mutex<Indexes>,
    /// Generations of what has no identity.
    nameless: AtomicU32,
    /// Places that mounts of a predecessor had, until they are made again.
    expected: Mutex<BTreeMap<MountPath, Place>>,
}

/// Everything that is mounted at one moment.
#[derive(Default)]
pub(super) struct Table {
    /// By index; the one at 0 is never there.
    slots: Vec<Option<Arc<Slot>>>,
    /// Indexes that were given out, here or by a predecessor.
    known: Vec<bool>,
    by_path: BTreeMap<MountPath, u8>,
    pub pseudo: Pseudo,
    root: Option<u8>,
}

/// One mount.
pub(super) struct Slot {
    pub place: Place,
    pub fs: Arc<dyn GuestFs>,
    /// Node id of its root.
    pub root: u64,
    pub counters: Arc<OpCounters>,
}

/// An index that a mount had which is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "texts", derive(serde::Serialize, serde::Deserialize))]
pub struct Rested {
    /// 1 to 255.
    pub index: u8,
    /// [`Place::generation`] of an image; nothing else has node ids that could be good again.
    pub generation: Option<u32>,
    /// Where it was mounted: the same image there has the same node ids again. Empty where that is not known.
    #[cfg_attr(feature = "texts", serde(default))]
    pub path: String,
}

impl Rested {
    /// Whether node ids of that mount would name files of something else if `place` were shown.
    #[must_use]
    pub fn meets(&self, place: Place) -> bool {
        self.index == place.index && self.generation != Some(place.generation)
    }
}

/// Why a namespace cannot be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// The path is taken.
    #[error("object or filesystem already exists")]
    Exists,
    /// Nothing is mounted there.
    #[error("object or filesystem doesn't exist")]
    NotMounted,
    /// All 255 indexes are taken.
    #[error("255 file systems are mounted, which is all that node ids have room for")]
    Full,
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("by_path", &self.by_path).finish_non_exhaustive()
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Namespace {
    /// An empty root directory.
    #[must_use]
    pub fn new() -> Self {
        let table = Table {
            slots: vec![None; 256],
            known: vec![false; 256],
            pseudo: Pseudo::new(std::iter::empty()),
            ..Table::default()
        };
        Self {
            table: ArcSwap::from_pointee(table),
            indexes: Mutex::new(Indexes::new()),
            nameless: AtomicU32::new(1),
            expected: Mutex::default(),
        }
    }

    /// Shows `backend` at `path`.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::Exists`], [`NamespaceError::Full`].
    pub fn mount(&self, path: &MountPath, backend: &dyn Backend) -> Result<(), NamespaceError> {
        let mut indexes = self.lock();
        let table = self.table.load_full();
        if table.by_path.contains_key(path) {
            return Err(NamespaceError::Exists);
        }
        let slot = self.place(&mut indexes, path, backend)?;
        self.table.store(Arc::new(table.with(|by_path, slots| {
            by_path.insert(path.clone(), slot.place.index);
            put(slots, slot.place.index, Some(Arc::new(slot)));
        })));
        Ok(())
    }

    /// Shows `backend` at `path` in place of what is there. Guests find one or the other, never neither.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::NotMounted`], [`NamespaceError::Full`].
    pub fn remount(&self, path: &MountPath, backend: &dyn Backend) -> Result<(), NamespaceError> {
        let mut indexes = self.lock();
        let table = self.table.load_full();
        let old = *table.by_path.get(path).ok_or(NamespaceError::NotMounted)?;
        // The same image again keeps its index and with it all node ids that guests hold.
        indexes.free(old);
        let slot = match self.place(&mut indexes, path, backend) {
            Ok(slot) => slot,
            Err(error) => {
                indexes.retake(old);
                return Err(error);
            }
        };
        self.table.store(Arc::new(table.with(|by_path, slots| {
            put(slots, old, None);
            by_path.insert(path.clone(), slot.place.index);
            put(slots, slot.place.index, Some(Arc::new(slot)));
        })));
        Ok(())
    }

    /// Shows what is at `path` no more. Requests that have begun end as if it were there.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::NotMounted`].
    pub fn umount(&self, path: &MountPath) -> Result<(), NamespaceError> {
        let mut indexes = self.lock();
        let table = self.table.load_full();
        let old = *table.by_path.get(path).ok_or(NamespaceError::NotMounted)?;
        indexes.free(old);
        self.table.store(Arc::new(table.with(|by_path, slots| {
            by_path.remove(path);
            put(slots, old, None);
        })));
        Ok(())
    }

    /// What is mounted where, with its index.
    #[must_use]
    pub fn mounts(&self) -> Vec<(MountPath, u8)> {
        self.table.load().by_path.iter().map(|(path, index)| (path.clone(), *index)).collect()
    }

    /// What is mounted where, with its place.
    #[must_use]
    pub fn places(&self) -> Vec<(MountPath, Place)> {
        let table = self.table.load();
        let all = table.by_path.iter();
        all.filter_map(|(path, index)| table.slot(*index).map(|slot| (path.clone(), slot.place))).collect()
    }

    /// Gives the next mount at `path` this place if its index is free and it is the same image: the one it had with a
    /// predecessor, whose node ids guests still hold. Node ids of an image that is not there any more become stale.
    pub fn expect(&self, path: &MountPath, place: Place) {
        // Whoever changes the table holds this, or one change would undo another.
        let _indexes = self.lock();
        let mut expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner);
        expected.insert(path.clone(), place);
        // Generations that are given later are new ones.
        self.nameless.fetch_max(place.generation.saturating_add(1), Ordering::Relaxed);
        self.remember(std::iter::once(place.index));
    }

    /// Indexes of mounts that are gone, the one that has rested longest first.
    #[must_use]
    pub fn rested(&self) -> Vec<Rested> {
        self.lock().rested()
    }

    /// Has indexes rest that mounts of a predecessor had: guests may hold node ids of them, which are stale. What is taken
    /// here stays as it is.
    pub fn rest(&self, rested: &[Rested]) {
        let mut indexes = self.lock();
        rested.iter().for_each(|rested| indexes.retire_known(rested));
        self.remember(rested.iter().map(|rested| rested.index));
    }

    /// Node ids of these indexes are stale while nothing is mounted with them. The caller holds the lock of changes.
    fn remember(&self, indexes: impl Iterator<Item = u8>) {
        let mut table = self.table.load().with(|_, _| {});
        for index in indexes {
            if let Some(known) = table.known.get_mut(usize::from(index)) {
                *known = true;
            }
        }
        self.table.store(Arc::new(table));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Indexes> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(
        &self,
        indexes: &mut Indexes,
        path: &MountPath,
        backend: &dyn Backend,
    ) -> Result<Slot, NamespaceError> {
        let identity = backend.identity();
        let expected = self.expected.lock().unwrap_or_else(PoisonError::into_inner).remove(path);
        let expected = expected.filter(|place| {
            // Another image there: to guests that hold node ids of the former they would name its files.
            if identity.is_some_and(|identity| generation_of(identity) != place.generation) {
                indexes.retire(place.index);
                return false;
            }
            indexes.take_exactly(place.index, path.as_str(), identity)
        });
        let index = match expected {
            Some(place) => place.index,
            None => indexes.take(path.as_str(), identity).ok_or(NamespaceError::Full)?,
        };
        let at_root = path.as_str() == "/";
        let generation = match (identity, expected) {
            (Some(identity), _) => generation_of(identity),
            (None, Some(place)) => place.generation,
            (None, None) => self.nameless.fetch_add(1, Ordering::Relaxed),
        };
        let place = Place { index, generation, at_root };
        let root = if at_root { ROOT_NODE } else { u64::from(index) << INODE_BITS | backend.root() };
        Ok(Slot { place, fs: backend.at(place), root, counters: backend.counters() })
    }
}

/// 32 bits of an identity, as many as guests compare. Not 0, which is what nodes without a generation have.
pub(super) fn generation_of(identity: u64) -> u32 {
    let folded = (identity ^ identity >> 32) & u64::from(u32::MAX);
    u32::try_from(folded).unwrap_or(1).max(1)
}

fn put(slots: &mut [Option<Arc<Slot>>], index: u8, slot: Option<Arc<Slot>>) {
    if let Some(place) = slots.get_mut(usize::from(index)) {
        *place = slot;
    }
}

impl Table {
    /// A table that is this one changed.
    fn with(&self, change: impl FnOnce(&mut BTreeMap<MountPath, u8>, &mut Vec<Option<Arc<Slot>>>)) -> Self {
        let (mut by_path, mut slots) = (self.by_path.clone(), self.slots.clone());
        change(&mut by_path, &mut slots);
        let known = self.known.iter().zip(&slots).map(|(known, slot)| *known || slot.is_some()).collect();
        let pseudo = Pseudo::new(by_path.iter().map(|(path, index)| (path, *index)));
        let root = by_path.get(&MountPath::root()).copied();
        Self { slots, known, by_path, pseudo, root }
    }

    /// The mount at `/`, which is all that guests see then.
    #[inline]
    pub fn root(&self) -> Option<&Slot> {
        self.slot(self.root?)
    }

    /// The mount with an index.
    #[inline]
    pub fn slot(&self, index: u8) -> Option<&Slot> {
        self.slots.get(usize::from(index))?.as_deref()
    }

    /// Whether a mount had the index that is gone now.
    pub fn was_known(&self, index: u8) -> bool {
        self.known.get(usize::from(index)).copied().unwrap_or(false)
    }

    /// All mounts.
    pub fn all(&self) -> impl Iterator<Item = &Slot> {
        self.slots.iter().filter_map(Option::as_deref)
    }
}
