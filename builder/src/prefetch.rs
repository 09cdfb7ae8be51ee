//! Prefetch patterns: the paths whose data shall come first (build-rules.md section 11).
//!
//! Owns: reading the list, dropping what is no absolute path or lies below an earlier entry, matching. Does
//! not own: the prefetch tables, which the bootstrap writers make.

use std::io::{self, Read};

/// Most bytes of patterns that are read; a longer list is refused, not cut.
const PATTERNS_MAX: u64 = 64 << 20;

/// Absolute paths in order of importance, none below another one.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    paths: Vec<Vec<u8>>,
}

impl Patterns {
    /// Reads one path a line, to the end of `input`. Lines that are not absolute or that lie at or below an
    /// earlier one are dropped with a warning; paths need not exist.
    ///
    /// # Errors
    /// When reading fails or the list is longer than 64 MiB.
    pub fn read(input: &mut dyn Read) -> io::Result<Self> {
        let mut text = Vec::new();
        input.take(PATTERNS_MAX + 1).read_to_end(&mut text)?;
        if text.len() as u64 > PATTERNS_MAX {
            return Err(io::Error::other("the list of prefetch patterns is longer than 64 MiB"));
        }
        Ok(Self::parse(&text))
    }

    /// Takes the patterns out of `text`, one a line.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let mut paths: Vec<Vec<u8>> = Vec::new();
        let mut known = std::collections::HashSet::new();
        for line in text.split(|b| *b == b'\n') {
            let line = line.trim_ascii();
            if line.is_empty() {
                continue;
            }
            let shown = String::from_utf8_lossy(line);
            if line[0] != b'/' {
                tracing::warn!("prefetch pattern {shown:?} is no absolute path: skipped");
                continue;
            }
            let path = normalise(line);
            if ancestors(&path).any(|a| known.contains(a)) {
                tracing::warn!("prefetch pattern {shown:?} is covered by an earlier one: skipped");
                continue;
            }
            known.insert(path.clone());
            paths.push(path);
        }
        Self { paths }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// The patterns; `/` is the empty path.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.paths.iter().map(Vec::as_slice)
    }
}

/// Removes empty and `.` components and the trailing slash; the root becomes the empty path.
fn normalise(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    for part in path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".") {
        out.push(b'/');
        out.extend_from_slice(part);
    }
    out
}

/// The path itself and every directory above it, the root (empty) last.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(path);
    std::iter::from_fn(move || {
        let now = rest?;
        rest = now.iter().rposition(|b| *b == b'/').map(|at| &now[..at]);
        Some(now)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<String> {
        Patterns::parse(text.as_bytes()).iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect()
    }

    #[test]
    fn lines_are_trimmed_and_covered_ones_dropped() {
        assert_eq!(parsed(" /a \n\nrelative\n/a/b\n/ab\n/a\n/c//d/\n"), ["/a", "/ab", "/c/d"]);
        assert_eq!(parsed("/b/c\n/b\n"), ["/b/c", "/b"]);
        assert_eq!(parsed("/\n/x\n"), [""]);
        assert_eq!(parsed(""), [""; 0]);
    }
}
