//! A bitmap that threads read and set without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// One bit a chunk.
#[derive(Debug)]
pub struct AtomicBitmap {
    words: Box<[AtomicU64]>,
    len: u32,
}

impl AtomicBitmap {
    /// `len` zeros.
    #[must_use]
    pub fn new(len: u32) -> Self {
        let words = (0..len.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { words, len }
    }

    /// Number of bits.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there are no bits at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bit `i`; false behind the end. What was written before [`set`](Self::set) is visible after this.
    #[inline]
    #[must_use]
    pub fn get(&self, i: u32) -> bool {
        self.words.get((i / 64) as usize).is_some_and(|w| w.load(Ordering::Acquire) >> (i % 64) & 1 == 1)
    }

    /// Sets bit `i`; nothing happens behind the end.
    pub fn set(&self, i: u32) {
        if i < self.len
            && let Some(word) = self.words.get((i / 64) as usize)
        {
            word.fetch_or(1 << (i % 64), Ordering::AcqRel);
        }
    }

    /// Clears bit `i`.
    pub fn clear(&self, i: u32) {
        if let Some(word) = self.words.get((i / 64) as usize) {
            word.fetch_and(!(1 << (i % 64)), Ordering::AcqRel);
        }
    }

    /// Clears all bits.
    pub fn clear_all(&self) {
        for word in &self.words {
            word.store(0, Ordering::Release);
        }
    }

    /// Number of bits set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.load(Ordering::Relaxed).count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_apart_and_bounded() {
        let bits = AtomicBitmap::new(70);
        for i in [0, 63, 64, 69] {
            assert!(!bits.get(i));
            bits.set(i);
            assert!(bits.get(i));
        }
        assert!(!bits.get(1) && !bits.get(65));
        bits.set(70);
        bits.set(u32::MAX);
        assert!(!bits.get(70) && !bits.get(u32::MAX));
        assert_eq!(bits.count(), 4);
        bits.clear(63);
        assert!(!bits.get(63) && bits.get(64));
        bits.clear_all();
        assert_eq!(bits.count(), 0);
    }
}
