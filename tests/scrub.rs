//! A scrub: archives are proved in turn, the longest unproved first, and what was found is remembered
//! until it is mended.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use qdelta::base::observer::{Event, Observer};
use qdelta::flows::verify::{self, Scrub, VerifyRequest};
use qdelta::{Cancel, ErrorKind, Resources};
use serde_json::Value;

use crate::harness::images::{filled_raw, patch};
use crate::harness::repo::Repo;
use crate::harness::{Lab, args, state};

/// A repository with two disks of several points each.
fn repository(lab: &Lab) -> Repo {
    let repo = Repo::init(lab.path("repo")).without_ring();
    for (number, disk) in ["one", "two"].into_iter().enumerate() {
        let image = filled_raw(lab, disk, 2 << 20, number as u64 + 1);
        for night in 0..4_u8 {
            // Frames that compress to nothing would be shorter than the index.
            let noise = |at: u32| (at.wrapping_mul(2_654_435_761 + u32::from(night)) >> 13) as u8;
            patch(&image, u64::from(night) * 65536, &(0..65536).map(noise).collect::<Vec<_>>());
            repo.backup(&image, disk, &["--format", "raw"]);
        }
    }
    repo
}

fn scrub(repo: &Repo, options: &[&str]) -> Value {
    let mut arguments = args!["verify", "--json", "--io", "threads"];
    arguments.extend(options.iter().map(Into::into));
    repo.run(arguments).ok().json()
}

/// The archives that a scrub has read.
fn read(report: &Value) -> BTreeSet<String> {
    let disks = report["disks"].as_array().unwrap().iter();
    let archives = disks.flat_map(|disk| disk["archives"].as_array().unwrap());
    archives.map(|archive| archive["path"].as_str().unwrap().to_owned()).collect()
}

/// By point: whether it was ever proved.
fn proved(repo: &Repo) -> Vec<bool> {
    let list = repo.run(args!["points", "--json"]).ok().json();
    let disks = list["disks"].as_array().unwrap().iter();
    let points = disks.flat_map(|disk| disk["points"].as_array().unwrap());
    points.map(|point| !point["proved"].is_null()).collect()
}

#[test]
fn small_budgets_prove_everything_in_turn_and_nothing_twice() {
    let lab = Lab::new();
    let repo = repository(&lab);
    assert_eq!(proved(&repo), [false; 8]);
    let (mut all, mut runs) = (BTreeSet::new(), 0);
    loop {
        let report = scrub(&repo, &["--max-age", "30d", "--budget", "40K"]);
        let archives = read(&report);
        assert_eq!(archives.len() as u64, report["archives"].as_u64().unwrap(), "{report}");
        assert!(archives.is_disjoint(&all), "an archive was proved twice: {archives:?}");
        let before = all.len();
        all.extend(archives);
        runs += 1;
        assert_eq!(report["scrub"]["archives_left"], 8 - all.len() as u64, "{report}");
        if report["scrub"]["archives_left"] == 0 {
            break;
        }
        assert!(all.len() > before, "a run without progress");
    }
    assert!((3..=8).contains(&runs), "{runs} runs");
    assert_eq!(proved(&repo), [true; 8]);
    // Nothing is due any more; without an age, the oldest proof comes first.
    let report = scrub(&repo, &["--max-age", "30d"]);
    assert_eq!((&report["archives"], &report["proved"]), (&0.into(), &true.into()), "{report}");
    let first = read(&scrub(&repo, &["--budget", "1K"]));
    assert_eq!(first.len(), 1);
    assert_ne!(first, read(&scrub(&repo, &["--budget", "1K"])));
    assert_eq!(read(&scrub(&repo, &["--budget", "1h"])), all);
}

/// The disk whose name comes first got a new archive each night, which went before those of the other one that had waited
/// for weeks.
#[test]
fn no_disk_waits_for_ever_behind_the_new_points_of_another() {
    let lab = Lab::new();
    let repo = repository(&lab);
    let image = lab.path("one");
    let mut seen = BTreeSet::new();
    for night in 0..6_u8 {
        patch(&image, 1 << 20, &[night + 1; 65536]);
        repo.backup(&image, "one", &["--format", "raw"]);
        seen.extend(read(&scrub(&repo, &["--budget", "1K", "--max-age", "30d"])));
    }
    assert!(seen.iter().any(|path| Path::new(path).starts_with(repo.place_of("two"))), "{seen:?}");
}

/// Damage was found in one night, and in the next one nobody said a word of it.
#[test]
fn damage_is_told_by_every_later_command_until_it_is_mended() {
    let lab = Lab::new();
    let repo = repository(&lab);
    scrub(&repo, &[]);
    assert_eq!(proved(&repo), [true; 8]);
    let list = repo.run(args!["points", "one", "--json"]).ok().json();
    let archive = list["disks"][0]["points"][1]["archive"].as_str().unwrap();
    let archive = repo.stored_at(archive);
    let whole = archive.bytes();
    let middle = whole.len() as u64 / 2;
    archive.patch(middle, &[!whole[middle as usize]]);
    // Written to: nobody knows any more whether it is sound, and so of all that build on it.
    assert_eq!(proved(&repo), [true, false, false, false, true, true, true, true]);
    let told = |arguments| {
        let outcome = repo.run(arguments);
        let said = outcome.stderr.contains("damaged") && outcome.stderr.contains("--kind full");
        (outcome.status.code(), said)
    };
    assert_eq!(told(args!["points"]), (Some(0), false));
    let found = repo.run(args!["verify", "--budget", "1G"]);
    assert_eq!(found.status.code(), Some(4), "{}", found.stderr);
    assert_eq!(told(args!["points"]), (Some(0), true));
    assert_eq!(told(args!["points", "two"]), (Some(0), false));
    // A damaged point displaces no sound one, whatever is newest.
    let plan = args!["prune", "one", "--dry-run", "--keep-daily", "1", "--json"];
    let plan = repo.run(plan).ok().json();
    let verdicts = plan["guests"][0]["points"].as_array().unwrap();
    let damaged: Vec<bool> = verdicts.iter().map(|it| it["damaged"] == true).collect();
    assert_eq!(damaged, [false, true, true, true], "{plan}");
    assert_eq!(verdicts[0]["fate"], "keep", "{plan}");
    let image = lab.path("one");
    let backup = args!["backup", image.as_path(), "--disk", "one", "--format", "raw"];
    // In an encrypted repository, frames and index of so small an archive are one piece: a full begins anew.
    let status = if repo.key.is_some() { 4 } else { 0 };
    assert_eq!(told(backup.clone()), (Some(status), true));
    let first = list["disks"][0]["points"][0]["point"].as_str().unwrap();
    assert_eq!(
        told(args!["restore", format!("one@{first}"), lab.path("out.raw").as_path()]),
        (Some(0), true)
    );
    // A sound copy in its place, and its proof.
    archive.write(&whole);
    assert_eq!(told(args!["points"]), (Some(0), false));
    scrub(&repo, &["--max-age", "1d"]);
    assert_eq!(told(backup), (Some(0), false));
}

/// What this host knows is about its own files: a copy of the repository was not looked at, and a history
/// that is lost or torn makes no trouble.
#[test]
fn a_copy_was_never_proved_and_a_torn_history_is_none() {
    let lab = Lab::new();
    let repo = repository(&lab);
    scrub(&repo, &[]);
    let copy = lab.path("copy");
    repo.copy_to(&copy);
    assert_eq!(proved(&repo.copy_at(copy)), [false; 8]);
    assert_eq!(proved(&repo), [true; 8]);
    let history = repo.frozen_mark("one").with_file_name("one+history");
    let whole = fs::read(&history).unwrap();
    fs::write(&history, &whole[..whole.len() / 2]).unwrap();
    assert_eq!(proved(&repo)[..4], [false; 4]);
    scrub(&repo, &["--max-age", "1d"]);
    assert_eq!(proved(&repo), [true; 8]);
}

/// Merges the other guest while a scrub is at this one.
struct MergesBeside<'a> {
    repo: &'a Repo,
    done: Mutex<Vec<String>>,
}

impl Observer for MergesBeside<'_> {
    fn event(&self, event: &Event<'_>) {
        let Event::Begin { disk: Some(disk), phase: "verify", .. } = event else { return };
        let other = if disk.starts_with("one") { "two" } else { "one" };
        let mut done = self.done.lock().unwrap();
        if !done.is_empty() {
            return;
        }
        done.push(other.to_owned());
        let points = self.repo.points(other);
        let range = format!("{other}@{}..{}", points[0], points[2]);
        let merged = self.repo.run(args!["merge", range, "--json"]).ok().json();
        assert_eq!(merged["waiting"], false, "a scrub of another guest is in the way: {merged}");
    }
}

/// A scrub of many guests kept the archives of all of them for hours, and whatever a prune had replaced
/// stayed where it was. Those of a guest that it has not come to yet may go; it does not miss them.
#[test]
fn a_scrub_is_in_the_way_of_the_guest_alone_that_it_reads() {
    let lab = Lab::new();
    let repo = repository(&lab);
    let request = VerifyRequest {
        targets: Vec::new(),
        quick: false,
        scrub: Some(Scrub::default()),
        resources: Resources::default(),
    };
    let observer = MergesBeside { repo: &repo, done: Mutex::new(Vec::new()) };
    let repository = repo.open();
    let report = qdelta::verify(&repository, &request, &observer, &Cancel::default()).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(*observer.done.lock().unwrap(), ["two"]);
    // Of the other guest one archive was due that is still there; the merged one is the next run's.
    assert_eq!(report.archives, 5);
    assert_eq!(report.scrub.unwrap().archives_left, 0);
    assert_eq!(scrub(&repo, &["two"])["archives"], 2);
}

/// Only a verification noted the damage that it found. A restore that met some ended with status 4, and
/// no later command said a word of it.
#[test]
fn whoever_meets_damage_notes_it() {
    for way in ["restore", "in place", "backup", "merge", "prune"] {
        let lab = Lab::new();
        let repo = repository(&lab);
        let list = repo.run(args!["points", "one", "--json"]).ok().json();
        let points = list["disks"][0]["points"].as_array().unwrap();
        let archive = repo.stored_at(points[1]["archive"].as_str().unwrap());
        let bytes = archive.bytes();
        // A backup reads indexes alone: they are at the end.
        let at = if way == "backup" { bytes.len() - 200 } else { bytes.len() / 2 };
        archive.patch(at as u64, &[!bytes[at]]);
        let told = |arguments| {
            let stderr = repo.run(arguments).stderr;
            stderr.contains("damaged: ") && stderr.contains("--kind full")
        };
        assert!(!told(args!["points"]), "{way}");
        let image = lab.path("one");
        let point = |number: usize| points[number]["point"].as_str().unwrap().to_owned();
        let merge = args!["merge", format!("one@{}..{}", point(0), point(3))];
        let in_place = ["--in-place", "--no-point", "--format", "raw"];
        let (arguments, status) = match way {
            "restore" => (args!["restore", "one", lab.path("out.raw").as_path()], 4),
            "in place" => {
                let mut arguments = args!["restore", "one", image.as_path()];
                // There must be something to write.
                patch(&image, 0, &[7; 4 << 16]);
                arguments.extend(in_place.iter().map(Into::into));
                (arguments, 4)
            }
            "backup" => (args!["backup", image.as_path(), "--disk", "one", "--format", "raw"], 4),
            "merge" => (merge.clone(), 4),
            // Whatever a merge frees.
            _ => {
                repo.edit_settings(|text| text.replace("merge_share = 25", "merge_share = 1"));
                let words = ["prune", "one", "--keep-last", "1", "--grace", "0"];
                (words.iter().map(Into::into).collect(), 4)
            }
        };
        let outcome = repo.run(arguments);
        assert_eq!(outcome.status.code(), Some(status), "{way}: {}", outcome.stderr);
        for later in [
            args!["points", "one"],
            args!["prune", "one", "--dry-run", "--keep-last", "1"],
            args!["merge", format!("one@{}..{}", point(0), point(3)), "--dry-run"],
            args![
                "restore",
                format!("one@{}", point(0)),
                image.as_path(),
                "--in-place",
                "--no-point",
                "--format",
                "raw"
            ],
        ] {
            assert!(told(later.clone()), "{way}, {later:?}");
        }
        assert!(!told(args!["points", "two"]), "{way}");
    }
}

#[test]
fn several_disks_and_points_are_verified_each_once() {
    let lab = Lab::new();
    let repo = repository(&lab);
    let verified = |targets: &[&str]| {
        let report = scrub(&repo, targets);
        let disks = report["disks"].as_array().unwrap().iter();
        let disks: Vec<_> = disks.map(|it| it["disk"].as_str().unwrap().to_owned()).collect();
        (report["points"].as_u64().unwrap(), report["archives"].as_u64().unwrap(), disks)
    };
    let both = vec!["one/disk".to_owned(), "two/disk".to_owned()];
    assert_eq!(verified(&["two", "one"]), (8, 8, both.clone()));
    let points = repo.points("one");
    let [first, second] = [0, 1].map(|number: usize| format!("one@{}", points[number]));
    assert_eq!(verified(&[&second, &first, &second]), (2, 2, both[..1].to_vec()));
    assert_eq!(verified(&[&second, "two"]), (5, 6, both.clone()));
    assert_eq!(verified(&[&second, "one", &first]), (4, 4, both[..1].to_vec()));
    let nothing = repo.run(args!["verify", "one", "three"]);
    assert_eq!(nothing.status.code(), Some(6), "{}", nothing.stderr);
}

/// An archive in which damage was found was read again in each run, before all others: it took the whole
/// budget of every night, and nothing else was proved any more.
#[test]
fn a_damaged_archive_waits_for_its_turn_and_is_told_meanwhile() {
    let lab = Lab::new();
    let repo = repository(&lab);
    let list = repo.run(args!["points", "one", "--json"]).ok().json();
    let archive = list["disks"][0]["points"][0]["archive"].as_str().unwrap();
    let stored = repo.stored_at(archive);
    let bytes = stored.bytes();
    stored.patch(bytes.len() as u64 / 2, &[!bytes[bytes.len() / 2]]);
    let mut all = BTreeSet::new();
    for run in 0..9 {
        let words = args!["verify", "--json", "--budget", "1K", "--max-age", "1d"];
        let outcome = repo.run(words);
        assert_eq!(outcome.status.code(), Some(4), "run {run}: {}", outcome.stderr);
        let report = outcome.json();
        let finding = &report["findings"][0];
        assert_eq!(finding["path"], archive, "run {run}: {report:#}");
        assert_eq!(finding["points"].as_array().unwrap().len(), 4, "run {run}: {report:#}");
        assert_eq!(report["archives"], u64::from(run < 8), "run {run}: {report:#}");
        all.extend(read(&report));
    }
    assert_eq!(all.len(), 8);
    // Without an age, what was read longest ago comes first.
    let outcome = repo.run(args!["verify", "--json", "--budget", "1K"]);
    assert_eq!(outcome.status.code(), Some(4), "{}", outcome.stderr);
    assert!(read(&outcome.json()).contains(archive));
}

/// Ends a run when something was read.
struct Stop(Cancel);

impl Observer for Stop {
    fn event(&self, event: &Event<'_>) {
        if let Event::Advance { bytes: 1.. } = event {
            self.0.cancel();
        }
    }
}

/// What a verification had proved in hours was forgotten when it was stopped before the end of a disk.
#[test]
fn what_was_proved_is_remembered_when_the_run_is_stopped() {
    let lab = Lab::new();
    let repo = repository(&lab);
    let repository = repo.open().with_state(state());
    let aged = Scrub { max_age: Some("30d".parse().unwrap()), budget: None };
    for scrub in [None, Some(aged)] {
        let before = proved(&repo).into_iter().filter(|proved| *proved).count();
        let resources = Resources::default();
        let request = VerifyRequest { targets: Vec::new(), quick: false, scrub, resources };
        let cancel = Cancel::default();
        let stopped = verify::run(&repository, &request, &Stop(cancel.clone()), &cancel);
        assert_eq!(stopped.unwrap_err().kind(), ErrorKind::Interrupted);
        let after = proved(&repo).into_iter().filter(|proved| *proved).count();
        assert!((before + 1..8).contains(&after), "{before} points were proved, now {after}");
    }
}
