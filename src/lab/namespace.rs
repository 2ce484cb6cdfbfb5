//! One network namespace, named, and what can be done in it.

use std::{
    fs::{self, File},
    io::Write,
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

/// What every namespace of a lab is set to.
///
/// Bridged frames must not pass the IP rules of the router that holds the bridge:
/// two hosts of one LAN talk without their NAT. Duplicate address detection would
/// keep each new address unusable for a second. Reverse-path filters are the
/// machine's habit, inherited, and not part of any scenario.
const SETTINGS: &[(&str, &str)] = &[
    ("bridge/bridge-nf-call-iptables", "0"),
    ("bridge/bridge-nf-call-ip6tables", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/accept_ra", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
];

/// What makes a namespace forward packets.
const FORWARDING: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
];

/// How long a link may take to carry packets: milliseconds as a rule, but the kernel
/// lets all namespaces of a busy machine wait for each other.
const LINK_LIMIT: Duration = Duration::from_secs(10);

/// How often a link is looked at.
const LINK_POLL: Duration = Duration::from_millis(5);

/// A named network namespace of the world this process is in.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes a namespace in which only the loopback device is, and up.
    ///
    /// # Errors
    /// When the name is taken or the kernel refuses.
    pub fn add(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]), "")?;
        let namespace = Self { name: name.to_owned() };
        namespace.set(SETTINGS)?;
        namespace.ip("link set lo up")?;
        Ok(namespace)
    }

    /// The namespace of this name, which must have been made in this world.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run `program` in this namespace. The process that is
    /// spawned is the program itself, so its number and its end are the program's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `program` to its end and hands back what it wrote to standard output.
    ///
    /// # Errors
    /// When it cannot be started or fails; the error carries what it complained of.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        run(self.command(program).args(args), "")
    }

    /// Runs the lines of an `ip -batch` file in this namespace.
    ///
    /// # Errors
    /// When a line is refused.
    pub fn ip(&self, batch: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-netns", &self.name, "-batch", "-"]);
        run(&mut command, batch).with_context(|| format!("in {}: {batch}", self.name)).map(drop)
    }

    /// Loads an nftables ruleset into this namespace, whole or not at all.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn nft(&self, ruleset: &str) -> Result<()> {
        run(self.command("nft").args(["-f", "-"]), ruleset)
            .with_context(|| format!("in {}:\n{ruleset}", self.name))
            .map(drop)
    }

    /// Lets it forward packets between its links. To be called before links come:
    /// they take over the defaults set here.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn forward(&self) -> Result<()> {
        self.set(FORWARDING)
    }

    /// Waits until these links carry packets. The end of a link that is set up first
    /// drops what it is given until the kernel has noticed, in its own time, that the
    /// other end is there.
    ///
    /// # Errors
    /// When that does not happen in good time.
    pub fn wait_for_links(&self, devices: &[&str]) -> Result<()> {
        let start = Instant::now();
        loop {
            let links = self.run("ip", &["-json", "link", "show"])?;
            let links: Value = serde_json::from_str(&links).context("ip prints JSON")?;
            let up = |device: &&str| {
                let mut links = links.as_array().into_iter().flatten();
                links.any(|link| link["ifname"] == **device && link["operstate"] == "UP")
            };
            if devices.iter().all(up) {
                return Ok(());
            }
            if start.elapsed() > LINK_LIMIT {
                bail!("the links {} of {} do not come up: {links}", devices.join(", "), self.name);
            }
            thread::sleep(LINK_POLL);
        }
    }

    /// Runs `work` on a thread inside this namespace. Sockets that it opens stay in
    /// the namespace also when they are used elsewhere.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(self.path())
            .with_context(|| format!("cannot open the namespace {}", self.name))?;
        thread::scope(|scope| {
            scope
                .spawn(|| -> Result<T> {
                    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                        .with_context(|| format!("cannot enter the namespace {}", self.name))?;
                    Ok(work())
                })
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Sets what is below `/proc/sys/net`, where the kernel has it.
    pub(super) fn set(&self, settings: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in settings {
                let path = PathBuf::from("/proc/sys/net").join(key);
                // A kernel without bridge filtering or IPv6 has nothing to switch off.
                if path.exists() {
                    fs::write(&path, value).with_context(|| format!("cannot set {key}"))?;
                }
            }
            Ok(())
        })?
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

/// Runs a command to its end with `input` on its standard input, and hands back its
/// standard output.
///
/// # Errors
/// When it cannot be started or fails; the error carries what it complained of.
pub fn run(command: &mut Command, input: &str) -> Result<String> {
    let shown = format!("{command:?}").replace('"', "");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that fails before it has read all tells more by its exit.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {shown}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} failed ({}): {}", output.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
