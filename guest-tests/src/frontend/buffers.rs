//! Buffers for requests and replies in guest memory: power-of-two classes with free lists.
//!
//! Keeps addresses only; the bytes belong to [`super::memory`].

use super::error::{FrontendError, Result};

/// The smallest class, in bytes.
const MIN: usize = 64;

/// A buffer in guest memory. Given back with [`Buffers::free`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address.
    pub gpa: u64,
    /// Usable bytes: what was asked for rounded up to its class.
    pub capacity: u32,
}

/// Hands out buffers from one range of guest addresses.
#[derive(Debug)]
pub struct Buffers {
    next: u64,
    end: u64,
    free: [Vec<u64>; 32],
}

impl Buffers {
    /// Buffers from `start..end`, whole pages of one region.
    #[must_use]
    pub fn new(start: u64, end: u64) -> Self {
        Self { next: start, end, free: std::array::from_fn(|_| Vec::new()) }
    }

    /// A buffer of at least `len` bytes; those of a page and more are page aligned.
    ///
    /// # Errors
    /// When the range is used up or `len` is over 1 GiB.
    pub fn alloc(&mut self, len: usize) -> Result<Buffer> {
        let capacity = len
            .max(MIN)
            .checked_next_power_of_two()
            .and_then(|c| u32::try_from(c).ok())
            .filter(|c| *c <= 1 << 30)
            .ok_or(FrontendError::NoBuffer(len))?;
        let class = capacity.trailing_zeros() as usize;
        if let Some(gpa) = self.free[class].pop() {
            return Ok(Buffer { gpa, capacity });
        }
        let align = u64::from(capacity.min(4096));
        let gpa = self.next.next_multiple_of(align);
        let end = gpa + u64::from(capacity);
        if end > self.end {
            return Err(FrontendError::NoBuffer(len));
        }
        self.next = end;
        Ok(Buffer { gpa, capacity })
    }

    /// Takes a buffer back.
    pub fn free(&mut self, buffer: Buffer) {
        self.free[buffer.capacity.trailing_zeros() as usize].push(buffer.gpa);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_come_back() {
        let mut pool = Buffers::new(0x1000, 0x20_0000);
        let mut held: Vec<Buffer> = [1, 64, 65, 4096, 100_000, 17].map(|n| pool.alloc(n).unwrap()).into();
        held.sort_by_key(|b| b.gpa);
        for pair in held.windows(2) {
            assert!(pair[0].gpa + u64::from(pair[0].capacity) <= pair[1].gpa);
        }
        let big = pool.alloc(1 << 20);
        assert!(big.is_err() || big.unwrap().gpa.is_multiple_of(4096));
        let first = held[0];
        pool.free(first);
        assert_eq!(pool.alloc(first.capacity as usize).unwrap(), first);
    }
}
