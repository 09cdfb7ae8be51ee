//! A namespace as the dispatcher sees it: which mount a request is for, and what the directories between mounts answer.
//!
//! Owns: that way, and the counting on it. File systems get their requests as they are: node ids are theirs already
//! ([`Place`](super::Place)). Does not own: what a mount answers.
//!
//! A mount below the root must not answer ENOSYS, which a guest takes for the whole connection: it is told EOPNOTSUPP.

use super::backend::INODE_BITS;
use super::counters::Op;
use super::namespace::{Namespace, Slot, Table};
use super::pseudo::{Leads, PseudoDir};
use super::rafs_mount::{empty_stat, empty_statfs, os};
use crate::fuse::abi::{Attr, ROOT_NODE, Statx, init_flag};
use crate::fuse::{
    Change, Changed, FileOp, GuestFs, LockReply, LockRequest, PlusEntry, PlusSink, ReadAt, ReadIo, ReadStart,
    WriteAt, WriteIo,
};
use fuse_backend_rs::api::filesystem::{
    Context, DirEntry, Entry, FileSystem, FsOptions, GetxattrReply, ListxattrReply, OpenOptions,
};
use rafs::guard::nothing_lost;
use std::ffi::CStr;
use std::io;
use std::time::Duration;

/// How long guests may keep the way to a mount. Short: the mount may go, and another may come.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Mode of the directories between mounts.
const DIRECTORY_MODE: u32 = libc::S_IFDIR | 0o755;

/// Who answers for a node.
enum Owner<'a> {
    Mount(&'a Slot),
    Pseudo(&'a PseudoDir),
}

/// The owner of a node id, which may be any 64 bits.
#[inline]
fn owner(table: &Table, node: u64) -> io::Result<Owner<'_>> {
    // The top byte.
    let [index, ..] = node.to_be_bytes();
    if index != 0 {
        return match table.slot(index) {
            Some(slot) => Ok(Owner::Mount(slot)),
            // ESTALE makes a guest look the path up once more, and find what is there now.
            None => Err(os(if table.was_known(index) { libc::ESTALE } else { libc::ENOENT })),
        };
    }
    if node == ROOT_NODE
        && let Some(slot) = table.root()
    {
        return Ok(Owner::Mount(slot));
    }
    table.pseudo.get(node).map(Owner::Pseudo).ok_or_else(|| os(libc::ENOENT))
}

impl Slot {
    /// Makes a call and counts it, and keeps ENOSYS from guests that would take it for more than this mount.
    #[inline]
    fn answered<T>(&self, op: Op, call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let timing = self.counters.begin(op);
        let answer = call();
        // Answers are large: what is good is not to be moved for this.
        if let Err(lost) = self.confirm() {
            self.counters.count(op, true, timing);
            return Err(lost);
        }
        self.counters.count(op, answer.is_err(), timing);
        self.softened(answer)
    }

    #[inline]
    fn softened<T>(&self, answer: io::Result<T>) -> io::Result<T> {
        match answer {
            Err(error) if !self.place.at_root && error.raw_os_error() == Some(libc::ENOSYS) => {
                Err(os(libc::EOPNOTSUPP))
            }
            other => other,
        }
    }

    /// After an answer was made. Nobody is asked as long as nothing in this process was lost.
    #[inline]
    fn confirm(&self) -> io::Result<()> {
        if nothing_lost() { Ok(()) } else { self.fs.confirm() }
    }

    /// Attributes of the mount's root.
    fn root_stat(&self, ctx: &Context) -> io::Result<(libc::stat64, Duration)> {
        let answer = self.fs.getattr(ctx, self.root, None);
        self.confirm().and(answer)
    }

    /// The mount's root as an entry of the directory that it is mounted in.
    fn root_entry(&self, ctx: &Context) -> io::Result<Entry> {
        let (attr, _) = self.root_stat(ctx)?;
        Ok(Entry {
            inode: self.root,
            generation: self.place.generation.into(),
            attr,
            attr_flags: self.fs.attr_flags(self.root),
            attr_timeout: TIMEOUT,
            entry_timeout: TIMEOUT,
        })
    }
}

impl PseudoDir {
    fn stat(&self) -> libc::stat64 {
        let mut stat = empty_stat();
        stat.st_ino = self.number;
        stat.st_mode = DIRECTORY_MODE;
        stat.st_nlink = 2;
        stat.st_blksize = 4096;
        stat
    }

    fn attr(number: u64) -> Attr {
        Attr { ino: number, mode: DIRECTORY_MODE, nlink: 2, blksize: 4096, ..Attr::default() }
    }

    fn entry(&self) -> Entry {
        Entry {
            inode: self.number,
            attr: self.stat(),
            attr_timeout: TIMEOUT,
            entry_timeout: TIMEOUT,
            ..Entry::default()
        }
    }

    fn lookup(&self, table: &Table, ctx: &Context, name: &[u8]) -> io::Result<Entry> {
        let dir = |number| table.pseudo.get(number).map(PseudoDir::entry).ok_or_else(|| os(libc::ENOENT));
        match name {
            b"." => return Ok(self.entry()),
            b".." => return dir(self.parent),
            _ if name.len() > 255 => return Err(os(libc::ENAMETOOLONG)),
            _ => {}
        }
        // A miss is not to be remembered: a mount may come at any moment.
        let Some(child) = self.child(name) else { return Ok(Entry::default()) };
        match child.leads {
            Leads::Directory => dir(child.key),
            Leads::Mount(index) => table.slot(index).ok_or_else(|| os(libc::ENOENT))?.root_entry(ctx),
        }
    }

    /// Lists from behind `cookie`: the dots are 1 and 2, then children by key.
    fn list(
        &self,
        table: &Table,
        cookie: u64,
        mut add: impl FnMut(&str, u64, Option<&Slot>, u64) -> io::Result<bool>,
    ) -> io::Result<()> {
        for (at, name, number) in [(1, ".", self.number), (2, "..", self.parent)] {
            if cookie < at && !add(name, number, None, at)? {
                return Ok(());
            }
        }
        let from = self.children.partition_point(|child| child.key <= cookie);
        for child in self.children.iter().skip(from) {
            let (number, slot) = match child.leads {
                Leads::Directory => (child.key, None),
                Leads::Mount(index) => match table.slot(index) {
                    Some(slot) => (slot.root, Some(slot)),
                    None => continue,
                },
            };
            if !add(&child.name, number, slot, child.key)? {
                break;
            }
        }
        Ok(())
    }
}

/// Hands a request to the mount of a node; a directory between mounts answers `$pseudo`.
macro_rules! to_mount {
    ($self:ident, $node:expr, $pseudo:expr, |$slot:ident| $call:expr) => {{
        let table = $self.table.load();
        match owner(&table, $node)? {
            Owner::Mount($slot) => {
                let answer = $call;
                $slot.softened($slot.confirm().and(answer))
            }
            Owner::Pseudo(_) => Err(os($pseudo)),
        }
    }};
}

/// The same for calls that are counted.
macro_rules! counted {
    ($self:ident, $op:ident, $node:expr, |$slot:ident| $call:expr, |$dir:ident, $table:ident| $pseudo:expr) => {{
        let $table = $self.table.load();
        match owner(&$table, $node)? {
            Owner::Mount($slot) => $slot.answered(Op::$op, || $call),
            Owner::Pseudo($dir) => $pseudo,
        }
    }};
}

impl GuestFs for Namespace {
    #[inline]
    fn start_read(&self, ctx: &Context, read: &ReadAt, io: &mut dyn ReadIo) -> io::Result<ReadStart> {
        let table = self.table.load();
        match owner(&table, read.node)? {
            Owner::Mount(slot) => {
                let timing = slot.counters.begin_read();
                let answer = slot.fs.start_read(ctx, read, io);
                match &answer {
                    Ok(ReadStart::Done(n)) => slot.counters.read_in_place(*n, timing),
                    // Counted by the file system when it is answered, or when it comes again.
                    Ok(ReadStart::Parked | ReadStart::Blocks) => {}
                    Err(_) => slot.counters.read_failed(),
                }
                answer
            }
            Owner::Pseudo(_) => Err(os(libc::EISDIR)),
        }
    }

    fn list_plus(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        offset: u64,
        sink: &mut dyn PlusSink,
    ) -> io::Result<()> {
        counted!(
            self,
            Readdirplus,
            inode,
            |slot| slot.fs.list_plus(ctx, inode, handle, offset, sink),
            |dir, table| dir.list(&table, offset, |name, number, slot, cookie| {
                let (attr, generation) = match slot {
                    Some(slot) => {
                        let (stat, _) = slot.root_stat(ctx)?;
                        (crate::fuse::attr(&stat, slot.fs.attr_flags(number)), slot.place.generation)
                    }
                    None => (PseudoDir::attr(number), 0),
                };
                Ok(sink.add(&PlusEntry {
                    name: name.as_bytes(),
                    cookie,
                    kind: u32::from(libc::DT_DIR),
                    node: number,
                    attr,
                    generation: generation.into(),
                    valid_secs: TIMEOUT.as_secs(),
                }))
            })
        )
    }

    /// Guests take the answer for the whole connection, so only a mount that is the whole connection may say yes.
    fn stateless_open(&self) -> bool {
        self.table.load().root().is_some_and(|slot| slot.fs.stateless_open())
    }

    fn attr_flags(&self, inode: u64) -> u32 {
        let table = self.table.load();
        match owner(&table, inode) {
            Ok(Owner::Mount(slot)) => slot.fs.attr_flags(inode),
            _ => 0,
        }
    }

    /// A directory may be passed through later on: what that needs is agreed on from the start. Not the ACLs, unless the
    /// directory is all there is: the client would ask for those of each file of an image too.
    fn wanted_flags(&self) -> u64 {
        let table = self.table.load();
        let all = table.all().fold(0, |flags, slot| flags | slot.fs.wanted_flags());
        let wanted = table.root().map_or(all & !init_flag::POSIX_ACL, |root| root.fs.wanted_flags());
        let later = init_flag::HANDLE_KILLPRIV_V2
            | init_flag::SUBMOUNTS
            | init_flag::POSIX_LOCKS
            | init_flag::AUTO_INVAL_DATA
            | init_flag::DONT_MASK
            | init_flag::SETXATTR_EXT;
        if self.stateless_open() { wanted } else { wanted | later }
    }

    #[inline]
    fn read_only(&self, node: u64) -> bool {
        let table = self.table.load();
        match owner(&table, node) {
            Ok(Owner::Mount(slot)) => slot.fs.read_only(node),
            _ => true,
        }
    }

    fn change(&self, ctx: &Context, change: &Change<'_>) -> io::Result<Changed> {
        let (node, other) = change.nodes();
        if let Some(other) = other {
            self.same_mount(node, other)?;
        }
        to_mount!(self, node, libc::EROFS, |slot| slot.fs.change(ctx, change))
    }

    fn write_file(&self, ctx: &Context, write: &WriteAt, io: &mut dyn WriteIo) -> io::Result<u32> {
        to_mount!(self, write.node, libc::EROFS, |slot| slot.fs.write_file(ctx, write, io))
    }

    fn file_op(&self, ctx: &Context, node: u64, op: &FileOp) -> io::Result<()> {
        let table = self.table.load();
        match owner(&table, node)? {
            Owner::Mount(slot) => {
                let call = || slot.fs.file_op(ctx, node, op);
                if matches!(op, FileOp::Release { .. }) {
                    slot.answered(Op::Release, call)
                } else {
                    slot.softened(call())
                }
            }
            // Nothing is open there, and nothing is to be written.
            Owner::Pseudo(_) => Ok(()),
        }
    }

    fn flush_may_wait(&self, node: u64, handle: u64) -> bool {
        let table = self.table.load();
        matches!(owner(&table, node), Ok(Owner::Mount(slot)) if slot.fs.flush_may_wait(node, handle))
    }

    fn lock(&self, ctx: &Context, lock: &LockRequest, io: &mut dyn ReadIo) -> io::Result<LockReply> {
        to_mount!(self, lock.node, libc::EINVAL, |slot| slot.fs.lock(ctx, lock, io))
    }

    fn interrupt(&self, unique: u64) {
        for slot in self.table.load().all() {
            slot.fs.interrupt(unique);
        }
    }

    fn drop_all_locks(&self) {
        for slot in self.table.load().all() {
            slot.fs.drop_all_locks();
        }
    }

    fn statx(
        &self,
        ctx: &Context,
        node: u64,
        handle: Option<u64>,
        mask: u32,
    ) -> io::Result<(Statx, Duration)> {
        let table = self.table.load();
        match owner(&table, node)? {
            // ENOSYS is what the dispatcher makes the answer from GETATTR of.
            Owner::Mount(slot) => slot.fs.statx(ctx, node, handle, mask),
            Owner::Pseudo(_) => Err(os(libc::ENOSYS)),
        }
    }
}

impl FileSystem for Namespace {
    type Inode = u64;
    type Handle = u64;

    fn init(&self, _capable: FsOptions) -> io::Result<FsOptions> {
        Ok(FsOptions::empty())
    }

    fn destroy(&self) {
        for slot in self.table.load().all() {
            slot.fs.destroy();
        }
    }

    fn lookup(&self, ctx: &Context, parent: u64, name: &CStr) -> io::Result<Entry> {
        let mut found =
            counted!(self, Lookup, parent, |slot| slot.fs.lookup(ctx, parent, name), |dir, table| return dir
                .lookup(&table, ctx, name.to_bytes()));
        if let Ok(entry) = &mut found
            && parent == ROOT_NODE
            && entry.inode == 0
        {
            // The root is the one node that keeps its id over a remount: what it lacks today it may have tomorrow.
            entry.entry_timeout = entry.entry_timeout.min(TIMEOUT);
        }
        found
    }

    fn forget(&self, ctx: &Context, inode: u64, count: u64) {
        let table = self.table.load();
        if let Ok(Owner::Mount(slot)) = owner(&table, inode)
            && inode != slot.root
        {
            let timing = slot.counters.begin(Op::Forget);
            slot.fs.forget(ctx, inode, count);
            slot.counters.count(Op::Forget, false, timing);
        }
    }

    fn batch_forget(&self, ctx: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.forget(ctx, inode, count);
        }
    }

    fn getattr(
        &self,
        ctx: &Context,
        inode: u64,
        handle: Option<u64>,
    ) -> io::Result<(libc::stat64, Duration)> {
        let answer =
            counted!(self, Getattr, inode, |slot| slot.fs.getattr(ctx, inode, handle), |dir, _table| Ok((
                dir.stat(),
                TIMEOUT
            )));
        // See lookup: the root of today need not be the root of tomorrow.
        if inode == ROOT_NODE { answer.map(|(stat, timeout)| (stat, timeout.min(TIMEOUT))) } else { answer }
    }

    fn readlink(&self, ctx: &Context, inode: u64) -> io::Result<Vec<u8>> {
        counted!(self, Readlink, inode, |slot| slot.fs.readlink(ctx, inode), |_dir, _table| Err(os(
            libc::EINVAL
        )))
    }

    fn open(
        &self,
        ctx: &Context,
        inode: u64,
        flags: u32,
        fuse_flags: u32,
    ) -> io::Result<(Option<u64>, OpenOptions, Option<u32>)> {
        counted!(self, Open, inode, |slot| slot.fs.open(ctx, inode, flags, fuse_flags), |_dir, _table| Err(
            os(libc::EISDIR)
        ))
    }

    fn statfs(&self, ctx: &Context, inode: u64) -> io::Result<libc::statvfs64> {
        counted!(self, Statfs, inode, |slot| slot.fs.statfs(ctx, inode), |_dir, _table| {
            let mut st = empty_statfs(ctx)?;
            (st.f_bsize, st.f_frsize, st.f_namemax) = (4096, 4096, 255);
            Ok(st)
        })
    }

    fn getxattr(&self, ctx: &Context, inode: u64, name: &CStr, size: u32) -> io::Result<GetxattrReply> {
        counted!(self, Getxattr, inode, |slot| slot.fs.getxattr(ctx, inode, name, size), |_dir, _table| Err(
            os(libc::ENODATA)
        ))
    }

    fn listxattr(&self, ctx: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        counted!(self, Listxattr, inode, |slot| slot.fs.listxattr(ctx, inode, size), |_dir, _table| Ok(
            if size == 0 { ListxattrReply::Count(0) } else { ListxattrReply::Names(Vec::new()) }
        ))
    }

    fn opendir(&self, ctx: &Context, inode: u64, flags: u32) -> io::Result<(Option<u64>, OpenOptions)> {
        counted!(self, Opendir, inode, |slot| slot.fs.opendir(ctx, inode, flags), |_dir, _table| Ok((
            None,
            // Not to be kept: a mount may come at any moment.
            OpenOptions::empty()
        )))
    }

    fn readdir(
        &self,
        ctx: &Context,
        inode: u64,
        handle: u64,
        size: u32,
        offset: u64,
        add_entry: &mut dyn FnMut(DirEntry<'_>) -> io::Result<usize>,
    ) -> io::Result<()> {
        counted!(
            self,
            Readdir,
            inode,
            |slot| slot.fs.readdir(ctx, inode, handle, size, offset, add_entry),
            |dir, table| dir.list(&table, offset, |name, number, _slot, cookie| {
                let type_ = u32::from(libc::DT_DIR);
                Ok(add_entry(DirEntry { ino: number, offset: cookie, type_, name: name.as_bytes() })? > 0)
            })
        )
    }

    fn access(&self, ctx: &Context, inode: u64, mask: u32) -> io::Result<()> {
        counted!(self, Access, inode, |slot| slot.fs.access(ctx, inode, mask), |_dir, _table| {
            if mask.cast_signed() & libc::W_OK != 0 { Err(os(libc::EROFS)) } else { Ok(()) }
        })
    }

    fn lseek(&self, ctx: &Context, inode: u64, handle: u64, offset: u64, whence: u32) -> io::Result<u64> {
        to_mount!(self, inode, libc::EINVAL, |slot| slot.fs.lseek(ctx, inode, handle, offset, whence))
    }
}

impl Namespace {
    /// What moves from one mount to another is EXDEV, as between any two file systems.
    fn same_mount(&self, one: u64, other: u64) -> io::Result<()> {
        let table = self.table.load();
        match (owner(&table, one)?, owner(&table, other)?) {
            (Owner::Mount(one), Owner::Mount(other)) if one.place.index == other.place.index => Ok(()),
            (Owner::Mount(_), Owner::Mount(_)) => Err(os(libc::EXDEV)),
            _ => Err(os(libc::EROFS)),
        }
    }
}

const _: () = assert!(INODE_BITS == 56, "owner() takes the top byte");
