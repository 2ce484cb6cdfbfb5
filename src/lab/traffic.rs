//! What a router of the lab forwards, counted by itself: nobody else has to be asked.

use std::{collections::HashMap, iter::Sum, net::IpAddr, ops::Add};

use anyhow::{Context, Result};
use serde_json::Value;

use super::namespace::Namespace;

/// Counts the packets of UDP and TCP that a router forwards, pair by pair of addresses,
/// and once more those with nothing around WireGuard's data. Its first four bytes are its
/// type and three reserved zeros; they follow the eight bytes of UDP's header.
pub(super) const COUNTERS: &str = "
    table inet count {
      set ipv4 { typeof ip saddr . ip daddr; size 65535; flags dynamic; counter; }
      set ipv6 { typeof ip6 saddr . ip6 daddr; size 65535; flags dynamic; counter; }
      set data4 { typeof ip saddr . ip daddr; size 65535; flags dynamic; counter; }
      set data6 { typeof ip6 saddr . ip6 daddr; size 65535; flags dynamic; counter; }
      chain forward {
        type filter hook forward priority filter;
        meta l4proto { tcp, udp } update @ipv4 { ip saddr . ip daddr }
        meta l4proto { tcp, udp } update @ipv6 { ip6 saddr . ip6 daddr }
        meta l4proto udp @th,64,32 0x04000000 update @data4 { ip saddr . ip daddr }
        meta l4proto udp @th,64,32 0x04000000 update @data6 { ip6 saddr . ip6 daddr }
      }
    }";

/// The sets of all packets, by family.
const ALL: [&str; 2] = ["ipv4", "ipv6"];

/// The sets of WireGuard's data, by family.
const DATA: [&str; 2] = ["data4", "data6"];

/// Packets of UDP and TCP that a router forwarded, by source and destination.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traffic(HashMap<(IpAddr, IpAddr), Count>);

/// Some packets. A train of packets that a sender hands to the kernel at once counts
/// as one, so only the bytes tell what has passed for sure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets, or trains of them.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

impl Add for Count {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

impl Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), Self::add)
    }
}

impl Traffic {
    /// What `router` has counted.
    pub(super) fn read(router: &Namespace) -> Result<Self> {
        Self::read_sets(router, ALL)
    }

    /// What `router` has counted of WireGuard's data, as far as it is not wrapped up for a
    /// relay.
    pub(super) fn read_data(router: &Namespace) -> Result<Self> {
        Self::read_sets(router, DATA)
    }

    fn read_sets(router: &Namespace, sets: [&str; 2]) -> Result<Self> {
        let mut traffic = Traffic::default();
        for set in sets {
            let json = router.run("nft", &["-j", "list", "set", "inet", "count", set])?;
            let json: Value = serde_json::from_str(&json).context("nft prints JSON")?;
            let sets = json["nftables"].as_array().into_iter().flatten();
            for entry in sets.flat_map(|item| item["set"]["elem"].as_array()).flatten() {
                let entry = &entry["elem"];
                let ip = |index: usize| -> Result<IpAddr> {
                    let text = entry["val"]["concat"][index].as_str().unwrap_or_default();
                    text.parse().with_context(|| format!("not a pair of addresses: {entry}"))
                };
                let counted = |what: &str| entry["counter"][what].as_u64().unwrap_or_default();
                let count = Count { packets: counted("packets"), bytes: counted("bytes") };
                traffic.0.insert((ip(0)?, ip(1)?), count);
            }
        }
        Ok(traffic)
    }

    /// What passed between two addresses, both ways.
    pub fn between(&self, a: IpAddr, b: IpAddr) -> Count {
        self.sent(a, b) + self.sent(b, a)
    }

    /// What passed from one address to another.
    pub fn sent(&self, from: IpAddr, to: IpAddr) -> Count {
        self.0.get(&(from, to)).copied().unwrap_or_default()
    }

    /// All that passed.
    pub fn total(&self) -> Count {
        self.0.values().copied().sum()
    }

    /// All but what came from or went to these addresses.
    pub fn without(&self, services: &[IpAddr]) -> Count {
        let others = self
            .0
            .iter()
            .filter(|((from, to), _)| !services.contains(from) && !services.contains(to));
        others.map(|(_, count)| *count).sum()
    }

    /// What came on top of `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &Traffic) -> Traffic {
        let added = |(&pair, count): (&(IpAddr, IpAddr), &Count)| {
            let before = earlier.0.get(&pair).copied().unwrap_or_default();
            let (packets, bytes) = (count.packets - before.packets, count.bytes - before.bytes);
            (pair, Count { packets, bytes })
        };
        let added = self.0.iter().map(added);
        Traffic(added.filter(|(_, count)| count.packets > 0).collect())
    }
}
