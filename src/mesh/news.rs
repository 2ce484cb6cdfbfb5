//! The network's list of revocations, handed on from member to member.
//!
//! The zone says it too, but not to a node that does not reach the zone, and not where
//! somebody who has the zone wants a revoked node to stay. So members tell each other the
//! number of the list that they have; one that has a lower number asks for the list and gets
//! it, a note or many. The network's signature says what it is worth, whoever hands it on.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{info, warn};
use zonemesh_discovery::{
    identity::PublicKey,
    membership::{NetworkId, RevocationList},
};
use zonemesh_punch::{Courier, MAX_CONTENT, NEWS};

use super::{Mesh, MeshEvent};

/// The kinds of news, their second byte.
const HAVE: u8 = 1;
const WANT: u8 = 2;
const PART: u8 = 3;

/// [`NEWS`], the kind, the list's number, the part's place and how many there are.
const PART_HEADER: usize = 1 + 1 + 8 + 2 + 2;

/// Bytes of the list in one note.
const PART_LEN: usize = MAX_CONTENT - PART_HEADER;

/// More parts than any list has.
const MAX_PARTS: usize = 72;

/// So long a member that was asked for a list has for it before another one is asked.
const PATIENCE: Duration = Duration::from_secs(5);

/// So many members are asked at a time at most.
const MAX_ASKED: usize = 4;

/// A member that handed us something else than a list of the network is not asked again for
/// so long.
const DISTRUST: Duration = Duration::from_secs(600);

/// The newest list, and what is under way of a newer one.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Without a network there are no lists.
    network: Option<NetworkId>,
    list: Option<Arc<RevocationList>>,
    asked: BTreeMap<PublicKey, Asked>,
    /// Who is not asked, and until when.
    distrusted: BTreeMap<PublicKey, Instant>,
}

/// A list that a member was asked for.
#[derive(Debug)]
struct Asked {
    number: u64,
    since: Instant,
    parts: Vec<Option<Vec<u8>>>,
}

/// What one note says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Word<'a> {
    /// The sender has the list of this number.
    Have(u64),
    /// The sender has none of this number or a higher one.
    Want(u64),
    /// A part of the list of this number.
    Part { number: u64, index: u16, count: u16, bytes: &'a [u8] },
}

impl<'a> Word<'a> {
    fn write(&self) -> Vec<u8> {
        let head = |kind: u8, number: u64| [&[NEWS, kind], &number.to_be_bytes()[..]].concat();
        match self {
            Self::Have(number) => head(HAVE, *number),
            Self::Want(number) => head(WANT, *number),
            Self::Part { number, index, count, bytes } => {
                let place = [index.to_be_bytes(), count.to_be_bytes()].concat();
                [&head(PART, *number), &place, *bytes].concat()
            }
        }
    }

    fn read(content: &'a [u8]) -> Option<Self> {
        let (head, rest) = content.split_first_chunk::<2>()?;
        let (number, rest) = rest.split_first_chunk()?;
        let number = u64::from_be_bytes(*number);
        match (head, rest) {
            ([NEWS, HAVE], []) => Some(Self::Have(number)),
            ([NEWS, WANT], []) => Some(Self::Want(number)),
            ([NEWS, PART], rest) => {
                let (index, rest) = rest.split_first_chunk()?;
                let (count, bytes) = rest.split_first_chunk()?;
                let (index, count) = (u16::from_be_bytes(*index), u16::from_be_bytes(*count));
                let fits = index < count && usize::from(count) <= MAX_PARTS && !bytes.is_empty();
                fits.then_some(Self::Part { number, index, count, bytes })
            }
            _ => None,
        }
    }
}

/// What is to be said in answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Nothing,
    Say(Vec<Vec<u8>>),
    /// A newer list is there.
    Newer(Arc<RevocationList>),
}

impl News {
    fn number(&self) -> Option<u64> {
        self.list.as_ref().map(|list| list.number())
    }

    /// Takes a list that was verified, unless it is older than ours.
    fn take(&mut self, list: RevocationList) -> Option<Arc<RevocationList>> {
        if self.number().is_some_and(|known| list.number() <= known) {
            return None;
        }
        let list = Arc::new(list);
        self.list = Some(Arc::clone(&list));
        self.asked.retain(|_, asked| asked.number > list.number());
        Some(list)
    }

    /// Tells a peer which list we have.
    pub(super) fn announce(&self, courier: Option<&mut Courier>, now: Instant) {
        if let (Some(courier), Some(number)) = (courier, self.number()) {
            courier.hand_on(Word::Have(number).write(), now);
        }
    }

    fn handle(&mut self, node: &PublicKey, content: &[u8], now: Instant) -> Answer {
        let (Some(network), Some(word)) = (self.network, Word::read(content)) else {
            return Answer::Nothing;
        };
        match word {
            Word::Have(number) => match self.number() {
                Some(known) if number < known => Answer::Say(vec![Word::Have(known).write()]),
                Some(known) if number == known => Answer::Nothing,
                _ if self.may_ask(node, number, now) => {
                    let asked = Asked { number, since: now, parts: vec![] };
                    self.asked.insert(*node, asked);
                    Answer::Say(vec![Word::Want(number).write()])
                }
                _ => Answer::Nothing,
            },
            Word::Want(_) => match &self.list {
                Some(list) => Answer::Say(parts(list)),
                None => Answer::Nothing,
            },
            Word::Part { number, index, count, bytes } => {
                // Only what was asked for, and of whom.
                let asked = self.asked.get_mut(node).filter(|asked| number >= asked.number);
                let Some(asked) = asked else { return Answer::Nothing };
                if asked.number != number || asked.parts.len() != usize::from(count) {
                    (asked.number, asked.parts) = (number, vec![None; usize::from(count)]);
                }
                asked.parts[usize::from(index)] = Some(bytes.to_vec());
                let Some(whole) = asked.parts.iter().cloned().collect::<Option<Vec<_>>>() else {
                    return Answer::Nothing;
                };
                self.asked.remove(node);
                match RevocationList::read(&whole.concat(), &network) {
                    Ok(list) => self.take(list).map_or(Answer::Nothing, Answer::Newer),
                    Err(error) => {
                        warn!(peer = %node, "what it hands on is not used: {error}");
                        self.distrusted.insert(*node, now + DISTRUST);
                        Answer::Nothing
                    }
                }
            }
        }
    }

    /// Whether to ask this member for a list: nobody else is about to bring it, and it has
    /// not brought anything else before.
    fn may_ask(&mut self, node: &PublicKey, number: u64, now: Instant) -> bool {
        self.distrusted.retain(|_, until| *until > now);
        self.asked.retain(|_, asked| now.saturating_duration_since(asked.since) < PATIENCE);
        let is_coming = self.asked.values().any(|asked| asked.number >= number);
        !is_coming && self.asked.len() < MAX_ASKED && !self.distrusted.contains_key(node)
    }
}

/// The notes of a list.
fn parts(list: &RevocationList) -> Vec<Vec<u8>> {
    let chunks = list.as_bytes().chunks(PART_LEN);
    // A list has 3,072 entries of 16 bytes at most.
    let count = u16::try_from(chunks.len()).expect("a few parts");
    let number = list.number();
    let part = |(index, bytes)| Word::Part { number, index, count, bytes }.write();
    (0..).zip(chunks).map(part).collect()
}

impl Mesh {
    /// Makes this node one of a network, whose lists of revocations count from now on.
    pub fn set_network(&mut self, network: NetworkId) {
        self.news.network = Some(network);
    }

    /// The newest list of revocations.
    pub fn revocations(&self) -> Option<&Arc<RevocationList>> {
        self.news.list.as_ref()
    }

    /// Takes a list of revocations that was read in the zone or on disk; `true` where it is
    /// newer than what is known. Whom it names is no member any more, and the others are told
    /// of it.
    pub fn handle_revocations(&mut self, list: RevocationList, now: Instant) -> bool {
        let Some(list) = self.news.take(list) else { return false };
        self.follow(&list, now);
        true
    }

    pub(super) fn handle_news(&mut self, node: &PublicKey, content: &[u8], now: Instant) {
        match self.news.handle(node, content, now) {
            Answer::Nothing => {}
            Answer::Say(words) => {
                let courier = self.peers.get_mut(node).and_then(|peer| peer.courier.as_mut());
                if let Some(courier) = courier {
                    words.into_iter().for_each(|word| courier.hand_on(word, now));
                }
                self.drain(node, now);
            }
            Answer::Newer(list) => {
                info!(peer = %node, number = list.number(), "newer revocations came over the mesh");
                self.events.push_back(MeshEvent::Revocations);
                self.follow(&list, now);
            }
        }
    }

    /// Tells a member which list we have.
    pub(super) fn announce_revocations(&mut self, node: &PublicKey, now: Instant) {
        let courier = self.peers.get_mut(node).and_then(|peer| peer.courier.as_mut());
        self.news.announce(courier, now);
        self.drain(node, now);
    }

    fn follow(&mut self, list: &Arc<RevocationList>, now: Instant) {
        // Whom the list names hears of it too, as far as it is reached now.
        let all: Vec<PublicKey> = self.peers.keys().copied().collect();
        for node in all {
            self.announce_revocations(&node, now);
        }
        if self.roster.as_mut().is_some_and(|roster| roster.set_revocations(list)) {
            self.rearrange(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zonemesh_discovery::membership::{NetworkKey, Revoked};

    use super::*;

    fn node(n: u8) -> PublicKey {
        PublicKey::from_bytes([n; 32])
    }

    fn list(network: &NetworkKey, number: u64, entries: u16) -> RevocationList {
        let key = |n: u16| {
            let mut key = [7; 32];
            key[..2].copy_from_slice(&n.to_be_bytes());
            PublicKey::from_bytes(key)
        };
        let entries = (0..entries).map(|n| Revoked::from(&key(n)));
        RevocationList::sign(network, number, entries).expect("it fits")
    }

    fn news(network: &NetworkKey) -> News {
        News { network: Some(network.id()), ..News::default() }
    }

    /// Lets the first of two members talk until both have nothing to say; tells how many notes
    /// that took.
    fn talk(ends: &mut [&mut News; 2], now: Instant) -> usize {
        let nodes = [node(1), node(2)];
        let first = ends[0].number().map(|number| Word::Have(number).write());
        let mut waiting: Vec<(usize, Vec<u8>)> = first.into_iter().map(|word| (1, word)).collect();
        let mut notes = 0;
        while !waiting.is_empty() {
            let (to, word) = waiting.remove(0);
            notes += 1;
            if let Answer::Say(words) = ends[to].handle(&nodes[1 - to], &word, now) {
                waiting.extend(words.into_iter().map(|word| (1 - to, word)));
            }
        }
        notes
    }

    #[test]
    fn the_higher_number_goes_to_whoever_has_the_lower_one_in_parts() {
        let (network, now) = (NetworkKey::from_seed(&[1; 32]), Instant::now());
        for entries in [0, 50, 3072] {
            let [mut a, mut b] = [news(&network), news(&network)];
            a.take(list(&network, 2, entries)).expect("the first");
            let notes = talk(&mut [&mut a, &mut b], now);
            assert_eq!(b.list, a.list);
            assert_eq!(notes, 2 + parts(a.list.as_ref().expect("there")).len());
            assert_eq!(talk(&mut [&mut b, &mut a], now), 1, "they agree");
            // An old one that is told of brings the new one back.
            let mut old = news(&network);
            old.take(list(&network, 1, 3)).expect("the first");
            talk(&mut [&mut old, &mut a], now);
            assert_eq!(old.number(), Some(2));
        }
    }

    #[test]
    fn the_number_never_goes_back() {
        let network = NetworkKey::from_seed(&[1; 32]);
        let mut news = news(&network);
        assert!(news.take(list(&network, 5, 1)).is_some());
        assert!(news.take(list(&network, 5, 0)).is_none());
        assert!(news.take(list(&network, 4, 0)).is_none());
        assert_eq!(news.number(), Some(5));
    }

    #[test]
    fn who_promises_a_list_and_brings_none_keeps_nobody_from_bringing_one() {
        let (network, other) = (NetworkKey::from_seed(&[1; 32]), NetworkKey::from_seed(&[2; 32]));
        let now = Instant::now();
        let mut news = news(&network);
        let promise = Word::Have(u64::MAX).write();
        assert!(matches!(news.handle(&node(1), &promise, now), Answer::Say(_)));
        let honest = Word::Have(7).write();
        assert_eq!(news.handle(&node(2), &honest, now), Answer::Nothing, "the first has time");
        let later = now + PATIENCE;
        assert!(matches!(news.handle(&node(2), &honest, later), Answer::Say(_)));
        for part in parts(&list(&network, 7, 1)) {
            news.handle(&node(2), &part, later);
        }
        assert_eq!(news.number(), Some(7));
        // And one of another network is not asked again.
        let forged = list(&other, 9, 1);
        let have = Word::Have(9).write();
        assert!(matches!(news.handle(&node(3), &have, later), Answer::Say(_)));
        for part in parts(&forged) {
            assert_eq!(news.handle(&node(3), &part, later), Answer::Nothing);
        }
        assert_eq!(news.handle(&node(3), &have, later), Answer::Nothing);
        assert_eq!(news.number(), Some(7));
        // What nobody asked for is not looked at.
        for part in parts(&list(&network, 8, 1)) {
            assert_eq!(news.handle(&node(4), &part, later), Answer::Nothing);
        }
    }

    #[test]
    fn a_node_without_a_network_hands_nothing_on() {
        let mut news = News::default();
        let have = Word::Have(1).write();
        assert_eq!(news.handle(&node(1), &have, Instant::now()), Answer::Nothing);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            let network = NetworkKey::from_seed(&[1; 32]);
            let mut news = news(&network);
            news.take(list(&network, 1, 1));
            let now = Instant::now();
            for kind in [HAVE, WANT, PART] {
                let content = [&[NEWS, kind], &bytes[..]].concat();
                if let Some(word) = Word::read(&content) {
                    prop_assert_eq!(word.write(), content.clone());
                }
                news.handle(&node(1), &content, now);
            }
            prop_assert_eq!(news.number(), Some(1));
        }
    }
}
