//! Descriptors that guests have the daemon hold: for open files, owners of locks, and nodes.
//!
//! Owns: how many each may hold. One process serves all guests, fetches for all images and answers the API, under one limit
//! of open files: a guest that opens files and never closes them must stand in nobody's way. A quarter of the limit is for
//! everything else. Of the rest each guest may hold up to three times what is still free: alone three quarters of it, and
//! however many hold all they may, something is left for the next. Does not own: the descriptors.

use super::os;
use crate::log_limit::LogLimit;
use rustix::process::{Resource, getrlimit};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What all guests of the process hold.
static TOTAL: AtomicUsize = AtomicUsize::new(0);
/// What a guest may hold for each descriptor that is free.
const SHARE: usize = 3;

/// What one guest may hold.
#[derive(Debug)]
pub(super) struct Share {
    held: Arc<AtomicUsize>,
    /// For all guests together.
    budget: usize,
    log: LogLimit,
}

/// One descriptor of a share, for as long as this lives.
#[derive(Debug)]
pub(super) struct Held(Arc<AtomicUsize>);

impl Share {
    /// An empty one, under the limit that the process has now.
    pub(super) fn new() -> Self {
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        let budget = limit.map_or(usize::MAX, |limit| limit - limit / 4);
        Self { held: Arc::default(), budget, log: LogLimit::default() }
    }

    /// How many it may hold at the moment.
    fn allowed(&self) -> usize {
        let free = self.budget.saturating_sub(TOTAL.load(Ordering::Relaxed));
        free.saturating_mul(SHARE)
    }

    /// Whether half of what it may hold is gone: then who can do without should.
    pub(super) fn is_scarce(&self) -> bool {
        self.held.load(Ordering::Relaxed).saturating_mul(2) >= self.allowed()
    }

    /// One more.
    ///
    /// # Errors
    ///
    /// `ENFILE`: the guest holds all that it may.
    pub(super) fn take(&self) -> io::Result<Held> {
        let (held, allowed) = (self.held.load(Ordering::Relaxed), self.allowed());
        if held >= allowed {
            self.log.warn(|| {
                format!(
                    "a guest holds {held} descriptors of files that are passed through and gets no more (ENFILE): all guests \
                     together may hold {} under this limit of open files (--rlimit-nofile)",
                    self.budget
                )
            });
            return Err(os(libc::ENFILE));
        }
        self.held.fetch_add(1, Ordering::Relaxed);
        TOTAL.fetch_add(1, Ordering::Relaxed);
        Ok(Held(Arc::clone(&self.held)))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        TOTAL.fetch_sub(1, Ordering::Relaxed);
    }
}
