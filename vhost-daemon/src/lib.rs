//! rafsd: serves RAFS images to virtual machines over virtio-fs.
//!
//! What lives here: [`fuse`] (the wire and its dispatch, no transport), [`virtio`] (the vhost-user device,
//! the only place that touches guest memory), [`mounts`] (what guests see), `daemon` (what is mounted,
//! who sees it), `api` (HTTP), `config` (configuration files) and `cli` (the command line). Images and their data are the library `rafs`.

#[cfg(feature = "texts")]
pub mod api;
#[cfg(feature = "daemon")]
pub mod cli;
#[cfg(feature = "texts")]
pub mod config;
#[cfg(feature = "daemon")]
pub mod daemon;
pub mod fuse;
#[cfg(feature = "daemon")]
pub mod fusedev;
#[cfg(feature = "daemon")]
pub mod image_ref;
mod interrupt;
#[cfg(feature = "daemon")]
pub mod log_level;
mod log_limit;
pub mod mounts;
#[cfg(feature = "daemon")]
mod notify;
pub mod virtio;
#[cfg(feature = "texts")]
pub mod wording;
