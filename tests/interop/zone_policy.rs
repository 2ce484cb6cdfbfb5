//! Who may write what in a zone of BIND or Knot: the recipes of `docs/security.md`, one key
//! for each node, and what the same keys could do without them.

use data_encoding::BASE64;
use zonemesh::lab::zone_server::{NodeKey, ZoneServerKind};
use zonemesh_discovery::{
    identity::{Identity, PublicKey},
    zone::{Rcode, Task, TsigFault, ZoneClient, ZoneError},
};

use crate::zone::{Server, ZONE, advert, key, keys, labels, node, sorted};

#[tokio::test]
async fn a_nodes_key_writes_that_nodes_records_alone_in_a_zone_of_bind() {
    writes_its_own_alone(ZoneServerKind::Bind).await;
}

#[tokio::test]
async fn a_nodes_key_writes_that_nodes_records_alone_in_a_zone_of_knot() {
    writes_its_own_alone(ZoneServerKind::Knot).await;
}

async fn writes_its_own_alone(kind: ZoneServerKind) {
    let (ours, theirs) = (node(1), node(2));
    let node_keys = [&ours, &theirs].map(node_key).to_vec();
    let server = Server::start_guarded(kind, Some(true), Vec::new(), node_keys);
    let [our_client, their_client] = [&ours, &theirs].map(|node| client_of(&server, node));
    let their_advert = advert(&theirs, 1, &["198.51.100.8:51820"]);
    for (client, advert) in [
        (&our_client, advert(&ours, 1, &["198.51.100.7:51820", "[2001:db8::7]:51820"])),
        (&their_client, their_advert.clone()),
    ] {
        client.publish(&advert).await.expect("its own records");
        client.announce(&advert.advert().node).await.expect("its own pointer");
    }
    let mut browser = server.browser();
    let seen = browser.poll().await.expect("polled").expect("something new");
    let both = sorted([ours.public_key(), theirs.public_key()]);
    assert_eq!(keys(&seen), both);

    // Neither an older advert of the other, genuine as it is, nor its removal.
    refused(&our_client.publish(&their_advert).await);
    refused(&our_client.withdraw(&theirs.public_key()).await);
    assert_eq!(server.dig(&labels(&theirs.public_key()).1, "A"), ["198.51.100.8"]);
    assert_eq!(browser.poll().await.expect("polled"), None, "nothing has changed");

    // No policy of RFC 2136 looks into a pointer: the list is a hint, and no more.
    let without_them = server.dig("_wireguard._udp", "PTR");
    assert_eq!(without_them.len(), 2, "the refused removal has left it");

    // Its own it may take away again.
    our_client.withdraw(&ours.public_key()).await.expect("its own records");
    let seen = browser.poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), [theirs.public_key()]);

    // The same with a key that all share: the attack works.
    server.client().withdraw(&theirs.public_key()).await.expect("anybody's records");
    let seen = browser.poll().await.expect("polled").expect("something new");
    assert_eq!(keys(&seen), [] as [PublicKey; 0]);
}

/// BIND says REFUSED; Knot that it knows no such key, of one that may do other things.
fn refused(result: &Result<(), ZoneError>) {
    match result {
        Err(ZoneError::Refused { task: Task::Update, rcode: Rcode::REFUSED, .. })
        | Err(ZoneError::Tsig { fault: TsigFault::BadKey, .. }) => {}
        other => panic!("not refused: {other:?}"),
    }
}

fn secret(node: &Identity) -> [u8; 32] {
    *node.public_key().as_bytes()
}

fn node_key(node: &Identity) -> NodeKey {
    NodeKey { host: labels(&node.public_key()).1, secret: BASE64.encode(&secret(node)) }
}

fn client_of(server: &Server, node: &Identity) -> ZoneClient {
    let name = format!("{}.{ZONE}", labels(&node.public_key()).1);
    server.client_with(ZONE, Some(key(&name, &secret(node))))
}
