//! The agent of a peer that means harm: genuine checks of any content, from anywhere, in
//! any order.

#![no_main]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use libfuzzer_sys::fuzz_target;
use zonemesh_fuzz::{Bytes, check_keys, sow};
use zonemesh_punch::{
    Agent, Candidate, CandidateKind, CheckKeys, Event, LocalRelay, MAX_LEARNED, MAX_LISTED,
    Mapping, NatProfile, PortPattern, Route, Transmit, Via,
    check::{Answer, Check, Plan, Receipt, Request, Stage, Window},
};

fuzz_target!(
    init: {
        sow("agent", &[
            // Candidates, an answer, a request from there, data both ways, time.
            [&[0, 2, 1, 1, 2, 2][..], &[1, 0], &[0; 13], &[2, 1, 0, 1], &[0; 40], &[3, 0x88],
             &[4, 0, 1], &[5], &[3, 0xc8]].concat(),
            // A relay, hard NATs, a plan.
            [&[6, 1, 7, 2], &[0, 1, 4, 1][..], &[8, 2, 2], &[2, 0x11, 1, 1, 0xff], &[3; 30],
             &[3, 0xa8], &[9], &[10, 1], &[3, 0xa8]].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let mut world = World::new();
        for _ in 0..96 {
            if bytes.is_empty() {
                break;
            }
            world.step(&mut bytes);
            world.drain();
        }
        world.check_bounds();
    }
);

struct World {
    agent: Agent,
    peer: CheckKeys,
    start: Instant,
    now: Instant,
    asked: Vec<Transmit>,
    sent: usize,
    received: usize,
    sockets: Vec<u32>,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let mut agent = Agent::new(check_keys(1, 2), [7; 32], now, 1_800_000_000_000);
        let own = "10.0.0.1:51820".parse().expect("literal");
        agent.set_local_candidates(&[Candidate { kind: CandidateKind::Host, addr: own }], now);
        Self {
            agent,
            peer: check_keys(2, 1),
            start: now,
            now,
            asked: Vec::new(),
            sent: 0,
            received: 0,
            sockets: Vec::new(),
        }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        let now = self.now;
        match bytes.byte() {
            0 => {
                let count = bytes.byte() % 24;
                let candidates: Vec<Candidate> = (0..count).map(|_| candidate(bytes)).collect();
                self.agent.set_remote_candidates(&candidates, now);
            }
            // An answer to the newest question or one before it.
            1 => {
                let back = usize::from(bytes.byte());
                let Some(asked) = self.asked.iter().rev().nth(back) else { return };
                let route = asked.route;
                let id = asked.payload[8..20].try_into().expect("a STUN message");
                let answer = Answer {
                    id,
                    clock_ms: clock(bytes),
                    mapped: bytes.addr(),
                    receipt: receipt(bytes),
                    plan: plan(bytes),
                };
                self.give(route, &Check::Answer(answer));
            }
            2 => {
                let route = self.route(bytes);
                let request = Request {
                    id: bytes.array(),
                    clock_ms: clock(bytes),
                    priority: u32::from(bytes.u16()) << 16,
                    nominate: bytes.byte() & 1 == 1,
                    receipt: receipt(bytes),
                    plan: plan(bytes),
                };
                self.give(route, &Check::Request(request));
            }
            3 => {
                self.now += bytes.span();
                self.settle();
            }
            4 => {
                let route = self.route(bytes);
                self.agent.note_data_received(route, now);
            }
            5 => self.agent.note_data_sent(now),
            6 => {
                let relayed = bytes.addr();
                let relays = [LocalRelay { id: 7, relayed }];
                self.agent.set_relays(&relays[..usize::from(bytes.byte() & 1)], now);
            }
            7 => self.agent.local_changed(now),
            8 => {
                let nat = profile(bytes);
                self.agent.set_hard(true, now);
                self.agent.set_nat(nat, now);
            }
            9 => self.agent.grant_turn(now),
            10 => {
                let external = (bytes.byte() & 1 == 1).then(|| bytes.addr());
                self.agent.handle_sample(external, now);
            }
            11 => self.agent.wake(now),
            12 => self.agent.note_data_dead(now),
            13 => self.agent.note_too_big(now),
            14 => self.agent.set_mapping_lifetime(Some(bytes.span())),
            _ => {
                let route = self.route(bytes);
                let _ = self.agent.handle_datagram(route, bytes.short_string(), now);
            }
        }
    }

    fn give(&mut self, from: Route, check: &Check) {
        let datagram = self.peer.seal(check);
        self.received += 1;
        let before = self.sent;
        let _ = self.agent.handle_datagram(from, &datagram, self.now);
        self.drain();
        assert!(self.sent - before <= 64 + 256, "{} for one", self.sent - before);
    }

    /// Time that has come is done with: it may not ask to be called for ever.
    fn settle(&mut self) {
        for _ in 0..64 {
            self.agent.handle_timeout(self.now);
            self.drain();
            if self.agent.poll_timeout().is_none_or(|due| due > self.now) {
                return;
            }
        }
        panic!("it asks to be called again and again: {:?}", self.agent);
    }

    fn drain(&mut self) {
        while let Some(transmit) = self.agent.poll_transmit() {
            assert!(transmit.payload.len() <= 1500);
            self.sent += 1;
            self.asked.push(transmit);
            if self.asked.len() > 512 {
                self.asked.drain(..256);
            }
        }
        while let Some(event) = self.agent.poll_event() {
            match event {
                Event::WantSockets { count } => {
                    let count = u32::from(count.min(zonemesh_punch::MAX_SOCKETS));
                    self.sockets = (0..count).collect();
                    self.agent.set_extra(&self.sockets, self.now);
                }
                Event::ReleaseSockets { keep } => {
                    self.sockets = keep.into_iter().collect();
                    self.agent.set_extra(&self.sockets, self.now);
                }
                Event::WantTurn
                | Event::TurnOver
                | Event::WantSample
                | Event::WantKnownSocket
                | Event::PathSelected(_)
                | Event::PathMtu(_)
                | Event::PathLost => {}
            }
        }
        let pairs = self.agent.pairs().count();
        let most = MAX_LISTED + MAX_LEARNED + self.sockets.len().max(1);
        assert!(pairs <= most, "{pairs} pairs");
    }

    /// What the protocol promises: 40 checks and 80 answers a second with bursts of 16 and
    /// 48, and in attempts at hard NATs 200 datagrams a second.
    fn check_bounds(&self) {
        let seconds = (self.now - self.start + Duration::from_secs(1)).as_secs();
        let seconds = usize::try_from(seconds).expect("short");
        let most = 400 + (40 + 80 + 200) * seconds + 64 * 4;
        assert!(self.sent <= most, "{} in {seconds} s", self.sent);
    }

    fn route(&self, bytes: &mut Bytes<'_>) -> Route {
        let via = match bytes.byte() {
            0..=0x3f => Via::Socket,
            0x40..=0x7f => Via::Relay(7),
            other => Via::Extra(u32::from(other & 0x3f)),
        };
        Route { via, remote: bytes.addr() }
    }
}

fn candidate(bytes: &mut Bytes<'_>) -> Candidate {
    let kind = match bytes.byte() & 3 {
        0 => CandidateKind::Host,
        1 => CandidateKind::ServerReflexive,
        2 => CandidateKind::Mapped,
        _ => CandidateKind::Relayed,
    };
    let addr: SocketAddr = bytes.addr();
    Candidate { kind, addr }
}

fn clock(bytes: &mut Bytes<'_>) -> u64 {
    match bytes.byte() {
        0xff => u64::from_be_bytes(bytes.array()),
        near => 1_800_000_000_000 + u64::from(near) * 500,
    }
}

fn receipt(bytes: &mut Bytes<'_>) -> Receipt {
    let mut ms = || {
        let ms = bytes.u16();
        (ms != u16::MAX).then(|| u32::from(ms))
    };
    Receipt { data_ms: ms(), any_ms: ms(), opened_ms: ms() }
}

fn profile(bytes: &mut Bytes<'_>) -> NatProfile {
    let mapping = match bytes.byte() & 3 {
        0 => Mapping::Unknown,
        1 => Mapping::Independent,
        _ => Mapping::Dependent,
    };
    let ports = match bytes.byte() & 3 {
        0 => PortPattern::Unknown,
        1 => PortPattern::Preserving,
        2 => PortPattern::Sequential { step: i32::from(bytes.u16() as i16) },
        _ => PortPattern::Random,
    };
    NatProfile { mapping, ports }
}

fn plan(bytes: &mut Bytes<'_>) -> Option<Plan> {
    let flags = bytes.byte();
    if flags & 1 == 0 {
        return None;
    }
    let stage = match flags >> 1 & 3 {
        0 => Stage::None,
        1 => Stage::Willing,
        _ => Stage::Open,
    };
    let window = (flags & 8 != 0).then(|| Window { base: bytes.u16(), count: bytes.byte() });
    Some(Plan { nat: profile(bytes), stage, number: flags >> 4, window })
}
