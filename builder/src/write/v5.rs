//! The v5 bootstrap (rafs-v5.md).
//!
//! Owns: order and sizes of its parts, inode digests, directory sizes. Does not own: numbering.

use super::{Model, Sink};
use crate::error::BuildError;
use crate::tree::{NodeId, ROOT};
use rafs::codec::{Digest, Hasher};
use rafs::layout::v5::{
    ALIGNMENT, ExtendedBlob, INODE_OFFSET_UNIT, Inode, InodeFlags, MAGIC, SUPERBLOCK_SIZE, SuperBlock,
    VERSION,
};
use zerocopy::{FromZeros, IntoBytes};

const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;
/// Bytes that a child adds to its directory's size, besides its name (rafs-v5.md section 12).
const CHILD_SIZE: u64 = 8;

/// Writes the bootstrap.
pub(super) fn write(model: &Model<'_>, sink: &mut dyn Sink) -> Result<(), BuildError> {
    let numbered = &model.order.numbered;
    let blob_table = blob_table(model)?;
    let inode_table_offset = SUPERBLOCK_SIZE as u64;
    let prefetch_table_offset = inode_table_offset + align(4 * numbered.len() as u64);
    let blob_table_offset = prefetch_table_offset + align(4 * model.prefetch.len() as u64);
    let extended_offset = blob_table_offset + blob_table.len() as u64;
    let records_offset = extended_offset + (model.blobs.len() * size_of::<ExtendedBlob>()) as u64;
    let offsets = record_offsets(model, records_offset)?;
    let superblock = SuperBlock {
        magic: MAGIC.into(),
        version: VERSION.into(),
        superblock_size: count(SUPERBLOCK_SIZE)?.into(),
        chunk_size: model.chunk_size.get().into(),
        flags: model.flags().bits().into(),
        inodes_count: model.order.inodes.into(),
        inode_table_offset: inode_table_offset.into(),
        prefetch_table_offset: prefetch_table_offset.into(),
        blob_table_offset: blob_table_offset.into(),
        inode_table_entries: count(numbered.len())?.into(),
        prefetch_table_entries: count(model.prefetch.len())?.into(),
        blob_table_size: count(blob_table.len())?.into(),
        extended_blob_table_entries: count(model.blobs.len())?.into(),
        extended_blob_table_offset: extended_offset.into(),
    };
    sink.write(superblock.as_bytes())?;
    sink.zeros((SUPERBLOCK_SIZE - size_of::<SuperBlock>()) as u64)?;
    for offset in &offsets {
        sink.write(&offset.to_le_bytes())?;
    }
    pad(sink, 4 * numbered.len())?;
    for node in &model.prefetch {
        sink.write(&model.tree.owner(*node).ino.to_le_bytes())?;
    }
    pad(sink, 4 * model.prefetch.len())?;
    sink.write(&blob_table)?;
    for blob in model.blobs {
        let mut entry = ExtendedBlob::new_zeroed();
        entry.chunk_count = blob.chunk_count.unwrap_or(0).into();
        entry.features = blob.features.bits().into();
        entry.uncompressed_size = blob.uncompressed_size.into();
        entry.compressed_size = blob.compressed_size.into();
        sink.write(entry.as_bytes())?;
    }
    let digests = inode_digests(model);
    for node in model.order.depth_first(model.tree) {
        write_record(model, node, &digests, sink)?;
    }
    Ok(())
}

fn blob_table(model: &Model<'_>) -> Result<Vec<u8>, BuildError> {
    let mut table = Vec::new();
    for (at, blob) in model.blobs.iter().enumerate() {
        if at > 0 {
            table.push(0);
        }
        table.extend_from_slice(&0_u32.to_le_bytes());
        table.extend_from_slice(&blob.prefetch_size.to_le_bytes());
        table.extend_from_slice(blob.id.as_bytes());
    }
    table.resize(table.len().next_multiple_of(ALIGNMENT), 0);
    Ok(table)
}

/// Inode table values, by number.
fn record_offsets(model: &Model<'_>, start: u64) -> Result<Vec<u32>, BuildError> {
    let mut offsets = vec![0; model.order.numbered.len()];
    let mut at = start;
    for id in model.order.depth_first(model.tree) {
        let value = u32::try_from(at / INODE_OFFSET_UNIT).ok().filter(|value| *value < 1 << 29);
        let number = model.tree.node(id).number as usize;
        offsets[number - 1] = value.ok_or(BuildError::Limit {
            what: "bytes of v5 metadata (use --fs-version 6)",
            limit: (1 << 32) - 1,
        })?;
        at += record_size(model, id);
    }
    Ok(offsets)
}

fn record_size(model: &Model<'_>, id: NodeId) -> u64 {
    let xattrs = xattr_content(model, id);
    let xattrs = if xattrs == 0 { 0 } else { 8 + align(xattrs) };
    let chunks = file_chunks(model, id).len() * size_of::<rafs::layout::chunk::ChunkRecord>();
    size_of::<Inode>() as u64
        + align(name(model, id).len() as u64)
        + align(model.tree.target(id).len() as u64)
        + xattrs
        + chunks as u64
}

fn name<'a>(model: &Model<'a>, id: NodeId) -> &'a [u8] {
    if id == ROOT { b"/" } else { model.tree.name(id) }
}

fn file_chunks<'a>(model: &'a Model<'_>, id: NodeId) -> &'a [u32] {
    let node = model.tree.node(id);
    if node.is_file() { model.file_chunks(node.owner) } else { &[] }
}

/// Bytes of the xattr pairs, without header and padding.
fn xattr_content(model: &Model<'_>, id: NodeId) -> u64 {
    model.tree.xattrs(id).iter().map(|(name, value)| 4 + (name.len() + 1 + value.len()) as u64).sum()
}

/// Digest of every inode, by number (rafs-v5.md section 13).
fn inode_digests(model: &Model<'_>) -> Vec<Digest> {
    let numbered = &model.order.numbered;
    let mut digests = vec![Digest::default(); numbered.len()];
    // Children have higher numbers than their directory.
    for (at, id) in numbered.iter().enumerate().rev() {
        let node = model.tree.node(*id);
        let mut hasher = Hasher::new(model.digester);
        if node.is_dir() {
            let first = model.order.first_child_number(model.tree, *id) as usize - 1;
            for child in &digests[first..first + node.child_count() as usize] {
                hasher.update(child);
            }
        } else if node.is_symlink() {
            hasher.update(model.tree.target(*id));
        } else {
            for chunk in file_chunks(model, *id) {
                hasher.update(&model.chunks[*chunk as usize].digest);
            }
        }
        digests[at] = hasher.finish();
    }
    digests
}

fn directory_size(model: &Model<'_>, id: NodeId) -> u64 {
    let children = model.order.children(model.tree, id);
    let sum: u64 = children.iter().map(|child| model.tree.name(*child).len() as u64 + CHILD_SIZE).sum();
    sum.next_multiple_of(BLOCK).max(BLOCK)
}

fn write_record(
    model: &Model<'_>,
    id: NodeId,
    digests: &[Digest],
    sink: &mut dyn Sink,
) -> Result<(), BuildError> {
    let node = model.tree.node(id);
    let owner = model.tree.owner(id);
    let attributes = &node.attributes;
    let chunks = file_chunks(model, id);
    let xattrs = model.tree.xattrs(id);
    let (name, target) = (name(model, id), model.tree.target(id));
    let mut inode = Inode::new_zeroed();
    inode.digest = digests[node.number as usize - 1];
    inode.parent = if id == ROOT { 0 } else { u64::from(model.tree.node(node.parent).ino) }.into();
    inode.ino = u64::from(owner.ino).into();
    inode.uid = attributes.uid.into();
    inode.gid = attributes.gid.into();
    inode.mode = attributes.mode.into();
    let size = if node.is_dir() { directory_size(model, id) } else { owner.attributes.size };
    inode.size = size.into();
    let xattr_content = xattr_content(model, id);
    inode.blocks = (size + align(xattr_content)).div_ceil(SECTOR).into();
    let mut flags = InodeFlags::empty();
    flags.set(InodeFlags::SYMLINK, node.is_symlink());
    flags.set(InodeFlags::XATTR, !xattrs.is_empty());
    inode.flags = flags.bits().into();
    inode.nlink = owner.nlink.into();
    if node.is_dir() {
        inode.child_index = model.order.first_child_number(model.tree, id).into();
        inode.child_count = node.child_count().into();
    } else {
        inode.child_count = count(chunks.len())?.into();
    }
    inode.name_size = short(name.len())?.into();
    inode.symlink_size = short(target.len())?.into();
    inode.rdev = attributes.rdev.into();
    inode.mtime_nsec = attributes.mtime_nsec.into();
    inode.mtime_sec = attributes.mtime_sec.cast_unsigned().into();
    sink.write(inode.as_bytes())?;
    for text in [name, target] {
        sink.write(text)?;
        pad(sink, text.len())?;
    }
    if !xattrs.is_empty() {
        sink.write(&xattr_content.to_le_bytes())?;
        for (name, value) in xattrs.iter() {
            sink.write(&count(name.len() + 1 + value.len())?.to_le_bytes())?;
            sink.write(name)?;
            sink.write(&[0])?;
            sink.write(value)?;
        }
        sink.zeros(align(xattr_content) - xattr_content)?;
    }
    let chunk_size = u64::from(model.chunk_size.get());
    for (at, chunk) in chunks.iter().enumerate() {
        sink.write(model.chunks[*chunk as usize].record(at as u64 * chunk_size).as_bytes())?;
    }
    Ok(())
}

fn align(size: u64) -> u64 {
    size.next_multiple_of(ALIGNMENT as u64)
}

fn pad(sink: &mut dyn Sink, size: usize) -> Result<(), BuildError> {
    sink.zeros((size.next_multiple_of(ALIGNMENT) - size) as u64)
}

fn count(n: usize) -> Result<u32, BuildError> {
    u32::try_from(n)
        .map_err(|_| BuildError::Limit { what: "entries in one v5 table", limit: u64::from(u32::MAX) })
}

fn short(n: usize) -> Result<u16, BuildError> {
    u16::try_from(n).map_err(|_| BuildError::Limit {
        what: "bytes in one name or symlink target",
        limit: u64::from(u16::MAX),
    })
}
