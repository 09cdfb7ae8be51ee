//! `rafs`: RAFS (Nydus) images and the data behind them.
//!
//! What lives here, lowest room first:
//!
//! * [`layout`]: the bytes on disk, as plain structures. No logic, no I/O.
//! * [`ids`]: the numbers that must not be mixed up, as types of their own.
//! * [`guard`]: mapped memory whose bytes may vanish.
//! * [`codec`]: compress, decompress, digest, decipher one unit of data.
//! * [`image`]: opens and validates a bootstrap, and shows v5 and v6 as one read-only tree.
//! * [`blob`]: what is known of the chunks inside one blob, and how to get one chunk's plain bytes.
//! * [`store`]: where the bytes of blobs come from.
//! * [`cache`]: which chunks are here already, and getting those that are not.
//! * [`reader`]: (image, cache, store) to the bytes of a file: "ready now" or "will be ready".
//!
//! What does not: anything about FUSE, virtio, HTTP APIs or command lines. A module never names one that
//! stands below it in this list.

pub mod blob;
pub mod cache;
pub mod codec;
pub mod guard;
pub mod ids;
pub mod image;
pub mod lanes;
pub mod layout;
pub mod reader;
pub mod store;
pub mod trace;
