//! The threads that serve a mount.
//!
//! Owns: their start, their loop, their end; which requests they have in hand. Does not own: buffers and descriptors
//! (`channel`), mounting.

use super::channel::{Buffers, Channel, Later, Received, channels, inflight};
use super::pages::Pages;
use crate::daemon::Inflight;
use crate::fuse::abi::op;
use crate::fuse::{GuestFs, Outcome, Server};
use crate::interrupt;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// `FUSE_UNIQUE_RESEND`: bit of the id of a request that comes a second time.
const UNIQUE_RESENT: u64 = 1 << 63;

/// The request that a thread has in hand: opcode 0 is none.
#[derive(Debug, Default)]
struct InHand {
    unique: AtomicU64,
    node: AtomicU64,
    opcode: AtomicU64,
    since: AtomicU64,
}

/// What the threads share.
#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    /// Threads that serve.
    live: AtomicUsize,
    /// The kernel has agreed on a session.
    initialized: AtomicBool,
    in_hand: Vec<InHand>,
}

/// A mount that is served.
pub(super) struct Session {
    shared: Arc<Shared>,
    later: Arc<Later>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    pages: Arc<Pages>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("shared", &self.shared).finish_non_exhaustive()
    }
}

/// How to serve.
pub(super) struct Serving<'a, F> {
    pub(super) device: BorrowedFd<'a>,
    pub(super) server: &'a Arc<Server<F>>,
    pub(super) threads: usize,
    /// One descriptor for all threads: a successor finds what is on its way.
    pub(super) shared: bool,
    /// INIT has come and gone with a predecessor.
    pub(super) initialized: bool,
    /// Requests that the kernel sends again get ECONNABORTED.
    pub(super) fail_resent: bool,
    /// Called once when the kernel has agreed on a session, with the agreement made here.
    pub(super) on_init: Arc<dyn Fn() + Send + Sync>,
    /// Called once when the mount is gone, whoever unmounted it.
    pub(super) on_end: Arc<dyn Fn() + Send + Sync>,
}

impl Session {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// Threads or descriptors cannot be had.
    pub(super) fn start<F: GuestFs + 'static>(serving: &Serving<'_, F>) -> io::Result<Self> {
        interrupt::allow()?;
        let later = Arc::new(Later::default());
        let channels = channels(serving.device, serving.threads, serving.shared, &later)?;
        let in_hand = channels.iter().map(|_| InHand::default()).collect();
        let shared = Arc::new(Shared {
            initialized: AtomicBool::new(serving.initialized),
            live: AtomicUsize::new(channels.len()),
            in_hand,
            ..Shared::default()
        });
        let pages = Arc::new(Pages::default());
        let session =
            Self { shared: Arc::clone(&shared), later, threads: Mutex::default(), pages: Arc::clone(&pages) };
        for (at, channel) in channels.into_iter().enumerate() {
            let worker = Worker {
                at,
                channel,
                shared: Arc::clone(&shared),
                pages: Arc::clone(&pages),
                fail_resent: serving.fail_resent,
                server: Arc::clone(serving.server),
                on_init: Arc::clone(&serving.on_init),
                on_end: Arc::clone(&serving.on_end),
            };
            let started = std::thread::Builder::new().name(format!("fuse {at}")).spawn(move || worker.run());
            match started {
                Ok(thread) => session.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread),
                Err(error) => {
                    shared.live.fetch_sub(1, Ordering::AcqRel);
                    if at == 0 {
                        return Err(error);
                    }
                    tracing::warn!("only {at} threads serve the mount: {error}");
                }
            }
        }
        Ok(session)
    }

    /// Whether the kernel has agreed on a session.
    pub(super) fn is_initialized(&self) -> bool {
        self.shared.initialized.load(Ordering::Acquire)
    }

    /// Ends the threads after the requests they have in hand, and waits for replies that were to come later, for `limit`
    /// at most. Returns how many of these are left. The mount stays.
    pub(super) fn stop(&self, limit: Duration) -> usize {
        self.shared.stopping.store(true, Ordering::Release);
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A thread that stops the session itself, at the end of the mount, ends soon enough.
            if thread.thread().id() == std::thread::current().id() {
                continue;
            }
            while !thread.is_finished() {
                interrupt::thread(&thread);
                std::thread::sleep(Duration::from_millis(1));
            }
            let _ = thread.join();
        }
        self.later.drain(limit)
    }

    /// Lets go of files that reads came from: some of them may be of no use any more.
    pub(super) fn forget_files(&self) {
        self.pages.clear();
    }

    /// Requests that have no answer yet.
    pub(super) fn inflight(&self) -> Vec<Inflight> {
        // Those in hand first: one that a thread puts off meanwhile is then among those that wait.
        let mut all = self.in_hand();
        all.extend(self.later.requests());
        all.sort_unstable_by_key(|request| request.unique);
        all.dedup_by_key(|request| request.unique);
        all
    }

    fn in_hand(&self) -> Vec<Inflight> {
        let all = self.shared.in_hand.iter().filter_map(|hand| {
            let opcode = hand.opcode.load(Ordering::Acquire);
            (opcode != 0).then(|| Inflight {
                inode: hand.node.load(Ordering::Relaxed),
                opcode: u32::try_from(opcode).unwrap_or(0),
                unique: hand.unique.load(Ordering::Relaxed),
                timestamp_secs: hand.since.load(Ordering::Relaxed),
            })
        });
        all.collect()
    }
}

/// One thread.
struct Worker<F> {
    at: usize,
    channel: Arc<Channel>,
    shared: Arc<Shared>,
    pages: Arc<Pages>,
    fail_resent: bool,
    server: Arc<Server<F>>,
    on_init: Arc<dyn Fn() + Send + Sync>,
    on_end: Arc<dyn Fn() + Send + Sync>,
}

impl<F: GuestFs> Worker<F> {
    fn run(&self) {
        let mut buffers = Buffers::new(Arc::clone(&self.pages));
        let unmounted = loop {
            if self.shared.stopping.load(Ordering::Acquire) {
                break false;
            }
            match self.channel.receive(&mut buffers.request) {
                Ok(Received::Request(len)) => self.serve(&mut buffers, len),
                Ok(Received::Nothing) => {}
                Ok(Received::Unmounted) => break true,
                Err(error) => {
                    tracing::error!("cannot read from /dev/fuse: {error}");
                    break true;
                }
            }
        };
        let last = self.shared.live.fetch_sub(1, Ordering::AcqRel) == 1;
        if last && unmounted {
            (self.on_end)();
        }
    }

    fn serve(&self, buffers: &mut Buffers, len: usize) {
        let (request, mut reply) = buffers.reply_to(&self.channel, len);
        let Inflight { inode, opcode, unique, timestamp_secs } = inflight(request);
        let hand = self.shared.in_hand.get(self.at);
        if let Some(hand) = hand {
            hand.unique.store(unique, Ordering::Relaxed);
            hand.node.store(inode, Ordering::Relaxed);
            hand.since.store(timestamp_secs, Ordering::Relaxed);
            hand.opcode.store(opcode.into(), Ordering::Release);
        }
        let handled = if self.fail_resent && unique & UNIQUE_RESENT != 0 {
            Ok(Outcome::Replied(reply.error(libc::ECONNABORTED)))
        } else {
            catch_unwind(AssertUnwindSafe(|| self.server.handle_waiting(request, len, &mut reply)))
        };
        let used = match handled {
            Ok(Outcome::Replied(used)) => used,
            Ok(Outcome::Parked | Outcome::Blocks) => 0,
            Err(_) => {
                tracing::error!("a request (opcode {opcode}) made its handler panic; it gets EIO");
                reply.error(libc::EIO)
            }
        };
        let agreed = opcode == op::INIT && buffers.reply(used).get(4..8) == Some(&[0; 4]);
        buffers.send(&self.channel, used);
        if let Some(hand) = hand {
            hand.opcode.store(0, Ordering::Release);
        }
        if agreed && !self.shared.initialized.swap(true, Ordering::AcqRel) {
            (self.on_init)();
        }
    }
}
