//! Answers of STUN servers that mean harm.

#![no_main]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::stun::{
    HairpinTest, LifetimeTest, ReflexiveClient, Sample, Socket, Transmit,
};
use zonemesh_fuzz::{Bytes, sow};

fuzz_target!(
    init: {
        // XOR-MAPPED-ADDRESS of 198.51.100.7:4000, and OTHER-ADDRESS.
        let mapped = [0, 0x20, 0, 8, 0, 1, 0x2e, 0xb2, 0xe7, 0x21, 0xc0, 0x45];
        let other = [0x80, 0x2c, 0, 8, 0, 1, 0x0d, 0x97, 198, 51, 100, 3];
        let answer = |attributes: &[u8]| [&[0, 0, attributes.len() as u8][..], attributes].concat();
        let both = [mapped, other].concat();
        let asked = answer(&mapped);
        let first = answer(&both);
        sow("stun_client", &[
            [&[0][..], &first, &asked, &asked, &asked, &asked, &[1, 0x88], &asked].concat(),
            [&[1][..], &asked, &asked].concat(),
            [&[2][..], &asked, &[1, 0xc8], &asked, &[1, 0xcf], &asked, &asked].concat(),
            [&[3][..], &asked].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let now = Instant::now();
        let kind = bytes.byte();
        match kind & 3 {
            0 => {
                let mut client = ReflexiveClient::new([7; 32]);
                let servers: Vec<SocketAddr> =
                    (2..5).map(|last| SocketAddr::from(([198, 51, 100, last], 3478))).collect();
                client.set_servers(&servers, now);
                client.set_local_addresses(&["10.0.0.1:51820".parse().expect("literal")]);
                run(&mut bytes, now, &mut client);
            }
            1 => run(&mut bytes, now, &mut HairpinTest::new(server(), [[1; 12], [2; 12]], now)),
            2 => run(&mut bytes, now, &mut LifetimeTest::new(server(), 4000, [7; 32], now)),
            _ => run(&mut bytes, now, &mut Sample::new(server(), [1; 12], now)),
        }
    }
);

fn server() -> SocketAddr {
    "198.51.100.2:3478".parse().expect("literal")
}

/// The verbs of all four machines.
trait Machine {
    fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant);
    fn handle_timeout(&mut self, now: Instant);
    fn poll_transmit(&mut self) -> Option<Transmit>;
    fn drain_events(&mut self);
    fn poll_timeout(&self) -> Option<Instant>;
}

macro_rules! machine {
    ($type:ty, $one:expr, $sent:expr) => {
        impl Machine for $type {
            fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
                $one(self, from, datagram, now);
            }
            fn handle_timeout(&mut self, now: Instant) {
                self.handle_timeout(now);
            }
            fn poll_transmit(&mut self) -> Option<Transmit> {
                self.poll_transmit().map($sent)
            }
            fn drain_events(&mut self) {
                while self.poll_event().is_some() {}
            }
            fn poll_timeout(&self) -> Option<Instant> {
                self.poll_timeout()
            }
        }
    };
}

machine!(ReflexiveClient, ReflexiveClient::handle_datagram, |sent| sent);
machine!(HairpinTest, HairpinTest::handle_datagram, |sent| sent);
machine!(Sample, Sample::handle_datagram, |sent| sent);
machine!(
    LifetimeTest,
    |test: &mut LifetimeTest, from, datagram: &[u8], now| {
        let from: SocketAddr = from;
        for socket in [Socket::Tested, Socket::Other] {
            test.handle_datagram(socket, from, datagram, now);
        }
    },
    |(_, sent)| sent
);

fn run(bytes: &mut Bytes<'_>, mut now: Instant, machine: &mut impl Machine) {
    let start = now;
    let mut asked: Vec<Transmit> = Vec::new();
    let mut sent = 0usize;
    for _ in 0..64 {
        sent += drain(machine, &mut asked);
        if bytes.is_empty() {
            break;
        }
        match bytes.byte() {
            // A success to the newest question or one before it, with any attributes.
            what @ 0..=0x0f if what & 1 == 0 => {
                let Some(question) = asked.iter().rev().nth(usize::from(what >> 1)) else {
                    continue;
                };
                let attributes = bytes.string();
                let mut answer = vec![0x01, 0x01];
                answer.extend((attributes.len() as u16).to_be_bytes());
                answer.extend(&question.payload[4..20]);
                answer.extend(attributes);
                machine.handle_datagram(question.to, &answer, now);
            }
            0x10.. => {
                let from = bytes.addr();
                let datagram = bytes.short_string();
                machine.handle_datagram(from, datagram, now);
            }
            _ => {
                now += bytes.span();
                for _ in 0..8 {
                    machine.handle_timeout(now);
                    sent += drain(machine, &mut asked);
                    if machine.poll_timeout().is_none_or(|due| due > now) {
                        break;
                    }
                }
                assert!(machine.poll_timeout().is_none_or(|due| due > now), "it asks to be called");
            }
        }
    }
    // Whatever the servers say: hurried questions to all once a second at most, a test each
    // ten seconds, and five tries of each.
    let seconds = usize::try_from((now - start + Duration::from_secs(1)).as_secs()).expect("short");
    assert!(sent <= 64 + 40 * (seconds + 64), "{sent} in {seconds} s");
}

fn drain(machine: &mut impl Machine, asked: &mut Vec<Transmit>) -> usize {
    let mut count = 0;
    while let Some(transmit) = machine.poll_transmit() {
        assert!(transmit.payload.len() <= 44, "questions are short");
        asked.push(transmit);
        count += 1;
    }
    machine.drain_events();
    count
}
