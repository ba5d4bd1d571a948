//! Changes of the policy on the mini cluster, without random faults.

use super::{Plan, World, pass};
use crate::base::NodeId;
use crate::role::input::{Command, Done, PolicyChange, Refusal};
use crate::role::policy::Generation;

fn started(seed: u64, nodes: u16, store: bool) -> World {
    let plan = Plan { changes: true, store, ..Plan::still(nodes) };
    let mut world = World::new(seed, plan);
    world.command(0, Command::RequestPrimary { alone: false, force: false });
    pass(&mut world, 3000);
    world
}

fn change(voters: &[u16], k: u8) -> PolicyChange {
    let voters = voters.iter().copied().map(NodeId).collect();
    PolicyChange { expected_generation: 0, voters, k, first: false, force: false, dry_run: false }
}

fn ask(world: &mut World, node: usize, wanted: PolicyChange, ms: u64) -> Result<Done, Refusal> {
    let op = world.command(node, Command::ChangePolicy(wanted));
    pass(world, ms);
    let found = world.replies.iter().find(|(answered, _)| *answered == op);
    found.unwrap_or_else(|| panic!("no answer\n{}", world.describe())).1.clone()
}

fn policy(world: &World, node: usize) -> &Generation {
    &world.nodes[node].machine.as_ref().expect("it is up").control().policy
}

fn voters(world: &World, node: usize) -> Vec<u16> {
    policy(world, node).voters.iter().map(|voter| voter.node.0).collect()
}

#[test]
fn an_operator_changes_voters_and_copies() {
    for store in [false, true] {
        let mut world = started(3, 5, store);
        assert_eq!((voters(&world, 0), policy(&world, 0).k), (vec![1, 2, 3, 4, 5], 2));
        let result = ask(&mut world, 0, change(&[1, 2, 4], 2), 3000);
        assert!(matches!(result, Ok(Done::PolicyChanged { generation: 2, .. })), "{result:?}");
        for node in 0..5 {
            assert_eq!((voters(&world, node), policy(&world, node).k), (vec![1, 2, 4], 2));
            assert_eq!(policy(&world, node).standbys.len(), 2);
        }
        let result = ask(&mut world, 0, change(&[4, 1, 2, 3], 2), 3000);
        assert!(matches!(result, Ok(Done::PolicyChanged { generation: 3, .. })), "{result:?}");
        assert_eq!(voters(&world, 4), [4, 1, 2, 3]);
        if store {
            let held = world.stored().expect("the store was told");
            assert_eq!((held.policy.number, held.pending.len()), (3, 0));
        }
    }
}

#[test]
fn what_is_impossible_or_unsafe_is_refused() {
    let mut world = started(4, 4, false);
    let bad = |result: Result<Done, Refusal>| matches!(result, Err(Refusal::BadPolicy { .. }));
    assert!(bad(ask(&mut world, 0, change(&[1, 2, 3], 3), 900)), "k of three");
    assert!(bad(ask(&mut world, 0, change(&[1, 2, 2], 1), 900)), "one voter twice");
    assert!(bad(ask(&mut world, 0, change(&[1, 9], 1), 900)), "no member");
    assert!(bad(ask(&mut world, 0, change(&[2, 3], 1), 900)), "the primary has no vote");
    assert!(bad(ask(&mut world, 0, change(&[1], 0), 900)), "fewer copies without a store and without force");
    assert!(bad(ask(&mut world, 0, change(&[1, 2, 3], 1), 900)), "what is in force already");
    let stale = PolicyChange { expected_generation: 7, ..change(&[1, 2, 4], 1) };
    let result = ask(&mut world, 0, stale, 900);
    assert_eq!(result, Err(Refusal::StaleGeneration { expected: 7, found: 1 }));
    let result = ask(&mut world, 1, change(&[1, 2], 1), 900);
    assert_eq!(result, Err(Refusal::NotPrimary { leader: Some(NodeId(1)) }));
    world.crash(3);
    pass(&mut world, 300);
    assert!(bad(ask(&mut world, 0, change(&[1, 2, 4], 1), 900)), "a new voter is dead");
    assert_eq!(policy(&world, 0).number, 1);
    let dry = PolicyChange { dry_run: true, ..change(&[1, 2], 1) };
    let result = ask(&mut world, 0, dry, 900);
    assert!(matches!(result, Ok(Done::Would { .. })), "{result:?}");
    assert_eq!(policy(&world, 0).number, 1);
}

#[test]
fn a_lone_half_of_a_pair_asks_for_one_copy_only_by_force() {
    let mut world = started(5, 2, false);
    world.crash(1);
    pass(&mut world, 4000);
    let acked = world.acked;
    assert_eq!(policy(&world, 0).number, 1, "nobody is left who could vote instead");
    assert!(matches!(ask(&mut world, 0, change(&[1], 0), 900), Err(Refusal::BadPolicy { .. })));
    let forced = PolicyChange { force: true, ..change(&[1], 0) };
    let result = ask(&mut world, 0, forced, 2000);
    assert!(matches!(result, Ok(Done::PolicyChanged { generation: 2, .. })), "{result:?}");
    assert!(policy(&world, 0).forced && world.acked > acked, "writes go on, and the record says why");
}

#[test]
fn a_silent_voter_loses_its_vote_until_it_is_back() {
    let mut world = started(6, 3, false);
    world.crash(2);
    pass(&mut world, 5000);
    assert_eq!((voters(&world, 0), policy(&world, 0).k), (vec![1, 2], 1));
    assert_eq!(policy(&world, 1).absent, [NodeId(3)]);
    world.crash(1);
    pass(&mut world, 5000);
    assert_eq!(voters(&world, 0), [1, 2], "one copy more is still asked for");
    world.start(1);
    world.start(2);
    pass(&mut world, 6000);
    for node in 0..3 {
        assert_eq!((voters(&world, node), policy(&world, node).absent.len()), (vec![1, 2, 3], 0));
    }
}

#[test]
fn a_change_waits_for_the_one_before_it() {
    let mut world = started(8, 5, false);
    for node in 1..5 {
        (world.cut[node][0], world.cut[0][node]) = (true, true);
    }
    let op = world.command(0, Command::ChangePolicy(change(&[1, 2, 3, 4], 2)));
    pass(&mut world, 20);
    let second = ask(&mut world, 0, change(&[1, 2, 3], 2), 20);
    assert!(matches!(second, Err(Refusal::Busy | Refusal::ChangePending { .. })), "{second:?}");
    world.heal();
    pass(&mut world, 20_000);
    assert!(world.replies.iter().any(|(answered, _)| *answered == op), "{}", world.describe());
}
