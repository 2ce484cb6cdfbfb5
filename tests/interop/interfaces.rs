//! The interface monitor against the kernel.

use std::{future::Future, net::IpAddr, process::Command, time::Duration};

use zonemesh::lab::{namespace::run, world::isolated};
use zonemesh_discovery::interfaces::{Change, InterfaceMonitor, host_candidates, mdns_interfaces};

/// A change is told within a fraction of a second; a busy machine may take longer.
const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn addresses_that_come_and_go_are_told() {
    isolated("interfaces::addresses_that_come_and_go_are_told", || {
        block_on(async {
            let mut monitor = InterfaceMonitor::start().await.expect("netlink");
            assert!(host_candidates(monitor.addresses(), "zm0").is_empty());

            ip("link add eth0 type veth peer name eth1");
            ip("addr add 192.168.7.5/24 dev eth0");
            ip("addr add 2001:db8::5/64 dev eth0 nodad");
            ip("link set eth1 up");
            ip("link set eth0 up");
            let address: IpAddr = "192.168.7.5".parse().expect("an address");
            wait(&mut monitor, |found| found.contains(&address) && found.len() == 2).await;
            assert_eq!(mdns_interfaces(monitor.addresses(), &[], "zm0"), ["eth0"]);

            ip("addr del 192.168.7.5/24 dev eth0");
            wait(&mut monitor, |found| !found.contains(&address)).await;
            // The other end goes down, and the carrier with it.
            ip("link set eth1 down");
            wait(&mut monitor, |found| found.is_empty()).await;
        });
    });
}

#[test]
fn only_a_default_route_is_a_change_among_routes() {
    isolated("interfaces::only_a_default_route_is_a_change_among_routes", || {
        block_on(async {
            ip("link add eth0 type veth peer name eth1");
            // Without addresses of the kernel's own making nothing else changes later.
            ip("link set eth0 addrgenmode none");
            ip("link set eth1 addrgenmode none");
            ip("link set eth1 up");
            ip("link set eth0 up");
            ip("addr add 192.168.7.5/24 dev eth0");
            let mut monitor = InterfaceMonitor::start().await.expect("netlink");
            wait(&mut monitor, |found| !found.is_empty()).await;

            ip("route add 10.0.0.0/8 via 192.168.7.1");
            let told = tokio::time::timeout(Duration::from_secs(1), monitor.changed()).await;
            assert!(told.is_err(), "a route is no change");
            ip("route add default via 192.168.7.1");
            let told = tokio::time::timeout(LIMIT, monitor.changed()).await;
            let change = told.expect("a default route is one").expect("netlink");
            assert_eq!(change, Change::DefaultRoute);
        });
    });
}

async fn wait(monitor: &mut InterfaceMonitor, is_so: impl Fn(&[IpAddr]) -> bool) {
    let waited = tokio::time::timeout(LIMIT, async {
        while !is_so(&host_candidates(monitor.addresses(), "zm0")) {
            monitor.changed().await.expect("netlink");
        }
    });
    if waited.await.is_err() {
        panic!("not told; known: {:#?}", monitor.addresses());
    }
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work);
}

fn ip(command: &str) {
    run(Command::new("ip").args(command.split(' ')), "").expect("ip does so");
}
