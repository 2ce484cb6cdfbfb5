//! A request, from bytes: its TSIG checked and taken off, the rest read.

use std::time::SystemTime;

use hickory_proto::{
    op::{Edns, Message, ResponseCode},
    rr::Name,
};

use super::{encode::bare, responder::unix_time};
use crate::zone::{
    message::{find_tsig, without_tsig},
    tsig::{Signature, Signer, TsigKey, check},
};

/// A request that can be answered.
pub(super) struct Asked {
    pub(super) message: Message,
    /// Signs the answer, where the request was signed.
    pub(super) signer: Option<Signer>,
}

/// A request that gets no more than this answer.
pub(super) enum Unread {
    /// None at all.
    Silence,
    /// These bytes: it could not be read.
    Malformed(Vec<u8>),
    /// A code.
    Refused(Box<Asked>, ResponseCode),
}

impl Asked {
    /// Reads a request; `now` is seconds since 1970.
    pub(super) fn read(
        wire: &[u8],
        key: impl FnOnce(&Name) -> Option<TsigKey>,
        now: u64,
    ) -> Result<Self, Unread> {
        let malformed =
            || bare(wire, ResponseCode::FormErr).map_or(Unread::Silence, Unread::Malformed);
        // A response to a response would go on for ever.
        if wire.get(2).is_none_or(|flags| flags & 0x80 != 0) {
            return Err(Unread::Silence);
        }
        let tsig = find_tsig(wire).ok_or_else(malformed)?;
        let message = Message::from_vec(&without_tsig(wire, tsig.as_ref()));
        let message = message.map_err(|_| malformed())?;
        match check(wire, tsig.as_ref(), key, now) {
            Signature::None => Ok(Self { message, signer: None }),
            Signature::Good(signer) => Ok(Self { message, signer: Some(signer) }),
            Signature::Malformed => Err(malformed()),
            Signature::Bad(signer) => {
                let asked = Self { message, signer: Some(signer) };
                Err(Unread::Refused(Box::new(asked), ResponseCode::NotAuth))
            }
        }
    }

    pub(super) fn edns(&self) -> Option<&Edns> {
        self.message.edns.as_ref()
    }

    /// How many bytes the signature of the answer takes.
    pub(super) fn signature_len(&self) -> usize {
        self.signer.as_ref().map_or(0, Signer::len)
    }

    /// Signs the one message of the answer, where the request was signed.
    pub(super) fn sign(self, mut wire: Vec<u8>, now: SystemTime) -> Vec<u8> {
        if let Some(mut signer) = self.signer {
            signer.sign(&mut wire, unix_time(now));
        }
        wire
    }

    /// The name of the key that it is signed with.
    pub(super) fn key_name(&self) -> Option<&Name> {
        self.signer.as_ref().map(Signer::key_name)
    }
}
