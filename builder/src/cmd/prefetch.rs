//! `--prefetch-policy` and the patterns on standard input.

use crate::options::PrefetchPolicy;
use crate::prefetch::Patterns;
use anyhow::Context as _;

/// Values of the flag.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(super) enum PolicyArg {
    Fs,
    Blob,
    None,
}

/// The policy, and its patterns: standard input is read to its end unless the policy is none, and else left
/// alone. This comes before anything else, since whoever feeds the list may wait for it to be taken.
pub(super) fn read(policy: PolicyArg) -> anyhow::Result<(PrefetchPolicy, Patterns)> {
    let policy = match policy {
        PolicyArg::None => return Ok((PrefetchPolicy::None, Patterns::default())),
        PolicyArg::Fs => PrefetchPolicy::Fs,
        PolicyArg::Blob => PrefetchPolicy::Blob,
    };
    let patterns = Patterns::read(&mut std::io::stdin().lock());
    Ok((policy, patterns.context("cannot read prefetch patterns from standard input")?))
}
