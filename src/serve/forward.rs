//! Data on its way through: trains in, decisions by the machine, trains out.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use tracing::debug;
use zonemesh_punch::turn::{
    channel,
    server::{ClientAddr, ClientTransport, Forward, Load, PeerAddr, RelayId},
};

use super::{
    engine::{Engine, relay_number},
    train::Receiver,
    udp::{Buffers, Udp},
};

impl Engine {
    /// One batch of what clients sent as datagrams.
    pub(super) fn read_clients(&mut self, number: u32, buffers: &mut Buffers, now: Instant) {
        let listener = &self.listeners[number as usize];
        let Some(count) = receive(listener, buffers) else { return };
        let bound = listener.local();
        for index in 0..count {
            let (meta, train) = buffers.train(index);
            let ip = if bound.ip().is_unspecified() { meta.dst_ip } else { None };
            let client = ClientAddr {
                transport: ClientTransport::Udp,
                local: SocketAddr::new(ip.unwrap_or(bound.ip()), bound.port()),
                remote: plain(meta.addr),
            };
            self.take_train(client, train, meta.stride, now);
        }
        self.leave();
    }

    /// One batch of what peers sent to a relayed address.
    pub(super) fn read_peers(&mut self, relay: RelayId, buffers: &mut Buffers, now: Instant) {
        let place = self.relays.get(relay_number(relay) as usize);
        // It may have been closed since the poller saw something.
        let Some(socket) = place.and_then(Option::as_ref) else { return };
        let Some(count) = receive(socket, buffers) else { return };
        for index in 0..count {
            let (meta, train) = buffers.train(index);
            let stride = meta.stride.max(1);
            let load = Load {
                packets: train.len().div_ceil(stride).max(1) as u64,
                bytes: train.len() as u64,
            };
            let peer = PeerAddr(plain(meta.addr));
            let Some(to) = self.server.peer_data(relay, peer, load, now) else { continue };
            if train.is_empty() {
                self.forward(to, train);
            }
            for payload in train.chunks(stride) {
                self.forward(to, payload);
            }
        }
        self.leave();
    }

    /// Takes datagrams of one client that came in together, all of `stride` bytes but the
    /// last one. Frames on one channel that follow each other take one decision.
    fn take_train(&mut self, client: ClientAddr, train: &[u8], stride: usize, now: Instant) {
        let stride = stride.max(1);
        let mut rest = train;
        while !rest.is_empty() {
            let datagram = &rest[..stride.min(rest.len())];
            let Some((number, _)) = channel::decode_old(datagram) else {
                rest = &rest[datagram.len()..];
                self.take_message(client, datagram, now);
                continue;
            };
            let mut load = Load::default();
            let mut len = 0;
            for (_, payload) in frames(rest, stride).take_while(|(other, _)| *other == number) {
                load += Load { packets: 1, bytes: payload.len() as u64 };
                len += stride;
            }
            let (run, after) = rest.split_at(len.min(rest.len()));
            rest = after;
            if let Some(to) = self.server.channel_data(&client, number, load, now) {
                for (_, payload) in frames(run, stride) {
                    self.forward(to, payload);
                }
            }
        }
    }

    /// Takes what is no ChannelData.
    pub(super) fn take_message(&mut self, client: ClientAddr, message: &[u8], now: Instant) {
        if let Some(sent) = self.server.handle_message(client, message, now) {
            match sent.to {
                Forward::Peer { relay, peer } if sent.dont_fragment => {
                    let place = self.relays.get(relay_number(relay) as usize);
                    if let Some(socket) = place.and_then(Option::as_ref)
                        && let Err(error) = socket.send_whole(peer.0, &sent.payload)
                    {
                        debug!(peer = %peer.0, "not sent whole: {error}");
                        self.unsent += 1;
                    }
                }
                to => self.forward(to, &sent.payload),
            }
        }
        self.settle(now);
    }

    /// Puts one datagram's payload on its way.
    pub(super) fn forward(&mut self, to: Forward, payload: &[u8]) {
        match to {
            Forward::Peer { relay, peer } => self.board(Receiver::Peer(relay, peer), None, payload),
            Forward::Channel { client, channel } => {
                let Some(header) = channel::header(channel, payload.len()) else { return };
                if client.transport == ClientTransport::Udp {
                    self.board(Receiver::Client(client), Some(header), payload);
                } else if !self.push_frame(&client, header, payload) {
                    self.unsent += 1;
                }
            }
            Forward::Indication { client, peer } => {
                if let Some(indication) = self.server.data_indication(peer, payload) {
                    self.send_message(&client, &indication);
                }
            }
        }
    }

    /// Sends one message to a client.
    pub(super) fn send_message(&mut self, client: &ClientAddr, message: &[u8]) {
        if client.transport != ClientTransport::Udp {
            if !self.push_message(client, message) {
                self.unsent += 1;
            }
            return;
        }
        let Some((listener, from)) = self.listener(client) else { return };
        if let Err(error) = listener.send(source(listener, from), client.remote, message, None) {
            debug!(client = %client.remote, "not sent: {error}");
            self.unsent += 1;
        }
    }

    /// Adds a datagram to the train, or lets that leave and starts another.
    fn board(
        &mut self,
        receiver: Receiver,
        header: Option<[u8; channel::HEADER_LEN]>,
        payload: &[u8],
    ) {
        let most = self.socket(&receiver).map_or(1, |(socket, _, _)| socket.max_segments());
        if !self.train.push(receiver, most, header, payload) {
            self.leave();
            self.train.push(receiver, most, header, payload);
        }
    }

    /// Lets the train leave.
    pub(super) fn leave(&mut self) {
        let Some((receiver, count, contents, segment)) = self.train.leave() else { return };
        if let Some((socket, from, to)) = self.socket(&receiver)
            && let Err(error) = socket.send_train(from, to, contents, segment)
        {
            // As any router: what cannot go on now is lost.
            debug!(%to, "not sent: {error}");
            self.unsent += count as u64;
        }
        self.train.clear();
    }

    /// The socket that a train leaves by, from which address, and where to.
    fn socket(&self, receiver: &Receiver) -> Option<(&Udp, Option<IpAddr>, SocketAddr)> {
        match receiver {
            Receiver::Peer(relay, peer) => {
                let socket = self.relays.get(relay_number(*relay) as usize)?.as_ref()?;
                Some((socket, None, peer.0))
            }
            Receiver::Client(client) => {
                let (listener, from) = self.listener(client)?;
                Some((listener, source(listener, from), client.remote))
            }
        }
    }
}

/// The address to name as the source, where the socket does not say it.
fn source(listener: &Udp, from: IpAddr) -> Option<IpAddr> {
    listener.local().ip().is_unspecified().then_some(from)
}

/// How many trains came in; `None` where there are none.
fn receive(socket: &Udp, buffers: &mut Buffers) -> Option<usize> {
    match socket.receive(buffers) {
        Ok(count) => Some(count),
        Err(error) => {
            if error.kind() != std::io::ErrorKind::WouldBlock {
                debug!("not received: {error}");
            }
            None
        }
    }
}

/// Channel and payload of the datagrams of a train, up to the first that is no frame.
fn frames(train: &[u8], stride: usize) -> impl Iterator<Item = (u16, &[u8])> {
    train.chunks(stride).map_while(channel::decode_old)
}

/// An address as it is compared: without a flow label.
fn plain(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(mut v6) => {
            v6.set_flowinfo(0);
            v6.into()
        }
        SocketAddr::V4(_) => addr,
    }
}
