//! Real Linux guests: Debian's cloud kernel under QEMU's emulator, no root, no network, no disk.
//!
//! [`image`] makes kernel and initial file system, [`vm`] runs them. The programs that run inside are busybox and
//! this crate's `treewalk`, linked statically.

pub mod cpio;
pub mod image;
pub mod vm;

pub use image::GuestImage;
pub use vm::{Ending, Vm, VmOptions};
