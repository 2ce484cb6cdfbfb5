//! Which pairs there are: of the peer's candidates, by this node's ends, and learned.

use std::time::{Duration, Instant};

use super::{Agent, MAX_BY_RELAY, MAX_BY_UPLINK, MAX_LEARNED};
use crate::{
    candidate::{Candidate, CandidateKind, canonical},
    pair::Pair,
    route::{Route, Via},
};

/// One pair of a relay is looked at as soon as the direct ones, the others after this:
/// what relays forward is paid for by others.
const RELAYED_LATER: Duration = Duration::from_millis(200);

impl Agent {
    /// Makes the pairs those of the peer's candidates, and keeps what works.
    pub(super) fn sync_pairs(&mut self, now: Instant) {
        for pair in &mut self.pairs {
            pair.listed = false;
        }
        for (route, kind) in self.wanted() {
            if let Some(pair) = self.pair_mut(route) {
                pair.listed = true;
                pair.kind = kind;
                continue;
            }
            self.pairs.push(Pair::new(route, kind, true, now));
        }
        let locals = &self.locals;
        self.pairs.retain(|pair| {
            let own = locals.iter().any(|local| local.addr == pair.route.remote);
            let heard = pair.kind == CandidateKind::Relayed && pair.last_heard.is_some();
            let learned = pair.kind == CandidateKind::PeerReflexive || heard;
            !own && (pair.listed || pair.is_valid() || learned)
        });
        self.bound_learned(None);
        self.stagger(now);
    }

    /// Looks at every pair at once, and fast again at those that do not answer.
    pub(super) fn recheck(&mut self, now: Instant) {
        for pair in &mut self.pairs {
            if pair.is_valid() {
                pair.due = Some(now);
                pair.urgent |= Some(pair.route) == self.selected;
            } else {
                pair.restart(now);
            }
        }
        self.stagger(now);
        self.open_first(now);
    }

    /// Of the pairs over relays, one is checked with the direct ones.
    fn stagger(&mut self, now: Instant) {
        let begins = |pair: &&mut Pair| {
            matches!(pair.route.via, Via::Relay(_)) && pair.is_due(now) && !pair.urgent
        };
        for pair in self.pairs.iter_mut().filter(begins).skip(1) {
            pair.due = Some(now + RELAYED_LATER);
        }
    }

    /// The routes to the peer's candidates: to each from WireGuard's socket, but for what a
    /// relay says of somebody's own network; and through each relay to those that it can reach. Among the latter is always one that the
    /// peer has on a relay: where UDP is blocked for both, it is the only way.
    fn wanted(&self) -> Vec<(Route, CandidateKind)> {
        let fits = |c: &&Candidate| c.kind != CandidateKind::Relayed || c.is_for_relays();
        let direct = self.remotes.iter().filter(fits).map(|c| (Route::direct(c.addr), c.kind));
        let mut wanted: Vec<_> = direct.collect();
        // What is somebody's own network may be another one there.
        let fits = |c: &&Candidate| c.kind != CandidateKind::Relayed && c.is_for_relays();
        let outside = || self.remotes.iter().filter(fits).filter(|c| c.addr.is_ipv4());
        for uplink in &self.uplinks {
            let route = |c: &Candidate| Route { via: Via::Uplink(*uplink), remote: c.addr };
            wanted.extend(outside().take(MAX_BY_UPLINK).map(|c| (route(c), c.kind)));
        }
        for relay in &self.relays {
            let fits = |candidate: &&Candidate| {
                candidate.is_for_relays() && candidate.addr.is_ipv4() == relay.relayed.is_ipv4()
            };
            let (relayed, others): (Vec<&Candidate>, Vec<&Candidate>) = self
                .remotes
                .iter()
                .filter(fits)
                .partition(|candidate| candidate.kind == CandidateKind::Relayed);
            let (first, more) = relayed.split_at(relayed.len().min(1));
            let in_order = first.iter().chain(&others).chain(more).take(MAX_BY_RELAY);
            wanted
                .extend(in_order.map(|c: &&Candidate| (Route::relayed(relay.id, c.addr), c.kind)));
        }
        wanted
    }

    /// Forgets the pairs of ends that are gone, and what was decided on them.
    pub(super) fn drop_pairs(&mut self, is_gone: impl Fn(Via) -> bool, now: Instant) {
        self.pairs.retain(|pair| !is_gone(pair.route.via));
        self.in_flight.retain(|sent| !is_gone(sent.route.via));
        self.gaining = self.gaining.filter(|(route, _)| !is_gone(route.via));
        self.nominated = self.nominated.filter(|(route, _)| !is_gone(route.via));
        if self.selected.is_some_and(|route| is_gone(route.via)) {
            self.choose(None, now);
            self.recheck(now);
        }
    }

    /// Whether this node has that end.
    pub(super) fn has_end(&self, via: Via) -> bool {
        match via {
            Via::Socket => true,
            Via::Extra(socket) => self.extra.contains(&socket),
            Via::Uplink(uplink) => self.uplinks.contains(&uplink),
            Via::Relay(id) => self.relays.iter().any(|relay| relay.id == id),
        }
    }

    pub(super) fn pair_mut(&mut self, route: Route) -> Option<&mut Pair> {
        self.pairs.iter_mut().find(|pair| pair.route == route)
    }

    pub(super) fn pair_or_learn(
        &mut self,
        route: Route,
        kind: CandidateKind,
        now: Instant,
    ) -> Option<&mut Pair> {
        let learned = Candidate { kind, addr: route.remote };
        let fits = match route.via {
            Via::Socket | Via::Extra(_) | Via::Uplink(_) => learned.is_usable(),
            Via::Relay(_) => learned.is_for_relays(),
        };
        let known = self.pairs.iter().any(|pair| pair.route == route);
        // What the peer uses must be known, however much was learned before.
        let is_nominated = self.nominated.is_some_and(|(nominated, _)| nominated == route);
        let is_new = !known && fits && self.has_end(route.via);
        if is_new && (self.learns.take(now) || is_nominated) {
            self.pairs.push(Pair::new(route, kind, false, now));
            self.bound_learned(Some(route));
        }
        let pair = self.pair_mut(route)?;
        // Data may come before the check that tells a relay's address from others.
        if !pair.listed && kind == CandidateKind::Relayed {
            pair.kind = kind;
        }
        Some(pair)
    }

    /// Forgets learned pairs past [`MAX_LEARNED`]: first those that never answered,
    /// then those that were silent longest; never the selected one, nor `keep`.
    fn bound_learned(&mut self, keep: Option<Route>) {
        while self.pairs.iter().filter(|pair| !pair.listed).count() > MAX_LEARNED {
            let spare = |pair: &&Pair| {
                !pair.listed && Some(pair.route) != keep && Some(pair.route) != self.selected
            };
            let worst = self
                .pairs
                .iter()
                .filter(spare)
                .min_by_key(|pair| (pair.is_valid(), pair.last_answer, pair.last_heard))
                .map(|pair| pair.route);
            self.pairs.retain(|pair| Some(pair.route) != worst);
        }
    }
}

/// The candidates worth looking at: usable, each address once and by its best kind.
pub(super) fn usable(candidates: &[Candidate], most: usize) -> Vec<Candidate> {
    let mut usable: Vec<Candidate> = Vec::new();
    for candidate in candidates {
        let candidate = Candidate { addr: canonical(candidate.addr), ..*candidate };
        let known = usable.iter().position(|known| known.addr == candidate.addr);
        if let Some(known) = known {
            usable[known].kind = usable[known].kind.min(candidate.kind);
        } else if candidate.is_usable() && usable.len() < most {
            usable.push(candidate);
        }
    }
    usable
}
