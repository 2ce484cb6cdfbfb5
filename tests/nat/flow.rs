//! Numbered packets at an even pace from one host to another: what becomes of each.
//!
//! The sender notes when it sent each number, the receiver when each came. What is lost
//! is told with the time at which it was sent, so that a test can say how long a fault
//! has cost.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use zonemesh::lab::{
    member::Member,
    namespace::Namespace,
    net::{Host, Lab},
    world::isolated,
};

/// A flow stops by itself after this time.
const MAX_TIME: Duration = Duration::from_secs(180);

/// How far the sender may be behind its pace and still catch up, in packets: more at once
/// would be a burst, and what becomes of that is not what is looked at.
const MAX_BEHIND: u32 = 50;

/// The bytes of a packet, of which the first eight are its number.
const SIZE: usize = 100;

/// What the receiver's socket holds: seconds of packets, as the machine may be busy.
const RECEIVE_BUFFER: usize = 4 << 20;

/// How long the receiver waits for what is still under way when the sender has stopped.
const LAST_WAIT: Duration = Duration::from_millis(500);

/// A flow under way.
pub(crate) struct Flow {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<Vec<Instant>>,
    receiver: JoinHandle<Vec<(u64, Instant)>>,
}

/// What became of a flow.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    /// When the first packet was sent.
    pub(crate) start: Instant,
    /// Packets sent.
    pub(crate) sent: usize,
    /// Packets received, each counted once.
    pub(crate) received: usize,
    /// Packets received that had been received already.
    pub(crate) duplicated: usize,
    /// Packets received after one that was sent later.
    pub(crate) reordered: usize,
    /// The longest time in which nothing came.
    pub(crate) longest_gap: Duration,
    /// Runs of packets that never came.
    pub(crate) losses: Vec<Loss>,
}

/// Packets sent one after the other that never came.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Loss {
    /// When the first of them was sent, from the start.
    pub(crate) at: Duration,
    /// From there until the first one that came again was sent.
    pub(crate) lasted: Duration,
    /// How many they are.
    pub(crate) packets: usize,
}

impl Flow {
    /// Sends from one node's host to another's overlay address, through the overlay.
    pub(crate) fn start(from: &Member, to: &Member, per_second: u32) -> Self {
        let ends = [from, to].map(|member| (&member.host().namespace, member.overlay()));
        Self::between(ends, per_second)
    }

    /// Sends from one address to another, each in its namespace.
    fn between([from, to]: [(&Namespace, IpAddr); 2], per_second: u32) -> Self {
        let [near, far] = [from, to].map(|(namespace, ip)| {
            let socket = namespace.enter(|| UdpSocket::bind((ip, 0)));
            socket.expect("the namespace is there").expect("the address is its own")
        });
        set_socket_recv_buffer_size_force(&far, RECEIVE_BUFFER).expect("root may");
        far.set_read_timeout(Some(LAST_WAIT)).expect("it is not zero");
        let destination = far.local_addr().expect("it is bound");
        let stop = Arc::new(AtomicBool::new(false));
        let sender = {
            let stop = Arc::clone(&stop);
            let interval = Duration::from_secs(1) / per_second;
            thread::spawn(move || send(&near, destination, interval, &stop))
        };
        let receiver = {
            let stop = Arc::clone(&stop);
            thread::spawn(move || receive(&far, &stop))
        };
        Self { stop, sender, receiver }
    }

    /// Ends it, and tells what became of it.
    pub(crate) fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().expect("the sender does not panic");
        let received = self.receiver.join().expect("the receiver does not panic");
        Report::of(&sent, &received)
    }
}

impl Report {
    /// Packets that never came.
    pub(crate) fn lost(&self) -> usize {
        self.sent - self.received
    }

    /// The longest time that was lost at a stretch.
    pub(crate) fn longest_loss(&self) -> Duration {
        self.losses.iter().map(|loss| loss.lasted).max().unwrap_or_default()
    }

    /// That each packet came once.
    pub(crate) fn assert_whole(&self) {
        assert!(self.lost() == 0 && self.duplicated == 0 && self.sent > 0, "{self:?}");
    }

    fn of(sent: &[Instant], received: &[(u64, Instant)]) -> Self {
        let start = *sent.first().expect("the sender sends at least one");
        let mut times = vec![0_u32; sent.len()];
        let (mut latest, mut reordered) = (0, 0);
        for (number, _) in received {
            let index = usize::try_from(*number).expect("a number that was sent");
            times[index] += 1;
            // What comes twice is no matter of order.
            reordered += usize::from(times[index] == 1 && *number < latest);
            latest = latest.max(*number);
        }
        let came = times.iter().filter(|times| **times > 0).count();
        let gaps = received.windows(2).map(|pair| pair[1].1 - pair[0].1);
        let mut losses: Vec<Loss> = Vec::new();
        let mut index = 0;
        while index < times.len() {
            let packets = times[index..].iter().take_while(|times| **times == 0).count();
            if packets > 0 {
                let until = sent.get(index + packets).or(sent.last()).expect("it is not empty");
                let (at, lasted) = (sent[index] - start, *until - sent[index]);
                losses.push(Loss { at, lasted, packets });
            }
            index += packets + 1;
        }
        Self {
            start,
            sent: sent.len(),
            received: came,
            duplicated: received.len() - came,
            reordered,
            longest_gap: gaps.max().unwrap_or_default(),
            losses,
        }
    }
}

/// Sends numbers at an even pace, and hands back when each was sent.
fn send(socket: &UdpSocket, to: SocketAddr, interval: Duration, stop: &AtomicBool) -> Vec<Instant> {
    let mut sent = Vec::new();
    let mut packet = [0; SIZE];
    let start = Instant::now();
    let mut due = start;
    while !stop.load(Ordering::Relaxed) && start.elapsed() < MAX_TIME {
        packet[..8].copy_from_slice(&(sent.len() as u64).to_be_bytes());
        sent.push(Instant::now());
        // What cannot be sent is lost: a host without a route, say.
        let _ = socket.send_to(&packet, to);
        due += interval;
        due = due.max(Instant::now().checked_sub(interval * MAX_BEHIND).unwrap_or(start));
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

/// Notes what comes, until the sender has stopped and nothing comes any more.
fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Vec<(u64, Instant)> {
    let mut received = Vec::new();
    let mut packet = [0; SIZE];
    loop {
        match socket.recv(&mut packet) {
            Ok(_) => {
                let number = packet.first_chunk().expect("a packet is longer than a number");
                received.push((u64::from_be_bytes(*number), Instant::now()));
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stop.load(Ordering::Relaxed) {
                    return received;
                }
            }
            Err(error) => panic!("cannot receive: {error}"),
        }
    }
}

/// The measure itself, where what it is to measure is known.
#[test]
fn flow_tells_when_it_was_cut_and_for_how_long() {
    isolated("flow::flow_tells_when_it_was_cut_and_for_how_long", || {
        const CUT: Duration = Duration::from_secs(1);
        let mut lab = Lab::new().expect("a core");
        let hosts = ["left", "right"].map(|name| lab.public_host(name, 1).expect("a host"));
        let [left, right] = hosts.each_ref().map(Host::ipv4);
        let flow = Flow::between(hosts.each_ref().map(|host| (&host.namespace, host.ipv4())), 1000);
        thread::sleep(CUT);
        let before = Instant::now();
        let fault = lab.cut_one_way(left, right).expect("cut");
        let after = Instant::now();
        thread::sleep(CUT);
        lab.end(&fault).expect("it ends");
        let end = Instant::now();
        thread::sleep(CUT);
        let report = flow.stop();
        let [loss] = report.losses[..] else { panic!("one loss, not {report:?}") };
        let at = report.start + loss.at;
        assert!(before <= at && at < after + CUT, "{report:?}");
        assert!(CUT <= loss.lasted && at + loss.lasted < end + CUT, "{report:?}");
        assert_eq!(loss.packets as u64, lab.dropped(&fault).expect("counted"));
        assert_eq!(report.lost(), loss.packets);
        assert!(report.longest_gap >= CUT && report.longest_loss() == loss.lasted);
        // An even pace, as far as a busy machine allows.
        assert!(report.sent > 2000, "{report:?}");
    });
}

#[test]
fn report_counts_what_came_twice_late_or_never() {
    let start = Instant::now();
    let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
    let sent: Vec<Instant> = (0..8).map(|number| at(number * 10)).collect();
    let received = [(0, at(1)), (3, at(31)), (1, at(32)), (3, at(35)), (5, at(60))];
    let report = Report::of(&sent, &received);
    assert_eq!((report.sent, report.received, report.lost()), (8, 4, 4));
    assert_eq!((report.duplicated, report.reordered), (1, 1));
    assert_eq!(report.longest_gap, Duration::from_millis(30));
    let losses: Vec<(u128, u128, usize)> = report
        .losses
        .iter()
        .map(|loss| (loss.at.as_millis(), loss.lasted.as_millis(), loss.packets))
        .collect();
    assert_eq!(losses, [(20, 10, 1), (40, 10, 1), (60, 10, 2)]);
}
