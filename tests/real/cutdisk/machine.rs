//! Disks under one roof. Each folder at the top is a disk with its own power; the top itself is never harmed. Folders
//! obey the rules that a careful program may count on: an entry is durable after its folder was flushed, not after the
//! file was, and of the changes that were not flushed some first ones may have happened.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};

use baton::base::Prng;

use super::file::{Damage, Fate, File, Mark};

/// Why something cannot be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The power of the disk is off, or the handle is from before it went.
    Dead,
    Missing,
    Exists,
    NotEmpty,
    NotAFolder,
    NotAFile,
    OtherFolder,
}

pub const ROOT: u64 = 1;
/// The upper part of an inode number is how often its disk has lost its power: nothing that the kernel remembers from
/// before names anything afterwards.
const CUTS_SHIFT: u32 = 40;
/// A folder of this name on a disk is durable at once, so that a node's log tells what happened before a cut.
const WITNESS: &str = "log";

#[derive(Debug)]
pub enum Body {
    File(File),
    Folder(Folder),
    Socket,
}

#[derive(Debug, Default)]
pub struct Folder {
    live: BTreeMap<OsString, u64>,
    durable: BTreeMap<OsString, u64>,
    /// Changes since the last flush, in order.
    changes: Vec<Change>,
}

/// One atomic change of a folder.
#[derive(Clone, Debug)]
struct Change {
    remove: Option<OsString>,
    insert: Option<(OsString, u64)>,
}

impl Change {
    fn apply(&self, entries: &mut BTreeMap<OsString, u64>) {
        if let Some(name) = &self.remove {
            entries.remove(name);
        }
        if let Some((name, id)) = &self.insert {
            entries.insert(name.clone(), *id);
        }
    }
}

impl Folder {
    fn change(&mut self, change: Change, at_once: bool) {
        change.apply(&mut self.live);
        if at_once {
            change.apply(&mut self.durable);
        } else {
            self.changes.push(change);
        }
    }

    fn flush(&mut self, changes: usize) {
        for change in self.changes.drain(..changes.min(self.changes.len())) {
            change.apply(&mut self.durable);
        }
    }
}

#[derive(Debug)]
pub struct Inode {
    pub body: Body,
    pub mode: u32,
    /// The disk it lies on: the id of a folder at the top; 0 for the top itself.
    disk: u64,
    /// Everything about it is durable at once.
    safe: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Disk {
    off: bool,
    lies: bool,
    stalls: bool,
    fails: bool,
    cuts: u64,
    writes: u64,
    flushes: u64,
}

/// What a flush that has begun will make durable when it ends.
#[derive(Clone, Copy, Debug)]
pub enum Promise {
    File(Mark),
    Range(Mark, u64, u64),
    Folder(usize),
}

#[derive(Debug)]
pub struct Machine {
    inodes: BTreeMap<u64, Inode>,
    disks: BTreeMap<u64, Disk>,
    next: u64,
}

impl Default for Machine {
    fn default() -> Machine {
        let root = Inode { body: Body::Folder(Folder::default()), mode: 0o755, disk: 0, safe: true };
        Machine { inodes: BTreeMap::from([(ROOT, root)]), disks: BTreeMap::new(), next: ROOT + 1 }
    }
}

impl Machine {
    /// The kernel's number for an inode.
    pub fn number(&self, id: u64) -> u64 {
        let disk = self.inodes[&id].disk;
        let cuts = self.disks.get(&disk).map_or(0, |disk| disk.cuts);
        // The folder that is the disk lies at the top, but its contents change with the power.
        id | cuts << CUTS_SHIFT
    }

    /// The inode that the kernel means, if it still exists.
    fn id(&self, number: u64) -> Result<u64, Refusal> {
        let id = number & ((1 << CUTS_SHIFT) - 1);
        let inode = self.inodes.get(&id).ok_or(Refusal::Missing)?;
        if let Some(disk) = self.disks.get(&inode.disk)
            && (disk.off || disk.cuts != number >> CUTS_SHIFT)
        {
            return Err(Refusal::Dead);
        }
        Ok(id)
    }

    pub fn inode(&self, number: u64) -> Result<&Inode, Refusal> {
        Ok(&self.inodes[&self.id(number)?])
    }

    fn folder(&mut self, number: u64) -> Result<(u64, bool, &mut Folder), Refusal> {
        let id = self.id(number)?;
        let inode = self.inodes.get_mut(&id).expect("it was just looked up");
        match &mut inode.body {
            Body::Folder(folder) => Ok((id, inode.safe, folder)),
            _ => Err(Refusal::NotAFolder),
        }
    }

    fn file(&mut self, number: u64) -> Result<(bool, &mut File), Refusal> {
        let id = self.id(number)?;
        let inode = self.inodes.get_mut(&id).expect("it was just looked up");
        match &mut inode.body {
            Body::File(file) => Ok((inode.safe, file)),
            _ => Err(Refusal::NotAFile),
        }
    }

    pub fn lookup(&mut self, parent: u64, name: &OsStr) -> Result<u64, Refusal> {
        let (_, _, folder) = self.folder(parent)?;
        let id = *folder.live.get(name).ok_or(Refusal::Missing)?;
        if self.disks.get(&self.inodes[&id].disk).is_some_and(|disk| disk.off) {
            return Err(Refusal::Dead);
        }
        Ok(self.number(id))
    }

    pub fn list(&mut self, number: u64) -> Result<Vec<(OsString, u64)>, Refusal> {
        let (_, _, folder) = self.folder(number)?;
        let entries: Vec<(OsString, u64)> =
            folder.live.iter().map(|(name, id)| (name.clone(), *id)).collect();
        Ok(entries.into_iter().map(|(name, id)| (name, self.number(id))).collect())
    }

    pub fn create(&mut self, parent: u64, name: &OsStr, body: Body, mode: u32) -> Result<u64, Refusal> {
        let id = self.next;
        let parent_id = self.id(parent)?;
        let parent_disk = self.inodes[&parent_id].disk;
        let is_disk = parent_id == ROOT && matches!(body, Body::Folder(_));
        let disk = if is_disk { id } else { parent_disk };
        let is_witness = parent_disk == parent_id && name == WITNESS;
        let (_, parent_safe, folder) = self.folder(parent)?;
        if folder.live.contains_key(name) {
            return Err(Refusal::Exists);
        }
        folder.change(Change { remove: None, insert: Some((name.into(), id)) }, parent_safe || is_witness);
        let safe = !is_disk && (parent_safe || is_witness);
        self.inodes.insert(id, Inode { body, mode, disk, safe });
        if is_disk {
            self.disks.insert(id, Disk::default());
        }
        self.next += 1;
        Ok(self.number(id))
    }

    pub fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Refusal> {
        let (_, _, folder) = self.folder(parent)?;
        let id = *folder.live.get(name).ok_or(Refusal::Missing)?;
        if let Body::Folder(inner) = &self.inodes[&id].body
            && !inner.live.is_empty()
        {
            return Err(Refusal::NotEmpty);
        }
        let (_, safe, folder) = self.folder(parent)?;
        folder.change(Change { remove: Some(name.into()), insert: None }, safe);
        Ok(())
    }

    pub fn rename(&mut self, parent: u64, from: &OsStr, to_parent: u64, to: &OsStr) -> Result<(), Refusal> {
        if parent != to_parent {
            return Err(Refusal::OtherFolder);
        }
        let (_, safe, folder) = self.folder(parent)?;
        let id = *folder.live.get(from).ok_or(Refusal::Missing)?;
        folder.change(Change { remove: Some(from.into()), insert: Some((to.into(), id)) }, safe);
        Ok(())
    }

    pub fn read(&mut self, number: u64, offset: u64, len: usize) -> Result<Vec<u8>, Refusal> {
        Ok(self.file(number)?.1.read(offset, len))
    }

    pub fn write(&mut self, number: u64, offset: u64, data: &[u8]) -> Result<(), Refusal> {
        let (safe, file) = self.file(number)?;
        file.write(offset, data);
        if safe {
            file.flush(file.mark());
        }
        self.count(number, |disk| disk.writes += 1);
        Ok(())
    }

    pub fn truncate(&mut self, number: u64, size: u64) -> Result<(), Refusal> {
        let (safe, file) = self.file(number)?;
        file.truncate(size);
        if safe {
            file.flush(file.mark());
        }
        Ok(())
    }

    pub fn set_mode(&mut self, number: u64, mode: u32) -> Result<(), Refusal> {
        let id = self.id(number)?;
        self.inodes.get_mut(&id).expect("it was just looked up").mode = mode;
        Ok(())
    }

    fn count(&mut self, number: u64, add: impl FnOnce(&mut Disk)) {
        if let Ok(id) = self.id(number)
            && let Some(disk) = self.disks.get_mut(&self.inodes[&id].disk)
        {
            add(disk);
        }
    }

    /// A flush begins.
    pub fn promise(&mut self, number: u64, range: Option<(u64, u64)>) -> Result<Promise, Refusal> {
        let id = self.id(number)?;
        Ok(match (&self.inodes[&id].body, range) {
            (Body::File(file), Some((offset, len))) => Promise::Range(file.mark(), offset, len),
            (Body::File(file), None) => Promise::File(file.mark()),
            (Body::Folder(folder), _) => Promise::Folder(folder.changes.len()),
            (Body::Socket, _) => return Err(Refusal::NotAFile),
        })
    }

    /// Whether flushes on this disk take for ever. They end with the power.
    pub fn stalls(&self, number: u64) -> Result<bool, Refusal> {
        let disk = self.inodes[&self.id(number)?].disk;
        Ok(self.disks.get(&disk).is_some_and(|disk| disk.stalls))
    }

    /// The flush ends, unless the power went meanwhile. A disk that lies says the same and does nothing.
    pub fn keep(&mut self, number: u64, promise: Promise) -> Result<(), Refusal> {
        let id = self.id(number)?;
        self.count(number, |disk| disk.flushes += 1);
        let inode = self.inodes.get_mut(&id).expect("it was just looked up");
        if self.disks.get(&inode.disk).is_some_and(|disk| disk.fails) {
            return Err(Refusal::Dead);
        }
        if self.disks.get(&inode.disk).is_some_and(|disk| disk.lies) {
            return Ok(());
        }
        match (&mut inode.body, promise) {
            (Body::File(file), Promise::File(mark)) => file.flush(mark),
            (Body::File(file), Promise::Range(mark, offset, len)) => file.flush_range(mark, offset, len),
            (Body::Folder(folder), Promise::Folder(changes)) => folder.flush(changes),
            _ => return Err(Refusal::NotAFile),
        }
        Ok(())
    }

    fn disk_named(&self, name: &str) -> Result<u64, Refusal> {
        let Body::Folder(top) = &self.inodes[&ROOT].body else { return Err(Refusal::NotAFolder) };
        let id = *top.live.get(OsStr::new(name)).ok_or(Refusal::Missing)?;
        self.disks.contains_key(&id).then_some(id).ok_or(Refusal::NotAFolder)
    }

    /// The power of these disks goes, in one moment.
    pub fn cut(&mut self, names: &[&str], fate: Fate, dice: &mut Prng) -> Result<Damage, Refusal> {
        let mut damage = Damage::default();
        for name in names {
            let id = self.disk_named(name)?;
            let disk = self.disks.get_mut(&id).expect("it is a disk");
            disk.off = true;
            (disk.stalls, disk.fails) = (false, false);
            disk.cuts += 1;
            self.cut_below(id, fate, dice, &mut damage);
        }
        Ok(damage)
    }

    fn cut_below(&mut self, id: u64, fate: Fate, dice: &mut Prng, damage: &mut Damage) {
        let inode = self.inodes.get_mut(&id).expect("an entry names an inode");
        match &mut inode.body {
            Body::File(file) => damage.add(file.cut(fate, dice)),
            Body::Socket => {}
            Body::Folder(folder) => {
                let happened = match fate {
                    Fate::Lose => 0,
                    Fate::Keep => folder.changes.len(),
                    Fate::Tear => dice.below(folder.changes.len() as u64 + 1) as usize,
                };
                folder.flush(happened);
                damage.undone += folder.changes.len() as u64;
                folder.changes.clear();
                folder.live = folder.durable.clone();
                for child in folder.live.values().copied().collect::<Vec<_>>() {
                    self.cut_below(child, fate, dice, damage);
                }
            }
        }
    }

    pub fn power_on(&mut self, name: &str) -> Result<(), Refusal> {
        let id = self.disk_named(name)?;
        self.disks.get_mut(&id).expect("it is a disk").off = false;
        Ok(())
    }

    pub fn set_lies(&mut self, name: &str, lies: bool) -> Result<(), Refusal> {
        let id = self.disk_named(name)?;
        self.disks.get_mut(&id).expect("it is a disk").lies = lies;
        Ok(())
    }

    pub fn stall(&mut self, name: &str) -> Result<(), Refusal> {
        let id = self.disk_named(name)?;
        self.disks.get_mut(&id).expect("it is a disk").stalls = true;
        Ok(())
    }

    /// Flushes end again, those that hang among them.
    pub fn answer_again(&mut self, name: &str) -> Result<(), Refusal> {
        let id = self.disk_named(name)?;
        self.disks.get_mut(&id).expect("it is a disk").stalls = false;
        Ok(())
    }

    /// Flushes fail from now on, and nothing that was not flushed is durable.
    pub fn fail(&mut self, name: &str) -> Result<(), Refusal> {
        let id = self.disk_named(name)?;
        self.disks.get_mut(&id).expect("it is a disk").fails = true;
        Ok(())
    }

    /// Makes all of a disk durable.
    pub fn sync(&mut self, name: &str) -> Result<(), Refusal> {
        let id = self.disk_named(name)?;
        for inode in self.inodes.values_mut().filter(|inode| inode.disk == id) {
            match &mut inode.body {
                Body::File(file) => file.flush(file.mark()),
                Body::Folder(folder) => folder.flush(usize::MAX),
                Body::Socket => {}
            }
        }
        Ok(())
    }

    /// What a disk has done so far: writes, flushes (durable writes among them), files with unflushed bytes.
    pub fn statistics(&self, name: &str) -> Result<(u64, u64, usize), Refusal> {
        let id = self.disk_named(name)?;
        let unflushed =
            self.inodes.values().filter(|inode| inode.disk == id).filter(|inode| match &inode.body {
                Body::File(file) => file.has_unflushed(),
                _ => false,
            });
        let disk = self.disks[&id];
        Ok((disk.writes, disk.flushes, unflushed.count()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with a durable folder `wal`.
    fn disk() -> (Machine, u64, u64) {
        let mut machine = Machine::default();
        let disk = machine.create(ROOT, OsStr::new("1"), Body::Folder(Folder::default()), 0o700).unwrap();
        let wal = machine.create(disk, OsStr::new("wal"), Body::Folder(Folder::default()), 0o700).unwrap();
        machine.sync("1").unwrap();
        (machine, disk, wal)
    }

    fn file(machine: &mut Machine, parent: u64, name: &str, data: &[u8]) -> u64 {
        let number = machine.create(parent, OsStr::new(name), Body::File(File::default()), 0o600).unwrap();
        machine.write(number, 0, data).unwrap();
        number
    }

    fn flush(machine: &mut Machine, number: u64) {
        let promise = machine.promise(number, None).unwrap();
        machine.keep(number, promise).unwrap();
    }

    fn cut(machine: &mut Machine, fate: Fate, seed: u64) -> (Damage, u64) {
        let damage = machine.cut(&["1"], fate, &mut Prng::new(seed)).unwrap();
        machine.power_on("1").unwrap();
        (damage, machine.lookup(ROOT, OsStr::new("1")).unwrap())
    }

    fn names(machine: &mut Machine, number: u64) -> Vec<String> {
        machine.list(number).unwrap().into_iter().map(|(name, _)| name.into_string().unwrap()).collect()
    }

    #[test]
    fn an_entry_is_durable_with_its_folder_and_the_bytes_with_their_file() {
        let (mut machine, _, wal) = disk();
        let whole = file(&mut machine, wal, "whole", b"1");
        flush(&mut machine, whole);
        file(&mut machine, wal, "empty", b"2");
        flush(&mut machine, wal);
        let nameless = file(&mut machine, wal, "nameless", b"3");
        flush(&mut machine, nameless);
        let (damage, disk) = cut(&mut machine, Fate::Lose, 1);
        assert_eq!((damage.lost, damage.undone), (1, 1));
        let wal = machine.lookup(disk, OsStr::new("wal")).unwrap();
        assert_eq!(names(&mut machine, wal), ["empty", "whole"]);
        let whole = machine.lookup(wal, OsStr::new("whole")).unwrap();
        let empty = machine.lookup(wal, OsStr::new("empty")).unwrap();
        assert_eq!(machine.read(whole, 0, 10).unwrap(), b"1");
        assert_eq!(machine.read(empty, 0, 10).unwrap(), b"");
    }

    #[test]
    fn a_rename_happens_or_does_not() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let (mut machine, _, wal) = disk();
            let number = file(&mut machine, wal, "spare", b"x");
            flush(&mut machine, number);
            flush(&mut machine, wal);
            machine.rename(wal, OsStr::new("spare"), wal, OsStr::new("log")).unwrap();
            let (_, disk) = cut(&mut machine, Fate::Tear, seed);
            let wal = machine.lookup(disk, OsStr::new("wal")).unwrap();
            seen.insert(names(&mut machine, wal));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [["log"], ["spare"]]);
    }

    #[test]
    fn handles_from_before_the_cut_are_dead() {
        let (mut machine, disk, wal) = disk();
        let number = file(&mut machine, wal, "a", b"x");
        flush(&mut machine, number);
        flush(&mut machine, wal);
        let promise = machine.promise(number, None).unwrap();
        machine.write(number, 0, b"y").unwrap();
        machine.cut(&["1"], Fate::Lose, &mut Prng::new(1)).unwrap();
        assert_eq!(machine.lookup(ROOT, OsStr::new("1")), Err(Refusal::Dead));
        machine.power_on("1").unwrap();
        assert_eq!(machine.keep(number, promise), Err(Refusal::Dead));
        assert_eq!(machine.write(number, 0, b"z"), Err(Refusal::Dead));
        assert_eq!(machine.list(disk).unwrap_err(), Refusal::Dead);
        assert_eq!(machine.create(wal, OsStr::new("b"), Body::Socket, 0), Err(Refusal::Dead));
    }

    #[test]
    fn a_disk_that_lies_loses_what_it_flushed_and_other_disks_do_not_care() {
        let (mut machine, _, wal) = disk();
        let other = machine.create(ROOT, OsStr::new("2"), Body::Folder(Folder::default()), 0o700).unwrap();
        let there = file(&mut machine, other, "there", b"unflushed");
        machine.set_lies("1", true).unwrap();
        let number = file(&mut machine, wal, "a", b"x");
        flush(&mut machine, number);
        flush(&mut machine, wal);
        let (damage, disk) = cut(&mut machine, Fate::Lose, 1);
        assert_eq!(damage.undone, 1);
        let wal = machine.lookup(disk, OsStr::new("wal")).unwrap();
        assert!(names(&mut machine, wal).is_empty());
        assert_eq!(machine.read(there, 0, 100).unwrap(), b"unflushed");
    }

    #[test]
    fn a_stall_ends_and_a_failing_flush_keeps_nothing() {
        let (mut machine, _, wal) = disk();
        let number = file(&mut machine, wal, "a", b"x");
        machine.stall("1").unwrap();
        assert_eq!(machine.stalls(number), Ok(true));
        machine.answer_again("1").unwrap();
        assert_eq!(machine.stalls(number), Ok(false));
        machine.fail("1").unwrap();
        for number in [number, wal] {
            let promise = machine.promise(number, None).unwrap();
            assert_eq!(machine.keep(number, promise), Err(Refusal::Dead));
        }
        let (_, disk) = cut(&mut machine, Fate::Lose, 1);
        let wal = machine.lookup(disk, OsStr::new("wal")).unwrap();
        assert!(names(&mut machine, wal).is_empty());
        let promise = machine.promise(wal, None).unwrap();
        assert_eq!(machine.keep(wal, promise), Ok(()), "the power went and came back");
    }

    #[test]
    fn the_log_folder_and_the_top_are_witnesses() {
        let (mut machine, disk, _) = disk();
        let log = machine.create(disk, OsStr::new("log"), Body::Folder(Folder::default()), 0o700).unwrap();
        file(&mut machine, log, "baton.log", b"said");
        file(&mut machine, ROOT, "top", b"stays");
        let (_, disk) = cut(&mut machine, Fate::Lose, 1);
        let log = machine.lookup(disk, OsStr::new("log")).unwrap();
        let file = machine.lookup(log, OsStr::new("baton.log")).unwrap();
        assert_eq!(machine.read(file, 0, 10).unwrap(), b"said");
        let top = machine.lookup(ROOT, OsStr::new("top")).unwrap();
        assert_eq!(machine.read(top, 0, 10).unwrap(), b"stays");
    }
}
