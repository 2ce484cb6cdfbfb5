//! The zone's journal on disk.
//!
//! What is appended is synced before it counts. What could not be written whole is cut off
//! again, so that the file is always a journal. One that has grown long is replaced by
//! the zone as it is: written beside, synced, and renamed.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use anyhow::{Context, bail};
use tracing::{info, warn};
use zonemesh_discovery::zone::serve::{ZoneConfig, ZoneStore};

/// A journal is replaced when it is this much longer than it was when it was new.
const GROWTH: u64 = 4 << 20;

/// Longer than every journal that this program makes: its zone, the changes that are kept,
/// and its growth.
const MOST: u64 = 256 << 20;

/// The journal's file, which nobody else writes.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    path: PathBuf,
    len: u64,
    /// How long it was when it was new.
    new_len: u64,
    /// Whether what stands behind `len` has still to be cut off.
    torn: bool,
}

impl Journal {
    /// Opens the journal in a folder, or makes one, and gives the zone that it tells.
    pub(super) fn open(
        folder: &Path,
        config: ZoneConfig,
        now: SystemTime,
    ) -> anyhow::Result<(ZoneStore, Self)> {
        let path = folder.join("zone.journal");
        let cannot = |what: &str| format!("cannot {what} {}", path.display());
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
        let mut file = open(&path).with_context(|| cannot("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("{} is in use: another zonemesh serves this zone", path.display())
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(|| cannot("lock")),
        }
        let mut bytes = Vec::new();
        let read = (&mut file).take(MOST + 1).read_to_end(&mut bytes);
        read.with_context(|| cannot("read"))?;
        if bytes.len() as u64 > MOST {
            bail!("{} is larger than any zone's journal; move it away", path.display());
        }
        let (store, replayed) =
            ZoneStore::open(config, &bytes, now).with_context(|| path.display().to_string())?;
        if replayed.cut > 0 {
            let cut = path.with_extension("cut");
            warn!(
                "the last {} bytes of {} were not written whole: moved to {}",
                replayed.cut,
                path.display(),
                cut.display()
            );
            // Only to be looked at, where a disk and not a crash has done it.
            if let Err(error) = keep(&cut, &bytes[replayed.used..]) {
                warn!("cannot write {}: {error}", cut.display());
            }
        }
        let len = replayed.used as u64;
        let mut journal = Self { file, path, len, new_len: len, torn: true };
        journal.cut().with_context(|| format!("cannot write {}", journal.path.display()))?;
        // A file that has just been made has a name only when its folder is synced.
        let synced = File::open(folder).and_then(|folder| folder.sync_all());
        synced.with_context(|| format!("cannot write {}", folder.display()))?;
        info!(
            serial = store.serial(),
            nodes = store.nodes(),
            "the zone {} is read from {}",
            store.zone(),
            journal.path.display()
        );
        Ok((store, journal))
    }

    /// Appends, and has it on disk when it returns. Where it fails, nothing was appended.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.torn {
            self.cut()?;
        }
        let written = self.file.write_all(bytes).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.torn = true;
            // Where that fails as well, the next one tries it again.
            let _ = self.cut();
            return Err(error);
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Replaces the journal by a new one, where it has grown long.
    pub(super) fn renew_if_long(&mut self, store: &ZoneStore) -> io::Result<()> {
        if self.len - self.new_len < GROWTH.max(self.new_len) {
            return Ok(());
        }
        let bytes = store.snapshot();
        let fresh = self.path.with_extension("new");
        // What an earlier try has left.
        let _ = fs::remove_file(&fresh);
        let mut file = open(&fresh)?;
        // Before it has the name, so that there is no moment without a lock.
        file.lock()?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        let len = bytes.len() as u64;
        *self = Self { file, path: self.path.clone(), len, new_len: len, torn: false };
        Ok(())
    }

    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.len)?;
        self.file.sync_data()?;
        self.torn = false;
        Ok(())
    }
}

/// Writes a file for its owner alone.
fn keep(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    file?.write_all(bytes)
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn config() -> ZoneConfig {
        ZoneConfig::new("mesh.example".parse().expect("a zone"))
    }

    fn at(folder: &TempDir) -> anyhow::Result<(ZoneStore, Journal)> {
        Journal::open(folder.path(), config(), SystemTime::now())
    }

    #[test]
    fn one_process_has_it_and_what_was_torn_is_cut_off() {
        let folder = TempDir::new().expect("a folder");
        let (mut store, mut journal) = at(&folder).expect("a new zone");
        let bytes = store.poll_journal().expect("the zone as it begins");
        journal.append(&bytes).expect("written");
        store.commit();
        let error = at(&folder).expect_err("it is in use").to_string();
        assert!(error.contains("in use"), "{error}");
        journal.file.write_all(&[7; 100]).expect("written");
        drop(journal);
        let (again, journal) = at(&folder).expect("the zone again");
        assert_eq!(again.serial(), store.serial().wrapping_add(1 << 16));
        let cut = fs::read(folder.path().join("zone.cut")).expect("what was cut off");
        assert_eq!(cut, [7; 100]);
        assert_eq!(journal.len, bytes.len() as u64);
        assert_eq!(fs::metadata(&journal.path).expect("a file").len(), journal.len);
    }

    #[test]
    fn a_long_one_is_replaced_by_the_zone_as_it_is() {
        let folder = TempDir::new().expect("a folder");
        let (mut store, mut journal) = at(&folder).expect("a new zone");
        let bytes = store.poll_journal().expect("the zone as it begins");
        journal.append(&bytes).expect("written");
        store.commit();
        journal.len += GROWTH;
        journal.renew_if_long(&store).expect("replaced");
        assert!(journal.len < 4096);
        assert!(at(&folder).is_err(), "the new one is locked as well");
        drop(journal);
        let (again, _) = at(&folder).expect("the zone again");
        assert_eq!(again.serial(), store.serial());
    }
}
