//! Measurements of the NAT through sockets of their own, so that WireGuard's is not
//! disturbed: the shells around discovery's machines for them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use tokio::{net::UdpSocket, time::sleep_until};
use zonemesh_discovery::{
    nat64::{self, Prefix64},
    stun::{HairpinTest, LifetimeTest, MappingFound, MappingLifetime, MappingTest, Socket},
};

use crate::netcheck::source_address;

/// An IPv4 address that every host reaches by its default route, if at all (RFC 7050).
const SOME_IPV4: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 0, 170)), 9);

/// Longer than any answer to such a question.
const BUFFER: usize = 1500;

/// Whether the NAT turns packets to its own outer address round; `None` where the server
/// does not answer.
///
/// # Errors
/// When no socket can be had.
pub async fn hairpin(server: SocketAddr) -> io::Result<Option<bool>> {
    let socket = open(server).await?;
    let mut test = HairpinTest::new(server, rand::random(), Instant::now());
    loop {
        if let Some(transmit) = test.poll_transmit() {
            let _ = socket.send_to(&transmit.payload, transmit.to).await;
        }
        if let Some(outcome) = test.poll_event() {
            return Ok(outcome);
        }
        let Some(due) = test.poll_timeout() else { return Ok(None) };
        let mut buffer = [0; BUFFER];
        if let Some((length, from)) = receive(&socket, &mut buffer, due).await {
            test.handle_datagram(from, &buffer[..length], Instant::now());
        }
        test.handle_timeout(Instant::now());
    }
}

/// Which mappings the NAT gives, as a server with two addresses sees them; `None` where one of
/// the two does not answer.
///
/// # Errors
/// When no socket can be had.
pub async fn mapping(server: SocketAddr, other: SocketAddr) -> io::Result<Option<MappingFound>> {
    let socket = open(server).await?;
    let inner = socket.local_addr()?.port();
    let mut test = MappingTest::new(server, other, inner, rand::random(), Instant::now());
    loop {
        if let Some(transmit) = test.poll_transmit() {
            let _ = socket.send_to(&transmit.payload, transmit.to).await;
        }
        if let Some(outcome) = test.poll_event() {
            return Ok(outcome);
        }
        let Some(due) = test.poll_timeout() else { return Ok(None) };
        let mut buffer = [0; BUFFER];
        if let Some((length, from)) = receive(&socket, &mut buffer, due).await {
            test.handle_datagram(from, &buffer[..length], Instant::now());
        }
        test.handle_timeout(Instant::now());
    }
}

/// How long the NAT keeps an idle mapping; `None` where this server cannot show it. Takes
/// minutes, and some thirty datagrams.
///
/// # Errors
/// When no socket can be had.
pub async fn mapping_lifetime(server: SocketAddr) -> io::Result<Option<MappingLifetime>> {
    let (tested, other) = (open(server).await?, open(server).await?);
    let inner = tested.local_addr()?.port();
    let mut test = LifetimeTest::new(server, inner, rand::random(), Instant::now());
    loop {
        while let Some((socket, transmit)) = test.poll_transmit() {
            let socket = match socket {
                Socket::Tested => &tested,
                Socket::Other => &other,
            };
            let _ = socket.send_to(&transmit.payload, transmit.to).await;
        }
        if let Some(outcome) = test.poll_event() {
            return Ok(outcome);
        }
        let Some(due) = test.poll_timeout() else { return Ok(None) };
        let (mut one, mut two) = ([0; BUFFER], [0; BUFFER]);
        let came = tokio::select! {
            came = receive(&tested, &mut one, due) => came.map(|came| (Socket::Tested, came)),
            came = receive(&other, &mut two, due) => came.map(|came| (Socket::Other, came)),
        };
        if let Some((socket, (length, from))) = came {
            let buffer = if socket == Socket::Tested { &one } else { &two };
            test.handle_datagram(socket, from, &buffer[..length], Instant::now());
        }
        test.handle_timeout(Instant::now());
    }
}

/// The prefix by which IPv4 is reached, on a host that has no other way there; `None` on
/// any other.
///
/// # Errors
/// Why the resolver did not answer.
pub async fn nat64_prefix() -> Result<Option<Prefix64>, String> {
    // The kernel knows a way to IPv4: no packet is sent for that.
    if source_address(SOME_IPV4).is_some() {
        return Ok(None);
    }
    Ok(nat64::discover().await?.first().copied())
}

/// A socket of the server's family, on a port of the system's choice.
async fn open(server: SocketAddr) -> io::Result<UdpSocket> {
    match server {
        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await,
        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await,
    }
}

/// The next datagram, unless none comes until then. An error is an ICMP one about an
/// earlier datagram: retries handle what it tells.
async fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    until: Instant,
) -> Option<(usize, SocketAddr)> {
    tokio::select! {
        came = socket.recv_from(buffer) => came.ok(),
        () = sleep_until(until.into()) => None,
    }
}
