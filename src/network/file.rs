//! `network.toml`: what tokens carry beside the invite, and what a rendezvous needs.

use std::{fmt::Write, fs, net::SocketAddr, path::Path};

use data_encoding::BASE64;
use ipnet::IpNet;
use zonemesh_discovery::{
    advert::{MAX_ROUTES, Zone},
    membership::{Access, AccessKey, DEFAULT_SLICE, MAX_SERVERS, NetworkId, Secret},
};

use crate::config::{
    ConfigError,
    document::{Document, Item, Section},
};

/// Its name in the network's folder.
pub const NETWORK_FILE: &str = "network.toml";

/// No such file is larger.
const MAX_FILE: u64 = 64 << 10;

/// A network, but for its key: `network.toml`. It holds secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkFile {
    /// The zone.
    pub zone: Zone,
    /// The network's public key.
    pub key: NetworkId,
    /// The prefixes that all members' lie in.
    pub routes: Vec<IpNet>,
    /// How members reach the zone and its relays: what tokens hand on.
    pub access: Access,
}

impl NetworkFile {
    /// Reads the file.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, the line, the key and what was expected.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let whole = |message: String| ConfigError {
            file: path.to_owned(),
            position: None,
            key: String::new(),
            message,
        };
        let metadata = fs::metadata(path).map_err(|error| whole(error.to_string()))?;
        if metadata.len() > MAX_FILE {
            return Err(whole("too large to be a network's file".to_owned()));
        }
        let text = fs::read_to_string(path).map_err(|error| whole(error.to_string()))?;
        Self::read(path, &text)
    }

    fn read(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut root = Document { file: path, text }.root()?;
        let zone = root.need("zone", "the zone's name")?.parse("a zone's name")?;
        let key = root.need("key", PUBLIC_KEY)?.parse(PUBLIC_KEY)?;
        let mut routes = Vec::new();
        if let Some(item) = root.take("routes") {
            for item in item.list("a list of prefixes")? {
                let route: IpNet = item.parse(PREFIX)?;
                if route.trunc() != route {
                    return Err(item.wrong(PREFIX));
                }
                routes.push(route);
            }
        }
        if routes.len() > MAX_ROUTES {
            return Err(root.wrong("routes", &format!("at most {MAX_ROUTES}")));
        }
        let slice = root.take("slice").map(|item| item.number(1..=128)).transpose()?;
        let slice = slice.and_then(|slice| u8::try_from(slice).ok()).unwrap_or(DEFAULT_SLICE);
        let mut servers: Vec<SocketAddr> = Vec::new();
        if let Some(item) = root.take("servers") {
            for item in item.list("a list of addresses with ports")? {
                servers.push(item.parse("an address with a port, such as \"198.51.100.53:53\"")?);
            }
        }
        if servers.len() > MAX_SERVERS {
            return Err(root.wrong("servers", &format!("at most {MAX_SERVERS}")));
        }
        let relay_secret = root.take("relay_secret").map(|item| relay_secret(&item)).transpose()?;
        let seal_secret = root.take("seal_secret").map(|item| seal_secret(&item)).transpose()?;
        let tsig = root.take("tsig").map(|item| tsig(item.section()?)).transpose()?;
        root.finish()?;
        let access = Access { servers, tsig, relay_secret, seal_secret, slice };
        Ok(Self { zone, key, routes, access })
    }

    /// The file's text.
    pub(super) fn to_toml(&self) -> String {
        let Access { servers, tsig, relay_secret, seal_secret, slice } = &self.access;
        let mut text = format!(
            "# The network of {zone}, made by `zonemesh network init`. It holds secrets.\n\
             # `zonemesh serve` reads it, and tokens hand it on.\n\n\
             # The zone that the members share.\n\
             zone = {zone:?}\n\n\
             # The network's public key; the secret one is in network.key.\n\
             key = \"{key}\"\n\n\
             # What the members' routes and addresses lie in.\n\
             routes = {routes}\n\n\
             # The prefix length of what a node with `routes = \"auto\"` takes of them.\n\
             slice = {slice}\n\n\
             # The zone's servers, as members reach them.\n\
             servers = {servers}\n",
            zone = self.zone.to_string().trim_end_matches('.'),
            key = self.key,
            routes = list(&self.routes),
            servers = list(servers),
        );
        // To a string nothing fails.
        if let Some(secret) = relay_secret {
            let secret = String::from_utf8_lossy(secret.expose());
            let _ = write!(
                text,
                "\n# Shared by relays and members (coturn: static-auth-secret).\n\
                 relay_secret = {secret:?}\n"
            );
        }
        if let Some(secret) = seal_secret {
            let secret = BASE64.encode(secret.expose());
            let _ = write!(
                text,
                "\n# The zone is sealed: who reads it learns nothing without this.\n\
                 seal_secret = \"{secret}\"\n"
            );
        }
        if let Some(AccessKey { name, algorithm, secret }) = tsig {
            let secret = BASE64.encode(secret.expose());
            let _ = write!(
                text,
                "\n# What the zone's server asks for (RFC 8945).\n\
                 tsig = {{ name = {name:?}, algorithm = {algorithm:?}, secret = \"{secret}\" }}\n"
            );
        }
        text
    }
}

const PUBLIC_KEY: &str = "a network's public key: Base64 of 32 bytes";
const PREFIX: &str = "a prefix without host bits, such as \"10.42.0.0/16\"";

fn relay_secret(item: &Item<'_>) -> Result<Secret, ConfigError> {
    let expected = "the relays' secret: 1 to 255 characters";
    let text = item.text(expected)?;
    // Not shown by the error: it is a secret.
    if !(1..=255).contains(&text.len()) {
        return Err(item.error(format!("is not {expected}")));
    }
    Ok(Secret::new(text.as_bytes().to_vec()))
}

fn seal_secret(item: &Item<'_>) -> Result<Secret, ConfigError> {
    let expected = "Base64 of 32 bytes";
    let bytes = BASE64.decode(item.text(expected)?.as_bytes()).ok();
    let bytes = bytes.filter(|bytes| bytes.len() == super::SECRET_LEN);
    bytes.map(Secret::new).ok_or_else(|| item.error(format!("is not {expected}")))
}

fn tsig(mut section: Section<'_>) -> Result<AccessKey, ConfigError> {
    let name = section.need("name", "the key's name")?.text("the key's name")?.to_owned();
    let algorithm = section.take("algorithm");
    let algorithm = match &algorithm {
        Some(item) => item.text("such as \"hmac-sha256\"")?.to_owned(),
        None => "hmac-sha256".to_owned(),
    };
    let item = section.need("secret", "Base64")?;
    let secret = BASE64.decode(item.text("Base64")?.trim().as_bytes());
    let secret = Secret::new(secret.map_err(|_| item.error("is not Base64"))?);
    section.finish()?;
    let key = AccessKey { name, algorithm, secret };
    match key.key() {
        Ok(_) => Ok(key),
        Err(error) => Err(item.error(error.to_string())),
    }
}

fn list<T: ToString>(items: &[T]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("\"{}\"", item.to_string())).collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> NetworkFile {
        NetworkFile {
            zone: "mesh.example".parse().expect("a zone"),
            key: NetworkId::from_bytes([7; 32]),
            routes: vec!["10.42.0.0/16".parse().expect("a prefix")],
            access: Access {
                servers: vec!["198.51.100.53:53".parse().expect("an address")],
                tsig: Some(AccessKey {
                    name: "mesh-key".to_owned(),
                    algorithm: "hmac-sha384".to_owned(),
                    secret: Secret::new(vec![1; 20]),
                }),
                relay_secret: Some(Secret::new(b"a \"quoted\" secret".to_vec())),
                seal_secret: Some(Secret::new(vec![2; 32])),
                slice: 25,
            },
        }
    }

    #[test]
    fn what_is_written_comes_back() {
        let path = Path::new("network.toml");
        let full = file();
        assert_eq!(NetworkFile::read(path, &full.to_toml()), Ok(full.clone()));
        let least = NetworkFile { access: Access::default(), routes: vec![], ..full };
        assert_eq!(NetworkFile::read(path, &least.to_toml()), Ok(least));
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_is_shown() {
        let good = file().to_toml();
        for (from, to, expected) in [
            ("zone = ", "zones = ", "zone: is missing"),
            ("key = \"Bw", "key = \"Cw", "key: "),
            ("10.42.0.0/16", "10.42.1.0/16", "routes[0]: \"10.42.1.0/16\" is not a prefix"),
            ("slice = 25", "slice = 0", "slice: 0 is not a number from 1 to 128"),
            (":53\"", "\"", "servers[0]: \"198.51.100.53\" is not an address with a port"),
            ("seal_secret = \"Ag", "seal_secret = \"", "seal_secret: is not Base64 of 32 bytes"),
            ("sha384", "md5", "tsig.secret: the algorithm is not"),
            ("slice = 25", "slices = 25", "slices: unknown key"),
        ] {
            assert!(good.contains(from), "{from}");
            let text = good.replacen(from, to, 1);
            // One letter more or less may make another key, but no error.
            let Err(error) = NetworkFile::read(Path::new("network.toml"), &text) else {
                assert_eq!(expected, "key: ");
                continue;
            };
            let error = error.to_string();
            assert!(error.starts_with("network.toml") && error.contains(expected), "{error}");
            assert!(!error.contains("AgICAg") && !error.contains("AQEBAQ"), "{error}");
        }
    }
}
