//! The FUSE wire: what a guest's requests mean and what the replies look like.
//!
//! Owns: the ABI structures, decoding and checking of requests, INIT negotiation, dispatch to a file
//! system, encoding of replies. Does not own: how a request arrived or how a reply leaves (that is
//! [`ReplyBuf`], implemented by the transports), nor any file system.

pub mod abi;
mod change;
mod dirents;
mod file_side;
mod guest_fs;
mod init;
mod reply;
mod request;
mod server;
mod write_side;

pub use change::{
    Change, Changed, CreateFile, FileOp, LockReply, LockRequest, LockVerb, NewNode, SetAttr, SetTime,
};
pub use dirents::attr;
pub use guest_fs::{GuestFs, ParkedRead, PlusEntry, PlusSink, ReadAt, ReadIo, ReadStart, WriteAt, WriteIo};
pub use init::{Agreed, InitLimits, Session};
pub use reply::ReplyBuf;
pub use request::{REQUEST_HEAD_MAX, Request};
pub use server::{Outcome, Server};
