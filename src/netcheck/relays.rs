//! Which relays give this machine a relayed address: each server of each by itself, since
//! that one way is open says nothing of the others.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use tokio::{
    io::unix::AsyncFd,
    net::UdpSocket,
    sync::mpsc,
    time::{sleep_until, timeout},
};
use zonemesh_discovery::zone::ZoneClient;
use zonemesh_punch::turn::{self, Client, ClientConfig, Credentials};

use super::report::RelayReport;
use crate::{
    config::Config,
    relays::{
        Link, MAX_SERVERS, RelayServer, Transport, resolve,
        stream::{StreamEvent, Streams},
    },
    sys,
};

/// How long one relay may take: a TCP connection and a TLS handshake have five seconds
/// each, and a request over UDP is given up after less.
const LIMIT: Duration = Duration::from_secs(12);

/// How long the credential of this run is good, in seconds. Clocks differ.
const CREDENTIAL_LIFE: u64 = 600;

/// The user of this run's credential: a name of its own, so that no quota of a node that
/// runs on this machine is touched.
const NAME: &str = "netcheck";

/// Longer than any message of a relay's that counts here.
const BUFFER: usize = 2048;

/// Asks all relays that the configuration or the zone names, where they are reached;
/// `None` where there are none, or the configuration wants none.
pub(super) async fn check(
    config: &Config,
    zone: Option<ZoneClient>,
    reach: impl Fn(SocketAddr) -> SocketAddr,
) -> Option<Vec<RelayReport>> {
    if !config.relay.enabled {
        return None;
    }
    let mut servers = servers(config, zone).await;
    for server in &mut servers {
        server.addr = reach(server.addr);
    }
    if servers.is_empty() {
        return None;
    }
    servers.truncate(MAX_SERVERS);
    let checks = servers.iter().map(|server| async {
        let asked = match &config.relay.username_secret {
            Some(secret) => {
                let secret = secret.expose().as_bytes();
                let asking = ask(server, secret, config.relay.ca_file.as_deref());
                let late = |_| Err("the relay does not answer".to_owned());
                timeout(LIMIT, asking).await.unwrap_or_else(late)
            }
            None => Err("there is no credential: name a file in relay.username_secret_file".into()),
        };
        let (given, error) = match asked {
            Ok(given) => (Some(given), None),
            Err(error) => (None, Some(error)),
        };
        RelayReport {
            uri: server.label.clone(),
            server: server.addr,
            transport: server.transport.to_string(),
            relayed: given.map(|given| given.relayed),
            rtt_ms: given.and_then(|given| given.rtt).map(|rtt| rtt.as_secs_f64() * 1000.0),
            error,
        }
    });
    Some(join_all(checks).await)
}

async fn servers(config: &Config, zone: Option<ZoneClient>) -> Vec<RelayServer> {
    let mut found = Vec::new();
    for uri in &config.relay.servers {
        // A name that is not found has no address to report on; the log tells.
        match resolve::servers(uri).await {
            Ok(servers) => found.extend(servers),
            Err(error) => tracing::warn!("the relay {uri} is not found: {error}"),
        }
    }
    if config.relay.servers.is_empty()
        && let Some(zone) = zone
    {
        for (service, transport) in resolve::SERVICES {
            let named = zone.named_services(service).await.unwrap_or_default();
            found.extend(resolve::of_service(transport, &named));
        }
    }
    found
}

/// What a relay gave.
#[derive(Debug, Clone, Copy)]
struct Given {
    relayed: SocketAddr,
    rtt: Option<Duration>,
}

/// Asks one server for an allocation, and gives it back.
async fn ask(server: &RelayServer, secret: &[u8], ca: Option<&Path>) -> Result<Given, String> {
    let (wire, transport) = Wire::open(server, ca).await?;
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let credentials = Credentials::time_limited(secret, NAME, now_s + CREDENTIAL_LIFE);
    let seed = rand::random();
    let config = ClientConfig { credentials, server: server.addr, transport, seed };
    let mut client = Client::new(config, Instant::now());
    loop {
        wire.send_all(&mut client).await;
        match client.poll_event() {
            Some(turn::Event::Allocated { relayed, .. }) => {
                let given = Given { relayed, rtt: client.rtt() };
                client.close(Instant::now());
                wire.send_all(&mut client).await;
                wire.close().await;
                return Ok(given);
            }
            Some(turn::Event::Ended(reason)) => return Err(reason.to_string()),
            Some(_) => continue,
            None => {}
        }
        let due = client.poll_timeout().unwrap_or_else(|| Instant::now() + LIMIT);
        let mut buffer = [0; BUFFER];
        tokio::select! {
            came = wire.receive(&mut buffer) => match came {
                Ok(length) => {
                    client.handle_message(&buffer[..length], Instant::now());
                }
                // By UDP an ICMP error, which may be forged: the retries tell.
                Err(_) if server.transport == Transport::Udp => {}
                Err(error) => return Err(error.to_string()),
            },
            () = sleep_until(due.into()) => {}
        }
        client.handle_timeout(Instant::now());
    }
}

/// The way to a relay's server.
enum Wire {
    Datagrams(UdpSocket),
    Stream { pair: AsyncFd<OwnedFd>, told: mpsc::Receiver<StreamEvent>, _streams: Streams },
}

impl Wire {
    async fn open(
        server: &RelayServer,
        ca: Option<&Path>,
    ) -> Result<(Self, turn::Transport), String> {
        let link = match server.transport {
            Transport::Udp => {
                let open = async {
                    let socket = match server.addr {
                        SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?,
                        SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?,
                    };
                    socket.connect(server.addr).await?;
                    io::Result::Ok(socket)
                };
                let socket = open.await.map_err(|error| error.to_string())?;
                return Ok((Self::Datagrams(socket), turn::Transport::Datagram));
            }
            Transport::Tcp => Link::Tcp(server.addr),
            Transport::Tls => Link::Tls(server.addr, server.tls_name.clone().unwrap_or_default()),
        };
        let (mut streams, mut told) = Streams::new(ca).map_err(|error| format!("{error:#}"))?;
        streams.open(0, &link);
        match told.recv().await {
            Some(StreamEvent::Opened { end, .. }) => {
                let pair = sys::watch(end).map_err(|error| error.to_string())?;
                let stream = Self::Stream { pair, told, _streams: streams };
                Ok((stream, turn::Transport::Stream))
            }
            Some(StreamEvent::Closed { reason, .. }) => Err(reason),
            None => Err("the connection has ended".to_owned()),
        }
    }

    /// Sends all that the client wants sent. What cannot be sent is not answered.
    async fn send_all(&self, client: &mut Client) {
        while let Some(message) = client.poll_transmit() {
            match self {
                Self::Datagrams(socket) => {
                    let _ = socket.send(&message).await;
                }
                Self::Stream { pair, .. } => {
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    let _ = send(pair.get_ref(), &message, flags);
                }
            }
        }
    }

    async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let pair = match self {
            Self::Datagrams(socket) => return socket.recv(buffer).await,
            Self::Stream { pair, .. } => pair,
        };
        loop {
            let mut ready = pair.readable().await?;
            match recv(pair.get_ref(), &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Err(io::Error::other("the relay has closed the connection")),
                Ok((length, _)) => return Ok(length),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets the last message out before the connection ends.
    async fn close(self) {
        if let Self::Stream { pair, mut told, _streams } = self {
            drop(pair);
            // It ends by itself once all is sent; the relay's lease ends in any case.
            let _ = timeout(Duration::from_secs(1), told.recv()).await;
        }
    }
}
