//! The network's key and those of its invites.

use std::{fmt, str::FromStr};

use data_encoding::BASE64;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::identity::KeyError;

/// Bytes of an Ed25519 signature (RFC 8032 §5.1.6).
pub(super) const SIGNATURE_LEN: usize = 64;

/// A network's secret key (Ed25519): who has it says who is a member.
pub struct NetworkKey(SigningKey);

impl NetworkKey {
    /// The key that this seed makes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, for the file that keeps it.
    pub fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The public key.
    pub fn id(&self) -> NetworkId {
        NetworkId(self.0.verifying_key().to_bytes())
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for NetworkKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NetworkKey").field(&self.id()).finish()
    }
}

/// The secret of an invite: the key under which nodes certify themselves.
#[derive(Clone)]
pub(super) struct InviteKey(SigningKey);

impl InviteKey {
    pub(super) fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    pub(super) fn seed(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    pub(super) fn id(&self) -> InviteId {
        InviteId(self.0.verifying_key().to_bytes())
    }

    pub(super) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        self.0.sign(message).to_bytes()
    }
}

/// A network's public key (Ed25519): its name among networks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId([u8; 32]);

/// An invite's public key (Ed25519): its name in a network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InviteId([u8; 32]);

/// What both public keys can do. Each is a type of its own, so that neither is ever
/// taken for the other, or for a node's.
macro_rules! public_key {
    ($name:ident) => {
        impl $name {
            /// The key with these bytes (RFC 8032 §5.1.5).
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The 32 bytes of the key.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
                let Ok(key) = VerifyingKey::from_bytes(&self.0) else { return false };
                let Ok(signature) = Signature::from_slice(signature) else { return false };
                key.verify_strict(message, &signature).is_ok()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE64.encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            /// Reads Base64 of 32 bytes.
            fn from_str(text: &str) -> Result<Self, KeyError> {
                let bytes = BASE64.decode(text.as_bytes()).map_err(|_| KeyError::Base64)?;
                Ok(Self(bytes.try_into().map_err(|_| KeyError::Length)?))
            }
        }
    };
}

public_key!(NetworkId);
public_key!(InviteId);
