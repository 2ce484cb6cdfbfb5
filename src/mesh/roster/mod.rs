//! Who is in the mesh: the newest advert of each node that may be a member.
//!
//! Adverts come from the zone, as a whole view of it each time, and from the LAN,
//! one by one. Both only bring; neither takes away at once: a node whose advert has
//! left the zone, or has lapsed, stays for as long as it is heard
//! ([`Roster::forget_silent`] is told who is), because a rendezvous that fails, or
//! somebody who deletes records in it, must not end a tunnel that works. What is
//! remembered from the last run counts until the zone was read: it bridges a zone that
//! is away, and does not bring back who has left in the meantime.
//!
//! Two things end a membership at once, whoever is heard: a certificate that is over, and a
//! revocation (`admission`).

mod admission;
mod clock;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use ipnet::IpNet;
use tracing::warn;
use zonemesh_discovery::{
    advert::{
        Advert, AdvertError, BareEntry, CLOCK_SKEW, Entry, InstanceRecords, SignedAdvert, Zone,
    },
    identity::PublicKey,
    membership::{Certified, RevocationList},
    zone::slice::SliceClaim,
};

pub use self::{admission::Admission, clock::ClockFault};
use self::{
    admission::{Admitted, Complaint},
    clock::Dates,
};

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
    admission: Admission,
    /// Peers that the administrator wrote down: no advert speaks for them.
    fixed: Vec<PublicKey>,
    members: BTreeMap<PublicKey, Member>,
    complaints: BTreeMap<PublicKey, Complaint>,
    /// The highest sequence number seen in an advert of our own.
    own_sequence: u64,
    dropped: Dropped,
    /// How the zone's adverts stand to this machine's clock.
    dates: Dates,
}

/// One member.
#[derive(Debug, Clone)]
pub struct Member {
    said: Said,
    /// What of that its certificate allows, where one is asked for.
    admitted: Option<Box<Admitted>>,
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

impl Said {
    fn node(&self) -> PublicKey {
        match self {
            Self::Signed(signed) => signed.advert().node,
            Self::Bare(bare) => bare.node,
        }
    }
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
    /// Without a certificate that makes its node a member.
    pub uncertified: u64,
    /// Of a node that is revoked, by itself or with its invite.
    pub revoked: u64,
    /// Beyond [`MAX_MEMBERS`].
    pub surplus: u64,
}

impl Member {
    /// What counts of its signed advert, if it is a node of the mesh.
    pub fn advert(&self) -> Option<&Advert> {
        match &self.admitted {
            Some(admitted) => Some(&admitted.advert),
            None => self.signed().map(SignedAdvert::advert),
        }
    }

    /// What the network certifies of it, where a certificate is asked for.
    pub fn certified(&self) -> Option<&Certified> {
        self.admitted.as_ref().map(|admitted| &admitted.certified)
    }

    /// What it claims beyond its certificate, routes and addresses: not used.
    pub fn outside(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.admitted.iter().flat_map(|admitted| &admitted.outside).copied()
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
        (self.in_zone || self.on_lan || self.remembered) && !self.has_lapsed(wall)
    }

    fn has_lapsed(&self, wall: SystemTime) -> bool {
        self.advert().is_some_and(|advert| advert.expires + CLOCK_SKEW < wall)
    }

    /// Whether these records say what is known of it already, so that nothing has to be
    /// verified again: most of a zone is as it was.
    fn is_as_in(&self, records: &InstanceRecords) -> bool {
        self.signed().is_some_and(|signed| {
            signed.txt() == records.txt && signed.advert().endpoint() == records.endpoint
        })
    }
}

impl Roster {
    /// An empty roster.
    pub fn new(zone: Zone, own: PublicKey, admission: Admission, fixed: Vec<PublicKey>) -> Self {
        Self {
            zone,
            own,
            admission,
            fixed,
            members: BTreeMap::new(),
            complaints: BTreeMap::new(),
            own_sequence: 0,
            dropped: Dropped::default(),
            dates: Dates::default(),
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

    /// Whether the node of a claim may hold its slice.
    pub fn allows_claim(&self, claim: &SliceClaim, wall: SystemTime) -> bool {
        self.admission.allows_claim(claim, wall)
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

    /// What seems to be wrong with this machine's clock, by the dates of what the zone showed
    /// last.
    pub fn clock_fault(&self) -> Option<ClockFault> {
        self.dates.fault()
    }

    /// Takes the network's newest list of revocations. Returns whether a member went.
    pub fn set_revocations(&mut self, list: &Arc<RevocationList>) -> bool {
        self.admission.set_revocations(list);
        let (admission, before) = (&self.admission, self.members.len());
        self.members.retain(|node, member| {
            let revoked = member.certified().and_then(|it| admission.revocation(node, it));
            if let Some(complaint) = revoked {
                warn!("the membership of {node} ends: {complaint}");
            }
            revoked.is_none()
        });
        self.members.len() != before
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
        let suspected = std::mem::take(&mut self.dates).fault();
        let mut changed = false;
        for records in view.values() {
            changed |= self.handle_records(records, wall);
        }
        if let Some(fault) = self.clock_fault().filter(|fault| suspected != Some(*fault)) {
            warn!("{}", fault.told(wall));
        }
        changed
    }

    /// Takes one node's records out of the zone. Returns whether a member changed.
    pub fn handle_records(&mut self, records: &InstanceRecords, wall: SystemTime) -> bool {
        let known = self.members.get_mut(&records.node);
        if let Some(member) = known.filter(|member| member.is_as_in(records)) {
            member.in_zone = true;
            self.dates.count(!member.has_lapsed(wall));
            self.complaints.remove(&records.node);
            return false;
        }
        match records.verify(&self.zone, wall) {
            Ok(entry) => self.take(entry, Source::Zone, wall),
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
                self.take(Entry::Signed(signed), Source::Member, wall)
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
            Ok(signed) => self.take(Entry::Signed(signed), source, wall),
            Err(error) => {
                self.dropped.count(error);
                false
            }
        }
    }

    /// Forgets the members that neither zone nor LAN shows any more (nor the memory,
    /// while the zone was not read) and that `is_heard` does not speak for; and those whose
    /// certificate is over. Returns whether there were any.
    pub fn forget_silent(
        &mut self,
        wall: SystemTime,
        mut is_heard: impl FnMut(&PublicKey) -> bool,
    ) -> bool {
        let before = self.members.len();
        self.members.retain(|node, member| {
            let is_over = member.certified().is_some_and(|it| admission::is_over(it, wall));
            if is_over {
                warn!("the membership of {node} ends: its certificate has expired");
            }
            !is_over && (member.is_current(wall) || is_heard(node))
        });
        self.members.len() != before
    }

    fn take(&mut self, entry: Entry, source: Source, wall: SystemTime) -> bool {
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
        let admitted = match self.admission.admit(&said, wall) {
            Ok(admitted) => admitted.map(Box::new),
            Err(complaint) => {
                self.complain(node, complaint);
                return false;
            }
        };
        if source == Source::Zone {
            self.dates.count(true);
        }
        self.complaints.remove(&node);
        let Some(member) = self.members.get_mut(&node) else {
            if self.members.len() >= MAX_MEMBERS {
                self.dropped.surplus += 1;
                return false;
            }
            let member = Member {
                said,
                admitted,
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
        (member.said, member.admitted) = (said, admitted);
        changed
    }

    fn complain(&mut self, node: PublicKey, complaint: Complaint) {
        self.dates.count_complaint(&complaint);
        match complaint {
            Complaint::Advert(error) => self.dropped.count(error),
            Complaint::Unsigned | Complaint::Unlisted => self.dropped.foreign += 1,
            Complaint::Certificate(_) => self.dropped.uncertified += 1,
            Complaint::Revoked | Complaint::InviteRevoked => self.dropped.revoked += 1,
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
