//! The slices that a network has: counted, so that one can be chosen among them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The ranges of a network, cut into slices of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ground {
    ranges: Vec<IpNet>,
    length: u8,
}

impl Ground {
    /// The slices of this prefix length in these ranges, in order. A range that is
    /// smaller than a slice has none. Lengths up to 32 are meant for IPv4, longer ones
    /// for IPv6.
    pub fn new(ranges: &[IpNet], length: u8) -> Self {
        let is_v4 = length <= 32;
        let fits = |range: &&IpNet| {
            matches!(range, IpNet::V4(_)) == is_v4
                && range.prefix_len() <= length
                && length <= range.max_prefix_len()
        };
        let ranges = ranges.iter().filter(fits).map(IpNet::trunc).collect();
        Self { ranges: IpNet::aggregate(&ranges), length }
    }

    /// How many there are.
    pub fn len(&self) -> u128 {
        self.ranges.iter().map(|range| self.len_of(range)).fold(0, u128::saturating_add)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The slice of this number.
    pub fn get(&self, mut number: u128) -> Option<IpNet> {
        for range in &self.ranges {
            let len = self.len_of(range);
            if number < len {
                let shift = u32::from(range.max_prefix_len() - self.length);
                // A slice of length 0 is number 0.
                let offset = number.checked_shl(shift).unwrap_or(0);
                return IpNet::new(add(range.network(), offset), self.length).ok();
            }
            number -= len;
        }
        None
    }

    /// Whether this is one of the slices.
    pub fn contains(&self, slice: &IpNet) -> bool {
        slice.prefix_len() == self.length
            && slice.trunc() == *slice
            && self.ranges.iter().any(|range| range.contains(slice))
    }

    /// The numbers of the slices that a prefix touches: those inside of it, or the one
    /// that it lies in. A prefix that holds a whole range touches none: a route to
    /// everything stands in nobody's way, for the longer prefix counts.
    pub fn touched(&self, prefix: &IpNet) -> Option<(u128, u128)> {
        let mut before = 0u128;
        for range in &self.ranges {
            if range.contains(prefix) && range != prefix {
                let shift = u32::from(range.max_prefix_len() - self.length);
                let number =
                    |addr| before + distance(range.network(), addr).checked_shr(shift).unwrap_or(0);
                return Some((number(prefix.network()), number(prefix.broadcast())));
            }
            before = before.saturating_add(self.len_of(range));
        }
        None
    }

    fn len_of(&self, range: &IpNet) -> u128 {
        1u128.checked_shl(u32::from(self.length - range.prefix_len())).unwrap_or(u128::MAX)
    }
}

/// The address of a node in its slice: the first after the network's own.
pub fn first_host(slice: &IpNet) -> IpAddr {
    if slice.prefix_len() == slice.max_prefix_len() {
        return slice.network();
    }
    add(slice.network(), 1)
}

fn bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(v4) => u32::from(v4).into(),
        IpAddr::V6(v6) => v6.into(),
    }
}

/// `addr` lies in a range, and the sum does too.
fn add(addr: IpAddr, offset: u128) -> IpAddr {
    let sum = bits(addr).wrapping_add(offset);
    match addr {
        IpAddr::V4(_) => Ipv4Addr::from(sum as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(sum).into(),
    }
}

fn distance(from: IpAddr, to: IpAddr) -> u128 {
    bits(to).wrapping_sub(bits(from))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a prefix")
    }

    #[test]
    fn ranges_are_counted_through() {
        let ground = Ground::new(&[net("10.42.0.0/22"), net("10.99.0.0/24"), net("fd00::/48")], 24);
        assert_eq!(ground.len(), 5);
        let all: Vec<IpNet> = (0..6).map_while(|number| ground.get(number)).collect();
        let expected = ["10.42.0.0", "10.42.1.0", "10.42.2.0", "10.42.3.0", "10.99.0.0"];
        assert_eq!(all, expected.map(|addr| net(&format!("{addr}/24"))));
        assert!(all.iter().all(|slice| ground.contains(slice)));
        for other in ["10.42.4.0/24", "10.42.0.0/25", "fd00::/64", "10.42.0.0/22"] {
            assert!(!ground.contains(&net(other)), "{other}");
        }
        let v6 = Ground::new(&[net("10.42.0.0/22"), net("fd00:1::/48")], 64);
        assert_eq!(v6.len(), 1 << 16);
        assert_eq!(v6.get(0x1234), Some(net("fd00:1:0:1234::/64")));
        assert!(Ground::new(&[net("10.42.7.0/25")], 24).is_empty());
        assert!(Ground::new(&[], 24).is_empty());
        // The same twice, and all there is.
        assert_eq!(Ground::new(&[net("10.42.0.0/24"), net("10.42.0.0/25")], 25).len(), 2);
        let all = Ground::new(&[net("::/0")], 128);
        assert_eq!(all.get(u128::from(u64::MAX)), Some(net("::ffff:ffff:ffff:ffff/128")));
    }

    #[test]
    fn a_prefix_touches_the_slices_in_it_or_the_one_around_it() {
        let ground = Ground::new(&[net("10.42.0.0/22"), net("10.99.0.0/24")], 24);
        for (prefix, touched) in [
            ("10.42.1.0/24", Some((1, 1))),
            ("10.42.1.128/26", Some((1, 1))),
            ("10.42.3.7/32", Some((3, 3))),
            ("10.42.2.0/23", Some((2, 3))),
            ("10.99.0.64/26", Some((4, 4))),
            // Wider than what there is.
            ("10.42.0.0/22", None),
            ("10.0.0.0/8", None),
            ("192.168.0.0/24", None),
            ("fd00::/64", None),
        ] {
            assert_eq!(ground.touched(&net(prefix)), touched, "{prefix}");
        }
    }

    #[test]
    fn a_node_has_the_first_address_of_its_slice() {
        for (slice, addr) in [
            ("10.42.7.0/24", "10.42.7.1"),
            ("fd00:7::/64", "fd00:7::1"),
            ("10.1.1.7/32", "10.1.1.7"),
        ] {
            assert_eq!(first_host(&net(slice)).to_string(), addr);
        }
    }
}
