//! Waiting for what comes by itself, as long as it may take on a busy machine.
//!
//! Owns: the patience. Does not own: what is waited for.

use std::time::{Duration, Instant};

/// Nothing that comes at all takes this long, however busy the machine is.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Looks every five milliseconds whether `done`.
///
/// # Panics
///
/// `what` has not come after [`PATIENCE`].
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < end, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
