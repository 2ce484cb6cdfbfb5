//! What members hand each other over the mesh: of themselves an advert's TXT strings, as
//! they stand in a TXT record's data (RFC 1035 §3.3.14), each behind its length, or sealed
//! where the network is; and [`super::news`], which begin with a zero, as neither does.

use std::{sync::Arc, time::Instant};

use tracing::info;
use zonemesh_discovery::{
    advert::SignedAdvert,
    identity::PublicKey,
    sealed::{Place, Seal},
};
use zonemesh_punch::NEWS;

use super::Mesh;

/// The most strings of an advert, more than any has.
const MAX_STRINGS: usize = 64;

/// A note that holds these strings, of at most 255 bytes each.
fn write(txt: &[Vec<u8>]) -> Vec<u8> {
    let mut note = Vec::new();
    for string in txt {
        note.push(u8::try_from(string.len()).expect("TXT strings have at most 255 bytes"));
        note.extend_from_slice(string);
    }
    note
}

/// The strings of a note; `None` where it is not well made.
fn read(mut note: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut txt = Vec::new();
    while let Some((length, rest)) = note.split_first() {
        let (string, rest) = rest.split_at_checked(usize::from(*length))?;
        if txt.len() == MAX_STRINGS {
            return None;
        }
        txt.push(string.to_vec());
        note = rest;
    }
    Some(txt)
}

impl Mesh {
    /// Makes this node one of a sealed network: what it hands to members is sealed.
    pub fn set_seal(&mut self, seal: Arc<Seal>) {
        self.seal = Some(seal);
    }

    /// Takes what a member has handed us: its advert, which may be newer than the one that
    /// we have read, or news.
    pub(super) fn handle_note(&mut self, node: &PublicKey, content: &[u8], now: Instant) {
        if content.first() == Some(&NEWS) {
            self.handle_news(node, content, now);
            return;
        }
        let wall = self.wall(now);
        let txt = match &self.seal {
            None => read(content),
            Some(seal) => seal.open_from(Place::Mesh, content),
        };
        let Some(txt) = txt else { return };
        if self.roster.as_mut().is_some_and(|roster| roster.handle_shared(node, &txt, wall)) {
            info!(peer = %node, "a newer advert came over the mesh");
            self.rearrange(now);
        }
    }

    /// Takes this node's newest advert, to be handed to every member.
    pub fn set_own_advert(&mut self, advert: &SignedAdvert, now: Instant) {
        self.note = Some(match &self.seal {
            None => write(advert.txt()),
            // A note is authentic, but in the open: relays and whoever else sees it pass by
            // would read it.
            Some(seal) => seal.seal_for(Place::Mesh, advert.txt()),
        });
        let all: Vec<PublicKey> = self.peers.keys().copied().collect();
        for node in all {
            self.offer_note(&node, now);
        }
    }

    pub(super) fn offer_note(&mut self, node: &PublicKey, now: Instant) {
        let peer = self.peers.get_mut(node);
        let courier = peer.and_then(|peer| peer.courier.as_mut());
        if let (Some(courier), Some(note)) = (courier, &self.note) {
            courier.offer(note.clone(), now);
            self.drain(node, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(
            txt in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=255), 0..MAX_STRINGS),
        ) {
            prop_assert_eq!(read(&write(&txt)), Some(txt));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            let _ = read(&bytes);
        }
    }

    #[test]
    fn a_note_that_was_cut_is_none() {
        assert_eq!(read(b"\x05hell"), None);
        assert_eq!(read(&[0; MAX_STRINGS + 1]), None, "too many");
    }
}
