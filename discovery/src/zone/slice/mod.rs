//! Slices: how a node whose routes are `"auto"` comes to a part of the network's range.
//!
//! A slice is claimed by a record at a name of its own in the zone ([`SignedClaim`]),
//! with an update whose prerequisite names what stood there before (RFC 2136 §2.4): that
//! is what makes two claims of one slice impossible at any server that does RFC 2136.
//! [`SliceKeeper`] decides what to ask; the [`ZoneClient`](super::ZoneClient) asks it.

mod ground;
mod keeper;
mod record;
mod update;

pub use ground::{Ground, first_host};
pub use keeper::{Ask, Claimed, IsMember, LEASE, SliceEvent, SliceKeeper, TxtSet};
pub use record::{ClaimError, SLICE_LABEL, SignedClaim, SliceClaim};
