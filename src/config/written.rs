//! What the operator typed: every key with its line and its raw value, before anything is believed.

use toml::de::{DeTable, DeValue};

use super::keys::{KEYS, Key, MEMBER_KEYS, nearest};
use super::mistake::Mistakes;

/// A value as TOML knows it, reduced to what keys of baton can be.
#[derive(Clone, PartialEq, Debug)]
pub enum Raw {
    Text(String),
    Number(i64),
    Truth(bool),
    /// Something that no key accepts; the word names it for the message.
    Other(&'static str),
}

impl Raw {
    /// The value as the reader wrote it, for messages.
    pub fn shown(&self) -> String {
        match self {
            Raw::Text(text) => format!("{text:?}"),
            Raw::Number(number) => number.to_string(),
            Raw::Truth(truth) => truth.to_string(),
            Raw::Other(kind) => (*kind).to_string(),
        }
    }
}

/// One `key = value`.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    pub key: &'static str,
    pub line: usize,
    pub value: Raw,
}

/// One table of entries with known keys.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Section {
    /// Line of the table's head; 0 for the file itself.
    pub line: usize,
    pub entries: Vec<Entry>,
}

impl Section {
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

/// The whole file.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Written {
    pub top: Section,
    pub members: Vec<Section>,
}

/// Turns byte offsets into lines.
struct Lines<'a>(&'a str);

impl Lines<'_> {
    fn at(&self, offset: usize) -> usize {
        let end = offset.min(self.0.len());
        self.0.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count() + 1
    }
}

/// Reads the text. Mistakes of form (not TOML, unknown keys) are added to `mistakes`; what could be read is returned.
pub fn read(text: &str, mistakes: &mut Mistakes) -> Written {
    let lines = Lines(text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let line = error.span().map_or(0, |span| lines.at(span.start));
        let what = error.message().lines().next().unwrap_or("not TOML").to_string();
        mistakes.push(line, "", what, "the file is TOML: one `key = value` per line, text in double quotes");
    }
    let mut written =
        Written { top: section(table.get_ref(), 0, KEYS, &lines, mistakes), members: Vec::new() };
    let member = written.top.entries.iter().position(|entry| entry.key == "member");
    if let Some(at) = member {
        let entry = written.top.entries.remove(at);
        let value = table.get_ref().iter().find(|(key, _)| key.get_ref() == "member").map(|(_, value)| value);
        written.members = members(value.map(|v| v.get_ref()), entry.line, &lines, mistakes);
    }
    written
}

fn members(
    value: Option<&DeValue<'_>>,
    line: usize,
    lines: &Lines<'_>,
    mistakes: &mut Mistakes,
) -> Vec<Section> {
    let Some(DeValue::Array(array)) = value else {
        mistakes.push(
            line,
            "member",
            "member is not a list of tables",
            "start each member with a line [[member]]",
        );
        return Vec::new();
    };
    let mut members = Vec::new();
    for item in array.iter() {
        let line = lines.at(item.span().start);
        match item.get_ref() {
            DeValue::Table(table) => members.push(section(table, line, MEMBER_KEYS, lines, mistakes)),
            _ => mistakes.push(
                line,
                "member",
                "a member is not a table",
                "start each member with a line [[member]]",
            ),
        }
    }
    members
}

fn section(
    table: &DeTable<'_>,
    line: usize,
    keys: &'static [Key],
    lines: &Lines<'_>,
    mistakes: &mut Mistakes,
) -> Section {
    let mut section = Section { line, entries: Vec::new() };
    for (typed, value) in table {
        let line = lines.at(typed.span().start);
        let name = typed.get_ref().as_ref();
        match keys.iter().find(|key| key.name == name) {
            Some(key) => section.entries.push(Entry { key: key.name, line, value: raw(value.get_ref()) }),
            None => {
                let hint = match nearest(name, keys) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "`baton check-config --keys` lists every key".into(),
                };
                let shown: String = name.chars().take(64).collect();
                mistakes.push(line, shown, "there is no such key", hint);
            }
        }
    }
    section.entries.sort_by_key(|entry| entry.line);
    section
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("a huge number"), Raw::Number),
        DeValue::Boolean(truth) => Raw::Truth(*truth),
        DeValue::Float(_) => Raw::Other("a number with a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(_) => Raw::Other("a list"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_and_values_survive() {
        let mut mistakes = Mistakes::default();
        let text = "# one\ncluster = \"a\"\nnode = 0x10\n\n[[member]]\nnode = 1\n[[member]]\nnode = 2\nnofailover = true\n";
        let written = read(text, &mut mistakes);
        assert_eq!(mistakes, Mistakes::default());
        assert_eq!(written.top.get("cluster").unwrap().line, 2);
        assert_eq!(written.top.get("node").unwrap().value, Raw::Number(16));
        assert_eq!(written.members.len(), 2);
        assert_eq!(written.members[1].get("nofailover").unwrap().line, 9);
    }

    #[test]
    fn form_mistakes_name_their_line_and_the_likely_key() {
        let mut mistakes = Mistakes::default();
        read("cluster = \"a\"\nnoed = 1\nsync = \n[[member]]\npeeer = \"x\"\n", &mut mistakes);
        let shown = mistakes.to_string();
        assert!(shown.contains("line 2: noed: there is no such key (did you mean `node`?)"), "{shown}");
        assert!(shown.contains("line 3: "), "{shown}");
        assert!(shown.contains("line 5: peeer: there is no such key (did you mean `peer`?)"), "{shown}");
    }
}
