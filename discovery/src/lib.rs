//! Who is in the mesh, and what are this node's own addresses?
//!
//! The two questions that a node answers before it can open a path to anybody.
//! The first by DNS: [`advert`] says what a node's records are, [`identity`] whose
//! they are, [`membership`] who may be in. Nothing here knows how a path is opened or what travels on it.

pub mod advert;
pub mod identity;
pub mod interfaces;
pub mod mdns;
pub mod membership;
pub mod nat64;
pub mod portmap;
pub mod sealed;
pub mod stun;
pub mod zone;
