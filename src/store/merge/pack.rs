//! How entries become pages: the rules that give every node the same tree shape.
//!
//! All of them look at sizes and order only, never at page numbers, slices or caches.

use std::collections::VecDeque;

use crate::store::key::{Key, fence_between};
use crate::store::page::{CAPACITY, Child, Entry};

/// A page that is part of a long run of new entries is filled this far, so that the next inserts find room.
const FILL_TARGET: usize = CAPACITY / 8 * 7;
/// A page below this looks for a neighbour to join.
const UNDERFULL: usize = CAPACITY / 4;
/// Two neighbours join when they fill no more than this: a join must not be split again by the next insert.
const JOIN_MAX: usize = CAPACITY / 4 * 3;

/// The content of a page that has not been made yet.
#[derive(Clone, Debug)]
pub(in crate::store) enum Body {
    Leaf(Vec<Entry>),
    Inner(Vec<Child>),
}

impl Body {
    pub fn cost(&self) -> usize {
        match self {
            Body::Leaf(entries) => entries.iter().map(Entry::cost).sum(),
            Body::Inner(children) => children.iter().enumerate().map(|(i, c)| c.cost(i == 0)).sum(),
        }
    }
}

/// A node on its way to its parent: an untouched page of the old tree, or new content.
#[derive(Clone, Debug)]
pub(in crate::store) enum Node {
    Old(Child),
    New { fence: Key, body: Body, cost: usize },
}

impl Node {
    pub fn new(fence: Key, body: Body) -> Node {
        let cost = body.cost();
        assert!(cost <= CAPACITY, "content fits its page");
        Node::New { fence, body, cost }
    }

    pub fn fence(&self) -> &Key {
        match self {
            Node::Old(child) => &child.fence,
            Node::New { fence, .. } => fence,
        }
    }

    fn cost(&self) -> usize {
        match self {
            Node::Old(child) => usize::from(child.size),
            Node::New { cost, .. } => *cost,
        }
    }

    fn is_new(&self) -> bool {
        matches!(self, Node::New { .. })
    }
}

/// Whether two neighbours of `level` become one page. Pages that no change touched are left alone.
pub(super) fn joins(left: &Node, right: &Node, level: u8) -> bool {
    // The right page's first fence is not stored there, but it is in the joined page.
    let fence = if level == 0 { 0 } else { right.fence().len() };
    let underfull = left.cost() < UNDERFULL || right.cost() < UNDERFULL;
    (left.is_new() || right.is_new()) && underfull && left.cost() + right.cost() + fence <= JOIN_MAX
}

/// The joined content. `fence` is the right page's fence.
pub(super) fn join(left: Body, right: Body, fence: Key) -> Body {
    match (left, right) {
        (Body::Leaf(mut left), Body::Leaf(right)) => {
            left.extend(right);
            Body::Leaf(left)
        }
        (Body::Inner(mut left), Body::Inner(mut right)) => {
            right[0].fence = fence;
            left.extend(right);
            Body::Inner(left)
        }
        _ => unreachable!("neighbours stand on one level"),
    }
}

/// How many of the entries in front go into the next page. `total` is the cost of all that remain, or anything above
/// two pages when more is to come.
fn page_len(costs: impl Iterator<Item = usize>, total: usize) -> usize {
    let target = if total <= CAPACITY {
        CAPACITY
    } else if total <= 2 * CAPACITY {
        total / 2
    } else {
        FILL_TARGET
    };
    let (mut len, mut cost) = (0, 0);
    for next in costs {
        // One entry always fits: the limits of keys and values see to that.
        if len > 0 && (cost >= target || cost + next > CAPACITY) {
            break;
        }
        cost += next;
        len += 1;
    }
    len
}

/// Collects the entries of one old leaf's range and hands out new leaves. It holds back two pages' worth, so that
/// the last two pages share evenly what is left.
#[derive(Debug)]
pub(super) struct Packer {
    fence: Key,
    entries: VecDeque<Entry>,
    cost: usize,
    last_key: Option<Key>,
    pub made: bool,
}

impl Packer {
    /// `fence` bounds the whole range from below.
    pub fn new(fence: Key) -> Packer {
        Packer { fence, entries: VecDeque::new(), cost: 0, last_key: None, made: false }
    }

    pub fn push(&mut self, entry: Entry) -> Option<Node> {
        self.cost += entry.cost();
        self.entries.push_back(entry);
        (self.cost > 2 * CAPACITY).then(|| self.page())
    }

    pub fn finish(&mut self) -> Option<Node> {
        (!self.entries.is_empty()).then(|| self.page())
    }

    fn page(&mut self) -> Node {
        let len = page_len(self.entries.iter().map(Entry::cost), self.cost);
        let entries: Vec<Entry> = self.entries.drain(..len).collect();
        let fence = match &self.last_key {
            None => self.fence.clone(),
            Some(last) => fence_between(last, &entries[0].key),
        };
        self.last_key = entries.last().map(|e| e.key.clone());
        self.made = true;
        let node = Node::new(fence, Body::Leaf(entries));
        if let Node::New { cost, .. } = &node {
            self.cost -= cost;
        }
        node
    }
}

/// Packs the children of an inner page whose first fence is already right.
pub(super) fn pack_inner(mut children: Vec<Child>) -> Vec<Node> {
    let mut nodes = Vec::new();
    while !children.is_empty() {
        let costs = |c: &[Child]| c.iter().enumerate().map(|(i, c)| c.cost(i == 0)).collect::<Vec<_>>();
        let costs = costs(&children);
        let len = page_len(costs.iter().copied(), costs.iter().sum());
        let rest = children.split_off(len);
        nodes.push(Node::new(children[0].fence.clone(), Body::Inner(children)));
        children = rest;
    }
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::page::Value;
    use proptest::prelude::*;

    fn entry(i: u32, len: usize) -> Entry {
        Entry { key: Key::from(&i.to_be_bytes()[..]), value: Value::Inline(vec![0; len].into()) }
    }

    proptest! {
        #[test]
        fn packing_loses_nothing_and_shares_evenly(lens in prop::collection::vec(0usize..4096, 1..60)) {
            let mut packer = Packer::new(Key::EMPTY);
            let mut nodes = Vec::new();
            for (i, len) in lens.iter().enumerate() {
                nodes.extend(packer.push(entry(i as u32, *len)));
            }
            while let Some(node) = packer.finish() {
                nodes.push(node);
            }
            let keys: Vec<Key> = nodes
                .iter()
                .flat_map(|n| match n {
                    Node::New { body: Body::Leaf(entries), .. } => entries.iter().map(|e| e.key.clone()).collect(),
                    _ => Vec::new(),
                })
                .collect();
            prop_assert_eq!(keys.len(), lens.len());
            prop_assert!(keys.is_sorted());
            let total: usize = nodes.iter().map(Node::cost).sum();
            prop_assert!(total <= CAPACITY || nodes.iter().all(|n| n.cost() > CAPACITY / 8));
        }
    }
}
