//! What can go wrong between a node and its zone server, in an operator's words.

use std::{fmt, net::SocketAddr};

/// Why something asked of the zone was not done. What it displays is what an
/// operator reads in the log and in `status`: who, what, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZoneError {
    /// No connection, or no answer in time.
    #[error(
        "zone server {server} is away: {why}; check that it runs and that TCP and UDP port {} \
         reach it",
        server.port()
    )]
    Away {
        /// The server.
        server: SocketAddr,
        /// What the network said.
        why: String,
    },
    /// The server closed the connection before the whole answer was there.
    #[error(
        "zone server {server} closed the connection without an answer; check that it serves \
         this zone to us, and its own log"
    )]
    Closed {
        /// The server.
        server: SocketAddr,
    },
    /// The server answered with an error code.
    #[error("zone server {server} answers {rcode} to {task}: {}", match reason {
        Some(reason) => format!("it says: {reason}"),
        None => rcode.advice().to_owned(),
    })]
    Refused {
        /// The server.
        server: SocketAddr,
        /// What was asked of it.
        task: Task,
        /// What it answered.
        rcode: Rcode,
        /// Why, in its own words (RFC 8914), where it has said so.
        reason: Option<String>,
    },
    /// Request and answer could not be authenticated.
    #[error("zone server {server}, TSIG key {key}: {fault}")]
    Tsig {
        /// The server.
        server: SocketAddr,
        /// The key's name.
        key: String,
        /// What is wrong.
        fault: TsigFault,
    },
    /// The answer makes no sense.
    #[error(
        "zone server {server} answers rubbish to {task}: {what}; check that it is a DNS server \
         for this zone"
    )]
    Rubbish {
        /// The server.
        server: SocketAddr,
        /// What was asked of it.
        task: Task,
        /// What is wrong with the answer.
        what: &'static str,
    },
    /// More than a mesh's zone may hold.
    #[error("zone server {server} holds more than {limit} {what} in the zone; clean it up")]
    TooLarge {
        /// The server.
        server: SocketAddr,
        /// The bound.
        limit: usize,
        /// What it bounds.
        what: &'static str,
    },
    /// The system's resolver does not know the zone's server.
    #[error("no server found for zone {zone}: {why}; set `server` under [zone]")]
    Unknown {
        /// The zone.
        zone: String,
        /// What the resolver said.
        why: String,
    },
}

/// What was asked of the zone server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// An update (RFC 2136).
    Update,
    /// A transfer (RFC 5936, RFC 1995).
    Transfer,
    /// A plain query.
    Query,
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Update => "an update",
            Self::Transfer => "a transfer",
            Self::Query => "a query",
        })
    }
}

/// A response code (RFC 1035 §4.1.1, RFC 2136 §2.2, RFC 6891 §6.1.3).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Rcode(pub u16);

impl Rcode {
    /// All is well.
    pub const NOERROR: Self = Self(0);
    /// The server could not read the request.
    pub const FORMERR: Self = Self(1);
    /// The server failed.
    pub const SERVFAIL: Self = Self(2);
    /// No such name.
    pub const NXDOMAIN: Self = Self(3);
    /// The server does not know this kind of request.
    pub const NOTIMP: Self = Self(4);
    /// Refused by policy.
    pub const REFUSED: Self = Self(5);
    /// Records exist that, says the prerequisite, must not (RFC 2136 §2.2).
    pub const YXRRSET: Self = Self(7);
    /// Records do not exist that, says the prerequisite, must (RFC 2136 §2.2).
    pub const NXRRSET: Self = Self(8);
    /// Not authoritative for the zone, or not authorised (RFC 8945 §5.2).
    pub const NOTAUTH: Self = Self(9);
    /// A name of the update lies outside the zone.
    pub const NOTZONE: Self = Self(10);

    fn advice(self) -> &'static str {
        match self {
            Self::REFUSED => "its policy does not allow this for our address or key",
            Self::NOTAUTH => "it does not serve this zone, or the key may not do this",
            Self::NOTZONE => "the zone's name is not the one that the server knows",
            Self::SERVFAIL => "it failed; its own log tells why",
            Self::NXDOMAIN => "it knows no such name; check the zone's name",
            Self::NOTIMP => "it cannot do this at all; check that it is the primary server",
            Self::FORMERR => "it could not read the request; it may not know TSIG",
            _ => "its own log may tell why",
        }
    }
}

impl fmt::Display for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 11] = [
            "NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED", "YXDOMAIN",
            "YXRRSET", "NXRRSET", "NOTAUTH", "NOTZONE",
        ];
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.write_str(name),
            None => write!(f, "RCODE{}", self.0),
        }
    }
}

impl fmt::Debug for Rcode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// How a TSIG (RFC 8945) failed: in the server's eyes or in ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TsigFault {
    /// The server does not know the key.
    #[error("BADKEY: the server does not know this key; check its name and algorithm")]
    BadKey,
    /// The server does not find our signature right.
    #[error("BADSIG: the server's secret is another one; check the secret")]
    BadSig,
    /// The server finds our clock wrong: so many seconds ahead of its own.
    #[error("BADTIME: our clock is {} s {} the server's; set the clocks", .0.unsigned_abs(),
        if *.0 < 0 { "behind" } else { "ahead of" })]
    BadTime(i64),
    /// Another error that the server found.
    #[error("the server reports TSIG error {0}")]
    Other(u16),
    /// An answer without a signature where one must be.
    #[error("the answer is not signed; check that the server knows the key")]
    Unsigned,
    /// An answer signed with another key than the request.
    #[error("the answer is signed with another key")]
    OtherKey,
    /// The answer's signature does not verify.
    #[error("the answer's signature does not verify: it was changed on its way, or made up")]
    Forged,
    /// The answer was signed at another time.
    #[error("the answer was signed {0} s from now; set the clocks")]
    Stale(i64),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_is_told_with_its_direction() {
        let text = |ahead| TsigFault::BadTime(ahead).to_string();
        assert_eq!(text(480), "BADTIME: our clock is 480 s ahead of the server's; set the clocks");
        assert_eq!(text(-480), "BADTIME: our clock is 480 s behind the server's; set the clocks");
    }
}
