//! One entry of a tree and its JSON form, which is that of the interop corpus.
//!
//! Paths are bytes: names need not be UTF-8. In JSON they then have U+FFFD in `path` and the exact bytes as hex in
//! `path_hex`; the same goes for targets.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// A tree by path; the root's path is `/`, all others begin with a slash and have none at the end.
pub type Tree = BTreeMap<Vec<u8>, TreeEntry>;

/// Type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Reg,
    Dir,
    Symlink,
    Char,
    Block,
    Fifo,
    Sock,
}

impl Kind {
    /// The kind that a mode's type bits name.
    #[must_use]
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Self::Reg,
            0o040_000 => Self::Dir,
            0o120_000 => Self::Symlink,
            0o020_000 => Self::Char,
            0o060_000 => Self::Block,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Sock,
            _ => return None,
        })
    }

    /// The `d_type` of directory entries: the type bits of the mode, shifted.
    #[must_use]
    pub fn d_type(self) -> u32 {
        match self {
            Self::Fifo => 1,
            Self::Char => 2,
            Self::Dir => 4,
            Self::Block => 6,
            Self::Reg => 8,
            Self::Symlink => 10,
            Self::Sock => 12,
        }
    }
}

/// What a reader sees of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeEntry {
    /// File type.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds.
    pub mtime: i64,
    /// Modification time, nanoseconds.
    pub mtime_ns: u32,
    /// Link count.
    pub nlink: u64,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Bytes; None for directories, whose size says nothing.
    pub size: Option<u64>,
    /// Digest of the content in hex; regular files only.
    pub sha256: Option<String>,
    /// Symlinks only.
    pub target: Option<Vec<u8>>,
    /// Devices only: Linux's 32-bit encoding.
    pub rdev: Option<u32>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Wire {
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(rename = "type")]
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    mtime_ns: u32,
    nlink: u64,
    xattrs: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    target_hex: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rdev: Option<u32>,
}

fn text(bytes: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(s) => (s.to_owned(), None),
        Err(_) => (String::from_utf8_lossy(bytes).into_owned(), Some(hex::encode(bytes))),
    }
}

fn bytes(text: String, hex: Option<String>) -> Result<Vec<u8>> {
    match hex {
        Some(h) => hex::decode(&h).with_context(|| format!("hex {h}")),
        None => Ok(text.into_bytes()),
    }
}

impl Wire {
    fn pack(path: &[u8], e: &TreeEntry) -> Self {
        let (path, path_hex) = text(path);
        let (target, target_hex) = match &e.target {
            Some(t) => {
                let (t, h) = text(t);
                (Some(t), h)
            }
            None => (None, None),
        };
        let xattrs =
            e.xattrs.iter().map(|(k, v)| (String::from_utf8_lossy(k).into_owned(), hex::encode(v))).collect();
        Self {
            path,
            path_hex,
            kind: e.kind,
            mode: e.mode,
            uid: e.uid,
            gid: e.gid,
            mtime: e.mtime,
            mtime_ns: e.mtime_ns,
            nlink: e.nlink,
            xattrs,
            size: e.size,
            sha256: e.sha256.clone(),
            target,
            target_hex,
            rdev: e.rdev,
        }
    }

    fn unpack(self) -> Result<(Vec<u8>, TreeEntry)> {
        let mut xattrs = BTreeMap::new();
        for (k, v) in self.xattrs {
            xattrs.insert(k.into_bytes(), hex::decode(&v).with_context(|| format!("xattr value {v}"))?);
        }
        let target = self.target.map(|t| bytes(t, self.target_hex)).transpose()?;
        let entry = TreeEntry {
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            mtime_ns: self.mtime_ns,
            nlink: self.nlink,
            xattrs,
            size: self.size,
            sha256: self.sha256,
            target,
            rdev: self.rdev,
        };
        Ok((bytes(self.path, self.path_hex)?, entry))
    }
}

/// One line of JSON for one entry.
///
/// # Errors
/// Never in practice: all fields have a JSON form.
pub fn to_json_line(path: &[u8], entry: &TreeEntry) -> Result<String> {
    Ok(serde_json::to_string(&Wire::pack(path, entry))?)
}

/// Reads lines written by [`to_json_line`].
///
/// # Errors
/// When a line is no entry, or a path comes twice.
pub fn from_json_lines(text: &str) -> Result<Tree> {
    let mut tree = Tree::new();
    for line in text.lines() {
        let wire: Wire = serde_json::from_str(line).with_context(|| format!("entry {line:?}"))?;
        let (path, entry) = wire.unpack()?;
        if tree.insert(path.clone(), entry).is_some() {
            bail!("{} is listed twice", String::from_utf8_lossy(&path));
        }
    }
    Ok(tree)
}

/// Reads an interop case's `expected.json`.
///
/// # Errors
/// When the file cannot be read or is none.
pub fn from_expected(file: &Path) -> Result<Tree> {
    #[derive(Deserialize)]
    struct Expected {
        entries: Vec<Wire>,
    }
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let expected: Expected =
        serde_json::from_str(&text).with_context(|| format!("parsing {}", file.display()))?;
    expected.entries.into_iter().map(Wire::unpack).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_names_survive_json() {
        let entry = TreeEntry {
            kind: Kind::Symlink,
            mode: 0o777,
            uid: 1,
            gid: u32::MAX,
            mtime: -5,
            mtime_ns: 999_999_999,
            nlink: 3,
            xattrs: BTreeMap::from([(b"user.a".to_vec(), vec![0, 255])]),
            size: None,
            sha256: None,
            target: Some(vec![0xff, b'x']),
            rdev: None,
        };
        let path = b"/\xc3\x28 \n\"".to_vec();
        let line = to_json_line(&path, &entry).unwrap();
        assert_eq!(line.lines().count(), 1);
        assert_eq!(from_json_lines(&line).unwrap(), Tree::from([(path, entry)]));
    }

    #[test]
    fn every_interop_case_can_be_read() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/interop");
        let mut cases = 0;
        for case in std::fs::read_dir(dir).unwrap() {
            let file = case.unwrap().path().join("expected.json");
            if file.exists() {
                let tree = from_expected(&file).unwrap();
                assert!(tree.contains_key(b"/".as_slice()), "{}", file.display());
                cases += 1;
            }
        }
        assert!(cases > 30, "{cases} cases");
    }
}
