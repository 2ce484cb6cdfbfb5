//! This node's own membership, and the network's revocations on their way in.

use std::{
    fmt,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use tracing::{info, warn};
use zonemesh_discovery::{
    advert::CLOCK_SKEW,
    identity::PublicKey,
    membership::{Certified, NetworkId, RevocationError, RevocationList, utc},
};

use super::Node;
use crate::{join::Settled, mesh::Mesh, state::State, status::MembershipStatus};

/// What this node is in its network.
#[derive(Debug)]
pub(super) struct Joined {
    pub(super) network: NetworkId,
    certified: Certified,
    not_before: SystemTime,
    fault: Option<Fault>,
    /// What was wrong with the zone's list of revocations last.
    list_error: Option<RevocationError>,
}

/// Why the others take this node for no member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Revoked,
    InviteRevoked,
    Over(SystemTime),
    NotYet(SystemTime),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let again = "join again with a new token";
        match self {
            Self::Revoked => {
                f.write_str("the network has revoked this node: it has no peers any more")
            }
            Self::InviteRevoked => write!(
                f,
                "the network has revoked the invite that let this node in: it has no peers any \
                 more; {again}"
            ),
            Self::Over(end) => write!(
                f,
                "this node's membership ended on {} (or this machine's clock is wrong): {again}",
                utc(*end)
            ),
            Self::NotYet(begin) => write!(
                f,
                "this node's membership begins on {}: is this machine's clock right?",
                utc(*begin)
            ),
        }
    }
}

impl Joined {
    pub(super) fn new(settled: &Settled) -> Self {
        Self {
            network: settled.membership.network(),
            certified: settled.certified.clone(),
            not_before: settled.membership.chain().not_before(),
            fault: None,
            list_error: None,
        }
    }

    /// What is wrong with it now, if anything is.
    pub(super) fn fault(&self) -> Option<String> {
        self.fault.as_ref().map(ToString::to_string)
    }

    pub(super) fn status(&self) -> MembershipStatus {
        let seconds =
            |end: SystemTime| end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        MembershipStatus {
            network: self.network.to_string(),
            invite: self.certified.invite.to_string(),
            groups: self.certified.groups.clone(),
            expires: self.certified.not_after.map(seconds),
        }
    }

    fn look(
        &self,
        own: &PublicKey,
        list: Option<&RevocationList>,
        wall: SystemTime,
    ) -> Option<Fault> {
        if list.is_some_and(|list| list.contains(own)) {
            return Some(Fault::Revoked);
        }
        if list.is_some_and(|list| list.contains_invite(&self.certified.invite)) {
            return Some(Fault::InviteRevoked);
        }
        if wall + CLOCK_SKEW < self.not_before {
            return Some(Fault::NotYet(self.not_before));
        }
        self.certified.not_after.filter(|end| *end + CLOCK_SKEW < wall).map(Fault::Over)
    }
}

/// Has the mesh go by the list that was kept: before it hears of anybody.
pub(super) fn restore(joined: &Joined, mesh: &mut Mesh, state: &State, now: Instant) {
    mesh.set_network(joined.network);
    let kept = match state.revocations() {
        Ok(Some(kept)) => kept,
        Ok(None) => return,
        Err(error) => return warn!("{error}"),
    };
    match RevocationList::read(&kept, &joined.network) {
        Ok(list) => drop(mesh.handle_revocations(list, now)),
        Err(error) => warn!("the revocations that were kept are not used: {error}"),
    }
}

impl Node {
    /// Takes what may be the network's list out of the zone.
    pub(super) fn handle_lists(&mut self, lists: &[Vec<Vec<u8>>], now: Instant) {
        let Some(joined) = &mut self.joined else { return };
        let mut newest: Option<RevocationList> = None;
        let mut failed = None;
        for txt in lists {
            match RevocationList::from_txt(txt, &joined.network) {
                Ok(list) if newest.as_ref().is_none_or(|one| one.number() < list.number()) => {
                    newest = Some(list);
                }
                Ok(_) => {}
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed.filter(|error| joined.list_error != Some(*error)) {
            warn!("revocations in the zone are not used: {error}");
        }
        joined.list_error = failed;
        if let Some(list) = newest
            && self.mesh.handle_revocations(list, now)
        {
            self.handle_revocations();
        }
    }

    /// There is a newer list: it must hold after a restart, too.
    pub(super) fn handle_revocations(&mut self) {
        let Some(list) = self.mesh.revocations() else { return };
        info!(number = list.number(), "newer revocations");
        if let Err(error) = self.state.save_revocations(list) {
            warn!("cannot keep the revocations: {error}");
        }
    }

    /// Says when the own membership ends, and when it holds again.
    pub(super) fn watch_membership(&mut self, wall: SystemTime) {
        let Some(joined) = &mut self.joined else { return };
        let list = self.mesh.revocations().map(AsRef::as_ref);
        let fault = joined.look(&self.public_key, list, wall);
        if fault != joined.fault {
            match &fault {
                Some(fault) => warn!("{fault}"),
                None => info!("this node's membership holds again"),
            }
            joined.fault = fault;
        }
    }
}
