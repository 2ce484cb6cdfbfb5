//! The TUN device: made at start, gone with the process.
//!
//! It hands over super-packets of up to 64 KB that the kernel has not cut yet, and
//! takes such; tun-rs cuts and joins them. Addresses, routes, MTU and the link's
//! state are not set here: that is the plan's business, by netlink.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::io::Errno;
use tun_rs::{DeviceBuilder, GROTable, IDEAL_BATCH_SIZE, SyncDevice, VIRTIO_NET_HDR_LEN};

use super::StartError;

/// The largest packet, and so the largest buffer a packet needs.
pub(super) const MAX_PACKET: usize = 65_535;

/// The TUN device of the overlay.
pub(super) struct Device {
    device: SyncDevice,
    name: String,
    index: u32,
}

impl Device {
    /// Makes the device `name`, down and without addresses.
    pub(super) fn open(name: &str) -> Result<Self, StartError> {
        let failed = |source: io::Error| {
            let name = name.to_owned();
            match source.raw_os_error().map(Errno::from_raw_os_error) {
                // EINVAL: the name is an interface's that is no TUN device.
                Some(Errno::BUSY | Errno::INVAL | Errno::EXIST) => StartError::DeviceTaken { name },
                Some(Errno::PERM | Errno::ACCESS) => StartError::NoPrivilege { name },
                Some(Errno::NOENT | Errno::NODEV | Errno::NXIO) => StartError::NoTun,
                _ => StartError::Device { name, source },
            }
        };
        let device = DeviceBuilder::new()
            .name(name)
            .offload(true)
            .enable(false)
            .build_sync()
            .map_err(failed)?;
        device.set_nonblocking(true).map_err(failed)?;
        let index = device.if_index().map_err(failed)?;
        Ok(Self { device, name: name.to_owned(), index })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Its interface index.
    pub(super) fn index(&self) -> u32 {
        self.index
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}

/// Packets from the device, one super-packet cut up at a time.
pub(super) struct Reader {
    raw: Vec<u8>,
    packets: Vec<Vec<u8>>,
    sizes: Vec<usize>,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self {
            raw: vec![0; VIRTIO_NET_HDR_LEN + MAX_PACKET],
            // Zeroed memory is not touched until a packet needs it.
            packets: (0..IDEAL_BATCH_SIZE).map(|_| vec![0; MAX_PACKET]).collect(),
            sizes: vec![0; IDEAL_BATCH_SIZE],
        }
    }

    /// Reads once: the packets of one super-packet.
    pub(super) fn read(&mut self, device: &Device) -> io::Result<impl Iterator<Item = &[u8]>> {
        let count =
            device.device.recv_multiple(&mut self.raw, &mut self.packets, &mut self.sizes, 0)?;
        let packets = self.packets.iter().zip(&self.sizes).take(count);
        Ok(packets.map(|(packet, size)| &packet[..*size]))
    }
}

/// Packets on their way to the device, joined where they belong together.
pub(super) struct Writer {
    packets: Vec<Vec<u8>>,
    used: usize,
    table: GROTable,
}

impl Writer {
    pub(super) fn new() -> Self {
        Self { packets: vec![Vec::new(); IDEAL_BATCH_SIZE], used: 0, table: GROTable::new() }
    }

    /// Room for one packet, filled by `fill`, which says how long it became (none:
    /// it became nothing).
    pub(super) fn push<T>(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> (Option<usize>, T),
    ) -> T {
        let packet = &mut self.packets[self.used];
        packet.resize(VIRTIO_NET_HDR_LEN + room, 0);
        let (length, result) = fill(&mut packet[VIRTIO_NET_HDR_LEN..]);
        if let Some(length) = length {
            packet.truncate(VIRTIO_NET_HDR_LEN + length);
            self.used += 1;
        }
        result
    }

    /// Whether it has to be flushed before the next packet.
    pub(super) fn is_full(&self) -> bool {
        self.used == self.packets.len()
    }

    /// Writes all of it out.
    pub(super) fn flush(&mut self, device: &Device) -> io::Result<()> {
        let used = std::mem::take(&mut self.used);
        if used == 0 {
            return Ok(());
        }
        let packets = &mut self.packets[..used];
        device.device.send_multiple(&mut self.table, packets, VIRTIO_NET_HDR_LEN).map(drop)
    }
}
