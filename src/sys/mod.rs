//! Every unsafe line of the project.
#![allow(unsafe_code)]

use std::{
    io,
    net::SocketAddr,
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

/// Sends one datagram that gets at most `hops` routers far (ip(7)'s IP_TTL, ipv6(7)'s
/// IPV6_HOPLIMIT), and no other datagram of the socket with it.
///
/// # Errors
/// What `sendmsg` returns.
pub(crate) fn send_near(
    socket: &impl AsFd,
    to: SocketAddr,
    contents: &[u8],
    hops: u8,
) -> io::Result<()> {
    /// Room for one control message with a `c_int`, aligned as its header has to be.
    #[repr(C, align(8))]
    struct Control([u8; 64]);

    let (level, kind) = match to {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
    };
    let name = socket2::SockAddr::from(to);
    let mut iov =
        libc::iovec { iov_base: contents.as_ptr().cast_mut().cast(), iov_len: contents.len() };
    let mut control = Control([0; 64]);
    let value = libc::c_int::from(hops);
    let value_len = size_of_val(&value) as libc::c_uint;
    // SAFETY: all zero is a valid msghdr. The kernel only reads what it points to, and all
    // of that lives until the call returns. CMSG_SPACE of a c_int is 24 bytes, fewer than
    // the 64 of `control`, which is aligned for a cmsghdr; so CMSG_FIRSTHDR is not null,
    // and header and value lie within `control`.
    let sent = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_name = name.as_ptr().cast_mut().cast();
        message.msg_namelen = name.len();
        message.msg_iov = &raw mut iov;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control.0).cast();
        message.msg_controllen = libc::CMSG_SPACE(value_len) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = level;
        (*header).cmsg_type = kind;
        (*header).cmsg_len = libc::CMSG_LEN(value_len) as _;
        libc::CMSG_DATA(header).cast::<libc::c_int>().write_unaligned(value);
        libc::sendmsg(socket.as_fd().as_raw_fd(), &raw const message, libc::MSG_DONTWAIT)
    };
    if sent >= 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::{net::UdpSocket, time::Duration};

    use super::*;

    #[test]
    fn a_datagram_for_near_by_arrives_near_by() {
        for ip in ["127.0.0.1:0", "[::1]:0"] {
            let [from, to] = [ip, ip].map(|ip| UdpSocket::bind(ip).expect("loopback is up"));
            to.set_read_timeout(Some(Duration::from_secs(5))).expect("it is a socket");
            let address = to.local_addr().expect("bound");
            send_near(&from, address, b"near", 1).expect("it is sent");
            let mut buffer = [0; 8];
            let (length, by) = to.recv_from(&mut buffer).expect("it arrives");
            assert_eq!((&buffer[..length], by), (&b"near"[..], from.local_addr().expect("bound")));
        }
    }
}
