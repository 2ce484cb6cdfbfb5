//! A host that has IPv6 only and reaches IPv4 through its site's NAT64.

use std::net::SocketAddr;

use zonemesh::lab::{
    member::{Identity, Member},
    nat::Kind,
    nat64::{self, Nat64},
    programs,
    world::isolated,
};

use crate::stage::{ECHO, JOIN_LIMIT, LAN_B, PROOF, Stage, Zone, finish};

/// What the pings and their answers have at least.
const ALL_ECHOES: u64 = 2 * PROOF as u64 * ECHO;

#[test]
fn an_ipv6_only_host_meets_an_ipv4_site_through_its_nat64() {
    isolated("nat64::an_ipv6_only_host_meets_an_ipv4_site_through_its_nat64", || {
        programs::require(&nat64::PROGRAMS).expect("the programs are there");
        let mut stage = Stage::new(Zone::Bind);
        let mut left = stage.behind("a", Kind::Ipv6Firewall, "2001:2:a::/64");
        let site = left.site.as_ref().expect("it is a site");
        let translator = Nat64::start(site, &stage.setup.services.folder).expect("a NAT64");
        left.public = vec![translator.public()];
        let right = stage.behind("b", Kind::PortRestricted, LAN_B);
        let b = stage.start_advertised("b", 2, &right.host);
        // The zone's server is named by an address, which the configuration has to have in
        // a form that the host reaches; STUN servers and peers it translates itself.
        let mut services = stage.setup.services.clone();
        services.zone_server = translator.prefix().reach(services.zone_server);
        let mut a = Member::start(Identity::new("a", 1), &left.host, &services).expect("a node");
        a.wait_for("its IPv4 address", JOIN_LIMIT, |status| {
            let seen = status["node"]["reflexive"][0].as_str()?;
            let seen: SocketAddr = seen.parse().ok()?;
            (seen.ip() == translator.public()).then_some(())
        })
        .expect("STUN servers are reached through the NAT64");
        let config = services.folder.join("a/zonemesh.toml");
        let executable = env!("CARGO_BIN_EXE_zonemesh");
        let config = config.to_string_lossy();
        let report = left.host.namespace.run(executable, &["netcheck", "--json", "-c", &config]);
        let report = report.expect("netcheck reaches the STUN servers too");
        let prefix = format!("\"nat64\":\"{}\"", translator.prefix());
        assert!(report.contains(&prefix), "{report}");
        a.wait_for_reply(b.overlay(), JOIN_LIMIT).expect("they reach each other");
        let traffic = stage.traffic_of_pings(&a, &b);
        let between = traffic.between(left.public[0], right.public[0]);
        assert!(between.bytes >= ALL_ECHOES, "{traffic:?}");
        assert_eq!(a.peer("b").expect("it knows its peer")["path"]["kind"], "direct");
        finish([a, b]);
    });
}
