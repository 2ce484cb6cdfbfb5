//! `zonemesh network revoke` against the servers that people run.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
    process::{Command, Output},
};

use tempfile::TempDir;
use zonemesh::{lab::zone_server::ZoneServerKind, network::NetworkFile};
use zonemesh_discovery::{identity::Identity, zone::ZoneClient};

use crate::zone::{Server, ZONE};

#[tokio::test]
async fn on_bind() {
    lists_of_two_administrators_become_one(ZoneServerKind::Bind, false).await;
}

#[tokio::test]
async fn on_knot_and_sealed() {
    lists_of_two_administrators_become_one(ZoneServerKind::Knot, true).await;
}

async fn lists_of_two_administrators_become_one(kind: ZoneServerKind, is_sealed: bool) {
    let server = Server::start(kind, Some(true));
    let (one, two) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let address = server.server.address().to_string();
    let mut init = vec!["init", ZONE, "--routes", "10.42.0.0/16", "--server", &address];
    init.extend(is_sealed.then_some("--sealed"));
    done(&network(one.path(), &init));
    add_tsig(one.path(), &server);
    for file in ["network.key", "network.toml", "revocations"] {
        fs::copy(one.path().join(file), two.path().join(file)).expect("is copied");
    }
    let nodes = [1, 2, 3].map(|seed| Identity::from_seed(&[seed; 32]).public_key());
    let file = NetworkFile::load(&one.path().join("network.toml")).expect("is one");
    let client: ZoneClient = server.client().sealed(file.access.seal());
    for (number, (dir, node)) in
        (1..).zip([one.path(), two.path(), one.path()].into_iter().zip(&nodes))
    {
        let told = done(&network(dir, &["revoke", &node.to_string()]));
        assert!(told.contains(&format!("published at {address}")), "{told}");
        let list = client.revocations(&file.key).await.expect("the server answers");
        let list = list.expect("it is published");
        assert_eq!(list.number(), number);
        let revoked = nodes.map(|node| list.contains(&node));
        assert_eq!(revoked, [number >= 1, number >= 2, number >= 3], "nobody comes back");
    }
    let seen = server.client().revocations(&file.key).await.expect("the server answers");
    assert_eq!(seen.is_none(), is_sealed, "without the seal");
}

/// Hands the server's key on with the network's file.
pub(crate) fn add_tsig(dir: &Path, server: &Server) {
    let [algorithm, name, secret] = server.key();
    let tsig = format!("{{ name = {name:?}, algorithm = {algorithm:?}, secret = {secret:?} }}");
    let file = OpenOptions::new().append(true).open(dir.join("network.toml"));
    writeln!(file.expect("is there"), "tsig = {tsig}").expect("is written");
}

pub(crate) fn network(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zonemesh"));
    command.arg("network").args(arguments).arg("--dir").arg(dir);
    command.output().expect("it starts")
}

/// What it told people, which it did with success.
pub(crate) fn done(output: &Output) -> String {
    let told = String::from_utf8(output.stderr.clone()).expect("text");
    assert!(output.status.success(), "{told}");
    told
}
