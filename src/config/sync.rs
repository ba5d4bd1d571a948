//! The synchronous rule: how many voters must hold a write, and which nodes vote.

use std::fmt;

use crate::base::NodeId;
use crate::base::limits::VOTERS_MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncKind {
    /// The leader waits for any k.
    Any,
    /// The leader waits for the first k of the list that are connected. Never shrinks the voters.
    First,
}

/// `ANY k (1, 2, 3)` or `FIRST k (1, 2, 3)`: the list names the **voters**, whichever of them leads, and `k` counts
/// the *other* voters that must have flushed a write besides the leader. So `ANY 1 (1, 2, 3)` keeps each write on two
/// of three nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyncRule {
    pub kind: SyncKind,
    pub k: usize,
    /// In the order written (it is the order of preference for `FIRST`), without doubles.
    pub voters: Vec<NodeId>,
}

impl SyncRule {
    /// The default of `protocol` section 1 for the members, in ascending order: alone k = 0, two nodes k = 1 of 2,
    /// three or four k = 1 of 3, five or more k = 2 of 5.
    pub fn default_for(members: &[NodeId]) -> SyncRule {
        let (voters, k) = match members.len() {
            0 | 1 => (members.len(), 0),
            2 => (2, 1),
            3 | 4 => (3, 1),
            _ => (5, 2),
        };
        SyncRule { kind: SyncKind::Any, k, voters: members[..voters].to_vec() }
    }

    /// Promises that a new leader needs: they meet every set that could have committed.
    pub fn recruit_quorum(&self) -> usize {
        self.voters.len() - self.k
    }

    /// Voters that may be lost while a failover still finds its quorum.
    pub fn failures_survived(&self) -> usize {
        self.k
    }
}

impl fmt::Display for SyncRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SyncKind::Any => "ANY",
            SyncKind::First => "FIRST",
        };
        let voters: Vec<String> = self.voters.iter().map(ToString::to_string).collect();
        write!(f, "{kind} {} ({})", self.k, voters.join(", "))
    }
}

/// Reads a rule. `*` in the list stands for all members. The error is (what is wrong, what to do).
pub fn parse(text: &str, members: &[NodeId]) -> Result<SyncRule, (String, String)> {
    let shape = || {
        (
            format!("{text:?} is not a synchronous rule"),
            "write ANY k (1, 2, 3) or FIRST k (1, 2, 3), where the numbers are node ids".to_string(),
        )
    };
    let (kind, rest) = text.trim().split_once(char::is_whitespace).ok_or_else(shape)?;
    let kind = match kind.to_ascii_uppercase().as_str() {
        "ANY" => SyncKind::Any,
        "FIRST" => SyncKind::First,
        _ => return Err(shape()),
    };
    let (k, list) = rest.split_once('(').ok_or_else(shape)?;
    let k: usize = k.trim().parse().map_err(|_| shape())?;
    let list = list.trim_end().strip_suffix(')').ok_or_else(shape)?;
    let voters = if list.trim() == "*" { members.to_vec() } else { parse_voters(list, members)? };
    if voters.len() > VOTERS_MAX {
        return Err((
            format!("{} voters are more than the maximum of {VOTERS_MAX}", voters.len()),
            "the others still stream, serve reads and can be promoted without a vote".into(),
        ));
    }
    if k >= voters.len() {
        return Err((
            format!("k = {k} needs at least {} voters, the list has {}", k.saturating_add(1), voters.len()),
            "k counts voters besides the leader; lower k or name more voters".into(),
        ));
    }
    Ok(SyncRule { kind, k, voters })
}

fn parse_voters(list: &str, members: &[NodeId]) -> Result<Vec<NodeId>, (String, String)> {
    let mut voters = Vec::new();
    for item in list.split(',').map(str::trim) {
        let node = item.parse().map(NodeId).map_err(|_| {
            (format!("{item:?} is no node id"), "name voters by the number of their [[member]]".to_string())
        })?;
        if !members.contains(&node) {
            let known: Vec<String> = members.iter().map(ToString::to_string).collect();
            let known = if known.is_empty() { "none".to_string() } else { known.join(", ") };
            return Err((
                format!("voter {node} is not a member"),
                format!("members: {known}; add a [[member]] or correct the list"),
            ));
        }
        if voters.contains(&node) {
            return Err((format!("voter {node} is named twice"), "name every voter once".into()));
        }
        voters.push(node);
    }
    Ok(voters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ids(ids: &[u16]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn defaults_follow_the_cluster_size() {
        let rule = |n: u16| SyncRule::default_for(&(1..=n).map(NodeId).collect::<Vec<_>>());
        assert_eq!(rule(1).to_string(), "ANY 0 (1)");
        assert_eq!(rule(2).to_string(), "ANY 1 (1, 2)");
        assert_eq!(rule(4).to_string(), "ANY 1 (1, 2, 3)");
        assert_eq!(rule(9).to_string(), "ANY 2 (1, 2, 3, 4, 5)");
        assert_eq!(rule(9).recruit_quorum(), 3);
    }

    #[test]
    fn rules_read_back_and_bad_ones_say_why() {
        let members = ids(&[1, 2, 3]);
        for text in ["ANY 1 (1, 2, 3)", "FIRST 2 (3, 1, 2)", "ANY 0 (2)"] {
            assert_eq!(parse(text, &members).unwrap().to_string(), text);
        }
        assert_eq!(parse("any 1 (*)", &members).unwrap().voters, members);
        let why = |text: &str| parse(text, &members).unwrap_err().0;
        assert!(why("ANY 3 (1,2,3)").contains("needs at least 4 voters"));
        assert!(why("ANY 18446744073709551615 (1,2,3)").contains("the list has 3"));
        assert!(why("ANY 1 (1,2,7)").contains("voter 7 is not a member"));
        assert!(why("ANY 1 (1,2,2)").contains("twice"));
        assert!(why("ANY 1 (a)").contains("no node id"));
        assert!(why("QUORUM 1 (1)").contains("not a synchronous rule"));
        assert!(why("ANY -1 (1)").contains("not a synchronous rule"));
    }

    proptest! {
        #[test]
        fn any_text_is_safe(text: String) {
            let _ = parse(&text, &ids(&[1, 2]));
        }
    }
}
