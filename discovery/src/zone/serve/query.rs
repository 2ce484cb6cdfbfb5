//! Answers to queries (RFC 1034 §4.3.2, RFC 2308), from one zone and with authority: no
//! recursion, no referrals, no aliases, no wildcards.

use std::collections::BTreeSet;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        DNSClass, Name, RData, Record, RecordType,
        rdata::{NS, PTR},
    },
};

use super::{
    names::canonical,
    records::{RrSet, records_of},
    store::{NEGATIVE_TTL, ZoneStore},
};

/// For how many instances of a list their SRV, TXT and addresses come along (RFC 6763
/// §12.1): a browser of a small mesh needs no more questions, and a list stays a list.
const INSTANCES_ALONG: usize = 4;

impl ZoneStore {
    /// Answers a query. The response has no EDNS, no TSIG and any size: where it does not
    /// fit, records of the additional section go first, without a sign (RFC 2181 §9).
    /// Transfers are refused here; an IXFR gets the SOA, which makes who asked by UDP ask
    /// by TCP (RFC 1995 §2).
    pub fn handle_query(&self, request: &Message) -> Message {
        let mut response = reply(request, ResponseCode::NoError);
        if request.metadata.op_code != OpCode::Query {
            response.metadata.response_code = ResponseCode::NotImp;
            return response;
        }
        let [question] = request.queries.as_slice() else {
            response.metadata.response_code = ResponseCode::FormErr;
            return response;
        };
        match self.answer(question, &mut response) {
            Ok(()) => response.metadata.authoritative = true,
            Err(code) => response.metadata.response_code = code,
        }
        response
    }

    fn answer(&self, question: &Query, response: &mut Message) -> Result<(), ResponseCode> {
        // As it was asked: the answer's names then fit the question's and are compressed.
        let asked = question.name();
        let name = canonical(asked);
        let kind = question.query_type();
        if question.query_class() != DNSClass::IN || !self.apex().zone_of(&name) {
            return Err(ResponseCode::Refused);
        }
        let kind = match kind {
            RecordType::IXFR if name == *self.apex() => RecordType::SOA,
            RecordType::AXFR | RecordType::IXFR => return Err(ResponseCode::Refused),
            RecordType::OPT | RecordType::TSIG => return Err(ResponseCode::FormErr),
            // MAILB, MAILA, TKEY and what else is no type of data (RFC 6895 §3.1).
            RecordType::Unknown(128..=254) => return Err(ResponseCode::NotImp),
            kind => kind,
        };
        let sets = self.sets_at(&name);
        let found: Vec<&RrSet> = match kind {
            // One set is answer enough (RFC 8482 §4.1).
            RecordType::ANY => sets.iter().take(1).collect(),
            kind => sets.iter().filter(|set| set.kind == kind).collect(),
        };
        for set in &found {
            response.add_answers(records_of(asked, std::slice::from_ref(set)));
        }
        if found.is_empty() {
            if sets.is_empty() && !self.records.has_below(&name) {
                response.metadata.response_code = ResponseCode::NXDomain;
            }
            let mut soa = self.soa();
            soa.ttl = soa.ttl.min(NEGATIVE_TTL);
            response.add_authority(soa);
        }
        let additionals = self.along(&name, &found);
        response.add_additionals(additionals);
        Ok(())
    }

    /// What a name has, the SOA included; that comes first.
    pub(super) fn sets_at(&self, name: &Name) -> Vec<RrSet> {
        let mut sets = self.records.at(name).to_vec();
        if name == self.apex() {
            let soa = self.soa();
            let set = RrSet { kind: RecordType::SOA, ttl: soa.ttl, data: vec![soa.data] };
            sets.insert(0, set);
        }
        sets
    }

    /// The records that who asked would ask for next: the addresses of targets (RFC 1035
    /// §3.3.11, RFC 2782), and of few instances everything (RFC 6763 §12).
    fn along(&self, asked: &Name, found: &[&RrSet]) -> Vec<Record> {
        let mut along = Vec::new();
        let mut targets: BTreeSet<&Name> = BTreeSet::new();
        for set in found {
            let instances = set.data.len() <= INSTANCES_ALONG;
            for data in &set.data {
                match data {
                    RData::NS(NS(target)) => {
                        targets.insert(target);
                    }
                    RData::SRV(srv) => {
                        targets.insert(&srv.target);
                    }
                    RData::PTR(PTR(instance)) if instances => {
                        let sets = self.records.at(instance);
                        along.extend(records_of(instance, sets));
                        targets.extend(sets.iter().flat_map(|set| &set.data).filter_map(|data| {
                            match data {
                                RData::SRV(srv) => Some(&srv.target),
                                _ => None,
                            }
                        }));
                    }
                    _ => {}
                }
            }
        }
        for target in targets.into_iter().filter(|target| *target != asked) {
            let is_address = |set: &&RrSet| matches!(set.kind, RecordType::A | RecordType::AAAA);
            for set in self.records.at(target).iter().filter(is_address) {
                along.extend(records_of(target, std::slice::from_ref(set)));
            }
        }
        along
    }
}

/// A response to a request, with its question.
pub(super) fn reply(request: &Message, code: ResponseCode) -> Message {
    let mut message =
        Message::new(request.metadata.id, MessageType::Response, request.metadata.op_code);
    message.metadata.recursion_desired = request.metadata.recursion_desired;
    message.metadata.response_code = code;
    message.add_queries(request.queries.iter().cloned());
    message
}
