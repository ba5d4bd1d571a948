//! A pair and a trio that decide through the control store, without random faults.

use super::{Plan, World, pass};
use crate::base::NodeId;
use crate::role::input::{Command, Done, Refusal};
use crate::role::machine::RoleMachine;
use crate::role::policy::Generation;

fn started(seed: u64, nodes: u16) -> World {
    let plan = Plan { store: true, ..Plan::still(nodes) };
    let mut world = World::new(seed, plan);
    world.command(0, Command::RequestPrimary { alone: false, force: false });
    pass(&mut world, 3000);
    assert!(policy(&world, 0).store, "the first generation says that the store decides");
    world
}

fn policy(world: &World, node: usize) -> &Generation {
    &world.nodes[node].machine.as_ref().expect("it is up").control().policy
}

fn shape(world: &World, node: usize) -> (Vec<u16>, u8, u8) {
    let policy = policy(world, node);
    (policy.voters.iter().map(|voter| voter.node.0).collect(), policy.k, policy.full_k)
}

fn serves(world: &World, node: usize) -> bool {
    world.nodes[node].machine.as_ref().is_some_and(RoleMachine::serving)
}

fn failover(world: &mut World, node: usize) -> u64 {
    world.command(node, Command::Failover { dry_run: false, alone: false, force: false })
}

fn part(world: &mut World) {
    (world.cut[0][1], world.cut[1][0]) = (true, true);
}

fn told(world: &World, op: u64) -> Option<&Result<Done, Refusal>> {
    world.replies.iter().find(|(answered, _)| *answered == op).map(|(_, result)| result)
}

#[test]
fn the_survivor_of_a_pair_leads_alone_and_takes_the_other_one_back() {
    let mut world = started(1, 2);
    world.crash(0);
    let op = failover(&mut world, 1);
    pass(&mut world, 4000);
    assert!(matches!(told(&world, op), Some(Ok(Done::Primary { .. }))), "{:?}", told(&world, op));
    assert_eq!(shape(&world, 1), (vec![2], 0, 1), "one copy, and one more is meant to be");
    let acked = world.acked;
    world.start(0);
    pass(&mut world, 6000);
    assert!(world.acked > acked && serves(&world, 1) && !serves(&world, 0));
    for node in 0..2 {
        assert_eq!(shape(&world, node), (vec![2, 1], 1, 0), "both vote again");
    }
    let held = world.stored().expect("the store was told");
    assert_eq!((held.leader, held.policy, held.pending.len()), (NodeId(2), policy(&world, 0).clone(), 0));
}

#[test]
fn of_two_parted_halves_exactly_one_goes_on() {
    for seed in 0..40 {
        let mut world = started(100 + seed, 2);
        part(&mut world);
        // The primary asks by itself after a while; the operator asks the other one somewhere around then.
        pass(&mut world, 1500 + 50 * seed);
        let op = failover(&mut world, 1);
        pass(&mut world, 20_000);
        let winner = [0, 1].map(|node| policy(&world, node).voters.len() == 1 && serves(&world, node));
        assert_eq!(winner.iter().filter(|won| **won).count(), 1, "seed {seed}\n{}", world.describe());
        assert_eq!(winner[1], matches!(told(&world, op), Some(Ok(_))), "{:?}", told(&world, op));
        let acked = world.acked;
        world.heal();
        pass(&mut world, 15_000);
        assert!(world.acked > acked, "seed {seed}\n{}", world.describe());
        assert_eq!(policy(&world, 0).voters.len(), 2, "seed {seed}\n{}", world.describe());
        assert_eq!(policy(&world, 0), policy(&world, 1), "seed {seed}\n{}", world.describe());
    }
}

#[test]
fn a_primary_without_its_voter_asks_for_fewer_copies_and_raises_them_again() {
    for (seed, nodes) in [(7, 2), (8, 3), (9, 5)] {
        let mut world = started(seed, nodes);
        let (full, k) = (policy(&world, 0).voters.len(), policy(&world, 0).k);
        (1..usize::from(nodes)).for_each(|node| world.crash(node));
        pass(&mut world, 1000);
        let waiting = world.acked;
        pass(&mut world, 1000);
        assert_eq!(world.acked, waiting, "no reply leaves for a while");
        pass(&mut world, 4000);
        assert_eq!(shape(&world, 0), (vec![1], 0, k), "{}", world.describe());
        assert!(world.acked > waiting);
        (1..usize::from(nodes)).for_each(|node| world.start(node));
        pass(&mut world, 15_000);
        for node in 0..full {
            let (voters, copies, lowered) = shape(&world, node);
            assert_eq!((voters.len(), copies, lowered), (full, k, 0), "{}", world.describe());
        }
    }
}

#[test]
fn nothing_is_decided_while_the_store_is_silent() {
    let mut world = started(11, 2);
    world.store_down = true;
    let acked = world.acked;
    pass(&mut world, 2000);
    assert!(world.acked > acked, "writes need no store");
    world.crash(0);
    let op = failover(&mut world, 1);
    pass(&mut world, 20_000);
    assert!(matches!(told(&world, op), Some(Err(Refusal::StoreSilent { .. }))), "{:?}", told(&world, op));
    assert!(!serves(&world, 1));
    world.store_down = false;
    let op = failover(&mut world, 1);
    pass(&mut world, 4000);
    assert!(matches!(told(&world, op), Some(Ok(Done::Primary { .. }))), "{:?}", told(&world, op));
}

#[test]
fn an_emptied_store_grants_nothing_until_the_primary_has_told_it_anew() {
    let mut world = started(12, 2);
    world.store = (0, None);
    world.crash(0);
    let op = failover(&mut world, 1);
    pass(&mut world, 3000);
    assert!(matches!(told(&world, op), Some(Err(Refusal::StoreUnusable { .. }))), "{:?}", told(&world, op));
    world.start(0);
    pass(&mut world, 1000);
    let mut world = started(13, 2);
    world.store = (0, None);
    pass(&mut world, 3000);
    assert_eq!(world.stored().expect("told anew").leader, NodeId(1));
    world.crash(0);
    let op = failover(&mut world, 1);
    pass(&mut world, 4000);
    assert!(matches!(told(&world, op), Some(Ok(Done::Primary { .. }))), "{:?}", told(&world, op));
}
