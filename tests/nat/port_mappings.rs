//! Routers that map a port for whoever asks: miniupnpd beside the site's NAT.

use std::time::Duration;

use serde_json::Value;
use zonemesh::lab::{
    nat::Kind,
    port_mapper::{PortMapper, Speaks},
    programs,
    world::isolated,
};

use crate::stage::{JOIN_LIMIT, LAN_A, LAN_B, Place, Stage, Zone, finish};

/// How long a node may take to have a port mapped: a second for the question who does
/// that, and some more on a busy machine.
const MAPPED_LIMIT: Duration = Duration::from_secs(10);

/// Without mappings such sites have no direct path at all.
#[test]
fn symmetric_sites_meet_directly_where_their_routers_map_ports() {
    isolated("port_mappings::symmetric_sites_meet_directly_where_their_routers_map_ports", || {
        let mut stage = stage();
        let mut left = stage.behind("a", Kind::SymmetricRandom, LAN_A);
        let mut right = stage.behind("b", Kind::SymmetricRandom, LAN_B);
        let mappers = [map(&stage, &left, Speaks::Pcp), map(&stage, &right, Speaks::Upnp)];
        left.public.push(mappers[0].public());
        right.public.push(mappers[1].public());
        let mut a = stage.start_advertised("a", 1, &left.host);
        a.wait_for("its mapping", MAPPED_LIMIT, |status| {
            let mapping = &status["node"]["port_mapping"];
            let address = mapping["address"].as_str()?;
            assert_eq!(mapping["protocol"], "PCP");
            assert_eq!(mapping["protocols"], serde_json::json!(["PCP", "NAT-PMP"]));
            assert!(address.starts_with(&mappers[0].public().to_string()), "{address}");
            Some(())
        })
        .expect("the router grants one");
        let status = a.status().expect("it answers");
        let own = status["node"]["candidates"].as_array().expect("a list");
        let mapped = own.iter().find(|own| own["kind"] == "mapped").expect("it is told");
        assert_eq!((&mapped["source"], &mapped["stale_s"]), (&"PCP".into(), &Value::Null));
        let mut b = stage.start("b", 2, &right.host);
        b.wait_for("its mapping", MAPPED_LIMIT, |status| {
            (status["node"]["port_mapping"]["protocol"] == "UPnP").then_some(())
        })
        .expect("the router grants one");
        b.wait_for_reply(a.overlay(), JOIN_LIMIT).expect("they reach each other");
        stage.assert_direct((&a, &left), (&b, &right));
        for place in [&left, &right] {
            assert!(!rules(place).is_empty(), "the routers map");
        }
        finish([a, b]);
        for place in [&left, &right] {
            assert_eq!(rules(place), "", "what was mapped is given back");
        }
    });
}

/// A router may refuse who asks for what another process holds by PCP: then the next
/// protocol has its turn. In any case there is a mapping.
#[test]
fn a_node_that_was_killed_gets_its_mapping_again() {
    isolated("port_mappings::a_node_that_was_killed_gets_its_mapping_again", || {
        let mut stage = stage();
        let place = stage.behind("a", Kind::SymmetricRandom, LAN_A);
        let _mapper = map(&stage, &place, Speaks::All);
        let mut a = stage.start("a", 1, &place.host);
        let mapped = |status: &Value| {
            let mapping = &status["node"]["port_mapping"];
            mapping["address"].as_str().map(str::to_owned)
        };
        a.wait_for("its mapping", MAPPED_LIMIT, mapped).expect("it is granted");
        a.kill();
        assert!(!rules(&place).is_empty(), "a killed node gives nothing back");
        a.restart().expect("it starts again");
        a.wait_for("its mapping", MAPPED_LIMIT, mapped).expect("it is granted again");
        finish([a]);
        assert_eq!(rules(&place), "", "what was mapped is given back");
    });
}

fn stage() -> Stage {
    programs::require(&["miniupnpd"]).expect("the programs are there");
    Stage::new(Zone::Bind)
}

fn map(stage: &Stage, place: &Place, speaks: Speaks) -> PortMapper {
    let site = place.site.as_ref().expect("it is a site");
    PortMapper::start(&stage.setup.lab, site, speaks, &stage.setup.services.folder)
        .expect("miniupnpd starts")
}

/// The mappings that a place's router has, as nft prints them.
fn rules(place: &Place) -> String {
    let router = place.site.as_ref().expect("it is a site").router();
    let chain = router.run("nft", &["list", "chain", "inet", "upnp", "in"]).expect("nft runs");
    chain.lines().filter(|line| line.contains("dnat")).collect()
}
