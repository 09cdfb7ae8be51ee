//! The FUSE messages a front-end needs: bodies of requests and the fields of replies.
//!
//! Layouts are those of Linux's `include/uapi/linux/fuse.h`, all little endian. Pure bytes, no I/O.

use super::error::{FrontendError, Result};

/// Bytes of a request's header.
pub const IN_HEADER: usize = 40;
/// Bytes of a reply's header.
pub const OUT_HEADER: usize = 16;
/// Bytes of `fuse_entry_out`.
pub const ENTRY_OUT: u32 = 128;
/// Bytes of `fuse_attr_out`.
pub const ATTR_OUT: u32 = 104;

/// Opcodes.
#[allow(missing_docs, reason = "names and numbers are the kernel's")]
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const GETLK: u32 = 31;
    pub const SETLK: u32 = 32;
    pub const SETLKW: u32 = 33;
    pub const ACCESS: u32 = 34;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const BMAP: u32 = 37;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const POLL: u32 = 40;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SETUPMAPPING: u32 = 48;
    pub const REMOVEMAPPING: u32 = 49;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// INIT flags this front-end offers: ASYNC_READ, BIG_WRITES, DO_READDIRPLUS, READDIRPLUS_AUTO, ASYNC_DIO,
/// PARALLEL_DIROPS, NO_OPEN_SUPPORT, MAX_PAGES, CACHE_SYMLINKS, NO_OPENDIR_SUPPORT, EXPLICIT_INVAL_DATA, INIT_EXT.
/// (A Linux guest offers more; what RAFS must not accept, such as WRITEBACK_CACHE, has a test of its own.)
pub const INIT_FLAGS: u32 = 1
    | 1 << 5
    | 1 << 13
    | 1 << 14
    | 1 << 15
    | 1 << 17
    | 1 << 18
    | 1 << 22
    | 1 << 23
    | 1 << 24
    | 1 << 25
    | 1 << 30;
/// INIT flag WRITEBACK_CACHE.
pub const WRITEBACK_CACHE: u32 = 1 << 16;
/// INIT flag INIT_EXT: flags2 counts.
pub const INIT_EXT: u32 = 1 << 30;
/// INIT flag MAX_PAGES.
pub const MAX_PAGES: u32 = 1 << 22;

/// A request's header: root's ids, no extensions.
#[must_use]
pub fn in_header(len: u32, opcode: u32, unique: u64, node: u64) -> [u8; IN_HEADER] {
    let mut out = [0; IN_HEADER];
    out[..4].copy_from_slice(&len.to_le_bytes());
    out[4..8].copy_from_slice(&opcode.to_le_bytes());
    out[8..16].copy_from_slice(&unique.to_le_bytes());
    out[16..24].copy_from_slice(&node.to_le_bytes());
    out
}

/// Builds a body from 32- and 64-bit fields in order.
#[derive(Debug, Default, Clone)]
pub struct Body(Vec<u8>);

impl Body {
    /// An empty body.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a 32-bit field.
    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends a 64-bit field.
    #[must_use]
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Appends bytes and the NUL that ends a name.
    #[must_use]
    pub fn name(mut self, name: &[u8]) -> Self {
        self.0.extend_from_slice(name);
        self.0.push(0);
        self
    }

    /// Appends bytes.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The finished body.
    #[must_use]
    pub fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Body of INIT, `fuse_init_in` with flags2.
#[must_use]
pub fn init_in(major: u32, minor: u32, flags: u32, flags2: u32) -> Vec<u8> {
    let head = Body::new().u32(major).u32(minor).u32(1 << 20).u32(flags).u32(flags2);
    head.raw(&[0; 44]).done()
}

/// Body of GETATTR.
#[must_use]
pub fn getattr_in() -> Vec<u8> {
    vec![0; 16]
}

/// Body of OPEN and OPENDIR.
#[must_use]
pub fn open_in(flags: u32) -> Vec<u8> {
    Body::new().u32(flags).u32(0).done()
}

/// Body of READ, READDIR and READDIRPLUS.
#[must_use]
pub fn read_in(fh: u64, offset: u64, size: u32) -> Vec<u8> {
    Body::new().u64(fh).u64(offset).u32(size).u32(0).u64(0).u32(0).u32(0).done()
}

/// Body of RELEASE and RELEASEDIR.
#[must_use]
pub fn release_in(fh: u64) -> Vec<u8> {
    Body::new().u64(fh).u32(0).u32(0).u64(0).done()
}

/// Body of GETXATTR.
#[must_use]
pub fn getxattr_in(size: u32, name: &[u8]) -> Vec<u8> {
    Body::new().u32(size).u32(0).name(name).done()
}

/// Body of LISTXATTR.
#[must_use]
pub fn listxattr_in(size: u32) -> Vec<u8> {
    Body::new().u32(size).u32(0).done()
}

/// Body of FORGET.
#[must_use]
pub fn forget_in(lookups: u64) -> Vec<u8> {
    lookups.to_le_bytes().to_vec()
}

/// Reads fields of a reply in order; every shortage is an error.
#[derive(Debug)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Fields of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(len).ok_or_else(|| {
            FrontendError::BadReply(format!("{} bytes left where {len} are needed", self.0.len()))
        })?;
        self.0 = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }

    /// The next 16-bit field.
    ///
    /// # Errors
    /// When the reply is too short.
    pub fn u16(&mut self) -> Result<u16> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// The next 32-bit field.
    ///
    /// # Errors
    /// When the reply is too short.
    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// The next 64-bit field.
    ///
    /// # Errors
    /// When the reply is too short.
    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// Bytes left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.0.len()
    }
}

/// Answer to INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are those of fuse_init_out")]
pub struct InitOut {
    pub major: u32,
    pub minor: u32,
    pub max_readahead: u32,
    pub flags: u32,
    pub max_background: u16,
    pub max_write: u32,
    pub time_gran: u32,
    pub max_pages: u16,
    pub map_alignment: u16,
    pub flags2: u32,
}

impl InitOut {
    /// Reads the reply's body.
    ///
    /// # Errors
    /// When it is too short for minor version 23 and newer.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut f = Fields::new(body);
        let (major, minor, max_readahead, flags) = (f.u32()?, f.u32()?, f.u32()?, f.u32()?);
        let (max_background, _congestion) = (f.u16()?, f.u16()?);
        let (max_write, time_gran, max_pages, map_alignment) = (f.u32()?, f.u32()?, f.u16()?, f.u16()?);
        let flags2 = f.u32()?;
        Ok(Self {
            major,
            minor,
            max_readahead,
            flags,
            max_background,
            max_write,
            time_gran,
            max_pages,
            map_alignment,
            flags2,
        })
    }
}

/// `fuse_attr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "fields are those of fuse_attr")]
pub struct Attr {
    pub ino: u64,
    pub size: u64,
    pub blocks: u64,
    pub atime: u64,
    pub mtime: u64,
    pub ctime: u64,
    pub atime_ns: u32,
    pub mtime_ns: u32,
    pub ctime_ns: u32,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub blksize: u32,
    pub flags: u32,
}

impl Attr {
    /// Reads the 88 bytes of the structure.
    ///
    /// # Errors
    /// When they are fewer.
    pub fn parse(f: &mut Fields<'_>) -> Result<Self> {
        Ok(Self {
            ino: f.u64()?,
            size: f.u64()?,
            blocks: f.u64()?,
            atime: f.u64()?,
            mtime: f.u64()?,
            ctime: f.u64()?,
            atime_ns: f.u32()?,
            mtime_ns: f.u32()?,
            ctime_ns: f.u32()?,
            mode: f.u32()?,
            nlink: f.u32()?,
            uid: f.u32()?,
            gid: f.u32()?,
            rdev: f.u32()?,
            blksize: f.u32()?,
            flags: f.u32()?,
        })
    }

    /// The file type bits of the mode.
    #[must_use]
    pub fn file_type(&self) -> u32 {
        self.mode & 0o170_000
    }
}

/// `fuse_attr_out`.
///
/// # Errors
/// When the body has another length.
pub fn parse_attr_out(body: &[u8]) -> Result<Attr> {
    let mut f = Fields::new(body);
    f.bytes(16)?;
    let attr = Attr::parse(&mut f)?;
    match f.left() {
        0 => Ok(attr),
        n => Err(FrontendError::BadReply(format!("{n} bytes behind fuse_attr_out"))),
    }
}

/// `fuse_entry_out`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Node id; 0 says that the name does not exist.
    pub node: u64,
    /// Generation.
    pub generation: u64,
    /// Seconds for which the name may be cached.
    pub entry_valid: u64,
    /// Seconds for which the attributes may be cached.
    pub attr_valid: u64,
    /// Attributes.
    pub attr: Attr,
}

impl Entry {
    /// Reads the 128 bytes of the structure.
    ///
    /// # Errors
    /// When they are fewer.
    pub fn parse(f: &mut Fields<'_>) -> Result<Self> {
        let (node, generation, entry_valid, attr_valid) = (f.u64()?, f.u64()?, f.u64()?, f.u64()?);
        f.bytes(8)?;
        Ok(Self { node, generation, entry_valid, attr_valid, attr: Attr::parse(f)? })
    }
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Cookie: where the next READDIR goes on.
    pub next: u64,
    /// File type as in `d_type`.
    pub kind: u32,
    /// The name's bytes.
    pub name: Vec<u8>,
    /// What READDIRPLUS says about the name.
    pub entry: Option<Entry>,
}

/// Reads the body of a READDIR or, with `plus`, READDIRPLUS reply.
///
/// # Errors
/// When a record is cut off, has an empty name, a NUL or a slash in it.
pub fn parse_dirents(body: &[u8], plus: bool) -> Result<Vec<DirEntry>> {
    let mut f = Fields::new(body);
    let mut out = Vec::new();
    while f.left() > 0 {
        let entry = if plus { Some(Entry::parse(&mut f)?) } else { None };
        let (ino, next, len, kind) = (f.u64()?, f.u64()?, f.u32()?, f.u32()?);
        let name = f.bytes(len as usize)?.to_vec();
        if name.is_empty() || name.contains(&0) || name.contains(&b'/') {
            return Err(FrontendError::BadReply(format!("directory entry with name {name:02x?}")));
        }
        f.bytes((8 - name.len() % 8) % 8)?;
        out.push(DirEntry { ino, next, kind, name, entry });
    }
    Ok(out)
}

/// Answer to STATFS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "fields are those of fuse_kstatfs")]
pub struct StatFs {
    pub blocks: u64,
    pub bfree: u64,
    pub bavail: u64,
    pub files: u64,
    pub ffree: u64,
    pub bsize: u32,
    pub namelen: u32,
    pub frsize: u32,
}

impl StatFs {
    /// Reads the reply's body.
    ///
    /// # Errors
    /// When it is too short.
    pub fn parse(body: &[u8]) -> Result<Self> {
        let mut f = Fields::new(body);
        Ok(Self {
            blocks: f.u64()?,
            bfree: f.u64()?,
            bavail: f.u64()?,
            files: f.u64()?,
            ffree: f.u64()?,
            bsize: f.u32()?,
            namelen: f.u32()?,
            frsize: f.u32()?,
        })
    }
}
