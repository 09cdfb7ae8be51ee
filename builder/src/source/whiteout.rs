//! Entries that stand for deletions in lower layers (build-rules.md sections 2 and 6).
//!
//! Owns: recognising them. Does not own: what they delete.

use crate::options::WhiteoutSpec;
use crate::tree::Attributes;
use crate::tree::{S_IFCHR, S_IFMT};

/// Whether an entry is a marker under `spec`. An overlayfs opaque directory is an entry too and is none.
pub(crate) fn is_marker(spec: WhiteoutSpec, name: &[u8], attributes: &Attributes) -> bool {
    match spec {
        WhiteoutSpec::Oci => name.starts_with(b".wh."),
        WhiteoutSpec::Overlayfs => attributes.mode & S_IFMT == S_IFCHR && attributes.rdev == 0,
        WhiteoutSpec::None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_spec_knows_its_own_markers_only() {
        let null = Attributes { mode: S_IFCHR, ..Attributes::default() };
        let real = Attributes { mode: S_IFCHR, rdev: 0x103, ..Attributes::default() };
        let file = Attributes { mode: 0o100_644, ..Attributes::default() };
        for (spec, expected) in [
            (WhiteoutSpec::Oci, [true, true, false, false, false]),
            (WhiteoutSpec::Overlayfs, [false, false, true, false, false]),
            (WhiteoutSpec::None, [false; 5]),
        ] {
            let got = [
                is_marker(spec, b".wh.x", &file),
                is_marker(spec, b".wh..wh..opq", &file),
                is_marker(spec, b"x", &null),
                is_marker(spec, b"x", &real),
                is_marker(spec, b"x.wh.", &file),
            ];
            assert_eq!(got, expected, "{spec:?}");
        }
    }
}
