use super::*;
use crate::zone::{
    error::TsigFault,
    message::{Reply, find_tsig},
};

const NOW: u64 = 1_800_000_000;
const SECRET: &str = "c2VjcmV0IG9mIHRoZSB0ZXN0cw==";

#[test]
fn an_answer_verifies_with_every_algorithm_and_no_byte_of_it_can_be_changed() {
    for algorithm in ["hmac-sha224", "hmac-sha256", "HMAC-SHA384.", "hmac-sha512"] {
        let key = TsigKey::new("Mesh-Key", algorithm, SECRET).expect("a key");
        let (request_mac, mut chain) = request(&key);
        let (wire, _) = Writer::new(&key).sign(&request_mac, &[], &plain(1));
        assert_eq!(take(&mut chain, &wire), Ok(()));
        assert!(chain.ends_signed());
        let start = Reply::read(&wire).and_then(|reply| reply.tsig).expect("signed").start;
        // All but the number, which travels a second time in the record.
        for bit in 16..start * 8 {
            let mut changed = wire.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            let (_, mut chain) = request(&key);
            assert_ne!(take(&mut chain, &changed), Ok(()), "bit {bit}");
        }
    }
}

#[test]
fn messages_between_two_signed_ones_may_be_unsigned() {
    let key = key();
    let (request_mac, mut chain) = request(&key);
    let (first, mac) = Writer::new(&key).sign(&request_mac, &[], &plain(1));
    let between = [plain(2), plain(3)];
    let mut last = Writer::new(&key);
    last.first = false;
    let (last, _) = last.sign(&mac, &between, &plain(4));
    assert_eq!(take(&mut chain, &first), Ok(()));
    for message in &between {
        assert_eq!(take(&mut chain, message), Ok(()));
        assert!(!chain.ends_signed());
    }
    assert_eq!(take(&mut chain, &last), Ok(()));
    assert!(chain.ends_signed());

    // One of them changed on its way, or left out.
    let (_, mut chain) = request(&key);
    for message in [&first, &between[0]] {
        assert_eq!(take(&mut chain, message), Ok(()));
    }
    assert_eq!(take(&mut chain, &last), Err(TsigFault::Forged));
}

#[test]
fn a_hundred_unsigned_messages_are_too_many_and_the_first_is_signed() {
    let key = key();
    let (_, mut chain) = request(&key);
    assert_eq!(take(&mut chain, &plain(1)), Err(TsigFault::Unsigned));
    let (request_mac, mut chain) = request(&key);
    let (first, _) = Writer::new(&key).sign(&request_mac, &[], &plain(1));
    assert_eq!(take(&mut chain, &first), Ok(()));
    for _ in 0..99 {
        assert_eq!(take(&mut chain, &plain(2)), Ok(()));
    }
    assert_eq!(take(&mut chain, &plain(2)), Err(TsigFault::Unsigned));
}

#[test]
fn what_the_server_says_of_our_signature_is_told() {
    let key = key();
    for (error, fault) in [(BADKEY, TsigFault::BadKey), (BADSIG, TsigFault::BadSig)] {
        let (_, mut chain) = request(&key);
        let mut signer = Writer::new(&key);
        signer.error = error;
        let (wire, _) = signer.sign(b"no MAC that counts", &[], &plain(1));
        assert_eq!(take(&mut chain, &wire), Err(fault));
    }
    let (request_mac, mut chain) = request(&key);
    let mut signer = Writer::new(&key);
    signer.error = BADTIME;
    signer.other = (NOW - 3600).to_be_bytes()[2..].to_vec();
    let (wire, _) = signer.sign(&request_mac, &[], &plain(1));
    assert_eq!(take(&mut chain, &wire), Err(TsigFault::BadTime(3600)));
}

#[test]
fn an_answer_of_another_time_or_key_is_not_believed() {
    let key = key();
    for (time, gap) in [(NOW + 301, 301), (NOW - 301, -301), (0, -1_800_000_000)] {
        let (request_mac, mut chain) = request(&key);
        let mut signer = Writer::new(&key);
        signer.time = time;
        let (wire, _) = signer.sign(&request_mac, &[], &plain(1));
        assert_eq!(take(&mut chain, &wire), Err(TsigFault::Stale(gap)));
    }
    let (request_mac, mut chain) = request(&key);
    let other = TsigKey::new("other", "hmac-sha256", SECRET).expect("a key");
    let (wire, _) = Writer::new(&other).sign(&request_mac, &[], &plain(1));
    assert_eq!(take(&mut chain, &wire), Err(TsigFault::OtherKey));
    // A signature that was made for another request.
    let (_, mut chain) = request(&key);
    let (wire, _) = Writer::new(&key).sign(b"another MAC", &[], &plain(1));
    assert_eq!(take(&mut chain, &wire), Err(TsigFault::Forged));
}

#[test]
fn a_key_is_checked_and_shows_no_secret() {
    let new = TsigKey::new;
    assert_eq!(new("", "hmac-sha256", SECRET).err(), Some(TsigKeyError::Name));
    assert_eq!(new("a..b", "hmac-sha256", SECRET).err(), Some(TsigKeyError::Name));
    assert_eq!(new("k", "hmac-md5", SECRET).err(), Some(TsigKeyError::Algorithm));
    assert_eq!(new("k", "hmac-sha256", "").err(), Some(TsigKeyError::Secret));
    assert_eq!(new("k", "hmac-sha256", "not base64").err(), Some(TsigKeyError::Secret));
    let shown = format!("{:?}", key());
    assert_eq!(shown, r#"TsigKey { name: "mesh-key.", algorithm: "hmac-sha256", .. }"#);
}

fn key() -> TsigKey {
    TsigKey::new("mesh-key", "hmac-sha256", SECRET).expect("a key")
}

/// A message without records: only a header.
fn plain(number: u8) -> Vec<u8> {
    vec![0, number, 0x84, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

fn request(key: &TsigKey) -> (Vec<u8>, Chain) {
    let mut wire = plain(1);
    let chain = key.sign(&mut wire, NOW);
    (Reply::read(&wire).and_then(|reply| reply.tsig).expect("signed").mac, chain)
}

fn take(chain: &mut Chain, wire: &[u8]) -> Result<(), TsigFault> {
    // What is not a message at all is refused before it gets here.
    let Some(reply) = Reply::read(wire) else { return Err(TsigFault::Forged) };
    chain.verify(wire, reply.tsig.as_ref(), NOW)
}

/// A server's side that says whatever a test wants.
struct Writer {
    key: TsigKey,
    time: u64,
    error: u16,
    other: Vec<u8>,
    first: bool,
}

impl Writer {
    fn new(key: &TsigKey) -> Self {
        Self { key: key.clone(), time: NOW, error: 0, other: Vec::new(), first: true }
    }

    fn sign(&self, prior: &[u8], unsigned: &[Vec<u8>], message: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut record = TsigRecord {
            start: message.len(),
            name: self.key.name.clone(),
            algorithm: self.key.algorithm.to_name(),
            time: self.time,
            fudge: FUDGE,
            mac: Vec::new(),
            original_id: u16::from_be_bytes([message[0], message[1]]),
            error: self.error,
            other: self.other.clone(),
        };
        let mut hmac = self.key.after(prior);
        for message in unsigned {
            hmac.update(message);
        }
        hmac.update(message);
        hmac.update(&if self.first { variables(&record) } else { timers(&record) });
        record.mac = hmac.finish();
        let mut wire = message.to_vec();
        append(&mut wire, &record);
        (wire, record.mac)
    }
}

#[test]
fn what_the_server_signs_the_client_verifies_over_many_messages() {
    for algorithm in ["hmac-sha224", "hmac-sha256", "hmac-sha384", "hmac-sha512"] {
        let key = TsigKey::new("mesh-key", algorithm, SECRET).expect("a key");
        let mut wire = plain(1);
        let mut chain = key.sign(&mut wire, NOW);
        let Signature::Good(mut signer) = ask(&wire, &key, NOW + 300) else { panic!("good") };
        assert_eq!(signer.key_name(), key.name());
        for number in 0..5 {
            let mut answer = plain(number);
            signer.sign(&mut answer, NOW);
            assert_eq!(answer.len(), plain(number).len() + signer.len());
            assert_eq!(take(&mut chain, &answer), Ok(()), "message {number}");
        }
        assert!(chain.ends_signed());
    }
}

#[test]
fn a_request_that_is_changed_or_signed_otherwise_is_told_why_it_does_not_count() {
    let key = key();
    let fault = |wire: &[u8], known: &TsigKey, now| {
        let Signature::Bad(mut signer) = ask(wire, known, now) else { panic!("bad") };
        let mut answer = plain(1);
        signer.sign(&mut answer, now);
        let mut request = plain(1);
        let mut chain = key.sign(&mut request, NOW);
        assert_eq!(request, signed(&key), "the chain is that of the request");
        take(&mut chain, &answer).expect_err("told")
    };
    let wire = signed(&key);
    let other_name = TsigKey::new("other", "hmac-sha256", SECRET).expect("a key");
    let other_hash = TsigKey::new("mesh-key", "hmac-sha512", SECRET).expect("a key");
    let other_secret = TsigKey::new("mesh-key", "hmac-sha256", "c2VjcmV0").expect("a key");
    assert_eq!(fault(&wire, &other_name, NOW), TsigFault::BadKey);
    assert_eq!(fault(&wire, &other_hash, NOW), TsigFault::BadKey);
    assert_eq!(fault(&wire, &other_secret, NOW), TsigFault::BadSig);
    // These two are signed, and say what the server's clock says.
    assert_eq!(fault(&wire, &key, NOW + 301), TsigFault::BadTime(-301));
    assert_eq!(fault(&wire, &key, NOW - 301), TsigFault::BadTime(301));
    let start = find_tsig(&wire).flatten().expect("signed").start;
    for bit in 16..start * 8 {
        let mut changed = wire.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        // Where the bit is one of a count, it is no message any more.
        let Some(tsig) = find_tsig(&changed) else { continue };
        let found = check(&changed, tsig.as_ref(), |_| Some(key.clone()), NOW);
        assert!(!matches!(found, Signature::Good(_)), "bit {bit}");
    }
}

#[test]
fn a_mac_that_was_cut_short_is_refused() {
    let key = key();
    let wire = signed(&key);
    let tsig = find_tsig(&wire).flatten().expect("signed");
    let cut = |len| {
        let tsig = TsigRecord { mac: tsig.mac[..len].to_vec(), ..tsig.clone() };
        check(&wire, Some(&tsig), |_| Some(key.clone()), NOW)
    };
    assert!(matches!(cut(32), Signature::Good(_)));
    let Signature::Bad(signer) = cut(16) else { panic!("bad") };
    assert_eq!(signer.error, BADTRUNC);
    assert!(matches!(cut(15), Signature::Malformed));
    assert!(matches!(cut(0), Signature::Malformed));
}

fn signed(key: &TsigKey) -> Vec<u8> {
    let mut wire = plain(1);
    key.sign(&mut wire, NOW);
    wire
}

/// What the server that knows one key says of a request.
fn ask(wire: &[u8], known: &TsigKey, now: u64) -> Signature {
    let tsig = find_tsig(wire).expect("a message");
    check(wire, tsig.as_ref(), |name| Some(known.clone()).filter(|key| key.name() == name), now)
}
