//! A mapping at the router for WireGuard's port: by PCP (RFC 6887), NAT-PMP (RFC 6886)
//! or UPnP, on the crate `portmapper`.
//!
//! A router that grants one lets in what anybody sends to the mapped address, however
//! it maps and filters otherwise. So a node behind a symmetric NAT is as good as public.
//!
//! First the router is asked which of the protocols it speaks. They are tried in order,
//! each by a client of its own: the router may know a protocol and still refuse (by PCP
//! a mapping that a former process left, since only who made it may renew it: RFC 6887
//! §11.3), and then the next one has its turn. Where none is granted, it is asked again
//! after pauses that double; at once when the network has changed. A mapping that was
//! granted is renewed by the library at half its lease, and given back in the end.
//!
//! All of that happens on a thread of its own: the libraries below parse what a device
//! on the LAN says, and neither a panic nor a busy loop there may touch the node. What
//! a router says is a claim like that of a STUN server: it becomes a candidate, and only
//! a check that comes through proves it.
//!
//! IPv4 only, as the library is. IPv6 needs no address of the router, only a hole in its
//! firewall, and peers that send to each other make that themselves.

use std::{
    fmt, io,
    net::{SocketAddr, SocketAddrV4},
    num::NonZeroU16,
    thread,
    time::Duration,
};

use portmapper::{Client, Config, ProbeOutput};
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::debug;

/// How long a router may take to tell which protocols it speaks: the library waits 1 s
/// for UPnP and half of that for the others.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

/// How long it may take to grant a mapping: two requests of PCP and NAT-PMP, half a
/// second each, or a search and three HTTP requests of UPnP.
const GRANT_LIMIT: Duration = Duration::from_secs(4);

/// How long giving a mapping back may take.
const RELEASE_LIMIT: Duration = Duration::from_millis(1500);

/// The pauses between attempts where no mapping is granted, the first and the longest.
/// The first is short, since a probe is one datagram and that one may be lost.
const PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1800));

/// The least time between two attempts, however often the network changes.
const SPACING: Duration = Duration::from_secs(2);

/// A protocol for port mappings, in the order in which they are tried: the one that says
/// most of what it did first, the one that takes most packets last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// Port Control Protocol (RFC 6887).
    Pcp,
    /// NAT Port Mapping Protocol (RFC 6886).
    NatPmp,
    /// UPnP Internet Gateway Device.
    Upnp,
}

impl Protocol {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Pcp, Self::NatPmp, Self::Upnp];

    fn is_in(self, probe: &ProbeOutput) -> bool {
        match self {
            Self::Pcp => probe.pcp,
            Self::NatPmp => probe.nat_pmp,
            Self::Upnp => probe.upnp,
        }
    }

    /// A client that speaks nothing else.
    fn client(self) -> Client {
        Client::new(Config {
            enable_pcp: self == Self::Pcp,
            enable_nat_pmp: self == Self::NatPmp,
            enable_upnp: self == Self::Upnp,
            protocol: portmapper::Protocol::Udp,
        })
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pcp => "PCP",
            Self::NatPmp => "NAT-PMP",
            Self::Upnp => "UPnP",
        })
    }
}

/// What a router has granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// The address as which the router says that our port is reached.
    pub addr: SocketAddr,
    /// How it was asked for.
    pub protocol: Protocol,
}

/// What is known of the router.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// The protocols that it speaks.
    pub protocols: Vec<Protocol>,
    /// What it has granted.
    pub mapped: Option<Mapped>,
}

/// What the thread is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// To hold a mapping; asked for so many times.
    Hold(u64),
    /// To give it back and end.
    End,
}

/// Keeps a port of this machine mapped. Dropping it gives the mapping back too, without
/// waiting for that.
#[derive(Debug)]
pub struct PortMap {
    wishes: watch::Sender<Wish>,
    changes: Changes,
}

/// What the router tells, as it comes.
#[derive(Debug, Clone)]
pub struct Changes {
    found: watch::Receiver<Option<Found>>,
}

impl PortMap {
    /// Starts to ask for a mapping of this UDP port.
    ///
    /// # Errors
    /// Where the thread cannot be started.
    pub fn start(port: NonZeroU16) -> io::Result<Self> {
        let (wishes, wished) = watch::channel(Wish::Hold(0));
        let (tell, found) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("portmap".to_owned()).spawn(move || {
            runtime.block_on(Worker { port, wished, tell }.run());
            // A name that is being resolved, or the like, is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Self { wishes, changes: Changes { found } })
    }

    /// What the router tells.
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Asks anew: the router may be another one, or have forgotten.
    pub fn refresh(&self) {
        self.wishes.send_if_modified(|wish| match wish {
            Wish::Hold(times) => {
                *times += 1;
                true
            }
            Wish::End => false,
        });
    }

    /// Gives the mapping back, and waits for that, but not for long.
    pub async fn stop(mut self) {
        self.wishes.send_replace(Wish::End);
        let ended = async { while self.changes.next().await.is_some() {} };
        let _ = timeout(RELEASE_LIMIT, ended).await;
    }
}

impl Drop for PortMap {
    fn drop(&mut self) {
        self.wishes.send_replace(Wish::End);
    }
}

impl Changes {
    /// Waits until the router has told something else than before: the first time, what
    /// it said at first, if only that it speaks none of the protocols. `None` when the
    /// mapping is kept no more: it was stopped, or a panic ended its thread. Nothing is
    /// lost when the future is dropped.
    pub async fn next(&mut self) -> Option<Found> {
        loop {
            self.found.changed().await.ok()?;
            let found = self.found.borrow_and_update().clone();
            if found.is_some() {
                return found;
            }
        }
    }
}

/// What runs on the thread.
struct Worker {
    port: NonZeroU16,
    wished: watch::Receiver<Wish>,
    tell: watch::Sender<Option<Found>>,
}

/// A mapping, and the client that keeps it.
struct Held {
    client: Client,
    protocol: Protocol,
    external: watch::Receiver<Option<SocketAddrV4>>,
}

impl Worker {
    async fn run(mut self) {
        let mut pause = PAUSE.0;
        let mut end = self.wished.clone();
        loop {
            let start = Instant::now();
            // What was wished up to now is done herewith.
            self.wished.borrow_and_update();
            let (protocols, held) = tokio::select! {
                found = self.ask() => found,
                () = ended(&mut end) => return,
            };
            let mapped = held.as_ref().and_then(Held::mapped);
            self.say(Found { protocols: protocols.clone(), mapped });
            match held {
                Some(held) => {
                    pause = PAUSE.0;
                    if self.keep(held, &protocols).await == Wish::End {
                        return;
                    }
                }
                None => {
                    tokio::select! {
                        wished = self.wished.changed() => {
                            if wished.is_err() || *self.wished.borrow_and_update() == Wish::End {
                                return;
                            }
                            pause = PAUSE.0;
                        }
                        () = sleep(pause) => pause = (pause * 2).min(PAUSE.1),
                    }
                }
            }
            tokio::select! {
                () = sleep_until(start + SPACING) => {}
                () = ended(&mut end) => return,
            }
        }
    }

    /// Asks the router for what it speaks, and by each of that for a mapping until one is
    /// granted.
    async fn ask(&self) -> (Vec<Protocol>, Option<Held>) {
        let protocols = probe().await;
        for protocol in &protocols {
            let held = Held::get(*protocol, self.port).await;
            if held.is_some() {
                return (protocols, held);
            }
            debug!(%protocol, "no port mapping granted");
        }
        (protocols, None)
    }

    /// Keeps a mapping until it is lost or something is wished, and says what changes.
    async fn keep(&mut self, mut held: Held, protocols: &[Protocol]) -> Wish {
        loop {
            tokio::select! {
                changed = held.external.changed() => {
                    // Renewed with another address; or lost, and the next attempt will
                    // say what became of it.
                    if changed.is_err() || held.mapped().is_none() {
                        return Wish::Hold(0);
                    }
                    self.say(Found { protocols: protocols.to_vec(), mapped: held.mapped() });
                }
                wished = self.wished.changed() => {
                    let wish = match wished {
                        Ok(()) => *self.wished.borrow_and_update(),
                        Err(_) => Wish::End,
                    };
                    // Only who made a mapping may renew it, and the next client is
                    // another one.
                    held.release().await;
                    return wish;
                }
            }
        }
    }

    fn say(&self, found: Found) {
        self.tell.send_if_modified(|told| {
            let is_news = told.as_ref() != Some(&found);
            *told = Some(found);
            is_news
        });
    }
}

impl Held {
    async fn get(protocol: Protocol, port: NonZeroU16) -> Option<Self> {
        let client = protocol.client();
        let mut external = client.watch_external_address();
        client.update_local_port(port);
        let granted = timeout(GRANT_LIMIT, external.wait_for(Option::is_some)).await;
        granted.ok()?.ok()?;
        Some(Self { client, protocol, external })
    }

    fn mapped(&self) -> Option<Mapped> {
        let addr = (*self.external.borrow())?;
        Some(Mapped { addr: addr.into(), protocol: self.protocol })
    }

    async fn release(self) {
        self.client.deactivate();
        // A question that stands behind the release in the client's queue: once it is
        // answered, the release is out.
        let _ = timeout(RELEASE_LIMIT, self.client.probe()).await;
    }
}

/// Which protocols the router speaks. An IPv4 default route leads to it.
async fn probe() -> Vec<Protocol> {
    let client = Client::new(Config::default());
    let answer = match timeout(PROBE_LIMIT, client.probe()).await {
        Ok(Ok(Ok(answer))) => answer,
        Ok(Ok(Err(error))) => {
            debug!("the router cannot be asked for a port mapping: {error}");
            return Vec::new();
        }
        _ => return Vec::new(),
    };
    Protocol::ALL.into_iter().filter(|protocol| protocol.is_in(&answer)).collect()
}

/// Waits until the end is wished.
async fn ended(wished: &mut watch::Receiver<Wish>) {
    // A sender that is gone wishes nothing any more.
    let _ = wished.wait_for(|wish| *wish == Wish::End).await;
}
