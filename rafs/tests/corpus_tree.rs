//! Every image of the interop corpus shows exactly the tree that `expected.json` describes, by listing, by
//! look-up and by check. File contents are compared elsewhere.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail by panicking")]

use rafs::ids::InodeNumber;
use rafs::image::{CheckOptions, FileKind, FsVersion, Image, Inode, InodeError};
use rafs::layout::SuperFlags;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

#[derive(Deserialize)]
struct Case {
    name: String,
    rafs_version: u32,
    bootstrap: PathBuf,
}

#[derive(Deserialize)]
struct Expected {
    entries: Vec<Entry>,
}

/// What a reader must show of one path; also what the image shows, so that the two compare as a whole.
#[derive(Deserialize, Debug, PartialEq, Clone)]
struct Entry {
    path: String,
    path_hex: Option<String>,
    #[serde(rename = "type")]
    kind: String,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    mtime_ns: u32,
    nlink: u32,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    target_hex: Option<String>,
    #[serde(default)]
    rdev: Option<u32>,
    xattrs: BTreeMap<String, String>,
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-tests/corpus/interop")
}

fn cases() -> Vec<(PathBuf, Case)> {
    let mut cases: Vec<_> = std::fs::read_dir(corpus())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|dir| dir.is_dir())
        .map(|dir| {
            let case = serde_json::from_slice(&std::fs::read(dir.join("case.json")).unwrap()).unwrap();
            (dir, case)
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(cases.len(), 44);
    cases
}

/// Bootstraps that are no case of their own: parents, dictionaries, layers.
fn further_bootstraps() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (dir, _) in cases() {
        let names = ["parent-bootstrap", "dict-bootstrap"];
        found.extend(names.iter().map(|n| dir.join(n)).filter(|p| p.exists()));
        if let Ok(layers) = std::fs::read_dir(dir.join("layers")) {
            found.extend(layers.map(|l| l.unwrap().path()));
        }
    }
    assert_eq!(found.len(), 12);
    found
}

fn open(path: &Path) -> Image {
    Image::open(path).unwrap_or_else(|e| panic!("{e}"))
}

/// Text of raw bytes, and their hex when that loses something.
fn text(bytes: &[u8]) -> (String, Option<String>) {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let hex = (text.as_bytes() != bytes).then(|| hex::encode(bytes));
    (text, hex)
}

fn kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Regular => "reg",
        FileKind::Directory => "dir",
        FileKind::Symlink => "symlink",
        FileKind::CharDevice => "char",
        FileKind::BlockDevice => "block",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "sock",
    }
}

fn describe(image: &Image, path: &[u8], inode: &Inode) -> Entry {
    let device = matches!(inode.kind, FileKind::CharDevice | FileKind::BlockDevice);
    if !device {
        assert_eq!(inode.rdev, 0);
    }
    let target = (inode.kind == FileKind::Symlink).then(|| text(&image.read_link(inode).unwrap()));
    let (path, path_hex) = text(path);
    Entry {
        path,
        path_hex,
        kind: kind_name(inode.kind).to_owned(),
        mode: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        mtime: inode.mtime_sec,
        mtime_ns: inode.mtime_nsec,
        nlink: inode.nlink,
        size: (inode.kind != FileKind::Directory).then_some(inode.size),
        target: target.clone().map(|t| t.0),
        target_hex: target.and_then(|t| t.1),
        rdev: device.then_some(inode.rdev),
        xattrs: image
            .xattrs(inode)
            .unwrap()
            .map(|x| {
                let x = x.unwrap();
                let name = [x.prefix, x.suffix].concat();
                assert!(
                    x.is_called(&name)
                        && !x.is_called(b"user.no such")
                        && !x.is_called(x.suffix) | x.prefix.is_empty()
                );
                (String::from_utf8(name).unwrap(), hex::encode(x.value))
            })
            .collect(),
    }
}

/// The tree by listing and by look-up, sorted by path bytes, with the inode numbers.
fn tree(image: &Image) -> Vec<(Vec<u8>, Entry, InodeNumber)> {
    let root = image.inode(image.root()).unwrap();
    let mut found = vec![(b"/".to_vec(), describe(image, b"/", &root), root.number)];
    let mut todo = vec![(Vec::new(), root, root)];
    while let Some((path, dir, parent)) = todo.pop() {
        let mut names: Vec<Vec<u8>> = Vec::new();
        for entry in image.read_dir(&dir, 0).unwrap() {
            let entry = entry.unwrap();
            assert!(entry.next_cookie > 0 && entry.next_cookie < 1 << 63);
            let by_name = image.lookup(&dir, entry.name).unwrap().unwrap();
            assert_eq!((by_name.number, by_name.kind), (entry.number, entry.kind));
            names.push(entry.name.to_vec());
            match entry.name {
                b"." => assert_eq!(entry.number, dir.number),
                b".." => assert_eq!(entry.number, parent.number),
                name => {
                    let path = [path.as_slice(), b"/", name].concat();
                    let inode = image.inode(entry.number).unwrap();
                    found.push((path.clone(), describe(image, &path, &inode), inode.number));
                    if inode.kind == FileKind::Directory {
                        todo.push((path, inode, dir));
                    } else {
                        assert_eq!(
                            image.read_dir(&inode, 0).unwrap_err(),
                            InodeError::NotADirectory(inode.number)
                        );
                    }
                }
            }
        }
        missing_names(image, &dir, &names);
        restarts(image, &dir, &names);
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Look-up finds nothing that is not listed, next to every name that is.
fn missing_names(image: &Image, dir: &Inode, names: &[Vec<u8>]) {
    let mut others = vec![b"".to_vec(), b"\0".to_vec(), vec![0xff; 300]];
    for name in names {
        others.push([name, &b"\0"[..]].concat());
        others.push([name, &b"~"[..]].concat());
        others.push(name[..name.len() - 1].to_vec());
    }
    for name in others.iter().filter(|n| !names.contains(n)) {
        assert!(image.lookup(dir, name).unwrap().is_none(), "{name:?}");
    }
}

/// A listing continued behind any entry gives the rest of the entries.
fn restarts(image: &Image, dir: &Inode, names: &[Vec<u8>]) {
    let listing = |cookie, count| -> Vec<(Vec<u8>, u64)> {
        let entries = image.read_dir(dir, cookie).unwrap().take(count);
        entries.map(|e| e.unwrap()).map(|e| (e.name.to_vec(), e.next_cookie)).collect()
    };
    let all = listing(0, usize::MAX);
    let listed: Vec<_> = all.iter().map(|e| e.0.clone()).collect();
    assert_eq!(listed, names);
    for (position, (_, cookie)) in all.iter().enumerate() {
        // All of the rest for small directories, the next few for large ones.
        let count = if all.len() > 200 { 5 } else { usize::MAX };
        let rest = all[position + 1..].iter().take(count).cloned().collect::<Vec<_>>();
        assert_eq!(listing(*cookie, count), rest, "behind entry {position}");
    }
    let last = all.last().unwrap().1;
    for cookie in [last, last + 1, u64::MAX, 1 << 62, 0xffff, 0xffff_ffff_0001] {
        assert_eq!(listing(cookie, usize::MAX), [], "cookie {cookie:#x}");
    }
}

#[test]
fn every_case_shows_the_expected_tree() {
    let euid = rustix::process::geteuid().as_raw();
    for (dir, case) in cases() {
        let image = open(&dir.join(&case.bootstrap));
        let version = if case.rafs_version == 5 { FsVersion::V5 } else { FsVersion::V6 };
        assert_eq!(image.version(), version, "{}", case.name);
        assert_eq!(image.version().to_string(), case.rafs_version.to_string());
        let json = std::fs::read(dir.join("expected.json")).unwrap();
        let mut expected: Expected = serde_json::from_slice(&json).unwrap();
        if !image.flags().contains(SuperFlags::EXPLICIT_UID_GID) {
            assert!(case.name.ends_with("repeatable"), "{}", case.name);
            let egid = rustix::process::getegid().as_raw();
            for entry in &mut expected.entries {
                (entry.uid, entry.gid) = (euid, egid);
            }
        }
        let shown = tree(&image);
        assert_eq!(shown.len(), expected.entries.len(), "{}", case.name);
        for ((_, shown, _), expected) in shown.iter().zip(&expected.entries) {
            assert_eq!(shown, expected, "{}", case.name);
        }
        let hardlinks = links_share_inodes(&case.name, &shown);
        let summary = image.check().unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(summary.names(), shown.len() as u64, "{}", case.name);
        assert_eq!(summary.hardlinks, hardlinks, "{}", case.name);
        let files = shown.iter().filter(|e| e.1.kind == "reg").count();
        assert_eq!(summary.files, files as u64, "{}", case.name);
        let xattrs: usize = shown.iter().map(|e| e.1.xattrs.len()).sum();
        assert!(summary.xattrs <= xattrs as u64, "{}", case.name);
    }
}

/// Names of regular files with several links come in groups of `nlink` with one number; gives how many names
/// are not the first of their group.
fn links_share_inodes(case: &str, shown: &[(Vec<u8>, Entry, InodeNumber)]) -> u64 {
    let mut groups: HashMap<InodeNumber, Vec<&Entry>> = HashMap::new();
    for (_, entry, number) in shown.iter().filter(|e| e.1.kind == "reg") {
        groups.entry(*number).or_default().push(entry);
    }
    for group in groups.values() {
        assert_eq!(group.len(), group[0].nlink as usize, "{case}: {}", group[0].path);
    }
    groups.values().map(|g| g.len() as u64 - 1).sum()
}

#[test]
fn inputs_of_layered_cases_open_and_pass_the_check() {
    for path in further_bootstraps() {
        let image = open(&path);
        image.check().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        tree(&image);
    }
}

#[test]
fn v5_inode_digests_match() {
    let mut count = 0;
    let paths = cases().into_iter().map(|(dir, case)| dir.join(case.bootstrap)).chain(further_bootstraps());
    for path in paths {
        let image = open(&path);
        if image.version() == FsVersion::V5 {
            let options = CheckOptions { inode_digests: true };
            image.check_with(options).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            count += 1;
        }
    }
    assert!(count >= 17);
}

#[test]
fn a_file_and_its_bytes_open_alike() {
    for (dir, case) in cases() {
        let path = dir.join(&case.bootstrap);
        let name = path.display().to_string();
        let mapped = open(&path);
        let owned = Image::from_bytes(std::fs::read(&path).unwrap(), &name).unwrap();
        let given = Image::from_file(&std::fs::File::open(&path).unwrap(), &name).unwrap();
        assert_eq!(mapped.blobs(), owned.blobs());
        assert_eq!(mapped.blobs(), given.blobs());
        assert_eq!(mapped.check().unwrap(), owned.check().unwrap());
        assert_eq!(mapped.prefetch_list(), owned.prefetch_list());
        let prefetched: &[&str] =
            if case.name.ends_with("prefetch-fs") { &["/names", "/big/file", "/dup/a"] } else { &[] };
        let numbers: Vec<_> = prefetched.iter().map(|path| resolve(&mapped, path)).collect();
        assert_eq!(mapped.prefetch_list(), numbers, "{}", case.name);
        let sizes: u64 = mapped.blobs().iter().map(|b| u64::from(b.prefetch_size)).sum();
        assert_eq!(sizes != 0, case.name == "v5-prefetch-blob", "{}", case.name);
    }
}

fn resolve(image: &Image, path: &str) -> InodeNumber {
    let root = image.inode(image.root()).unwrap();
    let step = |dir: Inode, name: &str| image.lookup(&dir, name.as_bytes()).unwrap().unwrap();
    path.split('/').filter(|name| !name.is_empty()).fold(root, step).number
}

#[test]
fn blobs_are_named_after_their_files() {
    for (dir, case) in cases() {
        let image = open(&dir.join(&case.bootstrap));
        let blobs = dir.join("blobs");
        for blob in image.blobs() {
            let cached = blobs.join(format!("{}.blob.data", blob.id));
            assert!(blobs.join(&blob.id).exists() || cached.exists(), "{}: {}", case.name, blob.id);
            match &blob.meta_blob {
                Some(rafs::image::MetaBlob::Named { id, size }) => {
                    assert_eq!(blobs.join(id).metadata().unwrap().len(), *size, "{}", case.name);
                }
                Some(rafs::image::MetaBlob::BootstrapFile { id }) => {
                    assert!(blobs.join(id).exists(), "{}", case.name);
                }
                None => {}
            }
        }
        for inode in image.prefetch_list() {
            image.inode(inode).unwrap();
        }
    }
}

#[test]
fn chunks_cover_every_file_once() {
    for (dir, case) in cases() {
        let image = open(&dir.join(&case.bootstrap));
        let mut records = 0u64;
        image.for_each_chunk_record(&mut |_| records += 1);
        let summary = image.check().unwrap();
        match image.version() {
            FsVersion::V5 => assert_eq!(records, summary.chunks, "{}", case.name),
            FsVersion::V6 => assert_eq!(records, 0),
        }
        assert!(!image.v5_chunk_indexes_missing());
        let chunk_size = u64::from(image.chunk_size());
        for (_, entry, number) in tree(&image) {
            let inode = image.inode(number).unwrap();
            if inode.kind != FileKind::Regular {
                assert_eq!(image.chunks(&inode, 0, 1).unwrap_err(), InodeError::NotARegularFile(number));
                continue;
            }
            let all: Vec<_> = image.chunks(&inode, 0, u64::MAX).unwrap().map(|c| c.unwrap()).collect();
            let mut end = 0;
            for chunk in &all {
                assert_eq!(chunk.file_offset, end, "{}", entry.path);
                end += u64::from(chunk.uncompressed_size);
                let record = image.chunk_record(chunk);
                assert_eq!(record.is_some(), image.version() == FsVersion::V5);
                if let Some(record) = record {
                    assert_eq!(record.index.get(), chunk.chunk.0);
                    assert_eq!(record.file_offset.get(), chunk.file_offset);
                }
            }
            assert_eq!(end, inode.size, "{}", entry.path);
            for (offset, len) in [(0, 0), (inode.size, 1), (u64::MAX, u64::MAX), (inode.size, 0)] {
                assert_eq!(image.chunks(&inode, offset, len).unwrap().count(), 0, "{offset} {len}");
            }
            for offset in (0..inode.size).step_by(4001).chain([inode.size.saturating_sub(1)]) {
                for len in [1, chunk_size, chunk_size + 1] {
                    let part: Vec<_> =
                        image.chunks(&inode, offset, len).unwrap().map(|c| c.unwrap()).collect();
                    let overlapping = |c: &&rafs::image::ChunkRef| {
                        let chunk_end = c.file_offset + u64::from(c.uncompressed_size);
                        c.file_offset < offset + len && offset < chunk_end
                    };
                    let expected: Vec<_> = all.iter().filter(overlapping).copied().collect();
                    assert_eq!(part, expected, "{} {offset} {len}", entry.path);
                }
            }
        }
    }
}
