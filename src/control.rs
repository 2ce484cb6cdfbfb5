//! The control socket: how `status`, `ping` and `explain` talk to the daemon.
//!
//! A Unix stream socket (mode 0600) that takes one JSON object on a line and answers
//! each with one. The daemon's side hands every request to the control loop as an
//! event and waits for what it says; nothing here knows the answer.

use std::{
    fs::{self, Permissions},
    io::{self, BufRead, BufReader, Write},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, PermissionsExt},
            net::{UnixListener as StdListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream as AsyncStream},
    sync::{Semaphore, mpsc, oneshot},
    time::timeout,
};
use tracing::{debug, warn};

use crate::{
    explain::Explanation,
    node::Event,
    status::{PathStatus, Status},
};

/// Who may be connected at once; more wait.
const MAX_CONNECTIONS: usize = 16;

/// The longest request line.
const MAX_REQUEST: u64 = 4096;

/// How long the loop may take for an answer; a ping waits for its echo.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long somebody connected may say nothing.
const IDLE_LIMIT: Duration = Duration::from_secs(60);

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "lowercase")]
pub enum Request {
    /// How things stand.
    Status,
    /// Why a peer is reached as it is.
    Explain {
        /// A name, a key, or an overlay address.
        peer: String,
    },
    /// One echo over the mesh.
    Ping {
        /// A name, a key, or an overlay address.
        peer: String,
        /// The number of the echo, for its sender.
        sequence: u16,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "lowercase")]
pub enum Reply {
    /// How things stand.
    Status(Box<Status>),
    /// Why a peer is reached as it is.
    Explanation(Box<Explanation>),
    /// What became of an echo.
    Echo {
        /// The peer's name, or its key.
        peer: String,
        /// The address that was asked.
        target: std::net::IpAddr,
        /// The round trip in milliseconds; `null` when no answer came.
        rtt_ms: Option<f64>,
        /// The way to the peer when the answer came.
        path: PathStatus,
    },
    /// It cannot be done.
    Error {
        /// Why.
        message: String,
    },
}

/// A request on its way through the control loop.
#[derive(Debug)]
pub struct ControlRequest {
    /// What is asked.
    pub request: Request,
    /// Where the answer goes.
    pub reply: oneshot::Sender<Reply>,
}

/// The daemon's end. The socket's file goes with it.
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
}

/// Why there is no control socket, or nobody at it, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// A running daemon has it.
    #[error(
        "{0} belongs to a running zonemesh: stop that one, or set interface.name or control.socket"
    )]
    Taken(PathBuf),
    /// Something else is there.
    #[error("{0} is no socket: move it away, or set control.socket")]
    NoSocket(PathBuf),
    /// It cannot be made.
    #[error("cannot make the control socket {0}: {1}")]
    Bind(PathBuf, #[source] io::Error),
    /// Nobody answers.
    #[error(
        "no zonemesh answers at {0} ({1}): is `zonemesh up` running? --socket names another socket"
    )]
    NoDaemon(PathBuf, #[source] io::Error),
    /// The caller may not ask.
    #[error("{0} is for root alone: run this as root")]
    Denied(PathBuf),
    /// The conversation broke off.
    #[error("the daemon at {0} ended the conversation: {1}")]
    Broken(PathBuf, #[source] io::Error),
}

impl ControlServer {
    /// Makes the socket. One that a crashed daemon left is replaced. To be called inside
    /// a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError`], which says what to do.
    pub fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |error| ControlError::Bind(path.to_owned(), error);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(failed)?;
        }
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(ControlError::NoSocket(path.to_owned()));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(ControlError::Taken(path.to_owned()));
            }
            Ok(_) => fs::remove_file(path).map_err(failed)?,
            Err(_) => {}
        }
        let listener = listen(path).map_err(failed)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until the control loop is gone.
    pub async fn run(self, events: mpsc::Sender<Event>) {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let stream = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = events.closed() => return,
            };
            let stream = match stream {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!("the control socket: {error}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            let events = events.clone();
            tokio::spawn(async move {
                if let Err(error) = serve(stream, &events).await {
                    debug!("a conversation at the control socket ended: {error}");
                }
                drop(place);
            });
        }
    }
}

/// A socket of mode 0600 that was never open to others: until it listens, nobody can
/// connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    socket.listen(MAX_CONNECTIONS as i32)?;
    socket.set_nonblocking(true)?;
    UnixListener::from_std(StdListener::from(OwnedFd::from(socket)))
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // A file that is left is replaced at the next start.
        let _ = fs::remove_file(&self.path);
    }
}

/// One conversation.
async fn serve(stream: AsyncStream, events: &mpsc::Sender<Event>) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = tokio::io::BufReader::new(reader);
    loop {
        let mut line = String::new();
        let mut limited = (&mut reader).take(MAX_REQUEST);
        let length = timeout(IDLE_LIMIT, limited.read_line(&mut line)).await??;
        if length == 0 {
            return Ok(());
        }
        let reply = match serde_json::from_str(&line) {
            Ok(request) => ask(events, request).await,
            Err(error) => Reply::Error { message: format!("not a request: {error}") },
        };
        let mut answer = serde_json::to_vec(&reply)?;
        answer.push(b'\n');
        timeout(IDLE_LIMIT, writer.write_all(&answer)).await??;
        if !line.ends_with('\n') {
            return Ok(());
        }
    }
}

async fn ask(events: &mpsc::Sender<Event>, request: Request) -> Reply {
    let (reply, answer) = oneshot::channel();
    let sent = events.send(Event::Control(ControlRequest { request, reply })).await;
    let answered = timeout(ANSWER_LIMIT, answer).await;
    match (sent, answered) {
        (Ok(()), Ok(Ok(reply))) => reply,
        (Ok(()), Err(_)) => Reply::Error { message: "no answer within 10 seconds".into() },
        _ => Reply::Error { message: "the daemon is stopping".into() },
    }
}

/// The other end, for the command line.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// [`ControlError`] when none answers there, or the caller may not ask.
    pub fn connect(path: &Path) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path).map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => ControlError::Denied(path.to_owned()),
            _ => ControlError::NoDaemon(path.to_owned(), error),
        })?;
        Ok(Self { stream: BufReader::new(stream), path: path.to_owned() })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// [`ControlError::Broken`] when the daemon goes away or answers nonsense.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, ControlError> {
        self.exchange(request).map_err(|error| ControlError::Broken(self.path.clone(), error))
    }

    fn exchange(&mut self, request: &Request) -> io::Result<Reply> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().set_read_timeout(Some(ANSWER_LIMIT * 2))?;
        self.stream.get_mut().write_all(&line)?;
        let mut answer = String::new();
        if self.stream.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(serde_json::from_str(&answer)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves with a loop that knows one answer.
    fn with_daemon(check: impl FnOnce(&Path) + Send + 'static) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("run/zm0.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let server = ControlServer::bind(&path).expect("binds");
            let (sender, mut events) = mpsc::channel(4);
            tokio::spawn(server.run(sender));
            tokio::spawn(async move {
                while let Some(event) = events.recv().await {
                    if let Event::Control(control) = event {
                        let message = format!("{:?}", control.request);
                        let _ = control.reply.send(Reply::Error { message });
                    }
                }
            });
            let client = path.clone();
            tokio::task::spawn_blocking(move || check(&client)).await.expect("the checks hold");
        });
    }

    #[test]
    fn a_request_is_answered_and_another_one_after_it() {
        with_daemon(|path| {
            let mut client = Client::connect(path).expect("connects");
            for sequence in [1, 2] {
                let request = Request::Ping { peer: "b".into(), sequence };
                let reply = client.ask(&request).expect("answers");
                assert_eq!(reply, Reply::Error { message: format!("{request:?}") });
            }
        });
    }

    #[test]
    fn nonsense_is_answered_with_an_error_and_harms_nobody() {
        with_daemon(|path| {
            for nonsense in ["{}\n".to_owned(), "\u{0}\n".to_owned(), "x".repeat(5000)] {
                let mut stream = UnixStream::connect(path).expect("connects");
                stream.write_all(nonsense.as_bytes()).expect("is sent");
                let mut answer = String::new();
                BufReader::new(stream).read_line(&mut answer).expect("answers");
                assert!(answer.contains("not a request"), "{answer}");
            }
            let mut client = Client::connect(path).expect("connects");
            client.ask(&Request::Status).expect("answers");
        });
    }

    #[test]
    fn the_socket_is_its_owner_s_alone_and_a_live_one_is_not_replaced() {
        with_daemon(|path| {
            let mode = fs::metadata(path).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                assert!(matches!(ControlServer::bind(path), Err(ControlError::Taken(_))));
            });
        });
    }

    #[tokio::test]
    async fn a_dead_daemon_s_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("zm0.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).expect("binds"));
        drop(ControlServer::bind(&path).expect("replaces what is left of it"));
        assert!(!path.exists());
        fs::write(&path, "precious").expect("is written");
        assert!(matches!(ControlServer::bind(&path), Err(ControlError::NoSocket(_))));
        assert!(matches!(Client::connect(&path), Err(ControlError::NoDaemon(..))));
    }
}
