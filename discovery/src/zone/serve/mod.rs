//! The embedded zone: an authoritative server for one mesh's zone, without sockets.
//!
//! A [`ZoneStore`] holds the records of the zone and answers messages. Whoever has the
//! sockets reads requests, checks their TSIG, hands them in and sends what comes back:
//!
//! * [`handle_query`](ZoneStore::handle_query) answers queries (RFC 1034, 1035, 2308).
//!   EDNS, the response's size and TSIG are the caller's, and so are AXFR and IXFR, for
//!   which there are [`soa`](ZoneStore::soa), [`records`](ZoneStore::records) and
//!   [`changes_since`](ZoneStore::changes_since).
//! * [`handle_update`](ZoneStore::handle_update) applies an update (RFC 2136) whole or not
//!   at all, where its [`Writer`] may write what it touches.
//! * [`handle_timeout`](ZoneStore::handle_timeout) sweeps what has lapsed, not before
//!   [`poll_timeout`](ZoneStore::poll_timeout).
//!
//! What these change is in memory at once, and must be on disk before anybody hears of it:
//! the caller hands in a batch of updates, takes the bytes of
//! [`poll_journal`](ZoneStore::poll_journal), appends them to the journal and syncs it
//! once, calls [`commit`](ZoneStore::commit), and only then answers (the batch, queries,
//! transfers, waiting subscribers). Where the disk does not take them it calls
//! [`rollback`](ZoneStore::rollback), after which nothing of the batch has happened, and
//! answers each update with [`failed`](ZoneStore::failed). A journal that has grown long
//! is replaced by a [`snapshot`](ZoneStore::snapshot).
//!
//! Leases are wall-clock times, for adverts have such; the clock is handed in.

mod config;
mod draft;
mod follow;
mod journal;
mod lease;
mod names;
mod policy;
mod query;
mod records;
mod ring;
mod store;
mod update;
pub mod wire;

pub use config::{Limits, Service, ServiceKind, ZoneConfig};
pub use follow::{Change, FollowError, News};
pub use journal::{JournalError, Replayed};
pub use policy::{Refusal, Writer};
pub use ring::Diff;
pub use store::ZoneStore;
pub use update::{UpdateError, UpdateReply};

#[cfg(test)]
mod tests;
