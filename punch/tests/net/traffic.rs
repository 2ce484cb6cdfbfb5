//! What WireGuard sends over the paths that agents choose, and what becomes of it; and
//! what does not pass.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    time::{Duration, Instant},
};

use zonemesh_punch::Route;

use super::{HostId, Packet, World};

/// So often a data plane tells of what came and went.
pub(super) const POLL: Duration = Duration::from_millis(250);

/// A WireGuard transport message begins so.
const DATA: [u8; 4] = [4, 0, 0, 0];

pub(super) fn is_data(payload: &[u8]) -> bool {
    payload.starts_with(&DATA)
}

/// The data of one host.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    /// How often it sends a packet.
    every: Option<Duration>,
    next: Option<Instant>,
    /// Whom its packets are for.
    peer: Option<HostId>,
    pub(crate) sent: u64,
    last_sent: Option<Instant>,
    sent_since_poll: bool,
    received_since_poll: Option<(Route, Instant)>,
    /// What arrived, and when.
    pub(crate) arrived: Vec<(u64, Instant)>,
    /// Its further sockets, and the number of the next: none is used again.
    pub(crate) extra: BTreeSet<u32>,
    pub(super) next_extra: u32,
}

impl Traffic {
    pub(super) fn received(&mut self, route: Route, payload: &[u8], now: Instant) {
        self.received_since_poll = Some((route, now));
        if let Some(number) = payload.get(4..12).and_then(|bytes| bytes.try_into().ok()) {
            self.arrived.push((u64::from_be_bytes(number), now));
        }
    }

    /// The longest time without an arrival since `since`.
    pub(crate) fn longest_gap(&self, since: Instant, until: Instant) -> Duration {
        let times =
            self.arrived.iter().map(|(_, at)| *at).filter(|at| *at >= since && *at <= until);
        let times: Vec<Instant> = std::iter::once(since).chain(times).chain([until]).collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// How many of the packets with these numbers did not arrive, and how many twice.
    pub(crate) fn lost_and_doubled(&self, numbers: std::ops::Range<u64>) -> (u64, u64) {
        let within = self.arrived.iter().map(|(number, _)| *number).filter(|n| numbers.contains(n));
        let all: Vec<u64> = within.collect();
        let once: BTreeSet<u64> = all.iter().copied().collect();
        let count = |len: usize| u64::try_from(len).expect("few");
        let lost = numbers.end - numbers.start - count(once.len());
        (lost, count(all.len()) - count(once.len()))
    }
}

/// What does not pass from one address of the Internet to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cut {
    from: IpAddr,
    to: IpAddr,
    data_only: bool,
}

impl World {
    /// From now on a host sends a packet to its peer each `every`, or none.
    pub(crate) fn flow(&mut self, host: HostId, peer: HostId, every: Option<Duration>) {
        let now = self.now;
        let traffic = &mut self.of(host).traffic;
        traffic.every = every;
        traffic.next = every.map(|_| now);
        traffic.peer = Some(peer);
    }

    /// Nothing passes from `from` to `to` any more, addresses of the Internet.
    pub(crate) fn cut_one_way(&mut self, from: &str, to: &str) {
        self.cut_packets(from, to, false);
    }

    pub(crate) fn cut(&mut self, a: &str, b: &str) {
        self.cut_packets(a, b, false);
        self.cut_packets(b, a, false);
    }

    /// Checks pass, WireGuard's packets do not.
    pub(crate) fn cut_data(&mut self, from: &str, to: &str) {
        self.cut_packets(from, to, true);
    }

    fn cut_packets(&mut self, from: &str, to: &str, data_only: bool) {
        let address = |text: &str| text.parse().expect("a literal address");
        self.cuts.push(Cut { from: address(from), to: address(to), data_only });
    }

    /// All passes again.
    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
    }

    pub(super) fn is_cut(&self, packet: &Packet) -> bool {
        self.cuts.iter().any(|cut| {
            (cut.from, cut.to) == (packet.from.ip(), packet.to.ip())
                && (!cut.data_only || is_data(&packet.payload))
        })
    }

    /// When the next packet is to be sent, or told of.
    pub(super) fn next_traffic(&self) -> Option<Instant> {
        let next = self.hosts.iter().filter_map(|host| host.traffic.next).min();
        let busy = next.is_some() || self.keepalive.is_some();
        next.into_iter().chain(busy.then_some(self.next_poll)).min()
    }

    pub(super) fn pass_traffic(&mut self) {
        for index in 0..self.hosts.len() {
            while self.hosts[index].traffic.next.is_some_and(|next| next <= self.now) {
                let traffic = &mut self.hosts[index].traffic;
                traffic.next = traffic.next.zip(traffic.every).map(|(next, every)| next + every);
                let number = traffic.sent;
                traffic.sent += 1;
                self.send_data(HostId(index), &[DATA.as_slice(), &number.to_be_bytes()].concat());
            }
        }
        if self.next_poll <= self.now {
            self.next_poll = self.now + POLL;
            (0..self.hosts.len()).for_each(|index| self.poll(HostId(index)));
        }
    }

    fn send_data(&mut self, host: HostId, payload: &[u8]) {
        let Some(path) = self.selected(host) else { return };
        let now = self.now;
        let traffic = &mut self.of(host).traffic;
        traffic.sent_since_poll = true;
        traffic.last_sent = Some(now);
        self.of(host).packets_out += 1;
        self.send(host, path.route, payload.to_vec(), |_| ());
    }

    fn poll(&mut self, host: HostId) {
        let now = self.now;
        if let Some(keepalive) = self.keepalive
            && self.of(host).traffic.last_sent.is_none_or(|last| now >= last + keepalive)
        {
            self.send_data(host, &DATA);
        }
        let host = self.of(host);
        let sent = std::mem::take(&mut host.traffic.sent_since_poll);
        let received = host.traffic.received_since_poll.take();
        let Some(agent) = &mut host.agent else { return };
        if sent {
            agent.note_data_sent(now);
        }
        if let Some((route, at)) = received {
            agent.note_data_received(route, at);
        }
    }
}
