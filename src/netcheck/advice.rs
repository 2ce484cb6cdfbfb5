//! What the firewall's administrator could do, in one sentence.

use std::fmt;

use zonemesh_discovery::stun::{Behaviour, MappingLifetime, NatBehaviour};

/// A mapping that is kept no longer than this costs every idle peer packets: WireGuard's
/// own keepalive comes every 25 s.
const SHORT: u64 = 25;

/// What counts for the advice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Findings {
    pub(super) behaviour: NatBehaviour,
    pub(super) lifetime: Option<MappingLifetime>,
    /// Whether any STUN server was asked.
    pub(super) asked: bool,
    /// Whether any STUN server answered.
    pub(super) udp: bool,
    /// Whether the router granted a mapping.
    pub(super) mapped: bool,
    /// Whether a relay gave an address, by a stream at least.
    pub(super) relayed: bool,
    /// WireGuard's port, where it is known before the daemon runs.
    pub(super) port: Option<u16>,
}

/// The advice, the most needed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Advice {
    NotAsked,
    Cut,
    OnlyRelays,
    Unknown,
    ShortLived(u64),
    Open,
    Mapped,
    Firewalled(Option<u16>),
    Dependent(Option<u16>),
    Filtered(Option<u16>),
    Cone,
}

impl Advice {
    pub(super) fn of(findings: &Findings) -> Self {
        let NatBehaviour { mapping, filtering } = findings.behaviour;
        let is_open = filtering == Behaviour::EndpointIndependent;
        let short = findings.lifetime.map(|found| found.safe().as_secs());
        if !findings.asked {
            return Self::NotAsked;
        }
        match (findings.udp, findings.relayed) {
            (false, false) => return Self::Cut,
            (false, true) => return Self::OnlyRelays,
            (true, _) => {}
        }
        match mapping {
            Behaviour::None if is_open => Self::Open,
            _ if findings.mapped => Self::Mapped,
            _ if short.is_some_and(|short| short < SHORT) => {
                Self::ShortLived(short.unwrap_or_default())
            }
            Behaviour::None => Self::Firewalled(findings.port),
            Behaviour::EndpointIndependent if is_open => Self::Cone,
            Behaviour::EndpointIndependent => Self::Filtered(findings.port),
            Behaviour::AddressDependent | Behaviour::AddressAndPortDependent => {
                Self::Dependent(findings.port)
            }
            Behaviour::Unknown => Self::Unknown,
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = |port: Option<u16>| match port {
            Some(port) => format!("UDP port {port}"),
            None => "WireGuard's UDP port".to_owned(),
        };
        match *self {
            Self::NotAsked => f.write_str(
                "What the network does to UDP is not known without a STUN server: name some in \
                 the zone or in stun.servers.",
            ),
            Self::Cut => f.write_str(
                "Nothing answers: let UDP out to anywhere, or at least TCP to a relay's port \
                 (443 with TLS), and name a relay.",
            ),
            Self::OnlyRelays => f.write_str(
                "UDP gets no answer, so all peers are reached through relays: let UDP out to \
                 anywhere, and its answers in, to reach them directly.",
            ),
            Self::Unknown => f.write_str(
                "How the NAT maps is not known: name a second STUN server, or one with two \
                 addresses (RFC 5780).",
            ),
            Self::ShortLived(seconds) => write!(
                f,
                "The NAT forgets idle UDP mappings within {seconds} to 30 s, which costs \
                 keepalives: set its UDP timeout to two minutes or more (RFC 4787 REQ-5)."
            ),
            Self::Open => f.write_str("This machine is public and open: nothing has to change."),
            Self::Mapped => f.write_str(
                "The router maps a port for this machine, so every peer that lets UDP out \
                 reaches it directly: nothing has to change.",
            ),
            Self::Firewalled(known) => write!(
                f,
                "This machine is public behind a firewall: let {} in from anywhere, and every \
                 peer that lets UDP out reaches it directly.",
                port(known)
            ),
            Self::Dependent(known) => write!(
                f,
                "The NAT shows every peer another port, so peers behind strict NATs need a relay \
                 or luck: make its mapping endpoint-independent (keep source ports), let it grant \
                 port mappings (PCP, NAT-PMP, UPnP), or forward {} to this machine.",
                port(known)
            ),
            Self::Filtered(known) => write!(
                f,
                "Most peers are reached directly; for those behind NATs that show every peer \
                 another port, let the router grant port mappings (PCP, NAT-PMP, UPnP) or forward \
                 {} to this machine.",
                port(known)
            ),
            Self::Cone => f.write_str(
                "Every peer that lets UDP out reaches this machine directly: nothing has to \
                 change.",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_most_needed_is_said() {
        use Behaviour::{AddressAndPortDependent as Dependent, EndpointIndependent, None, Unknown};
        let found = |mapping, filtering| Findings {
            behaviour: NatBehaviour { mapping, filtering },
            lifetime: Option::None,
            asked: true,
            udp: true,
            mapped: false,
            relayed: true,
            port: Some(51820),
        };
        let said = |findings: Findings| Advice::of(&findings);
        assert_eq!(said(found(None, EndpointIndependent)), Advice::Open);
        assert_eq!(said(found(None, Dependent)), Advice::Firewalled(Some(51820)));
        assert_eq!(said(found(EndpointIndependent, EndpointIndependent)), Advice::Cone);
        assert_eq!(said(found(EndpointIndependent, Dependent)), Advice::Filtered(Some(51820)));
        assert_eq!(said(found(Dependent, Dependent)), Advice::Dependent(Some(51820)));
        assert_eq!(said(found(Unknown, Unknown)), Advice::Unknown);
        let mapped = Findings { mapped: true, ..found(Dependent, Dependent) };
        assert_eq!(said(mapped), Advice::Mapped);
        let lifetime = MappingLifetime {
            survived: Some(Duration::from_secs(10)),
            lost: Some(Duration::from_secs(15)),
        };
        let short = Findings { lifetime: Some(lifetime), ..found(Dependent, Dependent) };
        assert_eq!(said(short), Advice::ShortLived(10));
        let blocked = Findings { udp: false, ..found(Unknown, Unknown) };
        assert_eq!(said(blocked), Advice::OnlyRelays);
        assert_eq!(said(Findings { relayed: false, ..blocked }), Advice::Cut);
        assert_eq!(said(Findings { asked: false, ..blocked }), Advice::NotAsked);
    }

    #[test]
    fn it_is_one_sentence_and_names_the_port() {
        let all = [
            Advice::NotAsked,
            Advice::Cut,
            Advice::OnlyRelays,
            Advice::Unknown,
            Advice::ShortLived(10),
            Advice::Open,
            Advice::Mapped,
            Advice::Firewalled(Some(51820)),
            Advice::Dependent(None),
            Advice::Filtered(Some(51820)),
            Advice::Cone,
        ];
        for advice in all {
            let text = advice.to_string();
            assert!(text.ends_with('.') && !text.contains(". "), "{text}");
        }
        assert!(Advice::Firewalled(Some(51820)).to_string().contains("UDP port 51820"));
    }
}
