//! Room for what waits on the rings of one socket.
//!
//! Owns: how much there is. A front-end says how large its rings are and a guest how scattered its requests: all of them
//! waiting at once, for a store or a disk that hangs, must not be what the daemon's memory is for. Does not own: requests.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes that waiting requests of one socket may take here. Eight rings of 1,024 requests of a MiB in pages each take half.
const BYTES_MAX: usize = 64 << 20;

/// The room of one socket's connection.
#[derive(Debug, Default)]
pub(super) struct Lot(AtomicUsize);

/// A part of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Space {
    lot: Arc<Lot>,
    bytes: usize,
}

impl Lot {
    /// Takes `bytes`, if they are left.
    pub(super) fn take(self: &Arc<Self>, bytes: usize) -> Option<Space> {
        let space = Space { lot: Arc::clone(self), bytes };
        // What is too much is given back by the drop.
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        (before.saturating_add(bytes) <= BYTES_MAX).then_some(space)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.lot.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_full_has_room_again_when_something_leaves() {
        let lot: Arc<Lot> = Arc::default();
        let first = lot.take(BYTES_MAX - 10).unwrap();
        assert!(lot.take(11).is_none());
        let rest = lot.take(10).unwrap();
        assert!(lot.take(1).is_none());
        drop(first);
        assert!(lot.take(BYTES_MAX).is_none());
        let _again = lot.take(BYTES_MAX - 10).unwrap();
        drop(rest);
        assert!(lot.take(10).is_some());
    }
}
