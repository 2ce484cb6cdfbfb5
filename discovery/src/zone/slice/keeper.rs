//! Which slice this node has, and what has to be asked of the zone to have one: pure.
//!
//! A [`SliceKeeper`] says what to ask next ([`SliceKeeper::poll_ask`]), takes the answers,
//! and tells what became of it. It never asks for two things at a time, and it looks
//! before it claims: the claim then names what was seen there as its prerequisite (RFC
//! 2136 §2.4), so that of any number of nodes one wins, whatever gets lost on the way.
//! After an answer that did not come, and after one that says that the prerequisite did
//! not hold, it looks again: its own claim may be what is there.
//!
//! A slice is held from the moment that the zone shows our claim on it until the zone
//! shows somebody else's. A zone that is away takes nothing from anybody.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ipnet::IpNet;

use super::{Ground, SignedClaim, SliceClaim};
use crate::{
    advert::Zone,
    identity::{Identity, PublicKey},
};

/// How long a claim lasts: as long as any lease may. A node that is off for a night keeps
/// its slice.
pub const LEASE: Duration = Duration::from_secs(24 * 3600);

/// After what share of its lease a claim is renewed.
const RENEW_SHARE: u32 = 3;

/// How often a claim is looked after, though nothing says that it is gone: where the zone
/// cannot be listed nothing ever says so.
const LOOK_AFTER: Duration = Duration::from_secs(300);

/// A claim that the zone lost is put back no more often than this.
const MEND_GAP: Duration = Duration::from_secs(15);

/// After failures, pauses that double from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// So many slices are asked for in a row; then a pause, so that a crowded network costs
/// its zone no storm.
const BURST: u32 = 16;
const BURST_PAUSE: Duration = Duration::from_secs(1);

/// How often all slices are looked at again where none was free. One that becomes free is
/// seen sooner where the zone is listed.
const FULL_PAUSE: Duration = Duration::from_secs(600);

/// After so many refusals of one slice another one is tried.
const MAX_REFUSALS: u32 = 3;

/// The TXT records at one name: each a list of strings.
pub type TxtSet = Vec<Vec<Vec<u8>>>;

/// What to ask of the zone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// What stands at the name of this slice?
    Look(IpNet),
    /// Put this claim there, if exactly this still stands there (nothing, where empty).
    Claim {
        /// The claim.
        claim: SignedClaim,
        /// What has been seen there.
        replaces: TxtSet,
    },
}

/// How a claim went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claimed {
    /// It is there.
    Done,
    /// Something else stood there than what was seen.
    Raced,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SliceEvent {
    /// This slice is held; the zone knows until then.
    Held(IpNet, SystemTime),
    /// It is another node's now.
    Lost(IpNet, PublicKey),
    /// The network has no slice left.
    Full,
}

/// Who may hold slices: judges the certificate of a claim whose signature holds.
pub type IsMember<'a> = &'a (dyn Fn(&SliceClaim) -> bool + Send + Sync);

/// Keeps this node in a slice.
#[derive(Debug)]
pub struct SliceKeeper {
    zone: Zone,
    identity: Arc<Identity>,
    certificate: Option<Vec<u8>>,
    ground: Ground,
    held: Option<Held>,
    goal: Goal,
    /// What is to be asked, or was asked and not answered yet.
    asked: Option<Ask>,
    is_asked: bool,
    /// When to ask next; `None` waits for news.
    due: Option<Instant>,
    /// Runs of slices that are in somebody's way, by their first and last numbers, in order.
    avoided: Vec<(u128, u128)>,
    /// The slices at whose names the zone showed something.
    occupied: BTreeSet<IpNet>,
    failures: u32,
    refusals: u32,
    in_a_row: u32,
    sequence: u64,
    last_claim: Option<Instant>,
    told_full: bool,
    events: VecDeque<SliceEvent>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    slice: IpNet,
    expires: SystemTime,
}

/// What to look for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Goal {
    /// This one: it is ours, or may be.
    Slice(IpNet),
    /// Any, from here on.
    Search(Search),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Search {
    /// How many slices were passed over.
    passed: u128,
    /// The second time round, claims that have lapsed are taken over. Not the first time:
    /// whoever was away for a day shall find its slice again if there are others.
    takes_lapsed: bool,
}

impl Search {
    const START: Self = Self { passed: 0, takes_lapsed: false };
}

/// Whose a slice is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Free,
    /// What stands there counts for nothing, or no more.
    Lapsed,
    Ours(SystemTime),
    Others(PublicKey),
}

impl SliceKeeper {
    /// A keeper for a node of the network with this ground. `kept` is the slice of the last
    /// run and until when the zone knew of it then: it is held at once where that is not
    /// over, also without the zone.
    pub fn new(
        zone: Zone,
        identity: Arc<Identity>,
        ground: Ground,
        kept: Option<(IpNet, SystemTime)>,
        now: Instant,
        wall: SystemTime,
    ) -> Self {
        let mut keeper = Self {
            zone,
            identity,
            certificate: None,
            ground,
            held: None,
            goal: Goal::Search(Search::START),
            asked: None,
            is_asked: false,
            due: Some(now),
            avoided: Vec::new(),
            occupied: BTreeSet::new(),
            failures: 0,
            refusals: 0,
            in_a_row: 0,
            sequence: 0,
            last_claim: None,
            told_full: false,
            events: VecDeque::new(),
        };
        if let Some((slice, expires)) = kept.filter(|(slice, _)| keeper.ground.contains(slice)) {
            keeper.goal = Goal::Slice(slice);
            if expires > wall {
                keeper.held = Some(Held { slice, expires });
                keeper.events.push_back(SliceEvent::Held(slice, expires));
            }
        }
        keeper
    }

    /// Takes the certificate that claims bear from now on.
    pub fn set_certificate(&mut self, certificate: Option<Vec<u8>>, now: Instant) {
        if self.certificate != certificate {
            self.certificate = certificate;
            // The zone is to show the new one soon.
            self.hurry(now);
        }
    }

    /// Takes the prefixes that no new slice may touch: routes of other members, of static
    /// peers, of this machine's other interfaces. A slice that is held stays.
    pub fn set_avoided(&mut self, prefixes: impl IntoIterator<Item = IpNet>) {
        let touched = prefixes.into_iter().filter_map(|prefix| self.ground.touched(&prefix));
        let mut touched: Vec<(u128, u128)> = touched.collect();
        touched.sort_unstable();
        self.avoided.clear();
        for (first, last) in touched {
            match self.avoided.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => self.avoided.push((first, last)),
            }
        }
    }

    /// The slice that is held.
    pub fn held(&self) -> Option<IpNet> {
        self.held.map(|held| held.slice)
    }

    /// Whether there was none left when it was looked last.
    pub fn is_full(&self) -> bool {
        self.told_full
    }

    /// Takes a whole view of the zone's claims.
    pub fn handle_view(
        &mut self,
        claims: &BTreeMap<IpNet, TxtSet>,
        is_member: IsMember<'_>,
        now: Instant,
        wall: SystemTime,
    ) {
        let occupied = claims.keys().filter(|slice| self.ground.contains(slice));
        self.occupied = occupied.copied().collect();
        if let Some(Held { slice, .. }) = self.held {
            let nothing = TxtSet::new();
            let seen = claims.get(&slice).unwrap_or(&nothing);
            // What was seen may be older than the claim: the zone is asked for it.
            if !matches!(self.standing(&slice, seen, is_member, wall), Standing::Ours(_)) {
                let allowed = self.last_claim.map_or(now, |last| (last + MEND_GAP).max(now));
                self.due = Some(self.due.map_or(allowed, |due| due.min(allowed)));
            }
        } else if let Goal::Search(search) = self.goal {
            // One that this node forgot having.
            let own = format!("pub={}", self.identity.public_key()).into_bytes();
            let forgotten = self.occupied.iter().find(|slice| {
                claims.get(slice).is_some_and(|set| set.iter().flatten().any(|txt| *txt == own))
            });
            if let Some(slice) = forgotten.filter(|_| search == Search::START) {
                self.goal = Goal::Slice(*slice);
            }
            let occupied = u128::try_from(self.occupied.len()).unwrap_or(u128::MAX);
            if self.told_full && occupied < self.ground.len() {
                self.hurry(now);
            }
        }
    }

    /// Takes what stands at the name of a slice that was asked for.
    pub fn handle_look(
        &mut self,
        slice: IpNet,
        seen: TxtSet,
        is_member: IsMember<'_>,
        now: Instant,
        wall: SystemTime,
    ) {
        if self.asked != Some(Ask::Look(slice)) {
            return;
        }
        self.asked = None;
        let takes_lapsed = match self.goal {
            Goal::Slice(_) => true,
            Goal::Search(search) => search.takes_lapsed,
        };
        match self.standing(&slice, &seen, is_member, wall) {
            Standing::Ours(expires) => {
                self.hold(slice, expires, now, wall);
                if self.is_to_be_renewed(&seen, expires, wall) {
                    self.claim(slice, seen, wall);
                }
            }
            Standing::Free => self.claim(slice, seen, wall),
            Standing::Lapsed if takes_lapsed => self.claim(slice, seen, wall),
            Standing::Lapsed => {
                self.occupied.insert(slice);
                self.pass(now);
            }
            Standing::Others(node) => {
                self.occupied.insert(slice);
                if self.held.take_if(|held| held.slice == slice).is_some() {
                    self.events.push_back(SliceEvent::Lost(slice, node));
                }
                self.pass(now);
            }
        }
    }

    /// Takes the answer to a claim.
    pub fn handle_claimed(&mut self, outcome: Claimed, now: Instant, wall: SystemTime) {
        let is_claim = |ask: &mut Ask| matches!(ask, Ask::Claim { .. });
        let Some(Ask::Claim { claim, .. }) = self.asked.take_if(is_claim) else { return };
        let SliceClaim { slice, expires, .. } = *claim.claim();
        match outcome {
            Claimed::Done => {
                self.last_claim = Some(now);
                self.hold(slice, expires, now, wall);
            }
            Claimed::Raced => {
                // Whoever was faster may have been this node itself.
                self.goal = Goal::Slice(slice);
                self.go_on(now);
            }
        }
    }

    /// What was asked brought no answer that can be used. A claim may have been taken all
    /// the same; `is_refused` says that it was not.
    pub fn handle_failed(&mut self, is_refused: bool, now: Instant) {
        let Some(Ask::Claim { claim, .. }) = self.asked.take() else {
            self.retry(now);
            return;
        };
        let slice = claim.claim().slice;
        self.goal = Goal::Slice(slice);
        if is_refused && self.held() != Some(slice) {
            self.refusals += 1;
            if self.refusals == MAX_REFUSALS {
                self.refusals = 0;
                self.occupied.insert(slice);
                self.goal = Goal::Search(Search::START);
            }
        }
        self.retry(now);
    }

    /// What to ask now, if anything. It is to be answered by one of the methods above.
    pub fn poll_ask(&mut self, now: Instant) -> Option<Ask> {
        if self.asked.is_none() {
            self.due.take_if(|due| *due <= now)?;
            let slice = match (self.held, self.goal) {
                (Some(held), _) => held.slice,
                (None, Goal::Slice(slice)) => slice,
                (None, Goal::Search(search)) => self.search(search, now)?,
            };
            self.ask(Ask::Look(slice));
        }
        // A claim follows on a look at once.
        let is_asked = std::mem::replace(&mut self.is_asked, true);
        self.asked.clone().filter(|_| !is_asked)
    }

    /// What happened, if anything.
    pub fn poll_event(&mut self) -> Option<SliceEvent> {
        self.events.pop_front()
    }

    /// When [`Self::poll_ask`] has something.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// The next slice of a search; `None` where there is none, and it will be looked again.
    fn search(&mut self, mut search: Search, now: Instant) -> Option<IpNet> {
        let total = self.ground.len();
        loop {
            while search.passed < total {
                let number = (self.start(total) + search.passed) % total;
                if let Some(last) = self.avoided_until(number) {
                    search.passed += last.min(total - 1) - number + 1;
                    continue;
                }
                let slice = self.ground.get(number)?;
                if search.takes_lapsed || !self.occupied.contains(&slice) {
                    self.goal = Goal::Search(search);
                    return Some(slice);
                }
                search.passed += 1;
            }
            if search.takes_lapsed || self.occupied.is_empty() {
                break;
            }
            search = Search { passed: 0, takes_lapsed: true };
        }
        if !std::mem::replace(&mut self.told_full, true) {
            self.events.push_back(SliceEvent::Full);
        }
        self.goal = Goal::Search(Search::START);
        // Where nobody lists the zone, what was seen there is seen anew.
        self.occupied.clear();
        self.due = Some(now + FULL_PAUSE);
        None
    }

    /// Each node begins elsewhere, so that they seldom want the same one.
    fn start(&self, total: u128) -> u128 {
        let key = self.identity.public_key();
        let first = &key.as_bytes()[..8];
        first.iter().fold(0u128, |sum, byte| sum << 8 | u128::from(*byte)) % total
    }

    /// The last of the run of slices to be avoided that this one is one of.
    fn avoided_until(&self, number: u128) -> Option<u128> {
        let after = self.avoided.partition_point(|(first, _)| *first <= number);
        let (_, last) = self.avoided.get(after.checked_sub(1)?)?;
        (number <= *last).then_some(*last)
    }

    /// On to the next slice.
    fn pass(&mut self, now: Instant) {
        self.goal = match self.goal {
            Goal::Search(search) => {
                Goal::Search(Search { passed: search.passed.saturating_add(1), ..search })
            }
            Goal::Slice(_) => Goal::Search(Search::START),
        };
        self.failures = 0;
        self.go_on(now);
    }

    fn go_on(&mut self, now: Instant) {
        self.in_a_row = self.in_a_row.wrapping_add(1);
        let pause = if self.in_a_row.is_multiple_of(BURST) { BURST_PAUSE } else { Duration::ZERO };
        self.due = Some(now + pause);
    }

    fn retry(&mut self, now: Instant) {
        let pause = BACKOFF.0 * 2u32.pow(self.failures.min(6));
        self.failures += 1;
        self.due = Some(now + pause.min(BACKOFF.1));
    }

    fn hurry(&mut self, now: Instant) {
        if self.asked.is_none() {
            self.due = Some(now);
        }
    }

    fn ask(&mut self, ask: Ask) {
        self.asked = Some(ask);
        self.is_asked = false;
        self.due = None;
    }

    fn claim(&mut self, slice: IpNet, seen: TxtSet, wall: SystemTime) {
        // The clock may have been set back since.
        let own = self.identity.public_key();
        for txt in &seen {
            if let Ok(signed) = SignedClaim::read(&self.zone, &slice, txt)
                && signed.claim().node == own
            {
                self.sequence = self.sequence.max(signed.claim().sequence);
            }
        }
        // Milliseconds since 1970, as adverts count.
        let clock = wall.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        self.sequence =
            u64::try_from(clock).unwrap_or(u64::MAX).max(self.sequence.saturating_add(1));
        let claim = SliceClaim {
            node: self.identity.public_key(),
            slice,
            sequence: self.sequence,
            expires: wall + LEASE,
            certificate: self.certificate.clone(),
        };
        match claim.sign(&self.identity, &self.zone) {
            Ok(claim) => self.ask(Ask::Claim { claim, replaces: seen }),
            Err(error) => {
                // A certificate is far smaller than what fits.
                tracing::error!("no claim can be made: {error}");
            }
        }
    }

    fn hold(&mut self, slice: IpNet, expires: SystemTime, now: Instant, wall: SystemTime) {
        let before = self.held.replace(Held { slice, expires });
        if before.is_none_or(|before| before.slice != slice || before.expires != expires) {
            self.events.push_back(SliceEvent::Held(slice, expires));
        }
        self.goal = Goal::Slice(slice);
        self.told_full = false;
        self.failures = 0;
        self.in_a_row = 0;
        self.refusals = 0;
        let renewal = renewal(expires, wall).unwrap_or_default();
        self.due = Some(now + renewal.min(LOOK_AFTER));
    }

    fn is_to_be_renewed(&self, seen: &TxtSet, expires: SystemTime, wall: SystemTime) -> bool {
        let shows = |claim: &SignedClaim| claim.claim().certificate == self.certificate;
        let slice = self.held();
        let read = slice.zip(seen.first());
        let read =
            read.and_then(|(slice, txt)| SignedClaim::verify(&self.zone, &slice, txt, wall).ok());
        renewal(expires, wall).is_none() || !read.as_ref().is_some_and(shows)
    }

    /// Whose a slice is by what stands at its name. Where several say that it is theirs,
    /// which no honest node writes, the lower key has it.
    fn standing(
        &self,
        slice: &IpNet,
        seen: &TxtSet,
        is_member: IsMember<'_>,
        wall: SystemTime,
    ) -> Standing {
        if seen.is_empty() {
            return Standing::Free;
        }
        let own = self.identity.public_key();
        let claims = seen.iter().filter_map(|txt| {
            let signed = SignedClaim::verify(&self.zone, slice, txt, wall).ok()?;
            let claim = signed.claim();
            (claim.node == own || is_member(claim)).then_some((claim.node, claim.expires))
        });
        match claims.min() {
            None => Standing::Lapsed,
            Some((node, _)) if node != own => Standing::Others(node),
            // What stands beside ours is to be cleared away.
            Some(_) if seen.len() > 1 => Standing::Lapsed,
            Some((_, expires)) => Standing::Ours(expires),
        }
    }
}

/// How long until a claim is to be renewed; `None` where it is time.
fn renewal(expires: SystemTime, wall: SystemTime) -> Option<Duration> {
    let left = expires.duration_since(wall).ok()?;
    left.checked_sub(LEASE - LEASE / RENEW_SHARE).filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests;
