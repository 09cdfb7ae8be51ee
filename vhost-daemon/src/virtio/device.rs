//! The vhost-user side of a device: what the front-end says, message by message.
//!
//! Owns: features, guest memory, and the setup of rings for one connection. Does not own: the socket, or
//! what happens on a running ring.

use super::GuestMemory;
use super::call::Call;
use super::memory::{self, Mapped};
use super::ring::{RingLayout, SIZE_MAX};
use super::ring_state::SharedRing;
use crate::fuse::{GuestFs, Server};
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandler};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use vm_memory::{GuestAddress, GuestRegionMmap};

/// Memory regions a front-end may add.
const MEM_SLOTS_MAX: usize = 509;

/// The device as one connection sees it.
pub(super) struct Device<F> {
    server: Arc<Server<F>>,
    rings: Vec<Arc<SharedRing>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    owned: bool,
    acked_features: u64,
    regions: Vec<Region>,
    memory: Option<Arc<GuestMemory>>,
    addresses: Vec<Option<UserAddresses>>,
}

/// A memory region with the address the front-end knows it by.
struct Region {
    user: u64,
    guest: u64,
    size: u64,
    map: Mapped,
}

/// Front-end addresses of a ring's parts.
#[derive(Clone, Copy)]
struct UserAddresses {
    desc: u64,
    avail: u64,
    used: u64,
}

impl<F: GuestFs> Device<F> {
    pub(super) fn new(server: Arc<Server<F>>, rings: Vec<Arc<SharedRing>>) -> Self {
        let addresses = vec![None; rings.len()];
        Self { server, rings, state: Mutex::new(State { addresses, ..State::default() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self, index: u32) -> Result<&Arc<SharedRing>> {
        usize::try_from(index).ok().and_then(|i| self.rings.get(i)).ok_or(Error::InvalidParam)
    }

    fn features() -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    /// Hands the new memory, and the rings' places in it, to the rings.
    fn publish_memory(&self, state: &mut State) -> Result<()> {
        // The last region may go too: what is left has no place for a ring.
        let regions: Vec<_> = state.regions.iter().map(|r| r.map.clone()).collect();
        let memory = Arc::new(GuestMemory::new(&regions).map_err(|e| refuse(&e))?);
        state.memory = Some(Arc::clone(&memory));
        for (index, ring) in self.rings.iter().enumerate() {
            let layout = state.layout(index, ring.lock().setup.size);
            ring.change(|r| {
                r.memory = Some(Arc::clone(&memory));
                r.setup.layout = layout;
                match (&mut r.ring, layout) {
                    (Some(running), Some(layout)) => running.move_to(layout, &memory),
                    // Its memory was taken away under a running ring: it rests until it is stopped. What is given back
                    // until then must not get to memory that is not the guest's any more.
                    (Some(running), None) => {
                        running.move_to(running.layout(), &memory);
                        r.broken = true;
                    }
                    (None, _) => {}
                }
            });
        }
        Ok(())
    }

    fn add_region(state: &mut State, region: &VhostUserMemoryRegion, file: File) -> Result<()> {
        if state.regions.len() >= MEM_SLOTS_MAX {
            return Err(Error::InvalidParam);
        }
        if region.memory_size == 0
            || region.user_addr.checked_add(region.memory_size).is_none()
            || region.guest_phys_addr.checked_add(region.memory_size).is_none()
        {
            return Err(Error::InvalidParam);
        }
        if !memory::in_whole_pages(&file, region.memory_size) {
            let size = region.memory_size;
            return Err(refuse(&format!(
                "a memory region of {size:#x} bytes is cut out of huge pages; align it to them"
            )));
        }
        let base = GuestAddress(region.guest_phys_addr);
        let map = GuestRegionMmap::new(region.mmap_region(file)?, base).ok_or(Error::InvalidParam)?;
        state.regions.push(Region {
            user: region.user_addr,
            guest: region.guest_phys_addr,
            size: region.memory_size,
            map: Mapped::new(map).map_err(Error::ReqHandlerError)?,
        });
        state.regions.sort_by_key(|r| r.guest);
        Ok(())
    }
}

impl State {
    fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|r| {
            let offset = user.checked_sub(r.user)?;
            (offset < r.size).then(|| r.guest + offset)
        })
    }

    /// Where ring `index` is, if its size, its addresses and the memory for them are known.
    fn layout(&self, index: usize, size: u16) -> Option<RingLayout> {
        let user = (*self.addresses.get(index)?)?;
        if size == 0 {
            return None;
        }
        Some(RingLayout {
            size,
            desc: self.guest_address(user.desc)?,
            avail: self.guest_address(user.avail)?,
            used: self.guest_address(user.used)?,
            event_idx: self.acked_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0,
        })
    }
}

fn refuse(error: &dyn std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(error.to_string()))
}

impl<F: GuestFs> VhostUserBackendReqHandler for Device<F> {
    fn set_owner(&self) -> Result<()> {
        let mut state = self.state();
        if state.owned {
            return Err(Error::InvalidOperation("already claimed"));
        }
        state.owned = true;
        Ok(())
    }

    fn reset_owner(&self) -> Result<()> {
        let mut state = self.state();
        state.owned = false;
        state.acked_features = 0;
        Ok(())
    }

    fn reset_device(&self) -> Result<()> {
        for ring in &self.rings {
            ring.change(|r| r.setup.enabled = false);
            ring.stop();
        }
        self.state().acked_features = 0;
        self.server.end_session();
        Ok(())
    }

    fn get_features(&self) -> Result<u64> {
        Ok(Self::features())
    }

    fn set_features(&self, features: u64) -> Result<()> {
        if features & !Self::features() != 0 {
            return Err(Error::InvalidParam);
        }
        let mut state = self.state();
        state.acked_features = features;
        let enable = features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for (index, ring) in self.rings.iter().enumerate() {
            let layout = state.layout(index, ring.lock().setup.size);
            ring.change(|r| {
                r.setup.layout = layout;
                // Without protocol features there is no SET_VRING_ENABLE: rings run from the start.
                r.setup.enabled |= enable;
            });
        }
        Ok(())
    }

    fn set_mem_table(
        &self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut state = self.state();
        let before = std::mem::take(&mut state.regions);
        for (region, file) in regions.iter().zip(files) {
            if let Err(error) = Self::add_region(&mut state, region, file) {
                state.regions = before;
                return Err(error);
            }
        }
        if let Err(error) = self.publish_memory(&mut state) {
            state.regions = before;
            return Err(error);
        }
        Ok(None)
    }

    fn set_vring_num(&self, index: u32, num: u32) -> Result<()> {
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if !size.is_power_of_two() || size > SIZE_MAX {
            return Err(Error::InvalidParam);
        }
        let ring = self.ring(index)?;
        let state = self.state();
        if ring.lock().ring.is_some() {
            return Err(Error::InvalidOperation("the ring runs"));
        }
        let layout = state.layout(ring.index, size);
        ring.change(|r| {
            r.setup.size = size;
            r.setup.layout = layout;
        });
        Ok(())
    }

    fn set_vring_addr(
        &self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let ring = self.ring(index)?;
        let mut state = self.state();
        if let Some(addresses) = state.addresses.get_mut(ring.index) {
            *addresses = Some(UserAddresses { desc: descriptor, avail: available, used });
        }
        let size = ring.lock().setup.size;
        let layout = state.layout(ring.index, size);
        if size != 0 && layout.is_none() && state.memory.is_some() {
            return Err(Error::InvalidParam);
        }
        ring.change(|r| {
            r.setup.layout = layout;
            if let (Some(running), Some(layout), Some(memory)) = (&mut r.ring, layout, &r.memory) {
                running.move_to(layout, memory);
            }
        });
        Ok(())
    }

    fn set_vring_base(&self, index: u32, base: u32) -> Result<()> {
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        let ring = self.ring(index)?;
        if ring.lock().ring.is_some() {
            return Err(Error::InvalidOperation("the ring runs"));
        }
        ring.change(|r| r.setup.base = base);
        Ok(())
    }

    fn get_vring_base(&self, index: u32) -> Result<VhostUserVringState> {
        let ring = self.ring(index)?;
        Ok(VhostUserVringState::new(index, u32::from(ring.stop())))
    }

    fn set_vring_kick(&self, index: u8, file: Option<File>) -> Result<()> {
        let ring = self.ring(u32::from(index))?;
        ring.change_kick(file);
        ring.change(|r| r.setup.started = true);
        Ok(())
    }

    fn set_vring_call(&self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.change(|r| r.setup.call = file.map(Call::new).map(Arc::new));
        Ok(())
    }

    fn set_vring_err(&self, index: u8, file: Option<File>) -> Result<()> {
        self.ring(u32::from(index))?.change(|r| r.setup.err = file.map(Call::new).map(Arc::new));
        Ok(())
    }

    fn get_protocol_features(&self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&self) -> Result<u64> {
        Ok(self.rings.len() as u64)
    }

    fn set_vring_enable(&self, index: u32, enable: bool) -> Result<()> {
        self.ring(index)?.change(|r| r.setup.enabled = enable);
        Ok(())
    }

    fn get_max_mem_slots(&self) -> Result<u64> {
        Ok(MEM_SLOTS_MAX as u64)
    }

    fn add_mem_region(
        &self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        let mut state = self.state();
        Self::add_region(&mut state, region, file)?;
        if let Err(error) = self.publish_memory(&mut state) {
            state.regions.retain(|r| r.guest != region.guest_phys_addr || r.user != region.user_addr);
            return Err(error);
        }
        Ok(None)
    }

    fn remove_mem_region(&self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let mut state = self.state();
        let before = state.regions.len();
        state.regions.retain(|r| r.guest != region.guest_phys_addr || r.size != region.memory_size);
        if state.regions.len() == before {
            return Err(Error::InvalidParam);
        }
        self.publish_memory(&mut state)
    }

    fn get_config(&self, _offset: u32, _size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(Error::InvalidOperation("the front-end keeps the configuration space of a virtio-fs device"))
    }

    fn set_config(&self, _offset: u32, _buf: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Err(Error::InvalidOperation("the configuration space of a virtio-fs device is read-only"))
    }

    fn set_gpu_socket(&self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("this is no GPU"))
    }

    fn get_shared_object(&self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no objects are shared"))
    }

    fn get_inflight_fd(&self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("in-flight tracking is not offered"))
    }

    fn set_inflight_fd(&self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("in-flight tracking is not offered"))
    }

    fn set_device_state_fd(
        &self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("device state transfer is not offered"))
    }

    fn check_device_state(&self) -> Result<()> {
        Err(Error::InvalidOperation("device state transfer is not offered"))
    }

    fn get_shmem_config(&self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("there is no shared memory window"))
    }

    fn set_log_base(&self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("dirty logging is not offered"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::InitLimits;
    use crate::virtio::ring_state::Notify;
    use crate::virtio::test_fs::TestFs;
    use std::os::unix::fs::FileExt;
    use vhost::vhost_user::message::VhostUserMemoryRegion as Region;

    /// Where the front-end says guest address 0 is.
    const USER: u64 = 0x7000_0000_0000;
    const AVAIL: u64 = 0x1000;
    const USED: u64 = 0x2000;

    #[test]
    fn nothing_is_given_back_to_memory_that_was_taken_away() {
        let server =
            Arc::new(Server::new(Arc::new(TestFs::new(|| ())), InitLimits { request_queues: 1, flags: 0 }));
        let ring = Arc::new(SharedRing::new(0, Arc::default()));
        let device = Device::new(server, vec![Arc::clone(&ring)]);
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(0x4000).unwrap();
        device
            .set_mem_table(&[Region::new(0, 0x4000, USER, 0)], vec![memory.try_clone().unwrap()], None)
            .unwrap();
        device.set_features(Device::<TestFs>::features()).unwrap();
        device.set_vring_num(0, 8).unwrap();
        device
            .set_vring_addr(0, VhostUserVringAddrFlags::empty(), USER, USER + USED, USER + AVAIL, 0)
            .unwrap();
        device.set_vring_enable(0, true).unwrap();
        device.set_vring_kick(0, None).unwrap();

        // Two requests: heads 0 and 1.
        memory.write_all_at(&[0, 0, 2, 0, 0, 0, 1, 0], AVAIL).unwrap();
        let (life, heads) = {
            let mut state = ring.lock();
            let running = state.ring.as_mut().unwrap();
            let heads = [running.take().unwrap().unwrap(), running.take().unwrap().unwrap()];
            (state.life, heads)
        };
        let used = || {
            let mut index = [0; 2];
            memory.read_exact_at(&mut index, USED + 2).unwrap();
            u16::from_le_bytes(index)
        };
        ring.give_back_parked(life, heads[0], 16, Notify::Here);
        assert_eq!(used(), 1);
        device.remove_mem_region(&VhostUserSingleMemoryRegion::new(0, 0x4000, USER, 0)).unwrap();
        ring.give_back_parked(life, heads[1], 16, Notify::Here);
        assert_eq!(used(), 1, "written where the guest's memory was");
        assert_eq!(ring.stop(), 2, "it goes on behind what was taken");
    }
}
