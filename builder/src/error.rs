//! What can go wrong while an image is built or checked.
//!
//! Owns: the error type of the library. Does not own: exit codes, which the command line decides.

use std::io;
use std::path::{Path, PathBuf};

/// Why an image could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A system call on a file failed.
    #[error("cannot {action} {path:?}: {source}")]
    Io {
        /// What was attempted: a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The source is not of the kind asked for.
    #[error("{path:?}: {reason}")]
    Source {
        /// Source, or entry in it.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file was not the same at the end of reading as at its beginning.
    #[error(
        "{path:?} changed while it was read ({reason}): build from a snapshot, or when nothing writes to the source"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What changed.
        reason: String,
    },
    /// Two entries of the same path.
    #[error("{path}: the path occurs twice in the tree")]
    Duplicate {
        /// Path inside the image.
        path: String,
    },
    /// The format cannot hold so much.
    #[error("the image would need more {what} than the format can hold (limit {limit})")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// The largest number that fits.
        limit: u64,
    },
    /// Images that cannot be parts of one image.
    #[error("{path:?}: {reason}")]
    Inconsistent {
        /// The bootstrap at fault.
        path: PathBuf,
        /// Which property differs.
        reason: String,
    },
    /// Options that do not go together, or a value out of range.
    #[error("{0}")]
    Options(String),
    /// Somebody asked to stop.
    #[error("interrupted by signal {signal} while reading {at:?}: nothing was written")]
    Interrupted {
        /// Number of the signal.
        signal: i32,
        /// What was being read.
        at: PathBuf,
    },
    /// A promise between parts of this program was broken.
    #[error(
        "internal error: {0}. This is a defect of rafs-image: report it with the command line; nothing was written"
    )]
    Internal(&'static str),
    /// Compression failed.
    #[error("cannot compress a piece of {path:?}: {reason}")]
    Compress {
        /// File the piece is from.
        path: PathBuf,
        /// The codec's reason.
        reason: String,
    },
    /// An image that was given as input could not be used.
    #[error("{path:?}: {reason}")]
    Image {
        /// Its bootstrap.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl BuildError {
    /// Attaches an action and a path to an I/O error.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Self::Io { action, path, source: source.into() }
    }
}
