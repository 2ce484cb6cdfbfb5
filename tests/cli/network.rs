//! The administrator's commands: what they make, what they refuse, and what they never
//! show.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Output, time::SystemTime};

use tempfile::TempDir;
use zonemesh::network::NetworkFile;
use zonemesh_discovery::{
    identity::Identity,
    membership::{RevocationList, Token},
};

use crate::{stderr, stdout, zonemesh};

const FILES: [&str; 3] = ["network.key", "network.toml", "revocations"];

#[test]
fn a_network_is_made_once_for_nobody_else_to_read_and_ends_with_a_token() {
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path().join("etc/zonemesh");
    let output = init(&dir, &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for file in FILES {
        let mode = fs::metadata(dir.join(file)).expect("is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{file}");
        assert!(stdout(&output).contains(file), "{file}");
    }
    assert_eq!(fs::read_dir(&dir).expect("is there").count(), FILES.len(), "nothing is left over");
    let network = NetworkFile::load(&dir.join("network.toml")).expect("is one");
    let told = stdout(&output);
    let token: Token = told.lines().last().expect("a last line").parse().expect("a token");
    assert_eq!((token.network(), token.zone()), (network.key, &network.zone));
    assert_eq!(token.limits().routes(), network.routes);
    assert_eq!(token.access(), &network.access);
    assert_eq!(network.access.servers, ["192.0.2.53:53".parse().expect("an address")]);
    assert!(network.access.relay_secret.is_some() && network.access.seal_secret.is_none());
    let list = list(&dir);
    assert_eq!((list.number(), list.entries()), (0, &[][..]));

    let before = FILES.map(|file| fs::read(dir.join(file)).expect("is there"));
    let again = init(&dir, &[]);
    assert_eq!(again.status.code(), Some(1));
    assert!(stderr(&again).contains("is there already"), "{}", stderr(&again));
    for missing in ["network.key", "network.toml"] {
        fs::rename(dir.join(missing), dir.join("aside")).expect("is moved");
        assert_eq!(init(&dir, &[]).status.code(), Some(1), "{missing}");
        assert!(!dir.join(missing).exists(), "half a network over another");
        fs::rename(dir.join("aside"), dir.join(missing)).expect("is moved");
    }
    assert_eq!(FILES.map(|file| fs::read(dir.join(file)).expect("is there")), before);
}

#[test]
fn what_cannot_be_written_whole_leaves_nothing_behind() {
    let folder = TempDir::new().expect("a folder");
    // In the way of the last of the three.
    fs::create_dir(folder.path().join("revocations.new")).expect("a folder");
    let output = init(folder.path(), &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("revocations: "), "{}", stderr(&output));
    assert_eq!(stdout(&output), "", "a token of a network that is not there");
    assert_eq!(fs::read_dir(folder.path()).expect("is there").count(), 1);
    fs::remove_dir(folder.path().join("revocations.new")).expect("is there");
    assert_eq!(init(folder.path(), &[]).status.code(), Some(0));
}

#[test]
fn an_invite_is_one_line_with_the_limits_that_were_asked_for() {
    let folder = made(&["--sealed"]);
    let dir = folder.path();
    let output = network(dir, "invite", &[]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(stdout(&output).lines().count(), 1);
    let any = token(&output);
    assert!(any.access().seal_secret.is_some());
    let year = any.validity().not_after().expect("it ends");
    let year = year.duration_since(SystemTime::now()).expect("it is ahead").as_secs();
    assert!((364 * 86_400..=365 * 86_400).contains(&year), "{year}");
    assert!(stderr(&output).contains(&any.invite().to_string()), "{}", stderr(&output));

    let narrow = [
        "--name",
        "pi-1",
        "--routes",
        "10.42.7.0/24,10.42.8.0/24",
        "--groups",
        "lab,edge",
        "--expires",
        "12h",
    ];
    let narrow = token(&network(dir, "invite", &narrow));
    assert_eq!(narrow.limits().name(), "pi-1");
    assert_eq!(narrow.limits().routes().len(), 2);
    assert_eq!(narrow.limits().groups(), ["edge", "lab"]);
    let never = token(&network(dir, "invite", &["--expires", "never"]));
    assert_eq!(never.validity().not_after(), None);

    for (arguments, expected) in [
        (&["--routes", "10.43.0.0/24"][..], "10.43.0.0/24 is not one of the network's routes"),
        (&["--routes", "10.42.7.1/24"], "host bits"),
        (&["--groups", "Lab"], "groups"),
        (&["--name", &"x".repeat(64)], "a name has"),
        (
            &["--groups", "north-america,south-america,western-europe,eastern-europe"],
            "pass 320 bytes",
        ),
        (&["--expires", "soon"], "expected a span such as 30d"),
        (&["--expires", "0d"], "expected a span"),
    ] {
        let output = network(dir, "invite", arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(stderr(&output).contains(expected), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "", "{arguments:?}");
    }
}

#[test]
fn nodes_and_invites_are_revoked_by_whatever_names_them() {
    let folder = made(&[]);
    let dir = folder.path();
    let token = token(&network(dir, "invite", &[]));
    let [base64, base32] = [1, 2].map(|seed| Identity::from_seed(&[seed; 32]).public_key());
    let other = self::token(&network(dir, "invite", &[])).invite();
    for (number, key) in
        (1..).zip([base64.to_string(), base32.to_base32(), token.to_string(), other.to_string()])
    {
        let output = network(dir, "revoke", &["--offline", &key]);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(stderr(&output).contains("not published"), "{}", stderr(&output));
        assert_eq!(list(dir).number(), number);
    }
    let list = list(dir);
    assert!(list.contains(&base64) && list.contains(&base32));
    assert!(list.contains_invite(&token.invite()) && list.contains_invite(&other));
    assert_eq!(list.entries().len(), 4);
    let shown = stdout(&network(dir, "show", &[]));
    assert!(shown.contains("list 4 with 4 entries"), "{shown}");

    for key in ["", "pi-1", &token.to_string()[..80]] {
        let output = network(dir, "revoke", &["--offline", key]);
        assert_eq!(output.status.code(), Some(2), "{key}");
    }
    // Nobody answers at the zone's server: what is decided is kept, and the failure told.
    let toml = fs::read_to_string(dir.join("network.toml")).expect("is there");
    fs::write(dir.join("network.toml"), toml.replace("192.0.2.53:53", "127.0.0.1:9"))
        .expect("is written");
    let key = Identity::from_seed(&[3; 32]).public_key().to_string();
    let output = network(dir, "revoke", &[&key]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("kept but not published"), "{}", stderr(&output));
    assert_eq!(self::list(dir).number(), 5);
}

#[test]
fn a_passphrase_keeps_the_key_and_comes_by_file_or_environment() {
    let folder = TempDir::new().expect("a folder");
    let (dir, pass) = (folder.path().join("network"), folder.path().join("pass"));
    fs::write(&pass, "correct horse\n").expect("is written");
    let file = ["--passphrase-file", pass.to_str().expect("text")];
    assert_eq!(init(&dir, &file).status.code(), Some(0));
    assert_eq!(network(&dir, "invite", &file).status.code(), Some(0));
    // What needs no key asks for none.
    assert_eq!(network(&dir, "show", &[]).status.code(), Some(0));
    let by_environment = |text: &str| {
        let mut command = zonemesh();
        command.args(["network", "invite", "--dir"]).arg(&dir).env("ZONEMESH_PASSPHRASE", text);
        command.output().expect("it starts")
    };
    assert_eq!(by_environment("correct horse").status.code(), Some(0));
    let wrong = by_environment("correct hose");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains("network.key: the passphrase is another"), "{wrong:?}");
    let nobody = network(&dir, "invite", &[]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(stderr(&nobody).contains("--passphrase-file"), "{}", stderr(&nobody));
}

#[test]
fn damaged_and_foreign_files_are_told_and_no_secret_is_shown() {
    let folder = made(&[]);
    let dir = folder.path();
    let key = fs::read_to_string(dir.join("network.key")).expect("is there");
    let file = NetworkFile::load(&dir.join("network.toml")).expect("is one");
    let relay_secret = file.access.relay_secret.expect("there is one");
    let relay_secret = String::from_utf8(relay_secret.expose().to_vec()).expect("text");
    let seed = key.lines().find_map(|line| line.strip_prefix("seed = ")).expect("a seed");
    let seed = seed.trim_matches('"').to_owned();
    let shown = network(dir, "show", &[]);
    for secret in [&relay_secret, &seed] {
        assert!(!stdout(&shown).contains(secret) && !stderr(&shown).contains(secret));
    }
    let check = |arguments: &[&str], code: i32, expected: &str| {
        let output = network(dir, arguments[0], &arguments[1..]);
        assert_eq!(output.status.code(), Some(code), "{expected}: {output:?}");
        let error = stderr(&output);
        assert!(error.contains(expected) && error.lines().count() == 1, "{expected}: {error}");
        assert!(!error.contains(&relay_secret) && !error.contains(&seed), "{error}");
    };
    let other = made(&[]);
    for (name, text, arguments, code, expected) in [
        ("network.key", key.replace("seed", "sead"), &["invite"][..], 1, "restore it"),
        ("network.key", read(&other, "network.key"), &["invite"], 1, "another network"),
        (
            "network.toml",
            read(folder.path(), "network.toml").replace("slice", "slyce"),
            &["show"],
            2,
            "network.toml:",
        ),
        ("revocations", "x".to_owned(), &["show"], 1, "restore it"),
    ] {
        let path = dir.join(name);
        let good = fs::read(&path).expect("is there");
        fs::write(&path, text).expect("is written");
        check(arguments, code, expected);
        fs::rename(&path, dir.join("aside")).expect("is moved");
        check(arguments, 1, "is not there");
        fs::rename(dir.join("aside"), &path).expect("is moved");
        fs::write(&path, good).expect("is written");
    }
    // Another network's list would bring everybody back.
    fs::copy(other.path().join("revocations"), dir.join("revocations")).expect("is copied");
    let node = Identity::from_seed(&[1; 32]).public_key().to_string();
    check(&["revoke", "--offline", &node], 1, "of another network");
}

#[test]
fn wrong_use_of_the_network_commands_ends_with_2() {
    let folder = TempDir::new().expect("a folder");
    let dir = folder.path().to_str().expect("text");
    for arguments in [
        &["network"][..],
        &["network", "init", "--dir", dir],
        &["network", "init", "mesh.example", "--dir", dir],
        &["network", "init", "a..b", "--routes", "10.42.0.0/16", "--dir", dir],
        &["network", "init", "mesh.example", "--routes", "10.42.0.1/16", "--dir", dir],
        &[
            "network",
            "init",
            "mesh.example",
            "--routes",
            "10.0.0.0/8",
            "--slice",
            "33",
            "--server",
            "192.0.2.53",
            "--dir",
            dir,
        ],
        &[
            "network",
            "init",
            "mesh.example",
            "--routes",
            "10.0.0.0/8",
            "--server",
            "ns.example",
            "--dir",
            dir,
        ],
        &["network", "revoke", "--dir", dir],
    ] {
        let output = zonemesh().args(arguments).output().expect("it starts");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).expect("is there").count(), 0, "nothing was made");
}

fn init(dir: &Path, more: &[&str]) -> Output {
    let arguments = ["network", "init", "mesh.example", "--routes", "10.42.0.0/16"];
    let mut command = zonemesh();
    command.args(arguments).args(["--server", "192.0.2.53", "--dir"]).arg(dir).args(more);
    command.output().expect("it starts")
}

fn made(more: &[&str]) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    assert_eq!(init(folder.path(), more).status.code(), Some(0));
    folder
}

fn network(dir: &Path, command: &str, arguments: &[&str]) -> Output {
    let mut process = zonemesh();
    process.args(["network", command, "--dir"]).arg(dir).args(arguments);
    process.env_remove("ZONEMESH_PASSPHRASE").stdin(std::process::Stdio::null());
    process.output().expect("it starts")
}

fn token(output: &Output) -> Token {
    stdout(output).parse().expect("a token")
}

fn read(folder: impl AsRef<Path>, name: &str) -> String {
    fs::read_to_string(folder.as_ref().join(name)).expect("is there")
}

fn list(dir: &Path) -> RevocationList {
    let network = NetworkFile::load(&dir.join("network.toml")).expect("is one").key;
    let bytes = fs::read(dir.join("revocations")).expect("is there");
    RevocationList::read(&bytes, &network).expect("is the network's")
}
