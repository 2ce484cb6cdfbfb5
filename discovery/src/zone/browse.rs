//! The others' records: what is new in the zone since the last look.
//!
//! A look costs one query for the serial. Only when it has moved is more asked:
//! IXFR (530 bytes for one change among 1,000 nodes, where plain queries take
//! 720 kB), AXFR where the server's journal has a gap, and where transfers are
//! refused the PTR records and each instance by itself. Which of them works is
//! remembered, and the better way tried again now and then.
//!
//! Between two looks a browser [rests](Browser::rest): where the server knows the long poll
//! (the embedded zone does), until it tells of a change; else for a while.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use hickory_proto::rr::{Name, RecordType};
use tokio::time::{Instant, sleep_until};

use super::{
    Task, ZoneClient, ZoneError,
    contents::{Contents, MAX_INSTANCES, OutOfStep, View},
    error::{Rcode, TsigFault},
    message::{Data, Record, Reply, query},
    poll::LongPoll,
    query_budget,
    transfer::{Step, Transfer},
};
use crate::{advert::InstanceRecords, identity::PublicKey};

/// When transfers are tried again after a refusal: a refusal is configuration,
/// which an operator may have changed meanwhile.
const RETRY_TRANSFER: Duration = Duration::from_secs(600);

/// Follows what one zone says.
#[derive(Debug)]
pub struct Browser {
    client: ZoneClient,
    /// What the server has told of its serial by itself, since the last look.
    told: Option<u32>,
    poll: LongPoll,
    /// The serial of what `view` tells.
    seen: Option<u32>,
    view: Option<View>,
    way: Way,
}

/// How the records are fetched, better first.
#[derive(Debug)]
enum Way {
    /// What the last transfers have made, with its serial, if there was one.
    Transfers(Option<(u32, Contents)>),
    /// `retry` is when transfers are tried again; before `next` another round of
    /// queries would be more than this node's share.
    Queries { retry: Instant, next: Instant },
}

impl Browser {
    /// A browser that has seen nothing yet.
    pub fn new(client: ZoneClient) -> Self {
        let (told, poll, seen, view) = (None, LongPoll::default(), None, None);
        Self { client, told, poll, seen, view, way: Way::Transfers(None) }
    }

    /// Rests until the next look is due: until the server says that the zone has changed,
    /// or, where it does not do that, for `interval`. Between two looks there is always a
    /// twentieth of that, in which changes gather.
    pub async fn rest(&mut self, interval: Duration) {
        let start = Instant::now();
        // Who has to ask for each instance does so at a pace of its own.
        self.told = match (self.seen, &self.way) {
            (Some(seen), Way::Transfers(_)) => self.poll.wait(&self.client, seen).await,
            _ => None,
        };
        let pause = if self.told.is_some() { interval / 20 } else { interval };
        sleep_until(start + pause).await;
    }

    /// Looks at the zone: all that it says when something of it is new since the last
    /// look, `None` when nothing is. What it has seen outlives an error.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or its answer cannot be used.
    pub async fn poll(&mut self) -> Result<Option<View>, ZoneError> {
        let serial = match self.told.take() {
            Some(serial) => serial,
            None => self.client.serial().await?,
        };
        if self.seen == Some(serial) {
            return Ok(None);
        }
        let now = Instant::now();
        if let Way::Queries { retry, .. } = self.way
            && retry <= now
        {
            self.way = Way::Transfers(None);
        }
        let mut fetched = None;
        if let Way::Transfers(known) = &mut self.way {
            match by_transfer(&self.client, known).await {
                Ok(serial) => {
                    self.seen = Some(serial);
                    let zone = &self.client.zone;
                    fetched = known.as_ref().map(|(_, contents)| contents.view(zone));
                }
                Err(error) if is_refusal(&error) => {
                    tracing::info!(
                        "no zone transfers ({error}): asking for each instance by itself, \
                         which is slow in a large mesh; let the server allow transfers"
                    );
                    self.way = Way::Queries { retry: now + RETRY_TRANSFER, next: now };
                }
                Err(error) => return Err(error),
            }
        }
        if let Way::Queries { next, .. } = &mut self.way {
            if *next > now {
                return Ok(None);
            }
            let known = self.view.clone().unwrap_or_default();
            let (view, queries) = by_queries(&self.client, known).await?;
            *next = now + query_budget(view.instances.len(), queries);
            self.seen = Some(serial);
            fetched = Some(view);
        }
        if fetched.is_none() || fetched == self.view {
            return Ok(None);
        }
        self.view.clone_from(&fetched);
        Ok(fetched)
    }

    /// Asks for one node at once: for one that knocks before the zone's change was
    /// seen, or that the list of instances lacks. `None` when the zone knows nothing
    /// of it. It stays among those that plain queries ask for.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or its answer cannot be used.
    pub async fn find(&mut self, node: &PublicKey) -> Result<Option<InstanceRecords>, ZoneError> {
        let mut lookup = Lookup::default();
        lookup.run(&self.client, &[*node], &[]).await?;
        if let Some(error) = lookup.failed.remove(node) {
            return Err(error);
        }
        let found = lookup.contents.instances(&self.client.zone).remove(node);
        if let (Some(view), Some(found)) = (&mut self.view, &found) {
            view.instances.insert(*node, found.clone());
        }
        Ok(found)
    }
}

/// Brings `known` up to date by the smallest transfer that does; gives the serial.
async fn by_transfer(
    client: &ZoneClient,
    known: &mut Option<(u32, Contents)>,
) -> Result<u32, ZoneError> {
    if let Some((since, contents)) = known {
        match client.transfer(Some(*since)).await {
            Ok(transfer) => {
                if let Ok(serial) = apply(client, *since, contents, transfer) {
                    *since = serial;
                    if let Err(error) = contents.check_size(client.server) {
                        *known = None;
                        return Err(error);
                    }
                    return Ok(serial);
                }
                tracing::debug!(
                    "the zone's changes do not follow on serial {since}: reading it whole"
                );
            }
            // There are servers that know AXFR only.
            Err(error) if is_refusal(&error) => {}
            Err(error) => return Err(error),
        }
    }
    *known = None;
    let Transfer::Whole { serial, records } = client.transfer(None).await? else {
        return Err(client.rubbish(Task::Transfer, "changes where the whole zone was asked for"));
    };
    let contents = whole(client, records);
    contents.check_size(client.server)?;
    *known = Some((serial, contents));
    Ok(serial)
}

/// Applies a transfer that was asked for with serial `since`.
pub(super) fn apply(
    client: &ZoneClient,
    since: u32,
    contents: &mut Contents,
    transfer: Transfer,
) -> Result<u32, OutOfStep> {
    match transfer {
        Transfer::UpToDate { serial } if serial == since => Ok(serial),
        // The zone has been made anew and counts from lower.
        Transfer::UpToDate { .. } => Err(OutOfStep),
        Transfer::Whole { serial, records } => {
            *contents = whole(client, records);
            Ok(serial)
        }
        Transfer::Changes { from, .. } if from != since => Err(OutOfStep),
        Transfer::Changes { serial, steps, .. } => {
            for step in steps {
                match step {
                    Step::Remove(record) => {
                        for record in client.plain(record) {
                            contents.remove(&client.zone, &record)?;
                        }
                    }
                    Step::Add(record) => add(client, contents, record),
                }
            }
            Ok(serial)
        }
    }
}

fn whole(client: &ZoneClient, records: Vec<Record>) -> Contents {
    let mut contents = Contents::default();
    for record in records {
        add(client, &mut contents, record);
    }
    contents
}

pub(super) fn add(client: &ZoneClient, contents: &mut Contents, record: Record) {
    for record in client.plain(record) {
        contents.add(&client.zone, record);
    }
}

/// Whether the server does not do transfers for us, which is no fault. BIND says
/// REFUSED; Knot NOTAUTH, and BADKEY of a key that may do other things (which the
/// look at the serial has just shown); one that cannot pack its zone into messages
/// SERVFAIL; and some just hang up.
fn is_refusal(error: &ZoneError) -> bool {
    match error {
        ZoneError::Refused { rcode, .. } => {
            [Rcode::REFUSED, Rcode::NOTAUTH, Rcode::NOTIMP, Rcode::FORMERR, Rcode::SERVFAIL]
                .contains(rcode)
        }
        ZoneError::Tsig { fault, .. } => *fault == TsigFault::BadKey,
        ZoneError::Closed { .. } => true,
        _ => false,
    }
}

/// Asks for the list of instances and then for each, also for those known before:
/// the list is only a hint, and may lack some. Gives the number of queries, too.
async fn by_queries(client: &ZoneClient, mut known: View) -> Result<(View, usize), ZoneError> {
    let mut nodes: BTreeSet<PublicKey> = BTreeSet::new();
    let list = query(&client.zone.service(), RecordType::PTR);
    match client.ask(Task::Query, &list).await {
        // A sealed zone has no such list. Its server was asked all the same, to be known
        // for one that is away where it is.
        Ok(_) if client.seal.is_some() => {
            tracing::warn!("a sealed zone has to be transferred: let its server allow that");
        }
        Ok(reply) => nodes.extend(reply.answers.iter().filter_map(|record| match &record.data {
            Data::Ptr(instance) => client.zone.instance_key(instance),
            _ => None,
        })),
        // Too many for one message: Knot's SERVFAIL.
        Err(error @ ZoneError::Refused { .. }) if !known.instances.is_empty() => {
            tracing::warn!("the zone's list of instances cannot be read: {error}");
        }
        Err(error) => return Err(error),
    }
    nodes.extend(known.instances.keys());
    let nodes: Vec<PublicKey> = nodes.into_iter().take(MAX_INSTANCES).collect();
    let mut lookup = Lookup::default();
    lookup.run(client, &nodes, &[(client.revocations_name(), RecordType::TXT)]).await?;
    let mut view = View { claims: None, ..lookup.contents.view(&client.zone) };
    for (node, error) in lookup.failed {
        tracing::warn!("{} cannot be read: {error}", client.zone.instance(&node));
        // What cannot be asked now may well be as it was.
        match known.instances.remove(&node) {
            Some(records) => view.instances.insert(node, records),
            None => view.instances.remove(&node),
        };
    }
    if lookup.others_failed {
        view.revocations = known.revocations;
    }
    Ok((view, lookup.queries + 1))
}

/// SRV, TXT and addresses of some nodes by plain queries.
#[derive(Default)]
struct Lookup {
    contents: Contents,
    /// The nodes whose records could not be read, and why.
    failed: BTreeMap<PublicKey, ZoneError>,
    /// Whether something else that was asked for could not be read.
    others_failed: bool,
    queries: usize,
}

impl Lookup {
    /// Asks for all of some nodes' records, and for some others.
    async fn run(
        &mut self,
        client: &ZoneClient,
        nodes: &[PublicKey],
        others: &[(Name, RecordType)],
    ) -> Result<(), ZoneError> {
        let of_node = |node: &PublicKey| match &client.seal {
            None => {
                let name = client.zone.instance(node);
                vec![(name.clone(), RecordType::SRV), (name, RecordType::TXT)]
            }
            Some(seal) => vec![(seal.node(&client.zone, node), RecordType::TXT)],
        };
        let per_node = if client.seal.is_some() { 1 } else { 2 };
        let questions: Vec<(Name, RecordType)> =
            nodes.iter().flat_map(of_node).chain(others.iter().cloned()).collect();
        let Self { contents, failed, others_failed, .. } = self;
        let take = |number: usize, reply: Result<Reply, ZoneError>| match reply {
            // A good server sends the target's addresses along (RFC 2782).
            Ok(reply) => {
                for record in reply.answers.into_iter().chain(reply.additionals) {
                    add(client, contents, record);
                }
                contents.check_size(client.server)
            }
            Err(error @ ZoneError::Tsig { .. }) => Err(error),
            Err(error) => {
                // Of each node the same is asked, and then for the others.
                match nodes.get(number / per_node) {
                    Some(node) => drop(failed.insert(*node, error)),
                    None => *others_failed = true,
                }
                Ok(())
            }
        };
        client.ask_all(&questions, take).await?;
        let targets = self.contents.targets_without_address(&client.zone);
        let addresses: Vec<(Name, RecordType)> = targets
            .into_iter()
            .flat_map(|name| [(name.clone(), RecordType::A), (name, RecordType::AAAA)])
            .collect();
        self.queries += questions.len() + addresses.len();
        let contents = &mut self.contents;
        let take = |_, reply: Result<Reply, ZoneError>| {
            // An address that cannot be read leaves its instance without endpoint.
            for record in reply.into_iter().flat_map(|reply| reply.answers) {
                contents.add(&client.zone, record);
            }
            contents.check_size(client.server)
        };
        client.ask_all(&addresses, take).await
    }
}
