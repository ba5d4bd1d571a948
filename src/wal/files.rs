//! Names of the files in the log folder.

use std::fmt;

/// A file of the log folder.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LogFile {
    /// `<016x>.wal`: the segment of that number.
    Segment(u64),
    /// `spare-<n>`: zero-written or recycled, waiting to become a segment.
    Spare(u32),
}

impl LogFile {
    /// Reads a file name; `None` for files that are not the log's.
    pub fn parse(name: &str) -> Option<LogFile> {
        let file = match name.strip_suffix(".wal") {
            Some(number) => LogFile::Segment(u64::from_str_radix(number, 16).ok()?),
            None => LogFile::Spare(name.strip_prefix("spare-")?.parse().ok()?),
        };
        // Only the one spelling that this program writes: `+1`, `A` or a missing zero name foreign files.
        (file.to_string() == name).then_some(file)
    }
}

impl fmt::Display for LogFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogFile::Segment(number) => write!(f, "{number:016x}.wal"),
            LogFile::Spare(number) => write!(f, "spare-{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_back_to_their_files() {
        for file in [
            LogFile::Segment(0),
            LogFile::Segment(0xAB_CDEF),
            LogFile::Segment(u64::MAX),
            LogFile::Spare(0),
            LogFile::Spare(77),
        ] {
            assert_eq!(LogFile::parse(&file.to_string()), Some(file));
        }
    }

    #[test]
    fn foreign_names_are_left_alone() {
        for name in [
            "",
            "1.wal",
            "000000000000000A.wal",
            "+00000000000000a.wal",
            "spare-",
            "spare-01",
            "spare-x",
            "x",
        ] {
            assert_eq!(LogFile::parse(name), None, "{name}");
        }
    }
}
