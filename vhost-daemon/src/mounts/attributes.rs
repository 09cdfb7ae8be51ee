//! Node ids and attributes of an image's inodes (guest-view.md sections 1 and 2).
//!
//! Owns: the mapping between node ids and inode numbers, and from an inode to `stat`. A node id is a
//! function of the image and its mount index alone, so it survives restarts and migrations.

use super::backend::{INODE_BITS, INODE_MASK, Place};
use crate::fuse::abi::{Attr, ROOT_NODE};
use fuse_backend_rs::api::filesystem::Entry;
use rafs::ids::InodeNumber;
use rafs::image::{FileKind, Inode};

/// Preferred I/O size shown to guests, bytes.
pub(super) const BLOCK_SIZE: i64 = 4096;

/// The node ids of one image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nodes {
    place: Place,
    root: InodeNumber,
    ids: Option<IdShift>,
}

/// Ids `from .. from + count` of an image are shown as `to ..`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdShift {
    /// First id in the image.
    pub from: u32,
    /// What it is shown as.
    pub to: u32,
    /// How many, such that neither end is past 32 bits.
    pub count: u32,
}

impl IdShift {
    #[inline]
    fn shown(self, id: u32) -> u32 {
        match id.checked_sub(self.from) {
            Some(n) if n < self.count => self.to.saturating_add(n),
            _ => id,
        }
    }
}

impl Nodes {
    /// Node ids for an image at `place` whose root is `root`.
    pub(super) fn new(place: Place, root: InodeNumber, ids: Option<IdShift>) -> Self {
        Self { place, root, ids }
    }

    /// An owner as guests see it.
    #[inline]
    pub(super) fn id(self, id: u32) -> u32 {
        self.ids.map_or(id, |ids| ids.shown(id))
    }

    /// Generation of every node of this incarnation.
    #[inline]
    pub(super) fn generation(self) -> u64 {
        self.place.generation.into()
    }

    /// The image inode of a node id, `None` when it belongs to no mount. Any 64-bit value may come.
    pub(super) fn inode_number(self, node: u64) -> Option<InodeNumber> {
        if node == ROOT_NODE {
            return self.place.at_root.then_some(self.root);
        }
        (node >> INODE_BITS == u64::from(self.place.index)).then_some(InodeNumber(node & INODE_MASK))
    }

    /// The node id of an inode.
    pub(super) fn node(self, number: InodeNumber) -> u64 {
        if number == self.root && self.place.at_root { ROOT_NODE } else { self.shown(number) }
    }

    /// The inode number guests see in `st_ino` and `d_ino`.
    pub(super) fn shown(self, number: InodeNumber) -> u64 {
        u64::from(self.place.index) << INODE_BITS | (number.0 & INODE_MASK)
    }

    /// `stat` of an inode.
    pub(super) fn stat(self, inode: &Inode) -> libc::stat64 {
        // The only way to an empty stat64 without unsafe code: it has private padding.
        let mut stat = Entry::default().attr;
        stat.st_ino = self.shown(inode.number);
        stat.st_mode = inode.mode;
        stat.st_nlink = u64::from(inode.nlink);
        stat.st_uid = self.id(inode.uid);
        stat.st_gid = self.id(inode.gid);
        stat.st_rdev = u64::from(inode.rdev);
        stat.st_size = i64::try_from(inode.size).unwrap_or(i64::MAX);
        stat.st_blksize = BLOCK_SIZE;
        stat.st_blocks = i64::try_from(inode.blocks).unwrap_or(i64::MAX);
        // The image stores one time only.
        (stat.st_mtime, stat.st_mtime_nsec) = (inode.mtime_sec, i64::from(inode.mtime_nsec));
        (stat.st_atime, stat.st_atime_nsec) = (stat.st_mtime, stat.st_mtime_nsec);
        (stat.st_ctime, stat.st_ctime_nsec) = (stat.st_mtime, stat.st_mtime_nsec);
        stat
    }
}

impl Nodes {
    /// The same as [`Nodes::stat`] in wire form, for listings.
    #[inline]
    pub(super) fn attr(self, inode: &Inode) -> Attr {
        let seconds = inode.mtime_sec.cast_unsigned();
        Attr {
            ino: self.shown(inode.number),
            size: inode.size,
            blocks: inode.blocks,
            atime: seconds,
            mtime: seconds,
            ctime: seconds,
            atimensec: inode.mtime_nsec,
            mtimensec: inode.mtime_nsec,
            ctimensec: inode.mtime_nsec,
            mode: inode.mode,
            nlink: inode.nlink,
            uid: self.id(inode.uid),
            gid: self.id(inode.gid),
            rdev: inode.rdev,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// `DT_` type of a directory entry.
pub(super) fn entry_type(kind: FileKind) -> u32 {
    u32::from(match kind {
        FileKind::Regular => libc::DT_REG,
        FileKind::Directory => libc::DT_DIR,
        FileKind::Symlink => libc::DT_LNK,
        FileKind::CharDevice => libc::DT_CHR,
        FileKind::BlockDevice => libc::DT_BLK,
        FileKind::Fifo => libc::DT_FIFO,
        FileKind::Socket => libc::DT_SOCK,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_ids_go_both_ways() {
        let place = Place { index: 1, generation: 7, at_root: true };
        let nodes = Nodes::new(place, InodeNumber(128), None);
        assert_eq!(nodes.node(InodeNumber(128)), 1);
        assert_eq!(nodes.shown(InodeNumber(128)), 1 << 56 | 128);
        assert_eq!(nodes.inode_number(1), Some(InodeNumber(128)));
        assert_eq!(nodes.inode_number(1 << 56 | 200), Some(InodeNumber(200)));
        for foreign in [0, 2, 128, 2 << 56 | 128, u64::MAX] {
            assert_eq!(nodes.inode_number(foreign), None, "{foreign:#x}");
        }
        let below = Nodes::new(Place { at_root: false, ..place }, InodeNumber(128), None);
        assert_eq!(below.node(InodeNumber(128)), 1 << 56 | 128);
        assert_eq!(below.inode_number(1), None, "the namespace's root is somebody else's");
    }

    #[test]
    fn owners_are_shifted_in_the_range_only() {
        let shift = IdShift { from: 0, to: 100_000, count: 65_536 };
        assert_eq!([0, 1, 65_535, 65_536].map(|id| shift.shown(id)), [100_000, 100_001, 165_535, 65_536]);
    }
}
