//! Checks as they go out and come in.

use std::time::{Duration, Instant};

use rand::{Rng, RngExt};

use super::{Agent, CheckError, MAX_QUEUED};
use crate::{
    candidate::{Candidate, CandidateKind},
    check::{Answer, Check, Receipt, Request},
    replay::Old,
    route::{Route, Via},
    status::Transmit,
};

/// How long an answer is waited for: what queues longer than that is no path.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A pair whose check went out again, because the first got no answer.
const FIRST_MISS: u32 = 2;

/// A check whose answer is waited for. The pace of checks bounds how many there are.
#[derive(Debug)]
pub(super) struct InFlight {
    id: [u8; 12],
    pub(super) route: Route,
    at: Instant,
    what: What,
}

/// What a check is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    /// To see whether the pair answers, and perhaps to nominate it.
    Check { nominate: bool },
    /// To open our own NAT: it is to get so many routers far.
    Opener { hops: u8 },
    /// To see whether an IP packet of this size passes whole.
    Size(u16),
    /// One of many, of which nothing is remembered: to see whether anybody is there.
    Probe,
}

impl Agent {
    pub(super) fn handle_request(
        &mut self,
        from: Route,
        request: &Request,
        now: Instant,
    ) -> Result<(), CheckError> {
        match self.replay.admit(request, now) {
            Ok(()) => {}
            Err(Old::Seen) => return Err(CheckError::Replayed),
            Err(Old::Stale) => {
                if self.challenges.take(now) && self.checks.take(now) {
                    self.send_check(from, What::Check { nominate: false }, now);
                }
                return Err(CheckError::Stale);
            }
        }
        if !self.answers.take(now) {
            return Err(CheckError::Busy);
        }
        let silent = self.selected.is_none();
        let newest = self.nominated.is_none_or(|(_, clock_ms)| clock_ms <= request.clock_ms);
        if request.nominate && newest {
            self.nominated = Some((from, request.clock_ms));
        }
        if let Some(pair) = self.pair_or_learn(from, request.learned_kind(), now) {
            pair.heard(now);
        }
        // Who is heard is there: what did not answer a while ago may do so now.
        if silent && self.wakes.take(now) {
            self.recheck(now);
        }
        // Its answer keeps this side's NAT open as well as a check of our own would.
        if self.upkeep(from, now).is_some() {
            self.put_off(from, now);
        }
        self.handle_plan(from, request.plan, now);
        self.handle_receipt(from, &request.receipt, now);
        self.handle_call(from, &request.receipt, now);
        let answer = Answer {
            id: request.id,
            clock_ms: self.clock_ms(now),
            mapped: from.remote,
            receipt: self.receipt(from, now),
            // An answer is no longer than what it answers.
            plan: request.plan.and_then(|_| self.plan(from)),
        };
        self.transmit(from, What::Check { nominate: false }, &Check::Answer(answer));
        Ok(())
    }

    pub(super) fn handle_answer(
        &mut self,
        from: Route,
        answer: &Answer,
        now: Instant,
    ) -> Result<(), CheckError> {
        let waited = |sent: &InFlight| sent.id == answer.id && now <= sent.at + ANSWER_WITHIN;
        let Some(index) = self.in_flight.iter().position(waited) else {
            if !self.is_probe(from, &answer.id) {
                return Err(CheckError::Unsolicited);
            }
            // Somebody is there: a check that is remembered tells the rest.
            if let Some(pair) = self.pair_or_learn(from, CandidateKind::PeerReflexive, now) {
                pair.heard(now);
            }
            return Ok(());
        };
        if self.in_flight[index].route != from {
            return Err(CheckError::Elsewhere);
        }
        let Some(sent) = self.in_flight.remove(index) else { return Ok(()) };
        if self.replay.learn(answer.clock_ms, now)
            && let Some((_, clock_ms)) = &mut self.nominated
        {
            *clock_ms = 0;
        }
        let Some(pair) = self.pair_mut(from) else { return Ok(()) };
        pair.answered(sent.at, answer.mapped, now);
        self.told |= sent.what == What::Check { nominate: true } && self.selected == Some(from);
        if let What::Size(size) = sent.what {
            self.passed(from, size, now);
        }
        self.note_gain(from, now);
        self.handle_plan(from, answer.plan, now);
        self.handle_receipt(from, &answer.receipt, now);
        self.select(now);
        let interval = self.rest_interval(from, now);
        // A nomination is repeated until it is heard.
        let hold = self.keys.controlling() && self.selected == Some(from) && !self.told;
        if let Some(pair) = self.pair_mut(from)
            && !hold
        {
            pair.rest(interval, now);
        }
        self.confirm_gain(now);
        Ok(())
    }

    /// The pair whose check is due most: urgent ones first, then the longest waiting.
    pub(super) fn next_due(&self, now: Instant) -> Option<Route> {
        let due = self.pairs.iter().filter(|pair| pair.is_due(now));
        due.min_by_key(|pair| (!pair.urgent, pair.due)).map(|pair| pair.route)
    }

    pub(super) fn check_pair(&mut self, route: Route, now: Instant) {
        let nominate = self.keys.controlling() && self.selected == Some(route);
        let is_passive = self.pair_mut(route).is_some_and(|pair| pair.is_passive(now));
        let what = if is_passive { What::Opener { hops: 0 } } else { What::Check { nominate } };
        self.send_check(route, what, now);
        let usage = self.usage(route, now);
        let jitter = self.rng.random();
        let Some(pair) = self.pair_mut(route) else { return };
        pair.sent(usage, jitter, now);
        // What may have to take its place is looked at while there is time.
        if pair.is_valid() && pair.unanswered() == FIRST_MISS && self.selected == Some(route) {
            for pair in self.pairs.iter_mut().filter(|p| p.is_valid() && p.route != route) {
                pair.hurry(now);
            }
        }
    }

    pub(super) fn send_check(&mut self, to: Route, what: What, now: Instant) {
        let mut id = [0; 12];
        self.rng.fill_bytes(&mut id);
        self.in_flight.push_back(InFlight { id, route: to, at: now, what });
        self.send_request(to, what, id, now);
    }

    /// Sends a check of which nothing is remembered.
    pub(super) fn send_probe(&mut self, to: Route, what: What, id: [u8; 12], now: Instant) {
        self.send_request(to, what, id, now);
    }

    fn send_request(&mut self, to: Route, what: What, id: [u8; 12], now: Instant) {
        // What the peer, where it does not know this end, will learn it as.
        let kind = match to.via {
            Via::Socket | Via::Extra(_) | Via::Uplink(_) => CandidateKind::PeerReflexive,
            Via::Relay(_) => CandidateKind::Relayed,
        };
        let nominate = what == What::Check { nominate: true };
        let mut clock_ms = self.clock_ms(now);
        if nominate {
            // Of two nominations in one millisecond the later one must be seen to be it.
            let (before, at_ms) = self.nominating.unwrap_or((to, 0));
            clock_ms = clock_ms.max(at_ms + u64::from(before != to));
            self.nominating = Some((to, clock_ms));
        }
        let request = Request {
            id,
            clock_ms,
            priority: Candidate { kind, addr: to.remote }.priority(),
            nominate,
            receipt: self.receipt(to, now),
            plan: self.plan(to),
        };
        self.transmit(to, what, &Check::Request(request));
    }

    fn transmit(&mut self, route: Route, what: What, check: &Check) {
        // A datagram that finds no room is lost as any other may be.
        if self.queue.len() >= MAX_QUEUED {
            return;
        }
        let mut transmit =
            Transmit { route, payload: Vec::new(), dont_fragment: false, hops: None };
        transmit.payload = match what {
            What::Check { .. } | What::Probe => self.keys.seal(check),
            What::Opener { hops } => {
                transmit.hops = Some(hops);
                self.keys.seal(check)
            }
            What::Size(size) => {
                transmit.dont_fragment = true;
                let headers = super::mtu::headers(&route.remote);
                self.keys.seal_padded(check, usize::from(size.saturating_sub(headers)))
            }
        };
        self.queue.push_back(transmit);
    }

    pub(super) fn forget_in_flight(&mut self, now: Instant) {
        let oldest = self.in_flight.partition_point(|sent| sent.at + ANSWER_WITHIN < now);
        self.in_flight.drain(..oldest);
    }

    /// What this node tells the peer of a way.
    fn receipt(&self, route: Route, now: Instant) -> Receipt {
        let since = |at: Option<Instant>| {
            let ms = now.saturating_duration_since(at?).as_millis();
            Some(u32::try_from(ms).unwrap_or(u32::MAX))
        };
        let pair = self.pairs.iter().find(|pair| pair.route == route);
        Receipt {
            data_ms: since(pair.and_then(|pair| pair.last_data)),
            any_ms: since(self.traffic.last_in),
            opened_ms: since(self.punching.opened),
        }
    }
}
