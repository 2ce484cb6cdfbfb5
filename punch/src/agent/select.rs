//! Which pair is used: the best one, with reluctance to change, and what the others
//! are kept for.

use std::time::{Duration, Instant};

use super::Agent;
use crate::{
    pair::{self, Pair, State, Use},
    route::Route,
};

/// A learned pair that never answers is forgotten.
const LEARNED_FOR: Duration = Duration::from_secs(30);

/// Data within this makes the selected pair an active one.
const ACTIVE_FOR: Duration = Duration::from_secs(10);

/// WireGuard's packets within this hold a pair although its checks are lost: the
/// peer still uses it, so it gets answers there.
const DATA_HOLDS_FOR: Duration = Duration::from_secs(2);

/// So many of the best pairs are kept ready to fall back on.
const SPARES: usize = 2;

/// Within a tier, a pair must be faster by both of these, so many answers running,
/// to take over: a change of path costs reordered packets.
const GAIN_RATIO: f64 = 0.7;
const GAIN: Duration = Duration::from_millis(5);
const GAIN_ANSWERS: u32 = 3;

impl Agent {
    /// Ends what has failed.
    pub(super) fn retire(&mut self, now: Instant) {
        let mut lost = false;
        for pair in &mut self.pairs {
            let held = pair.last_data.is_some_and(|at| now < at + DATA_HOLDS_FOR);
            if pair.is_valid() && pair.unanswered() >= pair::LOSSES && pair.due <= now && !held {
                pair.restart(now);
                lost |= Some(pair.route) == self.selected;
            }
        }
        self.pairs.retain(|pair| match pair.state {
            State::Probing { since, .. } => pair.listed || now < since + LEARNED_FOR,
            State::Valid { .. } => true,
        });
        if lost {
            self.selected = None;
            self.recheck(now);
        }
    }

    /// Selects the best pair, with reluctance.
    pub(super) fn select(&mut self, now: Instant) {
        let locals = &self.locals;
        let ranked = |pair: &Pair| pair.rank(locals, now).map(|rank| (rank, pair.route));
        let Some((best, best_route)) = self.pairs.iter().filter_map(ranked).min() else {
            self.selected = None;
            return;
        };
        let rank_of = |route| self.pairs.iter().find(|pair| pair.route == route)?.rank(locals, now);
        let current = self.selected.and_then(rank_of);
        let nominated = match self.nominated {
            Some((route, _)) if !self.keys.controlling() => {
                rank_of(route).filter(|rank| !rank.suspect).map(|_| route)
            }
            _ => None,
        };
        let choice = match (nominated, current) {
            (Some(nominated), _) => nominated,
            (None, Some(current)) => {
                let better = (best.suspect, best.tier) < (current.suspect, current.tier);
                let proven = self.gaining.filter(|(_, answers)| *answers >= GAIN_ANSWERS);
                let faster = proven.map(|(route, _)| route).filter(|route| {
                    rank_of(*route).is_some_and(|rank| !rank.suspect && !rank.doubtful)
                });
                match (better, faster) {
                    (true, _) => best_route,
                    (false, Some(route)) => route,
                    (false, None) => return,
                }
            }
            (None, None) => best_route,
        };
        if self.selected != Some(choice) {
            self.selected = Some(choice);
            self.told = false;
            self.gaining = None;
            // The peer is told of the nomination at once.
            if self.keys.controlling()
                && let Some(pair) = self.pair_mut(choice)
            {
                pair.urgent = true;
                pair.due = now;
            }
        }
    }

    /// Counts how often in a row `route` was notably faster than the selected pair.
    pub(super) fn note_gain(&mut self, route: Route, now: Instant) {
        if !self.keys.controlling() || self.selected == Some(route) {
            return;
        }
        let locals = &self.locals;
        let find = |route| self.pairs.iter().find(|pair| Some(pair.route) == route);
        let (Some(selected), Some(pair)) = (find(self.selected), find(Some(route))) else {
            return;
        };
        let (Some(old), Some(new)) = (selected.rtt(), pair.rtt()) else { return };
        let gains = pair.tier(locals) == selected.tier(locals)
            && !pair.is_suspect(now)
            && new < old.mul_f64(GAIN_RATIO)
            && new + GAIN < old;
        let before = self.gaining.filter(|(before, _)| {
            self.pairs.iter().any(|pair| pair.route == *before && pair.is_valid())
        });
        self.gaining = match before {
            Some((before, answers)) if before == route => gains.then_some((route, answers + 1)),
            Some(other) => Some(other),
            None => gains.then_some((route, 1)),
        };
    }

    pub(super) fn usage(&self, route: Route, now: Instant) -> Use {
        let Some(pair) = self.pairs.iter().find(|pair| pair.route == route) else {
            return Use::Unwanted;
        };
        if self.selected == Some(route) {
            let active = self.last_data.is_some_and(|at| now < at + ACTIVE_FOR);
            return if active { Use::Active } else { Use::Idle };
        }
        if let Some(rank) = pair.rank(&self.locals, now) {
            let ahead = self.pairs.iter().filter(|other| {
                self.selected != Some(other.route)
                    && other.rank(&self.locals, now).is_some_and(|other| other < rank)
            });
            return if ahead.count() < SPARES { Use::Spare } else { Use::Wanted };
        }
        let selected = self.selected().filter(|path| path.tier <= pair.tier(&self.locals));
        if selected.is_some() { Use::Unwanted } else { Use::Wanted }
    }
}
