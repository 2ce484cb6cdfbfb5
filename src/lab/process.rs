//! A daemon that the lab started: its log, its readiness, its end.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How many lines of its log a failure shows.
const TAIL: usize = 80;

/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(20);

/// TCP_LISTEN as `/proc/net/tcp` prints it (Linux: include/net/tcp_states.h).
const TCP_LISTEN: &str = "0A";

/// A running child process, killed when it is dropped.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with standard output and error going to the file `log`.
    ///
    /// # Errors
    /// When the log cannot be made or the program cannot be started.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> io::Result<Self> {
        let file = File::create(log)?;
        let child =
            command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file).spawn().map_err(
                |error| io::Error::new(error.kind(), format!("cannot start {name}: {error}")),
            )?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When the process ends first, or `limit` passes; the error carries the log's end.
    pub fn wait_ready(
        &mut self,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> io::Result<()> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failure(&format!("ended early ({status})")));
            }
            if start.elapsed() > limit {
                return Err(self.failure(&format!("is not ready after {limit:?}")));
            }
            thread::sleep(POLL);
        }
        Ok(())
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The process itself, to be looked at while it starts.
    pub fn process(&self) -> Process {
        Process(self.child.id())
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// When the process cannot be waited for.
    pub fn ended(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills it (SIGKILL) and waits for its end.
    pub fn kill(&mut self) {
        // Both fail only where the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn failure(&self, what: &str) -> io::Error {
        let log = self.log();
        let tail: Vec<&str> = log.lines().rev().take(TAIL).collect();
        let tail: Vec<&str> = tail.into_iter().rev().collect();
        io::Error::other(format!("{} {what}; the end of its log:\n{}", self.name, tail.join("\n")))
    }
}

/// A transport of sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Datagrams.
    Udp,
    /// Listening sockets for streams.
    Tcp,
}

/// A process, by its number.
#[derive(Debug, Clone, Copy)]
pub struct Process(u32);

impl Process {
    /// On how many addresses a socket is bound to the port, in the namespace in which
    /// the process is: it need not be ours, and no probe has to be sent there.
    pub fn bound(self, protocol: Protocol, port: u16) -> usize {
        let port = format!(":{port:04X}");
        let (tables, listening) = match protocol {
            Protocol::Udp => (["udp", "udp6"], None),
            Protocol::Tcp => (["tcp", "tcp6"], Some(TCP_LISTEN)),
        };
        let mut addresses = BTreeSet::new();
        for table in tables {
            // The process may not have got as far, or have ended; then nothing is bound.
            let sockets = fs::read_to_string(format!("/proc/{}/net/{table}", self.0));
            for socket in sockets.unwrap_or_default().lines() {
                let mut fields = socket.split_whitespace().skip(1);
                let local = fields.next().unwrap_or_default();
                let state = fields.nth(1);
                if let Some(address) = local.strip_suffix(&port)
                    && listening.is_none_or(|listen| state == Some(listen))
                {
                    addresses.insert(address.to_owned());
                }
            }
        }
        addresses.len()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            // The log's file goes with the world, and the cause may stand in it.
            eprintln!("{}", self.failure("was part of what failed"));
        }
    }
}
