//! What two NATs allow: the best way between two sites that can be had, whatever is tried.
//!
//! This judges the simulation and the lab of namespaces alike, so it says what is possible
//! and not what an agent happens to do. That it holds was seen with kernel NATs and perfect
//! knowledge; the reasons are in [`best_possible`].

use std::fmt;

use crate::nat::PortPattern;

/// RFC 4787 §4.1 and §5: on what a mapping, or a filter, depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Depends {
    /// It is the same for all the world.
    Nothing,
    /// On the address that is sent to, or that sends.
    Address,
    /// On its port, too.
    AddressAndPort,
}

/// What stands before a site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Nat {
    /// It lets UDP out.
    pub udp: bool,
    /// What the outer port depends on.
    pub mapping: Depends,
    /// Who is let in.
    pub filtering: Depends,
    /// How the port of a new mapping is chosen.
    pub ports: PortPattern,
}

impl Nat {
    /// No NAT, and nothing that filters.
    pub const PUBLIC: Self = Self {
        udp: true,
        mapping: Depends::Nothing,
        filtering: Depends::Nothing,
        ports: PortPattern::Preserving,
    };

    /// Nothing that filters but what answers what was sent: a stateful firewall, or a NAT
    /// as most homes have.
    pub const PORT_RESTRICTED: Self = Self { filtering: Depends::AddressAndPort, ..Self::PUBLIC };

    /// No UDP comes through.
    pub const BLOCKED: Self = Self { udp: false, ..Self::PORT_RESTRICTED };

    /// The ports of new mappings can be told in advance.
    fn counts(&self) -> bool {
        matches!(self.ports, PortPattern::Sequential { .. })
    }
}

/// The best that two sites can have, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Best {
    /// Straight, without luck.
    Direct,
    /// Straight, when ports are told in advance.
    Predicted,
    /// Straight, with many ports and some luck.
    Birthday,
    /// By a relay only.
    Relayed,
}

impl fmt::Display for Best {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Direct => "direct",
            Self::Predicted => "direct, with ports told in advance",
            Self::Birthday => "direct, with ports met by chance",
            Self::Relayed => "by a relay",
        })
    }
}

/// The best that two sites behind these can have.
///
/// A side with endpoint-independent mapping has one address that the other knows. A
/// side without has a new one for each destination: the other side learns it from a
/// packet that gets in, so it must not filter on the port. Where both sides lack it,
/// the first packet gets in only where nothing is filtered, at the address that the
/// STUN server saw; the answer comes from a third address; and the chase ends only
/// where one side keeps its mapping while the other's port changes.
///
/// Where none of this helps, ports in sequence can be told in advance on both sides, and
/// random ones be met by chance where the other side has one address that stays.
pub fn best_possible(a: Nat, b: Nat) -> Best {
    use Depends::{AddressAndPort, Nothing};
    if !a.udp || !b.udp {
        return Best::Relayed;
    }
    let open_to_any_port = |nat: Nat| nat.filtering != AddressAndPort;
    let direct = match (a.mapping == Nothing, b.mapping == Nothing) {
        (true, true) => true,
        (true, false) => open_to_any_port(a),
        (false, true) => open_to_any_port(b),
        (false, false) => {
            let settles = a.mapping != AddressAndPort || b.mapping != AddressAndPort;
            let enters = a.filtering == Nothing || b.filtering == Nothing;
            settles && enters && open_to_any_port(a) && open_to_any_port(b)
        }
    };
    let known = |nat: Nat| nat.mapping == Nothing || nat.counts();
    match (known(a), known(b)) {
        _ if direct => Best::Direct,
        (true, true) => Best::Predicted,
        _ if a.mapping == Nothing || b.mapping == Nothing => Best::Birthday,
        _ => Best::Relayed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYMMETRIC: Nat = Nat {
        mapping: Depends::AddressAndPort,
        ports: PortPattern::Random,
        ..Nat::PORT_RESTRICTED
    };
    const SEQUENTIAL: Nat = Nat { ports: PortPattern::Sequential { step: 1 }, ..SYMMETRIC };
    const FULL_CONE: Nat = Nat::PUBLIC;
    const ADDRESS_RESTRICTED: Nat = Nat { filtering: Depends::Address, ..Nat::PUBLIC };

    #[test]
    fn the_table_is_the_one_that_was_measured() {
        use Best::{Birthday, Direct, Predicted, Relayed};
        let kinds = [
            Nat::PUBLIC,
            FULL_CONE,
            ADDRESS_RESTRICTED,
            Nat::PORT_RESTRICTED,
            SEQUENTIAL,
            SYMMETRIC,
            Nat::BLOCKED,
        ];
        let table = [
            [Direct, Direct, Direct, Direct, Direct, Direct, Relayed],
            [Direct, Direct, Direct, Direct, Direct, Direct, Relayed],
            [Direct, Direct, Direct, Direct, Direct, Direct, Relayed],
            [Direct, Direct, Direct, Direct, Predicted, Birthday, Relayed],
            [Direct, Direct, Direct, Predicted, Predicted, Relayed, Relayed],
            [Direct, Direct, Direct, Birthday, Relayed, Relayed, Relayed],
            [Relayed; 7],
        ];
        for (a, row) in kinds.into_iter().zip(table) {
            for (b, best) in kinds.into_iter().zip(row) {
                assert_eq!(best_possible(a, b), best, "{a:?} × {b:?}");
            }
        }
    }
}
