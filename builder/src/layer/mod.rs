//! Existing images as input: parents, chunk dictionaries, layers to merge.
//!
//! Owns: turning an open image back into a tree with chunks, laying one tree over another, which images go
//! together. Does not own: building new data, writing bootstraps.

mod compatible;
mod dictionary;
mod known;
mod load;
mod merge;
mod overlay;

pub(crate) use compatible::Compatible;
pub(crate) use dictionary::Dictionary;
pub(crate) use known::{KnownChunks, Referred};
pub(crate) use load::{ChunkPool, Layer, as_part, open, stored_part};
pub use merge::{MergeOptions, MergeReport, OwnBlob, merge};
pub(crate) use overlay::{copied, overlay};
