//! What a node keeps on disk between two runs: key, membership, revocations, port, sequence,
//! last-known peers.
//!
//! The folder is the node's own (mode 0700) and locked while it runs, so that no two
//! daemons are one node. The key (`node.key`, mode 0600) is made once and never
//! overwritten. What makes the node a member (`membership.json`, 0600) and who is none any
//! more (`revocations`) must not be mistaken for something else: where they are broken, the
//! node does not start, or says so. The rest (`state.json`, `peers.json`) is convenience:
//! where it is lost or broken the node starts without it. Every file is replaced whole, and
//! those in JSON tell their version.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64;
use ipnet::IpNet;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::warn;
use zonemesh_discovery::{
    advert::SignedAdvert,
    identity::Identity,
    membership::{Membership, RevocationList},
};

use crate::relays::RelayServer;

const KEY_FILE: &str = "node.key";
const STATE_FILE: &str = "state.json";
const PEERS_FILE: &str = "peers.json";
const MEMBERSHIP_FILE: &str = "membership.json";
const REVOCATIONS_FILE: &str = "revocations";
const LOCK_FILE: &str = "lock";

/// The version of the files in JSON.
const VERSION: u32 = 1;

/// The largest file that is read back: a thousand members' adverts fit twice.
const MAX_FILE: u64 = 4 << 20;

/// A node's state folder, locked.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    kept: Kept,
    /// Holds the lock for as long as the node lives, and not a moment longer.
    _lock: File,
}

/// A file's content with its version.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    /// Files from before there were versions are of the first one.
    #[serde(default = "first_version")]
    version: u32,
    #[serde(flatten)]
    content: T,
}

const fn first_version() -> u32 {
    1
}

/// `membership.json`
#[derive(Serialize, Deserialize)]
struct KeptMembership {
    /// In Base64.
    membership: String,
}

/// `state.json`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// The highest sequence number that an advert of this node bears.
    sequence: u64,
    /// The UDP port that was picked.
    port: Option<u16>,
    /// The STUN servers that the zone named last.
    stun_servers: Vec<SocketAddr>,
    /// The relays that the zone named last.
    relays: Vec<RelayServer>,
    /// The slice of the network's range that this node holds, and until when, in seconds
    /// since 1970, the zone knows of it.
    slice: Option<(IpNet, u64)>,
}

/// `peers.json`: each member's TXT strings, in Base64.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Peers {
    adverts: Vec<Vec<String>>,
}

/// Why the state folder cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The folder or a file in it cannot be read or written.
    #[error("{path}: {source}; see node.state_dir")]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another daemon has it.
    #[error(
        "{0} is in use by another zonemesh: stop that one, or give this one a node.state_dir of its own"
    )]
    Locked(PathBuf),
    /// The key file holds no key.
    #[error(
        "{0} holds no key (32 bytes in Base64): restore it, or move it away to become another node"
    )]
    Key(PathBuf),
    /// The membership cannot be read.
    #[error(
        "{0} holds no membership that this version knows: restore it, update zonemesh, or move \
         it away and join again with a token"
    )]
    Membership(PathBuf),
}

/// The membership that a state folder keeps, if there is one: to be looked at by whoever may
/// read it, whether or not the node runs.
///
/// # Errors
/// [`StateError`] when there is one that cannot be read.
pub fn membership(dir: &Path) -> Result<Option<Membership>, StateError> {
    let path = dir.join(MEMBERSHIP_FILE);
    let bytes = match read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(StateError::Io { path, source }),
    };
    let kept: Option<Versioned<KeptMembership>> = serde_json::from_slice(&bytes).ok();
    let kept = kept.filter(|kept| kept.version == VERSION);
    let bytes = kept.and_then(|kept| BASE64.decode(kept.content.membership.as_bytes()).ok());
    let membership = bytes.and_then(|bytes| Membership::from_bytes(&bytes));
    membership.map(Some).ok_or(StateError::Membership(path))
}

impl State {
    /// Opens the folder, making it where it is not there yet.
    ///
    /// # Errors
    /// [`StateError`], which says what to do.
    pub fn open(dir: &Path) -> Result<Self, StateError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |source| StateError::Io { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
        let lock_file = dir.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600);
        // One that is there serves, also where nothing can be written any more.
        let lock = lock.open(&lock_file).or_else(|error| File::open(&lock_file).map_err(|_| error));
        let lock = lock.map_err(io(&lock_file))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| StateError::Locked(dir.to_owned()))?;
        let kept = read_json(&dir.join(STATE_FILE)).unwrap_or_default();
        Ok(Self { dir: dir.to_owned(), kept, _lock: lock })
    }

    /// This node's key, made at the first call ever.
    ///
    /// # Errors
    /// [`StateError`] when it cannot be read, written, or is none.
    pub fn identity(&self) -> Result<Identity, StateError> {
        let path = self.dir.join(KEY_FILE);
        let io = |source| StateError::Io { path: path.clone(), source };
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let seed: [u8; 32] = rand::random();
                replace(&path, format!("{}\n", BASE64.encode(&seed)).as_bytes()).map_err(io)?;
                return Ok(Identity::from_seed(&seed));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(StateError::Key(path));
            }
            Err(error) => return Err(io(error)),
        };
        let mode = fs::metadata(&path).map_err(io)?.permissions().mode();
        if mode & 0o077 != 0 {
            warn!("{} may be read by others: taking that away", path.display());
            fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(io)?;
        }
        let seed = BASE64.decode(text.trim().as_bytes()).ok();
        let seed: Option<[u8; 32]> = seed.and_then(|bytes| bytes.try_into().ok());
        seed.map(|seed| Identity::from_seed(&seed)).ok_or(StateError::Key(path))
    }

    /// Keeps what makes this node a member.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_membership(&self, membership: &Membership) -> Result<(), StateError> {
        let membership = BASE64.encode(&membership.to_bytes());
        self.write(MEMBERSHIP_FILE, &KeptMembership { membership })
    }

    /// The list of revocations that was kept last, to be verified again.
    ///
    /// # Errors
    /// When there is one that cannot be read.
    pub fn revocations(&self) -> Result<Option<Vec<u8>>, StateError> {
        let path = self.dir.join(REVOCATIONS_FILE);
        match read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(StateError::Io { path, source }),
        }
    }

    /// Keeps the list of revocations.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_revocations(&self, list: &RevocationList) -> Result<(), StateError> {
        let path = self.dir.join(REVOCATIONS_FILE);
        replace(&path, list.as_bytes()).map_err(|source| StateError::Io { path, source })
    }

    /// The highest sequence number that an advert of this node bears.
    pub fn sequence(&self) -> u64 {
        self.kept.sequence
    }

    /// The port that this node picked for itself.
    pub fn port(&self) -> Option<u16> {
        self.kept.port
    }

    /// The STUN servers that the zone named last: a start while the zone is away still
    /// has somebody to ask.
    pub fn stun_servers(&self) -> &[SocketAddr] {
        &self.kept.stun_servers
    }

    /// Keeps the STUN servers that the zone names.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save_stun_servers(&mut self, servers: &[SocketAddr]) -> Result<(), StateError> {
        if self.kept.stun_servers == servers {
            return Ok(());
        }
        self.kept.stun_servers = servers.to_vec();
        self.save()
    }

    /// The relays that the zone named last, for the same reason.
    pub fn relays(&self) -> &[RelayServer] {
        &self.kept.relays
    }

    /// Keeps the relays that the zone names.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save_relays(&mut self, servers: &[RelayServer]) -> Result<(), StateError> {
        // The zone may name them in another order each time.
        let mut servers = servers.to_vec();
        servers.sort();
        if self.kept.relays == servers {
            return Ok(());
        }
        self.kept.relays = servers;
        self.save()
    }

    /// The slice that this node held, and until when the zone knows of it.
    pub fn slice(&self) -> Option<(IpNet, SystemTime)> {
        let (slice, seconds) = self.kept.slice?;
        Some((slice, UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?))
    }

    /// Keeps the slice that this node holds.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_slice(&mut self, held: Option<(IpNet, SystemTime)>) -> Result<(), StateError> {
        let seconds =
            |end: SystemTime| end.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        self.kept.slice = held.map(|(slice, end)| (slice, seconds(end)));
        self.save()
    }

    /// Keeps the sequence number.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_sequence(&mut self, sequence: u64) -> Result<(), StateError> {
        self.kept.sequence = sequence;
        self.save()
    }

    /// Keeps the port.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_port(&mut self, port: u16) -> Result<(), StateError> {
        self.kept.port = Some(port);
        self.save()
    }

    /// The TXT strings of the members that were known last. They are as good as if
    /// they came by mail: to be verified again.
    pub fn load_peers(&self) -> Vec<Vec<Vec<u8>>> {
        let peers: Peers = read_json(&self.dir.join(PEERS_FILE)).unwrap_or_default();
        let decode = |strings: Vec<String>| {
            let bytes = strings.iter().map(|string| BASE64.decode(string.as_bytes()).ok());
            bytes.collect::<Option<Vec<_>>>()
        };
        peers.adverts.into_iter().filter_map(decode).collect()
    }

    /// Keeps the members' adverts.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn save_peers<'a>(
        &self,
        adverts: impl Iterator<Item = &'a SignedAdvert>,
    ) -> Result<(), StateError> {
        let encode = |signed: &SignedAdvert| {
            signed.txt().iter().map(|string| BASE64.encode(string)).collect()
        };
        self.write(PEERS_FILE, &Peers { adverts: adverts.map(encode).collect() })
    }

    fn save(&self) -> Result<(), StateError> {
        self.write(STATE_FILE, &self.kept)
    }

    fn write(&self, file: &str, content: &impl Serialize) -> Result<(), StateError> {
        let path = self.dir.join(file);
        let file = Versioned { version: VERSION, content };
        let json = serde_json::to_vec(&file).expect("plain numbers and strings");
        replace(&path, &json).map_err(|source| StateError::Io { path, source })
    }
}

/// Reads what is convenient to have; what is broken is told and left out.
fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let parsed = match read(path) {
        Ok(bytes) => serde_json::from_slice::<Versioned<T>>(&bytes).map_err(io::Error::from),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => Err(error),
    };
    let known = parsed.and_then(|file| match file.version {
        VERSION => Ok(file.content),
        version => Err(io::Error::other(format!("it is of version {version}"))),
    });
    known.inspect_err(|error| warn!("{} is not used: {error}", path.display())).ok()
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    if fs::metadata(path)?.len() > MAX_FILE {
        return Err(io::Error::other("it is far too large"));
    }
    fs::read(path)
}

/// Replaces a file whole: after a crash there is the old one or the new one.
fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let write = || {
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    // On a full disk half a file is in everybody's way.
    write().inspect_err(|_| drop(fs::remove_file(&new)))?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use zonemesh_discovery::zone::NamedServer;

    use super::*;
    use crate::relays::{Transport, resolve};

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a folder")
    }

    #[test]
    fn the_key_is_made_once_and_is_for_nobody_else_to_read() {
        let folder = folder();
        let dir = folder.path().join("deep/state");
        let first = State::open(&dir).expect("opens").identity().expect("is made");
        let again = State::open(&dir).expect("opens").identity().expect("is there");
        assert_eq!(first.public_key(), again.public_key());
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
        fs::set_permissions(dir.join(KEY_FILE), Permissions::from_mode(0o644)).expect("is set");
        State::open(&dir).expect("opens").identity().expect("is there");
        assert_eq!(mode(&dir.join(KEY_FILE)), 0o600);
    }

    #[test]
    fn a_broken_key_is_told_and_never_overwritten() {
        let folder = folder();
        for broken in [&b"c2hvcnQ="[..], b"not base64", b"", &[0xff, 0xfe]] {
            fs::write(folder.path().join(KEY_FILE), broken).expect("is written");
            let state = State::open(folder.path()).expect("opens");
            let error = state.identity().expect_err("is no key").to_string();
            assert!(error.contains("holds no key"), "{error}");
            assert_eq!(fs::read(folder.path().join(KEY_FILE)).expect("there"), broken);
        }
    }

    #[test]
    fn two_daemons_do_not_share_a_folder() {
        let folder = folder();
        let first = State::open(folder.path()).expect("opens");
        assert!(matches!(State::open(folder.path()), Err(StateError::Locked(_))));
        drop(first);
        State::open(folder.path()).expect("is free again");
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_broken_is_left_out() {
        let folder = folder();
        let mut state = State::open(folder.path()).expect("opens");
        state.save_sequence(7).expect("is written");
        state.save_port(51821).expect("is written");
        let servers = ["198.51.100.10:3478".parse().expect("an address")];
        state.save_stun_servers(&servers).expect("is written");
        let relays = resolve::of_service(
            Transport::Tls,
            &[NamedServer { target: "relay.example".into(), addr: servers[0] }],
        );
        state.save_relays(&relays).expect("is written");
        drop(state);
        let state = State::open(folder.path()).expect("opens");
        assert_eq!((state.sequence(), state.port()), (7, Some(51821)));
        assert_eq!(state.stun_servers(), servers);
        assert_eq!(state.relays(), relays);
        drop(state);
        for broken in [&b"{"[..], b"[]", b"{\"sequence\":-1}", b"{\"version\":2}", &[0xff]] {
            fs::write(folder.path().join(STATE_FILE), broken).expect("is written");
            fs::write(folder.path().join(PEERS_FILE), broken).expect("is written");
            let state = State::open(folder.path()).expect("opens all the same");
            assert_eq!((state.sequence(), state.port()), (0, None));
            assert!(state.load_peers().is_empty());
        }
    }

    #[test]
    fn a_state_from_before_there_were_versions_is_read() {
        let folder = folder();
        fs::write(folder.path().join(STATE_FILE), b"{\"sequence\":7}").expect("is written");
        assert_eq!(State::open(folder.path()).expect("opens").sequence(), 7);
    }

    #[test]
    fn a_membership_comes_back_whole_or_is_told_to_be_broken() {
        let folder = folder();
        let state = State::open(folder.path()).expect("opens");
        assert_eq!(membership(folder.path()).expect("none yet"), None);
        let kept = crate::join::tests::membership();
        state.save_membership(&kept).expect("is written");
        assert_eq!(membership(folder.path()).expect("is read"), Some(kept));
        let file = folder.path().join(MEMBERSHIP_FILE);
        let mode = fs::metadata(&file).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "it holds the zone's secrets");
        let text = fs::read_to_string(&file).expect("there");
        for broken in [
            text.replace("\"version\":1", "\"version\":2"),
            text[..text.len() / 2].to_owned(),
            text.replacen("\":\"A", "\":\"C", 1),
        ] {
            fs::write(&file, &broken).expect("is written");
            let told = membership(folder.path()).expect_err("broken").to_string();
            assert!(told.contains("membership.json holds no membership"), "{told}");
        }
    }
}
