//! The relaying thread: all sockets, one poller, one machine.
//!
//! Whatever can be read is read in batches, each socket one batch in its turn. What the
//! machine wants done after it was told something is done at once ([`Engine::settle`]).

#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use rustix::event::{
    EventfdFlags, Timespec,
    epoll::{self, CreateFlags, EventData, EventFlags},
    eventfd,
};
use tokio::sync::oneshot;
use tracing::{debug, info};
use zonemesh_punch::turn::{
    message::Family,
    server::{ClientAddr, Command, PeerPolicy, RelayId, Server, ServerConfig, Users},
};

use super::{
    addresses::{Addresses, alternate_port},
    limits,
    streams::{Acceptor, Streams},
    tls,
    train::Train,
    udp::{Buffers, Udp},
};
use crate::config::{Secret, ServeConfig};

/// A burst of a few milliseconds at 10 Gbit/s; all clients share it.
const LISTENER_BUFFER: usize = 8 << 20;

/// The same for one allocation.
const RELAY_BUFFER: usize = 2 << 20;

/// How often the clock is looked at, idle streams are ended, and so on.
const TICK: Duration = Duration::from_secs(1);

/// How often it is told what was done, where something was.
const TELL: Duration = Duration::from_secs(60);

/// How many sockets are looked at in one go.
const EVENTS: usize = 64;

/// What a poller's event is about: the kind in the upper half, the number in the lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Word,
    Listener(u32),
    Relay(u32),
    Acceptor(u32),
    Stream(u32),
}

impl Token {
    fn data(self) -> EventData {
        let (kind, number) = match self {
            Self::Word => (0, 0),
            Self::Listener(number) => (1, number),
            Self::Relay(number) => (2, number),
            Self::Acceptor(number) => (3, number),
            Self::Stream(number) => (4, number),
        };
        EventData::new_u64((kind << 32) | u64::from(number))
    }

    fn of(data: EventData) -> Self {
        let number = u32::try_from(data.u64() & u64::from(u32::MAX)).unwrap_or_default();
        match data.u64() >> 32 {
            1 => Self::Listener(number),
            2 => Self::Relay(number),
            3 => Self::Acceptor(number),
            4 => Self::Stream(number),
            _ => Self::Word,
        }
    }
}

/// What the thread is told from outside.
enum Word {
    Addresses(Addresses),
    Stop,
}

/// The relaying thread, from outside.
pub(super) struct Relaying {
    words: mpsc::Sender<Word>,
    bell: Arc<OwnedFd>,
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl Relaying {
    /// Tells what the machine's addresses are now.
    pub(super) fn set_addresses(&self, addresses: Addresses) {
        self.tell(Word::Addresses(addresses));
    }

    /// Waits until it has ended by itself.
    pub(super) async fn ended(&mut self) {
        // Told or dropped, it is over.
        let _ = (&mut self.ended).await;
    }

    /// Ends it, and says how it went.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        self.tell(Word::Stop);
        match self.thread.join() {
            Ok(result) => Ok(result?),
            Err(_) => anyhow::bail!("the relaying thread has panicked"),
        }
    }

    fn tell(&self, word: Word) {
        // Both fail only when the thread has ended.
        let _ = self.words.send(word);
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }
}

/// What the relaying thread has.
pub(super) struct Engine {
    pub(super) server: Server,
    pub(super) poller: OwnedFd,
    pub(super) listeners: Vec<Udp>,
    /// By [`relay_number`].
    pub(super) relays: Vec<Option<Udp>>,
    pub(super) acceptors: Vec<Acceptor>,
    pub(super) streams: Streams,
    pub(super) train: Train,
    /// Datagrams that the kernel did not take.
    pub(super) unsent: u64,
    words: mpsc::Receiver<Word>,
    bell: Arc<OwnedFd>,
    told: (Instant, u64),
}

/// The place of a relayed socket.
pub(super) fn relay_number(relay: RelayId) -> u32 {
    relay.slot * 2 + u32::from(relay.family == Family::V6)
}

fn relay_of(number: u32) -> RelayId {
    let family = if number.is_multiple_of(2) { Family::V4 } else { Family::V6 };
    RelayId { slot: number / 2, family }
}

impl Engine {
    /// Opens the sockets and starts the thread.
    pub(super) fn start(
        config: &ServeConfig,
        addresses: Addresses,
        own_ports: Vec<u16>,
    ) -> anyhow::Result<Relaying> {
        let (words, inbox) = mpsc::channel();
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let mut engine = Self::open(config, addresses, own_ports, inbox, Arc::clone(&bell))?;
        let (ending, ended) = oneshot::channel();
        let thread = thread::Builder::new().name("relay".into()).spawn(move || {
            let result = engine.run();
            // Nobody may be waiting.
            let _ = ending.send(());
            result
        })?;
        Ok(Relaying { words, bell, ended, thread })
    }

    fn open(
        config: &ServeConfig,
        addresses: Addresses,
        own_ports: Vec<u16>,
        words: mpsc::Receiver<Word>,
        bell: Arc<OwnedFd>,
    ) -> anyhow::Result<Self> {
        let now = Instant::now();
        let limits = limits::within_open_files(config, !own_ports.is_empty());
        let tls = config.tls.as_ref().map(tls::config).transpose()?;
        let server = Server::new(
            ServerConfig {
                stun: config.stun,
                turn: config.turn,
                realm: config.realm.clone(),
                users: Users {
                    secret: config.secret.as_ref().map(Secret::expose).map(|s| s.as_bytes().into()),
                    passwords: HashMap::new(),
                },
                addresses: addresses.relay,
                ports: config.ports.clone(),
                peers: PeerPolicy {
                    allow: config.allow_peers.clone(),
                    own: addresses.own,
                    own_ports,
                },
                alternates: addresses.alternates.clone(),
                limits: limits.clients,
            },
            rand::random(),
            unix_s(),
            now,
        );
        let mut engine = Self {
            server,
            poller: epoll::create(CreateFlags::CLOEXEC)?,
            listeners: Vec::new(),
            relays: Vec::new(),
            acceptors: Vec::new(),
            streams: Streams::new(limits.connections, limits.connections_per_source),
            train: Train::default(),
            unsent: 0,
            words,
            bell,
            told: (now, 0),
        };
        engine.watch(&engine.bell, Token::Word)?;
        for addr in &config.listen {
            engine.listen(*addr)?;
            engine.accept_at(*addr, None)?;
        }
        if let (Some(tls_config), Some(tls)) = (&config.tls, &tls) {
            for addr in &tls_config.listen {
                engine.accept_at(*addr, Some(tls))?;
            }
        }
        engine.listen_for_alternates(config, &addresses.alternates)?;
        anyhow::ensure!(!engine.listeners.is_empty(), "nowhere to listen");
        Ok(engine)
    }

    /// Listens on the second port of RFC 5780 too, where there is a second address.
    fn listen_for_alternates(
        &mut self,
        config: &ServeConfig,
        alternates: &[zonemesh_punch::turn::server::Alternates],
    ) -> anyhow::Result<()> {
        let Some([first, second]) = alternate_port(&config.listen) else { return Ok(()) };
        for addr in &config.listen {
            let pair = alternates.iter().any(|pair| {
                let same_family = pair.ips[0].is_ipv4() == addr.is_ipv4();
                same_family && (addr.ip().is_unspecified() || pair.ips.contains(&addr.ip()))
            });
            let other = SocketAddr::new(addr.ip(), second);
            if pair && addr.port() == first && !config.listen.contains(&other) {
                self.listen(other)?;
            }
        }
        for pair in alternates {
            let [a, b] = pair.ips;
            info!("a second address for NAT behaviour (RFC 5780): {a} and {b}");
        }
        Ok(())
    }

    fn listen(&mut self, addr: SocketAddr) -> anyhow::Result<()> {
        let udp = match Udp::bind(addr, LISTENER_BUFFER) {
            Ok(udp) => udp,
            Err(error) if is_without_ipv6(addr, &error) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("cannot listen on {addr}")),
        };
        let number = u32::try_from(self.listeners.len())?;
        self.watch(&udp, Token::Listener(number))?;
        self.listeners.push(udp);
        info!(%addr, "serving UDP");
        Ok(())
    }

    fn accept_at(
        &mut self,
        addr: SocketAddr,
        tls: Option<&Arc<rustls::ServerConfig>>,
    ) -> anyhow::Result<()> {
        let acceptor = match Acceptor::bind(addr, tls.cloned()) {
            Ok(acceptor) => acceptor,
            Err(error) if is_without_ipv6(addr, &error) => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot listen on {addr} (TCP)"));
            }
        };
        let number = u32::try_from(self.acceptors.len())?;
        self.watch(&acceptor, Token::Acceptor(number))?;
        self.acceptors.push(acceptor);
        info!(%addr, "serving {}", if tls.is_some() { "TLS" } else { "TCP" });
        Ok(())
    }

    pub(super) fn watch(&self, source: &impl AsFd, token: Token) -> io::Result<()> {
        Ok(epoll::add(&self.poller, source, token.data(), EventFlags::IN)?)
    }

    pub(super) fn unwatch(&self, source: &impl AsFd) -> io::Result<()> {
        Ok(epoll::delete(&self.poller, source)?)
    }

    /// Has the poller also tell when a stream can be written to, or no more.
    pub(super) fn watch_writes(
        &self,
        source: &impl AsFd,
        token: Token,
        writes: bool,
    ) -> io::Result<()> {
        let flags = if writes { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        Ok(epoll::modify(&self.poller, source, token.data(), flags)?)
    }

    fn run(&mut self) -> io::Result<()> {
        let mut buffers = Buffers::new();
        let mut events = [MaybeUninit::uninit(); EVENTS];
        let mut tick = Instant::now() + TICK;
        loop {
            let due = self.server.poll_timeout().map_or(tick, |due| due.min(tick));
            let wait = due.saturating_duration_since(Instant::now());
            let wait = Timespec::try_from(wait).map_err(io::Error::other)?;
            let ready = match epoll::wait(&self.poller, &mut events, Some(&wait)) {
                Ok((ready, _)) => ready,
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            for event in ready {
                let (data, flags) = (event.data, event.flags);
                match Token::of(data) {
                    Token::Listener(number) => self.read_clients(number, &mut buffers, now),
                    Token::Relay(number) => self.read_peers(relay_of(number), &mut buffers, now),
                    Token::Acceptor(number) => self.accept(number, now),
                    Token::Stream(number) => {
                        self.handle_stream(number, flags.contains(EventFlags::OUT), now);
                    }
                    Token::Word => {
                        if self.hear() {
                            return Ok(());
                        }
                    }
                }
            }
            if now >= tick {
                tick = now + TICK;
                self.tick(now);
            }
            self.server.handle_timeout(now);
            self.settle(now);
            self.flush_streams();
        }
    }

    /// Takes what is told from outside; whether it is to stop.
    fn hear(&mut self) -> bool {
        // It can only fail for not having been rung.
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        loop {
            match self.words.try_recv() {
                Ok(Word::Addresses(Addresses { relay, own, alternates })) => {
                    self.server.set_addresses(relay, own, alternates);
                }
                Ok(Word::Stop) | Err(mpsc::TryRecvError::Disconnected) => return true,
                Err(mpsc::TryRecvError::Empty) => return false,
            }
        }
    }

    fn tick(&mut self, now: Instant) {
        self.server.set_clock(unix_s(), now);
        self.wake_acceptors();
        self.end_idle_streams(now);
        let counters = self.server.counters();
        let (last, done) = self.told;
        let work = counters.allocations + counters.relayed.packets + counters.unauthorized;
        if now >= last + TELL && work != done {
            self.told = (now, work);
            info!(
                allocations = self.server.allocations(),
                allocated = counters.allocations,
                streams = self.streams.len(),
                bindings = counters.bindings,
                packets = counters.relayed.packets,
                bytes = counters.relayed.bytes,
                refused = counters.refused,
                unauthorized = counters.unauthorized,
                unanswered = counters.unanswered,
                junk = counters.junk,
                unpermitted = counters.unpermitted,
                over_limit = counters.over_limit,
                unsent = self.unsent,
                "served"
            );
        }
    }

    /// Does what the machine wants done.
    pub(super) fn settle(&mut self, now: Instant) {
        loop {
            while let Some(command) = self.server.poll_command() {
                match command {
                    Command::Open { relay, bind } => {
                        let opened = self.open_relay(relay, bind);
                        self.server.handle_opened(relay, opened, now);
                    }
                    Command::Close { relay } => self.close_relay(relay),
                }
            }
            let Some(transmit) = self.server.poll_transmit() else { return };
            self.send_message(&transmit.client, &transmit.payload);
        }
    }

    fn open_relay(&mut self, relay: RelayId, bind: SocketAddr) -> bool {
        let number = relay_number(relay);
        let opened = Udp::bind(bind, RELAY_BUFFER)
            .and_then(|udp| self.watch(&udp, Token::Relay(number)).map(|()| udp));
        match opened {
            Ok(udp) => {
                let place = number as usize;
                if self.relays.len() <= place {
                    self.relays.resize_with(place + 1, || None);
                }
                self.relays[place] = Some(udp);
                true
            }
            Err(error) => {
                debug!(%bind, "no relayed address: {error}");
                false
            }
        }
    }

    fn close_relay(&mut self, relay: RelayId) {
        // Whoever is on board would leave by the next client's address.
        self.leave();
        if let Some(place) = self.relays.get_mut(relay_number(relay) as usize) {
            *place = None;
        }
    }

    /// The socket that a client's datagrams come in at, and the address to answer from.
    pub(super) fn listener(&self, client: &ClientAddr) -> Option<(&Udp, IpAddr)> {
        let local = client.local;
        let bound = |udp: &&Udp| {
            let addr = udp.local();
            addr.port() == local.port()
                && addr.is_ipv4() == local.is_ipv4()
                && (addr.ip() == local.ip() || addr.ip().is_unspecified())
        };
        self.listeners.iter().find(bound).map(|udp| (udp, local.ip()))
    }
}

/// Whether all that fails is that this machine has no IPv6, of which the default wants to
/// know.
pub(super) fn is_without_ipv6(addr: SocketAddr, error: &io::Error) -> bool {
    let missing = [libc::EAFNOSUPPORT, libc::EADDRNOTAVAIL];
    let without = addr.is_ipv6()
        && addr.ip().is_unspecified()
        && error.raw_os_error().is_some_and(|code| missing.contains(&code));
    if without {
        info!("no IPv6 on this machine: serving IPv4 alone");
    }
    without
}

fn unix_s() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
