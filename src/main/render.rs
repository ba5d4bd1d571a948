//! Values for people and for programs.

use std::fmt::Write as _;
use std::io::Write as _;

use baton::base::Lsn;
use serde::Serialize;
use serde_json::Value;

use super::args::Common;

/// Prints one JSON value, or the text, on standard output.
pub fn print(common: &Common, value: &impl Serialize, text: &str) {
    let mut line =
        if common.json { serde_json::to_string(value).expect("plain data") } else { text.to_string() };
    if !line.ends_with('\n') && !line.is_empty() {
        line.push('\n');
    }
    to_stdout(&line);
}

/// A reader that went away (`baton inspect wal | head`) is no error.
pub fn to_stdout(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Tells people how it is going; programs are not disturbed.
pub fn progress(common: &Common, text: &str) {
    if !common.json {
        eprintln!("{text}");
    }
}

/// Any JSON value as indented lines of `name: value`.
pub fn tree(value: &Value) -> String {
    let mut out = String::new();
    branch(value, 0, &mut out);
    out
}

fn branch(value: &Value, depth: usize, out: &mut String) {
    let pad = "  ".repeat(depth);
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match named_leaf(name, field) {
                    Some(text) => writeln!(out, "{pad}{name}: {text}").expect("memory"),
                    None => {
                        writeln!(out, "{pad}{name}:").expect("memory");
                        branch(field, depth + 1, out);
                    }
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match leaf(item).or_else(|| row(item)) {
                    Some(text) => writeln!(out, "{pad}- {text}").expect("memory"),
                    None => {
                        writeln!(out, "{pad}-").expect("memory");
                        branch(item, depth + 1, out);
                    }
                }
            }
        }
        other => writeln!(out, "{pad}{}", leaf(other).unwrap_or_default()).expect("memory"),
    }
}

/// An object of nothing but leaves, on one line, so that a list of them reads like a table.
fn row(value: &Value) -> Option<String> {
    let fields = value.as_object()?;
    let texts: Option<Vec<String>> =
        fields.iter().map(|(name, field)| Some(format!("{name}: {}", named_leaf(name, field)?))).collect();
    texts.map(|texts| texts.join("  "))
}

/// Positions in the log as people know them from all other texts.
fn named_leaf(name: &str, value: &Value) -> Option<String> {
    match value.as_u64() {
        Some(at) if name.ends_with("_lsn") || name.contains("_lsn_") => Some(Lsn(at).to_string()),
        _ => leaf(value),
    }
}

fn leaf(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("-".into()),
        Value::String(text) => Some(text.clone()),
        Value::Object(fields) if fields.is_empty() => Some("none".into()),
        Value::Array(items) if items.is_empty() => Some("none".into()),
        Value::Object(_) | Value::Array(_) => None,
        other => Some(other.to_string()),
    }
}

/// Bytes with a unit that a person can read at a glance.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_reads_like_an_outline() {
        let value = serde_json::json!({"a": 1, "b": {"c": null, "d": []}, "e": ["x", {"f": true}]});
        assert_eq!(tree(&value), "a: 1\nb:\n  c: -\n  d: none\ne:\n  - x\n  - f: true\n");
        let value = serde_json::json!({"start_lsn": 8192, "list": [{"n": 1, "at_lsn": 0}, {"n": {"m": 2}}]});
        let text = "list:\n  - at_lsn: 0/0  n: 1\n  -\n    n:\n      m: 2\nstart_lsn: 0/2000\n";
        assert_eq!(tree(&value), text);
        assert_eq!((bytes(1023).as_str(), bytes(1536).as_str()), ("1023 B", "1.5 KiB"));
    }
}
