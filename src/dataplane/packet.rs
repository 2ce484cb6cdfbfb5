//! The little that the data plane reads of an IP packet.

use std::net::IpAddr;

/// The destination address of an IP packet.
pub(super) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => address::<4>(packet, 16, 20),
        6 => address::<16>(packet, 24, 40),
        _ => None,
    }
}

fn address<const N: usize>(packet: &[u8], at: usize, header: usize) -> Option<IpAddr>
where
    IpAddr: From<[u8; N]>,
{
    let address: [u8; N] = packet.get(..header)?.get(at..at + N)?.try_into().ok()?;
    Some(address.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_from_whole_headers_only() {
        let mut v4 = [0; 20];
        v4[0] = 0x45;
        v4[16..].copy_from_slice(&[10, 1, 2, 3]);
        assert_eq!(destination(&v4), Some([10, 1, 2, 3].into()));
        assert_eq!(destination(&v4[..19]), None);

        let mut v6 = [0; 40];
        v6[0] = 0x60;
        v6[24..].copy_from_slice(&[0xfd; 16]);
        assert_eq!(destination(&v6), Some([0xfd; 16].into()));
        assert_eq!(destination(&v6[..39]), None);

        assert_eq!(destination(&[]), None);
        assert_eq!(destination(&[0x75; 60]), None);
    }
}
