//! The zone's last changes, for incremental transfers (RFC 1995), within bounds.

use std::collections::VecDeque;

use hickory_proto::rr::Record;

use super::{config::Limits, records::encode};

/// What one update changed, without the SOA records of before and after.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diff {
    /// The serial before.
    pub from: u32,
    /// The serial after.
    pub to: u32,
    /// The records that are no more.
    pub removed: Vec<Record>,
    /// The records that are new.
    pub added: Vec<Record>,
}

impl Diff {
    pub(super) fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// The bytes of its records, uncompressed.
    pub fn size(&self) -> usize {
        let records = self.removed.iter().chain(&self.added);
        records.filter_map(encode).map(|bytes| bytes.len()).sum()
    }
}

/// Changes that follow on each other, the newest last.
#[derive(Debug, Default)]
pub(super) struct Ring {
    diffs: VecDeque<(Diff, usize)>,
    bytes: usize,
}

impl Ring {
    pub(super) fn push(&mut self, diff: Diff, limits: &Limits) {
        if self.diffs.back().is_some_and(|(last, _)| last.to != diff.from) {
            self.clear();
        }
        let size = diff.size();
        self.bytes += size;
        self.diffs.push_back((diff, size));
        while self.diffs.len() > limits.diffs || self.bytes > limits.diff_bytes {
            let Some((_, size)) = self.diffs.pop_front() else { break };
            self.bytes -= size;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Diff> {
        self.diffs.iter().map(|(diff, _)| diff)
    }

    /// The changes from a serial on, where they reach back that far.
    pub(super) fn since(&self, serial: u32) -> Option<impl Iterator<Item = &Diff>> {
        let start = self.diffs.iter().position(|(diff, _)| diff.from == serial)?;
        Some(self.diffs.range(start..).map(|(diff, _)| diff))
    }
}
