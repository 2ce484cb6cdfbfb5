//! The network's list of revocations: one TXT record at `_revoked.<zone>`.

use hickory_proto::rr::RecordType;

use super::{
    Task, ZoneClient, ZoneError,
    message::{Data, query},
};
use crate::membership::{NetworkId, RevocationList};

impl ZoneClient {
    /// The list that the zone has: of several that the network's key has signed the one
    /// with the highest number.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or its answer cannot be used.
    pub async fn revocations(
        &self,
        network: &NetworkId,
    ) -> Result<Option<RevocationList>, ZoneError> {
        let name = self.revocations_name();
        let reply = self.ask(Task::Query, &query(&name, RecordType::TXT)).await?;
        let lists = reply.answers.into_iter().filter_map(|record| match record.data {
            Data::Txt(txt) if record.owner == name => {
                RevocationList::from_txt(&self.open_txt(&name, txt), network).ok()
            }
            _ => None,
        });
        Ok(lists.max_by_key(RevocationList::number))
    }

    /// Puts a list in the place of the one before.
    ///
    /// # Errors
    /// [`ZoneError`] when the server cannot be reached or does not take it.
    pub async fn publish_revocations(&self, list: &RevocationList) -> Result<(), ZoneError> {
        self.update(self.replace_txt(&self.revocations_name(), &list.txt())).await
    }
}
