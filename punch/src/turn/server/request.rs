//! What a client asks for (RFC 8656 §7 to §10, §12): checked, done, answered.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::RngExt;

use super::{
    ClientAddr, Command, PeerAddr, Pending, RelayAddress, RelayId, Server,
    allocation::{Allocation, Refusal, Relayed},
    auth::{Denied, account},
    limits::network,
};
use crate::turn::message::{Class, Failure, Family, Key, Message, Method, UDP};

/// RFC 8656 §7.2: what is granted unless more is asked for, and the most.
const DEFAULT_LIFETIME: Duration = Duration::from_secs(600);
const MAX_LIFETIME: Duration = Duration::from_secs(3600);

/// How many ports are tried before there is none to be had.
const PORT_TRIES: u8 = 16;

/// An error response's code and words (RFC 8489 §14.8, RFC 8656 §19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Code(u16, &'static str);

const BAD_REQUEST: Code = Code(400, "Bad Request");
const UNAUTHORIZED: Code = Code(401, "Unauthorized");
const FORBIDDEN: Code = Code(403, "Forbidden");
const UNKNOWN_ATTRIBUTE: Code = Code(420, "Unknown Attribute");
const MISMATCH: Code = Code(437, "Allocation Mismatch");
const STALE_NONCE: Code = Code(438, "Stale Nonce");
const FAMILY_NOT_SUPPORTED: Code = Code(440, "Address Family not Supported");
const WRONG_CREDENTIALS: Code = Code(441, "Wrong Credentials");
const UNSUPPORTED_TRANSPORT: Code = Code(442, "Unsupported Transport Protocol");
const FAMILY_MISMATCH: Code = Code(443, "Peer Address Family Mismatch");
const QUOTA_REACHED: Code = Code(486, "Allocation Quota Reached");
const INSUFFICIENT_CAPACITY: Code = Code(508, "Insufficient Capacity");

impl Server {
    pub(super) fn handle_request(&mut self, client: ClientAddr, bytes: &[u8], now: Instant) {
        let Ok(request) = Message::parse(bytes) else {
            self.counters.junk += 1;
            return;
        };
        let key = match self.gate.admit(client.remote, bytes, &request, now) {
            Ok(key) => key,
            Err(denied) => return self.turn_away(client, &request, denied, now),
        };
        let done = if request.not_understood.is_empty() {
            match request.method {
                Method::Allocate => self.allocate(client, &request, &key, now),
                Method::Refresh => self.refresh(client, &request, &key, now),
                Method::CreatePermission => self.create_permission(client, &request, &key, now),
                Method::ChannelBind => self.channel_bind(client, &request, &key, now),
                Method::Binding | Method::Send | Method::Data => Ok(()),
            }
        } else {
            Err(UNKNOWN_ATTRIBUTE)
        };
        if let Err(code) = done {
            self.counters.refused += 1;
            let mut answer = failure(&request, code);
            if code == UNKNOWN_ATTRIBUTE {
                answer.unknown = request.not_understood;
            }
            self.answer(client, &answer, Some(&key));
        }
    }

    /// Answers somebody who has not shown a credential.
    fn turn_away(&mut self, client: ClientAddr, request: &Message, denied: Denied, now: Instant) {
        self.counters.unauthorized += 1;
        if !self.strangers.take(client.remote.ip(), now) {
            self.counters.unanswered += 1;
            return;
        }
        let code = match denied {
            Denied::Malformed => return self.answer(client, &failure(request, BAD_REQUEST), None),
            Denied::Unauthorized => UNAUTHORIZED,
            Denied::Stale => STALE_NONCE,
        };
        let answer = Message {
            realm: Some(self.gate.realm().to_owned()),
            nonce: Some(self.gate.nonce(client.remote, now)),
            ..failure(request, code)
        };
        self.answer(client, &answer, None);
    }

    /// RFC 8656 §7.2, in its order.
    fn allocate(
        &mut self,
        client: ClientAddr,
        request: &Message,
        key: &Key,
        now: Instant,
    ) -> Result<(), Code> {
        if let Some(slot) = self.slot(&client) {
            let made_by = self.slots[slot as usize].as_ref().map(|a| a.made_by);
            if made_by != Some(request.id) {
                return Err(MISMATCH);
            }
            // Sent again: the answer was lost, or is still to come.
            if !self.pending.contains_key(&slot) {
                self.answer_allocate(slot, request, key, now);
            }
            return Ok(());
        }
        match request.requested_transport {
            None => return Err(BAD_REQUEST),
            Some(UDP) => {}
            Some(_) => return Err(UNSUPPORTED_TRANSPORT),
        }
        let family = request.requested_family.or(request.additional_family);
        if request.reservation_token.is_some() && (request.even_port.is_some() || family.is_some())
            || request.even_port == Some(true) && request.additional_family.is_some()
        {
            return Err(BAD_REQUEST);
        }
        // Nothing is ever reserved, so there is no token that names anything.
        if request.reservation_token.is_some() || request.even_port == Some(true) {
            return Err(INSUFFICIENT_CAPACITY);
        }
        let families = match (request.requested_family, request.additional_family) {
            (Some(_), Some(_)) | (None, Some(Family::V4)) => return Err(BAD_REQUEST),
            (None, Some(Family::V6)) => &[Family::V4, Family::V6][..],
            (Some(Family::V6), None) => &[Family::V6],
            (Some(Family::V4) | None, None) => &[Family::V4],
        };
        let addresses: Vec<_> =
            families.iter().map(|family| (*family, self.address(*family, &client))).collect();
        if addresses.iter().all(|(_, address)| address.is_none()) {
            return Err(FAMILY_NOT_SUPPORTED);
        }
        let username: Arc<str> = request.username.as_deref().unwrap_or_default().into();
        let limits = &self.config.limits;
        let count = |counted: Option<&usize>| counted.copied().unwrap_or_default();
        if count(self.accounts.get(account(&username))) >= limits.allocations_per_account
            || count(self.sources.get(&network(client.remote.ip())))
                >= limits.allocations_per_source
        {
            return Err(QUOTA_REACHED);
        }
        if self.clients.len() >= limits.allocations {
            return Err(INSUFFICIENT_CAPACITY);
        }
        let mut allocation = Allocation::new(
            client,
            username,
            request.id,
            lifetime(request),
            limits.bandwidth_per_allocation,
            now,
        );
        for (family, address) in &addresses {
            *allocation.relayed.of_mut(*family) = address.is_none().then_some(Relayed::Failed);
        }
        let slot = self.insert(allocation);
        self.pending.insert(slot, Pending { request: request.clone(), key: key.clone() });
        for (family, address) in addresses {
            if let Some(address) = address {
                let even = request.even_port.is_some();
                self.open(RelayId { slot, family }, address, even, PORT_TRIES);
            }
        }
        self.finish_allocate(slot, now);
        Ok(())
    }

    /// Asks for a socket on a random port: one that cannot be guessed (RFC 8656 §7.2).
    pub(super) fn open(&mut self, relay: RelayId, address: RelayAddress, even: bool, tries: u8) {
        let ports = self.config.ports.clone();
        let mut free = None;
        for _ in 0..=tries {
            let port = self.rng.random_range(ports.clone());
            let port = if even { port & !1 } else { port };
            let external = SocketAddr::new(address.external, port);
            if ports.contains(&port) && !self.relayed.contains_key(&external) {
                free = Some(external);
                break;
            }
        }
        let Some(Some(allocation)) = self.slots.get_mut(relay.slot as usize) else { return };
        let state = allocation.relayed.of_mut(relay.family);
        let Some(external) = free else {
            *state = Some(Relayed::Failed);
            return;
        };
        *state = Some(Relayed::Opening { external, tries });
        self.relayed.insert(external, relay);
        let bind = SocketAddr::new(address.bind, external.port());
        self.commands.push_back(Command::Open { relay, bind });
    }

    /// Answers an Allocate once it is known which sockets there are.
    pub(super) fn finish_allocate(&mut self, slot: u32, now: Instant) {
        let Some(Some(allocation)) = self.slots.get(slot as usize) else { return };
        if allocation.is_opening() {
            return;
        }
        let Some(Pending { request, key }) = self.pending.remove(&slot) else { return };
        let open = [Family::V4, Family::V6].into_iter().any(|f| allocation.relayed(f).is_some());
        if open {
            self.counters.allocations += 1;
            self.answer_allocate(slot, &request, &key, now);
        } else {
            let client = allocation.client;
            self.counters.refused += 1;
            self.remove(slot);
            self.answer(client, &failure(&request, INSUFFICIENT_CAPACITY), Some(&key));
        }
    }

    fn answer_allocate(&mut self, slot: u32, request: &Message, key: &Key, now: Instant) {
        let Some(Some(allocation)) = self.slots.get(slot as usize) else { return };
        let client = allocation.client;
        let relayed = [Family::V4, Family::V6].into_iter().filter_map(|f| allocation.relayed(f));
        // Of two that were asked for, the one that there is not (RFC 8656 §7.2).
        let missing = [Family::V4, Family::V6]
            .into_iter()
            .find(|f| matches!(allocation.relayed.of(*f), Some(Relayed::Failed)));
        let missing = missing.map(|family| {
            let none = self.address(family, &client).is_none();
            let Code(code, reason) =
                if none { FAMILY_NOT_SUPPORTED } else { INSUFFICIENT_CAPACITY };
            (family, Failure { code, reason: reason.to_owned() })
        });
        let answer = Message {
            relayed: relayed.collect(),
            address_failure: missing,
            mapped: Some(client.remote),
            lifetime: Some(seconds(allocation.until.saturating_duration_since(now))),
            ..success(request)
        };
        self.answer(client, &answer, Some(key));
    }

    /// RFC 8656 §8.2.
    fn refresh(
        &mut self,
        client: ClientAddr,
        request: &Message,
        key: &Key,
        now: Instant,
    ) -> Result<(), Code> {
        let slot = self.own(&client, request)?;
        let allocation = self.slots[slot as usize].as_mut().ok_or(MISMATCH)?;
        if let Some(family) = request.requested_family {
            if allocation.relayed(family).is_none() {
                return Err(FAMILY_MISMATCH);
            }
            let other = match family {
                Family::V4 => Family::V6,
                Family::V6 => Family::V4,
            };
            if request.lifetime == Some(0)
                && allocation.relayed(other).is_some()
                && let Some(Relayed::Open(addr)) = allocation.relayed.of_mut(family).take()
            {
                self.relayed.remove(&addr);
                self.commands.push_back(Command::Close { relay: RelayId { slot, family } });
                let answer = Message { lifetime: Some(0), ..success(request) };
                self.answer(client, &answer, Some(key));
                return Ok(());
            }
        }
        let granted = if request.lifetime == Some(0) {
            self.remove(slot);
            Duration::ZERO
        } else {
            let lifetime = lifetime(request);
            self.deadlines.remove(&(allocation.until, slot));
            allocation.lifetime = lifetime;
            allocation.until = now + lifetime;
            self.deadlines.insert((allocation.until, slot));
            lifetime
        };
        let answer = Message { lifetime: Some(seconds(granted)), ..success(request) };
        self.answer(client, &answer, Some(key));
        Ok(())
    }

    /// RFC 8656 §10.2.
    fn create_permission(
        &mut self,
        client: ClientAddr,
        request: &Message,
        key: &Key,
        now: Instant,
    ) -> Result<(), Code> {
        let slot = self.own(&client, request)?;
        if request.peers.is_empty() {
            return Err(BAD_REQUEST);
        }
        for peer in &request.peers {
            self.check_peer(slot, *peer)?;
        }
        let ips: Vec<IpAddr> = request.peers.iter().map(SocketAddr::ip).collect();
        let allocation = self.slots[slot as usize].as_mut().ok_or(MISMATCH)?;
        allocation.permit(&ips, &self.config.limits, now).map_err(Code::from)?;
        self.answer(client, &success(request), Some(key));
        Ok(())
    }

    /// RFC 8656 §12.2.
    fn channel_bind(
        &mut self,
        client: ClientAddr,
        request: &Message,
        key: &Key,
        now: Instant,
    ) -> Result<(), Code> {
        let slot = self.own(&client, request)?;
        let (Some(number), [peer]) = (request.channel, &request.peers[..]) else {
            return Err(BAD_REQUEST);
        };
        self.check_peer(slot, *peer)?;
        let allocation = self.slots[slot as usize].as_mut().ok_or(MISMATCH)?;
        allocation.bind(number, PeerAddr(*peer), &self.config.limits, now).map_err(Code::from)?;
        self.answer(client, &success(request), Some(key));
        Ok(())
    }

    /// Whether an allocation may have to do with this peer.
    fn check_peer(&self, slot: u32, peer: SocketAddr) -> Result<(), Code> {
        let allocation = self.slots[slot as usize].as_ref().ok_or(MISMATCH)?;
        if allocation.relayed(Family::of(&peer)).is_none() {
            return Err(FAMILY_MISMATCH);
        }
        let permitted = self.is_relay(peer.ip()) || self.config.peers.permits_ip(peer.ip());
        if permitted { Ok(()) } else { Err(FORBIDDEN) }
    }

    /// The client's allocation, if the request was made with the same credential. One
    /// that waits for its sockets is none yet.
    fn own(&mut self, client: &ClientAddr, request: &Message) -> Result<u32, Code> {
        let slot = self.slot(client).filter(|slot| !self.pending.contains_key(slot));
        let slot = slot.ok_or(MISMATCH)?;
        let allocation = self.slots[slot as usize].as_ref().ok_or(MISMATCH)?;
        // The renewal of a credential that ends is the same user.
        let username = request.username.as_deref().unwrap_or_default();
        if account(username) != account(&allocation.username) {
            return Err(WRONG_CREDENTIALS);
        }
        Ok(slot)
    }
}

impl From<Refusal> for Code {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict => BAD_REQUEST,
            Refusal::Full => INSUFFICIENT_CAPACITY,
        }
    }
}

fn success(request: &Message) -> Message {
    Message {
        fingerprint: request.fingerprint,
        ..Message::new(request.method, Class::Success, request.id)
    }
}

fn failure(request: &Message, Code(code, reason): Code) -> Message {
    Message {
        failure: Some(Failure { code, reason: reason.to_owned() }),
        fingerprint: request.fingerprint,
        ..Message::new(request.method, Class::Error, request.id)
    }
}

/// The lifetime that a request is granted.
fn lifetime(request: &Message) -> Duration {
    let asked = Duration::from_secs(request.lifetime.unwrap_or_default().into());
    asked.clamp(DEFAULT_LIFETIME, MAX_LIFETIME)
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}
