//! A changed configuration file on a running node: what can take effect does, and the rest is named.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::admin::{ErrorCode, Request, Response, Verb};
use crate::config::{self, Config};
use crate::io::Seam;
use crate::role::Input;

use super::Node;
use super::log::Retention;

/// What is read anew at every use, so that a change takes effect at once.
const LIVE: [&str; 8] = [
    "commit",
    "commit_timeout",
    "reads",
    "client_password",
    "max_clients",
    "log_retention",
    "staleness_bound",
    "stall_timeout",
];

/// The same of a `[[member]]`.
const MEMBER_LIVE: [&str; 5] = [" host", " client", " priority", " nofailover", " apply_delay"];

/// Every difference as (key, before, after).
fn differences(old: &Config, new: &Config) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for ((key, before), (_, after)) in old.describe().into_iter().zip(new.describe()) {
        let hidden = match key {
            "client_password" => old.client_password != new.client_password,
            "peer_secret" => old.peer_secret != new.peer_secret,
            _ => false,
        };
        if before != after || hidden {
            found.push((key.to_string(), before, after));
        }
    }
    for member in &old.members {
        let Some(other) = new.member(member.node) else { continue };
        let time = |time: Option<std::time::Duration>| {
            time.map_or_else(|| "none".to_string(), config::units::show_duration)
        };
        let address =
            |at: Option<std::net::SocketAddr>| at.map_or_else(|| "none".into(), |at| at.to_string());
        let upstream =
            |node: Option<crate::base::NodeId>| node.map_or_else(|| "none".into(), |n| n.to_string());
        let pairs = [
            ("host", member.host.clone(), other.host.clone()),
            ("client", address(member.client), address(other.client)),
            ("priority", member.priority.to_string(), other.priority.to_string()),
            ("nofailover", member.nofailover.to_string(), other.nofailover.to_string()),
            ("upstream", upstream(member.upstream), upstream(other.upstream)),
            ("apply_delay", time(member.apply_delay), time(other.apply_delay)),
        ];
        for (key, before, after) in pairs.into_iter().filter(|(_, before, after)| before != after) {
            found.push((format!("member {} {key}", member.node), before, after));
        }
    }
    found
}

fn row((key, before, after): &(String, String, String)) -> Value {
    json!({ "key": key, "from": before, "to": after })
}

impl<S: Seam> Node<S> {
    pub(super) fn reload(&mut self, request: &Request) -> Response {
        let Verb::Reload { text, folder } = &request.verb else { unreachable!("the caller matched it") };
        let new = match config::parse(text, Path::new(folder)) {
            Ok(new) => new,
            Err(mistakes) => {
                let lines: Vec<String> = mistakes.0.iter().map(ToString::to_string).collect();
                let hint = "nothing was changed; `baton check-config` checks a file";
                return Response::failed(&request.op, ErrorCode::Refused, lines.join("\n"), hint);
            }
        };
        if (new.node, &new.cluster, &new.data) != (self.config.node, &self.config.cluster, &self.config.data)
        {
            let text = format!(
                "this is the file of node {} of {} in {}, not of this node",
                new.node,
                new.cluster,
                new.data.display()
            );
            return Response::failed(&request.op, ErrorCode::Refused, text, "name this node's own file");
        }
        let all = differences(&self.config, &new);
        let member = |key: &str| MEMBER_LIVE.iter().any(|live| key.ends_with(live));
        let shown = |key: &str| LIVE.contains(&key) || member(key);
        let (applied, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|(key, _, _)| shown(key));
        let (policy, restart): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(key, _, _)| key == "sync");
        let mut config = Config::clone(&self.config);
        config.commit = new.commit;
        config.commit_timeout = new.commit_timeout;
        config.reads = new.reads;
        config.client_password = new.client_password.clone();
        config.max_clients = new.max_clients;
        config.log_retention = new.log_retention;
        config.staleness_bound = new.staleness_bound;
        config.stall_timeout = new.stall_timeout;
        for member in &mut config.members {
            if let Some(other) = new.member(member.node) {
                member.host.clone_from(&other.host);
                member.client = other.client;
                member.priority = other.priority;
                member.nofailover = other.nofailover;
                member.apply_delay = other.apply_delay;
            }
        }
        self.log.retention = Retention::new(config.log_retention, Some(self.log.retention.disk));
        self.config = Arc::new(config);
        self.data.delayed_until = None;
        let traits = super::boot::traits(&self.config);
        self.tell_role(Input::TraitsChanged { traits });
        self.gates_moved = true;
        let names: Vec<&str> = applied.iter().map(|(key, _, _)| key.as_str()).collect();
        tracing::info!(applied = ?names, restart = restart.len(), "configuration reloaded");
        if !applied.is_empty() {
            self.note("config", "", &names.join(", "), None, String::new());
        }
        let rows = |list: &[(String, String, String)]| list.iter().map(row).collect::<Vec<_>>();
        Response::done(
            request,
            json!({ "applied": rows(&applied), "restart": rows(&restart), "policy": rows(&policy) }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "cluster = \"a\"\nnode = 1\n";

    fn config(extra: &str) -> Config {
        config::parse(&format!("{BASE}{extra}"), Path::new("/d")).unwrap()
    }

    #[test]
    fn every_difference_is_named_once_and_secrets_stay_secret() {
        let old = config("client_password = \"one\"\n[[member]]\nnode = 1\npeer = \"127.0.0.1:8379\"\n");
        let new = config(
            "commit = \"local\"\nclient_password = \"two\"\nmemory = \"2GiB\"\n[[member]]\nnode = 1\n\
             peer = \"127.0.0.1:8379\"\npriority = 7\n",
        );
        let found = differences(&old, &new);
        let keys: Vec<&str> = found.iter().map(|(key, _, _)| key.as_str()).collect();
        assert_eq!(keys, ["memory", "commit", "client_password", "member 1 priority"]);
        assert!(found.iter().all(|(_, before, after)| !before.contains("one") && !after.contains("two")));
        assert!(differences(&old, &old).is_empty());
    }

    #[test]
    fn live_keys_are_keys() {
        for key in LIVE {
            assert!(config::KEYS.iter().any(|known| known.name == key), "{key}");
        }
    }
}
