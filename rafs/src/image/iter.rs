//! The iterators that an image hands out, one type for both versions.
//!
//! Owns: nothing but the choice between the two decoders, made when the iterator is. Does not own: how
//! entries are found (v5, v6).

use super::error::InodeError;
use super::inode::{ChunkRef, DirEntry};
use super::{v5, v6};

/// One extended attribute. Its full name is `prefix` and `suffix` together; in v5 `prefix` is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Xattr<'a> {
    /// `user.`, `trusted.`, `security.`, a whole POSIX ACL name, or nothing.
    pub prefix: &'static [u8],
    /// The rest of the name, raw bytes.
    pub suffix: &'a [u8],
    /// The value, raw bytes, may be empty.
    pub value: &'a [u8],
}

impl Xattr<'_> {
    /// Whether the full name is `name`.
    #[must_use]
    pub fn is_called(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.prefix) == Some(self.suffix)
    }
}

macro_rules! either {
    ($(#[$doc:meta])* $name:ident, $inner:ident, $item:ty) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name<'a>(pub(super) $inner<'a>);

        #[derive(Debug)]
        pub(super) enum $inner<'a> {
            V5(v5::$name<'a>),
            V6(v6::$name<'a>),
        }

        impl<'a> Iterator for $name<'a> {
            type Item = Result<$item, InodeError>;

            #[inline]
            fn next(&mut self) -> Option<Self::Item> {
                match &mut self.0 {
                    $inner::V5(entries) => entries.next(),
                    $inner::V6(entries) => entries.next(),
                }
            }
        }
    };
}

either! {
    /// Entries of a directory in stored order, `.` and `..` included. Ends after the first error.
    DirEntries, DirEntriesOf, DirEntry<'a>
}
either! {
    /// Extended attributes of an inode in stored order. Ends after the first error.
    Xattrs, XattrsOf, Xattr<'a>
}
either! {
    /// Chunks of a file that overlap a range, in file order, each as a whole. Ends after the first error.
    /// What lies between two of them, or behind the last one up to the end of the file, is a hole and reads as
    /// zeros (v5 with HAS_HOLE only; elsewhere chunks leave no gaps).
    Chunks, ChunksOf, ChunkRef
}
