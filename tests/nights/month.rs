//! A month in which everything happens that happens to admins: each trouble is told once, with the
//! right words, and when it is over; nothing else is told; and the nights of the others go on.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use super::telling::Told;
use super::troubles::troubles;
use super::*;
use crate::harness::guest::Running;

/// The guests, and what backs them up.
pub(super) const GUESTS: &[&str] =
    &[WEB, DB, "production backup d-app", "production backup d-log", MAIL];

/// Where the host is: clocks are put back there on the 15th of February at three o'clock, and forward on the 22nd of
/// March at two.
const ZONE: &str = "Africa/Casablanca";

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

/// Where a file is while it is away: in the test's own folder, since a repository looks at every name in its own.
fn away(path: &Path) -> PathBuf {
    let is_lab = |it: &&Path| {
        it.file_name().is_some_and(|name| name.to_string_lossy().starts_with("qdelta-test-"))
    };
    let lab = path.ancestors().find(is_lab).unwrap();
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    lab.join(format!("{:016x}.hidden", hasher.finish()))
}

/// Puts a file away, and back.
pub(super) fn hide(path: &Path) {
    fs::rename(path, away(path)).unwrap();
}

pub(super) fn show(path: &Path) {
    let _ = fs::remove_dir_all(path);
    let _ = fs::remove_file(path);
    fs::rename(away(path), path).unwrap();
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
            day: Cell::new("2026-02-13".parse().unwrap()),
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
        let file = self.path("qdelta.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text.replacen("Europe/Berlin", ZONE, 1)).unwrap();
    }

    /// What the ear has heard since the last call.
    fn heard(&self) -> (Vec<String>, Vec<String>) {
        let text = fs::read_to_string(self.path("heard")).unwrap_or_default();
        let _ = fs::remove_file(self.path("heard"));
        news(&text)
    }

    /// What stood in the mails and came to the phone since the last call.
    fn others_heard(&self) -> [Vec<String>; 2] {
        let mails = self.told.mails().into_iter().map(|(_, text)| text).collect::<String>();
        let phone = self.told.sink.take("/ntfy").into_iter().map(|it| it.body).collect::<String>();
        [mails, phone].map(|text| news(&text).0)
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

    /// A run, whatever it ends with. Nobody has two mails of it.
    fn run(&self, clock: &str) -> Vec<Record> {
        let count = || fs::read_dir(self.path("mails")).unwrap().count();
        let before = count();
        let outcome = self.told.at(&self.time(clock), args!["run", "--json"]);
        let mails = count() - before;
        if mails > 1 {
            self.note(format!("{} {clock}: {mails} mails at once", self.day.get()));
        }
        records(&outcome)
    }

    /// A night, by the clock of the zone.
    fn sleep(&self) -> Vec<Record> {
        let is_back = ("2026-02-16".parse().unwrap().."2026-03-22".parse().unwrap())
            .contains(&self.day.get());
        self.run(if is_back { "02:35:00" } else { "01:35:00" })
    }

    /// A night in which the timer starts a run each quarter of an hour, and nothing is told. Gives when `web` was
    /// backed up.
    fn each_quarter(&self) -> Vec<String> {
        let mut backups = Vec::new();
        for quarter in 0..16 {
            let clock = format!("{:02}:{:02}:00", quarter / 4, quarter % 4 * 15);
            let records = self.run(&clock);
            backups.extend(ends(&records, WEB).into_iter().map(|end| format!("{clock} {end}")));
            assert_eq!(ends(&records, WEB), ends(&records, MAIL), "{clock}: {records:#?}");
        }
        assert_eq!(self.heard(), (vec![], vec![]));
        backups
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
        let night = self.sleep();
        self.look("02:40:00");
        // Nothing is told again.
        self.run("02:50:00");
        let (mut opened, mut over) = self.heard();
        // Each hears of it in its own way, unless that is the trouble.
        let [mailed, called] = self.others_heard();
        let is_played = |what: &str| names.contains(&what);
        for line in opened.iter().filter(|_| !is_played("mail is down")) {
            if !mailed.contains(line) {
                self.note(format!("{names:?}: no mail says {line:?}"));
            }
        }
        let is_silent =
            is_played("a secret is missing") || is_played("the watch and the chat are down");
        for line in opened.iter().filter(|it| it.starts_with("CRITICAL") && !is_silent) {
            if !called.contains(line) {
                self.note(format!("{names:?}: the phone was not told {line:?}"));
            }
        }
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
        let night = self.sleep();
        // What became known while others were told comes with the next start.
        self.run("02:50:00");
        let _ = self.others_heard();
        for guest in GUESTS {
            let ends = ends(&night, guest);
            if ends != ["done"] && ends != ["warned"] {
                self.note(format!("after {names:?}: {guest} has no night: {ends:?}"));
            }
        }
        self.look("01:36:00");
        let (opened, last) = self.heard();
        over.extend(last);
        // That nothing was done in a night of which nothing could be noted is told afterwards.
        let missed = "1 time was missed since";
        for line in opened.into_iter().filter(|it| !it.contains(missed)) {
            self.note(format!("after {names:?}: {line:?}"));
        }
        for (subject, _) in troubles.iter().flat_map(|it| it.tells) {
            if !over.iter().any(|line| line.starts_with(&format!("{subject}: "))) {
                self.note(format!("{names:?}: nobody heard that {subject} is all right: {over:?}"));
            }
        }
    }
}

/// The lines of messages below "New" and "Still", and below "Over".
fn news(text: &str) -> (Vec<String>, Vec<String>) {
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

#[test]
fn a_month_in_which_each_trouble_is_told_once() {
    let month = Month::new();
    month.run("12:00:00");
    month.tomorrow();
    assert_eq!(ends(&month.sleep(), WEB), ["done"]);
    let _ = (month.heard(), month.others_heard());

    // Half past two comes twice, and counts once: the first time.
    month.tomorrow();
    assert_eq!(month.day.get(), "2026-02-15".parse().unwrap());
    assert_eq!(month.each_quarter(), ["01:30:00 done"]);
    let mut count = 1;
    for batch in troubles() {
        count += batch.len();
        month.batch(&batch);
    }

    // The power is cut in the middle of a night: the next run says so, and makes up for it.
    let (hook, go) = (month.path("waits"), month.path("go"));
    let line =
        format!("touch {0}; while [ ! -e {1} ]; do sleep 0.05; done", hook.display(), go.display());
    let waits = format!("[jobs.production.hooks]\nbefore = \"{line}\"");
    month.write(&waits, "");
    month.tomorrow();
    let mut first = start(&mut month.told.command(&month.time("02:35:00"), args!["run"]));
    wait_until("the hook", || hook.exists());
    first.kill().unwrap();
    first.wait().unwrap();
    fs::write(&go, "").unwrap();
    month.write("", "");
    month.look("02:40:00");
    assert_eq!(ends(&month.run("02:45:00"), WEB), ["done"]);
    let (opened, _) = month.heard();
    assert_eq!(opened.len(), 1, "{opened:#?}");
    assert!(opened[0].contains("never ended: it was killed, the power was cut"), "{opened:#?}");
    month.tomorrow();
    assert_eq!(ends(&month.sleep(), WEB), ["done"]);
    assert!(month.heard().1.iter().any(|it| it.contains("never ended")));
    fs::remove_file(&hook).unwrap();
    fs::remove_file(&go).unwrap();
    count += 1;

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
    month.write(&waits, "");
    month.tomorrow();
    let mut command = month.told.command(&month.time("02:35:00"), args!["run", "--json"]);
    let first = start(&mut command);
    wait_until("the hook", || hook.exists());
    let second = month.told.at(&month.time("02:45:00"), args!["run"]).fails_with(5);
    assert!(second.contains("another run is at work"), "{second}");
    wait_until("the journal", || {
        month.told.journal().contains("run another run: refused: another run is at work")
    });
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    fs::write(go, "").unwrap();
    assert_eq!(finish(first, describe(&command)).code(), Some(130));
    let (opened, _) = month.heard();
    assert!(
        // Of the job where nobody had begun, else of each guest.
        opened.iter().any(|it| it.contains(": backup interrupted: stopped on request")),
        "{opened:#?}"
    );
    month.write("", "");
    month.run("02:55:00");
    assert!(month.heard().1.iter().any(|it| it.contains("backup interrupted")));
    count += 2;

    // Half past two does not come, and nothing starts a run until five: what is missed is the moment at which clocks
    // were put forward, and it is made up for once.
    while month.day.get() < "2026-03-21".parse().unwrap() {
        month.tomorrow();
        assert_eq!(ends(&month.sleep(), WEB), ["done"]);
    }
    assert_eq!(month.heard(), (vec![], vec![]));
    month.tomorrow();
    let _ = month.run("01:45:00");
    month.told.at(&month.time("02:59:00"), args!["notify"]).ok();
    assert_eq!(month.heard(), (vec![], vec![]), "it is not late yet");
    month.told.at(&month.time("03:01:00"), args!["notify"]).ok();
    let (opened, _) = month.heard();
    let missed = "backup was due at 2026-03-22 03:00 +01, and nothing has started it";
    assert_eq!(opened.len(), 2, "{opened:#?}");
    assert!(opened.iter().all(|it| it.contains(missed)), "{opened:#?}");
    assert_eq!(ends(&month.run("03:05:00"), WEB), ["done"]);
    assert_eq!(month.heard().1.len(), 2);
    for clock in ["03:15:00", "04:15:00", "20:00:00"] {
        assert_eq!(ends(&month.run(clock), WEB), [""; 0]);
    }
    month.tomorrow();
    assert_eq!(month.each_quarter(), ["01:30:00 done"]);
    count += 1;

    // A file that makes no sense stops everything, and says so with its status: the unit fails.
    fs::write(month.path("qdelta.toml"), "colour = 1\n").unwrap();
    let said = month.told.at(&month.time("05:00:00"), args!["run"]).fails_with(2);
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
