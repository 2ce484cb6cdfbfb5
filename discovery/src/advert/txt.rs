//! TXT strings as keys and values (RFC 6763 §6): of adverts, and of whatever else is
//! said in the same form.

use std::{fmt, str::FromStr};

use super::AdvertError;

/// The most bytes of one string (RFC 1035 §3.3).
const MAX_STRING: usize = 255;

/// `key=value`.
pub(crate) fn text(key: &str, value: impl fmt::Display) -> Vec<u8> {
    format!("{key}={value}").into_bytes()
}

/// Appends `key=a,b,…`, and where 255 bytes do not hold it `key1=…`, `key2=…`.
pub(crate) fn push_list<T: fmt::Display>(txt: &mut Vec<Vec<u8>>, key: &str, items: &[T]) {
    let mut part = 0;
    let mut string = format!("{key}=");
    let mut empty = true;
    for item in items {
        let item = item.to_string();
        if !empty && string.len() + 1 + item.len() > MAX_STRING {
            txt.push(string.into_bytes());
            part += 1;
            string = format!("{key}{part}=");
            empty = true;
        }
        if !empty {
            string.push(',');
        }
        string.push_str(&item);
        empty = false;
    }
    if !empty {
        txt.push(string.into_bytes());
    }
}

/// Appends `key=` with bytes that are no text (RFC 6763 §6.5), and where one string does
/// not hold them `key1=…`, `key2=…`.
pub(crate) fn push_bytes(txt: &mut Vec<Vec<u8>>, key: &str, mut bytes: &[u8]) {
    let mut string = format!("{key}=").into_bytes();
    for part in 1.. {
        let (here, rest) = bytes.split_at(bytes.len().min(MAX_STRING - string.len()));
        string.extend_from_slice(here);
        txt.push(string);
        if rest.is_empty() {
            break;
        }
        bytes = rest;
        string = format!("{key}{part}=").into_bytes();
    }
}

/// TXT strings as keys and values (RFC 6763 §6.4).
pub(crate) struct Fields<'a>(Vec<(&'a [u8], &'a [u8])>);

impl<'a> Fields<'a> {
    pub(crate) fn read(txt: &'a [Vec<u8>]) -> Result<Self, AdvertError> {
        let mut fields: Vec<(&[u8], &[u8])> = Vec::with_capacity(txt.len());
        for string in txt {
            // Strings that have no key belong to somebody else.
            let Some(at) = string.iter().position(|byte| *byte == b'=') else { continue };
            let (key, value) = (&string[..at], &string[at + 1..]);
            if fields.iter().any(|(known, _)| known.eq_ignore_ascii_case(key)) {
                return Err(AdvertError::Twice);
            }
            fields.push((key, value));
        }
        let fields = Self(fields);
        match fields.get("txtvers") {
            Some(b"1") => Ok(fields),
            Some(_) => Err(AdvertError::Version),
            None => Err(AdvertError::Missing("txtvers")),
        }
    }

    fn get(&self, key: &str) -> Option<&'a [u8]> {
        let key = key.as_bytes();
        self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(key)).map(|(_, value)| *value)
    }

    /// The values of `key`, `key1`, `key2`, ….
    fn parts(&self, key: &str) -> impl Iterator<Item = &'a [u8]> {
        let name =
            move |part: usize| if part == 0 { key.to_owned() } else { format!("{key}{part}") };
        (0..).map_while(move |part| self.get(&name(part)))
    }

    pub(crate) fn one<T: FromStr>(&self, key: &'static str) -> Result<T, AdvertError> {
        parse(key, self.get(key).ok_or(AdvertError::Missing(key))?)
    }

    pub(crate) fn list<T: FromStr>(&self, key: &'static str) -> Result<Vec<T>, AdvertError> {
        let items = self.parts(key).flat_map(|value| value.split(|byte| *byte == b','));
        items.filter(|item| !item.is_empty()).map(|item| parse(key, item.trim_ascii())).collect()
    }

    /// The bytes of a value that is no text; `None` where the key is not there.
    pub(crate) fn bytes(&self, key: &str) -> Option<Vec<u8>> {
        let parts: Vec<&[u8]> = self.parts(key).collect();
        (!parts.is_empty()).then(|| parts.concat())
    }
}

fn parse<T: FromStr>(key: &'static str, value: &[u8]) -> Result<T, AdvertError> {
    let text = std::str::from_utf8(value).map_err(|_| AdvertError::Value(key))?;
    text.parse().map_err(|_| AdvertError::Value(key))
}
