//! The settings of a repository: what `qdelta.toml` holds for people to change.
//!
//! They stand below what makes the folder a repository, and nothing but pruning asks for them: a
//! mistake in them stops no backup and no restore.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use jiff::tz::TimeZone;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::Repository;
use super::config::{CONFIG, LEN_MAX, located};
use super::storage::{Name, Storage};
use crate::base::duration::Stretch;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::json::text;
use crate::base::period::Period;

/// How long a removed point can be brought back if nobody says otherwise.
const GRACE: Period = Period::days(7);

/// How long a safety point stays if nobody says otherwise.
pub const SAFETY: Period = Period::days(30);

/// How many percent of what a merge writes it must free, if nobody says otherwise.
const MERGE_SHARE: u8 = 25;

/// How many points a rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// At most so many.
    Of(u32),
    /// All that it finds.
    All,
}

impl FromStr for Count {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse() {
            _ if text == "all" => Ok(Self::All),
            Ok(number @ 1..) => Ok(Self::Of(number)),
            _ => Err(Error::new(ErrorKind::Usage, format!("{text:?} says not how many to keep"))
                .advise("give a number from 1 on, or all")),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(number) => number.fmt(f),
            Self::All => f.pad("all"),
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Of(number) => serializer.serialize_u32(*number),
            Self::All => serializer.serialize_str("all"),
        }
    }
}

impl<'de> Deserialize<'de> for Count {
    /// Takes a number, or `"all"`.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(i64),
            Text(String),
        }
        let text = match Form::deserialize(deserializer)? {
            Form::Number(number) => number.to_string(),
            Form::Text(text) => text,
        };
        text.parse().map_err(|error: Error| {
            D::Error::custom(format!("{}; {}", error.chain(), error.advice().unwrap_or_default()))
        })
    }
}

/// Which points the rules keep. Every rule sees every point, and a point stays if one of them keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// The newest ones.
    pub last: Option<Count>,
    /// The newest of each of the last hours that have a point.
    pub hourly: Option<Count>,
    /// Of each of the last days.
    pub daily: Option<Count>,
    /// Of each of the last weeks, which begin on Monday.
    pub weekly: Option<Count>,
    /// Of each of the last months.
    pub monthly: Option<Count>,
    /// Of each of the last years.
    pub yearly: Option<Count>,
    /// All that are not older than this before the newest.
    #[serde(with = "text::optional")]
    pub within: Option<Period>,
    /// How long safety points stay; none for 30 days.
    #[serde(with = "text::optional")]
    pub safety: Option<Period>,
}

impl Keep {
    /// Whether no rule keeps a backup: what safety points have is no such rule.
    pub fn is_empty(&self) -> bool {
        *self == Self { safety: self.safety, ..Self::default() }
    }
}

impl FromStr for Keep {
    type Err = Error;

    /// Takes rules by their names, as `daily=7,monthly=all,within=14d`; a name alone means all.
    fn from_str(text: &str) -> Result<Self> {
        let (mut keep, mut seen) = (Self::default(), BTreeSet::new());
        for rule in text.split(',') {
            let (name, value) = rule.split_once('=').unwrap_or((rule, "all"));
            if !seen.insert(name) {
                let text = format!("the rule {name} is said twice");
                return Err(Error::new(ErrorKind::Usage, text).advise("say it once"));
            }
            let counted = match name {
                "last" => &mut keep.last,
                "hourly" => &mut keep.hourly,
                "daily" => &mut keep.daily,
                "weekly" => &mut keep.weekly,
                "monthly" => &mut keep.monthly,
                "yearly" => &mut keep.yearly,
                "within" => {
                    keep.within = Some(value.parse()?);
                    continue;
                }
                "safety" => {
                    keep.safety = Some(value.parse()?);
                    continue;
                }
                _ => {
                    let text = format!("{rule:?} is no rule");
                    return Err(Error::new(ErrorKind::Usage, text).advise(
                        "rules are last, hourly, daily, weekly, monthly, yearly, within and safety, as \
                         daily=7,monthly=all",
                    ));
                }
            };
            *counted = Some(value.parse()?);
        }
        Ok(keep)
    }
}

/// What drills are compared with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Targets {
    /// How long it may take until a guest's agent answers.
    #[serde(with = "text::optional")]
    pub rto: Option<Stretch>,
    /// How old the last point may be, and how long after the one before it.
    #[serde(with = "text::optional")]
    pub rpo: Option<Stretch>,
}

/// What `qdelta.toml` lets people decide.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// IANA's name of the time zone whose hours, days, weeks, months and years the rules count.
    pub time_zone: String,
    /// How long a removed point can be brought back.
    #[serde(with = "text")]
    pub grace: Period,
    /// A merge is worth its while if it frees so many percent of what it writes.
    #[serde(deserialize_with = "share")]
    pub merge_share: u8,
    /// For how long the store locks what is written, and what the points that stay need; none if it does
    /// not.
    #[serde(with = "text::optional")]
    pub lock: Option<Period>,
    /// The rules.
    pub keep: Keep,
    /// What drills are compared with.
    pub drill: Targets,
}

impl Default for Settings {
    fn default() -> Self {
        let time_zone = "UTC".to_owned();
        let (keep, drill) = (Keep::default(), Targets::default());
        Self { time_zone, grace: GRACE, merge_share: MERGE_SHARE, lock: None, keep, drill }
    }
}

impl Settings {
    /// The settings of a new repository of this machine: with its time zone, or UTC if it has none that
    /// has a name.
    pub fn of_machine() -> Self {
        let zone = TimeZone::system();
        let name = zone.iana_name().filter(|name| TimeZone::get(name).is_ok());
        Self { time_zone: name.unwrap_or("UTC").to_owned(), ..Self::default() }
    }

    /// The time zone.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if this machine does not know it.
    pub fn zone(&self) -> Result<TimeZone> {
        find_zone(&self.time_zone)
    }

    /// Takes what a configuration says below its first part.
    fn parse(text: &str) -> Result<Self, String> {
        let whole: Whole = toml::from_str(text).map_err(|error| located(text, &error))?;
        Ok(whole.into())
    }

    /// What can be understood of a configuration that is damaged: each line by itself.
    pub(super) fn salvage(text: &str) -> Self {
        let mut kept = String::new();
        let mut part = "";
        for line in text.lines() {
            let trimmed = line.trim();
            if trimmed.starts_with('[') {
                part = match trimmed {
                    "[keep]" => "keep.",
                    "[drill]" => "drill.",
                    _ => "other.",
                };
                continue;
            }
            let line = format!("{part}{trimmed}");
            let more = format!("{kept}{line}\n");
            if toml::from_str::<Self>(&more).is_ok_and(|it| it.zone().is_ok()) {
                kept = more;
            }
        }
        let found = toml::from_str(&kept).unwrap_or_default();
        match kept.contains("time_zone") {
            true => found,
            false => Self { time_zone: Self::of_machine().time_zone, ..found },
        }
    }

    /// The settings as the part of a configuration that people change.
    pub(super) fn to_text(&self) -> String {
        let Self { time_zone, grace, merge_share, lock, keep, drill } = self;
        let lock = lock.map_or_else(String::new, |period| {
            format!("# For how long the store locks every file; docs/object-lock.md.\nlock = \"{period}\"\n")
        });
        let mut text = format!(
            "\n# The settings, for you to change; docs/retention.md explains them.\n\
             # The hours, days, weeks, months and years of the rules are those of this time zone.\n\
             time_zone = \"{time_zone}\"\n\
             # How long a removed point can be brought back.\n\
             grace = \"{grace}\"\n\
             # A merge must free so many percent of what it writes.\n\
             merge_share = {merge_share}\n{lock}\
             \n\
             # What qdelta prune keeps of every guest: last, hourly, daily, weekly, monthly, yearly,\n\
             # within, safety. Without rules it asks for --keep-... on the command line.\n\
             [keep]\n"
        );
        let counts = [
            ("last", keep.last),
            ("hourly", keep.hourly),
            ("daily", keep.daily),
            ("weekly", keep.weekly),
            ("monthly", keep.monthly),
            ("yearly", keep.yearly),
        ];
        for (name, count) in counts {
            match count {
                Some(Count::Of(number)) => text += &format!("{name} = {number}\n"),
                Some(Count::All) => text += &format!("{name} = \"all\"\n"),
                None => {}
            }
        }
        for (name, period) in [("within", keep.within), ("safety", keep.safety)] {
            text += &period.map_or_else(String::new, |period| format!("{name} = \"{period}\"\n"));
        }
        let targets = [("rto", drill.rto), ("rpo", drill.rpo)];
        if targets.iter().any(|(_, target)| target.is_some()) {
            text += "\n# What qdelta drill compares its guests with.\n[drill]\n";
        }
        for (name, target) in targets {
            text += &target.map_or_else(String::new, |target| format!("{name} = \"{target}\"\n"));
        }
        text
    }
}

/// All of a configuration: what it begins with is read and checked elsewhere.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whole {
    #[serde(rename = "format")]
    _format: toml::Value,
    #[serde(rename = "id")]
    _id: toml::Value,
    #[serde(rename = "created")]
    _created: toml::Value,
    #[serde(default, rename = "recipient")]
    _recipient: Option<toml::Value>,
    #[serde(rename = "digest")]
    _digest: toml::Value,
    #[serde(default = "utc", deserialize_with = "zone_name")]
    time_zone: String,
    #[serde(default = "grace", with = "text")]
    grace: Period,
    #[serde(default = "merge_share", deserialize_with = "share")]
    merge_share: u8,
    #[serde(default, with = "text::optional")]
    lock: Option<Period>,
    #[serde(default)]
    keep: Keep,
    #[serde(default)]
    drill: Targets,
}

impl From<Whole> for Settings {
    fn from(whole: Whole) -> Self {
        let Whole { time_zone, grace, merge_share, lock, keep, drill, .. } = whole;
        Self { time_zone, grace, merge_share, lock, keep, drill }
    }
}

fn utc() -> String {
    "UTC".to_owned()
}

fn grace() -> Period {
    GRACE
}

fn merge_share() -> u8 {
    MERGE_SHARE
}

/// Takes the name of a zone that this machine knows.
fn zone_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    find_zone(&name).map_err(|error| D::Error::custom(error.chain()))?;
    Ok(name)
}

/// Takes a share of 1 to 100 percent.
fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let number = u64::deserialize(deserializer)?;
    let share = u8::try_from(number).ok().filter(|share| (1..=100).contains(share));
    share.ok_or_else(|| D::Error::custom("a share is a number from 1 to 100"))
}

/// The zone of this name.
///
/// # Errors
/// [`ErrorKind::Usage`] if this machine does not know it.
pub(super) fn find_zone(name: &str) -> Result<TimeZone> {
    TimeZone::get(name).map_err(|_| {
        Error::new(ErrorKind::Usage, format!("this machine knows no time zone {name:?}"))
            .advise("give IANA's name of it, as Europe/Berlin or UTC; the package tzdata has them")
    })
}

impl Repository {
    /// The settings as `qdelta.toml` has them now.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`], with the line: a setting is unknown or makes no sense. As
    /// [`Self::trouble`].
    pub fn settings(&self) -> Result<Settings> {
        self.trouble().map_or(Ok(()), Err)?;
        let name = Name::top().join(CONFIG);
        let bytes = self.storage().read(&name, LEN_MAX)?;
        Settings::parse(&String::from_utf8_lossy(&bytes)).map_err(|problem| {
            let path = self.describe(&name);
            Error::new(ErrorKind::Usage, format!("the settings in {}", path.display()))
                .because(problem)
                .advise("correct it: docs/retention.md says what may stand there")
        })
    }
}

/// The text of a configuration, as far as it can be read at all.
pub(super) fn any_text(storage: &dyn Storage) -> String {
    let bytes = storage.read(&Name::top().join(CONFIG), LEN_MAX).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::vault::repository::tests::fresh;

    fn with(text: &str) -> (tempfile::TempDir, Repository) {
        let (dir, repository) = fresh();
        let path = repository.path().join(CONFIG);
        let own = fs::read_to_string(&path).unwrap();
        let identity: String = own.lines().take(5).map(|line| format!("{line}\n")).collect();
        fs::write(&path, format!("{identity}{text}")).unwrap();
        (dir, repository)
    }

    #[test]
    fn a_new_repository_has_the_settings_that_it_was_given() {
        let keep = Keep {
            last: Some(Count::Of(3)),
            yearly: Some(Count::All),
            within: Some(Period::days(2)),
            safety: Some(Period::NONE),
            ..Keep::default()
        };
        let settings = Settings {
            time_zone: "Asia/Kathmandu".to_owned(),
            grace: Period::NONE,
            merge_share: 40,
            lock: None,
            keep,
            drill: Targets { rto: Some("5m".parse().unwrap()), rpo: Some("26h".parse().unwrap()) },
        };
        let dir = tempfile::tempdir().unwrap();
        let repository = Repository::init_with(&dir.path().join("r"), &settings).unwrap();
        assert_eq!(repository.settings().unwrap(), settings);
        let (_dir, repository) = fresh();
        assert_eq!(repository.settings().unwrap(), Settings::of_machine());
        // As a repository that says nothing of them.
        let (_dir, repository) = with("");
        assert_eq!(repository.settings().unwrap(), Settings::default());
    }

    #[test]
    fn a_mistake_is_told_with_its_line_and_stops_nothing_else() {
        for (text, line, said) in [
            ("colour = \"red\"", 6, "colour"),
            ("\n[keep]\ndaily = 7\nquarterly = 4", 9, "quarterly"),
            ("[keep]\ndaily = 0", 7, "from 1 on"),
            ("[keep]\ndaily = -1", 7, "from 1 on"),
            ("[keep]\ndaily = true", 7, ""),
            ("[drill]\nrto = \"5q\"", 7, "no stretch of time"),
            ("[keep]\nwithin = \"7m\"", 7, "minutes or months"),
            ("grace = \"soon\"", 6, "no stretch of time"),
            ("merge_share = 0", 6, "1 to 100"),
            ("merge_share = 101", 6, "1 to 100"),
            ("time_zone = \"Mars/Olympus\"", 6, "no time zone"),
        ] {
            let (_dir, repository) = with(text);
            let again = Repository::open(repository.path()).unwrap();
            assert!(again.trouble().is_none(), "{text}");
            let error = again.settings().unwrap_err();
            let shown = error.chain();
            assert_eq!(error.kind(), ErrorKind::Usage);
            assert!(shown.contains(&format!("line {line}:")) && shown.contains(said), "{shown}");
            assert!(!shown.contains('\n'), "{shown}");
        }
    }

    #[test]
    fn rules_in_a_word() {
        let keep: Keep = "daily=7,monthly,within=14d".parse().unwrap();
        let expected = Keep {
            daily: Some(Count::Of(7)),
            monthly: Some(Count::All),
            within: Some(Period::days(14)),
            ..Keep::default()
        };
        assert_eq!(keep, expected);
        for bad in ["", "daily=0", "daly=7", "within", "daily=7,", "monthly all"] {
            assert!(bad.parse::<Keep>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_repair_keeps_what_can_be_understood() {
        let settings = "time_zone = \"Asia/Tokyo\"\nmerge_share = oops\ngrace = \"3d\"\n\
                        [keep]\ndaily = 7\nweekly = x\nmonthly = \"all\"\n[other]\ndaily = 9\n\
                        [drill]\nrto = \"soon\"\nrpo = \"26h\"\n";
        let kept = Settings::salvage(&format!("format = 1\nid = \"gone\n{settings}"));
        let keep = Keep { daily: Some(Count::Of(7)), monthly: Some(Count::All), ..Keep::default() };
        let expected = Settings {
            time_zone: "Asia/Tokyo".to_owned(),
            grace: Period::days(3),
            keep,
            drill: Targets { rpo: Some("26h".parse().unwrap()), ..Targets::default() },
            ..Settings::default()
        };
        assert_eq!(kept, expected);
        assert_eq!(Settings::salvage(""), Settings::of_machine());
        assert_eq!(Settings::salvage("time_zone = \"Mars/Olympus\"\n"), Settings::of_machine());
    }
}
