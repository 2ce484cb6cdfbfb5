//! The zone's servers, and which of them answers.

use std::net::SocketAddr;

use zonemesh_discovery::{
    advert::SignedAdvert,
    identity::PublicKey,
    zone::{ZoneClient, ZoneError},
};

/// The zone's servers, the primary first, and which of them answered last; none where they
/// are not known yet.
#[derive(Debug, Clone, Default)]
pub(super) struct Servers {
    all: Vec<ZoneClient>,
    current: usize,
}

impl Servers {
    /// These servers, of which the first one is asked first.
    pub(super) fn new(all: Vec<ZoneClient>) -> Self {
        Self { all, current: 0 }
    }

    /// All of them, the primary first.
    pub(super) fn all(&self) -> &[ZoneClient] {
        &self.all
    }

    /// The one that answers.
    pub(super) fn current(&self) -> Option<&ZoneClient> {
        self.all.get(self.current)
    }

    /// Which one that is, counted from 0.
    pub(super) fn at(&self) -> usize {
        self.current
    }

    /// Has this one be the one that answers; `true` where it was another one.
    pub(super) fn turn_to(&mut self, at: usize) -> bool {
        std::mem::replace(&mut self.current, at) != at
    }

    /// All of them, the one that answers first.
    pub(super) fn in_turn(&self) -> impl Iterator<Item = &ZoneClient> {
        let (before, from) = self.all.split_at(self.current.min(self.all.len()));
        from.iter().chain(before)
    }

    /// Makes a change by the first server that takes it: the one that answers may be a
    /// secondary, which knows of no updates. Gives the server, and where none takes it the
    /// most telling error; `None` where no server is known.
    pub(super) async fn update(
        &self,
        change: Change<'_>,
    ) -> Option<(SocketAddr, Result<(), ZoneError>)> {
        let mut failed: Option<(SocketAddr, ZoneError)> = None;
        for client in self.in_turn() {
            let Err(error) = change.by(client).await else {
                return Some((client.server(), Ok(())));
            };
            if failed.as_ref().is_none_or(|(_, known)| is_less_telling(known)) {
                failed = Some((client.server(), error));
            }
        }
        failed.map(|(server, error)| (server, Err(error)))
    }
}

/// A change of what the zone says of this node.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change<'a> {
    /// It says this.
    Publish(&'a SignedAdvert),
    /// It says nothing any more; a member's last word proves that it is the node's own will.
    Withdraw(&'a PublicKey, Option<&'a SignedAdvert>),
}

impl Change<'_> {
    async fn by(self, client: &ZoneClient) -> Result<(), ZoneError> {
        match self {
            Self::Publish(advert) => client.publish(advert).await,
            Self::Withdraw(_, Some(last)) => client.withdraw_by(last).await,
            Self::Withdraw(node, None) => client.withdraw(node).await,
        }
    }
}

/// A secondary's refusal says less than a primary that is away.
fn is_less_telling(error: &ZoneError) -> bool {
    matches!(error, ZoneError::Refused { .. })
}

#[cfg(test)]
mod tests {
    use zonemesh_discovery::{advert::Zone, identity::Identity};

    use super::*;

    #[tokio::test]
    async fn the_server_that_answers_is_asked_first_and_then_all_others() {
        let zone: Zone = "mesh.example".parse().expect("a zone");
        // Nobody answers there.
        let at = |last| SocketAddr::from(([127, 0, 0, last], 9));
        let client = |last| ZoneClient::new(zone.clone(), at(last), None);
        let mut servers = Servers::new([1, 2, 3].map(client).to_vec());
        let order =
            |servers: &Servers| servers.in_turn().map(ZoneClient::server).collect::<Vec<_>>();
        assert_eq!(order(&servers), [at(1), at(2), at(3)]);
        assert!(servers.turn_to(1));
        assert!(!servers.turn_to(1));
        assert_eq!(order(&servers), [at(2), at(3), at(1)]);
        assert_eq!(servers.current().map(ZoneClient::server), Some(at(2)));
        let node = Identity::from_seed(&[1; 32]).public_key();
        let failed = servers.update(Change::Withdraw(&node, None)).await;
        assert!(matches!(failed, Some((_, Err(ZoneError::Away { .. })))), "{failed:?}");
        assert!(Servers::default().update(Change::Withdraw(&node, None)).await.is_none());
    }
}
