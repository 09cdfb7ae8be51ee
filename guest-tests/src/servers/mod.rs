//! Servers that blobs come from: our own, which misbehaves on request, and Debian's.

mod blob_server;
mod canned;
mod debian;
mod faults;
mod http;
mod signatures;
mod token_service;

pub use blob_server::{Access, BlobServer, Record, Settings};
pub use canned::{Canned, CannedServer};
pub use debian::{DockerRegistry, Nginx, Tinyproxy, installed};
pub use faults::Fault;
pub use token_service::{TokenService, TokenSettings};
