//! A running daemon and the commands that talk to it, each test in a world of its own.
//! They need root.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;
use zonemesh::lab::{
    namespace::Namespace, process::Daemon, programs, stun_server::StunServer, world::isolated,
};
use zonemesh_discovery::identity::Identity;

use crate::{KEY, stderr, stdout, zonemesh};

/// How long a daemon may take to answer `status`, and two to have a session.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn lab_two_plain_peers_are_shown_and_pinged() {
    isolated("daemon::lab_two_plain_peers_are_shown_and_pinged", || {
        let [mut a, mut b] = pair();
        let _daemons = [a.start(), b.start()];

        let status: Value = serde_json::from_str(&stdout(&a.ask(&["status", "--json"])))
            .expect("status prints JSON");
        assert_eq!(status["node"]["public_key"], a.key());
        assert_eq!(status["node"]["interface"], "zm1");
        assert_eq!(status["node"]["addresses"], json!(["10.42.1.1/24"]));
        assert_eq!(status["peers"][0]["public_key"], b.key());
        assert_eq!(status["peers"][0]["routes"], json!(["10.42.2.0/24"]));
        assert_eq!(
            status["peers"][0]["path"],
            json!({"kind": "none", "local": null, "remote": null, "relay": null, "rtt_ms": null})
        );
        assert_eq!(status["peers"][0]["last_handshake_s"], Value::Null);

        let output = a.ask(&["ping", "10.42.2.1", "--until-direct", "-c", "10"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let text = stdout(&output);
        assert!(text.starts_with(&format!("{} (10.42.2.1)\nseq=1 ", b.key())), "{text}");
        let last = text.lines().last().expect("a line");
        assert!(last.ends_with(" ms via direct 192.0.2.2:51820"), "{text}");

        let output = b.ask(&["ping", "10.42.1.1", "-c", "2"]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(stdout(&output).lines().count(), 3, "{output:?}");

        // Nobody has that address; the tunnel to it stands all the same.
        let output = a.ask(&["ping", "10.42.2.9", "-c", "1"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stdout(&output).contains("seq=1 no answer, path direct"), "{output:?}");

        let output = a.ask(&["ping", "nobody"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("no peer is named nobody"), "{output:?}");

        let text = stdout(&a.ask(&["status"]));
        assert!(text.contains(&b.key()) && text.contains("direct 192.0.2.2:51820"), "{text}");
    });
}

#[test]
fn lab_a_reader_that_leaves_ends_the_watch_without_a_complaint() {
    isolated("daemon::lab_a_reader_that_leaves_ends_the_watch_without_a_complaint", || {
        let [mut a, _] = pair();
        let _daemon = a.start();
        let mut watch = a.command(&["status", "--watch", "--json"]);
        let watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut watch = watch.spawn().expect("it starts");
        let mut lines = BufReader::new(watch.stdout.take().expect("a pipe"));
        for _ in 0..2 {
            let mut line = String::new();
            lines.read_line(&mut line).expect("a line");
            let status: Value = serde_json::from_str(&line).expect("a status in each line");
            assert_eq!(status["node"]["name"], "node-1");
        }
        drop(lines);
        let output = watch.wait_with_output().expect("it ends");
        assert_eq!((output.status.code(), stderr(&output).as_str()), (Some(0), ""));
    });
}

#[test]
fn lab_what_is_taken_is_told_and_ends_with_1() {
    isolated("daemon::lab_what_is_taken_is_told_and_ends_with_1", || {
        let [mut a, _] = pair();
        let _daemon = a.start();
        let change = |changes: &[(&str, &str)]| {
            let text = fs::read_to_string(a.file("zonemesh.toml")).expect("it is there");
            let changed = changes.iter().fold(text, |text, (old, new)| {
                assert!(text.contains(old), "{old} in {text}");
                text.replace(old, new)
            });
            fs::write(a.file("second.toml"), changed).expect("it is written");
            let mut command = a.namespace.command(EXECUTABLE);
            output_of(command.arg("up").arg("-c").arg(a.file("second.toml")))
        };
        let state = ("\"state\"", "\"state-2\"");
        let socket = ("\"zm.sock\"", "\"zm-2.sock\"");
        let device = ("\"zm1\"", "\"zm9\"");
        for (changes, expected) in [
            (&[socket, device][..], "node.state_dir"),
            (&[state, device], "zm.sock"),
            (&[state, socket], "interface.name"),
            (&[state, socket, device], "interface.listen_port"),
        ] {
            let output = change(changes);
            let error = stderr(&output);
            assert_eq!(output.status.code(), Some(1), "{changes:?}: {error}");
            let last = error.lines().last().unwrap_or_default();
            assert!(last.starts_with("zonemesh: ") && last.contains(expected), "{error}");
            // Whatever failed, the first one lives on.
            assert_eq!(a.ask(&["status"]).status.code(), Some(0), "{changes:?}");
        }
    });
}

#[test]
fn lab_a_node_is_not_its_own_peer() {
    isolated("daemon::lab_a_node_is_not_its_own_peer", || {
        let [a, b] = pair();
        let text = fs::read_to_string(a.file("zonemesh.toml")).expect("it is there");
        let text = text.replace(&b.key(), &a.key());
        fs::write(a.file("zonemesh.toml"), &text).expect("it is written");
        let line = 1 + text.lines().position(|line| line.contains(&a.key())).expect("the key");
        let mut command = a.namespace.command(EXECUTABLE);
        let output = output_of(command.arg("up").arg("-c").arg(a.file("zonemesh.toml")));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let expected = format!("zonemesh.toml:{line}:14: peer[0].public_key: is this node's own");
        assert!(stderr(&output).contains(&expected), "{output:?}");
    });
}

#[test]
fn lab_without_privilege_up_fails_and_says_what_it_needs() {
    isolated("daemon::lab_without_privilege_up_fails_and_says_what_it_needs", || {
        programs::require(&["setpriv"]).expect("the programs are there");
        let [a, _] = pair();
        let mut command = a.namespace.command("setpriv");
        command.args([
            "--bounding-set=-net_admin",
            "--inh-caps=-net_admin",
            EXECUTABLE,
            "up",
            "-c",
        ]);
        let output = output_of(command.arg(a.file("zonemesh.toml")));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("CAP_NET_ADMIN"), "{output:?}");
        assert!(!a.file("zm.sock").exists(), "the socket went with it");
    });
}

#[test]
fn lab_a_killed_daemon_starts_again_and_its_session_is_back() {
    isolated("daemon::lab_a_killed_daemon_starts_again_and_its_session_is_back", || {
        let [mut a, mut b] = pair();
        let mut first = a.start();
        let _other = b.start();
        let reached = |node: &Node| {
            let output = node.ask(&["ping", "10.42.2.1", "--until-direct", "-c", "10"]);
            output.status.success()
        };
        assert!(reached(&a));
        first.kill();
        assert!(a.file("zm.sock").exists(), "killed, it could not clean up");
        let error = stderr(&a.ask(&["status"]));
        assert!(error.contains("zonemesh up"), "{error}");
        let start = Instant::now();
        let _second = a.start();
        assert!(reached(&a));
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    });
}

#[test]
fn lab_netcheck_tells_what_coturn_sees() {
    isolated("daemon::lab_netcheck_tells_what_coturn_sees", || {
        programs::require(&["turnserver"]).expect("the programs are there");
        let folder = TempDir::new().expect("a folder");
        let listen = ["127.0.0.1", "127.0.0.2"].map(|ip| ip.parse().expect("an address"));
        let _server =
            StunServer::start(|program| Command::new(program), folder.path(), &listen, 3478)
                .expect("coturn starts");
        let file = folder.path().join("zonemesh.toml");
        let servers = "servers = [\"127.0.0.1\", \"127.0.0.2\"]";
        fs::write(&file, format!("[[peer]]\npublic_key = \"{KEY}\"\n[stun]\n{servers}\n"))
            .expect("it is written");
        let output = output_of(zonemesh().args(["netcheck", "--json", "-c"]).arg(&file));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let report: Value = serde_json::from_str(&stdout(&output)).expect("JSON");
        assert_eq!(report["nat"]["mapping"], "none", "{report}");
        for (index, ip) in ["127.0.0.1", "127.0.0.2"].into_iter().enumerate() {
            assert_eq!(report["stun"][index]["server"], format!("{ip}:3478"));
            assert!(report["stun"][index]["rtt_ms"].as_f64().is_some_and(|rtt| rtt < 1000.0));
        }
        let text = stdout(&output_of(zonemesh().args(["netcheck", "-c"]).arg(&file)));
        assert!(text.contains("NAT           mapping none, filtering "), "{text}");
        assert!(text.contains("STUN          127.0.0.1:3478  "), "{text}");
    });
}

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_zonemesh");

/// A node in a namespace, with one static peer.
struct Node {
    identity: Identity,
    namespace: Namespace,
    folder: TempDir,
}

/// Two nodes that are each other's peer, on one link.
fn pair() -> [Node; 2] {
    programs::require(&["ip"]).expect("the programs are there");
    let nodes = [1u8, 2].map(Node::new);
    let links = "link add link1 type veth peer name link2 netns node2\n\
                 addr add 192.0.2.1/24 dev link1\nlink set link1 up\n";
    nodes[0].namespace.ip(links).expect("the link is made");
    let address = "addr add 192.0.2.2/24 dev link2\nlink set link2 up\n";
    nodes[1].namespace.ip(address).expect("the link is up");
    nodes[0].namespace.wait_for_links(&["link1"]).expect("the link is up");
    nodes
}

impl Node {
    fn new(number: u8) -> Self {
        let other = 3 - number;
        let peer = Identity::from_seed(&[other; 32]).public_key();
        let folder = TempDir::new().expect("a folder");
        let seed = data_encoding::BASE64.encode(&[number; 32]);
        fs::create_dir(folder.path().join("state")).expect("it is made");
        fs::write(folder.path().join("state/node.key"), seed).expect("it is written");
        let configuration = format!(
            "[node]\nname = \"node-{number}\"\nstate_dir = \"state\"\n\
             [interface]\nname = \"zm{number}\"\naddresses = [\"10.42.{number}.1/24\"]\n\
             routes = [\"10.42.{number}.0/24\"]\n\
             [mdns]\nenabled = false\n[control]\nsocket = \"zm.sock\"\n\
             [[peer]]\npublic_key = \"{peer}\"\nendpoint = \"192.0.2.{other}:51820\"\n\
             routes = [\"10.42.{other}.0/24\"]\n"
        );
        fs::write(folder.path().join("zonemesh.toml"), configuration).expect("it is written");
        let namespace = Namespace::add(&format!("node{number}")).expect("a namespace");
        Self { identity: Identity::from_seed(&[number; 32]), namespace, folder }
    }

    fn key(&self) -> String {
        self.identity.public_key().to_string()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts the daemon and waits until it answers.
    fn start(&mut self) -> Daemon {
        let mut command = self.namespace.command(EXECUTABLE);
        command.arg("up").arg("-c").arg(self.file("zonemesh.toml"));
        let log = self.file("log");
        let mut daemon = Daemon::spawn("zonemesh", &mut command, &log).expect("it starts");
        daemon
            .wait_ready(LIMIT, || self.ask(&["status"]).status.success())
            .expect("it answers at its control socket");
        daemon
    }

    /// A command that talks to this node's daemon.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.namespace.command(EXECUTABLE);
        command.args(arguments).arg("--socket").arg(self.file("zm.sock"));
        command
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        output_of(&mut self.command(arguments))
    }
}

fn output_of(command: &mut Command) -> Output {
    command.output().expect("the executable starts")
}
