//! The journal's bytes: every change that was acknowledged, in order, so that a zone that
//! was killed at any moment is there again as it was.
//!
//! A head, then entries, each with its length and a CRC of what follows. What an entry
//! tells is the outcome of an update and not the update: nothing has to be verified, and
//! no clock asked, to play it again. Reading ends at the first entry that is not whole.
//! `docs/protocol.md` tells the form byte for byte.

use std::net::{IpAddr, Ipv6Addr};

use crc::{CRC_32_ISCSI, Crc};
use hickory_proto::{
    rr::Record,
    serialize::binary::{BinDecodable, BinDecoder},
};
use ipnet::IpNet;

use super::{
    lease::{Claim, Fact, Lease, Node},
    records::encode,
    ring::Diff,
};
use crate::{advert::Zone, identity::PublicKey, membership::InviteId};

/// What a journal begins with; the zone's name follows, and the end of the line.
const MAGIC: &str = "zonemesh zone journal 1 ";

const CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

/// Why bytes are no journal of this zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JournalError {
    /// Not a journal at all, or of a later version.
    #[error("not a zone's journal of version 1; move it away to begin with an empty zone")]
    Foreign,
    /// The journal of another zone.
    #[error("the journal of the zone {0}; move it away to begin with an empty zone")]
    OtherZone(String),
}

/// How far a journal was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// The entries that count.
    pub entries: usize,
    /// The bytes that count: what is appended goes behind them.
    pub used: usize,
    /// The bytes behind them, which are not whole: what was being written at a crash, and
    /// had not been acknowledged.
    pub cut: usize,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A change.
    Change,
    /// The whole zone.
    Snapshot,
    /// A change that a snapshot already has in it: for IXFR.
    History,
}

impl Kind {
    const ALL: [(Self, u8); 3] = [(Self::Change, 1), (Self::Snapshot, 2), (Self::History, 3)];
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) diff: Diff,
    pub(super) facts: Vec<Fact>,
}

/// The first bytes of a zone's journal.
pub(super) fn head(zone: &Zone) -> Vec<u8> {
    format!("{MAGIC}{zone}\n").into_bytes()
}

/// Appends an entry.
pub(super) fn push(out: &mut Vec<u8>, kind: Kind, diff: &Diff, facts: &[Fact]) {
    let start = out.len();
    out.extend([0; 8]);
    let number = Kind::ALL.iter().find(|(known, _)| *known == kind).map_or(0, |(_, n)| *n);
    out.push(number);
    out.extend(diff.from.to_be_bytes());
    out.extend(diff.to.to_be_bytes());
    for records in [&diff.removed, &diff.added] {
        // No zone has 2^32 records.
        out.extend((records.len() as u32).to_be_bytes());
        for record in records {
            let bytes = encode(record).unwrap_or_default();
            out.extend((bytes.len() as u16).to_be_bytes());
            out.extend(bytes);
        }
    }
    out.extend((facts.len() as u32).to_be_bytes());
    for fact in facts {
        push_fact(out, fact);
    }
    let body = &out[start + 8..];
    let (len, crc) = (body.len() as u32, CRC.checksum(body));
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_be_bytes());
}

fn push_fact(out: &mut Vec<u8>, fact: &Fact) {
    match fact {
        Fact::Node(key, node) => {
            out.push(1);
            out.extend(key.as_bytes());
            let Some(node) = node else {
                out.push(0);
                return;
            };
            let (lease, end) = match node.lease {
                Lease::Until(end) => (1, end),
                Lease::Open => (2, 0),
                Lease::Gone(end) => (3, end),
            };
            out.push(lease);
            out.extend(end.to_be_bytes());
            out.extend(node.sequence.to_be_bytes());
            push_invite(out, node.invite.as_ref());
        }
        Fact::Claim(slice, claim) => {
            out.push(2);
            let (family, address) = match slice.network() {
                IpAddr::V4(v4) => (4, v4.to_ipv6_mapped()),
                IpAddr::V6(v6) => (6, v6),
            };
            out.extend([family, slice.prefix_len()]);
            out.extend(address.octets());
            let Some(claim) = claim else {
                out.push(0);
                return;
            };
            out.push(1);
            out.extend(claim.node.as_bytes());
            out.extend(claim.end.to_be_bytes());
            out.extend(claim.sequence.to_be_bytes());
            push_invite(out, claim.invite.as_ref());
        }
    }
}

fn push_invite(out: &mut Vec<u8>, invite: Option<&InviteId>) {
    out.push(u8::from(invite.is_some()));
    if let Some(invite) = invite {
        out.extend(invite.as_bytes());
    }
}

/// Reads the entries of a journal, one after the other.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    replayed: Replayed,
}

impl<'a> Reader<'a> {
    pub(super) fn new(zone: &Zone, bytes: &'a [u8]) -> Result<Self, JournalError> {
        let head = head(zone);
        let len = bytes.len();
        let replayed = |used| Replayed { entries: 0, used, cut: len - used };
        if let Some(rest) = bytes.strip_prefix(head.as_slice()) {
            return Ok(Self { bytes: rest, replayed: replayed(head.len()) });
        }
        if head.starts_with(bytes) {
            return Ok(Self { bytes: &[], replayed: replayed(0) });
        }
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let other = line.strip_prefix(MAGIC.as_bytes());
        Err(match other.and_then(|name| std::str::from_utf8(name).ok()) {
            Some(name) => JournalError::OtherZone(name.chars().take(255).collect()),
            None => JournalError::Foreign,
        })
    }

    pub(super) fn next(&mut self) -> Option<Entry> {
        let mut input = Input(self.bytes);
        let len = input.u32()?;
        let crc = input.u32()?;
        let body = input.take(usize::try_from(len).ok()?)?;
        if CRC.checksum(body) != crc {
            return None;
        }
        let entry = Input(body).entry()?;
        // A journal begins with the zone as it was, or there is nothing to change.
        if self.replayed.entries == 0 && entry.kind != Kind::Snapshot {
            return None;
        }
        let used = self.bytes.len() - input.0.len();
        self.bytes = input.0;
        self.replayed.entries += 1;
        self.replayed.used += used;
        self.replayed.cut -= used;
        Some(entry)
    }

    /// How far it was read. One without an entry counts for nothing.
    pub(super) fn finish(self) -> Replayed {
        let Replayed { entries, used, cut } = self.replayed;
        if entries == 0 { Replayed { entries, used: 0, cut: used + cut } } else { self.replayed }
    }
}

/// What is still to be read.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn entry(mut self) -> Option<Entry> {
        let number = self.u8()?;
        let (kind, _) = Kind::ALL.into_iter().find(|(_, known)| *known == number)?;
        let (from, to) = (self.u32()?, self.u32()?);
        let (removed, added) = (self.records()?, self.records()?);
        let mut facts = Vec::new();
        for _ in 0..self.u32()? {
            facts.push(self.fact()?);
        }
        let entry = Entry { kind, diff: Diff { from, to, removed, added }, facts };
        self.0.is_empty().then_some(entry)
    }

    fn records(&mut self) -> Option<Vec<Record>> {
        let mut records = Vec::new();
        for _ in 0..self.u32()? {
            let len = u16::from_be_bytes(self.array()?);
            let mut decoder = BinDecoder::new(self.take(usize::from(len))?);
            records.push(Record::read(&mut decoder).ok()?);
        }
        Some(records)
    }

    fn fact(&mut self) -> Option<Fact> {
        match self.u8()? {
            1 => self.node(),
            2 => self.claim(),
            _ => None,
        }
    }

    fn node(&mut self) -> Option<Fact> {
        let key = PublicKey::from_bytes(self.array()?);
        let lease = self.u8()?;
        if lease == 0 {
            return Some(Fact::Node(key, None));
        }
        let end = u64::from_be_bytes(self.array()?);
        let lease = match lease {
            1 => Lease::Until(end),
            2 => Lease::Open,
            3 => Lease::Gone(end),
            _ => return None,
        };
        let sequence = u64::from_be_bytes(self.array()?);
        let invite = self.invite()?;
        Some(Fact::Node(key, Some(Node { invite, sequence, lease })))
    }

    fn claim(&mut self) -> Option<Fact> {
        let (family, len) = (self.u8()?, self.u8()?);
        let address = Ipv6Addr::from(self.array::<16>()?);
        let address = match family {
            4 => IpAddr::V4(address.to_ipv4_mapped()?),
            6 => IpAddr::V6(address),
            _ => return None,
        };
        let slice = IpNet::new(address, len).ok()?;
        let claim = match self.u8()? {
            0 => None,
            1 => Some(Claim {
                node: PublicKey::from_bytes(self.array()?),
                end: u64::from_be_bytes(self.array()?),
                sequence: u64::from_be_bytes(self.array()?),
                invite: self.invite()?,
            }),
            _ => return None,
        };
        Some(Fact::Claim(slice, claim))
    }

    /// `None` where it cannot be read.
    fn invite(&mut self) -> Option<Option<InviteId>> {
        match self.u8()? {
            0 => Some(None),
            1 => Some(Some(InviteId::from_bytes(self.array()?))),
            _ => None,
        }
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }
}
