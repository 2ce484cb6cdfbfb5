//! Why the path is what it is.

use std::time::Duration;

use super::Agent;
use crate::{
    candidate::{Candidate, CandidateKind},
    nat::{Mapping, NatProfile},
    pair::Tier,
    route::Via,
    verdict::{Obstacle, Verdict},
};

/// Ways that are tried for less than this may still work.
const YOUNG: Duration = Duration::from_secs(10);

/// What came from the peer within this still comes.
const HEARD: Duration = Duration::from_secs(60);

impl Agent {
    /// In one sentence, why the peer is reached as it is.
    pub fn verdict(&self) -> Verdict {
        match self.selected() {
            Some(path) if path.tier == Tier::Lan => Verdict::Lan,
            Some(path) if path.tier == Tier::Relayed => Verdict::Relayed(self.obstacle()),
            Some(path) => match (path.route.via, self.nats()) {
                (Via::Extra(_), _) => Verdict::Passed,
                (_, Some((own, peer))) if own.parts(peer).is_some() => Verdict::Passed,
                _ => Verdict::Direct,
            },
            None => Verdict::None(match self.obstacle() {
                Obstacle::Silence if self.relays.is_empty() && !self.peer_has_relay() => {
                    Obstacle::NoRelay
                }
                obstacle => obstacle,
            }),
        }
    }

    fn obstacle(&self) -> Obstacle {
        let now = self.now;
        let direct = || self.pairs.iter().filter(|p| p.tier(&self.locals) != Tier::Relayed);
        let nats = self.nats();
        let is_dependent = |nat: NatProfile| nat.mapping == Mapping::Dependent;
        if self.remotes.is_empty() && self.pairs.is_empty() {
            Obstacle::Unnamed
        } else if direct().any(|pair| pair.is_suspect(now)) {
            Obstacle::DataDies
        } else if now < self.selected_at + YOUNG {
            Obstacle::Young
        } else if !self.locals.is_empty() && !self.locals.iter().any(is_reached) {
            Obstacle::OwnUdp
        } else if !self.remotes.iter().any(is_reached) {
            Obstacle::PeerUdp
        } else if let Some((own, peer)) = nats
            && (is_dependent(own) || is_dependent(peer))
        {
            match (is_dependent(own), is_dependent(peer)) {
                (true, true) => Obstacle::BothHard,
                (true, false) => Obstacle::OwnHard,
                _ => Obstacle::PeerHard,
            }
        } else if direct().any(|pair| pair.last_heard.is_some_and(|at| now < at + HEARD)) {
            Obstacle::Answers
        } else {
            Obstacle::Silence
        }
    }

    fn peer_has_relay(&self) -> bool {
        self.remotes.iter().any(|candidate| candidate.kind == CandidateKind::Relayed)
    }
}

/// Whether somebody outside has seen the address, or could.
fn is_reached(candidate: &Candidate) -> bool {
    match candidate.kind {
        CandidateKind::ServerReflexive | CandidateKind::Mapped => true,
        CandidateKind::Host => candidate.is_for_relays(),
        CandidateKind::PeerReflexive | CandidateKind::Relayed => false,
    }
}
