//! Which of the hosts are kept, and which one is first.

use std::{
    cmp::{Ordering, Reverse},
    time::{Duration, Instant},
};

use zonemesh_punch::{LocalRelay, turn};

use super::leg::Leg;
use super::{Event, KEPT, Relays, host::Host};

/// A relay has to be this much nearer to take over, and by this part.
const NEARER_BY: Duration = Duration::from_millis(10);
const NEARER_PART: f64 = 0.2;

/// The least time between two changes of the primary for a nearer one.
pub(super) const DWELL: Duration = Duration::from_secs(30);

/// How long after one allocation the next may be replaced.
const RENEW_SPACING: Duration = Duration::from_secs(30);

impl Relays {
    /// Ends the measuring once there is nothing more to wait for: the nearest is first.
    pub(super) fn settle(&mut self, now: Instant) {
        let Some(until) = self.measuring else { return };
        // They have to be called first.
        let waits = self.hosts.iter().any(|host| host.is_trying() || host.is_ready(now));
        if waits && now < until {
            return;
        }
        self.measuring = None;
        if let Some(best) = self.ranked().first().map(|(name, _)| name.clone())
            && self.primary.as_ref().is_none_or(|(name, _)| self.is_nearer(&best, name))
        {
            self.primary = Some((best, now));
        }
    }

    /// Lets go the hosts beyond those that are kept, and what is tried in vain for more.
    pub(super) fn trim(&mut self, now: Instant) {
        if self.measuring.is_some() || self.up().count() < KEPT {
            return;
        }
        let primary = self.primary.clone();
        let is_primary = |name: &str| primary.as_ref().is_some_and(|(first, _)| first == name);
        let mut kept = self.ranked();
        kept.sort_by_key(|(name, _)| Reverse(is_primary(name)));
        for (name, id) in kept.into_iter().skip(KEPT) {
            self.leave(&name, id, now);
        }
        let late: Vec<u32> = self
            .hosts
            .iter_mut()
            .filter(|host| host.up.is_none())
            .flat_map(|host| host.rest())
            .collect();
        for id in late {
            self.close(id);
        }
    }

    /// The hosts with an allocation, nearest first.
    fn ranked(&self) -> Vec<(String, u32)> {
        let mut up: Vec<_> = self
            .up()
            .filter_map(|(host, id)| Some((self.legs.get(&id)?.rank(), host.name.clone(), id)))
            .collect();
        up.sort();
        up.into_iter().map(|(_, name, id)| (name, id)).collect()
    }

    /// Whether a host is so much better than another that traffic should move.
    fn is_nearer(&self, one: &str, other: &str) -> bool {
        let rank = |name: &str| {
            let (_, id) = self.up().find(|(host, _)| host.name == name)?;
            self.legs.get(&id).map(Leg::rank)
        };
        match (rank(one), rank(other)) {
            (Some((is_stream, one)), Some((was_stream, other))) => match is_stream.cmp(&was_stream)
            {
                Ordering::Less => true,
                Ordering::Greater => false,
                Ordering::Equal => {
                    one.saturating_add(NEARER_BY) < other
                        && one.as_secs_f64() < other.as_secs_f64() * (1.0 - NEARER_PART)
                }
            },
            (one, _) => one.is_some(),
        }
    }

    /// Says which host is first.
    pub(super) fn elect(&mut self, now: Instant) {
        let Some((best, _)) = self.ranked().into_iter().next() else {
            self.primary = None;
            return;
        };
        let is_up = |name: &str| self.up().any(|(host, _)| host.name == name);
        let moves = match &self.primary {
            Some((name, since)) if is_up(name) => {
                *since + DWELL <= now && self.is_nearer(&best, name)
            }
            _ => true,
        };
        if moves {
            self.primary = Some((best, now));
        }
    }

    /// Replaces an allocation whose credential ends soon: one at a time, so that another
    /// one carries meanwhile.
    pub(super) fn renew(&mut self, now: Instant) {
        let is_due = |leg: &Leg| leg.renew.is_some_and(|at| at <= now);
        let due: Vec<u32> =
            self.legs.iter().filter(|(_, leg)| is_due(leg)).map(|(id, _)| *id).collect();
        for id in due {
            let Some(leg) = self.legs.get_mut(&id) else { continue };
            // Whatever comes of it: it is looked at again then.
            leg.renew = Some(now + RENEW_SPACING);
            let name = leg.server.host.clone();
            let is_busy = self.legs.values().any(|leg| leg.leaving.is_some())
                || self.hosts.iter().any(Host::is_trying);
            if is_busy || !self.up().any(|(_, up)| up == id) {
                continue;
            }
            let other = self.up().find(|(_, up)| *up != id).map(|(host, _)| host.name.clone());
            if let Some(other) = other {
                self.primary = Some((other, now));
                self.leave(&name, id, now);
            } else {
                // The server knows one allocation for our address: there is no second one
                // before the first has ended.
                self.close(id);
            }
        }
    }

    /// Tells what this node's allocations are, if they are others than before.
    pub(super) fn list(&mut self) {
        let primary = self.primary.as_ref().map(|(name, _)| name.as_str());
        let mut legs: Vec<(u8, LocalRelay)> = Vec::new();
        for (id, leg) in &self.legs {
            let Some(relayed) = leg.client.as_ref().and_then(turn::Client::relayed) else {
                continue;
            };
            let is_up = self.up().any(|(_, up)| up == *id);
            let place = match (is_up, Some(leg.server.host.as_str()) == primary) {
                (true, true) => 0,
                // Who is leaving was listed; a spare can wait until it has left.
                (false, _) if leg.leaving.is_some() => 1,
                (true, false) => 2,
                (false, _) => continue,
            };
            legs.push((place, LocalRelay { id: *id, relayed }));
        }
        legs.sort_by_key(|(place, relay)| (*place, relay.id));
        let listed: Vec<LocalRelay> = legs.into_iter().take(KEPT).map(|(_, relay)| relay).collect();
        if listed != self.listed {
            self.listed.clone_from(&listed);
            self.events.push_back(Event::Changed(listed));
        }
    }
}
