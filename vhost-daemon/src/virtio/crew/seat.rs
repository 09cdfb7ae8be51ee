//! A ring's place in the crew, as the ring itself has it.
//!
//! Owns: how a ring is woken, which kick descriptor wakes it, and its end. Does not own: whose turn it is.

use super::Shared;
use super::queue::Key;
use crate::interrupt;
use crate::virtio::call::is_watchable;
use rustix::event::epoll;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// How long the end of a ring waits for the worker that has it.
const LEAVE_TIME: Duration = Duration::from_secs(5);

/// A ring's place in the crew.
#[derive(Debug)]
pub(in crate::virtio) struct Seat {
    shared: Arc<Shared>,
    key: Key,
}

impl Seat {
    pub(super) fn new(shared: Arc<Shared>, key: Key) -> Self {
        Self { shared, key }
    }

    #[cfg(test)]
    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Has the ring visited soon.
    pub(in crate::virtio) fn wake(&self) {
        let mut state = self.shared.lock();
        let asleep = state.queue.wake(self.key) && state.awake <= state.stuck;
        drop(state);
        if asleep {
            self.shared.ring_bell();
        }
    }

    /// Has the ring visited whenever somebody writes to `kick`, which is never read: every write wakes, and a front-end
    /// that reads its own descriptor cannot make a worker wait. The file has to stay open until [`Seat::unwatch`].
    ///
    /// # Errors
    ///
    /// That of epoll_ctl(2); `EPERM` for what is no event descriptor or pipe.
    pub(in crate::virtio) fn watch(&self, kick: &File) -> io::Result<()> {
        if !is_watchable(kick) {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let data = epoll::EventData::new_u64(self.key.to_u64());
        Ok(epoll::add(&self.shared.epoll, kick.as_fd(), data, flags)?)
    }

    /// Ends [`Seat::watch`].
    pub(in crate::virtio) fn unwatch(&self, kick: &File) {
        let _ = epoll::delete(&self.shared.epoll, kick.as_fd());
    }

    /// Takes the ring out. When this returns no worker has it, unless one hangs in the kernel.
    pub(in crate::virtio) fn leave(&self) {
        let shared = &self.shared;
        let mut state = shared.lock();
        if !state.queue.leave(self.key) {
            return;
        }
        let deadline = Instant::now() + LEAVE_TIME;
        while state.queue.is_leaving(self.key) {
            if Instant::now() >= deadline {
                tracing::warn!("a request hangs in the kernel; its worker is left to it");
                return;
            }
            state = shared
                .left
                .wait_timeout(state, Duration::from_millis(20))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            // A front-end may fill the counter that a worker is about to write to.
            for worker in state.workers.iter().filter(|w| w.progress.is_calling(self.key)) {
                interrupt::thread(&worker.thread);
            }
        }
    }
}
