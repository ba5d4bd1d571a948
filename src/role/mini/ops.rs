//! Asked again, elsewhere, under the same op id: the answer is the same, and nothing is done twice.

use std::time::Duration;

use super::{Plan, World, pass, run};
use crate::base::limits::OPS_KEPT;
use crate::base::{Lsn, NodeId, Term};
use crate::role::control::ControlState;
use crate::role::done::{Deed, OpMark, OpRecord};
use crate::role::input::{Command, Done, PolicyChange, Refusal};
use crate::role::machine::RoleMachine;

const FAILOVER: Command = Command::Failover { dry_run: false, alone: false, force: true };

fn plan(nodes: u16, store: bool) -> Plan {
    Plan { store, ..Plan::still(nodes) }
}

fn started(seed: u64, store: bool) -> World {
    let mut world = World::new(seed, plan(3, store));
    world.command(0, Command::RequestPrimary { alone: false, force: false });
    pass(&mut world, 3000);
    world
}

fn mark(name: &str) -> Option<OpMark> {
    Some(OpMark::new(name, b"what is asked"))
}

fn change() -> Command {
    let voters = vec![NodeId(1), NodeId(2), NodeId(3)];
    Command::ChangePolicy(PolicyChange {
        expected_generation: 0,
        voters,
        k: 2,
        first: false,
        force: false,
        dry_run: false,
    })
}

fn told(world: &World, op: u64) -> Option<&Result<Done, Refusal>> {
    world.replies.iter().find(|(answered, _)| *answered == op).map(|(_, result)| result)
}

fn ask(
    world: &mut World,
    node: usize,
    mark: Option<OpMark>,
    command: Command,
    ms: u64,
) -> Result<Done, Refusal> {
    let op = world.marked(node, mark, command);
    pass(world, ms);
    told(world, op).unwrap_or_else(|| panic!("no answer\n{}", world.describe())).clone()
}

fn generation(world: &World, node: usize) -> u64 {
    world.nodes[node].machine.as_ref().expect("it is up").control().policy.number
}

fn newest_term(world: &World) -> Term {
    *world.leaders.keys().max().expect("somebody led")
}

#[test]
fn the_next_primary_does_not_change_the_policy_once_more() {
    for store in [false, true] {
        let mut world = started(21, store);
        let result = ask(&mut world, 0, mark("a"), change(), 3000);
        assert!(matches!(result, Ok(Done::PolicyChanged { generation: 2, .. })), "{result:?}");
        for copy in world.nodes.iter().flat_map(|node| &node.copies) {
            let saved = ControlState::decode(copy).expect("nobody crashed").ops;
            assert_eq!(saved.iter().map(|known| known.op.mark).collect::<Vec<_>>(), [mark("a").unwrap()]);
        }
        world.crash(0);
        pass(&mut world, 300);
        // The standbys know as well, with or without a primary.
        let before = |result: Result<Done, Refusal>| match result {
            Ok(Done::Before { deed: Deed::Policy { generation }, .. }) => generation,
            other => panic!("{other:?}"),
        };
        assert_eq!(before(ask(&mut world, 2, mark("a"), change(), 10)), 2);
        world.start(0);
        pass(&mut world, 4000);
        let led = ask(&mut world, 1, mark("b"), FAILOVER, 4000);
        assert!(matches!(led, Ok(Done::Primary { .. })), "{led:?}");
        for node in 0..3 {
            assert_eq!(before(ask(&mut world, node, mark("a"), change(), 2000)), 2);
            assert_eq!(generation(&world, node), 2);
        }
        let other = Some(OpMark::new("a", b"something else"));
        assert_eq!(ask(&mut world, 1, other, change(), 100), Err(Refusal::OpReused));
    }
}

#[test]
fn a_switchover_is_remembered_by_all_whoever_dies() {
    let mut world = started(22, false);
    let over = Command::Switchover { to: Some(NodeId(2)), dry_run: false, timeout: Duration::from_secs(2) };
    // Asked on a node that is neither the old primary nor the next one.
    let result = ask(&mut world, 2, mark("over"), over.clone(), 1500);
    assert!(matches!(result, Ok(Done::SwitchedOver { leader: NodeId(2), .. })), "{result:?}");
    let term = newest_term(&world);
    world.crash(0);
    pass(&mut world, 2000);
    world.start(0);
    pass(&mut world, 2000);
    for node in 0..3 {
        let again = ask(&mut world, node, mark("over"), over.clone(), 500);
        let Ok(Done::Before { deed, .. }) = again else { panic!("node {node}: {again:?}") };
        assert_eq!(deed, Deed::Led { leader: NodeId(2), term });
    }
    assert_eq!(newest_term(&world), term, "nobody led anew");
}

/// The node that took over dies, and the one that is asked next has not even received the frame.
#[test]
fn a_laggard_finds_the_failover_in_the_log_that_it_would_lead_with() {
    for seed in 0..20 {
        let mut world = started(200 + seed, seed % 2 == 0);
        for other in [0, 1] {
            (world.cut[2][other], world.cut[other][2]) = (true, true);
        }
        pass(&mut world, 50);
        let result = ask(&mut world, 1, mark("f"), FAILOVER, 5000);
        assert!(matches!(result, Ok(Done::Primary { .. })), "seed {seed}: {result:?}");
        pass(&mut world, 500);
        let term = newest_term(&world);
        world.crash(1);
        world.heal();
        let again = ask(&mut world, 2, mark("f"), FAILOVER, 8000);
        match again {
            Ok(Done::Before { deed, .. }) => assert_eq!(deed, Deed::Led { leader: NodeId(2), term }),
            Err(Refusal::OutcomeUnknown { .. }) => {}
            other => panic!("seed {seed}: {other:?}"),
        }
        assert_eq!(newest_term(&world), term, "seed {seed}: nobody led anew\n{}", world.describe());
        let fresh = ask(&mut world, 2, mark("g"), FAILOVER, 12_000);
        assert!(matches!(fresh, Ok(Done::Primary { .. })), "seed {seed}: {fresh:?}\n{}", world.describe());
    }
}

/// The primary is cut off at some moment of the change; whatever had become of it by then, asked again it is done once.
#[test]
fn a_change_that_died_with_its_primary_is_made_by_the_next_one_and_never_twice() {
    let (mut anew, mut before) = (0, 0);
    for ms in 0..40 {
        let mut world = started(300 + ms, false);
        world.marked(0, mark("c"), change());
        let again = ask(&mut world, 0, mark("c"), change(), 0);
        assert!(matches!(again, Err(Refusal::OutcomeUnknown { .. })), "it is being worked on: {again:?}");
        pass(&mut world, ms);
        world.crash(0);
        let led = ask(&mut world, 1, None, FAILOVER, 5000);
        if led.is_err() {
            // All three were asked for already: the first one is needed.
            world.start(0);
            pass(&mut world, 6000);
        }
        let node = world.nodes.iter().position(|n| n.machine.as_ref().is_some_and(RoleMachine::serving));
        let node = node.unwrap_or_else(|| panic!("{ms}: nobody serves\n{}", world.describe()));
        world.start(0);
        pass(&mut world, 2000);
        match ask(&mut world, node, mark("c"), change(), 4000) {
            Ok(Done::PolicyChanged { .. }) => anew += 1,
            Ok(Done::Before { .. }) => before += 1,
            other => panic!("{ms}: {other:?}\n{}", world.describe()),
        }
        pass(&mut world, 1000);
        for node in 0..3 {
            assert_eq!(generation(&world, node), 2, "{ms}\n{}", world.describe());
        }
    }
    assert!(anew > 0 && before > 0, "{anew} {before}");
}

/// Random faults, and callers that ask again wherever they like: the oracle counts. What the nodes remember is what
/// stands in their logs.
#[test]
fn what_is_asked_for_again_happens_once() {
    let seeds = std::env::var("ROLE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(300u64);
    let mut kept = 0;
    for seed in 0..seeds / 3 {
        let nodes = [3, 5, 4, 2][(seed % 4) as usize];
        let plan = Plan {
            duels: seed % 5 == 0,
            changes: seed % 3 != 0,
            retries: true,
            fault_ms: [400, 1200][(seed / 4 % 2) as usize],
            ..plan(nodes, seed % 2 == 0)
        };
        let world = match std::panic::catch_unwind(|| run(seed, plan)) {
            Ok(result) => result.unwrap_or_else(|text| panic!("seed {seed}: {text}")),
            Err(_) => panic!("seed {seed}: an assertion stopped a node"),
        };
        for node in &world.nodes {
            let in_log: Vec<(OpRecord, Lsn)> = (1u64..)
                .zip(&node.log)
                .filter_map(|(end, entry)| Some((OpRecord::decode(entry.op.as_deref()?)?, Lsn(end))))
                .collect();
            let machine = node.machine.as_ref().expect("everybody is up");
            let known: Vec<_> = machine.control().ops.iter().map(|known| (known.op, known.end)).collect();
            let least = in_log.len().min(OPS_KEPT / 2);
            assert!(in_log.ends_with(&known) && known.len() >= least, "seed {seed}: {known:?}\n{in_log:?}");
            kept += known.len();
        }
    }
    assert!(kept as u64 > seeds, "{kept} ops were kept");
}
