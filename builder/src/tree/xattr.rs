//! Extended attributes: checked, sorted by name, each distinct set stored once.
//!
//! Owns: which names an image may hold (rafs-v5.md section 14) and the interned sets. Does not own: how
//! v5 and v6 lay them out. Interning pays because most entries of a tree carry none or the same label.

use std::collections::HashMap;

/// Reference to an interned set; the default is the empty one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct XattrSetId(u32);

/// Longest value, bytes (the kernel's own limit).
const VALUE_MAX: usize = 65536;
/// Longest name, bytes.
const NAME_MAX: usize = 255;

/// Why an attribute cannot be stored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum XattrError {
    /// Name outside the prefixes that RAFS knows.
    #[error(
        "extended attribute {name:?} cannot be stored: RAFS knows user.*, trusted.*, security.* and the POSIX ACLs"
    )]
    Name {
        /// Name, lossily.
        name: String,
    },
    /// Name or value too long.
    #[error("extended attribute {name:?} is too long for RAFS (name {name_len}, value {value_len} bytes)")]
    Size {
        /// Name, lossily.
        name: String,
        /// Bytes of the name.
        name_len: usize,
        /// Bytes of the value.
        value_len: usize,
    },
    /// More distinct sets than can be numbered.
    #[error("too many distinct sets of extended attributes in one image")]
    TooMany,
}

/// Splits a full name into the v6 prefix index and the suffix; `None` for names that RAFS cannot hold.
pub(crate) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    rafs::layout::v6::XATTR_PREFIXES.iter().find_map(|(index, prefix)| {
        let rest = name.strip_prefix(prefix.as_bytes())?;
        // The ACL names are whole names; the others need something behind the dot.
        (rest.is_empty() != prefix.ends_with('.')).then_some((*index, rest))
    })
}

/// Name and value.
type Pair = (Box<[u8]>, Box<[u8]>);
/// One set.
type Pairs = Box<[Pair]>;

/// All distinct sets of an image.
#[derive(Debug, Default)]
pub(crate) struct XattrSets {
    sets: Vec<Pairs>,
    ids: HashMap<Pairs, u32>,
}

impl XattrSets {
    /// Stores a set of (name, value) pairs, sorted by name; equal sets get equal ids.
    pub(crate) fn intern(&mut self, pairs: &mut [(Vec<u8>, Vec<u8>)]) -> Result<XattrSetId, XattrError> {
        if pairs.is_empty() {
            return Ok(XattrSetId::default());
        }
        pairs.sort_unstable();
        for (name, value) in pairs.iter() {
            let shown = || String::from_utf8_lossy(name).into_owned();
            if split_name(name).is_none() {
                return Err(XattrError::Name { name: shown() });
            }
            if name.len() > NAME_MAX || value.len() > VALUE_MAX {
                let (name_len, value_len) = (name.len(), value.len());
                return Err(XattrError::Size { name: shown(), name_len, value_len });
            }
        }
        let set: Pairs = pairs.iter().map(|(n, v)| (n.as_slice().into(), v.as_slice().into())).collect();
        if let Some(id) = self.ids.get(&set) {
            return Ok(XattrSetId(*id));
        }
        let id = u32::try_from(self.sets.len() + 1).map_err(|_| XattrError::TooMany)?;
        self.sets.push(set.clone());
        self.ids.insert(set, id);
        Ok(XattrSetId(id))
    }

    /// The set behind an id.
    pub(crate) fn get(&self, id: XattrSetId) -> XattrSet<'_> {
        let pairs = match id.0.checked_sub(1) {
            None => &[][..],
            Some(at) => &self.sets[at as usize],
        };
        XattrSet { pairs }
    }
}

/// One set, sorted by name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct XattrSet<'a> {
    pairs: &'a [Pair],
}

impl<'a> XattrSet<'a> {
    /// Whether there is none.
    pub(crate) fn is_empty(self) -> bool {
        self.pairs.is_empty()
    }

    /// (full name, value) pairs in name order.
    pub(crate) fn iter(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        self.pairs.iter().map(|(n, v)| (&**n, &**v))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_as_the_format_says() {
        assert_eq!(split_name(b"user.a"), Some((1, &b"a"[..])));
        assert_eq!(split_name(b"system.posix_acl_access"), Some((2, &b""[..])));
        assert_eq!(split_name(b"system.posix_acl_default"), Some((3, &b""[..])));
        assert_eq!(split_name(b"trusted.overlay.opaque"), Some((4, &b"overlay.opaque"[..])));
        assert_eq!(split_name(b"security.capability"), Some((6, &b"capability"[..])));
        for bad in [&b"user."[..], b"system.nfs4_acl", b"system.posix_acl_accessX", b"btrfs.x", b""] {
            assert_eq!(split_name(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn equal_sets_share_an_id_whatever_the_order() {
        let mut sets = XattrSets::default();
        let a = (b"user.a".to_vec(), b"1".to_vec());
        let b = (b"user.b".to_vec(), b"2".to_vec());
        let one = sets.intern(&mut [a.clone(), b.clone()]).unwrap();
        let two = sets.intern(&mut [b.clone(), a.clone()]).unwrap();
        let three = sets.intern(&mut [b]).unwrap();
        assert_eq!(one, two);
        assert_ne!(one, three);
        let names: Vec<_> = sets.get(one).iter().map(|(n, _)| n.to_vec()).collect();
        assert_eq!(names, [b"user.a".to_vec(), b"user.b".to_vec()]);
        sets.intern(&mut [(b"evil.x".to_vec(), vec![])]).unwrap_err();
    }
}
