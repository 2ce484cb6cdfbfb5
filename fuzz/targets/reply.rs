//! A zone server's answer to a query, and the adverts in it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::zone::fuzzing::is_message;
use zonemesh_fuzz::{Bytes, dns, sow, tsig_key, wall, zone, zone_reader};

fuzz_target!(
    init: {
        let [head, records, end] = dns::transfer_parts(&[1, 2]);
        sow("reply", &[
            [&[0][..], &dns::message(&[head.clone(), records.clone(), end.clone()].concat())].concat(),
            [&[1][..], &dns::message(&records)].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let key = (bytes.byte() & 1 != 0).then(tsig_key);
        let signed = key.is_some();
        let mut reader = zone_reader(key);
        let taken = reader.handle_reply(bytes.0);
        assert!(!taken || is_message(bytes.0) && !signed, "nobody guesses a TSIG");
        for (node, records) in reader.view().instances {
            assert_eq!(records.node, node);
            if let Ok(entry) = records.verify(&zone(), wall()) {
                assert_eq!(entry.node(), node);
            }
        }
    }
);
