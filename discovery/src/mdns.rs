//! The advert on the LAN, by mDNS (RFC 6762) and DNS-SD (RFC 6763): the very TXT
//! strings that stand in the zone, so that two nodes of one site find each other when
//! the zone is out of reach, and sooner when it is not.
//!
//! The instance label is the public key, as in the zone, but what counts is the
//! signature over the TXT strings: names on a LAN are anybody's, and SRV and addresses
//! belong to the mDNS host. So only the strings are handed out, in their order and as
//! they stood, and the reader verifies them. A goodbye is not handed out either: anybody
//! can send one, and an advert ends by its own lease.
//!
//! In a sealed network the strings are enciphered and the names blinded, as in the zone; that
//! here is a node, with these addresses of its own, everybody on the LAN sees all the same.
//!
//! Interfaces are chosen by name; on all others nothing is sent and nothing is heard.
//! Everybody on the LAN can make the responder remember records. Their number is looked
//! at every few seconds, and when it is out of all proportion, everything is dropped and
//! mDNS rests for a minute: peers are found through the zone meanwhile.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, RwLock},
    time::Duration,
};

use mdns_sd::{
    IfKind, IfPredicate, Receiver, ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo,
    TxtProperty,
};
use tokio::time::{self, Instant, Interval, MissedTickBehavior};
use tracing::{debug, warn};

use crate::{
    advert::{
        MAX_TXT_LEN, SERVICE_LABELS, SignedAdvert,
        txt::{Fields, push_bytes, text},
    },
    interfaces::MAX_MDNS_INTERFACES,
    sealed::{Place, Seal},
};

/// How often the number of remembered records is looked at.
const CHECK: Duration = Duration::from_secs(2);

/// The most records that are remembered: 1,024 nodes with five records each (PTR, SRV,
/// TXT, A, AAAA) and as many again for other interfaces' addresses. More than any LAN
/// has.
const MAX_RECORDS: i64 = 2 * 5 * 1024;

/// How long mDNS rests after more than that.
const REST: Duration = Duration::from_secs(60);

/// The wait before the responder is started again after it ended by itself.
const RETRY: Duration = Duration::from_secs(2);

/// How long the responder may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// The names of the responder's counters of records.
const RECORD_COUNTERS: [&str; 5] =
    ["cached-ptr", "cached-srv", "cached-txt", "cached-addr", "cached-nsec"];

/// The key of the TXT string that holds a sealed advert (RFC 6763 §6.5), with `seal1` and
/// so on behind it.
const SEAL_KEY: &str = "seal";

/// The most bytes of the strings that are looked at: a sealed advert is filled up, and has
/// a nonce and a tag.
const MAX_LEN: usize = MAX_TXT_LEN + 200;

/// A node's voice and ear on the LAN.
pub struct Mdns {
    state: State,
    seal: Option<Arc<Seal>>,
    interfaces: Interfaces,
    published: Option<Publication>,
    check: Interval,
}

/// What was heard on the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MdnsEvent {
    /// Somebody's advert, or one that looks like it: nothing of it is verified.
    Found {
        /// The TXT strings, in order, at most [`MAX_TXT_LEN`] bytes.
        txt: Vec<Vec<u8>>,
    },
    /// So many records came that all are dropped, and mDNS rests for a minute.
    Flooded,
}

/// Why mDNS does not work.
#[derive(Debug, thiserror::Error)]
#[error("mDNS: {0}")]
pub struct MdnsError(#[from] mdns_sd::Error);

/// The names of the interfaces in use, shared with the responder's thread.
type Interfaces = Arc<RwLock<BTreeSet<String>>>;

enum State {
    Speaking(Responder),
    /// Until then.
    Resting(Instant),
}

struct Publication {
    service: ServiceInfo,
    /// The TXT string by which our own advert is known when it is heard.
    key: Vec<u8>,
}

impl Mdns {
    /// Begins to listen on the interfaces of these names, at most
    /// [`MAX_MDNS_INTERFACES`]. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`MdnsError`] when the responder's thread cannot be started.
    pub fn start(interfaces: &[String]) -> Result<Self, MdnsError> {
        let interfaces = Arc::new(RwLock::new(bounded(interfaces)));
        let responder = Responder::start(&interfaces)?;
        let mut check = time::interval(CHECK);
        check.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let state = State::Speaking(responder);
        Ok(Self { state, seal: None, interfaces, published: None, check })
    }

    /// The same for a sealed network: adverts are sealed from the next on, and of those
    /// that are heard the seal's alone count.
    #[must_use]
    pub fn sealed(self, seal: Option<Arc<Seal>>) -> Self {
        Self { seal, ..self }
    }

    /// Says which interfaces to use from now on, and has their addresses looked at
    /// again: to be called whenever the machine's addresses change.
    ///
    /// # Errors
    /// [`MdnsError`] when the responder does not take it.
    pub fn set_interfaces(&mut self, interfaces: &[String]) -> Result<(), MdnsError> {
        *self.interfaces.write().expect("no thread panics holding it") = bounded(interfaces);
        match &self.state {
            State::Speaking(responder) => responder.apply_interfaces(),
            State::Resting(_) => Ok(()),
        }
    }

    /// Publishes the advert, with the interfaces' own addresses, in place of what was
    /// published before.
    ///
    /// # Errors
    /// [`MdnsError`] when the responder does not take it.
    pub fn publish(&mut self, advert: &SignedAdvert, port: u16) -> Result<(), MdnsError> {
        let node = advert.advert().node;
        let sealed;
        let (label, instance, txt) = match &self.seal {
            None => (node.to_base32(), format!("{}====", node.to_base32()), advert.txt()),
            Some(seal) => {
                let mut txt = vec![text("txtvers", 1)];
                push_bytes(&mut txt, SEAL_KEY, &seal.seal_for(Place::Lan, advert.txt()));
                sealed = txt;
                (seal.node_label(&node), seal.node_label(&node), &sealed[..])
            }
        };
        let properties: Vec<TxtProperty> =
            txt.iter().filter_map(|string| to_property(string)).collect();
        let host = format!("{label}.local.");
        let mut service =
            ServiceInfo::new(&service_type(), &instance, &host, (), port, properties)?
                .enable_addr_auto();
        // RFC 6762 §8: probing is for names that may be another's. These are keys; and
        // who claims them on the LAN must not make us take another name.
        service.set_requires_probe(false);
        let publication = Publication { service, key: format!("pub={node}").into_bytes() };
        if let State::Speaking(responder) = &self.state {
            responder.daemon.register(publication.service.clone())?;
        }
        self.published = Some(publication);
        Ok(())
    }

    /// Takes back what was published, with a goodbye to the LAN.
    pub fn withdraw(&mut self) {
        if let (Some(publication), State::Speaking(responder)) =
            (self.published.take(), &self.state)
            && let Err(error) = responder.daemon.unregister(publication.service.get_fullname())
        {
            debug!(%error, "mDNS: no goodbye");
        }
    }

    /// Withdraws, and waits until the goodbye is out.
    pub async fn stop(mut self) {
        self.published = None;
        if let State::Speaking(responder) = &self.state
            && let Ok(ended) = responder.daemon.shutdown()
        {
            // Past that, the lease tells the others.
            let _ = time::timeout(GOODBYE, ended.recv_async()).await;
        }
    }

    /// The next advert that is heard. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> MdnsEvent {
        loop {
            let responder = match &mut self.state {
                State::Speaking(responder) => responder,
                State::Resting(until) => {
                    time::sleep_until(*until).await;
                    self.resume();
                    continue;
                }
            };
            tokio::select! {
                event = responder.found.recv_async() => match event {
                    Ok(ServiceEvent::ServiceResolved(service)) => {
                        if let Some(txt) = self.read(&service) {
                            return MdnsEvent::Found { txt };
                        }
                    }
                    Ok(_) => {}
                    // It also hangs up on a listener that falls far behind.
                    Err(_) => {
                        debug!("mDNS: the responder has ended, starting again");
                        self.rest(RETRY);
                    }
                },
                _ = self.check.tick() => responder.ask_records(),
                records = responder.records() => {
                    responder.asked = None;
                    if records > MAX_RECORDS {
                        warn!(records, "mDNS: the LAN is flooded with records; resting");
                        self.rest(REST);
                        return MdnsEvent::Flooded;
                    }
                }
            }
        }
    }

    fn read(&self, service: &ResolvedService) -> Option<Vec<Vec<u8>>> {
        let mut txt: Vec<Vec<u8>> = service.txt_properties.iter().map(from_property).collect();
        let length = |txt: &[Vec<u8>]| txt.iter().map(|string| string.len() + 1).sum::<usize>();
        if length(&txt) > MAX_LEN {
            return None;
        }
        if let Some(seal) = &self.seal {
            let sealed = Fields::read(&txt).ok()?.bytes(SEAL_KEY)?;
            txt = seal.open_from(Place::Lan, &sealed)?;
        }
        // Anybody may use the service type for something else.
        let signed = txt.last().is_some_and(|string| string.starts_with(b"sig="));
        let own = self.published.as_ref().is_some_and(|ours| txt.contains(&ours.key));
        (signed && !own && length(&txt) <= MAX_TXT_LEN).then_some(txt)
    }

    fn rest(&mut self, span: Duration) {
        self.state = State::Resting(Instant::now() + span);
    }

    fn resume(&mut self) {
        let started = Responder::start(&self.interfaces).and_then(|responder| {
            if let Some(publication) = &self.published {
                responder.daemon.register(publication.service.clone())?;
            }
            Ok(responder)
        });
        match started {
            Ok(responder) => self.state = State::Speaking(responder),
            Err(error) => {
                warn!(%error, "mDNS cannot be taken up again yet");
                self.rest(RETRY);
            }
        }
    }
}

/// A responder with its thread, which ends with it.
struct Responder {
    daemon: ServiceDaemon,
    found: Receiver<ServiceEvent>,
    /// Where the number of remembered records will be told. Here and not in a future,
    /// so that one that is dropped does not keep a flood from being seen.
    asked: Option<Receiver<HashMap<String, i64>>>,
}

impl Responder {
    fn start(interfaces: &Interfaces) -> Result<Self, MdnsError> {
        let daemon = ServiceDaemon::new()?;
        let chosen = Arc::clone(interfaces);
        let chosen = IfPredicate::new(move |interface| {
            chosen.read().expect("no thread panics holding it").contains(&interface.name)
        });
        // It has joined all interfaces by now, up to the kernel's limit, and leaves them
        // before it joins the chosen ones and before it sends anything.
        daemon.disable_interface(IfKind::All)?;
        daemon.enable_interface(IfKind::Predicate(chosen))?;
        let found = daemon.browse(&service_type())?;
        Ok(Self { daemon, found, asked: None })
    }

    /// Has the responder look at the interfaces' names and addresses now and not at its
    /// next round: to enable nothing more has just that effect.
    fn apply_interfaces(&self) -> Result<(), MdnsError> {
        Ok(self.daemon.enable_interface(Vec::<IfKind>::new())?)
    }

    /// Asks how many records it remembers, unless that is asked already.
    fn ask_records(&mut self) {
        if self.asked.is_none() {
            self.asked = self.daemon.get_metrics().ok();
        }
    }

    /// How many records it remembers, once it was asked; none where it does not say.
    async fn records(&self) -> i64 {
        let Some(asked) = &self.asked else { return std::future::pending().await };
        let Ok(metrics) = asked.recv_async().await else { return 0 };
        RECORD_COUNTERS.iter().filter_map(|name| metrics.get(*name)).sum()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        // It fails where the thread has ended already.
        let _ = self.daemon.shutdown();
    }
}

fn bounded(interfaces: &[String]) -> BTreeSet<String> {
    interfaces.iter().take(MAX_MDNS_INTERFACES).cloned().collect()
}

fn service_type() -> String {
    let [service, transport] = SERVICE_LABELS;
    format!("{service}.{transport}.local.")
}

/// A TXT string as key and value (RFC 6763 §6.4). Ours all have both.
fn to_property(string: &[u8]) -> Option<TxtProperty> {
    let at = string.iter().position(|byte| *byte == b'=')?;
    // A value may be any bytes (RFC 6763 §6.5).
    Some(TxtProperty::from((std::str::from_utf8(&string[..at]).ok()?, &string[at + 1..])))
}

fn from_property(property: &TxtProperty) -> Vec<u8> {
    let mut string = property.key().as_bytes().to_vec();
    if let Some(value) = property.val() {
        string.push(b'=');
        string.extend_from_slice(value);
    }
    string
}
