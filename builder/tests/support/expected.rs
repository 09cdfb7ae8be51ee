//! Two views of a tree in one form: a directory by `lstat`, and an image by [`rafs::image::Image`].

use rafs::image::{FileKind, Image, Inode};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What is compared of an entry. Contents are compared elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: (i64, i64),
    /// Files: size; others 0.
    pub size: u64,
    pub nlink: u64,
    /// All paths that share the inode: the first of them.
    pub first_name: Vec<u8>,
    pub target: Vec<u8>,
    pub rdev: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

pub type View = BTreeMap<Vec<u8>, Entry>;

/// What an image of `root` must show.
pub fn of_directory(root: &Path) -> View {
    let mut view = of_directory_with_root_time(root);
    view.get_mut(&b"/"[..]).unwrap().mtime = (0, 0);
    view
}

/// The same with the root's modification time, which only directory builds drop.
pub fn of_directory_with_root_time(root: &Path) -> View {
    let mut view = View::new();
    let mut names: HashMap<(u64, u64), Vec<Vec<u8>>> = HashMap::new();
    walk(root, b"", &mut view, &mut names);
    // Only names inside the tree count.
    for group in names.into_values() {
        let first = group.iter().min().unwrap().clone();
        for name in &group {
            let entry = view.get_mut(name).unwrap();
            entry.nlink = group.len() as u64;
            entry.first_name = first.clone();
        }
    }
    view
}

fn walk(at: &Path, name: &[u8], view: &mut View, links: &mut HashMap<(u64, u64), Vec<Vec<u8>>>) {
    let meta = std::fs::symlink_metadata(at).unwrap();
    let kind = meta.file_type();
    let path = if name.is_empty() { b"/".to_vec() } else { name.to_vec() };
    let mut entry = Entry {
        mode: meta.mode(),
        uid: meta.uid(),
        gid: meta.gid(),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        size: if kind.is_file() { meta.len() } else { 0 },
        nlink: 1,
        first_name: path.clone(),
        target: Vec::new(),
        rdev: meta.rdev(),
        xattrs: xattrs(at),
    };
    if kind.is_symlink() {
        entry.target = std::fs::read_link(at).unwrap().as_os_str().as_bytes().to_vec();
    }
    if kind.is_file() {
        links.entry((meta.dev(), meta.ino())).or_default().push(path.clone());
    }
    let mut directories = 0;
    if kind.is_dir() {
        for child in std::fs::read_dir(at).unwrap() {
            let child = child.unwrap();
            directories += u64::from(child.file_type().unwrap().is_dir());
            let name = [name, b"/", child.file_name().as_bytes()].concat();
            walk(&child.path(), &name, view, links);
        }
        entry.nlink = 2 + directories;
    }
    view.insert(path, entry);
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut buffer = vec![0; 65536];
    let len = rustix::fs::llistxattr(path, &mut buffer[..]).unwrap();
    let names = buffer[..len].to_vec();
    names
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let text = CString::new(name).unwrap();
            let len = rustix::fs::lgetxattr(path, text.as_c_str(), &mut buffer[..]).unwrap();
            (name.to_vec(), buffer[..len].to_vec())
        })
        .collect()
}

/// What `image` shows.
pub fn of_image(image: &Image) -> View {
    let mut view = View::new();
    let root = image.inode(image.root()).unwrap();
    let mut first = HashMap::new();
    walk_image(image, &root, b"", &mut view, &mut first);
    // The walk is depth-first and the smallest path of a group need not come first.
    let mut smallest: HashMap<u64, Vec<u8>> = HashMap::new();
    for (path, number) in &first {
        let known = smallest.entry(*number).or_insert_with(|| path.clone());
        if path < known {
            known.clone_from(path);
        }
    }
    for (path, number) in first {
        view.get_mut(&path).unwrap().first_name.clone_from(&smallest[&number]);
    }
    view
}

fn walk_image(
    image: &Image,
    inode: &Inode,
    name: &[u8],
    view: &mut View,
    numbers: &mut HashMap<Vec<u8>, u64>,
) {
    let path = if name.is_empty() { b"/".to_vec() } else { name.to_vec() };
    let regular = inode.kind == FileKind::Regular;
    let mut xattrs = BTreeMap::new();
    for xattr in image.xattrs(inode).unwrap() {
        let xattr = xattr.unwrap();
        xattrs.insert([xattr.prefix, xattr.suffix].concat(), xattr.value.to_vec());
    }
    let (minor, major) = (inode.rdev & 0xff | (inode.rdev >> 12) & 0xf_ff00, inode.rdev >> 8 & 0xfff);
    let entry = Entry {
        mode: inode.mode,
        uid: inode.uid,
        gid: inode.gid,
        mtime: (inode.mtime_sec, i64::from(inode.mtime_nsec)),
        size: if regular { inode.size } else { 0 },
        nlink: u64::from(inode.nlink),
        first_name: path.clone(),
        target: if inode.kind == FileKind::Symlink { image.read_link(inode).unwrap() } else { Vec::new() },
        rdev: rustix::fs::makedev(major, minor),
        xattrs,
    };
    numbers.insert(path.clone(), inode.number.0);
    view.insert(path, entry);
    if inode.kind == FileKind::Directory {
        for child in image.read_dir(inode, 0).unwrap() {
            let child = child.unwrap();
            if matches!(child.name, b"." | b"..") {
                continue;
            }
            let found = image.lookup(inode, child.name).unwrap().unwrap();
            assert_eq!(found.number, child.number);
            assert_eq!(found.kind, child.kind);
            walk_image(image, &found, &[name, b"/", child.name].concat(), view, numbers);
        }
    }
}

/// Fails with the first few differences.
pub fn assert_same(expected: &View, got: &View) {
    let mut differences = Vec::new();
    for (path, entry) in expected {
        match got.get(path) {
            None => differences.push(format!("missing {:?}", OsStr::from_bytes(path))),
            Some(other) if other != entry => {
                differences
                    .push(format!("{:?}:\n  want {entry:?}\n  got  {other:?}", OsStr::from_bytes(path)));
            }
            Some(_) => {}
        }
    }
    let extra = got.keys().filter(|path| !expected.contains_key(*path));
    differences.extend(extra.map(|path| format!("extra {:?}", OsStr::from_bytes(path))));
    assert!(
        differences.is_empty(),
        "{} differences, first: {:#?}",
        differences.len(),
        &differences[..differences.len().min(5)]
    );
}
