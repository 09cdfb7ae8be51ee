//! Descriptions of file trees: what a tree must look like, what somebody saw, and where they differ.
//!
//! Owns the one form in which trees from all sources meet: interop cases (`expected.json`), directories of the
//! host, mounts inside a guest (the `treewalk` program) and the synthetic front-end's walk.

pub mod compare;
pub mod entry;
pub mod generate;
pub mod host;

pub use compare::{Ignore, compare};
pub use entry::{Kind, Tree, TreeEntry};
