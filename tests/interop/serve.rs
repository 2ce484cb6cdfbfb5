//! Relays against coturn's TURN client.

use std::process::Command;

use tempfile::TempDir;
use zonemesh::lab::{
    namespace::run,
    net::{Host, Lab},
    programs,
    relay_server::{Over, RelayKind, RelayServer, RelaySettings},
    world::isolated,
};

#[test]
fn coturn_relays_over_udp_tcp_and_tls() {
    isolated("serve::coturn_relays_over_udp_tcp_and_tls", || {
        let stage = Stage::new(RelayKind::Coturn);
        for over in [Over::Udp, Over::Tcp, Over::Tls] {
            stage.assert_relays(over, &[]);
        }
    });
}

#[test]
fn zonemesh_relays_over_udp_tcp_and_tls() {
    isolated("serve::zonemesh_relays_over_udp_tcp_and_tls", || {
        let stage = Stage::new(RelayKind::Zonemesh);
        for over in [Over::Udp, Over::Tcp, Over::Tls] {
            stage.assert_relays(over, &[]);
            stage.assert_relays(over, &["-s"]);
        }
    });
}

/// A relay and a client's host, both public.
struct Stage {
    relay: RelayServer,
    client: Host,
    _home: TempDir,
    _lab: Lab,
}

impl Stage {
    fn new(kind: RelayKind) -> Self {
        programs::require(&["openssl", "turnserver", "turnutils_uclient"]).expect("all there");
        let home = TempDir::new().expect("a folder");
        let mut lab = Lab::new().expect("a core");
        let relay = lab.public_host("relay", 1).expect("a public host");
        let client = lab.public_host("client", 1).expect("a public host");
        let settings = RelaySettings {
            executable: env!("CARGO_BIN_EXE_zonemesh").into(),
            ..RelaySettings::default()
        };
        let relay =
            RelayServer::start(kind, &relay, home.path(), settings).expect("the relay starts");
        Self { relay, client, _home: home, _lab: lab }
    }

    /// coturn's client, with two allocations that send to each other.
    fn client(&self, over: Over) -> Command {
        let (flags, port): (&[&str], _) = match over {
            Over::Udp => (&[], "3478"),
            Over::Tcp => (&["-t"], "3478"),
            Over::Tls => (&["-t", "-S"], "5349"),
        };
        let mut command = self.client.namespace.command("turnutils_uclient");
        command.args(flags).args(["-p", port, "-u", "somebody", "-W", self.relay.secret()]);
        command.args(["-y", "-m", "2", "-n", "20", "-l", "200", "-c"]);
        command
    }

    fn assert_relays(&self, over: Over, options: &[&str]) {
        let mut client = self.client(over);
        client.args(options).arg(self.relay.addresses()[0].to_string());
        let told = run(&mut client, "").expect("the client ends well");
        // "Total lost packets 2 (5.000000%), …": under TLS coturn's client loses one or two
        // of its own first ones, whichever server it talks to.
        let lost = told
            .split_once("Total lost packets ")
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse::<u32>().ok());
        let allowed = if over == Over::Tls { 2 } else { 0 };
        assert!(lost.is_some_and(|lost| lost <= allowed), "{over:?} {options:?}: {told}");
    }
}
