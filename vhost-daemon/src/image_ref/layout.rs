//! A directory with an OCI layout, and which of its images is meant.
//!
//! Owns: its files, and choosing by tag or digest. Does not own: what manifests say.

use super::MANIFEST_MAX;
use super::manifest::{self, Descriptor, Found};
use anyhow::{Context, bail};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Names that an error lists.
const LISTED: usize = 20;

/// A layout and what is wanted of it.
#[derive(Debug)]
pub(super) struct Layout<'a> {
    dir: &'a Path,
    wanted: Wanted<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted<'a> {
    Any,
    Tag(&'a str),
    Digest(&'a str),
}

/// What a layout's index leads to.
pub(super) enum Chosen {
    /// The index itself: manifests of one image, for several platforms perhaps.
    Document(Vec<u8>),
    /// A manifest, or another index.
    Manifest(Descriptor),
}

/// Whether `image`, with a tag or without, can only be meant as a directory: it is one, or is written as a path is.
pub(super) fn is_path(image: &str) -> bool {
    let without_tag = image.rsplit_once([':', '@']).map_or(image, |(dir, _)| dir);
    image.starts_with(['/', '.']) || [image, without_tag].iter().any(|dir| Path::new(dir).is_dir())
}

impl<'a> Layout<'a> {
    /// The layout that `image` names; `None` if it names none.
    pub fn of(image: &'a str) -> Option<Self> {
        let there = |dir: &'a str| {
            (!dir.is_empty() && Path::new(dir).join("index.json").is_file()).then(|| Path::new(dir))
        };
        if let Some(dir) = there(image) {
            return Some(Self { dir, wanted: Wanted::Any });
        }
        if let Some((dir, digest)) = image.rsplit_once('@') {
            return there(dir).map(|dir| Self { dir, wanted: Wanted::Digest(digest) });
        }
        let (dir, tag) = image.rsplit_once(':')?;
        there(dir).map(|dir| Self { dir, wanted: Wanted::Tag(tag) })
    }

    /// Where its blobs are.
    pub fn blobs(&self) -> PathBuf {
        self.dir.join("blobs/sha256")
    }

    /// The bytes of a blob, unchecked, if there are at most `most`.
    pub fn read(&self, descriptor: &Descriptor, most: u64) -> anyhow::Result<Vec<u8>> {
        read(&self.blobs().join(descriptor.hex()?), most)
    }

    /// Where to begin.
    pub fn chosen(&self) -> anyhow::Result<Chosen> {
        let path = self.dir.join("index.json");
        let text = read(&path, MANIFEST_MAX)?;
        let list = match manifest::parse(&text).with_context(|| path.display().to_string())? {
            Found::Manifests(list) => list,
            Found::Bootstrap(_) => return Ok(Chosen::Document(text)),
        };
        let found = match self.wanted {
            Wanted::Any => {
                let mut named: Vec<&str> = Vec::new();
                for one in list.iter().filter(|d| d.names().next().is_some()) {
                    if !named.contains(&one.digest.as_str()) {
                        named.push(&one.digest);
                    }
                }
                if named.len() > 1 {
                    bail!(
                        "{} has several images; say one of them: {}",
                        self.dir.display(),
                        self.listed(&list)
                    );
                }
                return Ok(Chosen::Document(text));
            }
            Wanted::Tag(tag) => list.iter().find(|d| d.is_called(tag)),
            Wanted::Digest(digest) => list.iter().find(|d| d.digest == digest),
        };
        match found {
            Some(descriptor) => Ok(Chosen::Manifest(descriptor.clone())),
            None => bail!("{} has no such image; there are: {}", self.dir.display(), self.listed(&list)),
        }
    }

    /// What could have been said.
    fn listed(&self, list: &[Descriptor]) -> String {
        let dir = self.dir.display();
        let one = |d: &Descriptor| match d.names().next() {
            Some(name) => format!("{dir}:{}", name.rsplit(':').next().unwrap_or(name)),
            None => format!("{dir}@{}", d.digest),
        };
        let short = |text: String| text.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
        list.iter().take(LISTED).map(one).map(short).collect::<Vec<_>>().join(", ")
    }
}

fn read(path: &Path, most: u64) -> anyhow::Result<Vec<u8>> {
    // Whoever makes a layout may put a pipe there, and opening one waits for its other end.
    let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let file = open.with_context(|| path.display().to_string())?;
    if !file.metadata().with_context(|| path.display().to_string())?.is_file() {
        bail!("{} is no regular file", path.display());
    }
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes).with_context(|| path.display().to_string())?;
    if bytes.len() as u64 > most {
        bail!("{} has more than {most} bytes, which nothing of its kind may have", path.display());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_pipe_in_place_of_a_file_is_an_error_and_no_wait() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let error = read(&pipe, 100).unwrap_err();
        assert!(error.to_string().contains("no regular file"), "{error}");
        read(Path::new("/dev/zero"), 100).unwrap_err();
    }

    #[test]
    fn images_by_tag_and_digest() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_str().unwrap();
        let index = dir.path().join("index.json");
        let hex = |c: char| format!("sha256:{}", c.to_string().repeat(64));
        let one = |c: char, name: &str| {
            json!({"digest": hex(c), "size": 1,
            "annotations": {"org.opencontainers.image.ref.name": name}})
        };
        let put = |list: serde_json::Value| {
            std::fs::write(&index, json!({"schemaVersion": 2, "manifests": list}).to_string()).unwrap();
        };
        let chosen = |image: &str| -> Result<String, String> {
            match Layout::of(image).ok_or("no layout")?.chosen().map_err(|e| format!("{e:#}"))? {
                Chosen::Document(_) => Ok("all".into()),
                Chosen::Manifest(descriptor) => Ok(descriptor.digest),
            }
        };
        assert_eq!(chosen(root), Err("no layout".into()));
        put(json!([one('a', "v1"), one('b', "r.io/app:v2")]));
        assert_eq!(chosen(&format!("{root}:v1")), Ok(hex('a')));
        assert_eq!(chosen(&format!("{root}:v2")), Ok(hex('b')));
        assert_eq!(chosen(&format!("{root}@{}", hex('b'))), Ok(hex('b')));
        let several = chosen(root).unwrap_err();
        assert!(several.contains(&format!("{root}:v1, {root}:v2")), "{several}");
        assert!(chosen(&format!("{root}:v3")).unwrap_err().contains("no such image"));
        // Two names for one image, and manifests without a name.
        put(json!([one('a', "v1"), one('a', "latest")]));
        assert_eq!(chosen(root), Ok("all".into()));
        put(json!([{"digest": hex('a')}, {"digest": hex('b')}]));
        assert_eq!(chosen(root), Ok("all".into()));
        std::fs::write(&index, vec![b' '; 5 << 20]).unwrap();
        assert!(chosen(root).unwrap_err().contains("more than"));
    }
}
