//! The server's side: checks a request's signature, and signs the answer, in one message or
//! many (RFC 8945 §5.2, §5.3).

use hickory_proto::rr::Name;

use super::{
    BADKEY, BADSIG, BADTIME, BADTRUNC, FUDGE, Hasher, TsigKey, append, signed_gap, take_in, timers,
    variables, wire_name,
};
use crate::zone::message::TsigRecord;

/// A MAC that was cut shorter than this is no MAC (RFC 8945 §5.2.2.1).
const MIN_MAC: usize = 10;

/// What the signature of a request says.
pub(in crate::zone) enum Signature {
    /// Nothing: there is none.
    None,
    /// That who knows the key has sent it. The answer is to be signed.
    Good(Signer),
    /// It does not count: the answer is NOTAUTH and nothing else, with this behind it.
    Bad(Signer),
    /// It is none (FORMERR).
    Malformed,
}

/// Checks a request as it arrived, with its TSIG record if it has one; `now` is seconds since
/// 1970.
pub(in crate::zone) fn check(
    wire: &[u8],
    tsig: Option<&TsigRecord>,
    key: impl FnOnce(&Name) -> Option<TsigKey>,
    now: u64,
) -> Signature {
    let Some(tsig) = tsig else { return Signature::None };
    let known = key(&tsig.name).filter(|key| key.algorithm.to_name() == tsig.algorithm);
    let Some(key) = known else { return Signature::Bad(Signer::unsigned(tsig, BADKEY)) };
    let mut hmac = key.hmac();
    take_in(&mut hmac, wire, tsig);
    hmac.update(&variables(tsig));
    let whole = hmac.len();
    if tsig.mac.len() > whole || tsig.mac.len() < MIN_MAC.max(whole / 2) {
        return Signature::Malformed;
    }
    if !hmac.begins_with(&tsig.mac) {
        return Signature::Bad(Signer::unsigned(tsig, BADSIG));
    }
    let mut signer = Signer::new(key, tsig);
    let gap = signed_gap(now, tsig.time).unsigned_abs();
    if tsig.mac.len() < whole {
        // Only whole MACs are taken here (RFC 8945 §5.2.4).
        signer.error = BADTRUNC;
    } else if gap > u64::from(tsig.fudge.min(FUDGE)) {
        // With the server's time, behind the client's own (RFC 8945 §5.2.3).
        signer.error = BADTIME;
        signer.other = now.to_be_bytes()[2..].to_vec();
        signer.time = Some(tsig.time);
    } else {
        return Signature::Good(signer);
    }
    Signature::Bad(signer)
}

/// Signs the messages of one answer, in their order.
pub(in crate::zone) struct Signer {
    name: Name,
    algorithm: Name,
    /// With a hash that has taken in the MAC before; `None` for errors that are told without a
    /// signature (RFC 8945 §5.3.2).
    key: Option<(TsigKey, Hasher)>,
    first: bool,
    pub(super) error: u16,
    other: Vec<u8>,
    time: Option<u64>,
}

impl Signer {
    fn new(key: TsigKey, request: &TsigRecord) -> Self {
        let hmac = key.after(&request.mac);
        Self { key: Some((key, hmac)), ..Self::unsigned(request, 0) }
    }

    fn unsigned(request: &TsigRecord, error: u16) -> Self {
        Self {
            name: request.name.clone(),
            algorithm: request.algorithm.clone(),
            key: None,
            first: true,
            error,
            other: Vec::new(),
            time: None,
        }
    }

    /// The name of the key.
    pub(in crate::zone) fn key_name(&self) -> &Name {
        &self.name
    }

    /// How many bytes it puts behind each message.
    pub(in crate::zone) fn len(&self) -> usize {
        /// Type, class, TTL and length; then time, fudge, the MAC's length, the number, the
        /// error and the other data's length.
        const FIXED: usize = 10 + 16;
        let mac = self.key.as_ref().map_or(0, |(_, hmac)| hmac.len());
        let names = wire_name(&self.name).len() + wire_name(&self.algorithm).len();
        FIXED + names + mac + self.other.len()
    }

    /// Puts the signature behind the next message.
    pub(in crate::zone) fn sign(&mut self, wire: &mut Vec<u8>, now: u64) {
        let mut record = TsigRecord {
            start: wire.len(),
            name: self.name.clone(),
            algorithm: self.algorithm.clone(),
            time: self.time.unwrap_or(now),
            fudge: FUDGE,
            mac: Vec::new(),
            original_id: u16::from_be_bytes([wire[0], wire[1]]),
            error: self.error,
            other: self.other.clone(),
        };
        if let Some((key, hmac)) = &mut self.key {
            hmac.update(wire);
            hmac.update(&if self.first { variables(&record) } else { timers(&record) });
            let fresh = key.hmac();
            record.mac = std::mem::replace(hmac, fresh).finish();
            *hmac = key.after(&record.mac);
        }
        self.first = false;
        append(wire, &record);
    }
}
