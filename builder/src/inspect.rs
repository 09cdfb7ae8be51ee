//! Looking around in an image: the commands behind `inspect`.
//!
//! Owns: the commands, their text and JSON. Does not own: prompts, streams.

use rafs::ids::InodeNumber;
use rafs::image::{FileKind, Image, Inode};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// What a command says.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// For people.
    pub text: String,
    /// For programs; null for commands without such a form.
    pub json: Value,
}

/// An image and a directory in it.
#[derive(Debug)]
pub struct Inspector<'a> {
    image: &'a Image,
    /// From the root down.
    path: Vec<(Vec<u8>, Inode)>,
}

const HELP: &str = "\
stats         numbers about the image
ls            entries of the directory
cd DIR        go to a directory
stat NAME     attributes and chunks of an entry
blobs         the blob table
prefetch      paths that are recorded for prefetching
chunk OFFSET  chunks that are stored at this offset of a blob
icheck INODE  paths of an inode
help          this list
exit          leave
";

/// Writes every name of the image with its attributes and chunks, a line each, to `out`.
///
/// # Errors
/// When an inode is corrupt, or `out` does not take it.
#[cfg(feature = "cli")]
pub(crate) fn list_all(image: &Image, out: &mut dyn std::io::Write) -> anyhow::Result<()> {
    let mut pending = vec![(image.inode(image.root())?, String::from("/"))];
    while let Some((inode, path)) = pending.pop() {
        writeln!(
            out,
            "inode {} {:?} mode {:o} uid {} gid {} size {} nlink {}",
            inode.number.0, path, inode.mode, inode.uid, inode.gid, inode.size, inode.nlink
        )?;
        match inode.kind {
            FileKind::Directory => {
                let first = pending.len();
                for entry in image.read_dir(&inode, 0)? {
                    let entry = entry?;
                    if !matches!(entry.name, b"." | b"..") {
                        let name = String::from_utf8_lossy(entry.name);
                        let path = format!("{}/{name}", path.trim_end_matches('/'));
                        pending.push((image.inode(entry.number)?, path));
                    }
                }
                pending[first..].reverse();
            }
            FileKind::Regular => {
                for chunk in image.chunks(&inode, 0, inode.size)? {
                    let chunk = chunk?;
                    writeln!(
                        out,
                        "\tchunk {} of blob {} at {} of the file, {} bytes at {:#x}",
                        chunk.chunk,
                        chunk.blob,
                        chunk.file_offset,
                        chunk.uncompressed_size,
                        chunk.uncompressed_offset
                    )?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

impl<'a> Inspector<'a> {
    /// Begins in the root directory.
    #[must_use]
    pub fn new(image: &'a Image) -> Self {
        Self { image, path: Vec::new() }
    }

    /// Runs a command.
    ///
    /// # Errors
    /// A sentence: the command is not known, or there is no such thing.
    pub fn run(&mut self, line: &str) -> Result<Answer, String> {
        let line = line.trim();
        let (command, argument) = line.split_once(' ').unwrap_or((line, ""));
        let argument = argument.trim();
        match command {
            "stats" => Ok(self.stats()),
            "blobs" => Ok(self.blobs()),
            "prefetch" => self.prefetch(),
            "ls" => self.list().map(text),
            "cd" => self.enter(argument).map(|()| text(String::new())),
            "stat" => self.stat(argument).map(text),
            "chunk" => self.chunk(number(argument)?).map(text),
            "icheck" => self.icheck(number(argument)?).map(text),
            "help" => Ok(text(HELP.to_owned())),
            other => Err(format!("unknown command {other:?}: help lists those there are")),
        }
    }

    fn root(&self) -> Result<Inode, String> {
        self.image.inode(self.image.root()).map_err(|e| e.to_string())
    }

    fn here(&self) -> Result<Inode, String> {
        match self.path.last() {
            Some((_, inode)) => Ok(*inode),
            None => self.root(),
        }
    }

    fn stats(&self) -> Answer {
        let image = self.image;
        let blobs = image.blobs();
        let text = format!(
            "version: {}\ninodes: {}\nblobs: {}\nchunk size: {:#x}\ncompressor: {}\ndigester: {}\nflags: {:?}\n\
             compressed size: {}\nuncompressed size: {}\n",
            image.version(),
            image.inode_count(),
            blobs.len(),
            image.chunk_size(),
            image.compressor(),
            image.digester(),
            image.flags(),
            blobs.iter().map(|blob| blob.compressed_size).sum::<u64>(),
            blobs.iter().map(|blob| blob.uncompressed_size).sum::<u64>(),
        );
        Answer { text, json: json!({ "inodes_count": image.inode_count() }) }
    }

    fn blobs(&self) -> Answer {
        let mut text = String::new();
        let mut list = Vec::new();
        for blob in self.image.blobs() {
            // Writing into a string cannot fail.
            let _ = writeln!(
                text,
                "{}: {} compressed {} uncompressed {} chunks {} {} {:?}",
                blob.index,
                blob.id,
                blob.compressed_size,
                blob.uncompressed_size,
                blob.chunk_count.unwrap_or(0),
                blob.compressor,
                blob.features,
            );
            list.push(json!({
                "blob_id": blob.id,
                "readahead_offset": 0,
                "readahead_size": blob.prefetch_size,
                "decompressed_size": blob.uncompressed_size,
                "compressed_size": blob.compressed_size,
            }));
        }
        Answer { text, json: Value::Array(list) }
    }

    fn prefetch(&self) -> Result<Answer, String> {
        let listed = self.image.prefetch_list();
        let mut paths: Vec<Vec<String>> = vec![Vec::new(); listed.len()];
        self.walk(&mut |path, inode| {
            for (at, number) in listed.iter().enumerate() {
                if *number == inode.number {
                    paths[at].push(path.to_owned());
                }
            }
        })?;
        let mut text = String::new();
        let mut list = Vec::new();
        for (number, path) in listed.iter().zip(paths) {
            let _ = writeln!(text, "{number}: {}", path.join(" "));
            list.push(json!({ "inode": number.0, "path": path }));
        }
        Ok(Answer { text, json: Value::Array(list) })
    }

    fn list(&self) -> Result<String, String> {
        let dir = self.here()?;
        let mut text = String::new();
        for entry in self.image.read_dir(&dir, 0).map_err(|e| e.to_string())? {
            let entry = entry.map_err(|e| e.to_string())?;
            let name = String::from_utf8_lossy(entry.name);
            let _ = writeln!(text, "{:?} {} {name}", entry.kind, entry.number);
        }
        Ok(text)
    }

    fn find(&self, name: &str) -> Result<Inode, String> {
        let dir = self.here()?;
        let found = self.image.lookup(&dir, name.as_bytes()).map_err(|e| e.to_string())?;
        found.ok_or_else(|| format!("there is no entry {name:?} here"))
    }

    fn enter(&mut self, path: &str) -> Result<(), String> {
        let before = self.path.clone();
        if path.starts_with('/') {
            self.path.clear();
        }
        for name in path.split('/').filter(|name| !name.is_empty() && *name != ".") {
            if name == ".." {
                self.path.pop();
                continue;
            }
            match self.find(name) {
                Ok(inode) if inode.kind == FileKind::Directory => self.path.push((name.into(), inode)),
                found => {
                    self.path = before;
                    return Err(found.err().unwrap_or_else(|| format!("{name:?} is no directory")));
                }
            }
        }
        Ok(())
    }

    fn stat(&self, name: &str) -> Result<String, String> {
        let inode = self.find(name)?;
        let mut text = format!(
            "inode {}\nkind {:?}\nmode {:o}\nuid {} gid {}\nlinks {}\nsize {}\nmtime {}.{:09}\n",
            inode.number,
            inode.kind,
            inode.mode,
            inode.uid,
            inode.gid,
            inode.nlink,
            inode.size,
            inode.mtime_sec,
            inode.mtime_nsec,
        );
        for xattr in self.image.xattrs(&inode).map_err(|e| e.to_string())? {
            let xattr = xattr.map_err(|e| e.to_string())?;
            let name = [xattr.prefix, xattr.suffix].concat();
            let _ = writeln!(text, "xattr {} {}", String::from_utf8_lossy(&name), hex::encode(xattr.value));
        }
        if inode.kind == FileKind::Symlink {
            let target = self.image.read_link(&inode).map_err(|e| e.to_string())?;
            let _ = writeln!(text, "target {}", String::from_utf8_lossy(&target));
        }
        if inode.kind == FileKind::Regular {
            for chunk in self.image.chunks(&inode, 0, inode.size).map_err(|e| e.to_string())? {
                let chunk = chunk.map_err(|e| e.to_string())?;
                let _ = writeln!(
                    text,
                    "chunk at {}: blob {} chunk {} uncompressed {}+{}",
                    chunk.file_offset,
                    chunk.blob,
                    chunk.chunk,
                    chunk.uncompressed_offset,
                    chunk.uncompressed_size
                );
            }
        }
        Ok(text)
    }

    fn chunk(&self, offset: u64) -> Result<String, String> {
        let mut text = String::new();
        let image = self.image;
        self.walk(&mut |path, inode| {
            if inode.kind != FileKind::Regular {
                return;
            }
            for chunk in image.chunks(inode, 0, inode.size).into_iter().flatten().flatten() {
                let end = chunk.uncompressed_offset + u64::from(chunk.uncompressed_size);
                if (chunk.uncompressed_offset..end).contains(&offset) {
                    let _ = writeln!(text, "blob {} chunk {} of {path}", chunk.blob, chunk.chunk);
                }
            }
        })?;
        Ok(text)
    }

    fn icheck(&self, number: u64) -> Result<String, String> {
        let mut text = String::new();
        self.walk(&mut |path, inode| {
            if inode.number == InodeNumber(number) {
                let _ = writeln!(text, "{path}");
            }
        })?;
        Ok(text)
    }

    /// Calls `f` with every path.
    fn walk(&self, f: &mut dyn FnMut(&str, &Inode)) -> Result<(), String> {
        let root = self.root()?;
        f("/", &root);
        let mut pending = vec![(String::new(), root)];
        let mut directories = std::collections::HashSet::new();
        while let Some((path, dir)) = pending.pop() {
            if !directories.insert(dir.number) {
                return Err(format!("{path}: the directory has two names"));
            }
            for entry in self.image.read_dir(&dir, 0).map_err(|e| e.to_string())? {
                let entry = entry.map_err(|e| e.to_string())?;
                if matches!(entry.name, b"." | b"..") {
                    continue;
                }
                let inode = self.image.inode(entry.number).map_err(|e| e.to_string())?;
                let path = format!("{path}/{}", String::from_utf8_lossy(entry.name));
                f(&path, &inode);
                if inode.kind == FileKind::Directory {
                    pending.push((path, inode));
                }
            }
        }
        Ok(())
    }
}

fn text(text: String) -> Answer {
    Answer { text, json: Value::Null }
}

fn number(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("{text:?} is no number"))
}
