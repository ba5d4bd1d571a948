//! One random run: a cluster, clients, an operator and a plan of faults, all from one seed; then calm, and the oracles.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use baton::base::{Lsn, Mono, Prng};
use baton::cluster::NodeState;
use baton::io::sim::{Fault, FaultPlan, SimConfig, Span, Stats, SwarmConfig, World};
use baton::node::Glance;

use super::clients::{ClientHost, Job, KEYS, PAIR, REGISTERS, Shared, key_name};
use super::cluster::{Cluster, LITTLE_MEMORY, NO_CHECKPOINTS, STORED, ip};
use super::history::{Kind, Outcome};
use super::logs::{Change, Logs, Order, stale_beyond};
use super::operator::Operator;
use super::storm::Storm;

/// Service must be normal again this long after the last fault.
const RECOVERY: Duration = Duration::from_secs(10);
pub const SEGMENT_BYTES: u64 = 256 << 10;

/// The shape of a run.
#[derive(Clone, Debug)]
pub struct Shape {
    pub nodes: u16,
    pub workers: usize,
    pub watchers: usize,
    /// Faults strike this long.
    pub length: Duration,
    /// Cascaded standbys: (node, upstream).
    pub tree: Vec<(u16, u16)>,
}

/// Which faults a run meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    /// Anything, by the plan of the seed.
    Swarm,
    /// Two operators ask two nodes at the same moment, again and again.
    Duels,
    /// Disks are wiped and made anew under the same node id.
    Wipes,
    /// Power cuts only, many of them.
    PowerCuts,
    /// The same on slow disks with many writes in flight; what a crash left behind must be gone before anything new.
    TornTails,
    /// The primary loses its links and is succeeded, again and again.
    CutPrimary,
    /// A promise is long on its way, and the old leader still reaches the voter.
    LatePromise,
    /// The same, and the voter loses the control copy that it wrote last.
    DamagedControl,
    /// A primary that is cut off piles up a tail that is longer than what its successor commits.
    LongTail,
    /// A standby that missed writes is left with one that did not.
    Laggard,
    /// Standbys hear late what is committed, and the primary dies.
    SlowNews,
    /// An operator makes a laggard lead alone and accepts the loss.
    ForcedAlone,
    /// A voter's disk loses a frame in the middle of what it acknowledged.
    DamagedLog,
    /// Keys expire while clocks jump and primaries change.
    Expiry,
    /// Copies are raised through a control store while a voter is cut off.
    RaisedCopies,
    /// The leader dies while the control store is slow, out, or keeps its answers.
    StoreTrouble,
    /// Links are cut, and not everybody reaches the control store.
    StoreCut,
    /// Each of three nodes would be enough alone, and none reaches another: the control store decides.
    StoreDuel,
    /// A leader loses its voters for so long that it goes on alone, and dies while they come back.
    Degraded,
    /// A candidate freezes with the control store's grant, a leader with its voters'; both wake up too late.
    FrozenGrant,
}

impl Weather {
    /// Every weather that aims at something.
    pub const DIRECTED: [Weather; 14] = [
        Weather::Duels,
        Weather::Wipes,
        Weather::PowerCuts,
        Weather::TornTails,
        Weather::CutPrimary,
        Weather::LatePromise,
        Weather::DamagedControl,
        Weather::LongTail,
        Weather::Laggard,
        Weather::SlowNews,
        Weather::ForcedAlone,
        Weather::DamagedLog,
        Weather::Expiry,
        Weather::RaisedCopies,
    ];

    /// Weather for a cluster that decides through a control store; it aims at no rule that can be broken on purpose.
    pub const DECIDED: [Weather; 5] = [
        Weather::StoreTrouble,
        Weather::StoreCut,
        Weather::StoreDuel,
        Weather::Degraded,
        Weather::FrozenGrant,
    ];

    /// Means nothing without a control store.
    pub fn stored(self) -> bool {
        self == Weather::RaisedCopies || Weather::DECIDED.contains(&self)
    }

    /// Follows a script, which is also its operator.
    fn scripted(self) -> bool {
        use Weather::{CutPrimary, PowerCuts, Swarm, TornTails, Wipes};
        !matches!(self, Swarm | Wipes | PowerCuts | TornTails | CutPrimary)
    }
}

/// What a run that held its promises came to.
#[derive(Clone, Debug, Default)]
#[allow(dead_code, reason = "every field is shown when a run fails")]
pub struct Report {
    pub nodes: u16,
    pub trace: u64,
    pub simulated: Duration,
    pub acked: usize,
    pub reads: usize,
    pub doubts: usize,
    pub refused: usize,
    pub standby_reads: usize,
    pub terms: usize,
    pub failovers: u64,
    pub recovery: Duration,
    pub frames: u64,
    pub errors: BTreeMap<String, u64>,
    pub stats: Stats,
    /// How often a script came to what it is for.
    pub climaxes: u32,
}

pub struct Run {
    pub cluster: Cluster,
    hosts: Vec<ClientHost>,
    pub shared: Shared,
    pub operator: Operator,
    pub logs: Logs,
    /// What each process said it knows to be committed, since it runs.
    committed: Vec<BTreeSet<Lsn>>,
    storm: Storm,
    steps: std::vec::IntoIter<baton::io::sim::Step>,
    next_step: Option<baton::io::sim::Step>,
    calm_from: Mono,
    /// When tails are looked at next, in the weather for it.
    tails_at: Mono,
    /// Where each process's log ended when it was looked at last, and how often that has moved.
    ends: Vec<Option<(Lsn, u32)>>,
}

impl Shape {
    pub fn of_seed(rng: &mut Prng) -> Shape {
        let nodes = match rng.below(100) {
            0..5 => 1,
            5..20 => 2,
            20..70 => 3,
            70..78 => 4,
            _ => 5,
        };
        Shape {
            nodes,
            workers: rng.between(2, 6) as usize,
            watchers: rng.between(0, 2) as usize,
            length: Duration::from_millis(rng.between(1_500, 12_000)),
            tree: Vec::new(),
        }
    }
}

/// Two of three clusters with more than three nodes have cascaded standbys, some of them below others.
fn tree_of(seed: u64, nodes: u16) -> Vec<(u16, u16)> {
    let mut rng = Prng::new(seed ^ 0xCA5C_ADE5);
    if nodes < 4 || rng.below(3) == 0 {
        return Vec::new();
    }
    let mut tree: Vec<(u16, u16)> = Vec::new();
    for node in 4..=nodes {
        // Sometimes below another cascaded standby, seldom below the node that leads first.
        let upstream = if node == 5 && rng.chance(0.6) { 4 } else { rng.between(1, 4) as u16 };
        tree.push((node, upstream.min(node - 1)));
    }
    if rng.chance(0.3) {
        // The last direct standby joins them: two voters are left.
        tree.push((3, 2));
    }
    tree
}

impl Run {
    /// `stored`: through a control store, whatever the weather.
    pub fn new(seed: u64, weather: Weather, stored: bool) -> Run {
        let mut rng = Prng::new(seed);
        let mut shape = Shape::of_seed(&mut rng);
        if weather != Weather::Swarm {
            shape.nodes = 3;
        }
        shape.tree = tree_of(seed, shape.nodes);
        if weather.scripted() {
            shape.workers = 4;
            shape.length = Duration::from_millis(rng.between(5_000, 8_000));
        }
        if weather == Weather::TornTails {
            (shape.workers, shape.length) = (6, Duration::from_millis(rng.between(2_000, 5_000)));
        }
        Run::shaped(seed, &shape, (weather, stored || weather.stored()), rng)
    }

    fn shaped(seed: u64, shape: &Shape, (weather, stored): (Weather, bool), mut rng: Prng) -> Run {
        let mut sim = SimConfig::default();
        // A start that waits on a stalled disk gives up soon and is tried again.
        sim.disk.stalled_now = Duration::from_millis(500);
        // Stalls last up to three seconds: some runs notice nearly all of them, others none.
        let patience = ["200ms", "700ms", "5s"][(seed % 3) as usize];
        // A share of the seeds decides through a control store that is slow, out, or keeps its answers now and then.
        let flaky = weather == Weather::Swarm && (seed / 3) % 3 == 1;
        let store = if stored || flaky { STORED } else { "" };
        // Decay below the oldest checkpoint is not read at start: it breaks no promise, it only keeps others from catching up.
        let rare = if weather == Weather::DamagedLog { NO_CHECKPOINTS } else { "" };
        let memory =
            if weather == Weather::Swarm && !(seed / 9).is_multiple_of(4) { LITTLE_MEMORY } else { "" };
        let lines = format!("{store}{rare}{memory}commit_timeout = \"2s\"\nstall_timeout = \"{patience}\"");
        let mut cluster = Cluster::with_tree(seed, shape.nodes, sim, &lines, &shape.tree);
        cluster.store.flaky = flaky;
        let world = cluster.world.clone();
        let mut hosts = Vec::new();
        for h in 0..2 {
            let host = world.add_host(ip(101 + h));
            let mut jobs = vec![Job::Work; shape.workers.div_ceil(2)];
            if shape.nodes > 1 {
                jobs.extend(vec![Job::Watch; shape.watchers.div_ceil(2)]);
            }
            if weather == Weather::LongTail && h == 0 {
                jobs.extend([Job::Ballast; 2]);
            }
            hosts.push(ClientHost::new(&world, host, &jobs, rng.fork()));
        }
        let config = SwarmConfig {
            mean_gap: Span::millis(100, 5_000),
            lasting: Span::millis(20, 3_000),
            ..SwarmConfig::new(
                cluster.machines.iter().map(|m| m.host).collect(),
                hosts.iter().map(|h| h.host).collect(),
                shape.length,
            )
        };
        // One node alone may go down too: it comes back with everything it acknowledged.
        let config = SwarmConfig { down_at_once: config.down_at_once.max(1), ..config };
        let plan = FaultPlan::swarm(rng.next_u64(), &config);
        let swarm = weather == Weather::Swarm;
        let mut steps = if swarm { plan.steps.into_iter() } else { Vec::new().into_iter() };
        let next_step = steps.next();
        let mut shared = Shared::new(shape.nodes);
        shared.expiring = weather == Weather::Expiry;
        if !matches!(weather, Weather::Swarm) {
            shared.think = Duration::from_millis(12);
        }
        if weather == Weather::TornTails {
            shared.think = Duration::from_millis(3);
            cluster.machines.iter().for_each(|m| world.slow_disk(m.host, 8.0));
        }
        let mut logs = Logs::default();
        logs.forced = weather == Weather::ForcedAlone;
        let mut operator = Operator::new(rng.fork(), shape.nodes);
        operator.aside = weather.scripted();
        Run {
            shared,
            operator,
            logs,
            committed: vec![BTreeSet::new(); usize::from(shape.nodes)],
            ends: vec![None; usize::from(shape.nodes)],
            tails_at: if weather == Weather::TornTails { Mono(0) } else { Mono(u64::MAX) },
            calm_from: Mono(0) + plan.calm_from,
            storm: Storm::new(weather, rng.fork()),
            cluster,
            hosts,
            steps,
            next_step,
        }
    }

    /// Runs until `until`: nodes, clients, faults and the operator.
    pub fn go(&mut self, until: Mono) -> Result<(), String> {
        loop {
            let now = self.cluster.world.now();
            if now >= until {
                return Ok(());
            }
            while self.next_step.as_ref().is_some_and(|s| Mono(0) + s.at <= now) {
                let step = self.next_step.take().expect("seen");
                self.next_step = self.steps.next();
                self.strike(&step.fault);
            }
            if self.operator.look_at <= now {
                self.operator.look(&mut self.cluster);
                self.watch()?;
            }
            if self.storm.at <= now && now < self.calm_from {
                self.storm.strike(&mut self.cluster, &mut self.shared, &mut self.logs);
                if std::mem::take(&mut self.storm.look) {
                    self.watch()?;
                    self.look_at_all()?;
                }
            }
            if self.tails_at <= now {
                self.watch_tails()?;
            }
            let step = self.next_step.as_ref().map_or(until, |s| Mono(0) + s.at);
            let mut limit = until.min(step).min(self.operator.look_at).min(self.tails_at);
            if self.storm.at > now {
                limit = limit.min(self.storm.at);
            }
            if let Some(host) = self.cluster.advance(limit) {
                let clients = self.hosts.iter_mut().find(|h| h.host == host);
                match clients {
                    Some(clients) => clients.turn(&mut self.shared),
                    None => self.cluster.world.wake_at(host, None),
                }
            }
            self.look_at_the_dead()?;
            if let Some(problem) = self.shared.problems.pop().or_else(|| self.cluster.problems.pop()) {
                return Err(problem);
            }
        }
    }

    fn strike(&mut self, fault: &Fault) {
        self.cluster.world.apply(fault);
        match fault {
            Fault::Kill(host) | Fault::PowerCut(host) => {
                if let Some(node) = self.cluster.node_of(*host) {
                    self.cluster.machines[usize::from(node) - 1].node = None;
                    self.cluster.ended.push(node);
                }
            }
            Fault::Start(host) => {
                let node = self.cluster.node_of(*host).expect("plans start nodes");
                let machine = &self.cluster.machines[usize::from(node) - 1];
                if machine.node.is_none() && machine.start_at.is_none() && machine.exit.is_none() {
                    self.cluster.start(node, None);
                }
            }
            _ => {}
        }
    }

    /// What every node says of itself, looked at while the run goes on.
    fn watch(&mut self) -> Result<(), String> {
        for node in 1..=self.cluster.machines.len() as u16 {
            let Some(Glance { committed: known, applied, .. }) = self.cluster.glance(node) else { continue };
            if applied > known {
                return Err(format!("node {node} applied {applied} and knows {known} as committed"));
            }
            self.committed[usize::from(node) - 1].insert(known);
        }
        Ok(())
    }

    /// A process that has written since its start left nothing old standing behind the end of its log.
    fn watch_tails(&mut self) -> Result<(), String> {
        self.tails_at = self.cluster.world.now() + Duration::from_millis(1);
        for i in 0..self.cluster.machines.len() {
            let node = i as u16 + 1;
            // Soon after a start an old frame would lie just behind what is new; later it is written over.
            if self.ends[i].is_some_and(|(_, moves)| moves >= 8) {
                continue;
            }
            let Some(Glance { appended: end, flushed, .. }) = self.cluster.glance(node) else { continue };
            let Some((before, moves)) = self.ends[i] else {
                self.ends[i] = Some((end, 0));
                continue;
            };
            if end == before || (end > before && flushed != end) {
                continue;
            }
            self.ends[i] = Some((end, moves + 1));
            let host = self.cluster.machines[i].host;
            if end > before
                && let Some(at) = stale_beyond(&self.cluster.world, host, SEGMENT_BYTES, end)
            {
                return Err(format!("node {node} wrote up to {end}, and an old frame still stands at {at}"));
            }
        }
        Ok(())
    }

    /// Reads every log at once: nobody leads without what was committed before. Returns the log of the node that serves.
    fn look_at_all(&mut self) -> Result<Option<Order>, String> {
        let serving = self.operator.serving(&self.cluster);
        let wiped = self.storm.wiped;
        let nodes = (1..=self.cluster.machines.len() as u16).filter(|node| wiped != Some(*node));
        let orders = nodes.map(|n| Ok((n, self.read_log(n)?))).collect::<Result<Vec<_>, String>>()?;
        if !self.logs.forced {
            orders.iter().try_for_each(|(node, order)| self.logs.complete(*node, order))?;
        }
        Ok(orders.into_iter().find(|(node, _)| serving == Some(*node)).map(|(_, order)| order))
    }

    /// Reads the log of every process that just ended, before the next one changes it.
    fn look_at_the_dead(&mut self) -> Result<(), String> {
        for node in std::mem::take(&mut self.cluster.ended) {
            self.read_log(node)?;
            self.committed[usize::from(node) - 1].clear();
            self.ends[usize::from(node) - 1] = None;
        }
        Ok(())
    }

    fn read_log(&mut self, node: u16) -> Result<Order, String> {
        let i = usize::from(node) - 1;
        let host = self.cluster.machines[i].host;
        self.logs.look(&self.cluster.world, host, node, SEGMENT_BYTES, &self.committed[i])
    }

    /// The whole run with all its oracles.
    pub fn judge(&mut self) -> Result<Report, String> {
        self.go(self.calm_from)?;
        if self.logs.forced {
            // What the operator gave up is gone, and those who hold it wait for a decision.
            self.look_at_all()?;
            return Ok(self.report(Duration::ZERO));
        }
        let recovery = match self.recover() {
            Ok(recovery) => recovery,
            // Whatever else is broken says more than a service that does not come back.
            Err(stuck) => return Err(self.broken_promise().err().unwrap_or(stuck)),
        };
        self.settle()?;
        self.final_reads()?;
        self.watch()?;
        let order = self.compare_logs()?;
        self.check_against(&order)?;
        self.shared.history.check()?;
        Ok(self.report(recovery))
    }

    /// The oracles that need no recovered cluster.
    fn broken_promise(&mut self) -> Result<(), String> {
        self.shared.history.check()?;
        self.watch()?;
        if let Some(order) = self.look_at_all()? {
            self.logs.holds_committed(&order)?;
            self.check_against(&order)?;
        }
        Ok(())
    }

    /// Everything is mended: service must be normal within [`RECOVERY`].
    fn recover(&mut self) -> Result<Duration, String> {
        self.cluster.world.calm();
        self.storm.end(&mut self.cluster);
        self.shared.ballast = None;
        (self.operator.calm, self.operator.aside) = (true, false);
        let begun = self.cluster.world.now();
        // A start that a slow disk has kept for long would go on at the old pace: the operator loses patience.
        for node in 1..=self.cluster.machines.len() as u16 {
            let machine = &self.cluster.machines[usize::from(node) - 1];
            if machine.node.is_some() && self.cluster.world.busy_for(machine.host) > Duration::from_secs(1) {
                self.cluster.kill(node);
            }
        }
        loop {
            let now = self.cluster.world.now();
            if self.normal() && self.shared.last_ack > begun {
                return Ok(now.since(begun));
            }
            if now.since(begun) > RECOVERY {
                let rows = self.rows();
                return Err(format!("no normal service {RECOVERY:?} after the last fault:\n{rows}"));
            }
            self.go(now + Duration::from_millis(100))?;
        }
    }

    fn rows(&mut self) -> String {
        (1..=self.cluster.machines.len() as u16)
            .map(|node| match self.cluster.status(node) {
                Some(row) => format!(
                    "  node {node}: {} {} {} committed {} flushed {} end {} applied {}\n",
                    row["role"],
                    row["state"],
                    row["detail"],
                    row["committed_lsn"],
                    row["flushed_lsn"],
                    row["appended_lsn"],
                    row["applied_lsn"]
                ),
                None => format!("  node {node}: down\n"),
            })
            .collect()
    }

    /// One primary, everybody else follows.
    fn normal(&self) -> bool {
        let mut primaries = 0;
        for node in 1..=self.cluster.machines.len() as u16 {
            if self.storm.wiped == Some(node) {
                continue;
            }
            let Some(glance) = self.cluster.glance(node) else { return false };
            if glance.state != NodeState::Normal {
                return false;
            }
            primaries += usize::from(glance.leads());
        }
        primaries == 1
    }

    /// No new requests; everything under way ends.
    fn settle(&mut self) -> Result<(), String> {
        self.shared.quiet = true;
        let until = self.cluster.world.now() + Duration::from_millis(1_500);
        self.go(until)?;
        for clients in &self.hosts {
            self.cluster.world.kill(clients.host);
        }
        Ok(())
    }

    /// Every key is read at the primary once more.
    fn final_reads(&mut self) -> Result<(), String> {
        // An order may outlive the faults and change the primary once more, even between two reads; and a control store
        // that keeps an answer to itself is asked again after a while.
        let (mut waits, mut attempts) = (20, 5);
        let reads = loop {
            match self.operator.serving(&self.cluster) {
                Some(node) => {
                    let reads = self.read_all(node);
                    if reads.len() == KEYS {
                        break reads;
                    }
                    attempts -= 1;
                }
                None if waits > 0 => {
                    waits -= 1;
                    let until = self.cluster.world.now() + Duration::from_millis(100);
                    self.go(until)?;
                }
                None => return Err(format!("nobody serves in calm weather:\n{}", self.rows())),
            }
            if attempts == 0 {
                return Err(format!("the primary does not answer in calm weather:\n{}", self.rows()));
            }
        };
        let now = self.cluster.world.now().0;
        for (key, value) in reads.into_iter().enumerate() {
            let id = self.shared.history.call(usize::MAX, key, Kind::Get, now);
            self.shared.history.answer(id, Outcome::Done(value), now + 1);
        }
        Ok(())
    }

    fn read_all(&mut self, node: u16) -> Vec<Option<u64>> {
        let Some(conn) = self.cluster.connect(node) else { return Vec::new() };
        (0..KEYS)
            .map_while(|key| {
                let request = format!("GET {}\r\n", key_name(key));
                let reply = self.cluster.call(conn, request.as_bytes(), Duration::from_secs(2))?;
                match baton::resp::decode(&reply).ok()? {
                    baton::resp::Value::Null => Some(None),
                    baton::resp::Value::Bulk(text) => Some(super::logs::number(text)),
                    _ => None,
                }
            })
            .collect()
    }

    fn compare_logs(&mut self) -> Result<Order, String> {
        let order = self.look_at_all()?.ok_or("nobody serves at the end")?;
        self.logs.holds_committed(&order)?;
        Ok(order)
    }

    /// What clients saw against what the last primary's log says.
    fn check_against(&self, order: &Order) -> Result<(), String> {
        let nothing = Vec::new();
        let changes = |key: usize| order.keys.get(key_name(key).as_bytes()).unwrap_or(&nothing);
        let mut written: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
        for operation in &self.shared.history.operations {
            let Kind::Set(value) = operation.kind else { continue };
            let written = written.entry(operation.key).or_insert_with(|| {
                let mut values: Vec<u64> = changes(operation.key).iter().filter_map(|c| c.value).collect();
                values.sort_unstable();
                values
            });
            let count = written.partition_point(|v| *v <= value) - written.partition_point(|v| *v < value);
            match (operation.outcome, count) {
                (Outcome::Done(_), 1) | (Outcome::Doubt | Outcome::Weak, 0 | 1) | (Outcome::Refused, 0) => {}
                (outcome, count) => {
                    return Err(format!(
                        "{operation:?}: told {outcome:?}, but stands {count} times in the log"
                    ));
                }
            }
        }
        for key in REGISTERS..PAIR {
            let acked =
                self.shared.history.operations.iter().filter(|o| o.key == key && o.kind == Kind::Incr);
            for operation in acked {
                let Outcome::Done(seen) = operation.outcome else { continue };
                if !changes(key).iter().any(|c| c.value == seen) {
                    return Err(format!("{operation:?}: its effect is not in the log"));
                }
            }
        }
        self.check_standbys(changes)
    }

    /// On one connection to one standby, what is read never goes back and was committed.
    fn check_standbys<'a>(&self, changes: impl Fn(usize) -> &'a Vec<Change>) -> Result<(), String> {
        let mut places: BTreeMap<(u64, usize), usize> = BTreeMap::new();
        for read in &self.shared.standby_reads {
            let place = places.entry((read.session, read.key)).or_default();
            // Place n: the state after the first n changes.
            let all = changes(read.key);
            let state = |n: usize| if n == 0 { None } else { all[n - 1].value };
            match (*place..=all.len()).find(|n| state(*n) == read.value) {
                Some(n) => *place = n,
                None => {
                    let ever = all.iter().any(|c| c.value == read.value);
                    let what = if ever { "went back in time" } else { "showed what was never committed" };
                    return Err(format!("a standby {what}: {read:?}, place {place} of {}", all.len()));
                }
            }
        }
        Ok(())
    }

    fn report(&self, recovery: Duration) -> Report {
        let history = &self.shared.history;
        let count = |outcome: Outcome| {
            history.operations.iter().filter(|o| o.kind.writes() && o.outcome == outcome).count()
        };
        let world: &World = &self.cluster.world;
        Report {
            nodes: self.shared.nodes,
            trace: world.trace_hash(),
            simulated: world.now().since(Mono(0)),
            acked: history.acked_writes,
            reads: history.reads,
            doubts: count(Outcome::Doubt),
            refused: count(Outcome::Refused),
            standby_reads: self.shared.standby_reads.len(),
            terms: self.logs.terms().len(),
            failovers: self.operator.failovers,
            recovery,
            frames: self.logs.checked,
            errors: self.shared.errors.clone(),
            stats: world.stats(),
            climaxes: self.storm.climaxes,
        }
    }
}
