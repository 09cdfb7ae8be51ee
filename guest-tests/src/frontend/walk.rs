//! Walks and reads a whole file system with many requests in flight over all request rings.
//!
//! Owns the order of requests (any answer may come first) and the cross-checks between LOOKUP, GETATTR,
//! READDIR and READDIRPLUS. The result is a [`Tree`], to be compared with what it should be.

use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use super::client::{Client, ENOSYS, ROOT};
use super::error::{FrontendError, Result};
use super::fuse::{
    ATTR_OUT, Attr, ENTRY_OUT, Entry, Fields, getattr_in, getxattr_in, listxattr_in, op, open_in,
    parse_attr_out, parse_dirents, read_in, release_in,
};
use super::session::Completion;
use crate::tree::{Kind, Tree, TreeEntry};

/// How to walk.
#[derive(Debug, Clone, Copy)]
pub struct WalkOptions {
    /// Requests in flight at most.
    pub window: usize,
    /// Bytes of each READ.
    pub read_size: u32,
    /// Bytes of each READDIRPLUS.
    pub dir_size: u32,
    /// Ask LOOKUP, GETATTR and READDIR too and compare the answers.
    pub cross_check: bool,
    /// Read file contents.
    pub contents: bool,
    /// Read extended attributes.
    pub xattrs: bool,
}

impl Default for WalkOptions {
    fn default() -> Self {
        Self {
            window: 32,
            read_size: 128 << 10,
            dir_size: 32 << 10,
            cross_check: true,
            contents: true,
            xattrs: true,
        }
    }
}

/// Room for lists and values of extended attributes: the kernel's limit.
const XATTR_ROOM: u32 = 65536;
const ENODATA: i32 = 61;
const ENOTSUP: i32 = 95;

#[derive(Debug, Default)]
struct Seen {
    path: Vec<u8>,
    node: u64,
    attr: Attr,
    target: Option<Vec<u8>>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// READs not yet answered, and what the others brought.
    reads_left: u64,
    blocks: BTreeMap<u64, Vec<u8>>,
    sha256: Option<String>,
    /// Names that READDIRPLUS and READDIR listed, in order.
    names: [Vec<Vec<u8>>; 2],
}

#[derive(Debug, Clone)]
enum Step {
    Getattr,
    Lookup { parent: u64, name: Vec<u8> },
    OpenDir,
    ReadDir { fh: u64, cookie: u64, plus: bool },
    Open,
    Read { fh: u64, offset: u64, want: u32 },
    Release { fh: u64, opcode: u32 },
    Readlink,
    Listxattr,
    Getxattr { name: Vec<u8> },
}

type Job = (usize, Step);

struct Walk<'a> {
    client: &'a mut Client,
    options: WalkOptions,
    seen: Vec<Seen>,
    todo: Vec<Job>,
    running: HashMap<u64, Job>,
}

/// Walks the file system of `client` from its root.
///
/// # Errors
/// When an answer is missing, is an unexpected errno, breaks the protocol or contradicts another one.
pub fn walk(client: &mut Client, options: WalkOptions) -> Result<Tree> {
    walk_from(client, ROOT, options)
}

/// The same for the tree below a node, which is shown as the root.
///
/// # Errors
/// See [`walk`].
pub fn walk_from(client: &mut Client, root: u64, options: WalkOptions) -> Result<Tree> {
    let attr = client.getattr(root)?;
    let mut walk = Walk { client, options, seen: Vec::new(), todo: Vec::new(), running: HashMap::new() };
    walk.found(b"/".to_vec(), root, attr)?;
    walk.run()?;
    let mut tree = Tree::new();
    for seen in walk.seen {
        let path = seen.path.clone();
        if tree.insert(path.clone(), describe(seen)?).is_some() {
            return Err(FrontendError::BadReply(format!("{} is listed twice", path.escape_ascii())));
        }
    }
    Ok(tree)
}

fn describe(seen: Seen) -> Result<TreeEntry> {
    let attr = seen.attr;
    let kind = kind(&seen.path, &attr)?;
    if seen.names[1] != seen.names[0] && !seen.names[1].is_empty() {
        return Err(contradiction(&seen.path, "READDIR and READDIRPLUS list other names"));
    }
    Ok(TreeEntry {
        kind,
        mode: attr.mode & 0o7777,
        uid: attr.uid,
        gid: attr.gid,
        mtime: attr.mtime.cast_signed(),
        mtime_ns: attr.mtime_ns,
        nlink: attr.nlink.into(),
        xattrs: seen.xattrs,
        size: (kind != Kind::Dir).then_some(attr.size),
        sha256: seen.sha256,
        target: seen.target,
        rdev: matches!(kind, Kind::Char | Kind::Block).then_some(attr.rdev),
    })
}

fn kind(path: &[u8], attr: &Attr) -> Result<Kind> {
    Kind::from_mode(attr.mode).ok_or_else(|| contradiction(path, &format!("mode {:o}", attr.mode)))
}

fn contradiction(path: &[u8], what: &str) -> FrontendError {
    FrontendError::BadReply(format!("{}: {what}", path.escape_ascii()))
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        loop {
            while self.running.len() < self.options.window {
                let Some(job) = self.todo.pop() else { break };
                match self.start(&job) {
                    Ok(unique) => {
                        self.running.insert(unique, job);
                    }
                    Err(FrontendError::RingFull(_) | FrontendError::NoBuffer(_))
                        if !self.running.is_empty() =>
                    {
                        self.todo.push(job);
                        break;
                    }
                    Err(e) => return Err(e),
                }
            }
            if self.running.is_empty() {
                return Ok(());
            }
            self.client.session.flush()?;
            let done = self.client.session.next_done()?;
            self.done(done)?;
            while let Some(done) = self.client.session.try_next_done()? {
                self.done(done)?;
            }
        }
    }

    fn start(&mut self, (index, step): &Job) -> Result<u64> {
        let node = self.seen[*index].node;
        let (opcode, node, body, room) = match step {
            Step::Getattr => (op::GETATTR, node, getattr_in(), ATTR_OUT),
            Step::Lookup { parent, name } => {
                let mut body = name.clone();
                body.push(0);
                (op::LOOKUP, *parent, body, ENTRY_OUT)
            }
            Step::OpenDir => (op::OPENDIR, node, open_in(0), 16),
            Step::ReadDir { fh, cookie, plus } => {
                let size = self.options.dir_size;
                let opcode = if *plus { op::READDIRPLUS } else { op::READDIR };
                (opcode, node, read_in(*fh, *cookie, size), size)
            }
            Step::Open => (op::OPEN, node, open_in(0), 16),
            Step::Read { fh, offset, .. } => {
                let size = self.options.read_size;
                (op::READ, node, read_in(*fh, *offset, size), size)
            }
            Step::Release { fh, opcode } => (*opcode, node, release_in(*fh), 0),
            Step::Readlink => (op::READLINK, node, Vec::new(), 4096),
            Step::Listxattr => (op::LISTXATTR, node, listxattr_in(XATTR_ROOM), XATTR_ROOM),
            Step::Getxattr { name } => (op::GETXATTR, node, getxattr_in(XATTR_ROOM, name), XATTR_ROOM),
        };
        let ring = self.client.ring();
        self.client.session.submit(ring, opcode, node, &body, Some(room))
    }

    fn done(&mut self, done: Completion) -> Result<()> {
        let Some((index, step)) = self.running.remove(&done.unique) else {
            return Err(FrontendError::BadReply(format!("answer to unknown request {}", done.unique)));
        };
        let errno = done.errno;
        let body = match self.client.session.take(done) {
            Err(FrontendError::Errno { .. }) if tolerated(&step, errno) => Vec::new(),
            Err(FrontendError::Errno { what, errno }) => {
                let what = format!("{what} of {}", self.seen[index].path.escape_ascii());
                return Err(FrontendError::Errno { what, errno });
            }
            other => other?,
        };
        self.answer(index, step, &body)
    }

    fn answer(&mut self, index: usize, step: Step, body: &[u8]) -> Result<()> {
        match step {
            Step::Getattr => {
                let attr = parse_attr_out(body)?;
                self.same(index, &attr, "GETATTR")
            }
            Step::Lookup { .. } => {
                let entry = Entry::parse(&mut Fields::new(body))?;
                if entry.node != self.seen[index].node {
                    return Err(contradiction(&self.seen[index].path, "LOOKUP has another node id"));
                }
                self.same(index, &entry.attr, "LOOKUP")
            }
            Step::OpenDir => {
                let fh = if body.is_empty() { 0 } else { Fields::new(body).u64()? };
                self.todo.push((index, Step::ReadDir { fh, cookie: 0, plus: true }));
                Ok(())
            }
            Step::ReadDir { fh, plus, cookie } => self.listed(index, fh, cookie, plus, body),
            Step::Open => {
                let fh = if body.is_empty() { 0 } else { Fields::new(body).u64()? };
                self.read_all(index, fh);
                Ok(())
            }
            Step::Read { fh, offset, want } => self.block(index, fh, offset, want, body),
            Step::Release { .. } => Ok(()),
            Step::Readlink => {
                self.seen[index].target = Some(body.to_vec());
                Ok(())
            }
            Step::Listxattr => {
                for name in body.split(|b| *b == 0).filter(|n| !n.is_empty()) {
                    self.todo.push((index, Step::Getxattr { name: name.to_vec() }));
                }
                Ok(())
            }
            Step::Getxattr { name } => {
                self.seen[index].xattrs.insert(name, body.to_vec());
                Ok(())
            }
        }
    }

    /// A path with its first attributes: notes it and asks for all the rest.
    fn found(&mut self, path: Vec<u8>, node: u64, attr: Attr) -> Result<()> {
        let kind = kind(&path, &attr)?;
        let index = self.seen.len();
        self.seen.push(Seen { path, node, attr, ..Seen::default() });
        if self.options.cross_check {
            self.todo.push((index, Step::Getattr));
        }
        if self.options.xattrs {
            self.todo.push((index, Step::Listxattr));
        }
        match kind {
            Kind::Dir => self.todo.push((index, Step::OpenDir)),
            Kind::Symlink => self.todo.push((index, Step::Readlink)),
            Kind::Reg if self.options.contents => self.todo.push((index, Step::Open)),
            _ => {}
        }
        Ok(())
    }

    fn same(&self, index: usize, attr: &Attr, what: &str) -> Result<()> {
        let seen = &self.seen[index];
        // Reading a directory of the host may change its access time meanwhile.
        let plain = |a: &Attr| Attr { atime: 0, atime_ns: 0, ..*a };
        if plain(attr) != plain(&seen.attr) {
            return Err(contradiction(
                &seen.path,
                &format!("{what} says {attr:?}, READDIRPLUS {:?}", seen.attr),
            ));
        }
        Ok(())
    }

    fn listed(&mut self, index: usize, fh: u64, cookie: u64, plus: bool, body: &[u8]) -> Result<()> {
        let entries = parse_dirents(body, plus)?;
        let path = self.seen[index].path.clone();
        let Some(last) = entries.last() else {
            let next = if plus && self.options.cross_check {
                Step::ReadDir { fh, cookie: 0, plus: false }
            } else {
                Step::Release { fh, opcode: op::RELEASEDIR }
            };
            self.todo.push((index, next));
            return Ok(());
        };
        if last.next == cookie {
            return Err(contradiction(&path, "READDIR makes no progress"));
        }
        self.todo.push((index, Step::ReadDir { fh, cookie: last.next, plus }));
        for found in entries {
            self.seen[index].names[usize::from(!plus)].push(found.name.clone());
            if found.name == b"." || found.name == b".." {
                continue;
            }
            let Some(entry) = found.entry else { continue };
            let mut child = path.clone();
            if child.len() > 1 {
                child.push(b'/');
            }
            child.extend_from_slice(&found.name);
            if entry.node == 0 || entry.attr.ino != found.ino {
                return Err(contradiction(&child, "READDIRPLUS has no attributes or another inode number"));
            }
            if kind(&child, &entry.attr)?.d_type() != found.kind {
                return Err(contradiction(&child, "d_type does not fit the mode"));
            }
            let parent = self.seen[index].node;
            self.found(child, entry.node, entry.attr)?;
            if self.options.cross_check {
                self.todo.push((self.seen.len() - 1, Step::Lookup { parent, name: found.name }));
            }
        }
        Ok(())
    }

    /// READs of a whole file and one at its end, which must bring nothing.
    fn read_all(&mut self, index: usize, fh: u64) {
        let size = self.seen[index].attr.size;
        let step = u64::from(self.options.read_size);
        let mut offset = 0;
        loop {
            let want = u32::try_from((size - offset).min(step)).unwrap_or(self.options.read_size);
            self.todo.push((index, Step::Read { fh, offset, want }));
            self.seen[index].reads_left += 1;
            offset += u64::from(want);
            if u64::from(want) < step {
                return;
            }
        }
    }

    fn block(&mut self, index: usize, fh: u64, offset: u64, want: u32, body: &[u8]) -> Result<()> {
        let seen = &mut self.seen[index];
        if body.len() != want as usize {
            return Err(contradiction(
                &seen.path,
                &format!("READ at {offset} brought {} bytes of {want}", body.len()),
            ));
        }
        seen.blocks.insert(offset, body.to_vec());
        seen.reads_left -= 1;
        if seen.reads_left == 0 {
            let mut hash = Sha256::new();
            for block in std::mem::take(&mut seen.blocks).into_values() {
                hash.update(&block);
            }
            seen.sha256 = Some(hex::encode(hash.finalize()));
            self.todo.push((index, Step::Release { fh, opcode: op::RELEASE }));
        }
        Ok(())
    }
}

/// Errnos that are answers: no handle kept, no extended attributes.
fn tolerated(step: &Step, errno: i32) -> bool {
    match step {
        Step::OpenDir | Step::Open | Step::Release { .. } => errno == ENOSYS,
        Step::Listxattr => matches!(errno, ENOSYS | ENODATA | ENOTSUP),
        _ => false,
    }
}
