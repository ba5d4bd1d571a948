//! Folders: which name means which file, now and after a power cut.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::base::Prng;

/// A file's number on its disk.
pub(super) type InodeId = u64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    File(InodeId),
    Folder,
}

/// One change of one folder; its bindings become durable together.
#[derive(Debug)]
struct Change {
    folder: PathBuf,
    bindings: Vec<(PathBuf, Option<Entry>)>,
}

#[derive(Debug)]
pub(super) struct Names {
    live: BTreeMap<PathBuf, Entry>,
    durable: BTreeMap<PathBuf, Entry>,
    /// Not yet durable, in order.
    pending: Vec<Change>,
}

fn error(kind: io::ErrorKind, path: &Path) -> io::Error {
    io::Error::new(kind, path.display().to_string())
}

fn bind(names: &mut BTreeMap<PathBuf, Entry>, bindings: &[(PathBuf, Option<Entry>)]) {
    for (path, entry) in bindings {
        match entry {
            Some(entry) => names.insert(path.clone(), *entry),
            None => names.remove(path),
        };
    }
}

impl Names {
    pub(super) fn new() -> Names {
        let root = BTreeMap::from([(PathBuf::from("/"), Entry::Folder), (PathBuf::new(), Entry::Folder)]);
        Names { live: root.clone(), durable: root, pending: Vec::new() }
    }

    pub(super) fn find(&self, path: &Path) -> Option<Entry> {
        self.live.get(path).copied()
    }

    pub(super) fn file(&self, path: &Path) -> io::Result<InodeId> {
        match self.find(path) {
            Some(Entry::File(inode)) => Ok(inode),
            Some(Entry::Folder) => Err(error(io::ErrorKind::IsADirectory, path)),
            None => Err(error(io::ErrorKind::NotFound, path)),
        }
    }

    pub(super) fn folder(&self, path: &Path) -> io::Result<()> {
        match self.find(path) {
            Some(Entry::Folder) => Ok(()),
            Some(Entry::File(_)) => Err(error(io::ErrorKind::NotADirectory, path)),
            None => Err(error(io::ErrorKind::NotFound, path)),
        }
    }

    fn parent(&self, path: &Path) -> io::Result<PathBuf> {
        let parent = path.parent().ok_or_else(|| error(io::ErrorKind::InvalidInput, path))?;
        self.folder(parent)?;
        Ok(parent.to_path_buf())
    }

    fn change(&mut self, folder: PathBuf, bindings: Vec<(PathBuf, Option<Entry>)>) {
        bind(&mut self.live, &bindings);
        self.pending.push(Change { folder, bindings });
    }

    pub(super) fn create(&mut self, path: &Path, entry: Entry) -> io::Result<()> {
        let folder = self.parent(path)?;
        if self.find(path).is_some() {
            return Err(error(io::ErrorKind::AlreadyExists, path));
        }
        self.change(folder, vec![(path.to_path_buf(), Some(entry))]);
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let folder = self.parent(from)?;
        if to.parent() != Some(&*folder) {
            return Err(error(io::ErrorKind::CrossesDevices, to));
        }
        let inode = self.file(from)?;
        if self.find(to) == Some(Entry::Folder) {
            return Err(error(io::ErrorKind::IsADirectory, to));
        }
        if from != to {
            let bindings = vec![(from.to_path_buf(), None), (to.to_path_buf(), Some(Entry::File(inode)))];
            self.change(folder, bindings);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let folder = self.parent(path)?;
        self.file(path)?;
        self.change(folder, vec![(path.to_path_buf(), None)]);
        Ok(())
    }

    pub(super) fn sync(&mut self, folder: &Path) -> io::Result<()> {
        self.folder(folder)?;
        let durable = &mut self.durable;
        self.pending.retain(|change| {
            let synced = change.folder == folder;
            if synced {
                bind(durable, &change.bindings);
            }
            !synced
        });
        Ok(())
    }

    /// Names of files in `folder`, sorted.
    pub(super) fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        self.folder(folder)?;
        let inside = self
            .live
            .iter()
            .filter(|(path, entry)| matches!(entry, Entry::File(_)) && path.parent() == Some(folder));
        Ok(inside
            .filter_map(|(path, _)| path.file_name().map(|n| n.to_string_lossy().into_owned()))
            .collect())
    }

    /// All live entries, in order of path.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&PathBuf, Entry)> {
        self.live.iter().map(|(path, entry)| (path, *entry))
    }

    /// Everything is durable as it stands.
    pub(super) fn make_durable(&mut self) {
        self.pending.clear();
        self.durable = self.live.clone();
    }

    /// Keeps all, some or none of the changes that no sync covered: in order as a journal would, or any subset.
    pub(super) fn power_cut(&mut self, ordered: bool, rng: &mut Prng) {
        let pending = std::mem::take(&mut self.pending);
        let prefix = rng.below(pending.len() as u64 + 1) as usize;
        for (i, change) in pending.iter().enumerate() {
            if if ordered { i < prefix } else { rng.chance(0.5) } {
                bind(&mut self.durable, &change.bindings);
            }
        }
        // What lies in a folder that was lost is lost with it. Parents sort before their children.
        let mut alive: BTreeMap<PathBuf, Entry> = BTreeMap::new();
        for (path, entry) in std::mem::take(&mut self.durable) {
            let reachable = path.parent().is_none_or(|p| alive.get(p) == Some(&Entry::Folder));
            if reachable {
                alive.insert(path, entry);
            }
        }
        self.durable = alive.clone();
        self.live = alive;
    }

    /// Files that some name means or may mean after a power cut.
    pub(super) fn reachable(&self) -> BTreeSet<InodeId> {
        let pending = self.pending.iter().flat_map(|change| &change.bindings).filter_map(|(_, e)| e.as_ref());
        self.live
            .values()
            .chain(self.durable.values())
            .chain(pending)
            .filter_map(|entry| match entry {
                Entry::File(inode) => Some(*inode),
                Entry::Folder => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn outcomes(ordered: bool, make: impl Fn(&mut Names)) -> BTreeSet<String> {
        (0..100)
            .map(|seed| {
                let mut names = Names::new();
                make(&mut names);
                names.power_cut(ordered, &mut Prng::new(seed));
                names
                    .entries()
                    .filter_map(|(path, entry)| match entry {
                        Entry::File(inode) => Some(format!("{}={inode}", path.display())),
                        Entry::Folder => None,
                    })
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect()
    }

    fn set(items: &[&str]) -> BTreeSet<String> {
        items.iter().map(|s| s.to_string()).collect()
    }

    #[test]
    fn synced_entries_stay_and_others_may_go() {
        let made = outcomes(false, |n| {
            n.create(Path::new("/a"), Entry::File(1)).unwrap();
            n.sync(Path::new("/")).unwrap();
            n.create(Path::new("/b"), Entry::File(2)).unwrap();
            n.remove(Path::new("/a")).unwrap();
        });
        assert_eq!(made, set(&["/a=1", "/a=1 /b=2", "", "/b=2"]));
    }

    #[test]
    fn a_journal_keeps_a_prefix() {
        let made = outcomes(true, |n| {
            n.create(Path::new("/a"), Entry::File(1)).unwrap();
            n.create(Path::new("/b"), Entry::File(2)).unwrap();
        });
        assert_eq!(made, set(&["", "/a=1", "/a=1 /b=2"]));
    }

    #[test]
    fn a_rename_is_atomic() {
        let made = outcomes(false, |n| {
            n.create(Path::new("/new"), Entry::File(2)).unwrap();
            n.create(Path::new("/old"), Entry::File(1)).unwrap();
            n.sync(Path::new("/")).unwrap();
            n.rename(Path::new("/new"), Path::new("/old")).unwrap();
        });
        assert_eq!(made, set(&["/new=2 /old=1", "/old=2"]));
    }

    #[test]
    fn a_synced_file_in_an_unsynced_folder_can_be_lost() {
        let made = outcomes(false, |n| {
            n.create(Path::new("/d"), Entry::Folder).unwrap();
            n.create(Path::new("/d/f"), Entry::File(1)).unwrap();
            n.sync(Path::new("/d")).unwrap();
        });
        assert_eq!(made, set(&["", "/d/f=1"]));
    }

    #[test]
    fn the_errors_are_those_of_a_file_system() {
        let mut n = Names::new();
        let kind = |r: io::Result<()>| r.unwrap_err().kind();
        assert_eq!(kind(n.create(Path::new("/x/y"), Entry::File(1))), io::ErrorKind::NotFound);
        n.create(Path::new("/x"), Entry::Folder).unwrap();
        assert_eq!(kind(n.create(Path::new("/x"), Entry::File(1))), io::ErrorKind::AlreadyExists);
        n.create(Path::new("/x/y"), Entry::File(1)).unwrap();
        assert_eq!(kind(n.rename(Path::new("/x/y"), Path::new("/y"))), io::ErrorKind::CrossesDevices);
        assert_eq!(kind(n.remove(Path::new("/x"))), io::ErrorKind::IsADirectory);
        assert_eq!(kind(n.remove(Path::new("/x/z"))), io::ErrorKind::NotFound);
        assert_eq!(n.list(Path::new("/x")).unwrap(), ["y"]);
        assert!(n.list(Path::new("/")).unwrap().is_empty(), "folders are not listed");
    }
}
