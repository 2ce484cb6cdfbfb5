//! Secrets: read from files of their own, never shown.

use std::{
    fmt, fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

/// No secret that this program knows is longer; a larger file is some other file.
const MAX_LEN: u64 = 4096;

/// A value that neither a log nor a debug form ever shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    /// Wraps a value.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself, for the place that needs it.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A secret file's text without the white space around it, and whether everybody
/// on the machine can read it.
pub(crate) struct SecretFile {
    pub(crate) text: Secret<String>,
    world_readable: bool,
}

impl SecretFile {
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let file = fs::File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let mut text = String::new();
        file.take(MAX_LEN + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_LEN {
            return Err(io::Error::other("too large to be a secret"));
        }
        let text = text.trim();
        if text.is_empty() {
            return Err(io::Error::other("the file is empty"));
        }
        Ok(Self {
            text: Secret::new(text.to_owned()),
            world_readable: metadata.mode() & 0o004 != 0,
        })
    }

    /// What is wrong with the file, though it can be used.
    pub(crate) fn warning(&self, path: &Path) -> Option<String> {
        self.world_readable.then(|| {
            format!("{} can be read by everybody on this machine: chmod 600 it", path.display())
        })
    }
}
