//! The lab's own services hold what the scenarios expect of them.

use zonemesh::lab::world::isolated;

use crate::stage::{Stage, Zone};

#[test]
fn zone_of_bind_keeps_what_was_written_over_a_restart() {
    isolated("services::zone_of_bind_keeps_what_was_written_over_a_restart", || {
        keeps_what_was_written(Zone::Bind);
    });
}

#[test]
fn zone_of_knot_keeps_what_was_written_over_a_restart() {
    isolated("services::zone_of_knot_keeps_what_was_written_over_a_restart", || {
        keeps_what_was_written(Zone::Knot);
    });
}

fn keeps_what_was_written(zone: Zone) {
    let mut stage = Stage::new_ipv6(zone);
    let name = format!("note.{}", stage.setup.services.zone);
    assert_eq!(stage.setup.dig(&name, "TXT"), "");
    stage.setup.nsupdate(&format!("update add {name}. 60 TXT written\nsend")).expect("allowed");
    assert_eq!(stage.setup.dig(&name, "TXT").trim(), "\"written\"");
    stage.setup.stop_zone_server();
    assert_eq!(stage.setup.dig(&name, "TXT"), "");
    stage.setup.start_zone_server().expect("it starts again");
    assert_eq!(stage.setup.dig(&name, "TXT").trim(), "\"written\"");
}
