//! Runs against toy servers in virtual time.

use super::super::fake::{FakeSeam, Script};
use super::*;

const DELAY: Duration = Duration::from_millis(2);

fn options(workload: Workload) -> LoadOptions {
    LoadOptions {
        servers: vec!["127.0.0.1:1".parse().unwrap()],
        readers: vec![],
        clients: 4,
        pipeline: 8,
        wait: 0,
        duration: Duration::from_secs(2),
        workload,
        value_bytes: 10,
        keys: 100,
        password: None,
        fill: true,
        seed: 1,
    }
}

fn measure(script: Script, options: &LoadOptions) -> (Result<Report, LoadError>, FakeSeam) {
    let mut seam = FakeSeam::new(script);
    let report = run(&mut seam, options, &mut |_| {});
    (report, seam)
}

#[test]
fn a_steady_server_is_measured_exactly() {
    let script = Script { delay: DELAY, ..Script::default() };
    let (report, seam) = measure(script, &options(Workload::Set));
    let report = report.unwrap();
    // Each of 4 clients finishes 8 commands every 2 ms for 2 s.
    assert!((31_900..=32_032).contains(&report.ok), "{}", report.ok);
    assert!((1980..=2020).contains(&report.latency_us.p50), "{:?}", report.latency_us);
    assert!((1980..=2020).contains(&report.latency_us.p999));
    assert!((report.longest_gap_ms - 2.0).abs() < 0.1, "{}", report.longest_gap_ms);
    assert_eq!((report.lost, report.error_count(), report.reconnects), (0, 0, 0));
    assert_eq!(report.slices.iter().map(|slice| slice.ok).sum::<u64>(), report.ok);
    assert!(seam.commands >= report.ok);
    assert!((report.throughput - report.ok as f64 / 2.0).abs() < 1.0);
}

#[test]
fn reads_find_every_key_written_and_replies_may_come_in_pieces() {
    let script = Script { delay: DELAY, piece_bytes: 3, ..Script::default() };
    let (report, seam) = measure(script, &options(Workload::Get));
    assert!(report.unwrap().ok > 10_000);
    assert_eq!(seam.keys.len(), 100, "every key was written before the reads");
    assert!(seam.keys.values().all(|count| *count == 1));
}

#[test]
fn with_wait_only_confirmed_commands_count() {
    let waiting = LoadOptions { wait: 1, ..options(Workload::Set) };
    let script = Script { delay: DELAY, replicas: 1, ..Script::default() };
    let report = measure(script, &waiting).0.unwrap();
    assert!((31_900..=32_032).contains(&report.ok), "{}", report.ok);
    assert_eq!(report.error_count(), 0);
    assert_eq!(report.slices.iter().map(|slice| slice.ok).sum::<u64>(), report.ok);

    let report = measure(Script { delay: DELAY, ..Script::default() }, &waiting).0.unwrap();
    assert_eq!(report.ok, 0, "nobody holds a copy");
    assert!(report.errors["UNREPLICATED"] > 31_000);
}

#[test]
fn an_outage_is_the_longest_gap_and_what_was_under_way_is_lost() {
    let down = Some((Duration::from_millis(501), Duration::from_millis(1200)));
    let script = Script { delay: DELAY, down, ..Script::default() };
    let (report, _) = measure(script, &options(Workload::Set));
    let report = report.unwrap();
    assert!((690.0..800.0).contains(&report.longest_gap_ms), "{}", report.longest_gap_ms);
    assert_eq!(report.lost, 32, "four batches of eight");
    assert!(report.reconnects >= 4);
    let silent = report.slices[6..11].iter().all(|slice| slice.ok == 0);
    assert!(silent && report.slices[13].ok > 0, "{:?}", report.slices);
}

#[test]
fn an_outage_to_the_end_is_a_gap_too() {
    let down = Some((Duration::from_millis(500), Duration::from_secs(100)));
    let (report, _) = measure(Script { delay: DELAY, down, ..Script::default() }, &options(Workload::Set));
    assert!((1490.0..1510.0).contains(&report.unwrap().longest_gap_ms));
}

#[test]
fn clients_leave_a_readonly_server() {
    let servers: Vec<SocketAddr> = vec!["127.0.0.1:1".parse().unwrap(), "127.0.0.1:2".parse().unwrap()];
    let script = Script { delay: DELAY, readonly: Some(servers[0]), ..Script::default() };
    let (report, _) = measure(script, &LoadOptions { servers, ..options(Workload::Incr) });
    let report = report.unwrap();
    assert_eq!(
        report.errors.get("READONLY"),
        Some(&16),
        "one batch of each of the two clients that began there"
    );
    assert_eq!(report.lost, 0);
    assert!(report.ok > 25_000);
}

#[test]
fn reads_and_writes_go_to_different_servers() {
    let [primary, standby, other]: [SocketAddr; 3] =
        ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(|addr| addr.parse().unwrap());
    // A standby refuses writes; whatever reads at the primary would be counted there.
    let script = Script { delay: DELAY, readonly: Some(standby), ..Script::default() };
    let with = |workload, readers| LoadOptions { servers: vec![primary], readers, ..options(workload) };
    for (workload, readers, reading) in [
        (Workload::Get, vec![standby], 4),
        (Workload::Get, vec![standby, other], 4),
        (Workload::Mixed { writes_percent: 25 }, vec![standby], 3),
        (Workload::Mixed { writes_percent: 1 }, vec![standby], 3),
    ] {
        let (report, seam) = measure(script.clone(), &with(workload, readers.clone()));
        let report = report.unwrap();
        assert!((31_900..=32_032).contains(&report.ok), "{workload:?}: {}", report.ok);
        assert_eq!((report.readers, report.error_count(), report.lost), (reading, 0, 0), "{workload:?}");
        let read = |server| seam.reads.get(&server).copied().unwrap_or(0);
        assert_eq!(read(primary), 0, "{workload:?}");
        let all: u64 = readers.iter().map(|server| read(*server)).sum();
        assert!(readers.iter().all(|server| read(*server) >= all / 3), "{workload:?}: {:?}", seam.reads);
        let share = 32_000 * reading as u64 / 4;
        assert!((share - 100..share + 100).contains(&all), "{workload:?}: {all}");
    }
}

#[test]
fn passwords_are_sent_and_refusals_reported() {
    let script = Script { delay: DELAY, password: Some("p".into()), ..Script::default() };
    let with = |password: &str| LoadOptions { password: Some(password.into()), ..options(Workload::Set) };
    assert!(measure(script.clone(), &with("p")).0.unwrap().ok > 10_000);
    assert!(matches!(measure(script, &with("q")).0, Err(LoadError::Refused(_))));
}

#[test]
fn a_server_that_is_not_there_is_said_so() {
    let down = Some((Duration::ZERO, Duration::from_secs(1000)));
    for workload in [Workload::Set, Workload::Get] {
        let (report, _) = measure(Script { delay: DELAY, down, ..Script::default() }, &options(workload));
        assert!(matches!(report, Err(LoadError::Unreachable { .. } | LoadError::Fill(_))), "{report:?}");
    }
}

#[test]
fn senseless_options_are_refused() {
    for wrong in [
        LoadOptions { clients: 0, ..options(Workload::Set) },
        LoadOptions { pipeline: 0, ..options(Workload::Set) },
        LoadOptions { keys: 0, ..options(Workload::Set) },
        LoadOptions { servers: vec![], ..options(Workload::Set) },
    ] {
        assert!(matches!(measure(Script::default(), &wrong).0, Err(LoadError::Options(_))));
    }
}
