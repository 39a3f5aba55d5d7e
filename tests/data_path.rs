//! What the data path promises: the same archive however many threads and whatever reads, a word
//! and no more where there is no io_uring, and memory that does not follow the disk's tables.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use qdelta::disk::io::FileStore;
use qdelta::formats::archive::BlockIndex;
use qdelta::formats::qcow2::{ClusterSize, Header, HostOffset, L1Entry, L2Format, Mapping, Table};
use qdelta::vault::archive::Reader;

use crate::harness::faults::traced;
use crate::harness::files::assert_same;
use crate::harness::images::{filled, guest_io, oracle};
use crate::harness::repo::Repo;
use crate::harness::{Lab, args, run, tool};

const MIB: u64 = 1 << 20;

/// Everything in an archive but its ids and its time: frames with their places, zeros, digests.
fn content(archive: &Path) -> Vec<u8> {
    let file = std::fs::File::open(archive).unwrap();
    let archive = Reader::open(Arc::new(FileStore::new(file, archive))).unwrap();
    let mut all = Vec::new();
    let mut buffer = Vec::new();
    for position in 0..archive.frame_count() {
        let entry = archive.frame(position).unwrap();
        let view = archive
            .read_frame(&entry, archive.stored_mask(entry.first_block).unwrap(), &mut buffer)
            .unwrap();
        let head = (entry.first_block.0, entry.payload_len, view.header.mask, view.header.codec);
        all.extend(format!("{head:?} {} ", entry.offset - archive.frame_area().start).bytes());
        all.extend(view.payload);
    }
    let geometry = archive.geometry();
    for block in 0..geometry.block_count() as u32 {
        if archive.zero().contains(block).unwrap() {
            all.extend(format!("zero {:?} ", BlockIndex(block)).bytes());
        }
    }
    for rank in 0..archive.stored().len() {
        all.extend(archive.block_digest(rank).unwrap().0);
    }
    for rank in 0..archive.groups().len() {
        all.extend(archive.group_digest(rank).unwrap().0);
    }
    all.extend(archive.root().0);
    all
}

#[test]
fn the_archive_is_the_same_however_it_was_made() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", 64 * MIB, 5);
    let ways: [&[&str]; 5] = [
        &["--threads", "1", "--io", "threads", "--direct", "off"],
        &["--threads", "2", "--io", "threads", "--direct", "on"],
        &["--threads", "3", "--io", "uring", "--direct", "off"],
        &["--threads", "7", "--io", "uring", "--direct", "on"],
        &["--threads", "16"],
    ];
    let repos: Vec<Repo> =
        (0..ways.len()).map(|way| Repo::init(lab.path(format!("repo{way}")))).collect();
    for round in 0..2 {
        let mut first = None;
        for (repo, way) in repos.iter().zip(ways) {
            let report = repo.backup(&image, "disk", way);
            assert!(round > 0 || report["bytes_changed"].as_u64().unwrap() > MIB, "{report}");
            let archive = repo.archives().pop().unwrap();
            let found = content(&repo.bare(&archive, &lab));
            let expected = first.get_or_insert_with(|| found.clone());
            assert!(*expected == found, "{way:?} made another archive in round {round}");
        }
        let commands = ["write -q -P 77 1M 300k", "discard -q 4M 2M", "write -q -z 9M 64k"];
        guest_io(&image, "qcow2", &commands.map(str::to_owned));
    }
}

#[test]
fn a_restore_writes_the_same_past_the_page_cache() {
    let lab = Lab::new();
    // An end that is aligned to nothing: its last bytes can't go past the cache.
    let image = lab.path("disk.raw");
    let bytes: Vec<u8> = (0..5 * MIB + 12_345).map(|at| (at / 4000 % 251) as u8).collect();
    std::fs::write(&image, bytes).unwrap();
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &["--format", "raw"]);
    for direct in ["on", "off", "auto"] {
        for io in ["uring", "threads"] {
            let output = lab.path(format!("{direct}-{io}.raw"));
            repo.restore("disk", &output, &["--direct", direct, "--io", io]).ok();
            assert_same(&image, &output, direct);
            let output = lab.path(format!("{direct}-{io}.qcow2"));
            repo.restore("disk", &output, &["--direct", direct, "--io", io]).ok();
            let expected = lab.path("expected");
            oracle(args!["-f", "qcow2", output.as_path()], &expected);
            assert!(std::fs::read(&expected).unwrap().starts_with(&std::fs::read(&image).unwrap()));
        }
    }
}

/// The program on a kernel that refuses a call of io_uring's with this error.
fn refused(call: &str, error: &str, arguments: Vec<OsString>) -> crate::harness::Outcome {
    let inject = format!("inject={call}:error={error}");
    let trace = format!("trace={call}");
    run(traced(args!["-e", trace, "-e", inject, "-o", "/dev/null"], arguments))
}

/// It is no fault, and a user who may lock little memory can't mend it: said at every command it hid
/// the warnings that matter. Whoever asks for more is told once, and the result has it.
#[test]
fn without_io_uring_it_says_so_once_to_those_who_ask_and_does_its_work() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", 16 * MIB, 3);
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "qcow2", image.as_path()], &expected);
    let repo = Repo::init(lab.path("repo"));
    let once = |outcome: &crate::harness::Outcome, what: &str| {
        let said = outcome.stderr.lines().filter(|line| line.contains(what)).count();
        assert_eq!(said, 1, "{}", outcome.report());
    };
    let told = |outcome: &crate::harness::Outcome| {
        assert_eq!(outcome.json()["warnings"][0]["code"], "slow-io", "{}", outcome.report());
    };
    // What a seccomp profile, a kernel without it, and a limit on locked memory answer.
    for (number, (call, error, io, what)) in [
        ("io_uring_setup", "EPERM", "threads", "threads in place of io_uring"),
        ("io_uring_setup", "ENOSYS", "threads", "threads in place of io_uring"),
        ("io_uring_register", "ENOMEM", "uring", "without registered buffers"),
    ]
    .into_iter()
    .enumerate()
    {
        let backup = args!["backup", image.as_path(), "--disk", "disk", "--json"];
        let outcome = refused(call, error, repo.args(backup)).ok();
        assert_eq!(outcome.json()["io"], io);
        told(&outcome);
        assert_eq!(outcome.stderr, "");
        let output = lab.path(format!("restored{number}.raw"));
        let restore = args!["restore", "disk", output.as_path(), "--json", "-v"];
        let outcome = refused(call, error, repo.args(restore)).ok();
        assert_eq!(outcome.json()["io"], io);
        told(&outcome);
        once(&outcome, what);
        assert_same(&expected, &output, "restored without io_uring");
        // By now there are several archives, each of which is read through a queue of its own.
        repo.backup(&image, "disk", &[]);
        once(&refused(call, error, repo.args(args!["verify", "-v"])).ok(), what);
    }
    let insist = args!["backup", image.as_path(), "--disk", "disk", "--io", "uring"];
    // Every archive was called damaged by a verification that could not begin.
    for words in [insist, args!["verify", "--io", "uring"]] {
        let said = refused("io_uring_setup", "EPERM", repo.args(words)).fails_with(2);
        assert!(said.contains("io_uring is not to be had"), "{said}");
    }
    assert_eq!(repo.run(args!["points"]).ok().stderr, "");
}

/// An image of `tables` × 512 MiB, every one of whose clusters has an L2 entry that is unlike its
/// neighbours': zero clusters and unallocated ones take turns. The tables are few, and each is
/// named by many L1 entries: what is walked is as long as if each had its own.
fn image_of_tables(path: &Path, tables: u64) {
    let cluster = ClusterSize::from_bits(16).unwrap();
    let at = |number: u64| HostOffset(number << 16);
    let l1_clusters = (tables * 8).div_ceil(1 << 16);
    let first_l2 = 2 + l1_clusters;
    let l1 = Table { offset: at(2), entries: tables as u32 };
    let refcounts = Table { offset: at(1), entries: 1 };
    let header = Header::new(cluster, tables << 29, l1, refcounts).unwrap();
    let format = L2Format::of(&header);
    let mut image = header.encode().unwrap();
    image.resize(2 << 16, 0);
    for entry in 0..tables {
        image.extend(L1Entry::new(Some(at(first_l2 + entry % 16)), false).to_bytes());
    }
    image.resize((first_l2 as usize) << 16, 0);
    for table in 0..16 {
        for entry in 0..8192 {
            let mapping = match entry % 2 {
                _ if (table, entry) == (7, 4321) => Mapping::Data { host: at(first_l2 + 16) },
                0 => Mapping::Zero { host: None },
                _ => Mapping::Unallocated,
            };
            image.extend(&format.encode(mapping, false).unwrap()[..8]);
        }
    }
    image.extend(vec![0x5a; 1 << 16]);
    std::fs::write(path, image).unwrap();
    // A file with fewer clusters than tables would be refused at once.
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len((first_l2 + tables + 1) << 16).unwrap();
}

#[test]
fn memory_does_not_follow_the_tables_of_the_image() {
    let lab = Lab::new();
    let image = lab.path("tables.qcow2");
    // 2 TiB, 256 MiB of tables.
    image_of_tables(&image, 4096);
    let repo = Repo::init(lab.path("repo"));
    let limited = |limit: &str| {
        let mut arguments = args![format!("--data={limit}"), crate::harness::run::binary()];
        arguments.extend(repo.args(args!["backup", image.as_path(), "--json", "--threads", "2"]));
        run(tool("prlimit", arguments))
    };
    // All memory of the program's own, stacks and buffers included.
    let report = limited("134217728").ok().json();
    assert_eq!(report["virtual_size"], 1_u64 << 41);
    // The one data cluster is seen by every sixteenth table.
    assert_eq!(report["bytes_changed"], 256 << 16);
    // The limit is one: what needs a fraction of it does not get by with less.
    assert_ne!(limited("8388608").sane().code(), Some(0));
}
