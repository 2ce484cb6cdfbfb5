//! What the two nodes agree on to pass hard NATs.

use super::attribute;
use crate::nat::{Mapping, NatProfile, PortPattern};

/// PLAN: what a node knows of its NAT, and how far it is with an attempt to pass both.
///
/// | Bytes | What |
/// |---|---|
/// | 0 | mapping: 0 not known, 1 the same for all destinations, 2 another for each |
/// | 1 | new ports: 0 not known, 1 as the inner one, 2 in sequence, 3 random |
/// | 2–3 | the step of the sequence, signed |
/// | 4 | the attempt: 0 none, 1 willing, 2 its sockets have sent, or are ready for the peer's |
/// | 5 | the number of the try: another for each set of sockets |
/// | 6–7 | the first port that the sequence gives next, or the one that stays; 0 where none is told |
/// | 8 | how many ports from there on may be its own, at most 32; 1 where it stays |
/// | 9–11 | zero |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Plan {
    /// The sender's NAT.
    pub nat: NatProfile,
    /// How far the attempt is.
    pub stage: Stage,
    /// The number of the try.
    pub number: u8,
    /// Where the sender's sockets are, where that can be told.
    pub window: Option<Window>,
}

/// How far an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Stage {
    /// There is none.
    #[default]
    None,
    /// The sender is ready for one.
    Willing,
    /// The sender's sockets are open: they have sent, or wait for the peer to do so first.
    Open,
}

/// Ports that a sequence gives next, or the one of a socket whose port stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The first.
    pub base: u16,
    /// How many.
    pub count: u8,
}

impl Window {
    /// The most ports of one.
    pub const MAX: u8 = 32;

    /// The ports, with this step between them.
    pub(crate) fn ports(self, step: i32) -> impl Iterator<Item = u16> {
        (0..i32::from(self.count.min(Self::MAX))).filter_map(move |n| {
            let port = i32::from(self.base).wrapping_add(n.wrapping_mul(step)).rem_euclid(1 << 16);
            u16::try_from(port).ok().filter(|port| *port != 0)
        })
    }
}

impl Plan {
    /// PLAN's type and length.
    const HEAD: [u8; 4] = [0xc0, 0x5b, 0x00, 0x0c];

    /// Bytes of the attribute, with its header.
    pub(super) const LEN: usize = 4 + 12;

    pub(super) fn append_to(self, message: &mut Vec<u8>) {
        let mapping = match self.nat.mapping {
            Mapping::Unknown => 0,
            Mapping::Independent => 1,
            Mapping::Dependent => 2,
        };
        let (ports, step) = match self.nat.ports {
            PortPattern::Unknown => (0, 0),
            PortPattern::Preserving => (1, 0),
            PortPattern::Sequential { step } => (2, i16::try_from(step).unwrap_or(0)),
            PortPattern::Random => (3, 0),
        };
        let stage = match self.stage {
            Stage::None => 0,
            Stage::Willing => 1,
            Stage::Open => 2,
        };
        let window = self.window.unwrap_or(Window { base: 0, count: 0 });
        message.extend(Self::HEAD);
        message.extend([mapping, ports]);
        message.extend(step.to_be_bytes());
        message.extend([stage, self.number]);
        message.extend(window.base.to_be_bytes());
        message.extend([window.count, 0, 0, 0]);
    }

    /// Reads the plan of a message that has verified, if there is one.
    pub(super) fn read(message: &[u8]) -> Option<Self> {
        let value: [u8; 12] = attribute(message, Self::HEAD)?.try_into().ok()?;
        let [mapping, ports, step @ .., _, _, _, _, _, _, _, _] = value;
        let [.., stage, number, high, low, count, _, _, _] = value;
        let mapping = match mapping {
            1 => Mapping::Independent,
            2 => Mapping::Dependent,
            _ => Mapping::Unknown,
        };
        let ports = match (ports, i16::from_be_bytes(step)) {
            (1, _) => PortPattern::Preserving,
            (2, step) if step != 0 => PortPattern::Sequential { step: step.into() },
            (3, _) => PortPattern::Random,
            _ => PortPattern::Unknown,
        };
        let stage = match stage {
            1 => Stage::Willing,
            2 => Stage::Open,
            _ => Stage::None,
        };
        let window = Window { base: u16::from_be_bytes([high, low]), count };
        let is_told = window.base != 0 && (1..=Window::MAX).contains(&count);
        let nat = NatProfile { mapping, ports };
        Some(Self { nat, stage, number, window: is_told.then_some(window) })
    }
}
