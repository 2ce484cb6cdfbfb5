//! A client's stream, in clear or under TLS: bytes in, whole messages and frames out,
//! and the other way.
//!
//! Both ways are bounded. What comes in is held until a frame is whole, and no frame is
//! longer than [`MAX_FRAME`], for strangers [`MAX_STRANGER_FRAME`]. What goes out waits
//! for the client to take it; where too much waits, data is dropped, as it would be on
//! any other way that is too slow.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::{AsFd, BorrowedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ServerConfig, ServerConnection};
use socket2::{SockRef, TcpKeepalive};
use zonemesh_punch::turn::{channel, server::ClientAddr};

/// The longest frame: ChannelData with the longest payload, padded.
const MAX_FRAME: usize = 65_540;

/// Who has no allocation only has requests to send.
const MAX_STRANGER_FRAME: usize = 4096;

/// How much may wait to be sent; some 40 ms at 50 Mbit/s.
const MAX_WAITING: usize = 256 << 10;

/// What is kept free of it for answers, so that data cannot keep them out.
const FOR_ANSWERS: usize = 8 << 10;

/// How many reads are done at a time, so that one stream does not keep others waiting.
/// Under TLS each is one of some KB.
const READS: usize = 8;
const READ_LEN: usize = 32 << 10;

/// Bytes of one TLS record (RFC 8446 §5.1).
const RECORD_LEN: usize = 16 << 10;

/// How long the other side may take to acknowledge what was sent (RFC 5482), and how
/// often an idle one is asked whether it is there.
const USER_TIMEOUT: Duration = Duration::from_secs(30);
const KEEPALIVE: Duration = Duration::from_secs(60);

/// The stream is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ended {
    /// The client has closed it, or it has broken.
    #[error("closed")]
    Closed,
    /// What came is neither STUN nor ChannelData.
    #[error("neither STUN nor ChannelData")]
    Rubbish,
    /// The TLS handshake has failed, or what came after it is no TLS.
    #[error("no TLS")]
    Tls,
}

/// One client's stream.
pub(super) struct Stream {
    socket: TcpStream,
    tls: Option<Box<ServerConnection>>,
    client: ClientAddr,
    inbound: Vec<u8>,
    outbound: Vec<u8>,
    /// How much of `outbound` has gone.
    sent: usize,
    /// Until when the client must have an allocation.
    pub(super) patience: Instant,
    /// Whether it is on the list of those that have something to send.
    pub(super) dirty: bool,
    /// Whether the poller tells when it can be written to.
    pub(super) watched: bool,
}

impl Stream {
    /// Takes over a connection.
    pub(super) fn new(
        socket: TcpStream,
        client: ClientAddr,
        tls: Option<&Arc<ServerConfig>>,
        patience: Instant,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let options = SockRef::from(&socket);
        options.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        options.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        let tls = match tls {
            Some(config) => {
                let mut tls =
                    ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
                tls.set_buffer_limit(Some(2 * RECORD_LEN));
                Some(Box::new(tls))
            }
            None => None,
        };
        Ok(Self {
            socket,
            tls,
            client,
            inbound: Vec::new(),
            outbound: Vec::new(),
            sent: 0,
            patience,
            dirty: false,
            watched: false,
        })
    }

    pub(super) fn client(&self) -> ClientAddr {
        self.client
    }

    /// Reads what is there, as far as it goes at a time. `Ok(true)`: the client sends no
    /// more, but what came before counts.
    pub(super) fn read(&mut self) -> Result<bool, Ended> {
        for _ in 0..READS {
            match self.read_once() {
                Ok(0) => return Ok(true),
                Ok(_) if self.inbound.len() > MAX_FRAME + READ_LEN => break,
                Ok(_) => {}
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => break,
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::InvalidData => return Err(Ended::Tls),
                    _ => return Err(Ended::Closed),
                },
            }
        }
        Ok(false)
    }

    /// How many bytes came off the wire.
    fn read_once(&mut self) -> io::Result<usize> {
        let start = self.inbound.len();
        let Some(tls) = &mut self.tls else {
            self.inbound.resize(start + READ_LEN, 0);
            let read = self.socket.read(&mut self.inbound[start..]);
            self.inbound.truncate(start + *read.as_ref().unwrap_or(&0));
            return read;
        };
        let read = tls.read_tls(&mut self.socket)?;
        let state = tls
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error));
        // Also an alert that says what was wrong wants to be sent.
        self.dirty |= tls.wants_write();
        let plain = state?.plaintext_bytes_to_read();
        self.inbound.resize(start + plain, 0);
        tls.reader().read_exact(&mut self.inbound[start..])?;
        Ok(read)
    }

    /// Takes out what has come, to be cut by [`cut`] and given back by [`Stream::keep`].
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.inbound)
    }

    /// Keeps what follows the first `used` bytes of what was taken.
    pub(super) fn keep(&mut self, mut bytes: Vec<u8>, used: usize) {
        bytes.drain(..used);
        if bytes.is_empty() && bytes.capacity() > 2 * READ_LEN {
            bytes = Vec::new();
        }
        self.inbound = bytes;
    }

    /// Adds a message to what is to be sent; `false` where there is no room for it.
    pub(super) fn push_message(&mut self, message: &[u8]) -> bool {
        let room = self.waiting() + message.len() <= MAX_WAITING;
        if room {
            self.outbound.extend_from_slice(message);
        }
        room
    }

    /// Adds ChannelData to what is to be sent, padded as on every stream (RFC 8656
    /// §12.5); `false` where there is no room for it.
    pub(super) fn push_frame(&mut self, header: [u8; channel::HEADER_LEN], payload: &[u8]) -> bool {
        let len = channel::HEADER_LEN + payload.len();
        let padding = channel::padding(len);
        let room = self.waiting() + len + padding <= MAX_WAITING - FOR_ANSWERS;
        if room {
            self.outbound.extend_from_slice(&header);
            self.outbound.extend_from_slice(payload);
            self.outbound.extend_from_slice(&[0; 4][..padding]);
        }
        room
    }

    fn waiting(&self) -> usize {
        self.outbound.len() - self.sent
    }

    /// Sends what the client takes; whether something is left.
    pub(super) fn flush(&mut self) -> Result<bool, Ended> {
        loop {
            match self.flush_once() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => {
                        self.forget_sent();
                        return Ok(true);
                    }
                    io::ErrorKind::Interrupted => {}
                    _ => return Err(Ended::Closed),
                },
            }
        }
        self.outbound.clear();
        self.sent = 0;
        if self.outbound.capacity() > MAX_WAITING / 4 {
            self.outbound = Vec::new();
        }
        Ok(false)
    }

    /// Lets go of what has gone, once it is as much as may wait: where something always
    /// waits, it would pile up.
    fn forget_sent(&mut self) {
        if self.sent >= MAX_WAITING {
            self.outbound.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// Whether there may be more to send.
    fn flush_once(&mut self) -> io::Result<bool> {
        let waiting = &self.outbound[self.sent..];
        let Some(tls) = &mut self.tls else {
            if waiting.is_empty() {
                return Ok(false);
            }
            self.sent += self.socket.write(waiting)?;
            return Ok(true);
        };
        if tls.wants_write() {
            tls.write_tls(&mut self.socket)?;
            return Ok(true);
        }
        if waiting.is_empty() {
            return Ok(false);
        }
        let chunk = &waiting[..waiting.len().min(RECORD_LEN)];
        self.sent += tls.writer().write(chunk)?;
        Ok(true)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The first whole message or frame of these bytes, without padding, and how many bytes
/// it takes; `None` until it is whole.
pub(super) fn cut(bytes: &[u8], stranger: bool) -> Result<Option<(&[u8], usize)>, Ended> {
    let Some(start) = bytes.first_chunk() else { return Ok(None) };
    let framed = channel::framed(*start).ok_or(Ended::Rubbish)?;
    let most = if stranger { MAX_STRANGER_FRAME } else { MAX_FRAME };
    if framed.len > most {
        return Err(Ended::Rubbish);
    }
    Ok(bytes.get(..framed.on_stream).map(|whole| (&whole[..framed.len], framed.on_stream)))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use zonemesh_punch::turn::server::ClientTransport;

    use super::*;

    #[test]
    fn what_has_gone_is_let_go_though_something_always_waits() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
        let local = listener.local_addr().expect("an address");
        let mut client = TcpStream::connect(local).expect("a connection");
        let (socket, remote) = listener.accept().expect("the same connection");
        SockRef::from(&client).set_recv_buffer_size(16 << 10).expect("a short queue");
        SockRef::from(&socket).set_send_buffer_size(16 << 10).expect("a short queue");
        let client_addr = ClientAddr { transport: ClientTransport::Tcp, local, remote };
        let mut stream = Stream::new(socket, client_addr, None, Instant::now()).expect("a stream");
        let mut taken = vec![0; 64 << 10];
        let mut total = 0;
        while total < 8 * MAX_WAITING {
            while stream.push_frame([0x40, 0, 0x10, 0], &[7; 4096]) {}
            assert_eq!(stream.flush(), Ok(true), "the client is slow");
            let held = stream.outbound.len();
            assert!(held <= 2 * MAX_WAITING, "{held} bytes are held");
            total += client.read(&mut taken).expect("some of what was sent");
        }
    }

    #[test]
    fn a_stream_is_cut_into_messages_and_frames() {
        let mut bytes = vec![0x40, 0x01, 0, 5];
        bytes.extend_from_slice(b"hello\0\0\0");
        assert_eq!(cut(&bytes, true), Ok(Some((&bytes[..9], 12))));
        assert_eq!(cut(&bytes[..11], true), Ok(None));
        assert_eq!(cut(&bytes[..3], true), Ok(None));
        assert_eq!(cut(b"GET / HTTP/1.1\r\n", true), Err(Ended::Rubbish));
        assert_eq!(cut(&[0x16, 0x03, 0x01, 0x02], true), Err(Ended::Rubbish), "TLS where none is");
        assert_eq!(cut(&[0x40, 0, 0xff, 0xff], false), Ok(None));
        assert_eq!(cut(&[0x40, 0, 0xff, 0xff], true), Err(Ended::Rubbish), "long for a stranger");
    }
}
