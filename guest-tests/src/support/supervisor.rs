//! A supervisor as the snapshotter is one: it listens only while it expects a transfer, keeps state and descriptor of
//! the daemon that sent them, and gives them to the next.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Bytes given away at a time, as a slow supervisor would.
const PIECE: usize = 1000;

/// What a daemon left.
#[derive(Debug)]
pub struct Kept {
    /// Its state.
    pub state: Vec<u8>,
    /// The descriptor of its mount.
    pub device: OwnedFd,
}

/// A socket path, listened on when a transfer is expected.
#[derive(Debug)]
pub struct Supervisor {
    path: PathBuf,
}

impl Supervisor {
    /// At `path`, where nothing is yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    fn listen(&self) -> Result<UnixListener> {
        let _ = std::fs::remove_file(&self.path);
        UnixListener::bind(&self.path).with_context(|| format!("listening on {}", self.path.display()))
    }

    /// Waits in the background for a daemon that sends.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn expect_save(&self) -> Result<JoinHandle<Result<Kept>>> {
        let listener = self.listen()?;
        let path = self.path.clone();
        Ok(std::thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            let _ = std::fs::remove_file(path);
            keep(&stream)
        }))
    }

    /// Waits in the background for a daemon that takes over, and gives it what was kept.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn offer(&self, kept: &Kept) -> Result<JoinHandle<Result<()>>> {
        let listener = self.listen()?;
        let path = self.path.clone();
        let (state, device) = (kept.state.clone(), kept.device.try_clone()?);
        Ok(std::thread::spawn(move || {
            let (stream, _) = listener.accept()?;
            let _ = std::fs::remove_file(path);
            give(&stream, &state, &device)
        }))
    }
}

fn keep(mut stream: &UnixStream) -> Result<Kept> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut state = vec![0; 4096];
    let message = recvmsg(stream, &mut [IoSliceMut::new(&mut state)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    state.truncate(message.bytes);
    let mut device = None;
    for ancillary in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = ancillary {
            device = descriptors.next();
        }
    }
    stream.read_to_end(&mut state)?;
    Ok(Kept { state, device: device.context("no descriptor came with the state")? })
}

fn give(mut stream: &UnixStream, state: &[u8], device: &OwnedFd) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let devices = [device.as_fd()];
    control.push(SendAncillaryMessage::ScmRights(&devices));
    let (first, rest) = state.split_at(state.len().min(PIECE));
    let sent = sendmsg(stream, &[IoSlice::new(first)], &mut control, SendFlags::empty())?;
    stream.write_all(&first[sent..])?;
    for piece in rest.chunks(PIECE) {
        stream.write_all(piece)?;
    }
    Ok(())
}
