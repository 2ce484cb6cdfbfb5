//! The words of the servers: as which address each of them saw us last.

use std::{net::SocketAddr, time::Instant};

use super::Behaviour;

/// What a server said last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word {
    pub(super) server: SocketAddr,
    pub(super) mapped: SocketAddr,
    /// When it first said so.
    pub(super) since: Instant,
    pub(super) at: Instant,
}

/// When the newest word of a family was said.
pub(super) fn newest_of<'a>(
    words: impl IntoIterator<Item = &'a Word>,
    ipv4: bool,
) -> Option<Instant> {
    words.into_iter().filter(|word| word.mapped.is_ipv4() == ipv4).map(|word| word.at).max()
}

/// What the servers' words, compared with each other, tell of the mapping.
pub(super) fn mapping_by(words: &[Word]) -> Behaviour {
    let mut proven = None;
    for (index, one) in words.iter().enumerate() {
        for two in &words[index + 1..] {
            let same_ip = one.server.ip() == two.server.ip();
            let told = match (same_ip, one.mapped == two.mapped) {
                (false, true) => Behaviour::EndpointIndependent,
                (false, false) => Behaviour::AddressDependent,
                (true, false) => Behaviour::AddressAndPortDependent,
                (true, true) => continue,
            };
            proven = proven.max(Some(told));
        }
    }
    proven.unwrap_or_default()
}
