//! This node's slice of the network's range, where its routes are "auto": it is asked for
//! and kept by a [`SliceKeeper`], and what the node is follows.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Instant, SystemTime},
};

use ipnet::IpNet;
use tracing::{info, warn};
use zonemesh_discovery::{
    identity::Identity,
    zone::slice::{Ground, SliceClaim, SliceEvent, SliceKeeper, TxtSet, first_host},
};

use super::{Node, start::own_routes};
use crate::{join::Settled, rendezvous::SliceAnswer, state::State};

/// The keeper, and what the node needs to know beside it.
#[derive(Debug)]
pub(super) struct Slice {
    keeper: SliceKeeper,
    /// Whether the interface carries the addresses that are configured.
    has_addresses: bool,
    /// What the certificate allows: the network's range, for whoever takes a slice of it.
    ranges: Vec<IpNet>,
    /// What went wrong with the last question.
    error: Option<String>,
}

/// Where a network has given away all that it has.
const FULL: &str = "the network has no slice left for this node: let claims of dead nodes lapse, \
     or give the network a wider range";

impl Slice {
    /// A keeper for a member whose certificate allows slices; `None` where it allows none.
    pub(super) fn new(
        identity: &Arc<Identity>,
        settled: &Settled,
        state: &State,
        has_addresses: bool,
        (now, wall): (Instant, SystemTime),
    ) -> Option<Self> {
        let membership = &settled.membership;
        let ground = Ground::new(&settled.certified.routes, membership.access().slice);
        if ground.is_empty() {
            return None;
        }
        let zone = membership.zone().clone();
        let kept = state.slice();
        let mut keeper = SliceKeeper::new(zone, Arc::clone(identity), ground, kept, now, wall);
        keeper.set_certificate(Some(membership.chain().as_bytes().to_vec()), now);
        Some(Self { keeper, has_addresses, ranges: settled.certified.routes.clone(), error: None })
    }

    /// What is wrong with it now, if anything is.
    pub(super) fn warning(&self) -> Option<String> {
        match (self.keeper.held(), &self.error) {
            (None, _) if self.keeper.is_full() => Some(FULL.to_owned()),
            (None, Some(error)) => Some(format!("this node has no slice yet: {error}")),
            (None, None) => Some("this node has no slice yet".to_owned()),
            (Some(slice), Some(error)) => {
                Some(format!("it cannot be seen whether {slice} is still this node's: {error}"))
            }
            (Some(_), None) => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.keeper.poll_timeout()
    }
}

impl Node {
    /// Takes a view of the zone's claims.
    pub(super) fn handle_claims(
        &mut self,
        claims: Option<&BTreeMap<IpNet, TxtSet>>,
        now: Instant,
        wall: SystemTime,
    ) {
        let (Some(slice), Some(claims)) = (&mut self.slice, claims) else { return };
        let roster = self.mesh.roster();
        let is_member =
            |claim: &SliceClaim| roster.is_some_and(|roster| roster.allows_claim(claim, wall));
        slice.keeper.handle_view(claims, &is_member, now, wall);
    }

    pub(super) fn handle_slice_answer(
        &mut self,
        answer: SliceAnswer,
        now: Instant,
        wall: SystemTime,
    ) {
        let Some(slice) = &mut self.slice else { return };
        slice.error = None;
        match answer {
            SliceAnswer::Seen(prefix, seen) => {
                let roster = self.mesh.roster();
                let is_member = |claim: &SliceClaim| {
                    roster.is_some_and(|roster| roster.allows_claim(claim, wall))
                };
                slice.keeper.handle_look(prefix, seen, &is_member, now, wall);
            }
            SliceAnswer::Claimed(outcome) => slice.keeper.handle_claimed(outcome, now, wall),
            SliceAnswer::Failed { is_refused, error } => {
                slice.error = Some(error);
                slice.keeper.handle_failed(is_refused, now);
            }
        }
    }

    /// Whoever was asked is gone, and will not answer.
    pub(super) fn forget_slice_question(&mut self, now: Instant) {
        if let Some(slice) = &mut self.slice {
            slice.keeper.handle_failed(false, now);
        }
    }

    /// Asks what is to be asked, and becomes what has come of it.
    pub(super) fn drive_slice(&mut self, now: Instant) {
        let Some(slice) = &mut self.slice else { return };
        let is_due = slice.poll_timeout().is_some_and(|due| due <= now);
        if is_due && slice.keeper.held().is_none() {
            let fixed = self.config.peers.iter().flat_map(|peer| &peer.routes);
            let avoided = fixed.copied().chain(self.mesh.foreign_prefixes());
            slice.keeper.set_avoided(avoided);
        }
        if let Some(ask) = slice.keeper.poll_ask(now) {
            let asked =
                self.rendezvous.as_ref().is_some_and(|rendezvous| rendezvous.ask_for_slice(ask));
            if !asked {
                slice.keeper.handle_failed(false, now);
            }
        }
        while let Some(event) = self.slice.as_mut().and_then(|slice| slice.keeper.poll_event()) {
            self.handle_slice_event(&event, now);
        }
    }

    fn handle_slice_event(&mut self, event: &SliceEvent, now: Instant) {
        match event {
            SliceEvent::Held(slice, expires) => {
                if let Err(error) = self.state.save_slice(Some((*slice, *expires))) {
                    warn!("cannot keep the slice: {error}");
                }
                if self.config.interface.routes != [*slice] {
                    info!(%slice, "this node's slice");
                    self.set_slice(Some(*slice), now);
                }
            }
            SliceEvent::Lost(slice, to) => {
                warn!(
                    "{slice} is {to}'s by now: the zone has lost this node's claim, or it has \
                     lapsed; taking another slice"
                );
                if let Err(error) = self.state.save_slice(None) {
                    warn!("cannot keep that the slice is lost: {error}");
                }
                self.set_slice(None, now);
            }
            SliceEvent::Full => warn!("{FULL}"),
        }
    }

    /// The node's routes and addresses are those of this slice from now on.
    fn set_slice(&mut self, slice: Option<IpNet>, now: Instant) {
        self.config.interface.routes = slice.into_iter().collect();
        if self.slice.as_ref().is_some_and(|slice| !slice.has_addresses) {
            let address =
                slice.and_then(|slice| IpNet::new(first_host(&slice), slice.prefix_len()).ok());
            self.config.interface.addresses = address.into_iter().collect();
        }
        let addresses = &self.config.interface.addresses;
        self.routes = own_routes(&self.config);
        // Also where this machine's LAN is as wide as 10.0.0.0/8.
        let ranges = self.slice.iter().flat_map(|slice| &slice.ranges).copied();
        let overlay = addresses.iter().map(IpNet::trunc).chain(ranges).collect();
        self.mesh.set_place(self.routes.clone(), overlay, now);
        if let Some(own) = &mut self.own {
            own.set_place(addresses.iter().map(IpNet::addr).collect(), self.routes.clone());
        }
        self.due.apply = Some(now);
        self.hurry_advert(now);
    }
}
