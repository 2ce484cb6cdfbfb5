//! Claims of slices against the servers that people run.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ipnet::IpNet;
use zonemesh::lab::zone_server::ZoneServerKind;
use zonemesh_discovery::{
    advert::CLOCK_SKEW,
    identity::Identity,
    zone::{
        ZoneClient,
        slice::{Claimed, Ground, LEASE, SignedClaim, SliceClaim, SliceEvent, SliceKeeper},
    },
};

use crate::zone::{Server, node, zone};

with_both_servers!(
    of_a_hundred_races_for_a_slice_each_has_one_winner,
    nodes_that_begin_together_get_a_slice_each,
    a_restart_of_node_and_server_keeps_the_slice,
    the_end_of_a_lease_frees_the_slice,
    the_zone_lists_its_claims,
);

async fn of_a_hundred_races_for_a_slice_each_has_one_winner(kind: ZoneServerKind) {
    const NODES: u16 = 4;
    let server = Server::start(kind, None);
    let client = server.client();
    let ground = Ground::new(&[net("10.42.0.0/16")], 24);
    for number in 0..50 {
        let slice = ground.get(number).expect("one of 256");
        let ends = SystemTime::now() + LEASE;
        // The second time round for a claim that has lapsed, which all have seen.
        let lapsed = claim(&node(99), slice, SystemTime::now() - CLOCK_SKEW * 2);
        for replaces in [vec![], vec![lapsed.txt().to_vec()]] {
            if !replaces.is_empty() {
                let seen = client.look_at_slice(&slice).await.expect("it can be read");
                let put = client.claim_slice(&lapsed, &seen).await;
                assert_eq!(put, Ok(Claimed::Done));
            }
            let tries = (0..NODES).map(|number| {
                let (client, replaces) = (client.clone(), replaces.clone());
                let claim = claim(&node(number), slice, ends);
                tokio::spawn(async move { client.claim_slice(&claim, &replaces).await })
            });
            let tries: Vec<_> = tries.collect();
            let mut won = Vec::new();
            for (number, outcome) in (0..).zip(tries) {
                match outcome.await.expect("it ends").expect("it is answered") {
                    Claimed::Done => won.push(number),
                    Claimed::Raced => {}
                }
            }
            let [winner] = won[..] else { panic!("{slice}: {won:?} have won") };
            let seen = client.look_at_slice(&slice).await.expect("it can be read");
            assert_eq!(seen, [claim(&node(winner), slice, ends).txt()]);
        }
    }
}

async fn nodes_that_begin_together_get_a_slice_each(kind: ZoneServerKind) {
    let server = Server::start(kind, None);
    // As many as there are slices, so that they have to get out of each other's way.
    let ground = Ground::new(&[net("10.42.0.0/20")], 24);
    let tasks = (0..16).map(|number| {
        let (client, ground) = (server.client(), ground.clone());
        tokio::spawn(async move {
            let mut keeper = keeper(&node(number), &ground, None);
            until_held(&mut keeper, &client).await
        })
    });
    let tasks: Vec<_> = tasks.collect();
    let mut held = BTreeSet::new();
    for task in tasks {
        assert!(held.insert(task.await.expect("it ends")), "twice the same");
    }
    assert_eq!(held, (0..16).filter_map(|number| ground.get(number)).collect());
    // One more finds none.
    let mut late = keeper(&node(16), &ground, None);
    assert_eq!(until_event(&mut late, &server.client()).await, SliceEvent::Full);
}

async fn a_restart_of_node_and_server_keeps_the_slice(kind: ZoneServerKind) {
    let mut server = Server::start(kind, None);
    let ground = Ground::new(&[net("10.42.0.0/16")], 24);
    let mut first = keeper(&node(1), &ground, None);
    let event = until_event(&mut first, &server.client()).await;
    let SliceEvent::Held(slice, expires) = event else { panic!("{event:?}") };
    server.server.kill();
    // The node comes back while the server is away, and knows it by itself.
    let mut again = keeper(&node(1), &ground, Some((slice, expires)));
    assert_eq!(again.held(), Some(slice));
    drive(&mut again, &server.client()).await;
    assert_eq!(again.held(), Some(slice));
    server.server.restart().expect("it starts on what it left");
    let seen = server.client().look_at_slice(&slice).await.expect("it can be read");
    assert_eq!(seen.len(), 1, "the server has kept it");
    tokio::time::sleep_until(again.poll_timeout().expect("it tries again").into()).await;
    drive(&mut again, &server.client()).await;
    assert_eq!(again.held(), Some(slice));
    let after = server.client().look_at_slice(&slice).await.expect("it can be read");
    assert_eq!(after, seen, "there was nothing to renew");
}

async fn the_end_of_a_lease_frees_the_slice(kind: ZoneServerKind) {
    let server = Server::start(kind, None);
    let client = server.client();
    let ground = Ground::new(&[net("10.42.7.0/24")], 24);
    let slice = net("10.42.7.0/24");
    let live = claim(&node(1), slice, SystemTime::now() + Duration::from_secs(60));
    assert_eq!(client.claim_slice(&live, &vec![]).await, Ok(Claimed::Done));
    let mut other = keeper(&node(2), &ground, None);
    drive(&mut other, &client).await;
    assert_eq!(other.held(), None);
    let over = claim(&node(1), slice, SystemTime::now() - CLOCK_SKEW * 2);
    let replaced = client.claim_slice(&over, &vec![live.txt().to_vec()]).await;
    assert_eq!(replaced, Ok(Claimed::Done));
    let mut other = keeper(&node(2), &ground, None);
    assert_eq!(until_held(&mut other, &client).await, slice);
    // The one that was away has to go without.
    let mut first = keeper(&node(1), &ground, Some((slice, SystemTime::now())));
    assert_eq!(first.held(), None);
    drive(&mut first, &client).await;
    assert_eq!(first.held(), None);
}

async fn the_zone_lists_its_claims(kind: ZoneServerKind) {
    let server = Server::start(kind, Some(true));
    let (client, mut browser) = (server.client(), server.browser());
    let slice = net("10.42.7.0/24");
    let claims: Vec<SignedClaim> = (1..=2)
        .map(|number| claim(&node(1), slice, SystemTime::now() + Duration::from_secs(number)))
        .collect();
    let mut before = vec![];
    for claim in claims {
        client.claim_slice(&claim, &before).await.expect("it is taken");
        before = vec![claim.txt().to_vec()];
        let seen = browser.poll().await.expect("polled").expect("something new");
        assert_eq!(seen.claims.expect("a list")[&slice], before);
    }
    if kind == ZoneServerKind::Knot {
        // Who cannot list the zone can still ask.
        let server = Server::start(kind, Some(false));
        let seen = server.browser().poll().await.expect("polled").expect("something new");
        assert_eq!(seen.claims, None);
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("a prefix")
}

/// A claim with a certificate as long as they get.
fn claim(identity: &Identity, slice: IpNet, expires: SystemTime) -> SignedClaim {
    let certificate = Some(vec![0xa5; 320]);
    let node = identity.public_key();
    let claim = SliceClaim { node, slice, sequence: 1, expires, certificate };
    claim.sign(identity, &zone()).expect("it can be signed")
}

fn keeper(identity: &Identity, ground: &Ground, kept: Option<(IpNet, SystemTime)>) -> SliceKeeper {
    let identity = Arc::new(Identity::from_seed(identity.seed()));
    SliceKeeper::new(zone(), identity, ground.clone(), kept, Instant::now(), SystemTime::now())
}

/// Asks whatever is to be asked now.
async fn drive(keeper: &mut SliceKeeper, client: &ZoneClient) {
    while let Some(ask) = keeper.poll_ask(Instant::now()) {
        // Where it fails, that is what the test is about.
        let _ = client.ask_for_slice(keeper, ask, &|_| true).await;
    }
}

async fn until_held(keeper: &mut SliceKeeper, client: &ZoneClient) -> IpNet {
    match until_event(keeper, client).await {
        SliceEvent::Held(slice, _) => slice,
        other => panic!("{other:?}"),
    }
}

async fn until_event(keeper: &mut SliceKeeper, client: &ZoneClient) -> SliceEvent {
    let waiting = async {
        loop {
            drive(keeper, client).await;
            match (keeper.poll_event(), keeper.poll_timeout()) {
                (Some(event), _) => return event,
                (None, Some(due)) => tokio::time::sleep_until(due.into()).await,
                (None, None) => panic!("nothing to wait for: {keeper:?}"),
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("something happens")
}
