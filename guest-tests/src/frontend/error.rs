//! What can go wrong between the front-end and a daemon.

use std::io;

/// A failure of the front-end or, far more often, of the daemon it talks to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontendError {
    /// A system call of the front-end itself failed.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The daemon closed the vhost-user socket.
    #[error("the daemon closed the connection while {0}")]
    Disconnected(&'static str),
    /// No answer within the time set in the options.
    #[error("no answer within the time limit: {0}")]
    Timeout(String),
    /// The daemon broke the vhost-user protocol.
    #[error("vhost-user protocol: {0}")]
    Protocol(String),
    /// The daemon broke virtio's or FUSE's rules in a reply or in a used ring.
    #[error("bad reply: {0}")]
    BadReply(String),
    /// A request was answered with an errno.
    #[error("{what}: errno {errno}")]
    Errno {
        /// The request.
        what: String,
        /// The positive errno of the reply.
        errno: i32,
    },
    /// An address outside the guest's memory, a bug of the test.
    #[error("guest memory: {0}")]
    Memory(String),
    /// A ring without enough free descriptors.
    #[error("ring {0} has no free descriptors")]
    RingFull(usize),
    /// Guest memory for buffers has run out.
    #[error("no guest memory left for a buffer of {0} bytes")]
    NoBuffer(usize),
}

impl FrontendError {
    /// Wraps an I/O error with what was attempted.
    pub fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// Wraps a rustix error with what was attempted.
    pub fn sys(what: &'static str) -> impl FnOnce(rustix::io::Errno) -> Self {
        move |source| Self::Io { what, source: source.into() }
    }

    /// The errno of the reply, if this is an errno reply.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Errno { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// Result of a front-end operation.
pub type Result<T> = std::result::Result<T, FrontendError>;
