//! A world of one's own: where a lab lives and with which it goes.
//!
//! The process that wants a lab (the outer one) starts its own executable again
//! under `unshare`, as the first process of new network, mount and process
//! namespaces. That inner process calls [`furnish`] and builds the lab. When the
//! inner process ends, the kernel kills every process of its world and takes down
//! the mounts and namespaces with it.
//!
//! The inner process ends with its work, or when its standard input closes: that is
//! a pipe whose other end the outer process holds, so it closes by Ctrl-C as well as
//! by `kill -9` of the outer process. Should `unshare` in between be killed, it takes
//! the inner process along (`--kill-child`).

use std::{
    env,
    io::{self, Read},
    process::{self, Command, ExitCode, ExitStatus, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};

use super::{namespace::run, programs};

/// Set for the inner process.
const INSIDE: &str = "ZONEMESH_LAB_WORLD";

/// How a process ends that was interrupted, as shells count it (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

/// How the inner process of a test ends when the test has passed. Not 0: that is also
/// how a test program ends that knows no test of the given name.
const PASSED: i32 = 42;

/// Whether this process is the first one of a lab's world. Asking for both keeps a
/// stray variable from furnishing the machine itself.
pub fn is_inside() -> bool {
    process::id() == 1 && env::var_os(INSIDE).is_some()
}

/// The command that runs the own executable again as the first process of a new
/// world. Its standard input is the pipe whose closing ends the world. `needed` are the
/// programs that it will call beside those of every lab.
///
/// # Errors
/// When this process is not root's, or a program is missing.
pub fn command(needed: &[&str]) -> Result<Command> {
    if !rustix::process::geteuid().is_root() {
        bail!("a lab needs root for its network namespaces: run this again as root (sudo)");
    }
    if env::var_os(INSIDE).is_some() {
        // A program that starts labs within labs would not end.
        bail!("this is inside a lab already");
    }
    programs::require(&[programs::LAB, needed].concat())?;
    // Many of them stand where only a login shell of root's looks.
    let path = env::var("PATH").unwrap_or_default();
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--"])
        .arg(env::current_exe().context("cannot find the own executable")?)
        .env(INSIDE, "1")
        .env("PATH", format!("{path}:/usr/sbin:/sbin"))
        .stdin(Stdio::piped());
    Ok(command)
}

/// Makes the world of this inner process ready: an empty `/run`, so that named
/// namespaces and sockets stay private, and an end when standard input closes.
///
/// # Errors
/// When a mount is refused.
pub fn furnish() -> Result<()> {
    run(Command::new("mount").args(["-t", "tmpfs", "-o", "mode=755", "lab", "/run"]), "")?;
    run(Command::new("ip").args(["link", "set", "lo", "up"]), "")?;
    thread::Builder::new().name("world's end".to_owned()).spawn(|| {
        let mut stdin = io::stdin();
        let mut byte = [0];
        while !matches!(stdin.read(&mut byte), Ok(0) | Err(_)) {}
        process::exit(INTERRUPTED.into());
    })?;
    Ok(())
}

/// Runs a program's `body` in a world of its own and tells how it ended: all that its `main`
/// has to do. `needed` are the programs that it will call beside those of every lab.
pub fn in_own(needed: &[&str], body: impl FnOnce() -> Result<()>) -> ExitCode {
    let work = || {
        if is_inside() {
            furnish()?;
            body()?;
            return Ok(true);
        }
        let status = outlive(command(needed)?)?;
        Ok::<bool, anyhow::Error>(status.success())
    };
    match work() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the inner process and waits for its end.
fn outlive(mut command: Command) -> io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    // Waiting would close it, and with it the world.
    let lifeline = child.stdin.take();
    let status = child.wait();
    drop(lifeline);
    status
}

/// Runs a test's `body` in a world of its own. `test` is the test's path as the test
/// program knows it, such as `nats::full_cone`.
///
/// # Panics
/// When the body does, or when it cannot be run: that is what makes the test fail.
pub fn isolated(test: &str, body: impl FnOnce()) {
    if is_inside() {
        furnish().expect("the world can be furnished");
        body();
        process::exit(PASSED);
    }
    let mut command = command(&[]).expect("a world can be made");
    command.args(["--exact", test, "--nocapture"]);
    let status = outlive(command).expect("unshare starts, and can be waited for");
    assert!(!status.success(), "no test is named {test:?}: nothing ran");
    assert_eq!(status.code(), Some(PASSED), "{test} failed in its world: see above");
}
