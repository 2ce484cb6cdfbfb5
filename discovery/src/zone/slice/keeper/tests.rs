//! Keepers against a modelled zone, in virtual time.

use std::collections::BinaryHeap;

use proptest::prelude::*;

use super::*;

const WALL: Duration = Duration::from_secs(1_800_000_000);

/// From a node to the zone, and how long an answer is waited for.
const TRIP: Duration = Duration::from_millis(10);
const PATIENCE: Duration = Duration::from_secs(5);

/// How often nodes see all claims, where they do.
const LISTING: Duration = Duration::from_secs(5);

#[test]
fn a_node_takes_a_slice_renews_it_and_keeps_it() {
    let mut world = World::new(1, "10.42.0.0/16");
    world.run(Duration::from_secs(2));
    let slice = world.nodes[0].held().expect("a slice");
    assert_eq!(world.nodes[0].events, [SliceEvent::Held(slice, world.wall(0) + LEASE)]);
    world.run(LEASE * 3);
    assert_eq!(world.nodes[0].held(), Some(slice));
    let expires = world.valid_claims()[&slice].1;
    assert!(expires > world.wall_now() + LEASE / 2, "it was renewed");
    assert!(world.nodes[0].events.iter().all(|event| matches!(event, SliceEvent::Held(..))));
}

#[test]
fn nodes_that_begin_together_take_a_slice_each_and_cost_little_from_then_on() {
    let mut world = World::new(20, "10.42.0.0/19");
    world.run(Duration::from_secs(60));
    world.assert_settled();
    let before = world.served;
    world.run(LEASE / 2);
    // Looking after it every five minutes, and one renewal.
    assert!(world.served - before <= 20 * (12 * 12 + 2), "{}", world.served - before);
}

#[test]
fn the_last_slice_goes_to_one_and_the_others_are_told_that_there_is_none() {
    let mut world = World::new(6, "10.42.0.0/22");
    world.run(Duration::from_secs(120));
    let held = world.nodes.iter().filter(|node| node.held().is_some()).count();
    assert_eq!(held, 4);
    let full = |node: &&Node| node.events.contains(&SliceEvent::Full);
    assert_eq!(world.nodes.iter().filter(full).count(), 2);
    let before = world.served;
    world.run(Duration::from_secs(3600));
    // Each looks at all four twice in ten minutes.
    assert!(world.served - before < 2 * 6 * 4 * 3 + 4 * 13, "{}", world.served - before);
    // One leaves for good: its slice is free when the lease is over, and found within the
    // next round.
    let gone = world.nodes.iter().position(|node| node.held().is_some()).expect("one");
    world.nodes[gone].off = true;
    world.run(LEASE + Duration::from_secs(1200));
    let held: BTreeSet<IpNet> =
        world.nodes.iter().filter(|node| !node.off).filter_map(Node::held).collect();
    assert_eq!(held.len(), 4);
}

#[test]
fn a_restart_keeps_the_slice_also_with_the_zone_away() {
    let mut world = World::new(2, "10.42.0.0/16");
    world.run(Duration::from_secs(5));
    let slice = world.nodes[0].held();
    world.zone.away = true;
    world.restart(0);
    assert_eq!(world.nodes[0].keeper.held(), slice, "at once");
    world.run(Duration::from_secs(7200));
    assert_eq!(world.nodes[0].held(), slice);
    world.zone.away = false;
    world.run(Duration::from_secs(120));
    assert_eq!(world.nodes[0].held(), slice);
    world.assert_settled();
}

#[test]
fn a_slice_that_lapsed_over_a_restart_is_used_when_the_zone_says_so() {
    let mut world = World::new(1, "10.42.0.0/16");
    world.run(Duration::from_secs(5));
    let slice = world.nodes[0].held().expect("a slice");
    world.nodes[0].off = true;
    world.run(LEASE * 2);
    world.zone.away = true;
    world.restart(0);
    world.run(Duration::from_secs(60));
    assert_eq!(world.nodes[0].keeper.held(), None, "somebody else may have it");
    world.zone.away = false;
    world.run(Duration::from_secs(120));
    assert_eq!(world.nodes[0].held(), Some(slice), "nobody has taken it");
}

#[test]
fn a_claim_outnumbers_the_one_before_also_where_the_clock_was_set_back() {
    let mut world = World::new(1, "10.42.0.0/16");
    world.run(Duration::from_secs(5));
    let slice = world.nodes[0].held().expect("a slice");
    let number = |world: &World| {
        let txt = &world.zone.records[&slice][0];
        SignedClaim::read(&zone(), &slice, txt).expect("a claim").claim().sequence
    };
    let before = number(&world);
    let (now, yesterday) = (world.now(), world.wall_now() - LEASE);
    let mut keeper = world.fresh_keeper(0);
    assert_eq!(keeper.poll_ask(now), Some(Ask::Look(slice)));
    let seen = world.zone.records[&slice].clone();
    keeper.handle_look(slice, seen, &|_| true, now, yesterday);
    let Some(Ask::Claim { claim, .. }) = keeper.poll_ask(now) else { panic!("{keeper:?}") };
    assert!(claim.claim().sequence > before, "{before}");
}

#[test]
fn a_lapsed_slice_is_taken_over_only_where_no_other_is_free() {
    let mut world = World::new(2, "10.42.0.0/23");
    world.nodes[1].off = true;
    world.run(Duration::from_secs(5));
    let first = world.nodes[0].held().expect("a slice");
    world.nodes[0].off = true;
    world.run(LEASE * 2);
    // It begins at that very slice and takes the other one.
    world.restart(1);
    world.run(Duration::from_secs(5));
    let second = world.nodes[1].held().expect("a slice");
    assert_ne!(first, second);
    // A third has to take the one that nobody came back for.
    world.add("10.42.0.0/23");
    world.run(Duration::from_secs(5));
    assert_eq!(world.nodes[2].held(), Some(first));
    // Who comes back then has to go on, and finds nothing.
    world.restart(0);
    world.run(Duration::from_secs(5));
    assert_eq!(world.nodes[0].held(), None);
    assert!(world.nodes[0].events.contains(&SliceEvent::Full));
}

#[test]
fn a_zone_that_lost_everything_gets_the_claims_back_at_once_where_it_is_listed() {
    let mut world = World::new(10, "10.42.0.0/16");
    world.lists = true;
    world.run(Duration::from_secs(30));
    let before: Vec<_> = world.nodes.iter().map(Node::held).collect();
    world.zone.forget();
    world.run(Duration::from_secs(30));
    let after: Vec<_> = world.nodes.iter().map(Node::held).collect();
    assert_eq!(before, after);
    world.assert_settled();
}

#[test]
fn whose_claim_was_lost_and_taken_by_another_takes_another_slice() {
    let mut world = World::new(2, "10.42.0.0/23");
    world.nodes[1].off = true;
    world.run(Duration::from_secs(5));
    let slice = world.nodes[0].held().expect("a slice");
    world.zone.forget();
    // The other one is the first to come. It wants the same, for there are only two and
    // the first one is in somebody's way.
    let other = world.nodes[0].keeper.ground.get(0).filter(|first| *first != slice);
    let other = other.unwrap_or_else(|| world.nodes[0].keeper.ground.get(1).expect("two"));
    world.nodes[1].keeper.set_avoided([other]);
    world.nodes[1].off = false;
    world.run(Duration::from_secs(5));
    assert_eq!(world.nodes[1].held(), Some(slice));
    world.run(LOOK_AFTER);
    assert_eq!(world.nodes[0].held(), Some(other));
    let lost = SliceEvent::Lost(slice, world.nodes[1].identity.public_key());
    assert!(world.nodes[0].events.contains(&lost));
    world.assert_settled();
}

#[test]
fn a_node_without_memory_finds_its_claim_in_the_zone() {
    let mut world = World::new(1, "10.42.0.0/16");
    world.lists = true;
    world.run(Duration::from_secs(5));
    let slice = world.nodes[0].held();
    // So that it would not come to the same by itself.
    let number = world.nodes[0].keeper.start(256);
    let first = world.nodes[0].keeper.ground.get(number).expect("one of 256");
    assert_eq!(slice, Some(first));
    world.nodes[0].kept = None;
    let now = world.now();
    let mut keeper = world.fresh_keeper(0);
    keeper.set_avoided([first]);
    keeper.handle_view(&world.zone.records, &|_| true, now, world.wall_now());
    assert_eq!(keeper.poll_ask(now), slice.map(Ask::Look));
}

#[test]
fn what_is_in_somebodys_way_is_not_taken() {
    let mut world = World::new(1, "10.42.0.0/22");
    let avoided = ["10.42.0.0/24", "10.42.2.0/23", "10.0.0.0/8", "10.42.0.0/16"];
    let avoided = avoided.map(|prefix| prefix.parse::<IpNet>().expect("a prefix"));
    world.nodes[0].keeper.set_avoided(avoided);
    world.run(Duration::from_secs(5));
    assert_eq!(world.nodes[0].held(), "10.42.1.0/24".parse().ok());
}

#[test]
fn hostile_records_neither_count_nor_stop_anybody() {
    let mut world = World::new(3, "10.42.0.0/22");
    let wall = world.wall_now();
    let stranger = Arc::new(Identity::from_seed(&[99; 32]));
    let ground = Ground::new(&["10.42.0.0/22".parse().expect("a prefix")], 24);
    let claim = |slice: IpNet, expires: SystemTime| {
        let node = stranger.public_key();
        let claim = SliceClaim { node, slice, sequence: 1, expires, certificate: None };
        claim.sign(&stranger, &zone()).expect("it can be signed").txt().to_vec()
    };
    let slice = |number| ground.get(number).expect("one of four");
    let records = [
        // Rubbish, a claim for ever, a stranger's, and one that belongs to another name.
        vec![vec![b"x".to_vec()], vec![vec![0xff; 255]; 40]],
        vec![claim(slice(1), wall + LEASE * 365)],
        vec![claim(slice(2), wall + LEASE)],
        vec![claim(slice(2), wall + LEASE)],
    ];
    for (number, set) in (0..).zip(records) {
        world.zone.records.insert(slice(number), set);
    }
    world.strangers.insert(stranger.public_key());
    world.run(Duration::from_secs(60));
    world.assert_settled();
}

#[test]
fn a_record_beside_ones_own_is_cleared_away() {
    let mut world = World::new(1, "10.42.0.0/16");
    world.run(Duration::from_secs(5));
    let slice = world.nodes[0].held().expect("a slice");
    let set = world.zone.records.get_mut(&slice).expect("a claim");
    set.push(vec![b"txtvers=1".to_vec(), b"pub=me".to_vec()]);
    world.run(LOOK_AFTER * 2);
    assert_eq!(world.nodes[0].held(), Some(slice));
    assert_eq!(world.zone.records[&slice].len(), 1);
}

#[test]
fn a_server_that_refuses_claims_is_not_stormed() {
    let mut world = World::new(1, "10.42.0.0/16");
    world.zone.refuses = true;
    world.run(Duration::from_secs(3600));
    assert_eq!(world.nodes[0].held(), None);
    assert!((10..300).contains(&world.served), "{}", world.served);
    world.zone.refuses = false;
    world.run(BACKOFF.1 * 2);
    assert!(world.nodes[0].held().is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    /// Whatever gets lost or comes late, and whoever restarts, no two nodes hold one slice
    /// by leases that both run; and when it is over each has one.
    #[test]
    fn no_slice_is_held_twice_whatever_fails(
        seed: u64,
        nodes in 2usize..8,
        crowded: bool,
        faults in prop::collection::vec((0u64..400, 0usize..8, 0u8..5), 0..40),
    ) {
        let ranges = if crowded { "10.42.0.0/21" } else { "10.42.0.0/16" };
        let mut world = World::new(nodes, ranges);
        world.chance.0 = seed;
        world.zone.loses_requests = 10;
        world.zone.loses_answers = 20;
        world.zone.delays = 20;
        let mut faults = faults;
        faults.sort_unstable();
        for (at, node, fault) in faults {
            world.run_until(Duration::from_secs(at));
            match fault {
                0 => world.zone.away = true,
                1 => world.zone.away = false,
                2 => world.restart(node % nodes),
                3 => world.nodes[node % nodes].off = true,
                _ => world.lists = !world.lists,
            }
        }
        world.zone.away = false;
        world.zone.loses_requests = 0;
        world.zone.loses_answers = 0;
        for node in 0..nodes {
            if world.nodes[node].off {
                world.restart(node);
            }
        }
        world.run(Duration::from_secs(900));
        world.assert_settled();
    }
}

/// Nodes, a zone between them, and a clock.
struct World {
    base: Instant,
    passed: Duration,
    nodes: Vec<Node>,
    zone: Zones,
    queue: BinaryHeap<std::cmp::Reverse<(Duration, u64)>>,
    on_their_way: BTreeMap<u64, Passing>,
    numbers: u64,
    served: u64,
    chance: Chance,
    /// Whether nodes see all claims.
    lists: bool,
    strangers: BTreeSet<PublicKey>,
}

struct Node {
    identity: Arc<Identity>,
    ground: Ground,
    keeper: SliceKeeper,
    kept: Option<(IpNet, SystemTime)>,
    events: Vec<SliceEvent>,
    off: bool,
    /// The number of its question, if one is on its way: answers to others are not heard.
    asking: Option<u64>,
}

/// The zone's server, and how it and the way to it fail, in percent.
#[derive(Default)]
struct Zones {
    records: BTreeMap<IpNet, TxtSet>,
    has_forgotten: bool,
    away: bool,
    refuses: bool,
    loses_requests: u64,
    loses_answers: u64,
    delays: u64,
}

impl Zones {
    fn forget(&mut self) {
        self.records.clear();
        self.has_forgotten = true;
    }
}

/// What comes of a question.
enum Answer {
    Looked(IpNet, TxtSet),
    Claimed(Claimed),
    Failed { is_refused: bool },
}

/// Something that happens later.
enum Passing {
    Request { node: usize, number: u64, ask: Ask },
    Answer { node: usize, number: u64, answer: Answer },
    Listing,
}

impl Node {
    fn held(&self) -> Option<IpNet> {
        self.keeper.held()
    }
}

impl World {
    fn new(nodes: usize, ranges: &str) -> Self {
        let mut world = Self {
            base: Instant::now(),
            passed: Duration::ZERO,
            nodes: Vec::new(),
            zone: Zones::default(),
            queue: BinaryHeap::new(),
            on_their_way: BTreeMap::new(),
            numbers: 0,
            served: 0,
            chance: Chance(7),
            lists: false,
            strangers: BTreeSet::new(),
        };
        for _ in 0..nodes {
            world.add(ranges);
        }
        world.later(Duration::ZERO, Passing::Listing);
        world
    }

    fn add(&mut self, ranges: &str) {
        let mut seed = [3; 32];
        seed[0] = self.nodes.len() as u8;
        let identity = Arc::new(Identity::from_seed(&seed));
        let ground = Ground::new(&[ranges.parse().expect("a prefix")], 24);
        let keeper = keeper(&identity, &ground, None, self.now(), self.wall_now());
        let (kept, events) = (None, Vec::new());
        self.nodes.push(Node { identity, ground, keeper, kept, events, off: false, asking: None });
    }

    fn fresh_keeper(&self, node: usize) -> SliceKeeper {
        let Node { identity, ground, kept, .. } = &self.nodes[node];
        keeper(identity, ground, *kept, self.now(), self.wall_now())
    }

    fn restart(&mut self, node: usize) {
        self.nodes[node].keeper = self.fresh_keeper(node);
        self.nodes[node].off = false;
        self.nodes[node].asking = None;
    }

    fn now(&self) -> Instant {
        self.base + self.passed
    }

    fn wall(&self, seconds: u64) -> SystemTime {
        UNIX_EPOCH + WALL + Duration::from_secs(seconds)
    }

    fn wall_now(&self) -> SystemTime {
        UNIX_EPOCH + WALL + self.passed
    }

    fn later(&mut self, after: Duration, what: Passing) {
        self.numbers += 1;
        self.queue.push(std::cmp::Reverse((self.passed + after, self.numbers)));
        self.on_their_way.insert(self.numbers, what);
    }

    fn run(&mut self, time: Duration) {
        self.run_until(self.passed + time);
    }

    fn run_until(&mut self, end: Duration) {
        loop {
            self.drive();
            let due = self.nodes.iter().filter(|node| !node.off);
            let due = due.filter_map(|node| node.keeper.poll_timeout());
            let due = due.map(|due| due.saturating_duration_since(self.base)).min();
            let passing = self.queue.peek().map(|next| next.0.0);
            let next = due.into_iter().chain(passing).min().unwrap_or(end);
            if next > end {
                break;
            }
            self.passed = next.max(self.passed);
            if passing == Some(next) {
                let number = self.queue.pop().expect("it was there").0.1;
                let what = self.on_their_way.remove(&number).expect("it was there");
                self.pass(what);
            }
        }
        self.passed = end.max(self.passed);
    }

    /// Everybody does what is due, and tells what happened.
    fn drive(&mut self) {
        let now = self.now();
        for node in 0..self.nodes.len() {
            if self.nodes[node].off {
                continue;
            }
            while let Some(ask) = self.nodes[node].keeper.poll_ask(now) {
                self.numbers += 1;
                let number = self.numbers;
                self.nodes[node].asking = Some(number);
                // Whoever has heard nothing for five seconds does not listen any more.
                let answer = Answer::Failed { is_refused: false };
                self.later(PATIENCE, Passing::Answer { node, number, answer });
                if self.zone.away || self.chance.percent() < self.zone.loses_requests {
                    continue;
                }
                let mut after = TRIP;
                if self.chance.percent() < self.zone.delays {
                    after += Duration::from_secs(self.chance.percent() / 8);
                }
                self.later(after, Passing::Request { node, number, ask });
            }
            let this = &mut self.nodes[node];
            while let Some(event) = this.keeper.poll_event() {
                if let SliceEvent::Held(slice, expires) = event {
                    this.kept = Some((slice, expires));
                }
                this.events.push(event);
            }
        }
        self.assert_never_twice();
    }

    fn pass(&mut self, what: Passing) {
        let (now, wall) = (self.now(), self.wall_now());
        let strangers = self.strangers.clone();
        let is_member = |claim: &SliceClaim| !strangers.contains(&claim.node);
        match what {
            Passing::Listing => {
                if self.lists && !self.zone.away {
                    for node in &mut self.nodes {
                        node.keeper.handle_view(&self.zone.records, &is_member, now, wall);
                    }
                }
                self.later(LISTING, Passing::Listing);
            }
            Passing::Request { node, number, ask } => {
                self.served += 1;
                let answer = self.serve(ask);
                if self.chance.percent() >= self.zone.loses_answers {
                    self.later(TRIP, Passing::Answer { node, number, answer });
                }
            }
            Passing::Answer { node, number, answer } => {
                let node = &mut self.nodes[node];
                if node.off || node.asking.take_if(|asking| *asking == number).is_none() {
                    return;
                }
                let keeper = &mut node.keeper;
                match answer {
                    Answer::Looked(slice, seen) => {
                        keeper.handle_look(slice, seen, &is_member, now, wall);
                    }
                    Answer::Claimed(outcome) => keeper.handle_claimed(outcome, now, wall),
                    Answer::Failed { is_refused } => keeper.handle_failed(is_refused, now),
                }
            }
        }
    }

    /// What an RFC 2136 server does.
    fn serve(&mut self, ask: Ask) -> Answer {
        match ask {
            Ask::Look(slice) => {
                Answer::Looked(slice, self.zone.records.get(&slice).cloned().unwrap_or_default())
            }
            Ask::Claim { .. } if self.zone.refuses => Answer::Failed { is_refused: true },
            Ask::Claim { claim, replaces } => {
                let there = self.zone.records.entry(claim.claim().slice).or_default();
                if *there != replaces {
                    return Answer::Claimed(Claimed::Raced);
                }
                *there = vec![claim.txt().to_vec()];
                Answer::Claimed(Claimed::Done)
            }
        }
    }

    /// No two nodes hold one slice by leases that run; but for a while where the zone has
    /// forgotten the first one's.
    fn assert_never_twice(&self) {
        let mut holders = BTreeSet::new();
        for node in self.nodes.iter().filter(|node| !node.off && !self.zone.has_forgotten) {
            let held = node.keeper.held.filter(|held| held.expires > self.wall_now());
            if let Some(Held { slice, .. }) = held {
                assert!(holders.insert(slice), "{slice} is held twice");
            }
        }
    }

    fn valid_claims(&self) -> BTreeMap<IpNet, (PublicKey, SystemTime)> {
        let read = |(slice, set): (&IpNet, &TxtSet)| {
            let [txt] = &set[..] else { return None };
            let signed = SignedClaim::verify(&zone(), slice, txt, self.wall_now()).ok()?;
            Some((*slice, (signed.claim().node, signed.claim().expires)))
        };
        self.zone.records.iter().filter_map(read).collect()
    }

    /// Each has a slice of its own, and the zone says so.
    fn assert_settled(&self) {
        let claims = self.valid_claims();
        let mut held = BTreeSet::new();
        for node in &self.nodes {
            let slice = node.held().expect("a slice");
            assert!(held.insert(slice), "{slice} is held twice");
            assert_eq!(claims[&slice].0, node.identity.public_key());
        }
    }
}

fn keeper(
    identity: &Arc<Identity>,
    ground: &Ground,
    kept: Option<(IpNet, SystemTime)>,
    now: Instant,
    wall: SystemTime,
) -> SliceKeeper {
    SliceKeeper::new(zone(), Arc::clone(identity), ground.clone(), kept, now, wall)
}

fn zone() -> Zone {
    "mesh.example".parse().expect("a zone")
}

/// Randomness that is the same every time (splitmix64).
struct Chance(u64);

impl Chance {
    fn percent(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % 100
    }
}
