//! A host with two ways to the Internet, each behind a NAT of its own.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use serde_json::Value;
use zonemesh::lab::{
    member::{Member, find_peer},
    nat::Kind,
    net::{Host, Site},
    world::isolated,
};

use crate::{
    flow::Flow,
    stage::{JOIN_LIMIT, LAN_B, Place, Stage, finish},
};

/// The second LAN of the host.
const SECOND_LAN: &str = "192.168.11.0/24";

/// From the loss of an uplink to traffic by another one.
const LIMIT: Duration = Duration::from_secs(5);

/// How long a flow runs before and after something happens.
const FLOW: Duration = Duration::from_secs(10);

/// Packets a second.
const RATE: u32 = 100;

/// A node with two uplinks, one with one, and a direct path between them.
struct Scene {
    stage: Stage,
    place: Place,
    second: Site,
    nodes: [Member; 2],
}

impl Scene {
    fn new() -> Self {
        let mut stage = Stage::with_relay();
        let mut place = stage.behind("a", Kind::PortRestricted, "192.168.1.0/24");
        let second = stage.setup.lab.site("a-second", Kind::PortRestricted, SECOND_LAN);
        let mut second = second.expect("a site can be built");
        second.join(&mut place.host).expect("a host has two links");
        let other = stage.behind("b", Kind::PortRestricted, LAN_B);
        let (mut a, mut b) = stage.joined(&place, &other);
        for (node, peer) in [(&mut a, "b"), (&mut b, "a")] {
            node.wait_for("a direct path", JOIN_LIMIT, |status| {
                (find_peer(status, peer)?["path"]["kind"] == "direct").then_some(())
            })
            .expect("both NATs let it through");
        }
        let mut scene = Self { stage, place, second, nodes: [a, b] };
        scene.wait_for_both_uplinks();
        scene
    }

    /// The addresses as which the two uplinks appear to the outside.
    fn public(&self) -> [IpAddr; 2] {
        [self.place.public[0], self.second.public()]
    }

    /// Both are told, and the peer has looked at both.
    fn wait_for_both_uplinks(&mut self) {
        let public = self.public();
        let [a, b] = &mut self.nodes;
        a.wait_for("both public addresses", JOIN_LIMIT, |status| {
            let seen = status["node"]["candidates"].as_array()?;
            let seen = |ip: &IpAddr| {
                seen.iter().any(|one| {
                    let address = one["address"].as_str().unwrap_or_default();
                    one["kind"] == "reflexive" && address.starts_with(&format!("{ip}:"))
                })
            };
            public.iter().all(seen).then_some(())
        })
        .expect("each uplink has a STUN server's word");
        let mut explain = b.command("explain");
        explain.args(["a", "--json"]);
        b.wait_for("an answer by each uplink", JOIN_LIMIT, |_| {
            let told = explain.output().expect("it runs").stdout;
            let told: Value = serde_json::from_slice(&told).ok()?;
            let pairs = told["pairs"].as_array()?;
            let answers = |ip: &IpAddr| {
                pairs.iter().any(|pair| {
                    let remote = pair["remote"].as_str().unwrap_or_default();
                    remote.starts_with(&format!("{ip}:")) && !pair["rtt_ms"].is_null()
                })
            };
            public.iter().all(answers).then_some(())
        })
        .expect("there is a way by each");
    }

    /// Flows both ways while one uplink is lost: nothing is silent for longer than it may be.
    fn assert_survives(&mut self, loss: impl FnOnce(&mut Self)) {
        let [a, b] = &self.nodes;
        let flows = [Flow::start(a, b, RATE), Flow::start(b, a, RATE)];
        thread::sleep(FLOW);
        loss(self);
        thread::sleep(FLOW);
        for report in flows.map(Flow::stop) {
            println!("nothing for {:?} at most", report.longest_gap);
            assert!(report.longest_gap <= LIMIT, "{report:?}");
        }
    }

    /// The uplink by which the path goes at present.
    fn used(&self) -> usize {
        let path = self.nodes[1].peer("a").expect("it knows its peer")["path"].clone();
        let remote: SocketAddr = path["remote"]
            .as_str()
            .and_then(|remote| remote.parse().ok())
            .unwrap_or_else(|| panic!("a path to an address: {path}"));
        let used = self.public().iter().position(|ip| *ip == remote.ip());
        used.unwrap_or_else(|| panic!("neither uplink: {path}"))
    }
}

#[test]
fn uplink_that_dies_without_a_word_is_left_for_the_other() {
    isolated("uplinks::uplink_that_dies_without_a_word_is_left_for_the_other", || {
        let mut scene = Scene::new();
        scene.assert_survives(|scene| {
            let used = scene.used();
            let namespace = scene.place.host.namespace.clone();
            let uplink = Host { namespace, addresses: vec![scene.public()[used]] };
            scene.stage.setup.lab.cut_host(&uplink).expect("cut");
        });
        finish(scene.nodes);
    });
}

#[test]
fn uplink_that_is_unplugged_is_left_for_the_other() {
    isolated("uplinks::uplink_that_is_unplugged_is_left_for_the_other", || {
        let mut scene = Scene::new();
        scene.assert_survives(|scene| {
            let device = ["eth0", "eth1"][scene.used()];
            let host = &scene.place.host.namespace;
            host.ip(&format!("link set {device} down")).expect("root may");
        });
        finish(scene.nodes);
    });
}
