//! Whole stories on the mini cluster, without random faults.

use super::{MS, Plan, World};
use crate::role::input::{Command, Done, Refusal};
use crate::role::machine::RoleMachine;
use crate::role::state::{Role, State};

fn world(nodes: u16) -> World {
    World::new(
        11,
        Plan {
            nodes,
            wipes: false,
            lossy: false,
            duels: false,
            late: false,
            changes: false,
            store: false,
            fault_ms: 1000,
        },
    )
}

const REQUEST: Command = Command::RequestPrimary { alone: false, force: false };
const FAILOVER: Command = Command::Failover { dry_run: false, alone: false, force: false };

fn started(nodes: u16) -> World {
    let mut world = world(nodes);
    let op = world.command(0, REQUEST);
    world.run_until(2000);
    assert!(matches!(answer(&world, op), Some(Ok(Done::Primary { .. }))), "{}", world.describe());
    world
}

fn answer(world: &World, op: u64) -> Option<&Result<Done, Refusal>> {
    world.replies.iter().find(|(answered, _)| *answered == op).map(|(_, result)| result)
}

fn machine(world: &World, node: usize) -> &RoleMachine {
    world.nodes[node].machine.as_ref().expect("it is up")
}

fn pass(world: &mut World, ms: u64) {
    let until = world.now.0 / MS + ms;
    world.run_until(until);
    assert_eq!(world.violation, None);
}

#[test]
fn the_first_leader_needs_everybody_once_and_binds_them() {
    let mut world = world(3);
    world.crash(2);
    world.command(0, REQUEST);
    pass(&mut world, 3000);
    assert!(!machine(&world, 0).serving(), "one voter is missing");
    world.start(2);
    pass(&mut world, 3000);
    assert!(machine(&world, 0).serving());
    for node in 0..3 {
        let policy = &machine(&world, node).control().policy;
        assert_eq!((policy.number, policy.voters.len(), policy.k), (1, 3, 1));
        assert!(policy.voters.iter().all(|v| v.incarnation == world.nodes[usize::from(v.node.0) - 1].life));
    }
}

#[test]
fn a_single_node_leads_alone_again_after_every_restart() {
    let mut world = started(1);
    for _ in 0..3 {
        world.crash(0);
        world.start(0);
        assert_eq!(machine(&world, 0).leading(), None);
        world.command(0, REQUEST);
        pass(&mut world, 2500);
        assert!(machine(&world, 0).serving(), "{}", world.describe());
    }
}

#[test]
fn a_dead_primary_is_replaced_and_rejoins_by_itself() {
    let mut world = started(3);
    world.crash(0);
    pass(&mut world, 50);
    let op = world.command(1, FAILOVER);
    pass(&mut world, 2000);
    assert!(matches!(answer(&world, op), Some(Ok(Done::Primary { .. }))), "{}", world.describe());
    world.start(0);
    pass(&mut world, 2000);
    let old = machine(&world, 0);
    assert_eq!((old.role(), old.state()), (Role::Standby, State::Normal), "{}", world.describe());
}

#[test]
fn a_restarted_primary_that_asks_again_finds_its_successor() {
    let mut world = started(3);
    world.crash(0);
    world.command(1, FAILOVER);
    pass(&mut world, 2500);
    world.start(0);
    let op = world.command(0, REQUEST);
    pass(&mut world, 3000);
    let result = answer(&world, op);
    let told = matches!(result, Some(Ok(Done::Following { .. }) | Err(Refusal::PrimaryAlive { .. })));
    assert!(told, "{result:?}\n{}", world.describe());
    assert!(machine(&world, 1).serving());
}

#[test]
fn the_survivor_of_a_pair_takes_over_only_alone_and_the_other_follows_later() {
    let mut world = started(2);
    world.crash(0);
    pass(&mut world, 1500);
    let op = world.command(1, FAILOVER);
    pass(&mut world, 1500);
    assert!(matches!(answer(&world, op), Some(Err(Refusal::NoQuorum { .. }))));
    let alone = Command::Failover { dry_run: false, alone: true, force: false };
    let op = world.command(1, alone);
    pass(&mut world, 4000);
    assert!(matches!(answer(&world, op), Some(Ok(Done::Primary { .. }))), "{}", world.describe());
    let acked = world.acked;
    pass(&mut world, 1000);
    assert!(world.acked > acked, "one copy is enough now");
    world.start(0);
    world.command(0, REQUEST);
    pass(&mut world, 3000);
    let policy = &machine(&world, 0).control().policy;
    assert_eq!((policy.number, policy.k, policy.forced), (2, 0, true));
    assert_eq!(machine(&world, 0).state(), State::Normal, "{}", world.describe());
}

#[test]
fn a_forgotten_half_of_a_pair_cannot_lead_behind_the_others_back() {
    let mut world = started(2);
    world.crash(0);
    pass(&mut world, 1500);
    world.command(1, Command::Failover { dry_run: false, alone: true, force: false });
    pass(&mut world, 4000);
    assert!(machine(&world, 1).serving());
    (world.cut[0][1], world.cut[1][0]) = (true, true);
    world.start(0);
    world.command(0, REQUEST);
    pass(&mut world, 20_000);
    assert_eq!(machine(&world, 0).leading(), None, "it cannot know that the other one does not lead");
    assert!(machine(&world, 1).serving());
}

#[test]
fn a_standby_without_a_vote_leads_through_the_voters_and_gets_a_seat() {
    let mut world = started(4);
    world.crash(0);
    pass(&mut world, 1500);
    let op = world.command(3, FAILOVER);
    pass(&mut world, 3000);
    assert!(matches!(answer(&world, op), Some(Ok(Done::Primary { .. }))), "{}", world.describe());
    let policy = &machine(&world, 3).control().policy;
    let voters: Vec<u16> = policy.voters.iter().map(|voter| voter.node.0).collect();
    assert_eq!((policy.number, voters), (2, vec![4, 2, 3]));
    world.start(0);
    pass(&mut world, 2000);
    assert_eq!(machine(&world, 0).control().policy.number, 2, "{}", world.describe());
}

#[test]
fn a_wiped_voter_cannot_vote_away_what_it_held() {
    let mut world = started(3);
    world.crash(0);
    world.wipe(1);
    world.start(1);
    pass(&mut world, 1500);
    for node in [1, 2] {
        let op = world.command(node, FAILOVER);
        pass(&mut world, 3000);
        assert!(matches!(answer(&world, op), Some(Err(_))), "node {} {:?}", node + 1, answer(&world, op));
    }
    world.start(0);
    pass(&mut world, 4500);
    assert!(machine(&world, 0).serving(), "who led last asks by itself\n{}", world.describe());
    let op = world.command(2, Command::Failover { dry_run: false, alone: false, force: true });
    pass(&mut world, 3000);
    assert!(matches!(answer(&world, op), Some(Ok(Done::Primary { .. }))), "{}", world.describe());
}

#[test]
fn a_living_primary_steps_aside_for_a_forced_failover_at_once() {
    let mut world = started(3);
    let op = world.command(2, FAILOVER);
    pass(&mut world, 1000);
    assert!(matches!(answer(&world, op), Some(Err(Refusal::PrimaryAlive { .. }))));
    let op = world.command(2, Command::Failover { dry_run: false, alone: false, force: true });
    pass(&mut world, 700);
    assert!(matches!(answer(&world, op), Some(Ok(Done::Primary { .. }))), "{}", world.describe());
    pass(&mut world, 1500);
    assert!(!machine(&world, 0).serving() && machine(&world, 2).serving());
}
