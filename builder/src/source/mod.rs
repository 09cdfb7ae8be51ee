//! Where the entries of an image come from.
//!
//! Owns: the [`Source`] contract and the tasks that sources hand to the packing threads. Does not own: what
//! happens to the data, which is `pack`'s.

mod directory;
pub(crate) mod extents;
pub(crate) mod listing;
mod piece;
pub(crate) mod stargz;
pub(crate) mod tar;
mod whiteout;

pub(crate) use directory::DirectorySource;
pub(crate) use piece::{Expected, Input, Piece, ReadError, Task};

pub use stargz::StargzIndex;
pub(crate) use tar::{Reference, ReferenceChunk, TarIndex, TarSource};

use crate::error::BuildError;
use crate::tree::{NodeId, Tree};
use std::path::PathBuf;

/// A source of entries and data. It is driven under one lock by all packing threads, so it does only what
/// must be done in order: listing, and reading what can be read only once. Everything it does is a function
/// of its input alone, never of timing, because the order of pieces is the order of chunks in the blob.
pub(crate) trait Source: Send {
    /// Adds the next entries to `tree` and the next pieces of data to `task`. `false`: there is nothing left
    /// and `task` is empty.
    fn fill(&mut self, tree: &mut Tree, task: &mut Task) -> Result<bool, BuildError>;

    /// What to call a node in messages: a path that the user can look at.
    fn shown(&self, tree: &Tree, node: NodeId) -> PathBuf;
}
