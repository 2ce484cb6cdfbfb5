//! Sealed zones: the same records, of which a reader of the zone learns nothing.
//!
//! The members of a sealed network share a secret. What a node says stands as one TXT
//! record under a blinded name directly below the zone, enciphered; there is no SRV, no
//! address, no PTR, so nothing that names a node, where it is or what is behind it. What a
//! reader still sees is how many records there are, about how long they are, and when they
//! change. A member reads the whole zone and opens what its secret opens.
//!
//! The seal hides; it proves nothing. Everybody with a token has its secret: what is opened
//! is verified as if it had come in the open.

use std::fmt;

use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use data_encoding::BASE32_NOPAD;
use hickory_proto::rr::Name;
use hkdf::Hkdf;
use hmac::{Hmac, KeyInit as _, Mac};
use ipnet::IpNet;
use sha2::Sha256;

use crate::{advert::Zone, identity::PublicKey, membership::Secret};

/// The form's version, the first byte of a sealed record.
const VERSION: u8 = 1;

const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;

/// What is enciphered is filled up to a multiple of this, so that its length tells less.
const BLOCK: usize = 64;

/// The bytes of a blinded name, 32 characters of Base32.
const LABEL_LEN: usize = 20;

/// The most bytes of one TXT string (RFC 1035 §3.3).
const MAX_STRING: usize = 255;

/// Where sealed strings go that have no name of the zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// To the LAN, by mDNS, where anybody may change names.
    Lan,
    /// To a member, over the mesh.
    Mesh,
}

impl Place {
    /// What is covered in the place of the owner's name.
    fn covered(self) -> &'static [u8] {
        match self {
            Self::Lan => b"local",
            Self::Mesh => b"note",
        }
    }
}

/// The keys of a sealed network.
#[derive(Clone)]
pub struct Seal {
    names: Secret,
    cipher: XChaCha20Poly1305,
}

impl Seal {
    /// The keys that a network's seal secret makes.
    pub fn new(secret: &Secret) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(b"zonemesh seal v1"), secret.expose());
        let key = |purpose: &[u8]| {
            let mut key = Secret::new(vec![0; 32]);
            hkdf.expand(purpose, key.expose_mut()).expect("32 bytes are not too many");
            key
        };
        let cipher = XChaCha20Poly1305::new(key(b"content").expose().into());
        Self { names: key(b"name"), cipher }
    }

    /// The owner of a node's record.
    pub fn node(&self, zone: &Zone, node: &PublicKey) -> Name {
        zone.below(&[self.node_label(node).as_bytes()])
    }

    /// The label of a node, in the zone and on the LAN.
    pub fn node_label(&self, node: &PublicKey) -> String {
        self.label(&[b"node", node.as_bytes()])
    }

    /// The owner of a slice's claim.
    pub fn slice(&self, zone: &Zone, slice: &IpNet) -> Name {
        zone.below(&[self.label(&[b"slice", slice.to_string().as_bytes()]).as_bytes()])
    }

    /// The owner of the list of revocations.
    pub fn revocations(&self, zone: &Zone) -> Name {
        zone.below(&[self.label(&[b"revoked"]).as_bytes()])
    }

    fn label(&self, parts: &[&[u8]]) -> String {
        let mut mac = Hmac::<Sha256>::new_from_slice(self.names.expose()).expect("any length");
        parts.iter().for_each(|part| mac.update(part));
        let mac = mac.finalize().into_bytes();
        BASE32_NOPAD.encode(&mac[..LABEL_LEN]).to_ascii_lowercase()
    }

    /// Seals the strings of a record for its owner's name. They must not be empty.
    pub fn seal(&self, owner: &Name, txt: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let sealed = self.encrypt(&covered(owner), txt);
        sealed.chunks(MAX_STRING).map(<[u8]>::to_vec).collect()
    }

    /// Opens the strings of a record; `None` where they were not sealed by a member for
    /// this owner's name.
    pub fn open(&self, owner: &Name, txt: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
        self.decrypt(&covered(owner), &txt.concat())
    }

    /// Seals strings that go elsewhere than to the zone.
    pub fn seal_for(&self, place: Place, txt: &[Vec<u8>]) -> Vec<u8> {
        self.encrypt(place.covered(), txt)
    }

    /// Opens what was sealed for a place.
    pub fn open_from(&self, place: Place, sealed: &[u8]) -> Option<Vec<Vec<u8>>> {
        self.decrypt(place.covered(), sealed)
    }

    fn encrypt(&self, covered: &[u8], txt: &[Vec<u8>]) -> Vec<u8> {
        let mut plain = Vec::new();
        for string in txt {
            let len = u8::try_from(string.len()).expect("a TXT string has at most 255 bytes");
            plain.push(len);
            plain.extend_from_slice(string);
        }
        plain.resize(plain.len().next_multiple_of(BLOCK), 0);
        // By chance alone, two of 24 bytes are never the same.
        let nonce: [u8; NONCE_LEN] = rand::random();
        let payload = Payload { msg: &plain, aad: covered };
        let sealed = self.cipher.encrypt(&nonce.into(), payload).expect("not too many bytes");
        [&[VERSION][..], &nonce, &sealed].concat()
    }

    fn decrypt(&self, covered: &[u8], sealed: &[u8]) -> Option<Vec<Vec<u8>>> {
        let (version, sealed) = sealed.split_first()?;
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let is_form = *version == VERSION
            && sealed.len() > TAG_LEN
            && (sealed.len() - TAG_LEN).is_multiple_of(BLOCK);
        if !is_form {
            return None;
        }
        let payload = Payload { msg: sealed, aad: covered };
        let plain = self.cipher.decrypt(nonce.into(), payload).ok()?;
        let mut rest = &plain[..];
        let mut txt = Vec::new();
        // An empty string is the filling's begin; no record of ours has one.
        while let [len @ 1..=255, after @ ..] = rest {
            let (string, after) = after.split_at_checked(usize::from(*len))?;
            txt.push(string.to_vec());
            rest = after;
        }
        Some(txt)
    }
}

/// What binds a record to its owner: the name as in DNS, in lower case.
fn covered(owner: &Name) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(owner.len());
    for label in owner.iter() {
        bytes.push(label.len() as u8);
        bytes.extend(label.iter().map(u8::to_ascii_lowercase));
    }
    bytes.push(0);
    bytes
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seal")
    }
}

impl PartialEq for Seal {
    fn eq(&self, other: &Self) -> bool {
        self.names == other.names
    }
}

impl Eq for Seal {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Identity;

    fn seal(secret: u8) -> Seal {
        Seal::new(&Secret::new(vec![secret; 32]))
    }

    fn zone() -> Zone {
        "mesh.example".parse().expect("a zone")
    }

    fn node() -> PublicKey {
        Identity::from_seed(&[1; 32]).public_key()
    }

    fn strings() -> Vec<Vec<u8>> {
        vec![b"txtvers=1".to_vec(), vec![b'x'; 255], vec![0xff; 40]]
    }

    #[test]
    fn what_is_sealed_opens_for_members_and_for_its_own_name_alone() {
        let owner = seal(1).node(&zone(), &node());
        let sealed = seal(1).seal(&owner, &strings());
        assert!(sealed.iter().all(|string| (1..=255).contains(&string.len())));
        assert_eq!(seal(1).open(&owner, &sealed), Some(strings()));
        let upper = Name::from_ascii(owner.to_ascii().to_ascii_uppercase()).expect("a name");
        assert_eq!(seal(1).open(&upper, &sealed), Some(strings()));
        assert_eq!(seal(2).open(&owner, &sealed), None, "of another network");
        assert_eq!(seal(1).open(&seal(1).revocations(&zone()), &sealed), None, "moved");
        let other: Zone = "other.example".parse().expect("a zone");
        assert_eq!(seal(1).open(&seal(1).node(&other, &node()), &sealed), None);
        assert_ne!(seal(1).seal(&owner, &strings()), sealed, "nothing shows what has not changed");
        let lan = seal(1).seal_for(Place::Lan, &strings());
        assert_eq!(seal(1).open_from(Place::Lan, &lan), Some(strings()));
        assert_eq!(seal(1).open_from(Place::Mesh, &lan), None);
        assert_eq!(seal(2).open_from(Place::Lan, &lan), None);
        assert_eq!(seal(1).open(&owner, &[lan]), None);
    }

    #[test]
    fn no_bit_can_be_changed_and_no_byte_left_out() {
        let owner = seal(1).node(&zone(), &node());
        let sealed = seal(1).seal(&owner, &[b"pub=".to_vec()]).concat();
        assert_eq!(sealed.len(), 1 + NONCE_LEN + BLOCK + TAG_LEN);
        for bit in 0..sealed.len() * 8 {
            let mut bytes = sealed.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(seal(1).open(&owner, &[bytes]), None, "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert_eq!(seal(1).open(&owner, &[sealed[..len].to_vec()]), None, "{len} bytes");
        }
    }

    #[test]
    fn lengths_tell_no_more_than_a_multiple_of_64() {
        let owner = seal(1).node(&zone(), &node());
        let len = |len: usize| seal(1).seal(&owner, &[vec![b'x'; len]]).concat().len();
        assert_eq!(len(1), len(63));
        assert_eq!(len(64), len(127));
        assert_eq!(len(64) - len(63), BLOCK);
        let whole = vec![vec![b'x'; 63], vec![b'y'; 63]];
        assert_eq!(seal(1).open(&owner, &seal(1).seal(&owner, &whole)), Some(whole));
    }

    #[test]
    fn names_tell_nothing_and_differ_by_network_and_by_what_they_name() {
        let net = "10.42.7.0/24".parse().expect("a prefix");
        let names = |seal: &Seal| {
            [seal.node(&zone(), &node()), seal.slice(&zone(), &net), seal.revocations(&zone())]
        };
        let mut all = [names(&seal(1)), names(&seal(2))].concat();
        for name in &all {
            assert_eq!(name.num_labels(), zone().name().num_labels() + 1);
            assert_eq!(name.iter().next().map(<[u8]>::len), Some(32));
        }
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6);
        // As `docs/protocol.md` has it.
        assert_eq!(seal(1).node(&zone(), &node()).to_ascii(), EXAMPLE);
    }

    const EXAMPLE: &str = "jyjgmcmtytsq4s5qwnjbwesyyug2ymhi.mesh.example.";
}
