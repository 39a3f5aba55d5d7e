//! The whole life of a repository, as in a folder.

use std::io::Write;

use qdelta::vault::repository::storage::{Name, Publish, Storage};

use crate::harness::content::{Guest, Random};
use crate::harness::files::assert_same;
use crate::harness::images::{create, filled, guest_io, oracle, qemu_img};
use crate::harness::repo::{Repo, point_of};
use crate::harness::store::{address, endpoint, fresh_place, new_repo, storage};
use crate::harness::{Lab, args, qdelta, run};

const MIB: u64 = 1 << 20;

#[test]
fn points_are_made_restored_verified_merged_and_pruned() {
    live(&new_repo());
}

#[test]
fn an_encrypted_repository_lives_in_a_store_as_in_a_folder() {
    let repo = Repo::encrypted(address(endpoint(), &fresh_place()));
    live(&repo);
    // An object that somebody has copied to another name is named, as a file is.
    let store = storage(&repo.path);
    let names = repo.files();
    let archive = names.iter().find(|name| name.components().count() == 3).unwrap();
    let folder = archive.parent().unwrap().to_str().unwrap();
    let name = folder.split('/').fold(Name::top(), |name, part| name.join(part));
    let mut staged = store.stage(&name.join("another")).unwrap();
    staged.write_all(b"bytes").unwrap();
    staged.seal().unwrap();
    staged.publish(Publish::New).unwrap();
    let outcome = repo.run(args!["verify"]);
    assert_eq!(outcome.code(), Some(4), "{}", outcome.report());
    assert!(outcome.text().contains("STRAY"), "{}", outcome.report());
}

fn live(repo: &Repo) {
    let lab = Lab::new();
    let image = lab.path("disk.qcow2");
    create(&image, "", 24 * MIB);
    let mut guest = Guest::new(lab.dir(), 5);
    let mut points = Vec::new();
    for number in 0..5 {
        guest_io(&image, "qcow2", &guest.fill(24 * MIB, 6));
        let expected = lab.path(format!("{number}.raw"));
        oracle(args!["-f", "qcow2", image.as_path()], &expected);
        points.push((point_of(&repo.backup(&image, "vm/disk", &[])), expected));
    }
    let ids: Vec<String> = points.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(repo.points("vm/disk"), ids);
    for (id, expected) in &points {
        repo.assert_restores(&lab, &format!("vm/disk@{id}"), expected);
    }
    repo.verify();
    if repo.key.is_none() {
        repo.assert_no_leftovers();
    }
    let merged = format!("vm/disk@{}..{}", ids[1], ids[3]);
    repo.run(args!["merge", merged]).ok();
    repo.run(args!["pin", format!("vm@{}", ids[0])]).ok();
    repo.run(args!["prune", "--keep-last", "1", "--grace", "0h"]).ok();
    assert_eq!(repo.points("vm/disk"), [ids[0].clone(), ids[4].clone()]);
    for number in [0, 4] {
        let (id, expected) = &points[number];
        repo.assert_restores(&lab, &format!("vm/disk@{id}"), expected);
    }
    repo.verify();
    if repo.key.is_none() {
        repo.assert_no_leftovers();
    }
    let again = run(qdelta(args!["init", repo.path.as_path()]));
    assert!(again.fails_with(7).contains("is a repository already"));
}

/// An archive that is longer than a part goes in several, and comes back in ranges.
#[test]
fn an_archive_of_many_parts_comes_back_whole() {
    let lab = Lab::new();
    let mut repo = new_repo();
    repo.path = format!("{}&part-size=5MiB", repo.path.display()).into();
    let raw = lab.path("disk.raw");
    let mut random = Random::new(3);
    let bytes: Vec<u8> = (0..3 << 20).flat_map(|_| random.next().to_le_bytes()).collect();
    std::fs::write(&raw, bytes).unwrap();
    let image = lab.path("disk.qcow2");
    qemu_img(args!["convert", "-O", "qcow2", raw.as_path(), image.as_path()]).ok();
    repo.backup(&image, "disk", &[]);
    let output = lab.path("restored.raw");
    repo.restore("disk", &output, &[]).ok();
    assert_same(&raw, &output, "an archive of five parts");
    repo.verify();
    repo.assert_no_leftovers();
}

/// What is no repository is told, as for a folder.
#[test]
fn where_no_repository_is_nothing_is_made() {
    let address = address(endpoint(), &fresh_place());
    let said = run(qdelta(args!["--repo", address.as_path(), "points"])).fails_with(6);
    assert!(said.contains("not a repository") && said.contains("qdelta init"), "{said}");
    let said = run(qdelta(args!["--repo", "s3://none-such/a?patience=1s", "points"]));
    assert!(!said.status.success());
    let mut other = storage(&address).stage(&Name::top().join("other")).unwrap();
    other.write_all(b"something else").unwrap();
    other.seal().unwrap();
    other.publish(Publish::New).unwrap();
    let said = run(qdelta(args!["init", address.as_path()])).fails_with(7);
    assert!(said.contains("not empty"), "{said}");
}

/// `prune --until-free` did in a store what plain `prune` does, and said nothing of it.
#[test]
fn room_that_no_store_tells_of_is_not_waited_for() {
    let lab = Lab::new();
    let repo = new_repo();
    let image = filled(&lab, "disk.qcow2", "", 1 << 20, 1);
    repo.backup(&image, "vm/disk", &[]);
    for more in [&[][..], &["--dry-run"]] {
        let mut words = args!["prune", "--keep-last", "1", "--until-free", "1T"];
        words.extend(more.iter().map(Into::into));
        let said = repo.run(words).fails_with(2);
        assert!(said.contains("how much is free") && said.contains("merge_share"), "{said}");
    }
}
