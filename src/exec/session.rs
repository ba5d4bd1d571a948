//! What the server remembers about one connection.

use super::errors;
use super::host::ClientFacts;
use super::keys::KeysWalk;
use super::table::flags::{DATA, STALE};
use crate::base::{Stamp, limits};
use crate::resp::{Args, OwnedArgs, Proto, Reply, RequestLimits};

/// When a write's reply may leave, chosen by the connection; the cluster policy alone moves the commit index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum CommitLevel {
    Off,
    Local,
    RemoteWrite,
    On,
    RemoteApply,
}

impl CommitLevel {
    /// Reads a level as operators write it; `remote_receive` and `remote_flush` are accepted as aliases.
    pub fn parse(text: &[u8]) -> Option<CommitLevel> {
        const NAMES: [(&str, CommitLevel); 7] = [
            ("off", CommitLevel::Off),
            ("local", CommitLevel::Local),
            ("remote_write", CommitLevel::RemoteWrite),
            ("remote_receive", CommitLevel::RemoteWrite),
            ("on", CommitLevel::On),
            ("remote_flush", CommitLevel::On),
            ("remote_apply", CommitLevel::RemoteApply),
        ];
        NAMES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name.as_bytes())).map(|(_, level)| *level)
    }

    pub fn name(self) -> &'static str {
        match self {
            CommitLevel::Off => "off",
            CommitLevel::Local => "local",
            CommitLevel::RemoteWrite => "remote_write",
            CommitLevel::On => "on",
            CommitLevel::RemoteApply => "remote_apply",
        }
    }
}

/// CLIENT REPLY.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum ReplyMode {
    #[default]
    On,
    Off,
    /// The reply to the next command is left out.
    SkipNext,
    /// The command whose reply is left out is under way.
    Skipping,
}

/// Commands between MULTI and EXEC.
#[derive(Default, Debug)]
pub(super) struct Queue {
    pub commands: Vec<(u8, OwnedArgs)>,
    pub bytes: usize,
    /// Union of the commands' flags.
    pub flags: u16,
    /// A command was refused while queueing: EXEC will refuse the rest.
    pub broken: bool,
}

/// One client connection.
#[derive(Debug)]
pub struct Session {
    /// Never reused within a process.
    pub id: u64,
    pub proto: Proto,
    pub authenticated: bool,
    pub name: Vec<u8>,
    pub lib_name: Vec<u8>,
    pub lib_version: Vec<u8>,
    /// READONLY was sent: the client knows that it may read behind the primary.
    pub readonly: bool,
    /// `BATON.COMMIT`; `None` means the node's default.
    pub level: Option<CommitLevel>,
    /// CLIENT CAPA redirect: the client follows `-REDIRECT host:port`.
    pub capa_redirect: bool,
    /// CLIENT MAINT_NOTIFICATIONS ON over RESP3: the client acts on MOVING and the like when the node pushes them.
    pub maint_notifications: bool,
    pub no_evict: bool,
    pub no_touch: bool,
    /// The stamp of this connection's last write, for WAIT.
    pub last_write: Stamp,
    pub(super) last_command: &'static str,
    /// The last command depended on data, so that its reply speaks for the primary.
    pub(super) touched_data: bool,
    pub(super) reply_mode: ReplyMode,
    pub(super) multi: Option<Queue>,
    /// A KEYS that gave way to others half way through.
    pub(super) walk: Option<Box<KeysWalk>>,
    /// Close once the reply of this command is out.
    pub(super) closing: bool,
}

impl Session {
    pub fn new(id: u64, authenticated: bool) -> Session {
        Session {
            id,
            proto: Proto::Resp2,
            authenticated,
            name: Vec::new(),
            lib_name: Vec::new(),
            lib_version: Vec::new(),
            readonly: false,
            level: None,
            capa_redirect: false,
            maint_notifications: false,
            no_evict: false,
            no_touch: false,
            last_write: Stamp::COMMITTED,
            last_command: "NULL",
            touched_data: false,
            reply_mode: ReplyMode::On,
            multi: None,
            walk: None,
            closing: false,
        }
    }

    /// How much of a request the connection may send at present.
    pub fn limits(&self) -> &'static RequestLimits {
        match self.authenticated {
            true => &RequestLimits::AUTHENTICATED,
            false => &RequestLimits::UNAUTHENTICATED,
        }
    }

    /// Whether the last command depended on data.
    pub fn touched_data(&self) -> bool {
        self.touched_data
    }

    /// Whether the client has asked for no reply to the command that ends here, or to a request that cannot be read.
    /// A mute for one command is used up by it.
    pub fn take_mute(&mut self) -> bool {
        match self.reply_mode {
            ReplyMode::On => false,
            ReplyMode::Off => true,
            ReplyMode::SkipNext | ReplyMode::Skipping => {
                self.reply_mode = ReplyMode::On;
                true
            }
        }
    }

    /// Between MULTI and EXEC.
    pub fn in_multi(&self) -> bool {
        self.multi.is_some()
    }

    /// One line of CLIENT LIST, without its line end.
    pub fn describe(&self, facts: &ClientFacts, out: &mut Vec<u8>) {
        use std::io::Write;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (queued, queue_bytes) =
            self.multi.as_ref().map_or((-1, 0), |q| (q.commands.len() as i64, q.bytes));
        let flags = match (self.multi.is_some(), self.readonly) {
            (true, false) => "x",
            (true, true) => "xr",
            (false, true) => "r",
            (false, false) => "N",
        };
        write!(
            out,
            "id={} addr={} laddr={} fd={} name={} age={} idle={} flags={flags} db=0 sub=0 psub=0 ssub=0 multi={queued} \
             qbuf={} qbuf-free=0 argv-mem=0 multi-mem={queue_bytes} rbs=0 rbp=0 obl={} oll=0 omem=0 tot-mem={} \
             events=r cmd={} user=default redir=-1 resp={} lib-name={} lib-ver={}",
            self.id,
            facts.addr,
            facts.laddr,
            facts.fd,
            text(&self.name),
            facts.age_s,
            facts.idle_s,
            facts.input_bytes,
            facts.output_bytes,
            facts.input_bytes + facts.output_bytes + queue_bytes,
            self.last_command,
            self.proto.number(),
            text(&self.lib_name),
            text(&self.lib_version),
        )
        .expect("a vector takes every write");
    }

    /// Puts a checked command into the transaction and answers QUEUED, or refuses it and with it the transaction.
    pub(super) fn queue(&mut self, command: u8, flags: u16, args: Args<'_>, out: &mut Vec<u8>) {
        let queue = self.multi.as_mut().expect("commands are queued inside MULTI only");
        let mut reply = Reply::new(out, self.proto);
        let bytes = args.payload_bytes() + 8 * args.len();
        if queue.commands.len() == limits::QUEUED_COMMANDS_MAX
            || queue.bytes + bytes > limits::QUEUED_BYTES_MAX
        {
            queue.broken = true;
            // What is queued will never run: its memory can go now.
            queue.commands = Vec::new();
            queue.bytes = 0;
            return reply.error(errors::QUEUE_FULL);
        }
        if !queue.broken {
            queue.commands.push((command, args.to_owned()));
            queue.bytes += bytes;
            queue.flags |= flags | if flags & STALE == 0 { DATA } else { 0 };
        }
        reply.simple("QUEUED");
    }
}
