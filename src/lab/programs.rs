//! The programs a lab is made of, and the Debian packages they come in.

use std::{env, path::Path};

use anyhow::{Result, bail};

/// Which Debian package a program is in.
const PACKAGES: &[(&str, &str)] = &[
    ("avahi-browse", "avahi-utils"),
    ("avahi-daemon", "avahi-daemon"),
    ("avahi-publish", "avahi-utils"),
    ("conntrack", "conntrack"),
    ("dbus-daemon", "dbus"),
    ("dig", "bind9-dnsutils"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("knotc", "knot"),
    ("knotd", "knot"),
    ("miniupnpd", "miniupnpd-nftables"),
    ("mount", "mount"),
    ("named", "bind9"),
    ("nft", "nftables"),
    ("nsupdate", "bind9-dnsutils"),
    ("openssl", "openssl"),
    ("ping", "iputils-ping"),
    ("tayga", "tayga"),
    ("tcpdump", "tcpdump"),
    ("turnserver", "coturn"),
    ("turnutils_natdiscovery", "coturn"),
    ("turnutils_peer", "coturn"),
    ("turnutils_stunclient", "coturn"),
    ("turnutils_uclient", "coturn"),
    ("unshare", "util-linux"),
    ("wg", "wireguard-tools"),
    ("wireguard-go", "wireguard-go"),
];

/// What every lab calls, whatever runs in it.
pub const LAB: &[&str] = &["unshare", "mount", "ip", "nft"];

/// Fails with the packages to install unless all `programs` are there.
///
/// # Errors
/// When at least one is missing.
pub fn require(programs: &[&str]) -> Result<()> {
    let missing: Vec<&str> = programs.iter().copied().filter(|name| !present(name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|name| package(name)).collect();
    packages.sort_unstable();
    packages.dedup();
    bail!(
        "missing: {}; on Debian: apt-get install --no-install-recommends {}",
        missing.join(", "),
        packages.join(" ")
    );
}

/// Whether a program of this name is found on the search path.
pub fn present(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
        || Path::new("/usr/sbin").join(program).is_file()
}

fn package(program: &str) -> &str {
    PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let error = require(&["sh", "no-such-program"]).expect_err("one is missing").to_string();
        assert_eq!(
            error,
            "missing: no-such-program; on Debian: apt-get install --no-install-recommends no-such-program"
        );
        assert_eq!(package("turnserver"), "coturn");
        assert!(require(&["sh"]).is_ok());
    }
}
