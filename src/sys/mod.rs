//! Every unsafe line of the project.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use tokio::io::unix::AsyncFd;

/// Whether the kernel must not fragment what this IPv6 socket sends, where a link is too
/// small for it (RFC 3542 §11.2).
///
/// # Errors
/// When the descriptor is no IPv6 socket.
pub(crate) fn set_ipv6_dont_fragment(socket: &impl AsFd, on: bool) -> io::Result<()> {
    let value = libc::c_int::from(on);
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads
    // as many bytes of `value` as it is told that there are.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_DONTFRAG,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Has the runtime watch a descriptor.
///
/// # Errors
/// When the kernel cannot watch it.
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same one for as long as it lives, and here it
    // lives in the `AsyncFd`, which closes it last.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
