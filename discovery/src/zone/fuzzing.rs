//! What fuzz targets reach of the zone room: a server's answers without a server. Built for
//! them alone.

use hickory_proto::rr::RecordType;

use super::{
    Task, TsigKey, View, ZoneClient,
    browse::{add, apply},
    contents::Contents,
    message::{Reply, query},
    transfer::Incoming,
    transport::Request,
};
/// A reader of one zone, whose server is the fuzzer.
pub struct Reader {
    client: ZoneClient,
    known: (u32, Contents),
}

impl Reader {
    /// A reader that has seen an empty zone with serial 0.
    pub fn new(client: ZoneClient) -> Self {
        Self { client, known: (0, Contents::default()) }
    }

    /// Takes the answer to a query: whether it was taken.
    pub fn handle_reply(&mut self, wire: &[u8]) -> bool {
        let question = query(self.client.zone.name(), RecordType::SOA);
        let mut request = Request::new(&self.client, Task::Query, &question);
        let Ok(reply) = request.accept(self.client.server, &numbered(wire, request.id())) else {
            return false;
        };
        self.client.soa(&reply);
        for record in reply.answers.into_iter().chain(reply.additionals) {
            add(&self.client, &mut self.known.1, record);
        }
        self.known.1.targets_without_address(&self.client.zone);
        true
    }

    /// Takes the messages of a transfer, of all or of what has changed: whether it was
    /// taken.
    pub fn handle_transfer<'a>(
        &mut self,
        changes: bool,
        messages: impl IntoIterator<Item = &'a [u8]>,
    ) -> bool {
        let (serial, contents) = &mut self.known;
        let since = changes.then_some(*serial);
        let question = query(self.client.zone.name(), RecordType::AXFR);
        let request = Request::new(&self.client, Task::Transfer, &question);
        let id = request.id();
        let mut incoming = Incoming::new(&self.client, request, since);
        for message in messages {
            match incoming.handle_message(&numbered(message, id)) {
                Ok(true) => break,
                Ok(false) => {}
                Err(_) => return false,
            }
        }
        let Ok((_, transfer)) = incoming.finish() else { return false };
        match apply(&self.client, *serial, contents, transfer) {
            Ok(now) => *serial = now,
            // All is read anew.
            Err(_) => *contents = Contents::default(),
        }
        contents.check_size(self.client.server).is_ok()
    }

    /// What the zone says, as far as it was read.
    pub fn view(&self) -> View {
        self.known.1.view(&self.client.zone)
    }
}

/// Whether any bytes read as a message, as which one may be made to answer anything.
pub fn is_message(wire: &[u8]) -> bool {
    Reply::read(wire).is_some()
}

/// The message with the number of the request, which no fuzzer guesses.
fn numbered(wire: &[u8], id: u16) -> Vec<u8> {
    let mut wire = wire.to_vec();
    for (place, byte) in wire.iter_mut().zip(id.to_be_bytes()) {
        *place = byte;
    }
    wire
}

/// Signs a request, as a client that knows the key does; `now` is seconds since 1970.
pub fn sign(key: &TsigKey, request: &mut Vec<u8>, now: u64) {
    // One that has as many additional records as it can have cannot get another.
    if request.len() >= 12 && request[10..12] != [0xff; 2] {
        drop(key.sign(request, now));
    }
}
