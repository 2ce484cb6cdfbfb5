//! Every pair of networks: two nodes meet at once, by their best path in time, and stay.
//!
//! Each pair is a test and a lab of its own, with a zone, a STUN server and a relay. What
//! the best path is one oracle says; that it is taken is seen at the core, which counts
//! what passes between the two networks and what passes by the relay. Most of the time a
//! test only watches that nothing changes: many of them run beside each other, on a
//! profile of their own.

mod luck;
mod network;

use std::time::Duration;

use zonemesh::lab::{member::find_peer, relay_server::RelayKind, world::isolated};
use zonemesh_punch::oracle::{Best, best_possible};

use self::network::Network;
use crate::{
    pair::Calm,
    stage::{Stage, finish},
};

/// From the second node's start to the first reply in the overlay.
const CONNECTED: Duration = Duration::from_secs(5);

/// The same where a node has nothing but TCP to port 443.
const CONNECTED_BY_443: Duration = Duration::from_secs(10);

/// From there to the best path.
const DIRECT: Duration = Duration::from_secs(3);
const PREDICTED: Duration = Duration::from_secs(10);
const BIRTHDAY: Duration = Duration::from_secs(60);

/// For how long nothing may change from there on.
const CALM: Duration = Duration::from_secs(60);

/// Makes a test of each pair, and a list of them.
macro_rules! pairs {
    ($($name:ident: $first:ident, $second:ident;)*) => {
        $(
            #[test]
            fn $name() {
                isolated(concat!("matrix::", stringify!($name)), || {
                    meet(Network::$first, Network::$second);
                });
            }
        )*

        const PAIRS: &[(Network, Network)] = &[$((Network::$first, Network::$second)),*];
    };
}

pairs! {
    public_meets_public: Public, Public;
    public_meets_firewalled_public: Public, FirewalledPublic;
    public_meets_full_cone: Public, FullCone;
    public_meets_address_restricted: Public, AddressRestricted;
    public_meets_port_restricted: Public, PortRestricted;
    public_meets_open_input: Public, OpenInput;
    public_meets_symmetric_random: Public, SymmetricRandom;
    public_meets_symmetric_sequential: Public, SymmetricSequential;
    public_meets_double_nat: Public, DoubleNat;
    public_meets_udp_blocked: Public, UdpBlocked;
    public_meets_tcp_443_only: Public, Tcp443Only;
    public_meets_short_lived: Public, ShortLived;
    firewalled_public_meets_firewalled_public: FirewalledPublic, FirewalledPublic;
    firewalled_public_meets_full_cone: FirewalledPublic, FullCone;
    firewalled_public_meets_address_restricted: FirewalledPublic, AddressRestricted;
    firewalled_public_meets_port_restricted: FirewalledPublic, PortRestricted;
    firewalled_public_meets_open_input: FirewalledPublic, OpenInput;
    firewalled_public_meets_symmetric_random: FirewalledPublic, SymmetricRandom;
    firewalled_public_meets_symmetric_sequential: FirewalledPublic, SymmetricSequential;
    firewalled_public_meets_double_nat: FirewalledPublic, DoubleNat;
    firewalled_public_meets_udp_blocked: FirewalledPublic, UdpBlocked;
    firewalled_public_meets_tcp_443_only: FirewalledPublic, Tcp443Only;
    firewalled_public_meets_short_lived: FirewalledPublic, ShortLived;
    full_cone_meets_full_cone: FullCone, FullCone;
    full_cone_meets_address_restricted: FullCone, AddressRestricted;
    full_cone_meets_port_restricted: FullCone, PortRestricted;
    full_cone_meets_open_input: FullCone, OpenInput;
    full_cone_meets_symmetric_random: FullCone, SymmetricRandom;
    full_cone_meets_symmetric_sequential: FullCone, SymmetricSequential;
    full_cone_meets_double_nat: FullCone, DoubleNat;
    full_cone_meets_udp_blocked: FullCone, UdpBlocked;
    full_cone_meets_tcp_443_only: FullCone, Tcp443Only;
    full_cone_meets_short_lived: FullCone, ShortLived;
    address_restricted_meets_address_restricted: AddressRestricted, AddressRestricted;
    address_restricted_meets_port_restricted: AddressRestricted, PortRestricted;
    address_restricted_meets_open_input: AddressRestricted, OpenInput;
    address_restricted_meets_symmetric_random: AddressRestricted, SymmetricRandom;
    address_restricted_meets_symmetric_sequential: AddressRestricted, SymmetricSequential;
    address_restricted_meets_double_nat: AddressRestricted, DoubleNat;
    address_restricted_meets_udp_blocked: AddressRestricted, UdpBlocked;
    address_restricted_meets_tcp_443_only: AddressRestricted, Tcp443Only;
    address_restricted_meets_short_lived: AddressRestricted, ShortLived;
    port_restricted_meets_port_restricted: PortRestricted, PortRestricted;
    port_restricted_meets_open_input: PortRestricted, OpenInput;
    port_restricted_meets_symmetric_random: PortRestricted, SymmetricRandom;
    port_restricted_meets_symmetric_sequential: PortRestricted, SymmetricSequential;
    port_restricted_meets_double_nat: PortRestricted, DoubleNat;
    port_restricted_meets_udp_blocked: PortRestricted, UdpBlocked;
    port_restricted_meets_tcp_443_only: PortRestricted, Tcp443Only;
    port_restricted_meets_short_lived: PortRestricted, ShortLived;
    open_input_meets_open_input: OpenInput, OpenInput;
    open_input_meets_symmetric_random: OpenInput, SymmetricRandom;
    open_input_meets_symmetric_sequential: OpenInput, SymmetricSequential;
    open_input_meets_double_nat: OpenInput, DoubleNat;
    open_input_meets_udp_blocked: OpenInput, UdpBlocked;
    open_input_meets_tcp_443_only: OpenInput, Tcp443Only;
    open_input_meets_short_lived: OpenInput, ShortLived;
    symmetric_random_meets_symmetric_random: SymmetricRandom, SymmetricRandom;
    symmetric_random_meets_symmetric_sequential: SymmetricRandom, SymmetricSequential;
    symmetric_random_meets_double_nat: SymmetricRandom, DoubleNat;
    symmetric_random_meets_udp_blocked: SymmetricRandom, UdpBlocked;
    symmetric_random_meets_tcp_443_only: SymmetricRandom, Tcp443Only;
    symmetric_random_meets_short_lived: SymmetricRandom, ShortLived;
    symmetric_sequential_meets_symmetric_sequential: SymmetricSequential, SymmetricSequential;
    symmetric_sequential_meets_double_nat: SymmetricSequential, DoubleNat;
    symmetric_sequential_meets_udp_blocked: SymmetricSequential, UdpBlocked;
    symmetric_sequential_meets_tcp_443_only: SymmetricSequential, Tcp443Only;
    symmetric_sequential_meets_short_lived: SymmetricSequential, ShortLived;
    double_nat_meets_double_nat: DoubleNat, DoubleNat;
    double_nat_meets_udp_blocked: DoubleNat, UdpBlocked;
    double_nat_meets_tcp_443_only: DoubleNat, Tcp443Only;
    double_nat_meets_short_lived: DoubleNat, ShortLived;
    udp_blocked_meets_udp_blocked: UdpBlocked, UdpBlocked;
    udp_blocked_meets_tcp_443_only: UdpBlocked, Tcp443Only;
    udp_blocked_meets_short_lived: UdpBlocked, ShortLived;
    tcp_443_only_meets_tcp_443_only: Tcp443Only, Tcp443Only;
    tcp_443_only_meets_short_lived: Tcp443Only, ShortLived;
    short_lived_meets_short_lived: ShortLived, ShortLived;
}

#[test]
fn table_holds_every_pair_once() {
    let every = Network::ALL.iter().enumerate().flat_map(|(index, first)| {
        Network::ALL[index..].iter().map(move |second| (*first, *second))
    });
    assert_eq!(PAIRS, every.collect::<Vec<_>>());
}

/// A node in each network, one after the other.
fn meet(first: Network, second: Network) {
    // Both relays have to do with all networks, half of the pairs each.
    let even = (first as usize + second as usize).is_multiple_of(2);
    let relay = if even { RelayKind::Coturn } else { RelayKind::Zonemesh };
    let mut stage = Stage::relayed_by(relay);
    let left = first.place(&mut stage, "a", 1);
    let right = second.place(&mut stage, "b", 2);
    let mut a = first.start(&stage, "a", 1, &left);
    stage.wait_for_adverts(&mut a, 1);
    let mut b = second.start(&stage, "b", 2, &right);

    let slow = [first, second].contains(&Network::Tcp443Only);
    let limit = if slow { CONNECTED_BY_443 } else { CONNECTED };
    let reply = b.wait_for_reply(a.overlay(), limit).expect("they are connected");
    let took = reply - b.started();
    assert!(took <= limit, "connected after {took:?}");

    // Each side's first packet may spoil the other's mapping, and then they stay on the relay
    // for long: when they get their best path is not promised.
    if [first, second] == [Network::OpenInput; 2] {
        finish([a, b]);
        return;
    }
    let best = best_possible(first.nat(), second.nat());
    let limit = match best {
        Best::Direct => DIRECT,
        Best::Predicted => PREDICTED,
        Best::Birthday => BIRTHDAY,
        Best::Relayed => Duration::ZERO,
    };
    if best < Best::Relayed {
        for (member, peer) in [(&mut a, "b"), (&mut b, "a")] {
            let left = limit.saturating_sub(reply.elapsed());
            member
                .wait_for("a direct path", left, |status| {
                    (find_peer(status, peer)?["path"]["kind"] == "direct").then_some(())
                })
                .unwrap_or_else(|error| panic!("{best}: {error}"));
        }
    }
    println!("connected after {took:?}, {best} after {:?} more", reply.elapsed());
    let calm = Calm::begins(&a, &b);
    if best == Best::Relayed {
        stage.assert_relayed((&a, &left), (&b, &right));
    } else {
        stage.assert_direct((&a, &left), (&b, &right));
    }
    calm.assert_lasts(&a, &b, CALM);
    finish([a, b]);
}
