//! Waiting for descriptors, and for the word to stop.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

/// A word from one thread to another, which waits for it beside its work. Once given it
/// stays until it is cleared.
pub(super) struct Signal(OwnedFd);

/// The word to stop, which is never cleared: every thread waits for it.
pub(super) type Stop = Signal;

impl Signal {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub(super) fn tell(&self) {
        // It can only fail for being told more often than a u64 holds.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    pub(super) fn clear(&self) {
        // It can only fail for not having been told.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Why waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wake {
    /// The word to stop.
    Stop,
    /// Something can be read.
    Ready,
    /// The time is over.
    Timeout,
}

/// Waits until one of `sources` can be read.
pub(super) fn readable(
    stop: &Stop,
    sources: &[&dyn AsFd],
    limit: Option<Duration>,
) -> io::Result<Wake> {
    let mut fds = vec![PollFd::new(&stop.0, PollFlags::IN)];
    fds.extend(
        sources.iter().map(|source| PollFd::from_borrowed_fd(source.as_fd(), PollFlags::IN)),
    );
    let limit = limit.map(timespec).transpose()?;
    loop {
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return Ok(Wake::Timeout),
            Ok(_) if !fds[0].revents().is_empty() => return Ok(Wake::Stop),
            Ok(_) => return Ok(Wake::Ready),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until `fd` is ready for `flags`; `false` if that took too long.
pub(super) fn ready(fd: &impl AsFd, flags: PollFlags, limit: Duration) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, flags)];
    Ok(poll(&mut fds, Some(&timespec(limit)?))? > 0)
}

fn timespec(limit: Duration) -> io::Result<Timespec> {
    limit.try_into().map_err(|_| io::ErrorKind::InvalidInput.into())
}
