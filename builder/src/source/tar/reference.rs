//! Reads an archive once for an image that refers to it (targz-ref, tar-ref).
//!
//! Owns: the chunks of its files with their places in the archive as it is stored. Does not own: what is written of
//! them. Contexts follow build-rules.md section 9; any partition that decodes would do.

use super::entries::Entries;
use super::inflate::Boundary;
use super::{Stream, TarSource};
use crate::error::BuildError;
use crate::source::Source as _;
use crate::tree::Tree;
use rafs::codec::{self, Digest, Digester};
use rafs::layout::blob::ZranContext;
use std::sync::mpsc::{SyncSender, sync_channel};
use zerocopy::FromZeros;

/// A context ends when it covers so many stored bytes ...
const STORED_MAX: u64 = 512 << 10;
/// ... or when one more chunk would make it cover so many plain ones.
const PLAIN_MAX: u64 = 2 << 20;
/// What a reader decodes for one chunk must be bounded.
const CONTEXT_PLAIN_MAX: u64 = 256 << 20;

/// Pieces that may wait to be digested.
const AHEAD: usize = 8;

/// One chunk of a file, and where its bytes are in the archive.
#[derive(Clone, Debug)]
pub(crate) struct ReferenceChunk {
    /// sha256 of the plain bytes.
    pub digest: Digest,
    /// CRC-32C of the plain bytes.
    pub crc32c: u32,
    /// Plain bytes.
    pub len: u32,
    /// Which piece of its file it is.
    pub position: u32,
    /// Place in the stored archive: exact for a plain one, for gzip what a reader should fetch.
    pub stored_offset: u64,
    /// Bytes there.
    pub stored_size: u32,
    /// gzip: context, and where the chunk starts in its output.
    pub context: Option<(u32, u32)>,
}

/// Everything that is known of the archive when it was read.
#[derive(Debug)]
pub(crate) struct Reference {
    /// gzip contexts, and their dictionaries one after the other; `None` for a plain archive.
    pub contexts: Option<(Vec<ZranContext>, Vec<u8>)>,
    /// Hexadecimal sha256 of the archive.
    pub id: String,
    /// Bytes of the archive.
    pub size: u64,
}

/// A piece of a file on its way from the reading thread.
struct PieceRead {
    bytes: Vec<u8>,
    /// Which piece of its file it is.
    position: u32,
    /// Where it starts in the plain archive.
    start: u64,
    /// gzip: where it came from.
    inflated: Option<Inflated>,
}

struct Inflated {
    /// Last block boundary before it.
    boundary: Boundary,
    /// Stored bytes it was made of.
    stored_start: u64,
    stored_end: u64,
}

impl PieceRead {
    /// At most a chunk, which 32 bits hold.
    fn len(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    /// A chunk that is known already: only its name counts.
    fn found_again(&self, digest: Digest) -> ReferenceChunk {
        let (len, position) = (self.len(), self.position);
        ReferenceChunk { digest, crc32c: 0, len, position, stored_offset: 0, stored_size: 0, context: None }
    }

    fn found(&self, digest: Digest, context: Option<(u32, u32)>) -> ReferenceChunk {
        let (stored_offset, stored_size) = match &self.inflated {
            None => (self.start, self.len()),
            Some(from) => {
                let size = u32::try_from(from.stored_end - from.stored_start).unwrap_or(u32::MAX);
                (from.stored_start, size.min(0xff_ffff))
            }
        };
        let crc32c = codec::crc32c(&self.bytes);
        let (len, position) = (self.len(), self.position);
        ReferenceChunk { digest, crc32c, len, position, stored_offset, stored_size, context }
    }
}

#[derive(Default)]
struct Contexts {
    list: Vec<ZranContext>,
    dictionaries: Vec<u8>,
    member: u64,
}

impl TarSource {
    /// Reads the archive into `tree` and calls `chunk` with every chunk of its files, in the order of the archive.
    /// `chunk` says whether it has to be placed: not if one with that digest is known. Files refer to the chunks
    /// as if their data had been handed out.
    ///
    /// # Errors
    /// When the archive is damaged, or compressed in another way than with gzip.
    pub(crate) fn refer(
        mut self,
        tree: &mut Tree,
        known: &mut dyn FnMut(&Digest, u32) -> bool,
        chunk: &mut dyn FnMut(ReferenceChunk) -> Result<(), BuildError>,
    ) -> Result<Reference, BuildError> {
        let Some(entries) = self.entries.take() else {
            return Err(self.unreadable("it was read already"));
        };
        if entries.get_ref().is_zstd() {
            return Err(self.unreadable("targz-ref refers to gzip and plain archives, this one is zstd"));
        }
        let too_large = self.unreadable("a deflate block of it holds more than can be indexed");
        let (path, passed, chunk_size) =
            (self.path.clone(), self.passed.clone(), u64::from(self.chunk_size.get()));
        let mut contexts = Contexts::default();
        let (send, receive) = sync_channel(AHEAD);
        // Inflating is one thread's work, for each block needs the one before; digests are made beside it.
        let (read, placed) = std::thread::scope(|scope| {
            let read = move || self.read_pieces(entries, tree, &send);
            let reader = std::thread::Builder::new().name("inflate".to_owned()).spawn_scoped(scope, read);
            let reader = reader.map_err(BuildError::io("start a thread for", &path))?;
            let placed = receive.iter().try_for_each(|piece| {
                let digest = codec::digest(Digester::Sha256, &piece.bytes);
                let found = if known(&digest, piece.len()) {
                    piece.found_again(digest)
                } else {
                    let context = match &piece.inflated {
                        Some(inflated) => Some(contexts.place(inflated, &piece, chunk_size).ok_or(None)?),
                        None => None,
                    };
                    piece.found(digest, context)
                };
                chunk(found).map_err(Some)
            });
            // A reader that waits for room must learn that nobody takes anything any more.
            drop(receive);
            Ok((reader.join(), placed))
        })?;
        placed.map_err(|e| e.unwrap_or(too_large))?;
        let gzip = match read {
            Ok(result) => result?,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        let passed = passed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        let contexts = gzip.then_some((contexts.list, contexts.dictionaries));
        Ok(Reference { contexts, id: passed.id(), size: passed.size })
    }

    /// Reads the whole archive and hands on its pieces. Says whether it is gzip.
    fn read_pieces(
        mut self,
        mut entries: Entries<Stream>,
        tree: &mut Tree,
        pieces: &SyncSender<PieceRead>,
    ) -> Result<bool, BuildError> {
        let gzip = entries.get_mut().inflater().is_some();
        let chunk_size = u64::from(self.chunk_size.get());
        loop {
            self.progress.check()?;
            if let Some((_, size, position)) = self.current.take() {
                let len = (size - u64::from(position) * chunk_size).min(chunk_size);
                let mut bytes = vec![0; usize::try_from(len).unwrap_or_default()];
                let start = entries.offset();
                let before = entries.get_mut().inflater().map(|i| (i.stored_start(), i.boundary().clone()));
                entries.read_data(&mut bytes).map_err(|e| self.failed(e, start))?;
                let inflated = before.map(|(stored_start, boundary)| {
                    let stored_end = entries.get_mut().inflater().map_or(0, |i| i.consumed());
                    Inflated { boundary, stored_start, stored_end }
                });
                self.pieces += 1;
                self.progress.add_packed(len, 0);
                if pieces.send(PieceRead { bytes, position, start, inflated }).is_err() {
                    // The taker failed and says why.
                    return Ok(gzip);
                }
                if u64::from(position) * chunk_size + len < size {
                    self.current = Some((crate::tree::ROOT, size, position + 1));
                }
                continue;
            }
            let start = entries.offset();
            match entries.next_entry().map_err(|e| self.failed(e, start))? {
                Some(mut entry) => self.take(tree, &mut entry)?,
                None => break,
            }
        }
        entries.into_inner().drain().map_err(BuildError::io("read", &self.path))?;
        Ok(gzip)
    }

    fn unreadable(&self, reason: &str) -> BuildError {
        BuildError::Source {
            path: self.shown(&Tree::new(crate::tree::Attributes::default()), crate::tree::ROOT),
            reason: reason.to_owned(),
        }
    }
}

impl Contexts {
    /// Puts a chunk with these plain and stored bytes into the last context or a new one.
    fn place(&mut self, inflated: &Inflated, piece: &PieceRead, chunk_size: u64) -> Option<(u32, u32)> {
        let Inflated { boundary, stored_start, stored_end } = inflated;
        let (stored_start, stored_end) = (*stored_start, *stored_end);
        let (start, end) = (piece.start, piece.start + u64::from(piece.len()));
        let fits = self.list.last().is_some_and(|last| {
            let (in_offset, out_offset) = (last.in_offset.get(), last.out_offset.get());
            let stored = u64::from(last.in_size.get());
            let first_block = boundary.out_offset <= out_offset;
            let large = stored_end - in_offset >= STORED_MAX
                || u64::from(last.out_size.get()) + chunk_size >= PLAIN_MAX;
            let gap = stored_start.saturating_sub(in_offset + stored);
            let far = gap > 2 * stored && gap > STORED_MAX;
            self.member == boundary.member && (first_block || !(large || far))
        });
        if !fits {
            let mut context = ZranContext::new_zeroed();
            context.in_offset = boundary.in_offset.into();
            context.out_offset = boundary.out_offset.into();
            context.dict_offset = (self.dictionaries.len() as u64).into();
            context.dict_size = u32::try_from(boundary.dictionary.len()).ok()?.into();
            context.previous_byte = boundary.previous_byte;
            context.bit_count = boundary.bit_count;
            self.dictionaries.extend_from_slice(&boundary.dictionary);
            self.member = boundary.member;
            self.list.push(context);
        }
        let number = u32::try_from(self.list.len() - 1).ok()?;
        let last = self.list.last_mut()?;
        let out_size = end - last.out_offset.get();
        if out_size > CONTEXT_PLAIN_MAX {
            return None;
        }
        last.in_size = u32::try_from(stored_end - last.in_offset.get()).ok()?.into();
        last.out_size = u32::try_from(out_size).ok()?.into();
        Some((number, u32::try_from(start - last.out_offset.get()).ok()?))
    }
}
