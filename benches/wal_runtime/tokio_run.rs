//! tokio-uring: a task per appender, a task per write, O_DSYNC files.

use std::cell::RefCell;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::rc::Rc;

use baton::io::tokio_buf::TokioSlice;
use tokio_uring::fs::File;

use super::{Bell, Room, Rung, appender, ring};

pub fn run(room: Rc<RefCell<Room>>, appenders: usize, paths: &[PathBuf]) {
    let mut ring_options = tokio_uring::uring_builder();
    ring_options.setup_coop_taskrun().setup_single_issuer();
    tokio_uring::builder().entries(256).uring_builder(&ring_options).start(async move {
        let files: Vec<Rc<File>> = paths
            .iter()
            .map(|path| {
                let mut options = std::fs::OpenOptions::new();
                options.write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC);
                Rc::new(File::from_std(options.open(path).expect("a prepared file")))
            })
            .collect();
        let bell = Rc::new(RefCell::new(Bell::default()));
        for key in 0..appenders as u64 {
            tokio_uring::spawn(appender(room.clone(), bell.clone(), key));
        }
        let mut jobs = Vec::new();
        loop {
            Rung(bell.clone()).await;
            room.borrow_mut().jobs(&mut jobs);
            for job in jobs.drain(..) {
                let (room, bell, file) = (room.clone(), bell.clone(), files[job.file].clone());
                tokio_uring::spawn(async move {
                    let len = job.data.len();
                    let (result, _) = file.write_at(TokioSlice(job.data), job.offset).submit().await;
                    assert_eq!(result.expect("a working disk"), len);
                    room.borrow_mut().completed(job.id);
                    ring(&bell);
                });
            }
            if room.borrow().over() && room.borrow().quiet() {
                return;
            }
        }
    });
}
