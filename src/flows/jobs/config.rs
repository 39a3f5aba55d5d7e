//! The file in which an admin says what is to be done by itself: `/etc/qdelta/qdelta.toml`.
//!
//! What the file does not know is an error with its line and column: a rule that is spelled wrong and
//! passed over would be found out on the day of a restore.

mod check;
pub(super) mod copy;
mod image;
mod pattern;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use jiff::tz::TimeZone;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

pub use image::JobImage;
pub use pattern::Pattern;

use super::words::nearest;
use crate::base::calendar::Calendar;
use crate::base::duration::Stretch;
use crate::base::error::{Error, ErrorKind, Result};
use crate::base::period::Period;
use crate::base::size;
use crate::disk::io::Opener;
use crate::flows::backup::{AnchorChoice, ConsistencyChoice, LEVEL_DEFAULT};
use crate::flows::notify::Notifier;
use crate::flows::verify::Budget;
use crate::guest::libvirt::{Libvirt, is_session};
use crate::guest::quiesce::Virsh;
use crate::vault::repository::{Keep, Rung};

/// The longest file that is read, in bytes.
const LEN_MAX: u64 = 1 << 20;

/// For so many seconds a look waits for a store that does not answer, where the file does not say.
const LOOK_PATIENCE_S: u64 = 10;

/// A commented file that works, with four classes of guests.
pub const EXAMPLE: &str = include_str!("example.toml");

/// What the file says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// IANA's name of the zone of all schedules; this machine's if it is not said.
    pub time_zone: Option<String>,
    /// The systemd timer that starts `qdelta run`; none if another program does.
    #[serde(default = "timer")]
    pub timer: String,
    /// The files that are kept of this host, beside libvirt's; the usual ones if nothing is said.
    pub host_files: Option<Vec<PathBuf>>,
    /// Guests that no job need cover, by name, pattern or UUID.
    #[serde(default, deserialize_with = "one_or_many")]
    pub ignore: Vec<Pattern>,
    /// Where points are kept.
    pub repositories: BTreeMap<String, RepositoryPlace>,
    /// Where libvirt is.
    #[serde(default)]
    pub libvirt: LibvirtPlace,
    /// How much of this host a run may take.
    #[serde(default)]
    pub limits: Limits,
    /// Programs around a whole run.
    #[serde(default)]
    pub hooks: Hooks,
    /// Who is told of what.
    #[serde(default)]
    pub notify: BTreeMap<String, Notifier>,
    /// Where a monitoring system finds how everything stands.
    #[serde(default)]
    pub metrics: Metrics,
    /// Whether the system's journal hears of everything that is done.
    #[serde(default = "yes")]
    pub journal: bool,
    /// What is done.
    pub jobs: BTreeMap<String, Job>,
}

/// Where a monitoring system finds how everything stands.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Metrics {
    /// The file for Prometheus' node exporter.
    pub textfile: Option<PathBuf>,
}

/// A repository.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryPlace {
    /// As `--repo` takes it.
    pub place: String,
    /// The file with the key of an encrypted repository.
    pub key_file: Option<PathBuf>,
    /// The command of the shell that writes that key to its standard output.
    pub key_command: Option<String>,
    /// So many bytes are to stay free there.
    #[serde(default, deserialize_with = "bytes")]
    pub keep_free: Option<u64>,
}

impl RepositoryPlace {
    /// The same for somebody who only looks: of a store that does not answer, that is what is told.
    pub(super) fn for_a_look(&self) -> Self {
        let mut place = self.clone();
        if place.place.starts_with("s3://") && !place.place.contains("patience=") {
            let sign = if place.place.contains('?') { '&' } else { '?' };
            place.place += &format!("{sign}patience={LOOK_PATIENCE_S}");
        }
        place
    }
}

/// Where libvirt keeps its files, and how `virsh` is called.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LibvirtPlace {
    /// The folder of its configuration.
    pub config: PathBuf,
    /// The folder for the state of running guests.
    pub run: PathBuf,
    /// The folder for lasting state.
    pub state: PathBuf,
    /// The hypervisor for `virsh`.
    pub connect: Option<String>,
    /// The `virsh` program.
    pub virsh: PathBuf,
}

impl Default for LibvirtPlace {
    fn default() -> Self {
        let Libvirt { config, run, state, .. } = Libvirt::default();
        Self { config, run, state, connect: None, virsh: PathBuf::from("virsh") }
    }
}

impl LibvirtPlace {
    /// Where libvirt's files are.
    pub fn libvirt(&self) -> Libvirt {
        let Self { config, run, state, connect, .. } = self.clone();
        Libvirt { config, run, state, session: connect.as_deref().is_some_and(is_session) }
    }

    /// How `virsh` is called.
    pub fn virsh(&self) -> Virsh {
        Virsh { program: self.virsh.clone(), connect: self.connect.clone() }
    }
}

/// How much of this host a run may take.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// So many guests are backed up at a time.
    pub guests_at_once: usize,
    /// Threads of all of them together; one for each processor if it is not said.
    pub threads: Option<usize>,
    /// How much memory they may take together, in bytes, of disks with blocks and clusters of 1 MiB at most.
    #[serde(deserialize_with = "bytes")]
    pub memory: Option<u64>,
    /// At most so many bytes a second are read from and written to each repository, by all guests together.
    #[serde(deserialize_with = "rate")]
    pub rate: Option<u64>,
    /// How far the run stands back for others, from 0 to 19.
    pub nice: u8,
    /// How its I/O stands back for that of others, where the scheduler of the disk heeds it.
    pub io_class: IoClass,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            guests_at_once: 1,
            threads: None,
            memory: None,
            rate: None,
            nice: 10,
            io_class: IoClass::BestEffort,
        }
    }
}

/// How much memory a run takes where the file does not say, if so many guests at once can do with it, in bytes.
const MEMORY: u64 = 256 << 20;

/// What a run takes beside its guests, what each guest takes that is worked on, and what each of its threads takes, in
/// bytes.
const MEMORY_OF: [u64; 3] = [20 << 20, 40 << 20, 9 << 20];

impl Limits {
    /// How much memory so many guests at once take at least, in bytes.
    pub(super) fn memory_min(at_once: usize) -> u64 {
        let [run, guest, thread] = MEMORY_OF;
        run + at_once as u64 * (guest + thread)
    }

    /// How many threads each of so many guests at once may have: at least one.
    pub(super) fn threads_each(&self, at_once: usize, processors: usize) -> usize {
        let [run, guest, thread] = MEMORY_OF;
        let at_once = at_once.max(1);
        let memory = self.memory.unwrap_or(MEMORY).saturating_sub(run) / at_once as u64;
        let fit = memory.saturating_sub(guest) / thread;
        let threads = self.threads.unwrap_or(processors) / at_once;
        threads.min(usize::try_from(fit).unwrap_or(usize::MAX)).max(1)
    }
}

/// A class of I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IoClass {
    /// As the run was started.
    None,
    /// After that of every program that says nothing.
    BestEffort,
    /// When nobody else has any.
    Idle,
}

/// Programs around the work; each is a line for `/bin/sh`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Hooks {
    /// Before the work: if it fails, the work is not done.
    pub before: Option<String>,
    /// After work that went well.
    pub after: Option<String>,
    /// After work of which something failed.
    pub failed: Option<String>,
    /// After all that, in any case.
    #[serde(rename = "finally")]
    pub at_last: Option<String>,
    /// How long each may take.
    #[serde(default, deserialize_with = "optional")]
    pub time_limit: Option<Stretch>,
}

/// A job: some guests, and what is done with them when.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// The repository; need not be said if there is one.
    pub repository: Option<String>,
    /// Guests by name, pattern (`db*`) or UUID; `all` for every guest.
    #[serde(default, deserialize_with = "one_or_many")]
    pub guests: Vec<Pattern>,
    /// Those of them that are left out.
    #[serde(default, deserialize_with = "one_or_many")]
    pub except: Vec<Pattern>,
    /// Disks that are left out, as `GUEST/TARGET`.
    #[serde(default)]
    pub exclude_disks: Vec<String>,
    /// Images that belong to no guest.
    #[serde(default)]
    pub images: Vec<JobImage>,
    /// When its guests are backed up; only when it is named, if nothing is said.
    #[serde(default, deserialize_with = "one_or_many")]
    pub schedule: Vec<Calendar>,
    /// What is left for the next backup.
    #[serde(default)]
    pub anchor: AnchorChoice,
    /// How running guests are brought to rest.
    #[serde(default)]
    pub consistency: ConsistencyChoice,
    /// How long a guest may be frozen.
    #[serde(default, deserialize_with = "optional")]
    pub freeze_max: Option<Stretch>,
    /// The program that makes snapshots.
    pub snapshot_command: Option<PathBuf>,
    /// The zstd level.
    #[serde(default = "level")]
    pub level: i32,
    /// Whether the host's configuration is backed up, too, as a disk of its own.
    #[serde(default)]
    pub with_host_config: bool,
    /// Whether the snapshots in images become points, too.
    #[serde(default)]
    pub with_snapshots: bool,
    /// Whether the memory of guests is taken along that libvirt has saved.
    #[serde(default)]
    pub with_memory: bool,
    /// How old the newest good point of a guest may be.
    #[serde(default, deserialize_with = "optional")]
    pub rpo: Option<Stretch>,
    /// How long it may take until a guest is back.
    #[serde(default, deserialize_with = "optional")]
    pub rto: Option<Stretch>,
    /// A second copy of its points.
    pub copy: Option<copy::Copy>,
    /// Proof of its points.
    pub verify: Option<Verify>,
    /// Removal of points that no rule keeps.
    pub prune: Option<Prune>,
    /// Drills of its guests.
    pub drill: Option<Drill>,
    /// Programs around the job.
    #[serde(default)]
    pub hooks: Hooks,
}

/// Proof of the points of a job's guests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// When; after each backup of the job if nothing is said.
    #[serde(default, deserialize_with = "one_or_many")]
    pub schedule: Vec<Calendar>,
    /// How much may be read, or how long.
    #[serde(default, deserialize_with = "optional")]
    pub budget: Option<Budget>,
    /// What was proved within this time is left out.
    #[serde(default, deserialize_with = "optional")]
    pub max_age: Option<Period>,
}

/// Removal of points that no rule keeps.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prune {
    /// When; after each backup of the job if nothing is said.
    #[serde(default, deserialize_with = "one_or_many")]
    pub schedule: Vec<Calendar>,
    /// The rules; those of the repository if nothing is said.
    pub keep: Option<Keep>,
    /// How long a removed point can be brought back; what the repository says if nothing is said.
    #[serde(default, deserialize_with = "optional")]
    pub grace: Option<Period>,
}

/// Drills of a job's guests.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    /// When; after each backup of the job if nothing is said.
    #[serde(default, deserialize_with = "one_or_many")]
    pub schedule: Vec<Calendar>,
    /// Only so many guests: those whose last drill is longest ago.
    pub pick: Option<usize>,
    /// How far to climb.
    pub to: Option<Rung>,
    /// The program that boots a guest.
    pub boot_command: Option<PathBuf>,
    /// How long each program may take.
    #[serde(default, deserialize_with = "optional")]
    pub time_limit: Option<Stretch>,
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::Usage`], with line and column, if it makes
    /// no sense.
    pub fn read(path: &Path) -> Result<Self> {
        let text = Opener::READ.read_text(path, LEN_MAX).map_err(|error| {
            let advice = match error.kind() {
                // It is there: another file is of no use.
                io::ErrorKind::InvalidData => {
                    let text =
                        format!("{} is no text in UTF-8, or longer than 1 MiB", path.display());
                    return Error::new(ErrorKind::Usage, text).advise("save it as UTF-8");
                }
                io::ErrorKind::NotFound => {
                    "qdelta config example writes a file to begin with; --config names another"
                }
                _ => "--config names another",
            };
            Error::io("read", path, error).advise(advice)
        })?;
        Self::parse(&text).map_err(|error| error.within(path.display().to_string()))
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text).map_err(|error| mistake(text, &error))?;
        config.zone()?;
        config.check()?;
        Ok(config)
    }

    /// The zone of all schedules.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if this machine does not know it.
    pub fn zone(&self) -> Result<TimeZone> {
        let Some(name) = &self.time_zone else { return Ok(TimeZone::system()) };
        TimeZone::get(name).map_err(|_| {
            Error::new(ErrorKind::Usage, format!("this machine knows no time zone {name:?}"))
                .advise(
                    "give IANA's name of it, as Europe/Berlin or UTC; the package tzdata has them",
                )
        })
    }

    /// The repository of a job.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if the job names none of several, or one that is not there.
    pub fn repository_of(&self, name: &str, job: &Job) -> Result<(&str, &RepositoryPlace)> {
        let refused = |text: String| Error::new(ErrorKind::Usage, format!("job {name}: {text}"));
        let known = self.repositories.keys().map(String::as_str);
        match &job.repository {
            Some(wanted) => {
                let found = self.repositories.get_key_value(wanted);
                found.map(|(name, place)| (name.as_str(), place)).ok_or_else(|| {
                    let near = nearest(wanted, known.clone());
                    let near = near.or(known.clone().next()).unwrap_or("main");
                    refused(format!("there is no [repositories.{wanted}]"))
                        .advise(format!("did you mean {near:?}?"))
                })
            }
            None => {
                let own = |it: &(&String, _)| !self.is_for_copies(it.0);
                let mut all = self.repositories.iter().filter(own);
                match (all.next(), all.next()) {
                    (Some((name, place)), None) => Ok((name, place)),
                    _ => Err(refused("it does not say which repository".to_owned())
                        .advise("say repository = \"NAME\", as in [repositories.NAME]")),
                }
            }
        }
    }
}

/// What is wrong with the text, and where; of a key that is unknown, what may have been meant.
fn mistake(text: &str, error: &toml::de::Error) -> Error {
    let message = error.message().replace('\n', " ");
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.chars().rev().take_while(|c| *c != '\n').count();
    let place = format!("line {line}, column {column}");
    let unknown =
        message.strip_prefix("unknown field `").or(message.strip_prefix("unknown variant `"));
    let Some((word, rest)) = unknown.and_then(|rest| rest.split_once('`')) else {
        return match wrong_kind(&message) {
            Some((text, advice)) => {
                let error = Error::new(ErrorKind::Usage, format!("{place}: {text}"));
                advice.map_or(error.clone(), |advice| error.advise(advice))
            }
            None => Error::new(ErrorKind::Usage, place).because(message),
        };
    };
    let known: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
    let text = format!("{place}: nothing is called `{word}` here");
    Error::new(ErrorKind::Usage, text).advise(match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("there are {}", known.join(", ")),
    })
}

/// What is wrong with a value of another kind than is wanted, in words of the file, and what to write.
fn wrong_kind(message: &str) -> Option<(String, Option<&'static str>)> {
    let rest = message.strip_prefix("invalid type: ").or(message.strip_prefix("invalid value: "))?;
    let (found, expected) = rest.rsplit_once(", expected ")?;
    let found = match found.split_once(' ') {
        Some(("string", text)) => format!("the text {text}"),
        Some((_, value)) if value.starts_with('`') => value.trim_matches('`').to_owned(),
        _ if found == "map" => "a table".to_owned(),
        _ if found == "sequence" => "a list".to_owned(),
        _ => found.to_owned(),
    };
    let (wanted, advice) = match expected {
        "a sequence" => ("a list", Some("write it in brackets: [\"web\", \"db*\"]")),
        "a string" => ("a text", Some("write it in quotes")),
        "u8" | "u16" | "u32" | "u64" | "usize" => ("a whole number, 0 or more,", None),
        "i8" | "i16" | "i32" | "i64" => ("a whole number", None),
        "a boolean" => ("true or false", None),
        it if it.starts_with("struct ") || it == "a map" => (
            "a table with keys of its own",
            Some("docs/jobs.md and qdelta config example have them"),
        ),
        other => (other, None),
    };
    Some((format!("{wanted} is wanted here, and not {found}"), advice))
}

fn timer() -> String {
    "qdelta.timer".to_owned()
}

fn yes() -> bool {
    true
}

fn level() -> i32 {
    LEVEL_DEFAULT
}

/// Reads text as a value of our own; what is wrong with it is said with what to write.
fn parsed<T: FromStr<Err = Error>, E: serde::de::Error>(text: &str) -> Result<T, E> {
    text.parse().map_err(|error: Error| {
        let advice = error.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        E::custom(format!("{}{advice}", error.chain()))
    })
}

/// Takes text for a value that may be missing.
fn optional<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err = Error>,
    D: Deserializer<'de>,
{
    parsed(&String::deserialize(deserializer)?).map(Some)
}

/// Takes text for a value, or a list of them.
fn one_or_many<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err = Error>,
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "a text in quotes is wanted here, or a list of them: [\"…\", \"…\"]"
    )]
    enum Form {
        One(String),
        Many(Vec<String>),
    }
    let texts = match Form::deserialize(deserializer)? {
        Form::One(text) => vec![text],
        Form::Many(texts) => texts,
    };
    if texts.is_empty() {
        return Err(D::Error::custom("an empty list means nothing: leave it out"));
    }
    texts.iter().map(|text| parsed(text)).collect()
}

/// Takes a size.
fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    size::parse(&text).map(Some).map_err(|error| D::Error::custom(error.chain()))
}

/// Takes so many bytes a second.
fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(deserializer)?;
    size::parse_rate(&text).map(Some).map_err(|error| D::Error::custom(error.chain()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(lines: &str) -> Result<Config> {
        Config::parse(&format!(
            "[repositories.main]\nplace = \"r\"\n[jobs.a]\nguests = [\"web\"]\n{lines}"
        ))
    }

    /// On a machine of 64 processors, four guests at once took a gigabyte.
    #[test]
    fn threads_are_as_many_as_the_memory_allows() {
        let limits = |memory: Option<u64>, threads| {
            let memory = memory.map(|mib| mib << 20);
            Limits { memory, threads, ..Limits::default() }
        };
        let each = |memory, threads, at_once| limits(memory, threads).threads_each(at_once, 64);
        assert_eq!([each(None, None, 1), each(None, None, 4), each(None, Some(2), 4)], [21, 2, 1]);
        assert_eq!([each(None, None, 64), each(Some(4096), None, 4)], [1, 16]);
        assert_eq!([each(None, Some(2), 1), each(Some(70), None, 1)], [2, 1]);
        for at_once in [1, 4, 64] {
            let least = Limits::memory_min(at_once);
            assert!(
                Limits { memory: Some(least), ..Limits::default() }.threads_each(at_once, 64) == 1
            );
        }
    }

    #[test]
    fn the_example_works_and_has_four_classes() {
        let example = Config::parse(EXAMPLE).unwrap();
        let jobs: Vec<&str> = example.jobs.keys().map(String::as_str).collect();
        assert_eq!(jobs, ["development", "office", "production", "test"]);
        // What is commented out works, too.
        let commented = |line: &str| line.strip_prefix("# ").unwrap_or("").contains(['=', '[']);
        let uncommented: String = EXAMPLE
            .lines()
            .map(|line| if commented(line) { &line[2..] } else { line })
            .map(|line| format!("{line}\n"))
            .collect();
        let all = Config::parse(&uncommented).unwrap();
        assert_eq!(all.time_zone.as_deref(), Some("Europe/Berlin"));
        assert!(all.jobs["production"].hooks.before.is_some());
    }

    /// "daly = 14" was passed over, and every point was removed that no other rule kept.
    #[test]
    fn a_mistake_is_told_with_its_place_and_what_may_be_meant() {
        for (lines, place, said) in [
            ("shedule = \"22:00\"", "line 5, column 1", "did you mean `schedule`?"),
            ("[jobs.a.prune]\nkeep = { daly = 14 }", "line 6, column 10", "did you mean `daily`?"),
            ("colour = 1", "line 5, column 1", "there are repository, guests"),
            ("anchor = \"reflnk\"", "line 5, column 10", "did you mean `reflink`?"),
            ("schedule = \"25:00\"", "line 5, column 12", "no hour from 0 to 23"),
            ("schedule = [\"1:00\", \"soon\"]", "line 5, column 12", "no time of a calendar"),
            ("rpo = \"26\"", "line 5, column 7", "say how many of what"),
            ("[jobs.a.verify]\nbudget = \"2\"", "line 6, column 10", "2h or 90min"),
            ("guests = [\"a\"]", "line 5", "duplicate key"),
            (
                "level = \"high\"",
                "line 5",
                "a whole number is wanted here, and not the text \"high\"",
            ),
            ("exclude_disks = \"web/vdb\"", "line 5, column 17", "a list is wanted here"),
            (
                "schedule = 01:30:00",
                "line 5, column 12",
                "a text in quotes is wanted here, or a list",
            ),
            ("images = [\"/a.img\"]", "line 5", "a table with keys of its own is wanted here"),
            ("verify = true", "line 5, column 10", "and not true; docs/jobs.md"),
            (
                "rpo = 26",
                "line 5, column 7",
                "a text is wanted here, and not 26; write it in quotes",
            ),
            (
                "[limits]\nguests_at_once = -1",
                "line 6",
                "a whole number, 0 or more, is wanted here",
            ),
            ("[limits]\nnice = -5", "line 6", "and not -5"),
            ("except = \"a/b\"", "line 5, column 10", "no guest is called \"a/b\""),
            ("repository = \"mian\"", "job a", "did you mean \"main\"?"),
            ("level = 20", "job a", "level is -7 to 19"),
            ("freeze_max = \"1h\"", "job a", "at most 10m"),
            ("[jobs.b]\nschedule = \"1:00\"", "job b", "say guests"),
            ("[jobs.\"a b\"]\nguests = [\"x\"]", "\"a b\"", "letters, digits"),
            ("[limits]\nguests_at_once = 0", "limits", "1 to 64"),
            ("[limits]\nnice = 20", "limits", "0 to 19"),
            ("[limits]\nmemory = \"100M\"\nguests_at_once = 4", "limits", "at least 216.0 MiB"),
            ("[limits]\nrate = \"0\"", "line 6, column 8", "nothing would pass"),
            ("[jobs.a.prune]\nkeep = { safety = \"1d\" }", "job a", "keep = { daily = 14 }"),
            ("[jobs.a.drill]\npick = 0", "job a", "pick = 1"),
            (
                "[[jobs.a.images]]\npath = \"/a/x\"\n[[jobs.a.images]]\npath = \"/b/x\"",
                "x/",
                "disk = \"NAME/TARGET\"",
            ),
            ("[repositories.other]\nplace = \"s\"", "job a", "say repository"),
            (
                "[repositories.main2]\nplace = \"s\"\nkeep_free = \"much\"",
                "line 7, column 13",
                "no size",
            ),
        ] {
            let error = config(lines).unwrap_err();
            let whole = format!("{}; {}", error.chain(), error.advice().unwrap_or_default());
            assert!(whole.contains(place) && whole.contains(said), "{lines}: {whole}");
            assert_eq!(error.kind(), ErrorKind::Usage);
        }
        assert!(config("").is_ok());
        let one = config("except = \"db*\"\nschedule = \"1:00\"").unwrap();
        assert_eq!(one.jobs["a"].except.len(), 1);
        let file = tempfile::NamedTempFile::new().unwrap();
        for bytes in [b"# gr\xfc\xdfe\n".to_vec(), vec![b'#'; LEN_MAX as usize + 1]] {
            std::fs::write(file.path(), bytes).unwrap();
            let error = Config::read(file.path()).unwrap_err();
            assert_eq!(
                (error.kind(), error.advice()),
                (ErrorKind::Usage, Some("save it as UTF-8"))
            );
        }
        let error = Config::parse("[repositories.main]\nplace = \"r\"\n[jobs]\n").unwrap_err();
        assert!(error.chain().contains("no job"));
        let error =
            Config::parse("time_zone = \"Mars/Olympus\"\n[repositories]\n[jobs]\n").unwrap_err();
        assert!(error.chain().contains("no time zone"));
    }
}
