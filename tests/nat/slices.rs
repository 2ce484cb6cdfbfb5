//! Nodes that take slices of the network's range: a rendezvous, three NATs, and nothing
//! that anybody has numbered.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::Path,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use serde_json::Value;
use zonemesh::lab::{
    member::Member,
    nat::Kind,
    net::{Lab, Site},
    rendezvous::Rendezvous,
    world::isolated,
};

use crate::stage::{JOIN_LIMIT, finish, reach_each_other};

const FOLDER: &str = "/run/lab";

/// How long a node may take to find out that its claim is another's, or gone: the zone tells
/// it of each change.
const NOTICED: Duration = Duration::from_secs(30);

/// How long it may take until all have found a rendezvous that was away: its relay is asked
/// again after half a minute at the most.
const AGAIN: Duration = Duration::from_secs(60);

#[test]
fn three_nodes_take_a_slice_each_and_keep_it() {
    isolated("slices::three_nodes_take_a_slice_each_and_keep_it", || {
        let (lab, mut rendezvous) = rendezvous(&[]);
        let mut network = Network::of_three(lab, &rendezvous);
        let overlays = network.settle();
        let slices: BTreeSet<IpNet> = network.members.iter().map(slice).collect();
        assert_eq!(slices.len(), 3, "{slices:?}");
        let range: IpNet = "10.42.0.0/16".parse().expect("a prefix");
        for (slice, overlay) in network.members.iter().map(slice).zip(&overlays) {
            assert!(range.contains(&slice) && slice.prefix_len() == 24, "{slice}");
            let first = slice.hosts().next().expect("it has hosts");
            assert_eq!(*overlay, first);
        }
        let [a, b, c] = &mut network.members;
        reach_each_other(&mut [a, b, c]);

        // A restart, also while nobody can be asked, finds the slice as it was.
        let a = &mut network.members[0];
        a.stop().expect("it ends");
        rendezvous.stop();
        a.restart().expect("it starts");
        assert_eq!(a.wait_for_overlay(JOIN_LIMIT).expect("it knows it"), overlays[0]);
        rendezvous.restart().expect("it starts");
        for other in &overlays[1..] {
            a.wait_for_reply(*other, AGAIN).expect("they reach each other");
        }

        // Without any memory it is another node, and takes another one.
        let a = &mut network.members[0];
        a.stop().expect("it ends");
        fs::remove_dir_all(Path::new(FOLDER).join("a/state")).expect("it is gone");
        a.restart().expect("it starts");
        let overlay = a.wait_for_overlay(JOIN_LIMIT).expect("it takes one");
        assert!(!overlays.contains(&overlay), "{overlay} is still somebody's");
        finish(network.members);
    });
}

#[test]
fn the_only_slice_is_one_nodes_and_given_up_where_the_zone_says_so() {
    isolated("slices::the_only_slice_is_one_nodes_and_given_up_where_the_zone_says_so", || {
        let (mut lab, mut rendezvous) = rendezvous(&["--slice", "16"]);
        let mut join = |name: &str, rendezvous: &Rendezvous| {
            let host = lab.public_host(&format!("{name}-host"), 1).expect("a host can be built");
            Member::join(name, &host, rendezvous).expect("a node can be started")
        };
        let mut a = join("a", &rendezvous);
        let overlay = a.wait_for_overlay(JOIN_LIMIT).expect("it takes the only one");
        let mut b = join("b", &rendezvous);
        wait_for_log(&mut b, "no slice left");
        // The zone forgets everything while the first one is off.
        a.kill();
        rendezvous.stop();
        fs::remove_dir_all(rendezvous.dir().join("zone")).expect("it is gone");
        rendezvous.restart().expect("it starts");
        assert_eq!(b.wait_for_overlay(NOTICED).expect("it is free"), overlay);
        a.restart().expect("it starts");
        wait_for_log(&mut a, "taking another slice");
        let none =
            |status: &Value| status["node"]["addresses"].as_array()?.is_empty().then_some(());
        a.wait_for("no address", NOTICED, none).expect("it has given it up");
        assert_eq!(b.wait_for_overlay(JOIN_LIMIT).expect("it keeps it"), overlay);
        finish([a, b]);
    });
}

fn wait_for_log(member: &mut Member, text: &str) {
    let start = Instant::now();
    while !member.log().contains(text) {
        let log = member.log();
        assert!(start.elapsed() < NOTICED, "{} does not say {text:?}:\n{log}", member.name());
        member.status().ok();
    }
}

/// A network that takes up a world's folder.
fn rendezvous(options: &[&str]) -> (Lab, Rendezvous) {
    let mut lab = Lab::new().expect("a lab can be built");
    let host = lab.public_host("rendezvous", 1).expect("a host can be built");
    let executable = Path::new(env!("CARGO_BIN_EXE_zonemesh"));
    let folder = Path::new(FOLDER);
    let rendezvous = Rendezvous::start(&host, "mesh.example", options, executable, folder)
        .expect("a network can be made and served");
    (lab, rendezvous)
}

/// Three nodes behind a NAT each.
struct Network {
    members: [Member; 3],
    _sites: Vec<Site>,
    _lab: Lab,
}

impl Network {
    fn of_three(mut lab: Lab, rendezvous: &Rendezvous) -> Self {
        let mut sites = Vec::new();
        let members = ["a", "b", "c"].map(|name| {
            let lan = format!("192.168.{}.0/24", sites.len() + 1);
            let router = format!("{name}-router");
            let mut site =
                lab.site(&router, Kind::PortRestricted, &lan).expect("a site can be built");
            let host = site.host(&format!("{name}-host")).expect("a host can be built");
            sites.push(site);
            Member::join(name, &host, rendezvous).expect("a node can be started")
        });
        Self { members, _sites: sites, _lab: lab }
    }

    /// Waits until each has an overlay address.
    fn settle(&mut self) -> Vec<IpAddr> {
        let wait = |member: &mut Member| member.wait_for_overlay(JOIN_LIMIT).expect("a slice");
        self.members.iter_mut().map(wait).collect()
    }
}

/// The slice that a node shows as its route.
fn slice(member: &Member) -> IpNet {
    let status = member.status().expect("it answers");
    let routes = status["node"]["routes"].as_array().expect("a list");
    let [route] = &routes[..] else { panic!("{routes:?}") };
    route.as_str().and_then(|text| text.parse().ok()).expect("a prefix")
}
