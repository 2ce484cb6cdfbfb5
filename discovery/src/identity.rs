//! A node's identity: one Ed25519 seed that is both of the node's keys.
//!
//! A node is named by its WireGuard (X25519) public key, and it signs its
//! adverts with Ed25519. Both come from one 32-byte seed: the Ed25519 secret
//! scalar, clamped as RFC 7748 §5 says, is the WireGuard private key, and the
//! Montgomery form of the Ed25519 public key is the WireGuard public key
//! (RFC 7748 §4.1). So a signature can be checked against the public key in a
//! record's name with nothing else to trust. The map from Edwards to Montgomery
//! form forgets one bit, the sign of x, which travels beside the signature.

use std::{fmt, str::FromStr};

use curve25519_dalek::montgomery::MontgomeryPoint;
use data_encoding::{BASE32_NOPAD, BASE64};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

/// Bytes of a signature as it travels: the sign of the signer's Edwards
/// x-coordinate (0 or 1), then the 64 bytes of RFC 8032 §5.1.6.
pub const SIGNATURE_LEN: usize = 65;

/// A WireGuard public key: the name of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The key with these bytes (the u-coordinate, RFC 7748 §5).
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the key.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Lower-case Base32 (RFC 4648 §6) without padding: 52 characters, the host
    /// label. With `====` behind it, the instance label.
    pub fn to_base32(&self) -> String {
        BASE32_NOPAD.encode(&self.0).to_ascii_lowercase()
    }

    /// Reads Base32 of either case, padded or not.
    ///
    /// # Errors
    /// [`KeyError`] when the text is not Base32 of exactly 32 bytes.
    pub fn from_base32(text: &[u8]) -> Result<Self, KeyError> {
        let end = text.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
        if text.len() - end > 4 {
            return Err(KeyError::Base32);
        }
        let upper = text[..end].to_ascii_uppercase();
        let bytes = BASE32_NOPAD.decode(&upper).map_err(|_| KeyError::Base32)?;
        Ok(Self(bytes.try_into().map_err(|_| KeyError::Length)?))
    }

    /// Verifies `signature` over `message` by the node that this key names.
    ///
    /// # Errors
    /// [`KeyError::Signature`] when it does not verify, is of the wrong length, or
    /// the key is no point of the curve or one of small order.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), KeyError> {
        let [sign @ (0 | 1), rest @ ..] = signature else { return Err(KeyError::Signature) };
        let signature = Signature::from_slice(rest).map_err(|_| KeyError::Signature)?;
        let point = MontgomeryPoint(self.0).to_edwards(*sign).ok_or(KeyError::Signature)?;
        // The birational map ignores the unused top bit and non-canonical encodings:
        // only the one true spelling of a key may speak for it.
        if point.to_montgomery().0 != self.0 {
            return Err(KeyError::Signature);
        }
        VerifyingKey::from(point)
            .verify_strict(message, &signature)
            .map_err(|_| KeyError::Signature)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE64.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    /// Reads the Base64 form that `wg` prints.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bytes = BASE64.decode(text.as_bytes()).map_err(|_| KeyError::Base64)?;
        Ok(Self(bytes.try_into().map_err(|_| KeyError::Length)?))
    }
}

/// Why a key or a signature is not one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not Base64 (RFC 4648 §4).
    #[error("not Base64")]
    Base64,
    /// Not Base32 (RFC 4648 §6).
    #[error("not Base32")]
    Base32,
    /// Not 32 bytes.
    #[error("not a key of 32 bytes")]
    Length,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    Signature,
}

/// A node's secret: the seed from which both of its key pairs come.
pub struct Identity {
    signing: SigningKey,
    public: PublicKey,
}

impl Identity {
    /// The identity that this seed makes.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(seed);
        let public = PublicKey(signing.verifying_key().to_montgomery().0);
        Self { signing, public }
    }

    /// The seed, to be kept in a file of mode 0600.
    pub fn seed(&self) -> &[u8; 32] {
        self.signing.as_bytes()
    }

    /// The WireGuard public key.
    pub fn public_key(&self) -> PublicKey {
        self.public
    }

    /// The WireGuard private key, clamped (RFC 7748 §5).
    pub fn wireguard_private_key(&self) -> [u8; 32] {
        curve25519_dalek::scalar::clamp_integer(self.signing.to_scalar_bytes())
    }

    /// Signs `message`: the sign bit of the Edwards key, then the signature.
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        let mut out = [0; SIGNATURE_LEN];
        out[0] = self.signing.verifying_key().as_bytes()[31] >> 7;
        out[1..].copy_from_slice(&self.signing.sign(message).to_bytes());
        out
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("public", &self.public).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_keys_come_from_one_seed() {
        for seed in 0..32u8 {
            let identity = Identity::from_seed(&[seed; 32]);
            let private = x25519_dalek::StaticSecret::from(identity.wireguard_private_key());
            let public = x25519_dalek::PublicKey::from(&private);
            assert_eq!(public.as_bytes(), identity.public_key().as_bytes());
        }
    }

    #[test]
    fn a_signature_verifies_under_its_own_key_and_message_only() {
        // 32 seeds, so that both signs of x occur.
        for seed in 0..32u8 {
            let identity = Identity::from_seed(&[seed; 32]);
            let other = Identity::from_seed(&[seed + 1; 32]);
            let mut signature = identity.sign(b"message");
            assert_eq!(identity.public_key().verify(b"message", &signature), Ok(()));
            assert!(identity.public_key().verify(b"massage", &signature).is_err());
            assert!(other.public_key().verify(b"message", &signature).is_err());
            for bit in 0..SIGNATURE_LEN * 8 {
                signature[bit / 8] ^= 1 << (bit % 8);
                assert!(identity.public_key().verify(b"message", &signature).is_err());
                signature[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    #[test]
    fn a_second_spelling_of_a_key_does_not_speak_for_it() {
        let identity = Identity::from_seed(&[7; 32]);
        let mut bytes = *identity.public_key().as_bytes();
        bytes[31] |= 0x80;
        let signature = identity.sign(b"message");
        assert!(PublicKey::from_bytes(bytes).verify(b"message", &signature).is_err());
    }

    #[test]
    fn small_order_keys_verify_nothing() {
        for u in [0u8, 1] {
            let mut bytes = [0; 32];
            bytes[0] = u;
            assert!(PublicKey::from_bytes(bytes).verify(b"m", &[0; SIGNATURE_LEN]).is_err());
        }
    }

    #[test]
    fn base32_is_read_in_either_case_padded_or_not() {
        let key = Identity::from_seed(&[9; 32]).public_key();
        let label = key.to_base32();
        assert_eq!(label.len(), 52);
        for text in [label.clone(), format!("{label}===="), label.to_ascii_uppercase()] {
            assert_eq!(PublicKey::from_base32(text.as_bytes()), Ok(key));
        }
        assert!(PublicKey::from_base32(b"====").is_err());
        assert!(PublicKey::from_base32(format!("{label}=====").as_bytes()).is_err());
    }
}
