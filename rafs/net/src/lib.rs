//! Blobs from afar: stores behind HTTP.
//!
//! Owns: HTTP itself (connections, proxies, retries, lengths), registries and their tokens, object stores and their
//! signatures, the sections of configuration files that name a store. Does not own: what the bytes mean, whether they
//! are right (the reader verifies), caches, the rest of configuration files. Everything that servers say is hostile:
//! lengths are checked, bodies bounded, and credentials go to nobody but those who were configured or named by them.

#[cfg(feature = "client")]
mod answer;
mod backend;
#[cfg(feature = "client")]
mod bucket;
#[cfg(feature = "client")]
mod client;
#[cfg(feature = "client")]
mod clock;
#[cfg(feature = "client")]
mod endpoint;
mod environment;
mod error;
#[cfg(feature = "client")]
mod failure;
#[cfg(feature = "client")]
mod identity;
#[cfg(feature = "client")]
mod limit;
#[cfg(feature = "client")]
mod link;
#[cfg(feature = "client")]
mod metrics;
#[cfg(feature = "client")]
mod mirror;
#[cfg(feature = "client")]
mod open;
mod options;
#[cfg(feature = "client")]
mod oss;
#[cfg(feature = "client")]
mod plain_http;
#[cfg(feature = "client")]
mod proxy;
#[cfg(feature = "client")]
mod registry;
#[cfg(feature = "client")]
mod runtime;
#[cfg(feature = "client")]
mod s3;
#[cfg(feature = "client")]
mod store;
#[cfg(feature = "client")]
mod urls;

pub use backend::{Backend, LocalDisk, LocalFs};
#[cfg(feature = "client")]
pub use client::check_proxy_url;
pub use environment::Environment;
pub use error::NetError;
#[cfg(feature = "client")]
pub use metrics::{LATENCY_BUCKETS_MS, NetCounters};
#[cfg(feature = "client")]
pub use open::OpenedStore;
pub use options::{
    HttpOptions, HttpProxyOptions, KeyPair, MirrorOptions, OssOptions, ProxyOptions, RegistryOptions,
    S3Options, Scheme, Secret, headers_from_env,
};
#[cfg(feature = "client")]
pub use registry::{check_auth as check_registry_auth, fetch_manifest};
#[cfg(feature = "client")]
pub use runtime::NetRuntime;
#[cfg(feature = "client")]
pub use store::NetStore;
