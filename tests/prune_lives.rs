//! Random lives of a guest whose points are backed up, pruned, merged, pinned and brought back, with kills
//! and full disks between: what the rules keep stays what it was.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use qdelta::{BackupOptions, Cancel, ErrorKind, ImageRequest, KindChoice, OpenOptions, Silent};
use serde_json::Value;

use crate::harness::content::{Guest, Random};
use crate::harness::disk::Disk;
use crate::harness::files::Mount;
use crate::harness::images::{guest_io, oracle};
use crate::harness::repo::{Repo, point_of};
use crate::harness::story::Story;
use crate::harness::{Lab, args, qdelta, seeds, state};
use crate::prunes::{set_share, with_fate};

/// Lives in a run without `QDELTA_SWEEP`.
const LIVES: u64 = 4;
/// What happens in a life.
const ACTS: u64 = 24;
/// The room of a repository that can be full.
const ROOM: u64 = 256 << 20;

/// A guest with two disks, the second of which is not always there, and what is known of its points.
struct Life {
    lab: Lab,
    repo: Repo,
    /// The repository's own filesystem, if it can be full.
    mount: Option<Mount>,
    story: Story,
    random: Random,
    guest: Guest,
    disks: BTreeMap<&'static str, Disk>,
    /// What each disk was at each point.
    known: BTreeMap<String, Vec<(&'static str, PathBuf)>>,
    /// The points that nobody has removed.
    stay: BTreeSet<String>,
    pinned: BTreeSet<String>,
    merges: u64,
    drops: u64,
}

impl Life {
    fn new(seed: u64) -> Self {
        let lab = Lab::new();
        let mut random = Random::new(seed);
        let mount = random.one_in(2).then(|| Mount::in_memory(lab.dir(), ROOM));
        let folder = mount.as_ref().map_or_else(|| lab.path("repo"), |it| it.dir.join("repo"));
        let repo = match mount {
            Some(_) => Repo::init(folder),
            None => Repo::of_a_life(folder, seed),
        };
        let repo = repo.without_ring();
        set_share(&repo, random.pick(&[1, 1, 25]));
        let guest = Guest::new(lab.dir(), random.next());
        let mut life = Self {
            lab,
            repo,
            mount,
            story: Story { seed, told: Vec::new() },
            random,
            guest,
            disks: BTreeMap::new(),
            known: BTreeMap::new(),
            stay: BTreeSet::new(),
            pinned: BTreeSet::new(),
            merges: 0,
            drops: 0,
        };
        life.add_disk("a");
        life.back_up("a");
        life
    }

    fn add_disk(&mut self, name: &'static str) {
        let folder = self.lab.path(name);
        std::fs::create_dir(&folder).unwrap();
        let place = Lab::within(&folder);
        let mut disk = Disk::new(&place, &mut self.random, "raw");
        let path = folder.join("disk.raw");
        std::fs::rename(&disk.path, &path).unwrap();
        guest_io(&path, "raw", &self.guest.fill(disk.size, 3));
        self.story.tell(format!("a disk {name} of {} bytes", disk.size));
        disk.path = path;
        self.disks.insert(name, disk);
    }

    fn back_up(&mut self, name: &'static str) {
        let disk = &self.disks[name];
        let kind =
            self.random.pick(&["auto", "auto", "auto", "incremental", "differential", "full"]);
        let is_first = !self.known.values().flatten().any(|(disk, _)| *disk == name);
        let kind = if is_first { "auto" } else { kind };
        let options = ["--kind", kind, "--format", "raw"];
        let outcome = self.repo.backup_run(&disk.path, &format!("vm/{name}"), &options);
        let is_full = self.mount.is_some() && outcome.status.code() == Some(8);
        let may_fail = is_full || matches!(kind, "incremental" | "differential");
        if may_fail && outcome.status.code() != Some(0) {
            self.story.tell(format!("{kind} of {name}: {}", outcome.status));
            return;
        }
        let point = point_of(&outcome.ok().json());
        let expected = self.lab.path(format!("{point}.raw"));
        oracle(args!["-f", "raw", disk.path.as_path()], &expected);
        self.story.tell(format!("{kind} of {name}: {point}"));
        self.known.insert(point.clone(), vec![(name, expected)]);
        self.stay.insert(point);
    }

    /// A point of all disks, which are taken together.
    fn back_up_all(&mut self) {
        let open = || OpenOptions { format: Some(qdelta::Format::Raw), ..OpenOptions::default() };
        let image = |(name, disk): (&&'static str, &Disk)| {
            let spec = format!("vm/{name}").parse().unwrap();
            ImageRequest { path: disk.path.clone(), open: open(), disk: Some(spec) }
        };
        let images: Vec<_> = self.disks.iter().map(image).collect();
        let kind = match self.random.one_in(6) {
            true => KindChoice::Full,
            false => KindChoice::Auto,
        };
        let options = BackupOptions { kind, ..BackupOptions::default() };
        let repository = self.repo.open().with_state(state());
        let done =
            qdelta::backup_together(&repository, &images, &options, &Silent, &Cancel::default());
        let done = match done {
            Err(error) if self.mount.is_some() && error.kind() == ErrorKind::NoSpace => {
                self.story.tell("no room for a point of all disks".to_owned());
                return;
            }
            done => done.unwrap(),
        };
        let point = done[0].point.to_string();
        self.story.tell(format!("all disks: {point}"));
        let mut known = Vec::new();
        for (name, disk) in &self.disks {
            let expected = self.lab.path(format!("{point}-{name}.raw"));
            oracle(args!["-f", "raw", disk.path.as_path()], &expected);
            known.push((*name, expected));
        }
        self.known.insert(point.clone(), known);
        self.stay.insert(point);
    }

    fn change(&mut self) {
        let names: Vec<_> = self.disks.keys().copied().collect();
        let name = self.random.pick(&names);
        let disk = self.disks.get_mut(name).unwrap();
        let what = match self.random.below(6) {
            0 => {
                // Somebody makes the disk larger or smaller.
                let size = (512 + self.random.below(12 << 20)) / 512 * 512;
                let file = std::fs::OpenOptions::new().write(true).open(&disk.path).unwrap();
                file.set_len(size).unwrap();
                disk.size = size;
                format!("resize to {size}")
            }
            _ => disk.write(&mut self.guest),
        };
        self.story.tell(format!("{name}: {what}"));
    }

    /// The rules of one run: they keep what is newest, and something else now and then.
    fn rules(&mut self) -> Vec<String> {
        let last = 1 + self.random.below(4);
        let grace = self.random.pick(&["0", "0", "0", "1d"]);
        let mut rules = vec![format!("--keep-last={last}"), format!("--grace={grace}")];
        // No store says how much is free.
        if self.random.one_in(6) && !self.repo.is_in_a_store() {
            rules.push("--until-free=1000T".to_owned());
        }
        rules
    }

    fn prune(&mut self) {
        let rules = self.rules();
        let run = |more: &[&str]| {
            let mut arguments = args!["prune", "vm", "--json", "--io", "threads"];
            arguments.extend(rules.iter().map(Into::into));
            arguments.extend(more.iter().map(Into::into));
            self.repo.run(arguments).ok().json()
        };
        let before = self.repo.files();
        let planned = run(&["--dry-run"]);
        assert_eq!(self.repo.files(), before, "a dry run does nothing");
        let done = run(&[]);
        self.story.tell(format!("prune {rules:?}: {}", done["guests"][0]["data"]));
        let [planned, done] = [&planned, &done].map(|report| &report["guests"][0]);
        assert_eq!((&planned["kept"], &planned["removed"]), (&done["kept"], &done["removed"]));
        if !rules.iter().any(|rule| rule.starts_with("--until")) {
            let [planned, done] = [planned, done].map(|guest| &guest["data"]);
            assert_eq!(
                (&planned["dropped"], &planned["spared"]),
                (&done["dropped"], &done["spared"])
            );
            let into = |data: &Value| -> Vec<Value> {
                data["merges"].as_array().unwrap().iter().map(|it| it["point"].clone()).collect()
            };
            assert_eq!(into(planned), into(done));
        }
        self.merges += done["data"]["merges"].as_array().unwrap().len() as u64;
        self.drops += done["data"]["dropped"].as_array().unwrap().len() as u64;
        assert_eq!(done["data"]["waiting"], false);
        let report = serde_json::json!({ "guests": [done] });
        self.stay = with_fate(&report, "keep");
        assert!(self.stay.is_superset(&self.pinned), "a pinned point was removed");
    }

    /// A prune that may end anywhere: all that it would keep must stay.
    fn begin_prune(&mut self) -> Vec<OsString> {
        let rules = self.rules();
        let mut arguments = args!["prune", "vm", "--io", "threads"];
        arguments.extend(rules.iter().map(Into::into));
        let planned = [arguments.clone(), args!["--dry-run", "--json"]].concat();
        self.stay = with_fate(&self.repo.run(planned).ok().json(), "keep");
        self.story.tell(format!("prune {rules:?} begins"));
        arguments
    }

    /// Somebody kills a prune at some moment.
    fn kill(&mut self) {
        let arguments = self.begin_prune();
        let mut command = qdelta(self.repo.args(arguments));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(self.random.below(60)));
        child.kill().unwrap();
        child.wait().unwrap();
        self.story.tell("and is killed".to_owned());
    }

    /// The repository's disk is nearly full while something is done.
    fn fill(&mut self) {
        let Some(mount) = &self.mount else { return };
        let filler = mount.dir.join("filler");
        let left = self.random.below(6) * self.random.below(1 << 20);
        let prune = self.random.one_in(2).then(|| self.begin_prune());
        let mut len = ROOM;
        // Whole pages: what was written before it was full stays.
        while std::fs::write(&filler, vec![1; len as usize]).is_err() {
            len = std::fs::metadata(&filler).unwrap().len();
        }
        std::fs::OpenOptions::new()
            .write(true)
            .open(&filler)
            .and_then(|file| file.set_len(len.saturating_sub(left)))
            .unwrap();
        self.story.tell(format!("{left} bytes are left"));
        match prune {
            Some(arguments) => {
                let outcome = self.repo.run(arguments).sane();
                self.story.tell(format!("{}: {}", outcome.status, outcome.stderr));
                assert!(matches!(outcome.status.code(), Some(0 | 8)), "{}", outcome.stderr);
            }
            None => match self.random.below(4) {
                0 => self.merge(),
                1 => self.back_up_all(),
                2 => self.undelete(),
                _ => self.back_up("a"),
            },
        }
        self.check(true);
        std::fs::remove_file(self.mount.as_ref().unwrap().dir.join("filler")).unwrap();
    }

    fn pin(&mut self) {
        let points: Vec<_> = self.stay.iter().cloned().collect();
        let point = &points[self.random.below(points.len() as u64) as usize];
        let command = if self.pinned.remove(point) { "unpin" } else { "pin" };
        if command == "pin" {
            self.pinned.insert(point.clone());
        }
        self.repo.run(args![command, format!("vm@{point}")]).ok();
        self.story.tell(format!("{command} {point}"));
    }

    /// Brings a removed point back, if one is still there.
    fn undelete(&mut self) {
        let gone: Vec<_> = self.known.keys().filter(|it| !self.stay.contains(*it)).collect();
        let Some(point) = gone.last().map(|point| (*point).clone()) else { return };
        let outcome = self.repo.run(args!["undelete", format!("vm@{point}")]).sane();
        self.story.tell(format!("undelete {point}: {}", outcome.status));
        if outcome.status.code() == Some(0) {
            self.stay.insert(point);
        }
    }

    fn merge(&mut self) {
        let points: Vec<_> = self.stay.iter().cloned().collect();
        let into = self.random.below(points.len() as u64) as usize;
        let from = self.random.below(into as u64 + 1) as usize;
        let range = format!("vm@{}..{}", points[from], points[into]);
        let outcome = self.repo.run(args!["merge", range.as_str(), "--json"]).sane();
        self.story.tell(format!("merge {range}: {}", outcome.status));
        if outcome.status.code() == Some(0) {
            for gone in outcome.json()["absorbed"].as_array().unwrap() {
                self.stay.remove(gone.as_str().unwrap());
            }
        }
    }

    /// Takes a disk back to a point.
    fn roll_back(&mut self) {
        let points: Vec<_> = self.stay.iter().cloned().collect();
        let point = &points[self.random.below(points.len() as u64) as usize];
        let disks = &self.known[point];
        let (name, expected) = disks[self.random.below(disks.len() as u64) as usize].clone();
        let selector = format!("vm/{name}@{point}");
        let disk = self.disks.get_mut(name).unwrap();
        let now = self.lab.path("now.raw");
        oracle(args!["-f", "raw", disk.path.as_path()], &now);
        let words =
            args!["restore", selector.as_str(), disk.path.as_path(), "--in-place", "--json"];
        let outcome = self.repo.run(words).sane();
        self.story.tell(format!("roll {name} back to {point}: {}", outcome.status));
        if outcome.status.code() != Some(0) {
            return;
        }
        disk.size = std::fs::metadata(&expected).unwrap().len();
        let listed = self.repo.points(&format!("vm/{name}"));
        let is_new = |point: &String| !self.known.contains_key(point);
        for safety in listed.into_iter().filter(is_new).collect::<Vec<_>>() {
            let kept = self.lab.path(format!("{safety}.raw"));
            std::fs::copy(&now, &kept).unwrap();
            self.known.insert(safety.clone(), vec![(name, kept)]);
            self.stay.insert(safety);
        }
    }

    /// Every point that nobody removed is what it was.
    fn check(&self, all: bool) {
        let points: Vec<_> = self.stay.iter().collect();
        for (index, point) in points.iter().enumerate() {
            if all || index % 3 == points.len() % 3 {
                for (name, expected) in &self.known[*point] {
                    let selector = format!("vm/{name}@{point}");
                    self.repo.assert_restores_raw(&self.lab, &selector, expected);
                }
            }
        }
    }

    fn act(&mut self) {
        match self.random.below(15) {
            0..2 => {
                let names: Vec<_> = self.disks.keys().copied().collect();
                let name = self.random.pick(&names);
                self.change();
                self.back_up(name);
            }
            2..4 => {
                self.change();
                self.back_up_all();
            }
            4..7 => self.prune(),
            7 => self.kill(),
            8 => self.pin(),
            9 => self.undelete(),
            10 => self.merge(),
            11 => self.roll_back(),
            12 | 13 => self.fill(),
            _ if self.disks.contains_key("b") => self.change(),
            _ => {
                self.add_disk("b");
                self.back_up("b");
            }
        }
    }
}

#[test]
fn what_the_rules_keep_stays_through_random_lives() {
    let (mut merges, mut drops) = (0, 0);
    for seed in seeds(0x13_2000, LIVES) {
        let mut life = Life::new(seed);
        for _ in 0..ACTS {
            life.act();
            life.check(false);
        }
        life.prune();
        life.check(true);
        life.repo.verify();
        life.repo.assert_no_leftovers();
        merges += life.merges;
        drops += life.drops;
    }
    assert!(merges > 0 && drops > 0, "{merges} merges, {drops} points dropped");
}
