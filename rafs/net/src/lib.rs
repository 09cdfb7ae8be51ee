//! Blobs from afar: stores behind HTTP.
//!
//! Owns: HTTP itself (connections, proxies, retries, lengths), registries and their tokens, object stores and their
//! signatures, the sections of configuration files that name a store. Does not own: what the bytes mean, whether they
//! are right (the reader verifies), caches, the rest of configuration files. Everything that servers say is hostile:
//! lengths are checked, bodies bounded, and credentials go to nobody but those who were configured or named by them.

mod answer;
mod backend;
mod bucket;
mod client;
mod clock;
mod endpoint;
mod environment;
mod error;
mod failure;
mod identity;
mod limit;
mod link;
mod metrics;
mod mirror;
mod options;
mod oss;
mod plain_http;
mod proxy;
mod registry;
mod runtime;
mod s3;
mod store;
mod urls;

pub use backend::{Backend, LocalDisk, LocalFs};
pub use environment::Environment;
pub use error::NetError;
pub use metrics::{LATENCY_BUCKETS_MS, NetCounters};
pub use options::{
    HttpOptions, HttpProxyOptions, KeyPair, MirrorOptions, OssOptions, ProxyOptions, RegistryOptions,
    S3Options, Scheme, Secret, headers_from_env,
};
pub use registry::fetch_manifest;
pub use runtime::NetRuntime;
pub use store::NetStore;
