//! What the fuzz targets share: a reader of the fuzzer's bytes, a mesh to be hostile to,
//! and seeds.
//!
//! Most of what comes from outside is authenticated before it is parsed, and no fuzzer
//! guesses a signature. So most targets have two ways: bytes as they are, and bytes that
//! the target itself signs or seals, as a member that means harm would.

pub mod dataplane;
#[path = "../../src/demux.rs"]
pub mod demux;
pub mod dns;
pub mod network;

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::Path,
    time::{Duration, SystemTime},
};

use zonemesh_discovery::{
    advert::{Advert, Candidate, CandidateKind, InstanceRecords, SignedAdvert, Zone},
    identity::{Identity, PublicKey},
    zone::{TsigKey, ZoneClient, fuzzing::Reader},
};
use zonemesh_punch::CheckKeys;

/// Reads the fuzzer's bytes. Where they end there are zeros, so that a change of one byte
/// does not move the meaning of all others.
pub struct Bytes<'a>(pub &'a [u8]);

impl<'a> Bytes<'a> {
    /// Whether anything is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// One byte.
    pub fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    /// Two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }

    /// So many bytes as an array.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }

    /// Up to 65,535 bytes behind their length.
    pub fn string(&mut self) -> &'a [u8] {
        let length = usize::from(self.u16());
        self.take(length)
    }

    /// Up to 255 bytes behind their length.
    pub fn short_string(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte());
        self.take(length)
    }

    /// Short strings up to the end.
    pub fn short_strings(&mut self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        while !self.is_empty() && all.len() < 256 {
            all.push(self.short_string().to_vec());
        }
        all
    }

    /// A time span from milliseconds to hours.
    pub fn span(&mut self) -> Duration {
        let byte = self.byte();
        Duration::from_millis(u64::from(byte & 0x0f) << (byte >> 4))
    }

    /// An address, one of few or any.
    pub fn addr(&mut self) -> SocketAddr {
        let kind = self.byte();
        let port = if kind & 0x80 == 0 { 51820 + u16::from(kind >> 4 & 7) } else { self.u16() };
        let ip: IpAddr = match kind & 0x0f {
            last @ 0..=7 => [198, 51, 100, last].into(),
            8 => [10, 0, 0, self.byte()].into(),
            9 | 10 => self.array::<4>().into(),
            last @ 11..=13 => Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()]).into(),
            _ => self.array::<16>().into(),
        };
        SocketAddr::new(ip, port)
    }

    /// As many bytes as there are, but no more than so many.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// The time in all targets.
pub fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// The zone in all targets.
pub fn zone() -> Zone {
    "mesh.example".parse().expect("a zone")
}

/// Node number `n`.
pub fn identity(n: u8) -> Identity {
    Identity::from_seed(&[n; 32])
}

/// The key of node number `n`.
pub fn key(n: u8) -> PublicKey {
    identity(n).public_key()
}

/// What node `own` makes and verifies checks with.
pub fn check_keys(own: u8, peer: u8) -> CheckKeys {
    let private = identity(own).wireguard_private_key();
    CheckKeys::new(&private, key(own).as_bytes(), key(peer).as_bytes()).expect("sound keys")
}

/// A good advert of node `n`.
pub fn advert(n: u8) -> SignedAdvert {
    let candidate = |kind, addr: &str| Candidate { kind, addr: addr.parse().expect("literal") };
    let advert = Advert {
        node: key(n),
        name: format!("node-{n}"),
        addresses: vec![[10, 42, n, 1].into()],
        routes: vec![format!("10.42.{n}.0/24").parse().expect("literal")],
        candidates: vec![
            candidate(CandidateKind::ServerReflexive, "198.51.100.7:51820"),
            candidate(CandidateKind::Host, "[2001:db8::7]:51820"),
            candidate(CandidateKind::Relayed, "203.0.113.1:50001"),
        ],
        certificate: None,
        sequence: 1_800_000_000_000,
        expires: wall() + Duration::from_secs(3600),
    };
    advert.sign(&identity(n), &zone()).expect("a good advert")
}

/// What the zone holds of a good advert.
pub fn records(signed: &SignedAdvert) -> InstanceRecords {
    InstanceRecords {
        node: signed.advert().node,
        txt: signed.txt().to_vec(),
        endpoint: signed.advert().endpoint(),
    }
}

/// A key for zone transfers and updates.
pub fn tsig_key() -> TsigKey {
    TsigKey::new("mesh-key", "hmac-sha256", "c2VjcmV0LXNlY3JldC1zZWNyZXQ=").expect("a key")
}

/// A reader of the zone.
pub fn zone_reader(key: Option<TsigKey>) -> Reader {
    let server = SocketAddr::from(([192, 0, 2, 53], 53));
    Reader::new(ZoneClient::new(zone(), server, key))
}

/// Strings, each behind a byte with its length: as in TXT data and in notes.
pub fn with_lengths(strings: &[Vec<u8>]) -> Vec<u8> {
    let mut all = Vec::new();
    for string in strings {
        all.push(u8::try_from(string.len()).expect("TXT strings have at most 255 bytes"));
        all.extend_from_slice(string);
    }
    all
}

/// Puts a target's seeds into its corpus: what is good, so that the fuzzer begins behind
/// the first check and not in front of it.
pub fn sow(target: &str, seeds: &[Vec<u8>]) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&corpus).expect("the corpus can be written");
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(corpus.join(format!("seed-{number}")), seed).expect("the corpus can be written");
    }
}
