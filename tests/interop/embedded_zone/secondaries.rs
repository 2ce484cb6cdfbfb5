//! BIND, Knot and the embedded zone itself as secondary servers, and as their primaries.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use tempfile::TempDir;
use zonemesh::lab::{
    process::Daemon,
    programs,
    zone_server::{ZoneServer, ZoneServerConfig, ZoneServerKind},
};
use zonemesh_discovery::zone::ZoneClient;

use super::{
    ALGORITHM, KEY, LIMIT, SECRET, Served, ZONE, advert, dig_at, free_port, node, serial_at,
};

/// A secondary server.
struct Secondary {
    daemon: Daemon,
    port: u16,
    _folder: TempDir,
}

impl Secondary {
    fn start(kind: ZoneServerKind, served: &Served, port: u16, signed: bool) -> Self {
        programs::require(&["named", "knotd"]).expect("programs");
        let folder = TempDir::new().expect("a folder");
        let (dir, primary, secret) = (folder.path().display(), served.port, BASE64.encode(SECRET));
        let config = match kind {
            ZoneServerKind::Bind => {
                let key = if signed { format!("key {KEY}") } else { String::new() };
                format!(
                    r#"options {{
    directory "{dir}";
    pid-file "{dir}/named.pid";
    session-keyfile "{dir}/session.key";
    lock-file "{dir}/named.lock";
    listen-on port {port} {{ 127.0.0.1; }};
    listen-on-v6 {{ none; }};
    recursion no;
    dnssec-validation no;
}};
controls {{}};
key "{KEY}" {{ algorithm {ALGORITHM}; secret "{secret}"; }};
zone "{ZONE}" {{
    type secondary;
    file "{dir}/zone.db";
    primaries {{ 127.0.0.1 port {primary} {key}; }};
    allow-notify {{ 127.0.0.1; }};
}};
"#
                )
            }
            ZoneServerKind::Knot => {
                let key = if signed { format!("    key: {KEY}\n") } else { String::new() };
                format!(
                    r#"server:
    rundir: "{dir}"
    listen: 127.0.0.1@{port}
log:
  - target: stderr
    any: debug
database:
    storage: "{dir}"
key:
  - id: {KEY}
    algorithm: {ALGORITHM}
    secret: {secret}
remote:
  - id: rendezvous
    address: 127.0.0.1@{primary}
{key}acl:
  - id: rendezvous
    address: 127.0.0.1
    action: notify
zone:
  - domain: {ZONE}
    storage: "{dir}"
    file: zone.db
    master: rendezvous
    acl: rendezvous
"#
                )
            }
        };
        let file = folder.path().join("server.conf");
        fs::write(&file, config).expect("written");
        let mut command = match kind {
            ZoneServerKind::Bind => Command::new("named"),
            ZoneServerKind::Knot => Command::new("knotd"),
        };
        command.arg("-c").arg(file);
        if kind == ZoneServerKind::Bind {
            command.arg("-g");
        }
        let log = folder.path().join("server.log");
        let mut daemon = Daemon::spawn("the secondary", &mut command, &log).expect("it starts");
        let same = || serial_at(port) == served.serial();
        daemon.wait_ready(LIMIT, same).expect("it has the zone");
        Self { daemon, port, _folder: folder }
    }

    /// What it says of its last transfer.
    fn last_transfer(&self, kind: ZoneServerKind) -> String {
        let words = match kind {
            ZoneServerKind::Bind => "Transfer completed",
            ZoneServerKind::Knot => "XFR, incoming",
        };
        let log = self.daemon.log();
        let finished = |line: &&str| line.contains(words) && line.contains("messages");
        log.lines().rfind(finished).unwrap_or_default().to_owned()
    }

    /// How long it takes until it has what the primary has.
    fn catch_up(&self, served: &Served) -> Duration {
        let start = Instant::now();
        while serial_at(self.port) != served.serial() {
            assert!(start.elapsed() < LIMIT, "{}\n{}", self.daemon.log(), served.log());
            thread::sleep(Duration::from_millis(20));
        }
        start.elapsed()
    }
}

/// The zone as a server has it, but for its SOA.
fn contents(port: u16) -> Vec<String> {
    let whole = dig_at(port, &["+noall", "+answer", ZONE, "AXFR"]);
    let mut lines: Vec<String> =
        whole.lines().filter(|line| !line.contains("\tSOA\t")).map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}

async fn follows(kind: ZoneServerKind, signed: bool) {
    let port = free_port();
    let closed = if signed { "transfer = \"keys\"" } else { "" };
    let served = Served::start_with("", &format!("secondaries = [\"127.0.0.1:{port}\"]\n{closed}"));
    let client = served.client();
    // More than 64 KiB at once.
    for number in 0..150 {
        client.publish(&advert(&node(number), 1)).await.expect("published");
    }
    let secondary = Secondary::start(kind, &served, port, signed);
    let whole = secondary.last_transfer(kind);
    assert!(whole.contains("7 messages") || whole.contains("messages: 7"), "{whole}");
    for round in 2..5 {
        client.publish(&advert(&node(3), round)).await.expect("published");
        client.publish(&advert(&node(200), round)).await.expect("published");
        client.withdraw(&node(10).public_key()).await.expect("withdrawn");
        // By NOTIFY, of which BIND acts on the first at once; its own timer is a minute.
        let took = secondary.catch_up(&served);
        assert!(took < Duration::from_secs(15), "{took:?}");
    }
    // Of what has changed alone, and not of the whole zone.
    let changes = secondary.last_transfer(kind);
    assert!(changes.contains("1 messages") || changes.contains("IXFR"), "{changes}");
    // As clients see it there.
    let txt = dig_at(
        port,
        &[
            "+short",
            "+tcp",
            &format!("{}._wireguard._udp.{ZONE}", super::labels(&node(3)).0),
            "TXT",
        ],
    );
    assert!(txt.contains("\"name=node-4\""), "{txt}");
    if kind == ZoneServerKind::Bind && !signed {
        assert_eq!(contents(port), contents(served.port));
    }
    let text = served.log();
    assert!(!text.contains("NOTIFY"), "it was told without trouble: {text}");
}

#[tokio::test]
async fn bind_follows() {
    follows(ZoneServerKind::Bind, false).await;
}

#[tokio::test]
async fn bind_follows_with_a_key() {
    follows(ZoneServerKind::Bind, true).await;
}

#[tokio::test]
async fn knot_follows() {
    follows(ZoneServerKind::Knot, false).await;
}

#[tokio::test]
async fn knot_follows_with_a_key() {
    follows(ZoneServerKind::Knot, true).await;
}

/// `zonemesh serve` that follows the zone of another server.
fn follower(primary: u16, key: bool) -> Served {
    let key = if key { format!("primary_key = \"{KEY}\"\n") } else { String::new() };
    Served::start_with("", &format!("primary = \"127.0.0.1:{primary}\"\n{key}"))
}

fn wait_for(limit: Duration, what: impl Fn() -> bool, log: impl Fn() -> String) -> Duration {
    let start = Instant::now();
    while !what() {
        assert!(start.elapsed() < limit, "{}", log());
        thread::sleep(Duration::from_millis(20));
    }
    start.elapsed()
}

#[tokio::test]
async fn zonemesh_follows_zonemesh_and_hands_updates_on() {
    let mut served = Served::start_with("", "hosts = [\"192.0.2.7\"]\ntransfer = \"keys\"");
    let client = served.client();
    for number in 0..150 {
        client.publish(&advert(&node(number), 1)).await.expect("published");
    }
    let mut second = follower(served.port, true);
    let same = |second: &Served, served: &Served| {
        wait_for(LIMIT, || second.serial() == served.serial(), || second.log() + &served.log())
    };
    same(&second, &served);
    assert_eq!(contents_with_key(second.port), contents_with_key(served.port));
    // By the long poll, at once.
    client.publish(&advert(&node(3), 2)).await.expect("published");
    let took = same(&second, &served);
    assert!(took < Duration::from_secs(3), "{took:?}");
    // Who writes to the second one has written to the first.
    second.client().publish(&advert(&node(200), 1)).await.expect("handed on");
    same(&second, &served);
    assert!(
        contents_with_key(served.port)
            .iter()
            .any(|line| line.contains("\"pub=") && line.contains(&super::labels(&node(200)).0))
    );
    // While the first is away, the second answers, also after a restart, and updates fail.
    let before = contents_with_key(second.port);
    served.daemon = None;
    second.restart();
    assert_eq!(contents_with_key(second.port), before);
    let error = second.client().publish(&advert(&node(200), 2)).await.expect_err("not now");
    assert!(error.to_string().contains("SERVFAIL"), "{error}");
    served.restart();
    served.client().publish(&advert(&node(200), 3)).await.expect("published");
    same(&second, &served);
    assert_eq!(contents_with_key(second.port), contents_with_key(served.port));
}

#[tokio::test]
async fn zonemesh_follows_bind() {
    let port = free_port();
    let folder = TempDir::new().expect("a folder");
    let config = ZoneServerConfig {
        zone: ZONE.to_owned(),
        listen: vec![super::LOOPBACK],
        port,
        more_ports: vec![],
        key_name: KEY.to_owned(),
        key_secret: BASE64.encode(SECRET),
        node_keys: vec![],
        transfers: Some(true),
        extra_records: vec!["_stun._udp SRV 0 0 3478 ns".to_owned()],
    };
    let command = |program: &str| Command::new(program);
    let bind =
        ZoneServer::start(ZoneServerKind::Bind, command, folder.path(), config).expect("it starts");
    let second = follower(port, true);
    let client = ZoneClient::new(super::zone(), bind.address(), Some(super::key()));
    for number in 0..3 {
        client.publish(&advert(&node(number), 1)).await.expect("published");
        client.publish(&advert(&node(7), number.into())).await.expect("published");
    }
    wait_for(LIMIT, || serial_at(second.port) == serial_at(port), || second.log());
    assert_eq!(contents(second.port), contents(port));
    let soa = |port| dig_at(port, &["+short", ZONE, "SOA"]);
    assert_eq!(soa(second.port), soa(port), "the primary's own");
}

/// The same where transfers want a key.
fn contents_with_key(port: u16) -> Vec<String> {
    let key = format!("hmac-sha256:{KEY}:{}", BASE64.encode(SECRET));
    let whole = dig_at(port, &["-y", &key, "+noall", "+answer", ZONE, "AXFR"]);
    let records = whole.lines().filter(|line| {
        let kind = line.split_whitespace().nth(3);
        kind.is_some_and(|kind| kind != "SOA" && kind != "TSIG")
    });
    let mut lines: Vec<String> = records.map(str::to_owned).collect();
    assert!(!lines.is_empty(), "{whole}");
    lines.sort_unstable();
    lines
}
