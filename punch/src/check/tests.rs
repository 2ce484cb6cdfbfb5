use std::sync::LazyLock;

use data_encoding::HEXLOWER;
use proptest::prelude::*;

use super::*;
use crate::nat::{Mapping, NatProfile, PortPattern};

// The key pairs of RFC 7748 §6.1; Alice's public key is the lower one.
const ALICE: [&str; 2] = [
    "77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a",
    "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a",
];
const BOB: [&str; 2] = [
    "5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb",
    "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f",
];

const REQUEST: Request = Request {
    id: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
    clock_ms: 1_800_000_000_123,
    priority: 0x6eff_feff,
    nominate: true,
    receipt: Receipt { data_ms: Some(250), any_ms: Some(7), opened_ms: None },
    plan: None,
};

fn bytes<const N: usize>(hex: &str) -> [u8; N] {
    let bytes = HEXLOWER.decode(hex.as_bytes()).expect("literal hex");
    bytes.try_into().expect("of the right length")
}

fn keys(own: [&str; 2], peer: [&str; 2]) -> CheckKeys {
    CheckKeys::new(&bytes(own[0]), &bytes(own[1]), &bytes(peer[1])).expect("sound keys")
}

fn answer() -> Answer {
    let mapped = "203.0.113.5:51820".parse().expect("a literal address");
    Answer {
        id: REQUEST.id,
        clock_ms: REQUEST.clock_ms + 7,
        mapped,
        receipt: Receipt::default(),
        plan: None,
    }
}

/// The bytes were made by a program of its own, from this module's tables alone.
#[test]
fn the_bytes_are_those_of_the_documentation() {
    let (alice, bob) = (keys(ALICE, BOB), keys(BOB, ALICE));
    let request = Check::Request(REQUEST);
    let known: [u8; 140] = bytes(concat!(
        "000100782112a4420102030405060708090a0b0c000600106a38546643434e39",
        "35497061736b514e802a0008000001a3185c507b002400046efffeff00250000",
        "0026000c303030303030303030303030c05a000c000000fa00000007ffffffff",
        "001c0020801875fbb9da09f6aa2415ec3a411f9f94682e429eb536ae28611994",
        "bc54dd9b80280004f82624ee",
    ));
    assert_eq!(HEXLOWER.encode(&alice.seal(&request)), HEXLOWER.encode(&known));
    assert_eq!(bob.open(&known), Ok(request));
    let answer = Check::Answer(answer());
    let known: [u8; 124] = bytes(concat!(
        "010100682112a4420102030405060708090a0b0c000600102d4736586f6a5037",
        "322d6b4b6845486b80290008000001a3185c5082002000080001eb7eea12d547",
        "c05a000cffffffffffffffffffffffff001c0020b99a01da4fc426d4d61a8833",
        "62b1b8401af6868955c1c05c4653040fd7dacc2080280004c21b1551",
    ));
    assert_eq!(HEXLOWER.encode(&bob.seal(&answer)), HEXLOWER.encode(&known));
    assert_eq!(alice.open(&known), Ok(answer));
}

#[test]
fn an_answer_is_never_longer_than_its_request() {
    let keys = keys(ALICE, BOB);
    let request = Check::Request(Request { nominate: false, ..REQUEST });
    let longest = Answer {
        mapped: "[2001:db8:1:2:3:4:5:6]:65535".parse().expect("a literal address"),
        ..answer()
    };
    let (request, answer) = (keys.seal(&request), keys.seal(&Check::Answer(longest)));
    assert_eq!((request.len(), answer.len()), (136, 136));
}

#[test]
fn a_message_thrown_back_at_its_sender_is_foreign() {
    let alice = keys(ALICE, BOB);
    let request = alice.seal(&Check::Request(REQUEST));
    assert_eq!(alice.open(&request), Err(OpenError::Foreign));
    assert_eq!(Username::peek(&request), Some(keys(BOB, ALICE).inbound_username()));
    assert_ne!(Username::peek(&request), Some(alice.inbound_username()));
}

#[test]
fn weak_keys_and_the_nodes_own_are_refused() {
    let (private, public) = (bytes(ALICE[0]), bytes(ALICE[1]));
    let mut one = [0; 32];
    one[0] = 1;
    for weak in [[0; 32], one, public] {
        assert_eq!(CheckKeys::new(&private, &public, &weak).err(), Some(WeakKey));
    }
}

#[test]
fn no_secret_is_in_the_debug_form() {
    let keys = keys(ALICE, BOB);
    let text = format!("{keys:?}");
    for direction in [&keys.inbound, &keys.outbound] {
        let key = std::str::from_utf8(direction.key.as_bytes()).expect("Base64url");
        assert!(!text.contains(key) && !text.contains(&format!("{:?}", key.as_bytes())));
    }
}

#[test]
fn a_message_without_integrity_is_refused() {
    let bob = keys(BOB, ALICE);
    let sealed = keys(ALICE, BOB).seal(&Check::Request(REQUEST));
    let mut bare = sealed[..sealed.len() - INTEGRITY_LEN - FINGERPRINT_LEN].to_vec();
    let length = u16::try_from(bare.len() - HEADER_LEN).expect("short");
    bare[2..4].copy_from_slice(&length.to_be_bytes());
    assert_eq!(bob.open(&bare), Err(OpenError::Malformed));
}

static BOTH: LazyLock<(CheckKeys, CheckKeys)> =
    LazyLock::new(|| (keys(ALICE, BOB), keys(BOB, ALICE)));

fn plans() -> impl Strategy<Value = Plan> {
    let mappings = [Mapping::Unknown, Mapping::Independent, Mapping::Dependent];
    let ports = prop_oneof![
        Just(PortPattern::Unknown),
        Just(PortPattern::Preserving),
        Just(PortPattern::Random),
        (1..=i32::from(i16::MAX)).prop_map(|step| PortPattern::Sequential { step: -step }),
    ];
    let stages = [Stage::None, Stage::Willing, Stage::Open];
    let window = (1..=u16::MAX, 1..=Window::MAX).prop_map(|(base, count)| Window { base, count });
    let nat = (prop::sample::select(mappings.to_vec()), ports);
    let stage = prop::sample::select(stages.to_vec());
    (nat, stage, any::<u8>(), prop::option::of(window)).prop_map(
        |((mapping, ports), stage, number, window)| {
            let nat = NatProfile { mapping, ports };
            Plan { nat, stage, number, window }
        },
    )
}

fn checks() -> impl Strategy<Value = Check> {
    let addr = (any::<std::net::IpAddr>(), any::<u16>());
    let ms = prop::option::of(0..u32::MAX);
    let receipt = (ms.clone(), ms.clone(), ms).prop_map(|(data_ms, any_ms, opened_ms)| Receipt {
        data_ms,
        any_ms,
        opened_ms,
    });
    let plan = prop::option::of(plans()).boxed();
    let times = (any::<[u8; 12]>(), any::<u64>());
    let request = (times, any::<u32>(), any::<bool>(), receipt.clone(), plan.clone());
    prop_oneof![
        request.prop_map(|((id, clock_ms), priority, nominate, receipt, plan)| {
            Check::Request(Request { id, clock_ms, priority, nominate, receipt, plan })
        }),
        (any::<[u8; 12]>(), any::<u64>(), addr, receipt, plan).prop_map(
            |(id, clock_ms, addr, receipt, plan)| {
                Check::Answer(Answer {
                    id,
                    clock_ms,
                    mapped: canonical(addr.into()),
                    receipt,
                    plan,
                })
            }
        ),
    ]
}

proptest! {
    #[test]
    fn what_is_sealed_is_what_the_peer_opens(check in checks()) {
        let (alice, bob) = &*BOTH;
        prop_assert_eq!(bob.open(&alice.seal(&check)), Ok(check));
        prop_assert_eq!(alice.open(&bob.seal(&check)), Ok(check));
    }

    #[test]
    fn a_changed_message_is_refused(
        check in checks(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let (alice, bob) = &*BOTH;
        let sealed = alice.seal(&check);
        let mut changed = sealed.clone();
        for (index, flip) in changes {
            changed[index.index(sealed.len())] ^= flip;
        }
        prop_assume!(changed != sealed);
        prop_assert!(bob.open(&changed).is_err());
        prop_assert!(bob.open(&sealed[..cut.index(sealed.len())]).is_err());
        let longer = [sealed.as_slice(), &[0; 4]].concat();
        prop_assert!(bob.open(&longer).is_err());
    }

    #[test]
    fn rubbish_is_refused(rubbish in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(BOTH.1.open(&rubbish).is_err());
    }

    /// The peer itself may be hostile: with its key it can seal any attributes.
    #[test]
    fn rubbish_that_the_peer_has_sealed_does_no_harm(
        class in prop::sample::select(vec![[0x00, 0x01], [0x01, 0x01]]),
        body in prop::collection::vec(any::<[u8; 4]>(), 0..60),
    ) {
        let (alice, bob) = &*BOTH;
        let sealed = alice.seal(&Check::Request(REQUEST));
        let mut forged = sealed[..HEADER_LEN + USERNAME_LEN].to_vec();
        forged[..2].copy_from_slice(&class);
        forged.extend(body.concat());
        let length = u16::try_from(forged.len() - HEADER_LEN + INTEGRITY_LEN).expect("short");
        forged[2..4].copy_from_slice(&length.to_be_bytes());
        let mut mac = Hmac::<Sha256>::new_from_slice(alice.outbound.key.as_bytes())
            .expect("HMAC takes a key of any length");
        mac.update(&forged);
        forged.extend([0x00, 0x1c, 0x00, 0x20]);
        forged.extend(mac.finalize().into_bytes());
        forged[2..4].copy_from_slice(&(length + 8).to_be_bytes());
        forged.extend([0x80, 0x28, 0x00, 0x04, 0, 0, 0, 0]);
        // The integrity holds; what is inside is not a check.
        prop_assert_eq!(bob.open(&forged), Err(OpenError::Malformed));
    }
}
