//! What is known of a NAT, as far as it matters for what can be tried against it.

/// Whether the outer port of a socket depends on the destination (RFC 4787 §4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mapping {
    /// It is the same for all destinations, or there is no NAT.
    Independent,
    /// Each destination, or each address, gets another one.
    Dependent,
    /// Not known.
    #[default]
    Unknown,
}

/// How the outer port of a new mapping is chosen (RFC 4787 §4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PortPattern {
    /// The same as the inner one.
    Preserving,
    /// Each so much higher (or lower) than the one before.
    Sequential {
        /// From one mapping to the next.
        step: i32,
    },
    /// Without a pattern.
    Random,
    /// Not known.
    #[default]
    Unknown,
}

/// Both of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NatProfile {
    /// Whether the outer port depends on the destination.
    pub mapping: Mapping,
    /// How a new one is chosen.
    pub ports: PortPattern,
}

/// What one side does to pass two NATs that ordinary checks do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Its port is known and stays: it sends to many ports of the other side.
    Steady,
    /// Its next ports can be told: it sends from fresh sockets.
    Counting,
    /// Its ports cannot be told: it opens many sockets, so that some are met by chance.
    Guessed,
}

impl NatProfile {
    /// What this side and the other do; `None` where nothing is to be gained.
    pub(crate) fn parts(self, other: Self) -> Option<(Part, Part)> {
        match (self.part()?, other.part()?) {
            // Ordinary checks do.
            (Part::Steady, Part::Steady) => None,
            // One of 65,536 ports would have to meet one of as many.
            (Part::Guessed, Part::Guessed | Part::Counting) | (Part::Counting, Part::Guessed) => {
                None
            }
            parts => Some(parts),
        }
    }

    fn part(self) -> Option<Part> {
        match (self.mapping, self.ports) {
            (Mapping::Independent, _) => Some(Part::Steady),
            (Mapping::Dependent, PortPattern::Sequential { .. }) => Some(Part::Counting),
            (Mapping::Dependent, PortPattern::Random) => Some(Part::Guessed),
            // A NAT that keeps the port where it can, and does not here, is not known.
            (Mapping::Dependent, PortPattern::Preserving | PortPattern::Unknown)
            | (Mapping::Unknown, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_tried_depends_on_both() {
        let steady = NatProfile { mapping: Mapping::Independent, ports: PortPattern::Preserving };
        let ports = PortPattern::Sequential { step: 1 };
        let counting = NatProfile { mapping: Mapping::Dependent, ports };
        let guessed = NatProfile { mapping: Mapping::Dependent, ports: PortPattern::Random };
        let unknown = NatProfile::default();
        assert_eq!(steady.parts(steady), None);
        assert_eq!(steady.parts(counting), Some((Part::Steady, Part::Counting)));
        assert_eq!(counting.parts(counting), Some((Part::Counting, Part::Counting)));
        assert_eq!(guessed.parts(steady), Some((Part::Guessed, Part::Steady)));
        assert_eq!(guessed.parts(guessed), None);
        assert_eq!(guessed.parts(counting), None);
        assert_eq!(steady.parts(unknown), None);
    }
}
