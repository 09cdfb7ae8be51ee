//! A request that left its ring's worker because it may have to wait for a disk.
//!
//! Owns: what the request needs when it is handled later, by a thread that may wait. Does not own: when that is (the
//! pool), nor the one answer it gets ([`Parked`]): a ring that is stopped meanwhile answers EIO, and what is said here
//! after that goes nowhere.

use super::guest_buf::GuestBuf;
use super::parked::Parked;
use super::reply::Reply;
use super::ring_state::SharedRing;
use crate::fuse::{GuestFs, Outcome, Server};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A request with its reply's room.
#[derive(Debug)]
pub(super) struct Deferred {
    parked: Parked,
    head: Box<[u8]>,
    request: GuestBuf,
}

impl Deferred {
    /// Takes a request along: its first bytes as they were copied, and where it is.
    pub(super) fn new(parked: Parked, head: &[u8], request: GuestBuf) -> Self {
        Self { parked, head: head.into(), request }
    }

    /// Handles it, unless nobody waits any more.
    pub(super) fn handle<F: GuestFs>(mut self, ring: &SharedRing, server: &Server<F>) {
        if !self.parked.is_wanted() {
            return;
        }
        let total = self.request.len();
        let mut reply = Reply { request: &mut self.request, room: Some(self.parked) };
        let head = self.head;
        let outcome = catch_unwind(AssertUnwindSafe(|| server.handle_waiting(&head, total, &mut reply)));
        match (outcome, reply.room) {
            (Ok(Outcome::Replied(len)), Some(parked)) => parked.complete(len),
            (Ok(_), _) => {}
            (Err(_), parked) => {
                ring.complain(|| "a request made its handler panic; it gets EIO".to_owned());
                drop(parked);
            }
        }
    }
}
