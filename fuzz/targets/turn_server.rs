//! The relay, among clients with and without credentials, and peers: whatever they send,
//! in whatever order.

#![no_main]

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    time::Instant,
};

use libfuzzer_sys::fuzz_target;
use zonemesh_fuzz::{Bytes, sow};
use zonemesh_punch::turn::{
    message::{Class, Family, Key, Message, Method, UDP},
    server::{
        Alternates, ClientAddr, ClientTransport, Command, Limits, Load, PeerAddr, PeerPolicy,
        RelayAddress, RelayId, Server, ServerConfig, Users,
    },
};

const ALLOCATIONS: usize = 4;

fuzz_target!(
    init: {
        let allocate = Message {
            requested_transport: Some(UDP),
            ..Message::new(Method::Allocate, Class::Request, [1; 12])
        };
        let peer = Message {
            channel: Some(0x4001),
            peers: vec!["192.0.2.1:51820".parse().expect("literal")],
            data: Some(b"data".to_vec()),
            lifetime: Some(600),
            ..Message::new(Method::ChannelBind, Class::Request, [2; 12])
        };
        let with_method = |method, class| Message { method, class, ..peer.clone() };
        let sent = |what: u8, client: u8, message: &Message| {
            let bytes = message.encode(None).expect("a good message");
            [&[what, client][..], &(bytes.len() as u16).to_be_bytes(), &bytes].concat()
        };
        let life = [
            sent(1, 0, &allocate),
            sent(1, 0, &with_method(Method::ChannelBind, Class::Request)),
            sent(1, 0, &with_method(Method::CreatePermission, Class::Request)),
            sent(0, 0, &with_method(Method::Send, Class::Indication)),
            vec![2, 0, 0x40, 1, 9],
            vec![3, 0, 0, 1, 9],
            sent(1, 0, &with_method(Method::Refresh, Class::Request)),
            vec![4, 0x88],
            sent(0, 1, &with_method(Method::Binding, Class::Request)),
            vec![5, 0],
        ];
        sow("turn_server", &[life.concat(), sent(1, 3, &allocate)]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let mut world = World::new();
        for _ in 0..64 {
            if bytes.is_empty() {
                break;
            }
            world.step(&mut bytes);
        }
    }
);

struct World {
    server: Server,
    now: Instant,
    sockets: HashMap<RelayId, SocketAddr>,
    nonces: BTreeMap<ClientAddr, String>,
}

impl World {
    fn new() -> Self {
        let relay = |ip: &str| {
            let ip = ip.parse().expect("literal");
            RelayAddress { bind: ip, external: ip }
        };
        let config = ServerConfig {
            stun: true,
            turn: true,
            realm: "zonemesh".to_owned(),
            users: Users {
                secret: Some(b"secret".to_vec()),
                passwords: [("alice".to_owned(), "secret".to_owned())].into(),
            },
            addresses: vec![relay("198.51.100.2"), relay("2001:db8::2")],
            ports: 50_000..=50_007,
            peers: PeerPolicy {
                own: vec!["198.51.100.0/24".parse().expect("literal")],
                ..PeerPolicy::default()
            },
            alternates: vec![Alternates {
                ips: ["198.51.100.2", "198.51.100.3"].map(|ip| ip.parse().expect("literal")),
                ports: [3478, 3479],
            }],
            limits: Limits {
                allocations: ALLOCATIONS,
                permissions: 8,
                channels: 8,
                bandwidth: Some(1 << 20),
                bandwidth_per_allocation: Some(1 << 16),
                ..Limits::default()
            },
        };
        let now = Instant::now();
        let server = Server::new(config, [7; 32], 1_800_000_000, now);
        Self { server, now, sockets: HashMap::new(), nonces: BTreeMap::new() }
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.byte() {
            what @ 0..=1 => {
                let client = client(bytes.byte());
                let mut message = bytes.string().to_vec();
                if what == 1 {
                    let Some(signed) = self.sign(client, &message) else { return };
                    message = signed;
                }
                let before = self.server.has_allocation(&client);
                let forwarded = self.server.handle_message(client, &message, self.now);
                assert!(forwarded.is_none() || before, "who has nothing has nothing sent on");
                self.obey(bytes);
                self.read_answer(message.len());
            }
            2 => {
                let client = client(bytes.byte());
                let (channel, load) = (bytes.u16(), load(bytes));
                let on = self.server.channel_data(&client, channel, load, self.now);
                assert!(on.is_none() || self.server.has_allocation(&client));
            }
            3 => {
                let slot = u32::from(bytes.byte());
                let family = if bytes.byte() & 1 == 0 { Family::V4 } else { Family::V6 };
                let (peer, load) = (PeerAddr(bytes.addr()), load(bytes));
                let relay = RelayId { slot, family };
                let on = self.server.peer_data(relay, peer, load, self.now);
                assert!(on.is_none() || self.sockets.contains_key(&relay));
                let payload = bytes.short_string();
                if let Some(indication) = self.server.data_indication(peer, payload) {
                    assert!(indication.len() <= payload.len() + 20 + 24 + 8);
                }
            }
            4 => {
                self.now += bytes.span() * 4;
                self.server.handle_timeout(self.now);
            }
            5 => self.server.handle_disconnect(&client(bytes.byte())),
            _ => self.server.set_clock(1_800_000_000 + u64::from(bytes.u16()), self.now),
        }
        self.obey(bytes);
        assert!(self.server.allocations() <= ALLOCATIONS);
        assert!(self.sockets.len() <= 2 * ALLOCATIONS);
        assert!(self.server.poll_timeout().is_none_or(|due| due >= self.now));
    }

    /// The same message with a good credential.
    fn sign(&mut self, client: ClientAddr, message: &[u8]) -> Option<Vec<u8>> {
        let mut message = Message::parse(message).ok()?;
        if !self.nonces.contains_key(&client) {
            let ask = Message::new(Method::Allocate, Class::Request, [0; 12]);
            let ask = ask.encode(None).expect("a good message");
            self.server.handle_message(client, &ask, self.now);
            self.read_answer(ask.len());
        }
        message.username = Some("alice".to_owned());
        message.realm = Some("zonemesh".to_owned());
        message.nonce = self.nonces.get(&client).cloned();
        let key = Key::new("alice", "zonemesh", "secret").expect("plain text");
        message.encode(Some(&key)).ok()
    }

    /// One answer at most, and none that is much longer than what it answers.
    fn read_answer(&mut self, asked: usize) {
        let Some(sent) = self.server.poll_transmit() else { return };
        let answer = Message::parse(&sent.payload).expect("it reads what it writes");
        assert!(sent.payload.len() <= asked + 64 + 8, "{} for {asked}", sent.payload.len());
        if let Some(nonce) = answer.nonce {
            self.nonces.insert(sent.client, nonce);
        }
        // A reserved port's second allocation may wait in the queue as well.
        assert_eq!(self.server.poll_transmit(), None);
    }

    fn obey(&mut self, bytes: &mut Bytes<'_>) {
        while let Some(command) = self.server.poll_command() {
            match command {
                Command::Open { relay, bind } => {
                    let opened = bytes.byte() & 3 != 3;
                    if opened {
                        assert!(self.sockets.insert(relay, bind).is_none(), "{relay:?} twice");
                    }
                    self.server.handle_opened(relay, opened, self.now);
                }
                Command::Close { relay } => {
                    self.sockets.remove(&relay);
                }
            }
        }
    }
}

fn client(number: u8) -> ClientAddr {
    let transport = match number >> 4 & 3 {
        0 | 1 => ClientTransport::Udp,
        2 => ClientTransport::Tcp,
        _ => ClientTransport::Tls,
    };
    ClientAddr {
        transport,
        local: "198.51.100.2:3478".parse().expect("literal"),
        remote: SocketAddr::new([192, 0, 2, number & 7].into(), 4_000),
    }
}

fn load(bytes: &mut Bytes<'_>) -> Load {
    let packets = u64::from(bytes.byte() & 0x3f) + 1;
    Load { packets, bytes: packets * 900 }
}
