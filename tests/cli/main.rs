//! The real executable: what it is told and what it answers. Only what runs a daemon
//! needs root; nothing leaves the machine.

mod commands;
mod configuration;
mod daemon;
mod join;
mod network;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use tempfile::TempDir;
use zonemesh::join::TOKEN_VARIABLE;

/// A public key that is one.
const KEY: &str = "xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=";

/// The executable, with nothing of this machine's environment that it reads.
fn zonemesh() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zonemesh"));
    command.env_remove("RUST_LOG").env_remove(TOKEN_VARIABLE);
    command
}

fn run(arguments: &[&str]) -> Output {
    zonemesh().args(arguments).output().expect("the executable starts")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text on standard output")
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text on standard error")
}

/// A folder with a configuration and the secrets that it may name.
struct Folder(TempDir);

impl Folder {
    fn with(configuration: &str) -> Self {
        let folder = Self(TempDir::new().expect("a temporary folder"));
        folder.write("zonemesh.toml", configuration);
        folder.write("tsig.key", "c2VjcmV0IGZvciB0aGUgdGVzdHMgb25seSE=\n");
        folder.write("peer.psk", KEY);
        folder.write("short.psk", "c2hvcnQ=");
        folder.write("text.key", "key \"mesh-key\" { secret \"…\"; };");
        folder.write("empty.key", "\n");
        folder
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("it is written");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}
