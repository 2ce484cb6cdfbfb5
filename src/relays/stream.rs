//! TCP and TLS connections to relays (RFC 8656 §3.1, RFC 8489 §6.2.2, §6.2.3).
//!
//! The data plane knows datagrams alone. So each connection has a task that stands
//! between it and a pair of `SOCK_SEQPACKET` sockets: each datagram of the pair is one
//! STUN message or ChannelData frame of the stream, without the padding that a stream
//! needs. The task ends, and with it the connection, when either side does.
//!
//! Nothing grows: what the stream does not take stays in the pair, whose buffer is
//! small, and when that is full the data plane's sends fail and the packets are lost, as
//! on any full link. The kernel's own queue of unsent bytes is kept short too, since a
//! packet that waits there for seconds is worse than a lost one. What the data plane
//! does not take is dropped here.

use std::{
    collections::BTreeMap, io, net::SocketAddr, os::fd::OwnedFd, path::Path, sync::Arc,
    time::Duration,
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair, sockopt,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, unix::AsyncFd},
    net::TcpStream,
    sync::mpsc,
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, RootCertStore, pki_types::ServerName},
};
use tracing::{debug, warn};
use zonemesh_punch::turn::channel;

use super::Link;
use crate::{config::authorities, sys};

/// How long a connection may take to open, TLS included: TCP sends a lost SYN again
/// after one second and after three.
const OPEN_LIMIT: Duration = Duration::from_secs(5);

/// The kernel gives a connection up on which nothing is acknowledged for so long. The
/// client inside notices sooner; this is for data that is stuck.
const ACK_LIMIT: Duration = Duration::from_secs(10);

/// How long the last bytes may take after the data plane has closed its end.
const GOODBYE_LIMIT: Duration = Duration::from_secs(1);

/// How long a connection may live on that the data plane needs no more: a relay that
/// stops reading would hold it for ever.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// The longest frame that is taken: above any MTU that an interface here can have
/// (9,000 bytes) there is no packet of ours. Longer ones are passed over.
const MAX_FRAME: usize = 16 * 1024;

/// Bytes that one write to the stream gathers: as much as one TLS record holds.
const BATCH: usize = 16 * 1024;

/// What waits in the pair for the stream: at 100 Mbit/s some 20 ms.
const PAIR_BUFFER: usize = 256 * 1024;

/// Unsent bytes that the kernel takes of a connection before it wants no more.
const UNSENT: u32 = 128 * 1024;

/// What the connections tell.
#[derive(Debug)]
pub enum StreamEvent {
    /// Relay `id` is connected; this end of the pair is the data plane's.
    Opened {
        /// The relay.
        id: u32,
        /// The end of the pair.
        end: OwnedFd,
    },
    /// Its connection could not be opened, or has ended.
    Closed {
        /// The relay.
        id: u32,
        /// Why.
        reason: String,
    },
}

/// The connections.
pub struct Streams {
    tls: Arc<ClientConfig>,
    tasks: BTreeMap<u32, JoinHandle<()>>,
    events: mpsc::Sender<StreamEvent>,
}

impl Streams {
    /// No connections yet. Certificates are checked against the system's authorities and
    /// those of `ca_file` (PEM). What happens comes out of the second value.
    ///
    /// # Errors
    /// When `ca_file` cannot be read or holds no certificate.
    pub fn new(ca_file: Option<&Path>) -> anyhow::Result<(Self, mpsc::Receiver<StreamEvent>)> {
        let tls = Arc::new(tls_config(ca_file)?);
        let (events, told) = mpsc::channel(super::MAX_SERVERS * 2);
        Ok((Self { tls, tasks: BTreeMap::new(), events }, told))
    }

    /// Opens the connection that relay `id` wants. [`Link::Udp`] needs none.
    pub fn open(&mut self, id: u32, link: &Link) {
        self.tasks.retain(|_, task| !task.is_finished());
        let (addr, name) = match link {
            Link::Udp(_) => return,
            Link::Tcp(addr) => (*addr, None),
            Link::Tls(addr, name) => (*addr, Some(name.clone())),
        };
        let (tls, events) = (Arc::clone(&self.tls), self.events.clone());
        let task = async move {
            let reason = match run(id, addr, name, tls, &events).await {
                Ok(()) => "closed".to_owned(),
                Err(error) => error.to_string(),
            };
            debug!(relay = id, %addr, "the connection has ended: {reason}");
            // Nobody listens any more only when the node stops.
            let _ = events.send(StreamEvent::Closed { id, reason }).await;
        };
        self.tasks.insert(id, tokio::spawn(task));
    }

    /// Relay `id` needs its connection no more. One that is being opened ends at once;
    /// an open one when the data plane has dropped its end of the pair, with the last
    /// bytes sent if the relay takes them within two seconds.
    pub fn close(&mut self, id: u32, was_open: bool) {
        let Some(mut task) = self.tasks.remove(&id) else { return };
        if !was_open {
            task.abort();
            return;
        }
        tokio::spawn(async move {
            if timeout(CLOSE_LIMIT, &mut task).await.is_err() {
                task.abort();
            }
        });
    }
}

/// Opens a connection and carries frames until either side ends.
async fn run(
    id: u32,
    addr: SocketAddr,
    name: Option<String>,
    tls: Arc<ClientConfig>,
    events: &mpsc::Sender<StreamEvent>,
) -> io::Result<()> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no connection within five seconds");
    let stream = timeout(OPEN_LIMIT, TcpStream::connect(addr)).await.map_err(late)??;
    stream.set_nodelay(true)?;
    limit(&stream);
    let Some(name) = name else { return carry(id, stream, events).await };
    let name = ServerName::try_from(name).map_err(io::Error::other)?;
    let handshake = TlsConnector::from(tls).connect(name, stream);
    let stream = timeout(OPEN_LIMIT, handshake).await.map_err(late)??;
    carry(id, stream, events).await
}

/// Keeps the kernel from queueing for seconds. It is no harm where it cannot.
fn limit(stream: &TcpStream) {
    let socket = socket2::SockRef::from(stream);
    let done = socket
        .set_tcp_user_timeout(Some(ACK_LIMIT))
        .and_then(|()| socket.set_tcp_notsent_lowat(UNSENT));
    if let Err(error) = done {
        debug!("a relay's connection keeps the kernel's own limits: {error}");
    }
}

async fn carry<S: AsyncRead + AsyncWrite>(
    id: u32,
    stream: S,
    events: &mpsc::Sender<StreamEvent>,
) -> io::Result<()> {
    let (ours, theirs) = pair()?;
    let ours = sys::watch(ours)?;
    let opened = StreamEvent::Opened { id, end: theirs };
    if events.send(opened).await.is_err() {
        return Ok(());
    }
    let (mut reader, mut writer) = tokio::io::split(stream);
    let down = async {
        let done = from_stream(&mut reader, &ours).await;
        // A stream that is closed by the other side is of no use half open.
        done.and(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the relay")))
    };
    let up = async {
        to_stream(&ours, &mut writer).await?;
        // The data plane has dropped its end.
        let _ = timeout(GOODBYE_LIMIT, writer.shutdown()).await;
        Ok(())
    };
    tokio::select! {
        done = down => done,
        done = up => done,
    }
}

fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [&ours, &theirs] {
        sockopt::set_socket_send_buffer_size(end, PAIR_BUFFER)?;
    }
    Ok((ours, theirs))
}

/// Cuts the stream into frames, until it ends.
async fn from_stream(
    stream: &mut (impl AsyncRead + Unpin),
    pair: &AsyncFd<OwnedFd>,
) -> io::Result<()> {
    let mut buffer = vec![0; 2 * (MAX_FRAME + 4)];
    let mut filled = 0;
    let mut skip = 0;
    loop {
        let mut at = 0;
        loop {
            let skipped = skip.min(filled - at);
            (at, skip) = (at + skipped, skip - skipped);
            let Some(start) = buffer[at..filled].first_chunk::<4>() else { break };
            let rubbish = || io::Error::new(io::ErrorKind::InvalidData, "the relay sends rubbish");
            let framed = channel::framed(*start).ok_or_else(rubbish)?;
            // Any peer can have the relay send one: it is no reason to part with the relay.
            if framed.len > MAX_FRAME {
                skip = framed.on_stream;
                continue;
            }
            if filled - at < framed.on_stream {
                break;
            }
            hand_over(pair, &buffer[at..at + framed.len])?;
            at += framed.on_stream;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
        match stream.read(&mut buffer[filled..]).await? {
            0 => return Ok(()),
            more => filled += more,
        }
    }
}

/// Hands one frame to the data plane, or drops it where that is behind.
fn hand_over(pair: &AsyncFd<OwnedFd>, frame: &[u8]) -> io::Result<()> {
    match send(pair.get_ref(), frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Puts the data plane's frames on the stream, until it has dropped its end.
async fn to_stream(
    pair: &AsyncFd<OwnedFd>,
    stream: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut frame = vec![0; MAX_FRAME];
    let mut batch = Vec::with_capacity(BATCH + MAX_FRAME + 4);
    loop {
        let mut ready = pair.readable().await?;
        let mut ended = false;
        while batch.len() < BATCH {
            match recv(pair.get_ref(), &mut frame[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    ended = true;
                    break;
                }
                Ok((len, whole)) if len == whole => {
                    batch.extend_from_slice(&frame[..len]);
                    batch.resize(batch.len() + channel::padding(len), 0);
                }
                // Longer than any frame of ours.
                Ok(_) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    ready.clear_ready();
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
        stream.write_all(&batch).await?;
        stream.flush().await?;
        batch.clear();
        if ended {
            return Ok(());
        }
    }
}

/// TLS with the system's authorities, and those of a file.
fn tls_config(ca_file: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    if !system.errors.is_empty() {
        debug!("some of the system's authorities cannot be read: {:?}", system.errors);
    }
    roots.add_parsable_certificates(system.certs);
    if let Some(file) = ca_file {
        let own = authorities(file).map_err(|error| anyhow::anyhow!("relay.ca_file: {error}"))?;
        roots.roots.extend(own.roots);
    }
    if roots.is_empty() {
        warn!("no certificate authorities here: relays by TLS need relay.ca_file");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const ID: u32 = 3;

    /// A relay that accepts, and the data plane's end of the pair.
    async fn connected() -> (Streams, mpsc::Receiver<StreamEvent>, TcpStream, AsyncFd<OwnedFd>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let (mut streams, mut told) = Streams::new(None).expect("TLS is ready");
        streams.open(ID, &Link::Tcp(listener.local_addr().expect("it is bound")));
        let (relay, _) = listener.accept().await.expect("it connects");
        let Some(StreamEvent::Opened { id: ID, end }) = told.recv().await else {
            panic!("it tells that it is open")
        };
        (streams, told, relay, sys::watch(end).expect("a socket"))
    }

    async fn received(end: &AsyncFd<OwnedFd>) -> Vec<u8> {
        let mut buffer = vec![0; MAX_FRAME];
        loop {
            let mut ready = end.readable().await.expect("it is open");
            match recv(end.get_ref(), &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => return buffer[..len].to_vec(),
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn sent(end: &AsyncFd<OwnedFd>, bytes: &[u8]) -> rustix::io::Result<usize> {
        send(end.get_ref(), bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
    }

    async fn why_closed(told: &mut mpsc::Receiver<StreamEvent>) -> String {
        match told.recv().await {
            Some(StreamEvent::Closed { id: ID, reason }) => reason,
            other => panic!("it is closed, and not {other:?}"),
        }
    }

    #[tokio::test]
    async fn frames_come_whole_however_the_stream_cuts_them() {
        let (_streams, _told, mut relay, end) = connected().await;
        let frame = channel::encode(0x4001, b"hello").expect("short");
        let mut stun = vec![0x01, 0x03, 0x00, 0x04, 0x21, 0x12, 0xa4, 0x42];
        stun.resize(24, 7);
        let mut bytes = frame.clone();
        bytes.extend_from_slice(&[0; 3]);
        bytes.extend_from_slice(&stun);
        bytes.extend_from_slice(&channel::encode(0x4002, b"").expect("short"));
        let (first, rest) = bytes.split_at(2);
        relay.write_all(first).await.expect("written");
        relay.flush().await.expect("written");
        for byte in rest {
            relay.write_all(&[*byte]).await.expect("written");
        }
        assert_eq!(received(&end).await, frame);
        assert_eq!(received(&end).await, stun);
        assert_eq!(received(&end).await, [0x40, 0x02, 0, 0]);
    }

    #[tokio::test]
    async fn a_frame_that_is_too_long_is_passed_over_and_the_next_one_comes() {
        let (_streams, _told, mut relay, end) = connected().await;
        let small = channel::encode(0x4001, b"four").expect("short");
        for len in [MAX_FRAME - 3, 20_001, 65_535] {
            let mut bytes = channel::encode(0x4001, &vec![0xff; len]).expect("short enough");
            bytes.resize(bytes.len() + channel::padding(bytes.len()), 0xff);
            bytes.extend_from_slice(&small);
            relay.write_all(&bytes).await.expect("written");
            assert_eq!(received(&end).await, small, "after {len} bytes");
        }
        let mut data_indication = vec![0; 20 + 40_000];
        data_indication[..4].copy_from_slice(&[0x00, 0x17, 0x9c, 0x40]);
        relay.write_all(&data_indication).await.expect("written");
        relay.write_all(&small).await.expect("written");
        assert_eq!(received(&end).await, small);
    }

    #[tokio::test]
    async fn what_goes_out_is_padded_and_the_rest_goes_out_before_the_end() {
        let (_streams, mut told, mut relay, end) = connected().await;
        for payload in [&b"hello"[..], b"", b"four"] {
            let frame = channel::encode(0x4001, payload).expect("short");
            sent(&end, &frame).expect("there is room");
        }
        drop(end);
        let mut all = Vec::new();
        relay.read_to_end(&mut all).await.expect("the stream ends");
        assert_eq!(all, b"\x40\x01\0\x05hello\0\0\0\x40\x01\0\0\x40\x01\0\x04four");
        assert_eq!(why_closed(&mut told).await, "closed");
    }

    #[tokio::test]
    async fn rubbish_and_a_close_of_the_relay_end_the_connection() {
        let (_streams, mut told, mut relay, _end) = connected().await;
        relay.write_all(b"\xff\xfe\xfd\xfc").await.expect("written");
        assert_eq!(why_closed(&mut told).await, "the relay sends rubbish");
        let (_streams, mut told, relay, _end) = connected().await;
        drop(relay);
        assert_eq!(why_closed(&mut told).await, "closed by the relay");
    }

    #[tokio::test]
    async fn a_stream_that_stalls_loses_packets_and_does_not_grow() {
        let (_streams, _told, mut relay, end) = connected().await;
        let frame = channel::encode(0x4001, &[7; 1400]).expect("short");
        // The relay reads nothing: sooner or later there is no room, for good.
        let mut taken = 0_usize;
        let mut refused = 0;
        while refused < 100 {
            match sent(&end, &frame) {
                Ok(len) => taken += len,
                Err(rustix::io::Errno::AGAIN) => {
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                Err(error) => panic!("{error}"),
            }
            assert!(taken < 64 << 20, "it grows");
        }
        // It reads again, and everything that was taken comes, whole.
        let mut all = vec![0; taken];
        relay.read_exact(&mut all).await.expect("what was taken comes");
        assert!(all.chunks(frame.len()).all(|chunk| chunk == frame));
    }

    #[tokio::test]
    async fn a_relay_that_reads_no_more_holds_no_connection_that_is_closed() {
        let (mut streams, mut told, _relay, end) = connected().await;
        let frame = channel::encode(0x4001, &[7; 1400]).expect("short");
        let mut refused = 0;
        while refused < 100 {
            if sent(&end, &frame).is_err() {
                refused += 1;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        drop(end);
        streams.close(ID, true);
        drop(streams);
        // Only its task can tell anything now.
        let end = timeout(2 * CLOSE_LIMIT, told.recv()).await.expect("the task ends");
        assert!(end.is_none(), "{end:?}");
    }

    #[tokio::test]
    async fn a_connection_that_is_refused_says_so() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let nobody = listener.local_addr().expect("it is bound");
        drop(listener);
        let (mut streams, mut told) = Streams::new(None).expect("TLS is ready");
        streams.open(ID, &Link::Tcp(nobody));
        assert!(why_closed(&mut told).await.contains("refused"));
    }

    #[test]
    fn a_file_without_certificates_is_an_error() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("ca.pem");
        std::fs::write(&file, "nothing").expect("written");
        let error = Streams::new(Some(&file)).map(|_| ()).expect_err("no certificate");
        assert!(error.to_string().contains("relay.ca_file"), "{error}");
        assert!(Streams::new(Some(&folder.path().join("none.pem"))).is_err());
    }
}
