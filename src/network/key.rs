//! `network.key`: the network's secret key, bare or behind a passphrase.
//!
//! Behind a passphrase, Argon2id (RFC 9106) makes a key of it that seals the seed with
//! XChaCha20-Poly1305. Salt, nonce and costs stand in the file, and are covered by the
//! seal.

use argon2::{Algorithm, Argon2, Params, Version};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305,
    aead::{Aead, Payload},
};
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zonemesh_discovery::membership::{NetworkKey, Secret};

use super::Passphrase;

/// Its name in the network's folder.
pub const KEY_FILE: &str = "network.key";

const VERSION: u8 = 1;

/// The costs of a new key: the second of the two that RFC 9106 §4 recommends, which
/// small machines can pay too.
const COSTS: Costs = Costs { memory_kib: 64 << 10, passes: 3, lanes: 4 };

/// What a file may ask for: it must not take all of a machine.
const MAX_COSTS: Costs = Costs { memory_kib: 1 << 20, passes: 32, lanes: 16 };

const CONTEXT: &[u8] = b"zonemesh network key v1\0";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Costs {
    memory_kib: u32,
    passes: u32,
    lanes: u32,
}

/// The file, as TOML.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u8,
    /// Base64 of the 32 bytes, or of the sealed ones.
    seed: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    argon2id: Option<Costs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    salt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
}

/// Why a file gives no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    /// It is something else.
    #[error("this is no network's key, or it is damaged: restore it from your copy")]
    Form,
    /// Of a later version.
    #[error("this network's key is of a newer version: update zonemesh")]
    Newer,
    /// There is a passphrase, and none was given.
    #[error("the network's key has a passphrase")]
    Sealed,
    /// Another one was given.
    #[error("the passphrase is another one, or the file is damaged")]
    Passphrase,
    /// More memory or time than there should be.
    #[error("the key's file asks for more memory or time than any should")]
    Costs,
}

/// The file's text for a key.
pub(super) fn write(key: &NetworkKey, passphrase: Option<&Passphrase>) -> String {
    let bare = Document {
        version: VERSION,
        seed: BASE64.encode(key.seed()),
        argon2id: None,
        salt: None,
        nonce: None,
    };
    let document = match passphrase {
        None => bare,
        Some(passphrase) => seal(key, passphrase, COSTS),
    };
    let text = toml::to_string(&document).expect("numbers and strings");
    format!("# The secret key of a zonemesh network: who has it says who is a member.\n{text}")
}

fn seal(key: &NetworkKey, passphrase: &Passphrase, costs: Costs) -> Document {
    let salt: [u8; 16] = rand::random();
    let nonce: [u8; 24] = rand::random();
    let cipher = cipher(passphrase, &salt, costs).expect("costs that Argon2 knows");
    let payload = Payload { msg: key.seed(), aad: &covered(&salt, costs) };
    let sealed = cipher.encrypt(&nonce.into(), payload).expect("32 bytes are not too many");
    Document {
        version: VERSION,
        seed: BASE64.encode(&sealed),
        argon2id: Some(costs),
        salt: Some(BASE64.encode(&salt)),
        nonce: Some(BASE64.encode(&nonce)),
    }
}

/// Reads the file's text; `ask` gives the passphrase where there is one.
pub(super) fn read<E: From<KeyFileError>>(
    text: &str,
    ask: impl FnOnce() -> Result<Option<Passphrase>, E>,
) -> Result<NetworkKey, E> {
    let document: Document = toml::from_str(text).map_err(|_| KeyFileError::Form)?;
    if document.version != VERSION {
        return Err(KeyFileError::Newer.into());
    }
    let seed = BASE64.decode(document.seed.as_bytes()).map_err(|_| KeyFileError::Form)?;
    let seed = Secret::new(seed);
    let seed = match (document.argon2id, document.salt, document.nonce) {
        (None, None, None) => seed,
        (Some(costs), Some(salt), Some(nonce)) => {
            if costs.memory_kib > MAX_COSTS.memory_kib
                || costs.passes > MAX_COSTS.passes
                || costs.lanes > MAX_COSTS.lanes
            {
                return Err(KeyFileError::Costs.into());
            }
            let (salt, nonce): ([u8; 16], [u8; 24]) = (bytes(&salt)?, bytes(&nonce)?);
            let passphrase = ask()?.ok_or(KeyFileError::Sealed)?;
            let cipher = cipher(&passphrase, &salt, costs).ok_or(KeyFileError::Form)?;
            let payload = Payload { msg: seed.expose(), aad: &covered(&salt, costs) };
            let opened = cipher.decrypt(&nonce.into(), payload);
            Secret::new(opened.map_err(|_| KeyFileError::Passphrase)?)
        }
        _ => return Err(KeyFileError::Form.into()),
    };
    let seed = seed.expose().try_into().map_err(|_| KeyFileError::Form)?;
    Ok(NetworkKey::from_seed(seed))
}

fn cipher(passphrase: &Passphrase, salt: &[u8], costs: Costs) -> Option<XChaCha20Poly1305> {
    let params = Params::new(costs.memory_kib, costs.passes, costs.lanes, Some(32)).ok()?;
    let mut key = Secret::new(vec![0; 32]);
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase.expose(), salt, key.expose_mut()).ok()?;
    Some(XChaCha20Poly1305::new(key.expose().into()))
}

fn covered(salt: &[u8], costs: Costs) -> Vec<u8> {
    let numbers = [costs.memory_kib, costs.passes, costs.lanes].map(u32::to_be_bytes);
    [CONTEXT, salt, &numbers.concat()].concat()
}

fn bytes<const N: usize>(text: &str) -> Result<[u8; N], KeyFileError> {
    let bytes = BASE64.decode(text.as_bytes()).map_err(|_| KeyFileError::Form)?;
    bytes.try_into().map_err(|_| KeyFileError::Form)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHEAP: Costs = Costs { memory_kib: 64, passes: 1, lanes: 1 };

    fn key() -> NetworkKey {
        NetworkKey::from_seed(&[7; 32])
    }

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(text.to_owned()).expect("is one")
    }

    fn open(text: &str, given: Option<&str>) -> Result<[u8; 32], KeyFileError> {
        let read = read(text, || Ok::<_, KeyFileError>(given.map(passphrase)))?;
        Ok(*read.seed())
    }

    #[test]
    fn a_bare_key_comes_back() {
        assert_eq!(open(&write(&key(), None), None), Ok([7; 32]));
        let text = write(&key(), None);
        assert_eq!(
            open(&text.replace("version = 1", "version = 2"), None),
            Err(KeyFileError::Newer)
        );
        for broken in ["", "seed", &text[..text.len() - 5], &text.replace("seed", "sead")] {
            assert_eq!(open(broken, None), Err(KeyFileError::Form), "{broken}");
        }
    }

    #[test]
    fn a_passphrase_opens_what_it_sealed_and_no_other_does() {
        let text = toml::to_string(&seal(&key(), &passphrase("correct horse"), CHEAP));
        let text = text.expect("numbers and strings");
        assert_eq!(open(&text, Some("correct horse")), Ok([7; 32]));
        assert_eq!(open(&text, Some("correct horsf")), Err(KeyFileError::Passphrase));
        assert_eq!(open(&text, None), Err(KeyFileError::Sealed));
        let cheaper = text.replace("memory_kib = 64", "memory_kib = 32");
        assert_eq!(open(&cheaper, Some("correct horse")), Err(KeyFileError::Passphrase));
        let costly = text.replace("memory_kib = 64", "memory_kib = 4000000000");
        assert_eq!(open(&costly, Some("correct horse")), Err(KeyFileError::Costs));
        let stripped: String =
            text.lines().filter(|line| !line.starts_with("salt")).collect::<Vec<_>>().join("\n");
        assert_eq!(open(&stripped, Some("correct horse")), Err(KeyFileError::Form));
    }
}
