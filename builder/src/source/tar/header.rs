//! The 512-byte header block of a tar archive: numbers, names, checksum.
//!
//! Owns: decoding one block, old V7, POSIX ustar and GNU flavours. Does not own: extension records, order.

use crate::tree::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFREG};

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Regular file.
    File,
    /// Another name of an earlier file.
    Hardlink,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Directory.
    Directory,
    /// Named pipe.
    Fifo,
    /// pax records for the next entry.
    PaxNext,
    /// pax records for all entries that follow.
    PaxGlobal,
    /// GNU: name of the next entry.
    LongName,
    /// GNU: link target of the next entry.
    LongLink,
}

impl Kind {
    /// Type bits of a mode; 0 for records about other entries.
    pub(crate) fn mode_bits(self) -> u32 {
        match self {
            Self::File | Self::Hardlink => S_IFREG,
            Self::Symlink => S_IFLNK,
            Self::CharDevice => S_IFCHR,
            Self::BlockDevice => S_IFBLK,
            Self::Directory => S_IFDIR,
            Self::Fifo => S_IFIFO,
            Self::PaxNext | Self::PaxGlobal | Self::LongName | Self::LongLink => 0,
        }
    }
}

/// A decoded block.
#[derive(Clone, Debug)]
pub(super) struct Header {
    pub kind: Kind,
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub mtime: i64,
    pub device: (u32, u32),
}

impl Header {
    /// Decodes a block. `None`: the block is all zeros, which marks the end.
    pub(super) fn parse(block: &[u8; BLOCK]) -> Result<Option<Self>, String> {
        if block.iter().all(|b| *b == 0) {
            return Ok(None);
        }
        let (field, rest) = (&block[148..156], [&block[..148], &block[156..]]);
        let wrong = || "header checksum is wrong: damaged, or no tar archive".to_owned();
        let stored = number(field).map_err(|_| wrong())?;
        let spaces = i128::from(b' ') * 8;
        let unsigned: i128 = rest.iter().flat_map(|part| part.iter()).map(|b| i128::from(*b)).sum();
        // Some old programs added up signed bytes.
        let signed: i128 =
            rest.iter().flat_map(|part| part.iter()).map(|b| i128::from(b.cast_signed())).sum();
        if stored != unsigned + spaces && stored != signed + spaces {
            return Err(wrong());
        }
        let kind = match block[156] {
            b'0' | 0 => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'x' => Kind::PaxNext,
            b'g' => Kind::PaxGlobal,
            b'L' => Kind::LongName,
            b'K' => Kind::LongLink,
            b'S' => {
                return Err(
                    "GNU sparse entries are not supported: make the archive without --sparse".to_owned()
                );
            }
            other => return Err(format!("entries of type {:?} are not supported", char::from(other))),
        };
        let name = text(&block[..100]);
        let prefix = if &block[257..263] == b"ustar\0" { text(&block[345..500]) } else { &[] };
        let path = if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() };
        // Before ustar there was no type for directories, only a slash.
        let kind = if kind == Kind::File && path.ends_with(b"/") { Kind::Directory } else { kind };
        let small = |range: std::ops::Range<usize>, what| {
            let value = number(&block[range])?;
            u32::try_from(value).map_err(|_| format!("{what} {value} is out of range"))
        };
        let devices = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
        let size = number(&block[124..136])?;
        let mtime = number(&block[136..148])?;
        Ok(Some(Self {
            kind,
            path,
            link: text(&block[157..257]).to_vec(),
            mode: small(100..108, "mode")?,
            uid: small(108..116, "uid")?,
            gid: small(116..124, "gid")?,
            size: u64::try_from(size).map_err(|_| format!("size {size} is out of range"))?,
            mtime: i64::try_from(mtime).map_err(|_| format!("mtime {mtime} is out of range"))?,
            device: if devices {
                (small(329..337, "device major")?, small(337..345, "device minor")?)
            } else {
                (0, 0)
            },
        }))
    }
}

/// A text field: up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// A numeric field: octal digits, or base 256 when the first bit is set (two's complement, as GNU does).
fn number(field: &[u8]) -> Result<i128, String> {
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let negative = first & 0x40 != 0;
        let start = i128::from(first & 0x7f) - if negative { 0x80 } else { 0 };
        return Ok(rest.iter().fold(start, |value, b| value << 8 | i128::from(*b)));
    }
    let digits = text(field).trim_ascii();
    digits.iter().try_fold(0_i128, |value, b| match b {
        b'0'..=b'7' => Ok(value << 3 | i128::from(b - b'0')),
        _ => Err(format!("{:?} is no octal number", String::from_utf8_lossy(digits))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octal_and_binary_numbers() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644 \0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(b"\x80\0\0\0\0\0\x01\0"), Ok(256));
        assert_eq!(number(b"\xff\xff\xff\xff\xff\xff\xff\xfe"), Ok(-2));
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        number(b"12x4\0").unwrap_err();
        number(b"-1\0").unwrap_err();
    }
}
