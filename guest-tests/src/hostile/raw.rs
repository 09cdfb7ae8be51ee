//! Descriptors written as they come, and what comes back, without the checks of an honest driver.

use std::time::{Duration, Instant};

use crate::frontend::FrontendError;
use crate::frontend::device::Device;
use crate::frontend::error::Result;
use crate::frontend::fuse::{getattr_in, in_header, op};
use crate::frontend::ring::{Descriptor, NEXT, WRITE};

/// How long a request may take before it counts as lost.
pub const LOST: Duration = Duration::from_secs(5);

/// A guest address outside every region.
pub const NOWHERE: u64 = 0x6_0000_0000;

/// One ring of a device, with two buffers of 64 KiB.
#[derive(Debug)]
pub struct Raw<'a> {
    /// The device.
    pub device: &'a mut Device,
    /// The ring under attack.
    pub ring: usize,
    /// A request lies here.
    pub request: u64,
    /// Replies go here; the bytes behind it are watched.
    pub reply: u64,
    unique: u64,
}

/// Fills what the daemon must not write.
const GUARD: u8 = 0xa5;
const BUFFER: usize = 64 << 10;

impl<'a> Raw<'a> {
    /// Raw access to ring `ring`.
    ///
    /// # Errors
    /// When there is no guest memory left.
    pub fn new(device: &'a mut Device, ring: usize) -> Result<Self> {
        let request = device.buffers.alloc(BUFFER)?.gpa;
        let reply = device.buffers.alloc(BUFFER)?.gpa;
        Ok(Self { device, ring, request, reply, unique: 0x1000_0000 })
    }

    /// Writes a GETATTR of the root into the request buffer; answers its length.
    ///
    /// # Errors
    /// Never for a device that is set up.
    pub fn write_getattr(&mut self) -> Result<u32> {
        self.unique += 2;
        let mut message = in_header(56, op::GETATTR, self.unique, 1).to_vec();
        message.extend_from_slice(&getattr_in());
        self.device.mem.write(self.request, &message)?;
        self.device.mem.fill(self.reply, BUFFER, GUARD)?;
        Ok(56)
    }

    /// The descriptor at `index`.
    ///
    /// # Errors
    /// When the index lies outside memory.
    pub fn set(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) -> Result<()> {
        let ring = &self.device.rings[self.ring];
        ring.raw_descriptor(&self.device.mem, index, Descriptor { addr, len, flags, next })
    }

    /// Offers `head` and kicks.
    ///
    /// # Errors
    /// When the kick fails.
    pub fn offer(&mut self, head: u16) -> Result<()> {
        let ring = &mut self.device.rings[self.ring];
        ring.raw_push(&self.device.mem, head)?;
        ring.publish(&self.device.mem)?;
        // An honest driver kicks only when asked; a hostile one always.
        ring.kick_now()
    }

    /// The next used entry, or None after `limit`.
    ///
    /// # Errors
    /// Never for a device that is set up.
    pub fn used(&mut self, limit: Duration) -> Result<Option<(u32, u32)>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(entry) = self.device.rings[self.ring].raw_pop(&self.device.mem)? {
                return Ok(Some(entry));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Offers `head` and demands it back with no more than `room` bytes written, and nothing behind them changed.
    /// Answers the bytes written.
    ///
    /// # Errors
    /// When it does not come back, comes with another id, or more was written than there was room for.
    pub fn given_back(&mut self, head: u16, room: u32) -> Result<u32> {
        self.offer(head)?;
        let Some((id, len)) = self.used(LOST)? else {
            return Err(FrontendError::Timeout(format!("head {head} did not come back")));
        };
        if id != u32::from(head) || len > room {
            return Err(FrontendError::BadReply(format!(
                "head {head} came back as {id} with {len} bytes of {room}"
            )));
        }
        let mut behind = [0; 256];
        let from = self.reply + u64::from(room.min(4096));
        self.device.mem.read(from, &mut behind)?;
        if behind.iter().any(|b| *b != GUARD) {
            return Err(FrontendError::BadReply(format!(
                "bytes behind the {room} writable ones were changed"
            )));
        }
        Ok(len)
    }

    /// The errno of the reply that lies in the reply buffer (0 is success), if `used` bytes hold one. A daemon that
    /// gave up before it had read the request answers the unique id 0.
    ///
    /// # Errors
    /// When the reply contradicts itself or answers another request.
    pub fn errno(&self, used: u32) -> Result<Option<i32>> {
        if used == 0 {
            return Ok(None);
        }
        let mut header = [0; 16];
        self.device.mem.read(self.reply, &mut header)?;
        let [l0, l1, l2, l3, e0, e1, e2, e3, unique @ ..] = header;
        let (len, error) = (u32::from_le_bytes([l0, l1, l2, l3]), i32::from_le_bytes([e0, e1, e2, e3]));
        let unique = u64::from_le_bytes(unique);
        if used < 16
            || len != used
            || (unique != self.unique && (unique != 0 || error == 0))
            || !(-4095..=0).contains(&error)
        {
            return Err(FrontendError::BadReply(format!(
                "{used} bytes used, header says {len} bytes, error {error}, unique {unique} of {}",
                self.unique
            )));
        }
        Ok(Some(-error))
    }

    /// An honest GETATTR through the same ring.
    ///
    /// # Errors
    /// When it is not answered with attributes.
    pub fn still_serves(&mut self) -> Result<()> {
        let len = self.write_getattr()?;
        self.set(0, self.request, len, NEXT, 1)?;
        self.set(1, self.reply, 120, WRITE, 0)?;
        let used = self.given_back(0, 120)?;
        match self.errno(used)? {
            Some(0) if used == 120 => Ok(()),
            other => {
                Err(FrontendError::BadReply(format!("GETATTR after the attack: {other:?}, {used} bytes")))
            }
        }
    }
}
