//! Which images can be parts of one image (build-rules.md sections 6 to 8).
//!
//! Owns: the list of properties that must agree. Does not own: loading.

use crate::options::{ImageOptions, Version};
use rafs::codec::{Compressor, Digester};
use rafs::image::Image;
use rafs::layout::SuperFlags;

/// What must agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Compatible {
    pub version: Version,
    pub chunk_size: u32,
    pub explicit_ids: bool,
    pub tarfs: bool,
    pub digester: Digester,
    pub compressor: Compressor,
}

impl Compatible {
    /// Of an image.
    pub(crate) fn of(image: &Image) -> Self {
        let flags = image.flags();
        Self {
            version: image.version(),
            chunk_size: image.chunk_size(),
            explicit_ids: flags.contains(SuperFlags::EXPLICIT_UID_GID),
            tarfs: flags.contains(SuperFlags::TARFS_MODE),
            digester: image.digester(),
            compressor: image.compressor(),
        }
    }

    /// Of an image that will be built.
    pub(crate) fn of_options(options: &ImageOptions) -> Self {
        Self {
            version: options.version,
            chunk_size: options.chunk_size.get(),
            explicit_ids: !options.repeatable,
            tarfs: false,
            digester: options.digester,
            compressor: options.compressor,
        }
    }

    /// Why `self` cannot be a part of `target`, if so. A chunk dictionary gives chunks only: for one the
    /// compressor counts in v5, where the superblock has the only one, and nothing else more.
    pub(crate) fn difference(&self, target: &Self) -> Option<String> {
        let differs = |what: &str, own: &dyn std::fmt::Display, other: &dyn std::fmt::Display| {
            Some(format!(
                "Inconsistent RAFS Filesystem: Using inconsistent RAFS {what} {own}, target RAFS {what} {other}"
            ))
        };
        if self.version != target.version {
            return differs(
                "version",
                &format_args!("V{}", self.version),
                &format_args!("V{}", target.version),
            );
        }
        if self.chunk_size != target.chunk_size {
            return differs("chunk size", &self.chunk_size, &target.chunk_size);
        }
        if self.explicit_ids != target.explicit_ids {
            return differs("explicit_uidgid", &self.explicit_ids, &target.explicit_ids);
        }
        if self.tarfs != target.tarfs {
            return differs("tarfs mode", &self.tarfs, &target.tarfs);
        }
        if self.version == Version::V5 && self.digester != target.digester {
            return differs("digester", &self.digester, &target.digester);
        }
        // v5 has one compressor for all blobs; what another one stored could not be read.
        if self.version == Version::V5 && self.compressor != target.compressor {
            return differs("compressor", &self.compressor, &target.compressor);
        }
        None
    }
}
