//! The commands: their use, and what they say when there is nobody to talk to.

use std::{
    net::{TcpListener, UdpSocket},
    os::unix::net::UnixListener,
};

use serde_json::Value;

use crate::{Folder, run, stderr, stdout, zonemesh};

#[test]
fn the_help_names_every_command_and_none_that_is_not_there() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = stdout(&output);
    for command in ["up", "serve", "status", "ping", "netcheck", "network", "lab"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command}:\n{help}");
        let output = run(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(stdout(&output).contains(&format!("Usage: zonemesh {command}")), "{command}");
    }
    for (command, options) in [
        ("up", &["-c", "--log"][..]),
        ("status", &["--json", "--watch", "--socket"]),
        ("ping", &["<PEER>", "-c <N>", "--until-direct", "--socket"]),
        ("netcheck", &["-c", "--json"]),
    ] {
        let help = stdout(&run(&[command, "--help"]));
        for option in options {
            assert!(help.contains(option), "{command} {option}:\n{help}");
        }
    }
}

#[test]
fn wrong_use_ends_with_2_and_says_how_it_is_meant() {
    for (arguments, expected) in [
        (&[][..], "Usage: zonemesh"),
        (&["serf"], "unrecognized subcommand 'serf'"),
        (&["up", "now"], "unexpected argument 'now'"),
        (&["up", "--log", "a=b=c"], "invalid value 'a=b=c'"),
        (&["ping"], "<PEER>"),
        (&["ping", "b", "-c", "-1"], "'-1'"),
        (&["ping", "b", "-c", "many"], "invalid value 'many'"),
        (&["status", "--socket", "/a", "-c", "/b"], "cannot be used with"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn the_version_is_told() {
    let output = run(&["--version"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(stdout(&output), format!("zonemesh {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn without_a_daemon_status_and_ping_fail_and_say_what_to_do() {
    let folder = Folder::with("[zone]\nname = \"mesh.example\"\n[control]\nsocket = \"zm.sock\"");
    let (file, socket) = (folder.path("zonemesh.toml"), folder.path("zm.sock"));
    let (file, socket) = (file.to_str().expect("text"), socket.to_str().expect("text"));
    let check = |arguments: &[&str]| {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        let error = stderr(&output);
        assert!(error.starts_with("zonemesh: ") && error.lines().count() == 1, "{error}");
        assert!(error.contains("zonemesh up") && error.contains(socket), "{error}");
        assert_eq!(error.matches("os error").count(), 1, "the cause is told once: {error}");
    };
    for arguments in [
        &["status", "--socket", socket][..],
        &["status", "--json", "--socket", socket],
        &["status", "--watch", "--socket", socket],
        &["status", "-c", file],
        &["ping", "b", "--socket", socket],
        &["ping", "b", "--config", file],
    ] {
        check(arguments);
    }
    // What a crashed daemon leaves.
    drop(UnixListener::bind(socket).expect("it binds"));
    check(&["status", "--socket", socket]);
}

#[test]
fn netcheck_without_stun_servers_says_where_to_name_them() {
    let folder = Folder::with(&format!(
        "[portmap]\nenabled = false\n[[peer]]\npublic_key = \"{}\"",
        crate::KEY
    ));
    let output = zonemesh().arg("netcheck").arg("-c").arg(folder.path("zonemesh.toml")).output();
    let output = output.expect("the executable starts");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("stun.servers"), "{}", stderr(&output));
}

#[test]
fn netcheck_looks_at_relays_though_the_zone_is_away() {
    // Ports that were free a moment ago, so that nobody listens there.
    let nobody = || {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("it is bound")
    };
    let (zone, relay) = (nobody(), nobody());
    let config = |enabled: bool| {
        format!(
            "[zone]\nname = \"mesh.example\"\nserver = \"{zone}\"\n[portmap]\nenabled = false\n\
             [relay]\nenabled = {enabled}\nservers = [\"turn:{relay}?transport=tcp\"]\n\
             username_secret_file = \"turn.secret\"\n"
        )
    };
    let folder = Folder::with(&config(true));
    folder.write("turn.secret", "any text");
    let report = |config: &str| -> Value {
        folder.write("zonemesh.toml", config);
        let file = folder.path("zonemesh.toml");
        let output = zonemesh().args(["netcheck", "--json", "-c"]).arg(file).output();
        let output = output.expect("the executable starts");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("cannot ask mesh.example"), "{output:?}");
        serde_json::from_str(&stdout(&output)).expect("JSON")
    };
    let looked = report(&config(true));
    assert_eq!(looked["stun"], serde_json::json!([]));
    assert!(looked["stun_error"].as_str().is_some_and(|error| error.contains("stun.servers")));
    assert_eq!(looked["relays"][0]["server"], relay.to_string());
    assert!(looked["relays"][0]["error"].as_str().is_some_and(|error| error.contains("refused")));
    assert_eq!(report(&config(false))["relays"], Value::Null, "it is not to be asked");
}

#[test]
fn netcheck_tells_a_silent_server_and_fails() {
    // It reads nothing and says nothing.
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let server = silent.local_addr().expect("it is bound");
    let folder = Folder::with(&format!(
        "[[peer]]\npublic_key = \"{}\"\n[stun]\nservers = [\"{server}\"]",
        crate::KEY
    ));
    let output = zonemesh()
        .args(["netcheck", "--json", "-c"])
        .arg(folder.path("zonemesh.toml"))
        .output()
        .expect("the executable starts");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("no STUN server answers"), "{output:?}");
    let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
    assert_eq!(report["stun"][0]["server"], server.to_string());
    assert_eq!(report["stun"][0]["source"], "configuration");
    assert_eq!(report["stun"][0]["rtt_ms"], Value::Null);
    assert_eq!(report["nat"]["mapping"], "unknown");
    assert_eq!(report["reflexive"], serde_json::json!([]));
}
