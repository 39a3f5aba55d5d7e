//! The text that describes a volume group, in the form that LVM writes.

use crate::{FormatError, Problem};

/// How deep sections may lie in each other; LVM needs four.
const DEPTH_MAX: usize = 8;
/// How many values and sections a text may have.
const NODES_MAX: usize = 1 << 18;
/// LVM counts in sectors of 512 bytes, whatever the disk has.
const SECTOR: u64 = 512;

/// A volume group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Counts changes of the group: the text with the highest number is the newest.
    pub sequence: u64,
    /// Bytes of an extent.
    pub extent: u64,
    /// Its physical volumes.
    pub physical: Vec<Physical>,
    /// Its logical volumes that people see.
    pub logical: Vec<Logical>,
}

/// A physical volume of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Physical {
    /// The name by which logical volumes refer to it.
    pub name: String,
    /// The id that is in its label.
    pub id: String,
    /// Where its extents begin, in bytes.
    pub start: u64,
    /// How many extents it has.
    pub extents: u64,
}

/// A logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Logical {
    /// Its name.
    pub name: String,
    /// How many extents it has.
    pub extents: u64,
    /// Where they lie, in order; or the kind of a volume that is not a linear one.
    pub stretches: Result<Vec<Stretch>, String>,
}

/// Extents of a logical volume that lie side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stretch {
    /// The physical volume's name in the group.
    pub physical: String,
    /// The first extent there.
    pub first: u64,
    /// How many there are.
    pub extents: u64,
}

#[derive(Debug)]
enum Value {
    Number(u64),
    Text(String),
    List(Vec<Value>),
    Section(Section),
}

#[derive(Debug, Default)]
struct Section(Vec<(String, Value)>);

impl Section {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }

    fn number(&self, name: &'static str) -> Result<u64, FormatError> {
        match self.get(name) {
            Some(Value::Number(number)) => Ok(*number),
            _ => Err(wrong(name, "a number is missing")),
        }
    }

    fn text(&self, name: &'static str) -> Result<&str, FormatError> {
        match self.get(name) {
            Some(Value::Text(text)) => Ok(text),
            _ => Err(wrong(name, "a text is missing")),
        }
    }

    fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            _ => None,
        })
    }

    /// The sections in the section called `name`; none if there is no such section.
    fn sections_of(&self, name: &str) -> impl Iterator<Item = (&str, &Section)> {
        let found = match self.get(name) {
            Some(Value::Section(section)) => Some(section),
            _ => None,
        };
        found.into_iter().flat_map(Section::sections)
    }
}

fn wrong(field: &'static str, problem: &'static str) -> FormatError {
    FormatError::new(0, field, Problem::Invalid(problem.into()))
}

/// Reads the text of a group.
///
/// # Errors
/// The text is not in LVM's form, or something that a group needs is missing.
pub fn parse_group(text: &[u8]) -> Result<Group, FormatError> {
    let mut reader = Reader { text, at: 0, nodes: 0 };
    let top = reader.section(0)?;
    let (name, group) =
        top.sections().next().ok_or_else(|| wrong("volume group", "there is no group"))?;
    let extent = group.number("extent_size")?.checked_mul(SECTOR);
    let extent = extent.filter(|extent| *extent > 0);
    let extent = extent.ok_or_else(|| wrong("extent_size", "out of range"))?;
    let mut physical = Vec::new();
    for (name, section) in group.sections_of("physical_volumes") {
        let start = section.number("pe_start")?.checked_mul(SECTOR);
        physical.push(Physical {
            name: name.to_owned(),
            id: section.text("id")?.to_owned(),
            start: start.ok_or_else(|| wrong("pe_start", "out of range"))?,
            extents: section.number("pe_count")?,
        });
    }
    let mut logical = Vec::new();
    for (name, section) in group.sections_of("logical_volumes") {
        if is_visible(section) {
            logical.push(logical_of(name, section)?);
        }
    }
    Ok(Group { name: name.to_owned(), sequence: group.number("seqno")?, extent, physical, logical })
}

fn is_visible(volume: &Section) -> bool {
    match volume.get("status") {
        Some(Value::List(list)) => {
            list.iter().any(|value| matches!(value, Value::Text(text) if text == "VISIBLE"))
        }
        _ => false,
    }
}

fn logical_of(name: &str, volume: &Section) -> Result<Logical, FormatError> {
    let mut segments = Vec::new();
    let mut foreign = None;
    for (_, segment) in volume.sections() {
        let Some(Value::Number(first)) = segment.get("start_extent") else { continue };
        let extents = segment.number("extent_count")?;
        match stretch_of(segment, extents)? {
            Ok(stretch) => segments.push((*first, stretch)),
            Err(kind) => foreign = Some(kind),
        }
        // Its extents count also where they can't be read.
        if foreign.is_some() {
            segments.push((*first, Stretch { physical: String::new(), first: 0, extents }));
        }
    }
    segments.sort_by_key(|(first, _)| *first);
    let mut extents = 0u64;
    for (first, stretch) in &segments {
        if *first != extents && foreign.is_none() {
            return Err(wrong("start_extent", "the segments of a volume leave a gap"));
        }
        extents = extents
            .checked_add(stretch.extents)
            .ok_or_else(|| wrong("extent_count", "out of range"))?;
    }
    let stretches = match foreign {
        Some(kind) => Err(kind),
        None => Ok(segments.into_iter().map(|(_, stretch)| stretch).collect()),
    };
    Ok(Logical { name: name.to_owned(), extents, stretches })
}

/// Where a segment lies, or its type if it is not linear.
fn stretch_of(segment: &Section, extents: u64) -> Result<Result<Stretch, String>, FormatError> {
    let kind = segment.text("type")?;
    if !matches!(kind, "striped" | "linear") {
        return Ok(Err(kind.to_owned()));
    }
    match segment.get("stripes") {
        Some(Value::List(list)) => match list.as_slice() {
            [Value::Text(physical), Value::Number(first)] => {
                Ok(Ok(Stretch { physical: physical.clone(), first: *first, extents }))
            }
            _ => Ok(Err("striped".to_owned())),
        },
        _ => Err(wrong("stripes", "a segment does not say where it lies")),
    }
}

/// Reads values and sections from a text.
struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    nodes: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, problem: &'static str) -> FormatError {
        let problem = Problem::Invalid(problem.into());
        FormatError::new(self.at as u64, "text of the volume group", problem)
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Skips white space and comments; gives the next byte.
    fn skip(&mut self) -> Option<u8> {
        loop {
            match self.peek()? {
                b'#' => {
                    while self.peek().is_some_and(|byte| byte != b'\n') {
                        self.at += 1;
                    }
                }
                byte if byte.is_ascii_whitespace() => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> &'a [u8] {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.at += 1;
        }
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn count(&mut self) -> Result<(), FormatError> {
        self.nodes += 1;
        if self.nodes > NODES_MAX {
            return Err(self.error("more values than a group has"));
        }
        Ok(())
    }

    /// The values of a section, as far as its closing brace; of the whole text at depth 0.
    fn section(&mut self, depth: usize) -> Result<Section, FormatError> {
        if depth > DEPTH_MAX {
            return Err(self.error("sections lie too deep in each other"));
        }
        let mut section = Section::default();
        loop {
            match self.skip() {
                // The text ends with a zero.
                None | Some(0) if depth == 0 => return Ok(section),
                Some(b'}') if depth > 0 => {
                    self.at += 1;
                    return Ok(section);
                }
                None => return Err(self.error("the text ends inside a section")),
                Some(_) => {}
            }
            self.count()?;
            let name = self.take_while(|b| b.is_ascii_alphanumeric() || b"_.+-".contains(&b));
            if name.is_empty() {
                return Err(self.error("a name is missing"));
            }
            let name = String::from_utf8_lossy(name).into_owned();
            let value = match self.skip() {
                Some(b'{') => {
                    self.at += 1;
                    Value::Section(self.section(depth + 1)?)
                }
                Some(b'=') => {
                    self.at += 1;
                    self.value(depth)?
                }
                _ => return Err(self.error("neither a value nor a section")),
            };
            section.0.push((name, value));
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, FormatError> {
        self.count()?;
        match self.skip() {
            Some(b'[') if depth <= DEPTH_MAX => {
                self.at += 1;
                self.list(depth)
            }
            Some(b'"') => self.quoted(),
            Some(byte) if byte.is_ascii_digit() || byte == b'-' => self.number(),
            _ => Err(self.error("a value is missing")),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, FormatError> {
        let mut list = Vec::new();
        loop {
            match self.skip() {
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::List(list));
                }
                Some(b',') if !list.is_empty() => self.at += 1,
                Some(_) => list.push(self.value(depth + 1)?),
                None => return Err(self.error("the text ends inside a list")),
            }
        }
    }

    fn quoted(&mut self) -> Result<Value, FormatError> {
        self.at += 1;
        let mut text = Vec::new();
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Value::Text(String::from_utf8_lossy(&text).into_owned()));
                }
                Some(b'\\') => {
                    self.at += 1;
                    text.extend(self.peek());
                }
                Some(byte) => text.push(byte),
                None => return Err(self.error("the text ends inside quotes")),
            }
            self.at += 1;
        }
    }

    /// A whole number. One that doesn't fit, or with a fraction, is a value that nobody here asks for.
    fn number(&mut self) -> Result<Value, FormatError> {
        let digits = self.take_while(|b| b.is_ascii_digit() || b"-.".contains(&b));
        let text = String::from_utf8_lossy(digits).into_owned();
        Ok(text.parse().map_or(Value::Text(text), Value::Number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As vgcreate and lvcreate of LVM 2.03 write it, shortened.
    const TEXT: &str = r#"vg0 {
id = "X2m5eV-9d2Q-0000-1111-2222-3333-abcdef"
seqno = 4
format = "lvm2" # informational
status = ["RESIZEABLE", "READ", "WRITE"]
flags = []
extent_size = 8192
max_lv = 0
physical_volumes {
pv0 {
id = "abcdef-ghij-klmn-opqr-stuv-wxyz-012345"
device = "/dev/loop0"
status = ["ALLOCATABLE"]
pe_start = 2048
pe_count = 31
}
}
logical_volumes {
root {
id = "r"
status = ["READ", "WRITE", "VISIBLE"]
segment_count = 2
segment2 {
start_extent = 10
extent_count = 2
type = "striped"
stripe_count = 1
stripes = [
"pv0", 20
]
}
segment1 {
start_extent = 0
extent_count = 10
type = "striped"
stripe_count = 1
stripes = [
"pv0", 0
]
}
}
pool_tdata { status = ["READ"] segment1 { start_extent = 0 extent_count = 1 type = "striped" stripes = ["pv0", 12] } }
thin {
status = ["READ", "WRITE", "VISIBLE"]
segment1 {
start_extent = 0
extent_count = 5
type = "thin"
thin_pool = "pool"
}
}
}
}
# Generated by LVM2
contents = "Text Format Volume Group"
version = 1
description = "a \"quoted\" one"
creation_host = "h"
creation_time = 1700000000
"#;

    #[test]
    fn linear_volumes_are_found_and_others_named() {
        let group = parse_group(TEXT.as_bytes()).unwrap();
        assert_eq!((&*group.name, group.sequence, group.extent), ("vg0", 4, 4 << 20));
        assert_eq!(group.physical[0].start, 1 << 20);
        let [root, thin] = group.logical.as_slice() else { panic!("{:?}", group.logical) };
        assert_eq!((&*root.name, root.extents), ("root", 12));
        let places = root.stretches.as_ref().unwrap().iter().map(|s| (s.first, s.extents));
        assert_eq!(places.collect::<Vec<_>>(), [(0, 10), (20, 2)]);
        assert_eq!((&thin.stretches, thin.extents), (&Err("thin".to_owned()), 5));
    }

    #[test]
    fn what_is_cut_short_is_an_error_and_no_panic() {
        let end = TEXT.find("# Generated").unwrap();
        for len in 0..end - 2 {
            assert!(parse_group(&TEXT.as_bytes()[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        assert!(parse_group("a{".repeat(100_000).as_bytes()).is_err());
        assert!(parse_group(format!("a={}", "[".repeat(100_000)).as_bytes()).is_err());
    }

    #[test]
    fn a_gap_between_segments_is_an_error() {
        assert!(
            parse_group(TEXT.replace("start_extent = 10", "start_extent = 11").as_bytes()).is_err()
        );
    }
}
