//! The nodes whose adverts are published.

use std::time::{Duration, SystemTime};

use anyhow::Result;
use zonemesh_discovery::{
    advert::{Advert, Candidate, CandidateKind, SignedAdvert, Zone},
    identity::Identity,
};

use crate::{ZONE, servers::Network};

/// So many members of a network.
pub(crate) struct Members {
    all: Vec<(Identity, Option<Vec<u8>>)>,
    zone: Zone,
}

impl Members {
    pub(crate) fn new(count: usize, network: &Network) -> Result<Self> {
        let member = |number: usize| {
            let mut seed = [7; 32];
            seed[..8].copy_from_slice(&number.to_be_bytes());
            let identity = Identity::from_seed(&seed);
            let certificate = network.admit(&identity, &format!("node-{number}"))?;
            Ok((identity, certificate))
        };
        let all = (0..count).map(member).collect::<Result<_>>()?;
        Ok(Self { all, zone: ZONE.parse()? })
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// An advert of each, the same time.
    pub(crate) fn adverts(&self, version: u64) -> Result<Vec<SignedAdvert>> {
        (0..self.all.len()).map(|number| self.advert(number, version)).collect()
    }

    /// What a node says after this many changes: of another NAT each time.
    pub(crate) fn advert(&self, number: usize, version: u64) -> Result<SignedAdvert> {
        let (identity, certificate) = &self.all[number];
        let [_, .., high, low] = number.to_be_bytes();
        let port = 20_000 + (version % 10_000) as u16;
        let candidates = [
            (CandidateKind::ServerReflexive, format!("203.0.{high}.{low}:{port}")),
            (CandidateKind::Host, "192.168.1.17:51820".to_owned()),
            (CandidateKind::Relayed, format!("198.51.100.10:{port}")),
        ];
        let candidates = candidates
            .into_iter()
            .map(|(kind, addr)| Ok(Candidate { kind, addr: addr.parse()? }))
            .collect::<Result<_>>()?;
        let advert = Advert {
            node: identity.public_key(),
            name: format!("node-{number}"),
            addresses: vec![format!("10.{high}.{low}.1").parse()?],
            routes: vec![format!("10.{high}.{low}.0/24").parse()?],
            candidates,
            sequence: version,
            expires: SystemTime::now() + Duration::from_secs(3600),
            certificate: certificate.clone(),
        };
        Ok(advert.sign(identity, &self.zone)?)
    }
}
