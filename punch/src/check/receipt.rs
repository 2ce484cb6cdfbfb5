//! What the two nodes tell each other of a way beside the check itself.

use super::attribute;

/// RECEIPT: what has come in. Three numbers of 32 bits, each the milliseconds since something happened
/// at the sender, or 0xFFFFFFFF where it never did.
///
/// | Bytes | Since |
/// |---|---|
/// | 0–3 | WireGuard's data last came in on this very way |
/// | 4–7 | WireGuard's data last came in on any way |
/// | 8–11 | the sender last opened its NAT to the receiver's addresses |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Receipt {
    /// Milliseconds since WireGuard's data last came in at the sender on this way.
    pub data_ms: Option<u32>,
    /// Milliseconds since WireGuard's data last came in at the sender on any way.
    pub any_ms: Option<u32>,
    /// Milliseconds since the sender last opened its NAT to the receiver's addresses.
    pub opened_ms: Option<u32>,
}

/// Never: or longer ago than the number can tell.
const NEVER: u32 = u32::MAX;

impl Receipt {
    /// RECEIPT's type and length.
    const HEAD: [u8; 4] = [0xc0, 0x5a, 0x00, 0x0c];

    /// Bytes of the attribute, with its header.
    pub(super) const LEN: usize = 4 + 12;

    pub(super) fn append_to(self, message: &mut Vec<u8>) {
        message.extend(Self::HEAD);
        for ms in [self.data_ms, self.any_ms, self.opened_ms] {
            message.extend(ms.unwrap_or(NEVER).to_be_bytes());
        }
    }

    /// Reads the receipt of a message that has verified; none where there is none.
    pub(super) fn read(message: &[u8]) -> Self {
        attribute(message, Self::HEAD).map(Self::from_value).unwrap_or_default()
    }

    fn from_value(value: &[u8]) -> Self {
        let mut numbers = value.chunks_exact(4).map(|bytes| {
            let ms = bytes.try_into().map_or(NEVER, u32::from_be_bytes);
            (ms != NEVER).then_some(ms)
        });
        let mut next = || numbers.next().flatten();
        Self { data_ms: next(), any_ms: next(), opened_ms: next() }
    }
}
