//! The embedded zone's journal: cut, altered, and whole with whatever in its entries.

#![no_main]

use crc::{CRC_32_ISCSI, Crc};
use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::zone::serve::{ZoneConfig, ZoneStore};
use zonemesh_fuzz::{Bytes, dns, sow, wall, zone};

/// Every entry gets its true length and checksum.
const WHOLE: u8 = 1;

fuzz_target!(
    init: {
        let journal = dns::journal();
        let head = head();
        let mut entries = &journal[head.len()..];
        let mut whole = vec![WHOLE];
        while let Some((length, rest)) = entries.split_first_chunk::<4>() {
            let body = &rest[4..4 + u32::from_be_bytes(*length) as usize];
            whole.extend((body.len() as u16).to_be_bytes());
            whole.extend(body);
            entries = &rest[4 + body.len()..];
        }
        sow("journal", &[[&[0][..], &journal].concat(), whole]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let journal = if bytes.byte() & WHOLE == 0 {
            bytes.0.to_vec()
        } else {
            let mut journal = head();
            while !bytes.is_empty() {
                let body = bytes.string();
                journal.extend((body.len() as u32).to_be_bytes());
                journal.extend(Crc::<u32>::new(&CRC_32_ISCSI).checksum(body).to_be_bytes());
                journal.extend(body);
            }
            journal
        };
        let config = ZoneConfig::new(zone());
        let Ok((mut store, replayed)) = ZoneStore::open(config.clone(), &journal, wall()) else {
            return;
        };
        assert_eq!(replayed.used + replayed.cut, journal.len());
        // What was read, and what the start has written behind it, is read again.
        let mut kept = journal[..replayed.used].to_vec();
        kept.extend(store.poll_journal().unwrap_or_default());
        store.commit();
        let (mut again, second) = ZoneStore::open(config.clone(), &kept, wall()).expect("its own");
        assert_eq!(second.cut, 0);
        assert_eq!(again.serial(), store.serial());
        assert!(again.records().eq(store.records()));
        assert_eq!(again.poll_journal(), None, "nothing is left to be done");
        // So is a snapshot.
        let (snapshot, _) = ZoneStore::open(config, &store.snapshot(), wall()).expect("its own");
        assert!(snapshot.records().eq(store.records()));
        assert_eq!(snapshot.nodes(), store.nodes());
        if let Some(due) = store.poll_timeout() {
            store.handle_timeout(due);
            store.handle_timeout(due + std::time::Duration::from_secs(3 * 86_400));
        }
    }
);

fn head() -> Vec<u8> {
    b"zonemesh zone journal 1 mesh.example.\n".to_vec()
}
