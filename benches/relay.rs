//! How fast `zonemesh serve` relays, beside coturn's `turnserver`, in the same run.
//!
//! Three public hosts of a lab: a client with an allocation and a channel, its peer, and
//! the relay between them. Datagrams of 1,200 bytes are kept going round: as many are
//! sent as have just arrived, so that nothing is lost to a sender that is too fast, and
//! the one thread that sends and receives never waits in vain. Both ends send and receive
//! in trains (UDP_SEGMENT, UDP_GRO), as the data plane does under load; a last comparison
//! is of datagrams that are sent one by one. The relays take turns, so that what else the
//! machine does hits both. Needs root and coturn; `make bench-relay` sees to that.

use std::{
    env, fs,
    io::{self, IoSliceMut},
    net::{IpAddr, SocketAddr, UdpSocket},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result, bail};
use quinn_udp::{BATCH_SIZE, RecvMeta, Transmit, UdpSocketState};
use rustix::{
    event::{PollFd, PollFlags, poll},
    net::sockopt,
};
use zonemesh::lab::{
    net::{Host, Lab},
    relay_server::{RelayKind, RelayServer, RelaySettings},
    world,
};
use zonemesh_punch::turn::{Client, ClientConfig, Credentials, Event, Transport, channel};

/// Turns of each relay.
const ROUNDS: usize = 5;

/// How long one turn measures, after the time to get going.
const TURN: Duration = Duration::from_secs(3);
const WARM_UP: Duration = Duration::from_millis(500);

/// Bytes of a payload.
const PAYLOAD: usize = 1200;

/// Datagrams on their way each way: more than a relay handles in one go, fewer than the
/// smallest of the buffers on the way holds.
const WINDOW: usize = 128;

/// Datagrams of one train: with ChannelData's header as many as one send takes.
const TRAIN: usize = 54;

/// After so long without one that arrives, those on their way are lost.
const LOST: Duration = Duration::from_millis(50);

/// How long an allocation may take.
const READY: Duration = Duration::from_secs(10);

/// The kernel counts a process's time in these (Linux: USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

fn main() -> ExitCode {
    world::in_own(&["openssl", "turnserver"], compare)
}

/// Which way data goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    ToPeer,
    ToClient,
    Both,
    /// Both, without trains.
    OneByOne,
}

/// What one turn has shown.
#[derive(Debug, Clone, Copy)]
struct Speed {
    /// Payload that arrived.
    gbit_s: f64,
    /// Processor time of the relay for each Gbit of it.
    cpu_s_per_gbit: f64,
    lost: usize,
}

fn compare() -> Result<()> {
    let mut lab = Lab::new()?;
    let relay = lab.public_host("relay", 1)?;
    let client = lab.public_host("client", 1)?;
    let peer = lab.public_host("peer", 1)?;
    let mut slower = Vec::new();
    for way in [Way::ToPeer, Way::ToClient, Way::Both, Way::OneByOne] {
        let kinds = [RelayKind::Zonemesh, RelayKind::Coturn];
        let mut speeds = [Vec::new(), Vec::new()];
        for round in 1..=ROUNDS {
            for (speeds, kind) in speeds.iter_mut().zip(kinds) {
                let speed = measure(kind, way, [&relay, &client, &peer])
                    .with_context(|| format!("{kind}, {way:?}"))?;
                println!(
                    "{way:?} round {round}: {:6.2} Gbit/s, {:.3} CPU s/Gbit, {} lost  {kind}",
                    speed.gbit_s, speed.cpu_s_per_gbit, speed.lost
                );
                speeds.push(speed);
            }
        }
        let of = |speeds: &[Speed], what: fn(&Speed) -> f64| median(speeds.iter().map(what));
        let [ours, theirs] = [&speeds[0], &speeds[1]].map(|s| of(s, |speed| speed.gbit_s));
        let [our_cpu, their_cpu] =
            [&speeds[0], &speeds[1]].map(|s| of(s, |speed| speed.cpu_s_per_gbit));
        println!(
            "{way:?} median: {ours:6.2} Gbit/s, {our_cpu:.3} CPU s/Gbit  zonemesh serve\n\
             {way:?} median: {theirs:6.2} Gbit/s, {their_cpu:.3} CPU s/Gbit  coturn\n\
             {way:?} ratio:  {:6.2} of the speed, {:.2} of the CPU time\n",
            ours / theirs,
            our_cpu / their_cpu
        );
        if ours < theirs {
            slower.push(way);
        }
    }
    if !slower.is_empty() {
        bail!("slower than coturn: {slower:?}");
    }
    Ok(())
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn measure(kind: RelayKind, way: Way, [relay, client, peer]: [&Host; 3]) -> Result<Speed> {
    let settings = RelaySettings {
        tls_port: None,
        listen: vec![relay.ipv4()],
        executable: env!("CARGO_BIN_EXE_zonemesh").into(),
        ..RelaySettings::default()
    };
    let port = settings.port;
    let server = RelayServer::start(kind, relay, Path::new("/run"), settings)?;
    let most = if way == Way::OneByOne { 1 } else { TRAIN };
    let mut peer = End::new(peer, most)?;
    let relay = SocketAddr::new(server.addresses()[0], port);
    let mut client = End::new(client, most)?;
    client.allocate(relay, peer.local()?, server.secret(), &mut peer)?;

    let process = server.process().context("it runs")?;
    run(way, &mut client, &mut peer, WARM_UP)?;
    let (start, cpu) = (Instant::now(), cpu_s(process)?);
    let (arrived, lost) = run(way, &mut client, &mut peer, TURN)?;
    let (elapsed, cpu) = (start.elapsed(), cpu_s(process)? - cpu);
    let gbit = (arrived * PAYLOAD * 8) as f64 / 1e9;
    Ok(Speed { gbit_s: gbit / elapsed.as_secs_f64(), cpu_s_per_gbit: cpu / gbit, lost })
}

/// Keeps datagrams going round for `time`; how many arrived, and how many were lost.
fn run(way: Way, client: &mut End, peer: &mut End, time: Duration) -> Result<(usize, usize)> {
    let (mut arrived, mut lost) = (0, 0);
    let start = Instant::now();
    // What is left of the turn before.
    while client.receive()? + peer.receive()? > 0 {}
    let prime = |client: &mut End, peer: &mut End| -> Result<()> {
        if way != Way::ToClient {
            client.send(WINDOW)?;
        }
        if way != Way::ToPeer {
            peer.send(WINDOW)?;
        }
        Ok(())
    };
    prime(client, peer)?;
    let mut heard = Instant::now();
    while start.elapsed() < time {
        wait(&[&client.socket, &peer.socket], LOST)?;
        // What arrives at one end lets the sender of it send again.
        let (at_client, at_peer) = (client.receive()?, peer.receive()?);
        match way {
            Way::ToPeer => client.send(at_peer)?,
            Way::ToClient => peer.send(at_client)?,
            Way::Both | Way::OneByOne => {
                client.send(at_peer)?;
                peer.send(at_client)?;
            }
        }
        arrived += at_client + at_peer;
        if at_client + at_peer > 0 {
            heard = Instant::now();
        } else if heard.elapsed() > LOST {
            lost += WINDOW;
            prime(client, peer)?;
            heard = Instant::now();
        }
    }
    Ok((arrived, lost))
}

/// A socket at one end, and how it sends.
struct End {
    socket: UdpSocket,
    state: UdpSocketState,
    to: Option<SocketAddr>,
    /// Datagrams of one train.
    most: usize,
    train: Vec<u8>,
    segment: usize,
    buffers: Vec<u8>,
}

impl End {
    fn new(host: &Host, most: usize) -> Result<Self> {
        let ip: IpAddr = host.ipv4();
        let socket = host.namespace.enter(|| UdpSocket::bind((ip, 0)))??;
        sockopt::set_socket_recv_buffer_size_force(&socket, 8 << 20)?;
        sockopt::set_socket_send_buffer_size_force(&socket, 8 << 20)?;
        let state = UdpSocketState::new((&socket).into())?;
        let buffers = vec![0; 65_535 * BATCH_SIZE];
        Ok(Self {
            socket,
            state,
            to: None,
            most,
            train: vec![0; PAYLOAD * TRAIN],
            segment: PAYLOAD,
            buffers,
        })
    }

    fn local(&self) -> Result<SocketAddr> {
        Ok(self.socket.local_addr()?)
    }

    /// Gets an allocation and a channel to `peer`, which then knows where to send to.
    fn allocate(
        &mut self,
        relay: SocketAddr,
        address: SocketAddr,
        secret: &str,
        peer: &mut End,
    ) -> Result<()> {
        let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let credentials = Credentials::time_limited(secret.as_bytes(), "bench", unix + 3600);
        let transport = Transport::Datagram;
        let config = ClientConfig { credentials, server: relay, transport, seed: [7; 32] };
        let start = Instant::now();
        let mut client = Client::new(config, start);
        client.bind(address, start);
        let mut buffer = [0; 1500];
        loop {
            let now = Instant::now();
            client.handle_timeout(now);
            while let Some(message) = client.poll_transmit() {
                self.socket.send_to(&message, relay)?;
            }
            while let Some(event) = client.poll_event() {
                match event {
                    Event::Allocated { relayed, .. } => peer.to = Some(relayed),
                    Event::Bound { channel, .. } => {
                        let frame = channel::encode(channel, &[0; PAYLOAD]).context("short")?;
                        self.segment = frame.len();
                        self.train = frame.repeat(TRAIN);
                        self.to = Some(relay);
                        return Ok(());
                    }
                    other => bail!("the relay refuses: {other:?}"),
                }
            }
            if start.elapsed() > READY {
                bail!("no allocation within {READY:?}");
            }
            wait(&[&self.socket], Duration::from_millis(20))?;
            if let Ok((len, _)) = self.socket.recv_from(&mut buffer) {
                client.handle_message(&buffer[..len], Instant::now());
            }
        }
    }

    /// How many datagrams are there; they are read and forgotten.
    fn receive(&mut self) -> Result<usize> {
        let mut metas = [RecvMeta::default(); BATCH_SIZE];
        let mut chunks = self.buffers.chunks_mut(65_535);
        let mut slices: [IoSliceMut<'_>; BATCH_SIZE] =
            std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        match self.state.recv((&self.socket).into(), &mut slices, &mut metas) {
            Ok(count) => {
                let datagrams = metas[..count].iter().map(|m| m.len.div_ceil(m.stride.max(1)));
                Ok(datagrams.sum())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    fn send(&mut self, mut count: usize) -> Result<()> {
        let Some(destination) = self.to else { bail!("nowhere to send to") };
        while count > 0 {
            let now = count.min(self.most);
            let transmit = Transmit {
                destination,
                ecn: None,
                contents: &self.train[..now * self.segment],
                segment_size: Some(self.segment),
                src_ip: None,
            };
            match self.state.try_send((&self.socket).into(), &transmit) {
                Ok(()) => count -= now,
                // It is missed where it should have arrived.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn wait(sockets: &[&UdpSocket], limit: Duration) -> Result<()> {
    let mut fds: Vec<_> = sockets.iter().map(|s| PollFd::new(*s, PollFlags::IN)).collect();
    let limit = limit.try_into().context("a short time")?;
    match poll(&mut fds, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The processor time that a process has taken so far.
fn cpu_s(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // Behind the name, which may hold anything: state is the third field (proc(5)).
    let fields: Vec<&str> =
        stat.rsplit_once(')').context("no name")?.1.split_whitespace().collect();
    let ticks = |field: usize| -> Result<f64> {
        Ok(fields.get(field - 3).context("too few fields")?.parse::<f64>()?)
    };
    Ok((ticks(14)? + ticks(15)?) / TICKS_PER_SECOND)
}
