//! What this node says of itself: its candidates in order, its advert, when to say
//! it again.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use zonemesh_discovery::{
    advert::{Advert, AdvertError, Candidate, CandidateKind, SignedAdvert, Zone},
    identity::Identity,
};

/// How long an advert lasts. Long enough that a zone may be away for a while, short
/// enough that a node that died without a word is gone within the hour.
pub const LEASE: Duration = Duration::from_secs(3600);

/// A step of the wall clock after which leases are looked at anew, our own and others'.
pub const CLOCK_STEP: Duration = Duration::from_secs(60);

/// How long changes of the candidates are collected before they are advertised: twice as
/// long each time that one follows the other within [`CALM`]. A NAT that restarts is told
/// of at once; an address that a STUN server makes up anew with every answer must not
/// become an update that the zone and all members pay for each time.
const DELAY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
const CALM: Duration = Duration::from_secs(60);

/// This node's advert, kept true.
#[derive(Debug)]
pub struct Own {
    identity: Arc<Identity>,
    zone: Zone,
    template: Template,
    current: Option<Current>,
    /// Whether the template has changed since.
    is_stale: bool,
    sequence: u64,
    delay: Duration,
}

/// What an advert says beside candidates and dates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    /// The node's name.
    pub name: String,
    /// The overlay addresses of its interface.
    pub addresses: Vec<IpAddr>,
    /// The prefixes behind it.
    pub routes: Vec<IpNet>,
    /// What makes it a member of a network.
    pub certificate: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Current {
    advert: Arc<SignedAdvert>,
    /// As asked for, also where not all of them fitted.
    candidates: Vec<Candidate>,
    made: (Instant, SystemTime),
}

impl Own {
    /// `sequence` is the highest that this node has used before.
    pub fn new(identity: Arc<Identity>, zone: Zone, template: Template, sequence: u64) -> Self {
        Self { identity, zone, template, current: None, is_stale: false, sequence, delay: DELAY.0 }
    }

    /// The newest advert, if any was made yet.
    pub fn advert(&self) -> Option<&Arc<SignedAdvert>> {
        self.current.as_ref().map(|current| &current.advert)
    }

    /// Takes a sequence number that was seen on an advert of ours; `true` where the
    /// next one has to pass it. A forged one cannot come here: it would have to bear
    /// our signature.
    pub fn outbid(&mut self, sequence: u64) -> bool {
        let outbid = sequence > self.sequence;
        self.sequence = self.sequence.max(sequence);
        outbid
    }

    /// Takes other addresses and prefixes, for the next advert.
    pub fn set_place(&mut self, addresses: Vec<IpAddr>, routes: Vec<IpNet>) {
        let Template { addresses: known, routes: known_routes, .. } = &mut self.template;
        self.is_stale |= *known != addresses || *known_routes != routes;
        (*known, *known_routes) = (addresses, routes);
    }

    /// Makes a new advert where the candidates changed, half the lease is over, a
    /// higher sequence number was seen or the wall clock was set; otherwise `None`.
    ///
    /// # Errors
    /// [`AdvertError`] when what there is to say does not fit an advert.
    pub fn refresh(
        &mut self,
        candidates: &[Candidate],
        now: Instant,
        wall: SystemTime,
    ) -> Result<Option<Arc<SignedAdvert>>, AdvertError> {
        let is_same = self.current.as_ref().is_some_and(|current| {
            !self.is_stale
                && current.candidates == candidates
                && current.advert.advert().sequence >= self.sequence
        });
        if is_same && !self.is_outdated(now, wall) {
            return Ok(None);
        }
        let sequence = self.next_sequence(wall);
        let Template { name, addresses, routes, certificate } = self.template.clone();
        let advert = Advert {
            node: self.identity.public_key(),
            name,
            addresses,
            routes,
            candidates: candidates.to_vec(),
            certificate,
            sequence,
            expires: wall + LEASE,
        };
        let advert = Arc::new(self.sign_what_fits(advert)?);
        self.is_stale = false;
        self.sequence = sequence;
        let follows = |current: &Current| now.saturating_duration_since(current.made.0) < CALM;
        self.delay = match &self.current {
            Some(current) if follows(current) => (self.delay * 2).min(DELAY.1),
            _ => DELAY.0,
        };
        self.current = Some(Current {
            advert: Arc::clone(&advert),
            candidates: candidates.to_vec(),
            made: (now, wall),
        });
        Ok(Some(advert))
    }

    /// A member's last word: that what is published of it may go. A node that is no member of
    /// a network has nothing that would prove it.
    pub fn last_word(&mut self, wall: SystemTime) -> Option<SignedAdvert> {
        let certificate = Some(self.template.certificate.clone()?);
        let last = Advert {
            node: self.identity.public_key(),
            name: self.template.name.clone(),
            addresses: vec![],
            routes: vec![],
            candidates: vec![],
            certificate,
            sequence: self.next_sequence(wall),
            expires: wall,
        };
        last.sign(&self.identity, &self.zone).ok()
    }

    /// Milliseconds since 1970 as the number of the advert: it rises also where the memory of
    /// the last one was lost, unless the clock was set back.
    fn next_sequence(&self, wall: SystemTime) -> u64 {
        let clock = wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_millis();
        u64::try_from(clock).unwrap_or(u64::MAX).max(self.sequence.saturating_add(1))
    }

    /// How long to wait for other changes of the candidates before the next advert.
    pub fn delay(&self) -> Duration {
        self.delay
    }

    /// Whether the advert has to be dated anew, though there is nothing else to say:
    /// half its lease is over, or the wall clock was set. To be asked every few seconds:
    /// no deadline can tell when a clock will be set, or a suspended machine wake up.
    pub fn is_outdated(&self, now: Instant, wall: SystemTime) -> bool {
        self.current.as_ref().is_some_and(|current| {
            now >= current.renew_at() || clock_step(current.made, now, wall) >= CLOCK_STEP
        })
    }

    /// When the advert has to be made anew at the latest.
    pub fn renew_at(&self) -> Option<Instant> {
        self.current.as_ref().map(Current::renew_at)
    }

    /// Leaves out the last candidates, which are the worst, until the rest fits: relayed
    /// ones only where there are no others, since they work where nothing else does.
    fn sign_what_fits(&self, mut advert: Advert) -> Result<SignedAdvert, AdvertError> {
        loop {
            match advert.sign(&self.identity, &self.zone) {
                Err(AdvertError::TooLarge) if !advert.candidates.is_empty() => {
                    let is_direct = |one: &Candidate| one.kind != CandidateKind::Relayed;
                    let worst = advert.candidates.iter().rposition(is_direct);
                    advert.candidates.remove(worst.unwrap_or(advert.candidates.len() - 1));
                }
                done => return done,
            }
        }
    }
}

impl Current {
    fn renew_at(&self) -> Instant {
        self.made.0 + LEASE / 2
    }
}

/// How far the wall clock has moved other than the time that passed since both were read.
pub fn clock_step(read: (Instant, SystemTime), now: Instant, wall: SystemTime) -> Duration {
    let expected = read.1 + now.saturating_duration_since(read.0);
    wall.duration_since(expected).unwrap_or_else(|earlier| earlier.duration())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Duration = Duration::from_secs(1_800_000_000);

    fn own(sequence: u64) -> Own {
        let template =
            Template { name: "a".into(), addresses: vec![], routes: vec![], certificate: None };
        let zone = "mesh.example".parse().expect("a zone");
        Own::new(Arc::new(Identity::from_seed(&[1; 32])), zone, template, sequence)
    }

    fn some(addr: &str) -> Vec<Candidate> {
        vec![Candidate {
            kind: CandidateKind::ServerReflexive,
            addr: addr.parse().expect("an address"),
        }]
    }

    #[test]
    fn an_advert_is_made_when_something_changed_and_only_then() {
        let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + WALL);
        let mut own = own(0);
        let here = some("198.51.100.1:1");
        let first = own.refresh(&here, now, wall).expect("fits").expect("the first");
        let second = Duration::from_secs(1);
        assert_eq!(own.refresh(&here, now + second, wall + second), Ok(None));
        let there = some("198.51.100.2:1");
        let moved = own.refresh(&there, now + second, wall + second).expect("fits").expect("moved");
        assert!(moved.advert().sequence > first.advert().sequence);
        let half = second + LEASE / 2;
        let renewed = own.refresh(&there, now + half, wall + half).expect("fits");
        assert!(renewed.is_some(), "half the lease is over");
    }

    #[test]
    fn the_last_word_of_a_member_ends_every_advert_of_it() {
        let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + WALL);
        let mut own = own(0);
        assert_eq!(own.last_word(wall), None);
        own.template.certificate = Some(vec![1; 200]);
        let advert = own.refresh(&some("198.51.100.1:1"), now, wall).expect("fits").expect("first");
        let last = own.last_word(wall).expect("it is a member");
        assert!(last.advert().is_withdrawal(wall));
        assert!(last.advert().sequence > advert.advert().sequence);
        assert_eq!(last.advert().certificate, advert.advert().certificate);
    }

    #[test]
    fn the_sequence_rises_though_the_clock_goes_back() {
        let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + WALL);
        let ahead = u64::try_from(WALL.as_millis()).expect("fits") + 1_000_000;
        let mut own = own(ahead);
        let first = own.refresh(&[], now, wall).expect("fits").expect("the first");
        assert_eq!(first.advert().sequence, ahead + 1);
        let back = wall - Duration::from_secs(3600);
        let dated_anew = own.refresh(&[], now, back).expect("fits").expect("the clock was set");
        assert_eq!(dated_anew.advert().sequence, ahead + 2);
        assert_eq!(dated_anew.advert().expires, back + LEASE);
        assert!(own.outbid(ahead + 10));
        let outbid = own.refresh(&[], now, back).expect("fits").expect("was outbid");
        assert_eq!(outbid.advert().sequence, ahead + 11);
    }

    #[test]
    fn changes_without_end_become_few_adverts_and_a_rare_one_is_told_at_once() {
        let (start, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + WALL);
        let mut own = own(0);
        let mut adverts = 0;
        let mut told_at = Duration::ZERO;
        for n in 0..720u16 {
            // Something else every five seconds, for an hour.
            let passed = Duration::from_secs(5) * u32::from(n);
            if passed >= told_at + own.delay() {
                let here = some(&format!("198.51.100.1:{}", n + 1));
                let made = own.refresh(&here, start + passed, wall + passed).expect("fits");
                adverts += usize::from(made.is_some());
                told_at = passed;
            }
        }
        assert!(adverts < 140, "{adverts}");
        let later = Duration::from_secs(5000);
        own.refresh(&some("198.51.100.2:1"), start + later, wall + later).expect("fits");
        assert_eq!(own.delay(), DELAY.0);
    }

    #[test]
    fn a_machine_that_slept_dates_its_advert_anew_when_it_wakes() {
        let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + WALL);
        let mut own = own(0);
        assert!(!own.is_outdated(now, wall), "there is none yet");
        own.refresh(&[], now, wall).expect("fits").expect("the first");
        let second = Duration::from_secs(1);
        assert!(!own.is_outdated(now + second, wall + second));
        // Its own clock stood still meanwhile (CLOCK_MONOTONIC).
        let awake = wall + 2 * LEASE;
        assert!(own.is_outdated(now + second, awake));
        own.refresh(&[], now + second, awake).expect("fits").expect("dated anew");
        assert!(!own.is_outdated(now + second, awake));
        assert!(own.is_outdated(now + second, wall), "set back again");
    }

    #[test]
    fn what_does_not_fit_leaves_out_the_worst_candidates() {
        let mut own = own(0);
        own.template.name = "n".repeat(63);
        own.template.routes = (0..16)
            .map(|n| format!("fd00:1111:2222:{n:04x}::/64").parse().expect("a prefix"))
            .collect();
        let all: Vec<Candidate> = (1..=8)
            .map(|n| {
                let kind = if n > 6 { CandidateKind::Relayed } else { CandidateKind::Host };
                let addr = format!("[2001:db8:1111:2222:3333:4444:5555:{n:04x}]:51820");
                Candidate { kind, addr: addr.parse().expect("an address") }
            })
            .collect();
        let made = own.refresh(&all, Instant::now(), SystemTime::UNIX_EPOCH + WALL);
        let made = made.expect("fits").expect("the first");
        let kept = &made.advert().candidates;
        assert!((3..8).contains(&kept.len()), "{}", kept.len());
        let (relayed, direct): (Vec<Candidate>, Vec<Candidate>) =
            kept.iter().partition(|one| one.kind == CandidateKind::Relayed);
        assert!(all.starts_with(&direct));
        assert_eq!(relayed, all[6..], "they work where nothing else does");
    }

    #[test]
    fn another_place_is_said_at_once() {
        let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + WALL);
        let mut own = own(0);
        own.refresh(&[], now, wall).expect("fits").expect("the first");
        let slice: IpNet = "10.42.7.0/24".parse().expect("a prefix");
        let place = || (vec!["10.42.7.1".parse().expect("an address")], vec![slice]);
        let (addresses, routes) = place();
        own.set_place(addresses, routes);
        let moved = own.refresh(&[], now, wall).expect("fits").expect("another place");
        assert_eq!(moved.advert().routes, [slice]);
        let (addresses, routes) = place();
        own.set_place(addresses, routes);
        assert_eq!(own.refresh(&[], now, wall), Ok(None), "it is the same");
    }
}
