//! Text with nothing in it that a terminal, a mail or a page obeys: names come from images, definitions and manifests.

use std::fmt::Write;

/// Text of one line, in which what would be obeyed is spelled out: `\\u{1b}`. A line break in a name could look like a line of
/// the program's own.
pub fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            character if character.is_control() || steers(character) => {
                // Writing to a string does not fail.
                let _ = write!(clean, "\\u{{{:x}}}", character as u32);
            }
            character => clean.push(character),
        }
    }
    clean
}

/// Text of several lines that the program made itself, printable but for its line breaks.
pub fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// Whether a character is invisible and changes how those around it are shown: it turns the direction
/// of writing, or breaks the line.
pub fn steers(character: char) -> bool {
    matches!(
        character,
        '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
    )
}

/// A word for a shell: a path, an address or a name that somebody is to type.
#[must_use]
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:,@%".contains(c);
    if !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_command_the_terminal() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}c\td"), "a\\u{1b}[2Jb\\u{9b}c\\u{9}d");
        assert_eq!(printable("größe, 画像"), "größe, 画像");
    }

    /// An image called "a\nqdelta: everything is as it was written" put a line of its own choice into
    /// a report.
    #[test]
    fn a_name_has_no_lines_and_turns_none_round() {
        assert_eq!(printable("a\nqdelta: b\r"), "a\\u{a}qdelta: b\\u{d}");
        for steering in ['\u{202e}', '\u{2066}', '\u{200f}', '\u{2028}', '\u{85}', '\u{feff}'] {
            assert!(!printable(&format!("a{steering}b")).contains(steering), "{steering:?}");
        }
        assert_eq!(printable_lines("one\ntwo\x1b\n"), "one\ntwo\\u{1b}\n");
    }
}
