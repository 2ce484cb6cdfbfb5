//! The TUN device: made at start, gone with the process.
//!
//! Addresses, routes, MTU and the link's state are not set here: that is the plan's
//! business, by netlink.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::io::Errno;
use tun_rs::DeviceBuilder;

use super::{
    StartError,
    offload::{Cut, Join, MAX_PACKET, VNET_HEADER},
};

/// The TUN device of the overlay.
pub(super) struct Device {
    file: OwnedFd,
    name: String,
    index: u32,
    /// Whether it takes UDP super-packets (Linux 6.2).
    udp: bool,
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
        let file = device.as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Self { file, name: name.to_owned(), index, udp: device.udp_gso() })
    }

    /// A device, and the end of it that otherwise the kernel has.
    #[cfg(test)]
    pub(super) fn pair() -> (Self, OwnedFd) {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let (file, end) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
            None,
        )
        .expect("a socket pair");
        (Self { file, name: "pair".to_owned(), index: 0, udp: true }, end)
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
        self.file.as_fd()
    }
}

/// Packets from the device.
pub(super) struct Reader {
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; VNET_HEADER + MAX_PACKET] }
    }

    /// Reads once: the packets of one super-packet, or `None` where it is not well
    /// made.
    pub(super) fn read(&mut self, device: &Device) -> io::Result<Option<Cut<'_>>> {
        match rustix::io::read(&device.file, &mut self.buffer) {
            Ok(0) | Err(Errno::BADFD) => Err(gone()),
            Ok(length) => Ok(Cut::new(&mut self.buffer[..length])),
            Err(error) => Err(error.into()),
        }
    }
}

/// Packets to the device.
pub(super) struct Writer {
    join: Join,
    failure: Option<io::Error>,
}

impl Writer {
    pub(super) fn new(device: &Device) -> Self {
        Self { join: Join::new(device.udp), failure: None }
    }

    /// Takes one packet, which `fill` writes into a room of `room` bytes; it says how
    /// long it became, or that it became nothing. `true` beside its result: before the
    /// next one comes [`Writer::settle`].
    pub(super) fn push<T>(
        &mut self,
        room: usize,
        fill: impl FnOnce(&mut [u8]) -> (Option<usize>, T),
    ) -> (T, bool) {
        self.join.push(room, fill)
    }

    /// Writes out what is complete.
    pub(super) fn settle(&mut self, device: &Device) {
        self.join.settle(&mut |whole| write(device, whole, &mut self.failure));
    }

    /// Writes out what is left, and tells the last failure since the last time.
    pub(super) fn flush(&mut self, device: &Device) -> io::Result<()> {
        self.join.flush(&mut |whole| write(device, whole, &mut self.failure));
        self.failure.take().map_or(Ok(()), Err)
    }
}

fn write(device: &Device, whole: &[u8], failure: &mut Option<io::Error>) {
    match rustix::io::write(&device.file, whole) {
        Ok(_) => {}
        Err(Errno::BADFD) => *failure = Some(gone()),
        Err(error) => *failure = Some(error.into()),
    }
}

/// What the kernel says of a device that was deleted, in words.
fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the TUN device is gone: something deleted it")
}

/// Whether this error means that there is no device any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}
