//! The entries of a tar stream, one after the other.
//!
//! Owns: headers with their extension records applied, positions in the stream, reading an entry's data. Does
//! not own: what entries mean for a tree. Memory is bounded whatever the stream says.

use super::header::{BLOCK, Header, Kind};
use super::pax::{self, Pax};
use std::io::{self, Read};

/// Longest GNU long name or link target that is read.
const LONG_NAME_MAX: u64 = 64 << 10;

/// Why a stream could not be read on.
#[derive(Debug)]
pub(crate) enum TarError {
    /// Reading failed.
    Io(io::Error),
    /// The stream is damaged or uses what is not supported.
    Format(String),
}

impl From<io::Error> for TarError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One entry, without its data.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its path as the archive has it.
    pub path: Vec<u8>,
    /// Target of a link.
    pub link: Vec<u8>,
    /// Permission bits, as the archive has them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of data that follow.
    pub size: u64,
    /// Modification time, seconds.
    pub mtime: i64,
    /// Device numbers, major and minor.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads a tar stream.
#[derive(Debug)]
pub(crate) struct Entries<R> {
    input: R,
    /// Bytes read so far.
    offset: u64,
    /// Data of the current entry that was not read, and the padding behind it.
    unread: u64,
    padding: u64,
    global: Pax,
}

impl<R: Read> Entries<R> {
    /// Starts at the beginning of `input`.
    pub(crate) fn new(input: R) -> Self {
        Self { input, offset: 0, unread: 0, padding: 0, global: Pax::default() }
    }

    /// Position in the stream.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The input.
    pub(crate) fn get_ref(&self) -> &R {
        &self.input
    }

    /// The input, to ask it for positions; nothing must be read from it.
    pub(crate) fn get_mut(&mut self) -> &mut R {
        &mut self.input
    }

    /// The input, to read what follows the archive.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; what is left of the last one's data is skipped. `None`: the end.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut pax = self.global.clone();
        let (mut long_name, mut long_link) = (None, None);
        let mut about_next = false;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                // Records that are for nothing: the entry they came before is missing.
                return if about_next { Err(self.truncated()) } else { Ok(None) };
            };
            about_next = matches!(header.kind, Kind::PaxNext | Kind::LongName | Kind::LongLink);
            self.unread = header.size;
            self.set_padding();
            match header.kind {
                Kind::PaxNext => {
                    let bytes = self.small(pax::SIZE_MAX)?;
                    pax.add(&bytes).map_err(TarError::Format)?;
                }
                Kind::PaxGlobal => {
                    let bytes = self.small(pax::SIZE_MAX)?;
                    self.global.add(&bytes).map_err(TarError::Format)?;
                    pax = self.global.clone();
                }
                Kind::LongName => long_name = Some(self.long_name()?),
                Kind::LongLink => long_link = Some(self.long_name()?),
                _ => return self.entry(header, pax, long_name, long_link).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: Header,
        pax: Pax,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Entry, TarError> {
        let size = pax.size.unwrap_or(header.size);
        // Only files have data; some writers give other entries a size without any.
        let size = if header.kind == Kind::File { size } else { 0 };
        if size > i64::MAX.cast_unsigned() {
            return Err(TarError::Format(format!("an entry of {size} bytes is too large")));
        }
        self.unread = size;
        self.set_padding();
        Ok(Entry {
            kind: header.kind,
            path: pax.path.or(long_name).unwrap_or(header.path),
            link: pax.link.or(long_link).unwrap_or(header.link),
            mode: header.mode & 0o7777,
            uid: pax.uid.unwrap_or(header.uid),
            gid: pax.gid.unwrap_or(header.gid),
            size,
            mtime: pax.mtime.unwrap_or(header.mtime),
            device: header.device,
            xattrs: pax.xattrs,
        })
    }

    fn set_padding(&mut self) {
        let block = BLOCK as u64;
        self.padding = (block - self.unread % block) % block;
    }

    fn header(&mut self) -> Result<Option<Header>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                // Archives that end without the two blocks of zeros exist.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.truncated()),
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        let parsed = Header::parse(&block).map_err(TarError::Format);
        self.offset += BLOCK as u64;
        parsed
    }

    /// Reads data of the current entry until `buffer` is full.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<(), TarError> {
        let len = buffer.len() as u64;
        if len > self.unread {
            return Err(TarError::Format("read behind the end of an entry".to_owned()));
        }
        self.input.read_exact(buffer).map_err(|e| self.ended(e))?;
        self.unread -= len;
        self.offset += len;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), TarError> {
        let rest = self.unread.saturating_add(self.padding);
        let skipped = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
        self.offset += skipped;
        // The padding of the last entry may be missing at the very end.
        if skipped < self.unread {
            return Err(self.truncated());
        }
        (self.unread, self.padding) = (0, 0);
        Ok(())
    }

    /// Data of a record about another entry.
    fn small(&mut self, limit: u64) -> Result<Vec<u8>, TarError> {
        if self.unread > limit {
            return Err(TarError::Format(format!(
                "an extension record of {} bytes is too large",
                self.unread
            )));
        }
        let mut bytes = Vec::new();
        (&mut self.input).take(self.unread).read_to_end(&mut bytes)?;
        if (bytes.len() as u64) < self.unread {
            return Err(self.truncated());
        }
        self.offset += self.unread;
        self.unread = 0;
        Ok(bytes)
    }

    fn long_name(&mut self) -> Result<Vec<u8>, TarError> {
        let mut name = self.small(LONG_NAME_MAX)?;
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn ended(&self, error: io::Error) -> TarError {
        if error.kind() == io::ErrorKind::UnexpectedEof { self.truncated() } else { TarError::Io(error) }
    }

    fn truncated(&self) -> TarError {
        TarError::Format("the archive ends in the middle of an entry".to_owned())
    }
}
