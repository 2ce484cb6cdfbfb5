//! Who may use the relay: long-term credentials (RFC 8489 §9.2) and nonces.
//!
//! Nothing is remembered of somebody who has not shown a credential. A nonce proves
//! itself: it is the time at which it was given out and a MAC over that and the address
//! that it was given to. It holds for an hour (RFC 8656 §5), for that address alone.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use data_encoding::BASE64URL_NOPAD;
use hkdf::hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::turn::{
    credentials::time_limited_password,
    message::{self, Key, Message},
};

/// RFC 8656 §5: a nonce ends at least once an hour.
const NONCE_LIFETIME: Duration = Duration::from_secs(3600);

/// Bytes of a nonce's MAC: guessing one of 2^64 takes longer than any nonce holds.
const NONCE_MAC_LEN: usize = 8;

/// Who may use the relay. Its debug form shows no secret.
#[derive(Clone, Default)]
pub struct Users {
    /// The secret of time-limited credentials (coturn's use-auth-secret): the user name
    /// is `<unix time of its end>:<name>`, the password Base64(HMAC-SHA1(secret, user
    /// name)).
    pub secret: Option<Vec<u8>>,
    /// Users that do not end, with their passwords.
    pub passwords: HashMap<String, String>,
}

impl Users {
    /// The password that belongs to a user name at this time.
    fn password(&self, username: &str, unix_s: u64) -> Option<String> {
        if let Some(password) = self.passwords.get(username) {
            return Some(password.clone());
        }
        let (end, _) = username.split_once(':').unwrap_or((username, ""));
        let end: u64 = end.parse().ok()?;
        let secret = self.secret.as_ref()?;
        (end > unix_s).then(|| time_limited_password(secret, username))
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Users").field("passwords", &self.passwords.len()).finish_non_exhaustive()
    }
}

/// Whose allocations count together: a time-limited user name without its end, which
/// changes with each renewal.
pub(super) fn account(username: &str) -> &str {
    match username.split_once(':') {
        Some((end, name)) if end.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => username,
    }
}

/// Why a request is not served as what it says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// 400: signed, but without saying by whom.
    Malformed,
    /// 401: not signed, unknown user, wrong password, or a credential that has ended.
    Unauthorized,
    /// 438: the nonce is not ours, or no longer.
    Stale,
}

/// Gives out nonces and checks credentials.
pub(super) struct Gate {
    users: Users,
    realm: String,
    nonce_key: [u8; 32],
    start: Instant,
    /// What the clock on the wall showed at an instant.
    clock: (u64, Instant),
}

impl Gate {
    pub(super) fn new(
        users: Users,
        realm: String,
        nonce_key: [u8; 32],
        unix_s: u64,
        now: Instant,
    ) -> Self {
        Self { users, realm, nonce_key, start: now, clock: (unix_s, now) }
    }

    pub(super) fn set_clock(&mut self, unix_s: u64, now: Instant) {
        self.clock = (unix_s, now);
    }

    pub(super) fn realm(&self) -> &str {
        &self.realm
    }

    /// A nonce for this address, 16 characters long.
    pub(super) fn nonce(&self, client: SocketAddr, now: Instant) -> String {
        let elapsed = now.saturating_duration_since(self.start).as_secs();
        let time = u32::try_from(elapsed).unwrap_or(u32::MAX).to_be_bytes();
        BASE64URL_NOPAD.encode(&[&time[..], &self.nonce_mac(time, client)].concat())
    }

    /// Checks a request's signature; hands back the key that signs its answer.
    pub(super) fn admit(
        &self,
        client: SocketAddr,
        bytes: &[u8],
        request: &Message,
        now: Instant,
    ) -> Result<Key, Denied> {
        if !message::is_signed(bytes) {
            return Err(Denied::Unauthorized);
        }
        let (Some(username), Some(realm), Some(nonce)) =
            (&request.username, &request.realm, &request.nonce)
        else {
            return Err(Denied::Malformed);
        };
        // The nonce first: it costs a stranger who guesses more than it costs us.
        if !self.is_current(nonce, client, now) {
            return Err(Denied::Stale);
        }
        if *realm != self.realm {
            return Err(Denied::Unauthorized);
        }
        let (unix_s, at) = self.clock;
        let unix_s = unix_s.saturating_add(now.saturating_duration_since(at).as_secs());
        let password = self.users.password(username, unix_s).ok_or(Denied::Unauthorized)?;
        let key = Key::new(username, realm, &password).map_err(|_| Denied::Unauthorized)?;
        message::verify(bytes, &key).map_err(|_| Denied::Unauthorized)?;
        Ok(key)
    }

    fn is_current(&self, nonce: &str, client: SocketAddr, now: Instant) -> bool {
        let Ok(bytes) = BASE64URL_NOPAD.decode(nonce.as_bytes()) else { return false };
        let Some((time, mac)) = bytes.split_first_chunk::<4>() else { return false };
        let given = Duration::from_secs(u32::from_be_bytes(*time).into());
        let age = now.saturating_duration_since(self.start).checked_sub(given);
        mac == self.nonce_mac(*time, client) && age.is_some_and(|age| age <= NONCE_LIFETIME)
    }

    fn nonce_mac(&self, time: [u8; 4], client: SocketAddr) -> [u8; NONCE_MAC_LEN] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.nonce_key).expect("HMAC takes any key");
        mac.update(&time);
        match client.ip() {
            IpAddr::V4(v4) => mac.update(&v4.octets()),
            IpAddr::V6(v6) => mac.update(&v6.octets()),
        }
        mac.update(&client.port().to_be_bytes());
        let mut short = [0; NONCE_MAC_LEN];
        short.copy_from_slice(&mac.finalize().into_bytes()[..NONCE_MAC_LEN]);
        short
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("realm", &self.realm).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::message::{Class, Method};

    fn gate(now: Instant) -> Gate {
        let mut users = Users { secret: Some(b"north".to_vec()), ..Users::default() };
        users.passwords.insert("static".into(), "pass".into());
        Gate::new(users, "realm".into(), [7; 32], 1_000, now)
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().expect("an address")
    }

    fn signed(nonce: &str, username: &str, password: &str) -> (Vec<u8>, Message) {
        let request = Message {
            username: Some(username.into()),
            realm: Some("realm".into()),
            nonce: Some(nonce.into()),
            ..Message::new(Method::Allocate, Class::Request, [1; 12])
        };
        let key = Key::new(username, "realm", password).expect("plain text");
        (request.encode(Some(&key)).expect("it can be written"), request)
    }

    #[test]
    fn a_time_limited_credential_holds_until_its_end() {
        let now = Instant::now();
        let mut gate = gate(now);
        let client = addr("192.0.2.1:1");
        // As made by: printf 2000:alice | openssl dgst -sha1 -hmac north -binary | base64
        let password = "OfxEQYiySgktZDLjAtxFaXtducE=";
        let nonce = gate.nonce(client, now);
        let (bytes, request) = signed(&nonce, "2000:alice", password);
        assert!(gate.admit(client, &bytes, &request, now).is_ok());
        let late = now + Duration::from_secs(1_000);
        assert_eq!(gate.admit(client, &bytes, &request, late).err(), Some(Denied::Unauthorized));
        // The clock on the wall counts, also when it is set back.
        gate.set_clock(1_500, late);
        assert!(gate.admit(client, &bytes, &request, late).is_ok());
        let (bytes, request) = signed(&nonce, "2001:alice", password);
        assert_eq!(gate.admit(client, &bytes, &request, now).err(), Some(Denied::Unauthorized));
    }

    #[test]
    fn a_user_needs_the_right_password() {
        let now = Instant::now();
        let (gate, client) = (gate(now), addr("[2001:db8::1]:1"));
        let nonce = gate.nonce(client, now);
        let (bytes, request) = signed(&nonce, "static", "pass");
        assert!(gate.admit(client, &bytes, &request, now).is_ok());
        for (user, password) in [("static", "wrong"), ("nobody", "pass")] {
            let (bytes, request) = signed(&nonce, user, password);
            let denied = gate.admit(client, &bytes, &request, now).err();
            assert_eq!(denied, Some(Denied::Unauthorized), "{user}");
        }
        let unsigned = request.encode(None).expect("it can be written");
        assert_eq!(gate.admit(client, &unsigned, &request, now).err(), Some(Denied::Unauthorized));
        let key = Key::new("static", "realm", "pass").expect("plain text");
        let nameless = Message { username: None, ..request };
        let bytes = nameless.encode(Some(&key)).expect("it can be written");
        assert_eq!(gate.admit(client, &bytes, &nameless, now).err(), Some(Denied::Malformed));
    }

    #[test]
    fn a_nonce_holds_an_hour_and_for_one_address() {
        let now = Instant::now();
        let (gate, client) = (gate(now), addr("192.0.2.1:1"));
        let nonce = gate.nonce(client, now);
        assert_eq!(nonce.len(), 16);
        let (bytes, request) = signed(&nonce, "static", "pass");
        let stale = Some(Denied::Stale);
        assert_eq!(gate.admit(addr("192.0.2.1:2"), &bytes, &request, now).err(), stale);
        assert_eq!(gate.admit(addr("192.0.2.2:1"), &bytes, &request, now).err(), stale);
        let later = now + NONCE_LIFETIME;
        assert!(gate.admit(client, &bytes, &request, later).is_ok());
        let later = later + Duration::from_secs(1);
        assert_eq!(gate.admit(client, &bytes, &request, later).err(), stale);
        for forged in ["", "AAAAAAAAAAAAAAAA", "x", "AAAA"] {
            let (bytes, request) = signed(forged, "static", "pass");
            assert_eq!(gate.admit(client, &bytes, &request, now).err(), stale, "{forged}");
        }
    }

    #[test]
    fn renewals_of_a_credential_are_one_account() {
        assert_eq!(account("1700000000:alice"), "alice");
        assert_eq!(account("1700000000:a:b"), "a:b");
        assert_eq!(account("alice"), "alice");
        assert_eq!(account("ops:alice"), "ops:alice");
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", gate(Instant::now()));
        assert!(!shown.contains("north") && !shown.contains("pass"), "{shown}");
    }
}
