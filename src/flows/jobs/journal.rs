//! The history of what was done by itself: a line of JSON for each record, in a folder of this host.
//!
//! A power cut tears at most the last line, which is passed over. When the file has grown too long, it
//! becomes the older of two, and the new one begins with the last record of each kind, so that what a
//! job did once a year is not forgotten for what others do every night.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;

use crate::base::error::{Error, ErrorKind, Result};
use crate::disk::files::make_private_folder;
use crate::disk::io::Opener;
use crate::flows::report::{Act, End, Record, RunHistory};
use crate::vault::repository::storage::{Local, Lock, LockMode, Locked, Name, Storage, Wait};

/// How long the newer file may become, in bytes.
const LEN_MAX: u64 = 16 << 20;

/// The longest line, in bytes: a record that would be longer goes without its result.
const LINE_MAX: usize = 1 << 20;

/// The longest file that is read, in bytes: one that grew too long grows on until the next run begins.
const READ_MAX: u64 = 256 << 20;

/// What the host does is nobody else's business.
const MODE: u32 = 0o600;

const NEWER: &str = "history.jsonl";
const OLDER: &str = "history.1.jsonl";
const NEXT: &str = "history.next";

/// What made no sense in the other two.
const TORN: &str = "history.torn";

/// What the records are about that tell of the history itself.
pub(super) const HISTORY: &str = "history";

/// A power cut tears so many lines.
pub(super) const TORN_MAX: usize = 1;

/// The history in a folder of this host.
pub struct Journal {
    folder: PathBuf,
    file: Mutex<()>,
}

impl Journal {
    /// The history in this folder of the host's state.
    pub fn new(state: &Path) -> Self {
        Self { folder: state.join("jobs"), file: Mutex::default() }
    }

    /// Takes the turn of a run, for as long as the lock lives.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] if another run is at work; the folder can't be made.
    pub(super) fn turn(&self) -> Result<Box<dyn Lock>> {
        make_private_folder(&self.folder).map_err(|error| {
            Error::io("make", &self.folder, error).advise("name another: --state DIR")
        })?;
        match Local::new(&self.folder).lock(
            &Name::top().join("lock"),
            LockMode::Exclusive,
            Wait::UNHEARD,
        )? {
            Locked::Held(lock) => Ok(lock),
            Locked::Busy(holder) => {
                let text = format!("another run is at work on this host: {holder}");
                Err(Error::new(ErrorKind::Busy, text)
                    .advise("wait until it is done; what is due is done by the next run"))
            }
        }
    }

    /// Whether a run is at work.
    pub(super) fn is_busy(&self) -> bool {
        let lock = Local::new(&self.folder).lock(
            &Name::top().join("lock"),
            LockMode::Shared,
            Wait::UNHEARD,
        );
        matches!(lock, Ok(Locked::Busy(_)))
    }

    /// Adds a record. It is on the disk afterwards.
    ///
    /// # Errors
    /// It can't be written.
    pub(super) fn add(&self, record: &Record) -> Result<()> {
        let _alone = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.folder.join(NEWER);
        append(&path, &line_of(record)?).map_err(|error| {
            Error::io("write", &path, error)
                .within("what was done could not be noted in the history")
        })
    }

    /// Everything that is known.
    ///
    /// # Errors
    /// A file can't be read. One that is missing holds nothing.
    pub fn read(&self) -> Result<RunHistory> {
        let mut history = RunHistory { records: Vec::new(), torn: 0 };
        let mut seen = BTreeSet::new();
        for name in [OLDER, NEWER] {
            let path = self.folder.join(name);
            let bytes = match Opener::READ.read(&path, READ_MAX) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("read", &path, error)),
            };
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            for line in lines {
                // What was carried over into the newer file stands in both.
                if !seen.insert(*blake3::hash(line).as_bytes()) {
                    continue;
                }
                match serde_json::from_slice(line) {
                    Ok(record) => history.records.push(record),
                    Err(_) => history.torn += 1,
                }
            }
        }
        // A clock that was set back changes no order: what was noted later was done later.
        Ok(history)
    }

    /// Makes room where the newer file has grown too long. Only who has the turn of a run may do so.
    ///
    /// # Errors
    /// A file can't be written. Nothing is lost then.
    pub(super) fn rotate(&self, len_max: Option<u64>) -> Result<()> {
        let [newer, older, next] = [NEWER, OLDER, NEXT].map(|name| self.folder.join(name));
        let len = fs::metadata(&newer).map_or(0, |metadata| metadata.len());
        if len <= len_max.unwrap_or(LEN_MAX) {
            return Ok(());
        }
        let history = self.read()?;
        let mut kept = BTreeMap::new();
        for (index, record) in history.records.iter().enumerate() {
            let key = (record.job.clone(), record.act, record.subject.clone());
            if record.end.is_success() {
                kept.insert((key.clone(), true), index);
            }
            kept.insert((key, false), index);
        }
        let kept: BTreeSet<usize> = kept.into_values().collect();
        let mut text = Vec::new();
        for record in kept.into_iter().filter_map(|index| history.records.get(index)) {
            text.extend(line_of(record)?);
        }
        let write = || -> io::Result<()> {
            write_anew(&next, &text)?;
            fs::rename(&newer, &older)?;
            fs::rename(&next, &newer)
        };
        write().map_err(|error| Error::io("write", &next, error))
    }

    /// Puts lines aside that make no sense, so that they are told of once. Only who has the turn of a run may do so.
    ///
    /// # Errors
    /// A file can't be read or written. Nothing is lost then.
    pub(super) fn put_torn_aside(&self) -> Result<()> {
        let [torn, next] = [TORN, NEXT].map(|name| self.folder.join(name));
        for path in [OLDER, NEWER].map(|name| self.folder.join(name)) {
            let bytes = match Opener::READ.read(&path, READ_MAX) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io("read", &path, error)),
            };
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            let (good, bad): (Vec<_>, Vec<_>) =
                lines.partition(|line| serde_json::from_slice::<Record>(line).is_ok());
            if bad.is_empty() {
                continue;
            }
            let with_ends = |lines: Vec<&[u8]>| [lines.join(&b'\n'), vec![b'\n']].concat();
            let write = || -> io::Result<()> {
                write_anew(&torn, &with_ends(bad))?;
                write_anew(&next, &with_ends(good))?;
                fs::rename(&next, &path)
            };
            write().map_err(|error| Error::io("write", &next, error))?;
        }
        Ok(())
    }
}

/// Writes a file in the place of what a run that was killed may have left, or one before.
fn write_anew(path: &Path, text: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = Opener::CHANGE.create(MODE).open(path)?;
    file.write_all(text)?;
    file.sync_all()
}

/// A record as a line.
fn line_of(record: &Record) -> Result<Vec<u8>> {
    let unwritable = |error: serde_json::Error| {
        Error::new(ErrorKind::Io, "a record of the history can't be written").because(error)
    };
    let mut line = serde_json::to_vec(record).map_err(unwritable)?;
    if line.len() > LINE_MAX {
        let short = Record { result: None, warnings: Vec::new(), ..record.clone() };
        line = serde_json::to_vec(&short).map_err(unwritable)?;
    }
    line.push(b'\n');
    Ok(line)
}

/// Adds a line to a file, behind the end of what a power cut may have torn.
fn append(path: &Path, line: &[u8]) -> io::Result<()> {
    let mut file = Opener::CHANGE.at_end().or_create(MODE).open(path)?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(0))? > 0 {
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
    }
    let mut text = Vec::new();
    if last != *b"\n" {
        text.push(b'\n');
    }
    text.extend(line);
    // In one call: another process that is refused may add a line at the same time.
    file.write_all(&text)?;
    file.sync_data()
}

/// What the history says of one job's act, or of one guest in it.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Past<'a> {
    /// The last record.
    pub last: Option<&'a Record>,
    /// The last record of work that was done.
    pub success: Option<&'a Record>,
}

/// The history, by what its records are about.
pub(super) struct Memory<'a> {
    past: BTreeMap<(Option<&'a str>, Act, Option<&'a str>), Past<'a>>,
    /// The runs that said how they ended.
    ended: BTreeSet<Timestamp>,
    /// What the records that lie ahead of the clock are about: it was wrong then, or is now.
    early: BTreeSet<(Option<&'a str>, Act, Option<&'a str>)>,
    /// How many these are.
    pub ahead: usize,
}

/// A clock that was put right by less than this is not wrong.
const TOLERANCE_S: i64 = 300;

impl<'a> Memory<'a> {
    /// Puts a history in order. What lies ahead of `now` counts for nothing: else a clock that stood a
    /// year ahead once would let no job be due for a year.
    pub fn new(history: &'a RunHistory, now: Timestamp) -> Self {
        let mut memory = Self {
            past: BTreeMap::new(),
            ended: BTreeSet::new(),
            early: BTreeSet::new(),
            ahead: 0,
        };
        for record in &history.records {
            let key = (record.job.as_deref(), record.act, record.subject.as_deref());
            if record.began.as_second() > now.as_second() + TOLERANCE_S {
                memory.early.insert(key);
                memory.ahead += 1;
                continue;
            }
            let is_end = !matches!(record.end, End::Begun | End::Cut | End::Refused | End::Seen);
            if record.act == Act::Run && record.subject.is_none() && is_end {
                memory.ended.insert(record.run);
            }
            let past = memory.past.entry(key).or_default();
            past.last = Some(record);
            if record.end.is_success() {
                past.success = Some(record);
            }
        }
        memory
    }

    /// What is known of an act as a whole, or of one of its subjects.
    pub fn of(&self, job: Option<&str>, act: Act, subject: Option<&str>) -> Past<'a> {
        // The keys live as long as the history; those that are asked for need not.
        let past: &BTreeMap<(Option<&str>, Act, Option<&str>), Past<'a>> = &self.past;
        past.get(&(job, act, subject)).copied().unwrap_or_default()
    }

    /// Whether nobody has ever seen a part of a job. A clock that was set back makes nothing new.
    pub fn is_new(&self, job: &str, act: Act) -> bool {
        let early: &BTreeSet<(Option<&str>, Act, Option<&str>)> = &self.early;
        self.of(Some(job), act, None).last.is_none() && !early.contains(&(Some(job), act, None))
    }

    /// Everything that any job has ever backed up, also one that is not in the file any more: the job, what it was
    /// called, and when.
    pub fn backups(&self) -> impl Iterator<Item = (&'a str, &'a str, Past<'a>)> {
        self.past.iter().filter_map(|((job, act, subject), past)| {
            (*act == Act::Backup).then_some((*job.as_ref()?, *subject.as_ref()?, *past))
        })
    }

    /// The subjects of a job's act.
    pub fn subjects(&self, job: &str, act: Act) -> impl Iterator<Item = (&'a str, Past<'a>)> {
        self.past.iter().filter_map(move |((of, which, subject), past)| {
            (*of == Some(job) && *which == act).then_some((*subject.as_ref()?, *past))
        })
    }

    /// Whether a run was killed after the last backup of a job, before it came to a part that follows the backup.
    pub fn is_left(&self, job: &str, act: Act) -> bool {
        let backup = self.of(Some(job), Act::Backup, None).last;
        let Some(backup) = backup.filter(|it| it.end != End::Seen) else { return false };
        let past = self.of(Some(job), act, None);
        !self.ended.contains(&backup.run) && past.last.is_none_or(|it| it.run < backup.run)
    }

    /// The hooks, of all jobs and of runs.
    pub fn hooks(&self) -> impl Iterator<Item = (Option<&'a str>, &'a str, Past<'a>)> {
        self.past.iter().filter_map(|((job, act, subject), past)| {
            (*act == Act::Hook).then_some((*job, *subject.as_ref()?, *past))
        })
    }

    /// The last run, if it never said how it ended.
    pub fn unended(&self) -> Option<&'a Record> {
        self.of(None, Act::Run, None).last.filter(|record| record.end == End::Begun)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(minute: i64, job: &str, subject: &str, end: End) -> Record {
        let time = Timestamp::from_second(minute * 60).unwrap();
        Record {
            run: time,
            job: Some(job.to_owned()),
            act: Act::Backup,
            subject: Some(subject.to_owned()),
            began: time,
            seconds: 1.0,
            end,
            text: "x".repeat(100),
            advice: None,
            warnings: Vec::new(),
            result: None,
        }
    }

    /// What a job did once a year went with what others did every night.
    #[test]
    fn a_history_that_grew_too_long_keeps_the_last_of_each() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let _turn = journal.turn().unwrap();
        journal.add(&record(1, "yearly", "old", End::Done)).unwrap();
        journal.add(&record(2, "yearly", "old", End::Failed)).unwrap();
        for minute in 3..200 {
            journal.add(&record(minute, "nightly", "web", End::Done)).unwrap();
            journal.rotate(Some(4096)).unwrap();
        }
        let files: u64 = [NEWER, OLDER]
            .iter()
            .map(|name| fs::metadata(journal.folder.join(name)).unwrap().len())
            .sum();
        assert!(files < 3 * 4096, "{files} bytes");
        let history = journal.read().unwrap();
        let memory = Memory::new(&history, Timestamp::from_second(1_000_000).unwrap());
        let past = memory.of(Some("yearly"), Act::Backup, Some("old"));
        let minute = |record: Option<&Record>| record.unwrap().began.as_second() / 60;
        assert_eq!((minute(past.success), minute(past.last)), (1, 2));
        assert_eq!(minute(memory.of(Some("nightly"), Act::Backup, Some("web")).last), 199);
        // What was carried over is not told twice.
        let old = history.records.iter().filter(|it| it.subject.as_deref() == Some("old"));
        assert_eq!(old.count(), 2);
    }

    #[test]
    fn a_line_that_was_torn_anywhere_costs_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::new(dir.path());
        let _turn = journal.turn().unwrap();
        journal.add(&record(1, "a", "web", End::Done)).unwrap();
        let one = fs::read(journal.folder.join(NEWER)).unwrap();
        journal.add(&record(2, "a", "web", End::Done)).unwrap();
        let both = fs::read(journal.folder.join(NEWER)).unwrap();
        for len in one.len() + 1..both.len() - 1 {
            fs::write(journal.folder.join(NEWER), &both[..len]).unwrap();
            journal.add(&record(3, "a", "web", End::Done)).unwrap();
            let history = journal.read().unwrap();
            assert_eq!((history.records.len(), history.torn), (2, 1), "{len} bytes");
        }
    }

    /// A clock that stood a year ahead for an hour would have let no job be due for a year.
    #[test]
    fn what_lies_ahead_of_the_clock_counts_for_nothing() {
        let records = vec![record(1, "a", "web", End::Done), record(1000, "a", "web", End::Done)];
        let history = RunHistory { records, torn: 0 };
        let memory = Memory::new(&history, Timestamp::from_second(120).unwrap());
        let last = memory.of(Some("a"), Act::Backup, Some("web")).last.unwrap();
        assert_eq!((last.began.as_second(), memory.ahead), (60, 1));
    }

    #[test]
    fn a_record_that_is_too_long_goes_without_its_result() {
        let mut long = record(1, "a", "web", End::Warned);
        let text = "x".repeat(LINE_MAX);
        long.warnings
            .push(crate::base::warning::Warning::new(crate::base::warning::Code::Machine, text));
        let line = line_of(&long).unwrap();
        assert!(line.len() < 1000);
        assert_eq!(serde_json::from_slice::<Record>(&line).unwrap().end, End::Warned);
    }
}
