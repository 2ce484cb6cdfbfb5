//! `zonemesh lab`, run as a user runs it: it shows a mesh, and leaves nothing behind,
//! however it ends.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// Marks all processes of one lab by their environment.
const MARK: &str = "ZONEMESH_TEST_MARK";

/// How long the kernel may take to take a world down.
const END_LIMIT: Duration = Duration::from_secs(10);

#[test]
fn lab_shows_paths_and_leaves_nothing() {
    let (mut child, mark) = start("whole");
    let mut output = String::new();
    child.stdout.take().expect("it is piped").read_to_string(&mut output).expect("text");
    let status = child.wait().expect("a child can be waited for");
    assert!(status.success(), "{status}:\n{output}");
    for expected in
        ["advertised", "advert of b", "direct path to b", "session with a", "Mbit/s", "Done"]
    {
        assert!(output.contains(expected), "no {expected:?} in:\n{output}");
    }
    assert_gone(&mark);
}

#[test]
fn lab_ends_in_order_when_it_is_interrupted() {
    let (mut child, mark) = start("interrupted");
    wait_for_nodes(&mut child);
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let status = child.wait().expect("a child can be waited for");
    assert_eq!(status.code(), Some(130));
    assert_gone(&mark);
}

#[test]
fn lab_leaves_nothing_when_it_is_killed() {
    let (mut child, mark) = start("killed");
    wait_for_nodes(&mut child);
    child.kill().expect("it runs");
    child.wait().expect("a child can be waited for");
    assert_gone(&mark);
}

fn start(name: &str) -> (Child, String) {
    let mark = format!("{name}-{}", std::process::id());
    let child = Command::new(env!("CARGO_BIN_EXE_zonemesh"))
        .arg("lab")
        .env(MARK, &mark)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the executable was built");
    (child, mark)
}

/// Reads the output until nodes run; from then on there is something to leave behind.
fn wait_for_nodes(child: &mut Child) {
    let mut lines = BufReader::new(child.stdout.as_mut().expect("it is piped")).lines();
    let started = |line: std::io::Result<String>| line.expect("text").contains("started");
    assert!(lines.any(started), "no node was started");
}

/// No process of this lab is left, and so no namespace and no mount: they go with the
/// last process in them.
fn assert_gone(mark: &str) {
    let entry = format!("{MARK}={mark}");
    let start = Instant::now();
    loop {
        let left: Vec<String> = fs::read_dir("/proc")
            .expect("Linux")
            .filter_map(|process| {
                let folder = process.ok()?.path();
                let environment = fs::read(folder.join("environ")).ok()?;
                let ours = environment.split(|byte| *byte == 0).any(|var| var == entry.as_bytes());
                ours.then(|| fs::read_to_string(folder.join("cmdline")).unwrap_or_default())
            })
            .collect();
        if left.is_empty() {
            return;
        }
        assert!(start.elapsed() < END_LIMIT, "left running: {left:#?}");
        thread::sleep(Duration::from_millis(50));
    }
}
