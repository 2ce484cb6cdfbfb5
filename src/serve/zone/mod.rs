//! The embedded zone's process: sockets, connections and the journal around the pure
//! [`Responder`].
//!
//! One thread does all of it, with a small runtime: what a zone has to do in a second is far
//! less than what one core can. Updates go through one queue, so that those that come
//! together are written down together, with one sync for all of them.

mod connection;
mod datagrams;
mod follow;
mod journal;
mod secondaries;
mod state;

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context;
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{sync::oneshot, task::LocalSet, time::sleep};
use tracing::{info, warn};
use zonemesh_discovery::zone::serve::{
    ZoneConfig,
    wire::{Counters, Responder, ResponderConfig},
};

use self::{journal::Journal, state::State};
use super::{limits, udp::Udp};
use crate::config::ServeZoneConfig;

/// What a burst of queries takes while the journal is being synced.
const UDP_BUFFER: usize = 1 << 20;

/// How many connections may wait to be accepted: all nodes of a mesh, after a restart.
const BACKLOG: i32 = 4096;

/// How often it is told what was done, where something was.
const TELL: Duration = Duration::from_secs(60);

/// The zone's thread, from outside.
pub(super) struct Serving {
    stop: oneshot::Sender<()>,
    ended: oneshot::Receiver<()>,
    thread: JoinHandle<anyhow::Result<()>>,
}

/// The sockets, before the thread has them.
#[derive(Default)]
struct Sockets {
    datagrams: Vec<Udp>,
    streams: Vec<(TcpListener, Option<Arc<ServerConfig>>)>,
}

/// Opens sockets and journal, and starts the thread. `own` are this machine's addresses.
pub(super) fn start(
    config: &ServeZoneConfig,
    zone: ZoneConfig,
    tls: Option<&Arc<ServerConfig>>,
    own: &[IpAddr],
) -> anyhow::Result<Serving> {
    limits::raise_for_zone(config.connections);
    let mut sockets = Sockets::default();
    for addr in &config.listen {
        sockets.listen(*addr, own)?;
    }
    if let Some(tls) = tls {
        for addr in &config.tls_listen {
            sockets.listen_tls(*addr, tls, own)?;
        }
    }
    anyhow::ensure!(!sockets.datagrams.is_empty(), "nowhere to listen for the zone");
    let (mut store, mut journal) = Journal::open(&config.data_dir, zone, SystemTime::now())?;
    if let Some(bytes) = store.poll_journal() {
        let folder = config.data_dir.display();
        journal.append(&bytes).with_context(|| format!("cannot write the journal in {folder}"))?;
        store.commit();
    }
    let keys = config.keys.clone();
    let follows = config.primary.is_some();
    let settings = ResponderConfig { keys, closed: config.closed, rates: config.rates, follows };
    let responder = Responder::new(store, settings, Instant::now());
    let config = config.clone();
    let (stop, stopped) = oneshot::channel();
    let (ending, ended) = oneshot::channel();
    let thread = thread::Builder::new().name("zone".into()).spawn(move || {
        let result = run(&config, responder, journal, sockets, stopped);
        // Nobody may be waiting.
        let _ = ending.send(());
        result
    })?;
    Ok(Serving { stop, ended, thread })
}

impl Serving {
    /// Waits until it has ended by itself.
    pub(super) async fn ended(&mut self) {
        // Told or dropped, it is over.
        let _ = (&mut self.ended).await;
    }

    /// Ends it, and says how it went.
    pub(super) fn stop(self) -> anyhow::Result<()> {
        // Fails only when the thread has ended.
        let _ = self.stop.send(());
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("the zone's thread has panicked"),
        }
    }
}

fn run(
    config: &ServeZoneConfig,
    responder: Responder,
    journal: Journal,
    sockets: Sockets,
    stopped: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    let state = Rc::new(State::new(responder, journal, config));
    runtime.block_on(tasks.run_until(async {
        let mut running = tokio::task::JoinSet::new();
        for udp in sockets.datagrams {
            running.spawn_local(datagrams::serve(Rc::clone(&state), udp));
        }
        for (listener, tls) in sockets.streams {
            running.spawn_local(connection::accept(Rc::clone(&state), listener, tls));
        }
        running.spawn_local(Rc::clone(&state).write_down());
        running.spawn_local(Rc::clone(&state).sweep());
        running.spawn_local(Rc::clone(&state).announce());
        running.spawn_local(secondaries::notify(Rc::clone(&state), config.clone()));
        if let Some(primary) = config.client() {
            running.spawn_local(follow::follow(Rc::clone(&state), primary));
        }
        running.spawn_local(tell(Rc::clone(&state)));
        tokio::select! {
            _ = stopped => Ok(()),
            // None ends by itself, but for what it cannot go on with.
            Some(ended) = running.join_next() => ended.context("the zone's task has failed")?,
        }
    }))
}

/// Tells now and then what was done.
async fn tell(state: Rc<State>) -> anyhow::Result<()> {
    let mut before = Counters::default();
    loop {
        sleep(TELL).await;
        let (counters, serial, nodes, bytes) = state.figures();
        if counters != before {
            info!(
                serial,
                nodes,
                bytes,
                connections = state.connections(),
                queries = counters.queries,
                updates = counters.updates,
                refused = counters.refused,
                whole_transfers = counters.whole,
                changes = counters.changes,
                bad_signatures = counters.bad_signatures,
                malformed = counters.malformed,
                limited = counters.limited,
                "served the zone"
            );
            before = counters;
        }
    }
}

impl Sockets {
    fn listen(&mut self, addr: SocketAddr, own: &[IpAddr]) -> anyhow::Result<()> {
        for addr in each_free(addr, own, |addr| Udp::bind(addr, UDP_BUFFER).map(drop))? {
            let udp = Udp::bind(addr, UDP_BUFFER);
            let udp = udp.with_context(|| format!("cannot listen on {addr}"))?;
            self.datagrams.push(udp);
            self.accept(addr, None)?;
            info!(%addr, "serving the zone by UDP and TCP");
        }
        Ok(())
    }

    fn listen_tls(
        &mut self,
        addr: SocketAddr,
        tls: &Arc<ServerConfig>,
        own: &[IpAddr],
    ) -> anyhow::Result<()> {
        for addr in each_free(addr, own, |addr| listener(addr).map(drop))? {
            self.accept(addr, Some(Arc::clone(tls)))?;
            info!(%addr, "serving the zone by TLS");
        }
        Ok(())
    }

    fn accept(&mut self, addr: SocketAddr, tls: Option<Arc<ServerConfig>>) -> anyhow::Result<()> {
        let listener = listener(addr).with_context(|| format!("cannot listen on {addr} (TCP)"))?;
        self.streams.push((listener, tls));
        Ok(())
    }
}

/// Where to listen for an address: there, or where that is all addresses and somebody else
/// has the port on one (systemd-resolved on loopback, say), on each of this machine's own;
/// nowhere where there is no IPv6.
fn each_free(
    addr: SocketAddr,
    own: &[IpAddr],
    bind: impl Fn(SocketAddr) -> io::Result<()>,
) -> anyhow::Result<Vec<SocketAddr>> {
    let error = match bind(addr) {
        Ok(()) => return Ok(vec![addr]),
        Err(error) if super::engine::is_without_ipv6(addr, &error) => return Ok(vec![]),
        Err(error) => error,
    };
    if addr.ip().is_unspecified() && error.kind() == io::ErrorKind::AddrInUse {
        let each = own.iter().filter(|ip| ip.is_ipv4() == addr.is_ipv4());
        let each = each.map(|ip| SocketAddr::new(*ip, addr.port()));
        let free: Vec<SocketAddr> = each.filter(|addr| bind(*addr).is_ok()).collect();
        if !free.is_empty() {
            warn!("port {} is in use on some address: serving the zone on the others", addr.port());
            return Ok(free);
        }
    }
    Err(error).with_context(|| format!("cannot listen on {addr}"))
}

fn listener(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use super::*;

    #[test]
    fn where_somebody_has_the_port_on_one_address_the_others_are_served() {
        let taken = Ipv4Addr::new(127, 0, 0, 53);
        let resolver = UdpSocket::bind((taken, 0)).expect("a port");
        let port = resolver.local_addr().expect("bound").port();
        let own: [IpAddr; 3] = [taken.into(), Ipv4Addr::LOCALHOST.into(), [0; 16].into()];
        let bind = |addr| Udp::bind(addr, UDP_BUFFER).map(drop);
        let all = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        assert_eq!(each_free(all, &own, bind).expect("one is free"), [free]);
        // Who names an address means that one.
        let error = each_free((taken, port).into(), &own, bind).expect_err("it is taken");
        assert!(error.to_string().contains(&format!("127.0.0.53:{port}")), "{error}");
        drop(resolver);
        assert_eq!(each_free(all, &own, bind).expect("all are free"), [all]);
    }
}
