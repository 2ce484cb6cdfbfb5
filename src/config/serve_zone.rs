//! `[serve.zone]`: the mesh's zone, served by this host.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use zonemesh_discovery::{
    advert::Zone,
    sealed::Seal,
    zone::{
        TsigKey, ZoneClient,
        serve::{
            Limits,
            wire::{KeyRights, Rate, Rates, UpdateRight, node_of_key},
        },
    },
};

use super::{
    Secret, TsigConfig,
    document::{Item, Result, Section},
    read::{Warnings, path, server, tsig_key, unique},
    serve::{addresses, listen},
};
use crate::network::{NETWORK_FILE, NetworkFile};

/// RFC 1035 §4.2, RFC 7858 §3.1.
const PORT: u16 = 53;
const TLS_PORT: u16 = 853;

/// What a zone's NS records have room for in an answer by UDP, with their addresses.
const MAX_SECONDARIES: usize = 8;

/// `[serve.zone]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeZoneConfig {
    /// The zone's name.
    pub name: Zone,
    /// The network whose zone it is; `None` where only who has a key may write.
    pub network: Option<NetworkFile>,
    /// Where it is served, by UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Where it is served under TLS.
    pub tls_listen: Vec<SocketAddr>,
    /// The addresses that the zone says this host has; where empty, they follow from those
    /// that are listened on.
    pub addresses: Vec<IpAddr>,
    /// Keeps the journal.
    pub data_dir: PathBuf,
    /// The secondary servers: they are told of changes, and named in the zone.
    pub secondaries: Vec<SocketAddr>,
    /// Other hosts of the network that serve STUN and TURN on the same ports.
    pub hosts: Vec<IpAddr>,
    /// The server whose zone it is; `None` where it is this one.
    pub primary: Option<Primary>,
    /// TSIG keys, and what their holders may.
    pub keys: Vec<(TsigKey, KeyRights)>,
    /// Whether only keys with that right may have the zone transferred.
    pub closed: bool,
    /// `[serve.zone.limits]`: how much the zone may hold.
    pub limits: Limits,
    /// How much one network may have.
    pub rates: Rates,
    /// Connections in all.
    pub connections: usize,
    /// Connections from one IPv4 address or IPv6 /64.
    pub connections_per_source: usize,
}

/// The primary server of a zone that this host serves as a secondary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    /// Its address.
    pub server: SocketAddr,
    /// Signs what is asked of it.
    pub key: Option<TsigKey>,
}

/// What of `[serve]` the defaults follow.
pub(super) struct Around<'a> {
    pub(super) listen: &'a [SocketAddr],
    pub(super) has_tls: bool,
    pub(super) base: &'a Path,
}

pub(super) fn zone(
    mut section: Section<'_>,
    around: &Around<'_>,
    warnings: &mut Warnings<'_>,
) -> Result<ServeZoneConfig> {
    let (name, network) = whose(&mut section, around.base)?;
    let there = |port| {
        let mut there: Vec<SocketAddr> = Vec::new();
        for addr in around.listen {
            let addr = SocketAddr::new(addr.ip(), port);
            if !there.contains(&addr) {
                there.push(addr);
            }
        }
        there
    };
    let tls_listen = listen(&mut section, "tls_listen", TLS_PORT)?;
    if tls_listen.is_some() && !around.has_tls {
        return Err(section.wrong("tls_listen", "serve.tls_cert_file and serve.tls_key_file"));
    }
    let tls_default = || if around.has_tls { there(TLS_PORT) } else { Vec::new() };
    let tls_listen = tls_listen.unwrap_or_else(tls_default);
    let listen = listen(&mut section, "listen", PORT)?.unwrap_or_else(|| there(PORT));
    let own_addresses = addresses(&mut section, "addresses", 4)?;
    let data_dir = match section.take("data_dir") {
        Some(item) => path(&item, around.base)?,
        None => PathBuf::from("/var/lib/zonemesh/zone"),
    };
    let secondaries = match section.take("secondaries") {
        Some(item) => {
            unique(item, "secondary servers", MAX_SECONDARIES, |item| server(item, PORT))?
        }
        None => vec![],
    };
    let hosts = addresses(&mut section, "hosts", MAX_SECONDARIES)?;
    let mut known = Vec::new();
    if let Some(key) = network.as_ref().and_then(|network| network.access.tsig.as_ref()) {
        let key = key.key().map_err(|error| section.wrong("network", &error.to_string()))?;
        known.push((key, KeyRights { transfer: true, update: UpdateRight::Proven }));
    }
    if let Some(item) = section.take("keys") {
        keys(item, &name, &mut known, warnings)?;
    }
    let primary = primary(&mut section, &known, network.as_ref())?;
    if primary.is_some() && !hosts.is_empty() {
        return Err(section.wrong("hosts", "them at the primary server, whose zone it is"));
    }
    let closed = match section.take("transfer") {
        Some(item) => closed(&item)?,
        None => false,
    };
    let (limits, rates, connections, connections_per_source) = limits(section.section("limits")?)?;
    section.finish()?;
    Ok(ServeZoneConfig {
        name,
        network,
        listen,
        tls_listen,
        addresses: own_addresses,
        data_dir,
        secondaries,
        hosts,
        primary,
        keys: known,
        closed,
        limits,
        rates,
        connections,
        connections_per_source,
    })
}

/// The zone, and the network that it belongs to: that of the file, unless there is nothing
/// but a name.
fn whose(section: &mut Section<'_>, base: &Path) -> Result<(Zone, Option<NetworkFile>)> {
    let expected = "the name of the zone that is served, such as \"mesh.example\"";
    let file = section.take("network");
    let name = section.take("name");
    let file = match (file, &name) {
        (Some(item), _) => path(&item, base)?,
        (None, None) => base.join(NETWORK_FILE),
        (None, Some(item)) => return Ok((item.parse(expected)?, None)),
    };
    let network = NetworkFile::load(&file)?;
    match name {
        Some(item) if item.parse::<Zone>(expected)? != network.zone => Err(item.error(format!(
            "is not the network's zone, {}; expected that, or no name",
            network.zone
        ))),
        _ => Ok((network.zone.clone(), Some(network))),
    }
}

impl ServeZoneConfig {
    /// The seal of the network's zone, where it has one.
    pub fn seal(&self) -> Option<Seal> {
        self.network.as_ref()?.access.seal_secret.as_ref().map(Seal::new)
    }

    /// The secret that the network's members and relays share.
    pub(super) fn relay_secret(&self) -> Option<Secret<String>> {
        let secret = self.network.as_ref()?.access.relay_secret.as_ref()?;
        // The file is text.
        Some(Secret::new(String::from_utf8_lossy(secret.expose()).into_owned()))
    }

    /// Asks the primary server, where there is another one.
    pub fn client(&self) -> Option<ZoneClient> {
        let Primary { server, key } = self.primary.clone()?;
        Some(ZoneClient::new(self.name.clone(), server, key))
    }

    /// The addresses that members know the zone's servers by.
    pub fn servers(&self) -> impl Iterator<Item = IpAddr> {
        let servers = self.network.iter().flat_map(|network| &network.access.servers);
        servers.map(SocketAddr::ip)
    }
}

/// The server to follow, and the key for it: the one that is named, or the network's.
fn primary(
    section: &mut Section<'_>,
    keys: &[(TsigKey, KeyRights)],
    network: Option<&NetworkFile>,
) -> Result<Option<Primary>> {
    let at = section.take("primary").map(|item| server(&item, PORT)).transpose()?;
    let key = match section.take("primary_key") {
        Some(item) => {
            let expected = "the name of one of serve.zone.keys";
            let name = item.text(expected)?;
            let is_it = |key: &TsigKey| {
                key.name().to_ascii().trim_end_matches('.') == name.trim_end_matches('.')
            };
            let known = keys.iter().map(|(key, _)| key).find(|key| is_it(key));
            Some(known.ok_or_else(|| item.wrong(expected))?.clone())
        }
        // The first one is the network's, where it has one.
        None => keys
            .first()
            .filter(|_| network.is_some_and(|network| network.access.tsig.is_some()))
            .map(|(key, _)| key.clone()),
    };
    Ok(at.map(|server| Primary { server, key }))
}

fn closed(item: &Item<'_>) -> Result<bool> {
    let expected = "\"any\" or \"keys\"";
    match item.text(expected)? {
        "any" => Ok(false),
        "keys" => Ok(true),
        _ => Err(item.wrong(expected)),
    }
}

fn keys(
    list: Item<'_>,
    zone: &Zone,
    keys: &mut Vec<(TsigKey, KeyRights)>,
    warnings: &mut Warnings<'_>,
) -> Result<()> {
    for item in list.list("a list of keys")? {
        let mut section = item.section()?;
        let TsigConfig { name, algorithm, secret } = tsig_key(&mut section, warnings)?;
        let key = TsigKey::new(&name, algorithm.name(), secret.expose())
            .map_err(|error| section.wrong("name", &format!("a usable key: {error}")))?;
        let transfer = section.take("transfer").map_or(Ok(false), |item| item.boolean())?;
        let update = match section.take("update") {
            Some(item) => update_right(&item, zone, &key)?,
            None => UpdateRight::Proven,
        };
        section.finish()?;
        if keys.iter().any(|(known, _)| known.name() == key.name()) {
            return Err(section.wrong("name", "another name than that of another key"));
        }
        keys.push((key, KeyRights { transfer, update }));
    }
    Ok(())
}

fn update_right(item: &Item<'_>, zone: &Zone, key: &TsigKey) -> Result<UpdateRight> {
    let expected = "\"none\", \"own\" or \"all\"";
    match item.text(expected)? {
        "none" => Ok(UpdateRight::Proven),
        "all" => Ok(UpdateRight::All),
        "own" if node_of_key(zone, key).is_some() => Ok(UpdateRight::Own),
        "own" => Err(item.error(format!(
            "the key's name tells no node; expected a key that is named as the node's host: the \
             52 characters of its public key in Base32, and .{zone}"
        ))),
        _ => Err(item.wrong(expected)),
    }
}

fn limits(mut section: Section<'_>) -> Result<(Limits, Rates, usize, usize)> {
    let (usual, rates) = (Limits::default(), Rates::default());
    let mut count = |key, default: usize, most: u64| match section.take(key) {
        Some(item) => {
            item.number(1..=most).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
        }
        None => Ok(default),
    };
    let nodes = count("nodes", usual.nodes, 65_536)?;
    let pointers = count("pointers", usual.pointers, 800)?;
    let bytes = count("bytes", usual.bytes, 1 << 30)?;
    // Each rate comes with a rest's worth in the same measure as its default.
    let mut rate = |key, usual: Rate| -> Result<Rate> {
        let per_second = count(key, usual.per_second as usize, 1_000_000)?;
        let per_second = u32::try_from(per_second).unwrap_or(u32::MAX);
        Ok(Rate { per_second, burst: per_second.saturating_mul(usual.burst / usual.per_second) })
    };
    let answers = rate("answers_per_network", rates.answers)?;
    let updates = rate("updates_per_network", rates.updates)?;
    let transfers = rate("transfers_per_network", rates.transfers)?;
    let connections = count("connections", 4096, 65_536)?;
    let connections_per_source = count("connections_per_source", 1024, 65_536)?;
    section.finish()?;
    let limits = Limits { nodes, claims: nodes, bytes, pointers, ..usual };
    Ok((limits, Rates { answers, updates, transfers }, connections, connections_per_source))
}
