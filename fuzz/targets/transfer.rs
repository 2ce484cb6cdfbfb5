//! Zone transfers, one after the other: the whole zone, then what has changed.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zonemesh_fuzz::{Bytes, dns, sow, wall, zone, zone_reader};

/// How many messages follow, and whether they are the changes since what is known.
const CHANGES: u8 = 0x80;

fuzz_target!(
    init: {
        let framed = |message: Vec<u8>| {
            [&(message.len() as u16).to_be_bytes()[..], &message].concat()
        };
        let [head, records, end] = dns::transfer_parts(&[1, 2]);
        let whole = [head.clone(), records.clone(), end].concat();
        let changes = [
            dns::soa(9), dns::soa(1), records.clone(), dns::soa(9), records.clone(), dns::soa(9),
        ].concat();
        sow("transfer", &[
            [&[1][..], &framed(dns::message(&whole))].concat(),
            [&[2][..], &framed(dns::message(&head)), &framed(dns::message(&[records, dns::soa(1)].concat())),
             &[CHANGES | 1], &framed(dns::message(&changes))].concat(),
            [&[CHANGES | 1][..], &framed(dns::message(&dns::soa(0)))].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let mut reader = zone_reader(None);
        while !bytes.is_empty() {
            let what = bytes.byte();
            let messages: Vec<&[u8]> = (0..what & 0x0f).map(|_| bytes.string()).collect();
            reader.handle_transfer(what & CHANGES != 0, messages);
        }
        for (node, records) in reader.view().instances {
            assert_eq!(records.node, node);
            if let Ok(entry) = records.verify(&zone(), wall()) {
                assert_eq!(entry.node(), node);
            }
        }
    }
);
