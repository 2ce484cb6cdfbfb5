//! A TOML document that remembers where everything stands.
//!
//! Every value is taken out of its section by name; what is left when the section
//! is finished is unknown, and an error. So no list of keys can fall behind the
//! code that reads them, and every error can say line, column, key and what was
//! expected.

use std::{
    fmt,
    ops::{Range, RangeInclusive},
    path::{Path, PathBuf},
    str::FromStr,
};

use toml::de::{DeTable, DeValue};

/// What is wrong with a configuration, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The configuration file.
    pub file: PathBuf,
    /// Line and column, from 1, unless the file as a whole is meant.
    pub position: Option<(usize, usize)>,
    /// The offending key's path, such as `interface.addresses[0]`; empty where the
    /// text is not TOML at all.
    pub key: String,
    /// What was found and what was expected.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for ConfigError {}

pub(crate) type Result<T> = std::result::Result<T, ConfigError>;

/// The file that values came from.
#[derive(Clone, Copy)]
pub(crate) struct Document<'a> {
    pub(crate) file: &'a Path,
    pub(crate) text: &'a str,
}

impl<'a> Document<'a> {
    /// The document's outermost section.
    pub(crate) fn root(self) -> Result<Section<'a>> {
        let table = DeTable::parse(self.text).map_err(|error| {
            let span = error.span().unwrap_or(0..0);
            self.error(&span, String::new(), error.message().to_owned())
        })?;
        let span = 0..0;
        Ok(Section {
            document: self,
            path: String::new(),
            span,
            rest: table.into_inner(),
            known: vec![],
        })
    }

    fn error(&self, span: &Range<usize>, key: String, message: String) -> ConfigError {
        let position = Some(self.position(span));
        ConfigError { file: self.file.to_owned(), position, key, message }
    }

    /// Line and column, from 1.
    fn position(&self, span: &Range<usize>) -> (usize, usize) {
        let before = &self.text.as_bytes()[..span.start.min(self.text.len())];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = String::from_utf8_lossy(&before[line_start..]).chars().count() + 1;
        (line, column)
    }
}

/// A table of the document, from which its values are taken one by one.
pub(crate) struct Section<'a> {
    document: Document<'a>,
    path: String,
    span: Range<usize>,
    rest: DeTable<'a>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    /// Takes the value of `key`, if it is there.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Item<'a>> {
        self.known.push(key);
        let value = self.rest.remove(key)?;
        Some(Item {
            document: self.document,
            path: self.path_of(key),
            span: value.span(),
            value: value.into_inner(),
        })
    }

    /// Takes the value of `key`, which must be there.
    pub(crate) fn need(&mut self, key: &'static str, expected: &str) -> Result<Item<'a>> {
        self.take(key).ok_or_else(|| self.missing(key, expected))
    }

    /// Takes a section below this one: an empty one where it is not there.
    pub(crate) fn section(&mut self, key: &'static str) -> Result<Section<'a>> {
        match self.take(key) {
            Some(item) => item.section(),
            None => Ok(Section {
                document: self.document,
                path: self.path_of(key),
                span: self.span.clone(),
                rest: DeTable::new(),
                known: vec![],
            }),
        }
    }

    /// An error about a key that is not there.
    pub(crate) fn missing(&self, key: &str, expected: &str) -> ConfigError {
        let message = format!("is missing; expected {expected}");
        self.document.error(&self.span, self.path_of(key), message)
    }

    /// An error about a key whose value does not fit what else is said.
    pub(crate) fn wrong(&self, key: &str, expected: &str) -> ConfigError {
        let message = format!("does not fit; expected {expected}");
        self.document.error(&self.span, self.path_of(key), message)
    }

    /// Ends the section: what has not been taken is unknown.
    pub(crate) fn finish(&self) -> Result<()> {
        let Some(key) = self.rest.keys().min_by_key(|key| key.span().start) else { return Ok(()) };
        let known = self.known.join(", ");
        let message = format!("unknown key; expected one of: {known}");
        Err(self.document.error(&key.span(), self.path_of(key.get_ref()), message))
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }
}

/// One value of the document.
pub(crate) struct Item<'a> {
    document: Document<'a>,
    path: String,
    span: Range<usize>,
    value: DeValue<'a>,
}

impl<'a> Item<'a> {
    /// An error about this value.
    pub(crate) fn error(&self, message: impl Into<String>) -> ConfigError {
        self.document.error(&self.span, self.path.clone(), message.into())
    }

    /// Where it stands: line and column, from 1.
    pub(crate) fn position(&self) -> (usize, usize) {
        self.document.position(&self.span)
    }

    /// An error that says what was found instead of what was expected.
    pub(crate) fn wrong(&self, expected: &str) -> ConfigError {
        let found = match &self.value {
            DeValue::String(text) => format!("{text:?}"),
            DeValue::Integer(number) => number.to_string(),
            DeValue::Float(number) => number.to_string(),
            DeValue::Boolean(value) => value.to_string(),
            DeValue::Datetime(_) => "a date".to_owned(),
            DeValue::Array(_) => "a list".to_owned(),
            DeValue::Table(_) => "a table".to_owned(),
        };
        self.error(format!("{found} is not {expected}"))
    }

    pub(crate) fn text(&self, expected: &str) -> Result<&str> {
        match &self.value {
            DeValue::String(text) => Ok(text),
            _ => Err(self.wrong(expected)),
        }
    }

    /// The value of a string that `T` can read.
    pub(crate) fn parse<T: FromStr>(&self, expected: &str) -> Result<T> {
        self.text(expected)?.parse().map_err(|_| self.wrong(expected))
    }

    pub(crate) fn boolean(&self) -> Result<bool> {
        match self.value {
            DeValue::Boolean(value) => Ok(value),
            _ => Err(self.wrong("true or false")),
        }
    }

    pub(crate) fn integer(&self, range: RangeInclusive<u16>) -> Result<u16> {
        let number = self.number((*range.start()).into()..=(*range.end()).into())?;
        // It lies in the range.
        Ok(u16::try_from(number).unwrap_or(u16::MAX))
    }

    pub(crate) fn number(&self, range: RangeInclusive<u64>) -> Result<u64> {
        let expected = || format!("a number from {} to {}", range.start(), range.end());
        let DeValue::Integer(number) = &self.value else { return Err(self.wrong(&expected())) };
        u64::from_str_radix(number.as_str(), number.radix())
            .ok()
            .filter(|number| range.contains(number))
            .ok_or_else(|| self.wrong(&expected()))
    }

    /// Whether it is a list, where a single value would do as well.
    pub(crate) fn is_list(&self) -> bool {
        matches!(self.value, DeValue::Array(_))
    }

    /// The values of a list.
    pub(crate) fn list(self, expected: &str) -> Result<Vec<Item<'a>>> {
        let Self { document, path, span, value } = self;
        match value {
            DeValue::Array(items) => Ok(items
                .into_iter()
                .enumerate()
                .map(|(index, item)| Item {
                    document,
                    path: format!("{path}[{index}]"),
                    span: item.span(),
                    value: item.into_inner(),
                })
                .collect()),
            value => Err(Item { document, path, span, value }.wrong(expected)),
        }
    }

    pub(crate) fn section(self) -> Result<Section<'a>> {
        let Self { document, path, span, value } = self;
        match value {
            DeValue::Table(rest) => Ok(Section { document, path, span, rest, known: vec![] }),
            value => Err(Item { document, path, span, value }.wrong("a section (a table)")),
        }
    }
}
