//! What stands between this node and the Internet, as far as agents have to know: its NAT,
//! or the NAT64 by which IPv4 is reached.

use std::time::{Duration, Instant};

use zonemesh_discovery::nat64::Prefix64;
use zonemesh_punch::{Agent, NatProfile};

use super::Mesh;

/// What is known of it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Translator {
    /// The prefix by which IPv4 is reached, on a host that has IPv6 only.
    pub(super) nat64: Option<Prefix64>,
    /// How long the NAT keeps an idle mapping for sure.
    lifetime: Option<Duration>,
    /// How the NAT maps.
    nat: NatProfile,
}

impl Translator {
    /// Tells an agent that is new.
    pub(super) fn tell(self, agent: &mut Agent, now: Instant) {
        agent.set_nat(self.nat, now);
        agent.set_mapping_lifetime(self.lifetime);
    }
}

impl Mesh {
    /// Takes the prefix by which IPv4 is reached, on a host that has IPv6 only.
    pub fn set_nat64(&mut self, prefix: Option<Prefix64>, now: Instant) {
        if self.translator.nat64 != prefix {
            self.translator.nat64 = prefix;
            self.rearrange(now);
        }
    }

    /// Takes how the NAT maps.
    pub fn set_nat(&mut self, nat: NatProfile, now: Instant) {
        if self.translator.nat != nat {
            self.translator.nat = nat;
            self.each_agent(now, |agent| agent.set_nat(nat, now));
        }
    }

    /// Takes how long the NAT keeps an idle mapping for sure, if that was measured.
    pub fn set_mapping_lifetime(&mut self, lifetime: Option<Duration>, now: Instant) {
        if self.translator.lifetime != lifetime {
            self.translator.lifetime = lifetime;
            self.each_agent(now, |agent| agent.set_mapping_lifetime(lifetime));
        }
    }
}
