//! The v6 bootstrap: EROFS with RAFS tables (rafs-v6.md).
//!
//! Owns: the order of its parts and the writing of superblocks, tables, inodes. Does not own: where inodes
//! lie (`layout`), directory blocks (`dirents`), xattr areas (`xattrs`).

mod dirents;
mod layout;
mod tables;
mod xattrs;

use super::{Model, Sink};
use crate::error::BuildError;
use crate::tree::NodeId;
use dirents::Directory;
use layout::{Layout, Place};
use rafs::layout::v6::{
    AREA_ALIGNMENT, CHUNK_FORMAT_BITS_MASK, CHUNK_FORMAT_INDEXES, ChunkAddress, ExtendedInode,
    LAYOUT_CHUNK_BASED, LAYOUT_FLAT_INLINE, LAYOUT_FLAT_PLAIN, NID_UNIT,
};
use zerocopy::{FromZeros, IntoBytes};

/// Format bit of 64-byte inodes.
const FORMAT_EXTENDED: u16 = 1;

/// Writes the bootstrap.
pub(super) fn write(model: &Model<'_>, sink: &mut dyn Sink) -> Result<(), BuildError> {
    let layout = Layout::new(model)?;
    let positions = tables::Positions::new(model, &layout)?;
    let mut writer = Writer { model, layout: &layout, sink, at: 0, meta: positions.meta, block: Vec::new() };
    tables::write_head(&mut writer, &positions)?;
    writer.inodes()?;
    writer.data_blocks()?;
    writer.pad_to(positions.chunk_table)?;
    tables::write_chunk_table(&mut writer, &positions)?;
    writer.pad_to(positions.end)
}

/// Writes in order and knows where it is.
struct Writer<'a, 'm> {
    model: &'a Model<'m>,
    layout: &'a Layout,
    sink: &'a mut dyn Sink,
    at: u64,
    /// Start of the meta area.
    meta: u64,
    block: Vec<u8>,
}

impl Writer<'_, '_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        self.at += bytes.len() as u64;
        self.sink.write(bytes)
    }

    fn pad_to(&mut self, offset: u64) -> Result<(), BuildError> {
        self.sink.zeros(offset - self.at)?;
        self.at = offset;
        Ok(())
    }

    fn data_address(&self, block: u32) -> Result<u32, BuildError> {
        u32::try_from((self.meta + self.layout.data_offset(block)) / self.model.block())
            .map_err(|_| BuildError::Limit { what: "blocks of v6 metadata", limit: u64::from(u32::MAX) })
    }

    fn inodes(&mut self) -> Result<(), BuildError> {
        for id in &self.layout.placed {
            self.pad_to(self.meta + u64::from(self.layout.nid(*id)) * NID_UNIT)?;
            self.inode(*id)?;
        }
        Ok(())
    }

    fn inode(&mut self, id: NodeId) -> Result<(), BuildError> {
        let model = self.model;
        let node = model.tree.node(id);
        let owner = model.tree.owner(id);
        let attributes = &node.attributes;
        let place = self.layout.place(model, id);
        let xattrs = model.tree.xattrs(id);
        let mut inode = ExtendedInode::new_zeroed();
        let format = match place {
            Place::Inline { .. } => LAYOUT_FLAT_INLINE,
            Place::Plain { .. } => LAYOUT_FLAT_PLAIN,
            Place::Chunks => LAYOUT_CHUNK_BASED,
        };
        inode.format = (FORMAT_EXTENDED | format << 1).into();
        inode.xattr_icount = xattrs::count_word(xattrs).into();
        // The layout checked every mode: 16 bits.
        inode.mode = u16::try_from(attributes.mode & 0xffff).unwrap_or_default().into();
        inode.size = if node.is_dir() || node.is_symlink() || node.is_file() {
            layout::data_size(model, id)
        } else {
            0
        }
        .into();
        inode.u = match place {
            Place::Inline { block } | Place::Plain { block: Some(block) } => self.data_address(block)?,
            Place::Plain { block: None } if node.is_device() => attributes.rdev,
            Place::Plain { block: None } => 0,
            Place::Chunks => u32::from(self.chunk_format(node.owner)),
        }
        .into();
        inode.ino = owner.ino.into();
        inode.uid = attributes.uid.into();
        inode.gid = attributes.gid.into();
        inode.mtime_sec = attributes.mtime_sec.cast_unsigned().into();
        inode.mtime_nsec = attributes.mtime_nsec.into();
        inode.nlink = owner.nlink.into();
        self.put(inode.as_bytes())?;
        let mut area = Vec::new();
        xattrs::encode(xattrs, &mut area);
        self.put(&area)?;
        match place {
            Place::Inline { .. } => self.tail(id),
            Place::Chunks => self.chunk_addresses(node.owner),
            Place::Plain { .. } => Ok(()),
        }
    }

    /// The last, partial block of a directory's or symlink's data.
    fn tail(&mut self, id: NodeId) -> Result<(), BuildError> {
        if self.model.tree.node(id).is_symlink() {
            let target = self.model.tree.target(id);
            let tail = usize::try_from(target.len() as u64 % self.model.block()).unwrap_or_default();
            return self.put(&target[target.len() - tail..]);
        }
        let directory = Directory::new(self.model, id);
        let last = directory.blocks().last().unwrap_or(0..0);
        let mut block = std::mem::take(&mut self.block);
        directory.fill(self.layout, last, &mut block);
        let result = self.put(&block);
        self.block = block;
        result
    }

    /// Whole blocks of directories and symlinks, in the order of their inodes.
    fn data_blocks(&mut self) -> Result<(), BuildError> {
        for id in &self.layout.placed {
            let place = self.layout.place(self.model, *id);
            let Some(block) = place.first_block() else { continue };
            self.pad_to(self.meta + self.layout.data_offset(block))?;
            let size = layout::data_size(self.model, *id);
            let unit = self.model.block();
            let inline = matches!(place, Place::Inline { .. });
            let whole = if inline { size / unit } else { size.div_ceil(unit) };
            if self.model.tree.node(*id).is_symlink() {
                let target = self.model.tree.target(*id);
                let len = usize::try_from(whole * unit).map_or(target.len(), |len| len.min(target.len()));
                self.put(&target[..len])?;
                continue;
            }
            let directory = Directory::new(self.model, *id);
            for (entries, _) in directory.blocks().zip(0..whole) {
                self.pad_to(self.at.next_multiple_of(unit))?;
                let mut block = std::mem::take(&mut self.block);
                directory.fill(self.layout, entries, &mut block);
                let result = self.put(&block);
                self.block = block;
                result?;
            }
        }
        Ok(())
    }

    /// Chunk format of a file (rafs-v6.md section 11).
    fn chunk_format(&self, owner: NodeId) -> u16 {
        let chunk_size = u64::from(self.model.chunk_size.get());
        let size = self.model.tree.node(owner).attributes.size;
        let chunks = self.model.file_chunks(owner);
        let contiguous = size > chunk_size
            && chunks.windows(2).all(|pair| {
                let (a, b) = (&self.model.chunks[pair[0] as usize], &self.model.chunks[pair[1] as usize]);
                a.blob == b.blob && a.uncompressed_offset + chunk_size == b.uncompressed_offset
            });
        let image_bits = chunk_size.trailing_zeros() - u32::from(self.model.block_bits());
        let bits = if contiguous {
            let whole = size
                .checked_next_power_of_two()
                .map_or(image_bits, |c| c.trailing_zeros() - u32::from(self.model.block_bits()));
            if whole <= u32::from(CHUNK_FORMAT_BITS_MASK) { whole } else { image_bits }
        } else {
            image_bits
        };
        CHUNK_FORMAT_INDEXES | u16::try_from(bits).unwrap_or(0)
    }

    fn chunk_addresses(&mut self, owner: NodeId) -> Result<(), BuildError> {
        self.pad_to(self.at.next_multiple_of(8))?;
        for chunk in self.model.file_chunks(owner) {
            let chunk = &self.model.chunks[*chunk as usize];
            let too_large =
                BuildError::Limit { what: "addressable blocks, blobs or chunks", limit: u64::from(u32::MAX) };
            let parts = (
                u16::try_from(chunk.index & 0xffff),
                u8::try_from(chunk.index >> 16),
                u8::try_from(chunk.blob + 1),
                u32::try_from(chunk.uncompressed_offset / self.model.block()),
            );
            let (Ok(lo), Ok(hi), Ok(device), Ok(block)) = parts else { return Err(too_large) };
            let address = ChunkAddress { chunk_lo: lo.into(), device, chunk_hi: hi, block: block.into() };
            self.put(address.as_bytes())?;
        }
        Ok(())
    }
}

/// `offset` rounded up to where an area may start.
fn align_area(offset: u64) -> u64 {
    offset.next_multiple_of(AREA_ALIGNMENT)
}
