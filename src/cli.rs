//! The command line: arguments in, exit status out.

use std::{path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Config, DEFAULT_FILE},
    control::{Client, Reply, Request},
    node,
};

/// A WireGuard mesh that you join through a DNS zone.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs a node in the foreground.
    Up {
        /// The configuration.
        #[arg(short, default_value = DEFAULT_FILE)]
        config: PathBuf,
    },
    /// Shows two sites behind NAT on this machine, in namespaces.
    Lab,
    /// Tells of this node, its NAT, its peers and their paths.
    Status {
        /// The daemon's control socket.
        #[arg(long, default_value = "/run/zonemesh/zm0.sock")]
        socket: PathBuf,
        /// For machines.
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Command::Up { config } => {
            let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
            match Config::load(&config) {
                Ok(config) => node::run(config),
                Err(error) => {
                    eprintln!("zonemesh: {error}");
                    return ExitCode::from(2);
                }
            }
        }
        Command::Lab => match crate::lab::demo::run() {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Status { socket, json } => status(&socket, json),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zonemesh: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn status(socket: &std::path::Path, json: bool) -> anyhow::Result<()> {
    match Client::connect(socket)?.ask(&Request::Status)? {
        Reply::Status(status) if json => println!("{}", serde_json::to_string(&status)?),
        Reply::Status(status) => print!("{status}"),
        other => anyhow::bail!("unexpected answer: {other:?}"),
    }
    Ok(())
}
