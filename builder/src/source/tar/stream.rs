//! A tar stream that may be compressed.
//!
//! Owns: telling gzip, zstd and plain apart by their first bytes, reading to the very end. Does not own: tar.

use super::inflate::Inflater;
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes read from the file or FIFO at a time.
const BUFFER: usize = 256 << 10;
const GZIP_MAGIC: [u8; 3] = [0x1f, 0x8b, 0x08];
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Bytes of the file.
pub(crate) type Raw = BufReader<Box<dyn Read + Send>>;

/// The plain bytes of an archive.
pub(crate) enum Stream {
    /// Not compressed.
    Plain(Raw),
    /// gzip, of any number of members.
    Gzip(Box<MultiGzDecoder<Raw>>),
    /// gzip, with positions of deflate blocks.
    Indexed(Box<Inflater<Raw>>),
    /// zstd, of any number of frames.
    Zstd(Box<zstd::stream::read::Decoder<'static, Raw>>),
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Plain",
            Self::Gzip(_) => "Gzip",
            Self::Indexed(_) => "Indexed",
            Self::Zstd(_) => "Zstd",
        })
    }
}

impl Stream {
    /// Looks at the first bytes of `input`.
    pub(crate) fn new(input: Box<dyn Read + Send>) -> io::Result<Self> {
        Self::open(input, |raw| Self::Gzip(Box::new(MultiGzDecoder::new(raw))))
    }

    /// As [`Stream::new`], but a gzip stream knows where its blocks begin.
    pub(crate) fn indexed(input: Box<dyn Read + Send>) -> io::Result<Self> {
        Self::open(input, |raw| Self::Indexed(Box::new(Inflater::new(raw))))
    }

    fn open(input: Box<dyn Read + Send>, gzip: fn(Raw) -> Self) -> io::Result<Self> {
        let mut raw: Raw = BufReader::with_capacity(BUFFER, Box::new(Whole(input)));
        let head = raw.fill_buf()?;
        if head.starts_with(&GZIP_MAGIC) {
            Ok(gzip(raw))
        } else if head.starts_with(&ZSTD_MAGIC) {
            Ok(Self::Zstd(Box::new(zstd::stream::read::Decoder::with_buffer(raw)?)))
        } else {
            Ok(Self::Plain(raw))
        }
    }

    /// The inflater of an indexed gzip stream.
    pub(crate) fn inflater(&mut self) -> Option<&mut Inflater<Raw>> {
        match self {
            Self::Indexed(inflater) => Some(inflater),
            _ => None,
        }
    }

    /// Whether it is zstd.
    pub(crate) fn is_zstd(&self) -> bool {
        matches!(self, Self::Zstd(_))
    }

    /// Whether the bytes are those of the file.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self, Self::Plain(_))
    }

    /// Reads all that is left, so that whoever feeds a FIFO can finish. What follows an archive is padding, and
    /// padding that is no gzip is no error.
    pub(crate) fn drain(mut self) -> io::Result<()> {
        let rest = io::copy(&mut self, &mut io::sink());
        let raw = match self {
            Self::Plain(_) => return rest.map(drop),
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Indexed(inflater) => inflater.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        if let Err(e) = rest {
            tracing::warn!("what follows the archive is not in its compression: {e}");
        }
        io::copy(&mut { raw }, &mut io::sink()).map(drop)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(raw) => raw.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Indexed(inflater) => inflater.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

/// What went through a [`Digesting`] reader.
#[derive(Clone, Debug, Default)]
pub(crate) struct Passed {
    /// sha256 of it.
    hasher: Sha256,
    /// Bytes.
    pub size: u64,
}

impl Passed {
    /// Hexadecimal sha256.
    pub(crate) fn id(&self) -> String {
        hex::encode(self.hasher.clone().finalize())
    }
}

/// Digests what is read through it.
pub(crate) struct Digesting<R> {
    input: R,
    passed: Arc<Mutex<Passed>>,
}

impl<R> Digesting<R> {
    /// Around `input`; the second value shows what went through.
    pub(crate) fn new(input: R) -> (Self, Arc<Mutex<Passed>>) {
        let passed = Arc::new(Mutex::new(Passed::default()));
        (Self { input, passed: passed.clone() }, passed)
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        let mut passed = self.passed.lock().unwrap_or_else(PoisonError::into_inner);
        passed.hasher.update(&buffer[..n]);
        passed.size += n as u64;
        Ok(n)
    }
}

/// Fills the buffer as far as the input goes: a pipe gives what it has, which may be less than a magic number.
struct Whole(Box<dyn Read + Send>);

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len().min(4096) {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if filled == 0 => return Err(e),
                // It will come again at the next call.
                Err(_) => break,
            }
        }
        Ok(filled)
    }
}
