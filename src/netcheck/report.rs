//! What was found out, as JSON and for people.

use std::{fmt, net::SocketAddr};

use serde::Serialize;

use crate::status::{NatStatus, PortMappingStatus};

/// What was found out. Fields are added, and never renamed or removed.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The NAT's behaviour.
    pub nat: NatStatus,
    /// As which addresses the servers see this machine.
    pub reflexive: Vec<SocketAddr>,
    /// The servers that were asked.
    pub stun: Vec<StunReport>,
    /// Why none was asked: none is known, or the zone that names them is away.
    pub stun_error: Option<String>,
    /// Whether the router maps ports; `null` where the configuration asks for none.
    pub port_mapping: Option<PortMappingStatus>,
    /// The relays that were asked; `null` where none is known, or the configuration wants
    /// none.
    pub relays: Option<Vec<RelayReport>>,
    /// The prefix of the NAT64 by which this machine reaches IPv4; `null` where it needs
    /// none.
    pub nat64: Option<String>,
    /// One sentence for the firewall's administrator.
    pub advice: String,
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

/// What became of one way to a relay.
#[derive(Debug, Serialize)]
pub struct RelayReport {
    /// Its URI.
    pub uri: String,
    /// Where it is.
    pub server: SocketAddr,
    /// `udp`, `tcp` or `tls`.
    pub transport: String,
    /// The relayed address that it gave; `null` where it gave none.
    pub relayed: Option<SocketAddr>,
    /// The round trip.
    pub rtt_ms: Option<f64>,
    /// Why it gave none.
    pub error: Option<String>,
}

impl Report {
    /// Whether any server or relay answered: otherwise nothing is known.
    pub fn is_conclusive(&self) -> bool {
        let stun = self.stun.iter().any(|server| server.rtt_ms.is_some());
        stun || self.relays.iter().flatten().any(|relay| relay.relayed.is_some())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "NAT           {}", self.nat)?;
        let reflexive: Vec<String> = self.reflexive.iter().map(ToString::to_string).collect();
        let reflexive = if reflexive.is_empty() { "-".to_owned() } else { reflexive.join(", ") };
        writeln!(f, "seen as       {reflexive}")?;
        if let Some(prefix) = &self.nat64 {
            writeln!(f, "NAT64         {prefix}")?;
        }
        for server in &self.stun {
            let rtt = server.rtt_ms.map_or("no answer".to_owned(), |rtt| format!("{rtt:.1} ms"));
            writeln!(f, "STUN          {}  {rtt}", server.server)?;
        }
        if let Some(error) = &self.stun_error {
            writeln!(f, "STUN          {error}")?;
        }
        match &self.port_mapping {
            Some(mapping) => writeln!(f, "port mapping  {mapping}")?,
            None => writeln!(f, "port mapping  not asked for: portmap.enabled is false")?,
        }
        for relay in self.relays.iter().flatten() {
            write!(f, "relay         {}  ", relay.uri)?;
            match (&relay.error, relay.rtt_ms) {
                (Some(error), _) => writeln!(f, "{error}")?,
                (None, Some(rtt)) => writeln!(f, "{rtt:.1} ms")?,
                (None, None) => writeln!(f, "gives an address")?,
            }
        }
        if self.relays.is_none() {
            writeln!(f, "relay         none is known, or relay.enabled is false")?;
        }
        writeln!(f, "\n{}", self.advice)
    }
}
