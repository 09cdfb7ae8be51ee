//! Is the same process still a good daemon: does it serve, is it idle when it should be, has it grown?

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::frontend::walk::{WalkOptions, walk};
use crate::frontend::{Client, Options};
use crate::support::process::{Usage, usage};
use crate::tree::{Ignore, Tree, compare};

/// CPU time that an idle daemon may use in 300 ms: a timer or a log line, not a loop.
const IDLE_CPU: Duration = Duration::from_millis(15);
/// Anonymous memory that may come on top of the first sample: allocators keep what threads have freed.
const GROWTH_KIB: u64 = 4 << 10;
/// Descriptors that may come on top of the first sample: a connection being closed.
const MORE_DESCRIPTORS: usize = 1;

/// What a daemon was like before it was attacked.
#[derive(Debug)]
pub struct Health {
    pid: u32,
    before: Usage,
    tree: Tree,
}

impl Health {
    /// Has an honest guest read all, and takes the first sample behind it.
    ///
    /// # Errors
    /// When the daemon does not serve.
    pub fn first(pid: u32, socket: &Path, options: &Options) -> Result<(Self, Vec<u64>)> {
        let mut client = Client::connect(socket, options)?;
        let tree = walk(&mut client, WalkOptions::default())?;
        let mut nodes = vec![1];
        for path in tree.keys().filter(|p| p.len() > 1) {
            nodes.push(client.resolve(path)?.node);
        }
        client.unmount()?;
        std::thread::sleep(Duration::from_millis(100));
        Ok((Self { pid, before: usage(pid)?, tree }, nodes))
    }

    /// Checks all of it again.
    ///
    /// # Errors
    /// When something has changed.
    pub fn check(&self, socket: &Path, options: &Options) -> Result<Usage> {
        let mut client = Client::connect(socket, options).context("an honest guest after the attacks")?;
        let tree = walk(&mut client, WalkOptions::default()).context("an honest walk after the attacks")?;
        let differences = compare(&self.tree, &tree, Ignore::default());
        ensure!(differences.is_empty(), "the tree has changed:\n{}", differences.join("\n"));
        self.idle("with a guest that asks nothing")?;
        client.unmount()?;
        std::thread::sleep(Duration::from_millis(50));
        self.idle("without a guest")?;
        let now = usage(self.pid)?;
        if now.anon_kib > self.before.anon_kib + GROWTH_KIB {
            bail!("anonymous memory grew from {} to {} KiB", self.before.anon_kib, now.anon_kib);
        }
        if now.descriptors > self.before.descriptors + MORE_DESCRIPTORS {
            bail!("open descriptors grew from {} to {}", self.before.descriptors, now.descriptors);
        }
        if now.threads > self.before.threads + 1 {
            bail!("threads grew from {} to {}", self.before.threads, now.threads);
        }
        Ok(now)
    }

    fn idle(&self, when: &str) -> Result<()> {
        let mut least = Duration::MAX;
        // A second look forgives work that was just being finished.
        for _ in 0..3 {
            let from = usage(self.pid)?.cpu;
            std::thread::sleep(Duration::from_millis(300));
            least = least.min(usage(self.pid)?.cpu.saturating_sub(from));
            if least <= IDLE_CPU {
                return Ok(());
            }
        }
        bail!("{least:?} of CPU time in 300 ms {when}")
    }
}
