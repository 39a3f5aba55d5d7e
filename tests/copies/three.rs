//! Random histories of three repositories, of which one is copied to the next: backups, prunes, merges, pins, points
//! that are brought back, copies by rules, damage, repairs and kills, beside a model that knows which points each
//! repository shows. No point is lost that any of them had and no rule removed, none shows anything else than the
//! disk was, and none that was removed lives again by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use super::with_other;
use crate::harness::content::{Guest, Random};
use crate::harness::disk::Disk;
use crate::harness::images::{guest_io, oracle};
use crate::harness::repo::Repo;
use crate::harness::story::Story;
use crate::harness::{Lab, args, qdelta, seeds, store};

/// Histories in a run without `QDELTA_SWEEP`.
const HISTORIES: u64 = 2;
/// What happens in one.
const ACTS: u64 = 10;

/// A repository, and what it must show.
struct Side {
    repo: Repo,
    living: BTreeSet<String>,
    removed: BTreeSet<String>,
    /// When each admin's pin was set.
    pins: BTreeMap<String, String>,
}

/// What a repository shows.
#[derive(Debug, Default)]
struct Shown {
    living: BTreeSet<String>,
    removed: BTreeSet<String>,
    pins: BTreeMap<String, String>,
}

impl Side {
    fn new(repo: Repo) -> Self {
        let (living, removed, pins) = Default::default();
        Self { repo: repo.without_ring(), living, removed, pins }
    }

    fn shown(&self) -> Shown {
        let outcome = self.repo.run(args!["points", "vm/a", "--removed", "--json"]).sane();
        if outcome.code() == Some(6) {
            return Shown::default();
        }
        let list = outcome.json();
        let mut shown = Shown::default();
        for disk in list["disks"].as_array().unwrap() {
            for point in disk["points"].as_array().unwrap() {
                let id = point["point"].as_str().unwrap().to_owned();
                if let Some(pin) = point["pins"].as_array().unwrap().first() {
                    shown.pins.insert(id.clone(), pin["at"].as_str().unwrap().to_owned());
                }
                match point["removed"].is_null() {
                    true => shown.living.insert(id),
                    false => shown.removed.insert(id),
                };
            }
        }
        shown
    }

    fn pick(&self, random: &mut Random) -> Option<String> {
        let index = random.below(self.living.len().max(1) as u64) as usize;
        self.living.iter().nth(index).cloned()
    }

    /// The points that stay if the newest `count` do: pinned ones stay besides.
    fn kept(&self, count: usize) -> BTreeSet<String> {
        let (pinned, others): (Vec<_>, Vec<_>) =
            self.living.iter().rev().partition(|point| self.pins.contains_key(*point));
        others.into_iter().take(count).chain(pinned).cloned().collect()
    }
}

struct History {
    lab: Lab,
    sides: [Side; 3],
    story: Story,
    random: Random,
    guest: Guest,
    disk: Disk,
    known: BTreeMap<String, PathBuf>,
    mended: usize,
}

impl History {
    fn new(seed: u64) -> Self {
        let lab = Lab::new();
        let mut random = Random::new(seed);
        let disk = Disk::new(&lab, &mut random, "raw");
        let mut guest = Guest::new(lab.dir(), random.next());
        guest_io(&disk.path, "raw", &guest.fill(disk.size, 3));
        let make = |name: &str, number: u64| match (seed + number) % 4 {
            3 => store::new_repo(),
            2 => Repo::encrypted(lab.path(name)),
            _ => Repo::init(lab.path(name)),
        };
        let sides = [("one", 0), ("two", 1), ("three", 2)].map(|(name, at)| make(name, at));
        let mut history = Self {
            sides: sides.map(Side::new),
            story: Story { seed, told: Vec::new() },
            random,
            guest,
            disk,
            known: BTreeMap::new(),
            mended: 0,
            lab,
        };
        history.back_up();
        history.back_up();
        history.copy(0, 1, None);
        history
    }

    fn back_up(&mut self) {
        for _ in 0..self.random.below(3) {
            let what = self.disk.change(&self.lab, &mut self.guest);
            self.story.tell(what);
        }
        let kind = self.random.pick(&["auto", "auto", "auto", "full"]);
        let options = ["--kind", kind, "--format", "raw"];
        let before = self.sides[0].living.clone();
        self.sides[0].repo.backup(&self.disk.path, "vm/a", &options);
        self.note_new(&before);
    }

    /// Remembers what the disk was at points that are new in the first repository.
    fn note_new(&mut self, before: &BTreeSet<String>) {
        for point in self.sides[0].shown().living.difference(before) {
            let expected = self.lab.path(format!("{point}.raw"));
            oracle(args!["-f", "raw", self.disk.path.as_path()], &expected);
            self.story.tell(format!("backup: {point}"));
            self.known.insert(point.clone(), expected);
            self.sides[0].living.insert(point.clone());
        }
    }

    /// Runs a command, or kills it before and then runs it; gives its status.
    fn run(&mut self, side: usize, words: Vec<OsString>) -> i32 {
        let repo = self.sides[side].repo.clone();
        if self.random.one_in(4) {
            let mut command = qdelta(repo.args(words.clone()));
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(self.random.below(120)));
            child.kill().unwrap();
            child.wait().unwrap();
            self.story.tell("killed, and again:".to_owned());
            // Somebody else may write there before.
            if self.random.one_in(2) {
                repo.run(args!["prune", "vm", "--keep-last", "999"]).sane();
            }
        }
        let outcome = repo.run(words).sane();
        let code = outcome.code().unwrap();
        self.story.tell(format!("{}: {code} {}", outcome.command, outcome.stderr));
        code
    }

    fn prune(&mut self, side: usize) {
        if self.sides[side].living.is_empty() {
            return;
        }
        let count = 1 + self.random.below(4) as usize;
        let grace = self.random.pick(&["0", "7d", "7d"]);
        let kept = self.sides[side].kept(count);
        let words =
            args!["prune", "vm", format!("--keep-last={count}"), format!("--grace={grace}")];
        assert_eq!(self.run(side, words), 0);
        let side = &mut self.sides[side];
        let gone = side.living.difference(&kept).cloned();
        side.removed.extend(gone.collect::<Vec<_>>());
        side.living = kept;
        // What is removed goes one day, and nothing else is removed.
        let shown = side.shown().removed;
        assert!(shown.is_subset(&side.removed), "{shown:?} {:?}", side.removed);
        side.removed = shown;
    }

    fn merge(&mut self, side: usize) {
        let at = side;
        let side = &self.sides[at];
        let (Some(one), Some(other)) = (side.pick(&mut self.random), side.pick(&mut self.random))
        else {
            return;
        };
        let (from, into) = (one.clone().min(other.clone()), one.max(other));
        let code = self.run(at, args!["merge", format!("vm@{from}..{into}")]);
        // One that is pinned is no part of another one; whoever was killed may have been through.
        assert!(matches!(code, 0 | 2 | 6), "{code}");
        let side = &mut self.sides[at];
        let shown = side.shown();
        let gone: Vec<String> = side.living.difference(&shown.living).cloned().collect();
        let may_go = |it: &String| *it >= from && *it < into && !side.pins.contains_key(it);
        assert!(gone.iter().all(may_go), "{gone:?}");
        side.living.retain(|it| shown.living.contains(it));
        side.removed.retain(|it| shown.removed.contains(it));
    }

    fn mark(&mut self, at: usize) {
        let random = &mut self.random;
        let side = &self.sides[at];
        let removed = side.removed.iter().next().cloned();
        let pinned = side.pins.keys().next().cloned();
        match (random.below(4), removed, pinned, side.pick(random)) {
            (0, Some(point), ..) => {
                assert_eq!(self.run(at, args!["undelete", format!("vm@{point}")]), 0);
                let side = &mut self.sides[at];
                side.removed.remove(&point);
                side.living.insert(point);
            }
            (1, _, Some(point), _) => {
                self.run(at, args!["unpin", format!("vm@{point}")]);
                self.sides[at].pins.remove(&point);
            }
            (.., Some(point)) => {
                assert_eq!(self.run(at, args!["pin", format!("vm@{point}")]), 0);
                let at_time = self.sides[at].shown().pins[&point].clone();
                self.sides[at].pins.insert(point, at_time);
            }
            _ => {}
        }
    }

    fn copy(&mut self, from: usize, to: usize, last: Option<usize>) {
        let rule = last.map(|last| format!("last={last}"));
        let rules: Vec<&str> = rule.iter().flat_map(|rule| ["--points", rule.as_str()]).collect();
        let words = with_other("copy", "--to", &self.sides[to].repo, &rules);
        let code = self.run(from, words);
        assert!(code == 0 || self.sides[from].living.is_empty(), "{code}");
        let source = &self.sides[from];
        let wanted = last.map_or_else(|| source.living.clone(), |last| source.kept(last));
        let (pins, living) = (source.pins.clone(), source.living.clone());
        let side = &mut self.sides[to];
        for point in wanted.difference(&side.removed) {
            if side.living.insert(point.clone())
                && let Some(pin) = pins.get(point)
            {
                side.pins.insert(point.clone(), pin.clone());
            }
        }
        for (point, pin) in pins.iter().filter(|(point, _)| living.contains(*point)) {
            let is_there = side.living.contains(point) || side.removed.contains(point);
            if is_there && side.pins.get(point).is_none_or(|theirs| theirs < pin) {
                side.pins.insert(point.clone(), pin.clone());
                side.removed.remove(point);
                side.living.insert(point.clone());
            }
        }
    }

    /// A file of one repository is damaged or lost. What is copied meanwhile is sound, and it comes back from another
    /// repository that has it.
    fn damage(&mut self, at: usize, from: usize) {
        let repo = self.sides[at].repo.clone();
        if self.sides[at].living.is_empty() {
            return;
        }
        let is_data =
            |it: &PathBuf| it.extension().is_some_and(|it| it == "qdelta" || it == "json");
        let files: Vec<PathBuf> = repo.files().into_iter().filter(is_data).collect();
        let file = &files[self.random.below(files.len() as u64) as usize];
        let stored = repo.stored_as(file);
        let sound = stored.bytes();
        let byte = self.random.below(sound.len() as u64) as usize;
        let is_lost = self.random.one_in(3);
        let mut bytes = sound.clone();
        bytes[byte] ^= 1 << self.random.below(8);
        match is_lost {
            true => stored.remove(),
            false => stored.write(&bytes),
        }
        self.story.tell(format!("{at}: {} damaged at {byte}, lost: {is_lost}", file.display()));
        let other = (at + 1) % 3;
        if self.random.one_in(2) && other != from {
            let words = with_other("copy", "--to", &self.sides[other].repo, &[]);
            let code = self.run(at, words);
            assert!(matches!(code, 0 | 2 | 4 | 12), "{code}");
            let source = self.sides[at].living.clone();
            let side = &mut self.sides[other];
            let shown = side.shown();
            assert!(shown.living.is_superset(&side.living), "{shown:?}");
            let may_be: BTreeSet<_> = side.living.union(&source).cloned().collect();
            assert!(shown.living.is_subset(&may_be), "{shown:?}");
            (side.living, side.removed, side.pins) = (shown.living, shown.removed, shown.pins);
        }
        let words = with_other("repair", "--from", &self.sides[from].repo, &[]);
        let code = self.run(at, words);
        self.mended += usize::from(matches!(code, 0 | 17));
        if !matches!(code, 0 | 17) {
            // The other one has other points: whoever finds the file again puts it back.
            stored.write(&sound);
        }
        // Of a manifest that tells nothing any more nobody knows whether its point was removed.
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if let Some(point) = name.strip_suffix(".json") {
            let side = &mut self.sides[at];
            let shown = side.shown();
            if side.removed.contains(point) && shown.living.contains(point) {
                assert!(is_lost || repo.key.is_some() || byte < sound.len(), "{point} lives again");
                side.removed.remove(point);
                side.living.insert(point.to_owned());
            }
            side.pins = shown.pins;
        }
    }

    fn against(&self, here: usize, there: usize) {
        let mut words = with_other("verify", "--against", &self.sides[there].repo, &[]);
        words.retain(|word| word != "--io" && word != "threads");
        let outcome = self.sides[here].repo.run(words).sane();
        let (here, there) = (&self.sides[here].living, &self.sides[there].living);
        let report = outcome.json();
        let guest = &report["guests"][0];
        let only = |field: &str| -> BTreeSet<String> {
            let points: Vec<Value> = guest[field].as_array().cloned().unwrap_or_default();
            points.iter().map(|it| it.as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(only("only_here"), here.difference(there).cloned().collect());
        assert_eq!(only("only_there"), there.difference(here).cloned().collect());
        assert_eq!(report["same"], here.intersection(there).count());
        let expected = if here == there { 0 } else { 17 };
        assert_eq!(outcome.code(), Some(expected), "{}", outcome.report());
    }

    /// Each repository shows what it must, and a share of it restores, or all.
    fn check(&self, all: bool) {
        for (number, side) in self.sides.iter().enumerate() {
            let shown = side.shown();
            assert_eq!(shown.living, side.living, "living in {number}");
            assert_eq!(shown.removed, side.removed, "removed in {number}");
            let pins = |pins: &BTreeMap<String, String>| -> Vec<(String, String)> {
                let living = pins.iter().filter(|(point, _)| side.living.contains(*point));
                living.map(|(point, pin)| (point.clone(), pin.clone())).collect()
            };
            assert_eq!(pins(&shown.pins), pins(&side.pins), "pins in {number}");
            for (index, point) in side.living.iter().enumerate() {
                if all || index % 5 == side.living.len() % 5 {
                    let expected = &self.known[point];
                    side.repo.assert_restores_raw(&self.lab, &format!("vm/a@{point}"), expected);
                }
            }
        }
    }

    fn act(&mut self) {
        let side = self.random.below(3) as usize;
        let (from, to) = if self.random.one_in(2) { (0, 1) } else { (1, 2) };
        match self.random.below(14) {
            0..4 => self.back_up(),
            4 | 5 => self.prune(side),
            6 => self.merge(side),
            7 => self.mark(side),
            8..11 => {
                let last = Some(1 + self.random.below(3) as usize).filter(|last| *last < 3);
                self.copy(from, to, last);
            }
            11 => self.damage(to, from),
            12 => self.damage(from, to),
            _ => self.against(from, to),
        }
    }
}

#[test]
fn three_repositories_show_what_they_must_through_random_histories() {
    let mut mended = 0;
    for seed in seeds(0x3_0000, HISTORIES) {
        let mut history = History::new(seed);
        for _ in 0..ACTS {
            history.act();
            history.check(false);
        }
        history.back_up();
        for (from, to) in [(0, 1), (1, 2)] {
            history.copy(from, to, None);
            history.against(from, to);
        }
        history.check(true);
        for side in &history.sides {
            side.repo.verify();
            side.repo.assert_no_leftovers();
        }
        mended += history.mended;
    }
    println!("{mended} damages were mended");
}
