//! Requests over TCP (RFC 7766) and TLS (RFC 7858).
//!
//! A connection's requests are answered one after the other; only a long poll lets the next
//! one past. So a client has at most one answer on the way, and one that does not read it
//! is dropped before long.

use std::{io, net::TcpListener, rc::Rc, sync::Arc, time::Duration};

use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split},
    net::TcpStream,
    task::spawn_local,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};
use zonemesh_discovery::zone::serve::wire::{Answer, Poll, Source, Transfer};

use super::state::{Admitted, State};

/// How long a client may be silent between two requests, and take to send one whole: what
/// RFC 7766 §6.2.3 calls a few seconds, and long enough to be used again.
const IDLE: Duration = Duration::from_secs(30);

/// How long a client may take to read an answer, or one message of a transfer.
const WRITE: Duration = Duration::from_secs(15);

/// How long a whole transfer may take: 16 MiB at some 2 Mbit/s.
const TRANSFER: Duration = Duration::from_secs(60);

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// The longest request: an update of a node is some 2 KB, a list of revocations 70.
const MOST: usize = u16::MAX as usize;

/// How long nobody is let in where the machine is out of files.
const REST: Duration = Duration::from_secs(1);

/// How long the other side may take to acknowledge what was sent (RFC 5482), and how often
/// one that waits is asked whether it is there.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Lets clients in at one address.
pub(super) async fn accept(
    state: Rc<State>,
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let tls = tls.map(TlsAcceptor::from);
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
                ) {
                    warn!("no connection to the zone can be accepted now: {error}");
                    sleep(REST).await;
                }
                continue;
            }
        };
        let Some(admitted) = state.admit(remote.ip()) else {
            // Dropped, and so closed.
            debug!(%remote, "too many connections to the zone");
            continue;
        };
        let source = Source { ip: remote.ip(), stream: true };
        let (state, tls) = (Rc::clone(&state), tls.clone());
        spawn_local(async move {
            let ended = match tls {
                None => serve(&state, &admitted, set_up(stream), source).await,
                Some(tls) => match timeout(HANDSHAKE, tls.accept(stream)).await {
                    Ok(Ok(stream)) => serve(&state, &admitted, Ok(stream), source).await,
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                },
            };
            if let Err(error) = ended {
                debug!(%remote, "a connection to the zone has ended: {error}");
            }
        });
    }
}

/// Has the kernel notice when a client is gone.
fn set_up(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let options = SockRef::from(&stream);
    options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
    Ok(stream)
}

/// Serves one client until it leaves, or is silent for too long.
async fn serve<S: AsyncRead + AsyncWrite>(
    state: &Rc<State>,
    admitted: &Admitted,
    stream: io::Result<S>,
    source: Source,
) -> io::Result<()> {
    let (reader, writer) = split(stream?);
    let mut requests = Requests { reader, bytes: Vec::new() };
    let mut answers = Answers { writer };
    while let Some(request) = within(IDLE, requests.next()).await? {
        match state.handle(&request, source) {
            // What is no request is no client.
            Answer::Silence => break,
            Answer::Message(answer) => answers.send(&answer).await?,
            Answer::Transfer(transfer) => {
                within(TRANSFER, answers.send_all(admitted, *transfer)).await?;
            }
            Answer::Poll(poll) => {
                drop(request);
                let answer = wait(state, &mut requests, *poll).await?;
                answers.send(&answer).await?;
            }
            Answer::Update(update) => {
                sleep(update.wait()).await;
                let Some(answered) = state.submit(*update) else {
                    return Err(io::Error::other("too many updates wait"));
                };
                let answer = answered.await.map_err(io::Error::other)?;
                answers.send(&answer).await?;
            }
            Answer::Forward(update) => {
                sleep(update.wait).await;
                answers.send(&state.forward(*update).await).await?;
            }
            Answer::Notified(answer) => {
                state.notify();
                answers.send(&answer).await?;
            }
        }
    }
    Ok(())
}

/// Waits until the zone has changed, time is up, or the client has something else to ask.
async fn wait<R: AsyncRead>(
    state: &Rc<State>,
    requests: &mut Requests<R>,
    poll: Poll,
) -> io::Result<Vec<u8>> {
    let mut serial = state.serial();
    let known = poll.known();
    tokio::select! {
        // What is told may lag behind what is.
        moved = serial.wait_for(|_| state.is_newer_than(known)) => drop(moved),
        () = sleep(Poll::LIMIT) => {}
        more = requests.fill() => more?,
    }
    Ok(state.finish(poll))
}

/// Cuts a stream into requests (RFC 1035 §4.2.2).
struct Requests<S> {
    reader: ReadHalf<S>,
    bytes: Vec<u8>,
}

impl<S: AsyncRead> Requests<S> {
    /// The next one; `None` when the client has no more.
    async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            if let Some(length) = self.bytes.first_chunk() {
                let end = 2 + usize::from(u16::from_be_bytes(*length));
                if self.bytes.len() >= end {
                    let rest = self.bytes.split_off(end);
                    let mut request = std::mem::replace(&mut self.bytes, rest);
                    request.drain(..2);
                    return Ok(Some(request));
                }
            }
            match self.fill().await {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads more. Where it is given up, nothing is lost.
    async fn fill(&mut self) -> io::Result<()> {
        // One request and what came behind it; the rest waits in the kernel.
        if self.bytes.len() > 2 + MOST {
            return Ok(());
        }
        self.bytes.reserve(512);
        match self.reader.read_buf(&mut self.bytes).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

struct Answers<S> {
    writer: WriteHalf<S>,
}

impl<S: AsyncWrite> Answers<S> {
    /// Sends one message, length and all in one piece (RFC 7766 §8).
    async fn send(&mut self, wire: &[u8]) -> io::Result<()> {
        let length = u16::try_from(wire.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], wire].concat();
        let sending = async {
            self.writer.write_all(&framed).await?;
            self.writer.flush().await
        };
        within(WRITE, sending).await
    }

    /// Sends the messages of a transfer.
    async fn send_all(&mut self, admitted: &Admitted, mut transfer: Transfer) -> io::Result<()> {
        sleep(transfer.wait()).await;
        let turn = admitted.transfers.acquire().await;
        while let Some(wire) = transfer.next_message(std::time::SystemTime::now()) {
            self.send(&wire).await?;
        }
        drop(turn);
        Ok(())
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
