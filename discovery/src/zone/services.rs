//! Who serves the zone, and which services the zone names: SRV (RFC 2782).

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use futures_util::future::try_join_all;
use hickory_proto::rr::{Name, RData, RecordType};
use hickory_resolver::TokioResolver;
use tokio::time::timeout;

use super::{
    Task, ZoneClient, ZoneError,
    message::{Data, Record, Reply, query},
};
use crate::advert::Zone;

/// The port of DNS (RFC 1035 §4.2).
const DNS_PORT: u16 = 53;

/// The most servers of one service that are used.
const MAX_SERVERS: usize = 16;

/// The most addresses of one server that are used.
const MAX_ADDRESSES: usize = 4;

/// How long the system's resolver may take: as long as it gives its servers.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// One address of a server that a zone names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedServer {
    /// The server's name, without the closing dot.
    pub target: String,
    /// Its address, and the service's port.
    pub addr: SocketAddr,
}

impl ZoneClient {
    /// The addresses of the servers that the zone names for a service such as
    /// `_stun._udp`; see [`Self::named_services`].
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or its answer cannot be used.
    pub async fn services(&self, service: &str) -> Result<Vec<SocketAddr>, ZoneError> {
        let servers = self.named_services(service).await?;
        Ok(servers.into_iter().map(|server| server.addr).collect())
    }

    /// The servers that the zone names for a service such as `_turns._tcp`, in the
    /// order in which RFC 2782 says to use them. None where the zone names none.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or its answer cannot be used.
    pub async fn named_services(&self, service: &str) -> Result<Vec<NamedServer>, ZoneError> {
        let labels = service.trim_end_matches('.').split('.').map(str::as_bytes);
        let name = Name::from_labels(labels.chain(self.zone.name().iter()))
            .map_err(|_| self.rubbish(Task::Query, "no service of that name can exist"))?;
        let reply = self.ask(Task::Query, &query(&name, RecordType::SRV)).await?;
        let found = reply.answers.iter().filter(|record| record.owner == name);
        let mut found: Vec<Service> = found.filter_map(Service::of).take(MAX_SERVERS).collect();
        in_order(&mut found, |below| rand::random_range(0..below));
        // All at once: one name that nobody knows would keep the others waiting.
        let addresses = found.iter().map(async |service| {
            let addresses = addresses_of(&reply.additionals, &service.target);
            if addresses.is_empty() { self.addresses(&service.target).await } else { Ok(addresses) }
        });
        let mut servers = Vec::new();
        for (service, addresses) in found.iter().zip(try_join_all(addresses).await?) {
            let target = service.target.to_ascii().trim_end_matches('.').to_ascii_lowercase();
            let addresses = addresses.into_iter().take(MAX_ADDRESSES);
            servers.extend(addresses.map(|address| NamedServer {
                target: target.clone(),
                addr: SocketAddr::new(address, service.port),
            }));
        }
        Ok(servers)
    }

    /// The addresses of a name: from the zone's server if it lies in the zone.
    async fn addresses(&self, name: &Name) -> Result<Vec<IpAddr>, ZoneError> {
        if !self.zone.name().zone_of(name) {
            // One server that cannot be found does not keep us from the others.
            return Ok(resolve(name).await.unwrap_or_else(|why| {
                tracing::warn!("the zone {} names {name}, which is not found: {why}", self.zone);
                Vec::new()
            }));
        }
        let questions = [(name.clone(), RecordType::A), (name.clone(), RecordType::AAAA)];
        let mut addresses = Vec::new();
        let take = |_, reply: Result<Reply, ZoneError>| {
            addresses.extend(addresses_of(&reply?.answers, name));
            Ok(())
        };
        self.ask_all(&questions, take).await?;
        Ok(addresses)
    }
}

/// The addresses of the zone's primary server: its SOA's MNAME, as the system's
/// resolver knows it.
///
/// # Errors
/// [`ZoneError::Unknown`] when it cannot be found.
pub async fn find_server(zone: &Zone) -> Result<Vec<SocketAddr>, ZoneError> {
    let unknown = |why: String| ZoneError::Unknown { zone: zone.to_string(), why };
    let lookup = async {
        let answer = system_resolver()?
            .lookup(zone.name().clone(), RecordType::SOA)
            .await
            .map_err(|error| error.to_string())?;
        let soa = answer.answers().iter().find_map(|record| match &record.data {
            RData::SOA(soa) => Some(soa.mname.clone()),
            _ => None,
        });
        soa.ok_or_else(|| "the answer holds no SOA record".to_owned())
    };
    let mname = match timeout(RESOLVE_LIMIT, lookup).await {
        Ok(mname) => mname.map_err(unknown)?,
        Err(_) => return Err(unknown("the system's resolver does not answer".to_owned())),
    };
    let addresses = resolve(&mname).await.map_err(unknown)?;
    Ok(addresses.into_iter().map(|address| SocketAddr::new(address, DNS_PORT)).collect())
}

async fn resolve(name: &Name) -> Result<Vec<IpAddr>, String> {
    let lookup = async {
        let found = system_resolver()?.lookup_ip(name.clone()).await;
        let found = found.map_err(|error| error.to_string())?;
        Ok(found.iter().collect())
    };
    timeout(RESOLVE_LIMIT, lookup)
        .await
        .unwrap_or_else(|_| Err("the system's resolver does not answer".to_owned()))
}

/// A resolver by /etc/resolv.conf as it is now: it changes as the machine roams.
pub(crate) fn system_resolver() -> Result<TokioResolver, String> {
    TokioResolver::builder_tokio()
        .and_then(|builder| builder.build())
        .map_err(|error| format!("the system's resolver cannot be used: {error}"))
}

/// What one SRV record says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Service {
    priority: u16,
    weight: u16,
    port: u16,
    target: Name,
}

impl Service {
    fn of(record: &Record) -> Option<Self> {
        match &record.data {
            // The root as target: the service is decidedly not offered (RFC 2782).
            Data::Srv { target, .. } if target.is_root() => None,
            Data::Srv { priority, weight, port, target } => Some(Self {
                priority: *priority,
                weight: *weight,
                port: *port,
                target: target.clone(),
            }),
            _ => None,
        }
    }
}

/// Puts servers into the order of RFC 2782: lower priority first, among equals a
/// weighted draw. `draw` gives a number below its argument.
fn in_order(services: &mut [Service], mut draw: impl FnMut(u32) -> u32) {
    // Those of weight 0 first, so that a draw of 0 can still choose them.
    services.sort_by_key(|service| (service.priority, service.weight));
    for start in 0..services.len() {
        let priority = services[start].priority;
        let rest = services[start..].iter().take_while(|service| service.priority == priority);
        let total: u32 = rest.map(|service| u32::from(service.weight)).sum();
        let mut drawn = draw(total + 1);
        let mut chosen = start;
        while drawn > u32::from(services[chosen].weight) {
            drawn -= u32::from(services[chosen].weight);
            chosen += 1;
        }
        services[start..=chosen].rotate_right(1);
    }
}

fn addresses_of(records: &[Record], name: &Name) -> Vec<IpAddr> {
    let of_name = records.iter().filter(|record| record.owner == *name);
    let addresses = of_name.filter_map(|record| match record.data {
        Data::Address(address) => Some(address),
        _ => None,
    });
    addresses.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lower_priority_comes_first_and_the_draw_decides_among_equals() {
        let service = |priority, weight, port| {
            let target = Name::from_ascii("stun.example.").expect("a name");
            Service { priority, weight, port, target }
        };
        let all = [
            service(20, 0, 1),
            service(10, 60, 2),
            service(10, 0, 3),
            service(10, 40, 4),
            service(20, 0, 5),
        ];
        let ports = |draw: fn(u32) -> u32| {
            let mut services = all.to_vec();
            in_order(&mut services, draw);
            services.iter().map(|service| service.port).collect::<Vec<_>>()
        };
        // Sums for priority 10: 0 (port 3), 40 (port 4), 100 (port 2).
        assert_eq!(ports(|_| 0), [3, 4, 2, 1, 5]);
        assert_eq!(ports(|below| below - 1)[..3], [2, 4, 3]);
        assert_eq!(ports(|below| if below > 40 { 40 } else { 0 }), [4, 2, 3, 1, 5]);
    }
}
