//! ICMP echo over the overlay, for `zonemesh ping`.
//!
//! One request through the overlay interface, and its answer: from the address that
//! was asked, with the number and the random bytes that were sent.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket as StdSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{net::UdpSocket, time::timeout};

/// Random bytes in the echo, which nobody on the way could guess.
const TOKEN_LEN: usize = 32;

/// Bytes of an ICMP header (RFC 792, RFC 4443).
const HEADER_LEN: usize = 8;

/// Sends one echo request through `interface` and waits for its answer. `None` when
/// none came within `limit`.
///
/// # Errors
/// When no raw socket can be had, or the kernel does not send it.
pub async fn echo(
    target: IpAddr,
    interface: &str,
    sequence: u16,
    limit: Duration,
) -> io::Result<Option<Duration>> {
    let socket = raw_socket(target, interface)?;
    let request = Request { target, sequence, token: rand::random() };
    let start = Instant::now();
    socket.send(&request.encode()).await?;
    let answer = async {
        let mut buffer = [0; 256];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if request.is_answered_by(&buffer[..length]) {
                return Ok(start.elapsed());
            }
        }
    };
    timeout(limit, answer).await.map_or(Ok(None), |answered| answered.map(Some))
}

/// A raw socket that hears `target` alone. It is driven as a UDP socket, which has the
/// same system calls.
fn raw_socket(target: IpAddr, interface: &str) -> io::Result<UdpSocket> {
    let (domain, protocol) = match target {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.bind_device(Some(interface.as_bytes()))?;
    socket.connect(&SocketAddr::new(target, 0).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(StdSocket::from(socket))
}

struct Request {
    target: IpAddr,
    sequence: u16,
    token: [u8; TOKEN_LEN],
}

impl Request {
    /// Type and code of request and answer: RFC 792, RFC 4443 §4.
    fn types(&self) -> (u8, u8) {
        match self.target {
            IpAddr::V4(_) => (8, 0),
            IpAddr::V6(_) => (128, 129),
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut packet = vec![self.types().0, 0, 0, 0];
        // The kernel fills in the identifier of no raw socket: the token stands for it.
        packet.extend_from_slice(&self.token[..2]);
        packet.extend_from_slice(&self.sequence.to_be_bytes());
        packet.extend_from_slice(&self.token);
        if self.target.is_ipv4() {
            // For ICMPv6 the kernel does it (RFC 3542 §3.1).
            let checksum = checksum(&packet);
            packet[2..4].copy_from_slice(&checksum.to_be_bytes());
        }
        packet
    }

    fn is_answered_by(&self, packet: &[u8]) -> bool {
        let icmp = match self.target {
            // An IPv4 raw socket gives the IP header too (raw(7)).
            IpAddr::V4(_) => {
                let words = packet.first().map_or(0, |byte| usize::from(byte & 0x0f));
                packet.get(words * 4..).unwrap_or_default()
            }
            IpAddr::V6(_) => packet,
        };
        let Some((header, token)) = icmp.split_at_checked(HEADER_LEN) else { return false };
        header[0] == self.types().1
            && header[1] == 0
            && header[4..6] == self.token[..2]
            && header[6..8] == self.sequence.to_be_bytes()
            && token == self.token
    }
}

/// The Internet checksum (RFC 1071) of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str) -> Request {
        let target = target.parse().expect("an address");
        Request { target, sequence: 7, token: [0xa5; TOKEN_LEN] }
    }

    #[test]
    fn a_packet_with_its_checksum_sums_up_to_zero() {
        let packet = request("10.42.2.1").encode();
        assert_eq!(packet.len() % 2, 0);
        assert_eq!(checksum(&packet), 0);
    }

    #[test]
    fn only_the_answer_to_this_very_request_counts() {
        for (target, header, answer) in [("10.42.2.1", 20, 0), ("fd00::1", 0, 129)] {
            let request = request(target);
            let mut packet = vec![0; header];
            if header > 0 {
                packet[0] = 0x45;
            }
            packet.extend(request.encode());
            assert!(!request.is_answered_by(&packet), "its own echo");
            packet[header] = answer;
            assert!(request.is_answered_by(&packet));
            for at in [header, header + 1, header + 4, header + 7, packet.len() - 1] {
                packet[at] ^= 1;
                assert!(!request.is_answered_by(&packet), "{at}");
                packet[at] ^= 1;
            }
            for length in 0..packet.len() {
                assert!(!request.is_answered_by(&packet[..length]));
            }
        }
    }
}
