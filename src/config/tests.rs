use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const EXAMPLE: &str = include_str!("../../docs/zonemesh.example.toml");
const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";
const AUTHORITY: &str = "\
-----BEGIN CERTIFICATE-----
MIIBnTCCAUOgAwIBAgIUUhKPe9sWO1/FEfwjmKOCQ6PkB6kwCgYIKoZIzj0EAwIw
JDEiMCAGA1UEAwwZYW4gYXV0aG9yaXR5IG9mIHRoZSB0ZXN0czAeFw0yNjExMjQy
MjM0MjFaFw0zNjExMjEyMjM0MjFaMCQxIjAgBgNVBAMMGWFuIGF1dGhvcml0eSBv
ZiB0aGUgdGVzdHMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARTvFLyz2YFreAd
8+36szppFu2Nhw6pBpGEDYJXLE5VvI38RYcgH65DkdKOxhuFs44/GqB61ViHpvS3
uxqAMTM6o1MwUTAdBgNVHQ4EFgQUnBcoFPXiwWme+u+Ct8ZMI9g7z+EwHwYDVR0j
BBgwFoAUnBcoFPXiwWme+u+Ct8ZMI9g7z+EwDwYDVR0TAQH/BAUwAwEB/zAKBggq
hkjOPQQDAgNIADBFAiEA/xaXGxu7s5c2I2IWv3xYDN+8ZzDueMq+XzkjTo2BImsC
IHVdemvK+o8WgZCvJhX4ZGDzatUFOslD8M/Fs9491fG5
-----END CERTIFICATE-----";

const NETWORK: &str = "\
zone = \"mesh.example\"
key = \"0EpsHxsF1qtzG2Q4aBFJXIWnuFmMsbMuuyz3wf3ALgM=\"
servers = [\"198.51.100.10:53\"]
relay_secret = \"a secret of relays and members\"
tsig = { name = \"mesh-key\", secret = \"c2VjcmV0IGZvciB0aGUgdGVzdHMgb25seSE=\" }";

/// A folder with the secrets and other files that the example names.
fn folder() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    for (name, secret) in [
        ("tsig.key", "c2VjcmV0IGZvciB0aGUgdGVzdHMgb25seSE="),
        ("turn.secret", "any text"),
        ("ns2.key", "c2VjcmV0IGZvciB0aGUgdGVzdHMgb25seSE="),
        ("ca.pem", AUTHORITY),
        ("peer.psk", KEY),
        ("relay.pem", "a certificate"),
        ("relay.key", "its key"),
        ("ns2.key", "c2VjcmV0IG9mIGEgc2Vjb25kYXJ5"),
        ("network.toml", NETWORK),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, format!("{secret}\n")).expect("the secret is written");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("its mode is set");
    }
    folder
}

fn parse_in(folder: &TempDir, text: &str) -> Result<Config, ConfigError> {
    Config::parse(&folder.path().join("zonemesh.toml"), text)
}

#[test]
fn the_example_is_a_valid_configuration_and_its_comments_tell_the_defaults() {
    let folder = folder();
    let shipped = parse_in(&folder, EXAMPLE).expect("the example parses");
    assert_eq!(shipped.zone.as_ref().expect("a zone").name.to_string(), "mesh.example.");
    assert_eq!(shipped.interface.listen_port, 51820);
    assert_eq!(shipped.control_socket, Path::new("/run/zonemesh/zm0.sock"));
    assert_eq!(shipped.trust, Some(Trust::Zone));
    assert_eq!(shipped.token_file, None);
    assert!(shipped.peers.is_empty());

    let every_key: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => key,
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let full = parse_in(&folder, &every_key).expect("the example with every key parses");
    assert_eq!(full.node.name, "site-a-1");
    assert_eq!(full.node.state_dir, shipped.node.state_dir);
    assert_eq!(full.interface, InterfaceConfig { mtu: Some(1420), ..shipped.interface });
    assert_eq!(full.zone, shipped.zone);
    assert_eq!(full.mdns.interfaces, ["eth0"]);
    assert_eq!(full.mdns.enabled, shipped.mdns.enabled);
    assert_eq!(full.stun_servers.len(), 2);
    let uris: Vec<String> = full.relay.servers.iter().map(ToString::to_string).collect();
    assert_eq!(uris, ["turn:relay.example:3478", "turns:relay.example:443?transport=tcp"]);
    assert!(full.relay.enabled && shipped.relay.enabled);
    assert_eq!(full.relay.ca_file, Some(folder.path().join("ca.pem")));
    assert_eq!(full.control_socket, shipped.control_socket);
    assert_eq!(shipped.serve, None);
    let serve = full.serve.expect("a [serve] section");
    let plain = parse_in(&folder, "[serve]\nsecret_file = \"turn.secret\"").expect("enough");
    let plain = plain.serve.expect("a [serve] section");
    assert_eq!(serve.tls.as_ref().map(|tls| tls.listen[0].port()), Some(443));
    assert_eq!(serve.listen, ["198.51.100.10:3478".parse().expect("an address")]);
    let named = ServeConfig {
        listen: serve.listen.clone(),
        tls: serve.tls.clone(),
        relay_addresses: serve.relay_addresses.clone(),
        external_addresses: serve.external_addresses.clone(),
        allow_peers: serve.allow_peers.clone(),
        zone: serve.zone.clone(),
        ..plain
    };
    assert_eq!(serve, named, "the other values are the defaults");
    let zone = serve.zone.expect("a [serve.zone] section");
    assert_eq!(zone.tls_listen, ["198.51.100.10:853".parse().expect("an address")]);
    assert_eq!(zone.secondaries, ["198.51.100.11:53".parse().expect("an address")]);
    let names: Vec<String> = zone.keys.iter().map(|(key, _)| key.name().to_ascii()).collect();
    assert_eq!(names, ["mesh-key.", "ns2-key."]);
    let primary = zone.primary.as_ref().expect("a primary server");
    assert_eq!(primary.key.as_ref().map(|key| key.name().to_ascii()), Some("ns2-key.".to_owned()));
    let plain = parse_in(&folder, "[serve.zone]").expect("the network's file is there");
    let plain = plain.serve.expect("a [serve] section");
    assert_eq!(
        plain.secret.as_ref().map(|secret| secret.expose().as_str()),
        Some("a secret of relays and members")
    );
    let plain = plain.zone.expect("a [serve.zone] section");
    assert_eq!(plain.listen[0], "0.0.0.0:53".parse().expect("an address"));
    let named = ServeZoneConfig {
        listen: zone.listen.clone(),
        tls_listen: zone.tls_listen.clone(),
        addresses: zone.addresses.clone(),
        secondaries: zone.secondaries.clone(),
        primary: zone.primary.clone(),
        keys: zone.keys.clone(),
        ..plain
    };
    assert_eq!(zone, named, "the other values are the defaults");
    let [peer] = &full.peers[..] else { panic!("one peer: {:?}", full.peers) };
    assert_eq!(peer.public_key.to_string(), KEY);
    assert_eq!(peer.endpoint, Some("198.51.100.7:51820".parse().expect("an address")));
    assert_eq!(peer.keepalive, Some(25));
    assert!(peer.preshared_key.is_some());
}

#[test]
fn secrets_are_read_but_never_shown() {
    let folder = folder();
    let config = parse_in(&folder, EXAMPLE).expect("the example parses");
    let tsig = config.zone.clone().and_then(|zone| zone.tsig).expect("a TSIG key");
    assert_eq!(tsig.secret.expose(), "c2VjcmV0IGZvciB0aGUgdGVzdHMgb25seSE=");
    assert!(!format!("{config:?}").contains("c2VjcmV0"));
}

#[test]
fn a_secret_that_everybody_can_read_is_a_warning() {
    let folder = folder();
    let quiet = parse_in(&folder, EXAMPLE).expect("the example parses");
    assert!(!quiet.warnings.iter().any(|warning| warning.contains("tsig.key")));
    fs::set_permissions(folder.path().join("tsig.key"), fs::Permissions::from_mode(0o644))
        .expect("its mode is set");
    let warned = parse_in(&folder, EXAMPLE).expect("the example parses");
    assert!(warned.warnings.iter().any(|warning| warning.contains("tsig.key")));
}

#[test]
fn what_is_probably_not_meant_is_a_warning() {
    let folder = folder();
    for (text, expected) in [
        ("[zone]\nname = \"m.example\"\n[network]\ntrust = \"listed\"", "no advert counts"),
        ("[zone]\nname = \"m.example\"\n[relay]\nservers = [\"turn:192.0.2.1\"]", "relay.servers"),
        (
            "[[peer]]\npublic_key = \"xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=\"\n\
             endpoint = \"192.0.2.1:1\"\nroutes = [\"192.0.2.0/24\"]",
            "lies in its own routes",
        ),
    ] {
        let config = parse_in(&folder, text).expect(text);
        assert!(
            config.warnings.iter().any(|warning| warning.contains(expected)),
            "{text}: {:?}",
            config.warnings
        );
    }
}

#[test]
fn static_peers_alone_need_no_zone_and_raise_no_warning() {
    let config = parse_in(&folder(), &format!("[[peer]]\npublic_key = \"{KEY}\"\nkeepalive = 0"))
        .expect("a node with a static peer only");
    assert_eq!(config.zone, None);
    assert_eq!(config.peers[0].keepalive, None);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
}

#[test]
fn a_server_without_port_gets_the_service_s_own() {
    let text = "[zone]\nname = \"m.example\"\nserver = \"2001:db8::53\"\n\
                [stun]\nservers = [\"192.0.2.1\", \"[2001:db8::1]:99\"]";
    let config = parse_in(&folder(), text).expect("a configuration");
    let shown = |config: Config| {
        let servers = config.zone.expect("a zone").servers;
        servers.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(shown(config.clone()), ["[2001:db8::53]:53"]);
    let several = "[zone]\nname = \"m.example\"\nserver = [\"192.0.2.1\", \"192.0.2.2:54\"]";
    let several = parse_in(&folder(), several).expect("a configuration");
    assert_eq!(shown(several), ["192.0.2.1:53", "192.0.2.2:54"]);
    let stun: Vec<String> = config.stun_servers.iter().map(ToString::to_string).collect();
    assert_eq!(stun, ["192.0.2.1:3478", "[2001:db8::1]:99"]);
}

#[test]
fn authorities_that_cannot_be_read_are_told_with_the_key() {
    let folder = folder();
    let garbled = AUTHORITY.replace("MII", "AAA");
    for (name, text) in [("empty.pem", ""), ("key.pem", KEY), ("bad.pem", &garbled)] {
        fs::write(folder.path().join(name), text).expect("it is written");
    }
    for name in ["none.pem", "empty.pem", "key.pem", "bad.pem", "."] {
        let text = format!("[zone]\nname = \"m.example\"\n[relay]\nca_file = \"{name}\"");
        let error = parse_in(&folder, &text).expect_err(name);
        assert_eq!((error.key.as_str(), error.position), ("relay.ca_file", Some((4, 11))));
        assert!(error.message.contains(name), "{error}");
    }
}

#[test]
fn a_rendezvous_needs_its_section_alone() {
    let folder = folder();
    let config = parse_in(&folder, "[serve]\nsecret_file = \"turn.secret\"").expect("enough");
    assert!(config.need_serve().is_ok());
    let error = config.check_node().expect_err("it is no node");
    assert_eq!(error.key, "zone");
    let serve = config.serve.expect("a [serve] section");
    assert!(!serve.enabled && serve.stun && serve.turn);
    let listen: Vec<String> = serve.listen.iter().map(ToString::to_string).collect();
    assert_eq!(listen, ["0.0.0.0:3478", "[::]:3478"]);
    assert_eq!((serve.limits.permissions, serve.limits.channels), (4096, 4096));
    let shown = format!("{serve:?}");
    assert!(!shown.contains("any text"), "the secret is not shown");
    let node = parse_in(&folder, "[zone]\nname = \"m.example\"").expect("a node");
    assert_eq!(node.need_serve().expect_err("nothing to serve").key, "serve");
    let stun = parse_in(&folder, "[serve]\nturn = false").expect("STUN alone needs no secret");
    assert!(stun.serve.is_some_and(|serve| serve.secret.is_none()));
}

#[test]
fn what_cannot_be_served_is_told_with_its_key() {
    for (text, key) in [
        ("", "serve.secret_file"),
        ("turn = false\nstun = false", "serve.turn"),
        ("listen = [\"224.0.0.1:3478\"]", "serve.listen[0]"),
        ("listen = [\"192.0.2.1:0\"]", "serve.listen[0]"),
        ("tls_listen = [\"0.0.0.0:443\"]", "serve.tls_cert_file"),
        ("tls_cert_file = \"a.pem\"", "serve.tls_key_file"),
        ("tls_cert_file = \"a.pem\"\ntls_key_file = \"/dev/null\"", "serve.tls_cert_file"),
        ("tls_cert_file = \"turn.secret\"\ntls_key_file = \".\"", "serve.tls_key_file"),
        ("external_address = [\"192.0.2.1\", \"192.0.2.2\"]", "serve.external_address"),
        ("relay_addresses = [\"0.0.0.0\"]", "serve.relay_addresses[0]"),
        ("ports = \"50000\"", "serve.ports"),
        ("ports = \"60000-50000\"", "serve.ports"),
        ("ports = \"80-90\"", "serve.ports"),
        ("realm = \"a\\\"b\"", "serve.realm"),
        ("allow_peers = [\"10.0.0.1/8\"]", "serve.allow_peers[0]"),
        ("limits = { allocations = 0 }", "serve.limits.allocations"),
        ("limits = { bandwidth = -1 }", "serve.limits.bandwidth"),
        ("limits = { channels = 5000 }", "serve.limits.channels"),
        ("limits = { chanels = 5 }", "serve.limits.chanels"),
        ("zone = true", "serve.zone"),
    ] {
        let error = parse_in(&folder(), &format!("[serve]\n{text}")).expect_err(text);
        assert_eq!(error.key, key, "{text}: {error}");
    }
}

#[test]
fn a_position_counts_lines_and_characters() {
    let text = "# größer\n[node]\nname = \"ü\" \n[interface]\n\"ä\" = 1\n";
    let error = parse_in(&folder(), text).expect_err("an unknown key");
    assert_eq!((error.position, error.key.as_str()), (Some((5, 1)), "interface.ä"));
}

/// Pieces of configuration, right and wrong, from which random documents are put
/// together: far deeper in than random text would ever come.
fn fragment() -> impl Strategy<Value = String> {
    let key = prop::sample::select(vec![
        "node",
        "interface",
        "zone",
        "mdns",
        "stun",
        "relay",
        "control",
        "network",
        "peer",
        "name",
        "state_dir",
        "listen_port",
        "mtu",
        "addresses",
        "routes",
        "server",
        "tsig",
        "enabled",
        "interfaces",
        "servers",
        "socket",
        "trust",
        "keys",
        "public_key",
        "endpoint",
        "keepalive",
        "secret_file",
        "algorithm",
        "preshared_key_file",
        "username_secret_file",
        "ca_file",
        "token_file",
        "serve",
        "listen",
        "tls_listen",
        "ports",
        "limits",
        "bandwidth",
    ]);
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| format!("{number:?}")),
        any::<bool>().prop_map(|value| value.to_string()),
        "\\PC{0,12}".prop_map(|text| format!("{text:?}")),
        any::<std::net::IpAddr>().prop_map(|ip| format!("\"{ip}\"")),
        any::<SocketAddr>().prop_map(|addr| format!("\"{addr}\"")),
        (any::<std::net::IpAddr>(), 0u8..140).prop_map(|(ip, len)| format!("[\"{ip}/{len}\"]")),
        any::<[u8; 32]>().prop_map(|key| format!("[\"{}\"]", data_encoding::BASE64.encode(&key))),
        Just(format!("\"{KEY}\"")),
        Just("[[], {}, [{}], 1979-05-27]".to_owned()),
        Just("{ name = \"k\", secret_file = \"/dev/null\" }".to_owned()),
        Just("\"mesh.example\"".to_owned()),
        Just("\"listed\"".to_owned()),
    ];
    (key, value, 0u8..6).prop_map(|(key, value, form)| match form {
        0 => format!("[{key}]"),
        1 => format!("[[{key}]]"),
        2 => "[zone]\nname = \"mesh.example\"".to_owned(),
        3 => format!("[[peer]]\npublic_key = \"{KEY}\""),
        _ => format!("{key} = {value}"),
    })
}

proptest! {
    #[test]
    fn no_document_makes_it_panic(lines in prop::collection::vec(fragment(), 0..12)) {
        let text = lines.join("\n");
        if let Err(error) = Config::parse(Path::new("zonemesh.toml"), &text) {
            let (line, _) = error.position.expect("every error of a text has a position");
            prop_assert!(line <= text.lines().count().max(1) + 1);
            prop_assert!(!error.message.is_empty());
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in any::<String>()) {
        let _ = Config::parse(Path::new("zonemesh.toml"), &text);
    }
}

#[test]
fn a_zone_is_served_for_a_network_or_by_name() {
    let folder = folder();
    let zone = |text: &str| {
        let text = format!("[serve]\nturn = false\n[serve.zone]\n{text}");
        parse_in(&folder, &text).map(|config| config.serve.and_then(|serve| serve.zone))
    };
    let named = zone("name = \"other.example\"").expect("a zone").expect("a section");
    assert_eq!(named.name.to_string(), "other.example.");
    assert_eq!((named.servers().count(), named.network), (0, None));
    let of_network = zone("").expect("a zone").expect("a section");
    assert_eq!(of_network.name.to_string(), "mesh.example.");
    assert_eq!(
        of_network.servers().collect::<Vec<_>>(),
        [std::net::IpAddr::from([198, 51, 100, 10])]
    );
    for (text, key, expected) in [
        ("network = \"network.toml\"\nname = \"x.example\"", "zone.name", "mesh.example."),
        ("network = \"none.toml\"", "", "none.toml"),
        ("transfer = \"all\"", "zone.transfer", "\"any\" or \"keys\""),
        ("tls_listen = [\"192.0.2.1\"]", "zone.tls_listen", "tls_cert_file"),
        (
            "keys = [{ name = \"ns2\", secret_file = \"ns2.key\", update = \"own\" }]",
            "zone.keys[0].update",
            "52 characters",
        ),
        (
            "keys = [{ name = \"mesh-key\", secret_file = \"ns2.key\" }]",
            "zone.keys[0].name",
            "another name",
        ),
        ("primary = \"192.0.2.1\"\nprimary_key = \"x\"", "zone.primary_key", "serve.zone.keys"),
        ("primary = \"192.0.2.1\"\nhosts = [\"192.0.2.2\"]", "zone.hosts", "primary server"),
        ("limits = { answers_per_network = 0 }", "limits.answers_per_network", "from 1"),
    ] {
        let error = zone(text).expect_err(text);
        assert!(error.key.ends_with(key), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_slice_is_wanted_where_it_is_asked_for_or_nothing_else_is_said() {
    let folder = folder();
    for (said, wanted) in [
        ("", true),
        ("addresses = [\"10.42.1.1/24\"]", false),
        ("routes = []", false),
        ("routes = [\"10.42.1.0/24\"]", false),
        ("routes = \"auto\"", true),
        ("addresses = [\"10.42.1.1/24\"]\nroutes = \"auto\"", true),
    ] {
        let text = format!("[zone]\nname = \"mesh.example\"\n[interface]\n{said}\n");
        let config = parse_in(&folder, &text).expect("it parses");
        assert_eq!(config.interface.wants_slice(), wanted, "{said}");
    }
}
