//! The processes at the other end of a device's socket, after they have hung up.
//!
//! Owns: noticing that all of them have ended. A front-end that hangs up and lives may come back with the same guest; one whose
//! process is gone took the guest with it. Does not own: connections.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Most processes that are waited for at once; more than a few connect only to look.
const PEERS_MAX: usize = 16;

/// A process.
#[derive(Debug)]
pub(super) struct Peer {
    pid: Pid,
    process: OwnedFd,
}

impl Peer {
    /// Who connected. `None`: it cannot be seen from here (another PID namespace), or has ended already.
    pub(super) fn of(stream: &UnixStream) -> Option<Self> {
        // While it is connected its number is not another's, unless it passed its end on and ended.
        let pid = rustix::net::sockopt::socket_peercred(stream).ok()?.pid;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        Some(Self { pid, process })
    }
}

/// Those who have hung up.
#[derive(Debug, Default)]
pub(super) struct Departed {
    peers: Vec<Peer>,
    /// Which guest they had.
    guest: u64,
}

impl Departed {
    /// One has hung up, who had the `guest`th guest. Who had earlier ones has nothing here any more.
    pub(super) fn add(&mut self, peer: Option<Peer>, guest: u64) {
        if guest != self.guest {
            self.guest = guest;
            self.peers.clear();
        }
        let Some(peer) = peer else { return };
        if self.peers.len() < PEERS_MAX && self.peers.iter().all(|known| known.pid != peer.pid) {
            self.peers.push(peer);
        }
    }

    /// Waits until somebody connects to `listener`, or until the last of those who hung up has ended: true. It says so once.
    pub(super) fn end_before(&mut self, listener: impl AsFd) -> bool {
        while !self.peers.is_empty() {
            let mut waited: Vec<PollFd<'_>> = vec![read(listener.as_fd())];
            waited.extend(self.peers.iter().map(|peer| read(peer.process.as_fd())));
            match poll(&mut waited, None) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return false,
                Ok(_) => {}
            }
            let mut ended = waited.iter().map(|fd| !fd.revents().is_empty());
            let called = ended.next().unwrap_or(true);
            let ended: Vec<bool> = ended.collect();
            drop(waited);
            let mut ended = ended.into_iter();
            self.peers.retain(|_| !ended.next().unwrap_or(false));
            if self.peers.is_empty() {
                return true;
            }
            if called {
                break;
            }
        }
        false
    }
}

fn read(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::from_borrowed_fd(fd, PollFlags::IN)
}
