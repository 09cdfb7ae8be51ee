//! `diff`: what changed between two images, or between an image and a directory.
//!
//! Owns: opening both sides, the order of the steps, the sums. Does not own: entries (`side`), contents (`content`),
//! chunks (`account`), the form of output (`cmd`).
//!
//! Both trees are walked side by side in name order, so memory grows with the depth of the trees, the largest
//! directory and the number of chunks, and not with the number of changes: these are handed out as they are found.

mod account;
mod change;
mod content;
mod side;
mod walk;

pub use account::{ChunkReport, ChunkSum};
pub use change::{Change, ChangeKind, Difference};

use crate::blobs::{BlobPlace, Blobs};
use crate::error::BuildError;
use crate::study::ChunkFacts;
use account::{Account, BlobNames, for_each_chunk, place};
use content::Cut;
use rafs::codec::Compressor;
use rafs::image::Image;
use side::Side;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What to compare.
#[derive(Clone, Debug, Default)]
pub struct DiffOptions {
    /// Two bootstraps (or blobs with an inlined one), or a bootstrap and a directory in either order.
    pub sides: [PathBuf; 2],
    /// Where the blobs of each side are. Needed only where contents cannot be told apart by digests.
    pub blobs: [Option<BlobPlace>; 2],
    /// Attributes that do not count: names as [`Difference::name`] gives them.
    pub ignore: Vec<String>,
}

/// What was found, in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct DiffSummary {
    /// Paths that only the second side has.
    pub added: u64,
    /// Paths that only the first side has.
    pub removed: u64,
    /// Paths that both have, with a difference.
    pub changed: u64,
    /// Paths that are the same.
    pub unchanged: u64,
    /// How many of the changed ones differ in an attribute.
    pub by_attribute: BTreeMap<&'static str, u64>,
    /// Bytes of regular files of each side, hardlinks counted at each name.
    pub file_bytes: [u64; 2],
    /// Chunks of the second side.
    pub chunks: ChunkReport,
}

impl DiffSummary {
    /// Whether both sides show the same tree.
    #[must_use]
    pub fn is_same(&self) -> bool {
        (self.added, self.removed, self.changed) == (0, 0, 0)
    }
}

/// Compares both sides and calls `found` with every difference, in the order of a walk.
///
/// # Errors
/// When a side cannot be read, with the path it was at; what `found` says.
pub fn diff(
    options: &DiffOptions,
    found: &mut dyn FnMut(&Change) -> Result<(), BuildError>,
) -> Result<DiffSummary, BuildError> {
    let images = [open(&options.sides[0])?, open(&options.sides[1])?];
    if images.iter().all(Option::is_none) {
        return Err(BuildError::Options(
            "both sides are directories: one of them must be an image (diff -r compares directories)"
                .to_owned(),
        ));
    }
    let facts = images.each_ref().map(|image| image.as_ref().map(ChunkFacts::new));
    let mut names = BlobNames::default();
    let numbers =
        images.each_ref().map(|image| image.as_ref().map_or_else(Vec::new, |image| names.of(image)));
    let side = |n: usize| match &images[n] {
        Some(image) => Ok(Side::Image(image)),
        None => Side::directory(&options.sides[n]),
    };
    let lazy = [OnceCell::new(), OnceCell::new()];
    let mut walk = walk::Walk {
        sides: [side(0)?, side(1)?],
        facts: facts.each_ref().map(Option::as_ref),
        images: images.each_ref().map(Option::as_ref),
        numbers: &numbers,
        options,
        blobs: &lazy,
        cut: images.iter().flatten().map(cut).next().unwrap_or(Cut {
            chunk_size: rafs::layout::CHUNK_SIZE_DEFAULT,
            digester: rafs::codec::Digester::Blake3,
        }),
        compressor: images.iter().flatten().map(compressor).next().unwrap_or(Compressor::Zstd),
        account: Account::default(),
        summary: DiffSummary::default(),
        leaders: Default::default(),
        buffers: Default::default(),
        found,
    };
    if let Some(facts) = &facts[0] {
        let account = &mut walk.account;
        for_each_chunk(facts, &mut |chunk, fact| account.have_chunk(place(&numbers[0], chunk), fact))?;
    }
    walk.run()?;
    let (mut account, mut summary) = (walk.account, walk.summary);
    if let Some(facts) = &facts[1] {
        for_each_chunk(facts, &mut |chunk, fact| account.want_chunk(place(&numbers[1], chunk), chunk, fact))?;
    }
    summary.chunks = account.finish();
    Ok(summary)
}

/// The image at `path`, checked as a whole; `None` for a directory.
fn open(path: &Path) -> Result<Option<Image>, BuildError> {
    if std::fs::metadata(path).map_err(BuildError::io("open", path))?.is_dir() {
        return Ok(None);
    }
    let image = crate::layer::open(path)?;
    image.check().map_err(|e| BuildError::Image { path: path.to_path_buf(), reason: e.to_string() })?;
    Ok(Some(image))
}

/// How `image` cuts and names files: by its first blob, for in v6 each has a digester of its own.
fn cut(image: &Image) -> Cut {
    let digester = image.blobs().first().map_or_else(|| image.digester(), |blob| blob.digester);
    Cut { chunk_size: image.chunk_size(), digester }
}

fn compressor(image: &Image) -> Compressor {
    image.blobs().last().map_or_else(|| image.compressor(), |blob| blob.compressor)
}

/// The blobs of one side, opened when they are first needed.
fn blobs_of<'a, 'b>(
    cell: &'b OnceCell<Blobs<'a>>,
    image: Option<&'a Image>,
    path: &Path,
    place: Option<&BlobPlace>,
) -> Result<Option<&'b Blobs<'a>>, BuildError> {
    let (Some(image), Some(place)) = (image, place) else { return Ok(None) };
    if cell.get().is_none() {
        let opened = Blobs::open(image, path, place)
            .map_err(|e| BuildError::Image { path: path.to_path_buf(), reason: e.to_string() })?;
        // The cell is empty: it was looked at above, and there is no other thread.
        let _ = cell.set(opened);
    }
    Ok(cell.get())
}
