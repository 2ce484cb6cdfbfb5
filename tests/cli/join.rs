//! `zonemesh up` with tokens that let nobody in: exit status 2, and what to do.

use std::{
    io::Write,
    process::{Output, Stdio},
    time::{Duration, SystemTime},
};

use zonemesh::{join::TOKEN_VARIABLE, state::State};
use zonemesh_discovery::membership::{Access, Limits, NetworkKey, Token, Validity};

use crate::{Folder, stderr, zonemesh};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A token of a network, good between two times.
fn token(network: u8, from: SystemTime, until: SystemTime) -> Token {
    let limits = Limits::new("", &["10.42.0.0/16".parse().expect("a prefix")], &[""; 0]);
    Token::issue(
        &NetworkKey::from_seed(&[network; 32]),
        &[network; 32],
        "mesh.example".parse().expect("a zone"),
        Validity::new(from, Some(until)),
        limits.expect("in bounds"),
        Access::default(),
    )
    .expect("it fits")
}

fn good(network: u8) -> Token {
    let now = SystemTime::now();
    token(network, now - DAY, now + DAY)
}

/// A folder with a configuration that says where its state is, and no more.
fn folder() -> Folder {
    Folder::with("[node]\nstate_dir = \"state\"\n")
}

fn up(folder: &Folder, arguments: &[&str]) -> Output {
    let mut command = zonemesh();
    command.arg("up").arg("-c").arg(folder.path("zonemesh.toml")).args(arguments);
    command.output().expect("the executable starts")
}

fn assert_told(output: &Output, expected: &str) {
    let told = stderr(output);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains(expected), "not {expected:?}: {told}");
    assert_eq!(told.lines().filter(|line| line.starts_with("zonemesh: ")).count(), 1, "{told}");
}

#[test]
fn a_token_that_is_none_is_told_before_anything_is_made() {
    let folder = folder();
    let whole = good(1).to_string();
    let last = whole.len() - 1;
    let other = if whole.ends_with('A') { "B" } else { "A" };
    let altered = format!("{}{other}", &whole[..last]);
    let newer = whole.replacen("zm1", "zm2", 1);
    for (token, expected) in [
        ("", "this is no token"),
        ("mesh.example", "this is no token"),
        (&newer, "of a newer version"),
        (&whole[..whole.len() / 2], "cut short"),
        (&altered, "altered"),
    ] {
        assert_told(&up(&folder, &["--join", token]), expected);
    }
    assert!(!folder.path("state").exists());
}

#[test]
fn a_token_comes_by_file_environment_and_standard_input_too() {
    let folder = folder();
    let cut = good(1).to_string();
    let cut = &cut[..cut.len() - 8];
    folder.write("token", cut);
    let file = folder.path("token").display().to_string();
    assert_told(&up(&folder, &["--join", &file]), &format!("--join {file}: this token"));
    let mut command = zonemesh();
    command.arg("up").arg("-c").arg(folder.path("zonemesh.toml"));
    let output = command.env(TOKEN_VARIABLE, cut).output().expect("it starts");
    assert_told(&output, "ZONEMESH_TOKEN: this token");
    let mut command = zonemesh();
    command.args(["up", "--join", "-", "-c"]).arg(folder.path("zonemesh.toml"));
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(cut.as_bytes()).expect("it reads");
    drop(input);
    assert_told(&child.wait_with_output().expect("it ends"), "--join: this token");
    folder.write(
        "zonemesh.toml",
        "[node]\nstate_dir = \"state\"\n[network]\ntoken_file = \"token\"\n",
    );
    assert_told(&up(&folder, &[]), "network.token_file");
    folder.write(
        "zonemesh.toml",
        "[node]\nstate_dir = \"state\"\n[network]\ntoken_file = \"none\"\n",
    );
    assert_told(&up(&folder, &[]), "cannot read the token: No such file");
}

#[test]
fn a_token_that_is_not_good_now_tells_when_it_is_and_what_the_clock_shows() {
    let now = SystemTime::now();
    let over = token(1, now - 3 * DAY, now - DAY).to_string();
    assert_told(&up(&folder(), &["--join", &over]), "this token has expired: it was good until");
    let later = token(1, now + DAY, now + 3 * DAY).to_string();
    assert_told(&up(&folder(), &["--join", &later]), "is the clock right?");
}

#[test]
fn a_member_does_not_join_another_network() {
    let folder = folder();
    let state = State::open(&folder.path("state")).expect("it opens");
    let node = state.identity().expect("it is made").public_key();
    let admitted = good(1).admit(&node, "a", &[], &[""; 0], SystemTime::now());
    state.save_membership(&admitted.expect("let in")).expect("it is kept");
    drop(state);
    let output = up(&folder, &["--join", &good(2).to_string()]);
    assert_told(&output, "name another node.state_dir");
    assert!(stderr(&output).contains(&good(1).network().to_string()), "{output:?}");
}

#[test]
fn only_members_can_trust_members_alone() {
    let folder = Folder::with(
        "[node]\nstate_dir = \"state\"\n[zone]\nname = \"mesh.example\"\n\
         [network]\ntrust = \"members\"\n",
    );
    assert_told(&up(&folder, &[]), "join with a token");
}
