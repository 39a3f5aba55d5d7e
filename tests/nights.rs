//! Nights that a host does by itself, under a clock of the test's own: every trouble must be in the
//! history and in the status with the right words, and the nights of the other guests go on.

mod clashes;
mod gone;
mod kept;
mod lapses;
mod month;
mod page;
mod served;
mod telling;
mod troubles;
mod ways;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cli::json::compare;
use crate::harness::files::Mount;
use crate::harness::images::{create, guest_io};
use crate::harness::repo::{ADMIN, Repo, key_of};
use crate::harness::run::{binary, describe, faketime, finish, script, start};
use crate::harness::virsh::{Virsh, wait_until};
use crate::harness::{Lab, Outcome, apart, args, run};

const MIB: u64 = 1 << 20;

/// A host with three guests, two jobs and two repositories.
struct Night {
    lab: Lab,
    /// The second repository, on a filesystem of its own.
    small: Mount,
    _virsh: Virsh,
    is_encrypted: bool,
}

impl Night {
    fn new() -> Self {
        let lab = Lab::new();
        for folder in ["etc/qemu", "run/qemu", "lib", "images", "bin"] {
            fs::create_dir_all(lab.path(folder)).unwrap();
        }
        let small = Mount::in_memory(lab.dir(), 8 * MIB);
        let virsh = Virsh::new(lab.path("virsh"));
        let is_encrypted = apart::is_encryption_wanted();
        let night = Self { lab, small, _virsh: virsh, is_encrypted };
        script(&night.lab.path("bin/systemctl"), "#!/bin/sh\necho active\n");
        for (number, guest) in ["web", "db", "mail"].into_iter().enumerate() {
            night.define(guest, number, &["vda"]);
        }
        night.configure("", "");
        for repository in [night.main(), night.small.dir.join("repo")] {
            night.init("2026-10-18 10:00:00", &repository);
        }
        night
    }

    /// Makes a repository at a time, an encrypted one if those of all tests are to be.
    #[track_caller]
    fn init(&self, time: &str, path: &Path) {
        let mut words = args!["init", path];
        if self.is_encrypted {
            // That of one which was there before.
            let _ = fs::remove_file(key_of(path));
            words.extend(args!["--encrypt", "--recovery", key_of(path), "--recipient", ADMIN]);
        }
        self.at(time, words).ok();
    }

    /// Makes another repository where one was that was put away.
    #[track_caller]
    fn init_another(&self, time: &str, path: &Path) {
        if self.is_encrypted {
            fs::rename(key_of(path), key_of(path).with_extension("before")).unwrap();
        }
        self.init(time, path);
    }

    /// The first repository is put back there: so is its key.
    fn show_key(&self, path: &Path) {
        if self.is_encrypted {
            fs::rename(key_of(path).with_extension("before"), key_of(path)).unwrap();
        }
    }

    /// The lines of the file of jobs that say where a repository is.
    fn place(&self, path: &Path) -> String {
        let place = format!("place = \"{}\"", path.display());
        match self.is_encrypted {
            true => format!("key_file = \"{}\"\n{place}", key_of(path).display()),
            false => place,
        }
    }

    /// The repository of `production`.
    fn repo(&self) -> Repo {
        Repo::at(self.main())
    }

    fn main(&self) -> PathBuf {
        self.lab.path("repo")
    }

    /// Defines a guest that is stopped, with these disks.
    fn define(&self, guest: &str, number: usize, targets: &[&str]) {
        let mut disks = String::new();
        for target in targets {
            let image = self.image(guest, target);
            if !image.exists() {
                create(&image, "", 4 * MIB);
                guest_io(&image, "qcow2", &["write -q -P 7 1M 64k".to_owned()]);
            }
            disks += &format!(
                "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
                 <source file='{}'/><target dev='{target}' bus='virtio'/></disk>",
                image.display()
            );
        }
        let uuid = format!("c7a5fdbd-edaf-9455-926a-d65c16db18{number:02}");
        let xml = format!(
            "<domain type='kvm'><name>{guest}</name><uuid>{uuid}</uuid><devices>{disks}</devices></domain>"
        );
        fs::write(self.definition(guest), xml).unwrap();
    }

    fn image(&self, guest: &str, target: &str) -> PathBuf {
        self.lab.path(format!("images/{guest}-{target}.qcow2"))
    }

    fn definition(&self, guest: &str) -> PathBuf {
        self.lab.path(format!("etc/qemu/{guest}.xml"))
    }

    /// Writes the file of jobs, with lines at the top and lines for the job `production`.
    fn configure(&self, top: &str, production: &str) {
        let at = |name: &str| self.lab.path(name).display().to_string();
        let text = format!(
            "time_zone = \"Europe/Berlin\"\n{top}\n\
             [repositories.main]\n{}\n\
             [repositories.small]\n{}\n\
             [libvirt]\nconfig = \"{}\"\nrun = \"{}\"\nstate = \"{}\"\nvirsh = \"{}\"\n\
             [limits]\nguests_at_once = 2\n\
             [jobs.production]\nrepository = \"main\"\nguests = [\"web\", \"d*\"]\n\
             schedule = \"02:30\"\nrpo = \"26h\"\n\
             [jobs.production.verify]\n[jobs.production.prune]\nkeep = {{ daily = 5 }}\n{production}\n\
             [jobs.office]\nrepository = \"small\"\nguests = [\"mail\"]\nschedule = \"02:30\"\nrpo = \"26h\"\n",
            self.place(&self.main()),
            self.place(&self.small.dir.join("repo")),
            at("etc"),
            at("run"),
            at("lib"),
            at("virsh/virsh"),
        );
        fs::write(self.lab.path("qdelta.toml"), text).unwrap();
    }

    /// Writes the file of jobs with a second copy of what `production` backs up.
    fn configure_with_copy(&self, production: &str) {
        let offsite = self.lab.path("offsite");
        let top = format!("[repositories.offsite]\n{}", self.place(&offsite));
        let copy = "[jobs.production.copy]\nto = \"offsite\"\nrpo = \"50h\"\nlimit_rate = \"50M\"";
        self.configure(&top, &format!("{copy}\n{production}"));
        self.init("2026-10-18 10:00:00", &offsite);
    }

    /// Changes the file of jobs.
    #[track_caller]
    fn edit(&self, from: &str, to: &str) {
        let path = self.lab.path("qdelta.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// The program at a time, in UTC.
    fn command(&self, time: &str, words: Vec<OsString>) -> Command {
        let mut command = Command::new(binary());
        command.args(words);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", self.lab.path("bin").display()))
            .env("STATE_DIRECTORY", self.lab.path("state"))
            .env("RUNTIME_DIRECTORY", self.lab.path("runtime"))
            .env("QDELTA_CONFIG", self.lab.path("qdelta.toml"))
            .env_remove("QDELTA_REPO");
        if self.is_encrypted {
            command.env("QDELTA_KEY_FILE", key_of(&self.main()));
        }
        faketime(&mut command, &format!("@{time}"));
        command
    }

    #[track_caller]
    fn at(&self, time: &str, words: Vec<OsString>) -> Outcome {
        run(self.command(time, words)).sane()
    }

    /// The run that a timer starts at a time; gives its records.
    #[track_caller]
    fn run(&self, time: &str) -> Vec<Record> {
        records(&self.at(time, args!["run", "--json"]))
    }

    /// The open findings at a time, as `code subject`, with their texts.
    #[track_caller]
    fn findings(&self, time: &str) -> Vec<(String, String)> {
        let outcome = self.at(time, args!["status", "--json"]);
        let report = outcome.json();
        let of = |finding: &Value| {
            let word = |field: &str| finding[field].as_str().unwrap().to_owned();
            (format!("{} {}", word("code"), word("subject")), word("text"))
        };
        let findings: Vec<_> = report["findings"].as_array().unwrap().iter().map(of).collect();
        let status = if findings.is_empty() { 0 } else { 17 };
        assert_eq!(outcome.code(), Some(status), "{}", outcome.report());
        findings
    }

    /// Exactly these findings are open at a time.
    #[track_caller]
    fn assert_open(&self, time: &str, expected: &[(&str, &str)]) {
        let found = self.findings(time);
        let named: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
        let wanted: Vec<&str> = expected.iter().map(|(name, _)| *name).collect();
        assert_eq!(named, wanted, "{found:#?}");
        for ((name, text), (_, words)) in found.iter().zip(expected) {
            assert!(text.contains(words), "{name}: {text:?} does not say {words:?}");
        }
    }

    /// A finding with these words is open at a time.
    #[track_caller]
    fn assert_open_has(&self, time: &str, name: &str, words: &str) {
        let found = self.findings(time);
        let is_it = |(it, text): &(String, String)| it == name && text.contains(words);
        assert!(found.iter().any(is_it), "{name}: {words:?} is not in {found:#?}");
    }

    /// What the history has of a job's act at a guest, as `end: text`, the latest last.
    #[track_caller]
    fn history(&self, job: &str, guest: &str) -> Vec<String> {
        let words = args!["history", "--json", "--job", job, "--guest", guest, "--last", "1000"];
        let history = self.at("2027-12-31 00:00:00", words).ok().json();
        records_in(&history).into_iter().map(|it| format!("{}: {}", it.end, it.text)).collect()
    }

    /// Starts a run whose hook waits, and waits until it does.
    fn start_waiting(&self, time: &str) -> (Child, String) {
        let (hook, go) = (self.lab.path("waits"), self.lab.path("go"));
        let _ = (fs::remove_file(&hook), fs::remove_file(&go));
        let line = format!(
            "touch {}; while [ ! -e {} ]; do sleep 0.05; done",
            hook.display(),
            go.display()
        );
        self.configure("", &format!("[jobs.production.hooks]\nbefore = \"{line}\""));
        let mut command = self.command(time, args!["run", "--json"]);
        let child = start(&mut command);
        wait_until("the hook", || hook.exists());
        (child, describe(&command))
    }
}

/// A record as far as these tests look at it.
#[derive(Debug)]
struct Record {
    name: String,
    end: String,
    text: String,
}

#[track_caller]
fn records(outcome: &Outcome) -> Vec<Record> {
    match outcome.stdout.is_empty() {
        true => Vec::new(),
        false => records_in(&outcome.json()),
    }
}

fn records_in(report: &Value) -> Vec<Record> {
    let word = |record: &Value, field: &str| record[field].as_str().unwrap_or("-").to_owned();
    let of = |record: &Value| Record {
        name: ["job", "act", "subject"].map(|field| word(record, field)).join(" "),
        end: word(record, "end"),
        text: word(record, "text"),
    };
    report["records"].as_array().unwrap().iter().map(of).collect()
}

/// How everything of this name ended.
fn ends(records: &[Record], name: &str) -> Vec<String> {
    let named = records.iter().filter(|record| record.name == name);
    named.map(|record| record.end.clone()).collect()
}

const WEB: &str = "production backup web";
const DB: &str = "production backup db";
const MAIL: &str = "office backup mail";

/// Leaves the mark of a freeze that began at a time.
fn leave_mark(mark: &std::path::Path, began: &str) {
    fs::write(mark, "{}").unwrap();
    let file = fs::File::options().write(true).open(mark).unwrap();
    let began: jiff::Timestamp = began.parse().unwrap();
    file.set_modified(began.into()).unwrap();
}

/// All guests had their night.
#[track_caller]
fn assert_quiet(records: &[Record]) {
    for name in [WEB, DB, MAIL, "production verify -", "production prune -"] {
        assert_eq!(ends(records, name), ["done"], "{name}: {records:#?}");
    }
}

/// A backup that nobody sees fail is none: each trouble of this fortnight is told, as what it is.
#[test]
fn a_fortnight_in_which_nothing_is_silent() {
    let night = Night::new();
    // The day before: nothing is done at noon because a night is past, and nothing is hidden.
    let first = night.run("2026-10-18 10:00:00");
    assert_eq!(ends(&first, WEB), [""; 0]);
    assert_eq!(ends(&first, "production backup -"), ["seen"]);
    night.assert_open(
        "2026-10-18 10:01:00",
        &[
            ("no-point db", "still to come"),
            ("no-point mail", "still to come"),
            ("no-point web", "still"),
        ],
    );

    // A night as it should be, and the timer's next start finds nothing to do.
    assert_quiet(&night.run("2026-10-19 00:35:00"));
    assert!(night.run("2026-10-19 00:45:00").is_empty());
    night.assert_open("2026-10-19 08:00:00", &[]);

    // A guest is gone, another has a disk more, and a third is new.
    fs::rename(night.definition("db"), night.lab.path("db.xml")).unwrap();
    night.define("web", 0, &["vda", "vdb"]);
    night.define("play", 9, &["vda"]);
    night.assert_open(
        "2026-10-19 20:00:00",
        &[
            ("gone db", "libvirt does not have this guest any more"),
            ("not-covered play", "no job covers it"),
            ("left-out web", "disk vdb not in its newest point"),
        ],
    );
    let records = night.run("2026-10-20 00:35:00");
    assert_eq!(
        [ends(&records, WEB), ends(&records, MAIL), ends(&records, DB)],
        [["done"], ["done"], ["gone"]]
    );
    assert!(night.history("production", "web").last().unwrap().contains("whole: web/vdb"));
    night.assert_open(
        "2026-10-20 08:00:00",
        &[
            ("gone db", "does not have this guest any more; its 1 point in main stay, by the rules of production"),
            ("not-covered play", "no job covers it"),
        ],
    );
    // Once is enough for the history.
    let records = night.run("2026-10-21 00:35:00");
    assert_eq!((ends(&records, DB), ends(&records, WEB)), (vec![], vec!["done".to_owned()]));
    fs::rename(night.lab.path("db.xml"), night.definition("db")).unwrap();
    fs::remove_file(night.definition("play")).unwrap();

    // The disk of a repository is not mounted.
    fs::rename(night.main(), night.lab.path("away")).unwrap();
    let records = night.run("2026-10-22 00:35:00");
    assert_eq!(ends(&records, "production backup -"), ["failed"]);
    assert_eq!(ends(&records, MAIL), ["done"]);
    let open = night.findings("2026-10-22 08:00:00");
    let has =
        |name: &str, words: &str| open.iter().any(|(it, text)| it == name && text.contains(words));
    assert!(
        has("repository main", "no such folder") && has("failed production", "no such folder"),
        "{open:?}"
    );
    fs::rename(night.lab.path("away"), night.main()).unwrap();

    // The disk of the other one is full.
    let filler = night.small.dir.join("filler");
    let _ = fs::write(&filler, vec![1; 16 << 20]);
    let noise: Vec<String> =
        (0..24).map(|at| format!("write -q -P {} {}k 64k", 11 + at, at * 128)).collect();
    guest_io(&night.image("mail", "vda"), "qcow2", &noise);
    let records = night.run("2026-10-23 00:35:00");
    assert_eq!(
        (ends(&records, MAIL), ends(&records, WEB)),
        (vec!["failed".to_owned()], vec!["done".to_owned()])
    );
    night.assert_open(
        "2026-10-23 08:00:00",
        &[
            ("rpo mail", "its RPO is 26h"),
            ("failed mail", "space"),
            ("room-soon small", "within a day"),
        ],
    );
    fs::remove_file(filler).unwrap();
    assert_quiet(&night.run("2026-10-24 00:35:00"));
    night.assert_open("2026-10-24 08:00:00", &[]);

    // Half past two comes twice.
    assert_quiet(&night.run("2026-10-25 00:35:00"));
    assert!(night.run("2026-10-25 01:35:00").is_empty());
    assert!(night.run("2026-10-25 02:35:00").is_empty());

    // The host sleeps for two nights: that is told, and made up for once.
    let open = night.findings("2026-10-27 11:00:00");
    for name in ["rpo web", "rpo db", "rpo mail", "overdue production", "overdue office"] {
        assert!(open.iter().any(|(it, _)| it == name), "{name}: {open:?}");
    }
    assert_quiet(&night.run("2026-10-27 11:05:00"));
    let missed = "1 time was missed since 2026-10-26 02:30, and one is made up for";
    night.assert_open(
        "2026-10-27 11:10:00",
        &[("warned office", missed), ("warned production", missed)],
    );

    // A hook fails: the job is not done, and the other one is.
    night.configure("", "[jobs.production.hooks]\nbefore = \"echo no mount >&2; exit 3\"");
    let records = night.run("2026-10-28 01:35:00");
    assert_eq!(ends(&records, "production hook before"), ["failed"]);
    assert_eq!(ends(&records, "production backup -"), ["not-tried"]);
    assert_eq!(ends(&records, MAIL), ["done"]);
    let open = night.findings("2026-10-28 08:00:00");
    assert!(
        open.iter().any(|(name, text)| name == "failed production" && text.contains("no mount")),
        "{open:?}"
    );
    night.configure("", "");

    // The image of a guest is missing.
    let (image, away) = (night.image("db", "vda"), night.lab.path("away"));
    fs::rename(&image, &away).unwrap();
    let records = night.run("2026-10-29 01:35:00");
    assert_eq!(
        (ends(&records, DB), ends(&records, WEB)),
        (vec!["failed".to_owned()], vec!["done".to_owned()])
    );
    let open = night.findings("2026-10-29 08:00:00");
    assert!(
        open.iter().any(|(name, text)| name == "failed db" && text.contains("No such file")),
        "{open:?}"
    );
    fs::rename(&away, &image).unwrap();
    assert_quiet(&night.run("2026-10-30 01:35:00"));

    // A guest may be frozen, and the timer is off.
    let id = fs::read_to_string(night.main().join("qdelta.toml")).unwrap();
    let id = id.split("id = \"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let mark = night.lab.path("state").join(id).join("web.frozen");
    leave_mark(&mark, "2026-10-30T07:00:00Z");
    script(&night.lab.path("bin/systemctl"), "#!/bin/sh\necho inactive\nexit 3\n");
    night.assert_open(
        "2026-10-30 08:00:00",
        &[("frozen web", "may still be frozen"), ("timer qdelta.timer", "is off")],
    );
    fs::remove_file(mark).unwrap();
    script(&night.lab.path("bin/systemctl"), "#!/bin/sh\nexit 1\n");
    night.assert_open("2026-10-30 08:00:00", &[]);

    // A power cut tears the last line of the history.
    let history = night.lab.path("state/jobs/history.jsonl");
    let text = fs::read_to_string(&history).unwrap();
    fs::write(&history, &text[..text.len() - 20]).unwrap();
    assert_quiet(&night.run("2026-10-31 01:35:00"));
    let shown = night.at("2026-10-31 08:00:00", args!["history", "--json"]).ok().json();
    assert_eq!(shown["torn"], 0, "it is put aside");
    night.assert_open("2026-10-31 08:00:00", &[]);

    // The clock stands a year ahead, and is put right: no night waits for it.
    night.run("2027-11-01 01:35:00");
    let records = night.run("2026-11-01 01:35:00");
    assert_eq!(
        [ends(&records, WEB), ends(&records, MAIL)],
        [["warned"], ["warned"]],
        "{records:#?}"
    );
    let open = night.findings("2026-11-01 08:00:00");
    assert!(
        open.iter().any(|(name, text)| name == "clock clock" && text.contains("ahead")),
        "{open:?}"
    );
    assert!(
        open.iter().any(|(name, text)| name == "warned web" && text.contains("clock")),
        "{open:?}"
    );
}

/// Results are what the page says.
#[test]
fn results_are_as_the_page_says() {
    let night = Night::new();
    night.configure_with_copy(
        "[jobs.production.drill]\nschedule = \"Mon 03:00\"\nto = \"filesystems\"",
    );
    night.run("2026-11-01 12:00:00");
    fs::remove_file(night.image("db", "vda")).unwrap();
    let without_results = |mut report: Value| {
        let records = report["records"].as_array_mut().unwrap();
        records.iter_mut().for_each(|record| record["result"] = Value::Null);
        report
    };
    let ran = night.at("2026-11-02 02:05:00", args!["run", "--json"]).json();
    let kinds = ["guest", "copy", "verify", "drill"];
    let has = |kind: &str| {
        ran["records"].as_array().unwrap().iter().any(|record| record["result"].get(kind).is_some())
    };
    assert_eq!(kinds.map(has), [true; 4], "{ran:#}");
    let history = night.at("2026-11-02 08:00:00", args!["history", "--json"]).ok().json();
    compare("run", &[&without_results(ran)], &[".records[].advice"]);
    compare("history", &[&without_results(history)], &[".records[].advice"]);
    let status = night.at("2026-11-06 08:00:00", args!["status", "--json"]).json();
    compare(
        "status",
        &[&status],
        &[
            ".guests[].recovery",
            ".guests[].rto",
            ".guests[].frozen_ms",
            ".guests[].drilled_at",
            ".guests[].copies[].safe_until",
            ".repositories[].bytes_per_day",
            ".repositories[].keep_free",
            ".repositories[].days_left",
        ],
    );
    fs::remove_file(night.definition("mail")).unwrap();
    night.configure(
        "",
        "[notify.admin]\nmail = \"root\"\nlevel = \"warning\"\njobs = [\"office\"]\ndigest = \"Mon 08:00\"",
    );
    let plan = night.at("2026-11-02 08:00:00", args!["config", "check", "--json"]).json();
    compare("config check", &[&plan], &[".jobs[].rto"]);
    night.configure("", "");
    let nagios = night.at("2026-11-06 08:00:00", args!["status", "--nagios"]);
    assert_eq!(nagios.code(), Some(2));
    let text = nagios.text();
    let (line, data) = text.lines().next().unwrap().split_once(" | ").unwrap();
    assert!(
        line.starts_with("QDELTA CRITICAL - 3 guests, ") && data.contains("guests=3;;;0"),
        "{text}"
    );
    fs::write(night.lab.path("qdelta.toml"), "colour = 1\n").unwrap();
    let nagios = night.at("2026-11-06 08:00:00", args!["status", "--nagios"]);
    assert_eq!(nagios.code(), Some(3), "{}", nagios.report());
    assert!(nagios.text().starts_with("QDELTA UNKNOWN - "), "{}", nagios.text());
}

/// A copy that nobody makes any more is no copy: its age is told, and the next run makes up for it.
#[test]
fn the_second_copy_is_made_by_itself_and_told_when_it_is_behind() {
    let night = Night::new();
    night.configure_with_copy("");
    night.run("2026-10-18 10:00:00");
    let records = night.run("2026-10-19 00:35:00");
    assert_quiet(&records);
    for name in ["production copy -", "production copy web", "production copy db"] {
        assert_eq!(ends(&records, name), ["done"], "{records:#?}");
    }
    night.assert_open("2026-10-19 08:00:00", &[]);
    // The disk of the copy is not mounted.
    let offsite = night.lab.path("offsite");
    fs::rename(&offsite, night.lab.path("away")).unwrap();
    let records = night.run("2026-10-20 00:35:00");
    assert_eq!(ends(&records, "production copy -"), ["failed"]);
    assert_quiet(&records);
    let open = night.findings("2026-10-20 08:00:00");
    let has = |wanted: &str| open.iter().any(|(name, _)| name == wanted);
    assert!(has("repository offsite") && has("failed production"), "{open:?}");
    // A job without a copy, and then with one again that is three days old.
    night.configure("", "");
    assert_quiet(&night.run("2026-10-21 00:35:00"));
    fs::rename(night.lab.path("away"), &offsite).unwrap();
    fs::rename(&offsite, night.lab.path("kept")).unwrap();
    night.configure_with_copy("");
    fs::remove_dir_all(&offsite).unwrap();
    fs::rename(night.lab.path("kept"), &offsite).unwrap();
    let open = night.findings("2026-10-21 08:00:00");
    let behind = |(name, text): &&(String, String)| name == "copy web" && text.contains("RPO");
    assert!(open.iter().any(|it| behind(&it)), "{open:?}");
    let records = night.run("2026-10-22 00:35:00");
    assert_eq!(ends(&records, "production copy web"), ["done"], "{records:#?}");
    night.assert_open("2026-10-22 08:00:00", &[]);
    let points = |repo: PathBuf| {
        let words = args!["points", "web", "--json", "--repo", repo];
        night.at("2026-10-22 08:00:00", words).ok().json()["disks"][0]["points"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!(points(night.main()), points(offsite.clone()));
    // With the files of the guests' machines, one of which comes back from there.
    let at = |words: Vec<OsString>| night.at("2026-10-22 08:00:00", words);
    let proved = at(args!["verify", "--json", "--repo", offsite.as_path()]).ok().json();
    assert!(proved["machine_files"].as_u64().unwrap() > 0, "{proved}");
    for file in fs::read_dir(night.main().join("web/machine")).unwrap() {
        fs::write(file.unwrap().path(), "damaged").unwrap();
    }
    assert_eq!(at(args!["verify", "--repo", night.main()]).code(), Some(4));
    let words =
        args!["repair", "web", "--from", offsite.as_path(), "--json", "--repo", night.main()];
    let mended = at(words).ok().json();
    assert_eq!(mended["guests"][0]["mended"][0]["what"], "machine-file", "{mended}");
    at(args!["verify", "--repo", night.main()]).ok();
    // One that is lost there was not noticed, and new points were made without it.
    let against = || at(args!["verify", "--against", offsite.as_path(), "--repo", night.main()]);
    assert_ne!(against().code(), Some(4));
    for file in fs::read_dir(offsite.join("web/machine")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    assert_eq!(against().code(), Some(4), "{}", against().report());
    let records = night.run("2026-10-23 00:35:00");
    assert_eq!(ends(&records, "production copy web"), ["failed"], "{records:#?}");
    // The new point has brought them again.
    at(args!["verify", "--repo", offsite.as_path()]).ok();
    assert_ne!(against().code(), Some(4), "{}", against().report());
}

/// On the day on which half past two does not come, systemd's timers would have made no backup.
#[test]
fn a_night_whose_time_does_not_come_has_its_backup() {
    let night = Night::new();
    night.run("2027-03-27 12:00:00");
    assert!(night.run("2027-03-28 00:55:00").is_empty());
    assert_quiet(&night.run("2027-03-28 01:05:00"));
    assert!(night.run("2027-03-28 01:35:00").is_empty());
    assert!(night.run("2027-03-28 12:00:00").is_empty());
    night.assert_open("2027-03-28 12:00:00", &[]);
}

/// Two runs at once, a run that is asked to stop, and one that is killed.
#[test]
fn a_run_that_does_not_come_to_its_end_is_told_and_made_up_for() {
    let night = Night::new();
    night.run("2026-11-01 12:00:00");

    // A second run is refused, and the first one goes on.
    let (first, command) = night.start_waiting("2026-11-02 01:35:00");
    let said = night.at("2026-11-02 01:45:00", args!["run"]).fails_with(5);
    assert!(said.contains("another run is at work"), "{said}");
    // What is at work is not overdue.
    let open = night.findings("2026-11-02 03:00:00");
    assert!(!open.iter().any(|(name, _)| name == "overdue production"), "{open:?}");
    fs::write(night.lab.path("go"), "").unwrap();
    assert_quiet(&records(&finish(first, command).ok()));
    let refused = night.at("2026-11-02 02:00:00", args!["history", "--failed"]).ok().text();
    assert!(refused.contains("refused") && refused.contains("another run is at work"), "{refused}");
    night.assert_open("2026-11-02 08:00:00", &[]);

    // SIGTERM: what was not done is noted, and due again.
    let (first, command) = night.start_waiting("2026-11-03 01:35:00");
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    fs::write(night.lab.path("go"), "").unwrap();
    let outcome = finish(first, command);
    assert_eq!(outcome.code(), Some(130), "{}", outcome.report());
    assert_eq!(ends(&records(&outcome), "production backup -"), ["interrupted"]);
    assert_eq!(ends(&records(&outcome), "office backup -"), ["done"], "jobs go by their names");
    let open = night.findings("2026-11-03 01:40:00");
    assert!(
        open.iter().any(|(name, text)| name == "failed production" && text.contains("stopped")),
        "{open:?}"
    );
    night.configure("", "");
    let records_after = night.run("2026-11-03 01:45:00");
    assert_eq!(
        (ends(&records_after, WEB), ends(&records_after, MAIL)),
        (vec!["done".to_owned()], vec![])
    );

    // SIGKILL: the next run says so.
    let (mut first, _) = night.start_waiting("2026-11-04 01:35:00");
    first.kill().unwrap();
    first.wait().unwrap();
    night.configure("", "");
    let open = night.findings("2026-11-04 01:40:00");
    assert!(
        open.iter().any(|(name, text)| name == "cut run" && text.contains("never ended")),
        "{open:?}"
    );
    let after = night.run("2026-11-04 01:45:00");
    assert_eq!(ends(&after, "- run -"), ["cut", "begun", "done"]);
    assert_eq!(ends(&after, WEB), ["done"]);
    night.assert_open("2026-11-04 08:00:00", &[]);
}
