//! glommio: a task per appender, a task per write, O_DIRECT files of its own kind opened with O_DSYNC.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;

use glommio::io::{DmaFile, OpenOptions};
use glommio::{LocalExecutorBuilder, Placement};

use super::{Bell, Room, Rung, appender, ring};

/// Memory that the executor registers with the kernel: its default does not fit the usual limit of locked memory.
const IO_MEMORY: usize = 1 << 20;

pub fn run(room: Rc<RefCell<Room>>, appenders: usize, paths: &[PathBuf]) {
    let executor = LocalExecutorBuilder::new(Placement::Unbound).io_memory(IO_MEMORY).ring_depth(128).make();
    executor.expect("an executor").run(async move {
        let mut files: Vec<Rc<DmaFile>> = Vec::new();
        for path in paths {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_DSYNC);
            files.push(Rc::new(options.dma_open(path).await.expect("a prepared file")));
        }
        let bell = Rc::new(RefCell::new(Bell::default()));
        for key in 0..appenders as u64 {
            glommio::spawn_local(appender(room.clone(), bell.clone(), key)).detach();
        }
        let mut jobs = Vec::new();
        loop {
            Rung(bell.clone()).await;
            room.borrow_mut().jobs(&mut jobs);
            for job in jobs.drain(..) {
                let (room, bell, file) = (room.clone(), bell.clone(), files[job.file].clone());
                glommio::spawn_local(async move {
                    // glommio writes only from buffers of its own.
                    let mut buffer = file.alloc_dma_buffer(job.data.len());
                    buffer.as_bytes_mut().copy_from_slice(&job.data);
                    let written = file.write_at(buffer, job.offset).await.expect("a working disk");
                    assert_eq!(written, job.data.len());
                    room.borrow_mut().completed(job.id);
                    ring(&bell);
                })
                .detach();
            }
            if room.borrow().over() && room.borrow().quiet() {
                break;
            }
        }
        for file in files {
            if let Ok(file) = Rc::try_unwrap(file) {
                file.close().await.expect("it is open");
            }
        }
    });
}
