//! What members hand each other of themselves over the mesh: an advert's TXT strings, as
//! they stand in a TXT record's data (RFC 1035 §3.3.14), each behind its length.

/// The most strings of an advert, more than any has.
const MAX_STRINGS: usize = 64;

/// A note that holds these strings, of at most 255 bytes each.
pub(super) fn write(txt: &[Vec<u8>]) -> Vec<u8> {
    let mut note = Vec::new();
    for string in txt {
        note.push(u8::try_from(string.len()).expect("TXT strings have at most 255 bytes"));
        note.extend_from_slice(string);
    }
    note
}

/// The strings of a note; `None` where it is not well made.
pub(super) fn read(mut note: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut txt = Vec::new();
    while let Some((length, rest)) = note.split_first() {
        let (string, rest) = rest.split_at_checked(usize::from(*length))?;
        if txt.len() == MAX_STRINGS {
            return None;
        }
        txt.push(string.to_vec());
        note = rest;
    }
    Some(txt)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(
            txt in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..=255), 0..MAX_STRINGS),
        ) {
            prop_assert_eq!(read(&write(&txt)), Some(txt));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..1100)) {
            let _ = read(&bytes);
        }
    }

    #[test]
    fn a_note_that_was_cut_is_none() {
        assert_eq!(read(b"\x05hell"), None);
        assert_eq!(read(&[0; MAX_STRINGS + 1]), None, "too many");
    }
}
