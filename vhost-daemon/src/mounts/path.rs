//! A path in a guest's namespace.
//!
//! Owns: what is a path and what is below what. Does not own: what is mounted there.

use std::fmt;

/// Longest path, bytes.
const PATH_MAX: usize = 4096;
/// Most names in a path.
const DEPTH_MAX: usize = 64;
/// Longest name, bytes.
const NAME_MAX: usize = 255;

/// An absolute path without `.`, `..` and empty names: `/` or `/a/b`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MountPath(String);

/// Why a text is no path of a namespace.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PathError {
    /// Not absolute.
    #[error("{0:?} is not absolute; it must begin with /")]
    Relative(String),
    /// A name that no directory can have.
    #[error("{0:?} has \"..\", a NUL, more than 64 names, a name over 255 bytes, or over 4096 bytes in all")]
    Names(String),
}

impl MountPath {
    /// The root.
    #[must_use]
    pub fn root() -> Self {
        Self("/".to_owned())
    }

    /// Reads a path. Double and trailing slashes and `.` do not count.
    ///
    /// # Errors
    ///
    /// See [`PathError`].
    pub fn parse(text: &str) -> Result<Self, PathError> {
        let shown = || text.chars().take(100).collect::<String>();
        if !text.starts_with('/') {
            return Err(PathError::Relative(shown()));
        }
        let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty() && *name != ".").collect();
        let bad = |name: &&str| *name == ".." || name.len() > NAME_MAX || name.contains('\0');
        if text.len() > PATH_MAX || names.len() > DEPTH_MAX || names.iter().any(bad) {
            return Err(PathError::Names(shown()));
        }
        Ok(Self(format!("/{}", names.join("/"))))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its names, none for the root.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|name| !name.is_empty())
    }

    /// The rest of `self` as seen from `root`, if it is there or below it.
    #[must_use]
    pub fn below(&self, root: &Self) -> Option<Self> {
        if root.0 == "/" {
            return Some(self.clone());
        }
        match self.0.strip_prefix(&root.0)? {
            "" => Some(Self::root()),
            rest if rest.starts_with('/') => Some(Self(rest.to_owned())),
            _ => None,
        }
    }
}

impl fmt::Display for MountPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read_and_cleaned() {
        for (text, path) in [("/", "/"), ("//a//b/", "/a/b"), ("/./a/.", "/a"), ("/a b/%", "/a b/%")] {
            assert_eq!(MountPath::parse(text).unwrap().as_str(), path);
        }
        for text in ["", "a", "/..", "/a/../b", "/a\0b", &"/a".repeat(65), &format!("/{}", "n".repeat(256))] {
            assert!(MountPath::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn views_see_what_is_below_their_root() {
        let path = |text| MountPath::parse(text).unwrap();
        assert_eq!(path("/a/b").below(&path("/")), Some(path("/a/b")));
        assert_eq!(path("/a/b").below(&path("/a")), Some(path("/b")));
        assert_eq!(path("/a").below(&path("/a")), Some(path("/")));
        assert_eq!(path("/ab").below(&path("/a")), None);
        assert_eq!(path("/").below(&path("/a")), None);
    }
}
