//! The JSON of a stargz index, checked.
//!
//! Owns: which indexes are accepted, cutting files into chunks. Does not own: the tree. An index is foreign: whatever it
//! says, the result is bounded by its length.

use super::time::unix_seconds;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rafs::codec::Digest;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// A digest that is not known.
pub(crate) const NO_DIGEST: Digest = [0; 32];

/// Largest offset in a layer that a chunk record's users can hold.
const OFFSET_MAX: u64 = 1 << 40;
/// Longest name, bytes.
const NAME_MAX: usize = 255;

/// The index of an eStargz or stargz layer (`stargz.index.json`), parsed and checked.
#[derive(Debug)]
pub struct StargzIndex {
    entries: Vec<Entry>,
    chunks: Vec<IndexedChunk>,
}

/// One chunk of a file, as the index has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexedChunk {
    /// Where its gzip member starts in the layer.
    pub offset: u64,
    /// Where its plain bytes start in the file.
    pub file_offset: u64,
    /// Plain bytes, not 0.
    pub len: u32,
    /// sha256 of its plain bytes; [`NO_DIGEST`] when the index does not say.
    pub digest: Digest,
}

/// Name and value of an extended attribute.
type Pair = (Vec<u8>, Vec<u8>);

/// What an entry is.
#[derive(Debug)]
pub(super) enum Kind {
    Directory,
    File {
        size: u64,
        chunks: Range<usize>,
    },
    Symlink(String),
    Hardlink(String),
    /// What a RAFS image of an index does not have.
    Special(&'static str),
}

/// One entry.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: String,
    pub kind: Kind,
    /// Permission bits with set-id and sticky bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub xattrs: Vec<Pair>,
}

#[derive(Deserialize)]
struct RawIndex {
    version: i64,
    #[serde(default)]
    entries: Option<Vec<RawEntry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEntry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    modtime: Option<String>,
    #[serde(default)]
    link_name: Option<String>,
    #[serde(default)]
    mode: u64,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    xattrs: Option<BTreeMap<String, String>>,
    #[serde(default)]
    digest: Option<String>,
    #[serde(default)]
    chunk_offset: u64,
    #[serde(default)]
    chunk_size: u64,
    #[serde(default)]
    chunk_digest: Option<String>,
    #[serde(default)]
    inner_offset: u64,
}

/// Components of a path, without empty ones and `.`.
pub(super) fn components(path: &str) -> Vec<&[u8]> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::as_bytes).collect()
}

impl Entry {
    /// Components of its path.
    pub(super) fn names(&self) -> Vec<&[u8]> {
        components(&self.name)
    }
}

impl StargzIndex {
    /// Parses the text of an index.
    ///
    /// # Errors
    /// What is wrong with it, and at which entry.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let raw: RawIndex = serde_json::from_slice(text)
            .map_err(|e| format!("it is no stargz index (stargz.index.json): {e}"))?;
        if raw.version != 1 {
            return Err(format!("stargz indexes of version {} are not known, only version 1", raw.version));
        }
        let mut index = Self { entries: Vec::new(), chunks: Vec::new() };
        for raw in raw.entries.unwrap_or_default() {
            let name = raw.name.clone();
            index.take(raw).map_err(|reason| format!("entry {name:?}: {reason}"))?;
        }
        index.finish_file()?;
        Ok(index)
    }

    /// Number of entries; chunks of a file count as part of it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Chunks of a file.
    pub(super) fn chunks(&self, range: &Range<usize>) -> &[IndexedChunk] {
        self.chunks.get(range.clone()).unwrap_or_default()
    }

    /// Chunks of all files, in the order of the index.
    pub(crate) fn all_chunks(&self) -> &[IndexedChunk] {
        &self.chunks
    }

    fn take(&mut self, raw: RawEntry) -> Result<(), String> {
        if raw.kind == "chunk" {
            return self.take_chunk(&raw);
        }
        self.finish_file()?;
        let names = components(&raw.name);
        if names.iter().any(|name| *name == b"..") {
            return Err("a path with .. leads out of the layer".to_owned());
        }
        if names.iter().any(|name| name.len() > NAME_MAX || name.contains(&0)) {
            return Err("a name has more than 255 bytes, or a NUL".to_owned());
        }
        let kind = match raw.kind.as_str() {
            "dir" => Kind::Directory,
            "reg" => self.file(&raw)?,
            "symlink" => match raw.link_name.clone().filter(|target| !target.is_empty()) {
                Some(target) if target.len() < 4096 && !target.contains('\0') => Kind::Symlink(target),
                _ => return Err("a symlink needs a target of 1 to 4095 bytes".to_owned()),
            },
            "hardlink" => Kind::Hardlink(raw.link_name.clone().ok_or("a hardlink without target")?),
            "char" => Kind::Special("character device"),
            "block" => Kind::Special("block device"),
            "fifo" => Kind::Special("FIFO"),
            other => return Err(format!("type {other:?} is not known")),
        };
        let mtime = match raw.modtime.as_deref() {
            None | Some("") => 0,
            Some(text) => unix_seconds(text).ok_or_else(|| format!("modtime {text:?} is no time"))?,
        };
        self.entries.push(Entry {
            kind,
            // Masked to 12 bits: it fits.
            mode: u32::try_from(raw.mode & 0o7777).unwrap_or_default(),
            uid: raw.uid,
            gid: raw.gid,
            mtime,
            xattrs: xattrs(raw.xattrs)?,
            name: raw.name,
        });
        Ok(())
    }

    fn file(&mut self, raw: &RawEntry) -> Result<Kind, String> {
        let start = self.chunks.len();
        if raw.size > 0 {
            if raw.chunk_offset != 0 {
                return Err("the first chunk of a file starts at 0".to_owned());
            }
            let whole = raw.chunk_size == 0 || raw.chunk_size >= raw.size;
            // What is said of the whole file is said of its only chunk.
            let digest = if whole { raw.digest.as_deref() } else { None };
            self.push_chunk(raw, raw.size, digest)?;
        }
        Ok(Kind::File { size: raw.size, chunks: start..self.chunks.len() })
    }

    fn take_chunk(&mut self, raw: &RawEntry) -> Result<(), String> {
        let at = self.chunks.len();
        let (size, expected) = match self.entries.last() {
            Some(Entry { name, kind: Kind::File { size, chunks }, .. })
                if *name == raw.name && !chunks.is_empty() =>
            {
                (*size, self.chunks.last().map_or(0, |last| last.file_offset + u64::from(last.len)))
            }
            _ => return Err("a chunk that does not follow its file".to_owned()),
        };
        if raw.chunk_offset != expected || expected >= size {
            return Err(format!("a chunk at {}, where {expected} of {size} is due", raw.chunk_offset));
        }
        self.push_chunk(raw, size, None)?;
        if let Some(Entry { kind: Kind::File { chunks, .. }, .. }) = self.entries.last_mut() {
            chunks.end = at + 1;
        }
        Ok(())
    }

    fn push_chunk(&mut self, raw: &RawEntry, size: u64, whole: Option<&str>) -> Result<(), String> {
        if raw.inner_offset != 0 {
            return Err("several chunks in one gzip member (innerOffset) cannot be referred to one by one: \
                        use --type estargz-ref or estargz-rafs with the layer itself"
                .to_owned());
        }
        let rest = size - raw.chunk_offset;
        let len = if raw.chunk_size == 0 { rest } else { raw.chunk_size.min(rest) };
        let len = u32::try_from(len)
            .ok()
            .filter(|len| (1..=rafs::layout::CHUNK_SIZE_MAX).contains(len))
            .ok_or_else(|| format!("a chunk of {len} bytes: RAFS chunks have at most 16 MiB"))?;
        if raw.offset >= OFFSET_MAX {
            return Err(format!("offset {} is behind the end of any layer", raw.offset));
        }
        let digest = match raw.chunk_digest.as_deref().filter(|text| !text.is_empty()).or(whole) {
            None | Some("") => NO_DIGEST,
            Some(text) => sha256(text)?,
        };
        self.chunks.push(IndexedChunk { offset: raw.offset, file_offset: raw.chunk_offset, len, digest });
        Ok(())
    }

    /// Checks that the chunks of the last file cover it.
    fn finish_file(&self) -> Result<(), String> {
        let Some(Entry { name, kind: Kind::File { size, chunks }, .. }) = self.entries.last() else {
            return Ok(());
        };
        let end = self.chunks(chunks).last().map_or(0, |last| last.file_offset + u64::from(last.len));
        if end != *size {
            return Err(format!("entry {name:?}: its chunks hold {end} bytes of {size}"));
        }
        Ok(())
    }
}

fn xattrs(raw: Option<BTreeMap<String, String>>) -> Result<Vec<Pair>, String> {
    let decode = |(name, value): (String, String)| {
        let value = STANDARD
            .decode(value.as_bytes())
            .map_err(|e| format!("the value of extended attribute {name:?} is no base64: {e}"))?;
        Ok((name.into_bytes(), value))
    };
    raw.unwrap_or_default().into_iter().map(decode).collect()
}

fn sha256(text: &str) -> Result<Digest, String> {
    let mut digest = NO_DIGEST;
    text.strip_prefix("sha256:")
        .and_then(|hex| hex::decode_to_slice(hex, &mut digest).ok())
        .ok_or_else(|| format!("digest {text:?} is not sha256: and 64 hexadecimal digits"))?;
    Ok(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(entries: &str) -> Result<StargzIndex, String> {
        StargzIndex::parse(format!(r#"{{"version": 1, "entries": [{entries}]}}"#).as_bytes())
    }

    #[test]
    fn files_are_cut_as_the_index_says() {
        let digest = "ab".repeat(32);
        let index = parse(&format!(
            r#"{{"name": "a", "type": "reg", "size": 10, "offset": 100, "chunkSize": 4, "digest": "sha256:{digest}"}},
               {{"name": "a", "type": "chunk", "offset": 200, "chunkOffset": 4, "chunkSize": 4, "chunkDigest": "sha256:{digest}"}},
               {{"name": "a", "type": "chunk", "offset": 300, "chunkOffset": 8}},
               {{"name": "b", "type": "reg", "size": 3, "offset": 400, "digest": "sha256:{digest}"}},
               {{"name": "c", "type": "reg"}}, {{"name": "d", "type": "fifo"}}"#
        ))
        .unwrap();
        let chunks: Vec<_> = index
            .all_chunks()
            .iter()
            .map(|c| (c.offset, c.file_offset, c.len, c.digest != NO_DIGEST))
            .collect();
        assert_eq!(chunks, [(100, 0, 4, false), (200, 4, 4, true), (300, 8, 2, false), (400, 0, 3, true)]);
        assert_eq!(index.len(), 4);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let long = "n".repeat(256);
        for (entries, part) in [
            (r#"{"name": "a", "type": "reg", "size": 10, "chunkSize": 4}"#, "hold 4 bytes of 10"),
            (r#"{"name": "a", "type": "chunk", "chunkOffset": 4}"#, "does not follow its file"),
            (
                r#"{"name": "a", "type": "reg", "size": 9, "chunkSize": 4}, {"name": "a", "type": "chunk", "chunkOffset": 5}"#,
                "4 of 9 is due",
            ),
            (r#"{"name": "a", "type": "reg", "size": 4, "innerOffset": 7}"#, "innerOffset"),
            (r#"{"name": "a", "type": "reg", "size": 20000000000}"#, "16 MiB"),
            (r#"{"name": "a", "type": "reg", "size": 4, "offset": 1099511627776}"#, "behind the end"),
            (r#"{"name": "a", "type": "reg", "size": 4, "digest": "sha256:xx"}"#, "64 hexadecimal"),
            (r#"{"name": "a/../../b", "type": "dir"}"#, ".."),
            (&format!(r#"{{"name": "{long}", "type": "dir"}}"#), "255"),
            (r#"{"name": "a", "type": "symlink"}"#, "target"),
            (r#"{"name": "a", "type": "hardlink"}"#, "target"),
            (r#"{"name": "a", "type": "door"}"#, "door"),
            (r#"{"name": "a", "type": "dir", "modtime": "yesterday"}"#, "modtime"),
            (r#"{"name": "a", "type": "dir", "xattrs": {"user.a": "%"}}"#, "base64"),
            (r#"{"name": "a", "type": "reg", "size": -1}"#, "no stargz index"),
        ] {
            let error = parse(entries).unwrap_err();
            assert!(error.contains(part), "{entries}: {error}");
        }
        assert!(StargzIndex::parse(br#"{"version": 2, "entries": []}"#).unwrap_err().contains("version 2"));
        StargzIndex::parse(b"{}").unwrap_err();
    }
}
