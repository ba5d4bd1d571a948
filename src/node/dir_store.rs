//! The directory store: a control store in a folder, for nodes that all live on one machine.
//!
//! A key is a folder, a revision is a file in it, and a compare-and-swap is `link(2)` to the name of the next revision:
//! the file system lets exactly one caller win. There is no lock that a frozen process could hold. Names are never given
//! out twice: old revisions shrink to empty files but keep their names, so a caller that slept for a year still loses.
//!
//! It is as available as the machine and protects from nothing that takes the whole machine. Drawn in `docs/format.md`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::base::Digest;
use crate::cluster::control_store::{
    ControlStore, Entry, LIST_MAX, Lease, Revision, StoreError, Swap, VALUE_BYTES_MAX, check_key, check_value,
};

const MAGIC: &[u8; 8] = b"batonkey";
const VERSION: u16 = 1;
/// Bytes in front of the value: magic, version, length, revision, writer.
const HEAD: usize = 8 + 2 + 6 + 8 + 16;
const DIGEST: usize = 16;
/// Revisions of a key that stay readable for people; older ones become empty files.
const KEPT: u64 = 64;
/// A reader that meets changes all the time gives up after so many.
const TRIES: usize = 100;

/// One process's view of a store folder.
pub struct DirStore {
    root: PathBuf,
    /// Tells this process's files and leases from those of all others.
    me: u128,
    made: u64,
    /// Revisions that are known to be durable.
    synced: BTreeMap<String, Revision>,
    /// Signs of life of lease holders: who, which count, and since when it has not moved.
    seen: BTreeMap<String, (u128, u64, Instant)>,
    beats: u64,
}

/// What one revision's file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub revision: Revision,
    pub writer: u128,
    pub value: Vec<u8>,
}

impl DirStore {
    /// Opens the store in `root`; its parent must exist.
    pub fn open(root: &Path) -> Result<DirStore, StoreError> {
        let made = |path: PathBuf| match fs::create_dir(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(StoreError::Unreachable(format!("{}: {error}", path.display())))
            }
            _ => Ok(()),
        };
        made(root.to_path_buf())?;
        for part in ["keys", "beats", "tmp"] {
            made(root.join(part))?;
        }
        let reach = |error: io::Error| StoreError::Unreachable(format!("{}: {error}", root.display()));
        sync_folder(root).map_err(reach)?;
        let mut random = [0u8; 16];
        File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut random)).map_err(reach)?;
        Ok(DirStore {
            root: root.to_path_buf(),
            me: u128::from_le_bytes(random),
            made: 0,
            synced: BTreeMap::new(),
            seen: BTreeMap::new(),
            beats: 0,
        })
    }

    fn key_folder(&self, key: &str) -> PathBuf {
        self.root.join("keys").join(key.replace('/', "+"))
    }

    fn beat_file(&self, key: &str, writer: u128) -> PathBuf {
        self.root.join("beats").join(format!("{}+{writer:032x}", key.replace('/', "+")))
    }

    /// The newest record of a key, durable before anybody builds on it.
    fn newest(&mut self, key: &str) -> Result<Option<Record>, StoreError> {
        let folder = self.key_folder(key);
        let reach = |error: io::Error| StoreError::Unreachable(format!("{}: {error}", folder.display()));
        for _ in 0..TRIES {
            let Some(revision) = newest_name(&folder).map_err(reach)? else { return Ok(None) };
            let bytes = match fs::read(folder.join(name_of(revision))) {
                // It became old between the two looks.
                Ok(bytes) if bytes.is_empty() => continue,
                Ok(bytes) => bytes,
                Err(error) => return Err(reach(error)),
            };
            let record = decode(&bytes).filter(|record| record.revision == revision).ok_or_else(|| {
                StoreError::Unreachable(format!(
                    "{}: damaged revision {}",
                    folder.display(),
                    name_of(revision)
                ))
            })?;
            if self.synced.get(key) != Some(&revision) {
                // Whoever linked it may not have come to this yet.
                sync_folder(&folder).map_err(reach)?;
                self.synced.insert(key.to_string(), revision);
            }
            return Ok(Some(record));
        }
        Err(StoreError::Unreachable(format!("{}: changes faster than it can be read", folder.display())))
    }

    /// A new file of this process in `tmp`.
    fn draft(&mut self, bytes: &[u8], durable: bool) -> io::Result<PathBuf> {
        self.made += 1;
        let path = self.root.join("tmp").join(format!("{:032x}-{}", self.me, self.made));
        let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let written = file.write_all(bytes).and_then(|()| if durable { file.sync_all() } else { Ok(()) });
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        Ok(path)
    }

    fn link(&mut self, key: &str, revision: Revision, value: &[u8]) -> Result<bool, StoreError> {
        let folder = self.key_folder(key);
        let reach = |error: io::Error| StoreError::Unreachable(format!("{}: {error}", folder.display()));
        if revision == Revision(1) {
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(reach(error)),
                _ => sync_folder(&self.root.join("keys")).map_err(reach)?,
            }
        }
        let draft = self.draft(&encode(revision, self.me, value), true).map_err(reach)?;
        let place = folder.join(name_of(revision));
        let linked = fs::hard_link(&draft, &place);
        let _ = fs::remove_file(&draft);
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
            Err(error) => {
                // The name may stand nevertheless.
                return match fs::symlink_metadata(&place) {
                    Err(missing) if missing.kind() == ErrorKind::NotFound => Err(reach(error)),
                    _ => Err(StoreError::Unknown(format!("{}: {error}", place.display()))),
                };
            }
        }
        sync_folder(&folder).map_err(|e| StoreError::Unknown(format!("{}: {e}", folder.display())))?;
        self.synced.insert(key.to_string(), revision);
        if revision.0 > KEPT
            && let Ok(empty) = self.draft(&[], false)
        {
            // Its name stays taken; only people could have missed what it said.
            if fs::rename(&empty, folder.join(name_of(Revision(revision.0 - KEPT)))).is_err() {
                let _ = fs::remove_file(&empty);
            }
        }
        Ok(true)
    }

    fn beat(&mut self, key: &str) -> io::Result<()> {
        self.beats += 1;
        let draft = self.draft(self.beats.to_string().as_bytes(), false)?;
        fs::rename(&draft, self.beat_file(key, self.me)).inspect_err(|_| {
            let _ = fs::remove_file(&draft);
        })
    }

    /// Whether the holder was silent for `ttl` by this process's clock.
    fn silent(&mut self, key: &str, holder: u128, ttl: Duration) -> bool {
        let text = fs::read_to_string(self.beat_file(key, holder)).unwrap_or_default();
        let count: u64 = text.trim().parse().unwrap_or(0);
        match self.seen.get(key) {
            Some((who, seen, since)) if *who == holder && *seen == count => since.elapsed() >= ttl,
            _ => {
                self.seen.insert(key.to_string(), (holder, count, Instant::now()));
                false
            }
        }
    }
}

impl ControlStore for DirStore {
    fn get(&mut self, key: &str) -> Result<Option<Entry>, StoreError> {
        check_key(key)?;
        let record = self.newest(key)?;
        Ok(record.map(|record| Entry { revision: record.revision, value: record.value }))
    }

    fn swap(&mut self, key: &str, expect: Revision, value: &[u8]) -> Result<Swap, StoreError> {
        check_value(value)?;
        let now = self.get(key)?;
        if now.as_ref().map_or(Revision(0), |entry| entry.revision) != expect {
            return Ok(Swap::Lost(now));
        }
        let next = Revision(expect.0 + 1);
        match self.link(key, next, value)? {
            true => Ok(Swap::Done(next)),
            false => Ok(Swap::Lost(self.get(key)?)),
        }
    }

    fn list(&mut self, prefix: &str) -> Result<Vec<(String, Entry)>, StoreError> {
        let folder = self.root.join("keys");
        let reach = |error: io::Error| StoreError::Unreachable(format!("{}: {error}", folder.display()));
        let mut keys = Vec::new();
        for entry in fs::read_dir(&folder).map_err(reach)? {
            let name = entry.map_err(reach)?.file_name();
            let key = name.to_string_lossy().replace('+', "/");
            if key.starts_with(prefix) && check_key(&key).is_ok() {
                keys.push(key);
            }
        }
        keys.sort_unstable();
        if keys.len() > LIST_MAX {
            return Err(StoreError::Refused(format!(
                "more than {LIST_MAX} keys: {} under {prefix:?}",
                keys.len()
            )));
        }
        let mut found = Vec::new();
        for key in keys {
            if let Some(entry) = self.get(&key)? {
                found.push((key, entry));
            }
        }
        Ok(found)
    }

    fn hold(&mut self, key: &str, who: &[u8], ttl: Duration) -> Result<Lease, StoreError> {
        check_key(key)?;
        let now = self.newest(key)?;
        let holder = now.as_ref().filter(|record| !record.value.is_empty());
        if let Some(record) = holder {
            let (writer, said) = (record.writer, record.value.clone());
            if writer == self.me {
                self.beat(key).map_err(|e| StoreError::Unreachable(e.to_string()))?;
                // Another process may have judged this one silent just before.
                return match self.newest(key)? {
                    Some(record) if record.writer == self.me && !record.value.is_empty() => Ok(Lease::Held),
                    Some(record) => Ok(Lease::Taken(record.value)),
                    None => Ok(Lease::Taken(Vec::new())),
                };
            }
            if !self.silent(key, writer, ttl) {
                return Ok(Lease::Taken(said));
            }
        }
        let expect = now.as_ref().map_or(Revision(0), |record| record.revision);
        match self.swap(key, expect, who)? {
            Swap::Done(_) => {
                if let Some(old) = now {
                    let _ = fs::remove_file(self.beat_file(key, old.writer));
                }
                self.beat(key).map_err(|e| StoreError::Unreachable(e.to_string()))?;
                Ok(Lease::Held)
            }
            Swap::Lost(entry) => Ok(Lease::Taken(entry.map(|e| e.value).unwrap_or_default())),
        }
    }

    fn release(&mut self, key: &str) -> Result<(), StoreError> {
        check_key(key)?;
        if let Some(record) = self.newest(key)?
            && record.writer == self.me
            && !record.value.is_empty()
        {
            self.swap(key, record.revision, &[])?;
            let _ = fs::remove_file(self.beat_file(key, self.me));
        }
        Ok(())
    }

    fn about(&self) -> String {
        format!("directory {}: for nodes of one machine, and gone with it", self.root.display())
    }
}

fn name_of(revision: Revision) -> String {
    format!("{:016x}", revision.0)
}

/// The highest revision that has a name.
fn newest_name(folder: &Path) -> io::Result<Option<Revision>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut newest = None;
    for entry in entries {
        let name = entry?.file_name();
        let revision = name.to_str().filter(|n| n.len() == 16).and_then(|n| u64::from_str_radix(n, 16).ok());
        newest = newest.max(revision);
    }
    Ok(newest.map(Revision))
}

/// The bytes of one revision's file.
pub fn encode(revision: Revision, writer: u128, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + value.len() + DIGEST);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&revision.0.to_le_bytes());
    bytes.extend_from_slice(&writer.to_le_bytes());
    bytes.extend_from_slice(value);
    let digest = Digest::of(&bytes);
    bytes.extend_from_slice(&digest.0.to_le_bytes());
    bytes
}

/// `None` when these bytes are no whole record.
pub fn decode(bytes: &[u8]) -> Option<Record> {
    if !(HEAD + DIGEST..=HEAD + VALUE_BYTES_MAX + DIGEST).contains(&bytes.len()) || &bytes[..8] != MAGIC {
        return None;
    }
    let (body, digest) = bytes.split_at(bytes.len() - DIGEST);
    let length = u32::from_le_bytes(body[12..16].try_into().ok()?) as usize;
    let whole = Digest::of(body).0.to_le_bytes() == *digest
        && body[8..12] == [VERSION.to_le_bytes()[0], VERSION.to_le_bytes()[1], 0, 0]
        && length == body.len() - HEAD;
    whole.then(|| Record {
        revision: Revision(u64::from_le_bytes(body[16..24].try_into().expect("eight bytes"))),
        writer: u128::from_le_bytes(body[24..40].try_into().expect("sixteen bytes")),
        value: body[HEAD..].to_vec(),
    })
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn number(entry: &Option<Entry>) -> (Revision, u64) {
        match entry {
            None => (Revision(0), 0),
            Some(e) => (e.revision, String::from_utf8(e.value.clone()).unwrap().parse().unwrap()),
        }
    }

    #[test]
    fn every_change_is_won_by_exactly_one() {
        let folder = tempfile::tempdir().unwrap();
        let won = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut store = DirStore::open(&folder.path().join("s")).unwrap();
                    for _ in 0..60 {
                        let (revision, count) = number(&store.get("c/count").unwrap());
                        let next = (count + 1).to_string();
                        if let Swap::Done(now) = store.swap("c/count", revision, next.as_bytes()).unwrap() {
                            assert_eq!(now.0, revision.0 + 1);
                            won.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let mut store = DirStore::open(&folder.path().join("s")).unwrap();
        let (revision, count) = number(&store.get("c/count").unwrap());
        assert_eq!((revision.0, count), (won.load(Ordering::Relaxed), won.load(Ordering::Relaxed)));
        assert!(count >= 60, "somebody always wins");
        let left = fs::read_dir(folder.path().join("s/tmp")).unwrap().count();
        assert_eq!(left, 0, "drafts are cleared away");
    }

    #[test]
    fn a_caller_that_slept_for_long_still_loses() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("s");
        let mut sleeper = DirStore::open(&root).unwrap();
        let mut busy = DirStore::open(&root).unwrap();
        for i in 0..3 * KEPT {
            assert_eq!(busy.swap("k", Revision(i), b"v").unwrap(), Swap::Done(Revision(i + 1)));
        }
        for stale in [0, 1, KEPT, 2 * KEPT, 3 * KEPT - 1] {
            // Past the first look: the link itself must lose.
            assert!(!sleeper.link("k", Revision(stale + 1), b"late").unwrap(), "revision {stale}");
            let Swap::Lost(Some(entry)) = sleeper.swap("k", Revision(stale), b"late").unwrap() else {
                panic!("revision {stale} was won");
            };
            assert_eq!((entry.revision, entry.value.as_slice()), (Revision(3 * KEPT), b"v".as_slice()));
        }
        let sizes = fs::read_dir(root.join("keys/k")).unwrap().map(|e| e.unwrap().metadata().unwrap().len());
        assert_eq!(sizes.filter(|len| *len > 0).count() as u64, KEPT, "the rest is names only");
    }

    #[test]
    fn what_is_damaged_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("s");
        let mut store = DirStore::open(&root).unwrap();
        store.swap("a/b", Revision(0), b"one").unwrap();
        let path = root.join("keys/a+b").join(name_of(Revision(1)));
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            fs::write(&path, &bad).unwrap();
            assert!(matches!(store.get("a/b"), Err(StoreError::Unreachable(_))), "byte {at}");
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(store.get("a/b").unwrap().unwrap().value, b"one");
        assert_eq!(store.list("a/").unwrap().len(), 1);
        assert!(store.list("b").unwrap().is_empty());
        assert!(store.get("../x").is_err() && store.swap("x", Revision(0), &[0; 1 << 17]).is_err());
    }

    #[test]
    fn a_lease_goes_to_another_only_after_silence() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("s");
        let (mut one, mut two) = (DirStore::open(&root).unwrap(), DirStore::open(&root).unwrap());
        let hour = Duration::from_secs(3600);
        assert_eq!(one.hold("lease/x", b"one", hour).unwrap(), Lease::Held);
        assert_eq!(two.hold("lease/x", b"two", hour).unwrap(), Lease::Taken(b"one".to_vec()));
        // A sign of life between two looks: even a time of zero does not make it free.
        assert_eq!(one.hold("lease/x", b"one", hour).unwrap(), Lease::Held);
        assert_eq!(two.hold("lease/x", b"two", Duration::ZERO).unwrap(), Lease::Taken(b"one".to_vec()));
        // Silence since that look.
        assert_eq!(two.hold("lease/x", b"two", Duration::ZERO).unwrap(), Lease::Held);
        assert_eq!(one.hold("lease/x", b"one", hour).unwrap(), Lease::Taken(b"two".to_vec()));
        one.release("lease/x").unwrap();
        assert_eq!(
            two.hold("lease/x", b"two", hour).unwrap(),
            Lease::Held,
            "another's lease cannot be given back"
        );
        two.release("lease/x").unwrap();
        assert_eq!(one.hold("lease/x", b"one", hour).unwrap(), Lease::Held);
    }
}
