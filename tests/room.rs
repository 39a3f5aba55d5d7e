//! Room in the repository: what an admin hears before a backup that will probably not fit.

use serde_json::Value;

use crate::harness::content::Random;
use crate::harness::files::Mount;
use crate::harness::repo::Repo;
use crate::harness::run::faketime;
use crate::harness::{Lab, args, qdelta, run};

const MIB: u64 = 1 << 20;

fn is_warned(report: &Value) -> bool {
    report["warnings"].as_array().unwrap().iter().any(|warning| warning["code"] == "little-room")
}

/// A full read for hours and failed at its end, and nobody had said that the data is more than the room.
#[test]
fn a_full_that_may_not_fit_is_told_of_before_it_is_read() {
    let lab = Lab::new();
    let mount = Mount::in_memory(lab.dir(), 6 * MIB);
    let repo = Repo::init(mount.dir.join("repo"));
    let image = lab.path("disk.raw");
    std::fs::write(&image, Random::new(1).noise(8 << 20)).unwrap();
    let outcome = repo.backup_run(&image, "disk", &["--format", "raw"]).fails_with(8);
    assert!(outcome.contains("of data may have to be stored"), "{outcome}");

    // Eight times the same MiB after another: nobody knows that before, and afterwards everybody does.
    let image = lab.path("dull.raw");
    std::fs::write(&image, vec![7; 8 << 20]).unwrap();
    assert!(is_warned(&repo.backup(&image, "dull", &["--format", "raw"])));
    assert!(!is_warned(&repo.backup(&image, "dull", &["--kind", "full"])));
    // A night in which little changes is no matter of how large the disk is.
    assert!(!is_warned(&repo.backup(&image, "dull", &[])));
}

/// The room was that of the filesystem around a repository which is a mount point, if that had less.
#[test]
fn a_repository_that_is_a_mount_point_has_its_own_room() {
    let lab = Lab::new();
    let outer = Mount::in_memory(lab.dir(), MIB);
    let inner = Mount::in_memory(&outer.dir, 64 * MIB);
    let repo = Repo::at(inner.dir.clone());
    repo.run(args!["init"]).ok();
    let image = lab.path("disk.raw");
    std::fs::write(&image, Random::new(1).noise(8 << 20)).unwrap();
    assert!(!is_warned(&repo.backup(&image, "disk", &["--format", "raw"])));
    let space = repo.run(args!["space", "--json"]).ok().json();
    assert!(space["bytes_free"].as_u64().unwrap() > 32 * MIB, "{space}");
}

/// With rules that keep two points of a disk that is another each night, the room was to be full in four days, every third
/// night, for ever. Nothing grew.
#[test]
fn what_comes_and_goes_is_no_growth() {
    let lab = Lab::new();
    let mount = Mount::in_memory(lab.dir(), 14 * MIB);
    let repo = mount.dir.join("repo");
    let image = lab.path("disk.raw");
    let at = |(day, hour): (usize, u8), words: Vec<std::ffi::OsString>| {
        let mut command = qdelta(words);
        command.env("STATE_DIRECTORY", lab.path("state"));
        faketime(
            &mut command,
            &format!("@2026-{:02}-{:02} {hour:02}:30:00", 1 + day / 28, 1 + day % 28),
        );
        run(command).sane().ok()
    };
    at((0, 0), args!["init", repo.as_path()]);
    let night = |day: usize, size: u64, prunes: bool| {
        std::fs::write(&image, Random::new(day as u64).noise(size as usize)).unwrap();
        let disk = image.as_path();
        at(
            (day, 1),
            args!["backup", disk, "--disk", "vm/a", "--kind", "full", "--repo", repo.as_path()],
        );
        if prunes {
            let rules =
                args!["prune", "--keep-last", "2", "--grace", "0", "--repo", repo.as_path()];
            at((day, 2), rules);
        }
        at((day, 3), args!["space", "--json", "--repo", repo.as_path()]).json()["growth"].clone()
    };
    for day in 0..14 {
        let growth = night(day, 2 * MIB, true);
        // Until something goes, all that comes is growth; from the third night on there are two of a kind.
        if day >= 5 {
            assert_eq!(
                (&growth["soon"], &growth["full_at"]),
                (&false.into(), &Value::Null),
                "{growth}"
            );
        }
    }
}
