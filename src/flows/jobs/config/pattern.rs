//! Which guests a word of the file means.

use std::fmt;
use std::str::FromStr;

use crate::base::error::{Error, ErrorKind, Result};

/// A guest by its name, by a pattern with `*` and `?`, or by its UUID; `all` is every guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

impl Pattern {
    /// Whether a guest is meant.
    pub fn matches(&self, name: &str, uuid: Option<&str>) -> bool {
        self.0 == "all"
            || uuid.is_some_and(|uuid| uuid.eq_ignore_ascii_case(&self.0))
            || fits(self.0.as_bytes(), name.as_bytes())
    }

    /// Whether any number of guests may be meant, or none.
    pub fn is_open(&self) -> bool {
        self.0 == "all" || self.0.contains(['*', '?'])
    }

    /// The name, if it is one.
    pub fn name(&self) -> Option<&str> {
        let is_uuid = self.0.len() == 36 && self.0.matches('-').count() == 4;
        (!is_uuid && !self.is_open()).then_some(self.0.as_str())
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.is_empty() || text.contains(['/', '\0']) {
            true => Err(Error::new(ErrorKind::Usage, format!("no guest is called {text:?}"))),
            false => Ok(Self(text.to_owned())),
        }
    }
}

/// Whether a name fits a pattern with `*` and `?`, in steps that the product of both lengths bounds.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut seen, mut star) = (0, 0, None);
    while seen < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, seen));
                at += 1;
            }
            Some(byte) if *byte == b'?' || Some(byte) == name.get(seen) => {
                at += 1;
                seen += 1;
            }
            _ => {
                let Some((back, taken)) = star else { return false };
                star = Some((back, taken + 1));
                (at, seen) = (back + 1, taken + 1);
            }
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|byte| *byte == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_means_what_it_says() {
        let matches = |pattern: &str, name: &str| {
            Pattern(pattern.to_owned()).matches(name, Some("C7A5FDBD-edaf-9455-926a-d65c16db1809"))
        };
        for (pattern, name) in [
            ("web", "web"),
            ("db*", "db"),
            ("db*", "db1"),
            ("*-test", "a-test-test"),
            ("w?b", "web"),
            ("all", "x"),
            ("*a*b*c", "xxaxxbbxcbc"),
            ("c7a5fdbd-edaf-9455-926a-d65c16db1809", "y"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in
            [("web", "web1"), ("db*", "adb"), ("w?b", "wb"), ("*a*b*c", "abcd"), ("?", "ab")]
        {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
        // A name that is made to take long takes no longer than its length allows.
        assert!(!matches(&format!("{}b", "*a".repeat(100)), &"a".repeat(10_000)));
    }
}
