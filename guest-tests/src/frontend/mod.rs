//! A synthetic vhost-user front-end: a guest in a memfd that speaks FUSE through virtqueues.
//!
//! From the bottom up: [`memory`] is the guest's RAM, [`control`] the vhost-user socket, [`ring`] one
//! split virtqueue, [`device`] a negotiated connection with all its rings, [`session`] FUSE requests in
//! flight over those rings, [`client`] one typed method per FUSE operation and [`walk`] a walker that
//! reads a whole tree with many requests in flight. Misbehaving on purpose is [`crate::hostile`]'s work.
//!
//! Everything runs on the caller's thread; waiting is bounded by the deadline given to
//! [`device::Options::timeout`].

pub mod buffers;
pub mod client;
pub mod control;
pub mod device;
pub mod error;
pub mod fuse;
pub mod memory;
pub mod ring;
pub mod session;
pub mod walk;

pub use client::Client;
pub use device::{Device, Options};
pub use error::FrontendError;
pub use session::Session;
