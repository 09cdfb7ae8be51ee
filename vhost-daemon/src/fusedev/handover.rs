//! The supervisor's socket: state and device go there, and come back from there.
//!
//! Owns: the exchange (nydusd-cli-api.md section 6): this side connects; one descriptor comes with the first bytes; the
//! end of the stream is the end of the state. Does not own: what the bytes say.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, recvmsg, sendmsg, socket_with,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a supervisor may keep silent.
const SILENCE: Duration = Duration::from_secs(10);
/// How long a transfer may take in all: clients of the API give up after 30 s.
const TRANSFER: Duration = Duration::from_secs(25);
/// Largest state that is taken, bytes.
const STATE_MAX: usize = 64 << 20;
/// Descriptors that may come along; all but the first are closed.
const DESCRIPTORS_MAX: usize = 8;

/// Sends `state` and `device`.
///
/// # Errors
///
/// That of connect(2), sendmsg(2), write(2); `TimedOut`.
pub(super) fn send(supervisor: &Path, state: &[u8], device: BorrowedFd<'_>) -> io::Result<()> {
    let mut transfer = Transfer::begin(supervisor)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let devices = [device];
    control.push(SendAncillaryMessage::ScmRights(&devices));
    let sent = sendmsg(&transfer.stream, &[IoSlice::new(state)], &mut control, SendFlags::NOSIGNAL)?;
    let mut rest = state.get(sent..).unwrap_or_default();
    while !rest.is_empty() {
        transfer.wait(PollFlags::OUT, "took nothing of the state")?;
        match transfer.stream.write(rest) {
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(e) if is_passing(&e) => {}
            Err(e) => return Err(e),
        }
    }
    transfer.stream.shutdown(std::net::Shutdown::Write)
}

/// Receives a state and a device.
///
/// # Errors
///
/// That of connect(2), recvmsg(2), read(2); `TimedOut`; `InvalidData` when no descriptor came or the state has no end.
pub(super) fn receive(supervisor: &Path) -> io::Result<(Vec<u8>, OwnedFd)> {
    let mut transfer = Transfer::begin(supervisor)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut piece = vec![0; 64 << 10];
    let mut device = None;
    let mut state = Vec::new();
    loop {
        transfer.wait(PollFlags::IN, "sent nothing")?;
        // The descriptor comes with the first bytes, but a supervisor may send it alone before them.
        let got = if device.is_none() {
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut piece)];
            let got = recvmsg(&transfer.stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC);
            for ancillary in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
                    for descriptor in descriptors {
                        device.get_or_insert(descriptor);
                    }
                }
            }
            got.map(|message| message.bytes).map_err(io::Error::from)
        } else {
            transfer.stream.read(&mut piece)
        };
        match got {
            Ok(0) => break,
            Ok(n) => state.extend_from_slice(piece.get(..n).unwrap_or_default()),
            Err(e) if is_passing(&e) => {}
            Err(e) => return Err(e),
        }
        if state.len() > STATE_MAX {
            return Err(invalid("the state has no end"));
        }
    }
    let none = "the supervisor sent no descriptor: it has to give back that of the mount together with the state, as `sendfd` \
                gave it both";
    Ok((state, device.ok_or_else(|| invalid(none))?))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

/// A connection on which nobody waits longer than a transfer may take.
struct Transfer {
    stream: UnixStream,
    end: Instant,
}

impl Transfer {
    fn begin(supervisor: &Path) -> io::Result<Self> {
        let end = Instant::now() + TRANSFER;
        let address = SocketAddrUnix::new(supervisor)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        // As long as the supervisor's backlog is full, connect(2) waits for so long.
        set_socket_timeout(&socket, Timeout::Send, Some(SILENCE))?;
        rustix::net::connect(&socket, &address).map_err(|error| match error {
            Errno::AGAIN => silent("took no connection"),
            other => other.into(),
        })?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self { stream, end })
    }

    fn wait(&self, events: PollFlags, silence: &str) -> io::Result<()> {
        let left = self.end.saturating_duration_since(Instant::now());
        let limit = Timespec::try_from(left.min(SILENCE)).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.stream, events)], Some(&limit)) {
            Ok(0) if left > SILENCE => Err(silent(silence)),
            Ok(0) => {
                let text = format!("the transfer was not over after {} s", TRANSFER.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn silent(what: &str) -> io::Error {
    let text = format!("the supervisor {what} for {} s", SILENCE.as_secs());
    io::Error::new(io::ErrorKind::TimedOut, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// A supervisor that keeps what one daemon sends and gives it to the next, in pieces of `piece` bytes.
    fn supervise(listener: &UnixListener, piece: usize) {
        let (from, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = vec![0; 100];
        let n = recvmsg(&from, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::empty()).unwrap();
        bytes.truncate(n.bytes);
        let fd = control
            .drain()
            .find_map(|m| match m {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .unwrap();
        (&from).read_to_end(&mut bytes).unwrap();
        let (to, _) = listener.accept().unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let (head, rest) = bytes.split_at(piece);
        sendmsg(&to, &[IoSlice::new(head)], &mut control, SendFlags::empty()).unwrap();
        for part in rest.chunks(piece) {
            (&to).write_all(part).unwrap();
        }
    }

    #[test]
    fn a_state_and_a_descriptor_travel_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor");
        let listener = UnixListener::bind(&path).unwrap();
        let supervisor = thread::spawn(move || supervise(&listener, 7));
        let state: Vec<u8> = (0..200_000u32).map(|i| u8::try_from(i % 253).unwrap()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"this one").unwrap();
        send(&path, &state, file.as_fd()).unwrap();
        let (back, device) = receive(&path).unwrap();
        assert_eq!(back, state);
        let mut same = std::fs::File::from(device);
        let mut text = String::new();
        same.rewind().unwrap();
        same.read_to_string(&mut text).unwrap();
        assert_eq!(text, "this one");
        supervisor.join().unwrap();
        assert_eq!(
            send(&dir.path().join("nobody"), &state, file.as_fd()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn a_supervisor_without_a_descriptor_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor");
        let listener = UnixListener::bind(&path).unwrap();
        let supervisor = thread::spawn(move || listener.accept().unwrap().0.write_all(b"state").unwrap());
        assert_eq!(receive(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
        supervisor.join().unwrap();
    }

    #[test]
    fn a_supervisor_that_takes_no_connection_is_not_waited_for_without_end() {
        use rustix::net::{bind, connect, listen};
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("supervisor");
        let address = SocketAddrUnix::new(&path).unwrap();
        let socket =
            || socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        let listener = socket();
        bind(&listener, &address).unwrap();
        listen(&listener, 0).unwrap();
        let _first = socket();
        connect(&_first, &address).unwrap();
        let file = tempfile::tempfile().unwrap();
        assert_eq!(send(&path, b"state", file.as_fd()).unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
