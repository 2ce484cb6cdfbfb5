//! A passphrase: from a file, from the environment, or from who sits at the terminal;
//! never from an argument, which others can read.

use std::{
    env, fs,
    io::{self, BufRead, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use zonemesh_discovery::membership::Secret;

/// The variable that may hold it.
pub const PASSPHRASE_VARIABLE: &str = "ZONEMESH_PASSPHRASE";

/// No passphrase has more bytes.
const MAX_LEN: usize = 1024;

/// A passphrase, which nothing shows.
#[derive(Debug, Clone)]
pub struct Passphrase(Secret);

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// Nothing, or too much.
    #[error("a passphrase has 1 to {MAX_LEN} bytes")]
    Length,
    /// Its file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The terminal failed.
    #[error("the terminal: {0}")]
    Terminal(io::Error),
    /// The second was not the first.
    #[error("the two passphrases differ")]
    Differ,
    /// There is nobody to ask.
    #[error(
        "there is no terminal to ask for a passphrase: give it by --passphrase-file or \
         {PASSPHRASE_VARIABLE}"
    )]
    NoTerminal,
}

impl Passphrase {
    /// One, without the line's end.
    ///
    /// # Errors
    /// [`PassphraseError::Length`] when it is empty or far too long.
    pub fn new(text: String) -> Result<Self, PassphraseError> {
        let secret = Secret::new(text.into_bytes());
        let text = secret.expose();
        let text = text.strip_suffix(b"\n").unwrap_or(text);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if text.is_empty() || text.len() > MAX_LEN {
            return Err(PassphraseError::Length);
        }
        Ok(Self(Secret::new(text.to_vec())))
    }

    pub(super) fn expose(&self) -> &[u8] {
        self.0.expose()
    }

    /// The one that is given: by a file, else by the environment; `None` where neither is.
    ///
    /// # Errors
    /// [`PassphraseError`] when what is given is none.
    pub fn given(file: Option<&Path>) -> Result<Option<Self>, PassphraseError> {
        if let Some(path) = file {
            let error = |source| PassphraseError::File { path: path.to_owned(), source };
            let mut text = String::new();
            let opened = fs::File::open(path).map_err(error)?;
            opened.take(MAX_LEN as u64 + 3).read_to_string(&mut text).map_err(error)?;
            return Self::new(text).map(Some);
        }
        match env::var(PASSPHRASE_VARIABLE) {
            Ok(text) => Self::new(text).map(Some),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => Err(PassphraseError::Length),
        }
    }

    /// Asks who sits at the terminal; twice for a new one.
    ///
    /// # Errors
    /// [`PassphraseError`] when there is nobody, or the answer is none.
    pub fn ask(twice: bool) -> Result<Self, PassphraseError> {
        if !io::stdin().is_terminal() {
            return Err(PassphraseError::NoTerminal);
        }
        let first = prompt("Passphrase of the network's key: ")?;
        if twice && prompt("Once more: ")?.expose() != first.expose() {
            return Err(PassphraseError::Differ);
        }
        Ok(first)
    }
}

fn prompt(question: &str) -> Result<Passphrase, PassphraseError> {
    let mut line = String::new();
    {
        let _silence = Silence::begin().map_err(PassphraseError::Terminal)?;
        let mut out = io::stderr().lock();
        let read = write!(out, "{question}")
            .and_then(|()| out.flush())
            .and_then(|()| io::stdin().lock().read_line(&mut line))
            .and_then(|_| writeln!(out));
        read.map_err(PassphraseError::Terminal)?;
    }
    Passphrase::new(line)
}

/// The terminal shows nothing of what is typed for as long as this lives.
struct Silence(Termios);

impl Silence {
    fn begin() -> io::Result<Self> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(io::stdin(), OptionalActions::Flush, &self.0);
    }
}
