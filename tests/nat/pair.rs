//! Two nodes that have reached each other, and what can be asked of both at once.

use std::{
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use zonemesh::lab::{
    member::{Member, find_peer},
    nat::Kind,
    weather::Fault,
};

use crate::{
    flow::{Flow, Report},
    stage::{JOIN_LIMIT, LAN_A, LAN_B, Place, Stage, finish},
};

/// How often it is looked whether a path has changed. Changes in between are in the log.
const LOOK: Duration = Duration::from_secs(5);

/// Two nodes, `a` and `b`, each at a place of its own.
pub(crate) struct Pair {
    pub(crate) stage: Stage,
    pub(crate) places: [Place; 2],
    pub(crate) nodes: [Member; 2],
}

impl Pair {
    /// Two nodes behind NATs of these kinds that have a direct path.
    pub(crate) fn direct(stage: Stage, kinds: [Kind; 2]) -> Self {
        let mut pair = Self::behind(stage, kinds, |_, _| ());
        pair.reach("direct", JOIN_LIMIT);
        pair
    }

    /// Two nodes behind port-restricted NATs that are cut off from each other, so that
    /// they have a relayed path, and the cut.
    pub(crate) fn cut_off(stage: Stage) -> (Self, Fault) {
        let kinds = [Kind::PortRestricted, Kind::PortRestricted];
        let mut cut = None;
        let mut pair = Self::behind(stage, kinds, |stage, [left, right]| {
            cut = Some(stage.setup.lab.cut(left, right).expect("cut"));
        });
        pair.reach("relayed", JOIN_LIMIT);
        (pair, cut.expect("it was cut before they met"))
    }

    /// Two nodes that have reached each other. `prepare` comes before they start, and
    /// gets the addresses as which the core will see them.
    fn behind(
        mut stage: Stage,
        kinds: [Kind; 2],
        prepare: impl FnOnce(&mut Stage, [IpAddr; 2]),
    ) -> Self {
        let places = [stage.behind("a", kinds[0], LAN_A), stage.behind("b", kinds[1], LAN_B)];
        prepare(&mut stage, places.each_ref().map(|place| place.public[0]));
        let (a, b) = stage.joined(&places[0], &places[1]);
        Self { stage, places, nodes: [a, b] }
    }

    /// The addresses as which the core sees the two.
    pub(crate) fn public(&self) -> [IpAddr; 2] {
        self.places.each_ref().map(|place| place.public[0])
    }

    /// Waits until both have a path of this kind, and tells how long that took.
    pub(crate) fn reach(&mut self, kind: &str, limit: Duration) -> Duration {
        let start = Instant::now();
        for (node, peer) in self.nodes.iter_mut().zip(["b", "a"]) {
            let left = limit.saturating_sub(start.elapsed());
            node.wait_for(&format!("a {kind} path"), left, |status| {
                (find_peer(status, peer)?["path"]["kind"] == kind).then_some(())
            })
            .expect("it comes in time");
        }
        start.elapsed()
    }

    /// Flows both ways while something happens: what became of each.
    pub(crate) fn flow_while(
        &mut self,
        per_second: u32,
        happens: impl FnOnce(&mut Self),
    ) -> [Report; 2] {
        let [a, b] = &self.nodes;
        let flows = [Flow::start(a, b, per_second), Flow::start(b, a, per_second)];
        happens(self);
        flows.map(Flow::stop)
    }

    /// Both keep their paths for so long.
    pub(crate) fn assert_stays(&self, time: Duration) {
        let [a, b] = &self.nodes;
        assert_stays(a, b, time);
    }

    /// The direct path is a direct one at the core too.
    pub(crate) fn assert_direct(&self) {
        let [a, b] = &self.nodes;
        self.stage.assert_direct((a, &self.places[0]), (b, &self.places[1]));
    }

    /// The relayed path is a relayed one at the core too.
    pub(crate) fn assert_relayed(&self) {
        let [a, b] = &self.nodes;
        self.stage.assert_relayed((a, &self.places[0]), (b, &self.places[1]));
    }

    /// Ends a fault at the core.
    pub(crate) fn end(&mut self, fault: &Fault) {
        self.stage.setup.lab.end(fault).expect("a fault can be ended");
    }

    /// Ends both, as a scenario should.
    pub(crate) fn finish(self) {
        finish(self.nodes);
    }
}

/// Neither of two nodes changes its path to the other for so long.
pub(crate) fn assert_stays(a: &Member, b: &Member, time: Duration) {
    Calm::begins(a, b).assert_lasts(a, b, time);
}

/// The paths of two nodes to each other, from which on nothing is to change.
pub(crate) struct Calm {
    since: Instant,
    paths: [(String, usize); 2],
}

impl Calm {
    /// It begins now.
    pub(crate) fn begins(a: &Member, b: &Member) -> Self {
        Self { since: Instant::now(), paths: paths(a, b) }
    }

    /// Neither changed its path since it began, nor does until it has lasted so long.
    pub(crate) fn assert_lasts(&self, a: &Member, b: &Member, time: Duration) {
        loop {
            assert_eq!(paths(a, b), self.paths, "a path changed\n{}\n{}", a.log(), b.log());
            let left = time.saturating_sub(self.since.elapsed());
            if left.is_zero() {
                return;
            }
            thread::sleep(LOOK.min(left));
        }
    }
}

fn paths(a: &Member, b: &Member) -> [(String, usize); 2] {
    [path(a, b.name()), path(b, a.name())]
}

/// By which way a node reaches its peer, and how often it has told of a new one.
fn path(node: &Member, peer: &str) -> (String, usize) {
    let path = node.peer(peer).expect("it knows its peer")["path"].clone();
    let way = format!("{} by {} at {}", path["kind"], path["relay"], path["remote"]);
    (way, node.log().lines().filter(|line| line.contains(" path ")).count())
}
