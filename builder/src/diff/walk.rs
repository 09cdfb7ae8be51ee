//! Both trees side by side, in name order.
//!
//! Owns: pairing entries, comparing attributes, hardlink groups, counting. Does not own: how a side is read.

use super::account::{Account, place};
use super::change::{Change, ChangeKind, Difference};
use super::content::{self, Bytes, Cut, Piece, Pieces, Verdict};
use super::side::{Entry, Listing, Node, Pair, Side};
use super::{DiffOptions, DiffSummary, blobs_of};
use crate::blobs::Blobs;
use crate::error::BuildError;
use crate::study::ChunkFacts;
use crate::tree::S_IFMT;
use rafs::codec::Compressor;
use rafs::image::Image;
use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::HashMap;

/// First path of each group of hardlinks.
type Leaders = HashMap<(u64, u64), Vec<u8>>;

pub(super) struct Walk<'a, 'w> {
    pub(super) sides: [Side<'a>; 2],
    pub(super) facts: [Option<&'w ChunkFacts<'a>>; 2],
    pub(super) images: [Option<&'a Image>; 2],
    pub(super) numbers: &'w [Vec<u32>; 2],
    pub(super) options: &'w DiffOptions,
    pub(super) blobs: &'w [OnceCell<Blobs<'a>>; 2],
    pub(super) cut: Cut,
    pub(super) compressor: Compressor,
    pub(super) account: Account,
    pub(super) summary: DiffSummary,
    pub(super) leaders: [Leaders; 2],
    pub(super) buffers: [Vec<u8>; 2],
    pub(super) found: &'w mut dyn FnMut(&Change) -> Result<(), BuildError>,
}

/// A directory that is being listed on one side or both.
struct Frame<'a> {
    listings: [Option<Listing<'a>>; 2],
    next: [Option<Entry>; 2],
    path_len: usize,
}

impl<'a> Walk<'a, '_> {
    pub(super) fn run(&mut self) -> Result<(), BuildError> {
        let roots = [self.sides[0].root()?, self.sides[1].root()?];
        let mut path = Vec::new();
        self.both(&path, &roots[0], &roots[1])?;
        let mut frames = vec![self.enter(&path, [Some(&roots[0]), Some(&roots[1])])?];
        while let Some(frame) = frames.last_mut() {
            path.truncate(frame.path_len);
            for n in 0..2 {
                if frame.next[n].is_none()
                    && let Some(listing) = &mut frame.listings[n]
                {
                    frame.next[n] = self.sides[n].next(&path, listing)?;
                }
            }
            let order = match &frame.next {
                [None, None] => {
                    frames.pop();
                    continue;
                }
                [Some(_), None] => Ordering::Less,
                [None, Some(_)] => Ordering::Greater,
                [Some(a), Some(b)] => a.name.cmp(&b.name),
            };
            let a = if order.is_le() { frame.next[0].take() } else { None };
            let b = if order.is_ge() { frame.next[1].take() } else { None };
            path.push(b'/');
            path.extend_from_slice(a.as_ref().or(b.as_ref()).map_or(&[], |entry| &entry.name));
            match (&a, &b) {
                (Some(a), Some(b)) => self.both(&path, &a.node, &b.node)?,
                (Some(a), None) => self.one(0, &path, &a.node)?,
                (None, Some(b)) => self.one(1, &path, &b.node)?,
                (None, None) => {}
            }
            let directory = |entry: &Option<Entry>| entry.as_ref().map(|e| e.node).filter(Node::is_dir);
            let nodes = [directory(&a), directory(&b)];
            if nodes.iter().any(Option::is_some) {
                frames.push(self.enter(&path, nodes.each_ref().map(Option::as_ref))?);
            }
        }
        Ok(())
    }

    fn enter(&mut self, path: &[u8], nodes: [Option<&Node>; 2]) -> Result<Frame<'a>, BuildError> {
        let mut listings = [None, None];
        for (n, node) in nodes.into_iter().enumerate() {
            if let Some(node) = node {
                listings[n] = Some(self.sides[n].list(path, node)?);
            }
        }
        Ok(Frame { listings, next: [None, None], path_len: path.len() })
    }

    /// A path that only side `n` has.
    fn one(&mut self, n: usize, path: &[u8], node: &Node) -> Result<(), BuildError> {
        self.leader(n, path, node);
        self.summary.file_bytes[n] = self.summary.file_bytes[n].saturating_add(node.size());
        if node.is_file() {
            self.count(n, path, node)?;
        }
        let what = if n == 0 { ChangeKind::Removed } else { ChangeKind::Added };
        *(if n == 0 { &mut self.summary.removed } else { &mut self.summary.added }) += 1;
        (self.found)(&Change { path: path.to_vec(), kind: node.kind(), size: node.size(), what })
    }

    /// A path that both have. The root's is empty.
    fn both(&mut self, path: &[u8], a: &Node, b: &Node) -> Result<(), BuildError> {
        let leaders = [self.leader(0, path, a), self.leader(1, path, b)];
        for (n, node) in [a, b].into_iter().enumerate() {
            self.summary.file_bytes[n] = self.summary.file_bytes[n].saturating_add(node.size());
        }
        let mut differences = self.attributes(path, a, b)?;
        if a.kind() == b.kind() && leaders[0] != leaders[1] {
            let [from, to] = leaders;
            differences.push(Difference::Hardlink(from, to));
        }
        differences.retain(|difference| !self.options.ignore.iter().any(|name| name == difference.name()));
        if differences.is_empty() {
            self.summary.unchanged += 1;
            return Ok(());
        }
        self.summary.changed += 1;
        let mut names: Vec<_> = differences.iter().map(Difference::name).collect();
        names.dedup();
        for name in names {
            *self.summary.by_attribute.entry(name).or_default() += 1;
        }
        let path = if path.is_empty() { b"/".to_vec() } else { path.to_vec() };
        (self.found)(&Change { path, kind: b.kind(), size: b.size(), what: ChangeKind::Changed(differences) })
    }

    /// Path that leads the group of hardlinks which `path` belongs to; `None` when it leads itself.
    fn leader(&mut self, n: usize, path: &[u8], node: &Node) -> Option<Vec<u8>> {
        let leader = self.leaders[n].entry(node.group()?).or_insert_with(|| path.to_vec());
        (leader != path).then(|| leader.clone())
    }

    fn attributes(&mut self, path: &[u8], a: &Node, b: &Node) -> Result<Vec<Difference>, BuildError> {
        let mut differences = Vec::new();
        let mut note = |different: bool, make: &dyn Fn() -> Difference| {
            if different {
                differences.push(make());
            }
        };
        let same_kind = a.kind() == b.kind();
        note(!same_kind, &|| Difference::Type(a.kind(), b.kind()));
        let (mode_a, mode_b) = (a.mode() & !S_IFMT, b.mode() & !S_IFMT);
        note(mode_a != mode_b, &|| Difference::Mode(mode_a, mode_b));
        let owners = self.sides.iter().all(Side::has_owners);
        note(owners && a.owner() != b.owner(), &|| Difference::Owner(a.owner(), b.owner()));
        // An image made from a directory does not keep the root's time.
        let root_of_directory = path.is_empty() && self.images.iter().any(Option::is_none);
        note(a.mtime() != b.mtime() && !root_of_directory, &|| Difference::Mtime(a.mtime(), b.mtime()));
        let device = matches!(a.kind(), "character device" | "block device");
        note(same_kind && device && a.rdev() != b.rdev(), &|| Difference::Rdev(a.rdev(), b.rdev()));
        note(same_kind && a.size() != b.size(), &|| Difference::Size(a.size(), b.size()));
        if same_kind && a.kind() == "symlink" {
            let (from, to) = (self.sides[0].target(path, a)?, self.sides[1].target(path, b)?);
            if from != to {
                differences.push(Difference::Target(from, to));
            }
        }
        if same_kind && a.is_file() {
            if !self.same_content(path, a, b)? {
                differences.push(Difference::Content);
            }
        } else {
            for (n, node) in [a, b].into_iter().enumerate() {
                if node.is_file() {
                    self.count(n, path, node)?;
                }
            }
        }
        let (from, to) = (self.sides[0].xattrs(path, a)?, self.sides[1].xattrs(path, b)?);
        xattrs(&from, &to, &mut differences);
        Ok(differences)
    }

    /// Takes the pieces of a directory's file into account; those of images are counted elsewhere.
    fn count(&mut self, n: usize, path: &[u8], node: &Node) -> Result<(), BuildError> {
        if self.images[n].is_some() {
            return Ok(());
        }
        let mut pieces = Pieces::new(&mut self.sides[n], None, self.cut, path, node, &mut self.buffers[n])?;
        while let Some(piece) = pieces.next()? {
            count(&mut self.account, n, &piece, &pieces, self.compressor)?;
        }
        Ok(())
    }

    fn same_content(&mut self, path: &[u8], a: &Node, b: &Node) -> Result<bool, BuildError> {
        let [side_a, side_b] = &mut self.sides;
        let [buffer_a, buffer_b] = &mut self.buffers;
        let mut verdict = if a.size() == b.size() { Verdict::Same } else { Verdict::Different };
        {
            let mut left = Pieces::new(side_a, self.facts[0], self.cut, path, a, buffer_a)?;
            let mut right = Pieces::new(side_b, self.facts[1], self.cut, path, b, buffer_b)?;
            // A directory's file is read to its end in any case: its pieces have to be counted.
            let (count_a, count_b) = (self.images[0].is_none(), self.images[1].is_none());
            loop {
                let open = verdict == Verdict::Same;
                let x = if open || count_a { left.next()? } else { None };
                let y = if open || count_b { right.next()? } else { None };
                if let (true, Some(piece)) = (count_a, &x) {
                    count(&mut self.account, 0, piece, &left, self.compressor)?;
                }
                if let (true, Some(piece)) = (count_b, &y) {
                    count(&mut self.account, 1, piece, &right, self.compressor)?;
                }
                if open {
                    let places = [&x, &y].map(|piece| piece.as_ref().and_then(|piece| piece.chunk));
                    let same_place = matches!(places, [Some(x), Some(y)]
                        if place(&self.numbers[0], &x) == place(&self.numbers[1], &y));
                    verdict = content::compare(x.as_ref(), y.as_ref(), same_place);
                }
                if x.is_none() && y.is_none() {
                    break;
                }
            }
        }
        if verdict != Verdict::Unknown {
            return Ok(verdict == Verdict::Same);
        }
        let place = |n: usize| self.options.blobs[n].as_ref();
        let blobs_a = blobs_of(&self.blobs[0], self.images[0], &self.options.sides[0], place(0))?;
        let blobs_b = blobs_of(&self.blobs[1], self.images[1], &self.options.sides[1], place(1))?;
        let left = Bytes::new(side_a, blobs_a, path, a, buffer_a)?;
        let right = Bytes::new(side_b, blobs_b, path, b, buffer_b)?;
        content::same_bytes(left, right)
    }
}

fn count(
    account: &mut Account,
    n: usize,
    piece: &Piece,
    pieces: &Pieces<'_, '_>,
    compressor: Compressor,
) -> Result<(), BuildError> {
    if n == 0 {
        account.have_piece(piece);
        return Ok(());
    }
    account.want_piece(piece, pieces.bytes().unwrap_or_default(), compressor)
}

/// Both lists are sorted by name.
fn xattrs(a: &[Pair], b: &[Pair], differences: &mut Vec<Difference>) {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(x), Some(y)) => x.0.cmp(&y.0),
        };
        let x = if order.is_le() { a.next() } else { None };
        let y = if order.is_ge() { b.next() } else { None };
        if x.map(|x| &x.1) != y.map(|y| &y.1)
            && let Some((name, _)) = x.or(y)
        {
            differences.push(Difference::Xattr(name.clone(), x.is_some(), y.is_some()));
        }
    }
}
