//! TURN (RFC 8656): a relayed address on a server that both sides can reach.

pub mod channel;
pub mod message;
