//! The embedded zone's messages on the wire: what comes in as bytes goes out as bytes.
//!
//! A [`Responder`] stands between the sockets and the [`ZoneStore`](super::ZoneStore): it
//! reads requests, checks and makes TSIGs (RFC 8945), knows EDNS (RFC 6891), how much an
//! answer may be and who gets none, transfers (RFC 5936, RFC 1995) and the long poll. A
//! [`Notifier`] tells secondary servers (RFC 1996). Both are without sockets and clocks.

mod encode;
mod limit;
mod notify;
mod poll;
mod request;
mod responder;
mod transfer;

#[cfg(test)]
mod tests;

pub use limit::{Rate, Rates};
pub use notify::{Notifier, Notify, NotifyError};
pub use poll::Poll;
pub use responder::{
    Answer, Counters, Forward, KeyRights, Now, Responder, ResponderConfig, Source, Update,
    UpdateRight, node_of_key,
};
pub use transfer::Transfer;
