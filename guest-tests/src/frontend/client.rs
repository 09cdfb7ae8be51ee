//! One typed method per FUSE operation, each waiting for its answer.
//!
//! For tests that look at single answers. Throughput is [`super::walk`]'s and the benchmark's business.

use std::path::Path;

use super::device::{Device, Options};
use super::error::{FrontendError, Result};
use super::fuse::{
    ATTR_OUT, Attr, DirEntry, ENTRY_OUT, Entry, Fields, INIT_FLAGS, InitOut, StatFs, forget_in, getattr_in,
    getxattr_in, init_in, listxattr_in, op, open_in, parse_attr_out, parse_dirents, read_in, release_in,
};
use super::session::Session;

/// Node id of the root.
pub const ROOT: u64 = 1;

/// ENOSYS, which tells a client never to ask again.
pub const ENOSYS: i32 = 38;

/// A guest whose file system is mounted.
#[derive(Debug)]
pub struct Client {
    /// The session below.
    pub session: Session,
    /// What INIT answered.
    pub init: InitOut,
    turn: usize,
}

impl Client {
    /// Connects to the daemon at `path` and mounts.
    ///
    /// # Errors
    /// When the daemon refuses the device or INIT.
    pub fn connect(path: &Path, options: &Options) -> Result<Self> {
        Self::mount(Session::new(Device::connect(path, options)?))
    }

    /// Mounts over a running session: INIT with all that a newer Linux would offer for reading.
    ///
    /// # Errors
    /// When the daemon refuses INIT or answers another major version.
    pub fn mount(mut session: Session) -> Result<Self> {
        let init = init(&mut session, 7, 45, INIT_FLAGS, 0)?;
        if init.major != 7 || init.minor < 27 {
            return Err(FrontendError::BadReply(format!("INIT answered {}.{}", init.major, init.minor)));
        }
        Ok(Self { session, init, turn: 0 })
    }

    /// The request rings in turn.
    pub fn ring(&mut self) -> usize {
        self.turn = self.turn % self.session.device.options.queues + 1;
        self.turn
    }

    /// Any request with a reply of up to `room` bytes.
    ///
    /// # Errors
    /// [`FrontendError::Errno`] when the daemon answers one; others when it breaks the protocol.
    pub fn call(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> Result<Vec<u8>> {
        let ring = self.ring();
        self.session.call(ring, opcode, node, body, room)
    }

    /// GETATTR.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn getattr(&mut self, node: u64) -> Result<Attr> {
        parse_attr_out(&self.call(op::GETATTR, node, &getattr_in(), ATTR_OUT)?)
    }

    /// LOOKUP; a name that does not exist has node 0 or is ENOENT.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn lookup(&mut self, parent: u64, name: &[u8]) -> Result<Entry> {
        let mut body = name.to_vec();
        body.push(0);
        let reply = self.call(op::LOOKUP, parent, &body, ENTRY_OUT)?;
        Entry::parse(&mut Fields::new(&reply))
    }

    /// LOOKUP of each component of `path`, which must exist.
    ///
    /// # Errors
    /// ENOENT, also for a negative entry; see [`Client::call`].
    pub fn resolve(&mut self, path: &[u8]) -> Result<Entry> {
        let attr = self.getattr(ROOT)?;
        let mut at = Entry { node: ROOT, generation: 0, entry_valid: 0, attr_valid: 0, attr };
        for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty()) {
            at = self.lookup(at.node, name)?;
            if at.node == 0 {
                let what = format!("lookup of {}", String::from_utf8_lossy(path));
                return Err(FrontendError::Errno { what, errno: 2 });
            }
        }
        Ok(at)
    }

    /// READLINK.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn readlink(&mut self, node: u64) -> Result<Vec<u8>> {
        self.call(op::READLINK, node, &[], 4096)
    }

    /// OPEN; the handle is 0 where the daemon keeps none (ENOSYS to a reading open).
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn open(&mut self, node: u64, flags: u32) -> Result<u64> {
        self.opened(op::OPEN, node, flags)
    }

    /// OPENDIR; the handle is 0 where the daemon keeps none.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn opendir(&mut self, node: u64) -> Result<u64> {
        self.opened(op::OPENDIR, node, 0)
    }

    fn opened(&mut self, opcode: u32, node: u64, flags: u32) -> Result<u64> {
        match self.call(opcode, node, &open_in(flags), 16) {
            Ok(body) => Fields::new(&body).u64(),
            Err(e) if e.errno() == Some(ENOSYS) => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// RELEASE.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn release(&mut self, node: u64, fh: u64) -> Result<()> {
        self.call(op::RELEASE, node, &release_in(fh), 0).map(drop)
    }

    /// RELEASEDIR.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn releasedir(&mut self, node: u64, fh: u64) -> Result<()> {
        self.call(op::RELEASEDIR, node, &release_in(fh), 0).map(drop)
    }

    /// READ of up to `size` bytes at `offset`.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn read(&mut self, node: u64, fh: u64, offset: u64, size: u32) -> Result<Vec<u8>> {
        self.call(op::READ, node, &read_in(fh, offset, size), size)
    }

    /// READDIR or, with `plus`, READDIRPLUS into `size` bytes, from cookie `offset` on.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn readdir(
        &mut self,
        node: u64,
        fh: u64,
        offset: u64,
        size: u32,
        plus: bool,
    ) -> Result<Vec<DirEntry>> {
        let opcode = if plus { op::READDIRPLUS } else { op::READDIR };
        parse_dirents(&self.call(opcode, node, &read_in(fh, offset, size), size)?, plus)
    }

    /// A whole directory, `size` bytes a time.
    ///
    /// # Errors
    /// See [`Client::call`]; also when the daemon does not come to an end.
    pub fn list(&mut self, node: u64, size: u32, plus: bool) -> Result<Vec<DirEntry>> {
        let fh = self.opendir(node)?;
        let mut all: Vec<DirEntry> = Vec::new();
        loop {
            let offset = all.last().map_or(0, |e| e.next);
            let part = self.readdir(node, fh, offset, size, plus)?;
            if part.is_empty() {
                break;
            }
            all.extend(part);
            if all.len() > 10_000_000 {
                return Err(FrontendError::BadReply("a directory without end".to_owned()));
            }
        }
        self.releasedir(node, fh)?;
        Ok(all)
    }

    /// GETXATTR: the value, through the two-step of asking for its size first.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn getxattr(&mut self, node: u64, name: &[u8]) -> Result<Vec<u8>> {
        let size = Fields::new(&self.call(op::GETXATTR, node, &getxattr_in(0, name), 8)?).u32()?;
        if size == 0 {
            return Ok(Vec::new());
        }
        self.call(op::GETXATTR, node, &getxattr_in(size, name), size)
    }

    /// LISTXATTR: all names.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn listxattr(&mut self, node: u64) -> Result<Vec<Vec<u8>>> {
        let size = Fields::new(&self.call(op::LISTXATTR, node, &listxattr_in(0), 8)?).u32()?;
        if size == 0 {
            return Ok(Vec::new());
        }
        let list = self.call(op::LISTXATTR, node, &listxattr_in(size), size)?;
        Ok(list.split(|b| *b == 0).filter(|n| !n.is_empty()).map(<[u8]>::to_vec).collect())
    }

    /// STATFS.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn statfs(&mut self, node: u64) -> Result<StatFs> {
        StatFs::parse(&self.call(op::STATFS, node, &[], 80)?)
    }

    /// FORGET on the hiprio ring; waits until the descriptor is back.
    ///
    /// # Errors
    /// When it does not come back.
    pub fn forget(&mut self, node: u64, lookups: u64) -> Result<()> {
        let unique = self.session.submit(0, op::FORGET, node, &forget_in(lookups), None)?;
        self.session.flush()?;
        let done = self.session.wait_for(unique)?;
        self.session.release(done);
        Ok(())
    }

    /// DESTROY, then all rings stopped and the socket closed.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn unmount(mut self) -> Result<()> {
        self.call(op::DESTROY, 0, &[], 0)?;
        self.session.device.stop()
    }
}

/// Sends INIT on the first request ring.
///
/// # Errors
/// See [`Client::call`].
pub fn init(session: &mut Session, major: u32, minor: u32, flags: u32, flags2: u32) -> Result<InitOut> {
    InitOut::parse(&session.call(1, op::INIT, 0, &init_in(major, minor, flags, flags2), 64)?)
}
