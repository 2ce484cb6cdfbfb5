//! Claims into the zone and out of it again.

use std::time::{Instant, SystemTime};

use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, rdata::TXT};
use ipnet::IpNet;

use super::{Ask, Claimed, IsMember, SignedClaim, SliceKeeper, TxtSet};
use crate::zone::{
    Rcode, Task, ZoneClient, ZoneError,
    message::{self, Data, query},
    publish::TTL,
};

impl ZoneClient {
    /// What stands at the name of a slice now.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or its answer cannot be used.
    pub async fn look_at_slice(&self, slice: &IpNet) -> Result<TxtSet, ZoneError> {
        let owner = self.slice_name(slice);
        let records = self.stands_at(&owner).await?.into_iter();
        Ok(records.map(|strings| self.open_txt(&owner, strings)).collect())
    }

    /// The TXT records of a name as they stand.
    async fn stands_at(&self, owner: &Name) -> Result<TxtSet, ZoneError> {
        let reply = self.ask(Task::Query, &query(owner, RecordType::TXT)).await?;
        let records = reply.answers.into_iter().filter(|record| record.owner == *owner);
        let records = records.filter_map(|record| match record.data {
            Data::Txt(strings) => Some(strings),
            _ => None,
        });
        Ok(records.collect())
    }

    /// Puts a claim in the place of exactly what was seen there; where nothing was, of
    /// nothing. An error does not say that it was not done: the answer may have got lost.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or does not take it.
    pub async fn claim_slice(
        &self,
        claim: &SignedClaim,
        replaces: &TxtSet,
    ) -> Result<Claimed, ZoneError> {
        let owner = self.slice_name(&claim.claim().slice);
        let sealed;
        let mut stands = replaces;
        if self.seal.is_some() && !replaces.is_empty() {
            // The prerequisite is about what stands there, which nobody can seal again.
            sealed = self.stands_at(&owner).await?;
            let opened = sealed.iter().map(|strings| self.open_txt(&owner, strings.clone()));
            // Servers give the records of a name in any order.
            let (mut opened, mut seen): (TxtSet, TxtSet) = (opened.collect(), replaces.clone());
            opened.sort_unstable();
            seen.sort_unstable();
            if opened != seen {
                return Ok(Claimed::Raced);
            }
            stands = &sealed;
        }
        let mut message = message::update(self.zone());
        message.add_answers(prerequisites(&owner, stands));
        if !replaces.is_empty() {
            message.add_authority(of_set(&owner, DNSClass::ANY));
        }
        let new = RData::TXT(self.txt_data(&owner, claim.txt()));
        message.add_authority(Record::from_rdata(owner, TTL, new));
        match self.ask(Task::Update, &message).await {
            Ok(_) => Ok(Claimed::Done),
            Err(ZoneError::Refused { rcode: Rcode::YXRRSET | Rcode::NXRRSET, .. }) => {
                Ok(Claimed::Raced)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks what a keeper wants to know, and hands it the answer.
    ///
    /// # Errors
    /// What the keeper has to make do with, to be told.
    pub async fn ask_for_slice(
        &self,
        keeper: &mut SliceKeeper,
        ask: Ask,
        is_member: IsMember<'_>,
    ) -> Result<(), ZoneError> {
        let error = match ask {
            Ask::Look(slice) => match self.look_at_slice(&slice).await {
                Ok(seen) => {
                    let (now, wall) = (Instant::now(), SystemTime::now());
                    keeper.handle_look(slice, seen, is_member, now, wall);
                    return Ok(());
                }
                Err(error) => error,
            },
            Ask::Claim { claim, replaces } => match self.claim_slice(&claim, &replaces).await {
                Ok(outcome) => {
                    keeper.handle_claimed(outcome, Instant::now(), SystemTime::now());
                    return Ok(());
                }
                Err(error) => error,
            },
        };
        keeper.handle_failed(matches!(error, ZoneError::Refused { .. }), Instant::now());
        Err(error)
    }
}

/// "RRset does not exist" (RFC 2136 §2.4.3), or "RRset exists" with these values and no
/// others (§2.4.2).
fn prerequisites(owner: &Name, seen: &TxtSet) -> Vec<Record> {
    if seen.is_empty() {
        return vec![of_set(owner, DNSClass::NONE)];
    }
    seen.iter().map(|strings| txt(owner, 0, strings)).collect()
}

/// The TXT records of a name as a whole, without a value.
fn of_set(owner: &Name, class: DNSClass) -> Record {
    let mut record = Record::update0(owner.clone(), 0, RecordType::TXT);
    record.dns_class = class;
    record
}

fn txt(owner: &Name, ttl: u32, strings: &[Vec<u8>]) -> Record {
    let txt = TXT::from_bytes(strings.iter().map(Vec::as_slice).collect());
    Record::from_rdata(owner.clone(), ttl, RData::TXT(txt))
}
