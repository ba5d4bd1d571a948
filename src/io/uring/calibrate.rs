//! Measures, at start, which way of making log frames durable is cheapest on this disk.
//!
//! Disks differ by a factor of a hundred here, and none of it can be read from a data sheet: with a protected cache a
//! synchronous write is nearly free, without one it costs a flush of the device, and then a plain write plus one
//! flush may be cheaper. So both are tried on a file like a log segment: whole, written before, 8 MiB.

use std::io;
use std::path::Path;
use std::time::Duration;

use super::UringSeam;
use crate::base::limits::{BLOCK_BYTES, FRAMES_IN_FLIGHT_MAX};
use crate::base::{AlignedBuf, Mono, SharedSlice};
use crate::io::{Event, FileId, Op, Open, Seam, Token};

/// The outcome of [`calibrate`].
#[derive(Clone, Debug)]
pub struct Calibration {
    /// True: each log write carries RWF_DSYNC. False: plain writes, then one flush that covers them.
    pub durable_writes: bool,
    /// Log frames to keep on their way to the disk at once.
    pub frames_in_flight: usize,
    /// Whether flushes run on the helper thread (already applied to the seam).
    pub flush_thread: bool,
    /// One line with the numbers, for the log.
    pub report: String,
}

const FILE_BYTES: u64 = 8 << 20;
/// All measurements together; a slow disk may need a little more for the few rounds that each of them makes.
const BUDGET: Duration = Duration::from_millis(240);
const ROUNDS_MIN: usize = 3;
const DEPTHS: [usize; 3] = [1, 4, 8];
const FRAME_BYTES: [usize; 2] = [4 << 10, 16 << 10];
/// Tokens that no early caller will choose.
const TOKENS: Token = 0xca11_b8a7_0000_0000;
/// Writes that one flush covers, where flushes are chosen.
const FRAMES_PER_FLUSH: usize = 4;

const _: () = assert!(DEPTHS[2] <= FRAMES_IN_FLIGHT_MAX);

/// Writes to a scratch file in `folder` for at most about 300 ms, removes it, and chooses. Call it before other
/// operations are under way.
pub fn calibrate(seam: &mut UringSeam, folder: &Path) -> io::Result<Calibration> {
    let path = folder.join("calibration.scratch");
    let _ = seam.remove(&path);
    let file = seam.open(&path, Open::Create)?;
    let had_thread = seam.config.flush_thread;
    let outcome = measure_all(seam, file);
    seam.close_file(file);
    seam.remove(&path)?;
    match &outcome {
        Ok(chosen) => seam.set_flush_thread(chosen.flush_thread)?,
        Err(_) => seam.set_flush_thread(had_thread)?,
    }
    outcome
}

/// How frames are made durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// RWF_DSYNC on each write.
    Dsync,
    /// Plain writes, then a flush through the ring.
    RingFlush,
    /// Plain writes, then a flush on the helper thread.
    ThreadFlush,
}

/// What one way cost at one depth.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// From submission until durable: what the quicker quarter stays below. The median would tell more of the
    /// machine's other tenants at this moment than of the disk.
    quick: Duration,
    frames_per_s: f64,
}

fn measure_all(seam: &mut UringSeam, file: FileId) -> io::Result<Calibration> {
    if !seam.is_direct(file) {
        return Ok(Calibration {
            durable_writes: true,
            frames_in_flight: DEPTHS[1],
            flush_thread: false,
            report: "log disk: the folder lies in memory, nothing to measure; dsync writes, 4 in flight"
                .into(),
        });
    }
    let began = seam.now();
    let zeroes = AlignedBuf::zeroed(1 << 20).share();
    for offset in (0..FILE_BYTES).step_by(zeroes.len()) {
        seam.write_now(file, offset, &zeroes)?;
    }
    seam.flush_now(file)?;

    // Five trials of small frames and three of larger ones share the budget.
    let slice = BUDGET / 8;
    let mut trial = |way, depth, bytes| measure(seam, file, way, depth, bytes, slice);
    let mut dsync = Vec::new();
    for depth in DEPTHS {
        dsync.push(trial(Way::Dsync, depth, FRAME_BYTES[0])?);
    }
    let mut totals = Vec::new();
    let mut texts = Vec::new();
    for (way, name) in
        [(Way::Dsync, "dsync"), (Way::RingFlush, "ring flush"), (Way::ThreadFlush, "thread flush")]
    {
        let small = if way == Way::Dsync { dsync[0] } else { trial(way, 1, FRAME_BYTES[0])? };
        let large = trial(way, 1, FRAME_BYTES[1])?;
        totals.push(small.quick + large.quick);
        texts.push(format!("{name} {}/{} us", small.quick.as_micros(), large.quick.as_micros()));
    }
    let (durable_writes, flush_thread) = choose_way(totals[0], totals[1], totals[2]);
    let frames_in_flight = if durable_writes { choose_depth(&dsync) } else { FRAMES_PER_FLUSH };
    let rates: Vec<String> = dsync.iter().map(|cost| format!("{:.1}", cost.frames_per_s / 1000.0)).collect();
    let chosen = match (durable_writes, flush_thread) {
        (true, _) => "dsync writes",
        (false, false) => "writes and ring flushes",
        (false, true) => "writes and flushes on the helper thread",
    };
    let report = format!(
        "log disk, 4/16 KiB lower quartile: {}; dsync at depth 1/4/8: {} k frames/s; chosen: {chosen}, {frames_in_flight} \
         in flight (measured in {} ms)",
        texts.join(", "),
        rates.join("/"),
        seam.now().since(began).as_millis()
    );
    Ok(Calibration { durable_writes, frames_in_flight, flush_thread, report })
}

/// One durable write is one operation where the other ways are two: with flushes, a node under load spends about a
/// fifth more of the processor per command. So durable writes win unless they are far slower.
fn choose_way(dsync: Duration, ring: Duration, thread: Duration) -> (bool, bool) {
    let flush = ring.min(thread);
    if dsync * 10 <= flush * 15 { (true, false) } else { (false, thread < ring) }
}

/// The smallest depth that reaches most of what the deepest one reaches: more frames in flight mean smaller groups.
fn choose_depth(dsync: &[Cost]) -> usize {
    let best = dsync.iter().map(|cost| cost.frames_per_s).fold(0.0, f64::max);
    let enough = dsync.iter().position(|cost| cost.frames_per_s >= best * 0.7);
    DEPTHS[enough.expect("the best one is enough")]
}

/// Repeats groups of `depth` frames for `time`. A group is durable when its last frame is.
fn measure(
    seam: &mut UringSeam,
    file: FileId,
    way: Way,
    depth: usize,
    bytes: usize,
    time: Duration,
) -> io::Result<Cost> {
    seam.set_flush_thread(way == Way::ThreadFlush)?;
    let frame = filled_frame(bytes);
    let mut spans = Vec::new();
    let mut frames = 0;
    let mut offset = 0;
    let began = seam.now();
    let until = began + time;
    let mut started: Vec<Mono> = vec![Mono(0); depth];
    let mut free: Vec<usize> = (0..depth).collect();
    // Dsync keeps `depth` frames in flight all the time; the other ways go group by group.
    while spans.len() < ROUNDS_MIN || seam.now() < until {
        while let Some(place) = free.pop() {
            started[place] = seam.now();
            let token = TOKENS + place as u64;
            seam.submit(Op::Write { token, file, offset, data: frame.clone(), durable: way == Way::Dsync });
            offset = (offset + bytes as u64) % FILE_BYTES;
        }
        if way == Way::Dsync {
            wait(seam, 1, &mut free)?;
        } else {
            wait(seam, depth, &mut free)?;
            seam.submit(Op::Flush { token: TOKENS, file });
            wait(seam, 1, &mut Vec::new())?;
        }
        frames += free.len();
        let now = seam.now();
        spans.extend(free.iter().map(|&place| now.since(started[place])));
    }
    let elapsed = seam.now().since(began).max(Duration::from_micros(1));
    wait(seam, depth - free.len(), &mut free)?;
    spans.sort_unstable();
    Ok(Cost { quick: spans[spans.len() / 4], frames_per_s: frames as f64 / elapsed.as_secs_f64() })
}

/// Bytes that no disk takes for a run of zeroes.
fn filled_frame(bytes: usize) -> SharedSlice {
    let mut frame = AlignedBuf::zeroed(bytes);
    for (index, block) in frame.chunks_mut(BLOCK_BYTES).enumerate() {
        block.fill(index as u8 + 1);
    }
    frame.share()
}

/// Waits for at least `count` of our operations; their places become free. What is not ours stays for the node.
fn wait(seam: &mut UringSeam, count: usize, free: &mut Vec<usize>) -> io::Result<()> {
    let mut seen = 0;
    let mut others = Vec::new();
    let mut failure = None;
    while seen < count {
        let mut events = Vec::new();
        seam.reap(None, &mut events);
        for event in events {
            let (token, result) = match event {
                Event::Written { token, result } | Event::Flushed { token, result } if token >= TOKENS => {
                    (token, result)
                }
                other => {
                    others.push(other);
                    continue;
                }
            };
            seen += 1;
            free.push((token - TOKENS) as usize);
            failure = failure.or(result.err());
        }
    }
    seam.ready.append(&mut others);
    failure.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::uring::UringConfig;

    #[test]
    fn the_cheaper_way_is_chosen_and_dsync_when_they_are_alike() {
        let us = Duration::from_micros;
        assert_eq!(choose_way(us(100), us(200), us(150)), (true, false));
        assert_eq!(choose_way(us(150), us(100), us(150)), (true, false));
        assert_eq!(choose_way(us(151), us(100), us(150)), (false, false));
        assert_eq!(choose_way(us(400), us(200), us(160)), (false, true));
        assert_eq!(choose_way(us(400), us(160), us(200)), (false, false));
    }

    #[test]
    fn the_depth_is_where_the_gain_ends() {
        let costs = |rates: [f64; 3]| rates.map(|frames_per_s| Cost { quick: Duration::ZERO, frames_per_s });
        assert_eq!(choose_depth(&costs([10.0, 11.0, 12.0])), 1);
        assert_eq!(choose_depth(&costs([10.0, 30.0, 40.0])), 4);
        assert_eq!(choose_depth(&costs([10.0, 20.0, 40.0])), 8);
    }

    #[test]
    fn a_folder_is_measured_and_left_clean() {
        let folder = tempfile::tempdir().unwrap();
        let mut seam = UringSeam::new(UringConfig::default()).unwrap();
        seam.waker().wake();
        let chosen = calibrate(&mut seam, folder.path()).unwrap();
        assert!(DEPTHS.contains(&chosen.frames_in_flight), "{chosen:?}");
        assert!(chosen.report.starts_with("log disk") && !chosen.report.contains('\n'), "{}", chosen.report);
        assert!(seam.list(folder.path()).unwrap().is_empty());
        assert_eq!(seam.config.flush_thread, chosen.flush_thread);
        let mut events = Vec::new();
        seam.reap(Some(seam.now()), &mut events);
        assert!(matches!(events[..], [Event::Woken]), "other events are kept: {events:?}");
        println!("{}", chosen.report);
    }
}
