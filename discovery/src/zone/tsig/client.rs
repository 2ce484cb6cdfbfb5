//! The client's side: signs a request, and verifies what comes back, from one answer to the
//! many messages of a transfer, each bound to the one before (RFC 8945 §5.3).

use hickory_proto::rr::Name;

use super::{
    BADKEY, BADSIG, BADTIME, FUDGE, Hasher, TsigKey, append, signed_gap, take_in, timers, variables,
};
use crate::zone::{error::TsigFault, message::TsigRecord};

/// How many messages in a row may be unsigned (RFC 8945 §5.3.1).
const MAX_UNSIGNED: u32 = 99;

impl TsigKey {
    /// Appends the signature to a request without one, and gives the chain that
    /// verifies the answers. `now` is seconds since 1970.
    pub(in crate::zone) fn sign(&self, request: &mut Vec<u8>, now: u64) -> Chain {
        let mut record = TsigRecord {
            start: request.len(),
            name: self.name.clone(),
            algorithm: self.algorithm.to_name(),
            time: now,
            fudge: FUDGE,
            mac: Vec::new(),
            original_id: u16::from_be_bytes([request[0], request[1]]),
            // Neither an error nor other data in a request (RFC 8945 §4.2).
            error: 0,
            other: Vec::new(),
        };
        let mut hmac = self.hmac();
        hmac.update(request);
        hmac.update(&variables(&record));
        record.mac = hmac.finish();
        append(request, &record);
        Chain { hmac: self.after(&record.mac), key: self.clone(), first: true, unsigned: 0 }
    }
}

/// Verifies the answers to one signed request, in their order.
pub(in crate::zone) struct Chain {
    key: TsigKey,
    hmac: Hasher,
    first: bool,
    unsigned: u32,
}

impl Chain {
    /// Takes in the next message as it arrived, with its TSIG record if it has one.
    pub(in crate::zone) fn verify(
        &mut self,
        wire: &[u8],
        tsig: Option<&TsigRecord>,
        now: u64,
    ) -> Result<(), TsigFault> {
        let Some(tsig) = tsig else {
            // Only the messages between the first and the last may be unsigned.
            self.unsigned += 1;
            if self.first || self.unsigned > MAX_UNSIGNED {
                return Err(TsigFault::Unsigned);
            }
            self.hmac.update(wire);
            return Ok(());
        };
        match tsig.error {
            // These two come without a signature (RFC 8945 §5.3.2).
            BADKEY => return Err(TsigFault::BadKey),
            BADSIG => return Err(TsigFault::BadSig),
            _ => {}
        }
        if tsig.name != self.key.name || tsig.algorithm != self.key.algorithm.to_name() {
            return Err(TsigFault::OtherKey);
        }
        take_in(&mut self.hmac, wire, tsig);
        self.hmac.update(&if self.first { variables(tsig) } else { timers(tsig) });
        let hmac = std::mem::replace(&mut self.hmac, self.key.after(&tsig.mac));
        if !hmac.matches(&tsig.mac) {
            return Err(TsigFault::Forged);
        }
        self.first = false;
        self.unsigned = 0;
        match tsig.error {
            0 => {}
            BADTIME => return Err(TsigFault::BadTime(signed_gap(tsig.time, server_time(tsig)))),
            other => return Err(TsigFault::Other(other)),
        }
        let gap = signed_gap(tsig.time, now);
        if gap.unsigned_abs() > u64::from(FUDGE) {
            return Err(TsigFault::Stale(gap));
        }
        Ok(())
    }

    pub(in crate::zone) fn key_name(&self) -> &Name {
        &self.key.name
    }

    /// Whether the last message that was taken in carried a signature, as the last
    /// of all must (RFC 8945 §5.3.1).
    pub(in crate::zone) fn ends_signed(&self) -> bool {
        !self.first && self.unsigned == 0
    }
}

/// The server's clock in a BADTIME answer (RFC 8945 §5.2.3).
fn server_time(tsig: &TsigRecord) -> u64 {
    match tsig.other[..] {
        [a, b, c, d, e, f] => u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
        _ => tsig.time,
    }
}
