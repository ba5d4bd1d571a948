//! What happened to roles and policies: the rows of `baton cluster history`.

use serde::{Deserialize, Serialize};

use crate::base::Lsn;

/// One change, as the node that it happened to wrote it down.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HistoryRow {
    /// Milliseconds since the Unix epoch, by that node's clock.
    pub at_ms: u64,
    pub node: u16,
    /// `start`, `stop`, `role`, `serve`, `follow`, `policy`, `tail`, `asked`, `config`.
    pub what: String,
    pub from: String,
    pub to: String,
    /// Number of the newest term that the node knew.
    pub term: u64,
    /// End of the node's log.
    pub lsn: u64,
    /// Who asked for it; empty when nobody did.
    pub by: String,
    /// How long nobody served, as far as this node can know.
    pub gap_ms: Option<u64>,
    /// The facts behind it, `name=value`.
    pub evidence: String,
}

/// The answer to `history`: oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct History {
    pub rows: Vec<HistoryRow>,
}

impl History {
    /// Puts the rows of several nodes in the order of their clocks.
    pub fn merged(all: impl IntoIterator<Item = History>) -> History {
        let mut rows: Vec<HistoryRow> = all.into_iter().flat_map(|history| history.rows).collect();
        rows.sort_by_key(|row| (row.at_ms, row.term, row.node));
        History { rows }
    }

    /// One line for each change.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let what = match (row.from.is_empty(), row.to.is_empty()) {
                (true, true) => row.what.clone(),
                (true, false) => format!("{} {}", row.what, row.to),
                (false, _) => format!("{} {} -> {}", row.what, row.from, row.to),
            };
            text += &format!(
                "{}  node {}  {what}  (term {}, lsn {}",
                utc(row.at_ms),
                row.node,
                row.term,
                Lsn(row.lsn)
            );
            if let Some(gap) = row.gap_ms {
                text += &format!(", gap {gap} ms");
            }
            text += ")";
            if !row.by.is_empty() {
                text += &format!("  by {}", row.by);
            }
            if !row.evidence.is_empty() {
                text += &format!("  {}", row.evidence);
            }
            text += "\n";
        }
        text
    }
}

/// `2026-11-21 14:28:40.123Z`.
fn utc(at_ms: u64) -> String {
    let (days, rest) = (at_ms / 86_400_000, at_ms % 86_400_000);
    let (year, month, day) = civil(days);
    let (hours, minutes, millis) = (rest / 3_600_000, rest / 60_000 % 60, rest % 60_000);
    format!(
        "{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02}:{:02}.{:03}Z",
        millis / 1000,
        millis % 1000
    )
}

/// Year, month and day of a day counted from 1970 (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: u16, at_ms: u64) -> HistoryRow {
        HistoryRow {
            at_ms,
            node,
            what: "role".into(),
            from: "Standby".into(),
            to: "Primary".into(),
            term: 3,
            lsn: 8192,
            by: "op a1".into(),
            gap_ms: Some(12),
            evidence: "quorum=2".into(),
        }
    }

    #[test]
    fn rows_of_several_nodes_stand_in_the_order_of_time() {
        let merged = History::merged([
            History { rows: vec![row(2, 5), row(2, 9)] },
            History { rows: vec![row(1, 7)] },
        ]);
        assert_eq!(merged.rows.iter().map(|row| row.at_ms).collect::<Vec<_>>(), [5, 7, 9]);
        let first = merged.text().lines().next().unwrap().to_string();
        assert_eq!(
            first,
            "1970-01-01 00:00:00.005Z  node 2  role Standby -> Primary  (term 3, lsn 0/2000, gap 12 ms)  by op a1  quorum=2"
        );
    }

    #[test]
    fn days_have_their_dates() {
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00.000Z");
        assert_eq!(utc(1_795_271_320_123), "2026-11-21 14:28:40.123Z");
    }
}
