//! Whose turn it is at a mount point.
//!
//! Owns: that mounts and umounts at one path come one after the other, while those at other paths need not wait for a
//! storage that hangs. Does not own: what is mounted.

use crate::mounts::MountPath;
use std::collections::HashSet;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The paths at which something is changed just now.
#[derive(Debug, Default)]
pub(super) struct Turns {
    busy: Mutex<HashSet<MountPath>>,
    freed: Condvar,
}

/// The right to change what is mounted at a path, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    path: &'a MountPath,
}

impl Turns {
    /// Waits for the right to change what is at `path`.
    pub(super) fn take<'a>(&'a self, path: &'a MountPath) -> Turn<'a> {
        let mut busy = self.lock();
        while busy.contains(path) {
            busy = self.freed.wait(busy).unwrap_or_else(PoisonError::into_inner);
        }
        busy.insert(path.clone());
        Turn { turns: self, path }
    }

    /// Waits until nothing is being changed; false when that takes longer than `patience`.
    pub(super) fn wait_for_all(&self, patience: Duration) -> bool {
        let waited = self.freed.wait_timeout_while(self.lock(), patience, |busy| !busy.is_empty());
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<MountPath>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.turns.lock().remove(self.path);
        self.turns.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn paths_wait_for_themselves_only() {
        let turns = Turns::default();
        let [a, b] = ["/a", "/b"].map(|path| MountPath::parse(path).unwrap());
        let first = turns.take(&a);
        drop(turns.take(&b));
        assert!(!turns.wait_for_all(Duration::from_millis(10)));
        let (tx, rx) = mpsc::channel();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let _second = turns.take(&a);
                tx.send(()).unwrap();
            });
            rx.recv_timeout(Duration::from_millis(50)).unwrap_err();
            drop(first);
            rx.recv_timeout(Duration::from_secs(20)).unwrap();
        });
        assert!(turns.wait_for_all(Duration::from_secs(20)));
    }
}
