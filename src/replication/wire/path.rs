//! The way that a stream takes from the leader down.

use crate::base::NodeId;
use crate::base::limits::NODES_MAX;

/// Node ids from the leader down to the node that sends; nobody stands in it twice.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Path {
    len: u8,
    /// Zero behind `len`.
    nodes: [NodeId; NODES_MAX],
}

impl Default for Path {
    fn default() -> Path {
        Path { len: 0, nodes: [NodeId(0); NODES_MAX] }
    }
}

impl std::fmt::Debug for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.nodes().iter().map(|node| node.0)).finish()
    }
}

impl Path {
    /// The path of a leader.
    pub fn of(leader: NodeId) -> Path {
        Path::default().then(leader).expect("there is room for one")
    }

    /// `None` when a node stands twice in it, or when no cluster has that many.
    pub fn from_nodes(nodes: impl IntoIterator<Item = NodeId>) -> Option<Path> {
        nodes.into_iter().try_fold(Path::default(), |path, node| path.then(node))
    }

    /// One step further down; `None` when that would be a loop, or too long for any cluster.
    pub fn then(mut self, node: NodeId) -> Option<Path> {
        if self.contains(node) || usize::from(self.len) == NODES_MAX {
            return None;
        }
        self.nodes[usize::from(self.len)] = node;
        self.len += 1;
        Some(self)
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.nodes().contains(&node)
    }

    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes[..usize::from(self.len)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_no_loop_and_an_end() {
        let path = Path::of(NodeId(1)).then(NodeId(4)).unwrap();
        assert_eq!(path.nodes(), [NodeId(1), NodeId(4)]);
        assert_eq!(path.then(NodeId(1)), None, "a loop");
        assert!(path.contains(NodeId(4)) && !path.contains(NodeId(2)));
        let all = || (1..=NODES_MAX as u16).map(NodeId);
        assert!(Path::from_nodes(all()).is_some());
        assert_eq!(Path::from_nodes(all().chain([NodeId(77)])), None, "more nodes than a cluster has");
    }
}
