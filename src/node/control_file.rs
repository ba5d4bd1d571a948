//! Writes the control file: both copies, one after the other, each durable before the next (protocol 5.4).

use std::collections::VecDeque;

use crate::base::SharedSlice;
use crate::io::{FileId, Op, Seam};
use crate::role::control::copies_to_write;
use crate::role::{ControlCopy, ControlState};

use super::token;

/// The writer. At most one image is on its way; a newer one replaces one that still waits.
#[derive(Debug)]
pub struct ControlFile {
    files: [FileId; 2],
    writing: Option<Writing>,
    waiting: Option<Box<ControlState>>,
}

#[derive(Debug)]
struct Writing {
    generation: u64,
    image: SharedSlice,
    left: VecDeque<ControlCopy>,
}

impl ControlFile {
    pub fn new(files: [FileId; 2]) -> ControlFile {
        ControlFile { files, writing: None, waiting: None }
    }

    pub fn persist<S: Seam>(&mut self, seam: &mut S, state: Box<ControlState>) {
        self.waiting = Some(state);
        self.start(seam);
    }

    fn start<S: Seam>(&mut self, seam: &mut S) {
        if self.writing.is_some() {
            return;
        }
        let Some(state) = self.waiting.take() else { return };
        let left = copies_to_write(state.generation).iter().copied().collect();
        let image = SharedSlice::copy_of(&state.encode());
        self.writing = Some(Writing { generation: state.generation, image, left });
        self.step(seam);
    }

    fn step<S: Seam>(&mut self, seam: &mut S) {
        let Some(writing) = &mut self.writing else { return };
        if let Some(copy) = writing.left.pop_front() {
            let file = match copy {
                ControlCopy::A => self.files[0],
                ControlCopy::B => self.files[1],
            };
            let data = writing.image.clone();
            seam.submit(Op::Write { token: token::control(), file, offset: 0, data, durable: true });
        }
    }

    /// A copy is durable. Returns the generation when it was the last one.
    pub fn written<S: Seam>(&mut self, seam: &mut S) -> Option<u64> {
        let writing = self.writing.as_ref()?;
        if !writing.left.is_empty() {
            self.step(seam);
            return None;
        }
        let generation = writing.generation;
        self.writing = None;
        self.start(seam);
        Some(generation)
    }
}
