//! What opens every message, and INIT.
//!
//! Owns: layouts. Does not own: what their numbers mean (`super`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Header of every request.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InHeader {
    /// Bytes of the whole request, this header included.
    pub len: u32,
    /// One of [`op`](super::op).
    pub opcode: u32,
    /// Identifies the request; comes back in the reply.
    pub unique: u64,
    /// Node the request is about.
    pub nodeid: u64,
    /// Caller's uid.
    pub uid: u32,
    /// Caller's gid.
    pub gid: u32,
    /// Caller's pid.
    pub pid: u32,
    /// Bytes of extensions / 8.
    pub total_extlen: u16,
    /// Unused.
    pub padding: u16,
}

/// Header of every reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct OutHeader {
    /// Bytes of the whole reply, this header included.
    pub len: u32,
    /// 0, or a negative errno.
    pub error: i32,
    /// The request's.
    pub unique: u64,
}

/// Start of the body of INIT; `flags2` and the rest follow when INIT_EXT is set.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitIn {
    /// Guest's major version.
    pub major: u32,
    /// Guest's minor version.
    pub minor: u32,
    /// Read-ahead it would do, bytes.
    pub max_readahead: u32,
    /// Flags, bits 0..31.
    pub flags: u32,
}

/// Reply to INIT.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InitOut {
    /// [`VERSION_MAJOR`](super::VERSION_MAJOR).
    pub major: u32,
    /// Minor version spoken from here on.
    pub minor: u32,
    /// Read-ahead allowed, bytes.
    pub max_readahead: u32,
    /// Flags, bits 0..31.
    pub flags: u32,
    /// Background requests allowed.
    pub max_background: u16,
    /// From how many on the guest calls itself congested.
    pub congestion_threshold: u16,
    /// Largest write, bytes.
    pub max_write: u32,
    /// Granularity of timestamps, nanoseconds.
    pub time_gran: u32,
    /// Largest request, pages.
    pub max_pages: u16,
    /// log2 of the DAX mapping alignment.
    pub map_alignment: u16,
    /// Flags, bits 32..63.
    pub flags2: u32,
    /// Stacking depth of passthrough.
    pub max_stack_depth: u32,
    /// Request timeout, seconds; 0 is none.
    pub request_timeout: u16,
    /// Unused.
    pub unused: [u16; 11],
}

/// Body of INTERRUPT.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct InterruptIn {
    /// The request nobody waits for any more.
    pub unique: u64,
}

const _: () = assert!(size_of::<InHeader>() == 40);
const _: () = assert!(size_of::<OutHeader>() == 16);
const _: () = assert!(size_of::<InitOut>() == 64);
