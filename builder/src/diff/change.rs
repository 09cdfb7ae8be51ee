//! What can differ between two entries of the same path.
//!
//! Owns: the types, their words for people and for JSON. Does not own: finding differences.

use crate::study::{Shown, json_name};
use serde_json::{Map, Value, json};
use std::fmt;

/// What happened to a path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChangeKind {
    /// Only the second side has it.
    Added,
    /// Only the first side has it.
    Removed,
    /// Both have it, and it is not the same.
    Changed(Vec<Difference>),
}

/// One path that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Absolute path, raw bytes.
    pub path: Vec<u8>,
    /// What the entry is; of a changed one, what it is now.
    pub kind: &'static str,
    /// Bytes of a regular file, 0 for others; of a changed one, its size now.
    pub size: u64,
    /// What happened.
    pub what: ChangeKind,
}

/// One attribute with its old and its new value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Difference {
    /// File type.
    Type(&'static str, &'static str),
    /// Permission bits, set-id and sticky bits included.
    Mode(u32, u32),
    /// User and group.
    Owner((u32, u32), (u32, u32)),
    /// Modification time: seconds and nanoseconds.
    Mtime((i64, u32), (i64, u32)),
    /// Bytes of a regular file.
    Size(u64, u64),
    /// Bytes of a regular file are other ones.
    Content,
    /// Target of a symlink.
    Target(Vec<u8>, Vec<u8>),
    /// Device number in the 32-bit Linux encoding.
    Rdev(u32, u32),
    /// Extended attribute of this name: was there, is there.
    Xattr(Vec<u8>, bool, bool),
    /// First path of the group of hardlinks it belongs to; `None` when it is a file of its own.
    Hardlink(Option<Vec<u8>>, Option<Vec<u8>>),
}

impl Difference {
    /// Name of the attribute: the words that `--ignore` takes.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Type(..) => "type",
            Self::Mode(..) => "mode",
            Self::Owner(..) => "owner",
            Self::Mtime(..) => "mtime",
            Self::Size(..) => "size",
            Self::Content => "content",
            Self::Target(..) => "target",
            Self::Rdev(..) => "rdev",
            Self::Xattr(..) => "xattr",
            Self::Hardlink(..) => "hardlink",
        }
    }

    fn json(&self) -> Value {
        let mut object = Map::new();
        object.insert("attribute".to_owned(), self.name().into());
        let mut both = |from: Value, to: Value| {
            object.insert("from".to_owned(), from);
            object.insert("to".to_owned(), to);
        };
        match self {
            Self::Type(from, to) => both((*from).into(), (*to).into()),
            Self::Mode(from, to) => both(format!("{from:04o}").into(), format!("{to:04o}").into()),
            Self::Owner(from, to) => {
                both(json!({"uid": from.0, "gid": from.1}), json!({"uid": to.0, "gid": to.1}))
            }
            Self::Mtime(from, to) => both(
                json!({"seconds": from.0, "nanoseconds": from.1}),
                json!({"seconds": to.0, "nanoseconds": to.1}),
            ),
            Self::Size(from, to) => both((*from).into(), (*to).into()),
            Self::Rdev(from, to) => both(device(*from).into(), device(*to).into()),
            Self::Content => {}
            Self::Target(from, to) => {
                json_name(&mut object, "from", from);
                json_name(&mut object, "to", to);
            }
            Self::Xattr(name, from, to) => {
                json_name(&mut object, "name", name);
                object.insert("change".to_owned(), word(*from, *to).into());
            }
            Self::Hardlink(from, to) => {
                for (key, path) in [("from", from), ("to", to)] {
                    match path {
                        Some(path) => json_name(&mut object, key, path),
                        None => drop(object.insert(key.to_owned(), Value::Null)),
                    }
                }
            }
        }
        object.into()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match self {
            Self::Type(from, to) => write!(f, "{name} {from} -> {to}"),
            Self::Mode(from, to) => write!(f, "{name} {from:04o} -> {to:04o}"),
            Self::Owner(from, to) => write!(f, "{name} {}:{} -> {}:{}", from.0, from.1, to.0, to.1),
            Self::Mtime(from, to) => {
                write!(f, "{name} {}.{:09} -> {}.{:09}", from.0, from.1, to.0, to.1)
            }
            Self::Size(from, to) => write!(f, "{name} {from} -> {to}"),
            Self::Content => f.write_str(name),
            Self::Target(from, to) => write!(f, "{name} {} -> {}", Shown(from), Shown(to)),
            Self::Rdev(from, to) => write!(f, "{name} {} -> {}", device(*from), device(*to)),
            Self::Xattr(key, from, to) => write!(f, "{name} {} {}", Shown(key), word(*from, *to)),
            Self::Hardlink(from, to) => {
                let show = |path: &Option<Vec<u8>>| {
                    path.as_ref().map_or_else(|| "none".to_owned(), |path| Shown(path).to_string())
                };
                write!(f, "{name} {} -> {}", show(from), show(to))
            }
        }
    }
}

fn word(from: bool, to: bool) -> &'static str {
    match (from, to) {
        (false, _) => "added",
        (true, false) => "removed",
        (true, true) => "changed",
    }
}

/// `major:minor` of a device number in the 32-bit Linux encoding.
fn device(rdev: u32) -> String {
    format!("{}:{}", rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xf_ff00)
}

impl Change {
    /// The change as a JSON object.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut object = Map::new();
        json_name(&mut object, "path", &self.path);
        let change = match &self.what {
            ChangeKind::Added => "added",
            ChangeKind::Removed => "removed",
            ChangeKind::Changed(_) => "changed",
        };
        object.insert("change".to_owned(), change.into());
        object.insert("type".to_owned(), self.kind.into());
        if self.kind == "file" {
            object.insert("size".to_owned(), self.size.into());
        }
        if let ChangeKind::Changed(differences) = &self.what {
            object
                .insert("attributes".to_owned(), differences.iter().map(Difference::json).collect::<Value>());
        }
        object.into()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = Shown(&self.path);
        let about = |f: &mut fmt::Formatter<'_>, sign: char| {
            if self.kind == "file" {
                write!(f, "{sign} {path}  ({} bytes)", self.size)
            } else {
                write!(f, "{sign} {path}  ({})", self.kind)
            }
        };
        match &self.what {
            ChangeKind::Added => about(f, '+'),
            ChangeKind::Removed => about(f, '-'),
            ChangeKind::Changed(differences) => {
                write!(f, "~ {path}  ")?;
                for (n, difference) in differences.iter().enumerate() {
                    write!(f, "{}{difference}", if n > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_objects() {
        let change = Change {
            path: b"/etc/\xff\n".to_vec(),
            kind: "file",
            size: 7,
            what: ChangeKind::Changed(vec![
                Difference::Mode(0o644, 0o4755),
                Difference::Xattr(b"user.a".to_vec(), false, true),
                Difference::Rdev(0x103, 0x0010_0802),
                Difference::Content,
            ]),
        };
        assert_eq!(
            change.to_string(),
            "~ /etc/\\xff\\n  mode 0644 -> 4755, xattr user.a added, rdev 1:3 -> 8:258, content"
        );
        let json = change.json();
        assert_eq!(json["path_hex"], "2f6574632fff0a");
        assert_eq!(json["attributes"][0], json!({"attribute": "mode", "from": "0644", "to": "4755"}));
        assert_eq!(json["attributes"][3], json!({"attribute": "content"}));
    }
}
