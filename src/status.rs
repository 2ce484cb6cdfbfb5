//! What `zonemesh status` says: the JSON contract and its form for people.
//!
//! The fields of [`Status`] are read by other programs: they are added to, and never
//! renamed or removed. What is not known is `null`.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    time::{Duration, UNIX_EPOCH},
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use zonemesh_discovery::{
    membership::utc,
    portmap::Found,
    stun::{NatBehaviour, ReflexiveClient},
};

/// A node, as it sees itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// This node.
    pub node: NodeStatus,
    /// Its peers: the members of the mesh and the static ones.
    pub peers: Vec<PeerStatus>,
    /// The relays that this node knows, the ones in use first.
    pub relays: Vec<RelayStatus>,
    /// The zone; `null` for a node that has none.
    pub zone: Option<ZoneStatus>,
    /// What somebody should look at.
    pub warnings: Vec<String>,
    /// What was dropped since the start, by reason; only reasons that occurred.
    pub counters: BTreeMap<String, u64>,
}

/// This node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its key, in Base64.
    pub public_key: String,
    /// The overlay interface.
    pub interface: String,
    /// What the interface carries.
    pub addresses: Vec<IpNet>,
    /// The prefixes that this node advertises.
    pub routes: Vec<IpNet>,
    /// The UDP port of WireGuard, checks and STUN.
    pub port: u16,
    /// How the STUN servers see that port.
    pub reflexive: Vec<SocketAddr>,
    /// The NAT in front of it.
    pub nat: NatStatus,
    /// Where it may be reached, as far as it knows.
    pub candidates: Vec<CandidateStatus>,
    /// What the router says of port mappings; `null` until it was asked.
    pub port_mapping: Option<PortMappingStatus>,
    /// What it is in its network; `null` for a member of none.
    pub membership: Option<MembershipStatus>,
    /// The number of the network's newest list of revocations that it knows; `null` where it
    /// knows none.
    pub revocations: Option<u64>,
}

/// What a node is in its network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipStatus {
    /// The network's key, in Base64.
    pub network: String,
    /// The key of the invite that let it in, in Base64.
    pub invite: String,
    /// Its groups.
    pub groups: Vec<String>,
    /// When it ends, in seconds since 1970 UTC; `null`: never.
    pub expires: Option<u64>,
}

impl fmt::Display for MembershipStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  invite {}", self.network, self.invite)?;
        if !self.groups.is_empty() {
            write!(f, "  groups {}", self.groups.join(", "))?;
        }
        let end = self.expires.and_then(|end| UNIX_EPOCH.checked_add(Duration::from_secs(end)));
        end.map_or(Ok(()), |end| write!(f, "  until {}", utc(end)))
    }
}

/// One of this node's own candidates.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CandidateStatus {
    /// `host`, `reflexive`, `mapped` or `relayed`.
    pub kind: String,
    /// The address and port.
    pub address: SocketAddr,
    /// Who named it: an interface, a STUN server, a protocol, a relay.
    pub source: String,
    /// Seconds since it is known.
    pub age_s: u64,
    /// Seconds since its source last named it.
    pub confirmed_s: u64,
    /// Seconds since its source names it no more; `null` while it does.
    pub stale_s: Option<u64>,
}

impl fmt::Display for CandidateStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, address, source, age_s, .. } = self;
        write!(f, "{kind} {address} by {}, {age_s} s old", printable(source))?;
        let stale = self.stale_s;
        stale.map_or(Ok(()), |seconds| write!(f, ", unconfirmed for {seconds} s"))
    }
}

/// A router's port mappings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMappingStatus {
    /// The protocols that it speaks.
    pub protocols: Vec<String>,
    /// The protocol by which it granted one.
    pub protocol: Option<String>,
    /// As what it maps our port.
    pub address: Option<SocketAddr>,
}

impl From<&Found> for PortMappingStatus {
    fn from(found: &Found) -> Self {
        Self {
            protocols: found.protocols.iter().map(ToString::to_string).collect(),
            protocol: found.mapped.map(|mapped| mapped.protocol.to_string()),
            address: found.mapped.map(|mapped| mapped.addr),
        }
    }
}

impl fmt::Display for PortMappingStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.protocol, self.address) {
            (Some(protocol), Some(address)) => write!(f, "{address} by {protocol}"),
            _ if self.protocols.is_empty() => f.write_str("the router speaks no such protocol"),
            _ => write!(f, "refused by {}", self.protocols.join(", ")),
        }
    }
}

/// A NAT, in RFC 4787's words: `endpoint-independent`, `address-dependent`,
/// `address-and-port-dependent`, `none` (no NAT) or `unknown`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatStatus {
    /// How it maps.
    pub mapping: String,
    /// What it lets in.
    pub filtering: String,
    /// Whether it turns packets to its own public address round; `null` where that was
    /// not tested.
    pub hairpin: Option<bool>,
    /// How it chooses ports: `preserving`, `sequential (+1)`, `random` or `unknown`.
    pub ports: String,
    /// For how many seconds it keeps a mapping that nothing passes, at least; `null` where
    /// that was not measured.
    pub mapping_lifetime_s: Option<u64>,
}

impl NatStatus {
    /// A NAT as the STUN client sees it.
    pub fn new(client: &ReflexiveClient) -> Self {
        let NatBehaviour { mapping, filtering } = client.behaviour();
        Self {
            mapping: mapping.to_string(),
            filtering: filtering.to_string(),
            hairpin: None,
            ports: client.ports().to_string(),
            mapping_lifetime_s: None,
        }
    }
}

impl fmt::Display for NatStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mapping, filtering, ports, .. } = self;
        write!(f, "mapping {mapping}, filtering {filtering}, ports {ports}")?;
        match self.hairpin {
            Some(true) => f.write_str(", with hairpin")?,
            Some(false) => f.write_str(", no hairpin")?,
            None => {}
        }
        let kept = self.mapping_lifetime_s;
        kept.map_or(Ok(()), |seconds| write!(f, ", kept {seconds} s"))
    }
}

/// One peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its key, in Base64.
    pub public_key: String,
    /// How it came to be a peer.
    pub origin: Origin,
    /// The prefixes that are sent to it.
    pub routes: Vec<IpNet>,
    /// Its groups, as its network certifies them.
    pub groups: Vec<String>,
    /// The way to it.
    pub path: PathStatus,
    /// Seconds since the last handshake; `null` before the first.
    pub last_handshake_s: Option<u64>,
    /// Bytes of WireGuard messages from it.
    pub rx_bytes: u64,
    /// Bytes of WireGuard messages to it.
    pub tx_bytes: u64,
}

/// How a peer came to be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// By its own signed advert.
    Advert,
    /// By an unsigned record of the zone, for a listed key.
    Record,
    /// By a `[[peer]]` of the configuration.
    Static,
}

/// The way to a peer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PathStatus {
    /// What kind of way.
    pub kind: PathKind,
    /// This side's address and port.
    pub local: Option<SocketAddr>,
    /// The peer's address and port.
    pub remote: Option<SocketAddr>,
    /// The relay between them.
    pub relay: Option<String>,
    /// The smoothed round trip of checks, in milliseconds.
    pub rtt_ms: Option<f64>,
}

/// What kind of way leads to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathKind {
    /// From node to node.
    Direct,
    /// Through a relay.
    Relayed,
    /// None that works.
    None,
}

/// A relay, by one of the ways to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RelayStatus {
    /// Its URI (RFC 7065).
    pub uri: String,
    /// Its address and port.
    pub server: SocketAddr,
    /// `primary`, `spare`, `leaving`, `trying`, `resting` or `failed`.
    pub state: String,
    /// Where peers reach this node through it.
    pub relayed: Option<SocketAddr>,
    /// The round trip to it in milliseconds.
    pub rtt_ms: Option<f64>,
    /// Why it gave no allocation when it was asked last.
    pub error: Option<String>,
}

/// The zone and its server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ZoneStatus {
    /// The zone's name.
    pub name: String,
    /// The server that is asked.
    pub server: Option<SocketAddr>,
    /// Whether the zone was read since the start.
    pub read: bool,
    /// Whether the zone has this node's newest advert.
    pub published: bool,
    /// What went wrong with it last, if something is wrong.
    pub errors: Vec<String>,
}

impl PathStatus {
    /// No way.
    pub const NONE: Self =
        Self { kind: PathKind::None, local: None, remote: None, relay: None, rtt_ms: None };
}

impl fmt::Display for PathKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Relayed => "relayed",
            Self::None => "none",
        })
    }
}

impl fmt::Display for PathStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(remote) = self.remote {
            write!(f, " {remote}")?;
        }
        self.relay.as_ref().map_or(Ok(()), |relay| write!(f, " by {relay}"))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, zone, .. } = self;
        writeln!(f, "node       {}  {}", node.name, node.public_key)?;
        writeln!(
            f,
            "interface  {}  {}  port {}",
            node.interface,
            list(&node.addresses),
            node.port
        )?;
        writeln!(f, "seen as    {}", or_dash(list(&node.reflexive)))?;
        writeln!(f, "NAT        {}", node.nat)?;
        if let Some(port_mapping) = &node.port_mapping {
            writeln!(f, "mapping    {port_mapping}")?;
        }
        for candidate in &node.candidates {
            writeln!(f, "candidate  {candidate}")?;
        }
        if let Some(membership) = &node.membership {
            writeln!(f, "member of  {membership}")?;
        }
        if let Some(number) = node.revocations {
            writeln!(f, "revoked    list {number}")?;
        }
        if let Some(zone) = zone {
            writeln!(f, "zone       {zone}")?;
        }
        for relay in &self.relays {
            writeln!(f, "relay      {relay}")?;
        }
        for warning in &self.warnings {
            writeln!(f, "warning    {warning}")?;
        }
        let heading = ["PEER", "PATH", "RTT", "HANDSHAKE", "RECEIVED", "SENT", "ROUTES"];
        let rows = self.peers.iter().map(PeerStatus::row);
        let rows = std::iter::once(heading.map(String::from)).chain(rows);
        write!(f, "\n{}", table(rows))?;
        if self.peers.is_empty() {
            writeln!(f, "no peers yet")?;
        }
        Ok(())
    }
}

impl fmt::Display for ZoneStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let server = self.server.map_or("server not known yet".into(), |server| server.to_string());
        write!(f, "{}  {server}  ", self.name)?;
        if !self.errors.is_empty() {
            return f.write_str(&self.errors.join("; "));
        }
        f.write_str(match (self.read, self.published) {
            (true, true) => "read and published",
            (true, false) => "read, not published yet",
            (false, true) => "published, not read yet",
            (false, false) => "not reached yet",
        })
    }
}

impl fmt::Display for RelayStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}", self.uri, self.state)?;
        if let Some(relayed) = self.relayed {
            write!(f, "  relayed {relayed}")?;
        }
        if let Some(rtt) = self.rtt_ms {
            write!(f, "  {rtt:.1} ms")?;
        }
        self.error.as_ref().map_or(Ok(()), |error| write!(f, "  {}", printable(error)))
    }
}

impl PeerStatus {
    fn row(&self) -> [String; 7] {
        let name = if self.name.is_empty() { &self.public_key } else { &self.name };
        [
            printable(name),
            self.path.to_string(),
            self.path.rtt_ms.map_or("-".into(), |rtt| format!("{rtt:.1} ms")),
            self.last_handshake_s.map_or("-".into(), |s| format!("{s} s ago")),
            bytes(self.rx_bytes),
            bytes(self.tx_bytes),
            or_dash(list(&self.routes)),
        ]
    }
}

/// A name comes from another node: it must not steer the terminal.
pub(crate) fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Rows whose columns stand straight.
pub(crate) fn table<const N: usize>(rows: impl IntoIterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = rows.into_iter().collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..N).filter_map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn list<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub(crate) fn or_dash(text: String) -> String {
    if text.is_empty() { "-".into() } else { text }
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Status {
        Status {
            node: NodeStatus {
                name: "a".into(),
                public_key: "key".into(),
                interface: "zm0".into(),
                addresses: vec!["10.42.1.1/24".parse().expect("an address")],
                routes: vec![],
                port: 51820,
                reflexive: vec!["198.51.100.7:40000".parse().expect("an address")],
                nat: NatStatus {
                    mapping: "endpoint-independent".into(),
                    filtering: "address-and-port-dependent".into(),
                    hairpin: None,
                    ports: "preserving".into(),
                    mapping_lifetime_s: None,
                },
                candidates: vec![CandidateStatus {
                    kind: "host".into(),
                    address: "192.168.1.5:51820".parse().expect("an address"),
                    source: "eth0".into(),
                    age_s: 60,
                    confirmed_s: 0,
                    stale_s: None,
                }],
                port_mapping: None,
                membership: None,
                revocations: None,
            },
            peers: vec![PeerStatus {
                name: "b\u{1b}[2J".into(),
                public_key: "other".into(),
                origin: Origin::Advert,
                routes: vec!["10.42.2.0/24".parse().expect("a prefix")],
                groups: vec![],
                path: PathStatus {
                    kind: PathKind::Direct,
                    local: Some("192.168.1.5:51820".parse().expect("an address")),
                    remote: Some("198.51.100.8:40001".parse().expect("an address")),
                    relay: None,
                    rtt_ms: Some(12.34),
                },
                last_handshake_s: Some(3),
                rx_bytes: 2048,
                tx_bytes: 7,
            }],
            relays: vec![],
            zone: None,
            warnings: vec![],
            counters: BTreeMap::new(),
        }
    }

    #[test]
    fn the_json_has_the_fields_that_others_read() {
        let json = serde_json::to_value(status()).expect("is JSON");
        assert_eq!(json["node"]["nat"]["mapping"], "endpoint-independent");
        assert_eq!(json["node"]["nat"]["hairpin"], json!(null));
        assert_eq!(json["node"]["reflexive"], json!(["198.51.100.7:40000"]));
        assert_eq!(json["node"]["addresses"], json!(["10.42.1.1/24"]));
        assert_eq!(json["node"]["candidates"][0]["source"], "eth0");
        let peer = &json["peers"][0];
        assert_eq!(peer["path"]["kind"], "direct");
        assert_eq!(peer["path"]["local"], "192.168.1.5:51820");
        assert_eq!(peer["path"]["remote"], "198.51.100.8:40001");
        assert_eq!(peer["path"]["relay"], json!(null));
        assert_eq!(peer["path"]["rtt_ms"], 12.34);
        assert_eq!(peer["routes"], json!(["10.42.2.0/24"]));
        assert_eq!(peer["last_handshake_s"], 3);
        assert_eq!((&peer["rx_bytes"], &peer["tx_bytes"]), (&json!(2048), &json!(7)));
    }

    #[test]
    fn the_table_stands_straight_and_a_name_does_not_steer_the_terminal() {
        let text = status().to_string();
        let rows: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("PEER")).collect();
        assert_eq!(rows.len(), 2);
        let column = rows[0].find("PATH").expect("a heading");
        let cell: String = rows[1].chars().skip(column).collect();
        assert!(cell.starts_with("direct 198.51.100.8:40001  12.3 ms  3 s ago"), "{cell}");
        assert!(!text.contains('\u{1b}'));
        assert!(text.contains("candidate  host 192.168.1.5:51820 by eth0, 60 s old\n"), "{text}");
    }
}
