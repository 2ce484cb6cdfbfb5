//! Who may write what. It is judged by what an update would leave behind, not by its
//! steps: deletions and additions in whatever order are fine where the outcome is.
//!
//! A node's own names ([`node`]) are written by whoever shows an advert that proves
//! itself, or has the node's TSIG key; the list of instances ([`pointers`]) is the zone's
//! own; the list of revocations ([`revocations`]) and claims of slices ([`slices`]) prove
//! themselves, too.

use std::{collections::BTreeSet, time::SystemTime};

use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use ipnet::IpNet;

use super::{
    draft::Draft,
    lease::{Fact, Node},
    names::Owner,
    records::encode,
    store::ZoneStore,
    update::UpdateError,
};
use crate::{
    advert::{AdvertError, txt::Fields},
    identity::PublicKey,
    membership::{CertificateError, RevocationError},
    zone::slice::ClaimError,
};

mod node;
mod pointers;
mod revocations;
mod slices;

/// Who sent an update, as its TSIG tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// Nobody in particular: what is written has to prove itself.
    Anyone,
    /// The holder of the key of one node, which may write that node's names.
    Node(PublicKey),
    /// The holder of a key that may write the names of all nodes.
    Administrator,
}

impl Writer {
    /// Whether its key alone lets it write a node's names.
    fn may_write(&self, node: &PublicKey) -> bool {
        match self {
            Self::Anyone => false,
            Self::Node(own) => own == node,
            Self::Administrator => true,
        }
    }
}

/// Why a writer may not do what it asks for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A name that no update touches.
    #[error("the name is none that a node writes")]
    Name,
    /// A type that has no place at that name.
    #[error("nobody has a record of type {0} at that name")]
    Type(RecordType),
    /// Nothing shows that the writer may write there.
    #[error("neither a key nor an advert with a certificate proves that the writer may do this")]
    Unproven,
    /// The list of instances would not be what it is.
    #[error("the list of instances names those that are in the zone, and no others")]
    Pointer,
    /// The records have a signature that does not hold, or are not those that it is over.
    #[error("the advert does not count: {0}")]
    Advert(#[from] AdvertError),
    /// Not a member.
    #[error("not a member: {0}")]
    Certificate(#[from] CertificateError),
    /// A member no more.
    #[error("the node, or the invite that let it in, has been revoked")]
    Revoked,
    /// An advert that is older than one that was taken.
    #[error("an advert with number {known} or a higher one has been here before")]
    Old {
        /// The highest number of that node.
        known: u64,
    },
    /// Not a list of revocations of this network.
    #[error("the list does not count: {0}")]
    Revocations(#[from] RevocationError),
    /// A list of revocations is only replaced by a newer one.
    #[error("the list of revocations here has number {known}, and only a higher one replaces it")]
    OldRevocations {
        /// The number of the list that is known.
        known: u64,
    },
    /// The claim has a signature that does not hold.
    #[error("the claim does not count: {0}")]
    Claim(#[from] ClaimError),
    /// A slice that the node's certificate does not cover.
    #[error("the slice is none that the node's certificate allows")]
    NotCertified,
    /// Another node has it.
    #[error("the slice {slice} is claimed by another node")]
    Taken {
        /// What is claimed.
        slice: IpNet,
    },
    /// More records, or larger ones, than anybody has a use for.
    #[error("too many records, or too large ones")]
    TooMany,
    /// The zone is full.
    #[error("the zone is full: it may hold {limit} {what}")]
    Full {
        /// The bound.
        limit: usize,
        /// What it bounds.
        what: &'static str,
    },
}

impl ZoneStore {
    /// Whether there may be such a record, whoever writes it.
    pub(super) fn check_name(&self, record: &Record) -> Result<(), UpdateError> {
        let kind = record.record_type();
        let fits = match self.config.owner(&record.name) {
            Owner::Fixed => return Err(Refusal::Name.into()),
            Owner::Service => kind == RecordType::PTR,
            Owner::Instance(_) => matches!(kind, RecordType::SRV | RecordType::TXT),
            Owner::Host(_) => matches!(kind, RecordType::A | RecordType::AAAA),
            Owner::Revocations | Owner::Slice(_) | Owner::Sealed => kind == RecordType::TXT,
        };
        // What is not there may be deleted as often as one likes.
        if fits || record.dns_class != DNSClass::IN {
            Ok(())
        } else {
            Err(Refusal::Type(kind).into())
        }
    }

    /// Judges what an update leaves behind, and completes it: the list of instances
    /// follows, and those who are revoked go. Gives what is to be remembered.
    pub(super) fn judge(
        &self,
        draft: &mut Draft<'_>,
        writer: &Writer,
        now: SystemTime,
    ) -> Result<Vec<Fact>, Refusal> {
        let changed = self.changed(draft)?;
        let is_slice = |item: &&Item| matches!(item, Item::Slice(_));
        // Two of one update would each be judged without the other.
        if changed.iter().filter(is_slice).count() > 1 {
            return Err(Refusal::TooMany);
        }
        let news = match changed.contains(&Item::Revocations) {
            true => Some(self.judge_revocations(draft)?),
            false => None,
        };
        let revoked = news.as_ref().or(self.revocations.as_ref());
        let mut facts = Vec::new();
        for item in &changed {
            match item {
                Item::Node(key) => {
                    facts.push(self.judge_node(draft, key, writer, revoked, now)?);
                }
                Item::Slice(slice) => {
                    facts.push(self.judge_slice(draft, *slice, writer, revoked, now)?);
                }
                Item::Revocations => {}
            }
        }
        self.check_pointers(draft)?;
        // It says nothing new; a list that is full must not grow by it either.
        draft.forget(&self.config.zone.service());
        for item in &changed {
            if let Item::Node(key) = item {
                self.set_pointer(draft, key);
            }
        }
        if let Some(news) = &news {
            facts.extend(self.remove_revoked(draft, news));
        }
        Ok(facts)
    }

    /// What an update would really change. In a sealed zone what is new tells what it is,
    /// and where it goes, what was there; the same that is only sealed anew is left as it
    /// was.
    fn changed(&self, draft: &mut Draft<'_>) -> Result<BTreeSet<Item>, Refusal> {
        let names: Vec<Name> =
            draft.touched().filter(|name| draft.differs(name)).cloned().collect();
        let mut changed = BTreeSet::new();
        for name in names {
            let item = match self.config.owner(&name) {
                Owner::Instance(node) | Owner::Host(node) => Item::Node(node),
                Owner::Slice(slice) => Item::Slice(slice),
                Owner::Revocations => Item::Revocations,
                Owner::Service | Owner::Fixed => continue,
                Owner::Sealed => {
                    let old = self.config.strings(&name, self.records.at(&name));
                    let new = self.config.strings(&name, draft.at(&name));
                    if old.is_some() && old == new {
                        draft.forget(&name);
                        continue;
                    }
                    if new.is_none() && !draft.at(&name).is_empty() {
                        return Err(Refusal::Unproven);
                    }
                    let txt = new.or(old).ok_or(Refusal::Unproven)?;
                    self.sealed_item(&name, &txt).ok_or(Refusal::Unproven)?
                }
            };
            changed.insert(item);
        }
        Ok(changed)
    }

    /// What stands under seal at a name; `None` where it belongs at another one.
    fn sealed_item(&self, name: &Name, txt: &[Vec<u8>]) -> Option<Item> {
        if *name == self.config.revocations_name() {
            return Some(Item::Revocations);
        }
        let fields = Fields::read(txt).ok()?;
        if let Ok(slice) = fields.one::<IpNet>("slice")
            && *name == self.config.slice_name(&slice)
        {
            return Some(Item::Slice(slice));
        }
        let node: PublicKey = fields.one("pub").ok()?;
        self.config.node_names(&node).contains(name).then_some(Item::Node(node))
    }

    /// Whoever has an invite makes as many nodes as he likes: no one invite has more than
    /// half of the zone, so that one that fell into wrong hands does not shut out all others.
    fn check_invites(&self, facts: &[Fact]) -> Result<(), Refusal> {
        let limit = self.config.limits.nodes.div_ceil(2);
        for fact in facts {
            let Fact::Node(key, Some(Node { invite: Some(invite), .. })) = fact else { continue };
            let of_invite = self.facts.iter().filter(|(_, node)| node.invite == Some(*invite));
            if self.facts.node(key).is_none() && of_invite.count() >= limit {
                return Err(Refusal::Full { limit, what: "nodes of one invite" });
            }
        }
        Ok(())
    }

    /// The bounds of the whole zone.
    pub(super) fn check_room(
        &self,
        removed: &[Record],
        added: &[Record],
        facts: &[Fact],
    ) -> Result<(), Refusal> {
        let limits = &self.config.limits;
        let size = |records: &[Record]| -> usize {
            records.iter().filter_map(encode).map(|bytes| bytes.len()).sum()
        };
        let (less, more) = (size(removed), size(added));
        if more > less && self.records.bytes() + more - less > limits.bytes {
            return Err(Refusal::Full { limit: limits.bytes, what: "bytes of records" });
        }
        let (mut nodes, mut claims) = (self.facts.nodes(), self.facts.claims().count());
        for fact in facts {
            match fact {
                Fact::Node(key, Some(_)) => nodes += usize::from(self.facts.node(key).is_none()),
                Fact::Claim(slice, Some(_)) => {
                    claims += usize::from(self.facts.claim(slice).is_none());
                }
                Fact::Node(_, None) | Fact::Claim(_, None) => {}
            }
        }
        if nodes > limits.nodes {
            return Err(Refusal::Full { limit: limits.nodes, what: NODES });
        }
        self.check_invites(facts)?;
        if claims > limits.claims {
            return Err(Refusal::Full { limit: limits.claims, what: "slices" });
        }
        Ok(())
    }
}

const NODES: &str = "nodes, those included that have left within a day";

/// One thing that updates change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    Node(PublicKey),
    Slice(IpNet),
    Revocations,
}
