//! TURN (RFC 8656): a relayed address on a server that both sides can reach.
//!
//! [`message`] and [`channel`] know the bytes; [`Client`] asks a server for an
//! allocation and keeps it; a [`server::Server`] gives them. Nothing here does I/O,
//! reads a clock or draws a random number of its own.

pub mod channel;
mod client;
mod credentials;
pub mod message;
pub mod server;

pub use client::{Client, ClientConfig, EndReason, Event, MAX_PEERS, RefuseReason, Transport};
pub use credentials::Credentials;
