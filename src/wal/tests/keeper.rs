//! The segment keeper on a model of a folder.

use std::collections::BTreeMap;

use super::*;

/// File sizes by name; the order of operations is what matters here.
struct Folder {
    keeper: SegmentKeeper,
    files: BTreeMap<LogFile, u64>,
    log: Vec<String>,
    unsynced: bool,
    unflushed: Vec<LogFile>,
    ready: Vec<u64>,
}

fn keeper_config(spare_segments: usize, segments_kept: u64) -> KeeperConfig {
    KeeperConfig { segment_bytes: 4 << 20, spare_segments, retention_bytes: segments_kept * (4 << 20) }
}

impl Folder {
    fn new(config: KeeperConfig, files: &[(LogFile, u64)]) -> Folder {
        Folder {
            keeper: SegmentKeeper::new(config, files),
            files: files.iter().copied().collect(),
            log: Vec::new(),
            unsynced: true,
            unflushed: files.iter().map(|(file, _)| *file).collect(),
            ready: Vec::new(),
        }
    }

    fn step(&mut self) -> bool {
        let Some(effect) = self.keeper.next_effect() else { return false };
        assert!(self.keeper.next_effect().is_none(), "one operation at a time");
        let id = match effect {
            KeeperEffect::Create { id, file } => {
                assert!(self.files.insert(file, 0).is_none());
                self.log.push(format!("create {file}"));
                id
            }
            KeeperEffect::Write { id, file, offset, data } => {
                assert!(data.len() <= 1 << 20 && data.iter().all(|byte| *byte == 0));
                let len = self.files.get_mut(&file).unwrap();
                assert_eq!(*len, offset);
                *len += data.len() as u64;
                self.unflushed.push(file);
                self.log.push(format!("zero {file}"));
                id
            }
            KeeperEffect::Flush { id, file } => {
                self.unflushed.retain(|unflushed| *unflushed != file);
                self.log.push(format!("flush {file}"));
                id
            }
            KeeperEffect::Rename { id, from, to } => {
                let len = self.files.remove(&from).unwrap();
                assert_eq!(len, 4 << 20, "only whole files move");
                assert!(self.files.insert(to, len).is_none(), "{to} is overwritten");
                if let LogFile::Segment(_) = to {
                    assert!(!self.unflushed.contains(&from), "an unflushed file becomes a segment");
                    self.unsynced = true;
                }
                self.log.push(format!("rename {from} {to}"));
                id
            }
            KeeperEffect::SyncFolder { id } => {
                self.unsynced = false;
                self.log.push("sync".into());
                id
            }
            KeeperEffect::Remove { id, file } => {
                assert!(self.files.remove(&file).is_some());
                self.log.push(format!("remove {file}"));
                id
            }
        };
        self.keeper.completed(id, Ok(()));
        while let Some(segment) = self.keeper.next_ready() {
            assert!(!self.unsynced && self.files.contains_key(&LogFile::Segment(segment)));
            self.ready.push(segment);
        }
        true
    }

    fn run(&mut self) {
        while self.step() {}
    }

    fn segments(&self) -> Vec<u64> {
        let number = |file: &LogFile| if let LogFile::Segment(n) = file { Some(*n) } else { None };
        self.files.keys().filter_map(number).collect()
    }
}

#[test]
fn a_segment_is_ready_only_when_zeroed_flushed_renamed_and_synced() {
    let mut folder = Folder::new(keeper_config(1, 100), &[]);
    folder.keeper.ensure(0);
    folder.run();
    assert_eq!(folder.ready, [0]);
    let first: Vec<&str> = folder.log.iter().map(String::as_str).take(9).collect();
    assert_eq!(
        first,
        [
            "sync",
            "create spare-0",
            "zero spare-0",
            "zero spare-0",
            "zero spare-0",
            "zero spare-0",
            "flush spare-0",
            "rename spare-0 0000000000000000.wal",
            "sync"
        ]
    );
    assert_eq!(folder.keeper.spares_ready(), 1, "and the next one is made ahead");
}

#[test]
fn a_ready_spare_is_placed_before_anything_else() {
    let mut folder = Folder::new(keeper_config(3, 100), &[]);
    while folder.keeper.spares_ready() < 1 {
        folder.step();
    }
    folder.step();
    folder.keeper.ensure(7);
    folder.log.clear();
    folder.step();
    folder.step();
    assert_eq!(folder.log, ["rename spare-0 0000000000000007.wal", "sync"]);
    assert_eq!(folder.ready, [7]);
}

#[test]
fn old_segments_are_recycled_below_what_is_required_and_beyond_the_budget() {
    let mut folder = Folder::new(keeper_config(2, 4), &[]);
    for segment in 0..8 {
        folder.keeper.ensure(segment);
        folder.run();
    }
    assert_eq!(folder.segments(), (0..8).collect::<Vec<_>>(), "nothing goes before the node allows it");
    folder.keeper.retain_from(Lsn(3 * (4 << 20) + 5));
    folder.run();
    assert_eq!(folder.segments(), (3..8).collect::<Vec<_>>(), "required segments stay, budget or not");
    assert_eq!(folder.keeper.first(), Some(Lsn(3 * (4 << 20))));
    folder.keeper.retain_from(Lsn(8 * (4 << 20)));
    folder.run();
    assert_eq!(folder.segments(), (4..8).collect::<Vec<_>>(), "what fits the budget is kept for others");
    assert_eq!(folder.keeper.spares_ready(), 2);
}

#[test]
fn the_frame_before_the_required_position_stays() {
    let mut folder = Folder::new(keeper_config(1, 0), &[]);
    for segment in 0..4 {
        folder.keeper.ensure(segment);
        folder.run();
    }
    folder.keeper.retain_from(Lsn(3 * (4 << 20)));
    folder.run();
    assert_eq!(folder.segments(), [2, 3], "without it an empty log could not know its chain");
}

#[test]
fn in_a_steady_state_nothing_is_zeroed_again() {
    let mut folder = Folder::new(keeper_config(2, 3), &[]);
    for segment in 0..6 {
        folder.keeper.ensure(segment);
        folder.run();
        folder.keeper.retain_from(Lsn(segment * (4 << 20)));
        folder.run();
    }
    folder.log.clear();
    for segment in 6..40u64 {
        folder.keeper.ensure(segment);
        folder.keeper.retain_from(Lsn((segment - 1) * (4 << 20)));
        folder.run();
    }
    assert!(folder.log.iter().all(|line| line.starts_with("rename") || line == "sync"), "{:?}", folder.log);
    assert_eq!(folder.segments().len(), 3);
}

#[test]
fn a_restart_flushes_whole_spares_and_removes_the_others() {
    let files = [
        (LogFile::Segment(4), 4 << 20),
        (LogFile::Spare(0), 1 << 20),
        (LogFile::Spare(3), 4 << 20),
        (LogFile::Segment(5), 4 << 20),
    ];
    let mut folder = Folder::new(keeper_config(1, 100), &files);
    folder.keeper.ensure(5);
    folder.keeper.ensure(6);
    folder.run();
    assert_eq!(folder.ready, [5, 6]);
    assert_eq!(folder.log[0], "sync", "a rename of the last process may not be durable yet");
    assert!(folder.log.contains(&"remove spare-0".to_string()));
    assert!(folder.log.contains(&"rename spare-3 0000000000000006.wal".to_string()));
}

#[test]
fn asking_twice_places_once() {
    let mut folder = Folder::new(keeper_config(1, 100), &[]);
    folder.keeper.ensure(0);
    folder.keeper.ensure(0);
    while folder.segments().is_empty() {
        folder.step();
    }
    folder.keeper.ensure(0);
    folder.run();
    assert_eq!(folder.ready, [0]);
    assert_eq!(folder.log.iter().filter(|line| line.starts_with("rename")).count(), 1);
}

#[test]
fn the_first_error_stops_the_keeper() {
    let mut keeper = SegmentKeeper::new(keeper_config(1, 100), &[]);
    keeper.ensure(0);
    let Some(KeeperEffect::SyncFolder { id }) = keeper.next_effect() else { panic!("sync first") };
    keeper.completed(id, Err(WalIoError("no space left".into())));
    assert!(keeper.failed().is_some());
    assert!(keeper.next_effect().is_none() && keeper.next_ready().is_none());
}
