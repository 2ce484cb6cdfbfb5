//! What the machine's limit on open files leaves for clients.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;
use zonemesh_punch::turn::server::Limits;

use crate::config::ServeConfig;

/// For listening sockets, the log and the like.
const OTHERS: u64 = 128;

/// For a node in the same process: the fresh sockets that it opens towards hard NATs, 320
/// at most, the streams to its relays, and what it has anyway.
const NODE: u64 = 512;

/// How much the clients may have, in sockets as well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) clients: Limits,
    pub(super) connections: usize,
    pub(super) connections_per_source: usize,
}

/// The limits of the configuration, and less where the machine does not give as many
/// files: who runs out of those can accept nothing any more. An allocation has up to two
/// sockets, a stream one. A node beside, in the same process, needs some as well.
pub(super) fn within_open_files(config: &ServeConfig, beside_node: bool) -> Bounds {
    let wanted = kept(config, beside_node)
        + 2 * config.limits.allocations as u64
        + config.connections as u64;
    raise(wanted);
    let available = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let bounds = bounds(config, available, beside_node);
    if available < wanted {
        warn!(
            "only {available} files may be open: at most {} allocations and {} streams (ulimit -n)",
            bounds.clients.allocations, bounds.connections
        );
    }
    bounds
}

/// Has the zone's clients get their files, where there is no relay that sees to that.
pub(super) fn raise_for_zone(connections: usize) {
    raise(OTHERS + connections as u64);
}

/// Raises the limit on open files, as far as the machine lets it.
fn raise(wanted: u64) {
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.unwrap_or(u64::MAX);
    let now = limit.current.unwrap_or(u64::MAX);
    if now < wanted.min(most) {
        let raised = Rlimit { current: Some(wanted.min(most)), maximum: limit.maximum };
        if let Err(error) = setrlimit(Resource::Nofile, raised) {
            warn!("the limit on open files stays at {now}: {error}");
        }
    }
}

/// How many files are not for relaying: the zone's clients have theirs, too.
fn kept(config: &ServeConfig, beside_node: bool) -> u64 {
    let zone = config.zone.as_ref().map_or(0, |zone| zone.connections as u64);
    zone + if beside_node { OTHERS + NODE } else { OTHERS }
}

fn bounds(config: &ServeConfig, available: u64, beside_node: bool) -> Bounds {
    let mut bounds = Bounds {
        clients: config.limits.clone(),
        connections: config.connections,
        connections_per_source: config.connections_per_source,
    };
    let wanted = 2 * config.limits.allocations as u64 + config.connections as u64;
    let available = available.saturating_sub(kept(config, beside_node));
    if available < wanted {
        // As much less of the one as of the other.
        let share = |number: usize| {
            let part = u128::from(available) * number as u128 / u128::from(wanted);
            usize::try_from(part).unwrap_or(number).max(1)
        };
        bounds.clients.allocations = share(config.limits.allocations);
        bounds.connections = share(config.connections);
    }
    bounds
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    #[test]
    fn where_files_are_few_there_are_fewer_of_both() {
        let config = Config::parse(Path::new("zonemesh.toml"), "[serve]\nturn = false");
        let config = config.expect("a configuration").serve.expect("a [serve] section");
        let plenty = bounds(&config, 100_000, true);
        assert_eq!((plenty.clients.allocations, plenty.connections), (4096, 4096));
        let few = bounds(&config, 1024, false);
        assert_eq!((few.clients.allocations, few.connections), (298, 298));
        assert!(2 * few.clients.allocations + few.connections + 128 <= 1024);
        let beside = bounds(&config, 1024, true);
        assert_eq!((beside.clients.allocations, beside.connections), (128, 128));
        let none = bounds(&config, 0, false);
        assert_eq!((none.clients.allocations, none.connections), (1, 1));
    }
}
