//! DNS messages: requests are made with hickory; replies are read record by record.
//!
//! A reply is read here and not by hickory's `Message`, for two reasons. TSIG needs
//! to know at which byte its record starts. And one record that hickory cannot read,
//! in a zone that also holds other things, must not hide all others: what is not
//! one of ours counts as [`Data::Other`].

use std::{borrow::Cow, net::IpAddr};

use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query},
    rr::{Name, RData, RecordType},
    serialize::binary::{BinDecodable, BinDecoder, DecodeError, Restrict},
};

use super::{error::Rcode, poll, reason};
use crate::advert::Zone;

/// What UDP may carry unfragmented (DNS Flag Day 2020).
pub(super) const UDP_PAYLOAD: u16 = 1232;

/// A query for one name, not asking for recursion.
pub(super) fn query(name: &Name, kind: RecordType) -> Message {
    request(OpCode::Query, name, kind)
}

/// An update of a zone (RFC 2136 §2.3), to be filled.
pub(super) fn update(zone: &Zone) -> Message {
    request(OpCode::Update, zone.name(), RecordType::SOA)
}

fn request(opcode: OpCode, name: &Name, kind: RecordType) -> Message {
    let mut message = Message::new(rand::random(), MessageType::Query, opcode);
    message.add_query(Query::query(name.clone(), kind));
    // With it a server may say in words why it does not do something.
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD);
    message.set_edns(edns);
    message
}

/// One reply, or one message of a transfer.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) id: u16,
    pub(super) is_response: bool,
    pub(super) is_truncated: bool,
    pub(super) rcode: Rcode,
    pub(super) question: Option<(Name, RecordType)>,
    pub(super) answers: Vec<Record>,
    pub(super) additionals: Vec<Record>,
    pub(super) tsig: Option<TsigRecord>,
    /// The serial in the long poll's option, where that is there.
    pub(super) polled: Option<u32>,
    /// Why it is none, in the server's words.
    pub(super) reason: Option<String>,
}

/// One record: owner in lower case, and what of its data matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) owner: Name,
    pub(super) data: Data,
}

/// The data of a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Data {
    Soa { serial: u32 },
    Ptr(Name),
    Srv { priority: u16, weight: u16, port: u16, target: Name },
    Txt(Vec<Vec<u8>>),
    Address(IpAddr),
    Other,
}

/// A TSIG record (RFC 8945 §4.2) and where in its message it starts.
#[derive(Debug, Clone)]
pub(super) struct TsigRecord {
    pub(super) start: usize,
    pub(super) name: Name,
    pub(super) algorithm: Name,
    pub(super) time: u64,
    pub(super) fudge: u16,
    pub(super) mac: Vec<u8>,
    pub(super) original_id: u16,
    pub(super) error: u16,
    pub(super) other: Vec<u8>,
}

impl Reply {
    /// Reads a message; `None` when it is not one.
    pub(super) fn read(wire: &[u8]) -> Option<Self> {
        Reader { decoder: BinDecoder::new(wire) }.reply().ok()
    }
}

/// Finds the TSIG record of a request; `None` when it is no message.
pub(super) fn find_tsig(wire: &[u8]) -> Option<Option<TsigRecord>> {
    Reader { decoder: BinDecoder::new(wire) }.tsig().ok()
}

/// A message as it was before the TSIG record was put behind it.
pub(super) fn without_tsig<'a>(wire: &'a [u8], tsig: Option<&TsigRecord>) -> Cow<'a, [u8]> {
    let Some(tsig) = tsig else { return Cow::Borrowed(wire) };
    let mut plain = wire[..tsig.start].to_vec();
    let additionals = u16::from_be_bytes([wire[10], wire[11]]).saturating_sub(1);
    plain[10..12].copy_from_slice(&additionals.to_be_bytes());
    Cow::Owned(plain)
}

const TYPE_OPT: u16 = 41;
const TYPE_TSIG: u16 = 250;
const CLASS_IN: u16 = 1;

struct Reader<'a> {
    decoder: BinDecoder<'a>,
}

impl Reader<'_> {
    fn reply(mut self) -> Result<Reply, DecodeError> {
        let id = self.u16()?;
        let flags = self.u16()?;
        let [questions, answers, authorities, additionals] =
            [self.u16()?, self.u16()?, self.u16()?, self.u16()?];
        let mut reply = Reply {
            id,
            is_response: flags & 0x8000 != 0,
            is_truncated: flags & 0x0200 != 0,
            rcode: Rcode(flags & 0x000f),
            question: None,
            answers: Vec::new(),
            additionals: Vec::new(),
            tsig: None,
            polled: None,
            reason: None,
        };
        for _ in 0..questions {
            let name = self.name()?;
            let kind = RecordType::from(self.u16()?);
            self.u16()?;
            reply.question = Some((name, kind));
        }
        for _ in 0..answers {
            let raw = self.raw()?;
            reply.answers.push(raw.record());
        }
        for _ in 0..authorities {
            self.raw()?;
        }
        for _ in 0..additionals {
            // A TSIG must be the last of all (RFC 8945 §5.1).
            if reply.tsig.is_some() {
                return Err(DecodeError::RecordAfterSig);
            }
            let start = self.decoder.index();
            let raw = self.raw()?;
            match raw.kind {
                TYPE_OPT => {
                    // The upper bits of an extended code (RFC 6891 §6.1.3).
                    reply.rcode.0 |= (raw.ttl >> 24 << 4) as u16;
                    raw.options(&mut reply);
                }
                TYPE_TSIG => reply.tsig = Some(raw.tsig(start)?),
                _ => reply.additionals.push(raw.record()),
            }
        }
        if self.decoder.is_empty() { Ok(reply) } else { Err(DecodeError::InsufficientBytes) }
    }

    fn tsig(mut self) -> Result<Option<TsigRecord>, DecodeError> {
        self.u16()?;
        self.u16()?;
        let [questions, answers, authorities, additionals] =
            [self.u16()?, self.u16()?, self.u16()?, self.u16()?];
        for _ in 0..questions {
            self.name()?;
            self.u16()?;
            self.u16()?;
        }
        let mut tsig = None;
        for number in 0..u32::from(answers) + u32::from(authorities) + u32::from(additionals) {
            let start = self.decoder.index();
            let raw = self.raw()?;
            if tsig.is_some() {
                return Err(DecodeError::RecordAfterSig);
            }
            if raw.kind == TYPE_TSIG {
                // It stands among the additional records (RFC 8945 §5.1).
                if number < u32::from(answers) + u32::from(authorities) {
                    return Err(DecodeError::RecordAfterSig);
                }
                tsig = Some(raw.tsig(start)?);
            }
        }
        if self.decoder.is_empty() { Ok(tsig) } else { Err(DecodeError::InsufficientBytes) }
    }

    fn raw(&mut self) -> Result<Raw<'_>, DecodeError> {
        let owner = self.name()?;
        let kind = self.u16()?;
        let class = self.u16()?;
        let ttl = self.decoder.read_u32()?.unverified(/* any is valid */);
        let len = self.u16()?;
        // A message has at most 65,535 bytes, so that the index fits.
        let data = self.decoder.clone(self.decoder.index() as u16);
        self.decoder.read_slice(usize::from(len))?;
        Ok(Raw { owner, kind, class, ttl, len, data })
    }

    fn name(&mut self) -> Result<Name, DecodeError> {
        read_name(&mut self.decoder)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        read_u16(&mut self.decoder)
    }
}

/// A record whose data has not been read yet.
struct Raw<'a> {
    owner: Name,
    kind: u16,
    class: u16,
    ttl: u32,
    len: u16,
    data: BinDecoder<'a>,
}

impl Raw<'_> {
    fn record(mut self) -> Record {
        let kind = RecordType::from(self.kind);
        let ours = matches!(
            kind,
            RecordType::SOA
                | RecordType::PTR
                | RecordType::SRV
                | RecordType::TXT
                | RecordType::A
                | RecordType::AAAA
        );
        let read = (ours && self.class == CLASS_IN)
            .then(|| RData::read(&mut self.data, kind, Restrict::new(self.len)).ok())
            .flatten();
        let data = match read {
            Some(RData::SOA(soa)) => Data::Soa { serial: soa.serial },
            Some(RData::PTR(ptr)) => Data::Ptr(canonical(&ptr.0)),
            Some(RData::SRV(srv)) => Data::Srv {
                priority: srv.priority,
                weight: srv.weight,
                port: srv.port,
                target: canonical(&srv.target),
            },
            Some(RData::TXT(txt)) => {
                Data::Txt(txt.txt_data.iter().map(|string| string.to_vec()).collect())
            }
            Some(rdata) => rdata.ip_addr().map_or(Data::Other, Data::Address),
            None => Data::Other,
        };
        Record { owner: self.owner, data }
    }

    /// What the options of an OPT record tell, as far as they can be read.
    fn options(mut self, reply: &mut Reply) {
        let end = self.data.index() + usize::from(self.len);
        while self.data.index() < end {
            let Ok(code) = read_u16(&mut self.data) else { return };
            let Ok(option) = read_bytes(&mut self.data) else { return };
            match code {
                poll::OPTION => reply.polled = option.try_into().ok().map(u32::from_be_bytes),
                reason::OPTION => reply.reason = reason::read_reason(&option),
                _ => {}
            }
        }
    }

    fn tsig(mut self, start: usize) -> Result<TsigRecord, DecodeError> {
        let decoder = &mut self.data;
        let end = decoder.index() + usize::from(self.len);
        let algorithm = read_name(decoder)?;
        let high = u64::from(read_u16(decoder)?);
        let low = u64::from(decoder.read_u32()?.unverified(/* any is valid */));
        let fudge = read_u16(decoder)?;
        let mac = read_bytes(decoder)?;
        let original_id = read_u16(decoder)?;
        let error = read_u16(decoder)?;
        let other = read_bytes(decoder)?;
        if decoder.index() != end {
            return Err(DecodeError::InsufficientBytes);
        }
        let time = high << 32 | low;
        let name = self.owner;
        Ok(TsigRecord { start, name, algorithm, time, fudge, mac, original_id, error, other })
    }
}

fn read_name(decoder: &mut BinDecoder<'_>) -> Result<Name, DecodeError> {
    Ok(canonical(&Name::read(decoder)?))
}

fn read_u16(decoder: &mut BinDecoder<'_>) -> Result<u16, DecodeError> {
    Ok(decoder.read_u16()?.unverified(/* any is valid */))
}

/// Bytes behind their length in 16 bits.
fn read_bytes(decoder: &mut BinDecoder<'_>) -> Result<Vec<u8>, DecodeError> {
    let len = read_u16(decoder)?;
    Ok(decoder.read_slice(usize::from(len))?.unverified(/* any is valid */).to_vec())
}

/// Names are compared, ordered and kept in lower case.
fn canonical(name: &Name) -> Name {
    let mut name = name.to_lowercase();
    name.set_fqdn(true);
    name
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_that_cannot_be_read_hides_no_other() {
        let mut wire = vec![0, 7, 0x84, 0, 0, 0, 0, 3, 0, 0, 0, 0];
        // An A record of three bytes, one of a type that nobody knows, a good one.
        wire.extend([1, b'X', 0, 0, 1, 0, 1, 0, 0, 0, 30, 0, 3, 192, 0, 2]);
        wire.extend([1, b'y', 0, 0xff, 0xee, 0, 1, 0, 0, 0, 30, 0, 1, 0]);
        wire.extend([1, b'Z', 0, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 192, 0, 2, 1]);
        let reply = Reply::read(&wire).expect("a message");
        assert_eq!(reply.id, 7);
        let address = Data::Address(IpAddr::from([192, 0, 2, 1]));
        let data: Vec<Data> = reply.answers.iter().map(|record| record.data.clone()).collect();
        assert_eq!(data, [Data::Other, Data::Other, address]);
        assert_eq!(reply.answers[2].owner.to_ascii(), "z.");
    }

    #[test]
    fn counts_that_promise_too_much_and_bytes_behind_the_end_are_refused() {
        let header = |answers| vec![0, 7, 0x84, 0, 0, 0, 0, answers, 0, 0, 0, 0];
        assert!(Reply::read(&header(0)).is_some());
        assert!(Reply::read(&header(1)).is_none());
        assert!(Reply::read(&[header(0), vec![0]].concat()).is_none());
        assert!(Reply::read(&header(0)[..11]).is_none());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            header in prop::collection::vec(any::<u8>(), 4),
            counts in prop::collection::vec(0u8..4, 4),
            body in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..4, Just(0xc0)], 0..300),
        ) {
            let mut wire = header;
            wire.extend(counts.into_iter().flat_map(|count| [0, count]));
            wire.extend(body);
            let _ = Reply::read(&wire);
        }
    }
}
