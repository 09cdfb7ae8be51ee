//! Descriptor chains: from a head index to a request and the room for its reply.
//!
//! Owns: the walk over direct and indirect descriptors and every check on it. Does not own: rings.

use super::guest_buf::GuestBuf;
use super::view::View;
use crate::fuse::REQUEST_HEAD_MAX;
use std::sync::Arc;
use virtio_queue::desc::split::Descriptor;

/// Longest chain that is followed, whatever the ring's size: a request of 1 MiB in pages takes 260.
const CHAIN_MAX: u32 = 1024;
const DESC_SIZE: u64 = 16;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;
const F_INDIRECT: u16 = 4;

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChainFault {
    /// A descriptor index beyond its table.
    #[error("descriptor {index} lies outside a table of {size}")]
    OutOfTable {
        /// The index.
        index: u32,
        /// Entries of the table.
        size: u32,
    },
    /// The table is not guest memory.
    #[error("the descriptor table is not in guest memory")]
    Table,
    /// Longer than any request.
    #[error("the chain has more than {CHAIN_MAX} descriptors, or a loop")]
    TooLong,
    /// Readable behind writable.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// An indirect table that is empty, uneven, nested or not last.
    #[error("an indirect table is malformed")]
    Indirect,
    /// A buffer outside of guest memory.
    #[error("a buffer is not in guest memory")]
    Buffer,
}

/// The buffers of one chain; reused from request to request.
#[derive(Debug)]
pub(super) struct Chain {
    /// The memory it was walked in, until it is let go.
    view: Option<View>,
    readable: GuestBuf,
    writable: GuestBuf,
    /// Whether the walk ended with a fault.
    pub(super) fault: bool,
    head: Box<[u8; REQUEST_HEAD_MAX]>,
    head_len: usize,
    descriptors: u32,
}

/// One descriptor table on the way.
struct Table {
    addr: u64,
    size: u32,
}

impl Chain {
    /// An empty chain.
    pub(super) fn new() -> Self {
        Self {
            view: None,
            readable: GuestBuf::new(),
            writable: GuestBuf::new(),
            fault: false,
            head: Box::new([0; REQUEST_HEAD_MAX]),
            head_len: 0,
            descriptors: 0,
        }
    }

    /// Lets go of guest memory, and of room that only odd chains need.
    pub(super) fn release(&mut self) {
        self.view = None;
        self.readable.release();
        self.writable.release();
        self.head_len = 0;
    }

    /// Descriptors that were followed.
    pub(super) fn descriptors(&self) -> u32 {
        self.descriptors
    }

    /// The first bytes of the request, copied out of guest memory once (the guest cannot change them any
    /// more), the request where it is, and where the reply goes.
    pub(super) fn parts(&mut self) -> (&[u8], &mut GuestBuf, &mut GuestBuf) {
        (self.head.get(..self.head_len).unwrap_or_default(), &mut self.readable, &mut self.writable)
    }

    /// Bytes of the whole readable part.
    pub(super) fn readable_len(&self) -> usize {
        self.readable.len()
    }

    /// Looks at the memory of `view` from now on.
    pub(super) fn look_at(&mut self, view: &View) {
        if !self.view.as_ref().is_some_and(|old| Arc::ptr_eq(old.memory(), view.memory())) {
            self.view = Some(view.clone());
        }
        self.readable.reset(view.memory());
        self.writable.reset(view.memory());
    }

    /// Walks the chain from descriptor `head` of the table at `table` with `size` entries, in the memory that it was told to
    /// look at. On a fault what was found before it can be used: the request's first bytes and the room for a reply.
    ///
    /// # Errors
    ///
    /// See [`ChainFault`].
    pub(super) fn walk(&mut self, table: u64, size: u16, head: u16) -> Result<(), ChainFault> {
        self.fault = false;
        self.descriptors = 0;
        let walked = self.walk_tables(Table { addr: table, size: u32::from(size) }, head);
        self.head_len = self.readable.read(0, self.head.as_mut_slice());
        walked
    }

    fn walk_tables(&mut self, direct: Table, head: u16) -> Result<(), ChainFault> {
        let view = self.view.as_mut().ok_or(ChainFault::Table)?;
        let mut table = direct;
        let mut index = u32::from(head);
        let mut indirect = false;
        let mut misplaced = false;
        for _ in 0..CHAIN_MAX {
            self.descriptors += 1;
            let desc = read_descriptor(view, &table, index)?;
            let flags = desc.flags();
            if flags & F_INDIRECT != 0 {
                if indirect || flags & F_NEXT != 0 {
                    return Err(ChainFault::Indirect);
                }
                if desc.len() == 0 || u64::from(desc.len()) % DESC_SIZE != 0 {
                    return Err(ChainFault::Indirect);
                }
                table = Table { addr: desc.addr().0, size: desc.len() / 16 };
                index = 0;
                indirect = true;
                continue;
            }
            let buf = if flags & F_WRITE != 0 {
                &mut self.writable
            } else {
                // Walked to its end all the same: the header says whom the error is for.
                misplaced |= self.writable.len() > 0;
                &mut self.readable
            };
            buf.push(view, desc.addr().0, desc.len()).map_err(|_| ChainFault::Buffer)?;
            if flags & F_NEXT == 0 {
                return if misplaced { Err(ChainFault::Order) } else { Ok(()) };
            }
            index = u32::from(desc.next());
        }
        Err(ChainFault::TooLong)
    }
}

fn read_descriptor(view: &mut View, table: &Table, index: u32) -> Result<Descriptor, ChainFault> {
    if index >= table.size {
        return Err(ChainFault::OutOfTable { index, size: table.size });
    }
    let addr = table.addr.checked_add(u64::from(index) * DESC_SIZE).ok_or(ChainFault::Table)?;
    view.descriptor(addr).map_err(|_| ChainFault::Table)
}
