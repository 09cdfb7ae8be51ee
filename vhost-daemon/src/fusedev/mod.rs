//! FUSE mode: the namespace as a mount on this host, through `/dev/fuse`.
//!
//! Owns: mounting and unmounting, the threads that read requests and write replies, handing the device over to a
//! successor. The dispatch is the same as for virtual machines ([`crate::fuse`]). Does not own: what a request means,
//! the daemon's state machine ([`crate::daemon`]).

mod channel;
mod device;
mod handover;
mod kernel_mount;
mod pages;
mod saved;
mod session;
mod sys;
mod transport;

pub use kernel_mount::{FuseError, is_mounted};
pub use transport::{FailoverPolicy, FuseMount, FuseOptions};
