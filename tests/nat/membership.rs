//! Meshes of members: joined by token, left by revocation.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use zonemesh::lab::{
    member::{Identity, Member, find_peer},
    namespace::run,
    nat::Kind,
    net::{Host, Lab, Site},
    rendezvous::Rendezvous,
    world::isolated,
};

use crate::stage::{JOIN_LIMIT, LAN_A, LAN_B, Stage, Zone, finish, reach_each_other};

/// How long a revoked member's sessions may last from the moment that the list is there.
const REVOKED_LIMIT: Duration = Duration::from_secs(10);

const ZONE: &str = "mesh.example";

fn executable() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_zonemesh"))
}

/// A lab with a rendezvous and nothing of anybody else's.
struct Scene {
    lab: Lab,
    rendezvous: Rendezvous,
    /// So that the NATs stand for as long as the nodes behind them.
    sites: Vec<Site>,
}

impl Scene {
    fn new(options: &[&str]) -> Self {
        let folder = PathBuf::from("/run/lab");
        fs::create_dir_all(&folder).expect("a folder");
        let mut lab = Lab::new().expect("a network can be built");
        let host = lab.public_host("rendezvous", 1).expect("a host can be built");
        let rendezvous = Rendezvous::start(&host, ZONE, options, executable(), &folder);
        Self { lab, rendezvous: rendezvous.expect("it serves"), sites: Vec::new() }
    }

    /// A host behind a NAT of its own.
    fn behind(&mut self, name: &str, kind: Kind, lan: &str) -> Host {
        let mut site =
            self.lab.site(&format!("{name}-router"), kind, lan).expect("a site can be built");
        let host = site.host(&format!("{name}-host")).expect("a host can be built");
        self.sites.push(site);
        host
    }

    fn join(&self, name: &str, number: u8, host: &Host) -> Member {
        let (token, folder) = (self.rendezvous.token(), self.rendezvous.folder());
        let member =
            Member::join_as(Identity::new(name, number), host, token, executable(), folder);
        member.expect("a node can be started")
    }

    fn revoke(&self, member: &Member) {
        let key = member.status().expect("it answers")["node"]["public_key"].clone();
        let key = key.as_str().expect("a key");
        self.rendezvous.network(&["revoke", key]).expect("it is published");
    }
}

/// Waits until a node knows a peer no more; gives how long that took since `start`.
fn wait_gone(node: &mut Member, peer: &str, start: Instant) -> Duration {
    let gone = node.wait_for("an end of a membership", REVOKED_LIMIT, |status| {
        find_peer(status, peer).is_none().then_some(())
    });
    gone.expect("in time");
    start.elapsed()
}

fn counter(node: &Member, name: &str) -> u64 {
    let status = node.status().expect("it answers");
    status["counters"][name].as_u64().unwrap_or_default()
}

/// What the README begins with: three commands, and two hosts behind NAT reach each other.
#[test]
fn two_nodes_with_a_token_and_nothing_else_reach_each_other_directly() {
    isolated(
        "membership::two_nodes_with_a_token_and_nothing_else_reach_each_other_directly",
        || {
            let mut scene = Scene::new(&[]);
            let hosts = [("a", LAN_A), ("b", LAN_B)]
                .map(|(name, lan)| scene.behind(name, Kind::PortRestricted, lan));
            let join = |name, host| Member::join(name, host, &scene.rendezvous).expect("it starts");
            let mut a = join("a", &hosts[0]);
            let mut b = join("b", &hosts[1]);
            let overlays = [&mut a, &mut b].map(|node| node.wait_for_overlay(JOIN_LIMIT));
            let [_, overlay] = overlays.map(|overlay| overlay.expect("a slice of the network's"));
            a.wait_for_reply(overlay, JOIN_LIMIT).expect("they reach each other");
            a.wait_for("a direct path", JOIN_LIMIT, |status| {
                (find_peer(status, "b")?["path"]["kind"] == "direct").then_some(())
            })
            .expect("both NATs let one through");
            let status = a.status().expect("it answers");
            assert!(status["node"]["membership"]["expires"].is_u64(), "{status}");
            let pings = a.ping(overlay, 20).expect("ping runs");
            assert!(pings.all_answered(), "{pings:?}");
            finish([a, b]);
        },
    );
}

#[test]
fn a_revoked_member_is_out_within_seconds_where_the_zone_is_not_reached_and_after_a_restart() {
    isolated(
        "membership::a_revoked_member_is_out_within_seconds_where_the_zone_is_not_reached_and_after_a_restart",
        || {
            let mut scene = Scene::new(&[]);
            let hosts = [("a", LAN_A), ("b", LAN_B), ("c", "192.168.3.0/24")]
                .map(|(name, lan)| scene.behind(name, Kind::PortRestricted, lan));
            let mut a = scene.join("a", 1, &hosts[0]);
            let mut b = scene.join("b", 2, &hosts[1]);
            let mut c = scene.join("c", 3, &hosts[2]);
            reach_each_other(&mut [&mut a, &mut b, &mut c]);
            for node in [&mut a, &mut b, &mut c] {
                node.wait_for("direct paths", JOIN_LIMIT, |status| {
                    let peers = status["peers"].as_array()?;
                    let direct = |peer: &&serde_json::Value| peer["path"]["kind"] == "direct";
                    (peers.iter().filter(direct).count() == 2).then_some(())
                })
                .expect("they need no relay");
            }

            // From now on `b` hears of the zone by `a` alone.
            let zone = scene.rendezvous.ip().to_string();
            b.host().namespace.run("ip", &["route", "add", "unreachable", &zone]).expect("is set");
            let start = Instant::now();
            scene.revoke(&c);
            let listed = Instant::now();
            let at_a = wait_gone(&mut a, "c", listed);
            let at_b = wait_gone(&mut b, "c", listed);
            println!("published in {:?}, gone at a in {at_a:?}, at b in {at_b:?}", listed - start);
            for node in [&a, &b] {
                let pings = c.ping(node.overlay(), 5).expect("ping runs");
                assert_eq!(pings.received, 0, "{pings:?}");
                let pings = node.ping(c.overlay(), 5).expect("ping runs");
                assert_eq!(pings.received, 0, "{pings:?}");
            }
            let pings = a.ping(b.overlay(), 5).expect("ping runs");
            assert!(pings.all_answered(), "the others do not notice: {pings:?}");
            c.wait_for("the word that it is revoked", JOIN_LIMIT, |status| {
                let told = |warning: &serde_json::Value| {
                    warning.as_str().is_some_and(|warning| warning.contains("revoked this node"))
                };
                status["warnings"].as_array()?.iter().any(told).then_some(())
            })
            .expect("it reads the zone");

            // Restarted with the zone away, it knows its peers, and who is none any more.
            scene.rendezvous.stop();
            b.kill();
            b.restart().expect("it starts again");
            a.wait_for_reply(b.overlay(), JOIN_LIMIT).expect("by what it remembers");
            let status = b.status().expect("it answers");
            assert_eq!(status["node"]["revocations"], 1, "{status}");
            assert!(find_peer(&status, "c").is_none(), "{status}");
            let pings = c.ping(b.overlay(), 5).expect("ping runs");
            assert_eq!(pings.received, 0, "{pings:?}");
            assert!(find_peer(&b.status().expect("it answers"), "c").is_none());
            for node in [&a, &b, &c] {
                assert!(node.complaints().is_empty(), "{:#?}", node.complaints());
            }
        },
    );
}

/// A zone of BIND, whose TSIG key every member has by its token; and so somebody else may.
#[test]
fn who_has_the_zone_s_key_and_no_invite_is_no_member() {
    isolated("membership::who_has_the_zone_s_key_and_no_invite_is_no_member", || {
        let mut stage = Stage::new(Zone::Bind);
        let places = [("a", LAN_A), ("b", LAN_B), ("c", "192.168.3.0/24")]
            .map(|(name, lan)| stage.behind(name, Kind::PortRestricted, lan));
        let admin = stage.public("admin");
        let services = stage.setup.services.clone();
        let dir = services.folder.join("network");
        let network = |arguments: &[&str]| {
            let mut command = admin.host.namespace.command(&executable().to_string_lossy());
            command.arg("network").args(arguments).arg("--dir").arg(&dir);
            run(&mut command, "").expect("the administrator may do that")
        };
        let server = services.zone_server.to_string();
        network(&["init", &services.zone, "--routes", "10.42.0.0/16", "--server", &server]);
        let mut file =
            OpenOptions::new().append(true).open(dir.join("network.toml")).expect("it is there");
        writeln!(
            file,
            "tsig = {{ name = {:?}, algorithm = {:?}, secret = {:?} }}",
            services.tsig_name, services.tsig_algorithm, services.tsig_secret
        )
        .expect("is written");
        let stun: Vec<String> = services.stun_servers.iter().map(ToString::to_string).collect();
        let join = |name: &str, number: u8, place: &Host, more: &str| {
            let token = network(&["invite", "--name", name, "--groups", "edge"]);
            let more = format!("[stun]\nservers = {stun:?}\n{more}");
            let identity = Identity { more, ..Identity::new(name, number) };
            let token = token.lines().last().unwrap_or_default();
            let member = Member::join_as(identity, place, token, executable(), &services.folder);
            member.expect("it starts")
        };
        let mut a = join("a", 1, &places[0].host, "");
        let mut b = join("b", 2, &places[1].host, "");
        // It has the zone's key, claims what is `b`'s, and believes everybody.
        let thief = Identity {
            routes: Some(vec!["10.42.3.0/24".to_owned(), "10.42.2.0/25".to_owned()]),
            ..Identity::new("c", 3)
        };
        let mut thief = stage.start_as(thief, &places[2].host);
        reach_each_other(&mut [&mut a, &mut b]);
        thief
            .wait_for("the others", JOIN_LIMIT, |status| {
                find_peer(status, "a").and(find_peer(status, "b")).map(drop)
            })
            .expect("the zone shows them");
        stage.wait_for_adverts(&mut thief, 3);
        for node in [&mut a, &mut b] {
            node.wait_for("a look at its advert", JOIN_LIMIT, |status| {
                (status["counters"]["advert_uncertified"].as_u64()? > 0).then_some(())
            })
            .expect("it reads the zone");
            assert!(find_peer(&node.status().expect("it answers"), "c").is_none());
        }
        let pings = thief.ping(a.overlay(), 5).expect("ping runs");
        assert_eq!(pings.received, 0, "{pings:?}");
        let peer = a.peer("b").expect("it knows its peer");
        assert_eq!(peer["groups"][0], "edge", "{peer}");
        assert_eq!(peer["routes"], serde_json::json!(["10.42.2.0/24"]));
        assert_eq!(counter(&a, "advert_revoked"), 0);

        // Revoked in the zone of BIND, `b` is out as well.
        let key = b.status().expect("it answers")["node"]["public_key"].clone();
        network(&["revoke", key.as_str().expect("a key")]);
        wait_gone(&mut a, "b", Instant::now());
        finish([a, b, thief]);
    });
}

/// The disk of one node is full before anything is on it but its key and its membership.
#[test]
fn a_full_disk_stops_nothing_that_works() {
    isolated("membership::a_full_disk_stops_nothing_that_works", || {
        let mut scene = Scene::new(&[]);
        let hosts = [("a", LAN_A), ("b", LAN_B), ("c", "192.168.3.0/24")]
            .map(|(name, lan)| scene.behind(name, Kind::PortRestricted, lan));
        let state = scene.rendezvous.folder().join("b/state");
        fs::create_dir_all(&state).expect("a folder");
        let path = state.display().to_string();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs", &path]);
        run(&mut mount, "").expect("the world is root's");
        let mut a = scene.join("a", 1, &hosts[0]);
        let mut b = scene.join("b", 2, &hosts[1]);
        let mut c = scene.join("c", 3, &hosts[2]);
        let kept = |_: &_| state.join("membership.json").exists().then_some(());
        b.wait_for("its membership on disk", JOIN_LIMIT, kept).expect("there is room for that");
        let filled = fs::write(state.join("somebody-else's"), vec![1; 1 << 20]);
        assert!(filled.is_err(), "it is full");

        reach_each_other(&mut [&mut a, &mut b, &mut c]);
        scene.revoke(&c);
        for node in [&mut a, &mut b] {
            wait_gone(node, "c", Instant::now());
        }
        assert!(b.log().contains("cannot keep"), "{}", b.log());
        b.kill();
        b.restart().expect("it starts again");
        a.wait_for_reply(b.overlay(), JOIN_LIMIT).expect("it is a member still");
        b.wait_for("the revocations", JOIN_LIMIT, |status| {
            (status["node"]["revocations"] == 1 && find_peer(status, "c").is_none()).then_some(())
        })
        .expect("the zone and the others have them");
        finish([a, b]);
        c.stop().expect("it ends");
    });
}
