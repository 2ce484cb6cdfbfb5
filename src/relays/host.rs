//! One host of relays: its servers, and the order in which they are tried.

use std::time::{Duration, Instant};

use super::{RelayServer, Transport};

/// How long each transport is given before the next one is tried as well. Most round
/// trips are below a quarter of it, and an allocation takes two.
const STAGGER: Duration = Duration::from_millis(600);

/// The same between two addresses of one transport (RFC 8305 §5 asks for 250 ms).
const SPACING: Duration = Duration::from_millis(200);

/// The pause after a host gave no allocation: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(60));

/// An allocation that lasted so long was a good one: its end starts a new count.
const GOOD: Duration = Duration::from_secs(30);

/// How long after a stream was chosen datagrams are tried again; doubled from the first
/// to the last.
const CLIMB: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(960));

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) name: String,
    /// The number of its relay with an allocation.
    pub(super) up: Option<u32>,
    servers: Vec<Server>,
    /// What is under way; empty while nothing is tried.
    attempt: Vec<Step>,
    up_since: Instant,
    failures: u32,
    retry: Instant,
    climb: Option<Instant>,
    climbs: u32,
}

/// One server, and what is known of it.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) server: RelayServer,
    /// Why it gave no allocation last.
    pub(super) error: Option<String>,
    /// The round trip when it gave one last.
    pub(super) rtt: Option<Duration>,
}

#[derive(Debug)]
struct Step {
    server: RelayServer,
    state: StepState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepState {
    Waiting(Instant),
    Running(u32),
    Failed,
}

impl Host {
    pub(super) fn new(name: String, now: Instant) -> Self {
        Self {
            name,
            up: None,
            servers: Vec::new(),
            attempt: Vec::new(),
            up_since: now,
            failures: 0,
            retry: now,
            climb: None,
            climbs: 0,
        }
    }

    /// Its servers, best transport first.
    pub(super) fn set_servers(&mut self, servers: Vec<RelayServer>, now: Instant) {
        let mut former = std::mem::take(&mut self.servers);
        for server in servers {
            let known = former.iter().position(|known| known.server == server);
            let known = known.map(|at| former.swap_remove(at));
            self.servers.push(known.unwrap_or(Server { server, error: None, rtt: None }));
        }
        self.servers.sort_by_key(|server| server.server.transport);
        let servers = &self.servers;
        self.attempt.retain(|step| servers.iter().any(|known| known.server == step.server));
        self.conclude(now);
    }

    pub(super) fn servers(&self) -> &[Server] {
        &self.servers
    }

    /// The best round trip that was measured to it.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.servers.iter().filter_map(|server| server.rtt).min()
    }

    /// Whether it may be tried.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        self.up.is_none() && !self.is_trying() && self.retry <= now && !self.servers.is_empty()
    }

    pub(super) fn is_trying(&self) -> bool {
        !self.attempt.is_empty()
    }

    /// Tries all servers, one transport after the other.
    pub(super) fn begin(&mut self, now: Instant) {
        self.try_servers(now, |_| true);
    }

    /// Tries the servers of better transports, if it is time.
    pub(super) fn climb(&mut self, transport: Transport, now: Instant) {
        if !self.is_trying() && self.climb.is_some_and(|at| at <= now) {
            self.climbs += 1;
            self.climb = Some(now + pause(CLIMB, self.climbs));
            self.try_servers(now, |server| server.transport < transport);
        }
    }

    fn try_servers(&mut self, now: Instant, which: impl Fn(&RelayServer) -> bool) {
        if self.is_trying() {
            return;
        }
        let mut last = None;
        let (mut transports, mut place) = (0, 0);
        for Server { server, .. } in self.servers.iter().filter(|server| which(&server.server)) {
            if last.replace(server.transport) == Some(server.transport) {
                place += 1;
            } else {
                transports += u32::from(!self.attempt.is_empty());
                place = 0;
            }
            let at = now + STAGGER * transports + SPACING * place;
            self.attempt.push(Step { server: server.clone(), state: StepState::Waiting(at) });
        }
    }

    /// The servers whose turn it is: those whose time has come, and the next one where
    /// all before it have failed.
    pub(super) fn due(&self, now: Instant) -> Vec<RelayServer> {
        let next = self.attempt.iter().take_while(|step| step.state == StepState::Failed).count();
        let is_due = |(at, step): &(usize, &Step)| match step.state {
            StepState::Waiting(due) => due <= now || *at == next,
            _ => false,
        };
        let due = self.attempt.iter().enumerate().filter(is_due);
        due.map(|(_, step)| step.server.clone()).collect()
    }

    /// A server of this transport answers: worse ones wait a little longer. It gives an
    /// allocation or ends within seconds.
    pub(super) fn hold(&mut self, transport: Transport, now: Instant) {
        for step in &mut self.attempt {
            if let StepState::Waiting(at) = &mut step.state
                && step.server.transport > transport
            {
                *at = (*at).max(now + SPACING);
            }
        }
    }

    /// This server is being tried as relay number `id`.
    pub(super) fn running(&mut self, server: &RelayServer, id: u32) {
        if let Some(step) = self.attempt.iter_mut().find(|step| step.server == *server) {
            step.state = StepState::Running(id);
        }
    }

    /// Relay `id` on this server has an allocation. The relays that the host is still
    /// being tried by beside it are of no more use.
    pub(super) fn won(
        &mut self,
        id: u32,
        server: &RelayServer,
        rtt: Option<Duration>,
        now: Instant,
    ) -> Vec<u32> {
        self.up = Some(id);
        self.up_since = now;
        if let Some(known) = self.server_mut(server) {
            known.error = None;
            known.rtt = rtt.or(known.rtt);
        }
        let best =
            self.servers.first().is_none_or(|best| best.server.transport == server.transport);
        if best {
            (self.climb, self.climbs) = (None, 0);
        } else {
            self.climb = Some(now + pause(CLIMB, self.climbs));
        }
        self.rest().into_iter().filter(|other| *other != id).collect()
    }

    /// Relay `id` on this server has ended by itself. True where that is news: it had an
    /// allocation, or nothing more of the host is left to try for the first time.
    pub(super) fn lost(
        &mut self,
        id: u32,
        server: &RelayServer,
        reason: &str,
        jitter: f64,
        now: Instant,
    ) -> bool {
        if let Some(known) = self.server_mut(server) {
            known.error = Some(reason.to_owned());
        }
        if self.up == Some(id) {
            self.up = None;
            if self.up_since + GOOD <= now {
                (self.failures, self.retry) = (0, now);
            } else {
                self.fail(jitter, now);
            }
            return true;
        }
        for step in &mut self.attempt {
            if step.state == StepState::Running(id) {
                step.state = StepState::Failed;
            }
        }
        if !self.is_trying() || !self.has_failed() {
            return false;
        }
        self.attempt.clear();
        if self.up.is_some() {
            return false;
        }
        self.fail(jitter, now);
        self.failures == 1
    }

    /// Relay `id` was ended by us.
    pub(super) fn forget(&mut self, id: u32, now: Instant) {
        if self.up == Some(id) {
            self.up = None;
        }
        self.attempt.retain(|step| step.state != StepState::Running(id));
        self.conclude(now);
    }

    /// Tries no more. The relays that it is being tried by.
    pub(super) fn rest(&mut self) -> Vec<u32> {
        let running = self.attempt.drain(..).filter_map(|step| match step.state {
            StepState::Running(id) => Some(id),
            _ => None,
        });
        running.collect()
    }

    /// What failed before may succeed now.
    pub(super) fn forgive(&mut self, now: Instant) {
        (self.failures, self.retry) = (0, now);
        self.climbs = 0;
        self.climb = self.climb.map(|_| now);
    }

    /// When something is to be done; `wanted` says whether the host is to be tried again
    /// once its pause is over.
    pub(super) fn poll_timeout(&self, wanted: bool, now: Instant) -> Option<Instant> {
        let steps = self.attempt.iter().filter_map(|step| match step.state {
            StepState::Waiting(at) => Some(at),
            _ => None,
        });
        // What is due and was left alone waits for something else to happen.
        let retry = (wanted && self.up.is_none() && !self.is_trying()).then_some(self.retry);
        let climb = self.climb.filter(|_| self.up.is_some() && !self.is_trying());
        let later = [retry, climb].into_iter().flatten().filter(|at| now < *at);
        steps.chain(later).min()
    }

    /// Whether all that is left of the attempt has failed.
    fn has_failed(&self) -> bool {
        self.attempt.iter().all(|step| step.state == StepState::Failed)
    }

    /// The attempt is over where what was still to come of it was taken back: nothing else
    /// would end it.
    fn conclude(&mut self, now: Instant) {
        if self.is_trying() && self.has_failed() {
            self.attempt.clear();
            self.retry = now + BACKOFF.0;
        }
    }

    fn fail(&mut self, jitter: f64, now: Instant) {
        self.retry = now + pause(BACKOFF, self.failures).mul_f64(jitter);
        self.failures += 1;
    }

    fn server_mut(&mut self, server: &RelayServer) -> Option<&mut Server> {
        self.servers.iter_mut().find(|known| known.server == *server)
    }
}

/// The first pause, doubled so many times, up to the last.
fn pause((first, last): (Duration, Duration), doubled: u32) -> Duration {
    (first * 2_u32.pow(doubled.min(10))).min(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(transport: Transport) -> RelayServer {
        RelayServer {
            label: format!("a {transport}"),
            host: "a".to_owned(),
            transport,
            addr: "192.0.2.1:3478".parse().expect("an address"),
            tls_name: None,
        }
    }

    /// A host whose datagrams have failed while its stream, relay 2, is being opened.
    fn half_failed(now: Instant) -> Host {
        let (udp, tcp) = (server(Transport::Udp), server(Transport::Tcp));
        let mut host = Host::new("a".to_owned(), now);
        host.set_servers(vec![udp.clone(), tcp.clone()], now);
        host.begin(now);
        host.running(&udp, 1);
        host.running(&tcp, 2);
        assert!(!host.lost(1, &udp, "the relay does not answer", 1.0, now));
        assert!(host.is_trying());
        host
    }

    #[test]
    fn a_host_is_tried_again_when_what_was_under_way_is_taken_back() {
        let now = Instant::now();
        let mut unnamed = half_failed(now);
        unnamed.set_servers(vec![server(Transport::Udp)], now);
        let mut forgotten = half_failed(now);
        forgotten.forget(2, now);
        for host in [unnamed, forgotten] {
            assert!(!host.is_trying() && !host.is_ready(now));
            let retry = host.poll_timeout(true, now).expect("it is tried again");
            assert!(retry <= now + BACKOFF.1 && host.is_ready(retry));
        }
    }
}
