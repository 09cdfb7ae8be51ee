//! Where the bytes of blobs come from.
//!
//! Owns: the interface of a store, its errors, and the stores that read local directories and disks. Stores behind a
//! network are a crate of their own, `rafs-net`. Does not own: what the bytes mean, retries of damaged data, caches,
//! threads.
//!
//! A request carries a completion instead of holding a thread: a store that waits for a network takes the request,
//! returns, and calls the completion from wherever the answer arrives. A store that reads a disk does its work in
//! the call, on the fetch thread that makes it.

mod gpt;
mod localdisk;
mod localfs;

pub use localdisk::LocalDisk;
pub use localfs::{LocalFs, LocalFsOptions};

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

/// Longest object name, bytes: ids have at most 64, and our own names add a suffix to that.
pub const OBJECT_NAME_MAX: usize = 128;

/// A piece of an object to be read.
#[derive(Debug)]
pub struct FetchRequest {
    /// Object name: a blob id, or one with a suffix such as `.blob.meta`. Comes from an image: hostile.
    pub object: Arc<str>,
    /// Bytes wanted, not empty.
    pub range: Range<u64>,
    /// Memory for the answer; its contents are dropped, its capacity is used.
    pub buffer: Vec<u8>,
    /// 0 the first time. Higher: an earlier answer was damaged or failed, so by-pass whatever may have kept it
    /// (open descriptors, mirrors, proxies).
    pub attempt: u32,
    /// Who waits for it.
    pub priority: Priority,
}

/// Who waits for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Nobody yet.
    Prefetch,
    /// A guest.
    Demand,
}

/// Called exactly once with exactly the bytes of the range, or the reason why not. Returns quickly.
pub type FetchDone = Box<dyn FnOnce(Result<Vec<u8>, StoreError>) + Send>;
/// Called exactly once with the object's size in bytes. Returns quickly.
pub type SizeDone = Box<dyn FnOnce(Result<u64, StoreError>) + Send>;

/// Hears of a request's bytes while they arrive. Calls come one at a time and return quickly.
pub trait FetchSink: Send {
    /// `prefix` holds the first bytes of the range, more of them each time; those of earlier calls are unchanged.
    /// Not called for the last piece, which comes with [`finish`](Self::finish), nor by stores that read in one go.
    fn arrived(&mut self, prefix: &[u8]);

    /// Called exactly once, as a [`FetchDone`].
    fn finish(self: Box<Self>, result: Result<Vec<u8>, StoreError>);
}

/// A place that blobs come from.
pub trait Store: Send + Sync + fmt::Debug {
    /// Reads a piece of an object.
    fn fetch(&self, request: FetchRequest, done: FetchDone);

    /// As [`fetch`](Self::fetch), but tells of the bytes as they arrive, so that whoever needs only the first of them
    /// need not wait for the last.
    fn fetch_streamed(&self, request: FetchRequest, sink: Box<dyn FetchSink>) {
        self.fetch(request, Box::new(move |result| sink.finish(result)));
    }

    /// Asks for an object's size; answers [`ErrorClass::Missing`] when it is not there.
    fn size(&self, object: &str, done: SizeDone);

    /// A text that only stores with the same objects and the same right to read them share. `None`: this store is not
    /// known to be the same as any other. Holds no secret.
    fn identity(&self) -> Option<String> {
        None
    }

    /// Whether an answer takes long, so that it is worth asking for more at once.
    fn is_remote(&self) -> bool {
        false
    }

    /// The object as a local file, where there is one: raw data is then read from it without a copy in a cache.
    /// `None`: this store has no local files. May touch a disk.
    fn local_file(&self, object: &str) -> Option<Result<File, StoreError>> {
        let _ = object;
        None
    }
}

/// What kind of failure it was, and so whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// The object is not there. It may come back; asking at once again does not help.
    Missing,
    /// Something between us and the object failed. Trying again may help.
    Transient,
    /// The object is there but not as the image describes it, for example too short.
    Corrupt,
    /// We may not read it. Fix permissions or credentials.
    Denied,
}

/// Why a store could not answer.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{object}{}: {reason}", in_range(.range))]
pub struct StoreError {
    /// Kind of failure.
    pub class: ErrorClass,
    /// File, URL or object name.
    pub object: String,
    /// Bytes asked for, if any.
    pub range: Option<Range<u64>>,
    /// What happened, and what to do where that is known.
    pub reason: String,
}

fn in_range(range: &Option<Range<u64>>) -> String {
    range.as_ref().map(|r| format!(", bytes {} to {}", r.start, r.end)).unwrap_or_default()
}

/// Whether `name` can name an object in a directory without leaving it. Blob ids come from images.
#[must_use]
pub fn is_safe_object_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= OBJECT_NAME_MAX
        && name != "."
        && name != ".."
        && !name.bytes().any(|b| b == b'/' || b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names() {
        for good in ["a", "..a", "a.blob.data", &"f".repeat(64)] {
            assert!(is_safe_object_name(good), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "/etc/passwd", "../a", "a\0b", &"f".repeat(129)] {
            assert!(!is_safe_object_name(bad), "{bad}");
        }
    }

    #[test]
    fn errors_name_object_and_range() {
        let error = StoreError {
            class: ErrorClass::Corrupt,
            object: "/blobs/abc".into(),
            range: Some(5..9),
            reason: "file has 7 bytes".into(),
        };
        assert_eq!(error.to_string(), "/blobs/abc, bytes 5 to 9: file has 7 bytes");
    }
}
