//! The zone of another server, served by this host as well.

use std::{rc::Rc, time::Duration};

use tokio::time::sleep;
use tracing::{info, warn};
use zonemesh_discovery::zone::{Follower, ZoneClient};

use super::state::State;

/// How often the primary is asked that neither tells of a change (NOTIFY, long poll) nor is
/// away.
const INTERVAL: Duration = Duration::from_secs(10);

/// How often one that is away is asked: less often than its clients ask.
const RETRY: Duration = Duration::from_secs(5);

/// How long after a NOTIFY the primary is asked: more of them say nothing more.
const HURRY: Duration = Duration::from_millis(300);

/// Keeps the zone what it is at its primary server.
pub(super) async fn follow(state: Rc<State>, client: ZoneClient) -> anyhow::Result<()> {
    let mut follower = Follower::new(client.clone());
    let mut failing = false;
    let mut in_step = true;
    loop {
        // One that has nothing yet asks for all.
        let known = state.with_store(|store| store.records().next().map(|_| store.serial()));
        let known = known.filter(|_| in_step);
        let told = match follower.news(known).await {
            Ok(Some(news)) => {
                let followed = state.follow(news);
                in_step = followed.is_ok();
                followed.map_err(|error| error.to_string())
            }
            Ok(None) => Ok(()),
            Err(error) => Err(error.to_string()),
        };
        match &told {
            Ok(()) if std::mem::take(&mut failing) => info!("the primary server answers again"),
            Ok(()) => {}
            Err(error) if !std::mem::replace(&mut failing, true) => {
                warn!("the zone is not followed, and is served as it was: {error}");
            }
            Err(_) => {}
        }
        let serial = state.with_store(|store| store.serial());
        tokio::select! {
            () = follower.rest(serial, INTERVAL), if told.is_ok() => {}
            () = sleep(RETRY), if told.is_err() => {}
            // Whoever it was that said so.
            () = state.notified() => sleep(HURRY).await,
        }
    }
}
