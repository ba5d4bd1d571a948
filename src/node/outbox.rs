//! What waits to be sent on one connection. The seam allows one send at a time; everything that arrives meanwhile
//! leaves together in the next one.

use std::collections::VecDeque;

use crate::base::SharedSlice;
use crate::io::{ConnId, Op, Outgoing, Seam, Token};

/// Queue in front of one connection.
#[derive(Debug)]
pub struct Outbox {
    conn: ConnId,
    queue: VecDeque<Outgoing>,
    queued_bytes: usize,
    in_flight: usize,
    sending: bool,
    spare: Vec<u8>,
}

impl Outbox {
    pub fn new(conn: ConnId) -> Outbox {
        Outbox {
            conn,
            queue: VecDeque::new(),
            queued_bytes: 0,
            in_flight: 0,
            sending: false,
            spare: Vec::new(),
        }
    }

    /// Bytes not yet handed to the kernel, or handed over and not reported as sent.
    pub fn unsent(&self) -> usize {
        self.queued_bytes + self.in_flight
    }

    /// The owned buffer at the end of the queue, for small messages.
    pub fn append(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.queued_bytes += bytes.len();
        match self.queue.back_mut() {
            Some(Outgoing::Owned(last)) => last.extend_from_slice(bytes),
            _ => {
                let mut fresh = std::mem::take(&mut self.spare);
                fresh.clear();
                fresh.extend_from_slice(bytes);
                self.queue.push_back(Outgoing::Owned(fresh));
            }
        }
    }

    /// Appends a buffer without copying when nothing else waits.
    pub fn append_owned(&mut self, bytes: &mut Vec<u8>) {
        if self.queue.is_empty() && !bytes.is_empty() {
            self.queued_bytes += bytes.len();
            let mut fresh = std::mem::take(&mut self.spare);
            fresh.clear();
            self.queue.push_back(Outgoing::Owned(std::mem::replace(bytes, fresh)));
        } else {
            self.append(bytes);
            bytes.clear();
        }
    }

    /// Appends a head and shared slices: the log frames travel from the one buffer that also went to the disk.
    pub fn append_shared(&mut self, head: Vec<u8>, slices: Vec<SharedSlice>) {
        let data = Outgoing::Shared { head, slices };
        self.queued_bytes += data.len();
        self.queue.push_back(data);
    }

    /// Starts the next send if none is under way.
    pub fn pump<S: Seam>(&mut self, seam: &mut S, token: Token) {
        if self.sending {
            return;
        }
        if let Some(data) = self.queue.pop_front() {
            self.sending = true;
            self.queued_bytes -= data.len();
            self.in_flight = data.len();
            seam.submit(Op::Send { token, conn: self.conn, data });
        }
    }

    /// A send ended; its buffer is kept for the next one.
    pub fn sent(&mut self, data: Outgoing) {
        self.sending = false;
        self.in_flight = 0;
        if let Outgoing::Owned(mut bytes) = data
            && bytes.capacity() <= 256 << 10
        {
            bytes.clear();
            self.spare = bytes;
        }
    }

    /// The buffer for the next send is given back when it is larger than this.
    pub fn shrink(&mut self, kept: usize) {
        if self.spare.capacity() > kept {
            self.spare = Vec::new();
        }
    }

    /// Everything was handed over and reported.
    pub fn is_drained(&self) -> bool {
        !self.sending && self.queue.is_empty()
    }
}
