//! What `zonemesh netcheck` says beside a node that runs.

use std::{path::Path, time::Duration};

use serde_json::Value;
use zonemesh::lab::{
    member::Member,
    nat::Kind,
    port_mapper::{PortMapper, Speaks},
    programs,
    relay_server::RelayKind,
    world::isolated,
};

use crate::stage::{LAN_A, Stage, Zone, finish};

/// How long a node may take: it rests for 10 s, and then tries 30, 15 and 10 s.
const LIFETIME_LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_symmetric_nat_that_maps_ports_and_every_way_to_a_relay_are_told() {
    isolated("netcheck::a_symmetric_nat_that_maps_ports_and_every_way_to_a_relay_are_told", || {
        programs::require(&["miniupnpd"]).expect("the programs are there");
        let mut stage = Stage::new(Zone::Bind);
        stage.setup.add_relay(RelayKind::Coturn).expect("a relay");
        let place = stage.behind("a", Kind::SymmetricRandom, LAN_A);
        let site = place.site.as_ref().expect("it is a site");
        let folder = &stage.setup.services.folder;
        let mapper = PortMapper::start(&stage.setup.lab, site, Speaks::All, folder);
        let mapper = mapper.expect("miniupnpd starts");
        let a = stage.start_advertised("a", 1, &place.host);
        let report = netcheck(&stage, &a);
        assert_eq!(report["nat"]["mapping"], "address-and-port-dependent", "{report}");
        assert_eq!(report["nat"]["ports"], "random", "{report}");
        assert_eq!(report["nat"]["hairpin"], false, "{report}");
        let mapping = &report["port_mapping"];
        assert_eq!(mapping["protocols"], serde_json::json!(["PCP", "NAT-PMP", "UPnP"]));
        let mapped = mapping["address"].as_str().expect("the router maps a port");
        assert!(mapped.starts_with(&mapper.public().to_string()), "{report}");
        let relays = report["relays"].as_array().expect("they are checked");
        let relay = stage.setup.relays[0].1.addresses()[0].to_string();
        let mut ways = Vec::new();
        for way in relays {
            assert_eq!(way["error"], Value::Null, "{report}");
            assert!(way["relayed"].as_str().is_some_and(|addr| addr.starts_with(&relay)));
            assert!(way["rtt_ms"].as_f64().is_some_and(|rtt| rtt < 5000.0), "{report}");
            ways.push(way["transport"].as_str().unwrap_or_default());
        }
        ways.sort_unstable();
        assert_eq!(ways, ["tcp", "tls", "udp"]);
        assert!(report["advice"].as_str().is_some_and(|text| text.contains("nothing has to")));
        finish([a]);
    });
}

#[test]
fn blocked_udp_is_told_and_what_still_works() {
    isolated("netcheck::blocked_udp_is_told_and_what_still_works", || {
        let mut stage = Stage::new(Zone::Bind);
        stage.setup.add_relay(RelayKind::Coturn).expect("a relay");
        let place = stage.behind("a", Kind::UdpBlocked, LAN_A);
        let a = stage.start("a", 1, &place.host);
        let report = netcheck(&stage, &a);
        assert!(report["stun"].as_array().into_iter().flatten().all(|s| s["rtt_ms"].is_null()));
        for way in report["relays"].as_array().expect("they are checked") {
            let is_udp = way["transport"] == "udp";
            assert_eq!(way["relayed"].is_null(), is_udp, "{report}");
            assert_eq!(way["error"].is_string(), is_udp, "{report}");
        }
        assert!(report["advice"].as_str().is_some_and(|text| text.contains("let UDP out")));
        finish([a]);
    });
}

/// A node measures in the background what `netcheck --lifetime` does at once.
#[test]
fn the_lifetime_of_a_mapping_is_told_by_status() {
    isolated("netcheck::the_lifetime_of_a_mapping_is_told_by_status", || {
        let mut stage = Stage::new(Zone::Bind);
        let place = stage.behind("a", Kind::ShortLived, LAN_A);
        let mut a = stage.start("a", 1, &place.host);
        let told = |status: &Value| status["node"]["nat"]["mapping_lifetime_s"].as_u64();
        let told = a.wait_for("the lifetime", LIFETIME_LIMIT, told).expect("it is measured");
        // Of the times that are tried, the longest that is survived.
        assert_eq!(told, 10);
        let status = a.status().expect("it answers");
        assert_eq!(status["node"]["nat"]["hairpin"], false, "{status}");
        finish([a]);
    });
}

/// Runs it where a node runs, with the node's configuration.
fn netcheck(stage: &Stage, node: &Member) -> Value {
    let config = stage.setup.services.folder.join(node.name()).join("zonemesh.toml");
    let executable = Path::new(env!("CARGO_BIN_EXE_zonemesh"));
    let mut command = node.host().namespace.command(&executable.to_string_lossy());
    let output = command.args(["netcheck", "--json", "-c"]).arg(config).output();
    let output = output.expect("it can be run");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("it prints JSON")
}
