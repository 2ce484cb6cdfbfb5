//! BIND and Knot as secondary servers of the embedded zone.

use std::{
    fs,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use tempfile::TempDir;
use zonemesh::lab::{process::Daemon, programs, zone_server::ZoneServerKind};

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
