//! Loads: what is asked, how many at a time, and what it cost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::frontend::client::ROOT;
use crate::frontend::fuse::{ATTR_OUT, ENTRY_OUT, getattr_in, op, read_in};
use crate::frontend::session::Completion;
use crate::frontend::{Client, FrontendError};
use crate::support::process::usage;
use crate::support::random::Random;

/// What is asked again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// GETATTR of files in turn.
    Getattr,
    /// LOOKUP of names that exist, in turn.
    Lookup,
    /// READDIRPLUS through a large directory, 32 KiB a time; counted in entries.
    Readdirplus,
    /// READ of that many bytes at aligned random places of one file whose data is cached.
    Read(u32),
}

impl Load {
    /// All loads in the order of the table.
    pub const ALL: [Self; 6] = [
        Self::Getattr,
        Self::Lookup,
        Self::Readdirplus,
        Self::Read(4 << 10),
        Self::Read(128 << 10),
        Self::Read(1 << 20),
    ];

    /// Its name in the table.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Getattr => "GETATTR".to_owned(),
            Self::Lookup => "LOOKUP".to_owned(),
            Self::Readdirplus => "READDIRPLUS, entries".to_owned(),
            Self::Read(size) => format!("READ {}K", size >> 10),
        }
    }
}

/// What one round brought.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Operations, or entries of READDIRPLUS.
    pub operations: u64,
    /// Bytes of file data.
    pub bytes: u64,
    /// Time on the clock.
    pub elapsed: Duration,
    /// Processor time of the daemon.
    pub cpu: Duration,
}

/// A mounted guest on one daemon, with what the loads need to know of its tree.
#[derive(Debug)]
pub struct Bench {
    client: Client,
    pid: u32,
    dir: u64,
    dir_handle: u64,
    names: Vec<Vec<u8>>,
    nodes: Vec<u64>,
    file: u64,
    file_handle: u64,
    file_size: u64,
    random: Random,
}

const DIR_SIZE: u32 = 32 << 10;

impl Bench {
    /// Looks up the directory `dir` and the file `file` on a mounted guest of daemon `pid`, and reads both once.
    ///
    /// # Errors
    /// When they are not there or cannot be read.
    pub fn new(mut client: Client, pid: u32, dir: &str, file: &str) -> Result<Self> {
        let dir = client.resolve(dir.as_bytes()).context("the directory")?.node;
        let names: Vec<Vec<u8>> = client
            .list(dir, DIR_SIZE, true)?
            .into_iter()
            .map(|e| e.name)
            .filter(|n| n != b"." && n != b"..")
            .collect();
        ensure!(names.len() >= 64, "only {} names", names.len());
        let mut nodes = Vec::new();
        for name in names.iter().step_by(names.len() / 64) {
            nodes.push(client.lookup(dir, name)?.node);
        }
        let entry = client.resolve(file.as_bytes()).context("the file")?;
        let file_handle = client.open(entry.node, 0)?;
        let dir_handle = client.opendir(dir)?;
        let mut offset = 0;
        while offset < entry.attr.size {
            let got = client.read(entry.node, file_handle, offset, 1 << 20)?.len() as u64;
            ensure!(got > 0, "the file ends at {offset}");
            offset += got;
        }
        Ok(Self {
            client,
            pid,
            dir,
            dir_handle,
            names,
            nodes,
            file: entry.node,
            file_handle,
            file_size: entry.attr.size,
            random: Random::new(7),
        })
    }

    fn submit(&mut self, load: Load, turn: usize, cookie: u64) -> Result<(), FrontendError> {
        let ring = self.client.ring();
        let session = &mut self.client.session;
        match load {
            Load::Getattr => {
                let node = self.nodes[turn % self.nodes.len()];
                session.submit(ring, op::GETATTR, node, &[0; 16], Some(ATTR_OUT))
            }
            Load::Lookup => {
                let name = &mut self.names[turn % 1000];
                name.push(0);
                let sent = session.submit(ring, op::LOOKUP, self.dir, name, Some(ENTRY_OUT));
                name.pop();
                sent
            }
            Load::Readdirplus => {
                let body = read_in(self.dir_handle, cookie, DIR_SIZE);
                session.submit(ring, op::READDIRPLUS, self.dir, &body, Some(DIR_SIZE))
            }
            Load::Read(size) => {
                let places = (self.file_size / u64::from(size)).max(1);
                let offset = self.random.below(places) * u64::from(size);
                let body = read_in(self.file_handle, offset, size);
                session.submit(ring, op::READ, self.file, &body, Some(size))
            }
        }
        .map(drop)
    }

    /// Checks a reply without reading more than is needed; answers entries and where READDIRPLUS goes on.
    fn check(&mut self, load: Load, done: Completion) -> Result<(u64, u64)> {
        ensure!(done.errno == 0, "{}: errno {}", load.name(), done.errno);
        let mut out = (1, 0);
        match load {
            Load::Getattr => ensure!(done.len == ATTR_OUT, "{} bytes", done.len),
            Load::Lookup => ensure!(done.len == ENTRY_OUT, "{} bytes", done.len),
            Load::Read(size) => ensure!(done.len == size, "{} bytes of {size}", done.len),
            Load::Readdirplus => {
                let body = self.client.session.body(&done)?;
                let mut at = 0;
                out.0 = 0;
                while let Some(head) = body.get(at..at + 152) {
                    let number = |from: usize| -> u64 {
                        head[from..from + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b))
                    };
                    out = (out.0 + 1, number(136));
                    let name = usize::try_from(number(144) & 0xffff_ffff)?;
                    at += 152 + name.next_multiple_of(8);
                }
            }
        }
        self.client.session.release(done);
        Ok(out)
    }

    /// Keeps `depth` requests in flight for `time`.
    ///
    /// # Errors
    /// When one is not answered as it should be.
    pub fn round(&mut self, load: Load, depth: usize, time: Duration) -> Result<Sample> {
        let before = usage(self.pid)?.cpu;
        let start = Instant::now();
        let (mut operations, mut bytes, mut turn) = (0, 0, 0);
        for _ in 0..depth {
            self.submit(load, turn, 0)?;
            turn += 1;
        }
        self.client.session.flush()?;
        let mut in_flight = depth;
        let mut stop = false;
        while in_flight > 0 {
            let mut next = Some(self.client.session.next_done()?);
            while let Some(done) = next {
                in_flight -= 1;
                bytes += if matches!(load, Load::Read(_)) { u64::from(done.len) } else { 0 };
                let (count, cookie) = self.check(load, done)?;
                operations += count;
                if !stop {
                    self.submit(load, turn, cookie)?;
                    turn += 1;
                    in_flight += 1;
                }
                next = self.client.session.try_next_done()?;
            }
            // One kick for all that came back together.
            self.client.session.flush()?;
            stop = start.elapsed() >= time;
        }
        let elapsed = start.elapsed();
        let cpu = usage(self.pid)?.cpu.saturating_sub(before);
        Ok(Sample { operations, bytes, elapsed, cpu })
    }

    /// An honest question that shows whether the daemon still lives.
    ///
    /// # Errors
    /// When it does not.
    pub fn alive(&mut self) -> Result<()> {
        self.client.call(op::GETATTR, ROOT, &getattr_in(), ATTR_OUT)?;
        Ok(())
    }
}
