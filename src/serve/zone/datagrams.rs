//! Requests by UDP.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
};

use tokio::{
    io::Interest,
    net::UdpSocket,
    task::{spawn_local, yield_now},
};
use tracing::debug;
use zonemesh_discovery::zone::serve::wire::{Answer, Source};

use super::state::State;
use crate::serve::udp::{Buffers, Udp};

/// Answers what comes in at one socket.
pub(super) async fn serve(state: Rc<State>, udp: Udp) -> anyhow::Result<()> {
    // The same socket, for the runtime to wait for.
    let waited = UdpSocket::from_std(udp.duplicate()?)?;
    let udp = Rc::new(udp);
    let mut buffers = Buffers::new();
    loop {
        waited.readable().await?;
        let received = match waited.try_io(Interest::READABLE, || udp.receive(&mut buffers)) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => {
                // An ICMP error about an earlier answer, say.
                debug!("nothing was received: {error}");
                0
            }
        };
        for index in 0..received {
            let (meta, train) = buffers.train(index);
            for wire in train.chunks(meta.stride.max(1)) {
                handle(&state, &udp, wire, meta.addr, meta.dst_ip);
            }
        }
        // Others have their turn, too.
        yield_now().await;
    }
}

fn handle(state: &Rc<State>, socket: &Rc<Udp>, wire: &[u8], from: SocketAddr, at: Option<IpAddr>) {
    match state.handle(wire, Source { ip: from.ip(), stream: false }) {
        Answer::Message(answer) => send(socket, at, from, &answer),
        Answer::Update(update) => {
            let Some(answered) = state.submit(*update) else { return };
            let socket = Rc::clone(socket);
            spawn_local(async move {
                if let Ok(answer) = answered.await {
                    send(&socket, at, from, &answer);
                }
            });
        }
        Answer::Forward(update) => {
            let (state, socket) = (Rc::clone(state), Rc::clone(socket));
            spawn_local(async move {
                let answer = state.forward(*update).await;
                send(&socket, at, from, &answer);
            });
        }
        Answer::Notified(answer) => {
            state.notify();
            send(socket, at, from, &answer);
        }
        // The other two are answers over streams.
        Answer::Silence | Answer::Transfer(_) | Answer::Poll(_) => {}
    }
}

fn send(socket: &Udp, from: Option<IpAddr>, to: SocketAddr, answer: &[u8]) {
    let sent = socket.send(from, to, answer, None);
    // What the kernel does not take is lost, as it may be anywhere on its way.
    if let Err(error) = sent
        && error.kind() != io::ErrorKind::WouldBlock
    {
        debug!(%to, "an answer was not sent: {error}");
    }
}
