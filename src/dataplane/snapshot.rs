//! What the packet threads read: who the peers are and what lies behind them.
//!
//! The control plane publishes a new one as a whole; a packet thread looks at one
//! of them for the length of a batch.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;
use zonemesh_discovery::identity::PublicKey;

use super::peer::{Peer, PeerConfig};
use crate::tunnel::{INDICES, LocalKey};

/// The peers, found by key, by session index, and by the addresses behind them.
#[derive(Default)]
pub(super) struct Snapshot {
    by_key: HashMap<PublicKey, Arc<Peer>>,
    by_index: HashMap<u32, Arc<Peer>>,
    v4: PrefixMap<Ipv4Net, Arc<Peer>>,
    v6: PrefixMap<Ipv6Net, Arc<Peer>>,
}

impl Snapshot {
    /// The snapshot after this one, with `configs` as its peers: those whose session
    /// still serves stay as they are. Gives the new ones, too. Where two peers have
    /// the same prefix the first of them gets it.
    pub(super) fn next(&self, local: &LocalKey, configs: &[PeerConfig]) -> (Self, Vec<Arc<Peer>>) {
        let mut next = Self::default();
        let mut new = Vec::new();
        for config in configs {
            let kept = self.by_key.get(&config.public_key).filter(|peer| peer.serves(config));
            let peer = match kept {
                Some(peer) => {
                    peer.set_mode(config.mode);
                    Arc::clone(peer)
                }
                None => {
                    let index = loop {
                        let index = rand::random_range(0..INDICES);
                        if [&self.by_index, &next.by_index]
                            .iter()
                            .all(|map| !map.contains_key(&index))
                        {
                            break index;
                        }
                    };
                    let peer = Arc::new(Peer::new(local, index, config));
                    new.push(Arc::clone(&peer));
                    peer
                }
            };
            for prefix in &config.allowed {
                match prefix.trunc() {
                    IpNet::V4(prefix) => {
                        next.v4.entry(prefix).or_insert_with(|| Arc::clone(&peer));
                    }
                    IpNet::V6(prefix) => {
                        next.v6.entry(prefix).or_insert_with(|| Arc::clone(&peer));
                    }
                }
            }
            next.by_index.insert(peer.index, Arc::clone(&peer));
            next.by_key.insert(peer.key, peer);
        }
        (next, new)
    }

    /// The peer with this key.
    pub(super) fn by_key(&self, key: &PublicKey) -> Option<&Arc<Peer>> {
        self.by_key.get(key)
    }

    /// The peer whose sessions have this index.
    pub(super) fn by_index(&self, index: u32) -> Option<&Arc<Peer>> {
        self.by_index.get(&index)
    }

    /// The peer that `address` lies behind: longest prefix first.
    pub(super) fn route(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&address.into()).map(|(_, peer)| peer),
            IpAddr::V6(address) => self.v6.get_lpm(&address.into()).map(|(_, peer)| peer),
        }
    }

    /// All of them.
    pub(super) fn peers(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.by_key.values()
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use zonemesh_discovery::identity::Identity;
    use zonemesh_punch::Route;

    use super::*;
    use crate::dataplane::peer::EndpointMode;

    fn config(seed: u8, allowed: &[&str]) -> PeerConfig {
        PeerConfig {
            public_key: Identity::from_seed(&[seed; 32]).public_key(),
            preshared_key: None,
            keepalive: None,
            allowed: allowed.iter().map(|text| text.parse().expect("a prefix")).collect(),
            mode: EndpointMode::Managed,
        }
    }

    fn local() -> LocalKey {
        LocalKey::new([1; 32])
    }

    fn key_behind(snapshot: &Snapshot, address: &str) -> Option<PublicKey> {
        snapshot.route(address.parse().expect("an address")).map(|peer| peer.key)
    }

    #[test]
    fn the_longest_prefix_wins_in_both_families() {
        let (a, b) =
            (config(2, &["10.42.0.0/16", "fd00::/8"]), config(3, &["10.42.7.0/24", "fd00:7::/32"]));
        let (snapshot, _) = Snapshot::default().next(&local(), &[a.clone(), b.clone()]);
        assert_eq!(key_behind(&snapshot, "10.42.1.1"), Some(a.public_key));
        assert_eq!(key_behind(&snapshot, "10.42.7.1"), Some(b.public_key));
        assert_eq!(key_behind(&snapshot, "10.43.0.1"), None);
        assert_eq!(key_behind(&snapshot, "fd01::1"), Some(a.public_key));
        assert_eq!(key_behind(&snapshot, "fd00:7::1"), Some(b.public_key));
        assert_eq!(key_behind(&snapshot, "2001:db8::1"), None);
    }

    #[test]
    fn a_prefix_with_host_bits_and_a_default_route_are_found() {
        let (a, b) = (config(2, &["10.1.2.3/24"]), config(3, &["0.0.0.0/0"]));
        let (snapshot, _) = Snapshot::default().next(&local(), &[a.clone(), b.clone()]);
        assert_eq!(key_behind(&snapshot, "10.1.2.200"), Some(a.public_key));
        assert_eq!(key_behind(&snapshot, "192.0.2.1"), Some(b.public_key));
    }

    #[test]
    fn sessions_live_on_while_their_keys_stay() {
        let first = [config(2, &["10.0.2.0/24"]), config(3, &["10.0.3.0/24"])];
        let (before, new) = Snapshot::default().next(&local(), &first);
        assert_eq!(new.len(), 2);

        let mut moved = config(2, &["10.0.9.0/24"]);
        moved.mode = EndpointMode::Roaming(Some(SocketAddr::from(([192, 0, 2, 1], 7))));
        let mut rekeyed = config(3, &["10.0.3.0/24"]);
        rekeyed.preshared_key = Some(crate::tunnel::PresharedKey::from_bytes([1; 32]));
        let (after, new) = before.next(&local(), &[moved.clone(), rekeyed.clone()]);

        assert_eq!(new.len(), 1);
        assert_eq!(new[0].key, rekeyed.public_key);
        let (old, kept) = (before.by_key(&moved.public_key), after.by_key(&moved.public_key));
        let kept = kept.expect("still a peer");
        assert!(Arc::ptr_eq(old.expect("a peer"), kept));
        let endpoint = SocketAddr::from(([192, 0, 2, 1], 7));
        assert_eq!(kept.path(), Some(Route::direct(endpoint)));
        assert_eq!(key_behind(&after, "10.0.2.1"), None);
        assert_eq!(key_behind(&after, "10.0.9.1"), Some(moved.public_key));
        assert!(after.by_index(kept.index).is_some());

        let (empty, _) = after.next(&local(), &[]);
        assert!(empty.by_key(&moved.public_key).is_none());
        assert_eq!(empty.peers().count(), 0);
    }
}
