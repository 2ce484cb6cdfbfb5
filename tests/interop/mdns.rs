//! The advert on the LAN: between two of ours, and both ways with avahi.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tempfile::TempDir;
use tokio::{runtime::Runtime, time};
use zonemesh::lab::{
    namespace::{Namespace, run},
    process::Daemon,
    programs,
    world::isolated,
};
use zonemesh_discovery::{
    advert::{Advert, Candidate, SignedAdvert, Zone},
    identity::Identity,
    mdns::{Mdns, MdnsEvent},
    membership::Secret,
    sealed::Seal,
};

/// Discovery takes about a second; a busy machine may take longer.
const LIMIT: Duration = Duration::from_secs(30);

const PORT: u16 = 51820;

#[test]
fn two_nodes_on_a_lan_find_each_other_and_what_changes() {
    isolated("mdns::two_nodes_on_a_lan_find_each_other_and_what_changes", || {
        let lan = Lan::new();
        let (mut one, mut two) = (lan.node(&lan.left), lan.node(&lan.right));
        lan.runtime.block_on(async {
            one.publish(&advert(1, 1), PORT).expect("it is published");
            two.publish(&advert(2, 7), PORT).expect("it is published");
            assert_eq!(found(&mut one, &advert(2, 7)).await, advert(2, 7));
            assert_eq!(found(&mut two, &advert(1, 1)).await, advert(1, 1));
            one.publish(&advert(1, 2), PORT).expect("it is published again");
            assert_eq!(found(&mut two, &advert(1, 2)).await, advert(1, 2));
        });
    });
}

#[test]
fn the_nodes_of_a_sealed_network_find_each_other_and_others_hear_nothing() {
    let name = "mdns::the_nodes_of_a_sealed_network_find_each_other_and_others_hear_nothing";
    isolated(name, || {
        let lan = Lan::new();
        let seal = |secret| Some(Arc::new(Seal::new(&Secret::new(vec![secret; 32]))));
        let mut one = lan.node(&lan.left).sealed(seal(1));
        let mut two = lan.node(&lan.right).sealed(seal(1));
        let mut others = [lan.node(&lan.right), lan.node(&lan.right).sealed(seal(2))];
        lan.runtime.block_on(async {
            one.publish(&certified(1, 1), PORT).expect("it is published");
            two.publish(&certified(2, 7), PORT).expect("it is published");
            assert_eq!(found(&mut one, &certified(2, 7)).await, certified(2, 7));
            assert_eq!(found(&mut two, &certified(1, 1)).await, certified(1, 1));
            let [open, stranger] = &mut others;
            one.publish(&certified(1, 2), PORT).expect("it is published again");
            assert_eq!(found(&mut two, &certified(1, 2)).await, certified(1, 2));
            for other in [open, stranger] {
                let heard = time::timeout(Duration::from_millis(500), other.next()).await;
                assert!(heard.is_err(), "{heard:?}");
            }
        });
    });
}

#[test]
fn a_certificate_of_any_bytes_survives_the_lan() {
    isolated("mdns::a_certificate_of_any_bytes_survives_the_lan", || {
        let lan = Lan::new();
        let (mut one, mut two) = (lan.node(&lan.left), lan.node(&lan.right));
        lan.runtime.block_on(async {
            one.publish(&certified(1, 1), PORT).expect("it is published");
            two.publish(&certified(2, 7), PORT).expect("it is published");
            assert_eq!(found(&mut one, &certified(2, 7)).await, certified(2, 7));
            assert_eq!(found(&mut two, &certified(1, 1)).await, certified(1, 1));
        });
    });
}

#[test]
fn an_interface_that_is_chosen_later_is_spoken_on() {
    isolated("mdns::an_interface_that_is_chosen_later_is_spoken_on", || {
        let lan = Lan::new();
        let mut one = lan.left.enter(|| lan.start(&[])).expect("the namespace");
        let mut two = lan.node(&lan.right);
        lan.runtime.block_on(async {
            one.publish(&advert(1, 1), PORT).expect("it is published");
            let early = time::timeout(Duration::from_secs(3), two.next()).await;
            assert!(early.is_err(), "heard on an interface that is not chosen: {early:?}");
            one.set_interfaces(&["eth0".to_owned()]).expect("it is taken");
            assert_eq!(found(&mut two, &advert(1, 1)).await, advert(1, 1));
        });
    });
}

#[test]
fn a_host_full_of_containers_is_heard_all_the_same() {
    isolated("mdns::a_host_full_of_containers_is_heard_all_the_same", || {
        // More than one socket can join, and all of them before the LAN's.
        let containers: String = (0..25)
            .map(|n| {
                format!(
                    "link add veth{n} type veth peer name peer{n}\n\
                     addr add 10.9.{n}.1/24 dev veth{n}\n\
                     link set veth{n} up\nlink set peer{n} up\n"
                )
            })
            .collect();
        let lan = Lan::beside(&containers);
        let (mut one, mut two) = (lan.node(&lan.left), lan.node(&lan.right));
        lan.runtime.block_on(async {
            one.publish(&advert(1, 1), PORT).expect("it is published");
            two.publish(&advert(2, 2), PORT).expect("it is published");
            assert_eq!(found(&mut one, &advert(2, 2)).await, advert(2, 2));
            assert_eq!(found(&mut two, &advert(1, 1)).await, advert(1, 1));
        });
    });
}

#[test]
fn avahi_reads_what_we_publish_until_we_withdraw_it() {
    isolated("mdns::avahi_reads_what_we_publish_until_we_withdraw_it", || {
        let lan = Lan::new();
        let home = TempDir::new().expect("a folder");
        let _avahi = avahi(&lan.left, home.path());
        let mut ours = lan.node(&lan.right);
        let browse = || {
            lan.left
                .run("avahi-browse", &["--resolve", "--parsable", "--terminate", "_wireguard._udp"])
                .expect("avahi browses")
        };
        lan.runtime.block_on(async { ours.publish(&advert(1, 1), PORT) }).expect("published");
        let listed = until(|| Some(browse()).filter(|listed| listed.contains("sig=")));
        let resolved = listed.lines().find(|line| line.contains("sig=")).expect("a line");
        let fields: Vec<&str> = resolved.splitn(10, ';').collect();
        assert_eq!(fields[8], PORT.to_string(), "{resolved}");
        let strings: BTreeSet<String> =
            fields[9].trim_matches('"').split("\" \"").map(str::to_owned).collect();
        assert_eq!(strings, texts(&advert(1, 1)).into_iter().collect());
        assert!(["10.7.0.2", "fe80:"].iter().any(|start| fields[7].starts_with(start)));

        lan.runtime.block_on(ours.stop());
        until(|| browse().is_empty().then_some(()));
    });
}

#[test]
fn what_avahi_publishes_for_a_node_verifies() {
    isolated("mdns::what_avahi_publishes_for_a_node_verifies", || {
        let lan = Lan::new();
        let home = TempDir::new().expect("a folder");
        let _avahi = avahi(&lan.left, home.path());
        let mut ours = lan.node(&lan.right);
        let theirs = advert(2, 5);
        let mut publish = lan.left.command("avahi-publish");
        publish.args(["--service", "somebody's node", "_wireguard._udp", &PORT.to_string()]);
        publish.args(texts(&theirs));
        let log = home.path().join("avahi-publish.log");
        let _publish = Daemon::spawn("avahi-publish", &mut publish, &log).expect("it starts");
        let found = lan.runtime.block_on(found(&mut ours, &theirs));
        assert_eq!(found, theirs);
    });
}

#[test]
fn a_flood_of_records_is_dropped_and_told() {
    isolated("mdns::a_flood_of_records_is_dropped_and_told", || {
        let lan = Lan::new();
        let mut ours = lan.node(&lan.right);
        let socket = lan.left.enter(|| UdpSocket::bind("10.7.0.1:5353")).expect("the namespace");
        let socket = socket.expect("the port of mDNS");
        let flood = async {
            for number in 0.. {
                socket.send_to(&many_addresses(number), "224.0.0.251:5353").expect("it is sent");
                time::sleep(Duration::from_millis(2)).await;
            }
        };
        lan.runtime.block_on(async {
            tokio::select! {
                told = time::timeout(LIMIT, ours.next()) => {
                    assert_eq!(told.expect("it is noticed"), MdnsEvent::Flooded);
                }
                () = flood => {}
            }
        });
    });
}

/// An mDNS answer that has to do with our service, and forty addresses of hosts that
/// nobody asked for.
fn many_addresses(number: u32) -> Vec<u8> {
    const HOSTS: u32 = 40;
    let mut packet = vec![0, 0, 0x84, 0, 0, 0, 0, HOSTS as u8 + 1, 0, 0, 0, 0];
    let mut record = |labels: &[&str], kind: u8, data: &[u8]| {
        for label in labels {
            packet.push(label.len() as u8);
            packet.extend_from_slice(label.as_bytes());
        }
        // The root, the type, the class IN, 4,500 s to live, the data.
        packet.extend_from_slice(&[0, 0, kind, 0, 1, 0, 0, 0x11, 0x94, 0, data.len() as u8]);
        packet.extend_from_slice(data);
    };
    // `x` below the name at offset 12.
    record(&["_wireguard", "_udp", "local"], 12, &[1, b'x', 0xc0, 12]);
    for host in 0..HOSTS {
        let name = format!("n{}", number * HOSTS + host);
        record(&[&name, "local"], 1, &[10, 7, 0, 9]);
    }
    packet
}

/// Two hosts on one wire.
struct Lan {
    left: Namespace,
    right: Namespace,
    runtime: Runtime,
}

impl Lan {
    fn new() -> Self {
        Self::beside("")
    }

    /// A LAN whose right host has other links as well.
    fn beside(links: &str) -> Self {
        let left = Namespace::add("left").expect("a namespace");
        let right = Namespace::add("right").expect("a namespace");
        right.ip(links).expect("links");
        left.ip("link add eth0 type veth peer name eth0 netns right").expect("a wire");
        for (host, last) in [(&left, 1), (&right, 2)] {
            let address = Ipv4Addr::new(10, 7, 0, last);
            host.ip(&format!("addr add {address}/24 dev eth0\nlink set eth0 up\n"))
                .expect("an address");
        }
        left.wait_for_links(&["eth0"]).expect("the wire carries");
        right.wait_for_links(&["eth0"]).expect("the wire carries");
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Self { left, right, runtime }
    }

    fn node(&self, host: &Namespace) -> Mdns {
        host.enter(|| self.start(&["eth0".to_owned()])).expect("the namespace")
    }

    fn start(&self, interfaces: &[String]) -> Mdns {
        let _runtime = self.runtime.enter();
        Mdns::start(interfaces).expect("mDNS")
    }
}

/// An avahi-daemon with a message bus of its own.
fn avahi(host: &Namespace, home: &Path) -> (Daemon, Daemon) {
    programs::require(&["avahi-browse", "avahi-daemon", "avahi-publish", "dbus-daemon"])
        .expect("the programs are there");
    // The world's own, empty `/run`: there is no other bus to be seen.
    fs::create_dir_all("/run/dbus").expect("a folder");
    let socket = "/run/dbus/system_bus_socket";
    let bus_config = home.join("bus.conf");
    let rules = format!(
        "<busconfig><type>system</type><listen>unix:path={socket}</listen>
         <policy context='default'><allow user='*'/><allow own='*'/>
         <allow send_destination='*'/><allow receive_sender='*'/></policy></busconfig>"
    );
    fs::write(&bus_config, rules).expect("a file");
    let mut bus = host.command("dbus-daemon");
    bus.args(["--nofork", "--nopidfile", "--config-file"]).arg(&bus_config);
    let mut bus = Daemon::spawn("dbus-daemon", &mut bus, &home.join("bus.log")).expect("it starts");
    bus.wait_ready(LIMIT, || Path::new(socket).exists()).expect("the bus is ready");

    let config = home.join("avahi.conf");
    let settings = "[server]\nhost-name=left\nuse-ipv4=yes\nuse-ipv6=yes\nallow-interfaces=eth0\n";
    fs::write(&config, settings).expect("a file");
    fs::create_dir_all("/run/avahi-daemon").expect("a folder");
    let mut daemon = host.command("avahi-daemon");
    daemon.args(["--no-drop-root", "--no-chroot", "--no-rlimits", "--file"]).arg(&config);
    let mut daemon =
        Daemon::spawn("avahi-daemon", &mut daemon, &home.join("avahi.log")).expect("it starts");
    let ready = || {
        let mut browse = host.command("avahi-browse");
        run(browse.args(["--terminate", "--all"]), "").is_ok()
    };
    daemon.wait_ready(LIMIT, ready).expect("avahi is ready");
    (bus, daemon)
}

/// Waits for this advert, verifying whatever is heard.
async fn found(node: &mut Mdns, wanted: &SignedAdvert) -> SignedAdvert {
    let search = async {
        loop {
            let MdnsEvent::Found { txt } = node.next().await else { panic!("a flood") };
            let heard = SignedAdvert::verify(&zone(), &txt, SystemTime::now())
                .unwrap_or_else(|error| panic!("{error}: {:?}", lossy(&txt)));
            if heard.advert().sequence == wanted.advert().sequence {
                return heard;
            }
        }
    };
    time::timeout(LIMIT, search).await.expect("it is found in time")
}

fn until<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let start = std::time::Instant::now();
    loop {
        if let Some(result) = probe() {
            return result;
        }
        assert!(start.elapsed() < LIMIT, "it does not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn zone() -> Zone {
    "mesh.example".parse().expect("a zone")
}

/// A node's advert, large enough to need a TXT string of two parts.
fn advert(seed: u8, sequence: u64) -> SignedAdvert {
    advert_with(seed, sequence, None)
}

/// The same with a certificate in which every byte occurs.
fn certified(seed: u8, sequence: u64) -> SignedAdvert {
    advert_with(seed, sequence, Some((0..=255).collect()))
}

fn advert_with(seed: u8, sequence: u64, certificate: Option<Vec<u8>>) -> SignedAdvert {
    let identity = Identity::from_seed(&[seed; 32]);
    let candidates: Vec<Candidate> = (0..if certificate.is_some() { 3u16 } else { 8 })
        .map(|n| format!("h:[2001:db8:{seed}:{n}:1111:2222:3333:4444]:51820"))
        .map(|text| text.parse().expect("a candidate"))
        .collect();
    let advert = Advert {
        node: identity.public_key(),
        name: format!("node {seed}"),
        addresses: vec![format!("10.42.{seed}.1").parse().expect("an address")],
        routes: vec![format!("10.42.{seed}.0/24").parse().expect("a route")],
        candidates,
        certificate,
        sequence,
        expires: SystemTime::UNIX_EPOCH + Duration::from_secs(hour_from_now()),
    };
    advert.sign(&identity, &zone()).expect("it is within the bounds")
}

/// The same for the whole test, so that two adverts can be compared.
fn hour_from_now() -> u64 {
    static THEN: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *THEN.get_or_init(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.expect("past 1970").as_secs() + 3600
    })
}

fn texts(advert: &SignedAdvert) -> Vec<String> {
    lossy(advert.txt())
}

fn lossy(txt: &[Vec<u8>]) -> Vec<String> {
    txt.iter().map(|string| String::from_utf8_lossy(string).into_owned()).collect()
}
