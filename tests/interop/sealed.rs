//! Sealed zones on the servers that people run: members read all, and whoever has the
//! whole zone but not the seal learns nothing of any node.

use std::{
    any::Any,
    fs,
    process::Command,
    sync::Arc,
    time::{Duration, SystemTime},
};

use data_encoding::{BASE32_NOPAD, BASE64, HEXLOWER, HEXUPPER};
use tempfile::TempDir;
use zonemesh::{
    lab::{process::Daemon, zone_server::ZoneServerKind},
    network::NetworkFile,
};
use zonemesh_discovery::{
    advert::{Advert, Entry, SignedAdvert},
    identity::Identity,
    membership::{Secret, Token},
    sealed::Seal,
    zone::{
        Browser, ZoneClient,
        slice::{Claimed, SignedClaim, SliceClaim},
    },
};

use crate::{
    revoke::{add_tsig, done, network},
    zone::{Server, ZONE, free_port, until_news, zone},
};

#[tokio::test]
async fn on_bind() {
    Scene::on(ZoneServerKind::Bind).members_read_all_and_others_nothing().await;
}

#[tokio::test]
async fn on_knot() {
    Scene::on(ZoneServerKind::Knot).members_read_all_and_others_nothing().await;
}

#[tokio::test]
async fn on_the_embedded_zone() {
    Scene::embedded().members_read_all_and_others_nothing().await;
}

/// A sealed network and the server of its zone.
struct Scene {
    folder: TempDir,
    token: Token,
    /// The way to the server, with a key where it wants one, without the seal.
    open: ZoneClient,
    /// The key as `dig -y` takes it.
    key: Option<String>,
    /// Ends when it is dropped.
    _server: Box<dyn Any>,
}

impl Scene {
    fn on(kind: ZoneServerKind) -> Self {
        let server = Server::start(kind, Some(true));
        let (folder, token) = sealed_network(&server.server.address().to_string());
        add_tsig(folder.path(), &server);
        let (open, key) = (server.client(), Some(server.key().join(":")));
        Self { folder, token, open, key, _server: Box::new(server) }
    }

    fn embedded() -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let (folder, token) = sealed_network(&address);
        let config = format!(
            "[serve]\nstun = false\nturn = false\nlisten = [\"127.0.0.1\"]\n\
             [serve.zone]\nnetwork = \"network.toml\"\ndata_dir = \"zone\"\nlisten = [{address:?}]\n"
        );
        let file = folder.path().join("zonemesh.toml");
        fs::write(&file, config).expect("is written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_zonemesh"));
        command.arg("serve").arg("-c").arg(file);
        let log = folder.path().join("serve.log");
        let mut daemon = Daemon::spawn("zonemesh serve", &mut command, &log).expect("it starts");
        let server = address.parse().expect("an address");
        let ready = || std::net::TcpStream::connect(address.as_str()).is_ok();
        daemon.wait_ready(Duration::from_secs(20), ready).expect("it listens");
        let open = ZoneClient::new(zone(), server, None);
        Self { folder, token, open, key: None, _server: Box::new(daemon) }
    }

    async fn members_read_all_and_others_nothing(&self) {
        let token = &self.token;
        let member = self.open.clone().sealed(token.access().seal());
        let mut browser = Browser::new(member.clone());
        let nodes: Vec<Identity> = (1..=3).map(|seed| Identity::from_seed(&[seed; 32])).collect();
        for node in &nodes {
            member.publish(&advert(token, node, 1)).await.expect("the server takes it");
            member.announce(&node.public_key()).await.expect("there is nothing to do");
        }
        let claims: Vec<SignedClaim> = nodes.iter().map(|node| claim(token, node, 1)).collect();
        for claim in &claims {
            let slice = &claim.claim().slice;
            assert_eq!(member.look_at_slice(slice).await, Ok(vec![]));
            assert_eq!(member.claim_slice(claim, &vec![]).await, Ok(Claimed::Done));
            let again = member.claim_slice(claim, &vec![]).await;
            assert_eq!(again, Ok(Claimed::Raced), "one winner");
            assert_eq!(member.look_at_slice(slice).await, Ok(vec![claim.txt().to_vec()]));
        }
        let revoked = Identity::from_seed(&[9; 32]).public_key();
        done(&network(self.folder.path(), &["revoke", &revoked.to_string()]));
        let list = member.revocations(&token.network()).await.expect("the server answers");
        let list = list.expect("it is published");
        assert!(list.contains(&revoked));

        let view = until_news(&mut browser).await;
        assert_eq!(view.revocations, [list.txt()]);
        assert_eq!(view.instances.len(), nodes.len());
        for (node, records) in
            nodes.iter().zip(nodes.iter().map(|node| &view.instances[&node.public_key()]))
        {
            let entry = records.verify(&zone(), SystemTime::now()).expect("as it was published");
            assert!(matches!(&entry, Entry::Signed(signed) if signed.advert().name == name(node)));
        }
        let seen = view.claims.expect("the whole zone was read");
        assert_eq!(seen.len(), claims.len());
        for claim in &claims {
            assert_eq!(seen[&claim.claim().slice], [claim.txt().to_vec()]);
        }

        // By IXFR, and renewed by one who has seen what stands there.
        let renewed = claim(token, &nodes[0], 2);
        let slice = &renewed.claim().slice;
        let stands = member.look_at_slice(slice).await.expect("it is there");
        assert_eq!(member.claim_slice(&renewed, &stands).await, Ok(Claimed::Done));
        assert_eq!(member.claim_slice(&renewed, &stands).await, Ok(Claimed::Raced));
        member.publish(&advert(token, &nodes[0], 2)).await.expect("the server takes it");
        member.withdraw_by(&last_word(token, &nodes[1], 2)).await.expect("the server takes it");
        let view = until_news(&mut browser).await;
        assert_eq!(view.instances.len(), 2);
        let records = &view.instances[&nodes[0].public_key()];
        let Ok(Entry::Signed(signed)) = records.verify(&zone(), SystemTime::now()) else {
            panic!("the newer advert")
        };
        assert_eq!(signed.advert().sequence, 2);
        let found = browser.find(&nodes[2].public_key()).await.expect("the server answers");
        assert!(found.is_some_and(|records| records.verify(&zone(), SystemTime::now()).is_ok()));

        // One with another seal reads the same records, and one without any.
        let other = Arc::new(Seal::new(&Secret::new(vec![2; 32])));
        for stranger in [self.open.clone().sealed(Some(other)), self.open.clone()] {
            let view = Browser::new(stranger).poll().await.expect("the server answers");
            let view = view.expect("the first look");
            assert!(view.instances.is_empty() && view.revocations.is_empty());
            assert!(view.claims.expect("the whole zone was read").is_empty());
        }
        let (types, dump) = self.dump();
        let count = |kind: &str| types.iter().filter(|known| *known == kind).count();
        assert_eq!(count("TXT"), 2 + 3 + 1, "adverts, claims, the list");
        assert_eq!(count("SRV") + count("PTR") + count("AAAA"), 0);
        for node in &nodes {
            let key = node.public_key();
            let bytes = key.as_bytes();
            let slice = claim(token, node, 1).claim().slice;
            for secret in [
                bytes.to_vec(),
                BASE64.encode(bytes).into_bytes(),
                BASE32_NOPAD.encode(bytes).to_ascii_lowercase().into_bytes(),
                BASE32_NOPAD.encode(bytes).into_bytes(),
                HEXLOWER.encode(bytes).into_bytes(),
                HEXUPPER.encode(bytes).into_bytes(),
                name(node).into_bytes(),
                slice.to_string().into_bytes(),
                slice.network().to_string().replace('.', "-").into_bytes(),
            ] {
                assert!(!holds(&dump, &secret), "{}", String::from_utf8_lossy(&secret));
            }
        }
        for secret in
            ["198.51.100.", "10.42.", "_wireguard", "_slice", "_revoked", "txtvers", "pub="]
        {
            assert!(!holds(&dump, secret.as_bytes()), "{secret}");
        }

        // An open zone tells all of that: the dump is read as it should be. Ours takes no such
        // records into a sealed zone.
        if self.key.is_none() {
            return;
        }
        let open = Identity::from_seed(&[4; 32]);
        self.open.publish(&advert(token, &open, 1)).await.expect("the server takes it");
        let (types, dump) = self.dump();
        assert!(types.contains(&"SRV".to_owned()));
        let base64 = format!("pub={}", open.public_key());
        for told in [name(&open), base64, open.public_key().to_base32(), "10.42.4.0/24".to_owned()]
        {
            assert!(holds(&dump, told.as_bytes()), "{told}");
        }
    }

    /// The whole zone as `dig` shows it: the types of its records, and all of its text.
    fn dump(&self) -> (Vec<String>, Vec<u8>) {
        let address = self.open.server();
        let mut dig = Command::new("dig");
        dig.args([&format!("@{}", address.ip()), "-p", &address.port().to_string()]);
        dig.args(self.key.iter().flat_map(|key| ["-y", key]));
        let output = dig.args(["+noall", "+answer", "+onesoa", ZONE, "AXFR"]).output();
        let text = String::from_utf8(output.expect("dig").stdout).expect("ASCII");
        assert!(text.contains("SOA"), "{text}");
        let types = text.lines().filter_map(|line| line.split_ascii_whitespace().nth(3));
        (types.map(str::to_owned).collect(), unescaped(&text))
    }
}

fn holds(dump: &[u8], secret: &[u8]) -> bool {
    dump.windows(secret.len()).any(|window| window == secret)
}

/// What `dig` writes as `\DDD` put back to bytes.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let number = after.get(..3).and_then(|digits| str::from_utf8(digits).ok()?.parse().ok());
        rest = match (first, number) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                &after[3..]
            }
            (b'\\', None) => after,
            _ => {
                bytes.push(*first);
                after
            }
        };
    }
    bytes
}

/// A sealed network whose zone is served there, and its first token.
fn sealed_network(server: &str) -> (TempDir, Token) {
    let folder = TempDir::new().expect("a folder");
    let init = ["init", ZONE, "--routes", "10.42.0.0/16", "--sealed", "--server", server];
    let made = network(folder.path(), &init);
    done(&made);
    let made = String::from_utf8(made.stdout).expect("text");
    let token: Token = made.lines().last().expect("a line").parse().expect("a token");
    let file = NetworkFile::load(&folder.path().join("network.toml")).expect("is one");
    assert_eq!(file.access.seal(), token.access().seal());
    (folder, token)
}

fn chain(token: &Token, node: &Identity) -> Vec<u8> {
    let routes = token.limits().routes();
    let groups: [&str; 0] = [];
    let kept = token.admit(&node.public_key(), &name(node), routes, &groups, SystemTime::now());
    kept.expect("it is good").chain().as_bytes().to_vec()
}

fn name(node: &Identity) -> String {
    format!("secret-lab-{}", &node.public_key().to_base32()[..4])
}

fn advert(token: &Token, node: &Identity, sequence: u64) -> SignedAdvert {
    let last = node.seed()[0];
    let candidates = [format!("s:198.51.100.{last}:51820"), format!("h:192.168.1.{last}:51820")];
    let advert = Advert {
        node: node.public_key(),
        name: name(node),
        addresses: vec![format!("10.42.{last}.1").parse().expect("an address")],
        routes: vec![format!("10.42.{last}.0/24").parse().expect("a prefix")],
        candidates: candidates.map(|text| text.parse().expect("a candidate")).to_vec(),
        certificate: Some(chain(token, node)),
        sequence,
        expires: SystemTime::now() + Duration::from_secs(3600),
    };
    advert.sign(node, &zone()).expect("it can be signed")
}

fn last_word(token: &Token, node: &Identity, sequence: u64) -> SignedAdvert {
    let advert = advert(token, node, sequence).advert().clone();
    let gone = Advert { candidates: vec![], expires: SystemTime::now(), ..advert };
    gone.sign(node, &zone()).expect("it can be signed")
}

fn claim(token: &Token, node: &Identity, sequence: u64) -> SignedClaim {
    let claim = SliceClaim {
        node: node.public_key(),
        slice: format!("10.42.{}.0/24", node.seed()[0]).parse().expect("a prefix"),
        sequence,
        expires: SystemTime::now() + Duration::from_secs(3600),
        certificate: Some(chain(token, node)),
    };
    claim.sign(node, &zone()).expect("it can be signed")
}
