//! Describes a directory that the running kernel can see: on the host, or a mount inside a guest.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, StatxFlags, lgetxattr, llistxattr, statx};
use sha2::{Digest, Sha256};

use super::entry::{Kind, Tree, TreeEntry};

/// Describes `root` and all below it, reading each file `read_size` bytes a time. `without_xattrs` names
/// attribute prefixes to leave out, such as `security.selinux`.
///
/// # Errors
/// When anything in the tree cannot be read.
pub fn describe(root: &Path, read_size: usize, without_xattrs: &[&str]) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(relative) = todo.pop() {
        let full = if relative.as_os_str().is_empty() { root.to_owned() } else { root.join(&relative) };
        let entry = describe_one(&full, read_size, without_xattrs)
            .with_context(|| format!("describing {}", full.display()))?;
        if entry.kind == Kind::Dir {
            for child in std::fs::read_dir(&full).with_context(|| format!("listing {}", full.display()))? {
                let name = child.with_context(|| format!("listing {}", full.display()))?.file_name();
                todo.push(relative.join(OsStr::from_bytes(name.as_bytes())));
            }
        }
        let mut path = b"/".to_vec();
        path.extend_from_slice(relative.as_os_str().as_bytes());
        if tree.insert(path, entry).is_some() {
            bail!("{} is listed twice", full.display());
        }
    }
    Ok(tree)
}

fn describe_one(path: &Path, read_size: usize, without_xattrs: &[&str]) -> Result<TreeEntry> {
    let st = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    let mode = u32::from(st.stx_mode);
    let kind = Kind::from_mode(mode).with_context(|| format!("mode {mode:o}"))?;
    let regular = kind == Kind::Reg;
    let (sha256, read) = if regular {
        let (digest, len) = digest(path, read_size)?;
        (Some(digest), len)
    } else {
        (None, 0)
    };
    if regular && read != st.stx_size {
        bail!("{read} bytes read, size says {}", st.stx_size);
    }
    let target = match kind {
        Kind::Symlink => Some(std::fs::read_link(path)?.into_os_string().into_vec()),
        _ => None,
    };
    // The kernel's 32-bit encoding of device numbers, as FUSE and images carry it.
    let (major, minor) = (st.stx_rdev_major, st.stx_rdev_minor);
    let rdev = (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12);
    Ok(TreeEntry {
        kind,
        mode: mode & 0o7777,
        uid: st.stx_uid,
        gid: st.stx_gid,
        mtime: st.stx_mtime.tv_sec,
        mtime_ns: st.stx_mtime.tv_nsec,
        nlink: st.stx_nlink.into(),
        xattrs: xattrs(path, without_xattrs)?,
        size: (kind != Kind::Dir).then_some(st.stx_size),
        sha256,
        target,
        rdev: matches!(kind, Kind::Char | Kind::Block).then_some(rdev),
    })
}

fn digest(path: &Path, read_size: usize) -> Result<(String, u64)> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; read_size.max(1)];
    let (mut hash, mut len) = (Sha256::new(), 0);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((hex::encode(hash.finalize()), len));
        }
        hash.update(&buffer[..n]);
        len += n as u64;
    }
}

fn xattrs(path: &Path, without: &[&str]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    use rustix::io::Errno;
    let mut list = vec![0; 65536];
    let len = match llistxattr(path, list.as_mut_slice()) {
        Ok(len) => len,
        // A file system without extended attributes has none.
        Err(Errno::NOTSUP | Errno::NOSYS) => 0,
        Err(e) => return Err(e).context("listxattr"),
    };
    let mut out = BTreeMap::new();
    for name in list[..len].split(|b| *b == 0).filter(|n| !n.is_empty()) {
        if without.iter().any(|w| name.starts_with(w.as_bytes())) {
            continue;
        }
        let mut value = vec![0; 65536];
        let c_name = CString::new(name)?;
        let len = lgetxattr(path, &c_name, value.as_mut_slice())
            .with_context(|| format!("getxattr {}", name.escape_ascii()))?;
        value.truncate(len);
        out.insert(name.to_vec(), value);
    }
    Ok(out)
}
