//! A negotiated vhost-user-fs device: control socket, guest memory and all rings.
//!
//! Owns the order of the handshake. FUSE begins one room higher, in [`super::session`].

use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use super::buffers::Buffers;
use super::control::{Control, code, protocol};
use super::error::{FrontendError, Result};
use super::memory::GuestMemory;
use super::ring::Ring;

/// Virtio feature: descriptors may point to tables of descriptors.
pub const F_INDIRECT: u64 = 1 << 28;
/// Virtio feature: notification by event index.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// Vhost-user: protocol features exist.
pub const F_PROTOCOL: u64 = 1 << 30;
/// Virtio feature: virtio 1.0 or newer.
pub const F_VERSION_1: u64 = 1 << 32;

/// How requests lie in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One readable and one writable descriptor.
    Whole,
    /// As Linux does it: headers apart, data in pages.
    Pages,
    /// As `Pages`, with neighbouring pages swapped so that none can be merged.
    Scattered,
}

/// What kind of guest to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// Request rings; the hiprio ring comes on top.
    pub queues: usize,
    /// Descriptors in each ring, a power of two up to 32768.
    pub queue_size: u16,
    /// Negotiate EVENT_IDX.
    pub event_idx: bool,
    /// Use indirect descriptors.
    pub indirect: bool,
    /// Poll the used rings without sleeping instead of waiting for calls.
    pub busy: bool,
    /// Shape of requests.
    pub shape: Shape,
    /// Guest memory in MiB; pages are taken from the host only when touched.
    pub memory_mib: u64,
    /// Limit for each answer.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 1024,
            event_idx: true,
            indirect: true,
            busy: false,
            shape: Shape::Pages,
            memory_mib: 512,
            timeout: Duration::from_secs(20),
        }
    }
}

/// A guest connected to a daemon, with its rings running.
#[derive(Debug)]
pub struct Device {
    /// The socket.
    pub control: Control,
    /// Guest RAM.
    pub mem: GuestMemory,
    /// Free guest RAM.
    pub buffers: Buffers,
    /// All rings; index 0 is hiprio.
    pub rings: Vec<Ring>,
    /// As asked for.
    pub options: Options,
    /// Virtio features the daemon offers.
    pub offered: u64,
    /// Protocol features the daemon offers.
    pub offered_protocol: u64,
}

/// Where the second, small region of each guest begins: behind a hole, as on a PC above 4 GiB.
pub const HIGH_GPA: u64 = 1 << 32;
/// Length of the second region in bytes.
pub const HIGH_SIZE: u64 = 1 << 20;
/// Length of the region that ends where the main one begins, in bytes.
pub const LOW_SIZE: u64 = 1 << 20;

impl Device {
    /// Connects and negotiates, but starts no ring: for tests that misbehave in the set-up.
    ///
    /// # Errors
    /// When the daemon refuses or lacks a feature every virtio-fs device has.
    pub fn negotiate(path: &Path, options: &Options) -> Result<Self> {
        let mut control = Control::connect(path, options.timeout)?;
        control.set(code::SET_OWNER, &[], &[])?;
        let offered = control.get_u64(code::GET_FEATURES)?;
        for (bit, name) in [(F_VERSION_1, "VERSION_1"), (F_PROTOCOL, "PROTOCOL_FEATURES")] {
            if offered & bit == 0 {
                return Err(FrontendError::Protocol(format!("{name} is not offered ({offered:#x})")));
            }
        }
        let offered_protocol = control.get_u64(code::GET_PROTOCOL_FEATURES)?;
        let wanted = protocol::MQ
            | protocol::REPLY_ACK
            | protocol::CONFIG
            | protocol::RESET_DEVICE
            | protocol::CONFIGURE_MEM_SLOTS;
        control.set_u64(code::SET_PROTOCOL_FEATURES, offered_protocol & wanted)?;
        control.reply_ack = offered_protocol & protocol::REPLY_ACK != 0;
        let features = features(options);
        if offered & features != features {
            return Err(FrontendError::Protocol(format!("{features:#x} wanted, {offered:#x} offered")));
        }
        control.set_u64(code::SET_FEATURES, features)?;
        let main = options.memory_mib << 20;
        let mem = GuestMemory::new(&[(0, LOW_SIZE), (LOW_SIZE, main - LOW_SIZE), (HIGH_GPA, HIGH_SIZE)])?;
        let buffers = Buffers::new(LOW_SIZE + 4096, main - 4096);
        Ok(Self {
            control,
            mem,
            buffers,
            rings: Vec::new(),
            options: options.clone(),
            offered,
            offered_protocol,
        })
    }

    /// Queues that the daemon has, hiprio included.
    ///
    /// # Errors
    /// When it does not say.
    pub fn queue_num(&mut self) -> Result<u64> {
        self.control.get_u64(code::GET_QUEUE_NUM)
    }

    /// Hands over memory and starts hiprio and `options.queues` request rings.
    ///
    /// # Errors
    /// When the daemon refuses.
    pub fn start(&mut self) -> Result<()> {
        self.control.set_mem_table(&self.mem)?;
        let count = self.options.queues + 1;
        if (self.queue_num()?) < count as u64 {
            return Err(FrontendError::Protocol(format!("the daemon has fewer than {count} queues")));
        }
        for index in 0..count {
            let ring = Ring::new(
                index,
                self.options.queue_size,
                self.options.event_idx,
                &self.mem,
                &mut self.buffers,
            )?;
            if self.options.busy {
                ring.disarm(&self.mem)?;
            }
            start_ring(&mut self.control, &ring, 0)?;
            self.rings.push(ring);
        }
        Ok(())
    }

    /// A connected guest with running rings.
    ///
    /// # Errors
    /// See [`Device::negotiate`] and [`Device::start`].
    pub fn connect(path: &Path, options: &Options) -> Result<Self> {
        let mut device = Self::negotiate(path, options)?;
        device.start()?;
        Ok(device)
    }

    /// Ends the connection in good order: every ring is stopped first.
    ///
    /// # Errors
    /// When a ring cannot be stopped.
    pub fn stop(mut self) -> Result<()> {
        for index in 0..self.rings.len() {
            self.control.get_vring_base(to_u32(index))?;
        }
        Ok(())
    }
}

/// The virtio features that a guest with these options acknowledges.
#[must_use]
pub fn features(options: &Options) -> u64 {
    let indirect = if options.indirect { F_INDIRECT } else { 0 };
    let event_idx = if options.event_idx { F_EVENT_IDX } else { 0 };
    F_VERSION_1 | F_PROTOCOL | indirect | event_idx
}

/// Tells the daemon all about one ring and enables it; it takes requests from index `base` on.
///
/// # Errors
/// When the daemon refuses.
pub fn start_ring(control: &mut Control, ring: &Ring, base: u16) -> Result<()> {
    let index = to_u32(ring.index);
    control.set_vring(code::SET_VRING_NUM, index, ring.size.into())?;
    control.set_vring(code::SET_VRING_BASE, index, base.into())?;
    control.set_vring_addr(index, ring.desc, ring.avail, ring.used)?;
    control.set_vring_fd(code::SET_VRING_CALL, index, ring.call.as_fd())?;
    control.set_vring_fd(code::SET_VRING_KICK, index, ring.kick.as_fd())?;
    control.set_vring(code::SET_VRING_ENABLE, index, 1)
}

/// A ring index as it stands in messages; there are never more than a few.
#[must_use]
pub fn to_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
