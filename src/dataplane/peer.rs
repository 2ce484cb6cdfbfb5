//! One peer: its session, its path, and what has gone over it.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use parking_lot::Mutex;
use zonemesh_discovery::identity::PublicKey;
use zonemesh_punch::Route;

use crate::tunnel::{LocalKey, PresharedKey, Tunnel};

/// How often the control plane hears that packets for a peer have no path.
const WISH_INTERVAL: Duration = Duration::from_secs(1);

/// Who decides where a peer's packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointMode {
    /// To where its last authentic message came from (a `[[peer]]` of the
    /// configuration), and to this address before the first.
    Roaming(Option<SocketAddr>),
    /// To where the control plane says. Only the answer to a handshake message goes
    /// back to its source.
    Managed,
}

/// What the control plane wants of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its key, and so its name.
    pub public_key: PublicKey,
    /// An additional key of both sides.
    pub preshared_key: Option<PresharedKey>,
    /// Seconds between keepalives. With it a peer that does not answer is tried
    /// for as long as it has a path.
    pub keepalive: Option<u16>,
    /// The prefixes behind it: what goes to it, and what may come from it.
    pub allowed: Vec<IpNet>,
    /// Who decides on its path.
    pub mode: EndpointMode,
}

/// What there is to say of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReport {
    /// Its key.
    pub public_key: PublicKey,
    /// Bytes of authentic messages from it, WireGuard's own included.
    pub rx_bytes: u64,
    /// Bytes of messages to it, WireGuard's own included.
    pub tx_bytes: u64,
    /// How long ago keys were agreed on last; also where these have had their day.
    pub last_handshake: Option<Duration>,
    /// Which way its packets go.
    pub path: Option<Route>,
    /// When and which way its last authentic message came.
    pub last_received: Option<(Instant, Route)>,
}

/// A peer of the data plane. It lives as long as the control plane names it with the
/// same keys; sessions and counters live with it.
pub(super) struct Peer {
    pub(super) key: PublicKey,
    pub(super) index: u32,
    preshared_key: Option<PresharedKey>,
    keepalive: Option<u16>,
    /// Held for a whole batch of its packets.
    pub(super) tunnel: Mutex<Tunnel>,
    /// Held for a moment, and never while waiting for the tunnel.
    link: Mutex<Link>,
    /// A datagram of several segments failed on this path: one by one from now on.
    pub(super) no_segments: AtomicBool,
    rx_bytes: AtomicU64,
    tx_bytes: AtomicU64,
}

#[derive(Debug)]
struct Link {
    mode: EndpointMode,
    path: Option<Route>,
    received: Option<(Instant, Route)>,
    /// When keys were agreed on last. The tunnel forgets it with the keys: after three
    /// minutes, which an idle session may be over before it is needed again.
    handshake: Option<Instant>,
    wished: Option<Instant>,
}

impl Peer {
    /// A peer without a session.
    pub(super) fn new(local: &LocalKey, index: u32, config: &PeerConfig) -> Self {
        let path = match config.mode {
            EndpointMode::Roaming(path) => path.map(Route::direct),
            EndpointMode::Managed => None,
        };
        Self {
            key: config.public_key,
            index,
            preshared_key: config.preshared_key.clone(),
            keepalive: config.keepalive,
            tunnel: Mutex::new(Tunnel::new(
                local,
                &config.public_key,
                config.preshared_key.as_ref(),
                config.keepalive,
                index,
            )),
            link: Mutex::new(Link {
                mode: config.mode,
                path,
                received: None,
                handshake: None,
                wished: None,
            }),
            no_segments: AtomicBool::new(false),
            rx_bytes: AtomicU64::new(0),
            tx_bytes: AtomicU64::new(0),
        }
    }

    /// Whether its session can serve `config`.
    pub(super) fn serves(&self, config: &PeerConfig) -> bool {
        self.key == config.public_key
            && self.preshared_key == config.preshared_key
            && self.keepalive == config.keepalive
    }

    /// Takes over who decides on the path. A new static endpoint counts at once.
    pub(super) fn set_mode(&self, mode: EndpointMode) {
        let mut link = self.link.lock();
        if link.mode != mode {
            link.mode = mode;
            if let EndpointMode::Roaming(Some(path)) = mode {
                link.path = Some(Route::direct(path));
                self.no_segments.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Which way its packets go.
    pub(super) fn path(&self) -> Option<Route> {
        self.link.lock().path
    }

    /// Sets which way its packets go, and says which way they went before.
    pub(super) fn set_path(&self, path: Option<Route>) -> Option<Route> {
        self.no_segments.store(false, Ordering::Relaxed);
        std::mem::replace(&mut self.link.lock().path, path)
    }

    /// Whether it is to be reached without anybody sending to it.
    pub(super) fn has_keepalive(&self) -> bool {
        self.keepalive.is_some()
    }

    /// Notes an authentic message of `bytes` bytes; `true` if it came another way than
    /// the one before. The path follows it where nobody else decides.
    pub(super) fn note_received(&self, from: Route, bytes: usize) -> bool {
        self.rx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let mut link = self.link.lock();
        let moved = link.received.is_none_or(|(_, before)| before != from);
        link.received = Some((Instant::now(), from));
        if matches!(link.mode, EndpointMode::Roaming(_)) && link.path != Some(from) {
            link.path = Some(from);
            self.no_segments.store(false, Ordering::Relaxed);
        }
        moved
    }

    /// Notes `bytes` bytes sent to it.
    pub(super) fn note_sent(&self, bytes: usize) {
        self.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Whether it is time to tell the control plane that a path is missing.
    pub(super) fn wishes_path(&self) -> bool {
        let now = Instant::now();
        let mut link = self.link.lock();
        let due = link.wished.is_none_or(|last| now.duration_since(last) >= WISH_INTERVAL);
        if due {
            link.wished = Some(now);
        }
        due
    }

    /// What there is to say of it. To be asked for now and then, or the time of a
    /// handshake is lost when its keys expire.
    pub(super) fn report(&self) -> PeerReport {
        let age = self.tunnel.lock().last_handshake();
        let mut link = self.link.lock();
        link.handshake = age.and_then(|age| Instant::now().checked_sub(age)).or(link.handshake);
        PeerReport {
            public_key: self.key,
            rx_bytes: self.rx_bytes.load(Ordering::Relaxed),
            tx_bytes: self.tx_bytes.load(Ordering::Relaxed),
            last_handshake: link.handshake.map(|at| at.elapsed()),
            path: link.path,
            last_received: link.received,
        }
    }
}

#[cfg(test)]
mod tests {
    use zonemesh_discovery::identity::Identity;

    use super::*;

    #[test]
    fn the_last_handshake_is_told_also_when_its_keys_have_expired() {
        let config = PeerConfig {
            public_key: Identity::from_seed(&[2; 32]).public_key(),
            preshared_key: None,
            keepalive: None,
            allowed: vec![],
            mode: EndpointMode::Managed,
        };
        let peer = Peer::new(&LocalKey::new([1; 32]), 1, &config);
        assert_eq!(peer.report().last_handshake, None, "there was none");
        // As a report left it while the keys were good.
        peer.link.lock().handshake = Instant::now().checked_sub(Duration::from_secs(1));
        assert!(peer.report().last_handshake.is_some_and(|age| age >= Duration::from_secs(1)));
    }
}
