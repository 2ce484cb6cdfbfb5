//! What the zone knows of who wrote its records: numbers, leases, and when they end.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

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

/// One thing that is remembered, or (`None`) no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fact {
    Node(PublicKey, Option<Node>),
}

/// Everything that is remembered, and in which order it ends.
#[derive(Debug, Default)]
pub(super) struct Facts {
    nodes: BTreeMap<PublicKey, Node>,
    ends: BTreeSet<(u64, PublicKey)>,
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
                if let Some(end) = before.and_then(|node| node.lease.end()) {
                    self.ends.remove(&(end, key));
                }
                if let Some(end) = node.and_then(|node| node.lease.end()) {
                    self.ends.insert((end, key));
                }
                Fact::Node(key, before)
            }
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

    pub(super) fn all(&self) -> Vec<Fact> {
        self.iter().map(|(key, node)| Fact::Node(*key, Some(*node))).collect()
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
        let facts: Vec<Fact> = ended.map(|(_, key)| self.lapse(&mut draft, key, now)).collect();
        let (removed, added) = draft.difference();
        self.apply(removed, added, &facts, now);
    }
}

/// Seconds since 1970.
pub(super) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
