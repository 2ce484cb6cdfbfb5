//! The courier: hands the peer what this node says of itself, over the paths that there
//! are.
//!
//! A node that roams has a new advert, and its peers read the zone when they read it. So
//! what is to be known is sent to them as well, as a *note*: over the path in use and a
//! spare one, again and ever slower until the peer has acknowledged it, and for some
//! minutes at most, since the zone says the same in the end. A later note takes the place
//! of an earlier one.
//!
//! Beside what a node says of itself there is *news*, which members hand on to each other
//! whoever it comes from. Its content begins with [`NEWS`], one note of it follows the other,
//! each when the peer has acknowledged the one before, and a list may take many: so it has a
//! budget of its own.
//!
//! A note is authentic as checks are ([`crate::check`]); that its content is fresh is for
//! that to show, as an advert does by its number. It is a Binding indication (RFC 8489 §5)
//! with DATA (RFC 8656 §18.4); the acknowledgement has the same transaction and no DATA,
//! so it is shorter than what it answers.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::{agent::CheckError, budget::Budget, check::CheckKeys, route::Route, status::Transmit};

/// The longest content: with the rest of the note it fits the 1,280 bytes that every IPv6
/// link carries.
pub const MAX_CONTENT: usize = 1024;

/// The pauses between the tries, doubling, and how many there are: some 4 minutes in all,
/// longer than a zone with a thousand members is looked at in turn.
const PAUSE: (Duration, Duration) = (Duration::from_millis(400), Duration::from_secs(30));
const TRIES: u32 = 14;

/// The routes by which each try goes: the one in use, and one that may live where it died.
const ROUTES: usize = 2;

/// Notes of the peer that are looked at: as many as one roams by. Each may name other
/// addresses, which all are checked, and others must not be sought that way. What is too
/// early is not acknowledged, and so comes again.
const ACCEPT_INTERVAL: Duration = Duration::from_secs(10);
const ACCEPT_BURST: u32 = 4;

/// The first byte of news: no advert begins with it.
pub const NEWS: u8 = 0;

/// Notes of news that wait for one peer: more than any list comes to.
pub const MAX_NEWS: usize = 128;

/// Notes of news that are looked at: a whole list at once, and then as fast as anybody needs.
const NEWS_INTERVAL: Duration = Duration::from_millis(100);
const NEWS_BURST: u32 = MAX_NEWS as u32;

/// What comes with a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) id: [u8; 12],
    /// `None`: it acknowledges the note of this number.
    pub(crate) content: Option<Vec<u8>>,
}

/// Hands notes to one peer, and takes those of the peer.
#[derive(Debug)]
pub struct Courier {
    keys: CheckKeys,
    rng: StdRng,
    out: Option<Out>,
    news: Option<Out>,
    more_news: VecDeque<Vec<u8>>,
    accept: Budget,
    accept_news: Budget,
    queue: VecDeque<Transmit>,
}

/// A note that the peer has not acknowledged yet.
#[derive(Debug)]
struct Out {
    id: [u8; 12],
    content: Vec<u8>,
    tries: u32,
    due: Instant,
}

impl Out {
    fn new(content: Vec<u8>, rng: &mut StdRng, now: Instant) -> Self {
        let mut id = [0; 12];
        rng.fill_bytes(&mut id);
        Self { id, content, tries: 0, due: now }
    }

    /// The note, to be sent once more; `None` where that was done often enough.
    fn next_try(&mut self, now: Instant) -> Option<Note> {
        if self.tries == TRIES {
            return None;
        }
        self.due = now + PAUSE.0.saturating_mul(1 << self.tries.min(16)).min(PAUSE.1);
        self.tries += 1;
        Some(Note { id: self.id, content: Some(self.content.clone()) })
    }
}

impl Courier {
    /// A courier to the peer that `keys` are shared with. All randomness comes from `seed`.
    pub fn new(keys: CheckKeys, seed: [u8; 32], now: Instant) -> Self {
        Self {
            keys,
            rng: StdRng::from_seed(seed),
            out: None,
            news: None,
            more_news: VecDeque::new(),
            accept: Budget::new(ACCEPT_INTERVAL, ACCEPT_BURST, now),
            accept_news: Budget::new(NEWS_INTERVAL, NEWS_BURST, now),
            queue: VecDeque::new(),
        }
    }

    /// Hands this to the peer, instead of anything before. Nothing that is longer than
    /// [`MAX_CONTENT`] is handed on.
    pub fn offer(&mut self, content: Vec<u8>, now: Instant) {
        let fits = content.len() <= MAX_CONTENT;
        self.out = fits.then(|| Out::new(content, &mut self.rng, now));
    }

    /// Hands this piece of news to the peer, behind those that wait; the same one waits only
    /// once. What is longer than [`MAX_CONTENT`], does not begin with [`NEWS`], or is more
    /// than [`MAX_NEWS`], is not handed on.
    pub fn hand_on(&mut self, content: Vec<u8>, now: Instant) {
        let is_news = content.first() == Some(&NEWS) && content.len() <= MAX_CONTENT;
        let mut waiting = self.news.iter().map(|out| &out.content).chain(&self.more_news);
        if !is_news || self.more_news.len() == MAX_NEWS || waiting.any(|one| *one == content) {
            return;
        }
        self.more_news.push_back(content);
        self.next_news(now);
    }

    /// Forgets the news that waits: there is newer.
    pub fn drop_news(&mut self) {
        self.news = None;
        self.more_news.clear();
    }

    fn next_news(&mut self, now: Instant) {
        if self.news.is_none()
            && let Some(content) = self.more_news.pop_front()
        {
            self.news = Some(Out::new(content, &mut self.rng, now));
        }
    }

    /// Takes a note of the peer, and gives its content; none is in an acknowledgement.
    ///
    /// # Errors
    /// [`CheckError`] says why it is none of the peer's, or that too many come.
    pub fn handle_datagram(
        &mut self,
        from: Route,
        datagram: &[u8],
        now: Instant,
    ) -> Result<Option<Vec<u8>>, CheckError> {
        let note = self.keys.open_note(datagram)?;
        let Some(content) = note.content else {
            if self.out.as_ref().is_some_and(|out| out.id == note.id) {
                self.out = None;
            }
            if self.news.as_ref().is_some_and(|out| out.id == note.id) {
                self.news = None;
                self.next_news(now);
            }
            return Ok(None);
        };
        let is_news = content.first() == Some(&NEWS);
        let budget = if is_news { &mut self.accept_news } else { &mut self.accept };
        if !budget.take(now) {
            return Err(CheckError::Busy);
        }
        self.send(from, &Note { id: note.id, content: None });
        Ok(Some(content))
    }

    /// Sends what is due over the routes that work, the best first.
    pub fn handle_timeout(&mut self, routes: &[Route], now: Instant) {
        if routes.is_empty() {
            return;
        }
        for is_news in [false, true] {
            let out = if is_news { &mut self.news } else { &mut self.out };
            let Some(waiting) = out.as_mut().filter(|out| out.due <= now) else { continue };
            let Some(note) = waiting.next_try(now) else {
                *out = None;
                if is_news {
                    // Who took none of it in all that time takes the rest no better.
                    self.drop_news();
                }
                continue;
            };
            for route in routes.iter().take(ROUTES) {
                self.send(*route, &note);
            }
        }
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.queue.pop_front()
    }

    /// When to call [`Courier::handle_timeout`], if there is a route: at once while
    /// something waits.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.out.iter().chain(&self.news).map(|out| out.due).min()
    }

    fn send(&mut self, route: Route, note: &Note) {
        let payload = self.keys.seal_note(note);
        self.queue.push_back(Transmit { route, payload, dont_fragment: false, hops: None });
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::SocketAddr};

    use x25519_dalek::{PublicKey, StaticSecret};

    use super::*;

    fn pair(now: Instant) -> [Courier; 2] {
        let secrets = [[1; 32], [2; 32]];
        let public = secrets.map(|secret| PublicKey::from(&StaticSecret::from(secret)).to_bytes());
        [(0, 1), (1, 0)].map(|(own, peer)| {
            let keys = CheckKeys::new(&secrets[own], &public[own], &public[peer]);
            Courier::new(keys.expect("sound keys"), [own as u8; 32], now)
        })
    }

    fn route() -> Route {
        Route::direct(SocketAddr::from(([192, 0, 2, 1], 5)))
    }

    #[test]
    fn a_note_arrives_and_is_acknowledged_once() {
        let now = Instant::now();
        let [mut a, mut b] = pair(now);
        a.offer(vec![7; MAX_CONTENT], now);
        a.handle_timeout(&[], now);
        assert_eq!(a.poll_transmit(), None, "there is no way yet");
        a.handle_timeout(&[route()], now);
        let sent = a.poll_transmit().expect("the note");
        assert!(sent.payload.len() <= 1232, "{}", sent.payload.len());
        let got = b.handle_datagram(route(), &sent.payload, now).expect("genuine");
        assert_eq!(got, Some(vec![7; MAX_CONTENT]));
        let ack = b.poll_transmit().expect("an acknowledgement");
        assert!(ack.payload.len() < sent.payload.len());
        assert_eq!(a.handle_datagram(route(), &ack.payload, now), Ok(None));
        assert_eq!(a.poll_timeout(), None);
        assert!(a.handle_datagram(route(), &sent.payload, now).is_err(), "thrown back");
    }

    #[test]
    fn it_is_tried_ever_slower_and_not_for_ever() {
        let start = Instant::now();
        let [mut a, _] = pair(start);
        a.offer(b"news".to_vec(), start);
        let mut times = Vec::new();
        while let Some(due) = a.poll_timeout() {
            a.handle_timeout(&[route()], due);
            if a.poll_transmit().is_some() {
                times.push(due - start);
            }
        }
        assert_eq!(times.len(), TRIES as usize);
        assert!(times[1] <= Duration::from_millis(400), "{times:?}");
        assert!(times.last() < Some(&Duration::from_secs(300)), "{times:?}");
    }

    #[test]
    fn a_later_note_takes_the_place_of_an_earlier_one() {
        let now = Instant::now();
        let [mut a, mut b] = pair(now);
        a.offer(b"old".to_vec(), now);
        a.handle_timeout(&[route()], now);
        let old = a.poll_transmit().expect("a note");
        a.offer(b"new".to_vec(), now);
        b.handle_datagram(route(), &old.payload, now).expect("genuine");
        let late = b.poll_transmit().expect("an acknowledgement");
        a.handle_datagram(route(), &late.payload, now).expect("genuine");
        a.handle_timeout(&[route()], now);
        assert!(a.poll_transmit().is_some(), "the acknowledgement was the old one's");
        a.offer(vec![0; MAX_CONTENT + 1], now);
        assert_eq!(a.poll_timeout(), None, "nobody could take that");
    }

    #[test]
    fn news_goes_piece_by_piece_beside_what_a_node_says_of_itself() {
        let now = Instant::now();
        let [mut a, mut b] = pair(now);
        a.offer(b"advert".to_vec(), now);
        for number in 0..100 {
            a.hand_on(vec![NEWS, number], now);
            a.hand_on(vec![NEWS, number], now);
        }
        a.hand_on(b"no news".to_vec(), now);
        a.hand_on([&[NEWS], &[1; MAX_CONTENT][..]].concat(), now);
        let mut got = Vec::new();
        while a.poll_timeout().is_some_and(|due| due <= now) {
            a.handle_timeout(&[route()], now);
            while let Some(note) = a.poll_transmit() {
                got.extend(b.handle_datagram(route(), &note.payload, now).expect("genuine"));
            }
            while let Some(ack) = b.poll_transmit() {
                assert_eq!(a.handle_datagram(route(), &ack.payload, now), Ok(None));
            }
        }
        assert_eq!(got.remove(0), b"advert");
        assert_eq!(got, (0..100).map(|number| vec![NEWS, number]).collect::<Vec<_>>());
        assert_eq!(a.poll_timeout(), None, "all were acknowledged");
        // More than waits at a time, and to somebody who takes none of it.
        for number in 0..=255 {
            a.hand_on(vec![NEWS, number], now);
        }
        let mut sent = BTreeSet::new();
        while let Some(due) = a.poll_timeout() {
            a.handle_timeout(&[route()], due);
            sent.extend(std::iter::from_fn(|| a.poll_transmit()).map(|note| note.payload));
        }
        assert_eq!(sent.len(), 1);
    }

    #[test]
    fn a_flood_and_a_changed_bit_get_no_answer() {
        let now = Instant::now();
        let [mut a, mut b] = pair(now);
        for number in 1..=20u8 {
            a.offer(vec![number], now);
            a.handle_timeout(&[route()], now);
            let note = a.poll_transmit().expect("a note").payload;
            let mut forged = note.clone();
            forged[44] ^= 1;
            assert!(b.handle_datagram(route(), &forged, now).is_err());
            let _ = b.handle_datagram(route(), &note, now);
        }
        let answers = std::iter::from_fn(|| b.poll_transmit()).count();
        assert_eq!(answers, ACCEPT_BURST as usize);
    }
}
