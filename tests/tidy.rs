//! The rules of the house that a compiler does not check: who may import whom, where `unsafe` may stand, how long a
//! file may be, what the documents must mention. A rule that is wrong is changed here, with its reason in
//! `ARCHITECTURE.md`, never worked around.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms a room may import besides itself. `node` may import all; `main` is judged apart.
const IMPORTS: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("io", &["base"]),
    ("config", &["base"]),
    ("metrics", &["base"]),
    ("resp", &["base"]),
    ("record", &["base"]),
    ("wal", &["base", "record"]),
    ("store", &["base", "record"]),
    ("role", &["base"]),
    ("exec", &["base", "resp", "record", "store"]),
    ("redo", &["base", "record", "store"]),
    ("replication", &["base", "record", "wal", "role"]),
    ("rebuild", &["base", "record", "wal", "store", "role", "replication"]),
    ("cluster", &["base", "config", "role"]),
    ("admin", &["base", "metrics", "role", "cluster"]),
    ("load", &["base", "resp", "metrics", "io"]),
];

/// What the command line may use of the library: the rooms it drives, and the words their answers are made of.
const MAIN_IMPORTS: &[&str] = &["admin", "base", "cluster", "config", "io", "load", "node"];

const LINES_MAX: usize = 800;

/// Everything that may lie at the top, dot files and what `.gitignore` names apart.
const TOP_LEVEL: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "benches",
    "clippy.toml",
    "deny.toml",
    "docs",
    "perf",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "src",
    "tests",
    "tools",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A source file: its path from the root, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// The room of a library file.
    fn room(&self) -> Option<&str> {
        let (room, rest) = self.path.strip_prefix("src/")?.split_once('/')?;
        (!rest.is_empty()).then_some(room)
    }

    fn is_test(&self) -> bool {
        self.path.starts_with("tests/") || self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }

    /// The lines with their numbers, comments and what stands behind `#[cfg(test)] mod` left out.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        let lines = self.text[..end].lines().enumerate();
        lines
            .map(|(i, line)| (i + 1, line.split("//").next().unwrap_or("")))
            .filter(|(_, line)| !line.is_empty())
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let name = path.strip_prefix(root()).expect("inside the root").display().to_string();
                found.push(Source { path: name, text: read(&path) });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty());
    found
}

/// The words that follow `prefix` in a line.
fn words_after<'a>(line: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    line.match_indices(prefix).map(move |(at, _)| {
        let rest = &line[at + prefix.len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

/// Whether `word` stands in the line as a word of its own.
fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        !line[..at].chars().next_back().is_some_and(part)
            && !line[at + word.len()..].chars().next().is_some_and(part)
    })
}

fn none(broken: Vec<String>, rule: &str) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// The imports of one file that its room may not have.
fn forbidden_imports(source: &Source) -> Vec<String> {
    let main = source.path == "src/main.rs" || source.path.starts_with("src/main/");
    let (prefix, allowed) = match source.room() {
        _ if main => ("baton::", MAIN_IMPORTS),
        Some(room) => match IMPORTS.iter().find(|(name, _)| *name == room) {
            Some((_, allowed)) => ("crate::", *allowed),
            None => return Vec::new(),
        },
        None => return Vec::new(),
    };
    let rooms: BTreeSet<&str> = IMPORTS.iter().map(|(name, _)| *name).chain(["node"]).collect();
    let own = source.room().unwrap_or("");
    let mut broken = Vec::new();
    for (number, line) in source.code() {
        for word in words_after(line, prefix) {
            if rooms.contains(word) && word != own && !allowed.contains(&word) {
                broken.push(format!("{}:{number}: {own} may not import {word}", source.path));
            }
        }
    }
    broken
}

#[test]
fn rooms_import_only_what_the_table_allows() {
    let broken =
        sources(&["src"]).iter().filter(|source| !source.is_test()).flat_map(forbidden_imports).collect();
    none(broken, "the import table");
}

#[test]
fn the_import_rule_would_notice() {
    let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
    assert_eq!(forbidden_imports(&source("src/wal/log.rs", "use crate::store::Page;\n")).len(), 1);
    assert_eq!(
        forbidden_imports(&source("src/wal/log.rs", "use crate::record::Record; // crate::store\n")).len(),
        0
    );
    assert_eq!(forbidden_imports(&source("src/main/x.rs", "use baton::wal::Wal;\n")).len(), 1);
    assert_eq!(forbidden_imports(&source("src/node/x.rs", "use crate::wal::Wal;\n")).len(), 0);
}

#[test]
fn every_room_stands_in_the_table() {
    let known: BTreeSet<String> =
        IMPORTS.iter().map(|(name, _)| *name).chain(["node", "main"]).map(String::from).collect();
    for entry in fs::read_dir(root().join("src")).expect("the sources are there") {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            let room = path.file_name().expect("a name").to_string_lossy().into_owned();
            assert!(known.contains(&room), "src/{room} is not in the import table");
        }
    }
}

#[test]
fn unsafe_stands_only_in_io() {
    let mut broken = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        if source.path.starts_with("src/io/") {
            continue;
        }
        for (number, line) in source.code() {
            let found = has_word(line, "unsafe") || line.contains("allow(unsafe");
            // A line with text in quotes talks about it.
            if found && !line.contains('"') {
                broken.push(format!("{}:{number}", source.path));
            }
        }
    }
    none(broken, "unsafe outside src/io");
}

#[test]
fn files_are_short() {
    let broken = sources(&["src", "tests", "benches"])
        .iter()
        .map(|source| (source, source.text.lines().count()))
        .filter(|(_, lines)| *lines >= LINES_MAX)
        .map(|(source, lines)| format!("{}: {lines} lines", source.path))
        .collect();
    none(broken, "a file has fewer than 800 lines");
}

#[test]
fn nothing_is_left_unfinished() {
    // Put together here, so that this file does not find itself.
    let marks = ["todo", "unimplemented", "dbg"].map(|word| format!("{word}!("));
    let skipped = format!("#[{}", "ignore");
    let note = format!("TO{}", "DO");
    let mut broken = Vec::new();
    for source in sources(&["src", "tests", "benches"]) {
        for (number, line) in source.text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark))
                || line.contains(&skipped)
                || has_word(line, &note)
            {
                broken.push(format!("{}:{}: {}", source.path, number + 1, line.trim()));
            }
        }
    }
    none(broken, "unfinished work");
}

#[test]
fn every_limit_is_used() {
    let text = read("src/base/limits.rs");
    let limits: Vec<&str> = text.lines().flat_map(|line| words_after(line, "pub const ")).collect();
    assert!(limits.len() > 20);
    let all = sources(&["src"]);
    let unused = limits.iter().filter(|limit| {
        let elsewhere =
            all.iter().filter(|s| s.path != "src/base/limits.rs").any(|s| has_word(&s.text, limit));
        // A limit may exist for the sake of another one, in a const assert.
        let related = text.matches(*limit).count() > 1;
        !elsewhere && !related
    });
    none(unused.map(|limit| (*limit).to_string()).collect(), "limits that nothing obeys");
}

#[test]
fn the_top_level_holds_what_it_should() {
    let ignored = read(".gitignore");
    let ignored: Vec<&str> = ignored.lines().map(|line| line.trim_matches('/')).collect();
    let mut broken = Vec::new();
    for entry in fs::read_dir(root()).expect("the root can be listed") {
        let name = entry.expect("the root can be listed").file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str()) && !ignored.contains(&name.as_str())
        {
            broken.push(name);
        }
    }
    none(broken, "strangers at the top level");
}

/// The first cells of a document's table rows, without back-quotes.
fn documented(text: &str) -> BTreeSet<&str> {
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter_map(|row| row.split('`').next()).collect()
}

#[test]
fn every_key_is_documented_as_it_is() {
    use baton::config::{KEYS, MEMBER_KEYS};
    let text = read("docs/config.md");
    let mut broken = Vec::new();
    for key in KEYS.iter().chain(MEMBER_KEYS) {
        let row = format!("| `{}` | {} | {} | {} |", key.name, key.unit, key.default, key.range);
        if !text.contains(&row) {
            broken.push(row);
        }
    }
    none(broken, "docs/config.md has no such row");
    let known: BTreeSet<&str> = KEYS.iter().chain(MEMBER_KEYS).map(|key| key.name).collect();
    let strangers: Vec<String> = documented(&text).difference(&known).map(|key| (*key).to_string()).collect();
    none(strangers, "docs/config.md describes keys that do not exist");
}

#[test]
fn every_admin_verb_and_error_code_is_documented() {
    use baton::admin::{ErrorCode, Failover, PolicySet, StopMode, Switchover, Verb, WantedRole};
    let text = read("docs/admin.md");
    let documented = documented(&text);
    let verbs = [
        Verb::Ping,
        Verb::Status,
        Verb::Query,
        Verb::ClusterStatus { detail: false },
        Verb::Failover(Failover::default()),
        Verb::Switchover(Switchover::default()),
        Verb::PolicySet(PolicySet::default()),
        Verb::Role { role: WantedRole::Standby, alone: false },
        Verb::History { limit: 0 },
        Verb::Reload { text: String::new(), folder: String::new() },
        Verb::Stop { mode: StopMode::Fast },
        Verb::WalKeepers,
        Verb::ConfigShow,
        Verb::Metrics,
        Verb::PolicyShow,
    ];
    for verb in verbs {
        assert!(documented.contains(verb.name()), "docs/admin.md does not describe {}", verb.name());
    }
    for code in ErrorCode::ALL {
        let word = serde_json::to_value(code).expect("a word");
        let row = format!("| `{}` | {} |", word.as_str().expect("a word"), code.exit().code());
        assert!(text.contains(&row), "docs/admin.md has no row {row}");
    }
}

#[test]
fn every_dependency_is_argued() {
    let manifest: toml::Table = read("Cargo.toml").parse().expect("Cargo.toml is TOML");
    let text = read("docs/dependencies.md");
    let argued = documented(&text);
    let mut broken = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(table) = manifest.get(section).and_then(toml::Value::as_table) else { continue };
        // The package itself stands there to get a feature for its tests.
        let others = table.keys().filter(|name| *name != env!("CARGO_PKG_NAME"));
        broken.extend(others.filter(|name| !argued.contains(name.as_str())).cloned());
    }
    none(broken, "docs/dependencies.md does not argue for");
}
