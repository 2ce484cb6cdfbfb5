//! WireGuard sessions, on boringtun: the only file that names it.
//!
//! A [`LocalKey`] is this node's half of every handshake and the gate in front of
//! them: it checks that a handshake message was made for us (mac1), asks for a
//! cookie when too many come in (WireGuard paper §5.3), and tells from whom an
//! initiation is. A [`Tunnel`] is the session with one peer: it is made once,
//! handshakes, seals and opens packets, renews its keys, and gives up after 90
//! seconds without an answer; [`Tunnel::tick`] starts it again while there is a
//! reason to.
//!
//! Nothing here does input or output: what is to be sent is written into a buffer
//! of the caller's. The clock is boringtun's own, which does not let itself be
//! handed in.

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use boringtun::{
    noise::{
        Packet, Tunn, TunnResult, errors::WireGuardError, handshake::parse_handshake_anon,
        rate_limiter::RateLimiter,
    },
    x25519,
};
use zonemesh_discovery::identity::PublicKey;

/// What WireGuard adds to a packet: header, counter and tag.
pub const OVERHEAD: usize = 32;

/// The largest message that is not data: an initiation. Every buffer for something
/// to send has at least this size.
pub const HANDSHAKE_MAX: usize = 148;

/// Handshake messages per second before cookies are asked for. One costs some
/// 100 µs, so this bounds strangers to a few percent of a core.
const HANDSHAKES_PER_SECOND: u64 = 200;

/// A counter from here on closes a session (WireGuard paper §6.1,
/// REJECT-AFTER-MESSAGES). boringtun does not look, and its arithmetic does not
/// stand counters at the top of the range.
const REJECT_AFTER_MESSAGES: u64 = u64::MAX - (1 << 13);

/// The number of peers that an index can tell apart: boringtun keeps the lowest
/// byte of the 32 for the sessions of one peer.
pub const INDICES: u32 = 1 << 24;

/// The peer whose session has the receiver index `index`.
pub const fn peer_index(index: u32) -> u32 {
    index >> 8
}

/// A key that both sides of one tunnel know beforehand (WireGuard paper §5.2).
#[derive(Clone, PartialEq, Eq)]
pub struct PresharedKey([u8; 32]);

impl PresharedKey {
    /// The key with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for PresharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PresharedKey(…)")
    }
}

/// This node's private key, and the gate that handshake messages pass first.
pub struct LocalKey {
    private: x25519::StaticSecret,
    public: x25519::PublicKey,
    gate: RateLimiter,
    /// For the tunnels: what reaches them has passed the gate, and must not be
    /// counted twice.
    open: Arc<RateLimiter>,
}

/// What the gate says of a handshake message.
#[derive(Debug)]
pub enum Examined<'a> {
    /// An initiation by the node with this key (which may be anybody's: it is not
    /// yet authenticated).
    From(PublicKey),
    /// A message for the session with this receiver index.
    For(u32),
    /// Too many come in: this cookie reply goes back to the sender.
    Reply(&'a [u8]),
    /// Not for us, or not well made.
    Rejected,
}

impl LocalKey {
    /// The key with these bytes.
    pub fn new(private: [u8; 32]) -> Self {
        let private = x25519::StaticSecret::from(private);
        let public = x25519::PublicKey::from(&private);
        let gate = RateLimiter::new(&public, HANDSHAKES_PER_SECOND);
        let open = Arc::new(RateLimiter::new(&public, u64::MAX));
        Self { private, public, gate, open }
    }

    /// The public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.public.to_bytes())
    }

    /// Looks at a handshake message or cookie reply from the address `from`.
    pub fn examine<'a>(
        &self,
        from: IpAddr,
        message: &[u8],
        reply: &'a mut [u8; HANDSHAKE_MAX],
    ) -> Examined<'a> {
        match self.gate.verify_packet(Some(from), message, reply) {
            Ok(Packet::HandshakeInit(initiation)) => {
                parse_handshake_anon(&self.private, &self.public, &initiation)
                    .map_or(Examined::Rejected, |half| {
                        Examined::From(PublicKey::from_bytes(half.peer_static_public))
                    })
            }
            Ok(Packet::HandshakeResponse(response)) => Examined::For(response.receiver_idx),
            Ok(Packet::PacketCookieReply(cookie)) => Examined::For(cookie.receiver_idx),
            Err(TunnResult::WriteToNetwork(cookie)) => Examined::Reply(cookie),
            Ok(Packet::PacketData(_)) | Err(_) => Examined::Rejected,
        }
    }

    /// To be called some times a second: counts handshake messages afresh each second.
    pub fn handle_tick(&self) {
        self.gate.reset_count();
    }
}

impl fmt::Debug for LocalKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKey").field("public", &self.public_key()).finish_non_exhaustive()
    }
}

/// Why a message was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// Seen before, or too old to tell.
    Replay,
    /// It does not verify.
    Forged,
    /// No session has its index.
    NoSession,
    /// Verified, and what is in it is no IP packet.
    NotIp,
}

/// What a message from the peer turned out to be.
#[derive(Debug)]
pub enum Opened<'a> {
    /// An IP packet, and its source address.
    Packet(&'a mut [u8], IpAddr),
    /// A data message with nothing in it.
    Keepalive,
    /// A handshake message; this goes back to the sender, and then everything of
    /// [`Tunnel::poll_queued`].
    Handshake(&'a [u8]),
    /// A cookie for the next handshake message. It proves nothing about the peer.
    Cookie,
    /// Not accepted.
    Rejected(Rejection),
}

/// The session with one peer.
pub struct Tunnel {
    tunn: Tunn,
    keepalive: bool,
}

impl Tunnel {
    /// A tunnel without a session yet. `index` is below [`INDICES`] and no other
    /// tunnel's; `keepalive` is in seconds.
    pub fn new(
        local: &LocalKey,
        peer: &PublicKey,
        preshared_key: Option<&PresharedKey>,
        keepalive: Option<u16>,
        index: u32,
    ) -> Self {
        let tunn = Tunn::new(
            local.private.clone(),
            x25519::PublicKey::from(*peer.as_bytes()),
            preshared_key.map(|key| key.0),
            keepalive,
            index % INDICES,
            Some(Arc::clone(&local.open)),
        );
        Self { tunn, keepalive: keepalive.is_some() }
    }

    /// Seals `packet` (empty: a keepalive) into `out`, which is to be
    /// [`OVERHEAD`] longer and never below [`HANDSHAKE_MAX`]. Without a session the
    /// packet waits inside, and what is to be sent is an initiation, or nothing
    /// while one is on its way.
    pub fn seal<'a>(&mut self, packet: &[u8], out: &'a mut [u8]) -> Option<&'a mut [u8]> {
        if out.len() < HANDSHAKE_MAX.max(packet.len() + OVERHEAD) {
            return None;
        }
        to_send(self.tunn.encapsulate(packet, out))
    }

    /// Opens `message` into `out`, which is to be as long and never below
    /// [`HANDSHAKE_MAX`].
    pub fn open<'a>(&mut self, message: &[u8], out: &'a mut [u8]) -> Opened<'a> {
        const DATA: u8 = 4;
        const COOKIE_REPLY: u8 = 3;
        if out.len() < HANDSHAKE_MAX.max(message.len()) {
            return Opened::Rejected(Rejection::NotIp);
        }
        // An empty message would mean "the next queued packet" to boringtun.
        let Some(kind) = message.first() else { return Opened::Rejected(Rejection::Forged) };
        if *kind == DATA {
            let counter = message.get(8..16).and_then(|bytes| bytes.try_into().ok());
            if counter.is_none_or(|bytes| u64::from_le_bytes(bytes) >= REJECT_AFTER_MESSAGES) {
                return Opened::Rejected(Rejection::Forged);
            }
        }
        match self.tunn.decapsulate(None, message, out) {
            TunnResult::Done if *kind == COOKIE_REPLY => Opened::Cookie,
            TunnResult::Done => Opened::Keepalive,
            TunnResult::WriteToNetwork(reply) => Opened::Handshake(reply),
            TunnResult::WriteToTunnelV4(packet, source) => Opened::Packet(packet, source.into()),
            TunnResult::WriteToTunnelV6(packet, source) => Opened::Packet(packet, source.into()),
            TunnResult::Err(error) => Opened::Rejected(match error {
                WireGuardError::InvalidCounter
                | WireGuardError::DuplicateCounter
                | WireGuardError::WrongTai64nTimestamp => Rejection::Replay,
                WireGuardError::NoCurrentSession
                | WireGuardError::WrongIndex
                | WireGuardError::UnexpectedPacket => Rejection::NoSession,
                // Once the tag verified, this is about the packet inside.
                WireGuardError::InvalidPacket if *kind == DATA => Rejection::NotIp,
                _ => Rejection::Forged,
            }),
        }
    }

    /// The next of the packets that waited for the session, sealed.
    pub fn poll_queued<'a>(&mut self, out: &'a mut [u8]) -> Option<&'a mut [u8]> {
        to_send(self.tunn.decapsulate(None, &[], out))
    }

    /// Lets time pass; to be called every quarter of a second, with or without a
    /// path (boringtun's clock stands still between calls). Gives the message that
    /// became due. With `wanted` (there is a path to the peer) a tunnel that gave
    /// up starts again: a peer with keepalive is to be reached for as long as
    /// there is a way, without one the next packet starts it.
    pub fn tick<'a>(&mut self, wanted: bool, out: &'a mut [u8]) -> Option<&'a mut [u8]> {
        let length = match self.tunn.update_timers(out) {
            TunnResult::WriteToNetwork(message) => message.len(),
            TunnResult::Err(WireGuardError::ConnectionExpired) if wanted && self.keepalive => {
                return self.initiate(out);
            }
            _ => return None,
        };
        Some(&mut out[..length])
    }

    /// Starts a handshake. One that is under way may still be answered, and this one
    /// too: boringtun remembers two.
    pub fn initiate<'a>(&mut self, out: &'a mut [u8]) -> Option<&'a mut [u8]> {
        to_send(self.tunn.format_handshake_initiation(out, true))
    }

    /// How long ago the keys in use were agreed on.
    pub fn last_handshake(&self) -> Option<Duration> {
        self.tunn.time_since_last_handshake()
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel")
            .field("last_handshake", &self.last_handshake())
            .finish_non_exhaustive()
    }
}

fn to_send(result: TunnResult<'_>) -> Option<&mut [u8]> {
    match result {
        TunnResult::WriteToNetwork(message) => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use zonemesh_discovery::identity::Identity;

    use super::*;

    const FROM: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    /// Two ends of one tunnel.
    struct Pair {
        keys: [LocalKey; 2],
        ends: [Tunnel; 2],
    }

    impl Pair {
        fn new(preshared: [Option<[u8; 32]>; 2]) -> Self {
            let keys = [1u8, 2].map(|seed| {
                LocalKey::new(Identity::from_seed(&[seed; 32]).wireguard_private_key())
            });
            let preshared = preshared.map(|key| key.map(PresharedKey::from_bytes));
            let ends = [
                Tunnel::new(&keys[0], &keys[1].public_key(), preshared[0].as_ref(), None, 7),
                Tunnel::new(&keys[1], &keys[0].public_key(), preshared[1].as_ref(), None, 8),
            ];
            Self { keys, ends }
        }

        /// With a session that the first end started.
        fn connected() -> Self {
            let mut pair = Self::new([None, None]);
            let mut buffer = [0; 256];
            let initiation = pair.ends[0].initiate(&mut buffer).expect("starts").to_vec();
            let response = pair.handshake(1, &initiation).expect("answers");
            let keepalive = pair.handshake(0, &response).expect("confirms");
            assert!(matches!(pair.ends[1].open(&keepalive, &mut buffer), Opened::Keepalive));
            pair
        }

        fn handshake(&mut self, at: usize, message: &[u8]) -> Option<Vec<u8>> {
            let mut buffer = [0; 256];
            match self.ends[at].open(message, &mut buffer) {
                Opened::Handshake(reply) => Some(reply.to_vec()),
                _ => None,
            }
        }

        fn seal(&mut self, at: usize, packet: &[u8]) -> Vec<u8> {
            let mut buffer = [0; 2048];
            self.ends[at].seal(packet, &mut buffer).expect("a session").to_vec()
        }
    }

    fn ip_packet(last: u8) -> Vec<u8> {
        let mut packet = vec![0; 60];
        packet[0] = 0x45;
        packet[3] = 60;
        packet[12..16].copy_from_slice(&[10, 0, 0, 1]);
        packet[59] = last;
        packet
    }

    fn rejection(tunnel: &mut Tunnel, message: &[u8]) -> Option<Rejection> {
        match tunnel.open(message, &mut [0; 2048]) {
            Opened::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }

    #[test]
    fn packets_go_both_ways_over_a_session() {
        let mut pair = Pair::connected();
        for (from, to) in [(0, 1), (1, 0), (0, 1)] {
            let message = pair.seal(from, &ip_packet(9));
            let mut buffer = [0; 2048];
            match pair.ends[to].open(&message, &mut buffer) {
                Opened::Packet(packet, source) => {
                    assert_eq!(packet, ip_packet(9));
                    assert_eq!(source, IpAddr::from([10, 0, 0, 1]));
                }
                other => panic!("not a packet: {other:?}"),
            }
        }
        assert!(pair.ends.iter().all(|end| end.last_handshake().is_some()));
    }

    #[test]
    fn a_message_counts_once() {
        let mut pair = Pair::connected();
        let (first, second) = (pair.seal(0, &ip_packet(1)), pair.seal(0, &ip_packet(2)));
        for message in [&second, &first] {
            assert_eq!(rejection(&mut pair.ends[1], message), None, "late is not replayed");
        }
        for message in [&second, &first] {
            assert_eq!(rejection(&mut pair.ends[1], message), Some(Rejection::Replay));
        }
    }

    #[test]
    fn an_initiation_counts_once() {
        let mut pair = Pair::new([None, None]);
        let initiation = pair.ends[0].initiate(&mut [0; 256]).expect("starts").to_vec();
        assert!(pair.handshake(1, &initiation).is_some());
        assert_eq!(rejection(&mut pair.ends[1], &initiation), Some(Rejection::Replay));
    }

    #[test]
    fn a_changed_message_is_forged() {
        let mut pair = Pair::connected();
        let message = pair.seal(0, &ip_packet(1));
        for at in [16, 40, message.len() - 1] {
            let mut changed = message.clone();
            changed[at] ^= 1;
            assert_eq!(rejection(&mut pair.ends[1], &changed), Some(Rejection::Forged));
        }
        assert_eq!(rejection(&mut pair.ends[1], &message), None, "the true one still counts");
    }

    #[test]
    fn a_counter_at_the_end_of_its_range_is_rejected() {
        let mut pair = Pair::connected();
        for counter in [u64::MAX, REJECT_AFTER_MESSAGES] {
            let mut message = pair.seal(0, &ip_packet(1));
            message[8..16].copy_from_slice(&counter.to_le_bytes());
            assert_eq!(rejection(&mut pair.ends[1], &message), Some(Rejection::Forged));
        }
    }

    #[test]
    fn what_is_no_ip_packet_is_rejected_after_it_verified() {
        let mut pair = Pair::connected();
        for inner in [&[0x55; 60][..], &[0x45, 0, 0xff, 0xff], &[0x45; 19]] {
            let message = pair.seal(0, inner);
            assert_eq!(rejection(&mut pair.ends[1], &message), Some(Rejection::NotIp));
        }
    }

    #[test]
    fn the_same_preshared_key_is_needed_on_both_sides() {
        for (keys, agreed) in [
            ([Some([1; 32]), Some([1; 32])], true),
            ([Some([1; 32]), Some([2; 32])], false),
            ([Some([1; 32]), None], false),
            ([None, Some([1; 32])], false),
        ] {
            let mut pair = Pair::new(keys);
            let initiation = pair.ends[0].initiate(&mut [0; 256]).expect("starts").to_vec();
            let response = pair.handshake(1, &initiation).expect("only the response has it");
            assert_eq!(pair.handshake(0, &response).is_some(), agreed, "{keys:?}");
        }
    }

    #[test]
    fn a_packet_waits_for_the_session() {
        let mut pair = Pair::new([None, None]);
        let mut buffer = [0; 2048];
        let initiation = pair.ends[0].seal(&ip_packet(1), &mut buffer).expect("starts").to_vec();
        assert_eq!(initiation.len(), HANDSHAKE_MAX);
        assert!(pair.ends[0].seal(&ip_packet(2), &mut buffer).is_none(), "one is under way");
        let response = pair.handshake(1, &initiation).expect("answers");
        pair.handshake(0, &response).expect("confirms");
        for last in [1, 2] {
            let message = pair.ends[0].poll_queued(&mut buffer).expect("it waited").to_vec();
            match pair.ends[1].open(&message, &mut [0; 2048]) {
                Opened::Packet(packet, _) => assert_eq!(packet, ip_packet(last)),
                other => panic!("not a packet: {other:?}"),
            }
        }
        assert!(pair.ends[0].poll_queued(&mut buffer).is_none());
    }

    #[test]
    fn a_second_try_does_not_spoil_the_first() {
        for answered in [0, 1] {
            let mut pair = Pair::new([None, None]);
            let tries =
                [0, 1].map(|_| pair.ends[0].initiate(&mut [0; 256]).expect("starts").to_vec());
            let response = pair.handshake(1, &tries[answered]).expect("answers");
            assert!(pair.handshake(0, &response).is_some(), "try {answered}");
        }
    }

    #[test]
    fn the_gate_tells_who_knocks() {
        let mut pair = Pair::new([None, None]);
        let initiation = pair.ends[0].initiate(&mut [0; 256]).expect("starts").to_vec();
        let mut reply = [0; HANDSHAKE_MAX];
        let known = pair.keys[0].public_key();
        match pair.keys[1].examine(FROM, &initiation, &mut reply) {
            Examined::From(key) => assert_eq!(key, known),
            other => panic!("not an initiation: {other:?}"),
        }
        let response = pair.handshake(1, &initiation).expect("answers");
        match pair.keys[0].examine(FROM, &response, &mut reply) {
            Examined::For(index) => assert_eq!(peer_index(index), 7),
            other => panic!("not a response: {other:?}"),
        }
        assert!(
            matches!(pair.keys[0].examine(FROM, &initiation, &mut reply), Examined::Rejected),
            "made for the other node"
        );
        assert!(matches!(pair.keys[0].examine(FROM, &[0; 148], &mut reply), Examined::Rejected));
    }

    #[test]
    fn too_many_initiations_are_answered_with_a_cookie_that_opens_the_gate() {
        let mut pair = Pair::new([None, None]);
        let initiation = pair.ends[0].initiate(&mut [0; 256]).expect("starts").to_vec();
        let mut reply = [0; HANDSHAKE_MAX];
        for _ in 0..HANDSHAKES_PER_SECOND {
            let examined = pair.keys[1].examine(FROM, &initiation, &mut reply);
            assert!(matches!(examined, Examined::From(_)));
        }
        let cookie = match pair.keys[1].examine(FROM, &initiation, &mut reply) {
            Examined::Reply(cookie) => cookie.to_vec(),
            other => panic!("not a cookie: {other:?}"),
        };
        assert!(cookie.len() < initiation.len(), "no amplified answer");
        assert!(matches!(pair.ends[0].open(&cookie, &mut [0; 256]), Opened::Cookie));
        let mut buffer = [0; 256];
        let again = pair.ends[0].initiate(&mut buffer).expect("starts again");
        let examined = pair.keys[1].examine(FROM, again, &mut reply);
        assert!(matches!(examined, Examined::From(_)), "{examined:?}");
    }

    #[test]
    fn short_buffers_and_messages_are_refused_without_a_panic() {
        let mut pair = Pair::connected();
        assert!(pair.ends[0].seal(&ip_packet(1), &mut [0; 91]).is_none());
        let message = pair.seal(0, &ip_packet(1));
        assert!(matches!(pair.ends[1].open(&message, &mut [0; 91]), Opened::Rejected(_)));
        for length in 0..40 {
            for kind in 0..6 {
                let mut bytes = vec![0; length];
                bytes.iter_mut().take(1).for_each(|byte| *byte = kind);
                assert!(matches!(pair.ends[1].open(&bytes, &mut [0; 256]), Opened::Rejected(_)));
            }
        }
    }

    #[test]
    fn debug_forms_hold_no_secret() {
        let pair = Pair::new([Some([0xab; 32]), None]);
        let text = format!("{:?} {:?} {:?}", pair.keys[0], pair.ends[0], PresharedKey([0xab; 32]));
        assert!(!text.contains("171") && !text.contains("ab, ab"), "{text}");
    }
}
