//! What goes wrong at the core of a lab, and stops when it is told to: packets between
//! two public addresses that are cut off, lost at random, or too big to pass.
//!
//! All of it is one nftables chain of the core, loaded again as a whole with each change.
//! It comes before the counting, so that only what gets through is counted. What a fault
//! has dropped it counts itself.

use std::{fmt::Write as _, net::IpAddr};

use anyhow::{Context, Result};
use serde_json::Value;

use super::net::{Host, Lab};

/// The first four bytes of WireGuard's data: its type and three reserved zeros. They
/// follow the eight bytes of UDP's header.
const WIREGUARD_DATA: &str = "@th,64,32 0x04000000";

/// One fault at the core.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    number: u32,
    /// What it drops, in the words of nftables: a line for each kind of packets.
    matches: Vec<String>,
}

impl Fault {
    /// The name of its counter.
    fn counter(&self) -> String {
        format!("fault{}", self.number)
    }
}

impl Lab {
    /// Cuts off all UDP between two addresses, both ways.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn cut(&mut self, a: IpAddr, b: IpAddr) -> Result<Fault> {
        self.begin(both_ways(a, b, "meta l4proto udp"))
    }

    /// Cuts off all UDP from one address to another. What goes the other way arrives.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn cut_one_way(&mut self, from: IpAddr, to: IpAddr) -> Result<Fault> {
        self.begin(vec![one_way(from, to, "meta l4proto udp")])
    }

    /// Cuts off WireGuard's data between two addresses, both ways. Its handshakes pass, and
    /// so does whatever else is sent.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn cut_data(&mut self, a: IpAddr, b: IpAddr) -> Result<Fault> {
        self.begin(both_ways(a, b, &format!("meta l4proto udp {WIREGUARD_DATA}")))
    }

    /// Cuts off a host at the core from everybody, whatever the protocol.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn cut_host(&mut self, host: &Host) -> Result<Fault> {
        let mut matches = Vec::new();
        for ip in &host.addresses {
            let family = family(*ip);
            matches.push(format!("{family} saddr {ip}"));
            matches.push(format!("{family} daddr {ip}"));
        }
        self.begin(matches)
    }

    /// Loses this part of the UDP between two addresses at random, each way for itself.
    ///
    /// # Errors
    /// When the kernel or nft refuses it.
    pub fn lose(&mut self, percent: u8, a: IpAddr, b: IpAddr) -> Result<Fault> {
        self.take_apart()?;
        let chance = format!("numgen random mod 100 < {percent}");
        self.begin(both_ways(a, b, &format!("meta l4proto udp {chance}")))
    }

    /// Drops what is longer than `bytes` and from or to this address, and tells nobody: a
    /// narrow link behind which ICMP is lost.
    ///
    /// # Errors
    /// When the kernel or nft refuses it.
    pub fn narrow(&mut self, bytes: u16, ip: IpAddr) -> Result<Fault> {
        self.take_apart()?;
        let family = family(ip);
        let longer = format!("meta length > {bytes}");
        let directions = ["saddr", "daddr"];
        self.begin(directions.map(|end| format!("{family} {end} {ip} {longer}")).to_vec())
    }

    /// Ends a fault.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn end(&mut self, fault: &Fault) -> Result<()> {
        self.faults.retain(|known| known != fault);
        self.load_faults()
    }

    /// How many packets a fault has dropped, or trains of packets where nothing has been
    /// lost at random yet. It is known also after its end.
    ///
    /// # Errors
    /// When nft cannot be asked.
    pub fn dropped(&self, fault: &Fault) -> Result<u64> {
        let list = ["-j", "list", "counter", "inet", "weather", &fault.counter()];
        let json: Value = serde_json::from_str(&self.core.run("nft", &list)?)?;
        let mut items = json["nftables"].as_array().into_iter().flatten();
        items.find_map(|item| item["counter"]["packets"].as_u64()).context("a counter counts")
    }

    /// Adds a fault that drops what `matches` name.
    fn begin(&mut self, matches: Vec<String>) -> Result<Fault> {
        let fault = Fault { number: self.fault_count, matches };
        self.fault_count += 1;
        self.faults.push(fault.clone());
        self.load_faults()?;
        Ok(fault)
    }

    /// Makes the core's chain what the faults are now. The counters of those that have
    /// ended stay.
    fn load_faults(&self) -> Result<()> {
        let mut rules = String::from(
            "add table inet weather
             add chain inet weather forward { type filter hook forward priority -10; }
             flush chain inet weather forward\n",
        );
        for fault in &self.faults {
            let counter = fault.counter();
            let _ = writeln!(rules, "add counter inet weather {counter}");
            for matched in &fault.matches {
                let _ = writeln!(
                    rules,
                    "add rule inet weather forward {matched} counter name {counter} drop"
                );
            }
        }
        self.core.nft(&rules)
    }

    /// Has everything that is attached send single packets: the core sees the trains that
    /// a sender hands to its kernel as one packet else, which is lost as one and longer
    /// than any link is wide.
    fn take_apart(&self) -> Result<()> {
        for (namespace, device) in &self.attached {
            namespace.ip(&format!("link set {device} gso_max_segs 1"))?;
        }
        Ok(())
    }
}

/// Matches what goes between two addresses and is `what`.
fn both_ways(a: IpAddr, b: IpAddr, what: &str) -> Vec<String> {
    vec![one_way(a, b, what), one_way(b, a, what)]
}

fn one_way(from: IpAddr, to: IpAddr, what: &str) -> String {
    let family = family(from);
    format!("{family} saddr {from} {family} daddr {to} {what}")
}

/// How nftables calls the header that holds such an address.
fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "ip" } else { "ip6" }
}
