//! Why a network store cannot be set up.

use std::path::PathBuf;

/// Why a network store cannot be set up. What goes wrong later is a [`rafs::store::StoreError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The threads could not be started.
    #[error("threads for network stores cannot be started: {0}")]
    Runtime(std::io::Error),
    /// The HTTP client could not be made.
    #[error("the HTTP client cannot be made: {0}")]
    Client(String),
    /// A file of certificate authorities is not usable.
    #[error("certificates in {path} cannot be used: {reason}; it must be a PEM file")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A local directory or disk cannot be opened.
    #[error(transparent)]
    Local(rafs::store::StoreError),
    /// An option cannot be honoured.
    #[error("{0}")]
    Config(String),
}
