use std::{fs, net::SocketAddr};

use zonemesh_discovery::{
    identity::Identity,
    membership::{Access, InviteId, Limits, NetworkKey, Secret as Bytes, Validity},
};

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn node() -> PublicKey {
    Identity::from_seed(&[1; 32]).public_key()
}

/// An invite as a test wants it.
#[derive(Clone)]
struct Invite {
    network: u8,
    seed: u8,
    name: &'static str,
    routes: &'static [&'static str],
    begins: SystemTime,
    ends: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Default for Invite {
    fn default() -> Self {
        Self {
            network: 1,
            seed: 1,
            name: "",
            routes: &["10.42.0.0/16"],
            begins: now() - DAY,
            ends: Some(now() + 30 * DAY),
            servers: vec!["198.51.100.53:53".parse().expect("an address")],
        }
    }
}

impl Invite {
    fn token(&self) -> Token {
        let routes: Vec<IpNet> =
            self.routes.iter().map(|route| route.parse().expect("a prefix")).collect();
        let limits = Limits::new(self.name, &routes, &["edge"]).expect("in their bounds");
        let access = Access {
            servers: self.servers.clone(),
            tsig: Some(AccessKey {
                name: "mesh-key".to_owned(),
                algorithm: "hmac-sha256".to_owned(),
                secret: Bytes::new(b"a secret of the tests".to_vec()),
            }),
            relay_secret: Some(Bytes::new(b"the relays' secret".to_vec())),
            ..Access::default()
        };
        Token::issue(
            &NetworkKey::from_seed(&[self.network; 32]),
            &[self.seed; 32],
            "mesh.example".parse().expect("a zone"),
            Validity::new(self.begins, self.ends),
            limits,
            access,
        )
        .expect("it fits")
    }

    fn id(&self) -> InviteId {
        self.token().invite()
    }

    fn given(&self) -> Given {
        Given { token: self.token(), from: "--join".to_owned() }
    }
}

fn config(text: &str) -> Config {
    Config::parse(Path::new("zonemesh.toml"), text).expect(text)
}

fn named() -> Config {
    config(
        "[node]\nname = \"pi\"\n\
         [interface]\naddresses = [\"10.42.1.1/24\"]\nroutes = [\"10.42.1.0/24\"]\n",
    )
}

fn join(invite: &Invite, config: &Config) -> Settled {
    let settled = settle(None, Some(&invite.given()), config, &node(), now());
    settled.expect("the token lets it in").expect("it is a member")
}

/// What is decided with this membership kept and this token at hand.
fn again(kept: &Settled, invite: &Invite, config: &Config) -> Result<Settled, JoinError> {
    let kept = Some(kept.membership.clone());
    settle(kept, Some(&invite.given()), config, &node(), now()).map(|it| it.expect("a member"))
}

/// A membership, for whoever needs some.
pub(crate) fn membership() -> Membership {
    join(&Invite::default(), &named()).membership
}

#[test]
fn a_token_makes_a_member_and_fills_in_what_the_file_lacks() {
    let mut config = named();
    let settled = join(&Invite::default(), &config);
    assert!(settled.is_new);
    assert_eq!(settled.certified.name, "pi");
    assert_eq!(settled.certified.routes, config.interface.routes, "no more than it needs");
    assert_eq!(settled.certified.groups, ["edge"]);
    fill(&mut config, &settled).expect("a known algorithm");
    let zone = config.zone.clone().expect("the token's");
    assert_eq!(zone.name.to_string(), "mesh.example.");
    assert_eq!(zone.servers, Invite::default().servers);
    assert_eq!(zone.tsig.expect("the token's").name, "mesh-key");
    assert_eq!(config.trust, Some(Trust::Members));
    assert!(config.relay.is_used());
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    config.check_node().expect("there is a zone");
}

#[test]
fn the_file_wins_where_both_speak() {
    let mut config = config(
        "[zone]\nname = \"mesh.example\"\nserver = \"192.0.2.1\"\n[network]\ntrust = \"zone\"",
    );
    let settled = join(&Invite::default(), &config);
    fill(&mut config, &settled).expect("a known algorithm");
    let servers = config.zone.expect("there").servers;
    assert_eq!(servers, ["192.0.2.1:53".parse().expect("an address")]);
    assert_eq!(config.trust, Some(Trust::Zone));
}

#[test]
fn a_node_without_prefixes_may_have_all_that_the_invite_allows() {
    let settled = join(&Invite::default(), &config(""));
    assert_eq!(settled.certified.routes, ["10.42.0.0/16".parse().expect("a prefix")]);
}

#[test]
fn what_the_invite_does_not_allow_is_an_error_that_names_it() {
    let told = |invite: Invite, config: &Config| {
        let error = settle(None, Some(&invite.given()), config, &node(), now());
        error.expect_err("it is not let in").to_string()
    };
    let elsewhere = Invite { routes: &["10.43.0.0/16", "10.44.0.0/16"], ..Invite::default() };
    let error = told(elsewhere, &named());
    assert!(error.contains("does not allow 10.42.1.0/24"), "{error}");
    assert!(error.contains("10.43.0.0/16, 10.44.0.0/16"), "{error}");
    let somebody = Invite { name: "gateway", ..Invite::default() };
    let error = told(somebody.clone(), &named());
    assert!(error.contains("lets in \"gateway\" alone"), "{error}");
    // The host's name gives way.
    assert_eq!(join(&somebody, &config("")).certified.name, "gateway");
    let over = Invite { ends: Some(now() - DAY), ..Invite::default() };
    let error = told(over, &named());
    assert!(error.contains("has expired") && error.contains("clock shows 2027-01-15"), "{error}");
    let later = Invite { begins: now() + DAY, ..Invite::default() };
    let error = told(later, &named());
    assert!(error.contains("is the clock right?"), "{error}");
}

#[test]
fn what_is_kept_needs_no_token_and_the_same_token_changes_nothing() {
    let kept = join(&Invite::default(), &named());
    let alone = settle(Some(kept.membership.clone()), None, &named(), &node(), now());
    assert_eq!(alone.expect("kept").expect("a member").membership, kept.membership);
    let same = again(&kept, &Invite::default(), &named()).expect("kept");
    assert!(!same.is_new);
    // Nor does the time that passes, though the token is over by now.
    let much_later = now() + 60 * DAY;
    let membership = Some(kept.membership.clone());
    let over = settle(membership, Some(&Invite::default().given()), &named(), &node(), much_later);
    assert_eq!(over.expect("kept").expect("a member").membership, kept.membership);
}

#[test]
fn a_newer_or_longer_token_renews_and_an_older_one_does_not() {
    let first = Invite::default();
    let kept = join(&first, &named());
    let longer = Invite { seed: 2, ends: Some(now() + 60 * DAY), ..first.clone() };
    assert_eq!(again(&kept, &longer, &named()).expect("let in").certified.invite, longer.id());
    let newer = Invite {
        seed: 3,
        begins: now() + Duration::from_secs(1),
        ends: first.ends,
        ..first.clone()
    };
    assert_eq!(again(&kept, &newer, &named()).expect("let in").certified.invite, newer.id());
    let older =
        Invite { seed: 4, begins: now() - 2 * DAY, ends: Some(now() + DAY), ..first.clone() };
    assert!(!again(&kept, &older, &named()).expect("kept").is_new);
    // An expired one does no harm to a membership that holds.
    let expired = Invite { ends: Some(now() - DAY), ..newer };
    let stays = again(&kept, &Invite { begins: now() - 2 * DAY, ..expired }, &named());
    assert!(!stays.expect("kept").is_new);
    let moved = Invite { servers: vec!["192.0.2.9:53".parse().expect("an address")], ..first };
    let moved = again(&kept, &moved, &named()).expect("let in");
    assert_eq!(moved.membership.access().servers.len(), 1);
    assert_ne!(moved.membership.access(), kept.membership.access());
}

#[test]
fn other_routes_or_another_name_join_again_with_the_token_and_warn_without() {
    let kept = join(&Invite::default(), &named());
    let mut other =
        config("[node]\nname = \"raspberry\"\n[interface]\nroutes = [\"10.42.2.0/24\"]\n");
    let renewed = again(&kept, &Invite::default(), &other).expect("let in");
    assert_eq!((renewed.is_new, renewed.certified.name.as_str()), (true, "raspberry"));
    fill(&mut other, &kept).expect("a known algorithm");
    assert_eq!(other.node.name, "pi", "what the others call it");
    assert_eq!(other.warnings.len(), 2, "{:?}", other.warnings);
    assert!(other.warnings[1].contains("10.42.2.0/24"), "{:?}", other.warnings);
}

#[test]
fn another_network_s_token_is_refused_with_the_folder_s_name() {
    let kept = join(&Invite::default(), &named());
    let other = Invite { network: 2, ends: None, ..Invite::default() };
    let error = again(&kept, &other, &named()).expect_err("another network").to_string();
    assert!(error.contains("/var/lib/zonemesh") && error.contains("node.state_dir"), "{error}");
}

#[test]
fn a_membership_of_another_key_is_told() {
    let kept = Some(membership());
    let other = Identity::from_seed(&[9; 32]).public_key();
    let error = settle(kept, None, &named(), &other, now()).expect_err("another's").to_string();
    assert!(error.contains("does not go with its key"), "{error}");
}

#[test]
fn a_token_comes_as_it_is_or_in_a_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let (good, bad) = (folder.path().join("token"), folder.path().join("bad"));
    let text = Invite::default().token().to_string();
    fs::write(&good, format!("{text}\n")).expect("is written");
    fs::write(&bad, &text[..text.len() - 9]).expect("is written");
    let given = |argument: &str| given(Some(argument), &mut config(""), false);
    for argument in [&text, &good.display().to_string()] {
        assert!(given(argument).expect("a token").is_some());
    }
    let error = given(&bad.display().to_string()).expect_err("cut short").to_string();
    assert!(error.contains("bad: this token"), "{error}");
    let error = given("nothing").expect_err("no token").to_string();
    assert!(error.starts_with("--join: this is no token"), "{error}");
    // A file that has done its work may go.
    let mut config = config("[network]\ntoken_file = \"/nonexistent/token\"");
    assert!(super::given(None, &mut config, true).expect("not needed").is_none());
    assert!(super::given(None, &mut config, false).is_err());
}
