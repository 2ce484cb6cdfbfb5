//! A long poll that waits.

use std::time::Duration;

use super::request::Asked;
use crate::zone::poll;

/// A query for the SOA whose answer waits for the zone to change.
pub struct Poll {
    pub(super) asked: Asked,
    pub(super) known: u32,
}

impl Poll {
    /// After how long it is to be answered though nothing has changed.
    pub const LIMIT: Duration = poll::LIMIT;

    /// The serial that the client knows.
    pub fn known(&self) -> u32 {
        self.known
    }
}
