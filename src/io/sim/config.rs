//! What a world is made of: latencies, sizes, probabilities. Every field has a default that resembles a healthy
//! machine; faults come on top of it through [`super::World`]'s setters or a [`super::FaultPlan`].

use std::time::Duration;

use crate::base::Prng;

/// A range of durations from which each event draws its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub low: Duration,
    pub high: Duration,
}

impl Span {
    pub const fn micros(low: u64, high: u64) -> Span {
        Span { low: Duration::from_micros(low), high: Duration::from_micros(high) }
    }

    pub const fn millis(low: u64, high: u64) -> Span {
        Span { low: Duration::from_millis(low), high: Duration::from_millis(high) }
    }

    /// A draw in nanoseconds.
    pub(super) fn draw(self, rng: &mut Prng) -> u64 {
        let (low, high) = (nanos(self.low), nanos(self.high));
        rng.between(low, high.max(low))
    }
}

/// A duration as the world counts it.
pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The whole configuration of a world.
#[derive(Clone, Debug)]
pub struct SimConfig {
    pub disk: DiskConfig,
    pub net: NetConfig,
    pub clock: ClockConfig,
    /// What one turn of a host costs it: its next turn comes no earlier.
    pub turn: Span,
    /// Chance that a reap returns only a part of what has happened, the rest in the next turn.
    pub split_reap: f64,
    /// Chance that a `buggify` point is alive at all in this world.
    pub buggify_alive: f64,
    /// Chance that a living point fires when it is passed.
    pub buggify_fire: f64,
}

impl Default for SimConfig {
    fn default() -> SimConfig {
        SimConfig {
            disk: DiskConfig::default(),
            net: NetConfig::default(),
            clock: ClockConfig::default(),
            turn: Span::micros(2, 30),
            split_reap: 0.05,
            buggify_alive: 0.25,
            buggify_fire: 0.05,
        }
    }
}

/// How disks behave.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    pub read: Span,
    pub write: Span,
    /// Also what a durable write costs on top of a write.
    pub flush: Span,
    /// What a folder operation costs (creations and renames: a fifth of it).
    pub sync_folder: Span,
    /// Chance that an operation takes `spike` instead.
    pub spike_chance: f64,
    pub spike: Span,
    /// The unit in which an interrupted write is torn: 512 or 4096.
    pub sector_bytes: usize,
    /// On a power cut, the chances that a write that no flush covered is kept whole, and that it is torn sector by
    /// sector; otherwise it is lost. Each power cut scales them anew, so that some cuts keep nearly all and some nothing.
    pub keep: f64,
    pub tear: f64,
    /// Chance that a power cut keeps the un-synced entries of a folder in order (a journal); otherwise any subset.
    pub ordered_entries: f64,
    /// How long after kill -9 a write in flight may still land.
    pub late_write: Span,
    /// Chance that a write in flight is cancelled by kill -9.
    pub cancel_on_kill: f64,
    /// How long a read, write or flush that does not return by itself (`*_now`) waits on a stalled disk before
    /// it gives up.
    pub stalled_now: Duration,
    /// Bytes that fit on a host's disk.
    pub quota: Option<u64>,
}

impl Default for DiskConfig {
    fn default() -> DiskConfig {
        DiskConfig {
            read: Span::micros(40, 200),
            write: Span::micros(20, 250),
            flush: Span::micros(100, 1500),
            sync_folder: Span::micros(200, 2000),
            spike_chance: 0.005,
            spike: Span::millis(2, 20),
            sector_bytes: 512,
            keep: 0.4,
            tear: 0.3,
            ordered_entries: 0.5,
            late_write: Span::millis(0, 60),
            cancel_on_kill: 0.2,
            stalled_now: Duration::from_secs(10),
            quota: None,
        }
    }
}

/// How connections behave.
#[derive(Clone, Debug)]
pub struct NetConfig {
    /// Fixed delay of one direction of one pair of hosts, drawn once.
    pub latency: Span,
    /// Added to it for each segment.
    pub jitter: Span,
    /// Delay within one host.
    pub local: Span,
    pub bytes_per_second: u64,
    /// Bytes that one direction of a connection holds between the sender's buffer and the receiver's turn.
    pub window_bytes: usize,
    /// The largest chunk that one segment carries.
    pub segment_bytes: usize,
    /// Chance that a segment is cut at a random, often tiny, length.
    pub split: f64,
    /// A connection whose bytes are not acknowledged for this long fails.
    pub timeout: Span,
    /// A dial that is not answered for this long fails.
    pub connect_timeout: Span,
    /// The first wait before something lost is sent again; doubled each time.
    pub resend: Duration,
    /// Connections that wait for an accept.
    pub backlog: usize,
    /// Chance that the connections of a killed process are reset instead of finished.
    pub reset_on_kill: f64,
    /// Keeps all bytes of all connections for [`super::World::captured`].
    pub capture: bool,
}

impl Default for NetConfig {
    fn default() -> NetConfig {
        NetConfig {
            latency: Span::micros(40, 400),
            jitter: Span::micros(0, 100),
            local: Span::micros(5, 20),
            bytes_per_second: 1 << 30,
            window_bytes: 256 << 10,
            segment_bytes: 64 << 10,
            split: 0.1,
            timeout: Span::millis(8_000, 12_000),
            connect_timeout: Span::millis(3_000, 5_000),
            resend: Duration::from_millis(200),
            backlog: 128,
            reset_on_kill: 0.5,
            capture: false,
        }
    }
}

/// How clocks behave.
#[derive(Clone, Debug)]
pub struct ClockConfig {
    /// A host's monotonic clock runs at a rate within this many parts per million of true time.
    pub drift_ppm: u32,
    /// A host's wall clock starts at most this far from true time.
    pub wall_offset: Duration,
    /// True wall time at the start of the world, in milliseconds since the Unix epoch.
    pub epoch_ms: u64,
}

impl Default for ClockConfig {
    fn default() -> ClockConfig {
        ClockConfig { drift_ppm: 500, wall_offset: Duration::from_millis(500), epoch_ms: 1_800_000_000_000 }
    }
}

/// What is wrong with one direction between two hosts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkFault {
    /// Added to every segment.
    pub delay: Span,
    /// Chance that a segment is lost and comes only after a resend.
    pub loss: f64,
    /// The smaller of this and the configured rate counts.
    pub bytes_per_second: Option<u64>,
}

impl LinkFault {
    pub const NONE: LinkFault = LinkFault {
        delay: Span { low: Duration::ZERO, high: Duration::ZERO },
        loss: 0.0,
        bytes_per_second: None,
    };

    /// Every segment takes `delay` longer.
    pub const fn slow(delay: Span) -> LinkFault {
        LinkFault { delay, loss: 0.0, bytes_per_second: None }
    }

    /// Every segment is lost with this chance.
    pub const fn lossy(loss: f64) -> LinkFault {
        LinkFault { delay: Span { low: Duration::ZERO, high: Duration::ZERO }, loss, bytes_per_second: None }
    }
}
