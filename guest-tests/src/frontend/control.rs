//! The vhost-user socket: messages, descriptors and acknowledgements.
//!
//! Owns the wire form. Which messages to send in which order is [`super::device`]'s business; tests send
//! broken ones through [`Control::send`].

use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::error::{FrontendError, Result};
use super::memory::{GuestMemory, Region, USER_OFFSET};

/// Request codes of the vhost-user protocol that a file-system front-end sends.
#[allow(missing_docs, reason = "names and numbers are those of QEMU's docs/interop/vhost-user.rst")]
pub mod code {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const RESET_OWNER: u32 = 4;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const GET_CONFIG: u32 = 24;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
}

/// Bits of the protocol features.
#[allow(missing_docs, reason = "names and numbers are those of QEMU's docs/interop/vhost-user.rst")]
pub mod protocol {
    pub const MQ: u64 = 1 << 0;
    pub const REPLY_ACK: u64 = 1 << 3;
    pub const CONFIG: u64 = 1 << 9;
    pub const RESET_DEVICE: u64 = 1 << 13;
    pub const CONFIGURE_MEM_SLOTS: u64 = 1 << 15;
}

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;
/// No message of the protocol is longer than this; a reply that claims more is broken.
const MAX_BODY: u32 = 4096;

/// One connection to a daemon.
#[derive(Debug)]
pub struct Control {
    sock: UnixStream,
    /// REPLY_ACK has been negotiated: every request without a reply of its own asks for an acknowledgement.
    pub reply_ack: bool,
}

impl Control {
    /// Connects to `path`, waiting up to `timeout` for the socket to appear and accept; `timeout` is also the
    /// limit for every later reply.
    ///
    /// # Errors
    /// [`FrontendError::Timeout`] when nobody listens in time.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        let deadline = Instant::now() + timeout;
        let sock = loop {
            match UnixStream::connect(path) {
                Ok(sock) => break sock,
                Err(e) if Instant::now() >= deadline => {
                    return Err(FrontendError::Timeout(format!("connecting to {}: {e}", path.display())));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        sock.set_read_timeout(Some(timeout)).map_err(FrontendError::io("setting a timeout"))?;
        sock.set_write_timeout(Some(timeout)).map_err(FrontendError::io("setting a timeout"))?;
        Ok(Self { sock, reply_ack: false })
    }

    /// Sends one message with descriptors, as given, valid or not.
    ///
    /// # Errors
    /// When the socket does not take it.
    pub fn send(&mut self, request: u32, flags: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let size = u32::try_from(body.len()).map_err(|e| FrontendError::Protocol(e.to_string()))?;
        let mut message = Vec::with_capacity(12 + body.len());
        for word in [request, VERSION | flags, size] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        message.extend_from_slice(body);
        self.send_bytes(&message, fds)
    }

    /// Sends bytes with descriptors attached to the first of them.
    ///
    /// # Errors
    /// When the socket does not take them.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(FrontendError::Protocol(format!("{} descriptors are too many", fds.len())));
        }
        let mut sent =
            sendmsg(self.sock.as_fd(), &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
                .map_err(FrontendError::sys("sending a vhost-user message"))?;
        while sent < bytes.len() {
            sent += rustix::net::send(self.sock.as_fd(), &bytes[sent..], SendFlags::NOSIGNAL)
                .map_err(FrontendError::sys("sending a vhost-user message"))?;
        }
        Ok(())
    }

    fn receive(&mut self, bytes: &mut [u8], what: &'static str) -> Result<()> {
        self.sock.read_exact(bytes).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset => {
                FrontendError::Disconnected(what)
            }
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
                FrontendError::Timeout(what.to_owned())
            }
            _ => FrontendError::Io { what, source: e },
        })
    }

    /// Reads the reply to `request`.
    ///
    /// # Errors
    /// When the daemon hangs up, is silent too long or answers something else.
    pub fn reply(&mut self, request: u32) -> Result<Vec<u8>> {
        let mut head = [0; 12];
        self.receive(&mut head, "waiting for a vhost-user reply")?;
        let word = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let (got, flags, size) = (word(0), word(4), word(8));
        if got != request || flags & 3 != VERSION || flags & REPLY == 0 || size > MAX_BODY {
            return Err(FrontendError::Protocol(format!(
                "reply {got} flags {flags:#x} size {size} to request {request}"
            )));
        }
        let mut body = vec![0; size as usize];
        self.receive(&mut body, "reading a vhost-user reply")?;
        Ok(body)
    }

    /// Sends a request that has a reply of its own and returns the reply's first u64.
    ///
    /// # Errors
    /// See [`Control::reply`]; also for a short reply.
    pub fn get_u64(&mut self, request: u32) -> Result<u64> {
        self.send(request, 0, &[], &[])?;
        let body = self.reply(request)?;
        let word: [u8; 8] = body
            .try_into()
            .map_err(|b: Vec<u8>| FrontendError::Protocol(format!("request {request}: {} bytes", b.len())))?;
        Ok(u64::from_le_bytes(word))
    }

    /// Sends a request that has no reply of its own; with REPLY_ACK waits for the acknowledgement.
    ///
    /// # Errors
    /// When the acknowledgement is not zero or does not come.
    pub fn set(&mut self, request: u32, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        if !self.reply_ack {
            return self.send(request, 0, body, fds);
        }
        self.send(request, NEED_REPLY, body, fds)?;
        let ack = self.reply(request)?;
        if ack.iter().any(|b| *b != 0) || ack.len() != 8 {
            return Err(FrontendError::Protocol(format!("request {request} was refused: {ack:02x?}")));
        }
        Ok(())
    }

    /// [`Control::set`] with one u64.
    ///
    /// # Errors
    /// See [`Control::set`].
    pub fn set_u64(&mut self, request: u32, value: u64) -> Result<()> {
        self.set(request, &value.to_le_bytes(), &[])
    }

    /// [`Control::set`] with a ring state: `index` and a number.
    ///
    /// # Errors
    /// See [`Control::set`].
    pub fn set_vring(&mut self, request: u32, index: u32, number: u32) -> Result<()> {
        self.set(request, &words(&[index, number]), &[])
    }

    /// Announces all of `memory` in one table.
    ///
    /// # Errors
    /// See [`Control::set`].
    pub fn set_mem_table(&mut self, memory: &GuestMemory) -> Result<()> {
        let regions: Vec<&Region> = memory.regions().iter().collect();
        self.set_mem_regions(&regions)
    }

    /// Announces `regions` in one table.
    ///
    /// # Errors
    /// See [`Control::set`].
    pub fn set_mem_regions(&mut self, regions: &[&Region]) -> Result<()> {
        let count = u32::try_from(regions.len()).map_err(|e| FrontendError::Protocol(e.to_string()))?;
        let mut body = words(&[count, 0]);
        for region in regions {
            for number in [region.gpa, region.size, region.gpa + USER_OFFSET, 0] {
                body.extend_from_slice(&number.to_le_bytes());
            }
        }
        let fds: Vec<BorrowedFd<'_>> = regions.iter().map(|r| r.file.as_fd()).collect();
        self.set(code::SET_MEM_TABLE, &body, &fds)
    }

    /// Says where ring `index` lies; all three are guest-physical addresses.
    ///
    /// # Errors
    /// See [`Control::set`].
    pub fn set_vring_addr(&mut self, index: u32, desc: u64, avail: u64, used: u64) -> Result<()> {
        let mut body = words(&[index, 0]);
        for address in [desc, used, avail] {
            body.extend_from_slice(&address.wrapping_add(USER_OFFSET).to_le_bytes());
        }
        body.extend_from_slice(&0_u64.to_le_bytes());
        self.set(code::SET_VRING_ADDR, &body, &[])
    }

    /// Sends an event descriptor for ring `index`: `request` is one of the three SET_VRING_KICK, _CALL, _ERR.
    ///
    /// # Errors
    /// See [`Control::set`].
    pub fn set_vring_fd(&mut self, request: u32, index: u32, fd: BorrowedFd<'_>) -> Result<()> {
        self.set(request, &u64::from(index).to_le_bytes(), &[fd])
    }

    /// Stops ring `index`; answers the index of the next request the daemon would have taken.
    ///
    /// # Errors
    /// See [`Control::reply`].
    pub fn get_vring_base(&mut self, index: u32) -> Result<u32> {
        self.send(code::GET_VRING_BASE, 0, &words(&[index, 0]), &[])?;
        let body = self.reply(code::GET_VRING_BASE)?;
        match <[u8; 8]>::try_from(body) {
            Ok([.., a, b, c, d]) => Ok(u32::from_le_bytes([a, b, c, d])),
            Err(body) => Err(FrontendError::Protocol(format!("vring base of {} bytes", body.len()))),
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sock.as_fd()
    }
}

/// Little-endian bytes of 32-bit words.
#[must_use]
pub fn words(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}
