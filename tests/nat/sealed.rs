//! A sealed mesh: it works as any other, and its zone tells readers nothing of its nodes.

use std::fs;

use data_encoding::{BASE32_NOPAD, BASE64};
use zonemesh::lab::{
    member::{Identity, find_peer},
    namespace::run,
    nat::Kind,
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
        let of_kind = |text: &str, kind: &str| {
            text.lines().filter(|line| line.split_ascii_whitespace().nth(3) == Some(kind)).count()
        };
        assert_eq!(of_kind(&text, "TXT"), 2, "an advert each: {text}");
        assert_eq!(of_kind(&text, "PTR") + of_kind(&text, "SRV"), 0, "{text}");
        let bytes = unescaped(&text);
        for (node, place) in [(&a, &places[0]), (&b, &places[1])] {
            let key = node.status().expect("it answers")["node"]["public_key"].clone();
            let key = key.as_str().expect("a key").to_owned();
            let raw = BASE64.decode(key.as_bytes()).expect("Base64");
            let base32 = BASE32_NOPAD.encode(&raw);
            let address = place.public[0].to_string();
            for secret in [
                key.as_bytes(),
                &raw,
                base32.as_bytes(),
                base32.to_ascii_lowercase().as_bytes(),
                node.name().as_bytes(),
                b"blue-lab",
                address.as_bytes(),
                node.host().ipv4().to_string().as_bytes(),
                b"10.42.",
                b"pub=",
            ] {
                let told = bytes.windows(secret.len()).any(|window| window == secret);
                assert!(!told, "{}: {text}", String::from_utf8_lossy(secret));
            }
        }
        // At the end nothing is left of them.
        finish([a, b]);
        assert_eq!(of_kind(&dump(), "TXT"), 0);
    });
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
