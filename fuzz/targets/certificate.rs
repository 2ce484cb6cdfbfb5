//! A certificate chain: from anybody, and signed by a network and an invite whatever they
//! say.

#![no_main]

use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use zonemesh_discovery::membership::{Chain, MAX_CHAIN_LEN};
use zonemesh_fuzz::{
    Bytes, key,
    network::{self, invite_part, network, node_part},
    sow, wall,
};

/// The parts are the bytes', the signatures are genuine.
const SIGNED: u8 = 1;

fuzz_target!(
    init: {
        let chain = network::chain(&key(1));
        // The invite's part: 33 bytes of version and key, its limits, 64 of signature.
        let mut rest = Bytes(&chain[33..]);
        Part::take(&mut rest);
        let split = chain.len() - rest.0.len();
        let (invite, node) = (&chain[33..split], &chain[split + 64..chain.len() - 64]);
        let parts = |flags: u8| {
            [&[flags, invite.len() as u8], invite, node].concat()
        };
        sow("certificate", &[[&[0][..], &chain].concat(), parts(SIGNED)]);
    },
    |data: &[u8]| {
        let mut bytes = Bytes(data);
        let signed = bytes.byte() & SIGNED != 0;
        let mut parts = None;
        let wire = if signed {
            let (invite, node) = (bytes.short_string(), bytes.0);
            parts = Some((invite, node));
            node_part(&invite_part(invite), &key(1), node)
        } else {
            bytes.0.to_vec()
        };
        let Ok(chain) = Chain::read(&wire) else { return };
        assert!(wire.len() <= MAX_CHAIN_LEN);
        assert_eq!(chain.as_bytes(), wire);
        assert!(chain.verify(&network(), &key(2), wall()).is_err(), "it is node 1's");
        let Ok(certified) = chain.verify(&network(), &key(1), wall()) else { return };
        let Some((invite, node)) = parts else {
            assert_eq!(wire, network::chain(&key(1)), "nobody guesses a signature");
            return;
        };
        // The parts as the target reads them itself: no limit is wider than its parent's.
        let (invite, node) = (Part::read(invite), Part::read(node));
        assert!(invite.name.is_empty() || invite.name == node.name);
        assert_eq!(certified.name.as_bytes(), node.name);
        assert!(node.time.0 >= invite.time.0 && node.time.1 <= invite.time.1);
        assert_eq!(certified.routes.len(), node.routes.len());
        for route in &certified.routes {
            assert!(invite.routes.iter().any(|parent| parent.contains(route)), "{route}");
        }
        for group in &certified.groups {
            assert!(invite.groups.contains(&group.as_bytes()), "{group}");
        }
    }
);

/// What one part says.
struct Part<'a> {
    time: (u32, u32),
    name: &'a [u8],
    routes: Vec<IpNet>,
    groups: Vec<&'a [u8]>,
}

impl<'a> Part<'a> {
    fn read(body: &'a [u8]) -> Self {
        Self::take(&mut Bytes(body))
    }

    fn take(bytes: &mut Bytes<'a>) -> Self {
        let time = (u32::from_be_bytes(bytes.array()), u32::from_be_bytes(bytes.array()));
        let name = bytes.short_string();
        let routes = (0..bytes.byte()).map(|_| route(bytes)).collect();
        let groups = (0..bytes.byte()).map(|_| bytes.short_string()).collect();
        Self { time, name, routes, groups }
    }
}

fn route(bytes: &mut Bytes<'_>) -> IpNet {
    let byte = bytes.byte();
    let length = if byte < 64 { byte } else { byte - 64 };
    let significant = bytes.take(usize::from(length).div_ceil(8));
    let mut octets = [0; 16];
    octets[..significant.len()].copy_from_slice(significant);
    if byte < 64 {
        let octets: [u8; 4] = octets[..4].try_into().expect("four");
        IpNet::new(octets.into(), length).expect("it was read")
    } else {
        IpNet::new(octets.into(), length).expect("it was read")
    }
}
