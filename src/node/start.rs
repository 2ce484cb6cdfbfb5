//! Bringing a node up, part by part.

use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};

use anyhow::{Context, bail};
use ipnet::IpNet;
use tokio::sync::mpsc;
use tracing::{info, warn};
use zonemesh_discovery::{
    advert::MAX_ROUTES,
    identity::{Identity, PublicKey},
    interfaces::{Change, InterfaceMonitor},
    mdns::Mdns,
    membership::NetworkId,
    stun::ReflexiveClient,
    zone::TsigKey,
};

use super::{
    Due, Event, GATHER_LIMIT, Gather, HEARD_INTERVAL, Node, QUEUE,
    hard::Hard,
    membership::{self, Joined},
    mtu::{self, Mtu},
    relays::RelayKeeper,
    slice::Slice,
    uplinks::Uplinks,
    zone::ZoneState,
};
use crate::{
    apply::Applier,
    config::{Config, Trust, ZoneConfig},
    control::ControlServer,
    dataplane::{self, DataPlane, Upcall},
    join::{self, Given, JoinError, Settled},
    mesh::{
        Mesh, Settings,
        own::{Own, Template},
        roster::{Admission, Roster},
    },
    rendezvous::{self, Rendezvous},
    state::{self, State},
};

impl Node {
    /// Brings up everything; gives the node with the queues that its loop reads.
    pub(super) async fn start(
        mut config: Config,
        given: Option<Given>,
    ) -> anyhow::Result<(Self, mpsc::Receiver<Upcall>, mpsc::Receiver<Event>)> {
        let (now, wall) = (Instant::now(), SystemTime::now());
        let mut state = State::open(&config.node.state_dir)?;
        let identity = Arc::new(state.identity()?);
        let settled = settle(&mut config, given.as_ref(), &state, &identity.public_key(), wall)?;
        let joined = settled.as_ref().map(Joined::new);
        config.check_node()?;
        config.check_own_key(&identity.public_key())?;
        let trust = config.trust.get_or_insert(Trust::Zone).clone();
        for warning in &config.warnings {
            warn!("{warning}");
        }
        if trust == Trust::Zone && config.zone.is_some() {
            warn!("{TRUST_WARNING}");
        }
        let (sender, events) = mpsc::channel(QUEUE);

        // Before the device: whoever holds the socket is another daemon.
        let control = ControlServer::bind(&config.control_socket)?;
        let kept_port = state.port();
        let (data, upcalls) = start_data_plane(&config, &identity, kept_port)?;
        let port = data.port();
        if kept_port != Some(port)
            && let Err(error) = state.save_port(port)
        {
            warn!("cannot keep the port: {error}");
        }
        let applier = Applier::new(data.interface().1)?;
        let mtu = config.interface.mtu.unwrap_or(mtu::DEFAULT);
        applier.bring_up(mtu).await?;
        data.set_mtu(mtu);
        tokio::spawn(control.run(sender.clone()));

        let slice = take_slice(&config, &identity, settled.as_ref(), &state, (now, wall))?;
        let routes = own_routes(&config);
        let zone = config.zone.clone();
        let network = joined.as_ref().map(|joined| joined.network);
        let admission = admission(trust, network)?;
        let roster = zone.as_ref().map(|zone| {
            let fixed = config.peers.iter().map(|peer| peer.public_key).collect();
            Roster::new(zone.name.clone(), identity.public_key(), admission, fixed)
        });
        let own = zone.as_ref().map(|zone| {
            let addresses = config.interface.addresses.iter().map(IpNet::addr).collect();
            let name = config.node.name.clone();
            let chain = settled.as_ref().map(|settled| settled.membership.chain());
            let certificate = chain.map(|chain| chain.as_bytes().to_vec());
            let template = Template { name, addresses, routes: routes.clone(), certificate };
            Own::new(Arc::clone(&identity), zone.name.clone(), template, state.sequence())
        });
        let settings = Settings {
            own: identity.public_key(),
            private_key: identity.wireguard_private_key(),
            routes: routes.clone(),
            invite: settled.iter().flat_map(|it| it.certified.invited.clone()).collect(),
            overlay: config.interface.addresses.iter().map(IpNet::trunc).collect(),
            fixed: config.peers.iter().map(|peer| (peer.public_key, peer.routes.clone())).collect(),
            hard: config.hard_nats,
            seed: rand::random(),
        };
        let mut mesh = Mesh::new(settings, roster, now, wall);
        if let Some(joined) = &joined {
            membership::restore(joined, &mut mesh, &state, now);
        }
        if let Some(seal) = zone.as_ref().and_then(|zone| zone.seal.clone()) {
            mesh.set_seal(seal);
        }
        for txt in state.load_peers() {
            mesh.handle_remembered(&txt, now, wall);
        }
        let mut stun = ReflexiveClient::new(rand::random());
        // Until the zone answers, those that it named last time.
        let from_zone = config.stun_servers.is_empty() && zone.is_some();
        let known =
            if from_zone { state.stun_servers().to_vec() } else { config.stun_servers.clone() };
        stun.set_servers(&known, now);
        let mut uplinks = Uplinks::default();
        uplinks.set_servers(&known, now);

        let relays = RelayKeeper::start(&config, &identity.public_key(), &sender, (now, wall))?;
        let mut node = Self {
            public_key: identity.public_key(),
            port,
            state,
            data,
            applier,
            mtu: Mtu::new(mtu),
            mesh,
            stun,
            own,
            joined,
            slice,
            relays,
            hard: Hard::new(sender.clone()),
            uplinks,
            rendezvous: None,
            mdns: None,
            lan_interfaces: Vec::new(),
            routes,
            events: sender.clone(),
            gather: Gather::new(port),
            clocks: (now, wall),
            zone: ZoneState { stun_servers: known, ..ZoneState::default() },
            due: Due {
                advert: Some(now + GATHER_LIMIT),
                recheck: false,
                heard: now + HEARD_INTERVAL,
                save: None,
                apply: None,
                stun_allowed: now,
            },
            failed: None,
            config,
        };
        node.start_monitor(&sender, now).await;
        // Without a zone nobody would learn of the mapping.
        if node.config.portmap && zone.is_some() {
            node.gather.start_portmap(port, &sender);
        }
        if zone.is_some() && node.config.relay.servers.is_empty() {
            let known = node.state.relays().to_vec();
            node.set_relay_servers(&known, now);
        }
        if let Some(zone) = &zone {
            node.rendezvous = Some(start_rendezvous(&node.config, zone, node.public_key, &sender)?);
            node.start_mdns();
        }
        node.tell_services(now);
        Ok((node, upcalls, events))
    }

    /// Host addresses now, and an event for each later change.
    async fn start_monitor(&mut self, events: &mpsc::Sender<Event>, now: Instant) {
        let mut monitor = match InterfaceMonitor::start().await {
            Ok(monitor) => monitor,
            Err(error) => {
                warn!("host addresses are not known: {error}");
                return;
            }
        };
        self.handle_interfaces(monitor.addresses(), Change::Addresses, now);
        let events = events.clone();
        tokio::spawn(async move {
            loop {
                match monitor.changed().await {
                    Ok(change) => {
                        let event = Event::Interfaces(monitor.addresses().to_vec(), change);
                        if events.send(event).await.is_err() {
                            return;
                        }
                    }
                    Err(error) => warn!("{error}"),
                }
            }
        });
    }

    /// Advertises and browses on the LAN too. Without it the zone still does.
    fn start_mdns(&mut self) {
        if !self.config.mdns.enabled {
            return;
        }
        let seal = self.config.zone.as_ref().and_then(|zone| zone.seal.clone());
        match Mdns::start(&self.lan_interfaces) {
            Ok(mdns) => self.mdns = Some(mdns.sealed(seal)),
            Err(error) => warn!("not on the LAN: {error}"),
        }
    }
}

/// What `trust = "zone"` means, for the log and for `status`.
pub(super) const TRUST_WARNING: &str = "network.trust is \"zone\": whoever may write in the \
     zone, or speak mDNS on the LAN, may join this mesh; join a network with a token, or set \
     trust = \"listed\" and list the keys of those who may";

fn start_data_plane(
    config: &Config,
    identity: &Identity,
    kept_port: Option<u16>,
) -> anyhow::Result<(DataPlane, mpsc::Receiver<Upcall>)> {
    let settings = |port| dataplane::Config {
        interface: config.interface.name.clone(),
        private_key: identity.wireguard_private_key(),
        listen_port: port,
    };
    match (config.interface.listen_port, kept_port) {
        // A port of our own choice is kept, unless somebody else has it by now.
        (0, Some(kept)) => DataPlane::start(&settings(kept)).or_else(|error| {
            info!("port {kept}, used last time, cannot be had again: {error}");
            DataPlane::start(&settings(0))
        }),
        (port, _) => DataPlane::start(&settings(port)),
    }
    .map_err(anyhow::Error::from)
}

/// A part of the network's range, where the configuration asks for one.
fn take_slice(
    config: &Config,
    identity: &Arc<Identity>,
    settled: Option<&Settled>,
    state: &State,
    clocks: (Instant, SystemTime),
) -> anyhow::Result<Option<Slice>> {
    let has_addresses = !config.interface.addresses.is_empty();
    let slice = settled
        .filter(|_| config.interface.wants_slice())
        .and_then(|settled| Slice::new(identity, settled, state, has_addresses, clocks));
    if slice.is_none() && config.interface.auto_routes == Some(true) {
        bail!(match settled {
            None =>
                "interface.routes is \"auto\", which is for members of a network: join one \
                     with a token, or name the prefixes",
            Some(_) =>
                "interface.routes is \"auto\", but this node's certificate holds no whole \
                        slice of the network's range: join again with a token that allows it",
        });
    }
    Ok(slice)
}

/// What is behind this node: the configured prefixes, and its own overlay addresses
/// where they lie outside of them, so that a node can be reached in any case.
pub(super) fn own_routes(config: &Config) -> Vec<IpNet> {
    let mut routes = config.interface.routes.clone();
    for address in config.interface.addresses.iter().map(IpNet::addr) {
        if !routes.iter().any(|route| route.contains(&address)) {
            if routes.len() == MAX_ROUTES {
                warn!("{address} is not advertised: an advert holds {MAX_ROUTES} routes");
                continue;
            }
            routes.push(IpNet::from(address));
        }
    }
    routes
}

/// What this node is in its network; the configuration is filled in with it.
fn settle(
    config: &mut Config,
    given: Option<&Given>,
    state: &State,
    node: &PublicKey,
    wall: SystemTime,
) -> anyhow::Result<Option<Settled>> {
    let kept = state::membership(&config.node.state_dir)?;
    let settled = join::settle(kept, given, config, node, wall)?;
    if let Some(settled) = &settled {
        if settled.is_new
            && let Err(error) = state.save_membership(&settled.membership)
        {
            warn!("this node's membership cannot be kept, so the token is needed again: {error}");
        }
        join::fill(config, settled)?;
    }
    Ok(settled)
}

/// Whose adverts count.
fn admission(trust: Trust, network: Option<NetworkId>) -> Result<Admission, JoinError> {
    Ok(match trust {
        Trust::Listed(keys) => Admission::Listed(keys),
        Trust::Zone => Admission::Zone,
        Trust::Members => Admission::Members(network.ok_or(JoinError::NoMember)?, None),
    })
}

pub(super) fn start_rendezvous(
    config: &Config,
    zone: &ZoneConfig,
    node: PublicKey,
    events: &mpsc::Sender<Event>,
) -> anyhow::Result<Rendezvous> {
    let tsig = zone
        .tsig
        .as_ref()
        .map(|tsig| TsigKey::new(&tsig.name, tsig.algorithm.name(), tsig.secret.expose()));
    let settings = rendezvous::Settings {
        zone: zone.name.clone(),
        servers: zone.servers.clone(),
        tsig: tsig.transpose().context("zone.tsig")?,
        seal: zone.seal.clone(),
        node,
        ask_stun: config.stun_servers.is_empty(),
        ask_relays: config.relay.is_used() && config.relay.servers.is_empty(),
    };
    Ok(Rendezvous::start(settings, events.clone()))
}
