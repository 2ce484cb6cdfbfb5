//! Updates (RFC 2136 §3): the form, the prerequisites, then what the writer may, then all
//! of it or nothing.

use std::{collections::HashSet, time::SystemTime};

use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{DNSClass, Name, RData, Record, RecordData, RecordType},
};

use super::{
    draft::Draft,
    names::canonical,
    policy::{Refusal, Writer},
    query::reply,
    records::{RrSet, canonical_record, encode, find},
    store::ZoneStore,
};

/// The most records that one update may have: a node's own are a dozen.
const MAX_UPDATES: usize = 64;

/// The longest that resolvers may keep what a writer gives a time to.
const MAX_TTL: u32 = 3600;

/// The answer to an update.
#[derive(Debug)]
pub struct UpdateReply {
    /// The response, without TSIG.
    pub message: Message,
    /// Why it was not done; also when the response's code tells little.
    pub error: Option<UpdateError>,
}

/// Why an update is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpdateError {
    /// Not an update in RFC 2136's form.
    #[error("not in the form of an update: {0}")]
    Form(&'static str),
    /// Not this zone.
    #[error("not the zone that is served here")]
    NotAuth,
    /// A name outside the zone.
    #[error("a name lies outside the zone")]
    NotZone,
    /// A prerequisite: a name that must be there is not (RFC 2136 §2.4.4).
    #[error("a prerequisite does not hold: the name is not in use")]
    NxDomain,
    /// A prerequisite: a name that must not be there is (RFC 2136 §2.4.5).
    #[error("a prerequisite does not hold: the name is in use")]
    YxDomain,
    /// A prerequisite: records that must be there are not (RFC 2136 §2.4.1, §2.4.2).
    #[error("a prerequisite does not hold: there are no such records")]
    NxRrset,
    /// A prerequisite: records that must not be there are (RFC 2136 §2.4.3).
    #[error("a prerequisite does not hold: there are such records")]
    YxRrset,
    /// The writer may not do this.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl UpdateError {
    /// The code that tells it.
    pub fn code(&self) -> ResponseCode {
        match self {
            Self::Form(_) => ResponseCode::FormErr,
            Self::NotAuth => ResponseCode::NotAuth,
            Self::NotZone => ResponseCode::NotZone,
            Self::NxDomain => ResponseCode::NXDomain,
            Self::YxDomain => ResponseCode::YXDomain,
            Self::NxRrset => ResponseCode::NXRRSet,
            Self::YxRrset => ResponseCode::YXRRSet,
            Self::Refused(_) => ResponseCode::Refused,
        }
    }
}

impl ZoneStore {
    /// Applies an update whole, or answers why not. A success counts only after the
    /// [commit](Self::commit), as the [module](super) says.
    pub fn handle_update(
        &mut self,
        request: &Message,
        writer: &Writer,
        now: SystemTime,
    ) -> UpdateReply {
        let error = self.update(request, writer, now).err();
        let code = error.as_ref().map_or(ResponseCode::NoError, UpdateError::code);
        UpdateReply { message: reply(request, code), error }
    }

    /// The answer to an update that could not be written down.
    pub fn failed(request: &Message) -> Message {
        reply(request, ResponseCode::ServFail)
    }

    fn update(
        &mut self,
        request: &Message,
        writer: &Writer,
        now: SystemTime,
    ) -> Result<(), UpdateError> {
        self.check_zone(request)?;
        let updates = request.authorities.as_slice();
        if updates.len() > MAX_UPDATES {
            return Err(Refusal::TooMany.into());
        }
        for record in updates {
            self.prescan(record)?;
        }
        self.check_prerequisites(&request.answers)?;
        let mut draft = Draft::new(&self.records);
        for record in updates {
            self.touch(&mut draft, record)?;
        }
        let facts = self.judge(&mut draft, writer, now)?;
        let (removed, added) = draft.difference();
        self.check_room(&removed, &added, &facts)?;
        self.apply(removed, added, &facts, now);
        Ok(())
    }

    /// RFC 2136 §3.1.
    fn check_zone(&self, request: &Message) -> Result<(), UpdateError> {
        if request.metadata.op_code != OpCode::Update {
            return Err(UpdateError::Form("another opcode"));
        }
        let [zone] = request.queries.as_slice() else {
            return Err(UpdateError::Form("not one zone"));
        };
        if zone.query_type() != RecordType::SOA {
            return Err(UpdateError::Form("the zone's type is not SOA"));
        }
        if zone.query_class() != DNSClass::IN || canonical(zone.name()) != *self.apex() {
            return Err(UpdateError::NotAuth);
        }
        Ok(())
    }

    /// RFC 2136 §3.4.1.
    fn prescan(&self, record: &Record) -> Result<(), UpdateError> {
        if !self.apex().zone_of(&record.name) {
            return Err(UpdateError::NotZone);
        }
        let kind = record.record_type();
        let empty = record.data.is_update();
        match record.dns_class {
            DNSClass::IN if is_meta(kind) || empty => {
                Err(UpdateError::Form("a record to add has no data"))
            }
            DNSClass::IN => Ok(()),
            DNSClass::ANY if record.ttl != 0 || !empty || is_meta(kind) && !kind.is_any() => {
                Err(UpdateError::Form("records to delete are named by name and type alone"))
            }
            DNSClass::NONE if record.ttl != 0 || is_meta(kind) => {
                Err(UpdateError::Form("a record to delete has a TTL or no type of data"))
            }
            DNSClass::ANY | DNSClass::NONE => Ok(()),
            _ => Err(UpdateError::Form("an unknown class")),
        }
    }

    /// RFC 2136 §3.2: all five kinds.
    fn check_prerequisites(&self, records: &[Record]) -> Result<(), UpdateError> {
        /// Each costs a look at the zone.
        const MAX_PREREQUISITES: usize = 64;
        if records.len() > MAX_PREREQUISITES {
            return Err(Refusal::TooMany.into());
        }
        // Sets that must be there with exactly these data.
        let mut exact: Vec<(Name, RecordType, HashSet<RData>)> = Vec::new();
        for record in records {
            if record.ttl != 0 {
                return Err(UpdateError::Form("a prerequisite has a TTL"));
            }
            if !self.apex().zone_of(&record.name) {
                return Err(UpdateError::NotZone);
            }
            let name = canonical(&record.name);
            let kind = record.record_type();
            let empty = record.data.is_update();
            if is_meta(kind) && !(kind.is_any() && record.dns_class != DNSClass::IN) {
                return Err(UpdateError::Form("a prerequisite of no type of data"));
            }
            let is_there = |sets: &[RrSet]| match kind {
                RecordType::ANY => !sets.is_empty(),
                kind => find(sets, kind).is_some(),
            };
            match record.dns_class {
                DNSClass::ANY | DNSClass::NONE if !empty => {
                    return Err(UpdateError::Form("a prerequisite that should have no data"));
                }
                DNSClass::ANY if !is_there(&self.sets_at(&name)) => {
                    return Err(if kind.is_any() {
                        UpdateError::NxDomain
                    } else {
                        UpdateError::NxRrset
                    });
                }
                DNSClass::NONE if is_there(&self.sets_at(&name)) => {
                    return Err(if kind.is_any() {
                        UpdateError::YxDomain
                    } else {
                        UpdateError::YxRrset
                    });
                }
                DNSClass::ANY | DNSClass::NONE => {}
                DNSClass::IN if empty => {
                    return Err(UpdateError::Form("a prerequisite without data"));
                }
                DNSClass::IN => {
                    let data = canonical_record(record).data;
                    match exact.iter_mut().find(|(n, k, _)| *n == name && *k == kind) {
                        Some((_, _, wanted)) => {
                            wanted.insert(data);
                        }
                        None => exact.push((name, kind, HashSet::from([data]))),
                    }
                }
                _ => return Err(UpdateError::Form("a prerequisite of an unknown class")),
            }
        }
        for (name, kind, wanted) in exact {
            let sets = self.sets_at(&name);
            let have: HashSet<RData> =
                find(&sets, kind).into_iter().flat_map(|set| set.data.iter().cloned()).collect();
            if have != wanted {
                return Err(UpdateError::NxRrset);
            }
        }
        Ok(())
    }

    /// One record of the update section (RFC 2136 §3.4.2).
    fn touch(&self, draft: &mut Draft<'_>, record: &Record) -> Result<(), UpdateError> {
        let class = record.dns_class;
        let mut record = canonical_record(record);
        record.dns_class = class;
        record.ttl = record.ttl.min(MAX_TTL);
        let kind = record.record_type();
        self.check_name(&record)?;
        match class {
            DNSClass::ANY if kind.is_any() => draft.remove_all(&record.name),
            DNSClass::ANY => draft.remove_set(&record.name, kind),
            DNSClass::NONE => draft.remove(&record.name, &record.data),
            _ => {
                if encode(&record).is_none() {
                    return Err(Refusal::TooMany.into());
                }
                draft.add(&record);
            }
        }
        Ok(())
    }
}

/// Types that no record has (RFC 6895 §3.1).
fn is_meta(kind: RecordType) -> bool {
    matches!(
        kind,
        RecordType::ANY
            | RecordType::AXFR
            | RecordType::IXFR
            | RecordType::OPT
            | RecordType::TSIG
            | RecordType::ZERO
            | RecordType::Unknown(128..=254)
    )
}
