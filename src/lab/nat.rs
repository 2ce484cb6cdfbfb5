//! The NATs and firewalls of a lab, as nftables rulesets.
//!
//! All of them filter on the router's own input too: what comes unsolicited from the
//! outside is dropped, not answered. That matters, because Linux remembers a packet
//! that it answered, and then the inner host's own packet to that sender gets another
//! source port than all its others. [`Kind::OpenInput`] is the router that has this
//! flaw.

use std::{fmt::Write as _, net::Ipv4Addr};

use ipnet::IpNet;

/// The link of a router that faces the outside.
pub(super) const WAN: &str = "wan";

/// The link of a router that faces its hosts: a bridge.
pub(super) const LAN: &str = "lan";

/// The ports that symmetric kinds hand out in sequence, one after the other.
const SEQUENCE: std::ops::Range<u16> = 20_000..24_000;

/// How long [`Kind::ShortLived`] keeps a mapping that is not used, in seconds. RFC 4787
/// asks for two minutes at least (REQ-5); some home routers and firewalls do no better
/// than this.
pub const SHORT_LIFETIME: u32 = 15;

/// How a site's router treats UDP, in the words of RFC 4787 and RFC 3489.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Endpoint-independent mapping and filtering, with hairpinning. Two hosts behind
    /// it must not use the same port: the mapping is found by the inner port alone.
    FullCone,
    /// Endpoint-independent mapping, address-dependent filtering. Two hosts behind it
    /// must not use the same port, as above.
    AddressRestricted,
    /// Endpoint-independent mapping, address and port-dependent filtering.
    PortRestricted,
    /// As port-restricted, but the router itself answers what comes unsolicited, as
    /// many home routers do: whoever sends first decides the mapping.
    OpenInput,
    /// Address and port-dependent mapping to random ports, and filtering.
    SymmetricRandom,
    /// Address and port-dependent mapping to ports in sequence, and filtering.
    SymmetricSequential,
    /// The same, but every other port: what keeps a port's parity counts in twos
    /// (RFC 4787 §4.2.2).
    SymmetricByTwos,
    /// As port-restricted, but a mapping that is not used is forgotten after
    /// [`SHORT_LIFETIME`].
    ShortLived,
    /// As port-restricted for what gets out: all but UDP, of which only DNS does.
    UdpBlocked,
    /// Nothing gets out but TCP to port 443.
    Tcp443Only,
    /// No translation: public IPv4 addresses behind a stateful firewall that lets nothing
    /// unsolicited in.
    Ipv4Firewall,
    /// No translation: IPv6 with a stateful firewall that lets nothing unsolicited in.
    Ipv6Firewall,
}

impl Kind {
    /// Whether hosts behind it appear to the outside as its own address.
    pub fn translates(self) -> bool {
        !matches!(self, Kind::Ipv4Firewall | Kind::Ipv6Firewall)
    }

    /// What the router's namespace is set to for this kind.
    pub(super) fn settings(self) -> Vec<(&'static str, String)> {
        if self != Kind::ShortLived {
            return Vec::new();
        }
        // The second one is for mappings that have seen packets both ways.
        ["netfilter/nf_conntrack_udp_timeout", "netfilter/nf_conntrack_udp_timeout_stream"]
            .map(|key| (key, SHORT_LIFETIME.to_string()))
            .to_vec()
    }

    /// The ruleset of a router of this kind for the hosts in `lan`, seen from the
    /// outside as `public`. Loading it forgets the mappings of the one before.
    pub(super) fn ruleset(self, lan: IpNet, public: Option<Ipv4Addr>) -> String {
        let mut rules = String::from("flush ruleset\n");
        self.filter(&mut rules, public);
        if let Some(public) = public {
            self.translate(&mut rules, lan, public);
        }
        rules
    }

    fn filter(self, rules: &mut String, public: Option<Ipv4Addr>) {
        let unsolicited = if self == Kind::OpenInput { "accept" } else { "drop" };
        // Neighbour discovery and what tells of a packet that is too big must pass,
        // or IPv6 fails altogether (RFC 4890).
        let input = format!(
            "iifname lo accept\n\
             ct state established,related accept\n\
             icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert }} accept\n\
             iifname {LAN} {no_hairpin}\n\
             iifname {WAN} {unsolicited}",
            // A packet to the router's outer address that was not translated: there is
            // no hairpin. Answering it would only show that the router lives.
            no_hairpin = public.map_or_else(
                || "accept".to_owned(),
                |public| format!("ip daddr {public} drop\niifname {LAN} accept"),
            ),
        );
        let allowed = match self {
            Kind::UdpBlocked => "meta l4proto != udp accept\nudp dport 53 accept",
            Kind::Tcp443Only => "tcp dport 443 accept",
            _ => "accept",
        };
        let mut forward = "ct state established,related accept\nct status dnat accept".to_owned();
        for allowed in allowed.lines() {
            let _ = write!(forward, "\niifname {LAN} oifname {WAN} {allowed}");
        }
        chain_table(
            rules,
            "inet filter",
            &[
                ("input", "type filter hook input priority filter; policy drop;", &input),
                ("forward", "type filter hook forward priority filter; policy drop;", &forward),
            ],
        );
    }

    fn translate(self, rules: &mut String, lan: IpNet, public: Ipv4Addr) {
        let out = format!("oifname {WAN} ip saddr {lan}");
        // The inner port is also the outer one, so it names the mapping.
        let remember = format!("{out} update @mapping {{ udp sport : ip saddr . udp sport }}");
        let to_inner = "dnat ip to udp dport map @mapping";
        let (before, after) = match self {
            Kind::FullCone => (
                format!("ip daddr {public} {to_inner}"),
                format!(
                    "{remember}\n{out} snat to {public}\n\
                     iifname {LAN} oifname {LAN} ct status dnat snat to {public}"
                ),
            ),
            Kind::AddressRestricted => (
                format!(
                    "iifname {WAN} ip daddr {public} ip saddr . udp dport @contacted {to_inner}"
                ),
                format!(
                    "{remember}\n{out} update @contacted {{ ip daddr . udp sport }}\n\
                     {out} snat to {public}"
                ),
            ),
            Kind::PortRestricted
            | Kind::OpenInput
            | Kind::ShortLived
            | Kind::UdpBlocked
            | Kind::Tcp443Only => (String::new(), format!("{out} snat to {public}")),
            Kind::SymmetricRandom => {
                (String::new(), format!("{out} snat to {public} fully-random"))
            }
            Kind::SymmetricSequential | Kind::SymmetricByTwos => {
                let step = if self == Kind::SymmetricByTwos { 2 } else { 1 };
                let sequence = SEQUENCE.step_by(step);
                let count = sequence.len();
                let mut ports = String::new();
                for (index, port) in sequence.enumerate() {
                    let _ = write!(ports, "{index} : {port}, ");
                }
                (
                    String::new(),
                    format!(
                        "{out} meta l4proto udp snat to {public} : \
                         numgen inc mod {count} map {{ {ports} }}\n\
                         {out} snat to {public}"
                    ),
                )
            }
            Kind::Ipv4Firewall | Kind::Ipv6Firewall => return,
        };
        rules.push_str(
            "table ip nat {\n\
             map mapping { typeof udp dport : ip daddr . udp dport; size 4096; flags dynamic; }\n\
             set contacted { typeof ip saddr . udp dport; size 4096; flags dynamic; }\n\
             }\n",
        );
        chain_table(
            rules,
            "ip nat",
            &[
                ("before", "type nat hook prerouting priority dstnat;", &before),
                ("after", "type nat hook postrouting priority srcnat;", &after),
            ],
        );
    }
}

/// Writes a table of chains, each with its name, its hook and its rules.
fn chain_table(rules: &mut String, table: &str, chains: &[(&str, &str, &str)]) {
    for (name, hook, body) in chains {
        let _ = write!(rules, "table {table} {{\nchain {name} {{\n{hook}\n{body}\n}}\n}}\n");
    }
}
