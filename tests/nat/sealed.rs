//! A sealed mesh: it works as any other, and its zone tells readers nothing of its nodes.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use data_encoding::{BASE32_NOPAD, BASE64};
use zonemesh::lab::{
    member::{Identity, Member, find_peer},
    namespace::run,
    nat::Kind,
    net::Lab,
    rendezvous::Rendezvous,
    world::isolated,
};

use crate::stage::{JOIN_LIMIT, LAN_A, LAN_B, Stage, Zone, finish, reach_each_other};

#[test]
fn a_sealed_mesh_on_bind_works_and_its_zone_tells_nothing_of_a_node() {
    isolated("sealed::a_sealed_mesh_on_bind_works_and_its_zone_tells_nothing_of_a_node", || {
        let mut stage = Stage::new(Zone::Bind);
        let places = [("a", LAN_A), ("b", LAN_B)]
            .map(|(name, lan)| stage.behind(name, Kind::PortRestricted, lan));
        let services = stage.setup.services.clone();
        let admin = stage.public("admin").host;
        let dir = services.folder.join("network");
        let mut init = admin.namespace.command(env!("CARGO_BIN_EXE_zonemesh"));
        init.args(["network", "init", &services.zone, "--routes", "10.42.0.0/16", "--sealed"]);
        init.args(["--server", &services.zone_server.to_string(), "--dir"]).arg(&dir);
        let made = run(&mut init, "").expect("a network is made");
        let token = services.folder.join("token");
        fs::write(&token, made.lines().last().expect("a token")).expect("is written");
        let identity = |name: &str, number| Identity {
            more: format!("[network]\ntoken_file = {token:?}\n"),
            ..Identity::new(name, number)
        };
        let mut a = stage.start_as(identity("blue-lab-one", 1), &places[0].host);
        let mut b = stage.start_as(identity("blue-lab-two", 2), &places[1].host);
        reach_each_other(&mut [&mut a, &mut b]);
        a.wait_for("a direct path", JOIN_LIMIT, |status| {
            (find_peer(status, "blue-lab-two")?["path"]["kind"] == "direct").then_some(())
        })
        .expect("both NATs let one through");

        let dump = || {
            let (server, port) = (services.zone_server.ip(), services.zone_server.port());
            let key = [&services.tsig_algorithm, &services.tsig_name, &services.tsig_secret];
            let key = key.map(String::as_str).join(":");
            let (server, port) = (format!("@{server}"), port.to_string());
            let arguments =
                [&server, "-p", &port, "-y", &key, "+noall", "+answer", &services.zone, "AXFR"];
            admin.namespace.run("dig", &arguments).expect("the zone can be transferred")
        };
        let text = dump();
        assert_eq!(of_kind(&text, "TXT"), 2, "an advert each: {text}");
        for (node, place) in [(&a, &places[0]), (&b, &places[1])] {
            assert_tells_nothing(&text, node, place.public[0]);
        }
        // At the end nothing is left of them.
        finish([a, b]);
        assert_eq!(of_kind(&dump(), "TXT"), 0);
    });
}

/// Nothing but a token, and the sealed zone that `zonemesh serve` has: slices are claimed
/// under seal, too.
#[test]
fn a_sealed_mesh_with_nothing_but_a_token_works_and_its_zone_tells_nothing_of_a_node() {
    let name =
        "sealed::a_sealed_mesh_with_nothing_but_a_token_works_and_its_zone_tells_nothing_of_a_node";
    isolated(name, || {
        let folder = PathBuf::from("/run/lab");
        fs::create_dir_all(&folder).expect("a folder");
        let executable = Path::new(env!("CARGO_BIN_EXE_zonemesh"));
        let mut lab = Lab::new().expect("a network can be built");
        let host = lab.public_host("rendezvous", 1).expect("a host can be built");
        let rendezvous =
            Rendezvous::start(&host, "mesh.example", &["--sealed"], executable, &folder);
        let rendezvous = rendezvous.expect("it serves");
        let mut sites = [("a", LAN_A), ("b", LAN_B)].map(|(name, lan)| {
            lab.site(&format!("{name}-router"), Kind::PortRestricted, lan).expect("a site")
        });
        let public = sites.each_ref().map(|site| site.public());
        let [left, right] = &mut sites;
        let hosts = [left.host("a-host"), right.host("b-host")].map(|host| host.expect("a host"));
        let join = |name: &str, host| Member::join(name, host, &rendezvous).expect("it starts");
        let mut a = join("blue-lab-one", &hosts[0]);
        let mut b = join("blue-lab-two", &hosts[1]);
        let overlays = [&mut a, &mut b].map(|node| node.wait_for_overlay(JOIN_LIMIT));
        let [one, two] = overlays.map(|overlay| overlay.expect("a slice of the network's"));
        a.wait_for_reply(two, JOIN_LIMIT).expect("they reach each other");
        b.wait_for_reply(one, JOIN_LIMIT).expect("they reach each other");
        a.wait_for("a direct path", JOIN_LIMIT, |status| {
            (find_peer(status, "blue-lab-two")?["path"]["kind"] == "direct").then_some(())
        })
        .expect("both NATs let one through");

        let server = format!("@{}", rendezvous.ip());
        let dump = || {
            let dig = [&server, "+noall", "+answer", rendezvous.zone(), "AXFR"];
            host.namespace.run("dig", &dig).expect("the zone can be transferred")
        };
        let text = dump();
        assert_eq!(of_kind(&text, "TXT"), 4, "an advert and a claim each: {text}");
        for (node, public) in [(&a, public[0]), (&b, public[1])] {
            assert_tells_nothing(&text, node, public);
        }

        // Revoked under seal as in the open.
        let key = b.status().expect("it answers")["node"]["public_key"].clone();
        rendezvous.network(&["revoke", key.as_str().expect("a key")]).expect("is published");
        a.wait_for("an end of its membership", JOIN_LIMIT, |status| {
            find_peer(status, "blue-lab-two").is_none().then_some(())
        })
        .expect("the list is read");
        assert_eq!(of_kind(&dump(), "TXT"), 3, "of one node, and the list");
        finish([a, b]);
        assert_eq!(of_kind(&dump(), "TXT"), 2, "a claim lasts, and the list");
    });
}

fn of_kind(text: &str, kind: &str) -> usize {
    text.lines().filter(|line| line.split_ascii_whitespace().nth(3) == Some(kind)).count()
}

/// Nothing in a zone's text names a node, or tells where it is.
fn assert_tells_nothing(text: &str, node: &Member, public: IpAddr) {
    // The services of the zone are not the nodes'.
    let of_nodes: Vec<&str> = text.lines().filter(|line| !line.contains("rendezvous.")).collect();
    let of_nodes = of_nodes.join("\n");
    assert_eq!(of_kind(&of_nodes, "PTR") + of_kind(&of_nodes, "SRV"), 0, "{text}");
    let bytes = unescaped(text);
    let key = node.status().expect("it answers")["node"]["public_key"].clone();
    let key = key.as_str().expect("a key").to_owned();
    let raw = BASE64.decode(key.as_bytes()).expect("Base64");
    let base32 = BASE32_NOPAD.encode(&raw);
    for secret in [
        key.as_bytes(),
        &raw,
        base32.as_bytes(),
        base32.to_ascii_lowercase().as_bytes(),
        node.name().as_bytes(),
        b"blue-lab",
        public.to_string().as_bytes(),
        node.host().ipv4().to_string().as_bytes(),
        b"10.42.",
        b"10-42-",
        b"pub=",
    ] {
        let told = bytes.windows(secret.len()).any(|window| window == secret);
        assert!(!told, "{}: {text}", String::from_utf8_lossy(secret));
    }
}

/// What `dig` writes as `\\DDD` put back to bytes.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let number = after.get(..3).and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
        rest = match (first, number) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                &after[3..]
            }
            (b'\\', None) => after,
            _ => {
                bytes.push(*first);
                after
            }
        };
    }
    bytes
}
