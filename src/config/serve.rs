//! `[serve]`: what `zonemesh serve` serves, and a node beside its own work.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use ipnet::IpNet;
use zonemesh_punch::turn::server::Limits;

use super::{
    Secret,
    document::{Item, Result, Section},
    read::{Warnings, is_unicast, path, unique},
    serve_zone::{self, Around, ServeZoneConfig},
};

/// RFC 8656 §4, RFC 8489 §16: the ports of TURN and STUN, and those under TLS.
const PORT: u16 = 3478;
const TLS_PORT: u16 = 5349;

/// RFC 8656 §7.2: the dynamic ports.
const PORTS: RangeInclusive<u16> = 49_152..=65_535;

/// A realm's length; with it every refusal of a stranger grows (RFC 8489 §14.9 allows
/// 763 bytes).
const MAX_REALM: usize = 64;

/// `[serve]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServeConfig {
    /// Whether `zonemesh up` serves as well.
    pub enabled: bool,
    /// Where datagrams and streams are taken.
    pub listen: Vec<SocketAddr>,
    /// Where streams under TLS are taken.
    pub tls: Option<TlsConfig>,
    /// From which addresses is relayed; where empty, from those that are listened on.
    pub relay_addresses: Vec<IpAddr>,
    /// As which peers see them, one of each family, behind a one-to-one NAT.
    pub external_addresses: Vec<IpAddr>,
    /// From which ports is relayed.
    pub ports: RangeInclusive<u16>,
    /// The realm of the credentials.
    pub realm: String,
    /// The secret that time-limited credentials are made from.
    pub secret: Option<Secret<String>>,
    /// Networks that are relayed to although they would be refused.
    pub allow_peers: Vec<IpNet>,
    /// Whether STUN is served.
    pub stun: bool,
    /// Whether TURN is served.
    pub turn: bool,
    /// `[serve.zone]`: the mesh's zone, where this host serves it.
    pub zone: Option<ServeZoneConfig>,
    /// `[serve.limits]`: how much the clients may have.
    pub limits: Limits,
    /// Streams in all.
    pub connections: usize,
    /// Streams from one IPv4 address or IPv6 /64.
    pub connections_per_source: usize,
}

/// Where TLS is served, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsConfig {
    /// Where streams are taken.
    pub listen: Vec<SocketAddr>,
    /// The certificate and what leads to its authority, in PEM.
    pub cert_file: PathBuf,
    /// Its private key, in PEM.
    pub key_file: PathBuf,
}

pub(super) fn serve(
    mut section: Section<'_>,
    base: &Path,
    warnings: &mut Warnings<'_>,
) -> Result<ServeConfig> {
    let switch = |section: &mut Section<'_>, key, default| {
        section.take(key).map_or(Ok(default), |item| item.boolean())
    };
    let enabled = switch(&mut section, "enabled", false)?;
    let stun = switch(&mut section, "stun", true)?;
    let turn = switch(&mut section, "turn", true)?;
    let listen = listen(&mut section, "listen", PORT)?.unwrap_or_else(|| everywhere(PORT));
    let tls = tls(&mut section, base)?;
    let relay_addresses = addresses(&mut section, "relay_addresses", usize::MAX)?;
    let external_addresses = addresses(&mut section, "external_address", 2)?;
    if let [a, b] = &external_addresses[..]
        && a.is_ipv4() == b.is_ipv4()
    {
        return Err(section.wrong("external_address", "one address of each family at most"));
    }
    let ports = section.take("ports").map_or(Ok(PORTS), |item| port_range(&item))?;
    let realm = match section.take("realm") {
        Some(item) => realm(&item)?,
        None => "zonemesh".to_owned(),
    };
    let secret = section.take("secret_file").map(|item| warnings.secret(&item)).transpose()?;
    let allow_peers = match section.take("allow_peers") {
        Some(item) => unique(item, "networks", usize::MAX, network)?,
        None => vec![],
    };
    let (limits, connections, connections_per_source) = limits(section.section("limits")?)?;
    let around = Around { listen: &listen, has_tls: tls.is_some(), base };
    let zone = section
        .take("zone")
        .map(|item| serve_zone::zone(item.section()?, &around, warnings))
        .transpose()?;
    section.finish()?;
    let secret = secret.or_else(|| zone.as_ref().and_then(ServeZoneConfig::relay_secret));
    if turn && secret.is_none() {
        let expected = "the file with the secret that time-limited credentials are made from \
                        (coturn's use-auth-secret), or turn = false";
        return Err(section.missing("secret_file", expected));
    }
    if !turn && !stun && zone.is_none() {
        let expected = "true, for without stun, turn and a zone nothing is served";
        return Err(section.wrong("turn", expected));
    }
    Ok(ServeConfig {
        enabled,
        listen,
        tls,
        relay_addresses,
        external_addresses,
        ports,
        realm,
        secret,
        allow_peers,
        stun,
        turn,
        zone,
        limits,
        connections,
        connections_per_source,
    })
}

fn everywhere(port: u16) -> Vec<SocketAddr> {
    vec![(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()]
}

fn tls(section: &mut Section<'_>, base: &Path) -> Result<Option<TlsConfig>> {
    let listen = listen(section, "tls_listen", TLS_PORT)?;
    let cert_file = section.take("tls_cert_file");
    let key_file = section.take("tls_key_file");
    match (listen, cert_file, key_file) {
        (None, None, None) => Ok(None),
        (listen, Some(cert_file), Some(key_file)) => {
            let listen = listen.unwrap_or_else(|| everywhere(TLS_PORT));
            let (cert_file, key_file) = (readable(&cert_file, base)?, readable(&key_file, base)?);
            Ok(Some(TlsConfig { listen, cert_file, key_file }))
        }
        (_, None, _) => {
            Err(section.missing("tls_cert_file", "the certificate in PEM, since TLS is asked for"))
        }
        (_, _, None) => {
            Err(section
                .missing("tls_key_file", "the certificate's key in PEM, since TLS is asked for"))
        }
    }
}

/// The path of a file that can be read.
fn readable(item: &Item<'_>, base: &Path) -> Result<PathBuf> {
    let path = path(item, base)?;
    let file = fs::File::open(&path).and_then(|file| file.metadata());
    match file {
        Ok(metadata) if metadata.is_file() => Ok(path),
        Ok(_) => Err(item.error(format!("{} is not a regular file", path.display()))),
        Err(error) => Err(item.error(format!("cannot read {}: {error}", path.display()))),
    }
}

/// Addresses to listen on, with a port that fits those who do not name one.
pub(super) fn listen(
    section: &mut Section<'_>,
    key: &'static str,
    port: u16,
) -> Result<Option<Vec<SocketAddr>>> {
    let Some(item) = section.take(key) else { return Ok(None) };
    let expected = format!(
        "an IP address of this machine, with port or without (then {port}), such as \
         \"198.51.100.10:{port}\", \"0.0.0.0:{port}\" or \"[::]:{port}\""
    );
    let mut listen = unique(item, "addresses", usize::MAX, |item| {
        let text = item.text(&expected)?;
        let addr = match text.parse::<IpAddr>() {
            Ok(ip) => SocketAddr::new(ip, port),
            Err(_) => item.parse(&expected)?,
        };
        let fits = is_unicast(addr.ip()) || addr.ip().is_loopback() || addr.ip().is_unspecified();
        if addr.port() == 0 || !fits { Err(item.wrong(&expected)) } else { Ok(addr) }
    })?;
    // Nowhere to listen is the default, as everywhere else.
    Ok(Some(std::mem::take(&mut listen)).filter(|listen| !listen.is_empty()))
}

pub(super) fn addresses(
    section: &mut Section<'_>,
    key: &'static str,
    limit: usize,
) -> Result<Vec<IpAddr>> {
    let Some(item) = section.take(key) else { return Ok(vec![]) };
    unique(item, "addresses", limit, |item| {
        let ip: IpAddr = item.parse("an IP address")?;
        if is_unicast(ip) || ip.is_loopback() {
            Ok(ip)
        } else {
            Err(item.wrong("a unicast address"))
        }
    })
}

fn port_range(item: &Item<'_>) -> Result<RangeInclusive<u16>> {
    let expected = "the first and the last port to relay from, such as \"49152-65535\"";
    let text = item.text(expected)?;
    let (first, last) = text.split_once('-').ok_or_else(|| item.wrong(expected))?;
    let port = |text: &str| text.trim().parse::<u16>().map_err(|_| item.wrong(expected));
    let ports = port(first)?..=port(last)?;
    if ports.is_empty() || *ports.start() < 1024 {
        return Err(item.wrong("a range of ports from 1024 on, the first one first"));
    }
    Ok(ports)
}

fn realm(item: &Item<'_>) -> Result<String> {
    let expected = "a realm: 1 to 64 printable ASCII characters without quotes and backslashes";
    let realm = item.text(expected)?;
    let plain =
        |byte: u8| (byte.is_ascii_graphic() || byte == b' ') && byte != b'"' && byte != b'\\';
    if !(1..=MAX_REALM).contains(&realm.len()) || !realm.bytes().all(plain) {
        return Err(item.wrong(expected));
    }
    Ok(realm.to_owned())
}

fn network(item: &Item<'_>) -> Result<IpNet> {
    let expected = "a network with prefix length, such as \"192.168.7.0/24\", or an address";
    let network = match item.text(expected)?.parse::<IpAddr>() {
        Ok(ip) => ip.into(),
        Err(_) => item.parse::<IpNet>(expected)?,
    };
    if network.trunc() != network {
        return Err(item.error(format!("{network} has host bits; it is {}", network.trunc())));
    }
    Ok(network)
}

/// The limits, and how many streams there may be, in all and from one source.
fn limits(mut section: Section<'_>) -> Result<(Limits, usize, usize)> {
    let usual = Limits::default();
    let mut count = |key, default: usize, most: u64| match section.take(key) {
        Some(item) => {
            item.number(1..=most).map(|number| usize::try_from(number).unwrap_or(usize::MAX))
        }
        None => Ok(default),
    };
    let allocations = count("allocations", usual.allocations, 65_536)?;
    let allocations_per_account =
        count("allocations_per_account", usual.allocations_per_account, 65_536)?;
    let allocations_per_source =
        count("allocations_per_source", usual.allocations_per_source, 65_536)?;
    let permissions = count("permissions", usual.permissions, 65_536)?;
    let channels = count("channels", usual.channels, 4096)?;
    let connections = count("connections", 4096, 65_536)?;
    let connections_per_source = count("connections_per_source", 256, 65_536)?;
    let strangers = count("requests_per_stranger", usual.strangers as usize, 1_000_000)?;
    let mut rate = |key| match section.take(key) {
        // 0 is how no limit is written.
        Some(item) => Ok(Some(item.number(0..=1 << 40)?).filter(|rate| *rate != 0)),
        None => Ok(None),
    };
    let bandwidth = rate("bandwidth")?;
    let bandwidth_per_allocation = rate("bandwidth_per_allocation")?;
    section.finish()?;
    let limits = Limits {
        allocations,
        allocations_per_account,
        allocations_per_source,
        permissions,
        channels,
        bandwidth,
        bandwidth_per_allocation,
        strangers: u32::try_from(strangers).unwrap_or(u32::MAX),
    };
    Ok((limits, connections, connections_per_source))
}
