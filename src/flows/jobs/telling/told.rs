//! Who was told of what: a file of this host's, so that nobody is told twice, and nobody never.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::base::error::{Error, ErrorKind, Result};
use crate::base::json::text;
use crate::disk::files::{Durability, make_private_folder, replace_file};
use crate::disk::io::Opener;
use crate::flows::jobs::Host;
use crate::flows::notify::Notifier;
use crate::flows::report::{Event, FindingCode, Level, OpenFinding};

const NAME: &str = "told.json";

/// The longest file that is read, in bytes.
const LEN_MAX: u64 = 64 << 20;

/// So many ends of runs that somebody was not told are told later.
const LOST_MAX: usize = 20;

/// What the host does is nobody else's business.
const MODE: u32 = 0o600;

/// Who was told of what.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Told {
    /// When everything was looked at last.
    #[serde(with = "text::optional")]
    pub looked: Option<Timestamp>,
    /// Which of several files was written last.
    pub turn: u64,
    /// The notifiers.
    pub notifiers: BTreeMap<String, Listener>,
}

/// What one notifier knows.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Listener {
    /// The findings that it was told of and that have not ended, by what they are about.
    pub findings: BTreeMap<String, Known>,
    /// When it was told of everything last, or first could have been.
    #[serde(with = "text::optional")]
    pub digest: Option<Timestamp>,
    /// Why it can't be told.
    pub trouble: Option<Trouble>,
}

/// A finding that somebody was told of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    /// When that was, the last time.
    #[serde(with = "text")]
    pub told: Timestamp,
    /// The finding, as it was told.
    pub finding: OpenFinding,
}

/// Why somebody can't be told.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Trouble {
    /// Since when.
    #[serde(with = "text")]
    pub since: Timestamp,
    /// Why.
    pub text: String,
    /// What to do about it.
    pub advice: Option<String>,
    /// The ends of runs that it was not told, each in a line.
    #[serde(default)]
    pub lost: Vec<String>,
    /// How many more there were.
    #[serde(default)]
    pub lost_more: u64,
}

impl Trouble {
    /// Notes the end of a run that could not be told.
    pub fn lose(&mut self, end: String) {
        match self.lost.len() < LOST_MAX {
            true => self.lost.push(end),
            false => self.lost_more += 1,
        }
    }
}

/// What a finding is about: two with the same key are one that goes on. A warning is what it says, but for numbers, which
/// may be others each night.
pub(super) fn key(finding: &OpenFinding) -> String {
    let says = match finding.code {
        FindingCode::Warned => without_numbers(&finding.text),
        _ => String::new(),
    };
    let act = finding.act.map(|act| act.to_string()).unwrap_or_default();
    let job = finding.job.as_deref().unwrap_or("");
    format!("{} {act} {job} {} {says}", finding.code, finding.subject).trim_end().to_owned()
}

/// A text without its counts, ages, sizes and times. The numbers in names stay: web1 is not web2.
fn without_numbers(text: &str) -> String {
    /// What is left of these where one 0 stands for digits in a row.
    const SHAPES: [&str; 10] = [
        "0",
        "0.0",
        "0%",
        "0:0",
        "0:0:0",
        "0-0-0",
        "0T0Z",
        "0T0.0Z",
        "0-0-0T0:0:0Z",
        "0-0-0T0:0:0.0Z",
    ];
    let is_number = |word: &str| {
        let mut shape = String::new();
        for letter in word.chars().map(|it| if it.is_ascii_digit() { '0' } else { it }) {
            if letter != '0' || !shape.ends_with('0') {
                shape.push(letter);
            }
        }
        SHAPES.contains(&shape.as_str())
    };
    let bare = |word: &str| {
        word.trim_matches(|it: char| !it.is_ascii_alphanumeric() && it != '%').to_owned()
    };
    let words = text.split_whitespace().filter(|word| !is_number(&bare(word)));
    words.collect::<Vec<_>>().join(" ")
}

/// Whether a finding says that this notifier could not be told: who is reached again need not hear it.
pub(super) fn is_own(name: &str, finding: &OpenFinding) -> bool {
    finding.code == FindingCode::Notifier && finding.subject == name
}

/// What is new for somebody.
#[derive(Debug, Default)]
pub(super) struct News<'a> {
    /// Findings that it was not told of, or that are graver than it was told.
    pub opened: Vec<&'a OpenFinding>,
    /// Findings that it was told of long ago, and that stay.
    pub again: Vec<&'a OpenFinding>,
    /// Findings that have ended.
    pub ended: Vec<OpenFinding>,
    /// All other findings that are open.
    pub others: usize,
}

/// Whether nobody can say of a finding whether it goes on.
pub(super) type Doubt<'a> = &'a dyn Fn(&OpenFinding) -> bool;

/// What is new for a notifier, of everything that is open. A finding of which nobody can say now whether it goes on has
/// not ended.
pub(super) fn news<'a>(
    (name, notifier): (&str, &Notifier),
    listener: &Listener,
    (open, is_in_doubt): (&'a [OpenFinding], Doubt<'_>),
    now: Timestamp,
) -> News<'a> {
    let mut news = News::default();
    let least = notifier.level.unwrap_or(Level::Ok);
    let is_heard = |finding: &&OpenFinding| {
        finding.level >= least
            && !is_own(name, finding)
            && notifier.hears_of(finding.job.as_deref())
    };
    let again = SignedDuration::try_from(notifier.again()).unwrap_or(SignedDuration::MAX);
    let mut keys = BTreeMap::new();
    for finding in open.iter().filter(is_heard) {
        // The gravest comes first, and speaks for those that are about the same.
        if keys.insert(key(finding), ()).is_some() {
            continue;
        }
        match listener.findings.get(&key(finding)) {
            None => news.opened.push(finding),
            Some(known) if known.finding.level < finding.level => news.opened.push(finding),
            // A clock that was set back must not keep anybody from hearing.
            Some(known) if now < known.told || now.duration_since(known.told) >= again => {
                news.again.push(finding);
            }
            Some(_) => news.others += 1,
        }
    }
    if !notifier.hears(Event::Finding) {
        news.others += news.opened.len() + news.again.len();
        news.opened.clear();
        news.again.clear();
    }
    // What is less grave than this one wants to hear has not ended either.
    let goes_on = |finding: &&OpenFinding| notifier.hears_of(finding.job.as_deref());
    let going_on: BTreeSet<String> = open.iter().filter(goes_on).map(key).collect();
    let ended = listener
        .findings
        .iter()
        .filter(|(key, known)| !going_on.contains(*key) && !is_in_doubt(&known.finding));
    news.ended.extend(ended.map(|(_, known)| known.finding.clone()));
    news
}

impl Listener {
    /// Notes that somebody was told.
    pub fn note(&mut self, news: &News<'_>, now: Timestamp) {
        for finding in &news.ended {
            self.findings.remove(&key(finding));
        }
        for finding in news.opened.iter().chain(&news.again) {
            let finding: OpenFinding = (*finding).clone();
            self.findings.insert(key(&finding), Known { told: now, finding });
        }
    }
}

/// The file in the host's state, and the one that takes its place while that can't be written.
fn paths(host: &Host<'_>) -> impl Iterator<Item = PathBuf> {
    // Another state on this host has another.
    let of = blake3::hash(host.state.as_os_str().as_bytes()).to_hex();
    let spare =
        host.spare.map(|folder| folder.join(format!("{}-{NAME}", of.get(..16).unwrap_or(""))));
    [Some(host.state.join("jobs").join(NAME)), spare].into_iter().flatten()
}

impl Told {
    /// What is known; nothing if there is no file, or one that makes no sense: rather twice than never.
    pub fn read(host: &Host<'_>) -> Self {
        let read = |path: PathBuf| {
            let bytes = Opener::READ.read(&path, LEN_MAX).unwrap_or_default();
            serde_json::from_slice::<Self>(&bytes).unwrap_or_default()
        };
        paths(host).map(read).max_by_key(|told| told.turn).unwrap_or_default()
    }

    /// Remembers it: where the state can't be written, in the spare folder. Gives why the state could not be.
    ///
    /// # Errors
    /// It can't be written at either place.
    pub fn write(&mut self, host: &Host<'_>) -> Result<Option<Error>> {
        self.turn += 1;
        let bytes = serde_json::to_vec(&self).map_err(|error| {
            Error::new(ErrorKind::Io, "what was told can't be written").because(error)
        })?;
        let mut failed = None;
        for path in paths(host) {
            let folder = path.parent().unwrap_or(&path);
            let written = make_private_folder(folder).and_then(|()| {
                replace_file(&path, MODE, Durability::Synced, |file| file.write_all(&bytes))
            });
            match written {
                Ok(()) => return Ok(failed),
                Err(error) => failed = failed.or(Some(Error::io("write", &path, error))),
            }
        }
        Err(failed.unwrap_or_else(|| Error::new(ErrorKind::Io, "nothing can be remembered")))
    }

    /// What one notifier knows.
    pub fn of(&mut self, name: &str) -> &mut Listener {
        self.notifiers.entry(name.to_owned()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All digits were left out, and web1 was web2: who lost its points in the second night was told to nobody.
    #[test]
    fn two_names_that_differ_by_a_digit_are_two_findings() {
        let same = |one: &str, other: &str| without_numbers(one) == without_numbers(other);
        for (one, other) in [
            ("the clock is 364 days behind", "the clock is 12 days behind"),
            (
                "3 times were missed since 2026-10-26 02:30, and",
                "1 times were missed since 2026-11-01 02:31, and",
            ),
            (
                "point 20261001T110700.807Z was (12.5 MiB)",
                "point 20261002T000000.1Z was (7.25 MiB)",
            ),
        ] {
            assert!(same(one, other), "{one} / {other}");
        }
        for (one, other) in [
            ("points of web1 are gone", "points of web2 are gone"),
            ("/srv/share1 is shared", "/srv/share2 is shared"),
            ("hostdev 01:00.0 is not taken", "hostdev 02:00.0 is not taken"),
            ("disk vdb2", "disk vdb3"),
        ] {
            assert!(!same(one, other), "{one} / {other}");
        }
    }

    fn finding(subject: &str, level: Level) -> OpenFinding {
        OpenFinding {
            level,
            code: FindingCode::Rpo,
            subject: subject.to_owned(),
            job: Some("a".to_owned()),
            act: None,
            text: "old".to_owned(),
            advice: None,
            since: None,
        }
    }

    fn subjects(news: &News<'_>) -> [Vec<String>; 3] {
        let of = |list: &[&OpenFinding]| list.iter().map(|it| it.subject.clone()).collect();
        let ended = news.ended.iter().map(|it| it.subject.clone()).collect();
        [of(&news.opened), of(&news.again), ended]
    }

    /// A finding is told once, again after the stated time, when it becomes graver, and when it ends.
    #[test]
    fn each_finding_is_told_once_and_when_it_ends() {
        let notifier: Notifier =
            toml::from_str("mail = \"root\"\nagain = \"2d\"\njobs = [\"a\"]").unwrap();
        let at = |hour: i64| Timestamp::from_second(hour * 3600).unwrap();
        let mut listener = Listener::default();
        let mut hour = 0;
        let mut step = |open: &[OpenFinding], hours: i64| {
            hour += hours;
            let news = news(("a", &notifier), &listener, (open, &|_| false), at(hour));
            listener.note(&news, at(hour));
            subjects(&news).map(|names| names.join(" "))
        };
        let (web, db) = (finding("web", Level::Warning), finding("db", Level::Critical));
        let both = [db.clone(), web.clone()];
        assert_eq!(step(&both, 1), ["db web", "", ""]);
        assert_eq!(step(&both, 1), ["", "", ""]);
        let graver = [db.clone(), finding("web", Level::Critical)];
        assert_eq!(step(&graver, 1), ["web", "", ""]);
        assert_eq!(step(&both, 45), ["", "", ""]);
        assert_eq!(step(&both, 1), ["", "db", ""]);
        assert_eq!(step(std::slice::from_ref(&db), 1), ["", "", "web"]);
        assert_eq!(step(&[], 1), ["", "", "db"]);
        assert_eq!(step(&both, 1), ["db web", "", ""]);
        // The clock is put back by a year.
        assert_eq!(step(&both, -9000), ["", "db web", ""]);
        // What belongs to another job is not for this one; what belongs to none is for all.
        let other = OpenFinding { job: Some("b".to_owned()), ..finding("mail", Level::Critical) };
        let host = OpenFinding { job: None, ..finding("timer", Level::Warning) };
        assert_eq!(step(&[other, host], 0), ["timer", "", "db web"]);
    }

    /// "All right again" was told of guests whose repository was away, and of a failure that was only less grave.
    #[test]
    fn what_nobody_can_judge_and_what_is_less_grave_has_not_ended() {
        let notifier: Notifier = toml::from_str("mail = \"root\"\nlevel = \"critical\"").unwrap();
        let now = Timestamp::from_second(3600).unwrap();
        let (web, db) = (finding("web", Level::Critical), finding("db", Level::Critical));
        let mut listener = Listener::default();
        let open = [web, db];
        let first = news(("a", &notifier), &listener, (&open, &|_| false), now);
        listener.note(&first, now);
        let less = [finding("web", Level::Warning)];
        let next = news(("a", &notifier), &listener, (&less, &|it| it.subject == "db"), now);
        assert_eq!(subjects(&next), [vec![], vec![], Vec::<String>::new()]);
        let next = news(("a", &notifier), &listener, (&less, &|_| false), now);
        assert_eq!(subjects(&next), [vec![], vec![], vec!["db".to_owned()]]);
    }
}
