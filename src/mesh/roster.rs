//! Who is in the mesh: the newest advert of each node that may be a member.
//!
//! Adverts come from the zone, as a whole view of it each time, and from the LAN,
//! one by one. Both only bring; neither takes away at once: a node whose advert has
//! left the zone, or has lapsed, stays for as long as it is heard
//! ([`Roster::forget_silent`] is told who is), because a rendezvous that fails, or
//! somebody who deletes records in it, must not end a tunnel that works. What is
//! remembered from the last run counts until the zone was read: it bridges a zone that
//! is away, and does not bring back who has left in the meantime.

use std::{collections::BTreeMap, fmt, time::SystemTime};

use tracing::warn;
use zonemesh_discovery::{
    advert::{
        Advert, AdvertError, BareEntry, CLOCK_SKEW, Entry, InstanceRecords, SignedAdvert, Zone,
    },
    identity::PublicKey,
};

use crate::config::Trust;

/// The most members that one node remembers: four times the mesh that this is built
/// for (1,000 nodes), so that whoever fills the zone cannot fill the memory.
pub const MAX_MEMBERS: usize = 4096;

/// The most owners of bad records that are remembered, to warn of each once.
const MAX_COMPLAINTS: usize = 256;

/// The members, as far as this node knows.
#[derive(Debug)]
pub struct Roster {
    zone: Zone,
    own: PublicKey,
    trust: Trust,
    /// Peers that the administrator wrote down: no advert speaks for them.
    fixed: Vec<PublicKey>,
    members: BTreeMap<PublicKey, Member>,
    complaints: BTreeMap<PublicKey, Complaint>,
    /// The highest sequence number seen in an advert of our own.
    own_sequence: u64,
    dropped: Dropped,
}

/// One member.
#[derive(Debug, Clone)]
pub struct Member {
    said: Said,
    in_zone: bool,
    on_lan: bool,
    /// From the last run, and the zone was not read since.
    remembered: bool,
}

/// What is known of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Its own signed advert.
    Signed(SignedAdvert),
    /// A record in wgsd's form, for a listed key.
    Bare(BareEntry),
}

/// How many adverts were not used, by reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Malformed, forged, or out of bounds.
    pub invalid: u64,
    /// Lapsed, or with a lease that no clock explains.
    pub expired: u64,
    /// Older than what is known already.
    pub replayed: u64,
    /// Of a node that is not trusted.
    pub foreign: u64,
    /// Beyond [`MAX_MEMBERS`].
    pub surplus: u64,
}

/// Why a node's records are not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Complaint {
    Advert(AdvertError),
    Unsigned,
    Unlisted,
}

impl Member {
    /// Its signed advert, if it is a node of the mesh.
    pub fn advert(&self) -> Option<&Advert> {
        self.signed().map(SignedAdvert::advert)
    }

    /// The same with what bears its signature.
    pub fn signed(&self) -> Option<&SignedAdvert> {
        match &self.said {
            Said::Signed(signed) => Some(signed),
            Said::Bare(_) => None,
        }
    }

    /// What is known of it.
    pub fn said(&self) -> &Said {
        &self.said
    }

    fn is_current(&self, wall: SystemTime) -> bool {
        let lapsed = self.advert().is_some_and(|advert| advert.expires + CLOCK_SKEW < wall);
        (self.in_zone || self.on_lan || self.remembered) && !lapsed
    }
}

impl Roster {
    /// An empty roster.
    pub fn new(zone: Zone, own: PublicKey, trust: Trust, fixed: Vec<PublicKey>) -> Self {
        Self {
            zone,
            own,
            trust,
            fixed,
            members: BTreeMap::new(),
            complaints: BTreeMap::new(),
            own_sequence: 0,
            dropped: Dropped::default(),
        }
    }

    /// Every member, by key.
    pub fn members(&self) -> impl Iterator<Item = (&PublicKey, &Member)> {
        self.members.iter()
    }

    /// One member.
    pub fn get(&self, node: &PublicKey) -> Option<&Member> {
        self.members.get(node)
    }

    /// How many adverts were not used.
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    /// The highest sequence number that an advert of ours bears in the zone: the
    /// next one must pass it, also where our own memory of it was lost.
    pub fn own_sequence(&self) -> u64 {
        self.own_sequence
    }

    /// Takes the whole view of the zone. Returns whether any member changed.
    pub fn handle_zone(
        &mut self,
        view: &BTreeMap<PublicKey, InstanceRecords>,
        wall: SystemTime,
    ) -> bool {
        for (node, member) in &mut self.members {
            member.in_zone = view.contains_key(node);
            member.remembered = false;
        }
        self.complaints.retain(|node, _| view.contains_key(node));
        let mut changed = false;
        for records in view.values() {
            changed |= self.handle_records(records, wall);
        }
        changed
    }

    /// Takes one node's records out of the zone. Returns whether a member changed.
    pub fn handle_records(&mut self, records: &InstanceRecords, wall: SystemTime) -> bool {
        match records.verify(&self.zone, wall) {
            Ok(entry) => self.take(entry, Source::Zone),
            Err(error) => {
                self.complain(records.node, Complaint::Advert(error));
                false
            }
        }
    }

    /// Takes the TXT strings of one node on the LAN. Returns whether a member changed.
    pub fn handle_lan(&mut self, txt: &[Vec<u8>], wall: SystemTime) -> bool {
        self.handle_txt(txt, Source::Lan, wall)
    }

    /// Takes the TXT strings of one node, kept from the last run. Returns whether a
    /// member changed.
    pub fn handle_remembered(&mut self, txt: &[Vec<u8>], wall: SystemTime) -> bool {
        self.handle_txt(txt, Source::Memory, wall)
    }

    /// Takes the TXT strings that a member handed us of itself. Returns whether it changed.
    /// Nobody becomes a member that way, and nobody speaks for another.
    pub fn handle_shared(&mut self, node: &PublicKey, txt: &[Vec<u8>], wall: SystemTime) -> bool {
        match SignedAdvert::verify(&self.zone, txt, wall) {
            Ok(signed) if signed.advert().node == *node && self.members.contains_key(node) => {
                self.take(Entry::Signed(signed), Source::Member)
            }
            Ok(_) => {
                self.dropped.foreign += 1;
                false
            }
            Err(error) => {
                self.dropped.count(error);
                false
            }
        }
    }

    fn handle_txt(&mut self, txt: &[Vec<u8>], source: Source, wall: SystemTime) -> bool {
        // Other meshes, and things that are no mesh, share the LAN: no complaint.
        match SignedAdvert::verify(&self.zone, txt, wall) {
            Ok(signed) => self.take(Entry::Signed(signed), source),
            Err(error) => {
                self.dropped.count(error);
                false
            }
        }
    }

    /// Forgets the members that neither zone nor LAN shows any more (nor the memory,
    /// while the zone was not read) and that
    /// `is_heard` does not speak for. Returns whether there were any.
    pub fn forget_silent(
        &mut self,
        wall: SystemTime,
        mut is_heard: impl FnMut(&PublicKey) -> bool,
    ) -> bool {
        let before = self.members.len();
        self.members.retain(|node, member| member.is_current(wall) || is_heard(node));
        self.members.len() != before
    }

    fn take(&mut self, entry: Entry, source: Source) -> bool {
        let node = entry.node();
        let said = match entry {
            Entry::Signed(signed) if node == self.own => {
                self.own_sequence = self.own_sequence.max(signed.advert().sequence);
                return false;
            }
            Entry::Signed(signed) => Said::Signed(signed),
            Entry::Bare(bare) => Said::Bare(bare),
        };
        if node == self.own || self.fixed.contains(&node) {
            return false;
        }
        match (&self.trust, &said) {
            (Trust::Zone, Said::Bare(_)) => {
                self.complain(node, Complaint::Unsigned);
                return false;
            }
            (Trust::Listed(keys), _) if !keys.contains(&node) => {
                self.complain(node, Complaint::Unlisted);
                return false;
            }
            _ => {}
        }
        self.complaints.remove(&node);
        let Some(member) = self.members.get_mut(&node) else {
            if self.members.len() >= MAX_MEMBERS {
                self.dropped.surplus += 1;
                return false;
            }
            let member = Member {
                said,
                in_zone: source == Source::Zone,
                on_lan: source == Source::Lan,
                remembered: source == Source::Memory,
            };
            self.members.insert(node, member);
            return true;
        };
        match (&member.said, &said) {
            (Said::Signed(known), Said::Signed(new)) => {
                if new.advert().sequence < known.advert().sequence {
                    self.dropped.replayed += 1;
                    return false;
                }
            }
            // Whoever has signed once does not fall back to being spoken for.
            (Said::Signed(_), Said::Bare(_)) => return false,
            (Said::Bare(_), _) => {}
        }
        match source {
            Source::Zone => member.in_zone = true,
            Source::Lan => member.on_lan = true,
            Source::Memory => member.remembered = true,
            // It says nothing of where else it is advertised.
            Source::Member => {}
        }
        let changed = member.said != said;
        member.said = said;
        changed
    }

    fn complain(&mut self, node: PublicKey, complaint: Complaint) {
        match complaint {
            Complaint::Advert(error) => self.dropped.count(error),
            Complaint::Unsigned | Complaint::Unlisted => self.dropped.foreign += 1,
        }
        let full = self.complaints.len() >= MAX_COMPLAINTS;
        let known = self.complaints.get(&node);
        if known != Some(&complaint) && (known.is_some() || !full) {
            warn!("the records of {node} in the zone are not used: {complaint}");
            self.complaints.insert(node, complaint);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Zone,
    Lan,
    Memory,
    Member,
}

impl Dropped {
    fn count(&mut self, error: AdvertError) {
        match error {
            AdvertError::Expired | AdvertError::Lease => self.expired += 1,
            _ => self.invalid += 1,
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Advert(error) => fmt::Display::fmt(error, f),
            Self::Unsigned => f.write_str(
                "they are not signed, and network.trust = \"zone\" takes none but signed ones \
                 (to accept this key, list it)",
            ),
            Self::Unlisted => f.write_str("its key is not in network.keys"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ipnet::IpNet;
    use zonemesh_discovery::{
        advert::{Candidate, CandidateKind, Endpoint},
        identity::Identity,
    };

    use super::*;

    const WALL: Duration = Duration::from_secs(1_800_000_000);

    fn wall() -> SystemTime {
        SystemTime::UNIX_EPOCH + WALL
    }

    fn zone() -> Zone {
        "mesh.example".parse().expect("a zone")
    }

    fn identity(n: u8) -> Identity {
        Identity::from_seed(&[n; 32])
    }

    fn roster(trust: Trust) -> Roster {
        Roster::new(zone(), identity(0).public_key(), trust, Vec::new())
    }

    fn advert(n: u8, sequence: u64) -> SignedAdvert {
        let route: IpNet = format!("10.42.{n}.0/24").parse().expect("a prefix");
        let advert = Advert {
            node: identity(n).public_key(),
            name: format!("node-{n}"),
            addresses: vec![],
            routes: vec![route],
            candidates: vec![Candidate {
                kind: CandidateKind::ServerReflexive,
                addr: "198.51.100.7:51820".parse().expect("an address"),
            }],
            certificate: None,
            sequence,
            expires: wall() + Duration::from_secs(3600),
        };
        advert.sign(&identity(n), &zone()).expect("a valid advert")
    }

    fn records(signed: &SignedAdvert) -> InstanceRecords {
        InstanceRecords {
            node: signed.advert().node,
            txt: signed.txt().to_vec(),
            endpoint: signed.advert().endpoint(),
        }
    }

    fn view(all: &[&SignedAdvert]) -> BTreeMap<PublicKey, InstanceRecords> {
        all.iter().map(|signed| (signed.advert().node, records(signed))).collect()
    }

    fn keys(roster: &Roster) -> Vec<PublicKey> {
        roster.members().map(|(key, _)| *key).collect()
    }

    #[test]
    fn an_older_advert_never_replaces_a_newer_one() {
        let mut roster = roster(Trust::Zone);
        assert!(roster.handle_zone(&view(&[&advert(1, 7)]), wall()));
        assert!(!roster.handle_zone(&view(&[&advert(1, 6)]), wall()));
        assert!(!roster.handle_lan(advert(1, 6).txt(), wall()));
        assert_eq!(roster.dropped().replayed, 2);
        let member = roster.get(&identity(1).public_key()).expect("a member");
        assert_eq!(member.advert().expect("signed").sequence, 7);
    }

    #[test]
    fn one_bad_record_harms_no_other() {
        let mut roster = roster(Trust::Zone);
        let (good, bad) = (advert(1, 1), advert(2, 1));
        let mut view = view(&[&good, &bad]);
        let spoilt = view.get_mut(&bad.advert().node).expect("there");
        spoilt.txt[2][6] ^= 1;
        assert!(roster.handle_zone(&view, wall()));
        assert_eq!(keys(&roster), [good.advert().node]);
        assert_eq!(roster.dropped().invalid, 1);
    }

    #[test]
    fn a_member_that_left_the_zone_stays_while_it_is_heard() {
        let mut roster = roster(Trust::Zone);
        roster.handle_zone(&view(&[&advert(1, 1)]), wall());
        roster.handle_zone(&BTreeMap::new(), wall());
        assert!(!roster.forget_silent(wall(), |_| true));
        assert!(roster.forget_silent(wall(), |_| false));
        assert!(keys(&roster).is_empty());
    }

    #[test]
    fn a_remembered_member_counts_until_the_zone_is_read() {
        let mut roster = roster(Trust::Zone);
        assert!(roster.handle_remembered(advert(1, 1).txt(), wall()));
        assert!(roster.handle_remembered(advert(2, 1).txt(), wall()));
        assert!(!roster.forget_silent(wall(), |_| false), "the zone may be away");
        roster.handle_zone(&view(&[&advert(1, 1)]), wall());
        assert!(roster.forget_silent(wall(), |_| false));
        assert_eq!(keys(&roster), [identity(1).public_key()]);
    }

    #[test]
    fn a_lapsed_member_goes_though_the_zone_still_shows_it() {
        let mut roster = roster(Trust::Zone);
        roster.handle_zone(&view(&[&advert(1, 1)]), wall());
        let later = wall() + Duration::from_secs(3600) + CLOCK_SKEW + Duration::from_secs(1);
        assert!(!roster.forget_silent(wall(), |_| false));
        assert!(roster.forget_silent(later, |_| false));
    }

    #[test]
    fn only_listed_keys_are_taken_where_they_are_listed() {
        let mut roster = roster(Trust::Listed([identity(1).public_key()].into()));
        roster.handle_zone(&view(&[&advert(1, 1), &advert(2, 1)]), wall());
        assert_eq!(keys(&roster), [identity(1).public_key()]);
        assert_eq!(roster.dropped().foreign, 1);
    }

    #[test]
    fn an_unsigned_record_counts_for_a_listed_key_alone() {
        let node = identity(1).public_key();
        let endpoint = Endpoint::new(51820, vec!["198.51.100.7".parse().expect("an address")]);
        let bare = InstanceRecords { node, txt: vec![], endpoint: Some(endpoint) };
        let view = BTreeMap::from([(node, bare)]);
        let mut open = roster(Trust::Zone);
        assert!(!open.handle_zone(&view, wall()));
        let mut listed = roster(Trust::Listed([node].into()));
        assert!(listed.handle_zone(&view, wall()));
        assert!(matches!(listed.get(&node).expect("a member").said(), Said::Bare(_)));
        // A signed advert takes over, and an unsigned record does not take it back.
        assert!(listed.handle_lan(advert(1, 1).txt(), wall()));
        assert!(!listed.handle_zone(&view, wall()));
        assert!(listed.get(&node).expect("a member").advert().is_some());
    }

    #[test]
    fn our_own_advert_makes_no_member_and_tells_its_sequence() {
        let mut roster = roster(Trust::Zone);
        assert!(!roster.handle_zone(&view(&[&advert(0, 41)]), wall()));
        assert_eq!(roster.own_sequence(), 41);
        assert!(keys(&roster).is_empty());
    }

    #[test]
    fn nobody_speaks_for_a_peer_that_the_configuration_names() {
        let fixed = vec![identity(1).public_key()];
        let mut roster = Roster::new(zone(), identity(0).public_key(), Trust::Zone, fixed);
        assert!(!roster.handle_zone(&view(&[&advert(1, 1)]), wall()));
    }
}
