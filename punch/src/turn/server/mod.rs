//! The server: gives clients a relayed address and passes on what peers send there
//! (RFC 8656), and tells anybody where it comes from (RFC 8489, RFC 5780).
//!
//! # Life of an allocation
//!
//! A client asks without credentials and is told realm and nonce (401). It asks again,
//! signed, and where its account and its address have not too many already, it gets an
//! allocation: [`Command::Open`] asks the shell for a socket on a random port, and when
//! [`Server::handle_opened`] says that it is there, the answer goes out. The client then
//! names peers (CreatePermission, ChannelBind). [`Server::channel_data`] says where data
//! from the client goes on to, [`Server::peer_data`] where data that came in at a relayed
//! address does. The allocation goes when the client says so, when its connection ends
//! ([`Server::handle_disconnect`]), or when it is not refreshed in time; then
//! [`Command::Close`] takes its sockets away.
//!
//! # Data
//!
//! The machine decides, the shell moves the bytes: whole trains of datagrams of one
//! sender take one decision. Nothing goes to a peer unless an authenticated client has
//! permitted it and the [`PeerPolicy`] allows it, nothing from a peer goes to a client
//! that has not permitted it. What goes from one relayed address of this server to
//! another never leaves it: the decision then names the other client.
//!
//! # Strangers
//!
//! No state is kept of somebody without a credential. His answers are counted by source
//! address, and are short: 64 bytes and the realm, so with the headers below at most 2.1
//! times the request (a bare header of 20 bytes) with the default realm, and 3.3 times
//! with one of 64 bytes. What is malformed gets no answer.

mod allocation;
mod auth;
mod binding;
mod data;
mod limits;
mod policy;
mod request;
#[cfg(test)]
mod tests;
mod types;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use self::{
    allocation::{Allocation, Relayed},
    auth::{Gate, account},
    limits::{Bucket, Strangers, network},
};
pub use self::{
    auth::Users,
    binding::Alternates,
    policy::{PeerPolicy, is_public},
    types::{
        ClientAddr, ClientTransport, Command, Counters, Forward, Forwarded, Limits, Load, PeerAddr,
        RelayAddress, RelayId, ServerConfig, Transmit,
    },
};
use super::message::{Class, Family, Key, Message, Method, peek};

/// No request is longer: a CreatePermission for 100 peers has 2 KB.
const MAX_REQUEST_LEN: usize = 4096;

/// A TURN and STUN server without sockets.
pub struct Server {
    config: ServerConfig,
    gate: Gate,
    strangers: Strangers,
    rng: StdRng,
    slots: Vec<Option<Allocation>>,
    free: Vec<u32>,
    /// Allocations whose answer is to be sent when their sockets are there.
    pending: HashMap<u32, Pending>,
    clients: HashMap<ClientAddr, u32>,
    relayed: HashMap<SocketAddr, RelayId>,
    accounts: HashMap<Arc<str>, usize>,
    sources: HashMap<IpAddr, usize>,
    deadlines: BTreeSet<(Instant, u32)>,
    bandwidth: Bucket,
    /// Who sent last: mostly he sends again.
    last_client: Option<(ClientAddr, u32)>,
    transmits: VecDeque<Transmit>,
    commands: VecDeque<Command>,
    counters: Counters,
    now: Instant,
}

/// An Allocate that waits for its sockets.
struct Pending {
    request: Message,
    key: Key,
}

impl Server {
    /// A server without clients. `unix_s` is what the clock on the wall shows, for
    /// credentials that end.
    pub fn new(config: ServerConfig, seed: [u8; 32], unix_s: u64, now: Instant) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let (nonces, sources) = (rng.random(), rng.random());
        let gate = Gate::new(config.users.clone(), config.realm.clone(), nonces, unix_s, now);
        Self {
            gate,
            strangers: Strangers::new(sources, config.limits.strangers),
            rng,
            slots: Vec::new(),
            free: Vec::new(),
            pending: HashMap::new(),
            clients: HashMap::new(),
            relayed: HashMap::new(),
            accounts: HashMap::new(),
            sources: HashMap::new(),
            deadlines: BTreeSet::new(),
            bandwidth: Bucket::new(config.limits.bandwidth, now),
            last_client: None,
            transmits: VecDeque::new(),
            commands: VecDeque::new(),
            counters: Counters::default(),
            now,
            config,
        }
    }

    /// Tells what the clock on the wall shows; to be called now and then, for it may be
    /// set.
    pub fn set_clock(&mut self, unix_s: u64, now: Instant) {
        self.gate.set_clock(unix_s, now);
    }

    /// Tells from where can be relayed, what networks this machine is attached to, and
    /// which second addresses there are. Allocations at addresses that have gone stay
    /// until they end.
    pub fn set_addresses(
        &mut self,
        addresses: Vec<RelayAddress>,
        own: Vec<ipnet::IpNet>,
        alternates: Vec<Alternates>,
    ) {
        self.config.addresses = addresses;
        self.config.peers.own = own;
        self.config.alternates = alternates;
    }

    /// How many allocations there are.
    pub fn allocations(&self) -> usize {
        self.clients.len()
    }

    /// Whether this client has an allocation, or is getting one.
    pub fn has_allocation(&self, client: &ClientAddr) -> bool {
        self.clients.contains_key(client)
    }

    /// What has happened since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Takes one STUN message from a client. What is for a peer comes back.
    pub fn handle_message(
        &mut self,
        client: ClientAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Option<Forwarded> {
        self.now = now;
        match peek(bytes) {
            Some((Method::Binding, Class::Request, _))
                if self.config.stun && bytes.len() <= MAX_REQUEST_LEN =>
            {
                self.handle_binding(client, bytes, now);
            }
            // Keeps a NAT's mapping open, and that is all (RFC 8489 §6.3.2).
            Some((Method::Binding, Class::Indication, _)) => {}
            Some((Method::Send, Class::Indication, _)) if self.config.turn => {
                return self.handle_send(client, bytes, now);
            }
            Some((
                Method::Allocate | Method::Refresh | Method::CreatePermission | Method::ChannelBind,
                Class::Request,
                _,
            )) if self.config.turn && bytes.len() <= MAX_REQUEST_LEN => {
                self.handle_request(client, bytes, now);
            }
            _ => self.counters.junk += 1,
        }
        None
    }

    /// Tells whether the socket is there that [`Command::Open`] asked for.
    pub fn handle_opened(&mut self, relay: RelayId, opened: bool, now: Instant) {
        self.now = now;
        let Some(Some(allocation)) = self.slots.get_mut(relay.slot as usize) else { return };
        let state = allocation.relayed.of_mut(relay.family);
        let Some(Relayed::Opening { external, tries }) = *state else { return };
        if opened {
            *state = Some(Relayed::Open(external));
        } else {
            *state = Some(Relayed::Failed);
            self.relayed.remove(&external);
            if tries > 0 {
                // The address as it is bound, by the port that did not work.
                let even = external.port().is_multiple_of(2)
                    && self.pending.get(&relay.slot).is_some_and(|p| p.request.even_port.is_some());
                let client = self.slots[relay.slot as usize].as_ref().map(|a| a.client);
                let address = client.and_then(|client| self.address(relay.family, &client));
                if let Some(address) = address {
                    self.open(relay, address, even, tries - 1);
                }
            }
        }
        self.finish_allocate(relay.slot, now);
    }

    /// Tells that a client's connection has ended (RFC 8656 §2): its allocation goes.
    pub fn handle_disconnect(&mut self, client: &ClientAddr) {
        if let Some(slot) = self.clients.get(client) {
            self.remove(*slot);
        }
    }

    /// Ends the allocations that were not refreshed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.now = now;
        while let Some((due, slot)) = self.deadlines.first().copied()
            && due <= now
        {
            self.remove(slot);
        }
    }

    /// The next message to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// The next thing to do.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When [`Server::handle_timeout`] is to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.transmits.is_empty() || !self.commands.is_empty() {
            return Some(self.now);
        }
        self.deadlines.first().map(|(due, _)| *due)
    }

    fn handle_binding(&mut self, client: ClientAddr, bytes: &[u8], now: Instant) {
        match binding::answer(client, bytes, &self.config.alternates) {
            None => self.counters.junk += 1,
            Some(_) if !self.strangers.take(client.remote.ip(), now) => {
                self.counters.unanswered += 1;
            }
            Some(transmit) => {
                self.counters.bindings += 1;
                self.transmits.push_back(transmit);
            }
        }
    }

    fn slot(&mut self, client: &ClientAddr) -> Option<u32> {
        if let Some((last, slot)) = &self.last_client
            && last == client
        {
            return Some(*slot);
        }
        let slot = *self.clients.get(client)?;
        self.last_client = Some((*client, slot));
        Some(slot)
    }

    fn is_relay(&self, ip: IpAddr) -> bool {
        self.config.addresses.iter().any(|address| address.external == ip || address.bind == ip)
    }

    /// From where a client is relayed: the address that it talks to, if that is one.
    fn address(&self, family: Family, client: &ClientAddr) -> Option<RelayAddress> {
        let addresses = &self.config.addresses;
        let mut same = addresses.iter().filter(|a| Family::of_ip(a.external) == family);
        let same_host = same.clone().find(|address| address.bind == client.local.ip());
        same_host.or_else(|| same.next()).copied()
    }

    fn insert(&mut self, allocation: Allocation) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        self.clients.insert(allocation.client, slot);
        *self.accounts.entry(account(&allocation.username).into()).or_default() += 1;
        *self.sources.entry(network(allocation.client.remote.ip())).or_default() += 1;
        self.deadlines.insert((allocation.until, slot));
        self.slots[slot as usize] = Some(allocation);
        slot
    }

    fn remove(&mut self, slot: u32) {
        let Some(allocation) = self.slots.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.last_client = None;
        self.pending.remove(&slot);
        self.free.push(slot);
        self.deadlines.remove(&(allocation.until, slot));
        self.clients.remove(&allocation.client);
        uncount(&mut self.accounts, account(&allocation.username));
        uncount(&mut self.sources, &network(allocation.client.remote.ip()));
        for family in [Family::V4, Family::V6] {
            if let Some(Relayed::Open(addr) | Relayed::Opening { external: addr, .. }) =
                allocation.relayed.of(family)
            {
                self.relayed.remove(addr);
                self.commands.push_back(Command::Close { relay: RelayId { slot, family } });
            }
        }
    }

    fn answer(&mut self, client: ClientAddr, answer: &Message, key: Option<&Key>) {
        if let Ok(payload) = answer.encode(key) {
            self.transmits.push_back(Transmit { client, payload });
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("allocations", &self.clients.len())
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// One less of what is counted by this key; none is not kept.
fn uncount<K, Q>(counts: &mut HashMap<K, usize>, key: &Q)
where
    K: std::hash::Hash + Eq + std::borrow::Borrow<Q>,
    Q: std::hash::Hash + Eq + ?Sized,
{
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
