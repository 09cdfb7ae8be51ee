//! Images for tests: built with `rafs-image` from a directory, or taken from the interop corpus.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tempfile::TempDir;

use super::binaries;
use crate::tree::{Tree, entry};

/// An image on disk.
#[derive(Debug)]
pub struct Image {
    /// The metadata file.
    pub bootstrap: PathBuf,
    /// The folder of its blobs.
    pub blobs: PathBuf,
    _dir: Option<TempDir>,
}

impl Image {
    /// Packs `source` with `rafs-image create`, RAFS `version` 5 or 6, and further arguments.
    ///
    /// # Errors
    /// When the builder fails; the text is its own.
    pub fn build(source: &Path, version: u32, more: &[&str]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (bootstrap, blobs) = (dir.path().join("bootstrap"), dir.path().join("blobs"));
        std::fs::create_dir(&blobs)?;
        let mut command = Command::new(binaries::ours("rafs-image")?);
        command.args(["create", "--log-level", "warn", "-v", &version.to_string()]);
        command.arg("--bootstrap").arg(&bootstrap).arg("--blob-dir").arg(&blobs);
        let out = command.args(more).arg(source).output().context("running rafs-image")?;
        if !out.status.success() {
            bail!("rafs-image create: {}", String::from_utf8_lossy(&out.stderr));
        }
        Ok(Self { bootstrap, blobs, _dir: Some(dir) })
    }
}

/// One case of the interop corpus.
#[derive(Debug)]
pub struct Case {
    /// Its name, which is its folder's.
    pub name: String,
    /// The image, in the corpus's folder: not to be written to.
    pub image: Image,
    /// What a reader must show.
    pub expected: Tree,
}

impl Case {
    /// The case with this name.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn named(name: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Description {
            bootstrap: String,
            blob_dir: String,
        }
        let dir = root().join(name);
        let text = std::fs::read_to_string(dir.join("case.json"))
            .with_context(|| format!("case {}", dir.display()))?;
        let about: Description =
            serde_json::from_str(&text).with_context(|| format!("case {}", dir.display()))?;
        let image =
            Image { bootstrap: dir.join(about.bootstrap), blobs: dir.join(about.blob_dir), _dir: None };
        Ok(Self { name: name.to_owned(), image, expected: entry::from_expected(&dir.join("expected.json"))? })
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/interop")
}

/// All cases of the interop corpus, sorted by name.
///
/// # Errors
/// When one cannot be read.
pub fn corpus() -> Result<Vec<Case>> {
    let root = root();
    let mut cases = Vec::new();
    for folder in std::fs::read_dir(&root).with_context(|| format!("reading {}", root.display()))? {
        let folder = folder?;
        if folder.path().join("case.json").is_file() {
            cases.push(Case::named(&folder.file_name().to_string_lossy())?);
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}
