//! `zonemesh netcheck`: what the network between this machine and the Internet does
//! to UDP.
//!
//! It asks the same STUN servers as the daemon does, through sockets of its own, so
//! that it can run beside a daemon, or before one is there. The NAT's behaviour is
//! that of the machine's NAT, not of one socket; the reflexive ports are this run's.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde::Serialize;
use tokio::{net::UdpSocket, time::sleep_until};
use zonemesh_discovery::{
    stun::{MAX_SERVERS, ReflexiveClient},
    zone::{TsigKey, ZoneClient, find_server},
};

use crate::{
    config::{Config, ZoneConfig},
    rendezvous::STUN_SERVICE,
    status::NatStatus,
};

/// A silent server counts as that after some 6 s, and the behaviour test of one that
/// answers takes 4 questions of some 2 s.
const LIMIT: Duration = Duration::from_secs(20);

/// What was found out.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The NAT's behaviour.
    pub nat: NatStatus,
    /// As which addresses the servers see this machine.
    pub reflexive: Vec<SocketAddr>,
    /// The servers that were asked.
    pub stun: Vec<StunReport>,
    /// Port mapping protocols: not checked by this version.
    pub port_mapping: Option<()>,
    /// Relays: not checked by this version.
    pub relays: Option<()>,
}

/// What became of one STUN server.
#[derive(Debug, Serialize)]
pub struct StunReport {
    /// The server.
    pub server: SocketAddr,
    /// Who named it: `configuration` or `zone`.
    pub source: Source,
    /// The round trip; `None` where it did not answer.
    pub rtt_ms: Option<f64>,
}

/// Who named a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The configuration.
    Configuration,
    /// The zone's SRV records.
    Zone,
}

impl Report {
    /// Whether any server answered: otherwise nothing is known.
    pub fn is_conclusive(&self) -> bool {
        self.stun.iter().any(|server| server.rtt_ms.is_some())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "NAT           {}", self.nat)?;
        let reflexive: Vec<String> = self.reflexive.iter().map(ToString::to_string).collect();
        let reflexive = if reflexive.is_empty() { "-".to_owned() } else { reflexive.join(", ") };
        writeln!(f, "seen as       {reflexive}")?;
        for server in &self.stun {
            let rtt = server.rtt_ms.map_or("no answer".to_owned(), |rtt| format!("{rtt:.1} ms"));
            writeln!(f, "STUN          {}  {rtt}", server.server)?;
        }
        writeln!(f, "port mapping  not checked by this version")?;
        writeln!(f, "relays        not checked by this version")
    }
}

/// Asks the servers that the configuration names, or else the zone.
///
/// # Errors
/// When no server is known, or no socket can be had.
pub fn run(config: &Config) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (servers, source) = servers(config).await?;
        check(&servers, source).await
    })
}

async fn servers(config: &Config) -> anyhow::Result<(Vec<SocketAddr>, Source)> {
    if !config.stun_servers.is_empty() {
        return Ok((config.stun_servers.clone(), Source::Configuration));
    }
    let Some(zone) = &config.zone else {
        bail!("no STUN server is known: name some in stun.servers");
    };
    let found = ask_zone(zone).await.with_context(|| {
        format!("cannot ask {} for its STUN servers; stun.servers names some as well", zone.name)
    })?;
    if found.is_empty() {
        bail!(
            "the zone {} names no STUN server: add SRV records at {STUN_SERVICE}, or name some in \
             stun.servers",
            zone.name
        );
    }
    Ok((found, Source::Zone))
}

async fn ask_zone(zone: &ZoneConfig) -> anyhow::Result<Vec<SocketAddr>> {
    let server = match zone.server {
        Some(server) => server,
        None => {
            let found = find_server(&zone.name).await?;
            *found.first().context("its server has no address")?
        }
    };
    let key = zone
        .tsig
        .as_ref()
        .map(|tsig| TsigKey::new(&tsig.name, tsig.algorithm.name(), tsig.secret.expose()));
    let client = ZoneClient::new(zone.name.clone(), server, key.transpose()?);
    Ok(client.services(STUN_SERVICE).await?)
}

async fn check(servers: &[SocketAddr], source: Source) -> anyhow::Result<Report> {
    let servers = &servers[..servers.len().min(MAX_SERVERS)];
    let sockets = Sockets::open(servers).await?;
    let mut client = ReflexiveClient::new(rand::random());
    client.set_local_addresses(&sockets.local_addresses(servers));
    let start = Instant::now();
    client.set_servers(servers, start);
    let mut sent = HashMap::new();
    let mut rtt = HashMap::new();
    while !client.is_settled() && start.elapsed() < LIMIT {
        let now = Instant::now();
        client.handle_timeout(now);
        // What it tells is read from its state in the end.
        while client.poll_event().is_some() {}
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
    let report = |server: &SocketAddr| StunReport {
        server: *server,
        source,
        rtt_ms: rtt.get(server).map(|rtt: &Duration| rtt.as_secs_f64() * 1000.0),
    };
    Ok(Report {
        nat: NatStatus::new(&client),
        reflexive: client.reflexive().collect(),
        stun: servers.iter().map(report).collect(),
        port_mapping: None,
        relays: None,
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

/// The address that the kernel sends from to a remote one. Nothing is sent.
pub(crate) fn source_address(remote: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match remote {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = StdUdpSocket::bind((any, 0)).ok()?;
    socket.connect(remote).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}
