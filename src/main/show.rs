//! The verbs that ask one running node and print its answer.

use std::path::PathBuf;
use std::time::Duration;

use baton::admin::{Exit, Failover, Request, Verb, WalKeepers};
use baton::base::Lsn;
use baton::cluster::{ClusterStatus, NodeState, NodeStatus, QueryStatus, Role, StaticRole};
use baton::config::{Config, KEYS, Key, MEMBER_KEYS, StoreChoice};
use serde_json::json;

use super::args::{self, Common};
use super::render::{bytes, print, tree};
use super::{Fail, Outcome, ask, place};

pub fn status(common: &Common) -> Outcome {
    let config = place::node(common)?;
    match ask::typed::<NodeStatus>(&config.data, Verb::Status) {
        Ok(status) => {
            print(common, &status, &status_line(&config, &status));
            Ok(Exit::Ok)
        }
        Err(fail) if fail.exit == Exit::Down => {
            let status = down_row(&config);
            print(common, &status, &format!("node {} of {} is down\n", config.node, config.cluster));
            Ok(Exit::Down)
        }
        Err(fail) => Err(fail),
    }
}

/// The row of a node that does not run, from its configuration.
pub fn down_row(config: &Config) -> NodeStatus {
    let me = config.me();
    let set = if me.upstream.is_some() { StaticRole::CascadeStandby } else { StaticRole::Standby };
    let mut row = NodeStatus::silent(config.node, &me.host, &me.peer.to_string(), set, Role::Down);
    row.data = config.data.display().to_string();
    row.client = me.client.map(|address| address.to_string());
    row
}

fn status_line(config: &Config, status: &NodeStatus) -> String {
    let lsn = |at: Option<u64>| at.map_or_else(|| "-".into(), |at| Lsn(at).to_string());
    // With Need repair the detail is part of the state's text.
    let told = status.detail.is_empty() || status.state == NodeState::NeedRepair;
    let detail = if told { String::new() } else { format!(" ({})", status.detail) };
    format!(
        "node {} of {}: {}, {}{detail}, clients {}, committed {}, applied {}\n",
        status.node,
        config.cluster,
        status.role,
        status.state_text(),
        status.client.as_deref().unwrap_or("-"),
        lsn(status.committed_lsn),
        lsn(status.applied_lsn),
    )
}

pub fn query(common: &Common) -> Outcome {
    let config = place::node(common)?;
    let query: QueryStatus = ask::typed(&config.data, Verb::Query)?;
    print(common, &query, &query.text());
    Ok(Exit::Ok)
}

pub fn cluster_status(common: &Common, detail: bool) -> Outcome {
    let config = place::node(common)?;
    let status: ClusterStatus = ask::typed(&config.data, Verb::ClusterStatus { detail })?;
    print(common, &status, &if detail { status.detail() } else { status.brief() });
    Ok(Exit::Ok)
}

pub fn failover(common: &Common, verb: &args::Failover) -> Outcome {
    let request = Failover {
        dry_run: verb.dry_run,
        alone: verb.alone,
        force: verb.force,
        expect_term: verb.expect_term,
        accept_loss: verb.accept_loss,
        timeout_ms: millis(verb.timeout),
    };
    take_over(common, request, verb.op.clone())
}

pub fn promote(common: &Common, timeout: Duration, op: Option<String>) -> Outcome {
    take_over(common, Failover { timeout_ms: millis(timeout), ..Failover::default() }, op)
}

pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn take_over(common: &Common, failover: Failover, op: Option<String>) -> Outcome {
    let config = place::node(common)?;
    let op = op.map_or_else(ask::fresh_op, Ok)?;
    let dry_run = failover.dry_run;
    let result = ask::result(ask::ask_as(&config.data, &Request::new(op, Verb::Failover(failover)))?)?;
    let head = if dry_run { "nothing was changed; this would happen:" } else { "done:" };
    print(common, &result, &format!("{head}\n{}", tree(&result)));
    Ok(Exit::Ok)
}

pub fn refreshconf(common: &Common) -> Outcome {
    let text = "nothing to refresh: roles and membership are durable in the control file and in the log\n";
    print(common, &json!({"refreshed": false, "needed": false}), text);
    Ok(Exit::Ok)
}

pub fn wal_keepers(common: &Common) -> Outcome {
    let config = place::node(common)?;
    let kept: WalKeepers = ask::typed(&config.data, Verb::WalKeepers)?;
    let mut text = format!(
        "log {} to {}: {} kept, budget {}\n",
        Lsn(kept.first_lsn),
        Lsn(kept.end_lsn),
        bytes(kept.kept_bytes),
        bytes(kept.budget_bytes)
    );
    for keeper in &kept.keepers {
        let (from, held) = (Lsn(keeper.from_lsn).to_string(), bytes(keeper.bytes));
        text += &format!("  {:<28} from {from:<14} {held}\n", keeper.reason);
    }
    print(common, &kept, &text);
    Ok(Exit::Ok)
}

pub fn check_config(common: &Common, keys: bool, file: Option<PathBuf>) -> Outcome {
    if keys {
        let describe = |keys: &[Key]| -> Vec<serde_json::Value> {
            let one = |k: &Key| json!({"key": k.name, "unit": k.unit, "default": k.default, "range": k.range, "meaning": k.meaning});
            keys.iter().map(one).collect()
        };
        let value = json!({"keys": describe(KEYS), "member_keys": describe(MEMBER_KEYS)});
        print(common, &value, &format!("{}\n[[member]]\n{}", key_table(KEYS), key_table(MEMBER_KEYS)));
        return Ok(Exit::Ok);
    }
    let path = file.map_or_else(|| place::config_path(common), Ok)?;
    let config = place::load(&path)?;
    if let Some(folder) = place::missing_store_parent(&config) {
        let message = format!("store: the folder {} does not exist", folder.display());
        return Err(Fail::usage(message, "make the folder in which the store's folder is to be"));
    }
    let survived = config.sync.failures_survived();
    let (cores, why) = config.cores_on(baton::node::processors());
    let value = json!({
        "ok": true, "file": path, "config": config.show(), "failures_survived": survived, "cores": cores,
        "cores_why": why,
    });
    let mut text = format!("{} is good\n", path.display());
    for (key, value) in config.describe() {
        text += &format!("  {key:<20} {value}\n");
    }
    if config.store != StoreChoice::None {
        text += "the store is a folder: for nodes of this machine, and it protects from nothing that takes the whole machine\n";
    }
    text += &format!(
        "each write on {} of {} voters; failover survives {survived} lost voter(s)\n",
        config.sync.k + 1,
        config.sync.voters.len()
    );
    text += &match cores {
        1 => format!("1 core: clients are served on the node's own loop ({why})\n"),
        _ => format!("{cores} cores: clients are served by {} network loops ({why})\n", cores - 1),
    };
    print(common, &value, &text);
    Ok(Exit::Ok)
}

fn key_table(keys: &[Key]) -> String {
    keys.iter()
        .map(|k| format!("{:<20} {} [{}; {}; default {}]\n", k.name, k.meaning, k.unit, k.range, k.default))
        .collect()
}
