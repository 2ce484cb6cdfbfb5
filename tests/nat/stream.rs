//! A TCP connection through the overlay.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use zonemesh::lab::member::Member;

/// Where the other end listens.
const PORT: u16 = 9000;

/// How long one read waits, before it is looked whether time is up.
const READ_WAIT: Duration = Duration::from_millis(100);

/// The near end of a connection to a server that sends everything back.
pub(crate) struct Stream {
    stream: TcpStream,
    sent: u64,
}

impl Stream {
    /// Connects one node's host to another's overlay address.
    pub(crate) fn open(from: &Member, to: &Member) -> Self {
        let address = SocketAddr::new(to.overlay(), PORT);
        let listener = to.host().namespace.enter(|| TcpListener::bind(address));
        let listener = listener.expect("the namespace is there").expect("the address is its own");
        thread::spawn(move || send_back(&listener));
        let stream = from.host().namespace.enter(|| TcpStream::connect(address));
        let stream = stream.expect("the namespace is there").expect("the overlay carries TCP");
        stream.set_read_timeout(Some(READ_WAIT)).expect("it is not zero");
        Self { stream, sent: 0 }
    }

    /// Sends a number of its own and waits until it comes back.
    pub(crate) fn exchange(&mut self, limit: Duration) {
        self.sent += 1;
        let sent = self.sent.to_be_bytes();
        self.stream.write_all(&sent).expect("the connection lives");
        let start = Instant::now();
        let mut back = [0; 8];
        let mut filled = 0;
        while filled < back.len() {
            match self.stream.read(&mut back[filled..]) {
                Ok(0) => panic!("the connection was closed"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    assert!(start.elapsed() < limit, "nothing came back within {limit:?}");
                }
                Err(error) => panic!("the connection broke: {error}"),
            }
        }
        assert_eq!(back, sent);
    }
}

/// Takes one connection and sends back what comes, until it is closed.
fn send_back(listener: &TcpListener) {
    if let Ok((stream, _)) = listener.accept() {
        // How it ends is the near end's business.
        let _ = io::copy(&mut &stream, &mut &stream);
    }
}
