//! The command line: arguments in, exit status out.
//!
//! 0: done. 1: failed. 2: wrong use, or a bad configuration. What went wrong is told
//! in one line on standard error. No argument has to carry a secret, for others can read the
//! arguments of a process: a token may come as an argument, and better by a file, standard
//! input or the environment.

mod network;

use std::{
    fs,
    io::{self, IsTerminal, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Config, ConfigError, DEFAULT_FILE, SOCKET_DIR},
    control::{Client, Reply, Request},
    join::{self, JoinError},
    lab, netcheck,
    network::{DEFAULT_DIR, NETWORK_FILE},
    network::{FolderError, InviteError},
    node, serve, state,
    status::{PathKind, PathStatus, Status, printable},
};

/// Wrong use, as clap ends with it too.
const MISUSE: u8 = 2;

/// How often `status --watch` looks, and how far two pings are apart.
const INTERVAL: Duration = Duration::from_secs(1);

/// To the upper left corner, and all below it cleared (ECMA-48 CUP and ED).
const CLEAR: &str = "\u{1b}[H\u{1b}[J";

/// A WireGuard mesh that you join through a DNS zone.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// What to log: error, warn, info, debug, trace, or a filter like RUST_LOG's,
    /// which it overrides [default: info]
    #[arg(long, global = true, value_name = "LEVEL", value_parser = filter)]
    log: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a node in the foreground, until SIGINT or SIGTERM
    Up {
        /// The configuration; a member of a network needs none [default:
        /// /etc/zonemesh/zonemesh.toml]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// Joins the network of this token, of the one in this file, or of the one on standard
        /// input (-). Others see arguments: prefer a file, or the environment's ZONEMESH_TOKEN.
        /// Once the node has joined, it needs no token
        #[arg(long, value_name = "TOKEN|FILE|-")]
        join: Option<String>,
    },
    /// Runs a rendezvous in the foreground, until SIGINT or SIGTERM: zone, STUN and TURN
    Serve {
        /// The configuration [default: /etc/zonemesh/zonemesh.toml, and where that is not
        /// there, what goes without saying for the network in /etc/zonemesh/network.toml]
        #[arg(short, long, value_name = "FILE", conflicts_with = "network")]
        config: Option<PathBuf>,
        /// Goes without a configuration: serves this network (its network.toml)
        #[arg(long, value_name = "FILE")]
        network: Option<PathBuf>,
    },
    /// Tells of this node, its NAT, its peers and their paths
    Status {
        #[command(flatten)]
        socket: SocketArguments,
        /// Finds the socket by this configuration
        #[arg(short, long, value_name = "FILE", conflicts_with = "socket")]
        config: Option<PathBuf>,
        /// As JSON, for machines
        #[arg(long)]
        json: bool,
        /// Again every second, until interrupted
        #[arg(long)]
        watch: bool,
    },
    /// Sends echo requests over the mesh, and tells the path of each answer
    Ping {
        /// A name, a public key or an overlay address
        peer: String,
        /// How many; 0: until interrupted [default: 4; with --until-direct: 0]
        #[arg(short, value_name = "N")]
        count: Option<u16>,
        /// Ends well with the first answer over a direct path
        #[arg(long)]
        until_direct: bool,
        #[command(flatten)]
        socket: SocketArguments,
        /// Finds the socket by this configuration
        #[arg(long, value_name = "FILE", conflicts_with = "socket")]
        config: Option<PathBuf>,
    },
    /// Tells why a peer is reached as it is: every pair of ends, its last check, its result
    Explain {
        /// A name, a public key or an overlay address
        peer: String,
        /// As JSON, for machines
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        socket: SocketArguments,
        /// Finds the socket by this configuration
        #[arg(short, long, value_name = "FILE", conflicts_with = "socket")]
        config: Option<PathBuf>,
    },
    /// Tells how the NAT behaves, whether the router maps ports, and which STUN servers and
    /// relays answer
    Netcheck {
        /// The configuration [default: /etc/zonemesh/zonemesh.toml, where there is one]
        #[arg(short, long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// As JSON, for machines
        #[arg(long)]
        json: bool,
        /// Also measure how long the NAT keeps an idle mapping: takes minutes
        #[arg(long)]
        lifetime: bool,
    },
    /// Makes a network, lets nodes in, and takes them out again
    #[command(subcommand)]
    Network(network::NetworkCommand),
    /// Shows two sites behind NAT on this machine, in namespaces, to watch it work
    Lab,
}

#[derive(Debug, Args)]
struct SocketArguments {
    /// The daemon's control socket [default: the only one in /run/zonemesh]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(code) => code,
        Err(error) => failure(&error),
    }
}

fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    match arguments.command {
        Command::Up { config, join } => {
            let mut config = load(config.as_deref())?;
            // What is wrong with it is told when the folder has been opened.
            let is_member = !matches!(state::membership(&config.node.state_dir), Ok(None));
            let given = join::given(join.as_deref(), &mut config, is_member)?;
            if given.is_none() && !is_member {
                config.check_node()?;
            }
            log(arguments.log);
            node::run(config, given).map(|()| ExitCode::SUCCESS)
        }
        Command::Serve { config, network } => {
            let config = serve_config(config, network)?;
            config.need_serve()?;
            log(arguments.log);
            serve::run(&config).map(|()| ExitCode::SUCCESS)
        }
        Command::Status { socket, config, json, watch } => {
            let socket = socket.find(config.as_deref())?;
            if watch { watch_status(&socket, json) } else { say(&status(&socket, json)?) }
                .map(|()| ExitCode::SUCCESS)
        }
        Command::Ping { peer, count, until_direct, socket, config } => {
            let socket = socket.find(config.as_deref())?;
            let count = count.unwrap_or(if until_direct { 0 } else { 4 });
            let reached = ping(&socket, &peer, count, until_direct)?;
            Ok(if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Explain { peer, json, socket, config } => {
            let socket = socket.find(config.as_deref())?;
            say(&explain(&socket, peer, json)?).map(|()| ExitCode::SUCCESS)
        }
        Command::Netcheck { config, json, lifetime } => {
            let mut config = load(config.as_deref())?;
            if let Some(membership) = state::membership(&config.node.state_dir)? {
                join::fill_access(&mut config, &membership)?;
            }
            log(arguments.log);
            let report = netcheck::run(&config, lifetime)?;
            say(&if json { json_line(&report)? } else { report.to_string() })?;
            if !report.is_conclusive() {
                match report.stun_error {
                    Some(error) => bail!(error),
                    None => bail!("no STUN server answers, and no relay: is UDP to them blocked?"),
                }
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Network(command) => {
            log(arguments.log);
            network::run(command)
        }
        Command::Lab => lab::demo::run(),
    }
}

/// The configuration of a rendezvous, which needs none.
fn serve_config(config: Option<PathBuf>, network: Option<PathBuf>) -> Result<Config, ConfigError> {
    let usual = Path::new(DEFAULT_FILE);
    let made = Path::new(DEFAULT_DIR).join(NETWORK_FILE);
    match (config, network) {
        (_, Some(network)) => Config::of_network(&network),
        (Some(config), None) => Config::load(&config),
        (None, None) if !usual.exists() && made.exists() => Config::of_network(&made),
        (None, None) => Config::load(usual),
    }
}

/// The configuration that is named, or the default one, which may be missing.
fn load(config: Option<&Path>) -> Result<Config, ConfigError> {
    match config {
        Some(file) => Config::load(file),
        None => Config::load_if_present(Path::new(DEFAULT_FILE)),
    }
}

/// Tells the error and everything behind it, and gives the exit status.
fn failure(error: &anyhow::Error) -> ExitCode {
    // A reader that has seen enough, such as `head`, is no failure.
    let io = error.downcast_ref::<io::Error>();
    if io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return ExitCode::SUCCESS;
    }
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Some errors tell their cause themselves.
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    eprintln!("zonemesh: {text}");
    let is_misuse = error.is::<ConfigError>()
        || error.is::<JoinError>()
        || matches!(error.downcast_ref(), Some(FolderError::File(_)))
        || matches!(
            error.downcast_ref(),
            Some(InviteError::Limits(_) | InviteError::Route(_) | InviteError::TooLong)
        );
    if is_misuse { ExitCode::from(MISUSE) } else { ExitCode::FAILURE }
}

fn filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// What is logged unless something else is asked for. To boringtun a peer that does not
/// answer is an error; to a mesh it is everyday life, and `status` tells it.
const LOG: &str = "info,boringtun=off";

fn log(level: Option<String>) {
    let filter = match level {
        Some(level) => EnvFilter::new(level),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG)),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

impl SocketArguments {
    /// The socket of the daemon that is meant.
    fn find(self, config: Option<&Path>) -> anyhow::Result<PathBuf> {
        if let Some(socket) = self.socket {
            return Ok(socket);
        }
        if let Some(config) = config {
            return Ok(Config::load(config)?.control_socket);
        }
        let entries = fs::read_dir(SOCKET_DIR).into_iter().flatten().flatten();
        let mut found: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
            .collect();
        if found.len() > 1 {
            // What a crash has left is nobody's.
            found.retain(|path| UnixStream::connect(path).is_ok());
        }
        found.sort();
        match &found[..] {
            // The error about this one will tell what to do.
            [] => Ok(Path::new(SOCKET_DIR).join("zm0.sock")),
            [only] => Ok(only.clone()),
            several => {
                let names: Vec<_> = several.iter().map(|path| path.display().to_string()).collect();
                bail!("several nodes run here: choose by --socket one of {}", names.join(", "))
            }
        }
    }
}

fn status(socket: &Path, json: bool) -> anyhow::Result<String> {
    let status: Box<Status> = match Client::connect(socket)?.ask(&Request::Status)? {
        Reply::Status(status) => status,
        other => return Err(unexpected(other)),
    };
    if json { json_line(&status) } else { Ok(status.to_string()) }
}

fn explain(socket: &Path, peer: String, json: bool) -> anyhow::Result<String> {
    match Client::connect(socket)?.ask(&Request::Explain { peer })? {
        Reply::Explanation(told) if json => json_line(&told),
        Reply::Explanation(told) => Ok(told.to_string()),
        other => Err(unexpected(other)),
    }
}

/// Shows the status every second; a daemon that is gone for a while may come back.
fn watch_status(socket: &Path, json: bool) -> anyhow::Result<()> {
    let mut shown = status(socket, json)?;
    let clear = if io::stdout().is_terminal() && !json { CLEAR } else { "" };
    loop {
        say(&format!("{clear}{shown}"))?;
        thread::sleep(INTERVAL);
        shown = match status(socket, json) {
            Ok(status) => status,
            // A machine reads every line as a status.
            Err(error) if json => return Err(error),
            Err(error) => format!("{error}\n"),
        };
    }
}

/// Pings until `count` are sent; whether any answer came, or a direct one where that
/// is waited for. Who waits for a direct path also waits for a peer that is yet to come.
fn ping(socket: &Path, peer: &str, count: u16, until_direct: bool) -> anyhow::Result<bool> {
    let mut client = Client::connect(socket)?;
    let mut answered = false;
    let mut told = false;
    let mut sequence = 0u16;
    loop {
        sequence = sequence.wrapping_add(1);
        let next = Instant::now() + INTERVAL;
        match client.ask(&Request::Ping { peer: peer.to_owned(), sequence })? {
            Reply::Echo { peer, target, rtt_ms, path } => {
                if !told {
                    say(&format!("{} ({target})\n", printable(&peer)))?;
                    told = true;
                }
                say(&echo_line(sequence, rtt_ms, &path))?;
                answered |= rtt_ms.is_some();
                if until_direct && rtt_ms.is_some() && path.kind == PathKind::Direct {
                    return Ok(true);
                }
            }
            Reply::Error { message } if until_direct => {
                if sequence == 1 {
                    eprintln!("zonemesh: {message}; waiting");
                }
            }
            other => return Err(unexpected(other)),
        }
        if count != 0 && sequence == count {
            return Ok(answered && !until_direct);
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

fn echo_line(sequence: u16, rtt_ms: Option<f64>, path: &PathStatus) -> String {
    match rtt_ms {
        Some(rtt) => format!("seq={sequence} rtt={rtt:.1} ms via {path}\n"),
        None => format!("seq={sequence} no answer, path {path}\n"),
    }
}

/// What the daemon says instead of what was asked for.
fn unexpected(reply: Reply) -> anyhow::Error {
    match reply {
        Reply::Error { message } => anyhow::Error::msg(message),
        _ => anyhow::Error::msg("the daemon answers another question: is it of this version?"),
    }
}

fn json_line(value: &impl serde::Serialize) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string(value)?))
}

/// Writes to standard output; unlike `print!` without a panic when nobody reads.
fn say(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn an_echo_s_line_tells_its_path() {
        let direct = PathStatus {
            kind: PathKind::Direct,
            remote: Some("198.51.100.7:51820".parse().expect("an address")),
            ..PathStatus::NONE
        };
        assert_eq!(
            echo_line(1, Some(12.34), &direct),
            "seq=1 rtt=12.3 ms via direct 198.51.100.7:51820\n"
        );
        assert_eq!(echo_line(2, None, &PathStatus::NONE), "seq=2 no answer, path none\n");
    }
}
