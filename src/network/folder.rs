//! The folder that a network's files stand in.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use tracing::warn;
use zonemesh_discovery::membership::{NetworkKey, RevocationError, RevocationList};

use super::{
    KEY_FILE, KeyFileError, NETWORK_FILE, NetworkFile, NewNetwork, Passphrase, PassphraseError,
    is_key_of, key,
};
use crate::config::ConfigError;

const REVOCATIONS_FILE: &str = "revocations";

/// No key's file, and no list of revocations, is larger.
const MAX_FILE: u64 = 64 << 10;

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

/// What is wrong with a network's files.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is a network already.
    #[error("{0} is there already: a network is made once; choose another folder by --dir")]
    Exists(PathBuf),
    /// There is none.
    #[error(
        "{0} is not there: make a network by `zonemesh network init`, or name its folder by --dir"
    )]
    Missing(PathBuf),
    /// `network.toml` is wrong.
    #[error(transparent)]
    File(#[from] ConfigError),
    /// `network.key` is wrong.
    #[error("{0}: {1}")]
    Key(PathBuf, KeyFileError),
    /// No passphrase.
    #[error(transparent)]
    Passphrase(#[from] PassphraseError),
    /// The key is of another network than the file.
    #[error("{0} is the key of another network than network.toml beside it")]
    OtherKey(PathBuf),
    /// The list cannot be used.
    #[error(
        "{0}: {1}; restore it from your copy: a list without its entries would let everybody in again"
    )]
    Revocations(PathBuf, RevocationError),
}

impl From<KeyFileError> for FolderError {
    fn from(error: KeyFileError) -> Self {
        Self::Key(PathBuf::from(KEY_FILE), error)
    }
}

impl Folder {
    /// The folder at this path.
    pub fn new(path: &Path) -> Self {
        Self(path.to_owned())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a new network's three files, and tells their paths; none of them where one
    /// is there already or cannot be written.
    ///
    /// # Errors
    /// [`FolderError`] says which.
    pub fn create(
        &self,
        network: &NewNetwork,
        passphrase: Option<&Passphrase>,
    ) -> Result<[PathBuf; 3], FolderError> {
        let list = RevocationList::sign(&network.key, 0, []).expect("none is not too many");
        let files = [KEY_FILE, NETWORK_FILE, REVOCATIONS_FILE].map(|name| self.path(name));
        if let Some(there) = files.iter().find(|path| path.symlink_metadata().is_ok()) {
            return Err(FolderError::Exists(there.clone()));
        }
        let io = |source| FolderError::Io { path: self.0.clone(), source };
        DirBuilder::new().recursive(true).mode(0o755).create(&self.0).map_err(io)?;
        let key = key::write(&network.key, passphrase);
        let toml = network.file.to_toml();
        let contents = [key.as_bytes(), toml.as_bytes(), list.as_bytes()];
        for (index, (path, contents)) in files.iter().zip(contents).enumerate() {
            if let Err(source) = create(path, contents) {
                for made in &files[..index] {
                    let _ = fs::remove_file(made);
                }
                return Err(match source.kind() {
                    io::ErrorKind::AlreadyExists => FolderError::Exists(path.clone()),
                    _ => FolderError::Io { path: path.clone(), source },
                });
            }
        }
        Ok(files)
    }

    /// The network, but for its key.
    ///
    /// # Errors
    /// [`FolderError`] when there is none, or its file is wrong.
    pub fn network(&self) -> Result<NetworkFile, FolderError> {
        let path = self.path(NETWORK_FILE);
        match path.try_exists() {
            Ok(false) => Err(FolderError::Missing(path)),
            _ => Ok(NetworkFile::load(&path)?),
        }
    }

    /// The network's key; `ask` gives the passphrase where there is one.
    ///
    /// # Errors
    /// [`FolderError`] when it is not there, cannot be opened, or is another network's.
    pub fn key(
        &self,
        network: &NetworkFile,
        ask: impl FnOnce() -> Result<Option<Passphrase>, PassphraseError>,
    ) -> Result<NetworkKey, FolderError> {
        let path = self.path(KEY_FILE);
        let bytes = self.read(&path)?;
        let mode = fs::metadata(&path).map(|metadata| metadata.permissions().mode());
        if mode.is_ok_and(|mode| mode & 0o077 != 0) {
            warn!("{} may be read by others: chmod 600 it", path.display());
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| FolderError::Key(path.clone(), KeyFileError::Form))?;
        let read = key::read(&text, || ask().map_err(FolderError::from));
        let key = read.map_err(|error| match error {
            FolderError::Key(_, error) => FolderError::Key(path.clone(), error),
            error => error,
        })?;
        if is_key_of(&key, &network.key) { Ok(key) } else { Err(FolderError::OtherKey(path)) }
    }

    /// The list of revocations.
    ///
    /// # Errors
    /// [`FolderError`] when it is not there, or not this network's.
    pub fn revocations(&self, network: &NetworkFile) -> Result<RevocationList, FolderError> {
        let path = self.path(REVOCATIONS_FILE);
        let bytes = self.read(&path)?;
        RevocationList::read(&bytes, &network.key)
            .map_err(|error| FolderError::Revocations(path, error))
    }

    /// Keeps a new list in the place of the old one.
    ///
    /// # Errors
    /// [`FolderError`] when it cannot be written; then the old one is there.
    pub fn save_revocations(&self, list: &RevocationList) -> Result<(), FolderError> {
        let path = self.path(REVOCATIONS_FILE);
        let replaced = written(&path, list.as_bytes())
            .and_then(|new| fs::rename(new, &path))
            .and_then(|()| sync_folder(&path));
        replaced.map_err(|source| FolderError::Io { path, source })
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, FolderError> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        match read {
            Ok(_) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(FolderError::Missing(path.to_owned()))
            }
            Err(source) => Err(FolderError::Io { path: path.to_owned(), source }),
        }
    }
}

/// Puts a file where there is none: whole, or not at all.
fn create(path: &Path, contents: &[u8]) -> io::Result<()> {
    let new = written(path, contents)?;
    // Unlike a rename, a link does not take another's place.
    let linked = fs::hard_link(&new, path);
    fs::remove_file(&new)?;
    linked?;
    sync_folder(path)
}

/// A file beside `path`, on disk, with what `path` is to hold.
fn written(path: &Path, contents: &[u8]) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    // One that a crash left may have had another mode.
    let done = file
        .set_permissions(fs::Permissions::from_mode(0o600))
        .and_then(|()| file.write_all(contents))
        .and_then(|()| file.sync_all());
    match done {
        Ok(()) => Ok(new),
        Err(error) => {
            // Half a file, where the disk is full.
            let _ = fs::remove_file(&new);
            Err(error)
        }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
