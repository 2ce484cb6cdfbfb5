//! What each party of `docs/security.md` can try, at the machines that have to withstand it.
//! Where the defence can be taken away by configuration the same attack is made without it
//! and works: so it is known to be one.

mod member;
mod network;
mod relay;
mod zone_host;
mod zone_key;

/// The world in which all of them are made: two networks, tokens, nodes and their adverts.
mod world;
