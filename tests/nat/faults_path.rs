//! What a path lives through that is lossy or cut, and what that costs a flow of numbered
//! packets.

use std::{thread, time::Duration};

use zonemesh::lab::{nat::Kind, world::isolated};

use crate::{
    pair::Pair,
    stage::{Stage, Zone},
};

/// Packets of a flow in each second, each way.
const RATE: u32 = 1000;

/// How long a flow runs before something happens to its path, and after.
const STEADY: Duration = Duration::from_secs(3);

/// How long a path is watched that must not change.
const CALM: Duration = Duration::from_secs(60);

#[test]
fn calm_path_loses_nothing() {
    isolated("faults_path::calm_path_loses_nothing", || {
        let stage = Stage::new(Zone::Bind);
        let mut pair = Pair::direct(stage, [Kind::PortRestricted, Kind::PortRestricted]);
        for report in pair.flow_while(RATE, |_| thread::sleep(STEADY)) {
            report.assert_whole();
        }
        pair.assert_direct();
        pair.finish();
    });
}

#[test]
fn path_that_loses_one_of_twenty_is_kept() {
    isolated("faults_path::path_that_loses_one_of_twenty_is_kept", || {
        lossy_path_is_kept(5);
    });
}

#[test]
fn path_that_loses_one_of_five_is_kept() {
    isolated("faults_path::path_that_loses_one_of_five_is_kept", || {
        lossy_path_is_kept(20);
    });
}

/// Losses cost what is lost, and nothing more: the path stays.
fn lossy_path_is_kept(percent: u8) {
    let stage = Stage::new(Zone::Bind);
    let mut pair = Pair::direct(stage, [Kind::PortRestricted, Kind::PortRestricted]);
    let [left, right] = pair.public();
    let fault = pair.stage.setup.lab.lose(percent, left, right).expect("lossy");
    let reports = pair.flow_while(RATE / 10, |pair| pair.assert_stays(CALM));
    for report in reports {
        let lost = report.lost() as f64 / report.sent as f64;
        let expected = f64::from(percent) / 100.0;
        assert!((lost - expected).abs() < 0.05, "{lost}, not {expected}: {report:?}");
        assert_eq!(report.duplicated, 0);
        assert!(report.longest_loss() < Duration::from_secs(1), "{report:?}");
    }
    pair.stage.setup.lab.end(&fault).expect("it ends");
    pair.assert_direct();
    pair.finish();
}
