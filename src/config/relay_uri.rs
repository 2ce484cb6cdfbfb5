//! The address of a TURN server as a URI (RFC 7065).

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    str::FromStr,
};

/// How a TURN server is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelayTransport {
    /// Plain datagrams.
    Udp,
    /// A stream; with `turns:` one under TLS.
    Tcp,
}

/// `turn:` or `turns:`, host, port and transport.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RelayUri {
    /// Whether the connection is encrypted (`turns:`).
    pub secure: bool,
    /// An address or a host name.
    pub host: RelayHost,
    /// 3478, or 5349 with `turns:`, where the URI names none (RFC 5928 §3).
    pub port: u16,
    /// Where the URI names none, `turn:` is UDP and TCP, and `turns:` is TCP
    /// (RFC 5928 §3).
    pub transport: Option<RelayTransport>,
}

/// The host of a TURN URI.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum RelayHost {
    /// An address.
    Ip(IpAddr),
    /// A name yet to be resolved.
    Name(String),
}

/// The text is no TURN URI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a TURN URI (RFC 7065)")]
pub struct RelayUriError;

impl FromStr for RelayUri {
    type Err = RelayUriError;

    fn from_str(text: &str) -> Result<Self, RelayUriError> {
        let (scheme, rest) = text.split_once(':').ok_or(RelayUriError)?;
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "turn" => false,
            "turns" => true,
            _ => return Err(RelayUriError),
        };
        let (authority, transport) = match rest.split_once('?') {
            None => (rest, None),
            Some((authority, "transport=udp")) => (authority, Some(RelayTransport::Udp)),
            Some((authority, "transport=tcp")) => (authority, Some(RelayTransport::Tcp)),
            Some(_) => return Err(RelayUriError),
        };
        let (host, port) = split_port(authority)?;
        let port = match port {
            None => {
                if secure {
                    5349
                } else {
                    3478
                }
            }
            Some(port) => parse_port(port)?,
        };
        Ok(Self { secure, host: host.parse()?, port, transport })
    }
}

impl FromStr for RelayHost {
    type Err = RelayUriError;

    fn from_str(text: &str) -> Result<Self, RelayUriError> {
        if let Some(literal) = text.strip_prefix('[') {
            let literal = literal.strip_suffix(']').ok_or(RelayUriError)?;
            let ip: Ipv6Addr = literal.parse().map_err(|_| RelayUriError)?;
            return Ok(Self::Ip(ip.into()));
        }
        if let Ok(ip) = text.parse::<std::net::Ipv4Addr>() {
            return Ok(Self::Ip(ip.into()));
        }
        // RFC 1123 §2.1: letters, digits and hyphens; 63 bytes a label, 253 in all.
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > 253 || !name.split('.').all(label) {
            return Err(RelayUriError);
        }
        Ok(Self::Name(name.to_owned()))
    }
}

impl fmt::Display for RelayUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.secure { "turns:" } else { "turn:" })?;
        match &self.host {
            RelayHost::Ip(IpAddr::V4(ip)) => write!(f, "{ip}")?,
            RelayHost::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]")?,
            RelayHost::Name(name) => f.write_str(name)?,
        }
        write!(f, ":{}", self.port)?;
        match self.transport {
            None => Ok(()),
            Some(RelayTransport::Udp) => f.write_str("?transport=udp"),
            Some(RelayTransport::Tcp) => f.write_str("?transport=tcp"),
        }
    }
}

fn split_port(authority: &str) -> Result<(&str, Option<&str>), RelayUriError> {
    if let Some(end) = authority.find(']') {
        let (host, rest) = authority.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(RelayUriError),
        };
    }
    Ok(match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    })
}

fn parse_port(text: &str) -> Result<u16, RelayUriError> {
    // `u16` would also read a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(RelayUriError);
    }
    text.parse().ok().filter(|port| *port != 0).ok_or(RelayUriError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_the_rfc_is_read_and_written_back_in_full() {
        for (text, full) in [
            ("turn:192.0.2.1", "turn:192.0.2.1:3478"),
            ("turn:192.0.2.1:80?transport=tcp", "turn:192.0.2.1:80?transport=tcp"),
            ("TURNS:relay.example", "turns:relay.example:5349"),
            ("turns:relay.example.?transport=udp", "turns:relay.example:5349?transport=udp"),
            ("turn:[2001:db8::1]:5000", "turn:[2001:db8::1]:5000"),
            ("turn:[2001:db8::1]", "turn:[2001:db8::1]:3478"),
        ] {
            let uri: RelayUri = text.parse().expect(text);
            assert_eq!(uri.to_string(), full);
            assert_eq!(full.parse(), Ok(uri), "{full}");
        }
    }

    #[test]
    fn what_is_not_a_turn_uri_is_refused() {
        for text in [
            "",
            "turn",
            "turn:",
            "stun:192.0.2.1",
            "turn://192.0.2.1",
            "turn:192.0.2.1:0",
            "turn:192.0.2.1:+80",
            "turn:192.0.2.1:65536",
            "turn:192.0.2.1:",
            "turn:2001:db8::1",
            "turn:[2001:db8::1",
            "turn:[2001:db8::1]x",
            "turn:user@relay.example",
            "turn:relay.example?transport=sctp",
            "turn:relay.example?x=y",
            "turn:re lay",
        ] {
            assert_eq!(text.parse::<RelayUri>(), Err(RelayUriError), "{text}");
        }
    }
}
