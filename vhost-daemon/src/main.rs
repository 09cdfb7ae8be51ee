//! The `rafsd` daemon.
fn main() {}
