//! What the zone knows of who wrote its records: numbers, leases, and when they end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;

use super::{draft::Draft, store::ZoneStore};
use crate::{identity::PublicKey, membership::InviteId};

/// What is remembered of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Node {
    /// The invite that let it in, where it has shown its certificate.
    pub(super) invite: Option<InviteId>,
    /// The highest number of its adverts, below which none is taken.
    pub(super) sequence: u64,
    /// Until when its records stay.
    pub(super) lease: Lease,
}

/// How long a node's records, or the memory of them, stay; times are seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    /// Its records are there until then.
    Until(u64),
    /// Its records are there until somebody who may removes them: nobody signed an end.
    Open,
    /// Its records are gone; its number is remembered until then, when every older
    /// advert has lapsed.
    Gone(u64),
}

impl Lease {
    fn end(self) -> Option<u64> {
        match self {
            Self::Until(end) | Self::Gone(end) => Some(end),
            Self::Open => None,
        }
    }
}

/// The claim of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// Whose it is.
    pub(super) node: PublicKey,
    /// The invite that let it in.
    pub(super) invite: Option<InviteId>,
    /// The number of the claim.
    pub(super) sequence: u64,
    /// When it ends, in seconds since 1970.
    pub(super) end: u64,
}

/// One thing that is remembered, or (`None`) no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fact {
    Node(PublicKey, Option<Node>),
    Claim(IpNet, Option<Claim>),
}

/// What ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ending {
    Node(PublicKey),
    Claim(IpNet),
}

/// Everything that is remembered, and in which order it ends.
#[derive(Debug, Default)]
pub(super) struct Facts {
    nodes: BTreeMap<PublicKey, Node>,
    claims: BTreeMap<IpNet, Claim>,
    ends: BTreeSet<(u64, Ending)>,
}

impl Facts {
    /// Sets a fact; gives what it was before.
    pub(super) fn set(&mut self, fact: &Fact) -> Fact {
        match *fact {
            Fact::Node(key, node) => {
                let before = match node {
                    Some(node) => self.nodes.insert(key, node),
                    None => self.nodes.remove(&key),
                };
                let end = |node: Option<Node>| node.and_then(|node| node.lease.end());
                self.set_end(Ending::Node(key), end(before), end(node));
                Fact::Node(key, before)
            }
            Fact::Claim(slice, claim) => {
                let before = match claim {
                    Some(claim) => self.claims.insert(slice, claim),
                    None => self.claims.remove(&slice),
                };
                let end = |claim: Option<Claim>| claim.map(|claim| claim.end);
                self.set_end(Ending::Claim(slice), end(before), end(claim));
                Fact::Claim(slice, before)
            }
        }
    }

    fn set_end(&mut self, ending: Ending, before: Option<u64>, after: Option<u64>) {
        if let Some(end) = before {
            self.ends.remove(&(end, ending));
        }
        if let Some(end) = after {
            self.ends.insert((end, ending));
        }
    }

    pub(super) fn node(&self, key: &PublicKey) -> Option<&Node> {
        self.nodes.get(key)
    }

    /// Nodes that are remembered, also those that have left.
    pub(super) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn live_nodes(&self) -> usize {
        self.nodes.values().filter(|node| !matches!(node.lease, Lease::Gone(_))).count()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&PublicKey, &Node)> {
        self.nodes.iter()
    }

    pub(super) fn claim(&self, slice: &IpNet) -> Option<&Claim> {
        self.claims.get(slice)
    }

    pub(super) fn claims(&self) -> impl Iterator<Item = (&IpNet, &Claim)> {
        self.claims.iter()
    }

    pub(super) fn all(&self) -> Vec<Fact> {
        let nodes = self.iter().map(|(key, node)| Fact::Node(*key, Some(*node)));
        nodes.chain(self.claims().map(|(slice, claim)| Fact::Claim(*slice, Some(*claim)))).collect()
    }
}

impl ZoneStore {
    /// When [`handle_timeout`](Self::handle_timeout) is due. It is a wall-clock time: one
    /// who waits for it by another clock should look again now and then.
    pub fn poll_timeout(&self) -> Option<SystemTime> {
        let (end, _) = self.facts.ends.first()?;
        let end = UNIX_EPOCH.checked_add(Duration::from_secs(*end))?;
        Some(end.max(self.sweep_not_before))
    }

    /// Removes what has lapsed. The change has to be journalled and committed as an
    /// update's.
    pub fn handle_timeout(&mut self, now: SystemTime) {
        if now < self.sweep_not_before {
            return;
        }
        let seconds = seconds(now);
        let ended = self.facts.ends.iter().take_while(|(end, _)| *end <= seconds);
        let mut draft = Draft::new(&self.records);
        let facts = ended.map(|(_, ending)| match ending {
            Ending::Node(key) => self.lapse(&mut draft, key, now),
            Ending::Claim(slice) => {
                draft.remove_all(&self.config.slice_name(slice));
                Fact::Claim(*slice, None)
            }
        });
        let facts: Vec<Fact> = facts.collect();
        let (removed, added) = draft.difference();
        self.apply(removed, added, &facts, now);
    }
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
