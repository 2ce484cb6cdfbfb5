//! The embedded zone's journal: nothing that was acknowledged is lost, whenever its process
//! is killed and however full the disk is.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use rand::RngExt;
use tempfile::TempDir;
use zonemesh::lab::{
    namespace::run,
    process::{Daemon, Protocol},
    world::isolated,
};
use zonemesh_discovery::{
    advert::{Advert, Candidate, CandidateKind, Entry, SignedAdvert, Zone},
    identity::Identity,
    zone::{Browser, Rcode, TsigKey, ZoneClient, ZoneError},
};

const SERVER: &str = "127.0.0.1:5353";

/// How long anything may take that should take no time.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn killed_a_thousand_times_it_loses_nothing() {
    isolated("journal::killed_a_thousand_times_it_loses_nothing", || {
        const KILLS: usize = 1000;
        let home = TempDir::new().expect("a folder");
        let config = configure(home.path(), &home.path().join("zone"));
        let over = Arc::new(AtomicBool::new(false));
        let writers: Vec<_> = (1..=4).map(|seed| Writer::start(seed, &over)).collect();
        let mut rng = rand::rng();
        let mut kills_under_load = 0;
        for kill in 0..KILLS {
            let mut server = serve(home.path(), &config);
            // Whatever was acknowledged up to here is older than this process.
            for writer in &writers {
                let promised = writer.acknowledged.load(Ordering::SeqCst);
                let there = writer.in_zone();
                assert!(there >= promised, "kill {kill}: {there} instead of {promised}");
            }
            let before = acknowledged(&writers);
            thread::sleep(Duration::from_micros(rng.random_range(0..20_000)));
            server.kill();
            kills_under_load += usize::from(acknowledged(&writers) > before);
        }
        over.store(true, Ordering::SeqCst);
        writers.into_iter().for_each(Writer::join);
        // Many were killed while they worked, or this shows nothing.
        assert!(kills_under_load > KILLS / 4, "{kills_under_load}");
        println!("{KILLS} kills, {kills_under_load} of them under load");
    });
}

#[test]
fn a_full_disk_refuses_updates_and_goes_on_answering() {
    isolated("journal::a_full_disk_refuses_updates_and_goes_on_answering", || {
        let home = TempDir::new().expect("a folder");
        let disk = home.path().join("disk");
        fs::create_dir(&disk).expect("a folder");
        let mount = |options: &str| {
            let mut command = Command::new("mount");
            command.args(["-t", "tmpfs", "-o", options, "disk"]).arg(&disk);
            run(&mut command, "").expect("mounted");
        };
        mount("size=64k");
        let config = configure(home.path(), &disk);
        let mut server = serve(home.path(), &config);
        let node = Node::new(1);
        let mut last = 0;
        let refused = loop {
            match node.publish(last + 1) {
                Ok(()) => last += 1,
                Err(error) => break error,
            }
            assert!(last < 1000, "the disk takes everything");
        };
        let is_servfail =
            |error: &ZoneError| matches!(error, ZoneError::Refused { rcode: Rcode::SERVFAIL, .. });
        assert!(is_servfail(&refused), "{refused}");
        assert!(last > 5);
        // It has not happened, and the zone is there.
        assert_eq!(node.in_zone(), last);
        assert!(node.publish(last + 1).is_err_and(|error| is_servfail(&error)));
        assert_eq!(node.in_zone(), last);
        assert!(server.log().contains("the zone's journal cannot be written"));
        // Killed while the disk is full, it is there again.
        server.kill();
        let server = serve(home.path(), &config);
        assert_eq!(node.in_zone(), last);
        mount("remount,size=4m");
        assert!(node.publish(last + 1).is_ok(), "{}", server.log());
        assert_eq!(node.in_zone(), last + 1);
    });
}

/// A node that writes its advert again and again.
struct Writer {
    node: Node,
    /// The number of the last one that was acknowledged.
    acknowledged: Arc<AtomicU64>,
    thread: thread::JoinHandle<()>,
}

impl Writer {
    fn start(seed: u8, over: &Arc<AtomicBool>) -> Self {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let (over, last) = (Arc::clone(over), Arc::clone(&acknowledged));
        let thread = thread::spawn(move || {
            let node = Node::new(seed);
            for sequence in 1.. {
                if over.load(Ordering::SeqCst) {
                    break;
                }
                match node.publish(sequence) {
                    Ok(()) => last.store(sequence, Ordering::SeqCst),
                    // It is down for the moment.
                    Err(_) => thread::sleep(Duration::from_millis(1)),
                }
            }
        });
        Self { node: Node::new(seed), acknowledged, thread }
    }

    fn in_zone(&self) -> u64 {
        self.node.in_zone()
    }

    fn join(self) {
        self.thread.join().expect("the writer has not panicked");
    }
}

fn acknowledged(writers: &[Writer]) -> u64 {
    writers.iter().map(|writer| writer.acknowledged.load(Ordering::SeqCst)).sum()
}

struct Node {
    identity: Identity,
    client: ZoneClient,
    runtime: tokio::runtime::Runtime,
}

impl Node {
    fn new(seed: u8) -> Self {
        let key = TsigKey::new("all", "hmac-sha256", SECRET).expect("a key");
        Self {
            identity: Identity::from_seed(&[seed; 32]),
            client: ZoneClient::new(zone(), address(), Some(key)),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime"),
        }
    }

    fn publish(&self, sequence: u64) -> Result<(), ZoneError> {
        let advert = self.advert(sequence);
        self.runtime.block_on(self.client.publish(&advert))
    }

    fn advert(&self, sequence: u64) -> SignedAdvert {
        let addr = ([203, 0, 113, 7], 51820).into();
        let advert = Advert {
            node: self.identity.public_key(),
            name: "a node".to_owned(),
            addresses: Vec::new(),
            routes: Vec::new(),
            candidates: vec![Candidate { kind: CandidateKind::ServerReflexive, addr }],
            certificate: None,
            sequence,
            expires: SystemTime::now() + Duration::from_secs(3600),
        };
        advert.sign(&self.identity, &zone()).expect("within bounds")
    }

    /// The number of the advert that the zone has; 0 where it has none.
    fn in_zone(&self) -> u64 {
        let mut browser = Browser::new(self.client.clone());
        let key = self.identity.public_key();
        let found = self.runtime.block_on(browser.find(&key)).expect("an answer");
        let Some(records) = found else { return 0 };
        match records.verify(&zone(), SystemTime::now()).expect("as it was signed") {
            Entry::Signed(signed) => signed.advert().sequence,
            Entry::Bare(_) => panic!("an advert without its signature"),
        }
    }
}

const SECRET: &str = "bm90aGluZyBidXQgYSB0ZXN0J3Mgc2VjcmV0IGhlcmU=";

fn zone() -> Zone {
    "mesh.example".parse().expect("a zone")
}

fn address() -> SocketAddr {
    SERVER.parse().expect("an address")
}

fn configure(home: &Path, data: &Path) -> PathBuf {
    fs::write(home.join("key"), SECRET).expect("written");
    let text = format!(
        r#"
        [serve]
        stun = false
        turn = false
        [serve.zone]
        name = "mesh.example"
        listen = ["{SERVER}"]
        data_dir = "{}"
        keys = [{{ name = "all", secret_file = "key", update = "all" }}]
        limits = {{ updates_per_network = 1000000 }}
        "#,
        data.display()
    );
    let config = home.join("zonemesh.toml");
    fs::write(&config, text).expect("written");
    config
}

fn serve(home: &Path, config: &Path) -> Daemon {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zonemesh"));
    command.arg("serve").arg("-c").arg(config).stdin(Stdio::null());
    let mut daemon =
        Daemon::spawn("zonemesh serve", &mut command, &home.join("log")).expect("it starts");
    let process = daemon.process();
    let start = Instant::now();
    // Looked at more often than a daemon is as a rule: it starts a thousand times.
    while process.bound(Protocol::Tcp, address().port()) == 0 {
        assert!(start.elapsed() < LIMIT, "{}", daemon.log());
        assert!(daemon.ended().expect("a child").is_none(), "{}", daemon.log());
        thread::sleep(Duration::from_millis(1));
    }
    daemon
}
