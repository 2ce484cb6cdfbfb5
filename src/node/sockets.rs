//! Sockets beside WireGuard's own, for NATs that map by destination: each has a mapping
//! of its own there.
//!
//! Many are opened for an attempt and few are of use. So they are read here, by small
//! tasks whose datagrams become events of the loop; the one by which a peer is reached
//! is handed over to the data plane, and the others are closed.

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, SocketAddr, UdpSocket as StdUdpSocket},
    sync::Arc,
};

use tokio::{net::UdpSocket, sync::mpsc, task::JoinHandle};
use zonemesh_punch::{Route, Via};

use super::{Event, HardEvent};
use crate::sys;

/// The most that are open at once: what one attempt may use, and as many as may be of
/// use to earlier ones.
pub(super) const MAX_SOCKETS: usize = 256 + 64;

/// The largest datagram that is looked at: no check is longer.
const MAX_DATAGRAM: usize = 1500;

/// The sockets, by their numbers. A number is never used again.
pub(super) struct Sockets {
    open: BTreeMap<u32, Open>,
    next: u32,
    events: mpsc::Sender<Event>,
}

struct Open {
    socket: Arc<UdpSocket>,
    reader: JoinHandle<()>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Sockets {
    pub(super) fn new(events: mpsc::Sender<Event>) -> Self {
        Self { open: BTreeMap::new(), next: 0, events }
    }

    /// Opens so many more, or as many as the machine gives and the bound allows.
    pub(super) fn open(&mut self, count: usize) -> Vec<u32> {
        let count = count.min(MAX_SOCKETS.saturating_sub(self.open.len()));
        let mut opened = Vec::with_capacity(count);
        for _ in 0..count {
            match self.open_one() {
                Ok(id) => opened.push(id),
                Err(error) => {
                    tracing::debug!(%error, "no more sockets");
                    break;
                }
            }
        }
        opened
    }

    fn open_one(&mut self) -> io::Result<u32> {
        let socket = StdUdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_nonblocking(true)?;
        Ok(self.adopt(UdpSocket::from_std(socket)?))
    }

    /// Takes a socket that is open, and hands back its number.
    pub(super) fn adopt(&mut self, socket: UdpSocket) -> u32 {
        let socket = Arc::new(socket);
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let reader = tokio::spawn(read(id, Arc::clone(&socket), self.events.clone()));
        self.open.insert(id, Open { socket, reader });
        id
    }

    /// Sends from one of them, at most `hops` routers far where that is bounded; `false`
    /// where it is not here (any more).
    pub(super) fn send(&self, id: u32, to: SocketAddr, bytes: &[u8], hops: Option<u8>) -> bool {
        let Some(open) = self.open.get(&id) else { return false };
        // What cannot be sent is as lost as any datagram may be.
        let _ = match hops {
            Some(hops) => sys::send_near(&*open.socket, to, bytes, hops),
            None => open.socket.try_send_to(bytes, to).map(|_| ()),
        };
        true
    }

    /// Closes it here and hands it over, as a socket that others read from now on.
    pub(super) fn hand_over(&mut self, id: u32) -> Option<StdUdpSocket> {
        let open = self.open.remove(&id)?;
        let socket = rustix::io::dup(&*open.socket).ok()?;
        Some(StdUdpSocket::from(socket))
    }

    /// Closes these.
    pub(super) fn close(&mut self, ids: &[u32]) {
        for id in ids {
            self.open.remove(id);
        }
    }
}

async fn read(id: u32, socket: Arc<UdpSocket>, events: mpsc::Sender<Event>) {
    let mut buffer = [0; MAX_DATAGRAM];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            // An ICMP error about an earlier datagram.
            continue;
        };
        let route = Route { via: Via::Extra(id), remote: from };
        let bytes = buffer[..length].to_vec();
        if events.send(Event::Hard(HardEvent::Datagram { route, bytes })).await.is_err() {
            return;
        }
    }
}
