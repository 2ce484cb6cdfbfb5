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

/// While a member that was asked has not brought its list, another one is asked after this.
const HASTE: Duration = Duration::from_secs(1);

/// So many members are asked at a time at most.
const MAX_ASKED: usize = 4;

/// So long a member has from one part to the next, and for all of them.
const PATIENCE: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);

/// A member that did not bring it in time is not asked again for the first time, and one that
/// brought something else for the second.
const REST: Duration = Duration::from_secs(30);
const DISTRUST: Duration = Duration::from_secs(600);

/// The newest list, and what is under way of a newer one.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Without a network there are no lists.
    network: Option<NetworkId>,
    list: Option<Arc<RevocationList>>,
    /// Who has said to have a newer one, and its number.
    offers: BTreeMap<PublicKey, u64>,
    asked: BTreeMap<PublicKey, Asked>,
    /// Who is not asked, and until when.
    distrusted: BTreeMap<PublicKey, Instant>,
}

/// A list that a member was asked for.
#[derive(Debug)]
struct Asked {
    number: u64,
    since: Instant,
    /// When it last brought a part.
    heard: Instant,
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
    /// Somebody may have to be asked.
    Ask,
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
        self.offers.retain(|_, number| *number > list.number());
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
                _ => {
                    self.offers.insert(*node, number);
                    Answer::Ask
                }
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
                asked.heard = now;
                asked.parts[usize::from(index)] = Some(bytes.to_vec());
                let Some(whole) = asked.parts.iter().cloned().collect::<Option<Vec<_>>>() else {
                    return Answer::Nothing;
                };
                self.asked.remove(node);
                match RevocationList::read(&whole.concat(), &network) {
                    Ok(list) => self.take(list).map_or(Answer::Nothing, Answer::Newer),
                    Err(error) => {
                        warn!(peer = %node, "what it hands on is not used: {error}");
                        self.forget(node);
                        self.distrusted.insert(*node, now + DISTRUST);
                        Answer::Ask
                    }
                }
            }
        }
    }

    /// The member that is to be asked now, and for which list. One is enough as a rule; those
    /// that promise and bring nothing must not keep the others from bringing it.
    fn next_to_ask(&mut self, now: Instant) -> Option<(PublicKey, u64)> {
        self.distrusted.retain(|_, until| *until > now);
        let late = |asked: &Asked| {
            let since = |then: Instant| now.saturating_duration_since(then);
            since(asked.heard) >= PATIENCE || since(asked.since) >= LIMIT
        };
        let late = self.asked.iter().filter(|(_, asked)| late(asked));
        for node in late.map(|(node, _)| *node).collect::<Vec<_>>() {
            self.asked.remove(&node);
            self.distrusted.insert(node, now + REST);
        }
        let hurries = self.asked.values().any(|asked| now < asked.since + HASTE);
        if hurries || self.asked.len() >= MAX_ASKED {
            return None;
        }
        let is_free = |node: &PublicKey| {
            !self.asked.contains_key(node) && !self.distrusted.contains_key(node)
        };
        let (node, number) = self.offers.iter().find(|(node, _)| is_free(node))?;
        let (node, number) = (*node, *number);
        self.asked.insert(node, Asked { number, since: now, heard: now, parts: vec![] });
        Some((node, number))
    }

    /// Forgets a peer.
    pub(super) fn forget(&mut self, node: &PublicKey) {
        self.asked.remove(node);
        self.offers.remove(node);
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
            Answer::Ask => self.ask_for_news(now),
            Answer::Newer(list) => {
                info!(peer = %node, number = list.number(), "newer revocations came over the mesh");
                self.events.push_back(MeshEvent::Revocations);
                self.follow(&list, now);
            }
        }
    }

    /// Asks a member for a newer list, where there is one to ask.
    pub(super) fn ask_for_news(&mut self, now: Instant) {
        let Some((node, number)) = self.news.next_to_ask(now) else { return };
        let courier = self.peers.get_mut(&node).and_then(|peer| peer.courier.as_mut());
        if let Some(courier) = courier {
            courier.hand_on(Word::Want(number).write(), now);
        }
        self.drain(&node, now);
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

    fn ask(news: &mut News, now: Instant) -> Option<Vec<u8>> {
        news.next_to_ask(now).map(|(_, number)| Word::Want(number).write())
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
            let words = match ends[to].handle(&nodes[1 - to], &word, now) {
                Answer::Say(words) => words,
                Answer::Ask => ask(ends[to], now).into_iter().collect(),
                Answer::Nothing | Answer::Newer(_) => vec![],
            };
            waiting.extend(words.into_iter().map(|word| (1 - to, word)));
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
        let start = Instant::now();
        let mut news = news(&network);
        // Three that promise more than there is, and one that has it.
        for (n, number) in [(1, u64::MAX), (2, u64::MAX), (3, 9), (4, 7)] {
            assert_eq!(news.handle(&node(n), &Word::Have(number).write(), start), Answer::Ask);
        }
        let asked = |news: &mut News, after: u64| {
            news.next_to_ask(start + Duration::from_secs(after)).map(|(node, _)| node)
        };
        assert_eq!(asked(&mut news, 0), Some(node(1)));
        assert_eq!(asked(&mut news, 0), None, "it has time");
        assert_eq!(asked(&mut news, 1), Some(node(2)));
        assert_eq!(asked(&mut news, 2), Some(node(3)));
        let now = start + Duration::from_secs(2);
        for part in parts(&list(&other, 9, 1)) {
            assert_eq!(news.handle(&node(3), &part, now), Answer::Ask, "another network's");
        }
        assert_eq!(asked(&mut news, 3), Some(node(4)));
        let now = start + Duration::from_secs(3);
        for part in parts(&list(&network, 7, 1)) {
            news.handle(&node(4), &part, now);
        }
        assert_eq!(news.number(), Some(7));
        // Who brought nothing, or something else, is not asked again soon.
        news.handle(&node(3), &Word::Have(u64::MAX).write(), start);
        assert_eq!(asked(&mut news, 9), None);
        assert_eq!(asked(&mut news, 40), Some(node(1)), "a path may have been bad");
        assert_eq!(asked(&mut news, 41), Some(node(2)));
        assert_eq!(asked(&mut news, 42), None);
        // What nobody asked for is not looked at.
        for part in parts(&list(&network, 8, 1)) {
            assert_eq!(news.handle(&node(5), &part, now), Answer::Nothing);
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
