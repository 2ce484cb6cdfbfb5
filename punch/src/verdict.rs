//! In one sentence, why a peer is reached as it is, and what could be changed.

use std::fmt;

/// Why the path to a peer is what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Host to host.
    Lan,
    /// Straight, through NATs that let it.
    Direct,
    /// Straight, through a NAT that was hard to pass.
    Passed,
    /// Over a relay, and why not straight.
    Relayed(Obstacle),
    /// There is no path, and why not.
    None(Obstacle),
}

/// What stands between two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Obstacle {
    /// The peer names no address at all.
    Unnamed,
    /// It was not looked at for long enough.
    Young,
    /// Checks pass straight, and WireGuard's packets do not.
    DataDies,
    /// No STUN server was reached from here: UDP is blocked.
    OwnUdp,
    /// The peer names no address but those on relays: UDP is blocked there.
    PeerUdp,
    /// Both NATs give each destination another port, and these cannot be told.
    BothHard,
    /// This node's NAT gives each destination another port, and that was not passed yet.
    OwnHard,
    /// The same of the peer's.
    PeerHard,
    /// The peer's checks arrive, and its answers do not.
    Answers,
    /// Nothing comes through, and no relay is known.
    NoRelay,
    /// Nothing comes through.
    Silence,
}

impl Verdict {
    /// What the administrator of a firewall or a router could change.
    pub fn advice(self) -> Option<&'static str> {
        let (Self::Relayed(obstacle) | Self::None(obstacle)) = self else { return None };
        match obstacle {
            Obstacle::Unnamed | Obstacle::Young => None,
            Obstacle::DataDies => Some("let WireGuard's UDP packets pass, whatever their size"),
            Obstacle::OwnUdp => Some("here: let UDP out from WireGuard's port to anywhere"),
            Obstacle::PeerUdp => Some("at the peer: let UDP out from WireGuard's port to anywhere"),
            Obstacle::BothHard => Some(
                "at one of the sites: forward WireGuard's port, switch on PCP or UPnP, or have \
                 the NAT keep a socket's port for all destinations",
            ),
            Obstacle::OwnHard => Some(
                "here: forward WireGuard's port, switch on PCP or UPnP, or have the NAT keep a \
                 socket's port for all destinations",
            ),
            Obstacle::PeerHard => Some(
                "at the peer: forward WireGuard's port, switch on PCP or UPnP, or have the NAT \
                 keep a socket's port for all destinations",
            ),
            Obstacle::Answers | Obstacle::Silence => {
                Some("let UDP to and from WireGuard's ports pass, and answers to it come in")
            }
            Obstacle::NoRelay => Some("set up a relay that both sites reach"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lan => f.write_str("both are on one network, with no NAT between"),
            Self::Direct => f.write_str("checks pass straight between the two"),
            Self::Passed => f.write_str("a port of the hard NAT was met, and is kept"),
            Self::Relayed(obstacle) => write!(f, "a relay carries it: {obstacle}"),
            Self::None(obstacle) => write!(f, "no path: {obstacle}"),
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unnamed => "the peer names no address",
            Self::Young => "other ways are still being tried",
            Self::DataDies => "checks pass straight, but WireGuard's packets die on that way",
            Self::OwnUdp => "no STUN server is reached from here, so UDP seems to be blocked",
            Self::PeerUdp => {
                "the peer names no address but those on relays, so UDP seems to be blocked there"
            }
            Self::BothHard => {
                "both NATs give every destination another port, and which one cannot be told"
            }
            Self::OwnHard => "the NAT here gives every destination another port",
            Self::PeerHard => "the peer's NAT gives every destination another port",
            Self::Answers => "the peer's checks arrive straight, but answers to ours do not",
            Self::NoRelay => "nothing comes through, and there is no relay",
            Self::Silence => "nothing of the peer's comes through",
        })
    }
}
