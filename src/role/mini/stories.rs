//! Whole stories on the mini cluster, without random faults.

use std::time::Duration;

use super::{Plan, World, pass};
use crate::base::NodeId;
use crate::role::input::{Command, Done, Input, Refusal};
use crate::role::machine::RoleMachine;
use crate::role::state::{Role, State};

fn world(nodes: u16) -> World {
    World::new(11, Plan::still(nodes))
}

const SECOND: Duration = Duration::from_secs(1);
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

#[test]
fn a_primary_whose_disk_hangs_lets_go_and_is_replaced_without_waiting() {
    let mut world = started(3);
    world.stall(0, true);
    assert!(!machine(&world, 0).serving() && machine(&world, 0).leading().is_none());
    pass(&mut world, 50);
    let op = world.command(1, FAILOVER);
    // The dry round waits for the node that does not answer, and for nothing else: no lease, no silence.
    pass(&mut world, 1500);
    assert!(matches!(answer(&world, op), Some(Ok(Done::Primary { .. }))), "{}", world.describe());
    let acked = world.acked;
    pass(&mut world, 500);
    assert!(world.acked > acked, "writes go on while the disk still hangs");
    let refused = world.command(0, Command::Failover { dry_run: false, alone: false, force: true });
    assert!(matches!(answer(&world, refused), Some(Err(Refusal::NotPromotable { .. }))));
    world.stall(0, false);
    pass(&mut world, 2500);
    let old = machine(&world, 0);
    assert_eq!((old.role(), old.state()), (Role::Standby, State::Normal), "{}", world.describe());
}

#[test]
fn a_primary_whose_disk_answers_again_leads_a_new_term_if_nobody_else_does() {
    let mut world = started(3);
    let term = machine(&world, 0).leading().expect("it leads");
    world.stall(0, true);
    pass(&mut world, 3000);
    assert!((0..3).all(|node| !machine(&world, node).serving()), "nobody takes over by itself");
    world.stall(0, false);
    pass(&mut world, 2500);
    assert!(machine(&world, 0).leading().is_some_and(|now| now > term), "{}", world.describe());
    assert!(machine(&world, 0).serving());
}

#[test]
fn a_standby_whose_disk_hangs_counts_for_nothing_and_comes_back() {
    let mut world = started(3);
    world.stall(2, true);
    let acked = world.acked;
    pass(&mut world, 1000);
    assert!(world.acked > acked, "the other one is enough");
    let op = world.command(0, Command::Switchover { to: Some(NodeId(3)), dry_run: false, timeout: SECOND });
    pass(&mut world, 1500);
    let result = answer(&world, op);
    assert!(matches!(result, Some(Err(Refusal::TargetUnfit { .. }))), "{result:?}");
    world.crash(0);
    pass(&mut world, 1500);
    let op = world.command(1, FAILOVER);
    pass(&mut world, 3000);
    let result = answer(&world, op);
    assert!(
        matches!(result, Some(Err(Refusal::NoQuorum { .. }))),
        "a promise of it would not last: {result:?}"
    );
    world.stall(2, false);
    let op = world.command(1, FAILOVER);
    pass(&mut world, 3000);
    assert!(matches!(answer(&world, op), Some(Ok(Done::Primary { .. }))), "{}", world.describe());
    assert_eq!(machine(&world, 2).state(), State::Normal, "{}", world.describe());
}

#[test]
fn a_restarted_primary_whose_disk_hangs_before_it_asks_still_asks() {
    let mut world = started(3);
    world.crash(0);
    world.start(0);
    world.stall(0, true);
    pass(&mut world, 3000);
    assert!((0..3).all(|node| !machine(&world, node).serving()));
    world.stall(0, false);
    pass(&mut world, 2500);
    assert!(machine(&world, 0).serving(), "{}", world.describe());
}

#[test]
fn a_restarted_voter_that_follows_a_later_term_holds_nobody_up() {
    let mut world = started(3);
    world.crash(0);
    pass(&mut world, 50);
    world.command(1, FAILOVER);
    pass(&mut world, 2000);
    world.start(0);
    let restarted = world.now;
    pass(&mut world, 300);
    assert!(machine(&world, 0).following().is_some(), "{}", world.describe());
    world.crash(1);
    pass(&mut world, 100);
    // Messages are not ordered here: a heartbeat of the dead leader may have come after the word of its death.
    world.input(0, Input::PeerDown { node: NodeId(2), process_gone: true });
    assert!(world.now < restarted + SECOND, "a lease of the process before the restart could still run");
    assert_eq!(machine(&world, 0).grants.remaining(world.now), Duration::ZERO);
}
