//! How a node comes to be a member of a network: by a token, or by what an earlier one has
//! left in the state folder.
//!
//! [`given`] finds the token, if there is one; [`settle`] decides what it changes. A kept
//! membership is enough by itself. A token of the same network replaces it where that is
//! newer, holds longer, or lets the node in with what its configuration says now; one of
//! another network never does. What comes out [fills](fill) the configuration where that is
//! silent.

use std::{
    env,
    io::{self, Read},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64;
use ipnet::IpNet;
use tracing::{info, warn};
use zonemesh_discovery::{
    identity::PublicKey,
    membership::{
        AccessKey, CertificateError, Certified, Membership, MembershipError, NetworkId, Token,
        TokenError, TokenTimeError,
    },
};

use crate::config::{Config, Secret, SecretFile, Trust, TsigAlgorithm, TsigConfig, ZoneConfig};

/// The environment's variable that holds a token.
pub const TOKEN_VARIABLE: &str = "ZONEMESH_TOKEN";

/// No token is longer; more is some other text.
const MAX_TOKEN_LEN: u64 = 4096;

/// A token, and where it comes from.
#[derive(Debug)]
pub struct Given {
    token: Token,
    from: String,
}

/// Why a node cannot join, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No token.
    #[error("{from}: {error}")]
    Token {
        /// Where it comes from.
        from: String,
        /// What is wrong with it.
        error: TokenError,
    },
    /// A file, or standard input, that cannot be read.
    #[error("{from}: cannot read the token: {error}")]
    Read {
        /// Which.
        from: String,
        /// Why.
        error: io::Error,
    },
    /// Good at another time.
    #[error("{from}: {error}")]
    Time {
        /// Where the token comes from.
        from: String,
        /// When it is good.
        error: TokenTimeError,
    },
    /// The node is in another network already.
    #[error(
        "{from}: this token is of network {given}, but {} makes this node a member of network \
         {kept}: name another node.state_dir, or move that one away to become another node",
        dir.display()
    )]
    OtherNetwork {
        /// Where the token comes from.
        from: String,
        /// The state folder.
        dir: PathBuf,
        /// The network that it keeps a membership of.
        kept: NetworkId,
        /// The network of the token.
        given: NetworkId,
    },
    /// Not with this name.
    #[error("{from}: this token lets in {allowed:?} alone, and node.name is {wanted:?}")]
    Name {
        /// Where the token comes from.
        from: String,
        /// The configured name.
        wanted: String,
        /// The invite's.
        allowed: String,
    },
    /// Not with these routes.
    #[error(
        "{from}: this token does not allow {route} (interface.routes, interface.addresses), only \
         what lies in {allowed}"
    )]
    Route {
        /// Where the token comes from.
        from: String,
        /// The first prefix that it does not allow.
        route: IpNet,
        /// What it allows.
        allowed: String,
    },
    /// Not in a certificate's form.
    #[error("{from}: {error}")]
    Admit {
        /// Where the token comes from.
        from: String,
        /// What is wrong.
        error: MembershipError,
    },
    /// The state folder keeps the membership of another key.
    #[error(
        "{}: what makes this node a member does not go with its key: {error}; move \
         membership.json away and join again",
        dir.display()
    )]
    Kept {
        /// The state folder.
        dir: PathBuf,
        /// What does not fit.
        error: CertificateError,
    },
    /// Nobody let it in.
    #[error(
        "network.trust is \"members\", but this node is none: join with a token (`zonemesh up \
         --join`, {TOKEN_VARIABLE}, or network.token_file)"
    )]
    NoMember,
    /// A key that this version cannot use.
    #[error("{from}: this version does not know {algorithm}, by which the zone is signed to")]
    Algorithm {
        /// Where it comes from.
        from: String,
        /// Its algorithm.
        algorithm: String,
    },
}

/// What the node is in its network.
#[derive(Debug, Clone)]
pub struct Settled {
    /// To be kept.
    pub membership: Membership,
    /// What is certified, whether or not it holds now.
    pub certified: Certified,
    /// Whether it was made of a token just now.
    pub is_new: bool,
}

/// Finds the token: the argument's (a token, a file that holds one, or `-` for standard
/// input), else the environment's, else that of `network.token_file`. The last one may be
/// gone where a membership is kept (`is_member`).
///
/// # Errors
/// [`JoinError`] when what is there is no token.
pub fn given(
    argument: Option<&str>,
    config: &mut Config,
    is_member: bool,
) -> Result<Option<Given>, JoinError> {
    let (text, from) = if let Some(argument) = argument {
        let from = "--join".to_owned();
        match argument {
            "-" => (read_token(io::stdin().lock(), &from)?, from),
            file if !file.starts_with("zm1") && Path::new(file).exists() => {
                let from = format!("--join {file}");
                (read_file(Path::new(file), config, &from)?, from)
            }
            token => (token.to_owned(), from),
        }
    } else if let Some(token) = env::var_os(TOKEN_VARIABLE).filter(|token| !token.is_empty()) {
        (token.to_string_lossy().into_owned(), TOKEN_VARIABLE.to_owned())
    } else if let Some(file) = config.token_file.clone() {
        if is_member && !file.exists() {
            return Ok(None);
        }
        let from = format!("network.token_file {}", file.display());
        (read_file(&file, config, &from)?, from)
    } else {
        return Ok(None);
    };
    match text.trim().parse() {
        Ok(token) => Ok(Some(Given { token, from })),
        Err(error) => Err(JoinError::Token { from, error }),
    }
}

fn read_token(from: impl Read, name: &str) -> Result<String, JoinError> {
    let mut text = String::new();
    match from.take(MAX_TOKEN_LEN).read_to_string(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(JoinError::Read { from: name.to_owned(), error }),
    }
}

fn read_file(file: &Path, config: &mut Config, from: &str) -> Result<String, JoinError> {
    let read =
        SecretFile::read(file).map_err(|error| JoinError::Read { from: from.to_owned(), error })?;
    config.warnings.extend(read.warning(file));
    Ok(read.text.expose().clone())
}

/// Decides what this node is in its network, by what its state folder keeps and the token
/// that it was given.
///
/// # Errors
/// [`JoinError`] when the token lets it in nowhere.
pub fn settle(
    kept: Option<Membership>,
    given: Option<&Given>,
    config: &Config,
    node: &PublicKey,
    now: SystemTime,
) -> Result<Option<Settled>, JoinError> {
    let dir = &config.node.state_dir;
    let certified = kept.as_ref().map(|kept| certified(kept, node)).transpose();
    let certified = certified.map_err(|error| JoinError::Kept { dir: dir.clone(), error })?;
    let kept = kept.zip(certified).map(|(membership, certified)| Settled {
        membership,
        certified,
        is_new: false,
    });
    let Some(given) = given else { return Ok(kept) };
    let Some(kept) = kept else { return admit(given, config, node, now).map(Some) };
    let (from, token) = (given.from.clone(), &given.token);
    if token.network() != kept.membership.network() {
        return Err(JoinError::OtherNetwork {
            from,
            dir: dir.clone(),
            kept: kept.membership.network(),
            given: token.network(),
        });
    }
    if !is_better(token, &kept, config) {
        return Ok(Some(kept));
    }
    match admit(given, config, node, now) {
        Ok(settled) => Ok(Some(settled)),
        // What is kept may be good for years.
        Err(error) if holds(&kept.certified, now) => {
            warn!("{error}; this node stays the member that it is");
            Ok(Some(kept))
        }
        Err(error) => Err(error),
    }
}

/// Whether a token is worth more than the membership that is kept.
fn is_better(token: &Token, kept: &Settled, config: &Config) -> bool {
    let Settled { membership, certified, .. } = kept;
    let end = |end: Option<SystemTime>| end.map_or(Duration::MAX, since_epoch);
    let is_longer = end(token.validity().not_after()) > end(certified.not_after);
    let is_newer = token.invite() != certified.invite
        && token.validity().not_before() > membership.chain().not_before();
    let fits = wanted(config).iter().all(|route| certified.allows(route))
        && (!config.node.has_name || config.node.name == certified.name);
    is_longer || is_newer || !fits || token.access() != membership.access()
}

fn admit(
    given: &Given,
    config: &Config,
    node: &PublicKey,
    now: SystemTime,
) -> Result<Settled, JoinError> {
    let Given { token, from } = given;
    let from = || from.clone();
    token.check(now).map_err(|error| JoinError::Time { from: from(), error })?;
    let limits = token.limits();
    let name = match limits.name() {
        "" => &config.node.name,
        allowed if config.node.has_name && config.node.name != allowed => {
            let (wanted, allowed) = (config.node.name.clone(), allowed.to_owned());
            return Err(JoinError::Name { from: from(), wanted, allowed });
        }
        allowed => allowed,
    };
    let wanted = wanted(config);
    if let Some(route) = wanted.iter().find(|route| !limits.allows(route)) {
        let allowed: Vec<String> = limits.routes().iter().map(ToString::to_string).collect();
        let allowed = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
        return Err(JoinError::Route { from: from(), route: *route, allowed });
    }
    // No more than it needs. Without prefixes of its own, and where those are too many for a
    // certificate, whatever the invite allows.
    let whole = limits.routes().to_vec();
    let routes = if wanted.is_empty() { whole.clone() } else { wanted };
    let made = match token.admit(node, name, &routes, limits.groups(), now) {
        Err(MembershipError::TooLong) => token.admit(node, name, &whole, limits.groups(), now),
        made => made,
    };
    let membership = made.map_err(|error| JoinError::Admit { from: from(), error })?;
    let certified = certified(&membership, node)
        .map_err(|error| JoinError::Kept { dir: config.node.state_dir.clone(), error })?;
    info!(network = %membership.network(), name = certified.name, "joined");
    Ok(Settled { membership, certified, is_new: true })
}

/// The prefixes that the configuration wants of the mesh: what its certificate has to allow.
fn wanted(config: &Config) -> Vec<IpNet> {
    let mut wanted = config.interface.routes.clone();
    for address in config.interface.addresses.iter().map(IpNet::addr) {
        if !wanted.iter().any(|route| route.contains(&address)) {
            wanted.push(IpNet::from(address));
        }
    }
    wanted
}

/// What a membership certifies, looked at when both of its parts hold.
fn certified(membership: &Membership, node: &PublicKey) -> Result<Certified, CertificateError> {
    let never = UNIX_EPOCH + Duration::from_secs(u32::MAX.into());
    membership.certified(node, membership.chain().not_after().unwrap_or(never))
}

fn holds(certified: &Certified, now: SystemTime) -> bool {
    certified.not_after.is_none_or(|end| now <= end)
}

fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Fills in the way to the zone and to the relays where the configuration does not say it.
///
/// # Errors
/// [`JoinError::Algorithm`] when the key to the zone is of an unknown kind.
pub fn fill_access(config: &mut Config, membership: &Membership) -> Result<(), JoinError> {
    let access = membership.access();
    let zone = config.zone.get_or_insert_with(|| ZoneConfig {
        name: membership.zone().clone(),
        servers: Vec::new(),
        tsig: None,
        seal: None,
    });
    zone.seal = access.seal();
    if zone.name != *membership.zone() {
        config.warnings.push(format!(
            "zone.name is {}, but this node's network has the zone {}",
            zone.name,
            membership.zone()
        ));
    }
    if zone.servers.is_empty() {
        zone.servers.clone_from(&access.servers);
    }
    if zone.tsig.is_none() {
        zone.tsig = access.tsig.as_ref().map(tsig).transpose()?;
    }
    if config.relay.username_secret.is_none()
        && let Some(secret) = &access.relay_secret
    {
        let text = String::from_utf8_lossy(secret.expose()).into_owned();
        config.relay.username_secret = Some(Secret::new(text));
    }
    Ok(())
}

/// Fills in what the configuration does not say and the membership does. The name is what the
/// certificate says, for that is what the others go by.
///
/// # Errors
/// As [`fill_access`].
pub fn fill(config: &mut Config, settled: &Settled) -> Result<(), JoinError> {
    let Settled { membership, certified, .. } = settled;
    fill_access(config, membership)?;
    config.trust.get_or_insert(Trust::Members);
    if config.node.has_name && config.node.name != certified.name {
        config.warnings.push(format!(
            "node.name is {:?}, but this node joined as {:?}, which counts: join again with a \
             token to be renamed",
            config.node.name, certified.name
        ));
    }
    config.node.name.clone_from(&certified.name);
    for route in wanted(config).iter().filter(|route| !certified.allows(route)) {
        config.warnings.push(format!(
            "{route} is not in this node's certificate, so the others do not use it: join again \
             with a token that allows it"
        ));
    }
    Ok(())
}

fn tsig(key: &AccessKey) -> Result<TsigConfig, JoinError> {
    let algorithm = TsigAlgorithm::named(&key.algorithm).ok_or_else(|| JoinError::Algorithm {
        from: format!("TSIG key {}", key.name),
        algorithm: key.algorithm.clone(),
    })?;
    let secret = Secret::new(BASE64.encode(key.secret.expose()));
    Ok(TsigConfig { name: key.name.clone(), algorithm, secret })
}

#[cfg(test)]
pub(crate) mod tests;
