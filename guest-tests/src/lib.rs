//! Test support for the vhost-user-fs daemon.
//!
//! Owns the synthetic front-end (a guest in a memfd), tree descriptions and their comparison, the
//! real Linux guest under QEMU, and the processes that tests start. Owns no product code: nothing
//! here is linked into `rafsd` or `rafs-image`, which are tested as the binaries users run.

pub mod bench;
pub mod frontend;
pub mod guest;
pub mod hostile;
pub mod support;
pub mod tree;
