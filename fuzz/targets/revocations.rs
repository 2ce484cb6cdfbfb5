//! A list of revocations, from anybody and signed by the network whatever it says.

#![no_main]

use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::membership::{MAX_REVOCATIONS, RevocationList, Revoked};
use zonemesh_fuzz::{
    Bytes, key,
    network::{network, network_key, sign_as_network},
    sow,
};

const SIGNED: u8 = 1;

fuzz_target!(
    init: {
        let entries = (1..4).map(|n| Revoked::from(&key(n)));
        let list = RevocationList::sign(&network_key(), 7, entries).expect("few");
        let bytes = list.as_bytes();
        sow("revocations", &[
            [&[0][..], bytes].concat(),
            [&[SIGNED][..], &bytes[..bytes.len() - 64]].concat(),
        ]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let signed = bytes.byte() & SIGNED != 0;
        let mut wire = bytes.0.to_vec();
        if signed {
            let context = b"zonemesh revocations v1\0";
            wire.extend(sign_as_network(&[context, network().as_bytes(), bytes.0]));
        }
        let Ok(list) = RevocationList::read(&wire, &network()) else { return };
        assert_eq!(list.as_bytes(), wire, "a list has one spelling");
        assert!(list.entries().len() <= MAX_REVOCATIONS);
        assert!(list.entries().is_sorted());
        let again = RevocationList::from_txt(&list.txt(), &network());
        assert_eq!(again.as_ref(), Ok(&list));
        let same = RevocationList::sign(&network_key(), list.number(), list.entries().iter().copied());
        assert_eq!(same, Ok(list));
    }
);
