//! Where the relays are: by URIs of the configuration (RFC 7065), or by what the zone
//! names (RFC 8656 §4.2, RFC 5928).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::lookup_host,
    sync::mpsc,
    time::{sleep, timeout},
};
use tracing::{info, warn};
use zonemesh_discovery::{identity::PublicKey, zone::NamedServer};

use super::{RelayServer, Transport};
use crate::config::{RelayHost, RelayTransport, RelayUri};

/// The services under which a zone names its relays (RFC 8656 §4.2).
pub const SERVICES: [(&str, Transport); 3] = [
    ("_turn._udp", Transport::Udp),
    ("_turn._tcp", Transport::Tcp),
    ("_turns._tcp", Transport::Tls),
];

/// How long the system's resolver may take for one name.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// The most addresses of one name that are used.
const MAX_ADDRESSES: usize = 4;

/// How often names are looked up again: a host that moves is found within this.
const INTERVAL: Duration = Duration::from_secs(600);

/// The pause where a name is not found: doubled from the first to the last.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Finds the servers of URIs, and again from time to time. Each list goes to `told`; a
/// name that is not found keeps the addresses that it had.
pub async fn watch(uris: Vec<RelayUri>, told: mpsc::Sender<Vec<RelayServer>>) {
    let mut known: Vec<Vec<RelayServer>> = vec![vec![]; uris.len()];
    // What went wrong last with each, so that it is told once.
    let mut errors: Vec<Option<String>> = vec![None; uris.len()];
    let mut pause = BACKOFF.0;
    loop {
        for ((uri, known), last) in uris.iter().zip(&mut known).zip(&mut errors) {
            let found = servers(uri).await;
            let error = found.as_ref().err().map(ToString::to_string);
            match &error {
                Some(error) if last.as_ref() != Some(error) => {
                    warn!("the relay {uri} is not found: {error}");
                }
                None if last.is_some() => info!("the relay {uri} is found again"),
                _ => {}
            }
            *last = error;
            if let Ok(found) = found {
                *known = found;
            }
        }
        let all_found = errors.iter().all(Option::is_none);
        if told.send(known.concat()).await.is_err() {
            return;
        }
        let names = uris.iter().any(|uri| matches!(uri.host, RelayHost::Name(_)));
        if !names {
            return;
        }
        sleep(if all_found { INTERVAL } else { pause }).await;
        pause = if all_found { BACKOFF.0 } else { (pause * 2).min(BACKOFF.1) };
    }
}

/// The servers of one URI.
///
/// # Errors
/// Where its host's name is not found.
pub async fn servers(uri: &RelayUri) -> std::io::Result<Vec<RelayServer>> {
    let addrs = match &uri.host {
        RelayHost::Ip(ip) => vec![*ip],
        RelayHost::Name(name) => {
            let late = |_| std::io::Error::other("the system's resolver does not answer");
            let lookup = lookup_host((name.as_str(), uri.port));
            let found = timeout(LOOKUP_LIMIT, lookup).await.map_err(late)??;
            found.map(|addr| addr.ip()).take(MAX_ADDRESSES).collect()
        }
    };
    Ok(of_uri(uri, &addrs))
}

/// The servers of a URI whose host has these addresses.
pub fn of_uri(uri: &RelayUri, addrs: &[IpAddr]) -> Vec<RelayServer> {
    let host = match &uri.host {
        RelayHost::Ip(ip) => ip.to_string(),
        RelayHost::Name(name) => name.trim_end_matches('.').to_ascii_lowercase(),
    };
    let transports: &[Transport] = match (uri.secure, uri.transport) {
        (true, _) => &[Transport::Tls],
        (false, Some(RelayTransport::Udp)) => &[Transport::Udp],
        (false, Some(RelayTransport::Tcp)) => &[Transport::Tcp],
        // Both, UDP first (RFC 5928 §3).
        (false, None) => &[Transport::Udp, Transport::Tcp],
    };
    let each = transports.iter().flat_map(|transport| addrs.iter().map(|ip| (*transport, *ip)));
    each.map(|(transport, ip)| server(&host, transport, SocketAddr::new(ip, uri.port))).collect()
}

/// The servers that a zone names for one of [`SERVICES`].
pub fn of_service(transport: Transport, named: &[NamedServer]) -> Vec<RelayServer> {
    named.iter().map(|named| server(&named.target, transport, named.addr)).collect()
}

fn server(host: &str, transport: Transport, addr: SocketAddr) -> RelayServer {
    let text = host.parse::<IpAddr>().map_or_else(
        |_| format!("{host}:{}", addr.port()),
        |ip| SocketAddr::new(ip, addr.port()).to_string(),
    );
    let label = match transport {
        Transport::Udp => format!("turn:{text}?transport=udp"),
        Transport::Tcp => format!("turn:{text}?transport=tcp"),
        Transport::Tls => format!("turns:{text}?transport=tcp"),
    };
    let tls_name = (transport == Transport::Tls).then(|| host.to_owned());
    RelayServer { label, host: host.to_owned(), transport, addr, tls_name }
}

/// What a node is called in its credentials: its name, where that is plain enough for
/// every server, else the start of its key.
pub fn credential_name(name: &str, key: &PublicKey) -> String {
    if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        name.to_owned()
    } else {
        key.to_string().chars().take(12).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(uri: &str, addrs: &[&str]) -> Vec<RelayServer> {
        let addrs: Vec<IpAddr> = addrs.iter().map(|ip| ip.parse().expect("an address")).collect();
        of_uri(&uri.parse().expect("a URI"), &addrs)
    }

    #[test]
    fn a_uri_without_transport_is_udp_and_then_tcp() {
        let servers = found("turn:Relay.example.:80", &["192.0.2.1", "2001:db8::1"]);
        let labels: Vec<&str> = servers.iter().map(|server| server.label.as_str()).collect();
        let (udp, tcp) =
            ("turn:relay.example:80?transport=udp", "turn:relay.example:80?transport=tcp");
        assert_eq!(labels, [udp, udp, tcp, tcp]);
        assert!(servers.iter().all(|server| server.host == "relay.example"));
        assert_eq!(servers[3].addr, "[2001:db8::1]:80".parse().expect("an address"));
    }

    #[test]
    fn tls_has_the_name_that_its_certificate_must_have() {
        let [server] = &found("turns:relay.example:443", &["192.0.2.1"])[..] else {
            panic!("one server")
        };
        assert_eq!(server.transport, Transport::Tls);
        assert_eq!(server.tls_name.as_deref(), Some("relay.example"));
        let [server] = &found("turns:[2001:db8::1]", &["2001:db8::1"])[..] else {
            panic!("one server")
        };
        assert_eq!(server.tls_name.as_deref(), Some("2001:db8::1"));
        assert_eq!(server.label, "turns:[2001:db8::1]:5349?transport=tcp");
    }

    #[tokio::test]
    async fn addresses_are_told_at_once_and_names_by_the_systems_resolver() {
        let (told, mut heard) = mpsc::channel(1);
        let uris = vec!["turn:192.0.2.1?transport=udp".parse().expect("a URI")];
        watch(uris, told).await;
        let servers = heard.recv().await.expect("a list");
        assert_eq!(servers[0].addr, "192.0.2.1:3478".parse().expect("an address"));
        let (told, mut heard) = mpsc::channel(1);
        let uris = vec!["turn:localhost?transport=tcp".parse().expect("a URI")];
        tokio::spawn(watch(uris, told));
        let servers = heard.recv().await.expect("a list");
        assert!(servers.iter().all(|server| server.addr.ip().is_loopback()));
        assert!(!servers.is_empty());
    }

    #[test]
    fn a_name_that_no_server_would_take_is_the_keys_start() {
        let key = zonemesh_discovery::identity::Identity::from_seed(&[1; 32]).public_key();
        assert_eq!(credential_name("site-a.1", &key), "site-a.1");
        let name = credential_name("Müllers Knoten: 1", &key);
        assert_eq!(name.len(), 12);
        assert!(key.to_string().starts_with(&name));
    }
}
