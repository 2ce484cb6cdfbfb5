//! Which pair is used: the best one, with reluctance to change, and what the others
//! are kept for.

use std::time::{Duration, Instant};

use super::Agent;
use crate::{
    pair::{Pair, Rank, State, Tier, Use},
    route::Route,
};

/// A learned pair that never answers is forgotten.
const LEARNED_FOR: Duration = Duration::from_secs(30);

/// So many of the best pairs are kept ready to fall back on, while data flows and while
/// none does.
const SPARES: usize = 2;
const SPARES_IDLE: usize = 1;

/// Within a tier, a pair must be better so many answers running to take over.
const GAIN_ANSWERS: u32 = 4;

/// For so long after a pair was selected its rivals are looked at: the first that
/// answered is not always the best.
const SETTLES_FOR: Duration = Duration::from_secs(10);

/// Of the two families the first that answers is often the worse one. For so long after a
/// pair was selected, one of IPv6 that is as good takes over with its first answer: nobody
/// has got used to the other.
const FAMILY_WITHIN: Duration = Duration::from_secs(1);

/// Where the peer controls, its choice among the better pairs is waited for so long, so that
/// this node does not move twice.
const CHOICE_WITHIN: Duration = Duration::from_secs(1);

/// A pair that was better is asked again after this, to be sure.
const GAIN_AGAIN: Duration = Duration::from_secs(1);

impl Agent {
    /// Ends what has failed.
    pub(super) fn retire(&mut self, now: Instant) {
        let mut lost = false;
        let is_sending = self.traffic.is_sending(now);
        for pair in &mut self.pairs {
            let is_idle = self.selected == Some(pair.route) && !is_sending;
            if pair.has_failed(is_idle, now) && !Self::is_held(pair, now) {
                pair.restart(now);
                lost |= Some(pair.route) == self.selected;
            }
        }
        self.pairs.retain(|pair| match pair.state {
            State::Probing { since, .. } => pair.listed || now < since + LEARNED_FOR,
            State::Valid { .. } => true,
        });
        if lost {
            self.choose(None, now);
            self.recheck(now);
        }
    }

    /// Selects the best pair, with reluctance.
    pub(super) fn select(&mut self, now: Instant) {
        self.choice_by = None;
        let ranked = |pair: &Pair| pair.rank(&self.locals, now).map(|rank| (rank, pair.route));
        let Some((best, best_route)) = self.pairs.iter().filter_map(ranked).min() else {
            return self.choose(None, now);
        };
        let current = self.selected.and_then(|route| self.rank_of(route, now));
        let nominated = match self.nominated {
            Some((route, _)) if !self.keys.controlling() => {
                self.rank_of(route, now).filter(|rank| !rank.suspect).map(|_| route)
            }
            _ => None,
        };
        let choice = match (nominated, current) {
            (Some(nominated), _) => nominated,
            (None, None) => best_route,
            (None, Some(current)) => {
                let better = (best.suspect, best.tier) < (current.suspect, current.tier);
                self.choice_by = self
                    .choice_by(best_route)
                    .filter(|by| better && !current.suspect && !current.doubtful && now < *by);
                if self.choice_by.is_some() {
                    return;
                }
                match (better, self.gained(now)) {
                    (true, _) => best_route,
                    (false, Some(route)) => route,
                    (false, None) => return,
                }
            }
        };
        // What works is left only for what is known to work at this moment: a nomination
        // tells just that, for our answers arrived there.
        let leaves = nominated.is_none()
            && current.is_some_and(|current| !current.suspect && !current.doubtful);
        if self.selected != Some(choice) && leaves && self.make_sure(choice, now) {
            return;
        }
        self.choose(Some(choice), now);
    }

    /// Until when the peer, where it controls, may choose another pair than this one, which
    /// was found to work a while ago.
    fn choice_by(&self, route: Route) -> Option<Instant> {
        let pair = self.pairs.iter().find(|pair| pair.route == route)?;
        pair.valid_since.filter(|_| !self.keys.controlling()).map(|since| since + CHOICE_WITHIN)
    }

    /// Asks a pair that did not answer lately; whether it was asked.
    fn make_sure(&mut self, route: Route, now: Instant) -> bool {
        let Some(pair) = self.pair_mut(route).filter(|pair| !pair.is_fresh(now)) else {
            return false;
        };
        pair.urgent = true;
        pair.ask_again(now);
        true
    }

    /// Makes this the path.
    pub(super) fn choose(&mut self, choice: Option<Route>, now: Instant) {
        if self.selected == choice {
            return;
        }
        self.selected = choice;
        self.selected_at = now;
        self.told = false;
        self.gaining = None;
        if choice.is_some() {
            // Its rivals are looked at once more, and rest as such after that.
            let rivals = |pair: &&mut Pair| pair.is_valid() && Some(pair.route) != choice;
            for pair in self.pairs.iter_mut().filter(rivals) {
                pair.ask_again(now + GAIN_AGAIN);
            }
        }
        // The peer is told of the nomination at once.
        if self.keys.controlling()
            && let Some(pair) = choice.and_then(|route| self.pair_mut(route))
        {
            pair.urgent = true;
            pair.due = Some(now);
        }
    }

    fn rank_of(&self, route: Route, now: Instant) -> Option<Rank> {
        self.pairs.iter().find(|pair| pair.route == route)?.rank(&self.locals, now)
    }

    /// The pair that was better than the selected one often enough.
    fn gained(&self, now: Instant) -> Option<Route> {
        let (route, _) = self.gaining.filter(|(_, answers)| *answers >= GAIN_ANSWERS)?;
        self.rank_of(route, now).filter(|rank| !rank.suspect && !rank.doubtful).map(|_| route)
    }

    /// Counts how often in a row `route` was notably better than the selected pair.
    pub(super) fn note_gain(&mut self, route: Route, now: Instant) {
        if !self.keys.controlling() || self.selected == Some(route) {
            return;
        }
        // A path that nobody uses is not left for a better one of its kind: what is measured of
        // it is a few checks, of which chance may take several.
        if !self.traffic.is_active(now) && now >= self.selected_at + SETTLES_FOR {
            self.gaining = None;
            return;
        }
        let find = |route| self.pairs.iter().find(|pair| Some(pair.route) == route);
        let (Some(selected), Some(pair)) = (find(self.selected), find(Some(route))) else {
            return;
        };
        let (Some(old), Some(new)) = (selected.quality(), pair.quality()) else { return };
        let is_newer = pair.route.remote.is_ipv6() && selected.route.remote.is_ipv4();
        let ties = is_newer && new.ties_with(old);
        let gains = pair.tier(&self.locals) == selected.tier(&self.locals)
            && !pair.is_suspect(now)
            && (new.gains_on(old) || ties);
        if gains && ties && now < self.selected_at + FAMILY_WITHIN {
            self.gaining = Some((route, GAIN_ANSWERS));
            return;
        }
        let before = self.gaining.filter(|(before, _)| {
            self.pairs.iter().any(|pair| pair.route == *before && pair.is_valid())
        });
        self.gaining = match before {
            Some((before, answers)) if before == route => gains.then_some((route, answers + 1)),
            Some(other) => Some(other),
            None => gains.then_some((route, 1)),
        };
    }

    /// What a pair is used for now.
    pub(super) fn usage(&self, route: Route, now: Instant) -> Use {
        let Some(pair) = self.pairs.iter().find(|pair| pair.route == route) else {
            return Use::Unwanted;
        };
        let sending = self.traffic.is_sending(now);
        if self.selected == Some(route) {
            return if sending { Use::Active } else { Use::Idle };
        }
        if let Some(rank) = pair.rank(&self.locals, now) {
            let tier = self.selected().map(|path| path.tier);
            if now < self.selected_at + SETTLES_FOR && tier == Some(rank.tier) {
                return Use::Rival;
            }
            let ahead = |same: bool| {
                let better = self.pairs.iter().filter(move |other| {
                    self.selected != Some(other.route)
                        && other.rank(&self.locals, now).is_some_and(|other| {
                            other < rank && (!same || other.tier == Tier::Relayed)
                        })
                });
                better.count()
            };
            // What breaks one direct path may break all of them: of those over relays,
            // one is always kept.
            let last_resort = rank.tier == Tier::Relayed && ahead(true) == 0;
            return match ahead(false) {
                0..SPARES if sending => Use::Spare,
                _ if sending && last_resort => Use::Spare,
                0..SPARES_IDLE => Use::SpareIdle,
                _ if last_resort => Use::SpareIdle,
                _ => Use::Distant,
            };
        }
        match self.selected().map(|path| path.tier) {
            None => Use::Wanted,
            Some(tier) if tier <= pair.tier(&self.locals) => Use::Unwanted,
            Some(Tier::Relayed) if pair.route.via.is_lasting_socket() => Use::Punched,
            Some(_) => Use::Better,
        }
    }

    /// A pair that was better is looked at again soon, and so is the selected one: what was
    /// measured of it may be old, of a busier time.
    pub(super) fn confirm_gain(&mut self, now: Instant) {
        let Some((gaining, _)) = self.gaining else { return };
        for route in [Some(gaining), self.selected].into_iter().flatten() {
            if let Some(pair) = self.pair_mut(route) {
                pair.ask_again(now + GAIN_AGAIN);
            }
        }
    }
}
