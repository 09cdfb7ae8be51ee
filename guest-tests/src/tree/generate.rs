//! Generates source trees with every kind of file, from a seed, so that a failing tree can be made again.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, mknodat, utimensat,
};

use super::Kind;
use crate::support::random::Random;

/// What to generate.
#[derive(Debug, Clone, Copy)]
pub struct TreeOptions {
    /// Seed of contents and times.
    pub seed: u64,
    /// Entries of the one large directory.
    pub big_dir: usize,
    /// The chunk size that images of the tree will have, for files around it.
    pub chunk: usize,
    /// Multi-chunk files: how many chunks the largest one has.
    pub chunks: usize,
    /// Device nodes and foreign owners, which take root.
    pub privileged: bool,
}

impl Default for TreeOptions {
    fn default() -> Self {
        Self {
            seed: 1,
            big_dir: 5000,
            chunk: 1 << 20,
            chunks: 5,
            privileged: rustix::process::geteuid().is_root(),
        }
    }
}

/// Fills the empty directory `root`.
///
/// # Errors
/// When anything cannot be created.
pub fn generate(root: &Path, options: TreeOptions) -> Result<()> {
    let mut g = Generator { root, random: Random::new(options.seed), options };
    g.sizes()?;
    g.names()?;
    g.links()?;
    g.modes()?;
    g.xattrs()?;
    g.special()?;
    g.deep()?;
    g.big_dir()?;
    g.times()
}

struct Generator<'a> {
    root: &'a Path,
    random: Random,
    options: TreeOptions,
}

impl Generator<'_> {
    fn dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(path)
    }

    fn file(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        Ok(file.write_all(bytes)?)
    }

    /// Half text, half noise, so that chunks compress, but not to nothing.
    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len + 64);
        while out.len() < len {
            if self.random.below(2) == 0 {
                out.extend_from_slice(b"the quick brown fox jumps over the lazy dog\n");
            } else {
                out.extend_from_slice(&self.random.next().to_le_bytes());
            }
        }
        out.truncate(len);
        out
    }

    fn sizes(&mut self) -> Result<()> {
        let dir = self.dir("sizes")?;
        let chunk = self.options.chunk;
        let mut sizes = vec![0, 1, 2, 511, 512, 513, 4095, 4096, 4097, 8191, 8192, 65535, 65536, 65537];
        sizes.extend([chunk - 1, chunk, chunk + 1, chunk * 2, chunk * self.options.chunks + 4097]);
        for size in sizes {
            let bytes = self.bytes(size);
            self.file(&dir.join(format!("f{size}")), &bytes)?;
        }
        let same = self.bytes(10_000);
        for name in ["same-a", "same-b"] {
            self.file(&dir.join(name), &same)?;
        }
        self.file(&dir.join("zeros"), &vec![0; chunk / 2 + 3])?;
        let sparse = File::create(dir.join("sparse"))?;
        sparse.set_len(chunk as u64 * 2 + 77)?;
        sparse.write_all_at(b"island", chunk as u64 + 12345)?;
        Ok(())
    }

    fn names(&mut self) -> Result<()> {
        let dir = self.dir("names")?;
        let long = vec![b'n'; 255];
        let odd: &[&[u8]] = &[
            b" ",
            b"!before dot",
            b"-dash",
            b"...",
            b".hidden",
            b"a\nb",
            b"tab\t",
            b"back\\slash",
            b"quote'\"",
            b"*?[]",
            b"\xff\xfe not utf-8",
            b"\xc3\x28",
            b"\x01\x7f",
            &long,
            "ünï©ødé 文字 🦀".as_bytes(),
        ];
        for name in odd {
            self.file(&dir.join(OsStr::from_bytes(name)), name)?;
        }
        self.dir("names/empty dir")?;
        Ok(())
    }

    fn links(&mut self) -> Result<()> {
        let dir = self.dir("links")?;
        self.dir("links/other")?;
        let bytes = self.bytes(5001);
        self.file(&dir.join("one"), &bytes)?;
        fs::hard_link(dir.join("one"), dir.join("two"))?;
        fs::hard_link(dir.join("one"), dir.join("other/three"))?;
        for (name, target) in
            [("rel", "one"), ("up", "../sizes/f1"), ("abs", "/sizes/f4096"), ("dangling", "nowhere")]
        {
            symlink(target, dir.join(name))?;
        }
        symlink(OsStr::from_bytes(b"\xfe\xffraw"), dir.join("raw target"))?;
        symlink("x/".repeat(2000), dir.join("long target"))?;
        symlink(".", dir.join("dot"))?;
        Ok(())
    }

    fn modes(&mut self) -> Result<()> {
        let dir = self.dir("modes")?;
        for mode in [0o000, 0o400, 0o644, 0o755, 0o777, 0o4755, 0o2755, 0o1644, 0o7777] {
            let path = dir.join(format!("m{mode:04o}"));
            self.file(&path, b"mode")?;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        let sticky = self.dir("modes/sticky")?;
        fs::set_permissions(sticky, fs::Permissions::from_mode(0o1777))?;
        if self.options.privileged {
            for id in [1, 1000, 65534, 0x1_0000, 0x7fff_fffe] {
                let path = dir.join(format!("owner{id}"));
                self.file(&path, b"owner")?;
                std::os::unix::fs::lchown(&path, Some(id), Some(id + 1))?;
            }
        }
        Ok(())
    }

    fn xattrs(&mut self) -> Result<()> {
        let dir = self.dir("xattrs")?;
        let set = |path: &Path, name: &str, value: &[u8]| {
            lsetxattr(path, name, value, XattrFlags::empty())
                .with_context(|| format!("setting {name} of {}", path.display()))
        };
        // Not every file system has extended attributes; a tree without them is still a tree.
        let probe = dir.join("few");
        self.file(&probe, b"few")?;
        if set(&probe, "user.small", b"1").is_err() {
            return Ok(());
        }
        set(&probe, "user.empty", b"")?;
        set(&probe, "user.bytes", &[0, 1, 2, 255])?;
        let many = dir.join("many");
        self.file(&many, b"many")?;
        for i in 0..40 {
            set(&many, &format!("user.attribute-number-{i}"), format!("value {i}").as_bytes())?;
        }
        set(&dir, "user.of-a-directory", b"yes")?;
        if self.options.privileged {
            set(&probe, "trusted.overlay.opaque", b"y")?;
            // CAP_NET_RAW as permitted and effective, version 2.
            let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            set(&many, "security.capability", &capability)?;
            symlink("few", dir.join("link"))?;
            set(&dir.join("link"), "trusted.of-a-link", b"x")?;
        }
        Ok(())
    }

    fn special(&mut self) -> Result<()> {
        let dir = self.dir("special")?;
        let make = |name: &str, kind, device| {
            mknodat(CWD, dir.join(name), kind, Mode::from_raw_mode(0o640), device)
                .with_context(|| format!("creating {name}"))
        };
        make("fifo", FileType::Fifo, 0)?;
        make("socket", FileType::Socket, 0)?;
        if self.options.privileged {
            make("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3))?;
            make("block", FileType::BlockDevice, rustix::fs::makedev(8, 17))?;
            make("large numbers", FileType::CharacterDevice, rustix::fs::makedev(0xabc, 0xfedcb))?;
        }
        Ok(())
    }

    fn deep(&mut self) -> Result<()> {
        let mut path = self.dir("deep")?;
        for i in 0..40 {
            path = path.join(format!("level{i}"));
            fs::create_dir(&path)?;
            self.file(&path.join("f"), format!("{i}").as_bytes())?;
        }
        Ok(())
    }

    fn big_dir(&mut self) -> Result<()> {
        let dir = self.dir("big")?;
        for i in 0..self.options.big_dir {
            let len = self.random.below(40);
            let bytes = self.bytes(usize::try_from(len)?);
            self.file(&dir.join(format!("entry-{i:05}-{}", "x".repeat(i % 23))), &bytes)?;
        }
        Ok(())
    }

    /// Times with nanoseconds for all, deepest first, so that no later change touches a directory again.
    fn times(&mut self) -> Result<()> {
        let mut all = Vec::new();
        collect(self.root, &mut all)?;
        all.reverse();
        for (i, path) in all.iter().enumerate() {
            let tv_sec = match i % 50 {
                7 => 0,
                8 => 1,
                9 => 0x1_2345_6789,
                10 => -86_401,
                _ => 1_500_000_000 + i64::try_from(self.random.below(1 << 27))?,
            };
            let time = Timespec { tv_sec, tv_nsec: i64::try_from(self.random.below(1_000_000_000))? };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
                .with_context(|| format!("setting times of {}", path.display()))?;
        }
        Ok(())
    }
}

/// All paths below `dir` and itself, parents before children.
fn collect(dir: &Path, out: &mut Vec<PathBuf>) -> Result<()> {
    out.push(dir.to_owned());
    let mut children = fs::read_dir(dir)?.collect::<std::io::Result<Vec<_>>>()?;
    children.sort_by_key(std::fs::DirEntry::file_name);
    for child in children {
        if child.file_type()?.is_dir() {
            collect(&child.path(), out)?;
        } else {
            out.push(child.path());
        }
    }
    Ok(())
}

/// Regular files of a tree, for tests that need some: path and size.
#[must_use]
pub fn files(tree: &super::Tree) -> Vec<(Vec<u8>, u64)> {
    tree.iter()
        .filter(|(_, e)| e.kind == Kind::Reg)
        .map(|(p, e)| (p.clone(), e.size.unwrap_or_default()))
        .collect()
}
