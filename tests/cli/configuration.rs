//! Every class of mistake in a configuration: exit status 2, and a message that names
//! the file, the line, the key and what was expected.

use std::process::Output;

use crate::{Folder, KEY, stderr, stdout, zonemesh};

/// A wrong configuration, the line and key that its error names, and what else it says.
struct Wrong(&'static str, usize, &'static str, &'static str);

/// What the tables take as given.
const ZONE: &str = "[zone]\nname = \"mesh.example\"\n";

#[test]
fn a_mistake_in_the_text_is_told_with_its_place() {
    check(
        "",
        &[
            Wrong("[node", 1, "", "unclosed table"),
            Wrong("[node]\nname = \"a\"\nname = \"b\"", 3, "", "duplicate key"),
            Wrong("[node]\n\nname = a", 3, "", "string"),
            Wrong("node = 3", 1, "node", "3 is not a section"),
            Wrong("[interfaces]\nname = \"zm0\"", 1, "interfaces", "unknown key"),
        ],
    );
}

#[test]
fn each_command_wants_its_own_section() {
    let folder = Folder::with("[serve]\nturn = false\n");
    let file = folder.path("zonemesh.toml");
    let run = |command: &str| {
        zonemesh().args([command, "-c"]).arg(&file).output().expect("the executable starts")
    };
    let output = run("up");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("zone: is missing"), "{}", stderr(&output));
    folder.write("zonemesh.toml", "");
    let output = run("up");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("a token of a network"), "{}", stderr(&output));
    folder.write("zonemesh.toml", ZONE);
    let output = run("serve");
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("serve: is missing"), "{}", stderr(&output));
}

#[test]
fn an_unknown_key_is_an_error_wherever_it_stands() {
    check(
        ZONE,
        &[
            Wrong("[node]\nnmae = \"a\"", 4, "node.nmae", "expected one of: name, state_dir"),
            Wrong("[interface]\nport = 1", 4, "interface.port", "listen_port"),
            Wrong("[mdns]\non = true", 4, "mdns.on", "enabled"),
            Wrong("[stun]\nserver = \"192.0.2.1\"", 4, "stun.server", "servers"),
            Wrong("[relay]\nsecret = \"x\"", 4, "relay.secret", "username_secret_file"),
            Wrong("[control]\npath = \"/x\"", 4, "control.path", "socket"),
            Wrong("[network]\nkey = \"x\"", 4, "network.key", "keys"),
        ],
    );
    let secret = "[zone]\nname = \"m.example\"\n\
                  tsig = { name = \"k\", secret_file = \"tsig.key\", secret = \"inline\" }";
    check(
        "",
        &[
            Wrong(secret, 3, "zone.tsig.secret", "secret_file"),
            Wrong("[zone]\nname = \"m.example\"\nttl = 3", 3, "zone.ttl", "server"),
        ],
    );
}

#[test]
fn a_wrong_node_is_refused() {
    check(
        ZONE,
        &[
            Wrong("[node]\nname = \"\"", 4, "node.name", "1 to 63 bytes"),
            Wrong("[node]\nname = \"a\\u0007\"", 4, "node.name", "control characters"),
            Wrong("[node]\nname = 7", 4, "node.name", "7 is not a name"),
            Wrong("[node]\nstate_dir = \"\"", 4, "node.state_dir", "a path"),
        ],
    );
    let long = format!("{ZONE}[node]\nname = \"{}\"", "ü".repeat(32));
    assert_refused(&long, 4, "node.name", "1 to 63 bytes");
}

#[test]
fn a_wrong_interface_is_refused() {
    check(
        &format!("{ZONE}[interface]\n"),
        &[
            Wrong("name = \"\"", 4, "interface.name", "1 to 15 bytes"),
            Wrong("name = \"zonemesh-is-long\"", 4, "interface.name", "1 to 15 bytes"),
            Wrong("name = \"zm/0\"", 4, "interface.name", "\"zm/0\" is not"),
            Wrong("name = \"..\"", 4, "interface.name", "an interface's name"),
            Wrong("listen_port = -1", 4, "interface.listen_port", "-1 is not a number from 0"),
            Wrong("listen_port = 65536", 4, "interface.listen_port", "to 65535"),
            Wrong("listen_port = \"51820\"", 4, "interface.listen_port", "a number"),
            Wrong("mtu = 1279", 4, "interface.mtu", "from 1280 to 9000"),
            Wrong("mtu = 0xffff", 4, "interface.mtu", "from 1280 to 9000"),
        ],
    );
}

#[test]
fn wrong_addresses_and_routes_are_refused() {
    let address = "is not an address with prefix length, such as \"10.42.1.1/24\"";
    check(
        &format!("{ZONE}[interface]\n"),
        &[
            Wrong("addresses = \"10.42.1.1/24\"", 4, "interface.addresses", "not a list"),
            Wrong("addresses = [\"10.42.1.1\"]", 4, "interface.addresses[0]", address),
            Wrong("addresses = [\"10.42.1.1/33\"]", 4, "interface.addresses[0]", address),
            Wrong("addresses = [\n7]", 5, "interface.addresses[0]", address),
            Wrong("addresses = [\"127.0.0.1/8\"]", 4, "interface.addresses[0]", "unicast"),
            Wrong(
                "addresses = [\"10.0.0.1/8\",\n\"10.0.0.1/8\"]",
                5,
                "interface.addresses[1]",
                "the same as number [0]",
            ),
            Wrong(
                "addresses = [\"10.0.0.1/8\", \"10.0.0.2/8\", \"10.0.0.3/8\", \"10.0.0.4/8\", \"fd00::1/64\"]",
                4,
                "interface.addresses[4]",
                "at most 4",
            ),
            Wrong("routes = \"all\"", 4, "interface.routes", "not \"auto\", or a list of"),
            Wrong("routes = 7", 4, "interface.routes", "not a list"),
            Wrong("routes = [\"10.42.1.0\"]", 4, "interface.routes[0]", "a network with prefix"),
            Wrong(
                "routes = [\"10.42.1.1/24\"]",
                4,
                "interface.routes[0]",
                "has host bits; the network is 10.42.1.0/24",
            ),
            Wrong(
                "routes = [\"fd00:42::1/64\"]",
                4,
                "interface.routes[0]",
                "has host bits; the network is fd00:42::/64",
            ),
            Wrong("routes = [\"0.0.0.0/0\"]", 4, "interface.routes[0]", "default route"),
            Wrong("routes = [\"224.0.0.0/4\"]", 4, "interface.routes[0]", "unicast"),
            Wrong(
                "routes = [\"10.1.0.0/16\", \"10.1.0.0/16\"]",
                4,
                "interface.routes[1]",
                "the same as number [0]",
            ),
        ],
    );
    let many: Vec<String> = (0..17).map(|number| format!("\"10.{number}.0.0/16\"")).collect();
    let many = format!("{ZONE}[interface]\nroutes = [{}]", many.join(","));
    assert_refused(&many, 4, "interface.routes[16]", "at most 16");
}

#[test]
fn a_wrong_zone_is_refused() {
    check(
        "[zone]\n",
        &[
            Wrong("server = \"192.0.2.1\"", 1, "zone.name", "is missing"),
            Wrong("name = \"\"", 2, "zone.name", "the name of a DNS zone"),
            Wrong("name = \".\"", 2, "zone.name", "the root"),
            Wrong("name = \"a..b\"", 2, "zone.name", "not a domain name"),
            Wrong("name = true", 2, "zone.name", "true is not the name"),
        ],
    );
    check(
        ZONE,
        &[
            Wrong("server = \"ns.example\"", 3, "zone.server", "host names are not resolved"),
            Wrong("server = \"192.0.2.1:0\"", 3, "zone.server", "an IP address"),
            Wrong("server = \"192.0.2.1:65536\"", 3, "zone.server", "an IP address"),
            Wrong("server = \"0.0.0.0\"", 3, "zone.server", "an IP address"),
            Wrong("server = [\"192.0.2.1\", \"ns\"]", 3, "zone.server[1]", "an IP address"),
            Wrong("server = [\"::1\", \"::1\"]", 3, "zone.server[1]", "the same as"),
            Wrong("tsig = \"mesh-key\"", 3, "zone.tsig", "a section (a table)"),
            Wrong("tsig = { name = \"k\" }", 3, "zone.tsig.secret_file", "is missing"),
            Wrong("tsig = { secret_file = \"tsig.key\" }", 3, "zone.tsig.name", "is missing"),
            Wrong(
                "tsig = { name = \"a..b\", secret_file = \"tsig.key\" }",
                3,
                "zone.tsig.name",
                "the key's name",
            ),
            Wrong(
                "tsig = { name = \"k\", algorithm = \"hmac-md5\", secret_file = \"tsig.key\" }",
                3,
                "zone.tsig.algorithm",
                "\"hmac-sha256\"",
            ),
            Wrong(
                "tsig = { name = \"k\", secret_file = \"no.key\" }",
                3,
                "zone.tsig.secret_file",
                "no.key: No such file",
            ),
            Wrong(
                "tsig = { name = \"k\", secret_file = \"empty.key\" }",
                3,
                "zone.tsig.secret_file",
                "the file is empty",
            ),
            Wrong(
                "tsig = { name = \"k\", secret_file = \"text.key\" }",
                3,
                "zone.tsig.secret_file",
                "not Base64",
            ),
            Wrong(
                "tsig = { name = \"k\", secret_file = \".\" }",
                3,
                "zone.tsig.secret_file",
                "not a regular file",
            ),
            Wrong(
                "tsig = { name = \"k\", secret_file = \"/dev/zero\" }",
                3,
                "zone.tsig.secret_file",
                "not a regular file",
            ),
        ],
    );
}

#[test]
fn wrong_services_are_refused() {
    check(
        ZONE,
        &[
            Wrong("[stun]\nservers = \"192.0.2.1\"", 4, "stun.servers", "a list of STUN"),
            Wrong("[stun]\nservers = [\"stun.example\"]", 4, "stun.servers[0]", "IP address"),
            Wrong(
                "[stun]\nservers = [\"192.0.2.1\", \"192.0.2.1:3478\"]",
                4,
                "stun.servers[1]",
                "the same as number [0]",
            ),
            Wrong("[relay]\nservers = [\"192.0.2.1\"]", 4, "relay.servers[0]", "RFC 7065"),
            Wrong("[relay]\nservers = [\"stun:192.0.2.1\"]", 4, "relay.servers[0]", "RFC 7065"),
            Wrong(
                "[relay]\nservers = [\"turns:192.0.2.1?transport=udp\"]",
                4,
                "relay.servers[0]",
                "transport=tcp",
            ),
            Wrong("[relay]\nca_file = 1", 4, "relay.ca_file", "a path"),
            Wrong("[relay]\nca_file = \"no.pem\"", 4, "relay.ca_file", "no.pem"),
            Wrong("[relay]\nenabled = 1", 4, "relay.enabled", "true or false"),
            Wrong(
                "[relay]\nusername_secret_file = \"no.secret\"",
                4,
                "relay.username_secret_file",
                "no.secret",
            ),
            Wrong("[mdns]\nenabled = \"yes\"", 4, "mdns.enabled", "true or false"),
            Wrong("[mdns]\ninterfaces = [\"\"]", 4, "mdns.interfaces[0]", "interface's name"),
            Wrong("[control]\nsocket = 7", 4, "control.socket", "a path"),
        ],
    );
    let long = format!("{ZONE}[control]\nsocket = \"/{}\"", "x".repeat(120));
    assert_refused(&long, 4, "control.socket", "at most 107 bytes");
}

#[test]
fn wrong_trust_is_refused() {
    check(
        &format!("{ZONE}[network]\n"),
        &[
            Wrong("trust = \"all\"", 4, "network.trust", "\"listed\" or \"zone\""),
            Wrong("token_file = \"\"", 4, "network.token_file", "a path"),
            Wrong("trust = \"listed\"\nkeys = [\"AAAA\"]", 5, "network.keys[0]", "32 bytes"),
            Wrong("trust = \"zone\"\nkeys = [\"x\"]", 5, "network.keys", "trust = \"listed\""),
        ],
    );
    let twice = format!("{ZONE}[network]\ntrust = \"listed\"\nkeys = [\"{KEY}\", \"{KEY}\"]");
    assert_refused(&twice, 5, "network.keys[1]", "the same as number [0]");
}

#[test]
fn a_wrong_static_peer_is_refused() {
    let zero = "public_key = \"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\"";
    check(
        "[[peer]]\n",
        &[
            Wrong("routes = []", 1, "peer[0].public_key", "is missing"),
            Wrong("public_key = \"short\"", 2, "peer[0].public_key", "32 bytes in Base64"),
            Wrong(zero, 2, "peer[0].public_key", "32 bytes in Base64"),
        ],
    );
    check(
        &format!("[[peer]]\npublic_key = \"{KEY}\"\n"),
        &[
            Wrong("endpoint = \"vpn.example:1\"", 3, "peer[0].endpoint", "host names"),
            Wrong("endpoint = \"192.0.2.1\"", 3, "peer[0].endpoint", "with port"),
            Wrong("endpoint = \"192.0.2.1:0\"", 3, "peer[0].endpoint", "with port"),
            Wrong("routes = [\"10.0.0.1/8\"]", 3, "peer[0].routes[0]", "host bits"),
            Wrong("keepalive = 65536", 3, "peer[0].keepalive", "from 0 to 65535"),
            Wrong(
                "preshared_key_file = \"no.psk\"",
                3,
                "peer[0].preshared_key_file",
                "no.psk: No such file",
            ),
            Wrong(
                "preshared_key_file = \"short.psk\"",
                3,
                "peer[0].preshared_key_file",
                "not 32 bytes",
            ),
            Wrong(
                "routes = [\"10.9.0.0/16\"]\n[interface]\nroutes = [\"10.9.0.0/16\"]",
                3,
                "peer[0].routes[0]",
                "already in this node's own interface.routes",
            ),
        ],
    );
    let twice = format!("[[peer]]\npublic_key = \"{KEY}\"\n[[peer]]\npublic_key = \"{KEY}\"");
    assert_refused(&twice, 4, "peer[1].public_key", "the same key as peer[0]");
    let other = KEY.replacen('x', "y", 1);
    let shared = format!(
        "[[peer]]\npublic_key = \"{KEY}\"\nroutes = [\"10.9.0.0/16\"]\n\
         [[peer]]\npublic_key = \"{other}\"\nroutes = [\"10.9.0.0/16\"]"
    );
    assert_refused(&shared, 6, "peer[1].routes[0]", "already in peer[0].routes");
}

#[test]
fn a_file_that_is_no_text_or_not_there_is_refused() {
    let folder = Folder::with("");
    std::fs::write(folder.path("zonemesh.toml"), b"[node]\nname = \"\xff\"").expect("written");
    let output = up(&folder);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("zonemesh.toml:2:1: the line is not UTF-8"), "{output:?}");
    std::fs::remove_file(folder.path("zonemesh.toml")).expect("removed");
    let output = up(&folder);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("there is no such file"), "{output:?}");
}

#[test]
fn every_command_that_reads_the_configuration_refuses_a_wrong_one() {
    let folder = Folder::with("[zone]\nnmae = \"mesh.example\"");
    let file = folder.path("zonemesh.toml");
    for arguments in
        [&["up", "-c"][..], &["netcheck", "-c"], &["status", "-c"], &["ping", "b", "--config"]]
    {
        let output = zonemesh().args(arguments).arg(&file).output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains("zonemesh.toml:1"), "{arguments:?}: {output:?}");
    }
}

fn check(given: &str, table: &[Wrong]) {
    for Wrong(text, line, key, message) in table {
        assert_refused(&format!("{given}{text}"), *line, key, message);
    }
}

fn assert_refused(configuration: &str, line: usize, key: &str, message: &str) {
    let folder = Folder::with(configuration);
    let output = up(&folder);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{configuration}\n{error}");
    assert_eq!(stdout(&output), "", "{configuration}");
    let place = format!("zonemesh: {}:{line}:", folder.path("zonemesh.toml").display());
    assert!(error.starts_with(&place), "not at line {line}:\n{configuration}\n{error}");
    assert!(key.is_empty() || error.contains(&format!(": {key}: ")), "not {key}: {error}");
    assert!(error.contains(message), "not {message:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

fn up(folder: &Folder) -> Output {
    let file = folder.path("zonemesh.toml");
    zonemesh().arg("up").arg("-c").arg(file).output().expect("the executable starts")
}
