//! Room in the repository: what an admin hears before a backup that will probably not fit.

use serde_json::Value;

use crate::harness::content::Random;
use crate::harness::files::Mount;
use crate::harness::repo::Repo;
use crate::harness::{Lab, args};

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
