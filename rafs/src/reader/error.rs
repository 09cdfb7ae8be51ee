//! Errors of the reader, and the one place where they become an errno.

use crate::blob::BlobError;
use crate::ids::{BlobIndex, ChunkIndex};
use crate::image::InodeError;
use crate::store::StoreError;
use rustix::io::Errno;
use std::sync::Arc;
use std::time::Duration;

/// Why a read failed. Cheap to clone: one failed fetch may end many reads.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The image's metadata cannot answer: no regular file, or a corrupt inode.
    #[error(transparent)]
    Inode(#[from] InodeError),
    /// A chunk names a blob that the image does not have.
    #[error("a file of the image refers to blob {0}, which it does not have")]
    NoSuchBlob(BlobIndex),
    /// The store could not deliver.
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
    /// The blob's metadata or stored data is not what the image promises.
    #[error(transparent)]
    Blob(#[from] Arc<BlobError>),
    /// Plain data does not match its digest, twice.
    #[error(
        "chunk {chunk} of blob {blob} (offset {uncompressed_offset:#x} of its plain data) does not match its digest; \
         the blob is damaged or not the one this image was made for"
    )]
    Digest {
        /// Blob id.
        blob: String,
        /// Which chunk.
        chunk: ChunkIndex,
        /// Where it starts in the blob's uncompressed address space.
        uncompressed_offset: u64,
    },
    /// The image says one thing about a chunk, its blob another.
    #[error("chunk {chunk} of blob {blob} is not where the image says it is; the blob's chunk info is wrong")]
    Mismatch {
        /// Blob id.
        blob: String,
        /// Which chunk.
        chunk: ChunkIndex,
    },
    /// A local file of plain data could not be read.
    #[error("{file} cannot be read at {offset:#x}: {source}")]
    File {
        /// Which file.
        file: String,
        /// Where.
        offset: u64,
        /// Why.
        source: Arc<std::io::Error>,
    },
    /// No answer in time. The fetch goes on; a later read may find the data.
    #[error("no data after {0:?}; the store is slow or away")]
    Deadline(Duration),
    /// The reader is being shut down.
    #[error("the image is being unmounted")]
    Shutdown,
    /// A fault in this program; the log has more.
    #[error("internal error in the fetch side")]
    Internal,
}

impl ReadError {
    /// The error number a file system answers with.
    #[must_use]
    pub fn errno(&self) -> i32 {
        let errno = match self {
            Self::Inode(InodeError::NotFound(_)) => Errno::NOENT,
            Self::Inode(InodeError::NotARegularFile(_)) => Errno::INVAL,
            _ => Errno::IO,
        };
        errno.raw_os_error()
    }
}

impl From<StoreError> for ReadError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<BlobError> for ReadError {
    fn from(error: BlobError) -> Self {
        Self::Blob(Arc::new(error))
    }
}

/// Why a reader cannot be had, or why its image cannot be served completely.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReaderError {
    /// The fetch threads could not be started.
    #[error("fetch threads cannot be started: {0}")]
    Threads(std::io::Error),
    /// A blob is missing or cannot be read.
    #[error("blob {blob} of the image: {source}")]
    Blob {
        /// Blob id.
        blob: String,
        /// What the store says.
        source: StoreError,
    },
    /// A blob is too short.
    #[error(
        "blob {blob} has {actual} bytes where the image needs {expected}; it is truncated or not the right one"
    )]
    Short {
        /// Blob id.
        blob: String,
        /// Bytes there are.
        actual: u64,
        /// Bytes the image needs.
        expected: u64,
    },
    /// A kind of blob this program does not serve.
    #[error(
        "blob {blob} is in an external store (EXTERNAL), which is not supported; convert the image without it"
    )]
    External {
        /// Blob id.
        blob: String,
    },
    /// The store did not answer.
    #[error("blob {blob}: the store did not answer within {after:?}")]
    Silent {
        /// Blob id.
        blob: String,
        /// How long we waited.
        after: Duration,
    },
}
