//! What is known of the parts of an existing image: the ground that `diff` and `report` stand on.
//!
//! Owns: how names are shown, what a chunk costs in the store and what it is recognised by. Does not own: walking,
//! comparing, or the form of any output.

mod chunks;
mod name;

pub(crate) use chunks::{ChunkFacts, ContentKey, Fact, zeros};
pub(crate) use name::{Shown, json_name};
