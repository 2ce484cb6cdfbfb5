//! The claim of a slice: what stands at `<slice>._slice.<zone>`.
//!
//! One TXT record, signed by the node with the key that signs its advert, over the
//! zone's name and every other string. It says nothing that the name does not: the
//! slice is in both, so that a claim cannot be copied to another name.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64;
use hickory_proto::rr::Name;
use ipnet::IpNet;

use crate::{
    advert::{
        AdvertError, CLOCK_SKEW, MAX_LEASE, Zone, check_size, signed_bytes,
        txt::{Fields, push_bytes, text},
    },
    identity::{Identity, PublicKey},
};

/// The label above all claims of a zone.
pub const SLICE_LABEL: &str = "_slice";

/// What a claim's signature is over begins with this.
const SIGNATURE_CONTEXT: &[u8] = b"zonemesh slice v1\0";

impl Zone {
    /// `<a-b-c-d-len>._slice.<zone>`: the owner of a slice's claim. An IPv6 slice is
    /// spelt with its eight groups in hexadecimal, without leading zeros.
    pub fn slice(&self, slice: &IpNet) -> Name {
        self.below(&[slice_label(slice).as_bytes(), SLICE_LABEL.as_bytes()])
    }

    /// The slice that an owner's name of this zone names, if it names one.
    pub fn slice_of(&self, owner: &Name) -> Option<IpNet> {
        if owner.num_labels() != self.name().num_labels() + 2 || !self.name().zone_of(owner) {
            return None;
        }
        let mut labels = owner.iter();
        let slice = read_label(std::str::from_utf8(labels.next()?).ok()?)?;
        if !labels.next()?.eq_ignore_ascii_case(SLICE_LABEL.as_bytes()) {
            return None;
        }
        // There is one name for a slice: another spelling must not stand in its place.
        (self.slice(&slice) == *owner).then_some(slice)
    }
}

fn slice_label(slice: &IpNet) -> String {
    let mut label = String::new();
    let mut push = |part: &dyn fmt::Display| {
        label.push_str(&part.to_string());
        label.push('-');
    };
    match slice.network() {
        IpAddr::V4(v4) => v4.octets().iter().for_each(|octet| push(octet)),
        IpAddr::V6(v6) => v6.segments().iter().for_each(|group| push(&format_args!("{group:x}"))),
    }
    label + &slice.prefix_len().to_string()
}

fn read_label(label: &str) -> Option<IpNet> {
    let parts: Vec<&str> = label.split('-').collect();
    let (len, groups) = parts.split_last()?;
    let addr = match groups.len() {
        4 => {
            let octets: Option<Vec<u8>> = groups.iter().map(|part| part.parse().ok()).collect();
            IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(octets?).ok()?))
        }
        8 => {
            let groups: Option<Vec<u16>> =
                groups.iter().map(|part| u16::from_str_radix(part, 16).ok()).collect();
            IpAddr::V6(Ipv6Addr::from(<[u16; 8]>::try_from(groups?).ok()?))
        }
        _ => return None,
    };
    let slice = IpNet::new(addr, len.parse().ok()?).ok()?;
    (slice.trunc() == slice).then_some(slice)
}

/// What a node says of a slice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceClaim {
    /// Whose it is.
    pub node: PublicKey,
    /// The slice: no host bits.
    pub slice: IpNet,
    /// Rises with every renewal.
    pub sequence: u64,
    /// When it is free for others again, unless the claim is renewed.
    pub expires: SystemTime,
    /// The certificate chain that lets the node have it, as it stands in the node's
    /// advert; `None` where the network has none.
    pub certificate: Option<Vec<u8>>,
}

impl SliceClaim {
    /// Signs the claim for a zone.
    ///
    /// # Errors
    /// [`ClaimError`] when the identity is another node's, the slice has host bits, or
    /// all of it is too large.
    pub fn sign(&self, identity: &Identity, zone: &Zone) -> Result<SignedClaim, ClaimError> {
        if identity.public_key() != self.node {
            return Err(AdvertError::OtherNode.into());
        }
        if self.slice.trunc() != self.slice {
            return Err(AdvertError::Value("slice").into());
        }
        let since = self.expires.duration_since(UNIX_EPOCH).map_err(|_| AdvertError::Expired)?;
        // As others will read it: in whole seconds.
        let seconds = since.as_secs();
        let mut txt = vec![
            text("txtvers", 1),
            text("pub", self.node),
            text("slice", self.slice),
            text("exp", seconds),
            text("seq", self.sequence),
        ];
        if let Some(certificate) = &self.certificate {
            push_bytes(&mut txt, "cert", certificate);
        }
        let signature = identity.sign(&signed_bytes(SIGNATURE_CONTEXT, zone, &txt));
        txt.push(text("sig", BASE64.encode(&signature)));
        check_size(&txt)?;
        let expires = UNIX_EPOCH + Duration::from_secs(seconds);
        Ok(SignedClaim { claim: Self { expires, ..self.clone() }, txt })
    }
}

/// A claim whose signature holds, with the TXT strings that carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedClaim {
    claim: SliceClaim,
    txt: Vec<Vec<u8>>,
}

impl SignedClaim {
    /// What it says.
    pub fn claim(&self) -> &SliceClaim {
        &self.claim
    }

    /// The TXT strings to publish, each at most 255 bytes.
    pub fn txt(&self) -> &[Vec<u8>] {
        &self.txt
    }

    /// Verifies the TXT strings that stand at the name of a slice: form, bounds,
    /// signature, lease. The certificate is the reader's to judge.
    ///
    /// # Errors
    /// [`ClaimError`] says what is wrong with the first thing that is.
    pub fn verify(
        zone: &Zone,
        slice: &IpNet,
        txt: &[Vec<u8>],
        now: SystemTime,
    ) -> Result<Self, ClaimError> {
        let signed = Self::read(zone, slice, txt)?;
        match signed.claim.expires.duration_since(now) {
            Ok(ahead) if ahead > MAX_LEASE + CLOCK_SKEW => Err(AdvertError::Lease.into()),
            Err(past) if past.duration() > CLOCK_SKEW => Err(AdvertError::Expired.into()),
            _ => Ok(signed),
        }
    }

    /// The same without a look at the clock.
    pub(super) fn read(zone: &Zone, slice: &IpNet, txt: &[Vec<u8>]) -> Result<Self, ClaimError> {
        let (last, body) = txt.split_last().ok_or(AdvertError::Missing("txtvers"))?;
        check_size(txt)?;
        let fields = Fields::read(txt)?;
        let node: PublicKey = fields.one("pub")?;
        if fields.one::<IpNet>("slice")? != *slice {
            return Err(ClaimError::OtherSlice);
        }
        let signature = last.strip_prefix(b"sig=").ok_or(AdvertError::Missing("sig"))?;
        let signature = BASE64.decode(signature).map_err(|_| AdvertError::Signature)?;
        node.verify(&signed_bytes(SIGNATURE_CONTEXT, zone, body), &signature)
            .map_err(|_| AdvertError::Signature)?;
        let expires = UNIX_EPOCH
            .checked_add(Duration::from_secs(fields.one("exp")?))
            .ok_or(AdvertError::Value("exp"))?;
        let claim = SliceClaim {
            node,
            slice: *slice,
            sequence: fields.one("seq")?,
            expires,
            certificate: fields.bytes("cert"),
        };
        Ok(Self { claim, txt: txt.to_vec() })
    }
}

/// Why a claim does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// What an advert must not be either.
    #[error(transparent)]
    Form(#[from] AdvertError),
    /// It stands at another slice's name.
    #[error("it claims another slice than its name does")]
    OtherSlice,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn a_slice_has_one_name() {
        for (slice, label) in [
            ("10.42.7.0/24", "10-42-7-0-24"),
            ("0.0.0.0/8", "0-0-0-0-8"),
            ("fd00:1111:2222:a0::/64", "fd00-1111-2222-a0-0-0-0-0-64"),
        ] {
            let slice: IpNet = slice.parse().expect("a prefix");
            let owner = zone().slice(&slice);
            assert_eq!(owner.to_ascii(), format!("{label}._slice.mesh.example."));
            assert_eq!(zone().slice_of(&owner), Some(slice));
            assert_eq!(zone().slice_of(&owner.to_lowercase()), Some(slice));
        }
        for other in [
            "10-42-07-0-24._slice.mesh.example.",
            "10-42-7-1-24._slice.mesh.example.",
            "10-42-7-0-33._slice.mesh.example.",
            "10-42-7-0._slice.mesh.example.",
            "fd00-0-0-0-0-0-0-0-0-64._slice.mesh.example.",
            "10-42-7-0-24._slices.mesh.example.",
            "10-42-7-0-24._slice.other.example.",
            "x.10-42-7-0-24._slice.mesh.example.",
            "_slice.mesh.example.",
            "mesh.example.",
        ] {
            let owner = Name::from_ascii(other).expect("a name");
            assert_eq!(zone().slice_of(&owner), None, "{other}");
        }
    }

    #[test]
    fn a_claim_is_what_was_signed_at_its_own_name_and_in_its_own_zone() {
        for certificate in [None, Some(vec![0xff; 200]), Some((0..=255).chain(0..64).collect())] {
            let signed = claim(certificate).sign(&identity(), &zone()).expect("it can be signed");
            let wall = UNIX_EPOCH + NOW;
            let verify = |zone: &Zone, slice: &str| {
                let slice: IpNet = slice.parse().expect("a prefix");
                SignedClaim::verify(zone, &slice, signed.txt(), wall)
            };
            assert_eq!(verify(&zone(), "10.42.7.0/24").as_ref(), Ok(&signed));
            assert_eq!(verify(&zone(), "10.42.8.0/24"), Err(ClaimError::OtherSlice));
            let other: Zone = "other.example".parse().expect("a zone");
            assert_eq!(verify(&other, "10.42.7.0/24"), Err(AdvertError::Signature.into()));
            assert!(signed.txt().iter().all(|string| string.len() <= 255));
        }
    }

    #[test]
    fn a_claim_ends() {
        let signed = claim(None).sign(&identity(), &zone()).expect("it can be signed");
        let at = |seconds: u64| {
            let wall = UNIX_EPOCH + NOW - MAX_LEASE + Duration::from_secs(seconds);
            SignedClaim::verify(&zone(), &claim(None).slice, signed.txt(), wall).err()
        };
        let (lease, skew) = (MAX_LEASE.as_secs(), CLOCK_SKEW.as_secs());
        // It was made for the whole of a lease, an hour before `NOW`.
        assert_eq!(at(3600), None);
        assert_eq!(at(3600 - skew), None);
        assert_eq!(at(3600 - skew - 1), Some(AdvertError::Lease.into()));
        assert_eq!(at(3600 + lease + skew), None);
        assert_eq!(at(3600 + lease + skew + 1), Some(AdvertError::Expired.into()));
    }

    #[test]
    fn any_other_bit_is_refused() {
        let signed =
            claim(Some(vec![7; 300])).sign(&identity(), &zone()).expect("it can be signed");
        let wall = UNIX_EPOCH + NOW;
        for string in 0..signed.txt().len() {
            for bit in 0..signed.txt()[string].len() * 8 {
                let mut txt = signed.txt().to_vec();
                txt[string][bit / 8] ^= 1 << (bit % 8);
                let read = SignedClaim::verify(&zone(), &claim(None).slice, &txt, wall);
                assert!(read.is_err(), "string {string}, bit {bit}: {read:?}");
            }
        }
    }

    #[test]
    fn nobody_signs_for_another_node() {
        let other = Identity::from_seed(&[2; 32]);
        assert_eq!(claim(None).sign(&other, &zone()), Err(AdvertError::OtherNode.into()));
        assert_eq!(
            claim(Some(vec![0; 800])).sign(&identity(), &zone()),
            Err(AdvertError::TooLarge.into())
        );
    }

    proptest! {
        #[test]
        fn no_strings_make_it_panic(
            mut txt in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..8),
            keys in prop::collection::vec(0usize..7, 0..8),
        ) {
            let known = ["txtvers=1", "pub=", "slice=10.42.7.0/24", "exp=", "seq=", "cert=", "sig="];
            for (string, key) in txt.iter_mut().zip(keys) {
                string.splice(..0, known[key].bytes());
            }
            let slice = claim(None).slice;
            let _ = SignedClaim::verify(&zone(), &slice, &txt, UNIX_EPOCH + NOW);
        }

        #[test]
        fn every_slice_is_read_back_from_its_name(bits in any::<u128>(), v4: bool, len in 0u8..=128) {
            let (addr, most) = match v4 {
                true => (IpAddr::from(((bits >> 96) as u32).to_be_bytes()), 32),
                false => (IpAddr::from(bits.to_be_bytes()), 128),
            };
            let slice = IpNet::new(addr, len.min(most)).expect("a prefix").trunc();
            prop_assert_eq!(zone().slice_of(&zone().slice(&slice)), Some(slice));
        }
    }

    fn zone() -> Zone {
        "mesh.example".parse().expect("a zone")
    }

    fn identity() -> Identity {
        Identity::from_seed(&[1; 32])
    }

    fn claim(certificate: Option<Vec<u8>>) -> SliceClaim {
        SliceClaim {
            node: identity().public_key(),
            slice: "10.42.7.0/24".parse().expect("a prefix"),
            sequence: 1,
            expires: UNIX_EPOCH + NOW + Duration::from_secs(3600),
            certificate,
        }
    }
}
