//! The `rafs-image` command.
fn main() {}
