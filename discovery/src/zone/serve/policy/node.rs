//! A node's own names: its instance (SRV, TXT) and its host (A, AAAA).
//!
//! What proves itself is an advert that verifies, that bears a certificate of the
//! network, that is newer than any that was here, and beside which stands exactly what
//! it derives. One without candidates that ends now is its last word: it takes the node's
//! records out, for a plain deletion proves nothing. The number of the last advert is
//! remembered beyond the records, so that an older one never comes back.

use std::time::SystemTime;

use hickory_proto::rr::{Name, RData, RecordType};

use super::{
    super::{
        config::TTL,
        draft::Draft,
        lease::{Fact, Lease, Node, seconds},
        records::{encode, records_of},
        store::ZoneStore,
    },
    Refusal, Writer,
};
use crate::{
    advert::{AdvertError, CLOCK_SKEW, Endpoint, MAX_LEASE, SignedAdvert},
    identity::PublicKey,
    membership::{Certified, RevocationList},
};

/// The most bytes of records of one node: SRV, TXT and addresses of an advert are some
/// 1,400 with their names uncompressed.
const MAX_NODE_BYTES: usize = 4096;

impl ZoneStore {
    /// Whether the node's names may be as the draft has them.
    pub(super) fn judge_node(
        &self,
        draft: &mut Draft<'_>,
        key: &PublicKey,
        writer: &Writer,
        revoked: Option<&RevocationList>,
        now: SystemTime,
    ) -> Result<Fact, Refusal> {
        let zone = &self.config.zone;
        let names = self.config.node_names(key);
        let records = names.iter().flat_map(|name| records_of(name, draft.at(name)));
        let size: usize =
            records.filter_map(|record| encode(&record)).map(|bytes| bytes.len()).sum();
        let known = self.facts.node(key).copied();
        let sequence = known.map_or(0, |node| node.sequence);
        let invite = known.and_then(|node| node.invite);
        let trusted = writer.may_write(key);
        match size {
            0 if trusted => {
                return Ok(Fact::Node(*key, Some(Node { sequence, invite, lease: gone(now) })));
            }
            1..=MAX_NODE_BYTES => {}
            0 => return Err(Refusal::Unproven),
            _ => return Err(Refusal::TooMany),
        }
        if revoked.is_some_and(|list| list.contains(key)) {
            return Err(Refusal::Revoked);
        }
        let txt = self.config.strings(&names[0], draft.at(&names[0]));
        let txt = txt.filter(|txt| txt.iter().any(|string| string.starts_with(b"sig=")));
        let Some(txt) = txt else {
            if !trusted || self.config.seal.is_some() {
                return Err(Refusal::Unproven);
            }
            return Ok(Fact::Node(*key, Some(Node { sequence, invite, lease: Lease::Open })));
        };
        let signed = SignedAdvert::verify(zone, &txt, now)?;
        let advert = signed.advert();
        if advert.node != *key {
            return Err(AdvertError::OtherNode.into());
        }
        let certified = match self.certified(&signed, now) {
            Ok(certified) => Some(certified),
            Err(_) if trusted => None,
            Err(refusal) => return Err(refusal),
        };
        let invite = certified.as_ref().map(|certified| certified.invite);
        if let (Some(list), Some(invite)) = (revoked, &invite)
            && list.contains_invite(invite)
        {
            return Err(Refusal::Revoked);
        }
        if known.is_some() && advert.sequence <= sequence && !trusted {
            return Err(Refusal::Old { known: sequence });
        }
        let sequence = sequence.max(advert.sequence);
        // Its last word, by its own clock.
        if advert.is_withdrawal(now + CLOCK_SKEW) {
            names.iter().for_each(|name| draft.remove_all(name));
            return Ok(Fact::Node(*key, Some(Node { sequence, invite, lease: gone(now) })));
        }
        if !trusted {
            // Under seal there is nothing beside it.
            if let [instance, host] = names.as_slice()
                && !shows(draft, instance, host, advert.endpoint().as_ref())
            {
                return Err(AdvertError::Endpoint.into());
            }
            names.iter().for_each(|name| draft.set_ttl(name, TTL));
        }
        let membership = certified.and_then(|certified| certified.not_after);
        let end = membership.map_or(advert.expires, |end| end.min(advert.expires));
        let lease = Lease::Until(seconds(end + CLOCK_SKEW));
        Ok(Fact::Node(*key, Some(Node { sequence, invite, lease })))
    }

    fn certified(&self, signed: &SignedAdvert, now: SystemTime) -> Result<Certified, Refusal> {
        let network = self.config.network.as_ref().ok_or(Refusal::Unproven)?;
        Ok(signed.certified(network, now)?)
    }

    /// Removes a node's records, or what is remembered of it.
    pub(in super::super) fn lapse(
        &self,
        draft: &mut Draft<'_>,
        key: &PublicKey,
        now: SystemTime,
    ) -> Fact {
        match self.facts.node(key).copied() {
            Some(node @ Node { lease: Lease::Until(_) | Lease::Open, .. }) => {
                self.remove_node(draft, key);
                Fact::Node(*key, Some(Node { lease: gone(now), ..node }))
            }
            Some(Node { lease: Lease::Gone(_), .. }) | None => Fact::Node(*key, None),
        }
    }

    /// Removes a node's records and its place in the list of instances.
    pub(super) fn remove_node(&self, draft: &mut Draft<'_>, key: &PublicKey) {
        self.config.node_names(key).iter().for_each(|name| draft.remove_all(name));
        self.set_pointer(draft, key);
    }
}

/// Its number is remembered until every advert that it has signed has lapsed for all.
fn gone(now: SystemTime) -> Lease {
    Lease::Gone(seconds(now + MAX_LEASE + 2 * CLOCK_SKEW))
}

/// Whether SRV, A and AAAA are what the advert derives, and nothing else is there.
fn shows(draft: &Draft<'_>, instance: &Name, host: &Name, endpoint: Option<&Endpoint>) -> bool {
    let srv = draft.set(instance, RecordType::SRV).map(|set| set.data.as_slice());
    let addresses: Vec<_> =
        draft.at(host).iter().flat_map(|set| &set.data).filter_map(RData::ip_addr).collect();
    match (srv, endpoint) {
        (None, None) => addresses.is_empty(),
        (Some([RData::SRV(srv)]), Some(endpoint)) => {
            (srv.priority, srv.weight) == (0, 0)
                && srv.target == *host
                && Endpoint::new(srv.port, addresses) == *endpoint
        }
        _ => false,
    }
}
