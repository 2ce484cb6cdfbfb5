//! The clients' streams: who may have one, and what comes and goes on them.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener},
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};
use tracing::{debug, warn};
use zonemesh_punch::turn::{
    channel,
    server::{ClientAddr, ClientTransport, Load},
};

use super::{
    engine::{Engine, Token},
    stream::{Ended, Stream, cut},
};

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// How many are accepted in one go.
const ACCEPTS: usize = 32;

/// How long somebody may have a stream without an allocation: time for a handshake, two
/// requests and their answers on the worst of lines.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where streams are accepted.
pub(super) struct Acceptor {
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    /// It is not watched, for nothing can be accepted now.
    resting: bool,
}

impl Acceptor {
    pub(super) fn bind(addr: SocketAddr, tls: Option<Arc<ServerConfig>>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(Self { listener: socket.into(), tls, resting: false })
    }
}

impl AsFd for Acceptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// All streams.
pub(super) struct Streams {
    most: usize,
    most_per_source: usize,
    slots: Vec<Option<Stream>>,
    free: Vec<u32>,
    by_client: HashMap<ClientAddr, u32>,
    by_source: HashMap<IpAddr, usize>,
    /// Those that have something to send.
    dirty: Vec<u32>,
}

impl Streams {
    pub(super) fn new(most: usize, most_per_source: usize) -> Self {
        let (slots, free, by_client, by_source, dirty) = Default::default();
        Self { most, most_per_source, slots, free, by_client, by_source, dirty }
    }

    pub(super) fn len(&self) -> usize {
        self.by_client.len()
    }

    /// Whether one more from this address may come.
    fn has_room(&self, remote: IpAddr) -> bool {
        let from_there = self.by_source.get(&source(remote)).copied().unwrap_or_default();
        self.len() < self.most && from_there < self.most_per_source
    }

    fn insert(&mut self, stream: Stream) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let client = stream.client();
        self.by_client.insert(client, number);
        *self.by_source.entry(source(client.remote.ip())).or_default() += 1;
        self.slots[number as usize] = Some(stream);
        number
    }

    fn remove(&mut self, number: u32) -> Option<Stream> {
        let stream = self.slots.get_mut(number as usize)?.take()?;
        self.free.push(number);
        self.by_client.remove(&stream.client());
        let source = source(stream.client().remote.ip());
        if let Some(count) = self.by_source.get_mut(&source) {
            *count -= 1;
            if *count == 0 {
                self.by_source.remove(&source);
            }
        }
        Some(stream)
    }

    fn get(&mut self, number: u32) -> Option<&mut Stream> {
        self.slots.get_mut(number as usize)?.as_mut()
    }

    /// A client's stream, put on the list of those that have something to send.
    fn of(&mut self, client: &ClientAddr) -> Option<&mut Stream> {
        let number = *self.by_client.get(client)?;
        let stream = self.slots.get_mut(number as usize)?.as_mut()?;
        if !stream.dirty {
            stream.dirty = true;
            self.dirty.push(number);
        }
        Some(stream)
    }
}

impl Engine {
    /// Takes in who wants a stream.
    pub(super) fn accept(&mut self, number: u32, now: Instant) {
        for _ in 0..ACCEPTS {
            let acceptor = &self.acceptors[number as usize];
            let (socket, remote) = match acceptor.listener.accept() {
                Ok(accepted) => accepted,
                Err(error) => return self.not_accepted(number, &error),
            };
            if !self.streams.has_room(remote.ip()) {
                // Dropped, and so closed.
                debug!(%remote, "too many streams");
                continue;
            }
            let tls = acceptor.tls.as_ref();
            let transport = if tls.is_some() { ClientTransport::Tls } else { ClientTransport::Tcp };
            let taken = socket.local_addr().and_then(|local| {
                let client = ClientAddr { transport, local, remote };
                Stream::new(socket, client, tls, now + PATIENCE)
            });
            match taken {
                Ok(stream) => {
                    let number = self.streams.insert(stream);
                    let stream = self.streams.slots[number as usize].as_ref();
                    let watched =
                        stream.is_some_and(|s| self.watch(s, Token::Stream(number)).is_ok());
                    if !watched {
                        self.end(number, Ended::Closed);
                    }
                }
                Err(error) => debug!(%remote, "a stream was not taken: {error}"),
            }
        }
    }

    /// Nothing was accepted, be it that nobody is there. Where there are no more files to
    /// be had, whoever waits goes on waiting, and the poller would tell of him all the
    /// time: until the next tick it is not asked.
    pub(super) fn not_accepted(&mut self, number: u32, error: &io::Error) {
        match error.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM) => {
                warn!("no stream can be accepted now: {error}");
                let resting = self.unwatch(&self.acceptors[number as usize]).is_ok();
                self.acceptors[number as usize].resting |= resting;
            }
            _ if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => debug!("a stream was not accepted: {error}"),
        }
    }

    /// Looks again at who wants a stream.
    pub(super) fn wake_acceptors(&mut self) {
        for number in 0..self.acceptors.len() {
            let acceptor = &self.acceptors[number];
            let token = Token::Acceptor(u32::try_from(number).unwrap_or(u32::MAX));
            // Where even that fails, at the next tick.
            if acceptor.resting && self.watch(acceptor, token).is_ok() {
                self.acceptors[number].resting = false;
            }
        }
    }

    /// Something has happened on a stream.
    pub(super) fn handle_stream(&mut self, number: u32, writable: bool, now: Instant) {
        if writable && let Some(stream) = self.streams.get(number) {
            let client = stream.client();
            self.streams.of(&client);
        }
        if let Err(ended) = self.read_stream(number, now) {
            self.leave();
            self.end(number, ended);
        }
    }

    fn read_stream(&mut self, number: u32, now: Instant) -> Result<(), Ended> {
        let Some(stream) = self.streams.get(number) else { return Ok(()) };
        let client = stream.client();
        let over = stream.read();
        let wants_write = stream.dirty;
        let bytes = stream.take();
        if wants_write {
            stream.dirty = false;
            self.streams.of(&client);
        }
        let used = self.take_stream(client, &bytes, now);
        self.leave();
        if let Some(stream) = self.streams.get(number) {
            stream.keep(bytes, *used.as_ref().unwrap_or(&0));
        }
        match (over, used) {
            (Err(ended), _) | (_, Err(ended)) => Err(ended),
            (Ok(true), Ok(_)) => Err(Ended::Closed),
            (Ok(false), Ok(_)) => Ok(()),
        }
    }

    /// Takes what came on a stream; how much of it was whole.
    fn take_stream(
        &mut self,
        client: ClientAddr,
        bytes: &[u8],
        now: Instant,
    ) -> Result<usize, Ended> {
        let mut used = 0;
        loop {
            let stranger = !self.server.has_allocation(&client);
            let Some((whole, len)) = cut(&bytes[used..], stranger)? else { return Ok(used) };
            used += len;
            match channel::decode_old(whole) {
                Some((number, payload)) => {
                    let load = Load { packets: 1, bytes: payload.len() as u64 };
                    if let Some(to) = self.server.channel_data(&client, number, load, now) {
                        self.forward(to, payload);
                    }
                }
                None => self.take_message(client, whole, now),
            }
        }
    }

    /// Adds a message to what a client's stream has to send; `false` where it cannot.
    pub(super) fn push_message(&mut self, client: &ClientAddr, message: &[u8]) -> bool {
        self.streams.of(client).is_some_and(|stream| stream.push_message(message))
    }

    /// Adds ChannelData to what a client's stream has to send; `false` where it cannot.
    pub(super) fn push_frame(
        &mut self,
        client: &ClientAddr,
        header: [u8; channel::HEADER_LEN],
        payload: &[u8],
    ) -> bool {
        self.streams.of(client).is_some_and(|stream| stream.push_frame(header, payload))
    }

    /// Sends what the streams have to send, as far as their clients take it.
    pub(super) fn flush_streams(&mut self) {
        for number in std::mem::take(&mut self.streams.dirty) {
            let Some(stream) = self.streams.get(number) else { continue };
            stream.dirty = false;
            let ended = match stream.flush() {
                Ok(waiting) if waiting != stream.watched => {
                    stream.watched = waiting;
                    let stream = &self.streams.slots[number as usize];
                    let Some(stream) = stream else { continue };
                    self.watch_writes(stream, Token::Stream(number), waiting)
                        .map_err(|_| Ended::Closed)
                        .err()
                }
                Ok(_) => None,
                Err(ended) => Some(ended),
            };
            if let Some(ended) = ended {
                self.end(number, ended);
            }
        }
    }

    /// Ends the streams of those who had time enough to get an allocation, and have none.
    pub(super) fn end_idle_streams(&mut self, now: Instant) {
        let mut idle = Vec::new();
        for (number, stream) in (0..).zip(&mut self.streams.slots) {
            let Some(stream) = stream else { continue };
            if self.server.has_allocation(&stream.client()) {
                stream.patience = now + PATIENCE;
            } else if stream.patience <= now {
                idle.push(number);
            }
        }
        for number in idle {
            self.end(number, Ended::Closed);
        }
    }

    fn end(&mut self, number: u32, why: Ended) {
        if let Some(mut stream) = self.streams.remove(number) {
            // The alert that says why, as far as the client takes it.
            let _ = stream.flush();
            debug!(client = %stream.client().remote, "a stream has ended: {why}");
            self.server.handle_disconnect(&stream.client());
        }
    }
}

/// What counts as one source: an IPv4 address, or an IPv6 /64.
pub(super) fn source(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
    }
}
