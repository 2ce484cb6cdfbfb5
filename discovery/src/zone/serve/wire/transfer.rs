//! Transfers to who asks: AXFR (RFC 5936) in many messages, IXFR (RFC 1995).
//!
//! What goes to one goes to all that ask the same: after a change a thousand nodes want the
//! same difference. So the messages are made once for a serial, without number and
//! signature, and each transfer puts its own on them.

use std::{sync::Arc, time::Duration};

use hickory_proto::{
    op::Query,
    rr::{Name, RData, Record, RecordType},
    serialize::binary::{BinEncodable, BinEncoder},
};

use super::{request::Asked, responder::unix_time};
use crate::zone::{
    message::UDP_PAYLOAD,
    serve::{Diff, ZoneStore},
    tsig::Signer,
};

/// Past this a message is full: names are compressed to what stands in its first 16 KiB
/// (RFC 1035 §4.1.4).
const FULL: usize = 14 << 10;

/// A response with authority (RFC 5936 §2.2.1).
const FLAGS: [u8; 2] = [0x84, 0x00];

/// How many different transfers of one serial are kept.
const KEPT: usize = 16;

/// The messages of a transfer, the first to be sent first.
type Messages = Arc<[Vec<u8>]>;

/// What one kind of request gets.
#[derive(Debug)]
struct Made {
    /// The serial that was asked with, if it was an IXFR.
    since: Option<u32>,
    messages: Messages,
    /// Whether it is the whole zone.
    whole: bool,
}

/// The transfers of the current serial.
#[derive(Debug, Default)]
pub(super) struct Transfers {
    serial: u32,
    made: Vec<Made>,
}

/// A transfer on its way to one client.
pub struct Transfer {
    messages: Messages,
    next: usize,
    id: u16,
    edns: bool,
    signer: Option<Signer>,
    whole: bool,
    wait: Duration,
}

impl Transfer {
    /// The next message, where there is one more; `now` is for its signature.
    pub fn next_message(&mut self, now: std::time::SystemTime) -> Option<Vec<u8>> {
        let mut wire = self.messages.get(self.next)?.clone();
        wire[..2].copy_from_slice(&self.id.to_be_bytes());
        if self.edns && self.next == 0 {
            append_edns(&mut wire);
        }
        if let Some(signer) = &mut self.signer {
            signer.sign(&mut wire, unix_time(now));
        }
        self.next += 1;
        Some(wire)
    }

    /// Whether it is the whole zone.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// How long it is to be held back: who has had many already waits.
    pub fn wait(&self) -> Duration {
        self.wait
    }
}

impl Transfers {
    /// The transfer that answers a request: what has changed since a serial where it is
    /// known and shorter, else the whole zone.
    pub(super) fn answer(
        &mut self,
        store: &ZoneStore,
        asked: Asked,
        since: Option<u32>,
    ) -> Transfer {
        if self.serial != store.serial() {
            self.serial = store.serial();
            self.made.clear();
        }
        // A whole zone may also answer an IXFR, and then bears that question.
        let kind = if since.is_some() { RecordType::IXFR } else { RecordType::AXFR };
        let at = match self.made.iter().position(|made| made.since == since) {
            Some(at) => at,
            None => {
                if self.made.len() == KEPT {
                    self.made.remove(0);
                }
                let changes = since.and_then(|since| changes(store, since));
                let whole = changes.is_none();
                self.made.push(Made { since, messages: messages(store, kind, changes), whole });
                self.made.len() - 1
            }
        };
        let Made { messages, whole, .. } = &self.made[at];
        Transfer {
            messages: Arc::clone(messages),
            next: 0,
            id: asked.message.metadata.id,
            edns: asked.edns().is_some(),
            signer: asked.signer,
            whole: *whole,
            wait: Duration::ZERO,
        }
    }
}

impl Transfer {
    pub(super) fn set_wait(&mut self, wait: Duration) {
        self.wait = wait;
    }
}

/// The changes since a serial, where they help more than the whole zone.
fn changes(store: &ZoneStore, since: u32) -> Option<Vec<&Diff>> {
    // Newer than ours: the SOA alone tells that, too (RFC 1995 §2).
    if store.serial().wrapping_sub(since) > 1 << 31 {
        return Some(Vec::new());
    }
    let changes = store.changes_since(since)?;
    let size: usize = changes.iter().map(|diff| diff.size()).sum();
    (size <= store.size()).then_some(changes)
}

fn messages(store: &ZoneStore, kind: RecordType, changes: Option<Vec<&Diff>>) -> Messages {
    let soa = store.soa();
    let question = Query::query(soa.name.clone(), kind);
    match changes {
        None => {
            let records = [soa.clone()].into_iter().chain(store.records()).chain([soa]);
            pack(&question, records)
        }
        Some(changes) if changes.is_empty() => pack(&question, [soa].into_iter()),
        Some(changes) => {
            let steps = changes.into_iter().flat_map(|diff| {
                let (from, to) = (store.soa_at(diff.from), store.soa_at(diff.to));
                let removed = [from].into_iter().chain(diff.removed.iter().cloned());
                removed.chain([to]).chain(diff.added.iter().cloned())
            });
            let records = [soa.clone()].into_iter().chain(steps).chain([soa]);
            pack(&question, records)
        }
    }
}

/// Puts records into messages, with the question in the first (RFC 5936 §2.2.2).
fn pack(question: &Query, records: impl Iterator<Item = Record>) -> Messages {
    let mut records = records.peekable();
    let mut messages = Vec::new();
    while records.peek().is_some() {
        let mut wire = Vec::with_capacity(FULL + 2048);
        let mut encoder = BinEncoder::new(&mut wire);
        let first = messages.is_empty();
        let mut header = [0; 12];
        header[2..4].copy_from_slice(&FLAGS);
        header[5] = u8::from(first);
        // What a store holds can be written: it was read from as many bytes.
        let mut written = encoder.emit_vec(&header).is_ok();
        if first {
            written &= question.emit(&mut encoder).is_ok();
        }
        let mut count = 0u16;
        while written
            && encoder.len() < FULL
            && let Some(record) = records.next()
        {
            written = record.emit(&mut encoder).is_ok();
            count += 1;
        }
        wire[6..8].copy_from_slice(&count.to_be_bytes());
        messages.push(wire);
    }
    messages.into()
}

/// Puts an OPT record without options behind a message (RFC 6891 §6.1.2).
fn append_edns(wire: &mut Vec<u8>) {
    const TYPE_OPT: u16 = 41;
    wire.push(0);
    wire.extend(TYPE_OPT.to_be_bytes());
    wire.extend(UDP_PAYLOAD.to_be_bytes());
    wire.extend([0; 6]);
    let additionals = u16::from_be_bytes([wire[10], wire[11]]) + 1;
    wire[10..12].copy_from_slice(&additionals.to_be_bytes());
}

/// The serial that an IXFR tells, in the SOA of its authority section (RFC 1995 §3).
pub(super) fn ixfr_serial(zone: &Name, asked: &Asked) -> Option<u32> {
    asked.message.authorities.iter().find_map(|record| match &record.data {
        RData::SOA(soa) if record.name == *zone => Some(soa.serial),
        _ => None,
    })
}
