//! Why a server has not done what it was asked for, in words (RFC 8914): a code alone does
//! not tell a wrong clock from a membership that has ended.

use hickory_proto::{op::Edns, rr::rdata::opt::EdnsOption};

/// The option of extended errors (RFC 8914 §2).
pub(super) const OPTION: u16 = 15;

/// "Prohibited" (RFC 8914 §4.19).
const PROHIBITED: u16 = 18;

/// The most bytes of words that are read.
const MAX_LEN: usize = 200;

/// Puts the words there.
pub(super) fn set_reason(edns: &mut Edns, text: &str) {
    let option = [&PROHIBITED.to_be_bytes(), text.as_bytes()].concat();
    edns.options_mut().insert(EdnsOption::Unknown(OPTION, option));
}

/// The words of an option's data, fit for a line of a log; `None` where it has none.
pub(super) fn read_reason(option: &[u8]) -> Option<String> {
    let (_, text) = option.split_first_chunk::<2>()?;
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_LEN)]);
    let text: String = text.chars().filter(|char| !char.is_control()).collect();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_as_they_were_said_and_harm_no_log() {
        let mut edns = Edns::new();
        set_reason(&mut edns, "the clock is wrong");
        let Some(EdnsOption::Unknown(OPTION, data)) = edns.option(OPTION.into()) else {
            panic!("an option");
        };
        assert_eq!(read_reason(data).as_deref(), Some("the clock is wrong"));
        let said = |bytes: &[u8]| read_reason(&[&[0, 18], bytes].concat());
        assert_eq!(said(b"a\x1b[2Jb\nc").as_deref(), Some("a[2Jbc"));
        assert_eq!(said(&[b'x'; 900]).map(|text| text.len()), Some(200));
        assert_eq!(said(b""), None);
        assert_eq!(read_reason(&[0]), None);
        assert!(said(&[0xff, 0xfe]).is_some());
    }
}
