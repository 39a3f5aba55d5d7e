//! Damaged archives: every flipped bit, every cut, every mix-up is found and named; nothing wrong
//! is ever restored; what is undamaged still comes out, also from a damaged archive.

use std::path::PathBuf;

use serde_json::Value;

use crate::harness::content::Random;
use crate::harness::files::assert_same;
use crate::harness::images::{create, create_raw, guest_io, oracle};
use crate::harness::repo::{Repo, point_of};
use crate::harness::stored::Stored;
use crate::harness::{Lab, args, qdelta, run, sweep};

const KIB: u64 = 1 << 10;

/// A chain of a full and two increments of a small disk, and what it was each time.
struct Chain {
    repo: Repo,
    points: Vec<(String, PathBuf)>,
}

impl Chain {
    /// A disk of `size` bytes, in blocks of 4 KiB; each point writes `written` bytes of noise.
    fn new(lab: &Lab, name: &str, size: u64, written: u64) -> Self {
        std::fs::create_dir(lab.path(name)).unwrap();
        let image = lab.path(format!("{name}/disk.qcow2"));
        create(&image, "cluster_size=4k", size);
        let repo = Repo::init(lab.path(format!("{name}/repo"))).without_ring();
        let mut random = Random::new(name.bytes().map(u64::from).sum());
        let mut points = Vec::new();
        for (number, kind) in ["full", "incremental", "incremental"].into_iter().enumerate() {
            let noise = lab.path(format!("{name}/noise{number}"));
            std::fs::write(&noise, random.noise(written as usize)).unwrap();
            let offset = number as u64 * 8 * KIB;
            guest_io(
                &image,
                "qcow2",
                &[format!("write -q -s {} {offset} {written}", noise.display())],
            );
            let mut options = vec!["--kind", kind];
            if kind == "full" {
                options.extend(["--block-size", "4K"]);
            }
            let done = repo.backup(&image, "disk", &options);
            let expected = lab.path(format!("{name}/expected{number}.raw"));
            oracle(args!["-f", "qcow2", image.as_path()], &expected);
            points.push((point_of(&done), expected));
        }
        Self { repo, points }
    }

    /// The archive of the point with this number.
    fn archive(&self, number: usize) -> Stored {
        self.repo.stored_as(self.archive_name(number))
    }

    fn archive_name(&self, number: usize) -> PathBuf {
        let id = &self.points[number].0;
        let is_it =
            |file: &PathBuf| file.file_name().unwrap().to_string_lossy().starts_with(id.as_str());
        let found = self.repo.archives().into_iter().find(is_it);
        found.unwrap_or_else(|| panic!("no archive of {id}"))
    }

    /// The same archive, alone in a file.
    fn bare(&self, lab: &Lab, number: usize) -> PathBuf {
        self.repo.bare(&self.archive_name(number), lab)
    }

    fn selector(&self, number: usize) -> String {
        format!("disk@{}", self.points[number].0)
    }

    /// Point `number` restores to what it was.
    #[track_caller]
    fn assert_restores(&self, lab: &Lab, number: usize) {
        self.repo.assert_restores_raw(lab, &self.selector(number), &self.points[number].1);
    }

    /// `verify` fails and names the archive of `number`.
    #[track_caller]
    fn assert_verify_names(&self, number: usize, how: &str) {
        let name = self.archive(number).name().to_owned();
        let outcome = self.repo.run(args!["verify", "--io", "threads"]).sane();
        assert_eq!(outcome.code(), Some(4), "{how}:\n{}", outcome.report());
        let said = outcome.text();
        assert!(said.contains(&name), "{how}: verify does not name {name}:\n{said}");
    }

    /// The restore of `number` fails and leaves nothing behind.
    #[track_caller]
    fn assert_restore_fails(&self, lab: &Lab, number: usize, how: &str) {
        let output = lab.path("damaged.raw");
        self.repo.restore(&self.selector(number), &output, &[]).fails_with(4);
        assert!(!output.exists(), "{how}: a failed restore left its output");
    }

    #[track_caller]
    fn assert_found_damaged(&self, lab: &Lab, number: usize, how: &str) {
        self.assert_verify_names(number, how);
        self.assert_restore_fails(lab, number, how);
    }
}

/// The positions of a file of `len` bytes to try: all of them if they are few, or `QDELTA_SWEEP`
/// asks for more; else about `few`, on no regular grid. In a store each takes a dozen requests: there an eighth.
fn positions(repo: &Repo, len: u64, few: u64) -> Vec<u64> {
    let few = if repo.is_in_a_store() { few / 8 } else { few };
    let step = (len / (few * sweep())).max(1);
    let mut random = Random::new(len);
    (0..len).step_by(step as usize).map(|at| (at + random.below(step)).min(len - 1)).collect()
}

/// Flips one bit at every byte of `file`, and back.
fn each_flip(file: &Stored, positions: &[u64], mut check: impl FnMut(&str)) {
    let whole = file.bytes();
    for &at in positions {
        let old = whole[at as usize];
        let bit = 1 << (at % 8);
        file.patch(at, &[old ^ bit]);
        check(&format!("bit {bit:#04x} of byte {at} of {} flipped", whole.len()));
        file.patch(at, &[old]);
    }
    assert_eq!(file.bytes(), whole);
}

/// Flips each byte of archive `number`: `verify` names it each time. A restore is tried at every
/// eighth byte, that of an earlier point now and then.
fn every_flip_is_found(name: &str, number: usize) {
    let lab = Lab::new();
    let chain = Chain::new(&lab, name, 32 * KIB, 100);
    let archive = chain.archive(number);
    let len = archive.bytes().len() as u64;
    let mut turn = 0;
    each_flip(&archive, &positions(&chain.repo, len, 4000), |how| {
        chain.assert_verify_names(number, how);
        if turn % 8 == 0 {
            chain.assert_restore_fails(&lab, number, how);
        }
        if turn % 64 == 0 && number > 0 {
            chain.assert_restores(&lab, number - 1);
        }
        turn += 1;
    });
    chain.repo.verify();
}

#[test]
fn every_flipped_byte_of_a_full_is_found() {
    every_flip_is_found("full", 0);
}

#[test]
fn every_flipped_byte_of_an_increment_is_found() {
    every_flip_is_found("increment", 1);
}

/// Whatever is damaged, the next backup must not build on it without a word, and must not die of
/// it either: it says what is wrong, or makes a point that restores.
#[test]
fn a_backup_over_a_damaged_parent_is_right_or_refused() {
    let lab = Lab::new();
    let chain = Chain::new(&lab, "parent", 32 * KIB, 100);
    let image = lab.path("parent/disk.qcow2");
    guest_io(&image, "qcow2", &["write -q -P 77 3000 2000".to_owned()]);
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "qcow2", image.as_path()], &expected);
    let backup = lab.path("copy");
    chain.repo.copy_to(&backup);
    let archive = chain.archive(2);
    let len = archive.bytes().len() as u64;
    let mut went_on = 0;
    each_flip(&archive, &positions(&chain.repo, len, 120), |how| {
        let outcome = chain.repo.backup_run(&image, "disk", &[]).sane();
        match outcome.code() {
            Some(0) => {
                went_on += 1;
                // The new point may rest on the damaged one; then its restore says so.
                let output = lab.path("next.raw");
                let id = point_of(&outcome.json());
                let restored = chain.repo.restore(&format!("disk@{id}"), &output, &[]).sane();
                match restored.code() {
                    Some(0) => assert_same(&expected, &output, how),
                    code => assert_eq!(code, Some(4), "{how}:\n{}", restored.report()),
                }
                let _ = std::fs::remove_file(&output);
                let damaged = archive.bytes();
                chain.repo.put_back(&backup);
                archive.write(&damaged);
            }
            code => assert_eq!(code, Some(4), "{how}:\n{}", outcome.report()),
        }
    });
    println!("{went_on} backups went on");
}

#[test]
fn an_archive_cut_anywhere_is_found() {
    let lab = Lab::new();
    let chain = Chain::new(&lab, "cut", 32 * KIB, 100);
    let archive = chain.archive(1);
    let whole = archive.bytes();
    for at in positions(&chain.repo, whole.len() as u64, 150) {
        archive.write(&whole[..at as usize]);
        chain.assert_found_damaged(&lab, 1, &format!("cut at byte {at} of {}", whole.len()));
    }
    for extra in [&b"\0"[..], &[0; 48], &whole] {
        archive.write(&[&whole, extra].concat());
        chain.assert_found_damaged(&lab, 1, &format!("{} bytes more", extra.len()));
    }
    archive.write(&whole);
    chain.repo.verify();
    chain.assert_restores(&lab, 2);
}

#[test]
fn swapped_archives_are_found() {
    let lab = Lab::new();
    let chain = Chain::new(&lab, "swap", 32 * KIB, 100);
    let [one, two] = [chain.archive(1), chain.archive(2)];
    let [first, second] = [&one, &two].map(|archive| archive.bytes());
    one.write(&second);
    two.write(&first);
    chain.assert_found_damaged(&lab, 1, "swapped with its child");
    chain.assert_restores(&lab, 0);
}

#[test]
fn an_archive_of_another_chain_is_found() {
    let lab = Lab::new();
    let chain = Chain::new(&lab, "mine", 32 * KIB, 100);
    let foreign = Chain::new(&lab, "foreign", 32 * KIB, 100);
    let kept = chain.archive(1).bytes();
    chain.archive(1).write(&foreign.archive(1).bytes());
    chain.assert_found_damaged(&lab, 1, "taken from another chain");
    chain.assert_restores(&lab, 0);
    chain.archive(1).write(&kept);

    chain.archive(0).write(&foreign.archive(0).bytes());
    chain.assert_found_damaged(&lab, 0, "the full of another chain");
}

/// Bare archives are told apart, too: one left out, in the wrong order, of another chain.
#[test]
fn replay_takes_only_a_chain() {
    let lab = Lab::new();
    let chain = Chain::new(&lab, "mine", 32 * KIB, 100);
    let foreign = Chain::new(&lab, "foreign", 32 * KIB, 100);
    let output = lab.path("out.raw");
    let [full, one, two] = [0, 1, 2].map(|number| chain.bare(&lab, number));
    let wrong = [
        vec![&full, &two],
        vec![&full, &two, &one],
        vec![&one, &two],
        vec![&one],
        vec![&full, &full],
    ];
    let foreign = foreign.bare(&lab, 1);
    for list in wrong.into_iter().chain([vec![&full, &foreign]]) {
        let mut arguments = args!["replay", "--output", output.as_path()];
        arguments.extend(list.iter().map(|path| path.as_os_str().to_owned()));
        let outcome = run(qdelta(arguments)).sane();
        assert!(matches!(outcome.code(), Some(2 | 4)), "{}", outcome.report());
        assert!(!outcome.stderr.is_empty() && !output.exists(), "{}", outcome.report());
    }
    let arguments =
        args!["replay", full.as_path(), one.as_path(), two.as_path(), "--output", output.as_path()];
    run(qdelta(arguments)).ok();
    assert_same(&chain.points[2].1, &output, "the whole chain");
}

/// What no archive can be: nothing, zeros, noise, an image.
#[test]
fn what_is_no_archive_is_said_to_be_none() {
    let lab = Lab::new();
    let file = lab.path("none.qdelta");
    let noise = Random::new(1).noise(5000);
    let qcow2 = lab.path("a.qcow2");
    create(&qcow2, "", 1 << 20);
    let qcow2 = std::fs::read(qcow2).unwrap();
    for bytes in [
        &[][..],
        &[0; 4096],
        &noise,
        &qcow2,
        b"qdelta\x1a\n",
        b"qdelta\x1a\n\x01\0\0\0\xff\xff\xff\xff",
    ] {
        std::fs::write(&file, bytes).unwrap();
        run(qdelta(args!["replay", file.as_path(), "--output", lab.path("out")])).fails_with(4);
        assert!(!lab.path("out").exists());
    }
}

/// A random walk through damage: several bytes, zeroed stretches, repeated stretches. Never wrong
/// data, never a crash.
#[test]
fn heavy_damage_never_gives_wrong_data() {
    let lab = Lab::new();
    let chain = Chain::new(&lab, "heavy", 256 * KIB, 9000);
    let archive = chain.archive(1);
    let whole = archive.bytes();
    let mut random = Random::new(7);
    let output = lab.path("out.raw");
    for round in 0..60 * sweep() {
        let mut bytes = whole.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            let end = (at + random.below(200) as usize + 1).min(bytes.len());
            match random.below(4) {
                0 => bytes[at..end].fill(0),
                1 => bytes[at..end].copy_from_slice(&random.noise(end - at)),
                2 => bytes.copy_within(at..end, 0),
                _ => drop(bytes.drain(at..end)),
            }
        }
        archive.write(&bytes);
        for options in [&[][..], &["--salvage"]] {
            let outcome = chain.repo.restore(&chain.selector(2), &output, options).sane();
            match outcome.code() {
                Some(0) => assert_same(&chain.points[2].1, &output, &format!("round {round}")),
                Some(4 | 9) => {}
                _ => panic!("round {round}:\n{}", outcome.report()),
            }
            let _ = std::fs::remove_file(&output);
        }
    }
}

/// The guest ranges that a salvage says are lost, from wherever its JSON holds them.
fn lost_ranges(value: &Value) -> Vec<(u64, u64)> {
    match value {
        Value::Object(map) => match (map.get("start"), map.get("length")) {
            (Some(start), Some(len)) => vec![(start.as_u64().unwrap(), len.as_u64().unwrap())],
            _ => map.values().flat_map(lost_ranges).collect(),
        },
        Value::Array(list) => list.iter().flat_map(lost_ranges).collect(),
        _ => Vec::new(),
    }
}

/// A disk whose archive has one damaged frame: everything else comes out, and the list of what is
/// lost is exact enough to trust the rest.
#[test]
fn salvage_gives_everything_else() {
    let lab = Lab::new();
    let image = lab.path("disk.raw");
    let size: u64 = 4 << 20;
    create_raw(&image, size);
    let content = Random::new(3).noise(size as usize);
    std::fs::write(&image, &content).unwrap();
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    let archive = repo.stored_as(&repo.archives()[0]);
    let whole = archive.bytes();
    let output = lab.path("out.raw");

    // In the middle of a frame; in the index; cut in the middle; the header; all of the footer.
    let middle = whole.len() / 2;
    let damages: [(&str, Vec<u8>); 5] = [
        ("a frame", with_bytes(&whole, middle, &[0xaa; 16])),
        ("the index", with_bytes(&whole, whole.len() - 200, &[0xaa; 16])),
        ("the second half", whole[..middle].to_vec()),
        ("the header", with_bytes(&whole, 20, &[0xaa; 16])),
        ("the footer", whole[..whole.len() - 48].to_vec()),
    ];
    for (what, bytes) in damages {
        archive.write(&bytes);
        let outcome = repo.restore("disk", &output, &["--salvage", "--json"]).sane();
        // Without its index an archive may still have all its frames.
        let all_there = ["the index", "the header", "the footer"].contains(&what);
        let fits = outcome.code() == Some(9) || outcome.code() == Some(0) && all_there;
        assert!(fits, "{what}:\n{}", outcome.report());
        let lost = lost_ranges(&outcome.json());
        let restored = std::fs::read(&output).unwrap();
        assert_eq!(restored.len() as u64, size, "{what}");
        for (offset, (old, new)) in content.chunks(4096).zip(restored.chunks(4096)).enumerate() {
            let offset = offset as u64 * 4096;
            let named = lost.iter().any(|(start, len)| (*start..start + len).contains(&offset));
            assert!(named || old == new, "{what}: wrong bytes at {offset}, lost is {lost:?}");
        }
        // A salvage kept to itself what it had found: the list of points called the archive sound.
        let said = repo.run(args!["points"]).stderr;
        let name = archive.name();
        assert!(said.contains(name), "{what}: {said}");
        let total: u64 = lost.iter().map(|(_, len)| len).sum();
        // Of an encrypted archive a whole piece of 64 KiB is lost where a bit is.
        let piece = if repo.key.is_some() { 128 * KIB } else { 0 };
        let most = piece
            + match what {
                "a frame" => 512 * KIB,
                "the second half" => size / 2 + 512 * KIB,
                _ => 0,
            };
        assert!(total <= most, "{what}: {total} bytes lost: {lost:?}");
        std::fs::remove_file(&output).unwrap();
    }

    // Undamaged, a salvage is a restore.
    archive.write(&whole);
    repo.restore("disk", &output, &["--salvage"]).ok();
    assert_same(&image, &output, "salvage of a sound archive");
}

fn with_bytes(whole: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut copy = whole.to_vec();
    copy[at..at + bytes.len()].copy_from_slice(bytes);
    copy
}
