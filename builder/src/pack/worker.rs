//! What one thread does with one task: read, digest, claim, compress.
//!
//! Owns: the thread's buffers and the result type. Does not own: locks and order.

use super::append::PackSettings;
use super::batch::{self, Jobs};
use super::table::ChunkTable;
use crate::source::{Input, Piece, ReadError, Task};
use crate::tree::NodeId;
use rafs::codec::{self, Cipher, Compressor, Digest};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// One piece with all that the ordered stage needs.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Digest of the plain bytes.
    pub digest: Digest,
    /// CRC-32C of the plain bytes.
    pub crc32c: u32,
    /// Plain bytes.
    pub len: u32,
    /// Which piece of its file it is.
    pub position: u32,
    /// Where its stored form is in [`Done::stored`]; `None` when an earlier piece has the same digest.
    pub stored: Option<Range<usize>>,
    /// Whether the stored form is a compressed one.
    pub compressed: bool,
    /// Whether it goes into a batch; the stored form is the plain one then.
    pub batched: bool,
}

/// A finished task.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// Its pieces.
    pub pieces: Vec<Finished>,
    /// Stored forms of those that were made, one after the other.
    pub stored: Vec<u8>,
    /// Whether they belong to prefetched files.
    pub prefetch: bool,
}

/// What went wrong at which file.
#[derive(Debug)]
pub(crate) enum WorkError {
    /// Reading.
    Read(NodeId, ReadError),
    /// Compressing.
    Compress(NodeId, codec::CodecError),
}

/// A thread's buffers.
#[derive(Debug, Default)]
pub(crate) struct Worker {
    plain: Vec<u8>,
    compressed: Vec<u8>,
    encrypted: Vec<u8>,
    cipher: Option<Cipher>,
    /// Digest and CRC of so many zeros, computed last.
    zeros: Option<(u32, Digest, u32)>,
}

impl Worker {
    /// For a build with `settings`.
    pub(crate) fn new(settings: &PackSettings) -> Self {
        Self { cipher: settings.cipher.as_ref().map(Cipher::new), ..Self::default() }
    }

    /// Works on `task`, which has number `number`, and fills `done`.
    pub(crate) fn work(
        &mut self,
        number: u64,
        task: &mut Task,
        settings: &PackSettings,
        table: &Mutex<ChunkTable>,
        done: &mut Done,
    ) -> Result<(), WorkError> {
        done.pieces.clear();
        done.prefetch = task.prefetch;
        task.swap_buffer(&mut self.plain);
        if self.plain.len() < task.bytes() {
            self.plain.resize(task.bytes(), 0);
        }
        let mut used = 0;
        for piece in &task.pieces {
            let (digest, crc32c, end) = match piece.input {
                Input::Zeros => {
                    let (digest, crc32c) = self.zeros(piece.len, settings);
                    (digest, crc32c, used)
                }
                _ => {
                    let end = used + piece.len as usize;
                    let plain = &mut self.plain[used..end];
                    piece.read(plain).map_err(|e| WorkError::Read(piece.node, e))?;
                    (codec::digest(settings.digester, plain), codec::crc32c(plain), end)
                }
            };
            done.pieces.push(Finished {
                digest,
                crc32c,
                len: piece.len,
                position: piece.position,
                stored: Some(used..end),
                compressed: false,
                batched: batch::is_small(settings, piece.len, piece.expected.size),
            });
            used = end;
        }
        {
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            for piece in &mut done.pieces {
                if !table.claim(&piece.digest, piece.len, number) {
                    piece.stored = None;
                }
            }
        }
        self.compress(&task.pieces, settings, done)
    }

    /// Does the oldest of `jobs`. `false`: there was none.
    pub(crate) fn compress_batch(&self, jobs: &Jobs, settings: &PackSettings) -> bool {
        jobs.run_one(settings.compressor, self.cipher.as_ref())
    }

    fn zeros(&mut self, len: u32, settings: &PackSettings) -> (Digest, u32) {
        match self.zeros {
            Some((known, digest, crc32c)) if known == len => (digest, crc32c),
            _ => {
                let zeros = vec![0; len as usize];
                let made = (codec::digest(settings.digester, &zeros), codec::crc32c(&zeros));
                self.zeros = Some((len, made.0, made.1));
                made
            }
        }
    }

    /// Turns the plain ranges of claimed pieces into stored ones.
    fn compress(
        &mut self,
        pieces: &[Piece],
        settings: &PackSettings,
        done: &mut Done,
    ) -> Result<(), WorkError> {
        let holes = pieces.iter().any(|p| matches!(p.input, Input::Zeros));
        if settings.compressor == Compressor::None && !holes && self.cipher.is_none() {
            std::mem::swap(&mut self.plain, &mut done.stored);
            return Ok(());
        }
        done.stored.clear();
        for (piece, finished) in pieces.iter().zip(&mut done.pieces) {
            let Some(range) = finished.stored.take() else { continue };
            let zeros;
            let plain = if matches!(piece.input, Input::Zeros) {
                zeros = vec![0; piece.len as usize];
                &zeros
            } else {
                &self.plain[range]
            };
            let start = done.stored.len();
            if finished.batched {
                done.stored.extend_from_slice(plain);
                finished.stored = Some(start..done.stored.len());
                continue;
            }
            finished.compressed = codec::compress(settings.compressor, plain, &mut self.compressed)
                .map_err(|e| WorkError::Compress(piece.node, e))?;
            let form = if finished.compressed { &self.compressed } else { plain };
            if let Some(cipher) = &self.cipher {
                cipher.encrypt(form, &mut self.encrypted);
                done.stored.extend_from_slice(&self.encrypted);
            } else if finished.compressed && pieces.len() == 1 {
                std::mem::swap(&mut self.compressed, &mut done.stored);
            } else {
                done.stored.extend_from_slice(form);
            }
            finished.stored = Some(start..done.stored.len());
        }
        Ok(())
    }
}
