//! Random lives of a repository that is backed up into, merged, pruned, pinned and damaged, with copies between,
//! some of them killed: every point of the copy is what the disk was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::with_other;
use crate::harness::content::{Guest, Random};
use crate::harness::disk::Disk;
use crate::harness::images::{guest_io, oracle};
use crate::harness::repo::{Repo, point_of};
use crate::harness::story::Story;
use crate::harness::{Lab, args, qdelta, seeds};

/// Lives in a run without `QDELTA_SWEEP`; the copy of every fourth lies in an object store.
const LIVES: u64 = 4;
/// What happens in a life.
const ACTS: u64 = 9;

struct Life {
    lab: Lab,
    repo: Repo,
    other: Repo,
    story: Story,
    random: Random,
    guest: Guest,
    disk: Disk,
    known: BTreeMap<String, PathBuf>,
    /// Points that the copy must have, as long as nobody prunes there.
    there: BTreeSet<String>,
    /// Points that were removed there: as long as their data is there, no copy brings them back.
    removed: BTreeSet<String>,
    merged: usize,
}

impl Life {
    fn new(seed: u64) -> Self {
        let lab = Lab::new();
        let mut random = Random::new(seed);
        let disk = Disk::new(&lab, &mut random, "raw");
        let mut guest = Guest::new(lab.dir(), random.next());
        guest_io(&disk.path, "raw", &guest.fill(disk.size, 3));
        let repo = Repo::init(lab.path("repo")).without_ring();
        let other = match random.one_in(4) {
            true => Repo::encrypted(lab.path("other")),
            false => Repo::of_a_life(lab.path("other"), seed),
        };
        let mut life = Self {
            repo,
            other: other.without_ring(),
            story: Story { seed, told: Vec::new() },
            random,
            guest,
            disk,
            known: BTreeMap::new(),
            there: BTreeSet::new(),
            removed: BTreeSet::new(),
            merged: 0,
            lab,
        };
        life.back_up();
        life
    }

    fn back_up(&mut self) {
        for _ in 0..self.random.below(3) {
            let what = self.disk.change(&self.lab, &mut self.guest);
            self.story.tell(what);
        }
        let kind = self.random.pick(&["auto", "auto", "incremental", "differential", "full"]);
        let kind = if self.known.is_empty() { "auto" } else { kind };
        let options = ["--kind", kind, "--format", "raw"];
        let outcome = self.repo.backup_run(&self.disk.path, "vm/a", &options);
        if kind != "auto" && kind != "full" && outcome.code() != Some(0) {
            return;
        }
        let point = point_of(&outcome.ok().json());
        let expected = self.lab.path(format!("{point}.raw"));
        oracle(args!["-f", "raw", self.disk.path.as_path()], &expected);
        self.story.tell(format!("{kind}: {point}"));
        self.known.insert(point, expected);
    }

    /// Merges, prunes or pins at one of the sides.
    fn tend(&mut self) {
        let is_here = self.random.below(3) > 0;
        let repo = if is_here { self.repo.clone() } else { self.other.clone() };
        let Some(points) = points(&repo) else { return };
        let of = |random: &mut Random| points[random.below(points.len() as u64) as usize].clone();
        let words = match self.random.below(4) {
            0 => {
                let (one, other) = (of(&mut self.random), of(&mut self.random));
                let range = format!("vm@{}..{}", (&one).min(&other), (&one).max(&other));
                args!["merge", range]
            }
            1 | 2 => {
                let last = format!("--keep-last={}", 1 + self.random.below(3));
                args!["prune", "vm", last, "--grace=0"]
            }
            _ => args!["pin", format!("vm@{}", of(&mut self.random))],
        };
        let outcome = repo.run(words).sane();
        self.story.tell(format!("{}: {}", outcome.command, outcome.status));
        assert!(matches!(outcome.code(), Some(0 | 2)), "{}", outcome.report());
        if !is_here {
            let left = points_of(&repo);
            self.removed.extend(self.there.difference(&left).cloned());
            self.there = left;
        }
    }

    fn rules(&mut self) -> Vec<&'static str> {
        match self.random.below(3) {
            0 => vec!["--points", self.random.pick(&["last=1", "last=2", "hourly"])],
            _ => Vec::new(),
        }
    }

    fn copy(&mut self) {
        let rules = self.rules();
        self.copy_by(&rules);
    }

    fn copy_by(&mut self, rules: &[&str]) {
        let report = self.repo.run(with_other("copy", "--to", &self.other, rules)).ok().json();
        self.story.tell(format!("copy {rules:?}: {}", report["guests"]));
        let points = report["guests"][0]["points"].as_array().unwrap();
        let is_merged = |point: &&Value| point["disks"][0]["how"] == "merged";
        self.merged += points.iter().filter(is_merged).count();
        let brought = points.iter().map(|it| it["point"].as_str().unwrap().to_owned());
        let brought: BTreeSet<String> = brought.collect();
        self.removed.retain(|point| !brought.contains(point));
        self.there.extend(brought);
        if rules.is_empty() {
            let wanted = points_of(&self.repo);
            self.there.extend(wanted.difference(&self.removed).cloned());
        }
        let found = points_of(&self.other);
        assert!(found.is_superset(&self.there), "{found:?} {:?}", self.there);
    }

    fn kill(&mut self) {
        let mut command = qdelta(self.repo.args(with_other("copy", "--to", &self.other, &[])));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(self.random.below(80)));
        child.kill().unwrap();
        child.wait().unwrap();
        self.story.tell("a copy is killed".to_owned());
        let found = points(&self.other).unwrap_or_default();
        assert!(self.there.iter().all(|point| found.contains(point)), "{found:?}");
    }

    /// A file here is damaged; copies go on with what is sound, and it comes back from the other side if that has it.
    fn damage(&mut self) {
        self.copy();
        let files: Vec<PathBuf> = self.repo.files();
        let is_data =
            |file: &&PathBuf| file.extension().is_some_and(|it| it == "qdelta" || it == "json");
        let files: Vec<&PathBuf> = files.iter().filter(is_data).collect();
        let file = files[self.random.below(files.len() as u64) as usize];
        let stored = self.repo.stored_as(file);
        let sound = stored.bytes();
        let mut bytes = sound.clone();
        let at = self.random.below(bytes.len() as u64) as usize;
        bytes[at] ^= 1 << self.random.below(8);
        let is_lost = self.random.one_in(3);
        match is_lost {
            true => stored.remove(),
            false => stored.write(&bytes),
        }
        let shown = file.display();
        self.story.tell(format!("{shown} is damaged at byte {at} (lost: {is_lost})"));
        let copied = self.repo.run(with_other("copy", "--to", &self.other, &[])).sane();
        assert!(matches!(copied.code(), Some(0 | 4 | 12)), "{}", copied.report());
        let mended = self.repo.run(with_other("repair", "--from", &self.other, &[])).sane();
        self.story.tell(format!("repair: {} {}", mended.status, mended.text()));
        if mended.code() != Some(0) {
            // The other side has other points: whoever finds the file again puts it back.
            stored.write(&sound);
        }
        self.repo.verify();
    }

    /// Every point that a repository has is what the disk was.
    fn check(&self, repo: &Repo, all: bool) {
        let points = points(repo).unwrap_or_default();
        for (index, point) in points.iter().enumerate() {
            if all || index % 4 == points.len() % 4 {
                let expected = &self.known[point];
                repo.assert_restores_raw(&self.lab, &format!("vm/a@{point}"), expected);
            }
        }
    }

    fn act(&mut self) {
        match self.random.below(12) {
            0..4 => self.back_up(),
            4..6 => self.tend(),
            6..10 => self.copy(),
            10 => self.kill(),
            _ => self.damage(),
        }
        self.check(&self.other, false);
    }
}

/// The points of the disk; none if the repository does not have it yet.
fn points(repo: &Repo) -> Option<Vec<String>> {
    let outcome = repo.run(args!["points", "vm/a", "--json"]).sane();
    let found = || repo.points("vm/a");
    (outcome.code() == Some(0)).then(found).filter(|points| !points.is_empty())
}

fn points_of(repo: &Repo) -> BTreeSet<String> {
    points(repo).unwrap_or_default().into_iter().collect()
}

#[test]
fn the_copy_is_what_the_disk_was_through_random_lives() {
    let mut merged = 0;
    for seed in seeds(0x16_0000, LIVES) {
        let mut life = Life::new(seed);
        for _ in 0..ACTS {
            life.act();
        }
        life.back_up();
        life.back_up();
        life.copy_by(&["--points", "last=1"]);
        life.copy_by(&[]);
        life.check(&life.other, true);
        life.check(&life.repo, true);
        life.other.verify();
        life.repo.verify();
        if life.other.key.is_none() {
            life.other.assert_no_leftovers();
        }
        merged += life.merged;
    }
    assert!(merged > 0, "nothing was merged on the way");
}
