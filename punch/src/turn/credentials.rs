//! Who a client says it is.

use std::fmt;

use data_encoding::BASE64;
use hkdf::hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

use super::message::{EncodeError, Key};

/// User name and password of a long-term credential (RFC 8489 §9.2).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    username: String,
    password: String,
}

impl Credentials {
    /// A credential that both sides have been told.
    pub fn new(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self { username: username.into(), password: password.into() }
    }

    /// A credential that a secret shared with the server makes for `name`, good until
    /// `expires_unix_s` seconds after 1970. The form is that of
    /// draft-uberti-behave-turn-rest-00, which coturn calls use-auth-secret: the
    /// password is HMAC-SHA1 of the user name `<expiry>:<name>`, in Base64.
    pub fn time_limited(secret: &[u8], name: &str, expires_unix_s: u64) -> Self {
        let username = format!("{expires_unix_s}:{name}");
        let password = time_limited_password(secret, &username);
        Self { username, password }
    }

    /// The user name, which travels in the open.
    pub fn username(&self) -> &str {
        &self.username
    }

    /// The key that signs messages in this realm.
    ///
    /// # Errors
    /// [`EncodeError`] where realm or password has characters that none can be made of.
    pub fn key(&self, realm: &str) -> Result<Key, EncodeError> {
        Key::new(&self.username, realm, &self.password)
    }
}

/// The password that a shared secret makes of a user name.
pub(super) fn time_limited_password(secret: &[u8], username: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(secret).expect("HMAC takes a key of any length");
    mac.update(username.as_bytes());
    BASE64.encode(&mac.finalize().into_bytes())
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_limited_password_is_that_of_openssl() {
        // printf 1700000000:node | openssl dgst -sha1 -hmac secret -binary | base64
        let credentials = Credentials::time_limited(b"secret", "node", 1_700_000_000);
        assert_eq!(credentials.username(), "1700000000:node");
        assert_eq!(credentials.password, "m/KAWA6VUwUK5URZ1rBP/GQSz/I=");
        assert!(
            !format!("{credentials:?}").contains("m/KAWA6VUwUK5URZ1rBP/GQSz/I="),
            "a password is not shown"
        );
    }
}
