//! A guest and a front-end that misbehave: seeded, bounded, reproducible.
//!
//! [`chains`] breaks descriptors, [`rings`] the available ring, [`messages`] the FUSE requests inside, [`control`] the
//! vhost-user conversation. [`health`] then asks whether the same daemon process still serves an honest guest, is
//! idle when nobody asks, and has not grown.
//!
//! What is promised: a request whose head could be read is given back, whatever is wrong with it; a ring whose
//! available index or heads are nonsense may stop, alone; the process, its other rings and its next front-end go on.

use std::fmt;
use std::path::Path;

use crate::frontend::device::{Device, Options};
use crate::frontend::{Client, FrontendError};
use crate::support::random::Random;

pub mod chains;
pub mod control;
pub mod health;
pub mod messages;
pub mod raw;
pub mod rings;

/// A broken promise, with all that is needed to see it again.
#[derive(Debug)]
pub struct Failure {
    /// Kind and parameters of the attack.
    pub attack: String,
    /// Seed of the run.
    pub seed: u64,
    /// What happened.
    pub error: FrontendError,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (seed {}): {}", self.attack, self.seed, self.error)
    }
}

impl std::error::Error for Failure {}

/// What is attacked.
#[derive(Debug, Clone)]
pub struct Target<'a> {
    /// The daemon's socket.
    pub socket: &'a Path,
    /// Kind of guest to be; at least two request queues, so that one can be broken beside the other.
    pub options: Options,
    /// Node ids that exist, for requests that get past the first check.
    pub nodes: Vec<u64>,
}

/// Runs `count` attacks of each kind. Answers how many were made.
///
/// # Errors
/// The first broken promise.
pub fn run(target: &Target<'_>, seed: u64, count: usize) -> Result<usize, Failure> {
    type Part = fn(&Target<'_>, &mut Random, usize) -> Result<usize, (String, FrontendError)>;
    let parts: [Part; 4] = [chains::run, rings::run, messages::run, control::run];
    let mut made = 0;
    for part in parts {
        let mut random = Random::new(seed);
        made +=
            part(target, &mut random, count).map_err(|(attack, error)| Failure { attack, seed, error })?;
    }
    Ok(made)
}

/// A mounted guest whose rings may be written raw.
///
/// # Errors
/// When the daemon does not serve an honest guest.
pub fn mounted(target: &Target<'_>) -> Result<Device, FrontendError> {
    Ok(Client::connect(target.socket, &target.options)?.session.device)
}
