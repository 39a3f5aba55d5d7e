//! Words of the command line that are values of our own.

use std::path::Path;
use std::str::FromStr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use qdelta::base::period::Period;
use qdelta::base::size;
use qdelta::flows::verify::Budget;
use qdelta::formats::archive::Geometry;
use qdelta::formats::nbd::{BITMAP_NAME_LEN_MAX, Uri, is_bitmap_name};
pub use qdelta::vault::repository::DiskAt;
use qdelta::vault::repository::{Count, DiskSpec, Keep, Selector, Wanted};
use qdelta::{Error, ErrorKind};
use serde::de::value::Error as SerdeError;
use serde::de::{DeserializeOwned, IntoDeserializer};

/// More threads than this bring nothing to anyone.
const THREADS_MAX: usize = 1024;
/// The longest name of who holds a pin.
const HOLDER_MAX: usize = 100;

/// A guest or a disk, and the first and the last of some of its points: `DISK@A..B`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointsOf {
    /// The guest or the disk.
    pub disk: Wanted,
    /// The first point.
    pub from: Selector,
    /// The last point.
    pub to: Selector,
}

impl FromStr for PointsOf {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let named = text.rsplit_once('@').and_then(|(disk, points)| {
            let (from, to) = points.split_once("..")?;
            Some((disk, from, to))
        });
        let (disk, from, to) = named.ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("{text:?} names no range of points"))
                .advise("say DISK@A..B, with two points of one disk")
        })?;
        Ok(Self { disk: disk.parse()?, from: from.parse()?, to: to.parse()? })
    }
}

/// Words that can be typed, each with what it means.
pub type Words = &'static [(&'static str, &'static str)];

/// One of these words, as the library reads it in files, too.
pub fn one_of<T>(words: Words) -> impl TypedValueParser<Value = T>
where
    T: DeserializeOwned + Clone + Send + Sync + 'static,
{
    let shown = words.iter().map(|(word, help)| PossibleValue::new(*word).help(*help));
    PossibleValuesParser::new(shown).try_map(|word| {
        T::deserialize(IntoDeserializer::<SerdeError>::into_deserializer(word.as_str()))
    })
}

/// What the parser of arguments shows of a failure: all of it, in one line.
fn refusal(error: &Error) -> String {
    match error.advice() {
        Some(advice) => format!("{}; {advice}", error.chain()),
        None => error.chain(),
    }
}

/// The name of a bitmap of QEMU's.
pub fn bitmap(text: &str) -> Result<String, String> {
    match is_bitmap_name(text) {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "a bitmap's name has 1 to {BITMAP_NAME_LEN_MAX} bytes, and no line breaks or the like"
        )),
    }
}

/// A disk or a guest.
pub fn wanted(text: &str) -> Result<Wanted, String> {
    text.parse().map_err(|error| refusal(&error))
}

/// A disk or a guest, and perhaps a point of it.
pub fn disk_at(text: &str) -> Result<DiskAt, String> {
    text.parse().map_err(|error| refusal(&error))
}

/// A disk or a guest, and a range of its points.
pub fn points_of(text: &str) -> Result<PointsOf, String> {
    text.parse().map_err(|error| refusal(&error))
}

/// Whether what was typed names the export of a server, and no file.
pub fn is_uri(path: &Path) -> bool {
    path.to_str().is_some_and(Uri::is_meant)
}

/// A disk that is to be made.
pub fn disk(text: &str) -> Result<DiskSpec, String> {
    text.parse().map_err(|error| refusal(&error))
}

/// A number of bytes.
pub fn bytes(text: &str) -> Result<u64, String> {
    size::parse(text).map_err(|error| refusal(&error))
}

/// So many bytes a second: some.
pub fn rate(text: &str) -> Result<u64, String> {
    size::parse_rate(text).map_err(|error| refusal(&error))
}

/// How much a scrub may take: a time or a number of bytes.
pub fn budget(text: &str) -> Result<Budget, String> {
    text.parse().map_err(|error| refusal(&error))
}

/// A moment: a time, or how long ago.
pub fn moment(text: &str) -> Result<Timestamp, String> {
    let zone = TimeZone::system();
    match Selector::parse_in(text, &zone).map_err(|error| refusal(&error))? {
        Selector::At(time) => Ok(time),
        _ => Err(format!("{text:?} is no time: write 2026-11-22 15:38, or 3h for three hours ago")),
    }
}

/// How long files are locked: a period, or as long as the bucket does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockFor {
    /// So long.
    Period(Period),
    /// As long as the bucket locks what is written to it.
    Bucket,
}

/// How long files are to be locked.
pub fn lock_for(text: &str) -> Result<LockFor, String> {
    match text {
        "bucket" => Ok(LockFor::Bucket),
        text => text.parse().map(LockFor::Period).map_err(|error: Error| refusal(&error)),
    }
}

/// Who holds a pin: a name that needs no quotes where it is typed.
pub fn holder(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:".contains(c);
    match (1..=HOLDER_MAX).contains(&text.len()) && text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err(format!("give up to {HOLDER_MAX} letters, digits and \"-_.:\"")),
    }
}

/// How many points a rule keeps.
pub fn count(text: &str) -> Result<Count, String> {
    text.parse().map_err(|error| refusal(&error))
}

/// Rules that keep points.
pub fn keep(text: &str) -> Result<Keep, String> {
    text.parse().map_err(|error| refusal(&error))
}

/// A stretch of the calendar.
pub fn period(text: &str) -> Result<Period, String> {
    text.parse().map_err(|error| refusal(&error))
}

/// The size of a block.
pub fn block_size(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text).map_err(|error| refusal(&error))?;
    let checked = u32::try_from(bytes).ok().filter(|&size| Geometry::new(0, size).is_ok());
    checked.ok_or_else(|| "a block is a power of two from 4K to 2M".to_owned())
}

/// A number of threads.
pub fn threads(text: &str) -> Result<usize, String> {
    let number = text.parse().ok().filter(|number| (1..=THREADS_MAX).contains(number));
    number.ok_or_else(|| format!("give a number from 1 to {THREADS_MAX}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes() {
        assert_eq!(block_size("64K").unwrap(), 65536);
        assert_eq!(block_size("2M").unwrap(), 2 << 20);
        for bad in ["0", "1K", "3K", "4M", "100000", "64X", "4294967296"] {
            assert!(block_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn thread_numbers() {
        assert_eq!(threads("8").unwrap(), 8);
        for bad in ["0", "-1", "many", "99999"] {
            assert!(threads(bad).is_err(), "{bad}");
        }
    }
}
