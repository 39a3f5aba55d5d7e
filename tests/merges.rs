//! Merging through the program: points become part of later ones, and all that stay are what they were.

use std::path::PathBuf;

use crate::harness::content::{Guest, Random};
use crate::harness::disk::Disk;
use crate::harness::files::tree;
use crate::harness::images::{guest_io, oracle};
use crate::harness::repo::{Repo, point_of};
use crate::harness::story::Story;
use crate::harness::{Lab, args, seeds};

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
    let archives =
        tree(&repo.path).into_iter().filter(|it| it.extension().is_some_and(|e| e == "qdelta"));
    assert_eq!(archives.count(), points.len(), "one archive for each point");
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
