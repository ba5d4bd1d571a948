//! Connections: bytes from a send to the other process's turn, and all the ways a connection ends.

use std::io;

use super::core::{Core, What};
use super::net::{Body, Capture, End, MS, NOBODY, Segment, Sending};
use crate::io::{CloseReason, ConnId, Event, Outgoing, ReceivedBytes, Token};

/// Copies the bytes `from..from + n` of a gathered write.
fn gather(data: &Outgoing, from: usize, n: usize) -> Vec<u8> {
    match data {
        Outgoing::Owned(bytes) => bytes[from..from + n].to_vec(),
        Outgoing::Shared { head, slices } => {
            let mut out = Vec::with_capacity(n);
            let mut skip = from;
            for part in std::iter::once(&head[..]).chain(slices.iter().map(|s| &s[..])) {
                let start = skip.min(part.len());
                let take = (part.len() - start).min(n - out.len());
                out.extend_from_slice(&part[start..start + take]);
                skip -= start;
            }
            out
        }
    }
}

// ---- Sending.
impl Core {
    pub(super) fn send(&mut self, host: usize, token: Token, conn: ConnId, data: Outgoing) {
        let open = self.net.ends.get_mut(&conn.0).filter(|e| !e.gone && e.host == host);
        let Some(end) = open else {
            self.give_before_close(host, conn, token, data);
            return;
        };
        assert!(end.sending.is_none(), "one send at a time on {conn:?}");
        end.sending = Some(Sending::new(token, data));
        if end.ended == Some(CloseReason::Reset) {
            self.finish(conn.0, CloseReason::Reset);
        } else {
            self.pump(conn.0);
        }
    }

    /// A send on a connection that has ended fails; nothing may follow a close that its process has yet to see.
    fn give_before_close(&mut self, host: usize, conn: ConnId, token: Token, data: Outgoing) {
        let failed = Event::Sent { token, conn, data, result: Err(io::ErrorKind::NotConnected.into()) };
        let inbox = &mut self.process(host).inbox;
        let closed = inbox.iter().position(|e| matches!(e, Event::Closed { conn: c, .. } if *c == conn));
        match closed {
            Some(at) => inbox.insert(at, failed),
            None => self.give(host, failed),
        }
    }

    /// Moves bytes of the send under way into the flight while the receiver has room.
    pub(super) fn pump(&mut self, id: u64) {
        let Some(end) = self.net.ends.get(&id).filter(|e| !e.gone) else { return };
        let start = self.host_now(end.host);
        let (window, largest) = (self.config.net.window_bytes, self.config.net.segment_bytes);
        loop {
            let end = self.net.ends.get_mut(&id).expect("just seen");
            let Some(sending) = &mut end.sending else { return };
            let left = sending.data.len() - sending.sent;
            if left == 0 {
                if std::mem::replace(&mut sending.done, true) {
                    return;
                }
                break;
            }
            let room = window.saturating_sub(end.used);
            if room == 0 {
                return;
            }
            let mut n = left.min(room).min(largest);
            if self.net.rng.chance(self.config.net.split) {
                let most = if self.net.rng.chance(0.5) { n.min(16) } else { n };
                n = self.net.rng.between(1, most as u64) as usize;
            }
            let mut bytes = gather(&sending.data, sending.sent, n);
            sending.sent += n;
            end.used += n;
            let (from, to) = (end.host, end.peer_host);
            if let Some(capture) = end.capture {
                self.net.captures[capture].bytes.extend_from_slice(&bytes);
            }
            let link = self.link(from, to);
            if link.flips > 0 {
                link.flips -= 1;
                let at = self.net.rng.below(n as u64 * 8) as usize;
                bytes[at / 8] ^= 1 << (at % 8);
            }
            self.launch(id, Body::Bytes(bytes), start);
        }
        let done = self.config.net.local.draw(&mut self.net.rng);
        self.queue.push(start + done, What::SendDone { end: id });
    }

    pub(super) fn send_done(&mut self, id: u64) {
        let Some(end) = self.net.ends.get_mut(&id).filter(|e| !e.gone) else { return };
        let Sending { token, data, done, .. } = end.sending.take().expect("a done send waits for its event");
        assert!(done, "the event of one send does not end another");
        let host = end.host;
        if end.process != NOBODY {
            self.give(host, Event::Sent { token, conn: ConnId(id), data, result: Ok(()) });
        }
    }

    fn launch(&mut self, id: u64, body: Body, start: u64) {
        let end = &self.net.ends[&id];
        let (from, to) = (end.host, end.peer_host);
        let size = match &body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Finish | Body::Reset => 0,
        };
        let slow = self.link(from, to).fault.bytes_per_second;
        let rate = slow.map_or(self.config.net.bytes_per_second, |r| r.min(self.config.net.bytes_per_second));
        let delay = self.delay(from, to);
        let end = self.net.ends.get_mut(&id).expect("just seen");
        let at = end.last_at.max(start + delay) + size * 1_000_000_000 / rate.max(1);
        end.last_at = at;
        end.flight.push_back(Segment { at, body });
        self.queue_arrival(id);
    }

    pub(super) fn queue_arrival(&mut self, id: u64) {
        let end = self.net.ends.get_mut(&id).expect("an end with a flight exists");
        if end.arrive_queued || end.stuck {
            return;
        }
        if let Some(head) = end.flight.front() {
            end.arrive_queued = true;
            self.queue.push(head.at.max(self.now), What::Arrive { end: id });
        }
    }

    pub(super) fn room(&mut self, id: u64) {
        let Some(end) = self.net.ends.get_mut(&id) else { return };
        let (host, to) = (end.host, end.peer_host);
        end.room_queued = false;
        if self.reaches(to, host) {
            self.pump(id);
        } else {
            // It probes for room in vain, and not for ever.
            self.note_silence(id);
            self.queue_room(id, 100 * MS);
        }
    }

    fn queue_room(&mut self, id: u64, after: u64) {
        let Some(end) = self.net.ends.get_mut(&id) else { return };
        if end.sending.is_some() && !end.room_queued && !end.gone {
            end.room_queued = true;
            self.queue.push(self.now + after, What::Room { end: id });
        }
    }
}

// ---- Arriving.
impl Core {
    pub(super) fn arrive(&mut self, id: u64) {
        let Some(end) = self.net.ends.get_mut(&id) else { return };
        end.arrive_queued = false;
        let (from, to) = (end.host, end.peer_host);
        if !self.reaches(from, to) {
            self.net.ends.get_mut(&id).expect("just seen").stuck = true;
            self.note_silence(id);
            return;
        }
        if self.reaches(to, from) {
            self.net.ends.get_mut(&id).expect("just seen").silent_since = None;
        } else {
            self.note_silence(id);
        }
        loop {
            let end = self.net.ends.get_mut(&id).expect("an end with a flight exists");
            if end.flight.front().is_none_or(|s| s.at > self.now) {
                break;
            }
            let body = end.flight.pop_front().expect("just seen").body;
            let peer = end.peer;
            self.stats.segments += 1;
            self.deliver(id, peer, body);
            if !self.net.ends.contains_key(&id) {
                return;
            }
        }
        self.queue_arrival(id);
        self.net.tidy(id);
    }

    fn deliver(&mut self, from: u64, id: u64, body: Body) {
        let there = self.net.ends.get_mut(&id).filter(|e| !e.gone);
        let size = match &body {
            Body::Bytes(bytes) => bytes.len() as u64,
            Body::Finish | Body::Reset => 0,
        };
        self.trace.note(self.now, there.as_ref().map_or(0, |e| e.host), "arrived", id, size);
        match (there, body) {
            (Some(end), Body::Bytes(bytes)) => end.unread.push_back(bytes),
            (Some(end), Body::Finish) => end.ended = end.ended.or(Some(CloseReason::Finished)),
            (Some(end), Body::Reset) => end.ended = Some(CloseReason::Reset),
            (None, Body::Bytes(_)) => {
                let sender = &self.net.ends[&from];
                if !sender.gone {
                    let delay = self.delay(sender.peer_host, sender.host);
                    self.queue.push(self.now + delay, What::Reset { end: from });
                }
                return;
            }
            (None, Body::Finish | Body::Reset) => return,
        }
        self.feed(id);
    }

    pub(super) fn reset_arrives(&mut self, id: u64) {
        let Some(end) = self.net.ends.get(&id).filter(|e| !e.gone) else { return };
        let (host, from) = (end.host, end.peer_host);
        if !self.hosts[from].powered || !self.reaches(from, host) {
            // The reset is lost; what drew it is sent again, and not for ever.
            self.note_silence(id);
            self.queue.push(self.now + 500 * MS, What::Reset { end: id });
            return;
        }
        self.net.ends.get_mut(&id).expect("just seen").ended = Some(CloseReason::Reset);
        self.feed(id);
    }

    /// Hands what arrived to the process, if it wants it.
    pub(super) fn feed(&mut self, id: u64) {
        let Some(end) = self.net.ends.get_mut(&id).filter(|e| !e.gone) else { return };
        let (host, nobody) = (end.host, end.process == NOBODY);
        if !end.receiving {
            // A send fails on a reset connection even if nobody reads.
            if end.ended == Some(CloseReason::Reset) && end.sending.is_some() {
                self.finish(id, CloseReason::Reset);
            }
            return;
        }
        let mut unread = std::mem::take(&mut end.unread);
        let ended = end.ended;
        let largest = self.config.net.segment_bytes;
        while let Some(mut bytes) = unread.pop_front() {
            while unread.front().is_some_and(|next| bytes.len() + next.len() <= largest)
                && self.net.rng.chance(0.5)
            {
                bytes.extend_from_slice(&unread.pop_front().expect("just seen"));
            }
            if nobody {
                self.taken(id, bytes.len());
            } else {
                self.stats.bytes_received += bytes.len() as u64;
                self.give(host, Event::Received { conn: ConnId(id), bytes: ReceivedBytes::Owned(bytes) });
            }
        }
        if let Some(reason) = ended {
            self.finish(id, reason);
        }
    }

    /// The process took bytes of this end: its peer may send more.
    pub(super) fn taken(&mut self, id: u64, bytes: usize) {
        let Some(end) = self.net.ends.get(&id) else { return };
        let (host, peer, peer_host) = (end.host, end.peer, end.peer_host);
        let Some(sender) = self.net.ends.get_mut(&peer) else { return };
        sender.used = sender.used.checked_sub(bytes).expect("taken bytes were sent");
        if sender.sending.is_some() {
            let delay = self.delay(host, peer_host);
            self.queue_room(peer, delay);
        }
    }

    pub(super) fn receive(&mut self, host: usize, conn: ConnId, on: bool) {
        if let Some(end) = self.net.ends.get_mut(&conn.0).filter(|e| !e.gone && e.host == host) {
            end.receiving = on;
            self.feed(conn.0);
        }
    }
}

// ---- Ending.
impl Core {
    fn note_silence(&mut self, id: u64) {
        let end = self.net.ends.get_mut(&id).expect("just seen");
        if end.silent_since.is_none() && !end.gone {
            let since = self.now;
            end.silent_since = Some(since);
            let limit = self.config.net.timeout.draw(&mut self.net.rng);
            self.queue.push(since + limit, What::Silence { end: id, since });
        }
    }

    pub(super) fn silence(&mut self, id: u64, since: u64) {
        let silent = self.net.ends.get(&id).is_some_and(|e| !e.gone && e.silent_since == Some(since));
        if silent {
            self.stats.connections_failed += 1;
            self.finish(id, CloseReason::Failed);
        }
    }

    /// The connection ends for this end's process; the kernel forgets it.
    pub(super) fn finish(&mut self, id: u64, reason: CloseReason) {
        let end = self.net.ends.get_mut(&id).filter(|e| !e.gone).expect("an open end finishes once");
        end.gone = true;
        end.unread.clear();
        if reason == CloseReason::Failed || reason == CloseReason::Reset {
            // What a failed connection still had to send is lost with it.
            end.flight.clear();
        }
        let (host, known, nobody) = (end.host, end.announced, end.process == NOBODY);
        let sending = end.sending.take();
        if known && !nobody {
            let conn = ConnId(id);
            if let Some(Sending { token, data, .. }) = sending {
                let result = Err(io::ErrorKind::ConnectionAborted.into());
                self.give(host, Event::Sent { token, conn, data, result });
            }
            self.give(host, Event::Closed { conn, reason });
        }
        self.net.tidy(id);
    }

    /// The process closes a connection.
    pub(super) fn close(&mut self, host: usize, conn: ConnId) {
        let Some(end) = self.net.ends.get_mut(&conn.0).filter(|e| !e.gone && e.host == host) else { return };
        let (unread, ended) = (!end.unread.is_empty(), end.ended.is_some());
        let untaken = |e: &Event| matches!(e, Event::Received { conn: c, .. } if *c == conn);
        let unread = unread || self.process(host).inbox.iter().any(untaken);
        if !ended {
            // A kernel resets a connection that is closed with unread bytes, and says goodbye otherwise.
            let start = self.host_now(host);
            self.launch(conn.0, if unread { Body::Reset } else { Body::Finish }, start);
        }
        self.finish(conn.0, CloseReason::Local);
    }

    /// The kernel ends a connection whose process is no more.
    pub(super) fn let_go(&mut self, id: u64, last: Body, after: u64) {
        let Some(end) = self.net.ends.get_mut(&id).filter(|e| !e.gone) else { return };
        end.gone = true;
        end.sending = None;
        end.unread.clear();
        self.launch(id, last, self.now + after);
        self.net.tidy(id);
    }

    fn ends_of(&self, host: usize) -> Vec<u64> {
        let own = |e: &End| e.host == host && e.process != NOBODY && !e.gone;
        self.net.ends.iter().filter(|(_, e)| own(e)).map(|(id, _)| *id).collect()
    }

    fn drop_dials_and_listeners(&mut self, host: usize) {
        self.net.dials.retain(|_, d| d.host != host || d.process == NOBODY);
        self.net.listeners.retain(|_, l| l.host != host);
    }

    /// The host's process was killed: its kernel ends all its connections.
    pub(super) fn net_killed(&mut self, host: usize) {
        self.drop_dials_and_listeners(host);
        for id in self.ends_of(host) {
            let unread = !self.net.ends[&id].unread.is_empty();
            let reset = unread || self.net.rng.chance(self.config.net.reset_on_kill);
            let after = self.net.rng.below(5 * MS);
            self.let_go(id, if reset { Body::Reset } else { Body::Finish }, after);
        }
    }

    /// The host lost power: its ends vanish without a word, some of what they sent with them.
    pub(super) fn net_unpowered(&mut self, host: usize) {
        self.net.dials.retain(|_, d| d.host != host);
        self.net.listeners.retain(|_, l| l.host != host);
        let ids: Vec<u64> = self.net.ends.iter().filter(|(_, e)| e.host == host).map(|(id, _)| *id).collect();
        for id in ids {
            let end = self.net.ends.get_mut(&id).expect("just seen");
            let survive = self.net.rng.below(end.flight.len() as u64 + 1) as usize;
            // A segment that is held up was never on the wire.
            end.flight.truncate(if end.stuck { 0 } else { survive });
            end.gone = true;
            end.sending = None;
            end.unread.clear();
            self.net.tidy(id);
        }
    }

    /// A process starts on the host, which may have booted: what others sent to its past now draws resets.
    pub(super) fn net_revived(&mut self, host: usize) {
        for other in 0..self.hosts.len() {
            self.kick_between(host, other);
        }
    }

    pub(super) fn reset_connections(&mut self, a: usize, b: usize) {
        let between = |e: &End| (e.host, e.peer_host) == (a, b) || (e.host, e.peer_host) == (b, a);
        let ids: Vec<u64> =
            self.net.ends.iter().filter(|(_, e)| !e.gone && between(e)).map(|(id, _)| *id).collect();
        for id in ids {
            let after = self.net.rng.below(5 * MS);
            self.queue.push(self.now + after, What::Reset { end: id });
        }
    }

    pub(super) fn captured(&self, from: usize, to: usize) -> Vec<Vec<u8>> {
        let wanted = |c: &&Capture| c.from == from && c.to == to;
        self.net.captures.iter().filter(wanted).map(|c| c.bytes.clone()).collect()
    }
}
