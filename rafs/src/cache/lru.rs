//! Decoded units in memory, for blobs without a cache file.

use crate::blob::UnitId;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A number that stands for a blob as one image sees it, and a unit of it.
type Key = (u64, UnitId);

/// Least recently used units go when the bound is reached.
#[derive(Debug)]
pub struct UnitLru {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: usize,
    clock: u64,
    units: HashMap<Key, (u64, Arc<Vec<u8>>)>,
    by_age: BTreeMap<u64, Key>,
}

impl UnitLru {
    /// A cache of at most `limit` bytes of plain data.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A unit, which becomes the youngest.
    #[must_use]
    pub fn get(&self, blob: u64, unit: UnitId) -> Option<Arc<Vec<u8>>> {
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        let (age, plain) = state.units.get_mut(&(blob, unit))?;
        let old = std::mem::replace(age, now);
        let plain = Arc::clone(plain);
        state.by_age.remove(&old);
        state.by_age.insert(now, (blob, unit));
        Some(plain)
    }

    /// Keeps a verified unit, unless it alone is over half the bound.
    pub fn put(&self, blob: u64, unit: UnitId, plain: &[u8]) {
        if plain.len() > self.limit / 2 {
            return;
        }
        let mut state = self.state();
        state.clock += 1;
        let now = state.clock;
        if let Some((age, old)) = state.units.insert((blob, unit), (now, Arc::new(plain.to_vec()))) {
            state.by_age.remove(&age);
            state.bytes -= old.len();
        }
        state.by_age.insert(now, (blob, unit));
        state.bytes += plain.len();
        while state.bytes > self.limit
            && let Some((_, key)) = state.by_age.pop_first()
        {
            if let Some((_, old)) = state.units.remove(&key) {
                state.bytes -= old.len();
            }
        }
    }

    /// Bytes held.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChunkIndex;

    #[test]
    fn bounded_and_least_recently_used_goes() {
        let lru = UnitLru::new(100);
        let id = |i| UnitId::Chunk(ChunkIndex(i));
        for i in 0..4 {
            lru.put(0, id(i), &[1; 30]);
            assert!(lru.get(0, id(0)).is_some(), "used each time");
        }
        assert_eq!(lru.bytes(), 90);
        assert!(lru.get(0, id(1)).is_none());
        assert!(lru.get(1, id(0)).is_none());
        lru.put(0, id(0), &[2; 10]);
        assert_eq!(lru.bytes(), 70);
        assert_eq!(lru.get(0, id(0)).unwrap().as_slice(), [2; 10]);
        lru.put(0, id(9), &[0; 51]);
        assert!(lru.get(0, id(9)).is_none());
        assert_eq!(lru.bytes(), 70);
    }
}
