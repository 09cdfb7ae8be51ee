//! What systemd is told: ready, stopping. Nothing where nobody asked.
//!
//! Owns: the message to `NOTIFY_SOCKET`. Does not own: when it is sent.

use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Guests are served now.
pub(crate) fn ready() {
    send(std::env::var_os("NOTIFY_SOCKET"), "READY=1\nSTATUS=serving\n");
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
