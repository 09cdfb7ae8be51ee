//! What tests need around the program under test: processes, built binaries and the daemons to talk to.

pub mod afar;
pub mod api;
pub mod binaries;
pub mod daemon;
pub mod fuse_mode;
pub mod image;
pub mod process;
pub mod random;
pub mod served;
pub mod supervisor;
pub mod wait;
