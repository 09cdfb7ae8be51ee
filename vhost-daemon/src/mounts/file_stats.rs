//! Which files of an image are read, how much, and when first: only where the configuration asks for it.
//!
//! Owns: the table, behind one lock, with room for so many files. Does not own: how it is shown.

use super::counters::{CLASSES, SIZE_BOUNDS};
use std::collections::{BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

/// Files that are kept; what is read after that is not noted.
const FILES_MAX: usize = 1 << 18;

/// What was read of the files of one image.
#[derive(Debug, Default)]
pub struct FileStats(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    files: HashMap<u64, FileStat>,
    latest: BTreeSet<u64>,
}

/// What was read of one file.
#[derive(Clone, Debug)]
pub struct FileStat {
    /// READ calls.
    pub reads: u64,
    /// Those that failed.
    pub errors: u64,
    /// Bytes.
    pub bytes: u64,
    /// Reads by size class.
    pub sizes: [u64; CLASSES],
    /// When it was first read.
    pub first: SystemTime,
}

impl FileStats {
    /// Notes a READ of `bytes` of file `inode`; `None` if it failed.
    pub fn note(&self, inode: u64, bytes: Option<u64>) {
        let mut table = self.lock();
        if table.files.len() >= FILES_MAX && !table.files.contains_key(&inode) {
            return;
        }
        table.latest.insert(inode);
        let file = table.files.entry(inode).or_insert_with(|| FileStat {
            reads: 0,
            errors: 0,
            bytes: 0,
            sizes: [0; CLASSES],
            first: SystemTime::now(),
        });
        file.reads += 1;
        match bytes {
            None => file.errors += 1,
            Some(bytes) => {
                file.bytes = file.bytes.saturating_add(bytes);
                let class = SIZE_BOUNDS.iter().position(|bound| bytes < *bound).unwrap_or(CLASSES - 1);
                if let Some(count) = file.sizes.get_mut(class) {
                    *count += 1;
                }
            }
        }
    }

    /// All files that were read.
    #[must_use]
    pub fn files(&self) -> Vec<(u64, FileStat)> {
        self.lock().files.iter().map(|(inode, file)| (*inode, file.clone())).collect()
    }

    /// The files that were read since the last call, as runs of inode numbers.
    #[must_use]
    pub fn take_latest(&self) -> Vec<(u64, u64)> {
        let latest = std::mem::take(&mut self.lock().latest);
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for inode in latest {
            match runs.last_mut() {
                Some((_, end)) if end.checked_add(1) == Some(inode) => *end = inode,
                _ => runs.push((inode, inode)),
            }
        }
        runs
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_reads_are_runs_and_are_taken() {
        let stats = FileStats::default();
        for inode in [7, 5, 6, 9, 9] {
            stats.note(inode, Some(10));
        }
        stats.note(5, None);
        assert_eq!(stats.take_latest(), [(5, 7), (9, 9)]);
        assert_eq!(stats.take_latest(), []);
        let nine = stats.files().into_iter().find(|(inode, _)| *inode == 9).unwrap().1;
        assert_eq!((nine.reads, nine.bytes, nine.sizes[0]), (2, 20, 2));
    }
}
