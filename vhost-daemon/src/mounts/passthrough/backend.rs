//! A directory as something to mount: opened once, shown at as many places as there are guests.
//!
//! Owns: the directory, and a [`Passthrough`] for each place. Does not own: what that does.

use super::{Passthrough, PassthroughError, PassthroughOptions, ROOT};
use crate::fuse::GuestFs;
use crate::mounts::{Backend, OpCounters, Place};
use rustix::fs::{Mode, OFlags};
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// A directory that can be mounted. Each place has nodes, handles and references of its own: a guest cannot reach
/// another's, and the end of its session ends its own alone.
pub struct PassthroughBackend {
    root: Arc<OwnedFd>,
    proc: Arc<OwnedFd>,
    options: PassthroughOptions,
    shown: Mutex<Vec<Weak<Passthrough>>>,
    counters: Arc<OpCounters>,
}

impl fmt::Debug for PassthroughBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PassthroughBackend").field("options", &self.options).finish_non_exhaustive()
    }
}

impl PassthroughBackend {
    /// Opens `dir`. A symlink is followed here and never again. `index`, `generation` and `at_root` of the options
    /// are each place's.
    ///
    /// # Errors
    ///
    /// See [`PassthroughError`].
    pub fn open(dir: &Path, options: PassthroughOptions) -> Result<Self, PassthroughError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty())
            .map_err(|e| PassthroughError::Open { path: dir.to_owned(), source: e.into() })?;
        let proc = rustix::fs::open("/proc/self/fd", flags, Mode::empty())
            .map_err(|e| PassthroughError::Proc { source: e.into() })?;
        Ok(Self {
            root: Arc::new(root),
            proc: Arc::new(proc),
            options,
            shown: Mutex::default(),
            counters: Arc::default(),
        })
    }

    /// The directory as the root of a namespace of its own.
    #[must_use]
    pub fn alone(&self) -> Arc<Passthrough> {
        self.shown_at(Place { index: 1, generation: 0, at_root: true })
    }

    fn shown_at(&self, place: Place) -> Arc<Passthrough> {
        let options = PassthroughOptions { place, ..self.options.clone() };
        let shown = Arc::new(Passthrough::new(Arc::clone(&self.root), Arc::clone(&self.proc), options));
        let mut all = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|weak| weak.strong_count() > 0);
        all.push(Arc::downgrade(&shown));
        shown
    }
}

impl Backend for PassthroughBackend {
    fn at(&self, place: Place) -> Arc<dyn GuestFs> {
        self.shown_at(place)
    }

    fn root(&self) -> u64 {
        ROOT
    }

    /// Files may be others after any restart.
    fn identity(&self) -> Option<u64> {
        None
    }

    fn is_idle(&self) -> bool {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.iter().all(|weak| weak.strong_count() == 0)
    }

    fn shutdown(&self) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for passthrough in shown.iter().filter_map(Weak::upgrade) {
            passthrough.end_waits();
        }
    }

    fn counters(&self) -> Arc<OpCounters> {
        Arc::clone(&self.counters)
    }
}
