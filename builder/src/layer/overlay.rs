//! Lays one tree over another (build-rules.md section 6).
//!
//! Owns: whiteouts, opaque directories, replacement, hardlink groups across the copy. Does not own: chunks;
//! positions in the reference list are shifted by what the caller says.

use crate::error::BuildError;
use crate::options::WhiteoutSpec;
use crate::tree::{Attributes, NodeId, ROOT, S_IFCHR, S_IFMT, Tree};
use std::collections::HashMap;

const OCI_PREFIX: &[u8] = b".wh.";
const OCI_OPAQUE: &[u8] = b".wh..wh..opq";
const OVERLAY_OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// What an upper entry does to the lower directory.
#[derive(Debug, PartialEq, Eq)]
enum Mark<'a> {
    /// Removes one name.
    Removes(&'a [u8]),
    /// Removes everything.
    RemovesAll,
    /// Is a directory that hides the lower one of its name.
    Hides,
    /// Nothing special.
    No,
}

/// Changes `lower` into what is seen with `upper` on top. References of files in `upper` get `shift` more.
pub(crate) fn overlay(
    lower: &mut Tree,
    upper: &Tree,
    spec: WhiteoutSpec,
    shift: u64,
) -> Result<(), BuildError> {
    let mut owners = HashMap::new();
    let attributes = copied(lower, upper, ROOT, false)?;
    lower.node_mut(ROOT).attributes = attributes;
    let mut pending = vec![(ROOT, ROOT)];
    while let Some((below, above)) = pending.pop() {
        let mut known: HashMap<Vec<u8>, NodeId> =
            lower.children_unsorted(below).map(|id| (lower.name(id).to_vec(), id)).collect();
        for id in upper.children_unsorted(above) {
            match mark(upper, id, spec) {
                Mark::Removes(name) => {
                    if let Some(id) = known.remove(name) {
                        lower.unlink(id);
                    }
                }
                Mark::RemovesAll => {
                    known.clear();
                    lower.clear_children(below);
                }
                Mark::Hides => {
                    if let Some(id) = known.get(upper.name(id)) {
                        lower.clear_children(*id);
                    }
                }
                Mark::No => {}
            }
        }
        for id in upper.children_unsorted(above) {
            let mark = mark(upper, id, spec);
            if matches!(mark, Mark::Removes(_) | Mark::RemovesAll) {
                continue;
            }
            let attributes = copied(lower, upper, id, mark == Mark::Hides)?;
            let is_dir = upper.node(id).is_dir();
            let node = match known.get(upper.name(id)) {
                Some(old) if is_dir && lower.node(*old).is_dir() => {
                    lower.node_mut(*old).attributes = attributes;
                    *old
                }
                old => {
                    if let Some(old) = old {
                        lower.unlink(*old);
                    }
                    add(lower, upper, (below, id), attributes, shift, &mut owners)?
                }
            };
            if is_dir {
                pending.push((node, id));
            }
        }
    }
    Ok(())
}

fn mark<'a>(upper: &'a Tree, id: NodeId, spec: WhiteoutSpec) -> Mark<'a> {
    let node = upper.node(id);
    match spec {
        WhiteoutSpec::Oci => match upper.name(id) {
            OCI_OPAQUE => Mark::RemovesAll,
            name => name.strip_prefix(OCI_PREFIX).map_or(Mark::No, Mark::Removes),
        },
        WhiteoutSpec::Overlayfs => {
            let attributes = &node.attributes;
            if attributes.mode & S_IFMT == S_IFCHR && attributes.rdev == 0 {
                Mark::Removes(upper.name(id))
            } else if node.is_dir() && upper.xattrs(id).iter().any(|pair| pair == (OVERLAY_OPAQUE, b"y")) {
                Mark::Hides
            } else {
                Mark::No
            }
        }
        WhiteoutSpec::None => Mark::No,
    }
}

/// Attributes of `id` for the lower tree, which has its own sets of xattrs.
pub(crate) fn copied(
    lower: &mut Tree,
    upper: &Tree,
    id: NodeId,
    opaque: bool,
) -> Result<Attributes, BuildError> {
    let mut pairs: Vec<_> = upper
        .xattrs(id)
        .iter()
        .filter(|(name, _)| !(opaque && *name == OVERLAY_OPAQUE))
        .map(|(name, value)| (name.to_vec(), value.to_vec()))
        .collect();
    let xattrs = lower.intern_xattrs(&mut pairs).map_err(|e| BuildError::Source {
        path: String::from_utf8_lossy(&upper.path(id)).into_owned().into(),
        reason: e.to_string(),
    })?;
    Ok(Attributes { xattrs, ..upper.node(id).attributes })
}

fn add(
    lower: &mut Tree,
    upper: &Tree,
    (parent, id): (NodeId, NodeId),
    attributes: Attributes,
    shift: u64,
    owners: &mut HashMap<NodeId, NodeId>,
) -> Result<NodeId, BuildError> {
    let node = lower.add(parent, upper.name(id), attributes)?;
    if upper.node(id).is_symlink() {
        lower.set_target(node, upper.target(id))?;
    } else if upper.node(id).is_file() {
        let above = upper.node(id).owner;
        let owner = *owners.entry(above).or_insert(node);
        if owner == node {
            lower.node_mut(node).first_chunk = upper.node(above).first_chunk + shift;
        } else {
            lower.set_owner(node, owner);
        }
    }
    Ok(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Order, S_IFDIR, S_IFREG};

    fn tree(paths: &[&str]) -> Tree {
        let mut tree = Tree::new(Attributes { mode: S_IFDIR, ..Attributes::default() });
        let mut known = HashMap::from([(String::new(), ROOT)]);
        for path in paths {
            let (parent, name) = path.trim_end_matches(['/', '!']).rsplit_once('/').unwrap();
            let (mode, xattr) = match path {
                p if p.ends_with('!') => (S_IFDIR, true),
                p if p.ends_with('/') => (S_IFDIR, false),
                p if p.ends_with("null") => (S_IFCHR, false),
                _ => (S_IFREG, false),
            };
            let xattrs = if xattr {
                tree.intern_xattrs(&mut [(OVERLAY_OPAQUE.to_vec(), b"y".to_vec())]).unwrap()
            } else {
                Default::default()
            };
            let id = tree
                .add(known[parent], name.as_bytes(), Attributes { mode, xattrs, ..Attributes::default() })
                .unwrap();
            known.insert(format!("{parent}/{name}"), id);
        }
        tree
    }

    fn shown(tree: &mut Tree) -> Vec<String> {
        let order = Order::new(tree).unwrap();
        order.depth_first(tree).skip(1).map(|id| String::from_utf8(tree.path(id)).unwrap()).collect()
    }

    #[test]
    fn whiteouts_act_on_what_is_below_only() {
        let lower = ["/a/", "/a/x", "/a/y", "/b/", "/b/z", "/c", "/d/", "/d/null"];
        for (spec, upper, expected) in [
            (
                WhiteoutSpec::Oci,
                &["/a/", "/a/.wh.x", "/.wh.c", "/.wh.absent"][..],
                &["/a", "/a/y", "/b", "/b/z", "/d", "/d/null"][..],
            ),
            (
                WhiteoutSpec::Oci,
                &["/a/", "/a/.wh..wh..opq", "/a/new"],
                &["/a", "/a/new", "/b", "/b/z", "/c", "/d", "/d/null"],
            ),
            // A marker never removes what its own layer brings.
            (
                WhiteoutSpec::Oci,
                &["/c", "/.wh.c"],
                &["/a", "/a/x", "/a/y", "/b", "/b/z", "/c", "/d", "/d/null"],
            ),
            (
                WhiteoutSpec::Overlayfs,
                &["/b!", "/b/new", "/d/", "/d/null"],
                &["/a", "/a/x", "/a/y", "/b", "/b/new", "/c", "/d"],
            ),
            (
                WhiteoutSpec::None,
                &["/.wh.c", "/a!"],
                &["/.wh.c", "/a", "/a/x", "/a/y", "/b", "/b/z", "/c", "/d", "/d/null"],
            ),
            // Types change both ways.
            (
                WhiteoutSpec::Oci,
                &["/a", "/c/", "/c/in"],
                &["/a", "/b", "/b/z", "/c", "/c/in", "/d", "/d/null"],
            ),
        ] {
            let mut merged = tree(&lower);
            overlay(&mut merged, &tree(upper), spec, 0).unwrap();
            assert_eq!(shown(&mut merged), expected, "{spec:?} {upper:?}");
        }
    }

    #[test]
    fn a_hiding_directory_loses_its_mark() {
        let mut merged = tree(&["/b/", "/b/z"]);
        overlay(&mut merged, &tree(&["/b!"]), WhiteoutSpec::Overlayfs, 0).unwrap();
        let b = merged.children_unsorted(ROOT).next().unwrap();
        assert!(merged.xattrs(b).is_empty());
    }

    #[test]
    fn hardlinks_stay_within_a_layer() {
        let mut upper = tree(&["/u1", "/u2"]);
        let names: Vec<_> = upper.children_unsorted(ROOT).collect();
        upper.set_owner(names[0], names[1]);
        let mut merged = tree(&["/l"]);
        overlay(&mut merged, &upper, WhiteoutSpec::Oci, 7).unwrap();
        let order = Order::new(&mut merged).unwrap();
        let nlinks: Vec<_> = order.numbered.iter().skip(1).map(|id| merged.owner(*id).nlink).collect();
        assert_eq!(nlinks, [1, 2, 2]);
        assert_eq!(merged.owner(order.numbered[2]).first_chunk, 7);
    }
}
