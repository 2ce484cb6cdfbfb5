//! Hard NATs: whose turn it is to try one, since each attempt takes many sockets and sends
//! many datagrams, and what an attempt gets.

use std::{collections::VecDeque, net::SocketAddr, time::Instant};

use zonemesh_discovery::identity::PublicKey;

use super::Mesh;

/// Who has its turn, and who waits for it.
#[derive(Debug, Default)]
pub(super) struct Turns {
    current: Option<PublicKey>,
    waiting: VecDeque<PublicKey>,
}

impl Turns {
    /// This peer wants a turn, after all that wanted one before.
    pub(super) fn want(&mut self, node: PublicKey) {
        if self.current != Some(node) && !self.waiting.contains(&node) {
            self.waiting.push_back(node);
        }
    }

    /// This peer's turn is over, or it is gone.
    pub(super) fn end(&mut self, node: &PublicKey) {
        self.current.take_if(|current| current == node);
        self.waiting.retain(|waiting| waiting != node);
    }

    /// Gives the turn to the one that has waited longest, if nobody has it.
    pub(super) fn next(&mut self) -> Option<PublicKey> {
        if self.current.is_none() {
            self.current = self.waiting.pop_front();
            return self.current;
        }
        None
    }
}

impl Mesh {
    /// Takes the numbers of the further sockets of a member.
    pub fn set_extra(&mut self, node: &PublicKey, sockets: &[u32], now: Instant) {
        Self::with_agent(&mut self.peers, node, |agent| agent.set_extra(sockets, now));
        self.drain(node, now);
    }

    /// Takes what a STUN server saw of a fresh socket, if one answered.
    pub fn handle_sample(&mut self, node: &PublicKey, external: Option<SocketAddr>, now: Instant) {
        Self::with_agent(&mut self.peers, node, |agent| agent.handle_sample(external, now));
        self.drain(node, now);
    }

    /// Gives the next peer its turn, if nobody has it.
    pub(super) fn grant_turn(&mut self, now: Instant) {
        if let Some(next) = self.turns.next() {
            Self::with_agent(&mut self.peers, &next, |agent| agent.grant_turn(now));
            self.drain(&next, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use zonemesh_discovery::identity::Identity;

    use super::*;

    #[test]
    fn one_has_its_turn_and_the_others_follow_in_order() {
        let [a, b, c] = [1, 2, 3].map(|n| Identity::from_seed(&[n; 32]).public_key());
        let mut turns = Turns::default();
        assert_eq!(turns.next(), None);
        for node in [a, b, c, a, b] {
            turns.want(node);
        }
        assert_eq!(turns.next(), Some(a));
        assert_eq!(turns.next(), None, "it is still its turn");
        turns.want(a);
        turns.end(&b);
        turns.end(&a);
        assert_eq!(turns.next(), Some(c));
        turns.end(&c);
        assert_eq!(turns.next(), None);
    }
}
