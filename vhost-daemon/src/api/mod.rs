//! The HTTP API over a unix socket (nydusd-cli-api.md sections 3 and 4).
//!
//! Owns: routes, texts, and the server. Does not own: what is asked of the daemon (`crate::daemon`). Guests are served by
//! other threads, and nothing here is locked while they are.

mod answer;
mod call;
#[cfg(feature = "daemon")]
mod clock;
#[cfg(feature = "daemon")]
mod failure;
#[cfg(feature = "daemon")]
mod info;
#[cfg(feature = "daemon")]
mod metrics;
#[cfg(feature = "daemon")]
mod porter;
#[cfg(feature = "daemon")]
mod prometheus;
#[cfg(feature = "daemon")]
mod routes;
#[cfg(feature = "daemon")]
mod runtime;
#[cfg(feature = "daemon")]
mod server;

pub use answer::Answer;
pub use call::{Call, Metrics, MountBody, Mountpoint, Request, SocketBody};
#[cfg(feature = "daemon")]
pub use routes::{App, Work};
#[cfg(feature = "daemon")]
pub use server::{ApiServer, BODY_MAX};
