//! What can be wrong with the data of an image.

use rafs::blob::BlobError;
use std::io;
use std::path::{Path, PathBuf};

/// Why data of an image could not be read or is not what the image says.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlobDataError {
    /// A system call on a blob file failed.
    #[error("blob {blob}: cannot {action} {path:?}: {source}")]
    Io {
        /// Blob id.
        blob: String,
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A blob file is too short.
    #[error("blob {blob}: {path:?} has {actual} bytes, the image needs {expected}: fetch it again")]
    Short {
        /// Blob id.
        blob: String,
        /// The file.
        path: PathBuf,
        /// Bytes there are.
        actual: u64,
        /// Bytes there must be.
        expected: u64,
    },
    /// A blob that is not read from files.
    #[error("blob {blob:?} cannot be read: {}", if *external { "its data is in an external store" } else { "its id is no file name" })]
    Unusable {
        /// Blob id.
        blob: String,
        /// EXTERNAL, or else an impossible id.
        external: bool,
    },
    /// A table, or the stored form of a chunk, is damaged.
    #[error(transparent)]
    Blob(#[from] BlobError),
    /// A chunk is not what the image says.
    #[error("blob {blob}, chunk {chunk}, used by {user}: {reason}")]
    Chunk {
        /// Blob id.
        blob: String,
        /// Index in the blob.
        chunk: u32,
        /// Path of the first file that uses it.
        user: String,
        /// What is wrong.
        reason: String,
    },
    /// A section of a blob is not what its table of contents says.
    #[error("blob {blob}: section {section} differs from its digest in the table of contents")]
    Section {
        /// Blob id.
        blob: String,
        /// Name in the table of contents.
        section: String,
    },
}

impl BlobDataError {
    pub(super) fn io(
        blob: &str,
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(io::Error) -> Self + use<> {
        let (blob, path) = (blob.to_owned(), path.to_path_buf());
        move |source| Self::Io { blob, action, path, source }
    }
}
