//! Who may be a member: the network's key, the invites that it signs, and the
//! certificates that nodes sign for themselves under an invite.
//!
//! There is no server to ask. The administrator keeps the [`NetworkKey`]; an invite is a
//! second key that the network key has certified, within [`Limits`] and for a time, and
//! that travels in a [`Token`]. A node that holds the token signs a certificate for its
//! own key with it, and shows the two certificates, its [`Chain`], in its advert. Whoever
//! knows the network's public key verifies them with nothing else to trust; every limit
//! of the invite binds what is signed under it.
//!
//! A [`RevocationList`] takes nodes and invites out again before their time. It is
//! numbered and signed by the network key, so that it may come by any way.
//!
//! `docs/protocol.md` tells every form byte for byte.

mod bytes;
mod chain;
mod keys;
mod limits;
mod member;
mod revocation;
mod token;

use std::time::{SystemTime, UNIX_EPOCH};

pub use self::{
    chain::{CertificateError, Certified, Chain, Limit, MAX_CHAIN_LEN, Period, Validity},
    keys::{InviteId, NetworkId, NetworkKey},
    limits::{Limits, LimitsError, MAX_GROUP_LEN, MAX_GROUPS, MAX_NAME_LEN},
    member::{Membership, MembershipError},
    revocation::{MAX_REVOCATIONS, RevocationError, RevocationList, Revoked},
    token::{
        Access, AccessKey, DEFAULT_SLICE, MAX_SERVERS, Secret, Token, TokenError, TokenTimeError,
    },
};

/// A time for people, in UTC and to the minute.
pub fn utc(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, minutes) = (seconds / 86_400, seconds % 86_400 / 60);
    // Years that begin in March put the leap day last: 400 of them have 146,097 days.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * day + 2) / 153;
    let day = day - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}
