//! `treewalk DIR [READ_SIZE]`: prints what the kernel shows of a directory, one JSON line per path.
//!
//! The same program runs on the host and, linked statically, inside a guest, so that both outputs can be compared.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use guest_tests::tree::{entry, host};

fn main() -> Result<()> {
    let mut args = std::env::args_os().skip(1);
    let dir = PathBuf::from(args.next().context("usage: treewalk DIR [READ_SIZE]")?);
    let size = match args.next() {
        Some(text) => text.to_string_lossy().parse().context("READ_SIZE is a number of bytes")?,
        None => 1 << 20,
    };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (path, e) in host::describe(&dir, size, &["security.selinux"])? {
        writeln!(out, "{}", entry::to_json_line(&path, &e)?)?;
    }
    Ok(out.flush()?)
}
