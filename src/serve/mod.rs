//! `zonemesh serve`: the rendezvous, a public host that the members of a mesh meet
//! through. It tells them their addresses (STUN), relays for those that cannot reach
//! each other (TURN), and serves the mesh's zone.
//!
//! The pure [`Server`](zonemesh_punch::turn::server::Server) decides; here are the
//! sockets around it. One thread does all of the relaying (the engine): it
//! waits for all sockets at once, those of the clients, one for each relayed address,
//! and the streams, and moves trains of datagrams from one to another. Another
//! thread has the zone. Beside them a small runtime watches the machine's addresses and
//! waits for the end.
//!
//! A node with a public address may serve its mesh beside its own work ([`Beside`]), on
//! threads of their own: what fails there does not end the node.

mod addresses;
mod engine;
mod forward;
mod limits;
mod stream;
mod streams;
mod tls;
mod train;
mod udp;
mod zone;

use std::{
    borrow::Cow,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    thread::{self, JoinHandle},
};

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tracing::{debug, error, info, warn};
use zonemesh_discovery::{
    interfaces::{InterfaceAddress, InterfaceMonitor},
    zone::serve::{Service, ServiceKind, ZoneConfig},
};
use zonemesh_punch::turn::server::is_public;

use self::{
    addresses::Addresses,
    engine::{Engine, Relaying},
};
use crate::config::{Config, ServeConfig, ServeZoneConfig};

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// When a socket cannot be opened, a certificate not be read, or relaying fails.
pub fn run(config: &Config) -> anyhow::Result<()> {
    let serve = config.need_serve()?;
    for warning in &config.warnings {
        warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        serve_until(serve, None, stop).await
    })
}

/// A rendezvous beside a node. Dropped, it ends.
#[derive(Debug)]
pub struct Beside {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// What the rendezvous has to know of the node beside it.
#[derive(Debug, Clone)]
struct Neighbour {
    /// The device of the overlay.
    interface: String,
    /// WireGuard's port, which is as open to peers of the relay as to everybody.
    port: u16,
}

impl Beside {
    /// Starts one where the configuration wants it, beside the node whose WireGuard has
    /// this port. What goes wrong, now or later, is logged: the node does without.
    pub fn if_enabled(config: &Config, port: u16) -> Option<Self> {
        let serve = config.serve.clone().filter(|serve| serve.enabled)?;
        let neighbour = Neighbour { interface: config.interface.name.clone(), port };
        match Self::start(serve, neighbour) {
            Ok(beside) => Some(beside),
            Err(error) => {
                warn!("not serving others: {error}");
                None
            }
        }
    }

    fn start(config: ServeConfig, neighbour: Neighbour) -> io::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let stop = async {
                // Told or dropped, it is over.
                let _ = stopped.await;
            };
            runtime.block_on(serve_until(&config, Some(neighbour), stop))
        };
        let thread = thread::Builder::new().name("serve".into()).spawn(move || {
            if let Err(error) = serve() {
                warn!("not serving others any more: {error:#}");
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It logs what went wrong itself.
            let _ = thread.join();
        }
    }
}

/// Serves until `stop` is there, or relaying fails.
async fn serve_until(
    config: &ServeConfig,
    neighbour: Option<Neighbour>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let overlay = neighbour.as_ref().map(|neighbour| neighbour.interface.as_str());
    let (mut monitor, config) = match InterfaceMonitor::start().await {
        Ok(monitor) => (Some(monitor), Cow::Borrowed(config)),
        Err(error) => {
            warn!("this machine's addresses are not known: {error}");
            (None, Cow::Owned(without_relaying(config)?))
        }
    };
    let config = &*config;
    let interfaces = monitor.as_ref().map_or(&[][..], InterfaceMonitor::addresses);
    let addresses = Addresses::of(config, interfaces, overlay);
    tell(config, &addresses);
    let mut known = addresses.clone();
    let own_ports = neighbour.iter().map(|neighbour| neighbour.port).collect();
    let zone = config.zone.as_ref().map(|zone| start_zone(config, zone, &known, interfaces));
    let mut zone = zone.transpose()?;
    let mut relaying = if config.stun || config.turn {
        Some(Engine::start(config, addresses, own_ports)?)
    } else {
        None
    };
    let mut stop = std::pin::pin!(stop);
    loop {
        tokio::select! {
            () = &mut stop => break,
            () = ended(relaying.as_mut().map(Relaying::ended)) => break,
            () = ended(zone.as_mut().map(zone::Serving::ended)) => break,
            interfaces = changed(&mut monitor) => {
                let addresses = Addresses::of(config, &interfaces, overlay);
                if addresses != known {
                    tell(config, &addresses);
                    known = addresses.clone();
                    if let Some(relaying) = &relaying {
                        relaying.set_addresses(addresses);
                    }
                }
            }
        }
    }
    info!("no longer serving");
    let zone = zone.map_or(Ok(()), zone::Serving::stop).context("the zone failed");
    let relaying = relaying.map_or(Ok(()), Relaying::stop).context("relaying failed");
    zone.and(relaying)
}

/// Waits for what ends by itself; never, where there is nothing.
async fn ended(ending: Option<impl Future<Output = ()>>) {
    match ending {
        Some(ending) => ending.await,
        None => std::future::pending().await,
    }
}

/// Starts to serve the zone, with this host's addresses and services in it.
fn start_zone(
    config: &ServeConfig,
    zone: &ServeZoneConfig,
    addresses: &Addresses,
    interfaces: &[InterfaceAddress],
) -> anyhow::Result<zone::Serving> {
    let tls = config.tls.as_ref().map(tls::config).transpose()?;
    let tls = tls.map(|tls| {
        let mut tls = rustls::ServerConfig::clone(&tls);
        // Transfers under TLS want it named (RFC 9103 §7.1).
        tls.alpn_protocols = vec![b"dot".to_vec()];
        Arc::new(tls)
    });
    let named = named(zone, addresses);
    if named.is_empty() {
        warn!(
            "the zone names no address of this host: serve.listen names none; set \
             serve.zone.addresses"
        );
    }
    let own: Vec<IpAddr> = interfaces.iter().map(|interface| interface.addr).collect();
    let records = ZoneConfig {
        zone: zone.name.clone(),
        network: zone.network.as_ref().map(|network| network.key),
        seal: zone.seal(),
        addresses: named,
        secondaries: zone.secondaries.iter().map(SocketAddr::ip).collect(),
        services: services(config),
        others: zone.hosts.clone(),
        mirror: zone.primary.is_some(),
        limits: zone.limits,
    };
    zone::start(zone, records, tls.as_ref(), &own)
}

/// Which addresses of this host the zone tells: those that clients reach it at.
fn named(zone: &ServeZoneConfig, addresses: &Addresses) -> Vec<IpAddr> {
    /// Several of one family help nobody, and make every answer longer.
    const MOST: usize = 4;
    if !zone.addresses.is_empty() {
        return zone.addresses.clone();
    }
    let seen_as: Vec<IpAddr> = addresses.relay.iter().map(|address| address.external).collect();
    let is_known = |ip: &&IpAddr| zone.servers().any(|server| server == **ip);
    let is_good = |ip: &&IpAddr| is_public(**ip) || is_known(ip);
    let mut named: Vec<IpAddr> = seen_as.iter().filter(is_good).copied().collect();
    if named.is_empty() {
        // Behind a one-to-one NAT that nothing else tells of; or a mesh of a LAN.
        named.extend(zone.servers().next());
    }
    if named.is_empty() {
        named = seen_as;
    }
    named.truncate(MOST);
    named
}

/// What else this host serves, as the zone tells it.
fn services(config: &ServeConfig) -> Vec<Service> {
    let port = config.listen.first().map(SocketAddr::port);
    let tls = config.tls.as_ref().and_then(|tls| tls.listen.first()).map(SocketAddr::port);
    let served = [
        (config.stun, ServiceKind::Stun, port),
        (config.turn, ServiceKind::TurnUdp, port),
        (config.turn, ServiceKind::TurnTcp, port),
        (config.turn, ServiceKind::TurnTls, tls),
    ];
    let served = served.into_iter().filter(|(served, _, _)| *served);
    served.filter_map(|(_, kind, port)| Some(Service { kind, port: port? })).collect()
}

/// What can be served where the machine's addresses are not known: a relay would relay to
/// its own networks.
fn without_relaying(config: &ServeConfig) -> anyhow::Result<ServeConfig> {
    let unserved = "TURN is not served where this machine's addresses are not known";
    anyhow::ensure!(config.stun || config.zone.is_some(), unserved);
    if config.turn {
        error!("not relaying: {unserved}");
    }
    Ok(ServeConfig { turn: false, ..config.clone() })
}

/// The machine's addresses, when they may have changed.
async fn changed(monitor: &mut Option<InterfaceMonitor>) -> Vec<InterfaceAddress> {
    let Some(monitor) = monitor else { return std::future::pending().await };
    while let Err(error) = monitor.changed().await {
        // It tries again by itself.
        debug!("changes of this machine's addresses are not seen: {error}");
    }
    monitor.addresses().to_vec()
}

fn tell(config: &ServeConfig, addresses: &Addresses) {
    if !config.turn {
        return;
    }
    if addresses.relay.is_empty() {
        warn!("no address to relay from: serve.listen and serve.relay_addresses name none");
    }
    for address in &addresses.relay {
        let external = address.external;
        if !is_public(external) {
            warn!(
                "{external} is not public, so peers reach its relayed addresses only from \
                 near; behind a one-to-one NAT set serve.external_address"
            );
        }
        info!(address = %address.bind, seen_as = %external, "relaying from");
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn who_does_not_know_the_own_networks_relays_to_nobody() {
        let config = Config::parse(Path::new("zonemesh.toml"), "[serve]\nturn = false");
        let config = config.expect("a configuration").serve.expect("a [serve] section");
        let both = ServeConfig { turn: true, ..config.clone() };
        assert_eq!(without_relaying(&both).expect("STUN is left"), config);
        let turn = ServeConfig { stun: false, ..both };
        let error = without_relaying(&turn).expect_err("nothing is left").to_string();
        assert!(error.contains("addresses are not known"), "{error}");
    }
}
