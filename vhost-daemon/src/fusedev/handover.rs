//! The supervisor's socket: state and device go there, and come back from there.
//!
//! Owns: the exchange (nydusd-cli-api.md section 6): this side connects; one descriptor comes with the first bytes; the
//! end of the stream is the end of the state. Does not own: what the bytes say.

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a supervisor may keep silent.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Largest state that is taken, bytes.
const STATE_MAX: u64 = 64 << 20;
/// Descriptors that may come along; all but the first are closed.
const DESCRIPTORS_MAX: usize = 8;

/// Sends `state` and `device`.
///
/// # Errors
///
/// That of connect(2), sendmsg(2), write(2).
pub(super) fn send(supervisor: &Path, state: &[u8], device: BorrowedFd<'_>) -> io::Result<()> {
    let mut stream = connect(supervisor)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let devices = [device];
    control.push(SendAncillaryMessage::ScmRights(&devices));
    let sent = sendmsg(&stream, &[IoSlice::new(state)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(state.get(sent..).unwrap_or_default())?;
    stream.shutdown(std::net::Shutdown::Write)
}

/// Receives a state and a device.
///
/// # Errors
///
/// That of connect(2), recvmsg(2), read(2); `InvalidData` when no descriptor came or the state has no end.
pub(super) fn receive(supervisor: &Path) -> io::Result<(Vec<u8>, OwnedFd)> {
    let stream = connect(supervisor)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut first = vec![0; 64 << 10];
    let mut device = None;
    let mut state = Vec::new();
    // The descriptor comes with the first bytes, but a supervisor may send it alone before them.
    while device.is_none() {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut first)];
        let message = recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
                for descriptor in descriptors {
                    device.get_or_insert(descriptor);
                }
            }
        }
        if message.bytes == 0 {
            break;
        }
        state.extend_from_slice(first.get(..message.bytes).unwrap_or_default());
        if state.len() as u64 > STATE_MAX {
            return Err(invalid("the state has no end"));
        }
    }
    let device = device.ok_or_else(|| invalid("the supervisor sent no descriptor"))?;
    let left = STATE_MAX + 1 - state.len() as u64;
    stream.take(left).read_to_end(&mut state)?;
    if state.len() as u64 > STATE_MAX {
        return Err(invalid("the state has no end"));
    }
    Ok((state, device))
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn connect(supervisor: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(supervisor)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    Ok(stream)
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
}
