//! What a path lives through that is lossy or cut, and what that costs a flow of numbered
//! packets.

use std::{net::IpAddr, thread, time::Duration};

use zonemesh::lab::{nat::Kind, net::Lab, weather::Fault, world::isolated};

use crate::{
    pair::Pair,
    stage::{Stage, Zone},
    stream::transfer,
};

/// Packets of a flow in each second, each way.
const RATE: u32 = 1000;

/// How long a flow runs before something happens to its path, and after.
const STEADY: Duration = Duration::from_secs(3);

/// How long a path stays cut.
const CUT: Duration = Duration::from_secs(10);

/// What a direct path that is cut may cost a flow, until the relay takes over.
const CUT_LIMIT: Duration = Duration::from_secs(3);

/// The same where checks still pass, and only data dies.
const DATA_CUT_LIMIT: Duration = Duration::from_secs(5);

/// How long after the end of a cut the direct path may be taken again.
const RETURN_LIMIT: Duration = Duration::from_secs(30);

/// What a narrow link carries: as much as some tunnels of providers.
const NARROW: u16 = 1400;

/// What is sent through it each way, and how long that may take: most of it is for the
/// link to be found narrow.
const TRANSFER: usize = 20_000_000;
const TRANSFER_LIMIT: Duration = Duration::from_secs(30);

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

#[test]
fn move_from_relay_to_direct_costs_nothing() {
    isolated("faults_path::move_from_relay_to_direct_costs_nothing", || {
        let (mut pair, cut) = Pair::cut_off(Stage::with_relay());
        pair.assert_relayed();
        let reports = pair.flow_while(RATE, |pair| {
            thread::sleep(STEADY);
            pair.end(&cut);
            let took = pair.reach("direct", RETURN_LIMIT);
            println!("direct {took:?} after the cut's end");
            thread::sleep(STEADY);
        });
        for report in reports {
            report.assert_whole();
        }
        pair.assert_direct();
        pair.finish();
    });
}

#[test]
fn relay_takes_over_from_a_direct_path_that_is_cut() {
    isolated("faults_path::relay_takes_over_from_a_direct_path_that_is_cut", || {
        relay_takes_over(CUT_LIMIT, |lab, [left, right]| lab.cut(left, right));
    });
}

#[test]
fn relay_takes_over_from_a_path_that_is_cut_one_way() {
    isolated("faults_path::relay_takes_over_from_a_path_that_is_cut_one_way", || {
        relay_takes_over(CUT_LIMIT, |lab, [left, right]| lab.cut_one_way(left, right));
    });
}

#[test]
fn relay_takes_over_from_a_path_that_is_cut_the_other_way() {
    isolated("faults_path::relay_takes_over_from_a_path_that_is_cut_the_other_way", || {
        relay_takes_over(CUT_LIMIT, |lab, [left, right]| lab.cut_one_way(right, left));
    });
}

/// Checks that pass where data dies do not hold a path.
#[test]
fn relay_takes_over_from_a_path_on_which_only_data_dies() {
    isolated("faults_path::relay_takes_over_from_a_path_on_which_only_data_dies", || {
        relay_takes_over(DATA_CUT_LIMIT, |lab, [left, right]| lab.cut_data(left, right));
    });
}

/// A link that swallows what is longer than 1,400 bytes, and whose complaints nobody
/// hears, is found out about: TCP gets through with segments as long as others.
#[test]
fn large_transfer_gets_through_a_narrow_link() {
    isolated("faults_path::large_transfer_gets_through_a_narrow_link", || {
        let kinds = [Kind::PortRestricted, Kind::PortRestricted];
        let mut pair = Pair::direct(Stage::with_relay(), kinds);
        transfer_through_narrow_link(&mut pair);
        pair.assert_direct();
        pair.finish();
    });
}

#[test]
fn large_transfer_gets_through_a_narrow_link_by_the_relay() {
    isolated("faults_path::large_transfer_gets_through_a_narrow_link_by_the_relay", || {
        let (mut pair, _cut) = Pair::cut_off(Stage::with_relay());
        transfer_through_narrow_link(&mut pair);
        pair.assert_relayed();
        pair.finish();
    });
}

/// One node's link gets narrow, and large transfers get through both ways.
fn transfer_through_narrow_link(pair: &mut Pair) {
    let [left, _] = pair.public();
    let fault = pair.stage.setup.lab.narrow(NARROW, left).expect("narrow");
    let [a, b] = &pair.nodes;
    for (from, to) in [(a, b), (b, a)] {
        let took = transfer(from, to, TRANSFER, TRANSFER_LIMIT);
        println!("{TRANSFER} bytes took {took:?}");
    }
    assert!(pair.stage.setup.lab.dropped(&fault).expect("counted") > 0, "it was not narrow");
}

/// The direct path of two nodes is cut while packets flow: the relay takes over in time,
/// and gives it back when the cut ends. Only the time until it takes over is lost.
fn relay_takes_over(
    limit: Duration,
    cut: impl FnOnce(&mut Lab, [IpAddr; 2]) -> anyhow::Result<Fault>,
) {
    let kinds = [Kind::PortRestricted, Kind::PortRestricted];
    let mut pair = Pair::direct(Stage::with_relay(), kinds);
    let public = pair.public();
    let reports = pair.flow_while(RATE, |pair| {
        thread::sleep(STEADY);
        let fault = cut(&mut pair.stage.setup.lab, public).expect("cut");
        let away = pair.reach("relayed", limit * 2);
        thread::sleep(CUT);
        pair.reach("relayed", Duration::ZERO);
        pair.end(&fault);
        let back = pair.reach("direct", RETURN_LIMIT);
        println!("relayed {away:?} after the cut, direct {back:?} after its end");
        thread::sleep(STEADY);
    });
    for report in reports {
        println!("{report:?}");
        let all = limit.as_secs_f64() * f64::from(RATE);
        assert!(report.longest_loss() <= limit && (report.lost() as f64) <= all, "{report:?}");
        assert_eq!(report.duplicated, 0, "{report:?}");
        // The way back costs nothing, nor does what is tried while it is cut.
        let late = report.losses.iter().filter(|loss| loss.at > STEADY + limit);
        assert_eq!(late.count(), 0, "{report:?}");
    }
    pair.assert_direct();
    pair.finish();
}

/// Losses cost what is lost, and nothing more: the path stays.
fn lossy_path_is_kept(percent: u8) {
    let kinds = [Kind::PortRestricted, Kind::PortRestricted];
    let mut pair = Pair::direct(Stage::with_relay(), kinds);
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
    pair.end(&fault);
    pair.assert_direct();
    pair.finish();
}
