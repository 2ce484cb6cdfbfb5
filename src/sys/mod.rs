//! Every unsafe line of the project.
#![allow(unsafe_code)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

/// Lets the kernel fragment what this IPv6 socket sends, where a link is too small for
/// it.
///
/// # Errors
/// When the descriptor is no IPv6 socket.
pub(crate) fn allow_ipv6_fragments(socket: &impl AsFd) -> io::Result<()> {
    let off: libc::c_int = 0;
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel reads
    // as many bytes of `off` as it is told that there are.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IPV6,
            libc::IPV6_DONTFRAG,
            (&raw const off).cast(),
            size_of_val(&off) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
