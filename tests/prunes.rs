//! Pruning through the program: what the rules keep stays what it was, whatever happens meanwhile.

use std::collections::BTreeSet;
use std::path::PathBuf;

use qdelta::base::clock;
use qdelta::base::observer::{Event, Observer};
use qdelta::base::period::Period;
use qdelta::flows::merge::MergeOptions;
use qdelta::flows::prune::{self, PruneRequest};
use qdelta::flows::retain::{self, Clock, Policy};
use qdelta::vault::repository::storage::{Name, Wait};
use qdelta::vault::repository::{Count, DomainName, Keep, Marks, Pin};
use qdelta::{Cancel, PointId, Repository, Silent};
use serde_json::Value;

use crate::harness::content::{Guest, Random};
use crate::harness::faults::{Fault, count_calls, plan, run_with};
use crate::harness::files::{Mount, copy_tree};
use crate::harness::guest::{self, Host};
use crate::harness::images::{check_is_silent, create, create_raw, guest_io, oracle, qemu_img};
use crate::harness::repo::{Repo, point_of};
use crate::harness::{Lab, args, sweep};

/// Sets how much a merge must free.
pub fn set_share(repo: &Repo, percent: u64) {
    repo.edit_settings(|text| {
        let (before, rest) = text.split_once("merge_share = ").unwrap();
        let rest = rest.split_once('\n').unwrap().1;
        format!("{before}merge_share = {percent}\n{rest}")
    });
}

/// The number of archives in a repository.
fn archives(repo: &Repo) -> usize {
    repo.files().iter().filter(|it| it.extension().is_some_and(|e| e == "qdelta")).count()
}

/// The points of a guest in the result of a prune that have this fate.
pub fn with_fate(report: &Value, fate: &str) -> BTreeSet<String> {
    let points = report["guests"][0]["points"].as_array().unwrap().iter();
    let points = points.filter(|point| point["fate"] == fate);
    points.map(|point| point["point"].as_str().unwrap().to_owned()).collect()
}

/// So many nights of a raw disk: its points, with what it was at each.
pub fn nights(lab: &Lab, repo: &Repo, name: &str, count: u64) -> Vec<(String, PathBuf)> {
    let image = lab.path(format!("{name}.raw"));
    let mut guest = Guest::new(lab.dir(), 5);
    create_raw(&image, 4 << 20);
    guest_io(&image, "raw", &["write -q -P 9 0 3M".to_owned()]);
    let mut points = Vec::new();
    for number in 0..count {
        guest_io(&image, "raw", &guest.fill(1 << 20, 3));
        let expected = lab.path(format!("{name}{number}.raw"));
        oracle(args!["-f", "raw", image.as_path()], &expected);
        let done = repo.backup(&image, &format!("{name}/disk"), &["--format", "raw"]);
        points.push((point_of(&done), expected));
    }
    points
}

/// Rules removed the full that every differential is made against, and from then on each differential
/// failed: the disk had no full to compare with. Or an older one that a rule kept was taken.
#[test]
fn differentials_go_on_where_their_full_is_removed() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let image = lab.path("vm.raw");
    create_raw(&image, 4 << 20);
    let night = |number: u64, kind: &str| {
        let write = format!("write -q -P {number} {}k 256k", number * 256);
        guest_io(&image, "raw", &[write]);
        let done = repo.backup(&image, "vm/disk", &["--format", "raw", "--kind", kind]);
        (point_of(&done), done["parent"].as_str().map(str::to_owned))
    };
    let (old, _) = night(1, "full");
    let (full, _) = night(2, "full");
    repo.run(args!["pin", format!("vm@{old}")]).ok();
    for number in 3..7 {
        let (point, parent) = night(number, "differential");
        assert_eq!(parent.as_ref(), Some(&full), "night {number}");
        repo.run(args!["prune", "--keep-last", "1"]).ok();
        repo.assert_restores_raw(&lab, &format!("vm/disk@{point}"), &image);
    }
    repo.verify();
}

/// A removed point can be brought back as long as its data is there, and then its data goes.
#[test]
fn a_removed_point_comes_back_until_its_data_is_gone() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    set_share(&repo, 1);
    let points = nights(&lab, &repo, "vm", 5);
    let prune = |more: &[&str]| {
        let mut arguments = args!["prune", "--keep-last", "2", "--json"];
        arguments.extend(more.iter().map(Into::into));
        repo.run(arguments).ok().json()
    };
    let marked = prune(&[]);
    assert_eq!(with_fate(&marked, "remove").len(), 3);
    assert_eq!(archives(&repo), 5, "the data is still there");
    assert_eq!(repo.points("vm/disk").len(), 2);
    repo.run(args!["undelete", format!("vm@{}", points[1].0)]).ok();
    repo.assert_restores_raw(&lab, &format!("vm/disk@{}", points[1].0), &points[1].1);
    // Whoever wants room at any price takes what is left of the grace.
    let forced = match repo.is_in_a_store() {
        false => prune(&["--until-free", "1000T"]),
        // Nobody knows how much is free there.
        true => {
            let words = args!["prune", "--keep-last", "2", "--until-free", "1000T"];
            let said = repo.run(words).fails_with(2);
            assert!(said.contains("merge_share = 1 "), "{said}");
            prune(&["--grace", "0"])
        }
    };
    let data = &forced["guests"][0]["data"];
    assert_eq!(data["merges"].as_array().unwrap().len(), 1, "{forced:#}");
    assert_eq!((archives(&repo), repo.points("vm/disk").len()), (2, 2));
    repo.run(args!["undelete", format!("vm@{}", points[1].0)]).fails_with(6);
    repo.verify();
    repo.assert_no_leftovers();
    for (point, expected) in &points[3..] {
        repo.assert_restores_raw(&lab, &format!("vm/disk@{point}"), expected);
    }
}

/// Guests are marked one after another, and then merged one after another, which may take hours. Who brought
/// a point back meanwhile saw it come back, and then it was merged all the same.
#[test]
fn a_point_that_is_brought_back_during_a_prune_stays() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    set_share(&repo, 1);
    nights(&lab, &repo, "first", 4);
    let points = nights(&lab, &repo, "second", 4);
    let prune = |guest: &str| args!["prune", guest, "--keep-last", "1", "--grace", "0", "--json"];
    let second = repo.open();
    let back: PointId = points[1].0.parse().unwrap();
    // The point is removed, and merged away as soon as its guest's turn comes.
    let watch = Undelete { repository: second, domain: "second".parse().unwrap(), point: back };
    let repository = repo.open();
    let domains = vec!["first".parse().unwrap(), "second".parse().unwrap()];
    let request = PruneRequest { domains, ..request(1) };
    let report = prune::run(&repository, &request, &watch, &Cancel::default()).unwrap();
    let data = &report.guests[1].data;
    assert_eq!(data.merges.len(), 2, "{data:?}");
    assert_eq!(repo.points("second/disk"), [points[1].0.as_str(), &points[3].0]);
    repo.assert_restores_raw(&lab, &format!("second/disk@{back}"), &points[1].1);
    // Now it is a point as every other one.
    let done = repo.run(prune("second")).ok().json();
    assert_eq!(with_fate(&done, "remove"), BTreeSet::from([points[1].0.clone()]));
    repo.verify();
    repo.assert_no_leftovers();
}

/// Brings a point back when the first merge begins.
struct Undelete {
    repository: Repository,
    domain: DomainName,
    point: PointId,
}

impl Observer for Undelete {
    fn event(&self, event: &Event<'_>) {
        if let Event::Begin { phase: "merge", disk: Some("first/disk"), .. } = event {
            let lock = self.repository.lock(&self.domain, Wait::UNHEARD).unwrap();
            retain::undelete(&self.repository, &lock, self.point, &Silent).unwrap();
        }
    }
}

/// The newest points are kept, without grace.
pub fn request(last: u32) -> PruneRequest {
    PruneRequest {
        domains: Vec::new(),
        policy: Policy {
            keep: Keep { last: Some(Count::Of(last)), ..Keep::default() },
            grace: Period::NONE,
            zone: jiff::tz::TimeZone::UTC,
            now: clock::now().unwrap(),
            clock: Clock::Trusted,
        },
        time_zone: "UTC".to_owned(),
        merge_share: 1,
        until_free: None,
        dry_run: false,
        merging: MergeOptions::default(),
    }
}

/// The bytes of all archives in a repository.
fn stored(repo: &Repo) -> u64 {
    let opened = repo.open();
    let len = |file: PathBuf| {
        let parts = file.iter();
        let name = parts.fold(Name::top(), |name, part| name.join(part.to_str().unwrap()));
        opened.storage().entry(&name).unwrap().unwrap().len.unwrap()
    };
    repo.archives().into_iter().map(len).sum()
}

/// Where the disks of a point went to different points, what they freed was counted twice.
#[test]
fn what_is_freed_is_what_the_disks_of_a_point_take() {
    let host = Host::new();
    let guest = guest::Guest::define(&host, host.lab.dir());
    set_share(&host.repo, 1);
    let fill = |from: &str| {
        guest_io(&guest.vda(), "qcow2", &[format!("write -q -P 7 {from} 1M")]);
        guest_io(&guest.vdb(), "raw", &[format!("write -q -P 8 {from} 1M")]);
    };
    for from in ["0", "1M"] {
        fill(from);
        host.web(&[]);
    }
    fill("1M");
    host.web(&["--exclude", "vdb"]);
    host.web(&[]);
    let before = stored(&host.repo);
    let words = args!["prune", "--keep-last", "2", "--grace", "0", "--json"];
    let planned = host.repo.run([words.clone(), args!["--dry-run"]].concat()).ok().json();
    let done = host.repo.run(words).ok().json();
    let [planned, done] = [planned, done].map(|report| report["guests"][0]["data"].clone());
    assert_eq!(done["merges"].as_array().unwrap().len(), 2, "{done:#}");
    assert_eq!(done["bytes_freed"], before - stored(&host.repo), "{done:#}");
    assert_eq!(planned["bytes_freed"], done["bytes_freed"], "{planned:#}");
    host.assert_sound();
}

/// Pins a point until a time that is over.
fn pin_for_a_moment(repo: &Repo, domain: &str, point: &str) {
    let repository = repo.open();
    let lock = repository.lock(&domain.parse().unwrap(), Wait::UNHEARD).unwrap();
    let at = clock::now().unwrap();
    let pin = Pin { holder: None, at, reason: None, until: Some(at) };
    let pinned = |marks: &mut Marks| {
        marks.pin(pin);
        Ok(())
    };
    repository.mark(&lock, point.parse().unwrap(), pinned).unwrap();
}

/// A pin that had ended kept the data of its point in what a dry run said, and made `merge` leave the point
/// where it was, with all its bytes, after saying that it had gone.
#[test]
fn a_pin_that_has_ended_keeps_nothing() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    set_share(&repo, 1);
    let points = nights(&lab, &repo, "vm", 4);
    pin_for_a_moment(&repo, "vm", &points[1].0);
    let range = format!("vm@{}..{}", points[0].0, points[2].0);
    let done = repo.run(args!["merge", range, "--json"]).ok().json();
    assert_eq!(done["absorbed"].as_array().unwrap().len(), 2);
    assert_eq!(repo.points("vm/disk"), [points[2].0.as_str(), &points[3].0]);
    pin_for_a_moment(&repo, "vm", &points[2].0);
    let words = args!["prune", "--keep-last", "1", "--grace", "0", "--json"];
    let planned = repo.run([words.clone(), args!["--dry-run"]].concat()).ok().json();
    let done = repo.run(words).ok().json();
    let [planned, done] = [planned, done].map(|report| report["guests"][0]["data"].clone());
    assert_eq!((&planned["bytes_freed"], archives(&repo)), (&done["bytes_freed"], 1), "{done:#}");
    repo.verify();
    repo.assert_no_leftovers();
}

/// While somebody reads points nothing goes, and the next run removes it.
#[test]
fn readers_are_waited_for() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    set_share(&repo, 1);
    let points = nights(&lab, &repo, "vm", 4);
    let reader = repo.open();
    let hold = reader.hold(&"vm".parse().unwrap(), Wait::UNHEARD).unwrap();
    let prune = || {
        let rules = args!["prune", "--keep-last", "1", "--grace", "0", "--json"];
        repo.run(rules).ok().json()["guests"][0]["data"].clone()
    };
    let done = prune();
    assert_eq!((&done["waiting"], archives(&repo)), (&true.into(), 5), "{done}");
    for (point, expected) in &points {
        repo.assert_restores_raw(&lab, &format!("vm/disk@{point}"), expected);
    }
    // `space` looked at points whose removal was settled, and failed.
    let space = repo.run(args!["space", "vm", "--json"]).ok().json();
    assert_eq!(space["guests"][0]["error"], Value::Null);
    assert_eq!(space["guests"][0]["each"].as_array().unwrap().len(), 1, "{space:#}");
    // What is about to go can't be brought back as if it stayed.
    let said = repo.run(args!["undelete", format!("vm@{}", points[0].0)]).fails_with(2);
    assert!(said.contains("for good"), "{said}");
    drop(hold);
    let done = prune();
    assert_eq!((&done["waiting"], archives(&repo)), (&false.into(), 1), "{done}");
    repo.verify();
    repo.assert_no_leftovers();
}

/// A disk moved to another image, and nothing named the old one any more: its bitmap stayed in there for ever.
#[test]
fn anchors_of_images_that_nobody_names_go() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let [old, new] = ["old.qcow2", "new.qcow2"].map(|name| lab.path(name));
    create(&old, "", 4 << 20);
    guest_io(&old, "qcow2", &["write -q -P 9 0 1M".to_owned()]);
    repo.backup(&old, "vm/disk", &["--anchor", "bitmap"]);
    std::fs::copy(&old, &new).unwrap();
    repo.backup(&new, "vm/disk", &["--anchor", "bitmap", "--kind", "full"]);
    let bitmaps = |path: &PathBuf| {
        let info = qemu_img(args!["info", "--output=json", path.as_path()]).ok().json();
        let bitmaps = info["format-specific"]["data"]["bitmaps"].as_array().cloned();
        bitmaps.unwrap_or_default().len()
    };
    // A bitmap, and a map of what was allocated.
    assert_eq!((bitmaps(&old), bitmaps(&new)), (2, 2));
    let words = args!["prune", "--keep-last", "1", "--grace", "0", "--json"];
    let done = repo.run(words).ok().json();
    assert_eq!(done["guests"][0]["data"]["anchors"], 1, "{done:#}");
    assert_eq!((bitmaps(&old), bitmaps(&new)), (0, 2));
    check_is_silent(&old);
    repo.verify();
}

/// Damage stops the merges of its chain, and no other; the status tells of it.
#[test]
fn damage_stops_its_own_chain_alone() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    set_share(&repo, 1);
    let [good, bad] = ["good", "bad"].map(|name| nights(&lab, &repo, name, 4));
    let mut archives = repo.archives().into_iter();
    let broken = archives.find(|it| it.to_string_lossy().contains(&bad[1].0)).unwrap();
    let (stored, broken) = (repo.stored_as(&broken), repo.place_of(broken));
    let mut bytes = stored.bytes();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    stored.write(&bytes);
    let words = args!["prune", "--keep-last", "1", "--grace", "0", "--json"];
    for _ in 0..2 {
        let outcome = repo.run(words.clone()).sane();
        assert_eq!(outcome.status.code(), Some(4), "{}", outcome.stderr);
        let report = outcome.json();
        let spared = &report["guests"][0]["data"]["spared"][0];
        assert_eq!(spared["why"], "damaged", "{report:#}");
        let text = spared["problem"]["text"].as_str().unwrap();
        assert!(text.contains(broken.to_str().unwrap()), "{text}");
        let left = |name: &str| repo.archives().iter().filter(|it| it.starts_with(name)).count();
        assert_eq!((left("bad/disk"), left("good/disk")), (4, 1));
    }
    repo.assert_restores_raw(&lab, &format!("good/disk@{}", good[3].0), &good[3].1);
}

/// A merge that has no room is left, with its reason, and nothing has changed.
#[test]
fn what_has_no_room_waits() {
    let lab = Lab::new();
    let mount = Mount::in_memory(lab.dir(), 12 << 20);
    let repo = Repo::init(mount.dir.join("repo"));
    set_share(&repo, 1);
    let image = lab.path("disk.raw");
    for seed in 0..4 {
        std::fs::write(&image, Random::new(seed).noise(1 << 20)).unwrap();
        repo.backup(&image, "vm/disk", &["--format", "raw"]);
    }
    let filler = mount.dir.join("filler");
    let free = rustix_free(&mount);
    std::fs::write(&filler, vec![1; (free - (1 << 20)) as usize]).unwrap();
    let words = args!["prune", "--keep-last", "1", "--grace", "0", "--json"];
    let outcome = repo.run(words.clone()).sane();
    assert_eq!(outcome.status.code(), Some(8), "{}", outcome.stderr);
    let report = outcome.json();
    assert_eq!(report["guests"][0]["data"]["spared"][0]["why"], "room", "{report:#}");
    assert_eq!(archives(&repo), 4);
    repo.verify();
    std::fs::remove_file(&filler).unwrap();
    repo.run(words).ok();
    assert_eq!(archives(&repo), 1);
    repo.verify();
    repo.assert_restores_raw(&lab, "vm/disk", &image);
}

fn rustix_free(mount: &Mount) -> u64 {
    let space = rustix::fs::statvfs(&mount.dir).unwrap();
    space.f_bavail * space.f_frsize
}

/// A kill or a failure at each system call that writes.
#[test]
fn a_prune_survives_every_fault() {
    let lab = Lab::new();
    let kept = Repo::init(lab.path("kept"));
    set_share(&kept, 1);
    let points = nights(&lab, &kept, "vm", 4);
    let repo = kept.copy_at(lab.path("repo")).without_ring();
    let words = ["prune", "--keep-last=2", "--grace=0", "--io=threads", "--threads=1"];
    let arguments = repo.args(words.iter().map(Into::into).collect());
    copy_tree(&kept.path, &repo.path);
    let counts = count_calls(&lab, arguments.clone());
    for injection in plan(&counts, &[Fault::Kill, Fault::NoSpace], sweep()) {
        println!("{injection}");
        copy_tree(&kept.path, &repo.path);
        run_with(&injection, arguments.clone()).sane();
        repo.verify();
        for (point, expected) in &points[2..] {
            repo.assert_restores_raw(&lab, &format!("vm/disk@{point}"), expected);
        }
        repo.run(words.iter().map(Into::into).collect()).ok();
        assert_eq!(repo.points("vm/disk"), [points[2].0.clone(), points[3].0.clone()]);
        repo.assert_no_leftovers();
        repo.verify();
    }
}

/// A damaged point was removed, and nothing but the list of all points said that it was damaged.
#[test]
fn a_damaged_point_does_not_go_without_a_warning() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo")).without_ring();
    let image = lab.path("disk.raw");
    create_raw(&image, 1 << 20);
    let full = ["--format", "raw", "--kind", "full"];
    let first = point_of(&repo.backup(&image, "vm/disk", &full));
    let archive = repo.archives().remove(0);
    repo.backup(&image, "vm/disk", &full);
    let folder = Name::top().join("vm").join("disk");
    let name = folder.join(archive.file_name().unwrap().to_str().unwrap());
    repo.open().storage().remove(&name).unwrap();
    let prune = args!["prune", "--keep-last", "1", "--json"];
    let warned = |report: Value| -> Vec<String> {
        let all = report["warnings"].as_array().unwrap().iter();
        all.filter(|it| it["code"] == "damaged-archive").map(|it| it["text"].to_string()).collect()
    };
    let warnings = warned(repo.run(prune.clone()).ok().json());
    assert!(warnings.len() == 1 && warnings[0].contains(&first), "{warnings:?}");
    assert_eq!(warned(repo.run(prune).ok().json()), Vec::<String>::new());
}
