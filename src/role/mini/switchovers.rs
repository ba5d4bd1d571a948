//! Switchovers and blackouts on the mini cluster, with a crash or a cut at every step.

use std::time::Duration;

use super::{Plan, World, pass};
use crate::base::NodeId;
use crate::role::control::Part;
use crate::role::input::{Command, Done, Refusal, Unfit};
use crate::role::machine::{RoleMachine, Traits};
use crate::role::state::{Role, State};

fn started(seed: u64, nodes: u16) -> World {
    let plan = Plan::still(nodes);
    let mut world = World::new(seed, plan);
    world.command(0, Command::RequestPrimary { alone: false, force: false });
    pass(&mut world, 3000);
    assert_eq!(primary(&world), Some(0), "{}", world.describe());
    world
}

fn primary(world: &World) -> Option<usize> {
    world.nodes.iter().position(|n| n.serving && n.machine.as_ref().is_some_and(RoleMachine::serving))
}

fn switchover(to: Option<u16>) -> Command {
    Command::Switchover { to: to.map(NodeId), dry_run: false, timeout: Duration::from_secs(2) }
}

fn answer(world: &World, op: u64) -> Option<&Result<Done, Refusal>> {
    world.replies.iter().find(|(answered, _)| *answered == op).map(|(_, result)| result)
}

fn term_of(world: &World, node: usize) -> u64 {
    world.nodes[node].machine.as_ref().and_then(RoleMachine::leading).map_or(0, |term| term.number)
}

#[test]
fn a_switchover_moves_the_primary_and_loses_nothing() {
    for (nodes, asked, to, expected) in
        [(3, 0, Some(2), 1), (3, 2, None, 2), (3, 1, Some(3), 2), (2, 1, None, 1), (5, 0, Some(5), 4)]
    {
        let mut world = started(7, nodes);
        let op = world.command(asked, switchover(to));
        pass(&mut world, 2000);
        let result = answer(&world, op);
        let expected_id = NodeId(expected as u16 + 1);
        assert!(
            matches!(result, Some(Ok(Done::SwitchedOver { leader, .. })) if *leader == expected_id),
            "{nodes} nodes, asked on {asked}: {result:?}\n{}",
            world.describe()
        );
        assert_eq!(primary(&world), Some(expected), "{}", world.describe());
        assert_eq!(world.in_doubt, 0, "no write of a client was in doubt");
        let old = world.nodes[0].machine.as_ref().unwrap();
        assert_eq!((old.role(), old.state()), (Role::Standby, State::Normal), "{}", world.describe());
        assert_eq!(old.control().operation, None);
        let acked = world.acked;
        pass(&mut world, 500);
        assert!(world.acked > acked, "writes go on");
    }
}

#[test]
fn there_and_back_and_there_again() {
    let mut world = started(3, 3);
    for round in 0..6 {
        let to = [2u16, 3, 1][round % 3];
        let op = world.command(round % 3, switchover(Some(to)));
        pass(&mut world, 2000);
        let result = answer(&world, op);
        assert!(matches!(result, Some(Ok(Done::SwitchedOver { .. }))), "{round}: {result:?}");
    }
    assert_eq!(world.in_doubt, 0);
}

#[test]
fn an_aborted_switchover_changes_nothing_and_after_the_hand_over_it_is_too_late() {
    let mut aborted = 0;
    let mut late = 0;
    for wait in 0..60 {
        let mut world = started(7, 3);
        let none = world.command(0, Command::AbortSwitchover);
        assert_eq!(answer(&world, none), Some(&Err(Refusal::NoSwitchover)));
        let term = term_of(&world, 0);
        let op = world.command(0, switchover(Some(2)));
        pass(&mut world, wait);
        let abort = world.command(0, Command::AbortSwitchover);
        match answer(&world, abort) {
            Some(Ok(Done::SwitchoverAborted { .. })) => {
                assert!(matches!(answer(&world, op), Some(Err(Refusal::Aborted { .. }))));
                let acked = world.acked;
                pass(&mut world, 500);
                assert_eq!((primary(&world), term_of(&world, 0)), (Some(0), term));
                assert!(world.acked > acked, "writes go on");
                aborted += 1;
            }
            Some(Err(Refusal::HandedOver { .. } | Refusal::NoSwitchover)) => {
                pass(&mut world, 2000);
                assert!(matches!(answer(&world, op), Some(Ok(Done::SwitchedOver { .. }))));
                late += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(aborted > 0 && late > 0, "{aborted} aborted, {late} too late");
}

#[test]
fn one_clear_reason_and_nothing_changes() {
    let mut world = started(5, 4);
    world.traits.insert(NodeId(3), Traits { nofailover: true, ..Traits::default() });
    world.traits.insert(NodeId(4), Traits { delayed: true, ..Traits::default() });
    world.crash(0);
    world.start(0);
    pass(&mut world, 4000);
    assert_eq!(primary(&world), Some(0), "{}", world.describe());
    world.crash(1);
    pass(&mut world, 300);
    let term = term_of(&world, 0);
    for (to, reason) in [
        (1, Unfit::Primary),
        (2, Unfit::Silent),
        (3, Unfit::NoFailover),
        (4, Unfit::Delayed),
        (9, Unfit::Unknown),
    ] {
        let op = world.command(0, switchover(Some(to)));
        pass(&mut world, 100);
        let refusal = Refusal::TargetUnfit { node: NodeId(to), reason };
        assert_eq!(answer(&world, op), Some(&Err(refusal)));
    }
    let op = world.command(0, switchover(None));
    pass(&mut world, 800);
    let result = answer(&world, op);
    assert!(matches!(result, Some(Err(Refusal::NoTarget { unfit })) if unfit.len() == 3), "{result:?}");
    assert_eq!((primary(&world), term_of(&world, 0)), (Some(0), term));
}

#[test]
fn a_dry_run_changes_nothing() {
    let mut world = started(5, 3);
    let term = term_of(&world, 0);
    for node in 0..3 {
        let command =
            Command::Switchover { to: Some(NodeId(2)), dry_run: true, timeout: Duration::from_secs(1) };
        let op = world.command(node, command);
        pass(&mut world, 900);
        assert!(matches!(answer(&world, op), Some(Ok(Done::Would { .. }))), "{:?}", answer(&world, op));
    }
    assert_eq!((primary(&world), term_of(&world, 0)), (Some(0), term));
}

#[test]
fn a_preferred_standby_is_chosen() {
    let mut world = started(5, 3);
    world.traits.insert(NodeId(3), Traits { priority: 200, ..Traits::default() });
    world.crash(0);
    world.start(0);
    pass(&mut world, 4000);
    let op = world.command(0, switchover(None));
    pass(&mut world, 2000);
    let result = answer(&world, op);
    assert!(matches!(result, Some(Ok(Done::SwitchedOver { leader: NodeId(3), .. }))), "{result:?}");
}

/// The target is cut off at every moment: either it leads in the end, or the old primary does. While nobody had
/// promised, the term is the same.
#[test]
fn a_target_that_is_cut_off_ends_in_one_primary() {
    let (mut aborted, mut done) = (0, 0);
    for after in (0..60).map(|step| step * 12) {
        let mut world = started(100 + after, 3);
        let term = term_of(&world, 0);
        let op = world.command(0, switchover(Some(2)));
        pass(&mut world, after);
        for other in [0, 2] {
            (world.cut[1][other], world.cut[other][1]) = (true, true);
        }
        let handed = world.nodes[0].machine.as_ref().unwrap().switching().map(|view| view.stage);
        pass(&mut world, 9_000);
        let at = primary(&world);
        assert!(at.is_some(), "cut after {after} ms at {handed:?}: nobody serves\n{}", world.describe());
        match answer(&world, op) {
            Some(Ok(Done::SwitchedOver { .. })) => done += 1,
            Some(Err(Refusal::Aborted { .. } | Refusal::TargetUnfit { .. })) => {
                aborted += 1;
                if matches!(handed, Some("asking" | "holding" | "draining")) {
                    assert_eq!((at, term_of(&world, 0)), (Some(0), term), "cut after {after} ms");
                }
            }
            other => assert!(matches!(other, Some(Err(_))), "cut after {after} ms: {other:?}"),
        }
        world.heal();
        pass(&mut world, 3_000);
        let one = (0..3).filter(|n| world.nodes[*n].serving).count();
        assert_eq!(one, 1, "cut after {after} ms\n{}", world.describe());
    }
    assert!(aborted > 3 && done > 3, "{aborted} aborted, {done} done");
}

/// One side, or both, or everybody dies at every moment and comes back: a primary serves without an operator.
#[test]
fn deaths_during_a_switchover_resolve_themselves() {
    let (mut resumed, mut rolled_back) = (0, 0);
    for after in 0..45 {
        for (case, dead) in [&[0usize][..], &[1], &[0, 1], &[0, 1, 2]].into_iter().enumerate() {
            for nodes in [3, 2] {
                let mut world = started(500 + after, nodes);
                world.command(0, switchover(Some(2)));
                pass(&mut world, after);
                for node in dead.iter().filter(|node| **node < usize::from(nodes)) {
                    world.crash(*node);
                }
                let mut order = dead.to_vec();
                if after % 2 == 0 {
                    order.reverse();
                }
                for node in order.into_iter().filter(|node| *node < usize::from(nodes)) {
                    pass(&mut world, 200);
                    world.start(node);
                }
                pass(&mut world, 15_000);
                let at = primary(&world);
                match at {
                    Some(0) => rolled_back += 1,
                    Some(1) => resumed += 1,
                    _ => panic!("after {after} ms, case {case}, {nodes} nodes: {at:?}\n{}", world.describe()),
                }
                for node in &world.nodes {
                    let operation = node.machine.as_ref().unwrap().control().operation;
                    assert_eq!(operation, None, "after {after} ms, case {case}\n{}", world.describe());
                }
            }
        }
    }
    assert!(resumed > 20 && rolled_back > 20, "{resumed} resumed, {rolled_back} rolled back");
}

/// The old primary stays dead: the target goes on with the others, because it was ordered to.
#[test]
fn a_target_finishes_without_the_old_primary() {
    let mut finished = 0;
    for after in 0..45 {
        let mut world = started(900 + after, 3);
        world.command(0, switchover(Some(2)));
        pass(&mut world, after);
        let part = world.nodes[1].machine.as_ref().unwrap().control().operation.map(|o| o.part);
        world.crash(0);
        if part == Some(Part::TakingOver) {
            pass(&mut world, 12_000);
            assert_eq!(primary(&world), Some(1), "after {after} ms\n{}", world.describe());
            finished += 1;
        }
    }
    assert!(finished > 2, "only {finished} runs died in the middle");
}

#[test]
fn a_blackout_ends_with_the_last_primary_whatever_starts_first() {
    for seed in 0..24 {
        let nodes = [3, 2, 5, 4][seed as usize % 4];
        let mut world = started(40 + seed, nodes);
        if seed % 2 == 1 {
            world.command(0, switchover(Some(2)));
            pass(&mut world, 2000);
        }
        let last = primary(&world).unwrap();
        let term = term_of(&world, last);
        (0..usize::from(nodes)).for_each(|node| world.crash(node));
        pass(&mut world, 500);
        for step in 0..usize::from(nodes) {
            world.start((step + seed as usize) % usize::from(nodes));
            pass(&mut world, (seed * 37) % 900);
        }
        pass(&mut world, 6_000);
        assert_eq!(primary(&world), Some(last), "seed {seed}\n{}", world.describe());
        assert!(term_of(&world, last) > term, "a new term, never the old one");
    }
}

#[test]
fn no_standby_takes_over_by_itself() {
    let mut world = started(8, 3);
    world.crash(0);
    pass(&mut world, 20_000);
    assert_eq!(primary(&world), None);
    for node in [1, 2] {
        world.crash(node);
        world.start(node);
    }
    pass(&mut world, 20_000);
    assert_eq!(primary(&world), None, "they never led");
    world.start(0);
    pass(&mut world, 6_000);
    assert_eq!(primary(&world), Some(0), "the old primary asks by itself");
}

#[test]
fn an_earlier_primary_lets_the_later_one_ask() {
    let mut world = started(9, 3);
    world.command(0, switchover(Some(3)));
    pass(&mut world, 2000);
    assert_eq!(primary(&world), Some(2));
    (0..3).for_each(|node| world.crash(node));
    world.start(0);
    world.start(1);
    pass(&mut world, 15_000);
    assert_eq!(primary(&world), None, "node 3 led last and is not back");
    world.start(2);
    pass(&mut world, 6_000);
    assert_eq!(primary(&world), Some(2), "{}", world.describe());
}
