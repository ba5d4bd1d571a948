//! The search: every choice at every step, as long as a run has deviations left, and no world twice.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use super::world::{Act, Ask, Back, Channel, Choice, Crash, Story, World};
use crate::base::Prng;

/// Which deviations are tried, at every step at which they can make a difference.
#[derive(Clone, Copy, Debug)]
pub struct Deviations {
    /// The next event comes behind everything else that waits.
    pub behind: bool,
    /// It comes after more than a lease.
    pub late: bool,
    /// It is a message and gets lost.
    pub lost: bool,
    /// Everything is late.
    pub frozen: bool,
    pub isolate: bool,
    /// A node dies.
    pub crashes: &'static [(Crash, Back)],
    /// Operators ask a node.
    pub asks: &'static [Ask],
    /// A client writes.
    pub write: bool,
}

impl Deviations {
    pub const NONE: Deviations = Deviations {
        behind: false,
        late: false,
        lost: false,
        frozen: false,
        isolate: false,
        crashes: &[],
        asks: &[],
        write: false,
    };
}

/// The way to a world: the deviations, each with the number of its step.
type Way = Option<Rc<Turn>>;

struct Turn {
    before: Way,
    step: u32,
    choice: Choice,
}

/// A rule is broken.
#[derive(Clone, Debug)]
pub struct Found {
    pub why: String,
    /// Steps from the cluster that serves.
    pub steps: u32,
    pub way: Vec<(u32, Choice)>,
}

/// What a search has seen.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Different worlds, and the steps that were made between them.
    pub worlds: usize,
    pub steps: usize,
    /// Runs that came to their end; the others met a world that was known.
    pub runs: usize,
    /// Different worlds on the way from the end of a run back to service, looked at when nothing else was to be done.
    pub recoveries: usize,
    /// The longest run, in steps.
    pub longest: u32,
    /// The search was given up at its limit of worlds.
    pub cut: bool,
    pub found: Option<Found>,
}

/// A fingerprint is a hash already.
#[derive(Default)]
struct Plain(u64);

impl Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only fingerprints are hashed");
    }
    fn write_u64(&mut self, print: u64) {
        self.0 = print;
    }
}

thread_local! {
    /// Where the search is, should an assertion of a node end it.
    static AT: RefCell<(Way, u32)> = const { RefCell::new((None, 0)) };
}

fn way_of(way: &Way) -> Vec<(u32, Choice)> {
    let mut turns = Vec::new();
    let mut at = way.clone();
    while let Some(turn) = at {
        turns.push((turn.step, turn.choice));
        at = turn.before.clone();
    }
    turns.reverse();
    turns
}

/// Everything within `budget` deviations, or up to the first broken rule, or up to `limit` worlds.
pub fn search(story: Story, deviations: &Deviations, budget: u8, limit: usize) -> Seen {
    let mut seen = Seen::default();
    let ended = catch_unwind(AssertUnwindSafe(|| follow(story, deviations, budget, limit, &mut seen)));
    if let Err(panic) = ended {
        let text =
            panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
        let why = format!("an assertion stopped a node: {}", text.unwrap_or("no word of it"));
        let (way, steps) = AT.take();
        seen.found = Some(Found { why, steps, way: way_of(&way) });
    }
    seen
}

fn follow(story: Story, deviations: &Deviations, budget: u8, limit: usize, seen: &mut Seen) {
    let mut known: HashMap<u64, u8, BuildHasherDefault<Plain>> = HashMap::default();
    let mut first = World::new(story);
    // Worlds on the way back to service, from which it was reached.
    let mut recovering: HashSet<u64, BuildHasherDefault<Plain>> = HashSet::default();
    known.insert(first.fingerprint(), budget);
    // By deviations left. Worlds with most of them left come first, so that hardly any is met again with more.
    let mut open: Vec<Vec<Branch>> = (0..=budget).map(|_| Vec::new()).collect();
    let mut rng = Prng::new(1);
    branch(first, deviations, budget, 0, &None, &mut open);
    while let Some(branches) = open.iter_mut().rev().find(|branches| !branches.is_empty()) {
        // A search that may be given up takes the last deviations in any order: what it has seen by then is a fair sample.
        let last = branches.len() - 1;
        if limit != usize::MAX && branches[last].choice != Choice::Next {
            branches.swap(rng.below(last as u64 + 1) as usize, last);
        }
        let Branch { world, choice, left, step, way } = branches.pop().expect("it is not empty");
        AT.set((way.clone(), step));
        let mut world = Rc::try_unwrap(world).unwrap_or_else(|shared| (*shared).clone());
        world.step(choice);
        seen.steps += 1;
        seen.longest = seen.longest.max(step);
        if let Some(why) = world.violation.take() {
            seen.found = Some(Found { why, steps: step, way: way_of(&way) });
            break;
        }
        match known.entry(world.fingerprint()) {
            std::collections::hash_map::Entry::Occupied(before) if *before.get() >= left => continue,
            std::collections::hash_map::Entry::Occupied(mut before) => {
                before.insert(left);
            }
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(left);
            }
        }
        if known.len() >= limit {
            seen.cut = true;
            break;
        }
        if world.over() {
            seen.runs += 1;
            if story.recovers && !world.recovers(&mut recovering) {
                let why = world.violation.take().unwrap_or_else(|| "the cluster does not recover".into());
                seen.found = Some(Found { why, steps: step, way: way_of(&way) });
                break;
            }
            continue;
        }
        branch(world, deviations, left, step, &way, &mut open);
    }
    seen.worlds = known.len();
    seen.recoveries = recovering.len();
}

/// A step that is still to be made.
struct Branch {
    world: Rc<World>,
    choice: Choice,
    left: u8,
    step: u32,
    way: Way,
}

fn branch(world: World, deviations: &Deviations, left: u8, step: u32, way: &Way, open: &mut [Vec<Branch>]) {
    let choices = list(&world, deviations, left);
    let world = Rc::new(world);
    // The usual step is taken first.
    for choice in choices.into_iter().rev() {
        let left = left - u8::from(choice != Choice::Next);
        let way = match choice {
            Choice::Next => way.clone(),
            _ => Some(Rc::new(Turn { before: way.clone(), step, choice })),
        };
        open[usize::from(left)].push(Branch { world: world.clone(), choice, left, step: step + 1, way });
    }
}

/// The choices in this world, the usual one first. What only moves a deviation to a step at which it makes no difference
/// is left out: a channel is late from the moment when it would be next, a node dies or is asked right before something
/// happens to it, or when nothing else is to be done.
fn list(world: &World, deviations: &Deviations, left: u8) -> Vec<Choice> {
    let mut out = vec![Choice::Next];
    if left == 0 {
        return out;
    }
    let next = world.next();
    let channel = next.map(|at| world.pending[at].channel);
    if let Some(channel) = channel {
        let others = world.pending.iter().any(|pending| pending.channel != channel);
        out.extend((deviations.behind && others).then_some(Choice::Behind));
        out.extend(deviations.late.then_some(Choice::Late));
        let message = matches!(channel, Channel::Link { .. } | Channel::Store(_));
        out.extend((deviations.lost && message).then_some(Choice::Lost));
        out.extend(deviations.frozen.then_some(Choice::Frozen));
    }
    for node in (0..world.nodes.len()).filter(|node| world.alive(*node)) {
        if channel.is_some_and(|channel| channel.at() != node) {
            continue;
        }
        for (crash, back) in deviations.crashes {
            out.push(Choice::Do(Act::Crash(node, *crash, *back)));
        }
        out.extend(deviations.asks.iter().map(|ask| Choice::Do(Act::Ask(node, *ask))));
        out.extend(deviations.isolate.then_some(Choice::Do(Act::Isolate(node))));
        out.extend(
            (deviations.write && world.writable(node).is_some()).then_some(Choice::Do(Act::Write(node))),
        );
    }
    out
}

/// Tells the run again, event by event.
pub fn replay(story: Story, found: &Found) {
    let told = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(story);
        world.talks = true;
        let mut turns = found.way.iter().peekable();
        for step in 0..found.steps {
            let choice = turns.next_if(|(at, _)| *at == step).map_or(Choice::Next, |(_, choice)| *choice);
            if choice != Choice::Next {
                println!("---- step {step}: {choice:?}");
            }
            world.step(choice);
        }
        println!("{}", world.violation.unwrap_or_default());
    }));
    if told.is_err() {
        println!("an assertion ended the run");
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (step {};", self.why, self.steps)?;
        self.way.iter().try_for_each(|(step, choice)| write!(f, " {step}:{choice:?}"))?;
        f.write_str(")")
    }
}
