//! What `zonemesh explain` says: why a peer is reached as it is, pair by pair.
//!
//! The fields are read by other programs, as those of `status` are: they are added to, and
//! never renamed or removed. What is not known is `null`.

use std::{
    fmt,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use zonemesh_punch::{CandidateKind, PairStatus, Tier, Via};

use crate::status::{PathStatus, or_dash, printable, table};

/// One peer, explained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Its name; empty where it has none.
    pub name: String,
    /// Its key, in Base64.
    pub public_key: String,
    /// The way to it.
    pub path: PathStatus,
    /// In one sentence, why it is that way.
    pub reason: String,
    /// What the administrator of a firewall could change; `null` where nothing is to be
    /// gained.
    pub advice: Option<String>,
    /// Every pair of ends that is known, the best first.
    pub pairs: Vec<PairExplanation>,
}

/// One pair of ends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairExplanation {
    /// This node's end: `socket`, `relay` with its name, or `extra` with its number.
    pub via: String,
    /// The peer's address.
    pub remote: SocketAddr,
    /// What the address is: `host`, `peer-reflexive`, `mapped`, `server-reflexive` or
    /// `relayed`.
    pub kind: String,
    /// `lan`, `direct` or `relayed`.
    pub tier: String,
    /// As which address the peer saw this node.
    pub seen_as: Option<SocketAddr>,
    /// Whether it is in use.
    pub selected: bool,
    /// The round trip in milliseconds; `null` while it does not answer.
    pub rtt_ms: Option<f64>,
    /// Checks without an answer since the last one that was answered.
    pub unanswered: u32,
    /// Seconds since the last check was sent.
    pub last_sent_s: Option<f64>,
    /// Seconds since the last answer came.
    pub last_answer_s: Option<f64>,
    /// Seconds since the last check of the peer came this way.
    pub last_heard_s: Option<f64>,
    /// In a few words, why it is or is not a path.
    pub result: String,
}

impl PairExplanation {
    /// What an agent knows of a pair, as of `now`. `relay` names an allocation.
    pub fn new(pair: &PairStatus, relay: impl FnOnce(u32) -> Option<String>, now: Instant) -> Self {
        let ago = |at: Option<Instant>| at.map(|at| seconds(now.saturating_duration_since(at)));
        Self {
            via: match pair.route.via {
                Via::Socket => "socket".to_owned(),
                Via::Extra(id) => format!("extra {id}"),
                Via::Uplink(id) => format!("interface {id}"),
                Via::Relay(id) => {
                    relay(id).map_or_else(|| format!("relay {id}"), |name| format!("relay {name}"))
                }
            },
            remote: pair.route.remote,
            kind: kind(pair.kind).to_owned(),
            tier: tier(pair.tier).to_owned(),
            seen_as: pair.own,
            selected: pair.selected,
            rtt_ms: pair.rtt.map(|rtt| (rtt.as_secs_f64() * 1e6).round() / 1e3),
            unanswered: pair.unanswered,
            last_sent_s: ago(pair.last_sent),
            last_answer_s: ago(pair.last_answer),
            last_heard_s: ago(pair.last_heard),
            result: pair.reason().to_owned(),
        }
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, public_key, path, reason, advice, pairs } = self;
        writeln!(f, "peer    {}  {public_key}", printable(name))?;
        writeln!(f, "path    {path}")?;
        writeln!(f, "why     {reason}")?;
        if let Some(advice) = advice {
            writeln!(f, "advice  {advice}")?;
        }
        if pairs.is_empty() {
            return writeln!(f, "\nno pairs: no address of the peer is checked");
        }
        writeln!(f)?;
        let heading =
            ["", "FROM", "TO", "KIND", "TIER", "RTT", "SENT", "ANSWERED", "HEARD", "RESULT"];
        let rows = pairs.iter().map(PairExplanation::row);
        f.write_str(&table(std::iter::once(heading.map(String::from)).chain(rows)))
    }
}

impl PairExplanation {
    fn row(&self) -> [String; 10] {
        let ago = |at: Option<f64>| or_dash(at.map_or(String::new(), |s| format!("{s:.1} s ago")));
        [
            if self.selected { "*" } else { "" }.to_owned(),
            self.via.clone(),
            self.remote.to_string(),
            self.kind.clone(),
            self.tier.clone(),
            or_dash(self.rtt_ms.map_or(String::new(), |rtt| format!("{rtt:.1} ms"))),
            ago(self.last_sent_s),
            ago(self.last_answer_s),
            ago(self.last_heard_s),
            self.result.clone(),
        ]
    }
}

fn kind(kind: CandidateKind) -> &'static str {
    match kind {
        CandidateKind::Host => "host",
        CandidateKind::PeerReflexive => "peer-reflexive",
        CandidateKind::Mapped => "mapped",
        CandidateKind::ServerReflexive => "server-reflexive",
        CandidateKind::Relayed => "relayed",
    }
}

fn tier(tier: Tier) -> &'static str {
    match tier {
        Tier::Lan => "lan",
        Tier::Direct => "direct",
        Tier::Relayed => "relayed",
    }
}

fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use zonemesh_punch::Route;

    use super::*;
    use crate::status::PathKind;

    fn pair(now: Instant) -> PairStatus {
        PairStatus {
            route: Route::relayed(1, "198.51.100.9:50000".parse().expect("an address")),
            kind: CandidateKind::ServerReflexive,
            tier: Tier::Relayed,
            own: Some("203.0.113.5:60000".parse().expect("an address")),
            listed: true,
            selected: true,
            suspect: false,
            rtt: Some(Duration::from_micros(12_340)),
            loss: Some(0.0),
            unanswered: 0,
            last_sent: Some(now),
            last_answer: Some(now),
            last_heard: None,
        }
    }

    fn explanation() -> Explanation {
        let start = Instant::now();
        let later = start + Duration::from_millis(2_000);
        let name = |id| (id == 1).then(|| "turn:192.0.2.1:3478?transport=udp".to_owned());
        Explanation {
            name: "b\u{1b}[2J".into(),
            public_key: "key".into(),
            path: PathStatus { kind: PathKind::Relayed, ..PathStatus::NONE },
            reason: "both NATs give every destination another port".into(),
            advice: Some("forward a port".into()),
            pairs: vec![PairExplanation::new(&pair(start), name, later)],
        }
    }

    #[test]
    fn the_json_has_the_fields_that_others_read() {
        let json = serde_json::to_value(explanation()).expect("is JSON");
        let pair = &json["pairs"][0];
        assert_eq!(pair["via"], "relay turn:192.0.2.1:3478?transport=udp");
        assert_eq!(pair["remote"], "198.51.100.9:50000");
        assert_eq!((&pair["kind"], &pair["tier"]), (&"server-reflexive".into(), &"relayed".into()));
        assert_eq!(pair["rtt_ms"], 12.34);
        assert_eq!((&pair["last_sent_s"], &pair["last_heard_s"]), (&2.0.into(), &().into()));
        assert_eq!(json["path"]["kind"], "relayed");
        let back: Explanation = serde_json::from_value(json).expect("it is one");
        assert_eq!(back, explanation());
    }

    #[test]
    fn for_people_it_is_a_sentence_and_a_table() {
        let text = explanation().to_string();
        assert!(text.contains("why     both NATs give every destination another port\n"), "{text}");
        assert!(text.contains("advice  forward a port\n"), "{text}");
        let row = text.lines().last().expect("a row");
        assert!(row.starts_with("*  relay turn:192.0.2.1:3478?transport=udp  198.51.100.9:50000"));
        assert!(!text.contains('\u{1b}'));
    }
}
