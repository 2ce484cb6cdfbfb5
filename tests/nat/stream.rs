//! TCP connections through the overlay.

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
        let stream = connect(from, to, |stream| {
            // How it ends is the near end's business.
            let _ = io::copy(&mut &stream, &mut &stream);
        });
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

/// Sends so many bytes, and tells how long it took until the other end had them all.
pub(crate) fn transfer(from: &Member, to: &Member, bytes: usize, limit: Duration) -> Duration {
    let stream = connect(from, to, move |mut stream| {
        let mut all = vec![0; bytes];
        if stream.read_exact(&mut all).is_ok() {
            // That it has them all; who does not wait for it any more does not hear it.
            let _ = stream.write_all(&[1]);
        }
    });
    let start = Instant::now();
    stream.set_write_timeout(Some(limit)).expect("it is not zero");
    (&stream).write_all(&vec![0; bytes]).expect("the bytes get through in time");
    let left = limit.saturating_sub(start.elapsed()).max(READ_WAIT);
    stream.set_read_timeout(Some(left)).expect("it is not zero");
    (&stream).read_exact(&mut [0]).expect("the bytes get through in time");
    start.elapsed()
}

/// Connects one node's host to another's overlay address, where `serve` gets the far end.
fn connect(
    from: &Member,
    to: &Member,
    serve: impl FnOnce(TcpStream) + Send + 'static,
) -> TcpStream {
    let address = SocketAddr::new(to.overlay(), PORT);
    let listener = to.host().namespace.enter(|| TcpListener::bind(address));
    let listener = listener.expect("the namespace is there").expect("the address is its own");
    thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            serve(stream);
        }
    });
    let stream = from.host().namespace.enter(|| TcpStream::connect(address));
    stream.expect("the namespace is there").expect("the overlay carries TCP")
}
