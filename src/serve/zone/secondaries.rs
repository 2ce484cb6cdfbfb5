//! The secondary servers are told of changes.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    net::UdpSocket,
    time::{Instant as TokioInstant, sleep_until},
};
use tracing::{debug, warn};
use zonemesh_discovery::zone::serve::wire::Notifier;

use super::state::State;
use crate::config::ServeZoneConfig;

/// An answer to a NOTIFY is its header and question, and perhaps a signature.
const MOST: usize = 1232;

/// As good as never.
const LONG: Duration = Duration::from_secs(3600);

/// Sends NOTIFY to each of them after each change.
pub(super) async fn notify(state: Rc<State>, config: ServeZoneConfig) -> anyhow::Result<()> {
    let now = Instant::now();
    let mut notifier = state.with_store(|store| Notifier::new(&config.secondaries, store, now));
    let v4 = socket(&config, Ipv4Addr::UNSPECIFIED.into()).await;
    let v6 = socket(&config, Ipv6Addr::UNSPECIFIED.into()).await;
    let mut serial = state.serial();
    serial.mark_unchanged();
    let (mut buffer4, mut buffer6) = ([0; MOST], [0; MOST]);
    loop {
        while let Some(notify) = notifier.poll_transmit(rand::random(), Instant::now()) {
            let socket = if notify.to.is_ipv4() { &v4 } else { &v6 };
            if let Some(socket) = socket
                && let Err(error) = socket.send_to(&notify.payload, notify.to).await
            {
                debug!(to = %notify.to, "a NOTIFY was not sent: {error}");
            }
        }
        while let Some(error) = notifier.poll_error() {
            warn!("{error}");
        }
        let due = notifier.poll_timeout().unwrap_or_else(|| Instant::now() + LONG);
        tokio::select! {
            changed = serial.changed() => {
                changed?;
                let now = Instant::now();
                state.with_store(|store| notifier.handle_change(store, now));
            }
            Some((from, len)) = receive(v4.as_ref(), &mut buffer4) => {
                notifier.handle_response(from, &buffer4[..len]);
            }
            Some((from, len)) = receive(v6.as_ref(), &mut buffer6) => {
                notifier.handle_response(from, &buffer6[..len]);
            }
            () = sleep_until(TokioInstant::from_std(due)) => {}
        }
    }
}

/// A socket of one family, where a secondary has an address of it: from the address that the
/// zone is served at, since secondaries look from where a NOTIFY comes (RFC 1996 §3.10).
async fn socket(config: &ServeZoneConfig, any: IpAddr) -> Option<UdpSocket> {
    let wanted = config.secondaries.iter().any(|addr| addr.is_ipv4() == any.is_ipv4());
    let at = config.listen.iter().map(SocketAddr::ip).find(|ip| ip.is_ipv4() == any.is_ipv4());
    let ip = at.unwrap_or(any);
    if !wanted {
        return None;
    }
    match UdpSocket::bind((ip, 0)).await {
        Ok(socket) => Some(socket),
        Err(error) => {
            warn!("no NOTIFY to secondary servers from {ip}: {error}");
            None
        }
    }
}

/// The next datagram; `None` where there is no socket or it has an error to tell, such as
/// that a port is closed.
async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> Option<(SocketAddr, usize)> {
    let (len, from) = socket?.recv_from(buffer).await.ok()?;
    Some((from, len))
}
