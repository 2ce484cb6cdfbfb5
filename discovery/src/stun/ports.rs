//! Which ports a NAT hands out, told by those that it has handed out one after the
//! other.

use std::fmt;

/// The largest step from one mapping to the next that still counts as the next one: a
/// NAT that counts upwards serves others in between.
const MAX_GAP: i32 = 32;

/// The largest step of a counter that is believed: by one as a rule, by two where pairs
/// of ports are kept together (RFC 4787 §4.2.3).
const MAX_STEP: i32 = 8;

/// Ports wrap around here.
const PORTS: i32 = 1 << 16;

/// How a NAT chooses the outer port of a new mapping (RFC 4787 §4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PortPattern {
    /// The same as the inner one.
    Preserving,
    /// Each so much higher (or lower) than the one before. An even step keeps the
    /// parity.
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

impl PortPattern {
    /// The pattern by the first of these lists that shows one; see [`Self::of`].
    pub(super) fn told_by<'a>(
        inner: Option<u16>,
        lists: impl IntoIterator<Item = &'a [u16]>,
    ) -> Self {
        let mut patterns = lists.into_iter().map(|outer| Self::of(inner, outer));
        patterns.find(|pattern| *pattern != Self::Unknown).unwrap_or_default()
    }

    /// The pattern of the outer ports of one socket's mappings, in the order in which
    /// they were made; `inner` is the socket's own port.
    fn of(inner: Option<u16>, outer: &[u16]) -> Self {
        if !outer.is_empty() && outer.iter().all(|port| Some(*port) == inner) {
            return Self::Preserving;
        }
        let gaps: Vec<i32> = outer
            .windows(2)
            .map(|pair| gap(pair[0], pair[1]))
            // The same mapping, seen twice.
            .filter(|gap| *gap != 0)
            .collect();
        let is_near = |gap: &i32| gap.abs() <= MAX_GAP;
        let same_way = |gaps: &[i32]| gaps.iter().all(|gap| gap.signum() == gaps[0].signum());
        let near = gaps.iter().filter(|gap| is_near(gap)).count();
        if gaps.is_empty() {
            return Self::Unknown;
        }
        if near == gaps.len() && same_way(&gaps) {
            let step = gaps.iter().fold(0, |step, gap| divisor(step, gap.abs()));
            // One gap alone may have been another's mapping and be no step at all.
            if step <= MAX_STEP {
                return Self::Sequential { step: step * gaps[0].signum() };
            }
        }
        // One port of many that is near by chance, or far because the counter went
        // round, tells nothing for sure.
        if near == 0 { Self::Random } else { Self::Unknown }
    }
}

impl fmt::Display for PortPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preserving => f.write_str("preserving"),
            Self::Sequential { step } => write!(f, "sequential ({step:+})"),
            Self::Random => f.write_str("random"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// From one port to another, the short way round.
fn gap(from: u16, to: u16) -> i32 {
    let gap = (i32::from(to) - i32::from(from)).rem_euclid(PORTS);
    if gap > PORTS / 2 { gap - PORTS } else { gap }
}

/// The greatest common divisor.
fn divisor(a: i32, b: i32) -> i32 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pattern_is_told_by_the_ports() {
        let told = |outer: &[u16]| PortPattern::of(Some(51820), outer);
        assert_eq!(told(&[51820]), PortPattern::Preserving);
        assert_eq!(told(&[51820, 51820, 51820]), PortPattern::Preserving);
        assert_eq!(told(&[20000, 20001, 20002]), PortPattern::Sequential { step: 1 });
        assert_eq!(told(&[20000, 20002, 20006]), PortPattern::Sequential { step: 2 });
        assert_eq!(told(&[20000, 20003, 20004]), PortPattern::Sequential { step: 1 });
        assert_eq!(told(&[20000, 19999, 19996]), PortPattern::Sequential { step: -1 });
        assert_eq!(told(&[65535, 0, 1]), PortPattern::Sequential { step: 1 });
        assert_eq!(told(&[20000, 61234, 3000]), PortPattern::Random);
        assert_eq!(told(&[20000, 61234]), PortPattern::Random);
    }

    #[test]
    fn what_may_be_chance_is_not_told() {
        let told = |outer: &[u16]| PortPattern::of(Some(51820), outer);
        assert_eq!(told(&[]), PortPattern::Unknown);
        assert_eq!(told(&[40000]), PortPattern::Unknown);
        assert_eq!(told(&[40000, 40000]), PortPattern::Unknown);
        assert_eq!(told(&[40000, 40031]), PortPattern::Unknown, "no step, and no great leap");
        assert_eq!(told(&[23999, 20000, 20001]), PortPattern::Unknown, "went round");
        assert_eq!(told(&[20000, 20010, 20005]), PortPattern::Unknown, "to and fro");
    }
}
