//! Traces: which chunks were read first, in order, so that another host can fetch them before they are asked for, and
//! a builder can put them side by side.
//!
//! Owns: the file format, and recording. Does not own: fetching ([`crate::reader`]).
//!
//! A trace is lines of text, each ended by a newline:
//!
//! ```text
//! rafs-trace 1                       first line: the format and its version
//! blob 5a0c..e1                      blob id; the lines that follow are about this blob
//! 17 0x11000                         chunk index, and offset in the blob's uncompressed address space
//! 18 0x15000
//! blob 0b44..90
//! 3 0x3000
//! ```
//!
//! Empty lines and lines that start with `#` mean nothing. A chunk stands once, where it was first touched. Both numbers
//! must fit to be used: an index alone says nothing about a blob that was built anew. A last line without a newline was
//! cut off and is ignored. Readers refuse other versions, lines over 256 bytes, files over 256 MiB, and more than 2^22
//! chunks.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

const HEAD: &str = "rafs-trace 1";
const LINE_MAX: u64 = 256;
const FILE_MAX: u64 = 256 << 20;
/// Most chunks in a trace.
pub const CHUNKS_MAX: usize = 1 << 22;

/// One chunk of a trace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TraceChunk {
    /// Blob id.
    pub blob: Arc<str>,
    /// Index of the chunk in its blob.
    pub chunk: u32,
    /// Its start in the blob's uncompressed address space, bytes.
    pub uncompressed_offset: u64,
}

/// A trace: chunks in order of first touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// The chunks, each once.
    pub chunks: Vec<TraceChunk>,
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file cannot be read.
    #[error("cannot read trace {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// It is no trace of a version that we know.
    #[error("{path} is no trace: its first line is not \"{HEAD}\"")]
    NotATrace {
        /// The file.
        path: String,
    },
    /// A line makes no sense.
    #[error("trace {path}, line {line}: {why}")]
    Line {
        /// The file.
        path: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        why: &'static str,
    },
}

impl Trace {
    /// Reads a trace file.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn load(path: &Path) -> Result<Self, TraceError> {
        let name = path.display().to_string();
        let error = |source| TraceError::Read { path: name.clone(), source };
        // Looked at first: opening a fifo would wait for a writer.
        if !std::fs::metadata(path).map_err(error)?.is_file() {
            return Err(error(io::Error::other("not a regular file")));
        }
        Self::parse(File::open(path).map_err(error)?, &name)
    }

    /// Reads a trace from `input`, which messages call `name`.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn parse(input: impl Read, name: &str) -> Result<Self, TraceError> {
        let path = || name.to_owned();
        let mut input = BufReader::new(input.take(FILE_MAX));
        let (mut chunks, mut seen) = (Vec::new(), HashSet::new());
        let mut blob: Option<Arc<str>> = None;
        let mut bytes = Vec::new();
        for line in 1.. {
            let wrong = |why| TraceError::Line { path: path(), line, why };
            bytes.clear();
            (&mut input)
                .take(LINE_MAX)
                .read_until(b'\n', &mut bytes)
                .map_err(|source| TraceError::Read { path: path(), source })?;
            let whole = bytes.ends_with(b"\n");
            if !whole && u64::try_from(bytes.len()) == Ok(LINE_MAX) {
                return Err(if line == 1 {
                    TraceError::NotATrace { path: path() }
                } else {
                    wrong("too long")
                });
            }
            let text = std::str::from_utf8(&bytes).unwrap_or("\u{0}").trim_end();
            if line == 1 {
                if text != HEAD {
                    return Err(TraceError::NotATrace { path: path() });
                }
                continue;
            }
            if !whole {
                break;
            }
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let (first, second) = text.split_once(' ').ok_or_else(|| wrong("one word where two belong"))?;
            if first == "blob" {
                if !crate::store::is_safe_object_name(second) {
                    return Err(wrong("no blob id"));
                }
                blob = Some(second.into());
                continue;
            }
            let chunk = first.parse().map_err(|_| wrong("no chunk index"))?;
            let offset = second.strip_prefix("0x").and_then(|hex| u64::from_str_radix(hex, 16).ok());
            let uncompressed_offset = offset.ok_or_else(|| wrong("no offset"))?;
            let blob = blob.clone().ok_or_else(|| wrong("a chunk before any blob"))?;
            let entry = TraceChunk { blob, chunk, uncompressed_offset };
            if seen.insert(entry.clone()) {
                chunks.push(entry);
            }
            if chunks.len() > CHUNKS_MAX {
                return Err(wrong("too many chunks"));
            }
        }
        Ok(Self { chunks })
    }
}

/// Writes a trace while chunks are touched. Every line is in the file at once, so that a killed process leaves all that
/// it saw.
pub struct TraceRecorder {
    state: Mutex<State>,
    path: String,
    broken: AtomicBool,
}

struct State {
    file: File,
    blob: Arc<str>,
    seen: HashSet<(Arc<str>, u32)>,
}

impl fmt::Debug for TraceRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceRecorder").field("path", &self.path).finish_non_exhaustive()
    }
}

impl TraceRecorder {
    /// Begins a trace in the file `path`, in place of what was there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path) -> io::Result<Arc<Self>> {
        let mut file = File::create(path)?;
        writeln!(file, "{HEAD}")?;
        let state = State { file, blob: "".into(), seen: HashSet::new() };
        let path = path.display().to_string();
        Ok(Arc::new(Self { state: Mutex::new(state), path, broken: AtomicBool::new(false) }))
    }

    /// A chunk is read; only the first time counts. A file that can no longer be written is a warning, once.
    pub fn touch(&self, blob: &Arc<str>, chunk: u32, uncompressed_offset: u64) {
        if self.broken.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.seen.len() >= CHUNKS_MAX || !state.seen.insert((Arc::clone(blob), chunk)) {
            return;
        }
        let mut text = String::new();
        if *state.blob != **blob {
            text = format!("blob {blob}\n");
            state.blob = Arc::clone(blob);
        }
        text += &format!("{chunk} {uncompressed_offset:#x}\n");
        if let Err(error) = state.file.write_all(text.as_bytes())
            && !self.broken.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(%error, file = self.path, "the trace ends here");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_is_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trace");
        let recorder = TraceRecorder::create(&path).unwrap();
        let (a, b): (Arc<str>, Arc<str>) = ("a".into(), "b".into());
        for (blob, chunk) in [(&a, 7), (&a, 3), (&b, 3), (&a, 7), (&a, 8), (&b, 3)] {
            recorder.touch(blob, chunk, u64::from(chunk) * 4096);
        }
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "rafs-trace 1\nblob a\n7 0x7000\n3 0x3000\nblob b\n3 0x3000\nblob a\n8 0x8000\n");
        let trace = Trace::load(&path).unwrap();
        let got: Vec<_> = trace.chunks.iter().map(|c| (&*c.blob, c.chunk, c.uncompressed_offset)).collect();
        assert_eq!(got, [("a", 7, 0x7000), ("a", 3, 0x3000), ("b", 3, 0x3000), ("a", 8, 0x8000)]);
    }

    #[test]
    fn odd_files_are_refused_or_read_as_far_as_they_go() {
        let read = |text: &str| Trace::parse(text.as_bytes(), "t");
        assert_eq!(read("rafs-trace 1\n").unwrap(), Trace::default());
        assert_eq!(read("rafs-trace 1\n# x\n\nblob a\n1 0x0\n1 0x0\n2 0x10").unwrap().chunks.len(), 1);
        for bad in ["", "rafs-trace 2\n", "7 0x0\n", &"x".repeat(1000), "\u{0}"] {
            assert!(matches!(read(bad), Err(TraceError::NotATrace { .. })), "{bad:?}");
        }
        for (bad, line) in [
            ("1 0x0\n", 2),
            ("blob a/b\n", 2),
            ("blob \n", 2),
            ("blob a\n-1 0x0\n", 3),
            ("blob a\n1 0\n", 3),
            ("blob a\n1 0xfffffffffffffffff\n", 3),
            ("blob a\n4294967296 0x0\n", 3),
            ("word\n", 2),
        ] {
            let error = read(&format!("rafs-trace 1\n{bad}")).unwrap_err();
            assert!(matches!(error, TraceError::Line { line: l, .. } if l == line), "{bad:?}: {error}");
        }
        let long = format!("rafs-trace 1\nblob {}\n", "a".repeat(300));
        assert!(read(&long).is_err_and(|e| e.to_string().contains("too long")));
        assert!(matches!(Trace::load(Path::new("/")), Err(TraceError::Read { .. })));
    }
}
