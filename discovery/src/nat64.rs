//! IPv4 through a NAT64: how a host that has IPv6 only reaches IPv4 addresses.
//!
//! Such a network has a translator, and a prefix that stands for it: an IPv6 address
//! that is made of the prefix and an IPv4 address leads there (RFC 6052). The prefix
//! shows in what the network's resolver makes of a name that has no IPv6 addresses of
//! its own, `ipv4only.arpa` (RFC 7050). Names are translated by that resolver; addresses
//! that come otherwise, as those in adverts do, the host has to translate itself
//! (RFC 8305 §7.2).
//!
//! The resolver is believed: a false prefix leads nowhere, since nothing that is sent
//! there counts before it is answered by who it is meant for.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use hickory_proto::rr::{RData, RecordType};
use tokio::time::timeout;

use crate::{advert::is_public, zone::system_resolver};

/// The name that has these two IPv4 addresses and no others (RFC 7050 §2.2).
const NAME: &str = "ipv4only.arpa.";
const WELL_KNOWN: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 0, 170), Ipv4Addr::new(192, 0, 0, 171)];

/// The lengths that a prefix may have (RFC 6052 §2.2), the usual one first.
const LENGTHS: [u8; 6] = [96, 64, 56, 48, 40, 32];

/// The octet that no IPv4 address is put in: bits 64 to 71 (RFC 6052 §2.2).
const SKIPPED: usize = 8;

/// The most prefixes that are kept; a network has one, or two while it changes it.
const MAX_PREFIXES: usize = 4;

/// The most addresses of the answer that are looked at.
const MAX_ANSWERS: usize = 16;

/// How long the resolver may take.
const LIMIT: Duration = Duration::from_secs(10);

/// A prefix that leads to IPv4 (RFC 6052's Pref64::/n).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Prefix64 {
    prefix: Ipv6Addr,
    length: u8,
}

impl Prefix64 {
    /// The prefix of this length that an address begins with; `None` for a length that no
    /// such prefix has.
    pub fn new(addr: Ipv6Addr, length: u8) -> Option<Self> {
        if !LENGTHS.contains(&length) {
            return None;
        }
        let mask = u128::MAX << (128 - u32::from(length));
        let prefix = Ipv6Addr::from(u128::from(addr) & mask);
        // With /96 the skipped octet is the prefix's, and must be zero.
        (prefix.octets()[SKIPPED] == 0).then_some(Self { prefix, length })
    }

    /// The IPv6 address that leads to an IPv4 one.
    pub fn synthesise(self, v4: Ipv4Addr) -> Ipv6Addr {
        let mut octets = self.prefix.octets();
        for (place, octet) in self.places().zip(v4.octets()) {
            octets[place] = octet;
        }
        octets.into()
    }

    /// The IPv4 address to which an IPv6 one leads; `None` where it has another prefix.
    pub fn extract(self, v6: Ipv6Addr) -> Option<Ipv4Addr> {
        let octets = v6.octets();
        let mut v4 = [0; 4];
        for (octet, place) in v4.iter_mut().zip(self.places()) {
            *octet = octets[place];
        }
        let v4 = Ipv4Addr::from(v4);
        (self.synthesise(v4) == v6).then_some(v4)
    }

    /// The octets that hold an IPv4 address, in order.
    fn places(self) -> impl Iterator<Item = usize> {
        let first = usize::from(self.length / 8);
        (first..).filter(|place| *place != SKIPPED).take(4)
    }

    /// Where to send what is for an address: to a synthesised one where it is a public
    /// IPv4 one, else as it stands. A private one means nothing to a translator (RFC
    /// 6052 §3.1).
    pub fn reach(self, addr: SocketAddr) -> SocketAddr {
        match addr.ip() {
            IpAddr::V4(v4) if is_public(addr.ip()) => {
                SocketAddr::new(self.synthesise(v4).into(), addr.port())
            }
            _ => addr,
        }
    }
}

impl fmt::Display for Prefix64 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.prefix, self.length)
    }
}

/// The prefixes that show in a resolver's IPv6 addresses for `ipv4only.arpa` (RFC 7050
/// §3), each once.
pub fn prefixes(answers: &[Ipv6Addr]) -> Vec<Prefix64> {
    let mut found = Vec::new();
    for answer in answers.iter().take(MAX_ANSWERS) {
        let candidates = LENGTHS.iter().filter_map(|length| Prefix64::new(*answer, *length));
        // Where both addresses are shown, both are: one prefix.
        let shown = candidates
            .into_iter()
            .find(|prefix| prefix.extract(*answer).is_some_and(|v4| WELL_KNOWN.contains(&v4)));
        found.extend(shown.filter(|prefix| !found.contains(prefix)));
    }
    found.truncate(MAX_PREFIXES);
    found
}

/// Asks the system's resolver for this network's prefixes: none where there is no NAT64.
///
/// # Errors
/// Why the resolver did not answer; one that says that there is no such address has
/// answered.
pub async fn discover() -> Result<Vec<Prefix64>, String> {
    let resolver = system_resolver()?;
    let answer = match timeout(LIMIT, resolver.lookup(NAME, RecordType::AAAA)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) if error.is_no_records_found() => return Ok(Vec::new()),
        Ok(Err(error)) => return Err(error.to_string()),
        Err(_) => return Err("the system's resolver does not answer".to_owned()),
    };
    let addresses = answer.answers().iter().filter_map(|record| match &record.data {
        RData::AAAA(v6) => Some(v6.0),
        _ => None,
    });
    Ok(prefixes(&addresses.take(MAX_ANSWERS).collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of RFC 6052 §2.4, and the well-known prefix.
    const EXAMPLES: [(&str, u8, &str); 7] = [
        ("2001:db8::", 32, "2001:db8:c000:221::"),
        ("2001:db8:100::", 40, "2001:db8:1c0:2:21::"),
        ("2001:db8:122::", 48, "2001:db8:122:c000:2:2100::"),
        ("2001:db8:122:300::", 56, "2001:db8:122:3c0:0:221::"),
        ("2001:db8:122:344::", 64, "2001:db8:122:344:c0:2:2100::"),
        ("2001:db8:122:344::", 96, "2001:db8:122:344::192.0.2.33"),
        ("64:ff9b::", 96, "64:ff9b::192.0.2.33"),
    ];

    #[test]
    fn addresses_are_made_as_the_rfc_shows() {
        for (prefix, length, expected) in EXAMPLES {
            let prefix = Prefix64::new(v6(prefix), length).expect("a length that is allowed");
            assert_eq!(prefix.synthesise(Ipv4Addr::new(192, 0, 2, 33)), v6(expected), "{prefix}");
            assert_eq!(prefix.extract(v6(expected)), Some(Ipv4Addr::new(192, 0, 2, 33)));
            assert_eq!(prefix.extract(v6("2001:db9::1")), None);
        }
        assert_eq!(Prefix64::new(v6("2001:db8::"), 60), None);
        assert_eq!(Prefix64::new(v6("2001:db8::ff00:0:0:0"), 96), None, "bits 64 to 71 are set");
    }

    #[test]
    fn the_prefix_shows_in_the_resolvers_answer() {
        for (prefix, length, _) in EXAMPLES {
            let prefix = Prefix64::new(v6(prefix), length).expect("a length that is allowed");
            let answers = WELL_KNOWN.map(|v4| prefix.synthesise(v4));
            assert_eq!(prefixes(&answers), [prefix]);
            assert_eq!(prefixes(&answers[1..]), [prefix]);
        }
        let two = ["64:ff9b::192.0.0.170", "2001:db8:122:344::192.0.0.171", "64:ff9b::192.0.0.171"];
        let found = prefixes(&two.map(v6));
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["64:ff9b::/96", "2001:db8:122:344::/96"]
        );
    }

    #[test]
    fn an_answer_without_the_well_known_addresses_shows_none() {
        assert!(prefixes(&[]).is_empty());
        assert!(prefixes(&[v6("2001:db8::1"), v6("::1"), v6("64:ff9b::192.0.0.172")]).is_empty());
        // Something behind the address: made by no rule.
        assert!(prefixes(&[v6("2001:db8:c000:aa::1")]).is_empty());
        let many: Vec<Ipv6Addr> =
            (0..99).map(|n| v6(&format!("2001:db8:{n}::192.0.0.170"))).collect();
        assert_eq!(prefixes(&many).len(), MAX_PREFIXES);
    }

    #[test]
    fn only_public_addresses_are_translated() {
        let prefix = Prefix64::new(v6("64:ff9b::"), 96).expect("the well-known prefix");
        let reach = |text: &str| prefix.reach(text.parse().expect("an address")).to_string();
        assert_eq!(reach("198.51.100.7:51820"), "[64:ff9b::c633:6407]:51820");
        assert_eq!(reach("192.168.1.5:51820"), "192.168.1.5:51820");
        assert_eq!(reach("[2001:db8::1]:51820"), "[2001:db8::1]:51820");
    }

    fn v6(text: &str) -> Ipv6Addr {
        text.parse().expect("an IPv6 address")
    }
}
