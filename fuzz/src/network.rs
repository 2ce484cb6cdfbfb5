//! A network to be hostile to: its key, an invite, a token. Signatures are made by the book
//! (`docs/protocol.md`) and not by the project's code.

use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey};
use zonemesh_discovery::{
    identity::PublicKey,
    membership::{Access, AccessKey, Limits, NetworkId, NetworkKey, Secret, Token, Validity},
};

use crate::{wall, zone};

/// The seeds of the network's key and of its invite's.
const NETWORK: [u8; 32] = [0x4e; 32];
const INVITE: [u8; 32] = [0x49; 32];

/// The network's public key.
pub fn network() -> NetworkId {
    NetworkKey::from_seed(&NETWORK).id()
}

/// The network's secret key.
pub fn network_key() -> NetworkKey {
    NetworkKey::from_seed(&NETWORK)
}

/// The invite's public key.
pub fn invite() -> [u8; 32] {
    SigningKey::from_bytes(&INVITE).verifying_key().to_bytes()
}

/// The network's signature over a message.
pub fn sign_as_network(message: &[&[u8]]) -> [u8; 64] {
    SigningKey::from_bytes(&NETWORK).sign(&message.concat()).to_bytes()
}

/// The invite's signature over a message.
pub fn sign_as_invite(message: &[&[u8]]) -> [u8; 64] {
    SigningKey::from_bytes(&INVITE).sign(&message.concat()).to_bytes()
}

/// An invite certificate with whatever validity and limits.
pub fn invite_part(body: &[u8]) -> Vec<u8> {
    let part = [&[1][..], &invite(), body].concat();
    let signature = sign_as_network(&[b"zonemesh invite v1\0", network().as_bytes(), &part]);
    [&part[..], &signature].concat()
}

/// A node's part behind an invite certificate, with whatever validity and limits.
pub fn node_part(invite: &[u8], node: &PublicKey, body: &[u8]) -> Vec<u8> {
    let context = b"zonemesh node v1\0";
    let signature = sign_as_invite(&[context, network().as_bytes(), invite, node.as_bytes(), body]);
    [invite, body, &signature].concat()
}

/// A good token of the network, for 10.42.0.0/16 and one group.
pub fn token() -> Token {
    let day = Duration::from_secs(86_400);
    let validity = Validity::new(wall() - day, Some(wall() + 365 * day));
    let routes = ["10.42.0.0/16", "fd42::/48"].map(|route| route.parse().expect("literal"));
    let limits = Limits::new("", &routes, &["site-1"]).expect("good limits");
    let access = Access {
        servers: vec!["198.51.100.53:53".parse().expect("literal")],
        tsig: Some(AccessKey {
            name: "mesh-key".to_owned(),
            algorithm: "hmac-sha256".to_owned(),
            secret: Secret::new(b"secret".to_vec()),
        }),
        relay_secret: Some(Secret::new(b"relay".to_vec())),
        seal_secret: Some(Secret::new(vec![7; 32])),
        slice: 24,
    };
    Token::issue(&network_key(), &INVITE, zone(), validity, limits, access).expect("a good token")
}

/// The good certificate chain of a node under that token.
pub fn chain(node: &PublicKey) -> Vec<u8> {
    let routes = ["10.42.1.0/24".parse().expect("literal")];
    let membership = token().admit(node, "node-1", &routes, &["site-1"], wall());
    membership.expect("it allows that").chain().as_bytes().to_vec()
}
