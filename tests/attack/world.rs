use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use zonemesh::mesh::{
    Mesh, Settings,
    roster::{Admission, Member, Roster},
};
use zonemesh_discovery::{
    advert::{Advert, Candidate, CandidateKind, InstanceRecords, SignedAdvert, Zone},
    identity::{Identity, PublicKey},
    membership::{Access, Limits, NetworkKey, RevocationList, Revoked, Token, Validity},
};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);

pub(crate) fn wall() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(crate) fn zone() -> Zone {
    "mesh.example".parse().expect("a zone")
}

pub(crate) fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

pub(crate) fn node(n: u8) -> Identity {
    Identity::from_seed(&[n; 32])
}

pub(crate) fn key(n: u8) -> PublicKey {
    node(n).public_key()
}

/// Ours is number 1, another one in the same zone number 2.
pub(crate) fn network(n: u8) -> NetworkKey {
    NetworkKey::from_seed(&[0x80 + n; 32])
}

/// An invite of a network, by its number, for these routes.
pub(crate) fn token_of(network_number: u8, number: u8, routes: &[&str]) -> Token {
    let routes: Vec<IpNet> = routes.iter().map(|route| net(route)).collect();
    let limits = Limits::new("", &routes, &[] as &[&str]).expect("in bounds");
    let validity = Validity::new(wall() - HOUR, Some(wall() + 30 * DAY));
    let key = network(network_number);
    Token::issue(&key, &[number; 32], zone(), validity, limits, Access::default()).expect("fits")
}

pub(crate) fn token(number: u8, routes: &[&str]) -> Token {
    token_of(1, number, routes)
}

/// The chain of a node that was let in by this token with these routes.
pub(crate) fn chain(token: &Token, n: u8, routes: &[&str]) -> Vec<u8> {
    let routes: Vec<IpNet> = routes.iter().map(|route| net(route)).collect();
    let made = token.admit(&key(n), &format!("node-{n}"), &routes, &[] as &[&str], wall());
    made.expect("the token allows it").chain().as_bytes().to_vec()
}

/// What node `n` says: these routes, reached at 203.0.113.`at`.
pub(crate) struct Says<'a> {
    pub(crate) n: u8,
    pub(crate) routes: &'a [&'a str],
    pub(crate) certificate: Option<Vec<u8>>,
    pub(crate) sequence: u64,
    pub(crate) at: u8,
}

impl Says<'_> {
    pub(crate) fn sign(self) -> SignedAdvert {
        let advert = Advert {
            node: key(self.n),
            name: format!("node-{}", self.n),
            addresses: vec![],
            routes: self.routes.iter().map(|route| net(route)).collect(),
            candidates: vec![Candidate {
                kind: CandidateKind::ServerReflexive,
                addr: ([203, 0, 113, self.at], 51820).into(),
            }],
            certificate: self.certificate,
            sequence: self.sequence,
            expires: wall() + HOUR,
        };
        advert.sign(&node(self.n), &zone()).expect("in bounds")
    }
}

/// The advert of a good member: node `n` with the route 10.42.n.0/24, under invite 1.
pub(crate) fn good(n: u8, sequence: u64) -> SignedAdvert {
    let route = format!("10.42.{n}.0/24");
    let certificate = Some(chain(&token(1, &["10.42.0.0/16"]), n, &[&route]));
    Says { n, routes: &[&route], certificate, sequence, at: n }.sign()
}

pub(crate) fn records(signed: &SignedAdvert) -> InstanceRecords {
    InstanceRecords {
        node: signed.advert().node,
        txt: signed.txt().to_vec(),
        endpoint: signed.advert().endpoint(),
    }
}

pub(crate) fn view<'a>(
    adverts: impl IntoIterator<Item = &'a SignedAdvert>,
) -> BTreeMap<PublicKey, InstanceRecords> {
    adverts.into_iter().map(|signed| (signed.advert().node, records(signed))).collect()
}

/// The network's list of revocations.
pub(crate) fn revoked(
    number: u64,
    entries: impl IntoIterator<Item = Revoked>,
) -> Arc<RevocationList> {
    Arc::new(RevocationList::sign(&network(1), number, entries).expect("few"))
}

/// Whom node 100 knows, with certificates asked for or (the weakened one) not.
pub(crate) fn members_only() -> Roster {
    Roster::new(zone(), key(100), Admission::Members(network(1).id(), None), Vec::new())
}

/// The mesh of node 100, which asks for certificates.
pub(crate) fn mesh() -> Mesh {
    let settings = Settings {
        own: key(100),
        private_key: node(100).wireguard_private_key(),
        routes: vec![],
        invite: vec![],
        overlay: vec![],
        fixed: vec![],
        hard: false,
        seed: [1; 32],
    };
    Mesh::new(settings, Some(members_only()), Instant::now(), wall())
}

pub(crate) fn zone_trusted() -> Roster {
    Roster::new(zone(), key(100), Admission::Zone, Vec::new())
}

pub(crate) fn routes(roster: &Roster, n: u8) -> Vec<IpNet> {
    let advert = roster.get(&key(n)).and_then(Member::advert);
    advert.map(|advert| advert.routes.clone()).unwrap_or_default()
}

pub(crate) fn at(roster: &Roster, n: u8) -> Option<u8> {
    let advert = roster.get(&key(n)).and_then(Member::advert)?;
    match advert.candidates.first()?.addr.ip() {
        std::net::IpAddr::V4(v4) => Some(v4.octets()[3]),
        std::net::IpAddr::V6(_) => None,
    }
}
