//! The vhost-user device: a virtio-fs device for one front-end at a time.
//!
//! Owns: the socket and its connections, guest memory, rings and the crew that serves them, descriptor chains, parked
//! replies. It is the only place that touches guest memory. Does not own: what a request means.

mod call;
mod chain;
mod crew;
mod deferred;
mod device;
mod guest_buf;
mod harness;
mod lot;
mod memory;
mod parked;
mod peers;
mod pool;
mod reply;
mod ring;
mod ring_state;
mod service;
#[cfg(test)]
mod test_fs;
mod view;
mod worker;

use memory::GuestMemory;

pub use crew::Crew;
pub use harness::{Harness, HarnessWorker, RawDescriptor};
pub use service::{Service, ServiceError, ServiceOptions};
