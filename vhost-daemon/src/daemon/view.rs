//! Which mounts a socket's guests see.
//!
//! Owns: [`ViewSpec`]. A view is a subtree of all mount paths, or a choice of paths, or both; guests of another view have
//! node ids of their own, so there is nothing to guess. Does not own: mounts.

use crate::mounts::{MountPath, Namespace};
use std::sync::Arc;

/// Which mounts are shown, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewSpec {
    /// What guests see as `/`.
    pub root: MountPath,
    /// Only these mounts, and what is below them; paths as the daemon knows them. Empty: all below `root`.
    pub mounts: Vec<MountPath>,
}

impl Default for ViewSpec {
    fn default() -> Self {
        Self { root: MountPath::root(), mounts: Vec::new() }
    }
}

impl ViewSpec {
    /// Where guests of this view see the mount at `path`, if they do.
    #[must_use]
    pub fn shows(&self, path: &MountPath) -> Option<MountPath> {
        let chosen = self.mounts.is_empty() || self.mounts.iter().any(|m| path.below(m).is_some());
        if chosen { path.below(&self.root) } else { None }
    }
}

/// A view that is open.
#[derive(Debug)]
pub(super) struct View {
    pub spec: ViewSpec,
    pub namespace: Arc<Namespace>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subtrees_and_choices() {
        let path = |text| MountPath::parse(text).unwrap();
        assert_eq!(ViewSpec::default().shows(&path("/a/b")), Some(path("/a/b")));
        let tenant = ViewSpec { root: path("/t1"), mounts: Vec::new() };
        assert_eq!(tenant.shows(&path("/t1/app")), Some(path("/app")));
        assert_eq!(tenant.shows(&path("/t2/app")), None);
        let chosen = ViewSpec { root: path("/"), mounts: vec![path("/a"), path("/c")] };
        assert_eq!(chosen.shows(&path("/a/x")), Some(path("/a/x")));
        assert_eq!(chosen.shows(&path("/b")), None);
    }
}
