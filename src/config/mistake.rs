//! What is wrong with a configuration, said so that the reader can mend it.

use std::fmt;

/// One mistake. `line` counts from 1; 0 means that the mistake belongs to no line (a key is missing).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mistake {
    pub line: usize,
    /// The key, empty when the text is not TOML at all.
    pub key: String,
    /// One sentence: what is wrong.
    pub what: String,
    /// What to do instead.
    pub hint: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        if !self.hint.is_empty() {
            write!(f, " ({})", self.hint)?;
        }
        Ok(())
    }
}

/// Every mistake of one text, in the order of the lines. Never empty when it is returned as an error.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Mistakes(pub Vec<Mistake>);

impl Mistakes {
    pub(super) fn push(
        &mut self,
        line: usize,
        key: impl Into<String>,
        what: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.0.push(Mistake { line, key: key.into(), what: what.into(), hint: hint.into() });
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mistake) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{mistake}")?;
        }
        Ok(())
    }
}
impl std::error::Error for Mistakes {}
