//! The HTTP API over a unix socket (nydusd-cli-api.md sections 3 and 4).
//!
//! Owns: routes, texts, and the server. Does not own: what is asked of the daemon ([`crate::daemon`]). Guests are served by
//! other threads, and nothing here is locked while they are.

mod answer;
mod clock;
mod info;
mod metrics;
mod prometheus;
mod routes;
mod server;

pub use answer::Answer;
pub use routes::{App, Request, Work};
pub use server::{ApiServer, BODY_MAX};
