//! The tables of `docs/archive-format.md` say the same as the constants.

use super::{layout::Field, *};

const DOCUMENT: &str = include_str!("../../../docs/archive-format.md");

/// The rows of the table that starts with `| {first} | size | field |`, cells trimmed.
fn table(first: &str) -> Vec<Vec<&'static str>> {
    let heading = format!("| {first} | size | field |");
    let start = DOCUMENT.find(&heading).unwrap_or_else(|| panic!("no table {heading}"));
    DOCUMENT[start..]
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect()
}

/// Compares the rows whose offsets are numbers with the fields; gives back the other rows.
fn compare(first: &str, fields: &[Field]) -> Vec<Vec<&'static str>> {
    let rows = table(first);
    let (fixed, symbolic): (Vec<_>, Vec<_>) = rows
        .into_iter()
        .partition(|row| row[0].parse::<usize>().is_ok() && row[1].parse::<usize>().is_ok());
    let documented: Vec<(usize, usize)> =
        fixed.iter().map(|row| (row[0].parse().unwrap(), row[1].parse().unwrap())).collect();
    let constants: Vec<(usize, usize)> =
        fields.iter().map(|field| (field.offset, field.size)).collect();
    assert_eq!(documented, constants, "table {first}");
    symbolic
}

#[test]
fn header() {
    let rest = compare("header offset", super::header::field::ALL);
    assert_eq!(rest[0][..2], [super::header::PREFIX_LEN.to_string(), "M".into()]);
    assert_eq!(rest[1][..2], [format!("{}+M", super::header::PREFIX_LEN), "4".into()]);
    assert!(DOCUMENT.contains(&format!("format version: {}", super::header::VERSION)));
    assert!(DOCUMENT.contains(&super::header::MAGIC.escape_ascii().to_string()));
}

#[test]
fn frame() {
    let rest = compare("frame offset", frame::field::ALL);
    assert_eq!(rest[0][0], FRAME_HEADER_LEN.to_string());
    assert!(DOCUMENT.contains(&format!("`{}`", FRAME_MAGIC.escape_ascii())));
    for codec in [(Codec::Stored, "stored"), (Codec::Zstd, "zstd")] {
        assert!(DOCUMENT.contains(&format!("{} {}", codec.0.to_byte(), codec.1)));
    }
}

#[test]
fn directory() {
    let rest = compare("directory offset", index::field::ALL);
    let (head, record) = (index::DIRECTORY_HEAD_LEN, index::SECTION_RECORD_LEN);
    assert_eq!(rest[0][..2], [head.to_string(), format!("{record}·N")]);
    assert_eq!(rest[1][..2], [format!("{head}+{record}·N"), "4".into()]);
    compare("record offset", index::section::ALL);
    compare("entry offset", index::entry::ALL);
}

#[test]
fn sections_in_the_order_of_the_file() {
    let start = DOCUMENT.find("| kind | section | content |").expect("no table of sections");
    let documented: Vec<u16> = DOCUMENT[start..]
        .lines()
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split('|').next().unwrap().trim().parse().unwrap())
        .collect();
    let constants: Vec<u16> = SectionKind::ALL.iter().map(|kind| kind.to_number()).collect();
    assert_eq!(documented, constants);
}

#[test]
fn footer_table() {
    assert!(compare("footer offset", footer::field::ALL).is_empty());
    assert!(DOCUMENT.contains(&format!("{FOOTER_LEN} bytes, the last of the file")));
}

#[test]
fn names_and_domains() {
    let mut words = Vec::new();
    words.extend(Kind::ALL.iter().map(|value| (value.to_byte(), value.as_str())));
    words.extend(Tracker::ALL.iter().map(|value| (value.to_byte(), value.as_str())));
    words.extend(Consistency::ALL.iter().map(|value| (value.to_byte(), value.as_str())));
    for (byte, word) in words {
        assert!(DOCUMENT.contains(&format!("{byte} {word}")), "{byte} {word}");
    }
    for context in [GROUP_CONTEXT, ROOT_CONTEXT] {
        assert!(DOCUMENT.contains(&format!("\"{context}\"")), "{context}");
    }
}
