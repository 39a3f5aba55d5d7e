//! Merging through the program: points become part of later ones, and all that stay are what they were.

use std::path::PathBuf;

use crate::harness::content::{Guest, Random};
use crate::harness::disk::Disk;
use crate::harness::faults::{Fault, count_calls, plan, run_with};
use crate::harness::files::{Mount, assert_same, copy_tree};
use crate::harness::images::{create, create_raw, guest_io, oracle};
use crate::harness::repo::{Repo, number, point_of};
use crate::harness::story::Story;
use crate::harness::{Lab, args, qdelta, run, seeds, sweep};
use qdelta::vault::repository::storage::Wait;

const MIB: u64 = 1 << 20;

/// Lives in a run without `QDELTA_SWEEP`, for each of the two tests.
const LIVES: u64 = 6;
/// Recovery points in a life.
const POINTS: u64 = 7;

/// A point, and what its disk was.
type Kept = (String, PathBuf);

/// Merges some of the points, if that is possible; gives whether it was.
fn merge(repo: &Repo, random: &mut Random, story: &mut Story, points: &mut Vec<Kept>) -> bool {
    let into = random.below(points.len() as u64) as usize;
    let from = random.below(into as u64 + 1) as usize;
    let range = format!("disk@{}..{}", points[from].0, points[into].0);
    let outcome = repo.run(args!["merge", range.as_str(), "--json"]);
    story.tell(format!("merge {range}: {}", outcome.status));
    if outcome.status.code() == Some(2) {
        let expected = ["can't go", "does not build on"];
        assert!(expected.iter().any(|text| outcome.stderr.contains(text)), "{}", outcome.stderr);
        return false;
    }
    let report = outcome.ok().json();
    let absorbed = report["absorbed"].as_array().unwrap();
    assert!(!absorbed.is_empty() && report["waiting"] == false, "{report}");
    points.retain(|(id, _)| !absorbed.iter().any(|gone| gone == id.as_str()));
    true
}

/// One life. Gives how many merges were done.
fn live(seed: u64, format: &'static str) -> u32 {
    let lab = Lab::new();
    let mut story = Story { seed, told: vec![format!("a {format} disk")] };
    let mut random = Random::new(seed);
    let mut disk = Disk::new(&lab, &mut random, format);
    let mut guest = Guest::new(lab.dir(), random.next());
    guest_io(&disk.path, format, &guest.fill(disk.size, 3));
    story.tell(format!("{} bytes, {}, over {:?}", disk.size, disk.options, disk.backing));
    let repo = Repo::init(lab.path("repo"));
    let block = random.pick(&["4K", "16K", "64K", "1M"]);
    let anchor =
        if format == "raw" { "none" } else { random.pick(&["none", "bitmap", "snapshot"]) };
    let (mut points, mut merges): (Vec<Kept>, u32) = (Vec::new(), 0);
    for number in 0..POINTS {
        let mut options = match number {
            0 => vec!["--kind", "full", "--block-size", block],
            _ => match random.below(6) {
                0 => vec!["--kind", "differential"],
                1 => vec!["--synthetic"],
                _ => vec!["--kind", "incremental"],
            },
        };
        options.extend(["--io", random.pick(&["auto", "threads"]), "--anchor", anchor]);
        let expected = lab.path(format!("expected{number}.raw"));
        oracle(args!["-f", format, disk.path.as_path()], &expected);
        let done = repo.backup(&disk.path, "disk", &options);
        story.tell(format!("backup {done}"));
        if options.contains(&"--synthetic") {
            assert_eq!((&done["kind"], done["parent"].is_null()), (&"full".into(), true), "{done}");
        }
        points.push((point_of(&done), expected));
        if number > 0 && random.below(2) == 0 {
            merges += u32::from(merge(&repo, &mut random, &mut story, &mut points));
        }
        for _ in 0..random.below(5) {
            let what = disk.change(&lab, &mut guest);
            story.tell(what);
        }
    }
    repo.verify();
    let ids: Vec<String> = points.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(repo.points("disk"), ids, "points, oldest first");
    for (id, expected) in &points {
        story.tell(format!("restore {id}"));
        repo.assert_restores_raw(&lab, &format!("disk@{id}"), expected);
    }
    repo.assert_no_leftovers();
    assert_eq!(repo.archives().len(), points.len(), "one archive for each point");
    merges
}

fn live_all(first_seed: u64, format: &'static str) {
    let merges: u32 = seeds(first_seed, LIVES).into_iter().map(|seed| live(seed, format)).sum();
    assert!(merges > 0, "no merge was possible");
}

#[test]
fn what_stays_of_a_qcow2_disk_is_what_it_was() {
    live_all(0x13_0000, "qcow2");
}

#[test]
fn what_stays_of_a_raw_disk_is_what_it_was() {
    live_all(0x13_1000, "raw");
}

/// An image, and its points with what it was at each.
fn nights(
    lab: &Lab,
    repo: &Repo,
    format: &str,
    options: &[&str],
    count: u64,
) -> (PathBuf, Vec<Kept>) {
    let image = lab.path("disk.img");
    let mut guest = Guest::new(lab.dir(), 3);
    match format {
        "raw" => create_raw(&image, 4 * MIB),
        _ => create(&image, "", 4 * MIB),
    }
    guest_io(&image, format, &["write -q -P 9 0 3M".to_owned()]);
    let mut points = Vec::new();
    for number in 0..count {
        if number > 0 {
            guest_io(&image, format, &guest.fill(MIB, 3));
        }
        let expected = lab.path(format!("night{number}.raw"));
        oracle(args!["-f", format, image.as_path()], &expected);
        points.push((point_of(&repo.backup(&image, "disk", options)), expected));
    }
    (image, points)
}

fn range(from: &Kept, into: &Kept) -> String {
    format!("disk@{}..{}", from.0, into.0)
}

/// The latest point was merged, and the next backup knows what has changed since, as if nothing had
/// happened.
#[test]
fn trackers_go_on_from_a_merged_point() {
    for anchor in ["bitmap", "snapshot"] {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo"));
        let (image, points) = nights(&lab, &repo, "qcow2", &["--anchor", anchor], 3);
        repo.run(args!["merge", range(&points[0], &points[2])]).ok();
        guest_io(&image, "qcow2", &["write -q -P 77 1M 64k".to_owned()]);
        let next = repo.backup(&image, "disk", &["--sample", "0"]);
        assert_eq!(next["tracker"], anchor, "{next}");
        assert_eq!(next["parent"], points[2].0.as_str());
        assert!(number(&next, "bytes_read") <= 256 << 10, "{next}");
        let now = lab.path("now.raw");
        oracle(args!["-f", "qcow2", image.as_path()], &now);
        repo.assert_restores_raw(&lab, "disk", &now);
        repo.assert_restores_raw(&lab, &format!("disk@{}", points[2].0), &points[2].1);
        repo.verify();
        // A new chain from what is stored: nothing but the change is read.
        guest_io(&image, "qcow2", &["write -q -P 78 2M 64k".to_owned()]);
        let full = repo.backup(&image, "disk", &["--synthetic", "--sample", "0"]);
        assert_eq!((&full["kind"], &full["tracker"]), (&"full".into(), &anchor.into()), "{full}");
        assert!(number(&full, "bytes_read") <= 256 << 10, "{full}");
        let next = repo.backup(&image, "disk", &[]);
        assert_eq!((&next["parent"], &next["kind"]), (&full["point"], &"incremental".into()));
        repo.verify();
        repo.assert_no_leftovers();
    }
}

/// Bare files of a merged chain do without a repository.
#[test]
fn merged_archives_replay() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let (_, points) = nights(&lab, &repo, "raw", &["--format", "raw"], 5);
    repo.run(args!["merge", range(&points[0], &points[1])]).ok();
    repo.run(args!["merge", range(&points[2], &points[3])]).ok();
    let files = repo.archives();
    let output = lab.path("replayed.raw");
    let mut arguments = args!["replay"];
    arguments.extend(files.iter().map(|file| repo.bare(file, &lab).into_os_string()));
    assert_eq!(arguments.len(), 4, "three archives");
    arguments.extend(args!["--output", output.as_path()]);
    run(qdelta(arguments)).ok();
    assert_same(&points[4].1, &output, "replay of merged archives");
}

/// While somebody reads points, nothing goes; the merge is done all the same, and the next one removes
/// what was replaced.
#[test]
fn readers_are_waited_for() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let (_, points) = nights(&lab, &repo, "raw", &["--format", "raw"], 4);
    let reader = repo.open();
    let hold = reader.hold(&"disk".parse().unwrap(), Wait::UNHEARD).unwrap();
    let done = repo.run(args!["merge", range(&points[1], &points[2]), "--json"]).ok().json();
    assert_eq!(done["waiting"], true, "{done}");
    for (id, expected) in &points {
        repo.assert_restores_raw(&lab, &format!("disk@{id}"), expected);
    }
    repo.verify();
    drop(hold);
    let done = repo.run(args!["merge", range(&points[0], &points[2]), "--json"]).ok().json();
    assert_eq!((&done["waiting"], done["absorbed"].as_array().unwrap().len()), (&false.into(), 1));
    assert_eq!(repo.points("disk"), [points[2].0.as_str(), &points[3].0]);
    repo.assert_no_leftovers();
    repo.verify();
}

/// Who moved an archive away as the error said, into a folder beside, heard the same error again: each folder of a guest that
/// holds an archive is a disk, and must be, as its manifests may all be lost.
#[test]
fn an_archive_that_no_manifest_names_is_moved_out_of_the_guests_folder() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let (_, points) = nights(&lab, &repo, "raw", &["--format", "raw"], 4);
    let last = &points[3].0;
    std::fs::remove_file(repo.path.join(format!("disk/points/{last}.json"))).unwrap();
    let merge = || repo.run(args!["merge", range(&points[0], &points[1])]);
    let stray = || {
        let files = repo.archives();
        let stray = files.into_iter().find(|path| path.to_string_lossy().contains(last.as_str()));
        repo.path.join(stray.unwrap())
    };
    let advice = format!(
        "move the archive out of the guest's folder, {}\n",
        repo.path.join("disk").display()
    );
    assert!(merge().fails_with(4).contains(&advice));
    let beside = repo.path.join("disk/away");
    std::fs::create_dir(&beside).unwrap();
    let moved = beside.join(stray().file_name().unwrap());
    std::fs::rename(stray(), &moved).unwrap();
    assert!(merge().fails_with(4).contains(&advice));
    std::fs::rename(&moved, lab.path("moved")).unwrap();
    merge().ok();
    for (id, expected) in &points[1..3] {
        repo.assert_restores_raw(&lab, &format!("disk@{id}"), expected);
    }
}

/// What other points need stays, and what is pinned.
#[test]
fn what_is_needed_or_pinned_stays() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let (image, points) = nights(&lab, &repo, "raw", &["--format", "raw"], 3);
    let branch = repo.backup(&image, "disk", &["--format", "raw", "--kind", "differential"]);
    let before = repo.tree();
    let refused = |range: String, text: &str| {
        for more in [&[] as &[&str], &["--dry-run"]] {
            let mut arguments = args!["merge", range.as_str()];
            arguments.extend(more.iter().map(Into::into));
            let outcome = repo.run(arguments).fails_with(2);
            assert!(outcome.contains(text), "{}", outcome);
        }
    };
    refused(range(&points[0], &points[2]), &format!("point {} can't go", points[0].0));
    let branch: Kept = (point_of(&branch), image);
    refused(range(&points[1], &branch), "does not build on");
    refused(range(&points[2], &points[1]), "does not build on");
    repo.run(args!["pin", format!("disk@{}", points[1].0)]).ok();
    refused(range(&points[1], &points[2]), "is pinned");
    assert_eq!(repo.tree(), before);
    repo.run(args!["unpin", format!("disk@{}", points[1].0)]).ok();
    let planned = repo.run(args!["merge", range(&points[1], &points[2]), "--dry-run", "--json"]);
    assert_eq!(planned.ok().json()["absorbed"], serde_json::json!([points[1].0]));
    assert_eq!(repo.tree(), before, "a dry run does nothing");
    repo.run(args!["merge", range(&points[1], &points[2])]).ok();
    repo.verify();
}

/// Damage in any archive of the chain is named, and nothing has changed; also where there is no room.
#[test]
fn damage_and_a_full_disk_change_nothing() {
    let lab = Lab::new();
    let mount = Mount::in_memory(lab.dir(), 9 * MIB);
    let repo = Repo::init(mount.dir.join("repo"));
    let image = lab.path("disk.raw");
    let mut points = Vec::new();
    for seed in 0..3 {
        let noise = Random::new(seed).noise(2 << 20);
        std::fs::write(&image, noise).unwrap();
        points.push((point_of(&repo.backup(&image, "disk", &["--format", "raw"])), lab.path("x")));
    }
    let before = repo.tree();
    let filler = mount.dir.join("filler");
    std::fs::write(&filler, vec![1; 2 << 20]).unwrap();
    let refused = repo.run(args!["merge", range(&points[0], &points[2])]).fails_with(8);
    assert!(refused.contains("the merged archives need"), "before anything is written: {refused}");
    assert_eq!(repo.tree(), before, "a failed merge leaves nothing");
    repo.verify();
    std::fs::remove_file(&filler).unwrap();
    for archive in repo.archives() {
        let path = repo.place_of(&archive);
        // Once the merge of a chain without one of its archives said no more than that it can't be opened.
        let away = mount.dir.join("away");
        std::fs::rename(&path, &away).unwrap();
        let refused = repo.run(args!["merge", range(&points[0], &points[2])]).fails_with(4);
        assert!(refused.contains(&format!("{} of point", path.display())), "{refused}");
        std::fs::rename(&away, &path).unwrap();
        let sound = std::fs::read(&path).unwrap();
        // In a frame of blocks that do not stand, nobody has to look.
        for at in [20, sound.len() / 2, sound.len() - 1000, sound.len() - 10] {
            let mut bytes = sound.clone();
            bytes[at] ^= 4;
            std::fs::write(&path, &bytes).unwrap();
            let stands = archive.to_string_lossy().contains(points[2].0.as_str());
            if stands || at != sound.len() / 2 {
                let outcome = repo.run(args!["merge", range(&points[0], &points[2])]).fails_with(4);
                assert!(outcome.contains(&*path.to_string_lossy()), "{}", outcome);
            }
            assert_eq!(repo.tree(), before, "a failed merge leaves nothing");
        }
        std::fs::write(&path, sound).unwrap();
    }
    repo.run(args!["merge", range(&points[0], &points[2])]).ok();
    repo.verify();
    repo.assert_restores_raw(&lab, "disk", &image);
}

/// A kill or a failure at each system call that writes.
#[test]
fn a_merge_survives_every_fault() {
    let lab = Lab::new();
    let kept = Repo::init(lab.path("kept"));
    let (_, points) = nights(&lab, &kept, "raw", &["--format", "raw"], 4);
    let repo = kept.copy_at(lab.path("repo")).without_ring();
    let range = range(&points[1], &points[2]);
    let arguments = repo.args(args!["merge", range.as_str(), "--io", "threads", "--threads", "1"]);
    copy_tree(&kept.path, &repo.path);
    let counts = count_calls(&lab, arguments.clone());
    let faults = [Fault::Kill, Fault::NoSpace];
    for injection in plan(&counts, &faults, 2 * sweep()) {
        println!("{injection}");
        copy_tree(&kept.path, &repo.path);
        run_with(&injection, arguments.clone()).sane();
        repo.verify();
        for (id, expected) in [&points[0], &points[2], &points[3]] {
            repo.assert_restores_raw(&lab, &format!("disk@{id}"), expected);
        }
        // Done, or to be done again.
        repo.run(args!["merge", range.as_str(), "--io", "threads"]).sane();
        assert_eq!(
            repo.points("disk"),
            [&points[0], &points[2], &points[3]].map(|it| it.0.clone())
        );
        repo.assert_no_leftovers();
        repo.verify();
    }
}

/// A night proves first and then removes: were a merged archive one that nobody ever proved, no point would be proved
/// in the morning.
#[test]
fn a_merged_archive_is_proved_as_what_it_was_made_of_was() {
    let lab = Lab::new();
    let image = lab.path("disk.raw");
    create_raw(&image, 4 * MIB);
    let repo = Repo::init(lab.path("repo"));
    let mut points = Vec::new();
    for byte in 1..=4 {
        guest_io(&image, "raw", &[format!("write -q -P {byte} {}M 64k", byte % 4)]);
        points.push(point_of(&repo.backup(&image, "disk", &[])));
    }
    let proved = || -> Vec<serde_json::Value> {
        let listed = repo.run(args!["points", "--json"]).ok().json();
        let listed = listed["disks"][0]["points"].as_array().unwrap().clone();
        listed.iter().map(|point| point["proved"].clone()).collect()
    };
    let merge = |from: usize, into: usize| {
        let range = format!("disk@{}..{}", points[from], points[into]);
        repo.run(args!["merge", range.as_str()]).ok();
    };
    // What was never proved is not proved by being merged.
    merge(0, 1);
    assert_eq!(proved(), [(); 3].map(|()| serde_json::Value::Null));
    repo.run(args!["verify"]).ok();
    let before = proved();
    assert!(before.iter().all(serde_json::Value::is_string), "{before:?}");
    merge(1, 2);
    let after = proved();
    assert!(after.iter().all(|time| before.contains(time)), "{before:?}: {after:?}");
    // It is the file that was made then: another in its place was never proved.
    let archives = repo.archives().into_iter().map(|name| repo.stored_as(name));
    let merged = archives.max_by_key(|archive| archive.bytes().len()).unwrap();
    let bytes = merged.bytes();
    merged.patch(bytes.len() as u64 / 2, &[bytes[bytes.len() / 2] ^ 1]);
    assert!(proved().iter().all(serde_json::Value::is_null), "{:?}", proved());
}
