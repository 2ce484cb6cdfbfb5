//! Trains: datagrams of one size for one receiver, gathered so that they go out by one
//! system call.

use zonemesh_punch::turn::{
    channel,
    server::{ClientAddr, PeerAddr, RelayId},
};

use super::udp::MAX_CONTENTS;

/// For whom a train is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiver {
    /// A peer, out of a relayed socket.
    Peer(RelayId, PeerAddr),
    /// A client that takes datagrams.
    Client(ClientAddr),
}

/// Datagrams for one receiver, all of one size but the last, which may be shorter.
#[derive(Debug, Default)]
pub(super) struct Train {
    receiver: Option<Receiver>,
    segment: usize,
    count: usize,
    contents: Vec<u8>,
    /// The last one is shorter: no other may follow.
    closed: bool,
}

impl Train {
    /// Adds a datagram, made of a frame's header if there is one and the payload. If the
    /// train is for somebody else, full, or of another size, nothing is added: it has to
    /// leave first.
    pub(super) fn push(
        &mut self,
        receiver: Receiver,
        most: usize,
        header: Option<[u8; channel::HEADER_LEN]>,
        payload: &[u8],
    ) -> bool {
        let len = header.map_or(0, |header| header.len()) + payload.len();
        match self.receiver {
            None => (self.receiver, self.segment) = (Some(receiver), len),
            Some(other) => {
                let fits = other == receiver
                    && !self.closed
                    // An empty datagram is no segment.
                    && (1..=self.segment).contains(&len)
                    && self.count < most
                    && self.contents.len() + len <= MAX_CONTENTS;
                if !fits {
                    return false;
                }
            }
        }
        self.count += 1;
        self.closed = len < self.segment;
        self.contents.extend_from_slice(header.as_ref().map_or(&[], |header| header));
        self.contents.extend_from_slice(payload);
        true
    }

    /// Lets it leave: for whom, how many, what, and how long each datagram is where there
    /// are several.
    pub(super) fn leave(&self) -> Option<(Receiver, usize, &[u8], Option<usize>)> {
        let segment = (self.count > 1).then_some(self.segment);
        Some((self.receiver?, self.count, &self.contents, segment))
    }

    /// Starts anew.
    pub(super) fn clear(&mut self) {
        self.receiver = None;
        self.contents.clear();
        (self.count, self.closed) = (0, false);
    }
}

#[cfg(test)]
mod tests {
    use zonemesh_punch::turn::message::Family;

    use super::*;

    fn peer(port: u16) -> Receiver {
        let relay = RelayId { slot: 0, family: Family::V4 };
        Receiver::Peer(relay, PeerAddr(([192, 0, 2, 1], port).into()))
    }

    #[test]
    fn equal_datagrams_for_one_receiver_leave_together() {
        let mut train = Train::default();
        assert!(train.leave().is_none());
        assert!(train.push(peer(1), 64, Some([0x40, 0, 0, 3]), b"abc"));
        assert!(train.push(peer(1), 64, Some([0x40, 1, 0, 3]), b"def"));
        assert!(!train.push(peer(2), 64, None, b"1234567"), "somebody else's");
        assert!(!train.push(peer(1), 64, None, b"12345678"), "longer");
        assert!(!train.push(peer(1), 64, None, b""), "no segment");
        assert!(train.push(peer(1), 64, None, b"end"), "the last may be shorter");
        assert!(!train.push(peer(1), 64, None, b"1234567"), "and is the last then");
        let (receiver, count, contents, segment) = train.leave().expect("there are three");
        assert_eq!((receiver, count, segment), (peer(1), 3, Some(7)));
        assert_eq!(contents, b"\x40\0\0\x03abc\x40\x01\0\x03defend");
        train.clear();
        assert!(train.push(peer(2), 64, None, b""));
        assert_eq!(train.leave(), Some((peer(2), 1, &b""[..], None)));
        assert!(!train.push(peer(2), 64, None, b"x"));
    }

    #[test]
    fn a_train_is_no_longer_than_the_kernel_takes() {
        let mut train = Train::default();
        let pushed = (0..100).filter(|_| train.push(peer(1), 64, None, &[0; 1200])).count();
        assert_eq!(pushed, 54);
        train.clear();
        assert_eq!((0..100).filter(|_| train.push(peer(1), 64, None, &[0; 100])).count(), 64);
        train.clear();
        assert_eq!((0..100).filter(|_| train.push(peer(1), 1, None, &[0; 100])).count(), 1);
    }
}
