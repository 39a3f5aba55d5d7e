//! What may have been meant by a word that nobody knows.

use crate::base::printable::shell_word;

/// The candidate that a word is nearest to, if one is near enough to be meant.
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.to_lowercase().chars().take(64).collect();
    let of = |candidate: &'a str| (distance(&word, candidate), candidate);
    let (distance, candidate) = known.map(of).min()?;
    (distance <= word.len().max(3) / 3).then_some(candidate)
}

/// How many letters must be changed, added or left out to get from one word to the other; two that have
/// changed places count once.
fn distance(word: &[char], other: &str) -> usize {
    let other: Vec<char> = other.chars().take(64).collect();
    let mut older: Vec<usize> = Vec::new();
    let mut before: Vec<usize> = (0..=other.len()).collect();
    for (row, letter) in word.iter().enumerate() {
        let mut line = vec![row + 1];
        for (column, wanted) in other.iter().enumerate() {
            let at =
                |line: &[usize], index: usize| line.get(index).copied().unwrap_or(usize::MAX / 2);
            let changed = at(&before, column) + usize::from(letter != wanted);
            let mut least = changed.min(at(&before, column + 1) + 1).min(at(&line, column) + 1);
            let turned = column > 0
                && row > 0
                && other.get(column - 1) == Some(letter)
                && word.get(row - 1) == Some(wanted);
            if turned {
                least = least.min(at(&older, column - 1) + 1);
            }
            line.push(least);
        }
        older = std::mem::replace(&mut before, line);
    }
    before.last().copied().unwrap_or(0)
}

/// The name of a guest for a shell, behind the options of a command: one that begins with `-` is no option.
pub(super) fn operand(name: &str) -> String {
    let dashes = if name.starts_with('-') { "-- " } else { "" };
    format!("{dashes}{}", shell_word(name))
}

/// An option of qdelta's with its value for a shell.
pub(super) fn option(option: &str, value: &str) -> String {
    let sign = if value.starts_with('-') { '=' } else { ' ' };
    format!("{option}{sign}{}", shell_word(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The advice said `virsh domfsthaw a b`, and the page of a lost site `virsh start '--help'`.
    #[test]
    fn no_name_becomes_an_option_or_two_words() {
        assert_eq!(operand("web"), "web");
        assert_eq!(operand("a b"), "'a b'");
        assert_eq!(operand("it's"), "'it'\\''s'");
        assert_eq!(operand("-rf"), "-- '-rf'");
        assert_eq!(option("--guest", "a;b"), "--guest 'a;b'");
        assert_eq!(option("--guest", "-rf"), "--guest='-rf'");
    }

    #[test]
    fn a_slip_of_the_finger_is_recognised_and_a_stranger_is_not() {
        let known = ["schedule", "guests", "verify", "keep_free"];
        let near = |word| nearest(word, known.into_iter());
        assert_eq!(near("shedule"), Some("schedule"));
        assert_eq!(near("guest"), Some("guests"));
        assert_eq!(near("vreify"), Some("verify"));
        assert_eq!(near("keepfree"), Some("keep_free"));
        assert_eq!(near("colour"), None);
        assert_eq!(near(""), None);
    }
}
