//! Our own event loop: one system call per turn.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use baton::io::uring::{UringConfig, UringSeam};
use baton::io::{Event, FileId, Op, Open, Seam};

use super::Room;

pub fn run(room: Rc<RefCell<Room>>, appenders: usize, paths: &[PathBuf]) {
    let mut seam = UringSeam::new(UringConfig::default()).expect("a ring");
    let files: Vec<FileId> =
        paths.iter().map(|path| seam.open(path, Open::Existing).expect("a prepared file")).collect();
    let mut room = room.borrow_mut();
    let (mut jobs, mut events) = (Vec::new(), Vec::new());
    (0..appenders as u64).for_each(|key| drop(room.append(key)));
    loop {
        room.jobs(&mut jobs);
        for job in jobs.drain(..) {
            let (token, file, offset) = (job.id, files[job.file], job.offset);
            seam.submit(Op::Write { token, file, offset, data: job.data, durable: true });
        }
        if room.quiet() {
            return;
        }
        seam.reap(None, &mut events);
        for event in events.drain(..) {
            let Event::Written { token, result } = event else { continue };
            result.expect("a working disk");
            let woken = room.completed(token);
            if !room.over() {
                (0..woken as u64).for_each(|key| drop(room.append(key)));
            }
        }
    }
}
