//! Requests and replies on the wire, each within a time limit.
//!
//! All but the look at the serial goes over TCP: updates because the reply to one
//! over UDP can be lost and a repetition then answers wrongly, transfers and
//! lookups because they are large. Messages are framed here (RFC 1035 §4.2.2).

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hickory_proto::{
    op::Message,
    rr::{Name, RecordType},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

use super::{
    ZoneClient,
    error::{Rcode, Task, ZoneError},
    message::{Reply, UDP_PAYLOAD},
    tsig::Chain,
};

/// To a server that is up, a connection takes one round trip; 3 s allow for a lost
/// SYN and its first repetition (after 1 s, RFC 6298 §2.1).
const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// A server that has taken the request answers in milliseconds; 5 s is what
/// resolvers give it as a rule.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// How long the answer to a look at the serial may take over UDP, before TCP is
/// asked: far beyond any round trip, and less than a person notices.
const UDP_LIMIT: Duration = Duration::from_millis(1500);

/// A request that is ready to go, and what its answer must look like.
pub(super) struct Request {
    task: Task,
    id: u16,
    question: Option<(Name, RecordType)>,
    wire: Vec<u8>,
    chain: Option<Chain>,
    answered: bool,
}

impl Request {
    /// Encodes a message, and signs it if the client has a key.
    pub(super) fn new(client: &ZoneClient, task: Task, message: &Message) -> Self {
        let mut wire = message.to_vec().expect("requests are far smaller than 64 KiB");
        let chain = client.key.as_ref().map(|key| key.sign(&mut wire, unix_time()));
        let question =
            message.queries.first().map(|query| (query.name().clone(), query.query_type()));
        Self { task, id: message.metadata.id, question, wire, chain, answered: false }
    }

    /// The number by which its answer is known.
    #[cfg(fuzzing)]
    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// Reads and authenticates the next message of the answer.
    pub(super) fn accept(&mut self, server: SocketAddr, wire: &[u8]) -> Result<Reply, ZoneError> {
        let rubbish = |what| ZoneError::Rubbish { server, task: self.task, what };
        let reply = Reply::read(wire).ok_or(rubbish("not a DNS message"))?;
        if !reply.is_response {
            return Err(rubbish("not a response"));
        }
        if reply.id != self.id {
            return Err(rubbish("another request's number"));
        }
        if reply.question.is_some() && reply.question != self.question {
            return Err(rubbish("another question"));
        }
        let refused = || {
            let reason = reply.reason.clone();
            ZoneError::Refused { server, task: self.task, rcode: reply.rcode, reason }
        };
        if let Some(chain) = &mut self.chain {
            // A server that knows nothing of TSIG refuses without a signature.
            if reply.tsig.is_none() && !self.answered && reply.rcode != Rcode::NOERROR {
                return Err(refused());
            }
            chain.verify(wire, reply.tsig.as_ref(), unix_time()).map_err(|fault| {
                let key = self.key_name();
                ZoneError::Tsig { server, key, fault }
            })?;
        }
        self.answered = true;
        match reply.rcode {
            // To a query that is an answer: nothing is there.
            Rcode::NXDOMAIN if self.task == Task::Query => Ok(reply),
            Rcode::NOERROR => Ok(reply),
            _ => Err(refused()),
        }
    }

    /// Whether everything that was accepted is covered by a signature, where one
    /// was asked for.
    pub(super) fn is_authentic(&self) -> bool {
        self.chain.as_ref().is_none_or(Chain::ends_signed)
    }

    fn key_name(&self) -> String {
        self.chain.as_ref().map(|chain| chain.key_name().to_ascii()).unwrap_or_default()
    }
}

/// A TCP connection to the zone server.
#[derive(Debug)]
pub(super) struct Connection {
    server: SocketAddr,
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(super) async fn open(server: SocketAddr) -> Result<Self, ZoneError> {
        let stream = limited(server, CONNECT_LIMIT, TcpStream::connect(server)).await?;
        // Small requests that are waited for: never held back. Fails on a socket that
        // has died already, which the first use tells.
        let _ = stream.set_nodelay(true);
        Ok(Self { server, stream: BufReader::new(stream) })
    }

    pub(super) async fn send(&mut self, request: &Request) -> Result<(), ZoneError> {
        self.send_bytes(&request.wire).await
    }

    async fn send_bytes(&mut self, wire: &[u8]) -> Result<(), ZoneError> {
        let mut framed = (wire.len() as u16).to_be_bytes().to_vec();
        framed.extend(wire);
        limited(self.server, ANSWER_LIMIT, self.stream.write_all(&framed)).await
    }

    /// Sends a message as it is, and gives the one that comes back.
    pub(super) async fn exchange(&mut self, wire: &[u8]) -> Result<Vec<u8>, ZoneError> {
        self.send_bytes(wire).await?;
        self.receive().await
    }

    pub(super) async fn receive(&mut self) -> Result<Vec<u8>, ZoneError> {
        self.receive_within(ANSWER_LIMIT).await
    }

    async fn receive_within(&mut self, limit: Duration) -> Result<Vec<u8>, ZoneError> {
        let stream = &mut self.stream;
        let frame = async {
            let len = stream.read_u16().await?;
            let mut wire = vec![0; usize::from(len)];
            stream.read_exact(&mut wire).await?;
            Ok(wire)
        };
        limited(self.server, limit, frame).await
    }

    /// Sends one request and waits so long for its one reply.
    pub(super) async fn ask_within(
        &mut self,
        mut request: Request,
        limit: Duration,
    ) -> Result<Reply, ZoneError> {
        self.send(&request).await?;
        let wire = self.receive_within(limit).await?;
        request.accept(self.server, &wire)
    }

    /// Sends one request and waits for its one reply.
    pub(super) async fn ask(&mut self, request: Request) -> Result<Reply, ZoneError> {
        self.ask_within(request, ANSWER_LIMIT).await
    }

    /// Sends all requests at once and waits for their replies, in whatever order
    /// they come (RFC 7766 §6.2.1.1). An answer that is not usable is one request's
    /// matter; what concerns the connection is all requests' matter.
    pub(super) async fn ask_all(
        &mut self,
        mut requests: Vec<Request>,
    ) -> Result<Vec<Result<Reply, ZoneError>>, ZoneError> {
        let mut framed = Vec::new();
        for request in &requests {
            framed.extend((request.wire.len() as u16).to_be_bytes());
            framed.extend(&request.wire);
        }
        limited(self.server, ANSWER_LIMIT, self.stream.write_all(&framed)).await?;
        let mut replies: Vec<Option<Result<Reply, ZoneError>>> = Vec::new();
        replies.resize_with(requests.len(), || None);
        for _ in 0..requests.len() {
            let wire = self.receive().await?;
            let id = wire.first_chunk().map(|id| u16::from_be_bytes(*id));
            let position = (0..requests.len())
                .find(|at| replies[*at].is_none() && Some(requests[*at].id) == id);
            let Some(at) = position else {
                let (server, what) = (self.server, "another request's number");
                return Err(ZoneError::Rubbish { server, task: Task::Query, what });
            };
            replies[at] = Some(requests[at].accept(self.server, &wire));
        }
        Ok(replies.into_iter().flatten().collect())
    }
}

/// Asks over UDP. `None` stands for everything but a whole and authentic answer:
/// who wants to know what is the matter asks again over TCP, where nobody else can
/// answer in the server's place.
pub(super) async fn ask_udp(server: SocketAddr, mut request: Request) -> Option<Reply> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let answer = async {
        let socket = UdpSocket::bind((any, 0)).await.ok()?;
        socket.connect(server).await.ok()?;
        socket.send(&request.wire).await.ok()?;
        let mut wire = vec![0; usize::from(UDP_PAYLOAD)];
        let len = socket.recv(&mut wire).await.ok()?;
        request.accept(server, &wire[..len]).ok().filter(|reply| !reply.is_truncated)
    };
    timeout(UDP_LIMIT, answer).await.ok().flatten()
}

/// Seconds since 1970, the time of TSIG.
pub(super) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn limited<T>(
    server: SocketAddr,
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, ZoneError> {
    let why = match timeout(limit, work).await {
        Ok(Ok(done)) => return Ok(done),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return Err(ZoneError::Closed { server });
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
            return Err(ZoneError::Closed { server });
        }
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("nothing within {} s", limit.as_secs()),
    };
    Err(ZoneError::Away { server, why })
}
