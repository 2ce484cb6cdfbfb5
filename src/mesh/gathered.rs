//! This node's own candidates, each with where it is known from and since when.
//!
//! The sources speak one by one: the interfaces, the STUN servers, the router, the
//! relays. Each time one has something else to say, its whole list is handed in, best
//! first, and what is no longer in it goes. Reflexive and mapped addresses go slowly:
//! peers have them from an earlier advert, and a NAT forgets no sooner than after its
//! timeout; so they stay for [`STALE_LIFE`], behind all others.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use zonemesh_discovery::{
    advert::{Candidate, CandidateKind, MAX_CANDIDATES, is_public},
    portmap::{Mapped, Protocol},
};

/// The most reflexive candidates of one family: a NAT that maps by destination shows
/// another address to each STUN server, and none of them helps a peer for long.
const MAX_REFLEXIVE: usize = 2;

/// The most relayed candidates: a primary and a spare. Their places are reserved, since
/// they work where nothing else does.
pub const MAX_RELAYED: usize = 2;

/// The most stale candidates that are told of.
const MAX_STALE: usize = 2;

/// How long a reflexive or mapped address is told of when nobody confirms it any more:
/// past the time in which a peer learns of the new one, and about as long as a NAT keeps
/// a mapping that is used.
pub const STALE_LIFE: Duration = Duration::from_secs(60);

/// Who named an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It is this interface's.
    Interface(String),
    /// A STUN server.
    Stun(SocketAddr),
    /// The router, by this protocol.
    PortMapping(Protocol),
    /// A relay, named as it is configured.
    Relay(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) | Self::Relay(name) => f.write_str(name),
            Self::Stun(server) => write!(f, "STUN {server}"),
            Self::PortMapping(protocol) => write!(f, "{protocol}"),
        }
    }
}

/// A candidate and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The candidate.
    pub candidate: Candidate,
    /// Who named it last.
    pub source: Source,
    /// Since when it is known without a break.
    pub since: Instant,
    /// When its source last named it.
    pub confirmed: Instant,
    /// When its source first named it no more.
    pub lost: Option<Instant>,
}

/// The keeper of this node's own candidates.
#[derive(Debug)]
pub struct Gathered {
    port: u16,
    known: Vec<Known>,
}

impl Gathered {
    /// Nothing is known yet; WireGuard's port is this one.
    pub fn new(port: u16) -> Self {
        Self { port, known: Vec::new() }
    }

    /// Takes this machine's own addresses with the interfaces that have them. Whether the
    /// addresses are others than before.
    pub fn set_hosts(&mut self, hosts: &[(IpAddr, String)], now: Instant) -> bool {
        let port = self.port;
        let named = hosts
            .iter()
            .map(|(ip, name)| (SocketAddr::new(*ip, port), Source::Interface(name.clone()), now));
        self.replace(CandidateKind::Host, named.collect(), now)
    }

    /// Takes the addresses as which STUN servers see our socket, each with a server that
    /// does and when it last said so.
    pub fn set_reflexive(
        &mut self,
        seen: impl IntoIterator<Item = (SocketAddr, SocketAddr, Instant)>,
        now: Instant,
    ) {
        let named = seen.into_iter().map(|(addr, server, at)| (addr, Source::Stun(server), at));
        self.replace(CandidateKind::ServerReflexive, named.collect(), now);
    }

    /// Takes what the router has granted. Whether that is another address than before.
    pub fn set_mapped(&mut self, mapped: Option<Mapped>, now: Instant) -> bool {
        let named = mapped.map(|mapped| (mapped.addr, Source::PortMapping(mapped.protocol), now));
        self.replace(CandidateKind::Mapped, named.into_iter().collect(), now)
    }

    /// Takes the relayed addresses, best first, each with its relay's name. Whether they
    /// are others than before.
    pub fn set_relayed(&mut self, relayed: &[(SocketAddr, String)], now: Instant) -> bool {
        let named = relayed
            .iter()
            .take(MAX_RELAYED)
            .map(|(addr, label)| (*addr, Source::Relay(label.clone()), now));
        self.replace(CandidateKind::Relayed, named.collect(), now)
    }

    /// This machine's own addresses.
    pub fn hosts(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.current(CandidateKind::Host).map(|known| known.candidate.addr.ip())
    }

    /// The candidates to tell peers, best first, without duplicates and never more than
    /// an advert holds: reflexive ones that are no own address, a mapped one, the own
    /// addresses, relayed ones, and in the end what is stale.
    pub fn candidates(&self) -> Vec<Candidate> {
        let of = |kind| self.current(kind).map(|known| known.candidate);
        let own: BTreeSet<SocketAddr> = of(CandidateKind::Host).map(|host| host.addr).collect();
        let mut direct: Vec<Candidate> = Vec::new();
        for v4 in [true, false] {
            let seen = of(CandidateKind::ServerReflexive)
                .filter(|seen| seen.addr.is_ipv4() == v4 && !own.contains(&seen.addr));
            direct.extend(seen.take(MAX_REFLEXIVE));
        }
        // A router that names a private address is itself behind a NAT: what it maps
        // helps nobody who could not also reach its own network.
        let has_public = own.iter().chain(direct.iter().map(|one| &one.addr));
        let has_public = has_public.into_iter().any(|addr| is_public(addr.ip()));
        let is_useful = |one: &Candidate| {
            one.kind != CandidateKind::Mapped || is_public(one.addr.ip()) || !has_public
        };
        direct.extend(of(CandidateKind::Mapped).filter(is_useful));
        direct.extend(of(CandidateKind::Host));

        let mut told = BTreeSet::new();
        // What others would not believe is not said: loopback, multicast, link-local.
        let mut is_worth =
            |one: &Candidate| one.to_string().parse::<Candidate>().is_ok() && told.insert(one.addr);
        let relayed: Vec<Candidate> = of(CandidateKind::Relayed).filter(&mut is_worth).collect();
        let mut chosen: Vec<Candidate> = direct.into_iter().filter(&mut is_worth).collect();
        chosen.truncate(MAX_CANDIDATES - relayed.len());
        chosen.extend(relayed);
        let stale = self.known.iter().filter(|known| known.lost.is_some());
        let stale = stale.map(|known| known.candidate).filter(is_useful);
        chosen.extend(stale.filter(is_worth).take(MAX_STALE));
        chosen.truncate(MAX_CANDIDATES);
        chosen
    }

    /// All that is known, for status.
    pub fn known(&self) -> &[Known] {
        &self.known
    }

    /// Forgets what has been stale for long enough. Whether there was any.
    pub fn handle_timeout(&mut self, now: Instant) -> bool {
        let before = self.known.len();
        self.known.retain(|known| known.lapses().is_none_or(|at| now < at));
        self.known.len() != before
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.known.iter().filter_map(Known::lapses).min()
    }

    fn current(&self, kind: CandidateKind) -> impl Iterator<Item = &Known> + '_ {
        self.known.iter().filter(move |known| known.candidate.kind == kind && known.lost.is_none())
    }

    /// Puts what a source names in the place of what it named before.
    fn replace(
        &mut self,
        kind: CandidateKind,
        named: Vec<(SocketAddr, Source, Instant)>,
        now: Instant,
    ) -> bool {
        let (mut before, others): (Vec<Known>, Vec<Known>) = std::mem::take(&mut self.known)
            .into_iter()
            .partition(|known| known.candidate.kind == kind);
        self.known = others;
        let order = |known: &[Known]| -> Vec<SocketAddr> {
            known.iter().filter(|k| k.lost.is_none()).map(|known| known.candidate.addr).collect()
        };
        let old = order(&before);
        let mut new: Vec<Known> = Vec::with_capacity(named.len());
        for (addr, source, confirmed) in named {
            let found = before.iter().position(|known| known.candidate.addr == addr);
            let earlier = found.map(|index| before.remove(index));
            let since = earlier.filter(|known| known.lost.is_none()).map_or(now, |k| k.since);
            let candidate = Candidate { kind, addr };
            new.push(Known { candidate, source, since, confirmed, lost: None });
        }
        let changed = order(&new) != old;
        self.known.extend(new);
        if matches!(kind, CandidateKind::ServerReflexive | CandidateKind::Mapped) {
            for known in &mut before {
                known.lost.get_or_insert(now);
            }
            before.sort_by_key(|known| std::cmp::Reverse(known.lost));
            // A NAT that shows another address with every answer must not fill this.
            before.truncate(MAX_STALE);
            self.known.extend(before);
        }
        changed
    }
}

impl Known {
    fn lapses(&self) -> Option<Instant> {
        self.lost.map(|lost| lost + STALE_LIFE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORT: u16 = 51820;

    #[test]
    fn a_public_node_has_no_reflexive_candidate_and_nobody_a_useless_one() {
        let mut own = on(&["198.51.100.9", "127.0.0.1", "fe80::1"]);
        see(&mut own, &["198.51.100.9:51820"], Instant::now());
        assert_eq!(told(&own), ["h:198.51.100.9:51820"]);
    }

    #[test]
    fn a_nat_that_shows_many_addresses_leaves_room_for_the_others() {
        let mut own = on(&["192.168.1.5"]);
        let many: Vec<String> = (1..=6).map(|port| format!("198.51.100.7:{port}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        see(&mut own, &many, Instant::now());
        assert_eq!(kinds(&own), "ssh");
    }

    #[test]
    fn a_mapped_address_comes_after_reflexive_ones_and_not_where_the_router_is_behind_a_nat() {
        let now = Instant::now();
        let mut own = on(&["192.168.1.5"]);
        own.set_mapped(mapped("100.64.0.7:40000"), now);
        assert_eq!(kinds(&own), "mh", "there is nothing better");
        see(&mut own, &["198.51.100.7:40001"], now);
        assert_eq!(kinds(&own), "sh");
        assert!(own.set_mapped(mapped("198.51.100.7:51820"), now));
        assert!(!own.set_mapped(mapped("198.51.100.7:51820"), now), "nothing new");
        assert_eq!(
            told(&own),
            ["s:198.51.100.7:40001", "m:198.51.100.7:51820", "h:192.168.1.5:51820"]
        );
        see(&mut own, &["198.51.100.7:51820"], now);
        assert_eq!(told(&own)[0], "s:198.51.100.7:51820");
        assert!(!kinds(&own).contains('m'), "the same address is told once");
    }

    #[test]
    fn relayed_addresses_keep_their_places() {
        let now = Instant::now();
        let hosts: Vec<String> = (1..=9).map(|n| format!("192.168.{n}.5")).collect();
        let mut own = on(&hosts.iter().map(String::as_str).collect::<Vec<_>>());
        see(&mut own, &["198.51.100.7:1", "[2001:db8::7]:1"], now);
        let relays = ["203.0.113.1:50001", "203.0.113.2:50002", "203.0.113.3:50003"];
        let relays = relays.map(|addr| (address(addr), format!("turn:{addr}")));
        assert!(own.set_relayed(&relays, now));
        assert_eq!(kinds(&own), "sshhhhrr");
        assert!(own.set_relayed(&[relays[1].clone(), relays[0].clone()], now), "another is best");
        assert!(own.set_relayed(&[], now));
        assert_eq!(kinds(&own), "sshhhhhh", "an allocation that is gone is gone");
    }

    #[test]
    fn what_a_nat_showed_before_is_told_last_and_for_a_minute() {
        let start = Instant::now();
        let mut own = on(&["192.168.1.5"]);
        see(&mut own, &["198.51.100.7:1"], start);
        let later = start + Duration::from_secs(100);
        see(&mut own, &["198.51.100.99:1"], later);
        let all = ["s:198.51.100.99:1", "h:192.168.1.5:51820", "s:198.51.100.7:1"];
        assert_eq!(told(&own), all);
        let old = own.known().iter().find(|known| known.lost.is_some()).expect("it is kept");
        assert_eq!((old.since, old.lost), (start, Some(later)));
        assert_eq!(own.poll_timeout(), Some(later + STALE_LIFE));
        assert!(!own.handle_timeout(later + STALE_LIFE / 2));
        assert!(own.handle_timeout(later + STALE_LIFE));
        assert_eq!(told(&own), all[..2]);
        assert_eq!(own.poll_timeout(), None);
    }

    #[test]
    fn an_address_that_comes_back_is_current_again_and_new() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut own = on(&["192.168.1.5"]);
        see(&mut own, &["198.51.100.7:1"], start);
        see(&mut own, &[], start + second);
        assert_eq!(kinds(&own), "hs");
        see(&mut own, &["198.51.100.7:1"], start + 2 * second);
        assert_eq!(kinds(&own), "sh");
        let known = &own.known().iter().find(|known| known.candidate.addr.port() == 1);
        assert_eq!(known.map(|known| known.since), Some(start + 2 * second));
    }

    #[test]
    fn a_nat_that_never_shows_the_same_fills_nothing() {
        let start = Instant::now();
        let mut own = on(&["192.168.1.5"]);
        for n in 1..=100u16 {
            let seen = format!("198.51.100.7:{n}");
            see(&mut own, &[&seen], start + Duration::from_secs(n.into()));
        }
        assert_eq!(kinds(&own), "shss");
        assert_eq!(own.known().len(), 4);
    }

    fn on(hosts: &[&str]) -> Gathered {
        let mut own = Gathered::new(PORT);
        let hosts: Vec<(IpAddr, String)> =
            hosts.iter().map(|ip| (ip.parse().expect("an address"), "eth0".to_owned())).collect();
        assert!(own.set_hosts(&hosts, Instant::now()));
        own
    }

    fn see(own: &mut Gathered, seen: &[&str], now: Instant) {
        let server = address("203.0.113.10:3478");
        own.set_reflexive(seen.iter().map(|addr| (address(addr), server, now)), now);
    }

    fn mapped(addr: &str) -> Option<Mapped> {
        Some(Mapped { addr: address(addr), protocol: Protocol::Pcp })
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("an address with port")
    }

    fn told(own: &Gathered) -> Vec<String> {
        own.candidates().iter().map(ToString::to_string).collect()
    }

    fn kinds(own: &Gathered) -> String {
        told(own).iter().map(|told| told.chars().next().expect("a kind")).collect()
    }
}
