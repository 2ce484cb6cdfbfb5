//! The little DNS that a subscriber needs, by hand: a thousand of them share a processor
//! with the server that is measured, and must cost next to nothing.

use std::{io, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

const SOA: u16 = 6;
const OPT: u16 = 41;
const IXFR: u16 = 251;

/// The option of the long poll (`docs/protocol.md`).
const POLL: u16 = 65_301;

/// Longer than a server holds an answer back.
const LIMIT: Duration = Duration::from_secs(70);

/// A zone's name as it travels.
#[derive(Debug, Clone)]
pub(crate) struct ZoneName(Vec<u8>);

impl ZoneName {
    pub(crate) fn new(zone: &str) -> Self {
        let labels = zone.trim_end_matches('.').split('.');
        let mut wire: Vec<u8> =
            labels.flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat()).collect();
        wire.push(0);
        Self(wire)
    }

    fn query(&self, kind: u16, counts: [u16; 2]) -> Vec<u8> {
        let [authorities, additionals] = counts;
        let mut wire = Vec::new();
        for field in [rand::random(), 0, 1, 0, authorities, additionals] {
            wire.extend(u16::to_be_bytes(field));
        }
        wire.extend(&self.0);
        wire.extend([kind.to_be_bytes(), 1u16.to_be_bytes()].concat());
        wire
    }

    /// The zone's SOA.
    pub(crate) fn soa(&self) -> Vec<u8> {
        self.query(SOA, [0, 0])
    }

    /// The zone's SOA, as soon as its serial is another one.
    pub(crate) fn poll(&self, known: u32) -> Vec<u8> {
        let mut wire = self.query(SOA, [0, 1]);
        wire.push(0);
        for field in [OPT, 1232, 0, 0, 8, POLL, 4] {
            wire.extend(field.to_be_bytes());
        }
        wire.extend(known.to_be_bytes());
        wire
    }

    /// What has changed since a serial (RFC 1995 §3).
    pub(crate) fn ixfr(&self, known: u32) -> Vec<u8> {
        let mut wire = self.query(IXFR, [1, 0]);
        wire.extend(&self.0);
        for field in [SOA, 1, 0, 0, 22] {
            wire.extend(field.to_be_bytes());
        }
        // Two names of the root, and five numbers.
        wire.extend([0, 0]);
        wire.extend(known.to_be_bytes());
        wire.extend([0; 16]);
        wire
    }

    /// The serial of the first SOA record of an answer.
    pub(crate) fn serial(&self, wire: &[u8]) -> Result<u32> {
        let u16_at = |at: usize| Some(u16::from_be_bytes(*wire.get(at..)?.first_chunk()?));
        if u16_at(2).context("no message")? & 0x000f != 0 {
            bail!("the server refuses: {:#06x}", u16_at(2).unwrap_or_default());
        }
        let serial = || {
            let mut at = 12 + self.0.len() + 4;
            // The owner: the zone itself, as a pointer or spelt out.
            at += if wire.get(at)? & 0xc0 == 0xc0 { 2 } else { self.0.len() };
            (u16_at(at)? == SOA).then_some(())?;
            let end = at + 10 + usize::from(u16_at(at + 8)?);
            Some(u32::from_be_bytes(*wire.get(end.checked_sub(20)?..)?.first_chunk()?))
        };
        serial().context("an answer without SOA")
    }
}

/// A connection.
pub(crate) struct Stream(TcpStream);

impl Stream {
    pub(crate) async fn open(server: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// One question and the message that answers it.
    pub(crate) async fn ask(&mut self, wire: &[u8]) -> Result<Vec<u8>> {
        let framed = [&(wire.len() as u16).to_be_bytes()[..], wire].concat();
        self.0.write_all(&framed).await?;
        let read = async {
            let mut answer = vec![0; usize::from(self.0.read_u16().await?)];
            self.0.read_exact(&mut answer).await?;
            io::Result::Ok(answer)
        };
        Ok(timeout(LIMIT, read).await.context("no answer")??)
    }
}

/// One question by UDP; `None` where the answer is lost.
pub(crate) async fn ask_udp(server: SocketAddr, wire: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.ok()?;
    socket.connect(server).await.ok()?;
    socket.send(wire).await.ok()?;
    let mut answer = vec![0; 1232];
    let len = timeout(Duration::from_secs(1), socket.recv(&mut answer)).await.ok()?.ok()?;
    answer.truncate(len);
    Some(answer)
}
