//! Numbers, times and tables as people read them.

use std::fmt::Write;
use std::time::Duration;

use qdelta::base::duration;
use qdelta::base::printable::steers;
pub use qdelta::base::printable::{printable, printable_lines};
use qdelta::vault::repository::PointId;

/// Names of powers of 1024 bytes.
const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// A number of bytes in three digits or so: `0 B`, `512 B`, `1.2 GiB`, `64 KiB`, `1023 MiB`.
pub fn bytes(count: u64) -> String {
    let mut unit = 0;
    let mut rest = count as f64;
    while rest >= 1024.0 && unit < UNITS.len() - 1 {
        rest /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    let exact = unit == 0 || count.trailing_zeros() >= 10 * unit as u32;
    // Rounded down, so that 1023.9 never shows as 1024 of the smaller unit.
    match rest {
        _ if exact || rest >= 100.0 => format!("{} {name}", rest.floor()),
        rest => format!("{:.1} {name}", (rest * 10.0).floor() / 10.0),
    }
}

/// What a program took for so many bytes: the time, and the rate where there is one to speak of.
pub fn took(seconds: f64, count: u64) -> String {
    match count {
        0 => duration(seconds),
        _ if seconds < 0.001 => duration(seconds),
        _ => format!("{} ({}/s)", duration(seconds), bytes((count as f64 / seconds) as u64)),
    }
}

/// A stretch of time: `0.4 s`, `12 s`, `3:25 min`, `2:03 h`.
pub fn duration(seconds: f64) -> String {
    duration::shown(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

/// `1 point`, `2 points`.
pub fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// A line of `pieces` with a label before them, in at most `width` columns if that can be had by
/// leaving some out: the one with the greatest rank goes first. Pieces of rank 0 stay.
pub fn fitted(label: &str, pieces: &[(u8, String)], width: usize) -> String {
    let mut limit = pieces.iter().map(|(rank, _)| *rank).max().unwrap_or(0);
    loop {
        let kept: Vec<&str> = pieces
            .iter()
            .filter(|(rank, _)| *rank <= limit)
            .map(|(_, piece)| piece.as_str())
            .collect();
        let line = format!("{label}{}", kept.join(", "));
        if limit == 0 || line.chars().count() <= width {
            return line;
        }
        limit -= 1;
    }
}

/// JSON with nothing in it that a terminal obeys: such characters stand in strings alone, where they may
/// be written as escapes.
pub fn printable_json(json: &str) -> String {
    let mut clean = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            '\n' => clean.push('\n'),
            character if character.is_control() || steers(character) => {
                // Writing to a string does not fail. All of them are below U+10000.
                let _ = write!(clean, "\\u{:04x}", character as u32);
            }
            character => clean.push(character),
        }
    }
    clean
}

/// One column of a [`table`].
pub struct Column {
    /// What stands above it.
    pub head: &'static str,
    /// Numbers stand to the right.
    pub right: bool,
    /// Which column goes first when there is no room: the one with the greatest number. Columns
    /// of rank 0 stay.
    pub rank: u8,
}

/// Lines of a table with a head, in at most `width` columns of the terminal if that can be had by
/// moving them together and leaving some out.
pub fn table(columns: &[Column], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let cell = |row: &Vec<String>, column: usize| {
        row.get(column).map(|text| printable(text)).unwrap_or_default()
    };
    let widths: Vec<usize> = columns
        .iter()
        .enumerate()
        .map(|(index, column)| {
            let longest = rows.iter().map(|row| cell(row, index).chars().count()).max();
            column.head.chars().count().max(longest.unwrap_or(0))
        })
        .collect();
    let mut shown: Vec<usize> = (0..columns.len()).collect();
    let rank = |index: &usize| columns.get(*index).map_or(0, |column| column.rank);
    let room = |shown: &[usize], gap: usize| -> usize {
        let cells: usize = shown.iter().filter_map(|index| widths.get(*index)).sum();
        cells + gap * shown.len().saturating_sub(1)
    };
    // Before a column goes, the columns move together.
    while room(&shown, 1) > width {
        let Some(least) = shown.iter().copied().max_by_key(rank).filter(|index| rank(index) > 0)
        else {
            break;
        };
        shown.retain(|index| *index != least);
    }
    let gap = if room(&shown, 2) > width { " " } else { "  " };
    let heads = columns.iter().map(|column| column.head.to_owned()).collect();
    std::iter::once(&heads)
        .chain(rows)
        .map(|row| {
            let cells: Vec<String> = shown
                .iter()
                .filter_map(|&index| {
                    let (text, width) = (cell(row, index), *widths.get(index)?);
                    // A format takes no width of more than 65,535.
                    let gap = " ".repeat(width.saturating_sub(text.chars().count()));
                    Some(match columns.get(index)?.right {
                        true => gap + &text,
                        false => text + &gap,
                    })
                })
                .collect();
            cells.join(gap).trim_end().to_owned()
        })
        .collect()
}

/// What is to be said of safety points where something is restored: that it is one, and which one was
/// passed over.
pub fn safety_notes(is_one: bool, passed_over: Option<PointId>) -> Vec<String> {
    let own =
        is_one.then(|| "  this is a safety point: what was there before a roll back".to_owned());
    let other = passed_over.map(|point| {
        format!("  note: {point} is newer, but a safety point of a roll back: its id restores it")
    });
    own.into_iter().chain(other).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_short_and_never_too_many() {
        let shown =
            [0, 1, 1023, 1024, 1025, 65536, 1_234_567, (1 << 20) - 1, 40 << 30, 1 << 63].map(bytes);
        assert_eq!(
            shown,
            [
                "0 B", "1 B", "1023 B", "1 KiB", "1.0 KiB", "64 KiB", "1.1 MiB", "1023 KiB",
                "40 GiB", "8 EiB"
            ]
        );
    }

    /// JSON went to the terminal with the C1 controls and turns of direction that names held; on standard
    /// error, escaping them as text made it no JSON any more.
    #[test]
    fn json_cannot_command_the_terminal_and_stays_json() {
        let name = "a\u{9b}2Jb\u{202e}c\u{7f}größe\n\"";
        let json = serde_json::to_string_pretty(&[name]).unwrap();
        let shown = printable_json(&json);
        assert!(shown.chars().all(|c| c == '\n' || !(c.is_control() || steers(c))), "{shown:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&shown).unwrap(), [name]);
        assert_eq!(printable_lines(&shown), shown);
    }

    /// The columns behind a name with such characters were shifted: its width was that of the name as it is not shown.
    #[test]
    fn a_column_is_as_wide_as_what_is_shown_in_it() {
        let columns = [("A", 0), ("B", 0)].map(|(head, rank)| Column { head, right: false, rank });
        let row = |name: &str| vec![name.to_owned(), "x".to_owned()];
        let shown = table(&columns, &[row("\u{202e}g"), row("plain")], 80);
        assert_eq!(shown, ["A          B", "\\u{202e}g  x", "plain      x"]);
    }

    /// A record with the names of 400 guests ended every `history`.
    #[test]
    fn a_cell_may_be_longer_than_a_format_allows() {
        let columns = [
            Column { head: "A", right: false, rank: 0 },
            Column { head: "B", right: true, rank: 0 },
        ];
        let rows = vec![vec!["x".repeat(70_000), "y".repeat(70_000)]; 2];
        assert_eq!(table(&columns, &rows, 80).len(), 3);
    }

    #[test]
    fn a_table_gives_up_its_least_important_columns() {
        let columns = [
            Column { head: "NAME", right: false, rank: 0 },
            Column { head: "SIZE", right: true, rank: 1 },
            Column { head: "NOTE", right: false, rank: 2 },
        ];
        let rows = [vec!["a".to_owned(), "100".to_owned(), "hello".to_owned()]];
        assert_eq!(table(&columns, &rows, 80), ["NAME  SIZE  NOTE", "a      100  hello"]);
        assert_eq!(table(&columns, &rows, 15), ["NAME SIZE NOTE", "a     100 hello"]);
        assert_eq!(table(&columns, &rows, 12), ["NAME  SIZE", "a      100"]);
        assert_eq!(table(&columns, &rows, 1), ["NAME", "a"]);
    }

    #[test]
    fn a_line_gives_up_its_least_important_pieces() {
        let pieces = [(0, "full".to_owned()), (2, "read 1 B".to_owned()), (1, "1 s".to_owned())];
        assert_eq!(fitted("web: ", &pieces, 80), "web: full, read 1 B, 1 s");
        assert_eq!(fitted("web: ", &pieces, 23), "web: full, 1 s");
        assert_eq!(fitted("web: ", &pieces, 13), "web: full");
        assert_eq!(fitted("web: ", &pieces, 1), "web: full");
    }
}
