//! How guests reach the daemon, as far as the API and the state machine ask.
//!
//! Owns: the [`Transport`] trait. Implementations: virtio-fs sockets ([`super::Devices`]), and a FUSE mount on this host.

use super::DaemonError;
use crate::mounts::MountPath;
use std::fmt;

/// A request that a guest waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inflight {
    /// Node id.
    pub inode: u64,
    /// FUSE opcode.
    pub opcode: u32,
    /// The request's id.
    pub unique: u64,
    /// When it came, seconds since 1970.
    pub timestamp_secs: u64,
}

/// What the state machine and the API ask of the way to the guests. Each method may wait.
pub trait Transport: Send + Sync + fmt::Debug {
    /// Serves, after a take-over.
    ///
    /// # Errors
    ///
    /// As serving fails to begin.
    fn start(&self) -> Result<(), DaemonError> {
        Err(DaemonError::Unsupported)
    }

    /// Stops serving after the requests on their way are answered; what is mounted on the host stays mounted.
    ///
    /// # Errors
    ///
    /// As stopping fails.
    fn stop(&self) -> Result<(), DaemonError>;

    /// Sends state and descriptor to the supervisor.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Unsupported`] in modes that have nothing to hand over; [`DaemonError::Upgrade`].
    fn send_fd(&self) -> Result<(), DaemonError> {
        Err(DaemonError::Unsupported)
    }

    /// Receives state and descriptor from the supervisor.
    ///
    /// # Errors
    ///
    /// As [`Transport::send_fd`].
    fn take_over(&self) -> Result<(), DaemonError> {
        Err(DaemonError::Unsupported)
    }

    /// Requests that guests wait for now.
    ///
    /// # Errors
    ///
    /// [`DaemonError::Unsupported`] where nobody keeps count.
    fn inflight(&self) -> Result<Vec<Inflight>, DaemonError> {
        Err(DaemonError::Unsupported)
    }

    /// A mount is gone, or something else is in its place: whoever caches names of it may be told.
    fn unmounted(&self, _path: &MountPath) {}

    /// Another directory is the root from now on: whoever caches what was in the former may be told.
    fn root_changed(&self) {}
}
