//! The zone room against the servers that people run: BIND and Knot, as Debian
//! ships them, on loopback addresses. Each scenario runs with both.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use data_encoding::BASE64;
use tempfile::TempDir;
use zonemesh::lab::{
    programs,
    zone_server::{KEY_ALGORITHM, NodeKey, ZoneServer, ZoneServerConfig, ZoneServerKind},
};
use zonemesh_discovery::{
    advert::{Advert, Candidate, CandidateKind, Entry, InstanceRecords, SignedAdvert, Zone},
    identity::{Identity, PublicKey},
    membership::{MAX_REVOCATIONS, NetworkKey, RevocationList},
    zone::{Browser, NamedServer, Rcode, Task, TsigFault, TsigKey, View, ZoneClient, ZoneError},
};

pub(crate) const ZONE: &str = "mesh.example";
pub(crate) const KEY_NAME: &str = "mesh-key";

with_both_servers!(
    what_is_published_is_what_dig_shows,
    an_advert_without_address_has_no_srv,
    a_browser_follows_by_ixfr,
    a_zone_made_anew_is_read_whole,
    a_large_zone_comes_in_many_signed_messages,
    where_transfers_are_refused_plain_queries_do,
    many_instances_are_asked_for_on_one_connection,
    a_killed_server_comes_back_with_its_records,
    an_unknown_key_is_badkey,
    another_secret_is_badsig,
    a_zone_that_is_not_there_is_refused,
    an_unsigned_update_is_refused,
    a_record_written_by_hand_is_a_bare_entry,
    the_zone_names_its_services,
    a_list_of_revocations_takes_the_place_of_the_one_before,
);

async fn what_is_published_is_what_dig_shows(kind: ZoneServerKind) {
    let server = Server::start(kind, None);
    let node = node(1);
    let advert = advert(&node, 1, &["198.51.100.7:51820", "[2001:db8::7]:51820"]);
    server.client().publish(&advert).await.expect("the key may update");
    server.client().announce(&node.public_key()).await.expect("the key may update");

    let (label, host) = labels(&node.public_key());
    assert_eq!(server.dig("_wireguard._udp", "PTR"), [format!("{label}._wireguard._udp.{ZONE}.")]);
    let instance = format!("{label}._wireguard._udp");
    assert_eq!(server.dig(&instance, "SRV"), [format!("0 0 51820 {host}.{ZONE}.")]);
    assert_eq!(server.dig(&host, "A"), ["198.51.100.7"]);
    assert_eq!(server.dig(&host, "AAAA"), ["2001:db8::7"]);
    let txt = server.dig(&instance, "TXT");
    assert_eq!(txt.len(), 1);
    assert!(txt[0].starts_with(&format!("\"txtvers=1\" \"pub={}\"", node.public_key())));
    assert!(txt[0].contains("\"allowed=10.42.1.0/24\""), "{txt:?}");

    server.client().withdraw(&node.public_key()).await.expect("the key may update");
    for (name, kind) in [("_wireguard._udp", "PTR"), (&*instance, "SRV"), (&*instance, "TXT")] {
        assert_eq!(server.dig(name, kind), [""; 0]);
    }
    for kind in ["A", "AAAA"] {
        assert_eq!(server.dig(&host, kind), [""; 0]);
    }
}

async fn an_advert_without_address_has_no_srv(kind: ZoneServerKind) {
    let server = Server::start(kind, None);
    let node = node(1);
    let client = server.client();
    client.publish(&advert(&node, 1, &["198.51.100.7:51820"])).await.expect("published");
    client.publish(&advert(&node, 2, &[])).await.expect("published");
    let (label, host) = labels(&node.public_key());
    assert_eq!(server.dig(&format!("{label}._wireguard._udp"), "SRV"), [""; 0]);
    assert_eq!(server.dig(&host, "A"), [""; 0]);
    assert_eq!(server.dig(&format!("{label}._wireguard._udp"), "TXT").len(), 1);
    let seen = server.browser().poll().await;
    if kind == ZoneServerKind::Bind {
        let seen = seen.expect("polled").expect("something new");
        assert_eq!(sequence(&seen.instances[&node.public_key()]), 2);
    }
}

async fn a_browser_follows_by_ixfr(kind: ZoneServerKind) {
    let server = Server::start(kind, Some(true));
    let (client, mut browser) = (server.client(), server.browser());
    let (first, second) = (node(1), node(2));
    client.publish(&advert(&first, 1, &["198.51.100.7:51820"])).await.expect("published");
    let seen = browser.poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), [first.public_key()]);
    assert_eq!(browser.poll().await.expect("polled"), None);

    client.publish(&advert(&second, 1, &["198.51.100.8:51820"])).await.expect("published");
    client.publish(&advert(&first, 2, &["203.0.113.9:40000"])).await.expect("published");
    let seen = browser.poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), sorted([first.public_key(), second.public_key()]));
    assert_eq!(sequence(&seen.instances[&first.public_key()]), 2);
    assert_eq!(sequence(&seen.instances[&second.public_key()]), 1);

    // A list that only names what is known is no news.
    client.announce(&first.public_key()).await.expect("announced");
    assert_eq!(browser.poll().await.expect("polled"), None);

    client.withdraw(&first.public_key()).await.expect("withdrawn");
    let seen = browser.poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), [second.public_key()]);
    assert!(server.server.log().contains("IXFR"), "{}", server.server.log());
}

async fn a_zone_made_anew_is_read_whole(kind: ZoneServerKind) {
    let mut server = Server::start(kind, Some(true));
    let mut browser = server.browser();
    let (first, second) = (node(1), node(2));
    let client = server.client();
    for sequence in 1..5 {
        let advert = advert(&first, sequence, &["198.51.100.7:51820"]);
        client.publish(&advert).await.expect("published");
    }
    browser.poll().await.expect("polled").expect("something new");
    // The journal is lost, and the serial begins at 1 again.
    server.start_anew();
    let client = server.client();
    client.publish(&advert(&second, 1, &["198.51.100.8:51820"])).await.expect("published");
    let seen = browser.poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), [second.public_key()]);
}

async fn a_large_zone_comes_in_many_signed_messages(kind: ZoneServerKind) {
    let nodes: Vec<Identity> = (0..250).map(node).collect();
    let lines = nodes.iter().flat_map(|node| zone_lines(node, false)).collect();
    let server = Server::start_with(kind, Some(true), lines);
    let mut browser = server.browser();
    let seen = browser.poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), sorted(nodes.iter().map(Identity::public_key)));
    assert!(seen.instances.values().all(|records| sequence(records) == 1));
}

async fn where_transfers_are_refused_plain_queries_do(kind: ZoneServerKind) {
    let server = Server::start(kind, Some(false));
    let (client, mut browser) = (server.client(), server.browser());
    let (first, second) = (node(1), node(2));
    for node in [&first, &second] {
        let advert = advert(node, 1, &["198.51.100.7:51820", "[2001:db8::7]:51820"]);
        client.publish(&advert).await.expect("published");
        client.announce(&node.public_key()).await.expect("announced");
    }
    let seen = browser.poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), sorted([first.public_key(), second.public_key()]));
    assert!(seen.instances.values().all(|records| sequence(records) == 1));

    // One that the list lacks is found by its key.
    let third = node(3);
    client.publish(&advert(&third, 1, &["198.51.100.9:51820"])).await.expect("published");
    let found = browser.find(&third.public_key()).await.expect("asked").expect("it is there");
    assert_eq!(sequence(&found), 1);
    assert_eq!(browser.find(&node(4).public_key()).await.expect("asked"), None);

    client.withdraw(&first.public_key()).await.expect("withdrawn");
    let seen = until_news(&mut browser).await;
    assert_eq!(keys(&seen), sorted([second.public_key(), third.public_key()]));
}

async fn many_instances_are_asked_for_on_one_connection(kind: ZoneServerKind) {
    let nodes: Vec<Identity> = (0..50).map(node).collect();
    let lines = nodes.iter().flat_map(|node| zone_lines(node, true)).collect();
    let server = Server::start_with(kind, Some(false), lines);
    let seen = server.browser().poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), sorted(nodes.iter().map(Identity::public_key)));
    assert!(seen.instances.values().all(|records| sequence(records) == 1));
}

async fn a_killed_server_comes_back_with_its_records(kind: ZoneServerKind) {
    let mut server = Server::start(kind, Some(true));
    let (client, mut browser) = (server.client(), server.browser());
    let (first, second) = (node(1), node(2));
    client.publish(&advert(&first, 1, &["198.51.100.7:51820"])).await.expect("published");
    browser.poll().await.expect("polled").expect("something new");
    server.server.kill();
    assert!(matches!(browser.poll().await, Err(ZoneError::Away { .. })));
    assert!(matches!(client.announce(&first.public_key()).await, Err(ZoneError::Away { .. })));
    server.server.restart().expect("it starts on what it left");
    assert_eq!(server.dig(&labels(&first.public_key()).1, "A"), ["198.51.100.7"]);
    client.publish(&advert(&second, 1, &["198.51.100.8:51820"])).await.expect("published");
    let seen = browser.poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), sorted([first.public_key(), second.public_key()]));
    server.server.stop().expect("it ends when asked to");
}

async fn an_unknown_key_is_badkey(kind: ZoneServerKind) {
    let server = Server::start(kind, None);
    let client = server.client_with(ZONE, Some(key("other-key", SECRET)));
    server.assert_tsig_fault(&client, "other-key.", TsigFault::BadKey).await;
}

async fn another_secret_is_badsig(kind: ZoneServerKind) {
    let server = Server::start(kind, None);
    let client = server.client_with(ZONE, Some(key(KEY_NAME, &[0x5a; 32])));
    server.assert_tsig_fault(&client, "mesh-key.", TsigFault::BadSig).await;
}

async fn a_zone_that_is_not_there_is_refused(kind: ZoneServerKind) {
    let server = Server::start(kind, None);
    let client = server.client_with("other.example", Some(key(KEY_NAME, SECRET)));
    let error = client.announce(&node(1).public_key()).await.expect_err("no such zone");
    let ZoneError::Refused { task: Task::Update, rcode, .. } = &error else {
        panic!("{error:?}");
    };
    assert!([Rcode::REFUSED, Rcode::NOTAUTH, Rcode::NOTZONE].contains(rcode), "{error}");
    let error = Browser::new(client).poll().await.expect_err("no such zone");
    let ZoneError::Refused { task: Task::Query, rcode, .. } = &error else {
        panic!("{error:?}");
    };
    assert!([Rcode::REFUSED, Rcode::NOTAUTH].contains(rcode), "{error}");
}

async fn an_unsigned_update_is_refused(kind: ZoneServerKind) {
    let server = Server::start(kind, None);
    let client = server.client_with(ZONE, None);
    let error = client.announce(&node(1).public_key()).await.expect_err("no key");
    let ZoneError::Refused { task: Task::Update, rcode, .. } = &error else {
        panic!("{error:?}");
    };
    assert!([Rcode::REFUSED, Rcode::NOTAUTH].contains(rcode), "{error}");
}

async fn a_record_written_by_hand_is_a_bare_entry(kind: ZoneServerKind) {
    let server = Server::start(kind, None);
    let key = node(1).public_key();
    let (label, host) = labels(&key);
    let instance = format!("{label}._wireguard._udp.{ZONE}.");
    // wgsd's own target is the instance's name; BIND's name checks want a host's.
    let target = match kind {
        ZoneServerKind::Knot => instance.clone(),
        ZoneServerKind::Bind => format!("{host}.{ZONE}."),
    };
    server.nsupdate(&[
        &format!("update add _wireguard._udp.{ZONE}. 30 PTR {instance}"),
        &format!("update add {instance} 30 SRV 0 0 51820 {target}"),
        &format!("update add {target} 30 A 198.51.100.7"),
        &format!(
            "update add {instance} 30 TXT \"txtvers=1\" \"pub={key}\" \"allowed=10.99.0.7/32\""
        ),
    ]);
    let seen = server.browser().poll().await.expect("polled").expect("something new");
    let entry = seen.instances[&key].verify(&zone(), SystemTime::now()).expect("wgsd's form");
    let Entry::Bare(bare) = entry else { panic!("{entry:?}") };
    assert_eq!(bare.node, key);
    let addresses: Vec<SocketAddr> = bare.endpoint.socket_addrs().collect();
    assert_eq!(addresses, [SocketAddr::from(([198, 51, 100, 7], 51820))]);
    assert_eq!(bare.routes, ["10.99.0.7/32".parse().expect("a prefix")]);
}

async fn the_zone_names_its_services(kind: ZoneServerKind) {
    let lines = [
        "_stun._udp SRV 20 0 3478 stun-b",
        "_stun._udp SRV 10 0 3479 stun-a",
        "stun-a A 198.51.100.10",
        "stun-a AAAA 2001:db8::10",
        "stun-b A 198.51.100.11",
        "_turns._tcp SRV 10 0 443 Relay",
        "relay A 198.51.100.12",
    ];
    let lines = lines.into_iter().map(str::to_owned).collect();
    let server = Server::start_with(kind, None, lines);
    let mut servers = server.client().services("_stun._udp").await.expect("asked");
    assert_eq!(servers.pop(), Some(SocketAddr::from(([198, 51, 100, 11], 3478))));
    servers.sort_unstable();
    let first: Vec<SocketAddr> = ["198.51.100.10:3479", "[2001:db8::10]:3479"]
        .map(|addr| addr.parse().expect("an address"))
        .into();
    assert_eq!(servers, first);
    assert_eq!(server.client().services("_turn._udp").await.expect("asked"), []);
    // A certificate is for a name.
    let relays = server.client().named_services("_turns._tcp").await.expect("asked");
    let [NamedServer { target, addr }] = &relays[..] else { panic!("one relay: {relays:?}") };
    assert!(target.starts_with("relay."), "{target}");
    assert_eq!(*addr, SocketAddr::from(([198, 51, 100, 12], 443)));
}

async fn a_list_of_revocations_takes_the_place_of_the_one_before(kind: ZoneServerKind) {
    let server = Server::start(kind, Some(true));
    let (client, mut browser) = (server.client(), server.browser());
    let network = NetworkKey::from_seed(&[1; 32]);
    assert_eq!(client.revocations(&network.id()).await, Ok(None));
    let entry = |n: u16| {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&n.to_be_bytes());
        (&PublicKey::from_bytes(key)).into()
    };
    // The second is as long as any may be.
    for (number, count) in [(1, 2), (2, MAX_REVOCATIONS as u16)] {
        let list = RevocationList::sign(&network, number, (0..count).map(entry));
        let list = list.expect("not too many");
        client.publish_revocations(&list).await.expect("the server takes it");
        assert_eq!(client.revocations(&network.id()).await, Ok(Some(list.clone())));
        assert_eq!(until_news(&mut browser).await.revocations, [list.txt()]);
    }
    let other = NetworkKey::from_seed(&[2; 32]).id();
    assert_eq!(client.revocations(&other).await, Ok(None));
}

#[tokio::test]
async fn a_server_that_is_away_is_told_as_such() {
    let server = SocketAddr::new(LOOPBACK, free_port());
    let client = ZoneClient::new(zone(), server, Some(key(KEY_NAME, SECRET)));
    let error = client.announce(&node(1).public_key()).await.expect_err("nobody is there");
    assert!(matches!(error, ZoneError::Away { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&server.to_string()) && text.contains("refused"), "{text}");
    let error = Browser::new(client).poll().await.expect_err("nobody is there");
    assert!(matches!(error, ZoneError::Away { .. }), "{error:?}");
}

#[tokio::test]
async fn rubbish_is_told_as_such_and_harms_nothing() {
    type Answer = fn(&[u8]) -> Vec<u8>;
    let answers: [(Answer, &str); 4] = [
        (|_| b"HTTP/1.1 400 Bad Request".to_vec(), "not a DNS message"),
        (|request| request.to_vec(), "not a response"),
        (
            |request| {
                let mut reply = request.to_vec();
                reply[0] ^= 1;
                reply[2] |= 0x80;
                reply
            },
            "another request's number",
        ),
        (|request| request[..7].to_vec(), "not a DNS message"),
    ];
    for (answer, what) in answers {
        let server = rubbish_server(answer);
        let client = ZoneClient::new(zone(), server, Some(key(KEY_NAME, SECRET)));
        let error = client.announce(&node(1).public_key()).await.expect_err("rubbish");
        let expected = ZoneError::Rubbish { server, task: Task::Update, what };
        assert_eq!(error, expected, "{error}");
    }
    // A reply that only says that all is well, without the signature that must be.
    let server = rubbish_server(|request| {
        let mut reply = request[..12].to_vec();
        reply[2] |= 0x80;
        reply[4..12].fill(0);
        reply
    });
    let client = ZoneClient::new(zone(), server, Some(key(KEY_NAME, SECRET)));
    let error = client.announce(&node(1).public_key()).await.expect_err("not signed");
    let fault = TsigFault::Unsigned;
    assert_eq!(error, ZoneError::Tsig { server, key: "mesh-key.".to_owned(), fault });
    // One that hangs up.
    let server = rubbish_server(|_| Vec::new());
    let client = ZoneClient::new(zone(), server, None);
    let error = client.announce(&node(1).public_key()).await.expect_err("no message");
    assert!(matches!(error, ZoneError::Closed { .. } | ZoneError::Rubbish { .. }), "{error:?}");
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(crate) const SECRET: &[u8] = b"a secret of the tests' own, only";

/// A zone server and the folder that it lives in.
pub(crate) struct Server {
    // First, so that it ends before its folder goes.
    pub(crate) server: ZoneServer,
    folder: TempDir,
    kind: ZoneServerKind,
    config: ZoneServerConfig,
}

impl Server {
    pub(crate) fn start(kind: ZoneServerKind, transfers: Option<bool>) -> Self {
        Self::start_with(kind, transfers, Vec::new())
    }

    fn start_with(
        kind: ZoneServerKind,
        transfers: Option<bool>,
        extra_records: Vec<String>,
    ) -> Self {
        Self::start_guarded(kind, transfers, extra_records, Vec::new())
    }

    pub(crate) fn start_guarded(
        kind: ZoneServerKind,
        transfers: Option<bool>,
        extra_records: Vec<String>,
        node_keys: Vec<NodeKey>,
    ) -> Self {
        programs::require(&["named", "knotd", "dig", "nsupdate"]).expect("programs");
        let config = ZoneServerConfig {
            zone: ZONE.to_owned(),
            listen: vec![LOOPBACK],
            port: free_port(),
            more_ports: vec![],
            key_name: KEY_NAME.to_owned(),
            key_secret: BASE64.encode(SECRET),
            node_keys,
            transfers,
            extra_records,
        };
        let folder = TempDir::new().expect("a folder");
        let server =
            ZoneServer::start(kind, |program| Command::new(program), folder.path(), config.clone())
                .expect("the server starts");
        Self { server, folder, kind, config }
    }

    /// The server again, without anything that it knew.
    pub(crate) fn start_anew(&mut self) {
        self.server.kill();
        self.folder = TempDir::new().expect("a folder");
        let command = |program: &str| Command::new(program);
        self.server =
            ZoneServer::start(self.kind, command, self.folder.path(), self.config.clone())
                .expect("the server starts");
    }

    pub(crate) fn client(&self) -> ZoneClient {
        self.client_with(ZONE, Some(key(KEY_NAME, SECRET)))
    }

    pub(crate) fn client_with(&self, zone: &str, key: Option<TsigKey>) -> ZoneClient {
        ZoneClient::new(zone.parse().expect("a zone"), self.server.address(), key)
    }

    pub(crate) fn browser(&self) -> Browser {
        Browser::new(self.client())
    }

    async fn assert_tsig_fault(&self, client: &ZoneClient, key: &str, fault: TsigFault) {
        let server = self.server.address();
        let expected = ZoneError::Tsig { server, key: key.to_owned(), fault };
        let node = node(1);
        let advert = advert(&node, 1, &["198.51.100.7:51820"]);
        assert_eq!(client.publish(&advert).await, Err(expected.clone()));
        assert_eq!(Browser::new(client.clone()).poll().await, Err(expected));
    }

    /// What `dig +short` says of a name in the zone, in order.
    pub(crate) fn dig(&self, name: &str, kind: &str) -> Vec<String> {
        let address = self.server.address();
        let output = Command::new("dig")
            .args([&format!("@{}", address.ip()), "-p", &address.port().to_string()])
            .args(["+norecurse", "+tcp", "+short", &format!("{name}.{ZONE}."), kind])
            .output()
            .expect("dig");
        let text = String::from_utf8(output.stdout).expect("text");
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }

    /// The key: its algorithm, name and secret.
    pub(crate) fn key(&self) -> [String; 3] {
        [KEY_ALGORITHM.to_owned(), KEY_NAME.to_owned(), BASE64.encode(SECRET)]
    }

    fn nsupdate(&self, lines: &[&str]) {
        let address = self.server.address();
        let mut script = format!(
            "server {} {}\nzone {ZONE}\nkey {KEY_ALGORITHM}:{KEY_NAME} {}\ncheck-names no\n",
            address.ip(),
            address.port(),
            BASE64.encode(SECRET),
        );
        for line in lines {
            script.push_str(line);
            script.push('\n');
        }
        script.push_str("send\n");
        let mut child = Command::new("nsupdate")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("nsupdate");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(script.as_bytes())
            .expect("nsupdate reads its input");
        let output = child.wait_with_output().expect("nsupdate");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

/// Polls as long as the mesh's share of queries may hold a round back.
pub(crate) async fn until_news(browser: &mut Browser) -> View {
    let polling = async {
        loop {
            if let Some(seen) = browser.poll().await.expect("polled") {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), polling).await.expect("news")
}

/// Answers every request over TCP with what `answer` makes of it.
fn rubbish_server(answer: fn(&[u8]) -> Vec<u8>) -> SocketAddr {
    let listener = TcpListener::bind((LOOPBACK, 0)).expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut len = [0; 2];
            stream.read_exact(&mut len).expect("a length");
            let mut request = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut request).expect("a request");
            let reply = answer(&request);
            let len = u16::try_from(reply.len()).expect("short").to_be_bytes();
            stream.write_all(&[&len[..], &reply].concat()).expect("the client reads");
        }
    });
    address
}

/// A port that is free for UDP and TCP.
pub(crate) fn free_port() -> u16 {
    loop {
        let tcp = TcpListener::bind((LOOPBACK, 0)).expect("a port");
        let port = tcp.local_addr().expect("bound").port();
        if UdpSocket::bind((LOOPBACK, port)).is_ok() {
            return port;
        }
    }
}

pub(crate) fn zone() -> Zone {
    ZONE.parse().expect("a zone")
}

pub(crate) fn key(name: &str, secret: &[u8]) -> TsigKey {
    TsigKey::new(name, KEY_ALGORITHM, &BASE64.encode(secret)).expect("a key")
}

pub(crate) fn node(number: u16) -> Identity {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    Identity::from_seed(&seed)
}

pub(crate) fn advert(node: &Identity, sequence: u64, addresses: &[&str]) -> SignedAdvert {
    let candidates = addresses.iter().map(|addr| Candidate {
        kind: CandidateKind::ServerReflexive,
        addr: addr.parse().expect("an address"),
    });
    let advert = Advert {
        node: node.public_key(),
        name: format!("node-{sequence}"),
        addresses: vec!["10.42.1.1".parse().expect("an address")],
        routes: vec!["10.42.1.0/24".parse().expect("a prefix")],
        candidates: candidates.collect(),
        certificate: None,
        sequence,
        expires: SystemTime::now() + Duration::from_secs(3600),
    };
    advert.sign(node, &zone()).expect("it can be signed")
}

/// A node's records as lines of a zone file.
fn zone_lines(node: &Identity, with_pointer: bool) -> Vec<String> {
    let (label, host) = labels(&node.public_key());
    // Knot reads `=` in a zone's file only as an escape (RFC 1035 §5.1).
    let instance = format!("{}._wireguard._udp", label.replace('=', "\\061"));
    let signed = advert(node, 1, &["198.51.100.7:51820"]);
    let strings: Vec<String> = signed
        .txt()
        .iter()
        .map(|string| format!("\"{}\"", String::from_utf8_lossy(string)))
        .collect();
    let mut lines = vec![
        format!("{instance} SRV 0 0 51820 {host}"),
        format!("{instance} TXT {}", strings.join(" ")),
        format!("{host} A 198.51.100.7"),
    ];
    if with_pointer {
        lines.push(format!("_wireguard._udp PTR {instance}"));
    }
    lines
}

pub(crate) fn labels(key: &PublicKey) -> (String, String) {
    let host = key.to_base32();
    (format!("{host}===="), host)
}

fn sequence(records: &InstanceRecords) -> u64 {
    match records.verify(&zone(), SystemTime::now()) {
        Ok(Entry::Signed(signed)) => signed.advert().sequence,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn keys(seen: &View) -> Vec<PublicKey> {
    seen.instances.keys().copied().collect()
}

pub(crate) fn sorted(keys: impl IntoIterator<Item = PublicKey>) -> Vec<PublicKey> {
    let mut keys: Vec<PublicKey> = keys.into_iter().collect();
    keys.sort_unstable();
    keys
}
