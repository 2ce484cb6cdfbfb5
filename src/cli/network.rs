//! `zonemesh network …`: the administrator's commands.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::SystemTime,
};

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use ipnet::IpNet;
use zonemesh_discovery::{
    advert::{Zone, is_public},
    membership::{Access, DEFAULT_SLICE, MAX_SERVERS, RevocationList, Token, utc},
    zone::{ZoneClient, find_server},
};

use super::{MISUSE, say};
use crate::{
    netcheck::source_address,
    network::{
        DEFAULT_DIR, Expiry, Folder, Invitation, NetworkFile, NewNetwork, Passphrase,
        PassphraseError, Revocation, invite, revoke,
    },
    status::printable,
};

const DNS_PORT: u16 = 53;

/// Addresses of the Internet's DNS root, to see which way leads there. Nothing is sent.
const FAR: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 41, 0, 4)), DNS_PORT),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0x503, 0xba3e, 0, 0, 0, 2, 0x30)), DNS_PORT),
];

#[derive(Debug, Subcommand)]
pub(super) enum NetworkCommand {
    /// Makes a network: its key, its file, and a first token, which is printed last
    Init {
        /// The zone that the members will share
        zone: Zone,
        /// What the members' routes and addresses lie in
        #[arg(long, value_name = "PREFIX,…", value_delimiter = ',', required = true, value_parser = prefix)]
        routes: Vec<IpNet>,
        /// The prefix length of what a node with `routes = "auto"` takes of them
        #[arg(long, value_name = "LEN", default_value_t = DEFAULT_SLICE, value_parser = clap::value_parser!(u8).range(1..=128))]
        slice: u8,
        /// Seals the zone: who reads it learns nothing of the members
        #[arg(long)]
        sealed: bool,
        /// An address of the zone's server, as nodes reach it; may be given several times
        /// [default: this host's own]
        #[arg(long = "server", value_name = "ADDRESS[:PORT]", value_parser = server)]
        servers: Vec<SocketAddr>,
        /// Asks for a passphrase for the network's key
        #[arg(long, conflicts_with = "passphrase_file")]
        passphrase: bool,
        #[command(flatten)]
        files: Files,
    },
    /// Prints a token that lets nodes in
    Invite {
        /// The only name that a node may have [default: any]
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// What it may advertise [default: the network's routes]
        #[arg(long, value_name = "PREFIX,…", value_delimiter = ',', value_parser = prefix)]
        routes: Option<Vec<IpNet>>,
        /// Its groups
        #[arg(long, value_name = "GROUP,…", value_delimiter = ',')]
        groups: Vec<String>,
        /// How long it is good, and every membership with it: 30d, 12h, never
        #[arg(long, value_name = "SPAN", default_value_t)]
        expires: Expiry,
        #[command(flatten)]
        files: Files,
    },
    /// Takes nodes or invites out of the network again, and publishes that
    Revoke {
        /// A node's public key, an invite's id, or a token
        #[arg(value_name = "NODE|INVITE", required = true)]
        keys: Vec<Revocation>,
        /// Only keeps the list; `zonemesh network publish` publishes it later
        #[arg(long)]
        offline: bool,
        #[command(flatten)]
        files: Files,
    },
    /// Publishes the list of revocations again
    Publish {
        #[command(flatten)]
        files: Files,
    },
    /// Shows what is public of the network
    Show {
        #[command(flatten)]
        files: Files,
    },
}

#[derive(Debug, Args)]
pub(super) struct Files {
    /// The folder of the network's files
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DIR)]
    dir: PathBuf,
    /// Reads the passphrase of the network's key from this file [default: the environment's
    /// ZONEMESH_PASSPHRASE, or the terminal]
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

impl Files {
    fn folder(&self) -> Folder {
        Folder::new(&self.dir)
    }

    fn given(&self) -> Result<Option<Passphrase>, PassphraseError> {
        Passphrase::given(self.passphrase_file.as_deref())
    }

    /// The passphrase of a key that has one.
    fn passphrase(&self) -> Result<Option<Passphrase>, PassphraseError> {
        match self.given()? {
            Some(given) => Ok(Some(given)),
            None => Passphrase::ask(false).map(Some),
        }
    }
}

pub(super) fn run(command: NetworkCommand) -> anyhow::Result<ExitCode> {
    match command {
        NetworkCommand::Init { zone, routes, slice, sealed, servers, passphrase, files } => {
            if servers.len() > MAX_SERVERS || routes.iter().all(|net| net.max_prefix_len() < slice)
            {
                eprintln!(
                    "zonemesh: there are at most {MAX_SERVERS} servers, and a slice is no longer \
                     than an address"
                );
                return Ok(ExitCode::from(MISUSE));
            }
            let passphrase =
                if passphrase { Some(Passphrase::ask(true)?) } else { files.given()? };
            let servers = if servers.is_empty() { own_server()? } else { servers };
            let access = Access { servers, slice, ..Access::default() };
            init(&NewNetwork::make(zone, routes, access, sealed), passphrase.as_ref(), &files)
        }
        NetworkCommand::Invite { name, routes, groups, expires, files } => {
            let wish = Invitation { name, routes, groups, expires };
            let network = files.folder().network()?;
            let key = files.folder().key(&network, || files.passphrase())?;
            say_token(&invite(&key, &network, &wish, SystemTime::now())?)
        }
        NetworkCommand::Revoke { keys, offline, files } => {
            let folder = files.folder();
            let network = folder.network()?;
            let key = folder.key(&network, || files.passphrase())?;
            let list = folder.revocations(&network)?;
            // What another administrator has published counts as well.
            let published = if offline { None } else { published(&network) };
            let list = revoke(&key, &list, published.as_ref(), &keys)?;
            folder.save_revocations(&list)?;
            eprintln!("list {} with {} revoked", list.number(), list.entries().len());
            if offline {
                eprintln!("it is not published: `zonemesh network publish` does that");
                return Ok(ExitCode::SUCCESS);
            }
            publish(&network, &list)
        }
        NetworkCommand::Publish { files } => {
            let network = files.folder().network()?;
            publish(&network, &files.folder().revocations(&network)?)
        }
        NetworkCommand::Show { files } => show(&files.folder()),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Makes the files, and a first token within the network's own limits.
fn init(
    network: &NewNetwork,
    passphrase: Option<&Passphrase>,
    files: &Files,
) -> anyhow::Result<()> {
    let token = invite(&network.key, &network.file, &Invitation::default(), SystemTime::now())?;
    let [key, file, revocations] = files.folder().create(network, passphrase)?;
    let servers: Vec<String> =
        network.file.access.servers.iter().map(ToString::to_string).collect();
    say(&format!(
        "network of {zone}, key {id}\n\
         {key}  the secret key: keep a copy, {protection}\n\
         {file}  for `zonemesh serve`; servers: {servers}\n\
         {revocations}  the list of revocations: nobody yet\n",
        zone = without_dot(&network.file.zone),
        id = network.file.key,
        key = key.display(),
        protection = if passphrase.is_some() {
            "it needs the passphrase"
        } else {
            "and nobody else's eyes on it"
        },
        file = file.display(),
        servers = servers.join(", "),
        revocations = revocations.display(),
    ))?;
    say_token(&token)
}

/// The line alone goes to standard output, so that it can be piped on.
fn say_token(token: &Token) -> anyhow::Result<()> {
    let limits = token.limits();
    let end = token
        .validity()
        .not_after()
        .map_or("for ever".to_owned(), |end| format!("until {}", utc(end)));
    let routes: Vec<String> = limits.routes().iter().map(ToString::to_string).collect();
    let mut told = format!("invite {}, good {end}", token.invite());
    if !limits.name().is_empty() {
        told += &format!(", for {}", printable(limits.name()));
    }
    told += &format!("; routes: {}", or_none(&routes));
    told += &format!("; groups: {}", or_none(limits.groups()));
    eprintln!("{told}");
    say(&format!("{token}\n"))
}

/// A zone's name as it is configured.
fn without_dot(zone: &Zone) -> String {
    zone.to_string().trim_end_matches('.').to_owned()
}

fn or_none(items: &[String]) -> String {
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

fn show(folder: &Folder) -> anyhow::Result<()> {
    let network = folder.network()?;
    let NetworkFile { zone, key, routes, access } = &network;
    let routes: Vec<String> = routes.iter().map(ToString::to_string).collect();
    let servers: Vec<String> = access.servers.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "zone         {} ({})\nkey          {key}\nroutes       {}, slices of /{}\n\
         servers      {}\n",
        without_dot(zone),
        if access.seal_secret.is_some() { "sealed" } else { "open" },
        or_none(&routes),
        access.slice,
        or_none(&servers),
    );
    if let Some(tsig) = &access.tsig {
        text += &format!("TSIG key     {} ({})\n", printable(&tsig.name), tsig.algorithm);
    }
    let list = folder.revocations(&network)?;
    text += &format!("revocations  list {} with {} entries\n", list.number(), list.entries().len());
    say(&text)
}

/// The list that the zone has, if one can be had.
fn published(network: &NetworkFile) -> Option<RevocationList> {
    let found = at_servers(network, async |client| Ok(client.revocations(&network.key).await?));
    found.ok().flatten()
}

fn publish(network: &NetworkFile, list: &RevocationList) -> anyhow::Result<()> {
    let publish = async |client: ZoneClient| {
        client.publish_revocations(list).await?;
        // Some acknowledge what they do not do.
        match client.revocations(&network.key).await? {
            Some(shown) if shown.number() >= list.number() => Ok(client.server()),
            _ => bail!("zone server {} took the list, and does not show it", client.server()),
        }
    };
    let server = at_servers(network, publish).context(
        "the list is kept but not published; `zonemesh network publish` tries that again",
    )?;
    eprintln!("published at {server}");
    Ok(())
}

/// Does something at the first of the zone's servers at which it can be done.
fn at_servers<T>(
    network: &NetworkFile,
    task: impl AsyncFn(ZoneClient) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let key = network.access.tsig.as_ref().map(|key| key.key()).transpose()?;
    let seal = network.access.seal();
    runtime.block_on(async {
        let mut servers = network.access.servers.clone();
        if servers.is_empty() {
            servers = find_server(&network.zone).await?;
        }
        let mut last = anyhow!("the zone {} has no server", network.zone);
        for server in servers {
            let client = ZoneClient::new(network.zone.clone(), server, key.clone());
            match task(client.sealed(seal.clone())).await {
                Ok(done) => return Ok(done),
                Err(error) => last = error,
            }
        }
        Err(last)
    })
}

/// This host as the zone's server: its address by the default route.
fn own_server() -> anyhow::Result<Vec<SocketAddr>> {
    let Some(address) = FAR.into_iter().find_map(source_address) else {
        bail!("this host has no default route: say by --server at which address nodes reach it");
    };
    if !is_public(address) {
        eprintln!(
            "zonemesh: note: {address} is a private address; nodes elsewhere need the public one \
             (--server)"
        );
    }
    Ok(vec![SocketAddr::new(address, DNS_PORT)])
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| "expected a prefix such as 10.42.0.0/16")?;
    if net.trunc() == net { Ok(net) } else { Err(format!("host bits; {} is meant?", net.trunc())) }
}

/// An address with or without a port.
fn server(text: &str) -> Result<SocketAddr, String> {
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let addr = match IpAddr::from_str(bare) {
        Ok(address) => Some(SocketAddr::new(address, DNS_PORT)),
        Err(_) => text.parse().ok(),
    };
    let addr = addr.filter(|addr| addr.port() != 0 && !addr.ip().is_unspecified());
    addr.ok_or_else(|| "expected an address such as 198.51.100.53 or [2001:db8::53]:53".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_an_address_with_or_without_a_port() {
        for (text, expected) in [
            ("198.51.100.53", "198.51.100.53:53"),
            ("198.51.100.53:5353", "198.51.100.53:5353"),
            ("2001:db8::53", "[2001:db8::53]:53"),
            ("[2001:db8::53]", "[2001:db8::53]:53"),
            ("[2001:db8::53]:5353", "[2001:db8::53]:5353"),
        ] {
            assert_eq!(server(text).expect("a server").to_string(), expected);
        }
        for text in ["", "ns.example", "198.51.100.53:0", "0.0.0.0", "198.51.100.53:"] {
            assert!(server(text).is_err(), "{text}");
        }
    }
}
