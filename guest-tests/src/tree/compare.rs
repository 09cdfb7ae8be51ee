//! The one comparer of trees: every difference by path and field.

use super::entry::{Kind, Tree, TreeEntry};

/// What a comparison leaves out, each for a reason that the caller states.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ignore {
    /// Modification time of the root (images of directories store 0).
    pub root_mtime: bool,
    /// Link counts of directories (some file systems show 1).
    pub dir_nlink: bool,
    /// Times below a second (tar sources have none).
    pub nanoseconds: bool,
}

/// How many differences are listed before the rest is only counted.
const SHOWN: usize = 30;

/// All differences between `expected` and `actual`, one line each, empty when they are the same; the first few
/// in full and the rest as a count.
#[must_use]
pub fn compare(expected: &Tree, actual: &Tree, ignore: Ignore) -> Vec<String> {
    let mut out = Vec::new();
    for (path, want) in expected {
        match actual.get(path) {
            None => out.push(format!("{}: missing", show(path))),
            Some(got) => entry(path, want, got, ignore, &mut out),
        }
    }
    for path in actual.keys().filter(|p| !expected.contains_key(*p)) {
        out.push(format!("{}: not expected", show(path)));
    }
    if out.len() > SHOWN {
        let more = out.len() - SHOWN;
        out.truncate(SHOWN);
        out.push(format!("and {more} more differences"));
    }
    out
}

fn show(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

fn entry(path: &[u8], want: &TreeEntry, got: &TreeEntry, ignore: Ignore, out: &mut Vec<String>) {
    let mut field = |name: &str, want: &dyn std::fmt::Debug, got: &dyn std::fmt::Debug| {
        let (want, got) = (format!("{want:?}"), format!("{got:?}"));
        if want != got {
            out.push(format!("{}: {name}: expected {want}, got {got}", show(path)));
        }
    };
    field("type", &want.kind, &got.kind);
    field("mode", &format!("{:o}", want.mode), &format!("{:o}", got.mode));
    field("uid", &want.uid, &got.uid);
    field("gid", &want.gid, &got.gid);
    if !(ignore.root_mtime && path == b"/") {
        field("mtime", &want.mtime, &got.mtime);
        if !ignore.nanoseconds {
            field("mtime_ns", &want.mtime_ns, &got.mtime_ns);
        }
    }
    if !(ignore.dir_nlink && want.kind == Kind::Dir) {
        field("nlink", &want.nlink, &got.nlink);
    }
    field("size", &want.size, &got.size);
    field("sha256", &want.sha256, &got.sha256);
    field("target", &want.target.as_deref().map(show), &got.target.as_deref().map(show));
    field("rdev", &want.rdev, &got.rdev);
    let names = |e: &TreeEntry| e.xattrs.keys().map(|k| show(k)).collect::<Vec<_>>();
    field("xattr names", &names(want), &names(got));
    for (name, value) in &want.xattrs {
        if let Some(other) = got.xattrs.get(name) {
            field(&format!("xattr {}", show(name)), &hex::encode(value), &hex::encode(other));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn file(mode: u32) -> TreeEntry {
        TreeEntry {
            kind: Kind::Reg,
            mode,
            uid: 0,
            gid: 0,
            mtime: 1,
            mtime_ns: 2,
            nlink: 1,
            xattrs: BTreeMap::from([(b"user.x".to_vec(), b"1".to_vec())]),
            size: Some(3),
            sha256: Some("00".to_owned()),
            target: None,
            rdev: None,
        }
    }

    #[test]
    fn names_path_and_field() {
        let want = Tree::from([(b"/a".to_vec(), file(0o644)), (b"/b".to_vec(), file(0o644))]);
        let mut other = file(0o600);
        other.xattrs.insert(b"user.x".to_vec(), b"2".to_vec());
        let got = Tree::from([(b"/a".to_vec(), other), (b"/c".to_vec(), file(0o644))]);
        let lines = compare(&want, &got, Ignore::default());
        assert_eq!(
            lines,
            [
                "/a: mode: expected \"644\", got \"600\"",
                "/a: xattr user.x: expected \"31\", got \"32\"",
                "/b: missing",
                "/c: not expected",
            ]
        );
        assert!(compare(&want, &want, Ignore::default()).is_empty());
    }
}
