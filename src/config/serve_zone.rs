//! `[serve.zone]`: the mesh's zone, served by this host.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use zonemesh_discovery::{
    advert::Zone,
    zone::{
        TsigKey,
        serve::{
            Limits,
            wire::{KeyRights, Rate, Rates, UpdateRight, node_of_key},
        },
    },
};

use super::{
    TsigConfig,
    document::{Item, Result, Section},
    read::{Warnings, path, server, tsig_key, unique},
    serve::{addresses, listen},
};

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
    /// Where it is served, by UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// Where it is served under TLS.
    pub tls_listen: Vec<SocketAddr>,
    /// The addresses that the zone says this host has; where empty, those that are listened
    /// on.
    pub addresses: Vec<IpAddr>,
    /// Keeps the journal.
    pub data_dir: PathBuf,
    /// The secondary servers: they are told of changes, and named in the zone.
    pub secondaries: Vec<SocketAddr>,
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
    let expected = "the name of the zone that is served, such as \"mesh.example\"";
    let item = section.need("name", expected)?;
    let name: Zone = item.parse(expected)?;
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
    let addresses = addresses(&mut section, "addresses", 4)?;
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
    let keys = match section.take("keys") {
        Some(item) => keys(item, &name, warnings)?,
        None => vec![],
    };
    let closed = match section.take("transfer") {
        Some(item) => closed(&item)?,
        None => false,
    };
    let (limits, rates, connections, connections_per_source) = limits(section.section("limits")?)?;
    section.finish()?;
    Ok(ServeZoneConfig {
        name,
        listen,
        tls_listen,
        addresses,
        data_dir,
        secondaries,
        keys,
        closed,
        limits,
        rates,
        connections,
        connections_per_source,
    })
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
    warnings: &mut Warnings<'_>,
) -> Result<Vec<(TsigKey, KeyRights)>> {
    let mut keys: Vec<(TsigKey, KeyRights)> = Vec::new();
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
    Ok(keys)
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
    let limits = Limits { nodes, claims: nodes, bytes, ..usual };
    Ok((limits, Rates { answers, updates, transfers }, connections, connections_per_source))
}
