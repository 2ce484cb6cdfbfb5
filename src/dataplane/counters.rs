//! What did not go its way, counted by reason.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a packet or a datagram went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drop {
    /// From the TUN device: no IP packet, or one that could not be cut up.
    Malformed,
    /// From the TUN device: no peer has its destination.
    NoRoute,
    /// From the TUN device: the peer has no path yet.
    NoPath,
    /// To the network: the end that it should leave from is gone, or its relay has no
    /// channel to the peer yet.
    NoChannel,
    /// To the network: the kernel refused it.
    SendFailed,
    /// To the network: the socket's buffer stayed full.
    SendBufferFull,
    /// From the network: neither WireGuard nor STUN.
    Junk,
    /// From the network: a handshake message that is not for us.
    NotForUs,
    /// From the network: an initiation by a node that is no peer.
    Stranger,
    /// From the network: no session has this index.
    NoSession,
    /// From the network: seen before, or too old to tell.
    Replay,
    /// From the network: does not verify.
    Forged,
    /// From the network: opened, and no IP packet.
    NotIp,
    /// From the network: opened, and its source is not the peer's to use.
    ForeignSource,
    /// To the TUN device: the kernel refused it.
    DeviceFailed,
    /// To the control plane: its queue was full.
    ControlBusy,
}

impl Drop {
    /// Every reason, in the order of the counters.
    const ALL: [Self; 16] = [
        Self::Malformed,
        Self::NoRoute,
        Self::NoPath,
        Self::NoChannel,
        Self::SendFailed,
        Self::SendBufferFull,
        Self::Junk,
        Self::NotForUs,
        Self::Stranger,
        Self::NoSession,
        Self::Replay,
        Self::Forged,
        Self::NotIp,
        Self::ForeignSource,
        Self::DeviceFailed,
        Self::ControlBusy,
    ];

    /// The reason as reports name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::NoRoute => "no_route",
            Self::NoPath => "no_path",
            Self::NoChannel => "no_channel",
            Self::SendFailed => "send_failed",
            Self::SendBufferFull => "send_buffer_full",
            Self::Junk => "junk",
            Self::NotForUs => "not_for_us",
            Self::Stranger => "stranger",
            Self::NoSession => "no_session",
            Self::Replay => "replay",
            Self::Forged => "forged",
            Self::NotIp => "not_ip",
            Self::ForeignSource => "foreign_source",
            Self::DeviceFailed => "device_failed",
            Self::ControlBusy => "control_busy",
        }
    }
}

/// One counter per reason.
#[derive(Debug, Default)]
pub(super) struct Counters([AtomicU64; Drop::ALL.len()]);

impl Counters {
    /// Counts one more.
    pub(super) fn count(&self, reason: Drop) {
        self.add(reason, 1);
    }

    /// Counts `number` more.
    pub(super) fn add(&self, reason: Drop, number: u64) {
        self.0[reason as usize].fetch_add(number, Ordering::Relaxed);
    }

    /// All of them.
    pub(super) fn read(&self) -> Vec<(Drop, u64)> {
        Drop::ALL
            .iter()
            .map(|drop| (*drop, self.0[*drop as usize].load(Ordering::Relaxed)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let counters = Counters::default();
        for (place, drop) in Drop::ALL.iter().enumerate() {
            assert_eq!(*drop as usize, place, "{drop:?}");
            counters.add(*drop, place as u64 + 1);
        }
        for (place, (drop, count)) in counters.read().into_iter().enumerate() {
            assert_eq!((drop, count), (Drop::ALL[place], place as u64 + 1));
        }
    }
}
