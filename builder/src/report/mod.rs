//! `report`: where the bytes of an image are.
//!
//! Owns: the figures. Does not own: the page (`page`), which parts of the tree it shows (`tree`).
//!
//! A chunk's stored bytes are charged to the first file, in the order of the walk, that uses it; so the parts add up
//! to what is stored. A file with several names counts once, at the first. Memory: some 60 bytes a chunk, 150 a
//! directory, 60 a file that is large within its directory.

mod collect;
mod kinds;
mod page;
mod text;
mod tree;

pub(crate) use collect::collect;
pub(crate) use page::render as page;
pub(crate) use text::render as text;

use crate::error::BuildError;
use crate::study::{Shown, json_name};
use rafs::image::Image;
use serde_json::{Value, json};
use tree::Tree;

/// Everything a report says.
#[derive(Debug)]
pub(crate) struct Report<'a> {
    /// File name of the bootstrap.
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) compressor: String,
    pub(crate) digester: String,
    pub(crate) chunk_size: u32,
    pub(crate) bootstrap_size: u64,
    pub(crate) totals: Totals,
    pub(crate) layers: Vec<Layer>,
    /// By class of file, in the order of the classes.
    pub(crate) classes: Vec<Kind>,
    /// By ending, the largest first, the last one what is left.
    pub(crate) kinds: Vec<Kind>,
    pub(crate) largest: Vec<LargeFile>,
    pub(crate) duplicates: Vec<Duplicate>,
    pub(crate) tree: Tree<'a>,
}

/// Sums over the whole image.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub(crate) struct Totals {
    pub(crate) directories: u64,
    /// Regular files, those with several names once.
    pub(crate) files: u64,
    /// Further names of files.
    pub(crate) hardlinks: u64,
    pub(crate) symlinks: u64,
    pub(crate) specials: u64,
    /// Bytes of regular files.
    pub(crate) file_bytes: u64,
    /// Bytes that chunks in use take in blobs.
    pub(crate) stored_bytes: u64,
    /// Distinct chunks in use.
    pub(crate) chunks: u64,
    /// Uses of chunks by files.
    pub(crate) references: u64,
    /// Plain bytes that need no room because their chunk is stored already.
    pub(crate) deduplicated_bytes: u64,
    /// Stored bytes of chunks whose content another stored chunk has too.
    pub(crate) stored_twice_bytes: u64,
    /// Stored sizes are estimates in part (batches, tar.gz layers).
    pub(crate) estimated: bool,
}

/// One blob.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub(crate) struct Layer {
    pub(crate) id: String,
    pub(crate) compressor: String,
    /// Bytes of the blob file; 0 when the image does not say.
    pub(crate) blob_bytes: u64,
    /// Bytes of its chunk data.
    pub(crate) data_bytes: u64,
    /// Chunks in the blob, where the image says.
    pub(crate) chunks: Option<u32>,
    /// Of them, those that files use.
    pub(crate) used_chunks: u64,
    pub(crate) used_plain_bytes: u64,
    pub(crate) used_stored_bytes: u64,
    /// Files with their first chunk here.
    pub(crate) files: u64,
}

impl Layer {
    /// Bytes of chunk data that no file uses; less than a byte a chunk is what estimates were rounded by.
    pub(crate) fn unused(&self) -> u64 {
        let unused = self.data_bytes.saturating_sub(self.used_stored_bytes);
        if unused > self.used_chunks { unused } else { 0 }
    }
}

/// Files of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) files: u64,
    pub(crate) file_bytes: u64,
    pub(crate) stored_bytes: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct LargeFile {
    pub(crate) path: Vec<u8>,
    pub(crate) file_bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) layer: Option<u32>,
}

/// A content that several pieces of files have.
#[derive(Clone, Debug, Default)]
pub(crate) struct Duplicate {
    /// Plain bytes.
    pub(crate) len: u32,
    /// Stored bytes of one copy.
    pub(crate) stored: u64,
    /// Uses by files.
    pub(crate) references: u64,
    /// Copies in blobs.
    pub(crate) copies: u64,
    pub(crate) zeros: bool,
    /// Hexadecimal start of the digest; empty when there is none.
    pub(crate) digest: String,
    /// Blobs that hold a copy.
    pub(crate) layers: Vec<u32>,
    /// Files that use it.
    pub(crate) files: u64,
    /// The first of them.
    pub(crate) users: Vec<Vec<u8>>,
}

impl Duplicate {
    /// Plain bytes that were not stored again.
    pub(crate) fn saved(&self) -> u64 {
        self.references.saturating_sub(self.copies).saturating_mul(u64::from(self.len))
    }
}

impl Report<'_> {
    /// The report for programs; lists are as long as on the page.
    pub(crate) fn json(&self) -> Value {
        let path = |key: &str, bytes: &[u8], mut value: Value| {
            if let Some(object) = value.as_object_mut() {
                json_name(object, key, bytes);
            }
            value
        };
        let kind = |k: &Kind| json!({"name": k.name, "files": k.files, "file_bytes": k.file_bytes, "stored_bytes": k.stored_bytes});
        let file = |f: &LargeFile| {
            let value = json!({"file_bytes": f.file_bytes, "stored_bytes": f.stored_bytes, "layer": f.layer});
            path("path", &f.path, value)
        };
        let duplicate = |d: &Duplicate| {
            json!({
                "bytes": d.len, "stored_bytes": d.stored, "uses": d.references, "copies": d.copies,
                "saved_bytes": d.saved(), "zeros": d.zeros, "digest": d.digest, "layers": d.layers,
                "files": d.files,
                "users": d.users.iter().map(|user| Shown(user).to_string()).collect::<Vec<_>>(),
            })
        };
        let layer = |layer: &Layer| {
            let mut value = json!(layer);
            value["unused_bytes"] = layer.unused().into();
            value
        };
        let top = self.tree.top_directories();
        let directory = |(name, plain, stored, files): &(Vec<u8>, u64, u64, u64)| {
            path("path", name, json!({"file_bytes": plain, "stored_bytes": stored, "files": files}))
        };
        json!({
            "image": self.name,
            "fs_version": self.version,
            "compressor": self.compressor,
            "digester": self.digester,
            "chunk_size": self.chunk_size,
            "bootstrap_bytes": self.bootstrap_size,
            "totals": self.totals,
            "layers": self.layers.iter().map(layer).collect::<Vec<_>>(),
            "directories": top.iter().map(directory).collect::<Vec<_>>(),
            "classes": self.classes.iter().map(kind).collect::<Vec<_>>(),
            "endings": self.kinds.iter().map(kind).collect::<Vec<_>>(),
            "largest": self.largest.iter().map(file).collect::<Vec<_>>(),
            "duplicates": self.duplicates.iter().map(duplicate).collect::<Vec<_>>(),
        })
    }
}

/// Stored bytes for 100 plain ones; `None` when there are none.
pub(crate) fn percent(stored: u64, plain: u64) -> Option<u64> {
    (u128::from(stored) * 100).checked_div(u128::from(plain)).map(|n| u64::try_from(n).unwrap_or(u64::MAX))
}

fn corrupt(image: &Image, error: rafs::image::InodeError) -> BuildError {
    BuildError::Image { path: image.name().into(), reason: error.to_string() }
}
