//! A file system for tests of what is around one.
//!
//! Owns: a GETATTR that calls the test and is an error. Everything else is ENOSYS.

use crate::fuse::{GuestFs, PlusSink, ReadAt, ReadIo, ReadStart};
use fuse_backend_rs::api::filesystem::{Context, FileSystem};
use std::io;
use std::time::Duration;

/// Calls its function for each GETATTR.
pub(super) struct TestFs(Box<dyn Fn() + Send + Sync>);

impl TestFs {
    pub(super) fn new(called: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Box::new(called))
    }
}

impl FileSystem for TestFs {
    type Inode = u64;
    type Handle = u64;

    fn getattr(&self, _: &Context, _: u64, _: Option<u64>) -> io::Result<(libc::stat64, Duration)> {
        (self.0)();
        Err(io::Error::from_raw_os_error(libc::EIO))
    }
}

impl GuestFs for TestFs {
    fn start_read(&self, _: &Context, _: &ReadAt, _: &mut dyn ReadIo) -> io::Result<ReadStart> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    fn list_plus(&self, _: &Context, _: u64, _: u64, _: u64, _: &mut dyn PlusSink) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }

    fn stateless_open(&self) -> bool {
        true
    }
}
