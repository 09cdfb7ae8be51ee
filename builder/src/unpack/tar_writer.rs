//! Writes a tar archive: ustar headers, pax records for what these cannot hold.
//!
//! Owns: the bytes of the archive. Does not own: which entries there are.

use crate::error::BuildError;
use crate::output::Output;
use rafs::image::{FileKind, Inode};

const BLOCK: u64 = 512;
/// Bytes that are collected before they are written.
const BUFFER: usize = 1 << 20;
/// Bytes of the name and link fields.
const NAME_FIELD: usize = 100;

/// One entry of the archive.
#[derive(Debug)]
pub(super) struct Entry {
    /// Without a leading slash; directories end with one.
    pub path: Vec<u8>,
    /// Attributes.
    pub inode: Inode,
    /// Target of a symlink or hardlink.
    pub link: Vec<u8>,
    /// Whether it is another name of an earlier entry.
    pub is_hardlink: bool,
    /// Extended attributes, full names.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct TarWriter {
    output: Output,
    buffer: Vec<u8>,
}

impl TarWriter {
    pub(super) fn new(output: Output) -> Self {
        Self { output, buffer: Vec::with_capacity(BUFFER) }
    }

    /// Header and records of an entry. For a regular file its data, then [`TarWriter::pad`], must follow.
    pub(super) fn entry(&mut self, entry: &Entry) -> Result<(), BuildError> {
        let records = records(entry);
        if !records.is_empty() {
            let mut header = [0; 512];
            let base = entry.path.rsplit(|b| *b == b'/').find(|p| !p.is_empty()).unwrap_or(b"x");
            put_text(&mut header[..NAME_FIELD], &[b"PaxHeaders/", base].concat());
            put_octal(&mut header[100..108], 0o644);
            put_octal(&mut header[108..116], 0);
            put_octal(&mut header[116..124], 0);
            put_octal(&mut header[124..136], records.len() as u64);
            put_octal(&mut header[136..148], 0);
            header[156] = b'x';
            self.header(header)?;
            self.data(&records)?;
            self.pad(records.len() as u64)?;
        }
        let inode = &entry.inode;
        let mut header = [0; 512];
        put_text(&mut header[..NAME_FIELD], &entry.path);
        put_octal(&mut header[100..108], u64::from(inode.mode & 0o7777));
        put_octal(&mut header[108..116], u64::from(inode.uid));
        put_octal(&mut header[116..124], u64::from(inode.gid));
        put_octal(&mut header[124..136], size(entry));
        put_octal(&mut header[136..148], u64::try_from(inode.mtime_sec).unwrap_or(0));
        header[156] = match inode.kind {
            _ if entry.is_hardlink => b'1',
            FileKind::Regular | FileKind::Socket => b'0',
            FileKind::Symlink => b'2',
            FileKind::CharDevice => b'3',
            FileKind::BlockDevice => b'4',
            FileKind::Directory => b'5',
            FileKind::Fifo => b'6',
        };
        put_text(&mut header[157..257], &entry.link);
        if matches!(inode.kind, FileKind::CharDevice | FileKind::BlockDevice) {
            put_octal(&mut header[329..337], u64::from(inode.rdev >> 8 & 0xfff));
            put_octal(&mut header[337..345], u64::from(inode.rdev & 0xff | inode.rdev >> 12 & 0xf_ff00));
        }
        self.header(header)
    }

    fn header(&mut self, mut header: [u8; 512]) -> Result<(), BuildError> {
        header[257..263].copy_from_slice(b"ustar\0");
        header[263..265].copy_from_slice(b"00");
        header[148..156].fill(b' ');
        let sum: u64 = header.iter().map(|b| u64::from(*b)).sum();
        put_octal(&mut header[148..155], sum);
        self.data(&header)
    }

    /// Data of the entry.
    pub(super) fn data(&mut self, bytes: &[u8]) -> Result<(), BuildError> {
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if bytes.len() >= BUFFER {
            return self.output.write(bytes);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// `count` zeros of data.
    pub(super) fn zeros(&mut self, count: u64) -> Result<(), BuildError> {
        let mut left = count;
        while left > 0 {
            let now = usize::try_from(left.min(BLOCK)).unwrap_or_default();
            self.data(&[0; 512][..now])?;
            left -= now as u64;
        }
        Ok(())
    }

    /// Ends data of `size` bytes.
    pub(super) fn pad(&mut self, size: u64) -> Result<(), BuildError> {
        self.zeros(size.next_multiple_of(BLOCK) - size)
    }

    /// Marks the end of the archive.
    pub(super) fn finish(mut self) -> Result<Output, BuildError> {
        self.zeros(2 * BLOCK)?;
        self.flush()?;
        Ok(self.output)
    }

    fn flush(&mut self) -> Result<(), BuildError> {
        self.output.write(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}

fn size(entry: &Entry) -> u64 {
    if entry.inode.kind == FileKind::Regular && !entry.is_hardlink { entry.inode.size } else { 0 }
}

/// pax records for everything that the header of `entry` cannot say exactly.
fn records(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::new();
    let inode = &entry.inode;
    if entry.path.len() > NAME_FIELD {
        record(&mut out, b"path", &entry.path);
    }
    if entry.link.len() > NAME_FIELD {
        record(&mut out, b"linkpath", &entry.link);
    }
    for (key, value, digits) in [
        (&b"size"[..], size(entry), 11),
        (b"uid", u64::from(inode.uid), 7),
        (b"gid", u64::from(inode.gid), 7),
    ] {
        if value >> (3 * digits) != 0 {
            record(&mut out, key, value.to_string().as_bytes());
        }
    }
    let in_header = u64::try_from(inode.mtime_sec).is_ok_and(|sec| sec >> 33 == 0);
    if !in_header || inode.mtime_nsec != 0 {
        record(&mut out, b"mtime", decimal_time(inode.mtime_sec, inode.mtime_nsec).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        record(&mut out, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    out
}

/// Seconds and nanoseconds as a decimal fraction. Before the epoch the fraction counts backwards.
fn decimal_time(sec: i64, nsec: u32) -> String {
    if nsec == 0 {
        return sec.to_string();
    }
    if sec >= 0 {
        return format!("{sec}.{nsec:09}");
    }
    format!("-{}.{:09}", (sec + 1).unsigned_abs(), 1_000_000_000 - nsec.min(1_000_000_000))
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + rest.to_string().len();
    if len.to_string().len() > rest.to_string().len() {
        len += 1;
    }
    out.extend_from_slice(len.to_string().as_bytes());
    for part in [&b" "[..], key, b"=", value, b"\n"] {
        out.extend_from_slice(part);
    }
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

/// Octal digits and a NUL; the low digits of what does not fit, which a pax record says in full.
fn put_octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let mut left = value;
    for at in field[..digits].iter_mut().rev() {
        *at = b'0' + u8::try_from(left & 7).unwrap_or(0);
        left >>= 3;
    }
    field[digits] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_their_own_length() {
        for len in 0..1200 {
            let mut out = Vec::new();
            record(&mut out, b"k", &vec![b'v'; len]);
            let text = String::from_utf8(out.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse::<usize>().unwrap(), out.len(), "{len}");
        }
    }

    #[test]
    fn times_before_the_epoch() {
        assert_eq!(decimal_time(5, 0), "5");
        assert_eq!(decimal_time(5, 7), "5.000000007");
        assert_eq!(decimal_time(-1, 500_000_000), "-0.500000000");
        assert_eq!(decimal_time(-3, 999_999_999), "-2.000000001");
    }
}
