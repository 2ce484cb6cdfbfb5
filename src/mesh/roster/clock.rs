//! Whether this machine's clock is right, by the dates of what others have signed.
//!
//! Leases and certificates count by the clock. One that is off by a day makes strangers of
//! everybody, each for a reason of its own; that they all are off the same way tells the
//! common one.

use std::time::SystemTime;

use zonemesh_discovery::{
    advert::AdvertError,
    membership::{CertificateError, Period, utc},
};

use super::admission::Complaint;

/// So many adverts have to be off the same way: one may be of a node that has died.
const QUORUM: usize = 2;

/// How the dates of the adverts in a zone stand to this machine's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Dates {
    /// Good now.
    good: usize,
    /// Over.
    past: usize,
    /// Not good yet, or for longer than anything is.
    future: usize,
}

/// What seems to be wrong with the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClockFault {
    /// Most of the zone is of the past.
    Ahead,
    /// Most of the zone is of the future.
    Behind,
}

impl Dates {
    pub(super) fn count(&mut self, good: bool) {
        if good {
            self.good += 1;
        } else {
            self.past += 1;
        }
    }

    /// What is wrong with an advert, where it is its date.
    pub(super) fn count_complaint(&mut self, complaint: &Complaint) {
        match complaint {
            Complaint::Advert(AdvertError::Expired) => self.past += 1,
            Complaint::Advert(AdvertError::Lease) => self.future += 1,
            Complaint::Certificate(
                CertificateError::Invite(period) | CertificateError::Time(period),
            ) => match period {
                Period::Over => self.past += 1,
                Period::NotYet => self.future += 1,
            },
            _ => {}
        }
    }

    pub(super) fn fault(&self) -> Option<ClockFault> {
        let all = self.good + self.past + self.future;
        let most = |count: usize| count >= QUORUM && 2 * count > all;
        if most(self.future) {
            return Some(ClockFault::Behind);
        }
        most(self.past).then_some(ClockFault::Ahead)
    }
}

impl ClockFault {
    /// In an operator's words.
    pub fn told(self, wall: SystemTime) -> String {
        let shows = utc(wall);
        match self {
            Self::Ahead => format!(
                "most adverts in the zone have lapsed by this machine's clock, which shows {shows}: \
                 set it (NTP), if those nodes are not gone"
            ),
            Self::Behind => format!(
                "most adverts in the zone are dated ahead of this machine's clock, which shows \
                 {shows}: set it (NTP)"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_wrong_where_most_dates_say_so() {
        let dates = |good, past, future| Dates { good, past, future }.fault();
        assert_eq!(dates(0, 0, 0), None);
        assert_eq!(dates(0, 1, 0), None, "that node may be gone");
        assert_eq!(dates(2, 2, 0), None);
        assert_eq!(dates(0, 3, 1), Some(ClockFault::Ahead));
        assert_eq!(dates(1, 0, 2), Some(ClockFault::Behind));
        let text = ClockFault::Behind.told(SystemTime::UNIX_EPOCH);
        assert!(text.contains("1970-01-01 00:00 UTC"), "{text}");
    }
}
