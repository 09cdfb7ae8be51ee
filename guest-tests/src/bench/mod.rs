//! End-to-end measurements: requests through virtqueues into a daemon, as a guest makes them.
//!
//! [`load`] makes the requests, [`table`] the figures. The same front-end, tree and rounds serve every daemon.

pub mod load;
pub mod table;
