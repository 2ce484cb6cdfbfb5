//! What the STUN servers tell, through sockets of this run's own.

use std::{
    collections::HashMap,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::Context;
use tokio::{net::UdpSocket, time::sleep_until};
use zonemesh_discovery::stun::{
    MAX_SERVERS, MappingLifetime, NatBehaviour, ReflexiveClient, StunEvent,
};

use super::{
    report::{Source, StunReport},
    source_address,
};
use crate::{measure, status::NatStatus};

/// A silent server counts as that after some 6 s, and the behaviour test of one that
/// answers takes 5 questions of some 2 s.
const LIMIT: Duration = Duration::from_secs(22);

/// How many servers are tried for a measurement that not every one can show.
const MEASURE_SERVERS: usize = 3;

/// What the servers told.
pub(super) struct Found {
    pub(super) nat: NatStatus,
    pub(super) behaviour: NatBehaviour,
    pub(super) lifetime: Option<MappingLifetime>,
    pub(super) reflexive: Vec<SocketAddr>,
    pub(super) servers: Vec<StunReport>,
}

/// Asks the servers; and where `lifetime` is wanted, for some minutes.
pub(super) async fn check(
    servers: &[SocketAddr],
    source: Source,
    lifetime: bool,
) -> anyhow::Result<Found> {
    let servers = &servers[..servers.len().min(MAX_SERVERS)];
    let sockets = Sockets::open(servers).await?;
    let mut client = ReflexiveClient::new(rand::random());
    client.set_local_addresses(&sockets.local_addresses(servers));
    let start = Instant::now();
    client.set_servers(servers, start);
    let mut sent = HashMap::new();
    let mut rtt = HashMap::new();
    let mut mapping = None;
    while !client.is_settled() && start.elapsed() < LIMIT {
        let now = Instant::now();
        client.handle_timeout(now);
        // What else it tells is read from its state in the end.
        while let Some(event) = client.poll_event() {
            if let StunEvent::MappingWanted { server, other } = event {
                mapping = Some(tokio::spawn(measure::mapping(server, other)));
            }
        }
        while let Some(transmit) = client.poll_transmit() {
            sent.insert(transmit.to, now);
            // What cannot be sent is not answered.
            let _ = sockets.of(transmit.to).send_to(&transmit.payload, transmit.to).await;
        }
        let due = client.poll_timeout().unwrap_or(start + LIMIT).min(start + LIMIT);
        let mut buffer = [0; 1500];
        if let Some((length, from)) = sockets.receive(&mut buffer, due).await {
            let now = Instant::now();
            let is_answer = client.handle_datagram(from, &buffer[..length], now);
            if let Some(sent) = sent.get(&from).filter(|_| is_answer) {
                rtt.entry(from).or_insert(now - *sent);
            }
        }
    }
    if let Some(mapping) = mapping
        && let Ok(Ok(Some(found))) = mapping.await
    {
        client.set_mapping(found);
    }
    let report = |server: &SocketAddr| StunReport {
        server: *server,
        source,
        rtt_ms: rtt.get(server).map(|rtt: &Duration| rtt.as_secs_f64() * 1000.0),
    };
    let reflexive: Vec<SocketAddr> = client.reflexive().collect();
    let mut nat = NatStatus::new(&client);
    let primary = reflexive.first().is_some_and(SocketAddr::is_ipv4);
    let answering: Vec<SocketAddr> = client
        .named()
        .map(|(_, server, _)| server)
        .filter(|server| server.is_ipv4() == primary)
        .take(MEASURE_SERVERS)
        .collect();
    let own: Vec<SocketAddr> = sockets.local_addresses(servers);
    let has_nat = !reflexive.iter().any(|seen| own.iter().any(|own| own.ip() == seen.ip()));
    if let Some(server) = answering.first().filter(|_| has_nat) {
        nat.hairpin = measure::hairpin(*server).await.ok().flatten();
    }
    let mut measured = None;
    for server in answering.iter().filter(|_| lifetime) {
        measured = measure::mapping_lifetime(*server).await.ok().flatten();
        if measured.is_some() {
            break;
        }
    }
    nat.mapping_lifetime_s = measured.map(|found| found.safe().as_secs());
    Ok(Found {
        nat,
        behaviour: client.behaviour(),
        lifetime: measured,
        reflexive,
        servers: servers.iter().map(report).collect(),
    })
}

/// One socket per family. Where there is no IPv6, the one of IPv4 fails to send to
/// its servers, and they count as silent.
struct Sockets {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
}

impl Sockets {
    async fn open(servers: &[SocketAddr]) -> anyhow::Result<Self> {
        let v4 =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.context("cannot open a socket")?;
        let v6 = if servers.iter().any(SocketAddr::is_ipv6) {
            UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await.ok()
        } else {
            None
        };
        Ok(Self { v4, v6 })
    }

    fn of(&self, remote: SocketAddr) -> &UdpSocket {
        match &self.v6 {
            Some(v6) if remote.is_ipv6() => v6,
            _ => &self.v4,
        }
    }

    /// What the sockets are bound to, as far as the servers are concerned.
    fn local_addresses(&self, servers: &[SocketAddr]) -> Vec<SocketAddr> {
        let local = |server: &SocketAddr| {
            let port = self.of(*server).local_addr().ok()?.port();
            Some(SocketAddr::new(source_address(*server)?, port))
        };
        servers.iter().filter_map(local).collect()
    }

    async fn receive(&self, buffer: &mut [u8], until: Instant) -> Option<(usize, SocketAddr)> {
        let v6 = async {
            match &self.v6 {
                Some(v6) => v6.readable().await.map(|()| v6),
                None => std::future::pending().await,
            }
        };
        let socket = tokio::select! {
            ready = self.v4.readable() => ready.map(|()| &self.v4),
            ready = v6 => ready,
            () = sleep_until(until.into()) => return None,
        };
        // An error is an ICMP one about an earlier datagram, or a false alarm: the
        // client's retries handle both.
        socket.and_then(|socket| socket.try_recv_from(buffer)).ok()
    }
}
