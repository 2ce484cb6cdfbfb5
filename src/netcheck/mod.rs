//! `zonemesh netcheck`: what the network between this machine and the Internet does
//! to UDP, and which relays can be reached.
//!
//! It asks the same STUN servers, router and relays as the daemon does, through sockets of
//! its own, so that it can run beside a daemon, or before one is there. The NAT's
//! behaviour is that of the machine's NAT, not of one socket; the reflexive ports are
//! this run's.

mod advice;
mod relays;
mod report;
mod stun;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket as StdUdpSocket},
    num::NonZeroU16,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::time::timeout;
use zonemesh_discovery::{
    portmap::PortMap,
    zone::{TsigKey, ZoneClient, find_server},
};

use self::advice::{Advice, Findings};
pub use self::report::{RelayReport, Report, Source, StunReport};
use crate::{
    config::{Config, ZoneConfig},
    measure,
    rendezvous::STUN_SERVICE,
    status::PortMappingStatus,
};

/// How long the router may take to say what it maps, all protocols tried.
const PORTMAP_LIMIT: Duration = Duration::from_secs(15);

/// Asks the servers that the configuration names, or else the zone. With `lifetime` also
/// how long the NAT keeps a mapping, which takes minutes. Where no STUN server is known, the
/// rest is looked at all the same.
///
/// # Errors
/// When no socket can be had.
pub fn run(config: &Config, lifetime: bool) -> anyhow::Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let zone = match &config.zone {
            Some(zone) => Some(client(zone).await),
            None => None,
        };
        let (servers, source, stun_error) = match servers(config, zone.as_ref()).await {
            Ok((servers, source)) => (servers, source, None),
            Err(error) => (vec![], Source::Configuration, Some(format!("{error:#}"))),
        };
        let zone = zone.and_then(Result::ok);
        // A resolver that does not answer is as good as one that knows no prefix.
        let nat64 = measure::nat64_prefix().await.unwrap_or_default();
        let reach = |addr: SocketAddr| nat64.map_or(addr, |prefix| prefix.reach(addr));
        let servers: Vec<SocketAddr> = servers.into_iter().map(reach).collect();
        let (stun, port_mapping, relays) = tokio::join!(
            stun::check(&servers, source, lifetime),
            port_mapping(config),
            relays::check(config, zone, reach),
        );
        let stun = stun?;
        let findings = Findings {
            behaviour: stun.behaviour,
            lifetime: stun.lifetime,
            asked: !stun.servers.is_empty(),
            udp: stun.servers.iter().any(|server| server.rtt_ms.is_some()),
            mapped: port_mapping.as_ref().is_some_and(|mapping| mapping.address.is_some()),
            relayed: relays.iter().flatten().any(|relay| relay.relayed.is_some()),
            port: Some(config.interface.listen_port).filter(|port| *port != 0),
        };
        Ok(Report {
            nat: stun.nat,
            reflexive: stun.reflexive,
            stun: stun.servers,
            stun_error,
            port_mapping,
            relays,
            nat64: nat64.map(|prefix| prefix.to_string()),
            advice: Advice::of(&findings).to_string(),
        })
    })
}

async fn servers(
    config: &Config,
    zone: Option<&anyhow::Result<ZoneClient>>,
) -> anyhow::Result<(Vec<SocketAddr>, Source)> {
    if !config.stun_servers.is_empty() {
        return Ok((config.stun_servers.clone(), Source::Configuration));
    }
    let (Some(ZoneConfig { name, .. }), Some(client)) = (&config.zone, zone) else {
        bail!("no STUN server is known: name some in stun.servers");
    };
    let asked = match client {
        Ok(client) => client.services(STUN_SERVICE).await.map_err(anyhow::Error::from),
        Err(error) => Err(anyhow::anyhow!("{error:#}")),
    };
    let found = asked.with_context(|| {
        format!("cannot ask {name} for its STUN servers; stun.servers names some as well")
    })?;
    if found.is_empty() {
        bail!(
            "the zone {name} names no STUN server: add SRV records at {STUN_SERVICE}, or name \
             some in stun.servers"
        );
    }
    Ok((found, Source::Zone))
}

async fn client(zone: &ZoneConfig) -> anyhow::Result<ZoneClient> {
    let server = match zone.servers.first() {
        Some(server) => *server,
        None => {
            let found = find_server(&zone.name).await?;
            *found.first().context("its server has no address")?
        }
    };
    let key = zone
        .tsig
        .as_ref()
        .map(|tsig| TsigKey::new(&tsig.name, tsig.algorithm.name(), tsig.secret.expose()));
    Ok(ZoneClient::new(zone.name.clone(), server, key.transpose()?))
}

/// Has the router map a port of this run's own, and gives it back. `None` where the
/// configuration wants no mapping.
async fn port_mapping(config: &Config) -> Option<PortMappingStatus> {
    if !config.portmap {
        return None;
    }
    let nothing = PortMappingStatus { protocols: vec![], protocol: None, address: None };
    let port = || {
        let socket = StdUdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        let port = NonZeroU16::new(socket.local_addr().ok()?.port())?;
        Some((socket, port))
    };
    // The port stays ours for as long as it is mapped.
    let Some((_socket, port)) = port() else { return Some(nothing) };
    let Ok(portmap) = PortMap::start(port) else { return Some(nothing) };
    let found = timeout(PORTMAP_LIMIT, portmap.changes().next()).await.ok().flatten();
    portmap.stop().await;
    Some(found.as_ref().map_or(nothing, PortMappingStatus::from))
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
