//! The administrator's side of a network: its key, its file, its invites, its list of
//! revocations.
//!
//! Everything stands in one folder. `network.key` is the secret that says who is a
//! member, and needs to be nowhere but where invites and revocations are made.
//! `network.toml` has what tokens carry beside it, and is read by `zonemesh serve` too.
//! `revocations` is the signed list. All are for their owner alone, written whole or not
//! at all, and never overwritten by a second `init`.

mod file;
mod folder;
mod key;
mod passphrase;

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use data_encoding::BASE64URL_NOPAD;
use ipnet::IpNet;
use rand::RngExt;
use zonemesh_discovery::{
    advert::Zone,
    identity::PublicKey,
    membership::{
        Access, InviteId, Limits, LimitsError, MAX_CHAIN_LEN, MembershipError, NetworkId,
        NetworkKey, RevocationError, RevocationList, Revoked, Secret, Token, TokenError, Validity,
    },
};

pub use self::{
    file::{NETWORK_FILE, NetworkFile},
    folder::{Folder, FolderError},
    key::{KEY_FILE, KeyFileError},
    passphrase::{PASSPHRASE_VARIABLE, Passphrase, PassphraseError},
};

/// Where a network's files stand unless another folder is named.
pub const DEFAULT_DIR: &str = "/etc/zonemesh";

/// Bytes of a seal's secret, and of chance in the relays' secret.
const SECRET_LEN: usize = 32;

/// A network that has just been made: its key, and its file's content.
#[derive(Debug)]
pub struct NewNetwork {
    /// The secret key.
    pub key: NetworkKey,
    /// What stands in `network.toml`.
    pub file: NetworkFile,
}

impl NewNetwork {
    /// Makes a key, and the secrets that members share.
    pub fn make(zone: Zone, routes: Vec<IpNet>, access: Access, sealed: bool) -> Self {
        let mut rng = rand::rng();
        let key = NetworkKey::from_seed(&rng.random());
        // Text, for that is what other relays' configurations want.
        let relay_secret = BASE64URL_NOPAD.encode(&rng.random::<[u8; SECRET_LEN]>());
        let seal = sealed.then(|| Secret::new(rng.random::<[u8; SECRET_LEN]>().to_vec()));
        let access = Access {
            relay_secret: Some(Secret::new(relay_secret.into_bytes())),
            seal_secret: seal,
            ..access
        };
        let file = NetworkFile { zone, key: key.id(), routes, access };
        Self { key, file }
    }
}

/// What an invite is to allow.
#[derive(Debug, Clone, Default)]
pub struct Invitation {
    /// The name that a node must have; any where it is `None`.
    pub name: Option<String>,
    /// The prefixes that it may advertise; the network's where it is `None`.
    pub routes: Option<Vec<IpNet>>,
    /// Its groups.
    pub groups: Vec<String>,
    /// How long it is good.
    pub expires: Expiry,
}

/// How long an invite, and every membership under it, is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// So long.
    After(Duration),
    /// For ever.
    Never,
}

impl Default for Expiry {
    fn default() -> Self {
        Self::After(365 * DAY)
    }
}

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Not a span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a span such as 30d or 12h (d, h or m), or never")]
pub struct ExpiryError;

impl FromStr for Expiry {
    type Err = ExpiryError;

    fn from_str(text: &str) -> Result<Self, ExpiryError> {
        if text == "never" {
            return Ok(Self::Never);
        }
        let unit = match text.as_bytes().last() {
            Some(b'd') => DAY,
            Some(b'h') => HOUR,
            Some(b'm') => Duration::from_secs(60),
            _ => return Err(ExpiryError),
        };
        // Past a century it is not meant, and would pass what certificates can say.
        let count: u32 = text[..text.len() - 1].parse().map_err(|_| ExpiryError)?;
        let span = unit.checked_mul(count).filter(|span| !span.is_zero() && *span <= 36_500 * DAY);
        span.map(Self::After).ok_or(ExpiryError)
    }
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::After(span) = self else { return f.write_str("never") };
        match span.as_secs() {
            seconds if seconds % DAY.as_secs() == 0 => write!(f, "{}d", seconds / DAY.as_secs()),
            seconds if seconds % HOUR.as_secs() == 0 => write!(f, "{}h", seconds / HOUR.as_secs()),
            seconds => write!(f, "{}m", seconds / 60),
        }
    }
}

/// Why there is no invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InviteError {
    /// The limits are out of bounds.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// A route is not the network's.
    #[error("{0} is not one of the network's routes, nor a part of one")]
    Route(IpNet),
    /// It does not fit a token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// No node could join with it.
    #[error(
        "routes and groups are so many that a node's certificate would pass {MAX_CHAIN_LEN} \
         bytes: ask for fewer, or for shorter names of groups"
    )]
    TooLong,
}

/// The length of the names for which an invite that allows any must have room.
const NAME_ROOM: usize = 32;

/// Makes an invite, and the token that holds it.
///
/// # Errors
/// [`InviteError`] when the network has no such routes, or a limit is out of bounds.
pub fn invite(
    key: &NetworkKey,
    network: &NetworkFile,
    wish: &Invitation,
    now: SystemTime,
) -> Result<Token, InviteError> {
    let routes = wish.routes.as_deref().unwrap_or(&network.routes);
    let is_ours = |route: &&IpNet| network.routes.iter().any(|own| own.contains(*route));
    if let Some(route) = routes.iter().find(|route| !is_ours(route)) {
        return Err(InviteError::Route(*route));
    }
    let limits = Limits::new(wish.name.as_deref().unwrap_or_default(), routes, &wish.groups)?;
    let end = match wish.expires {
        Expiry::After(span) => Some(now + span),
        Expiry::Never => None,
    };
    let seed: [u8; 32] = rand::random();
    let validity = Validity::new(now, end);
    let name = if limits.name().is_empty() { "x".repeat(NAME_ROOM) } else { limits.name().into() };
    let access = network.access.clone();
    let token = Token::issue(key, &seed, network.zone.clone(), validity, limits, access)?;
    // A node asks for all of it, unless it is told otherwise.
    let limits = token.limits();
    let trial = PublicKey::from_bytes([0; 32]);
    match token.admit(&trial, &name, limits.routes(), limits.groups(), now) {
        Err(MembershipError::TooLong) => Err(InviteError::TooLong),
        _ => Ok(token),
    }
}

/// Who is to be revoked: a node or an invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Revocation(Revoked);

/// Neither a node nor an invite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RevocationArgumentError {
    /// No key, no token.
    #[error(
        "expected a node's public key (Base64, or Base32 as in its DNS name), an invite's id as \
         `invite` printed it, or a token"
    )]
    Form,
    /// A token that cannot be read.
    #[error(transparent)]
    Token(#[from] TokenError),
}

impl FromStr for Revocation {
    type Err = RevocationArgumentError;

    fn from_str(text: &str) -> Result<Self, RevocationArgumentError> {
        // A node's key and an invite's have one form, and mean their owner alone.
        if let Ok(key) = text.parse::<PublicKey>() {
            return Ok(Self((&key).into()));
        }
        if let Ok(key) = PublicKey::from_base32(text.as_bytes()) {
            return Ok(Self((&key).into()));
        }
        match text.parse::<Token>() {
            Ok(token) => Ok(Self((&token.invite()).into())),
            Err(TokenError::NotAToken) => Err(RevocationArgumentError::Form),
            Err(error) => Err(error.into()),
        }
    }
}

impl From<&InviteId> for Revocation {
    fn from(invite: &InviteId) -> Self {
        Self(invite.into())
    }
}

/// The next list after `list`, with `new` in it; also what `published`, which may be
/// newer, has. Its number passes both.
///
/// # Errors
/// [`RevocationError::Full`] when there would be too many entries.
pub fn revoke(
    key: &NetworkKey,
    list: &RevocationList,
    published: Option<&RevocationList>,
    new: &[Revocation],
) -> Result<RevocationList, RevocationError> {
    let lists = [Some(list), published].into_iter().flatten();
    let number = lists.clone().map(RevocationList::number).max().unwrap_or_default();
    let entries = lists.flat_map(RevocationList::entries).copied();
    RevocationList::sign(key, number + 1, entries.chain(new.iter().map(|one| one.0)))
}

/// Whether a key in a file is the one that another file speaks of.
pub(crate) fn is_key_of(key: &NetworkKey, network: &NetworkId) -> bool {
    key.id() == *network
}
