//! Walks an image twice: for the figures, and for the names of those that share chunks.
//!
//! Owns: the walks, who is charged for a chunk, the lists of the largest. Does not own: the tree's shape.

use super::kinds::{self, Class};
use super::tree::{DirId, FileNode, Tree};
use super::{Duplicate, Kind, LargeFile, Layer, Report, Totals, corrupt};
use crate::error::BuildError;
use crate::study::{ChunkFacts, Fact, zeros};
use rafs::blob;
use rafs::codec::Digester;
use rafs::image::{ChunkRef, FileKind, Image, Inode};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::path::Path;

/// Files in the list of the largest.
const LARGEST: usize = 100;
/// Contents in the list of duplicates.
const DUPLICATES: usize = 60;
/// Users that are named for each.
const USERS: usize = 25;
/// Endings that are listed.
const ENDINGS: usize = 40;

/// What is kept of one content while walking.
#[derive(Clone, Copy, Debug, Default)]
struct Use {
    len: u32,
    stored: u64,
    references: u64,
    copies: u64,
}

/// Reads `image`, which was checked, and whose bootstrap is `path`.
pub(crate) fn collect<'a>(facts: &ChunkFacts<'a>, path: &Path) -> Result<Report<'a>, BuildError> {
    let image = facts.image();
    let mut pass = Pass::new(facts)?;
    pass.walk()?;
    pass.tree.add_up();
    let duplicates = pass.duplicates()?;
    let Pass { tree, totals, layers, classes, endings, largest, .. } = pass;
    let mut largest: Vec<LargeFile> = largest.into_iter().map(|Reverse(found)| found.file).collect();
    largest.sort_by(|a, b| b.file_bytes.cmp(&a.file_bytes).then_with(|| a.path.cmp(&b.path)));
    let mut names: Vec<String> = image.blobs().iter().map(|blob| blob.compressor.to_string()).collect();
    names.sort();
    names.dedup();
    let digester = image.blobs().first().map_or_else(|| image.digester(), |blob| blob.digester);
    Ok(Report {
        name: path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned(),
        version: image.version().to_string(),
        compressor: if names.is_empty() { image.compressor().to_string() } else { names.join(", ") },
        digester: digester.to_string(),
        chunk_size: image.chunk_size(),
        bootstrap_size: image.bootstrap_size(),
        totals,
        layers,
        classes,
        kinds: sorted(endings),
        largest,
        duplicates,
        tree,
    })
}

fn sorted(endings: HashMap<Vec<u8>, Kind>) -> Vec<Kind> {
    let mut kinds: Vec<Kind> = endings.into_values().collect();
    kinds.sort_by(|a, b| b.file_bytes.cmp(&a.file_bytes).then_with(|| a.name.cmp(&b.name)));
    if kinds.len() > ENDINGS {
        let mut rest = Kind { name: format!("{} others", kinds.len() - ENDINGS), ..Kind::default() };
        for kind in kinds.drain(ENDINGS..) {
            rest.add(kind.files, kind.file_bytes, kind.stored_bytes);
        }
        kinds.push(rest);
    }
    kinds
}

impl Kind {
    fn add(&mut self, files: u64, plain: u64, stored: u64) {
        self.files += files;
        self.file_bytes = self.file_bytes.saturating_add(plain);
        self.stored_bytes = self.stored_bytes.saturating_add(stored);
    }
}

/// A candidate for the list of the largest; compared by size, earlier ones first.
#[derive(Debug)]
struct Found {
    order: (u64, Reverse<u64>),
    file: LargeFile,
}

impl PartialEq for Found {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Found {}

impl PartialOrd for Found {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Found {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

struct Pass<'a, 'f> {
    facts: &'f ChunkFacts<'a>,
    image: &'a Image,
    tree: Tree<'a>,
    totals: Totals,
    layers: Vec<Layer>,
    classes: Vec<Kind>,
    endings: HashMap<Vec<u8>, Kind>,
    largest: BinaryHeap<Reverse<Found>>,
    contents: HashMap<u128, Use>,
    places: HashSet<u128>,
    linked: HashSet<u64>,
}

/// Where a chunk is.
fn place(chunk: &ChunkRef) -> u128 {
    u128::from(chunk.blob.0) << 96
        | u128::from(chunk.uncompressed_size) << 64
        | u128::from(chunk.uncompressed_offset)
}

/// What a chunk holds, as far as it is known.
fn content(chunk: &ChunkRef, fact: &Fact) -> u128 {
    fact.key().map_or_else(|| place(chunk), u128::from)
}

impl<'a, 'f> Pass<'a, 'f> {
    fn new(facts: &'f ChunkFacts<'a>) -> Result<Self, BuildError> {
        let image = facts.image();
        let layers = image
            .blobs()
            .iter()
            .map(|info| Layer {
                id: info.id.clone(),
                compressor: info.compressor.to_string(),
                blob_bytes: info.compressed_size,
                data_bytes: blob::data_size(info),
                chunks: info.chunk_count,
                ..Layer::default()
            })
            .collect();
        let classes = Class::ALL
            .iter()
            .map(|class| Kind { name: class.name().to_owned(), ..Kind::default() })
            .collect();
        let root = image.inode(image.root()).map_err(|e| corrupt(image, e))?;
        Ok(Self {
            facts,
            image,
            tree: Tree::new(root),
            totals: Totals::default(),
            layers,
            classes,
            endings: HashMap::new(),
            largest: BinaryHeap::new(),
            contents: HashMap::new(),
            places: HashSet::new(),
            linked: HashSet::new(),
        })
    }

    fn walk(&mut self) -> Result<(), BuildError> {
        let mut pending = vec![DirId::ROOT];
        while let Some(dir) = pending.pop() {
            self.totals.directories += 1;
            let inode = self.tree.inode(dir);
            let first = pending.len();
            let mut files = Vec::new();
            for entry in self.image.read_dir(&inode, 0).map_err(|e| corrupt(self.image, e))? {
                let entry = entry.map_err(|e| corrupt(self.image, e))?;
                if matches!(entry.name, b"." | b"..") {
                    continue;
                }
                let child = self.image.inode(entry.number).map_err(|e| corrupt(self.image, e))?;
                match child.kind {
                    FileKind::Directory => pending.push(self.tree.add(dir, entry.name, child)),
                    FileKind::Regular => files.extend(self.file(dir, entry.name, &child)?),
                    FileKind::Symlink => self.totals.symlinks += 1,
                    _ => self.totals.specials += 1,
                }
            }
            pending[first..].reverse();
            self.tree.set_files(dir, files);
        }
        Ok(())
    }

    /// Takes a file into account. `None`: another name of one that was seen.
    fn file(
        &mut self,
        dir: DirId,
        name: &'a [u8],
        inode: &Inode,
    ) -> Result<Option<FileNode<'a>>, BuildError> {
        if inode.nlink > 1 && !self.linked.insert(inode.number.0) {
            self.totals.hardlinks += 1;
            return Ok(None);
        }
        let mut stored = 0_u64;
        let mut layer = None;
        for chunk in self.image.chunks(inode, 0, inode.size).map_err(|e| corrupt(self.image, e))? {
            let chunk = chunk.map_err(|e| corrupt(self.image, e))?;
            layer.get_or_insert(chunk.blob.0);
            stored = stored.saturating_add(self.chunk(&chunk));
        }
        let plain = inode.size;
        let (class, ending) = kinds::of(name, inode.mode);
        self.totals.files += 1;
        self.totals.file_bytes = self.totals.file_bytes.saturating_add(plain);
        self.totals.stored_bytes = self.totals.stored_bytes.saturating_add(stored);
        if let Some(layer) = layer.and_then(|n| self.layers.get_mut(n as usize)) {
            layer.files += 1;
        }
        if let Some(kind) = self.classes.get_mut(usize::from(class.number())) {
            kind.add(1, plain, stored);
        }
        let label = match (&ending[..], class) {
            ([], Class::Program) => "programs without ending".to_owned(),
            ([], _) => "without ending".to_owned(),
            (ending, _) => format!(".{}", String::from_utf8_lossy(ending)),
        };
        let key = if ending.is_empty() { label.clone().into_bytes() } else { ending };
        let kind = self.endings.entry(key).or_insert_with(|| Kind { name: label, ..Kind::default() });
        kind.add(1, plain, stored);
        self.note_largest(dir, name, plain, stored, layer);
        Ok(Some(FileNode { name, plain, stored, class: class.number(), layer }))
    }

    /// Takes one use of a chunk into account; returns the stored bytes that the user is charged with.
    fn chunk(&mut self, chunk: &ChunkRef) -> u64 {
        let fact = self.facts.of(chunk);
        let plain = u64::from(chunk.uncompressed_size);
        self.totals.references += 1;
        self.totals.estimated |= !fact.exact;
        let new_copy = self.places.insert(place(chunk));
        let one = self.contents.entry(content(chunk, &fact)).or_default();
        (one.len, one.stored) = (chunk.uncompressed_size, fact.stored);
        one.references += 1;
        if !new_copy {
            self.totals.deduplicated_bytes = self.totals.deduplicated_bytes.saturating_add(plain);
            return 0;
        }
        one.copies += 1;
        if one.copies > 1 {
            self.totals.stored_twice_bytes = self.totals.stored_twice_bytes.saturating_add(fact.stored);
        }
        self.totals.chunks += 1;
        if let Some(layer) = self.layers.get_mut(chunk.blob.as_usize()) {
            layer.used_chunks += 1;
            layer.used_plain_bytes = layer.used_plain_bytes.saturating_add(plain);
            layer.used_stored_bytes = layer.used_stored_bytes.saturating_add(fact.stored);
        }
        fact.stored
    }

    fn note_largest(&mut self, dir: DirId, name: &[u8], plain: u64, stored: u64, layer: Option<u32>) {
        let order = (plain, Reverse(self.totals.files));
        if self.largest.len() >= LARGEST {
            if self.largest.peek().is_some_and(|Reverse(least)| least.order >= order) {
                return;
            }
            self.largest.pop();
        }
        let file =
            LargeFile { path: self.tree.path(dir, name), file_bytes: plain, stored_bytes: stored, layer };
        self.largest.push(Reverse(Found { order, file }));
    }

    /// The contents with most bytes in further uses, and who uses them.
    fn duplicates(&mut self) -> Result<Vec<Duplicate>, BuildError> {
        let weight = |one: &Use| (one.references - 1).saturating_mul(u64::from(one.len));
        let mut shared: Vec<(u128, Use)> = self
            .contents
            .iter()
            .filter(|(_, one)| one.references > 1)
            .map(|(key, one)| (*key, *one))
            .collect();
        shared.sort_unstable_by_key(|(key, one)| (Reverse(weight(one)), *key));
        shared.truncate(DUPLICATES);
        let slots: HashMap<u128, usize> = shared.iter().zip(0..).map(|((key, _), at)| (*key, at)).collect();
        let mut duplicates: Vec<Duplicate> = shared
            .iter()
            .map(|(_, one)| Duplicate {
                len: one.len,
                stored: one.stored,
                references: one.references,
                copies: one.copies,
                ..Duplicate::default()
            })
            .collect();
        if !slots.is_empty() {
            self.name_users(&slots, &mut duplicates)?;
        }
        Ok(duplicates)
    }

    fn name_users(
        &mut self,
        slots: &HashMap<u128, usize>,
        duplicates: &mut [Duplicate],
    ) -> Result<(), BuildError> {
        let mut zero_digests: HashMap<(Digester, u32), [u8; 32]> = HashMap::new();
        let mut linked = HashSet::new();
        for dir in self.tree.directories() {
            let inode = self.tree.inode(dir);
            for entry in self.image.read_dir(&inode, 0).map_err(|e| corrupt(self.image, e))? {
                let entry = entry.map_err(|e| corrupt(self.image, e))?;
                if entry.kind != FileKind::Regular {
                    continue;
                }
                let child = self.image.inode(entry.number).map_err(|e| corrupt(self.image, e))?;
                if child.kind != FileKind::Regular || (child.nlink > 1 && !linked.insert(child.number)) {
                    continue;
                }
                let mut counted = HashSet::new();
                for chunk in self.image.chunks(&child, 0, child.size).map_err(|e| corrupt(self.image, e))? {
                    let chunk = chunk.map_err(|e| corrupt(self.image, e))?;
                    let fact = self.facts.of(&chunk);
                    let Some(slot) = slots.get(&content(&chunk, &fact)).copied() else { continue };
                    let Some(duplicate) = duplicates.get_mut(slot) else { continue };
                    if !duplicate.layers.contains(&chunk.blob.0) {
                        duplicate.layers.push(chunk.blob.0);
                    }
                    if duplicate.digest.is_empty()
                        && let Some((digester, digest)) = &fact.digest
                    {
                        duplicate.digest = hex::encode(&digest[..8]);
                        let zero = zero_digests
                            .entry((*digester, duplicate.len))
                            .or_insert_with(|| zeros(*digester, duplicate.len));
                        duplicate.zeros = zero == digest;
                    }
                    if counted.insert(slot) {
                        duplicate.files += 1;
                        if duplicate.users.len() < USERS {
                            duplicate.users.push(self.tree.path(dir, entry.name));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
