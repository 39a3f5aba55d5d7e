//! A month in which everything happens that happens to admins: each trouble is told once, with the
//! right words, and when it is over; nothing else is told; and the nights of the others go on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::Path;

use super::telling::Told;
use super::troubles::troubles;
use super::*;
use crate::harness::guest::Running;

/// The guests, and what backs them up.
pub(super) const GUESTS: &[&str] =
    &[WEB, DB, "production backup d-app", "production backup d-log", MAIL];

/// The host of the month.
pub(super) struct Month {
    pub told: Told,
    /// Lines for the job `production`, and for the end of the file.
    lines: RefCell<(String, String)>,
    /// The day of the next night.
    pub day: Cell<jiff::civil::Date>,
    pub live: RefCell<Option<Running>>,
    /// The codes of findings that were open, and whether each has ended.
    codes: RefCell<BTreeMap<String, bool>>,
    /// What went wrong in the test, all of it.
    wrong: RefCell<Vec<String>>,
}

/// A trouble: what it is, how it comes and goes, what is told of it (whom it is about, and words), and who
/// has no night because of it.
pub(super) struct Trouble {
    pub what: &'static str,
    pub make: fn(&Month),
    pub mend: fn(&Month),
    pub tells: &'static [(&'static str, &'static str)],
    pub without: &'static [&'static str],
}

/// Puts a file away, and back.
pub(super) fn hide(path: &Path) {
    fs::rename(path, path.with_extension("hidden")).unwrap();
}

pub(super) fn show(path: &Path) {
    let _ = fs::remove_dir_all(path);
    let _ = fs::remove_file(path);
    fs::rename(path.with_extension("hidden"), path).unwrap();
}

/// Puts a copy of a file away, and other bytes in its place.
pub(super) fn spoil(path: &Path, bytes: &[u8]) {
    hide(path);
    fs::write(path, bytes).unwrap();
}

impl Month {
    fn new() -> Self {
        let told = Told::new();
        told.night.define("d-app", 4, &["vda"]);
        told.night.define("d-log", 5, &["vda"]);
        let month = Self {
            told,
            lines: RefCell::default(),
            day: Cell::new("2026-11-02".parse().unwrap()),
            live: RefCell::default(),
            codes: RefCell::default(),
            wrong: RefCell::default(),
        };
        month.write("", "");
        month
    }

    pub fn night(&self) -> &Night {
        &self.told.night
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.night().lab.path(name)
    }

    pub fn small(&self) -> PathBuf {
        self.night().small.dir.clone()
    }

    /// Adds lines to the file of jobs; those of the next call take their place.
    pub fn write(&self, production: &str, more: &str) {
        let mut lines = self.lines.borrow_mut();
        (lines.0, lines.1) = (production.to_owned(), more.to_owned());
        let more =
            format!("{more}\n[notify.ear]\ncommand = \"cat >>{}\"\n", self.path("heard").display());
        self.told.configure(&format!("{production}\n"), &more);
    }

    /// What the ear has heard since the last call: the lines below "New" and "Still", and below "Over".
    fn heard(&self) -> (Vec<String>, Vec<String>) {
        let text = fs::read_to_string(self.path("heard")).unwrap_or_default();
        let _ = fs::remove_file(self.path("heard"));
        let (mut opened, mut over, mut part) = (Vec::new(), Vec::new(), "");
        for line in text.lines() {
            match line.strip_prefix("  ") {
                None => part = line,
                Some(line) if line.trim_start().starts_with("->") => {}
                Some(line) if part == "Over" => over.push(line.to_owned()),
                Some(line) if part == "New" || part == "Still" => opened.push(line.to_owned()),
                Some(_) => {}
            }
        }
        (opened, over)
    }

    /// Looks which codes are open, and which no more. Where nobody can look, nothing is known.
    fn look(&self, clock: &str) {
        let outcome = self.told.at(&self.time(clock), args!["status", "--json"]);
        if outcome.stdout.is_empty() {
            return;
        }
        let report = outcome.json();
        let open = report["findings"].as_array().unwrap().iter();
        let open: BTreeSet<String> =
            open.map(|it| it["code"].as_str().unwrap().to_owned()).collect();
        let mut codes = self.codes.borrow_mut();
        codes.iter_mut().for_each(|(code, has_ended)| *has_ended |= !open.contains(code));
        for code in open {
            codes.entry(code).or_default();
        }
    }

    pub fn time(&self, clock: &str) -> String {
        format!("{} {clock}", self.day.get())
    }

    fn tomorrow(&self) {
        self.day.set(self.day.get().tomorrow().unwrap());
    }

    /// A run, whatever it ends with.
    fn run(&self, clock: &str) -> Vec<Record> {
        let outcome = self.told.at(&self.time(clock), args!["run", "--json"]);
        records(&outcome)
    }

    fn note(&self, wrong: String) {
        self.wrong.borrow_mut().push(wrong);
    }

    /// Some troubles at once, on one day: heard of before the night, in the night, or after it.
    fn batch(&self, troubles: &[Trouble]) {
        let names: Vec<&str> = troubles.iter().map(|it| it.what).collect();
        troubles.iter().for_each(|it| (it.make)(self));
        self.look("19:30:00");
        self.run("20:00:00");
        self.look("20:01:00");
        self.tomorrow();
        let night = self.run("01:35:00");
        self.look("01:36:00");
        // Nothing is told again.
        self.run("02:50:00");
        let (mut opened, mut over) = self.heard();
        for trouble in troubles {
            for (subject, words) in trouble.tells {
                let is_it =
                    |line: &String| line.contains(&format!(" {subject}: ")) && line.contains(words);
                let before = opened.len();
                opened.retain(|line| !is_it(line));
                let told = before - opened.len();
                if told != 1 {
                    let what = trouble.what;
                    self.note(format!("{what}: told {told} times: {subject}: {words}"));
                }
            }
        }
        for line in opened {
            self.note(format!("{names:?}: nobody expected {line:?}"));
        }
        let without: Vec<&str> = troubles.iter().flat_map(|it| it.without).copied().collect();
        for guest in GUESTS.iter().filter(|guest| !without.contains(guest)) {
            let ends = ends(&night, guest);
            if ends != ["done"] && ends != ["warned"] {
                self.note(format!("{names:?}: {guest} has no night: {ends:?}"));
            }
        }
        // All is mended: the next night is as it should be, and what is over is told to be.
        troubles.iter().rev().for_each(|it| (it.mend)(self));
        self.tomorrow();
        let night = self.run("01:35:00");
        for guest in GUESTS {
            let ends = ends(&night, guest);
            if ends != ["done"] && ends != ["warned"] {
                self.note(format!("after {names:?}: {guest} has no night: {ends:?}"));
            }
        }
        self.look("01:36:00");
        let (opened, last) = self.heard();
        over.extend(last);
        for line in opened {
            self.note(format!("after {names:?}: {line:?}"));
        }
        for (subject, _) in troubles.iter().flat_map(|it| it.tells) {
            if !over.iter().any(|line| line.starts_with(&format!("{subject}: "))) {
                self.note(format!("{names:?}: nobody heard that {subject} is all right: {over:?}"));
            }
        }
    }
}

#[test]
fn a_month_in_which_each_trouble_is_told_once() {
    let month = Month::new();
    month.run("12:00:00");
    month.tomorrow();
    assert_eq!(ends(&month.run("01:35:00"), WEB), ["done"]);
    let _ = month.heard();
    let mut count = 0;
    for batch in troubles() {
        count += batch.len();
        month.batch(&batch);
    }

    // The host sleeps for two nights: whoever looks from another timer tells of it.
    month.tomorrow();
    month.tomorrow();
    month.told.at(&month.time("09:00:00"), args!["notify"]).ok();
    month.look("09:01:00");
    let (opened, _) = month.heard();
    for (subject, words) in [
        ("production", "and nothing has started it"),
        ("office", "and nothing has started it"),
        ("web", "its RPO is 26h"),
        ("mail", "its RPO is 26h"),
    ] {
        count += 1;
        let told =
            opened.iter().filter(|it| it.contains(&format!(" {subject}: ")) && it.contains(words));
        assert_eq!(told.count(), 1, "{subject}: {opened:#?}");
    }
    assert_quiet(
        &month.run("09:05:00").into_iter().filter(|it| !it.name.contains("d-")).collect::<Vec<_>>(),
    );
    let (opened, over) = month.heard();
    assert!(opened.len() == 2 && over.len() == 7, "{opened:#?} {over:#?}");
    assert!(opened.iter().all(|it| it.contains("1 time was missed since")), "{opened:#?}");
    month.look("09:06:00");

    // A run that is asked to stop, and a second one meanwhile.
    let (hook, go) = (month.path("waits"), month.path("go"));
    let line =
        format!("touch {0}; while [ ! -e {1} ]; do sleep 0.05; done", hook.display(), go.display());
    month.write(&format!("[jobs.production.hooks]\nbefore = \"{line}\""), "");
    month.tomorrow();
    let mut command = month.night().command(&month.time("01:35:00"), args!["run", "--json"]);
    command.env("QDELTA_JOURNAL_SOCKET", month.path("journal"));
    let first = start(&mut command);
    wait_until("the hook", || hook.exists());
    let second = month.told.at(&month.time("01:45:00"), args!["run"]).fails_with(5);
    assert!(second.contains("another run is at work"), "{second}");
    wait_until("the journal", || {
        month.told.journal().contains("run another run: refused: another run is at work")
    });
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    fs::write(go, "").unwrap();
    assert_eq!(finish(first, describe(&command)).code(), Some(130));
    let (opened, _) = month.heard();
    assert!(
        opened.iter().any(|it| it.contains("production: backup interrupted: stopped")),
        "{opened:#?}"
    );
    month.write("", "");
    month.run("01:55:00");
    assert!(month.heard().1.iter().any(|it| it.contains("backup interrupted")));
    count += 2;

    // A file that makes no sense stops everything, and says so with its status: the unit fails.
    fs::write(month.path("qdelta.toml"), "colour = 1\n").unwrap();
    let said = month.told.at(&month.time("03:00:00"), args!["run"]).fails_with(2);
    assert!(said.contains("line 1, column 1"), "{said}");
    count += 1;

    let wrong = month.wrong.take();
    assert!(wrong.is_empty(), "{wrong:#?}");

    // Each finding that the page names comes and goes, and there is no other.
    let page = include_str!("../../docs/jobs.md");
    let table = page.split("| code | level |").nth(1).unwrap().lines().skip(2);
    let rows = table.take_while(|line| line.starts_with('|'));
    let named: BTreeMap<String, bool> =
        rows.map(|row| (row.split('`').nth(1).unwrap().to_owned(), true)).collect();
    assert_eq!(month.codes.take(), named);

    assert!(count >= 40, "{count} troubles");
}
