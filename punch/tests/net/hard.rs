//! What a node does for its agents that try hard NATs: it opens sockets, and asks a STUN
//! server from a fresh one.

use std::net::SocketAddr;

use zonemesh_punch::{Event, Mapping, NatProfile, PortPattern};

use super::{Depends, HostId, PORT, Ports, STUN, World, extra_port};

impl World {
    /// What the host's own tests would find out about the NATs before it.
    pub(super) fn profile(&self, host: HostId) -> NatProfile {
        let mut segment = self.hosts[host.0].segment;
        if self.is_blocked(segment) {
            return NatProfile::default();
        }
        let mut profile =
            NatProfile { mapping: Mapping::Independent, ports: PortPattern::Preserving };
        let stun: SocketAddr = STUN.parse().expect("a literal address");
        while let Some(gateway) = self.gateway_of(segment, stun.ip()) {
            let gateway = &self.gateways[gateway];
            if gateway.ip.is_some() && gateway.behaviour.mapping != Depends::Nothing {
                profile.mapping = Mapping::Dependent;
                profile.ports = match gateway.behaviour.ports {
                    Ports::Random => PortPattern::Random,
                    Ports::Sequential => PortPattern::Sequential { step: 1 },
                    Ports::Preserving => PortPattern::Unknown,
                };
            }
            segment = gateway.outside;
        }
        profile
    }

    /// Takes what the agent has to tell, and does what it wants.
    pub(super) fn serve_hard(&mut self, host: HostId) {
        let (now, elapsed) = (self.now, self.elapsed());
        loop {
            let agent = self.hosts[host.0].agent.as_mut();
            let Some(event) = agent.and_then(zonemesh_punch::Agent::poll_event) else { return };
            self.hosts[host.0].events.push((elapsed, event));
            match event {
                Event::WantTurn => self.agent(host).grant_turn(now),
                Event::WantSockets { count } => {
                    self.open_extra(host, count.into());
                }
                Event::WantKnownSocket => {
                    let id = self.open_extra(host, 1);
                    self.take_sample(host, extra_port(id));
                }
                Event::ReleaseSockets { keep } => {
                    self.of(host).traffic.extra.retain(|id| Some(*id) == keep);
                    self.tell_extra(host);
                }
                Event::WantSample => {
                    let port = PORT - 1 - u16::try_from(self.sent % 10_000).expect("bounded");
                    self.take_sample(host, port);
                }
                _ => {}
            }
        }
    }

    /// Opens so many sockets in place of those that there are, and hands back the number of
    /// the first.
    fn open_extra(&mut self, host: HostId, count: u32) -> u32 {
        let traffic = &mut self.of(host).traffic;
        let first = traffic.next_extra;
        traffic.next_extra += count;
        traffic.extra = (first..first + count).collect();
        self.tell_extra(host);
        first
    }

    fn tell_extra(&mut self, host: HostId) {
        let (extra, now) =
            (self.of(host).traffic.extra.iter().copied().collect::<Vec<_>>(), self.now);
        self.agent(host).set_extra(&extra, now);
    }

    /// A fresh socket asks the STUN server; the answer takes its time.
    fn take_sample(&mut self, host: HostId, port: u16) {
        let stun: SocketAddr = STUN.parse().expect("a literal address");
        let mut segment = self.hosts[host.0].segment;
        let mut addr = SocketAddr::new(self.hosts[host.0].ips[0], port);
        while let Some(gateway) = self.gateway_of(segment, stun.ip()) {
            addr = self.gateways[gateway].translate_out(addr, stun, self.now, &mut self.rng);
            segment = self.gateways[gateway].outside;
        }
        let at = self.now + 2 * self.weather.delay;
        self.samples.push((at, host, addr));
    }

    pub(super) fn pass_samples(&mut self) {
        let now = self.now;
        let (due, later) = std::mem::take(&mut self.samples).into_iter().partition(|s| s.0 <= now);
        self.samples = later;
        for (_, host, addr) in due {
            self.agent(host).handle_sample(Some(addr), now);
        }
    }
}
