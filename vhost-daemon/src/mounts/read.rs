//! READ of an image's file: in place when everything is here, parked when anything is not.
//!
//! Owns: the decision, and the way back from the fetch side to the guest. Does not own: what "here" means
//! (`rafs::reader`).

use super::backlog::{Pass, Wanted};
use super::counters::OpCounters;
use super::rafs_mount::{RafsMount, Shared, os};
use crate::fuse::{GuestFs, ParkedRead, ReadIo, ReadStart};
use rafs::image::{FileKind, Inode};
use rafs::reader::{ReadError, ReadSink, Readiness, Run};
use std::cell::RefCell;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Largest READ, bytes. INIT agrees on 1 MiB; a guest that asks for more than this made it up.
const READ_MAX: u64 = 16 << 20;
/// Smallest run that is lent to the transport instead of copied to it, bytes: below that the bookkeeping costs more
/// than the copy.
const LEND_MIN: u32 = 32 << 10;

thread_local! {
    /// The runs of one read; kept per ring worker so that a hot read allocates nothing.
    static RUNS: RefCell<Vec<Run>> = RefCell::new(Vec::with_capacity(64));
}

impl RafsMount {
    /// Starts a read (guest-view.md section 4).
    pub(super) fn read_file(
        &self,
        node: u64,
        offset: u64,
        size: u32,
        io: &mut dyn ReadIo,
    ) -> io::Result<ReadStart> {
        let inode = self.inode(node)?;
        let started = match self.start(&inode, offset, size, io) {
            // Confirmed when it is answered.
            Ok(ReadStart::Parked) => Ok(ReadStart::Parked),
            answered => self.confirm().and(answered),
        };
        if let Some(files) = self.shared.files.get() {
            let wanted = inode.size.saturating_sub(offset).min(u64::from(size));
            files.note(inode.number.0, started.is_ok().then_some(wanted));
        }
        started
    }

    fn start(&self, inode: &Inode, offset: u64, size: u32, io: &mut dyn ReadIo) -> io::Result<ReadStart> {
        match inode.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(os(libc::EISDIR)),
            _ => return Err(os(libc::EINVAL)),
        }
        let wanted = inode.size.saturating_sub(offset).min(u64::from(size));
        if wanted == 0 {
            return Ok(ReadStart::Done(0));
        }
        if wanted > READ_MAX || wanted > io.room() as u64 {
            return Err(os(libc::EINVAL));
        }
        let len = u32::try_from(wanted).map_err(|_| os(libc::EINVAL))?;
        RUNS.with_borrow_mut(|runs| {
            match self.shared.reader.plan(inode, offset, len, runs).map_err(|e| self.read_error(&e))? {
                Readiness::Ready => {
                    if let Some(done) = self.read_runs(runs, io)? {
                        return Ok(ReadStart::Done(done));
                    }
                }
                Readiness::Pending => {}
            }
            self.park(inode, offset, len, io)
        })
    }

    /// Reads runs in place. `None` when a part of them is not in memory, or no longer there: then the whole read is parked.
    fn read_runs(&self, runs: &[Run], io: &mut dyn ReadIo) -> io::Result<Option<usize>> {
        let file = |run: &Run| self.shared.reader.file(run.blob).ok_or_else(|| os(libc::EIO));
        if runs.iter().all(|run| run.len >= LEND_MIN) && self.shared.reader.is_steady(runs) {
            let mut lent = 0;
            for run in runs {
                if !io.lend(file(run)?, run.offset, run.len as usize) {
                    lent = 0;
                    break;
                }
                lent += run.len as usize;
            }
            if lent > 0 {
                return Ok(Some(lent));
            }
        }
        let mut at = 0;
        for run in runs {
            let len = run.len as usize;
            let file = file(run)?;
            if io.read_nowait(at, file, run.offset, len)? < len {
                return Ok(None);
            }
            at += len;
        }
        // A bounded cache may have taken a chunk away since the plan was made.
        Ok(self.shared.reader.confirm(runs).then_some(at))
    }

    fn park(&self, inode: &Inode, offset: u64, len: u32, io: &mut dyn ReadIo) -> io::Result<ReadStart> {
        let parked = io.park().ok_or_else(|| os(libc::EIO))?;
        self.backlog.fetch(&self.shared, Wanted { inode: *inode, offset, len }, parked);
        Ok(ReadStart::Parked)
    }

    fn read_error(&self, error: &ReadError) -> io::Error {
        self.shared.log.warn(|| error.to_string());
        os(error.errno())
    }
}

/// The fetch side's view of a parked reply.
pub(super) struct Sink {
    pub(super) parked: Box<dyn ParkedRead>,
    pub(super) flight: Flight,
    /// Given back behind the answer.
    pub(super) pass: Pass,
}

/// One read that is on its way, counted as long as this lives.
pub(super) struct Flight {
    parked: Arc<AtomicUsize>,
    counters: Arc<OpCounters>,
    start: Instant,
}

impl Flight {
    pub(super) fn new(shared: &Shared) -> Self {
        shared.parked.fetch_add(1, Ordering::AcqRel);
        let (parked, counters) = (Arc::clone(&shared.parked), Arc::clone(&shared.counters));
        Self { parked, counters, start: Instant::now() }
    }

    /// How long it has been under way.
    pub(super) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Counts it as one that failed.
    pub(super) fn failed(&self) {
        self.counters.read_failed();
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.parked.fetch_sub(1, Ordering::AcqRel);
    }
}

impl ReadSink for Sink {
    fn fill(&mut self, at: usize, data: &[u8]) {
        self.parked.fill(at, data);
    }

    fn fill_from(&mut self, at: usize, file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<()> {
        self.parked.fill_from(at, file, offset, len)
    }

    fn finish(self: Box<Self>, result: Result<usize, ReadError>) {
        match &result {
            Ok(bytes) => self.flight.counters.read_waited(*bytes, self.flight.elapsed()),
            Err(_) => self.flight.failed(),
        }
        let Self { parked, flight, pass } = *self;
        parked.finish(result.map_err(|e| e.errno()));
        // What waits behind it begins while this still counts.
        drop(pass);
        drop(flight);
    }
}
