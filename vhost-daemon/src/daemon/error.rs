//! Why the daemon could not do what it was asked.

use crate::config::ConfigError;
use crate::mounts::{NamespaceError, OpenError, PathError};
use crate::virtio::ServiceError;
use std::io;

/// Why the daemon could not do what it was asked. The API turns these into the contract's texts.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DaemonError {
    /// Something is mounted there.
    #[error("object or filesystem already exists")]
    Exists,
    /// Nothing is mounted there, or there is no such thing.
    #[error("object or filesystem doesn't exist")]
    NotMounted,
    /// Only images can be exchanged.
    #[error("filesystem type mismatch, expect RAFS")]
    NotRafs,
    /// There is no such kind of file system.
    #[error("invalid argument `only 'rafs' and 'passthrough_fs' are supported, but {0} was specified`")]
    FsType(String),
    /// A file to fetch ahead is not absolute.
    #[error("invalid argument `invalid prefetch file list`: {0} is not absolute")]
    Prefetch(String),
    /// No path in a namespace.
    #[error("mount path: {0}")]
    Path(#[from] PathError),
    /// The configuration of a mount.
    #[error("configuration: {0}")]
    Config(#[from] ConfigError),
    /// The image or its store.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A directory cannot be passed through.
    #[error("cannot pass {dir} through: {reason}")]
    Passthrough {
        /// The directory.
        dir: String,
        /// Why.
        reason: String,
    },
    /// A namespace has no room.
    #[error(transparent)]
    Namespace(NamespaceError),
    /// An event that this state does not have.
    #[error("event {0} is not possible in this state")]
    UnexpectedEvent(&'static str),
    /// Not in this mode.
    #[error("not supported in this mode")]
    Unsupported,
    /// Not yet: try again.
    #[error("not ready yet")]
    NotReady,
    /// The supervisor's side of a take-over.
    #[error("take-over: {0}")]
    Upgrade(String),
    /// A mount on this host.
    #[error(transparent)]
    Fuse(#[from] crate::fusedev::FuseError),
    /// A vhost-user socket.
    #[error(transparent)]
    Socket(#[from] ServiceError),
    /// A socket that is listened on already, or a view that cannot be.
    #[error("{0}")]
    Invalid(String),
    /// A thread cannot be started.
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
}
