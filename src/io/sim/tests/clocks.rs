//! Deadlines, drift, wall time, pauses.

use super::*;

const A: HostId = HostId(0);

#[test]
fn a_deadline_is_kept_on_the_hosts_own_clock() {
    for ppm in [-500, 0, 500] {
        let mut rig = Rig::new(4, 1);
        rig.run(ms(10));
        rig.world.set_drift(A, ppm);
        let deadline = rig.seam(A).now() + secs(100);
        let began = rig.world.now();
        rig.world.wake_at(A, Some(deadline));
        assert_eq!(rig.world.next(), Some(Due::Turn(A)));
        assert!(rig.seam(A).now() >= deadline);
        let truly = (rig.world.now() - began).as_secs_f64();
        assert!((truly - 100.0 / (1.0 + f64::from(ppm) / 1e6)).abs() < 0.001, "{ppm}: {truly}");
        rig.seam(A).reap(None, &mut Vec::new());
        assert_eq!(rig.world.next(), None, "a deadline strikes once");
    }
}

#[test]
fn the_last_deadline_counts() {
    let mut rig = Rig::new(1, 1);
    rig.run(ms(1));
    let now = rig.seam(A).now();
    rig.seam(A).reap(Some(now + secs(1)), &mut Vec::new());
    rig.world.wake_at(A, Some(now + secs(5)));
    assert_eq!(rig.world.next_before(rig.world.now() + secs(3)), None, "the recorded deadline was replaced");
    assert_eq!(rig.world.next(), Some(Due::Turn(A)));
    let mut out = Vec::new();
    let now = rig.seam(A).now();
    rig.seam(A).reap(Some(now + ms(7)), &mut out);
    assert_eq!(rig.world.next(), Some(Due::Turn(A)), "without one, the recorded counts");
    assert!(rig.seam(A).now() >= now + ms(7));
    assert!(out.is_empty());
}

#[test]
fn a_past_deadline_means_a_turn_soon_but_time_passes() {
    let mut rig = Rig::new(1, 1);
    rig.run(ms(1));
    let mut last = Mono(0);
    for _ in 0..100 {
        rig.world.wake_at(A, Some(Mono(0)));
        assert_eq!(rig.world.next(), Some(Due::Turn(A)));
        rig.seam(A).reap(Some(Mono(0)), &mut Vec::new());
        let now = rig.seam(A).now();
        assert!(now > last, "a turn takes time");
        last = now;
    }
}

#[test]
fn a_paused_host_takes_no_turns_and_then_finds_its_deadline_past() {
    let mut rig = Rig::new(1, 1);
    rig.run(ms(1));
    let deadline = rig.seam(A).now() + secs(1);
    rig.world.wake_at(A, Some(deadline));
    rig.world.pause(A);
    assert_eq!(rig.world.next_before(rig.world.now() + secs(60)), None);
    rig.world.resume(A);
    assert_eq!(rig.world.next(), Some(Due::Turn(A)));
    assert!(rig.seam(A).now() >= deadline + secs(58), "its clock went on");
}

#[test]
fn wall_clocks_differ_and_jump_without_touching_the_monotonic() {
    let mut rig = Rig::new(9, 2);
    let (a, b) = (rig.seam(A).wall(), rig.seam(HostId(1)).wall());
    assert_ne!(a, b);
    assert!(a.0.abs_diff(b.0) <= 1000);
    let mono = rig.seam(A).now();
    rig.world.jump_wall(A, -3_600_000);
    assert_eq!(rig.seam(A).wall().0, a.0 - 3_600_000);
    assert_eq!(rig.seam(A).now(), mono);
}

#[test]
fn a_reboot_restarts_the_boot_time_clock_and_a_restart_does_not() {
    let mut rig = Rig::new(2, 1);
    rig.run(secs(2000));
    let before = rig.seam(A).now();
    rig.world.kill(A);
    rig.start(A);
    assert!(rig.seam(A).now() >= before);
    rig.world.power_cut(A);
    rig.start(A);
    assert!(rig.seam(A).now() < before, "below 1000 s of uptime at boot");
}

/// A start that takes long is over before the first turn: otherwise the clock would run back, and a timer set during the
/// start would lie far ahead.
#[test]
fn no_turn_begins_before_a_slow_start_is_over() {
    let mut rig = Rig::new(1, 1);
    let file = rig.create(A, "/f");
    rig.start(A);
    for _ in 0..100 {
        rig.seam(A).write_now(file, 0, &blocks(1, 1)).unwrap_or(());
        rig.seam(A).sync_folder(std::path::Path::new("/")).unwrap();
    }
    let (busy, after) = (rig.world.busy_for(A), rig.seam(A).now());
    assert!(busy > ms(20));
    assert_eq!(rig.world.next(), Some(Due::Turn(A)));
    assert!(rig.seam(A).now() >= after && rig.world.now() >= crate::base::Mono(0) + busy);
    // Its successor owes nothing of that time.
    rig.seam(A).sync_folder(std::path::Path::new("/")).unwrap();
    rig.world.kill(A);
    rig.start(A);
    assert_eq!(rig.world.busy_for(A), ms(0));
}

#[test]
fn slow_calls_in_a_turn_take_the_hosts_time_only() {
    let mut rig = Rig::new(1, 2);
    rig.run(ms(1));
    let (world, before) = (rig.world.now(), rig.seam(A).now());
    let file = rig.create(A, "/f");
    for _ in 0..100 {
        rig.seam(A).write_now(file, 0, &blocks(1, 1)).unwrap();
        rig.seam(A).flush_now(file).unwrap();
    }
    assert!(rig.seam(A).now() - before > ms(20));
    assert_eq!(rig.world.now(), world);
    let now = rig.seam(A).now();
    rig.world.wake_at(A, Some(now));
    assert_eq!(rig.world.next(), Some(Due::Turn(A)));
    assert!(rig.seam(A).now() >= now, "its clock never goes back");
}
