//! Who is a member no more: the numbered list that the network key signs.

use super::{
    bytes::Bytes,
    keys::{InviteId, NetworkId, NetworkKey, SIGNATURE_LEN},
};
use crate::identity::PublicKey;

/// The most entries of a list: it fits one DNS message with room to spare.
pub const MAX_REVOCATIONS: usize = 3072;

const CONTEXT: &[u8] = b"zonemesh revocations v1\0";

/// The form's version, its first byte.
const VERSION: u8 = 1;

const HEADER_LEN: usize = 1 + 8 + 2;

/// The most bytes of a list.
const MAX_LEN: usize = HEADER_LEN + MAX_REVOCATIONS * ENTRY_LEN + SIGNATURE_LEN;

/// Bytes of a key that stand for it: nobody finds a second key with the same ones.
const ENTRY_LEN: usize = 16;

/// One entry: the first 16 bytes of the key of a node or of an invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revoked([u8; ENTRY_LEN]);

impl Revoked {
    fn of(key: &[u8; 32]) -> Self {
        let mut prefix = [0; ENTRY_LEN];
        prefix.copy_from_slice(&key[..ENTRY_LEN]);
        Self(prefix)
    }
}

impl From<&PublicKey> for Revoked {
    fn from(node: &PublicKey) -> Self {
        Self::of(node.as_bytes())
    }
}

impl From<&InviteId> for Revoked {
    fn from(invite: &InviteId) -> Self {
        Self::of(invite.as_bytes())
    }
}

/// A network's list of revoked nodes and invites, verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    number: u64,
    /// In order, without duplicates.
    entries: Vec<Revoked>,
    bytes: Vec<u8>,
}

/// Why a list does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevocationError {
    /// Of a version that this program does not know.
    #[error("the list of revocations is of another version")]
    Version,
    /// Cut short, out of order, or with bytes behind its end.
    #[error("the list of revocations cannot be read")]
    Malformed,
    /// Not signed by the network's key.
    #[error("the list of revocations is of another network, or forged")]
    Network,
    /// More entries than there may be.
    #[error("a list of revocations has at most {MAX_REVOCATIONS} entries: make a new network key")]
    Full,
}

impl RevocationList {
    /// Signs a list.
    ///
    /// # Errors
    /// [`RevocationError::Full`] when there are too many entries.
    pub fn sign(
        key: &NetworkKey,
        number: u64,
        entries: impl IntoIterator<Item = Revoked>,
    ) -> Result<Self, RevocationError> {
        let mut entries: Vec<Revoked> = entries.into_iter().collect();
        entries.sort_unstable();
        entries.dedup();
        if entries.len() > MAX_REVOCATIONS {
            return Err(RevocationError::Full);
        }
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&(entries.len() as u16).to_be_bytes());
        entries.iter().for_each(|entry| bytes.extend_from_slice(&entry.0));
        let signature = key.sign(&message(&key.id(), &bytes));
        bytes.extend_from_slice(&signature);
        Ok(Self { number, entries, bytes })
    }

    /// Reads a list and verifies that the network's key has signed it.
    ///
    /// # Errors
    /// [`RevocationError`] when it is none, or another network's.
    pub fn read(bytes: &[u8], network: &NetworkId) -> Result<Self, RevocationError> {
        if bytes.len() > MAX_LEN {
            return Err(RevocationError::Full);
        }
        let mut rest = Bytes(bytes);
        if rest.u8().ok_or(RevocationError::Malformed)? != VERSION {
            return Err(RevocationError::Version);
        }
        let read = (|| {
            let (number, count) = (rest.u64()?, rest.u16()?);
            let entries = (0..count).map(|_| rest.array().map(Revoked));
            let entries = entries.collect::<Option<Vec<Revoked>>>()?;
            let signature = rest.take(SIGNATURE_LEN)?;
            // One list has one spelling.
            let is_ordered = entries.is_sorted_by(|a, b| a < b);
            (rest.0.is_empty() && is_ordered).then_some((number, entries, signature))
        })();
        let (number, entries, signature) = read.ok_or(RevocationError::Malformed)?;
        let body = &bytes[..bytes.len() - SIGNATURE_LEN];
        if !network.verifies(&message(network, body), signature) {
            return Err(RevocationError::Network);
        }
        Ok(Self { number, entries, bytes: bytes.to_vec() })
    }

    /// Reads a list from the strings of one TXT record.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn from_txt(txt: &[Vec<u8>], network: &NetworkId) -> Result<Self, RevocationError> {
        // Before it is copied: a record may have 64 KB.
        if txt.iter().map(Vec::len).sum::<usize>() > MAX_LEN {
            return Err(RevocationError::Full);
        }
        Self::read(&txt.concat(), network)
    }

    /// The strings of the one TXT record that carries the list.
    pub fn txt(&self) -> Vec<Vec<u8>> {
        self.bytes.chunks(255).map(<[u8]>::to_vec).collect()
    }

    /// The bytes as they travel.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Of two lists of a network the one with the higher number counts.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The entries, in order.
    pub fn entries(&self) -> &[Revoked] {
        &self.entries
    }

    /// Whether a node is revoked by its own key. It is also out when its invite is.
    pub fn contains(&self, node: &PublicKey) -> bool {
        self.entries.binary_search(&node.into()).is_ok()
    }

    /// Whether an invite is revoked, and with it every node that it let in.
    pub fn contains_invite(&self, invite: &InviteId) -> bool {
        self.entries.binary_search(&invite.into()).is_ok()
    }
}

fn message(network: &NetworkId, body: &[u8]) -> Vec<u8> {
    [CONTEXT, network.as_bytes(), body].concat()
}
