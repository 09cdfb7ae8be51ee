//! Network stores against real servers on loopback.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking"
)]

mod buckets;
mod http;
mod reading;
mod registry;
mod support;
