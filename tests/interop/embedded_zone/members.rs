//! Members have no key for the zone, but what the network has certified of them.

use std::sync::Arc;

use zonemesh_discovery::{
    membership::{
        Access, DEFAULT_SLICE, Limits, NetworkKey, RevocationList, Secret, Token, Validity,
    },
    sealed::Seal,
    zone::{
        Browser, Rcode, ZoneError,
        slice::{Claimed, SignedClaim, SliceClaim},
    },
};

use super::*;

/// A network with its zone.
struct Network {
    served: Served,
    token: Token,
    seal: Option<Arc<Seal>>,
    key: NetworkKey,
    _folder: TempDir,
}

impl Network {
    fn start(sealed: bool) -> Self {
        let key = NetworkKey::from_seed(&[1; 32]);
        let seal_secret = sealed.then(|| Secret::new(vec![9; 32]));
        let folder = TempDir::new().expect("a folder");
        let file = folder.path().join("network.toml");
        let mut text = format!("zone = \"{ZONE}\"\nkey = \"{}\"\n", key.id());
        if let Some(secret) = &seal_secret {
            text.push_str(&format!("seal_secret = \"{}\"\n", BASE64.encode(secret.expose())));
        }
        fs::write(&file, text).expect("written");
        let lines = format!(
            "network = {:?}\nlimits = {{ updates_per_network = 1000000 }}",
            file.display().to_string()
        );
        let served = Served::start_with("", &lines);
        let seal = seal_secret.as_ref().map(|secret| Arc::new(Seal::new(secret)));
        let hour = Duration::from_secs(3600);
        let now = SystemTime::now();
        let access = Access {
            servers: vec![served.address()],
            tsig: None,
            relay_secret: None,
            seal_secret,
            slice: DEFAULT_SLICE,
        };
        let limits = Limits::new("", &[range()], &[] as &[&str]).expect("within bounds");
        let validity = Validity::new(now - hour, Some(now + hour));
        let token = Token::issue(&key, &[2; 32], zone(), validity, limits, access);
        Self { served, token: token.expect("it fits"), seal, key, _folder: folder }
    }

    fn client(&self) -> ZoneClient {
        ZoneClient::new(zone(), self.served.address(), None).sealed(self.seal.clone())
    }

    fn certificate(&self, node: &Identity) -> Vec<u8> {
        let name = "a node";
        let groups = &[] as &[&str];
        let admitted =
            self.token.admit(&node.public_key(), name, &[range()], groups, SystemTime::now());
        admitted.expect("within the limits").chain().as_bytes().to_vec()
    }

    fn advert(&self, node: &Identity, sequence: u64, port: u16) -> Advert {
        let addr = ([198, 51, 100, 7], port).into();
        Advert {
            candidates: vec![Candidate { kind: CandidateKind::ServerReflexive, addr }],
            certificate: Some(self.certificate(node)),
            ..advert(node, sequence).advert().clone()
        }
    }

    fn claim(&self, node: &Identity, slice: IpNet) -> SignedClaim {
        let claim = SliceClaim {
            node: node.public_key(),
            slice,
            sequence: 1,
            expires: SystemTime::now() + Duration::from_secs(3600),
            certificate: Some(self.certificate(node)),
        };
        claim.sign(node, &zone()).expect("it can be signed")
    }
}

fn range() -> IpNet {
    "10.42.0.0/16".parse().expect("a prefix")
}

fn sign(node: &Identity, advert: &Advert) -> SignedAdvert {
    advert.sign(node, &zone()).expect("it can be signed")
}

#[tokio::test]
async fn a_token_is_all_that_a_node_needs() {
    for sealed in [false, true] {
        let network = Network::start(sealed);
        let client = network.client();
        let mut browser = Browser::new(client.clone());
        let (one, two) = (node(1), node(2));
        for node in [&one, &two] {
            let advert = sign(node, &network.advert(node, 5, 51820));
            client.publish(&advert).await.expect("a member");
            client.announce(&node.public_key()).await.expect("it is there");
        }
        let view = browser.poll().await.expect("read").expect("news");
        assert_eq!(view.instances.len(), 2);
        // Its last word, and then the plain deletions, for other servers.
        let mut last = network.advert(&one, 6, 51820);
        (last.candidates, last.expires) = (Vec::new(), SystemTime::now());
        client.withdraw_by(&sign(&one, &last)).await.expect("withdrawn");
        let list = RevocationList::sign(&network.key, 1, [(&two.public_key()).into()]);
        client.publish_revocations(&list.expect("one entry")).await.expect("a newer list");
        let view = browser.poll().await.expect("read").expect("news");
        assert_eq!(view.instances.len(), 0);
        assert_eq!(view.revocations.len(), 1);
    }
}

#[tokio::test]
async fn who_is_refused_is_told_why() {
    let network = Network::start(false);
    let client = network.client();
    let node = node(1);
    let good = network.advert(&node, 5, 51820);
    let hour = Duration::from_secs(3600);
    client.publish(&sign(&node, &good)).await.expect("a member");
    for (advert, words) in [
        (Advert { certificate: None, sequence: 9, ..good.clone() }, "it has no certificate"),
        (Advert { sequence: 4, ..good.clone() }, "an advert with number 5 or a higher one"),
        (Advert { expires: SystemTime::now() - hour, ..good.clone() }, "a clock is wrong"),
        (Advert { expires: SystemTime::now() + 48 * hour, ..good.clone() }, "a clock is wrong"),
    ] {
        let error = client.publish(&sign(&node, &advert)).await.expect_err("refused");
        let ZoneError::Refused { rcode: Rcode::REFUSED, reason: Some(reason), .. } = &error else {
            panic!("{error}");
        };
        assert!(reason.contains(words), "{reason}");
        assert!(error.to_string().ends_with(reason));
    }
    // Nobody else takes its place, or removes it.
    let error = client.withdraw(&node.public_key()).await.expect_err("refused");
    assert!(error.to_string().contains("proves"), "{error}");
}

#[tokio::test]
async fn of_a_hundred_races_for_a_name_each_has_one_winner() {
    for sealed in [false, true] {
        let network = Network::start(sealed);
        for round in 1..=50 {
            let identity = node(round);
            // One number, and something else behind it each time.
            let tries = (0..4).map(|number| {
                let advert = sign(&identity, &network.advert(&identity, 1, 50_000 + number));
                let client = network.client();
                tokio::spawn(async move { client.publish(&advert).await })
            });
            let tries: Vec<_> = tries.collect();
            let mut won = Vec::new();
            for (number, done) in (50_000..).zip(tries) {
                match done.await.expect("it ends") {
                    Ok(()) => won.push(number),
                    Err(ZoneError::Refused { rcode: Rcode::REFUSED, .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            let [winner] = won[..] else { panic!("{won:?} have won") };
            let found = Browser::new(network.client()).find(&identity.public_key()).await;
            let endpoint = found.expect("an answer").expect("it is there").endpoint;
            assert_eq!(endpoint.map(|endpoint| endpoint.port()), Some(winner));
        }
    }
}

#[tokio::test]
async fn of_a_hundred_races_for_a_slice_each_has_one_winner() {
    for sealed in [false, true] {
        let network = Network::start(sealed);
        for round in 0..50 {
            let slice: IpNet = format!("10.42.{round}.0/24").parse().expect("a prefix");
            let claims = (0..4).map(|number| network.claim(&node(round * 4 + number), slice));
            let claims: Vec<SignedClaim> = claims.collect();
            let tries = claims.iter().map(|claim| {
                let (client, claim) = (network.client(), claim.clone());
                tokio::spawn(async move { client.claim_slice(&claim, &vec![]).await })
            });
            let tries: Vec<_> = tries.collect();
            let mut won = Vec::new();
            for (claim, done) in claims.iter().zip(tries) {
                match done.await.expect("it ends").expect("it is answered") {
                    Claimed::Done => won.push(claim.txt().to_vec()),
                    Claimed::Raced => {}
                }
            }
            assert_eq!(won.len(), 1, "{slice}");
            let seen = network.client().look_at_slice(&slice).await;
            assert_eq!(seen.expect("it can be read"), won);
        }
    }
}

#[tokio::test]
async fn anothers_name_is_safe_from_members_and_was_not_from_a_shared_key() {
    let network = Network::start(false);
    let served = &network.served;
    let (victim, attacker) = (node(1), node(2));
    for node in [&victim, &attacker] {
        let advert = sign(node, &network.advert(node, 5, 51820));
        network.client().publish(&advert).await.expect("a member");
    }
    let (label, host) = labels(&victim);
    let attacks = [
        vec![
            format!("update delete {host}.{ZONE}. A"),
            format!("update add {host}.{ZONE}. 30 A 203.0.113.66"),
        ],
        vec![format!("update add {label}._wireguard._udp.{ZONE}. 30 SRV 0 0 666 {host}.{ZONE}.")],
        vec![format!("update delete {label}._wireguard._udp.{ZONE}.")],
    ];
    let shown = || {
        let name = format!("{label}._wireguard._udp.{ZONE}");
        let all = ["TXT", "SRV"].map(|kind| served.dig(&["+short", "+tcp", &name, kind]));
        all.concat() + &served.dig(&["+short", &format!("{host}.{ZONE}"), "A"])
    };
    let before = (shown(), served.serial());
    for attack in &attacks {
        let refused = served.nsupdate(None, attack).expect_err("it is not the attacker's");
        assert!(refused.contains("REFUSED"), "{refused}");
    }
    assert_eq!((shown(), served.serial()), before);
    // Where all share one key, as they do in many a zone, each of them works.
    for attack in &attacks {
        let before = shown();
        served.nsupdate(Some((KEY, SECRET)), attack).expect("it may");
        assert_ne!(shown(), before, "{attack:?}");
    }
    // What is then there is not believed, and mended by the victim's next word.
    for (sequence, attack) in (6..).zip(&attacks[..2]) {
        let mended = sign(&victim, &network.advert(&victim, sequence, 51820));
        network.client().publish(&mended).await.expect("its own name");
        let found = Browser::new(network.client()).find(&victim.public_key()).await;
        let records = found.expect("an answer").expect("it is there");
        assert!(records.verify(&zone(), SystemTime::now()).is_ok(), "{records:?}");
        served.nsupdate(Some((KEY, SECRET)), attack).expect("it may");
        let found = Browser::new(network.client()).find(&victim.public_key()).await;
        let records = found.expect("an answer").expect("it is there");
        assert!(records.verify(&zone(), SystemTime::now()).is_err(), "{records:?}");
    }
}
