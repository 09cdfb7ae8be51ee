//! What systemd is told: ready, reloading, alive, stopping. Nothing where nobody asked.
//!
//! Owns: messages to `NOTIFY_SOCKET`, and what `WATCHDOG_USEC` means. Does not own: when they are sent.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Guests are served now.
pub(crate) fn ready() {
    send(std::env::var_os("NOTIFY_SOCKET"), "READY=1\nSTATUS=serving\n");
}

/// A reload has begun; it ends with [`ready`].
pub(crate) fn reloading() {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
    send(std::env::var_os("NOTIFY_SOCKET"), &format!("RELOADING=1\nMONOTONIC_USEC={micros}\n"));
}

/// The watchdog may be patient once more.
pub(crate) fn alive() {
    send(std::env::var_os("NOTIFY_SOCKET"), "WATCHDOG=1\n");
}

/// How often systemd wants to hear from this process at least.
pub(crate) fn watchdog_period() -> Option<Duration> {
    let var = |name| std::env::var(name).ok();
    period(var("WATCHDOG_USEC").as_deref(), var("WATCHDOG_PID").as_deref(), std::process::id())
}

fn period(micros: Option<&str>, pid: Option<&str>, own: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid.parse() != Ok(own)) {
        return None;
    }
    let micros = micros?.parse().ok().filter(|micros| *micros > 0)?;
    Some(Duration::from_micros(micros).max(Duration::from_millis(30)))
}

/// The end has begun.
pub(crate) fn stopping() {
    send(std::env::var_os("NOTIFY_SOCKET"), "STOPPING=1\n");
}

fn send(address: Option<OsString>, message: &str) {
    let Some(address) = address else { return };
    let bytes = address.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&address),
    };
    let sent = address.and_then(|address| {
        let socket = UnixDatagram::unbound()?;
        socket.send_to_addr(message.as_bytes(), &address)
    });
    if let Err(error) = sent {
        tracing::debug!("systemd cannot be told: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watchdog_is_for_this_process_or_not_at_all() {
        assert_eq!(period(Some("3000000"), None, 7), Some(Duration::from_secs(3)));
        assert_eq!(period(Some("3000000"), Some("7"), 7), Some(Duration::from_secs(3)));
        for (micros, pid) in
            [(None, None), (Some("0"), None), (Some("x"), None), (Some("3000000"), Some("8"))]
        {
            assert_eq!(period(micros, pid, 7), None);
        }
    }

    #[test]
    fn systemd_hears() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send(Some(path.into_os_string()), "READY=1\n");
        let mut bytes = [0; 64];
        let n = socket.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..n], b"READY=1\n");
        send(None, "READY=1\n");
    }
}
