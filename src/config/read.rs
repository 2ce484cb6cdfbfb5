//! From the document to the checked [`Config`].

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use data_encoding::BASE64;
use ipnet::IpNet;
use zonemesh_discovery::{
    advert::{MAX_ADDRESSES, MAX_ROUTES},
    identity::PublicKey,
};

use super::{
    Config, InterfaceConfig, MdnsConfig, NodeConfig, PeerConfig, RelayConfig, RelayTransport,
    RelayUri, SOCKET_DIR, Secret, Trust, TsigAlgorithm, TsigConfig, ZoneConfig, authorities,
    document::{Document, Item, Result, Section},
    secret::SecretFile,
    serve,
};

/// What a node is named may not be longer: it has to fit its advert.
const MAX_NAME: usize = 63;

/// Linux's IFNAMSIZ, less the closing zero.
const MAX_INTERFACE_NAME: usize = 15;

/// The path of a Unix socket, less the closing zero (`sockaddr_un`, unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// Below 1280 there is no IPv6 (RFC 8200 §5); above 9000 no common link carries it.
const MTU: std::ops::RangeInclusive<u16> = 1280..=9000;

/// What a node cannot be without.
pub(super) const NEEDS_PEERS: &str = "a token of a network (`zonemesh up --join`), a [zone] with \
     the mesh's name, or at least one [[peer]]";

/// More servers of one zone than anybody keeps, and few enough to try them all.
const MAX_ZONE_SERVERS: usize = 8;

const DNS_PORT: u16 = 53;
const STUN_PORT: u16 = 3478;
const WIREGUARD_PORT: u16 = 51820;

pub(super) fn config(file: &Path, text: &str) -> Result<Config> {
    let base = file.parent().unwrap_or(Path::new(""));
    let mut warnings = Warnings { base, found: vec![] };
    let mut root = Document { file, text }.root()?;
    let node = node(root.section("node")?, base)?;
    let interface = interface(root.section("interface")?)?;
    let zone = root.take("zone").map(|item| zone(item.section()?, &mut warnings)).transpose()?;
    let mdns = mdns(root.section("mdns")?)?;
    let portmap = portmap(root.section("portmap")?)?;
    let hard_nats = punch(root.section("punch")?)?;
    let stun_servers = stun(root.section("stun")?)?;
    let relay = relay(root.section("relay")?, &mut warnings)?;
    let control_socket = control(root.section("control")?, base, &interface.name)?;
    let (trust, token_file) = network(root.section("network")?, &mut warnings)?;
    let serve = root
        .take("serve")
        .map(|item| serve::serve(item.section()?, base, &mut warnings))
        .transpose()?;
    let peers = peers(root.take("peer"), &interface.routes, &mut warnings)?;
    root.finish()?;
    Ok(Config {
        file: file.to_owned(),
        node,
        interface,
        zone,
        mdns,
        portmap,
        hard_nats,
        stun_servers,
        relay,
        serve,
        control_socket,
        trust,
        token_file,
        peers,
        warnings: warnings.found,
    })
}

fn node(mut section: Section<'_>, base: &Path) -> Result<NodeConfig> {
    let expected = "a name of 1 to 63 bytes without control characters";
    let fits =
        |name: &str| (1..=MAX_NAME).contains(&name.len()) && !name.chars().any(char::is_control);
    let configured = section.take("name");
    let has_name = configured.is_some();
    let name = match configured {
        Some(item) => {
            let name = item.text(expected)?;
            if !fits(name) {
                return Err(item.wrong(expected));
            }
            name.to_owned()
        }
        None => {
            let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
            if !fits(&host) {
                let expected = format!("{expected}, since the host name {host:?} is none");
                return Err(section.missing("name", &expected));
            }
            host
        }
    };
    let state_dir = match section.take("state_dir") {
        Some(item) => path(&item, base)?,
        None => PathBuf::from("/var/lib/zonemesh"),
    };
    section.finish()?;
    Ok(NodeConfig { name, has_name, state_dir })
}

fn interface(mut section: Section<'_>) -> Result<InterfaceConfig> {
    let name = match section.take("name") {
        Some(item) => interface_name(&item)?,
        None => "zm0".to_owned(),
    };
    let listen_port = match section.take("listen_port") {
        Some(item) => item.integer(0..=u16::MAX)?,
        None => WIREGUARD_PORT,
    };
    let mtu = section.take("mtu").map(|item| item.integer(MTU)).transpose()?;
    let addresses = match section.take("addresses") {
        Some(item) => unique(item, "addresses", MAX_ADDRESSES, interface_address)?,
        None => vec![],
    };
    let (routes, auto_routes) = match section.take("routes") {
        Some(item) => match item.text("") {
            Ok("auto") => (vec![], Some(true)),
            Ok(_) => return Err(item.wrong("\"auto\", or a list of networks")),
            Err(_) => (unique(item, "routes", MAX_ROUTES, route)?, Some(false)),
        },
        None => (vec![], None),
    };
    section.finish()?;
    Ok(InterfaceConfig { name, listen_port, mtu, addresses, routes, auto_routes })
}

fn zone(mut section: Section<'_>, warnings: &mut Warnings<'_>) -> Result<ZoneConfig> {
    let expected = "the name of a DNS zone, such as \"mesh.example\"";
    let item = section.need("name", expected)?;
    let name = item
        .text(expected)?
        .parse()
        .map_err(|error| item.error(format!("{error}; expected {expected}")))?;
    let servers = match section.take("server") {
        None => vec![],
        Some(item) if item.is_list() => {
            unique(item, "zone servers", MAX_ZONE_SERVERS, |item| server(item, DNS_PORT))?
        }
        Some(item) => vec![server(&item, DNS_PORT)?],
    };
    let tsig = section.take("tsig").map(|item| tsig(item.section()?, warnings)).transpose()?;
    section.finish()?;
    Ok(ZoneConfig { name, servers, tsig, seal: None })
}

fn tsig(mut section: Section<'_>, warnings: &mut Warnings<'_>) -> Result<TsigConfig> {
    let key = tsig_key(&mut section, warnings)?;
    section.finish()?;
    Ok(key)
}

/// What makes a TSIG key; the section may have more.
pub(super) fn tsig_key(
    section: &mut Section<'_>,
    warnings: &mut Warnings<'_>,
) -> Result<TsigConfig> {
    let expected = "the key's name as the zone's server knows it, such as \"mesh-key\"";
    let item = section.need("name", expected)?;
    let name = item.text(expected)?.to_owned();
    // A key's name is a domain name (RFC 8945 §4.2), and the zone's parser knows those.
    if name.parse::<zonemesh_discovery::advert::Zone>().is_err() {
        return Err(item.wrong(expected));
    }
    let algorithm = match section.take("algorithm") {
        Some(item) => tsig_algorithm(&item)?,
        None => TsigAlgorithm::HmacSha256,
    };
    let item = section.need("secret_file", "the file that holds the key's secret in Base64")?;
    let secret = warnings.secret(&item)?;
    if BASE64.decode(secret.expose().as_bytes()).is_err() {
        return Err(item.error(
            "what the file holds is not Base64; expected the key's secret alone, as \
             `tsig-keygen` prints it between the quotes",
        ));
    }
    Ok(TsigConfig { name, algorithm, secret })
}

fn tsig_algorithm(item: &Item<'_>) -> Result<TsigAlgorithm> {
    let expected = "\"hmac-sha256\", \"hmac-sha384\" or \"hmac-sha512\"";
    let text = item.text(expected)?;
    TsigAlgorithm::named(text).ok_or_else(|| item.wrong(expected))
}

fn mdns(mut section: Section<'_>) -> Result<MdnsConfig> {
    let enabled = section.take("enabled").map_or(Ok(true), |item| item.boolean())?;
    let interfaces = match section.take("interfaces") {
        Some(item) => unique(item, "interfaces", usize::MAX, interface_name)?,
        None => vec![],
    };
    section.finish()?;
    Ok(MdnsConfig { enabled, interfaces })
}

fn punch(mut section: Section<'_>) -> Result<bool> {
    let hard_nats = section.take("hard_nats").map_or(Ok(true), |item| item.boolean())?;
    section.finish()?;
    Ok(hard_nats)
}

fn portmap(mut section: Section<'_>) -> Result<bool> {
    let enabled = section.take("enabled").map_or(Ok(true), |item| item.boolean())?;
    section.finish()?;
    Ok(enabled)
}

fn stun(mut section: Section<'_>) -> Result<Vec<SocketAddr>> {
    let servers = match section.take("servers") {
        Some(item) => unique(item, "STUN servers", usize::MAX, |item| server(item, STUN_PORT))?,
        None => vec![],
    };
    section.finish()?;
    Ok(servers)
}

fn relay(mut section: Section<'_>, warnings: &mut Warnings<'_>) -> Result<RelayConfig> {
    let enabled = section.take("enabled").map_or(Ok(true), |item| item.boolean())?;
    let servers = match section.take("servers") {
        Some(item) => unique(item, "relays", usize::MAX, relay_uri)?,
        None => vec![],
    };
    let username_secret =
        section.take("username_secret_file").map(|item| warnings.secret(&item)).transpose()?;
    let ca_file = section.take("ca_file").map(|item| ca_file(&item, warnings.base)).transpose()?;
    section.finish()?;
    if enabled && !servers.is_empty() && username_secret.is_none() {
        warnings.add("relay.servers: not used without relay.username_secret_file");
    }
    Ok(RelayConfig { enabled, servers, username_secret, ca_file })
}

/// A file that has certificate authorities now; it is read again whenever they are needed.
fn ca_file(item: &Item<'_>, base: &Path) -> Result<PathBuf> {
    let file = path(item, base)?;
    authorities(&file).map_err(|error| item.error(format!("cannot use {error}")))?;
    Ok(file)
}

fn relay_uri(item: &Item<'_>) -> Result<RelayUri> {
    let uri: RelayUri =
        item.parse("a TURN URI (RFC 7065), such as \"turn:198.51.100.10:3478?transport=udp\"")?;
    if uri.secure && uri.transport == Some(RelayTransport::Udp) {
        return Err(item.error("TLS over UDP is not spoken; use transport=tcp, or turn: with udp"));
    }
    Ok(uri)
}

fn control(mut section: Section<'_>, base: &Path, interface: &str) -> Result<PathBuf> {
    let socket = match section.take("socket") {
        Some(item) => {
            let socket = path(&item, base)?;
            if socket.as_os_str().len() > MAX_SOCKET_PATH {
                let expected = format!("a path of at most {MAX_SOCKET_PATH} bytes");
                return Err(item.error(format!("too long for a socket; expected {expected}")));
            }
            socket
        }
        None => Path::new(SOCKET_DIR).join(format!("{interface}.sock")),
    };
    section.finish()?;
    Ok(socket)
}

fn network(
    mut section: Section<'_>,
    warnings: &mut Warnings<'_>,
) -> Result<(Option<Trust>, Option<PathBuf>)> {
    let keys = section.take("keys");
    let expected = "\"members\", \"listed\" or \"zone\"";
    let (trust, listed) = match section.take("trust") {
        None => (None, false),
        Some(item) => match item.text(expected)? {
            "members" => (Some(Trust::Members), false),
            "zone" => (Some(Trust::Zone), false),
            "listed" => (None, true),
            _ => return Err(item.wrong(expected)),
        },
    };
    let token_file =
        section.take("token_file").map(|item| path(&item, warnings.base)).transpose()?;
    section.finish()?;
    if listed {
        let keys = keys
            .map(|item| unique(item, "keys", usize::MAX, public_key))
            .transpose()?
            .unwrap_or_default();
        if keys.is_empty() {
            warnings.add("network.trust = \"listed\" with no network.keys: no advert counts");
        }
        return Ok((Some(Trust::Listed(keys.into_iter().collect::<BTreeSet<_>>())), token_file));
    }
    if let Some(item) = keys {
        let error = item.error("counts only with trust = \"listed\"; set that or remove the keys");
        // An empty list says nothing that could be misunderstood.
        if !item.list("a list of public keys")?.is_empty() {
            return Err(error);
        }
    }
    Ok((trust, token_file))
}

fn peers(
    item: Option<Item<'_>>,
    own_routes: &[IpNet],
    warnings: &mut Warnings<'_>,
) -> Result<Vec<PeerConfig>> {
    let Some(item) = item else { return Ok(vec![]) };
    let mut taken: HashMap<IpNet, String> = own_routes
        .iter()
        .map(|route| (*route, "this node's own interface.routes".to_owned()))
        .collect();
    let mut keys = HashMap::new();
    let mut peers = Vec::new();
    for (index, item) in item.list("a list of [[peer]] sections")?.into_iter().enumerate() {
        let peer = peer(item.section()?, index, &mut keys, &mut taken, warnings)?;
        if let Some(endpoint) = peer.endpoint
            && peer.routes.iter().any(|route| route.contains(&endpoint.ip()))
        {
            warnings.add(format!(
                "peer[{index}]: its endpoint {endpoint} lies in its own routes: unless another \
                 route is more specific, its packets go into the tunnel that they carry"
            ));
        }
        peers.push(peer);
    }
    Ok(peers)
}

fn peer(
    mut section: Section<'_>,
    index: usize,
    keys: &mut HashMap<PublicKey, usize>,
    taken: &mut HashMap<IpNet, String>,
    warnings: &mut Warnings<'_>,
) -> Result<PeerConfig> {
    let item = section.need("public_key", KEY)?;
    let public_key = public_key(&item)?;
    let position = Some(item.position());
    if let Some(first) = keys.insert(public_key, index) {
        return Err(item.error(format!("the same key as peer[{first}]; each peer has its own")));
    }
    let endpoint = section.take("endpoint").map(|item| endpoint(&item)).transpose()?;
    let routes = match section.take("routes") {
        None => vec![],
        Some(item) => unique(item, "routes", usize::MAX, |item| {
            let route = route(item)?;
            match taken.insert(route, format!("peer[{index}].routes")) {
                // The same list twice: `unique` has the better words.
                Some(owner) if owner != format!("peer[{index}].routes") => {
                    Err(item.error(format!("{route} is already in {owner}")))
                }
                _ => Ok(route),
            }
        })?,
    };
    let preshared_key = section
        .take("preshared_key_file")
        .map(|item| {
            let text = warnings.secret(&item)?;
            key_bytes(text.expose()).map(Secret::new).ok_or_else(|| {
                item.error("what the file holds is not 32 bytes in Base64, as `wg genpsk` prints")
            })
        })
        .transpose()?;
    let keepalive = section
        .take("keepalive")
        .map(|item| item.integer(0..=u16::MAX))
        .transpose()?
        .filter(|seconds| *seconds != 0);
    section.finish()?;
    Ok(PeerConfig { public_key, endpoint, routes, preshared_key, keepalive, position })
}

/// The warnings so far, and the folder that paths are relative to.
pub(super) struct Warnings<'a> {
    base: &'a Path,
    found: Vec<String>,
}

impl Warnings<'_> {
    fn add(&mut self, warning: impl Into<String>) {
        self.found.push(warning.into());
    }

    /// Reads the secret file that an item names.
    pub(super) fn secret(&mut self, item: &Item<'_>) -> Result<Secret<String>> {
        let path = path(item, self.base)?;
        let file = SecretFile::read(&path)
            .map_err(|error| item.error(format!("cannot read {}: {error}", path.display())))?;
        self.found.extend(file.warning(&path));
        Ok(file.text)
    }
}

const KEY: &str = "a public key: 32 bytes in Base64, as `wg pubkey` prints";

fn public_key(item: &Item<'_>) -> Result<PublicKey> {
    let bytes = key_bytes(item.text(KEY)?).ok_or_else(|| item.wrong(KEY))?;
    if bytes == [0; 32] {
        return Err(item.wrong(KEY));
    }
    Ok(PublicKey::from_bytes(bytes))
}

fn key_bytes(text: &str) -> Option<[u8; 32]> {
    BASE64.decode(text.as_bytes()).ok()?.try_into().ok()
}

pub(super) fn path(item: &Item<'_>, base: &Path) -> Result<PathBuf> {
    let expected = "a path";
    let text = item.text(expected)?;
    if text.is_empty() || text.contains('\0') {
        return Err(item.wrong(expected));
    }
    Ok(base.join(text))
}

fn interface_name(item: &Item<'_>) -> Result<String> {
    let expected = "an interface's name: 1 to 15 bytes of letters, digits, `-`, `_` and `.`";
    let name = item.text(expected)?;
    // The kernel allows more; what it allows beyond this breaks scripts and paths.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let fits = (1..=MAX_INTERFACE_NAME).contains(&name.len()) && name.bytes().all(plain);
    if !fits || name == "." || name == ".." {
        return Err(item.wrong(expected));
    }
    Ok(name.to_owned())
}

fn interface_address(item: &Item<'_>) -> Result<IpNet> {
    let expected = "an address with prefix length, such as \"10.42.1.1/24\"";
    let address: IpNet = item.parse(expected)?;
    if !is_unicast(address.addr()) {
        return Err(item.wrong("a unicast address"));
    }
    Ok(address)
}

fn route(item: &Item<'_>) -> Result<IpNet> {
    let route: IpNet = item.parse("a network with prefix length, such as \"10.42.1.0/24\"")?;
    if route.trunc() != route {
        return Err(item.error(format!("{route} has host bits; the network is {}", route.trunc())));
    }
    if route.prefix_len() == 0 {
        return Err(item.error(
            "a default route would swallow the tunnels' own packets; expected the networks of \
             the mesh",
        ));
    }
    if !is_unicast(route.addr()) {
        return Err(item.wrong("a network of unicast addresses"));
    }
    Ok(route)
}

/// An address with port; a default port fits those who do not name one.
pub(super) fn server(item: &Item<'_>, port: u16) -> Result<SocketAddr> {
    let expected = format!(
        "an IP address, with port or without (then {port}), such as \"198.51.100.10:{port}\" or \
         \"[2001:db8::10]:{port}\"; host names are not resolved here"
    );
    let text = item.text(&expected)?;
    let addr = match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, port),
        Err(_) => item.parse(&expected)?,
    };
    check_remote(item, addr, &expected)
}

fn endpoint(item: &Item<'_>) -> Result<SocketAddr> {
    let expected = "an IP address with port, such as \"198.51.100.7:51820\" or \
                    \"[2001:db8::7]:51820\"; host names are not resolved here";
    check_remote(item, item.parse(expected)?, expected)
}

fn check_remote(item: &Item<'_>, addr: SocketAddr, expected: &str) -> Result<SocketAddr> {
    if addr.port() == 0 || (!is_unicast(addr.ip()) && !addr.ip().is_loopback()) {
        return Err(item.wrong(expected));
    }
    Ok(addr)
}

pub(super) fn is_unicast(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    !(ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() || broadcast)
}

/// A list of at most `limit` values, all different.
pub(super) fn unique<'a, T: Eq + Hash + Clone>(
    list: Item<'a>,
    what: &str,
    limit: usize,
    mut read: impl FnMut(&Item<'a>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut first = HashMap::new();
    let mut values = Vec::new();
    for (index, item) in list.list(&format!("a list of {what}"))?.into_iter().enumerate() {
        if index == limit {
            return Err(item.error(format!("too many: at most {limit} {what} are possible")));
        }
        let value = read(&item)?;
        if let Some(first) = first.insert(value.clone(), index) {
            return Err(item.error(format!("the same as number [{first}] of the list")));
        }
        values.push(value);
    }
    Ok(values)
}
