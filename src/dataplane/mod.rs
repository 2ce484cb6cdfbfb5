//! The data plane: the packet threads and the snapshot that they read.
//!
//! [`DataPlane::start`] binds the port, makes the TUN device and starts three
//! threads: from the device to the network, from the network to the device, and the
//! sessions' clock. None of them waits for the control plane: they read a snapshot
//! of peers and routes that it publishes with [`DataPlane::set_peers`], and the path
//! of each peer that it sets with [`DataPlane::set_path`]. What is not WireGuard's
//! comes up as an [`Upcall`] on a bounded queue; where that is full, it is lost and
//! counted. Dropping the [`DataPlane`] ends the threads and with them the device.
//!
//! A packet for a peer without a path is dropped here, not queued in the session: it
//! would be old when the path comes, and a handshake into nothing helps nobody.

mod counters;
mod device;
mod inbound;
mod links;
mod mss;
mod offload;
mod outbound;
mod packet;
mod peer;
mod snapshot;
#[cfg(test)]
mod tests;
mod udp;
mod wait;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    panic::{self, AssertUnwindSafe},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::mpsc::{self, error::TrySendError};
use zonemesh_discovery::identity::PublicKey;
use zonemesh_punch::{Route, Via};

use self::{
    counters::Counters,
    device::Device,
    links::{Links, send_frame},
    peer::Peer,
    snapshot::Snapshot,
    udp::{Sockets, Udp},
    wait::{Signal, Stop, Wake},
};
pub use self::{
    counters::Drop as DropReason,
    links::RelayLink,
    peer::{EndpointMode, PeerConfig, PeerReport},
};
use crate::tunnel::{HANDSHAKE_MAX, LocalKey};

/// How often the sessions' clock moves on. Their shortest time is five seconds.
const TICK: Duration = Duration::from_millis(250);

/// What may wait for the control plane: some seconds of the checks of a large mesh.
const UPCALLS: usize = 1024;

/// Names a relay's server in a trace, where it has no address of its own there.
const UNSPECIFIED: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Knocks by strangers per second that the control plane hears of.
const KNOCKS_PER_SECOND: u32 = 10;

/// What the data plane is made from.
pub struct Config {
    /// The name of the TUN device.
    pub interface: String,
    /// The UDP port; 0 picks one.
    pub listen_port: u16,
    /// The WireGuard private key.
    pub private_key: [u8; 32],
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("interface", &self.interface)
            .field("listen_port", &self.listen_port)
            .finish_non_exhaustive()
    }
}

/// Why the data plane could not start, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The port is in use.
    #[error(
        "UDP port {port} is taken: set interface.listen_port to another one, or to 0 to pick one"
    )]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// The sockets could not be made.
    #[error("cannot open the UDP sockets: {0}")]
    Socket(#[source] io::Error),
    /// Another process has the device, or an interface of another kind has the name.
    #[error(
        "the interface {name} is taken: stop what uses it (`ip -d link show {name}`), or set \
         interface.name to another name"
    )]
    DeviceTaken {
        /// The device.
        name: String,
    },
    /// Making a TUN device is not allowed.
    #[error(
        "no privilege to make the TUN device {name}: run as root, or give the program CAP_NET_ADMIN"
    )]
    NoPrivilege {
        /// The device.
        name: String,
    },
    /// The kernel has no TUN devices.
    #[error(
        "no TUN devices here: load the kernel module (`modprobe tun`), or give the container /dev/net/tun"
    )]
    NoTun,
    /// The device could not be made for another reason.
    #[error("cannot make the TUN device {name}: {source}")]
    Device {
        /// The device.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start the packet threads: {0}")]
    Thread(#[source] io::Error),
}

/// News for the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upcall {
    /// A STUN message came in.
    Stun {
        /// Which way it came.
        route: Route,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A STUN message of a relay's server came in by its stream. (One by UDP is an
    /// [`Upcall::Stun`] like any other: the server may serve STUN too.)
    Relay {
        /// Which relay.
        id: u32,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A node that is no peer wants to shake hands. Its key is not proven. At most
    /// ten of these come in a second.
    Knock {
        /// The key it claims.
        key: PublicKey,
        /// Which way it came.
        from: Route,
    },
    /// A handshake message of this peer was accepted.
    Handshake {
        /// The peer.
        peer: PublicKey,
        /// Which way it came.
        from: Route,
    },
    /// This peer's authentic messages come another way than before (or at all).
    SourceChanged {
        /// The peer.
        peer: PublicKey,
        /// Which way it came.
        from: Route,
    },
    /// Packets for this peer are being dropped, as it has no path. At most once a
    /// second for each peer.
    NoPath {
        /// The peer.
        peer: PublicKey,
    },
    /// A packet thread ended, as a rule because the TUN device is gone: nothing flows
    /// any more.
    Failed {
        /// What happened.
        reason: String,
    },
}

/// The running data plane.
pub struct DataPlane {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl DataPlane {
    /// Binds the port, makes the device (down, without addresses), starts the threads.
    ///
    /// # Errors
    /// [`StartError`], which says what to do.
    pub fn start(config: &Config) -> Result<(Self, mpsc::Receiver<Upcall>), StartError> {
        Self::with_device(config, Device::open(&config.interface)?)
    }

    fn with_device(
        config: &Config,
        device: Device,
    ) -> Result<(Self, mpsc::Receiver<Upcall>), StartError> {
        let (upcalls, receiver) = mpsc::channel(UPCALLS);
        let shared = Arc::new(Shared {
            key: LocalKey::new(config.private_key),
            sockets: Sockets::open(config.listen_port)?,
            device,
            snapshot: ArcSwap::default(),
            links: ArcSwap::default(),
            mtu: AtomicU16::new(u16::MAX),
            links_changed: Signal::new().map_err(StartError::Thread)?,
            upcalls,
            counters: Counters::default(),
            knocks: Mutex::new(Bucket::new()),
            stop: Stop::new().map_err(StartError::Thread)?,
        });
        let mut plane = Self { shared, threads: Vec::new() };
        plane.spawn("tun-to-udp", outbound::run)?;
        plane.spawn("udp-to-tun", inbound::run)?;
        plane.spawn("sessions", run_clock)?;
        Ok((plane, receiver))
    }

    /// The name and the index of the TUN device.
    pub fn interface(&self) -> (&str, u32) {
        (self.shared.device.name(), self.shared.device.index())
    }

    /// The UDP port of both sockets.
    pub fn port(&self) -> u16 {
        self.shared.sockets.port()
    }

    /// Makes these the peers. The session of a peer that stays lives on, unless its
    /// preshared key or keepalive changed.
    pub fn set_peers(&self, peers: &[PeerConfig]) {
        let (next, new) = self.shared.snapshot.load().next(&self.shared.key, peers);
        self.shared.snapshot.store(Arc::new(next));
        for peer in new {
            // It is to be reached anyway: then at once.
            if peer.has_keepalive() && peer.path().is_some() {
                self.shared.initiate(&peer);
            }
        }
    }

    /// Sets which way the packets of a peer go. With a session a keepalive goes there at
    /// once, so that the peer sees the new way. `false` where there is no such peer.
    pub fn set_path(&self, peer: &PublicKey, path: Option<Route>) -> bool {
        let snapshot = self.shared.snapshot.load();
        let Some(peer) = snapshot.by_key(peer) else { return false };
        let before = peer.set_path(path);
        if let Some(path) = path.filter(|_| before != path) {
            let mut tunnel = peer.tunnel.lock();
            if tunnel.last_handshake().is_some() {
                let mut buffer = [0; HANDSHAKE_MAX];
                if let Some(message) = tunnel.seal(&[], &mut buffer) {
                    peer.note_sent(message.len());
                    self.shared.send_now(path, message);
                }
            }
        }
        true
    }

    /// Sends a handshake initiation to a peer that has a path, also where one is under
    /// way: by itself a session tries again after five seconds only, and the control
    /// plane may know that the path works since a moment ago. `false` where there is
    /// no such peer or no path.
    pub fn initiate(&self, peer: &PublicKey) -> bool {
        self.shared.snapshot.load().by_key(peer).is_some_and(|peer| self.shared.initiate(peer))
    }

    /// Sends a datagram of the control plane's that way. Does not wait; what fails is
    /// counted. With `whole` nobody may fragment it on its way.
    pub fn send(&self, route: Route, bytes: &[u8], whole: bool) {
        self.shared.send(route, bytes, whole);
    }

    /// Sends a datagram of the control plane's that way, from a socket, so that it gets at
    /// most `hops` routers far.
    pub fn send_near(&self, route: Route, bytes: &[u8], hops: u8) {
        let send = |udp: &Udp| udp.send_near(route.remote, bytes, hops);
        let sent = match route.via {
            Via::Socket => self.shared.sockets.of(&route.remote).map(send),
            via @ (Via::Extra(_) | Via::Uplink(_)) => {
                self.shared.links.load().extras().get(&via).map(|udp| send(udp))
            }
            // What a relay sends gets as far as it gets.
            Via::Relay(_) => None,
        };
        self.shared.note_sent(route, sent.unwrap_or(Ok(())));
    }

    /// From now on there is this relay: messages of its server come in, and once channels
    /// are bound, messages of peers through it.
    pub fn open_relay(&self, id: u32, link: RelayLink) {
        let link = Arc::new(link);
        self.change_links(|links| links.add_relay(id, &link));
    }

    /// From now on there is no such relay.
    pub fn close_relay(&self, id: u32) {
        self.change_links(|links| links.remove_relay(id));
    }

    /// Channel `channel` (RFC 8656 §12) of this relay is bound to `peer`.
    pub fn bind_channel(&self, id: u32, peer: SocketAddr, channel: u16) {
        self.change_links(|links| links.bind(id, peer, channel));
    }

    /// No channel of this relay is bound to `peer` any more.
    pub fn unbind_channel(&self, id: u32, peer: SocketAddr) {
        self.change_links(|links| links.unbind(id, &peer));
    }

    /// Sends a message to a relay's server itself.
    pub fn send_to_relay(&self, id: u32, message: &[u8]) {
        let links = self.shared.links.load();
        let Some(relay) = links.relays().get(&id) else { return };
        match &*relay.link {
            RelayLink::Udp(server) => self.shared.send_now(Route::direct(*server), message),
            link => {
                self.shared.note_sent(Route::relayed(id, UNSPECIFIED), send_frame(link, message));
            }
        }
    }

    /// Makes these the further sockets; those to keep stay, if they are there.
    ///
    /// # Errors
    /// When the kernel refuses an option of a new one; none of them counts then.
    pub fn set_sockets(&self, sockets: Vec<(Via, UdpSocket)>, keep: &[Via]) -> io::Result<()> {
        let known = self.shared.links.load();
        let kept = known.extras().iter().filter(|(id, _)| keep.contains(id));
        let mut extras: BTreeMap<Via, Arc<Udp>> =
            kept.map(|(id, udp)| (*id, Arc::clone(udp))).collect();
        for (id, socket) in sockets {
            extras.insert(id, Arc::new(Udp::adopt(socket)?));
        }
        self.change_links(|links| links.set_extras(extras.clone()));
        Ok(())
    }

    /// TCP connections that come to be from now on, also those that are only forwarded
    /// here, send no packets larger than this.
    pub fn set_mtu(&self, mtu: u16) {
        self.shared.mtu.store(mtu, Ordering::Relaxed);
    }

    fn change_links(&self, change: impl Fn(&mut Links)) {
        self.shared.links.rcu(|links| {
            let mut next = Links::clone(links);
            change(&mut next);
            next
        });
        self.shared.links_changed.tell();
    }

    /// What there is to say of each peer, in no order.
    pub fn peers_report(&self) -> Vec<PeerReport> {
        self.shared.snapshot.load().peers().map(|peer| peer.report()).collect()
    }

    /// How many packets and datagrams went no further, by reason.
    pub fn counters(&self) -> Vec<(DropReason, u64)> {
        self.shared.counters.read()
    }

    fn spawn(
        &mut self,
        name: &str,
        run: impl FnOnce(&Shared) -> io::Result<()> + Send + 'static,
    ) -> Result<(), StartError> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // A panic is a fault of ours; silence afterwards would be a second one.
                let end = panic::catch_unwind(AssertUnwindSafe(|| run(&shared)));
                let reason = match end {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => "a packet thread panicked".to_owned(),
                };
                tracing::error!(reason, "the data plane ended");
                shared.tell_failure(reason);
            })
            .map_err(StartError::Thread)?;
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for DataPlane {
    fn drop(&mut self) {
        self.shared.stop.tell();
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for DataPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataPlane")
            .field("interface", &self.interface())
            .field("port", &self.port())
            .finish_non_exhaustive()
    }
}

/// What all threads see.
struct Shared {
    key: LocalKey,
    sockets: Sockets,
    device: Device,
    snapshot: ArcSwap<Snapshot>,
    links: ArcSwap<Links>,
    /// Wakes the thread that waits at all ends when there are others.
    links_changed: Signal,
    /// How large a packet may be that TCP is told to send.
    mtu: AtomicU16,
    upcalls: mpsc::Sender<Upcall>,
    counters: Counters,
    knocks: Mutex<Bucket>,
    stop: Stop,
}

impl Shared {
    /// Tells the control plane, if it keeps up.
    fn tell(&self, upcall: Upcall) {
        if self.upcalls.try_send(upcall).is_err() {
            self.counters.count(DropReason::ControlBusy);
        }
    }

    /// Tells the control plane that nothing flows any more, also where a flood fills
    /// its queue: it must not go on as if all were well.
    fn tell_failure(&self, reason: String) {
        let mut upcall = Upcall::Failed { reason };
        while let Err(TrySendError::Full(unsent)) = self.upcalls.try_send(upcall) {
            upcall = unsent;
            match wait::readable(&self.stop, &[], Some(TICK)) {
                Ok(Wake::Ready | Wake::Timeout) => {}
                Ok(Wake::Stop) | Err(_) => return,
            }
        }
    }

    /// Sends one message without waiting.
    fn send_now(&self, route: Route, message: &[u8]) {
        self.send(route, message, false);
    }

    /// The same; with `whole` so that nobody fragments it.
    fn send(&self, route: Route, message: &[u8], whole: bool) {
        let target = self.links.load().target(&route);
        let Some(target) = target else { return self.counters.count(DropReason::NoChannel) };
        let header = target.header_len();
        let mut frame = vec![0; header + message.len()];
        frame[header..].copy_from_slice(message);
        target.frame(&mut frame);
        let sent = if whole {
            target.send_whole(&self.sockets, &frame)
        } else {
            target.send(&self.sockets, &frame, None)
        };
        self.note_sent(route, sent);
    }

    /// Counts what could not be sent.
    fn note_sent(&self, route: Route, sent: io::Result<()>) {
        if let Err(error) = sent {
            tracing::trace!(%error, %route, "send refused");
            self.counters.count(if error.kind() == io::ErrorKind::WouldBlock {
                DropReason::SendBufferFull
            } else {
                DropReason::SendFailed
            });
        }
    }

    /// Starts a handshake, if there is a path.
    fn initiate(&self, peer: &Peer) -> bool {
        let Some(path) = peer.path() else { return false };
        let mut buffer = [0; HANDSHAKE_MAX];
        if let Some(message) = peer.tunnel.lock().initiate(&mut buffer) {
            peer.note_sent(message.len());
            self.send_now(path, message);
        }
        true
    }
}

/// The sessions' clock: keepalives, new keys, another try.
fn run_clock(shared: &Shared) -> io::Result<()> {
    let mut buffer = [0; HANDSHAKE_MAX];
    loop {
        if wait::readable(&shared.stop, &[], Some(TICK))? == Wake::Stop {
            return Ok(());
        }
        shared.key.handle_tick();
        for peer in shared.snapshot.load().peers() {
            let path = peer.path();
            let message = peer.tunnel.lock().tick(path.is_some(), &mut buffer).map(|m| m.len());
            if let (Some(length), Some(path)) = (message, path) {
                peer.note_sent(length);
                shared.send_now(path, &buffer[..length]);
            }
        }
    }
}

/// A bounded number of something in each second.
struct Bucket {
    since: Instant,
    taken: u32,
}

impl Bucket {
    fn new() -> Self {
        Self { since: Instant::now(), taken: 0 }
    }

    /// Takes one, if there is one left.
    fn take(&mut self) -> bool {
        let now = Instant::now();
        if now.duration_since(self.since) >= Duration::from_secs(1) {
            *self = Self { since: now, taken: 0 };
        }
        self.taken += 1;
        self.taken <= KNOCKS_PER_SECOND
    }
}
