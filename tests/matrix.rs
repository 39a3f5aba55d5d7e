//! Every feature of qcow2 once: what is backed up, restored and mapped must be what `qemu-img`
//! reads and maps.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use qdelta::disk::io::ReadAt;
use qdelta::{Image, ImageReader, OpenOptions, Selector, open_point};

use crate::harness::content::Guest;
use crate::harness::files::{assert_same, disk_usage};
use crate::harness::images::{
    create, create_raw, filled, filled_raw, guest_io, oracle, overlay, patch, qemu_img,
};
use crate::harness::repo::{Repo, number};
use crate::harness::{Lab, args, qdelta, run, tool};
use crate::map;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// An image, and how to speak of it to qdelta and to QEMU.
struct Subject {
    path: PathBuf,
    options: Vec<&'static str>,
    oracle: Vec<OsString>,
    mapped: bool,
}

impl From<PathBuf> for Subject {
    fn from(path: PathBuf) -> Self {
        let oracle = args!["-f", "qcow2", path.as_path()];
        Self { path, options: Vec::new(), oracle, mapped: true }
    }
}

impl Subject {
    /// A raw image.
    fn raw(path: PathBuf) -> Self {
        let oracle = args!["-f", "raw", path.as_path()];
        Self { oracle, ..Self::from(path) }
    }

    fn with(mut self, options: &[&'static str]) -> Self {
        self.options.extend(options);
        self
    }
}

/// Backs `subject` up and restores it in every way; all must agree with QEMU.
fn round_trip(lab: &Lab, subject: Subject) {
    let expected = lab.path("expected.raw");
    oracle(subject.oracle.clone(), &expected);
    let repo = Repo::of_a_life(lab.path("repo"), 0);
    let backup = repo.backup(&subject.path, "disk", &subject.options);
    assert_eq!(backup["kind"], "full", "{backup}");
    assert_eq!(number(&backup, "virtual_size"), std::fs::metadata(&expected).unwrap().len());
    repo.assert_restores(lab, "disk", &expected);
    restores_to_a_pipe(lab, &repo, &expected);

    // Nothing has changed since: an increment stores nothing and shows the same disk.
    let mut again = subject.options.clone();
    again.extend(["--io", "threads", "--threads", "1"]);
    if let Some(at) = again.iter().position(|option| *option == "--block-size") {
        again.drain(at..at + 2);
    }
    let second = repo.backup(&subject.path, "disk", &again);
    assert_eq!(second["kind"], "incremental", "{second}");
    assert_eq!(number(&second, "bytes_changed"), 0, "nothing was written: {second}");
    assert_eq!(second["root"], backup["root"]);
    repo.assert_restores_raw(lab, "disk", &expected);
    repo.verify();
    repo.assert_no_leftovers();
    reads_anywhere(&repo, &backup, &subject, &expected);
    if subject.mapped {
        map::assert_agrees(&subject.path, &subject.oracle, &subject.options);
    }
}

/// The image and its point, read at random places by several threads, are what QEMU reads.
fn reads_anywhere(repo: &Repo, backup: &serde_json::Value, subject: &Subject, expected: &Path) {
    let expected = std::fs::read(expected).unwrap();
    let image = Image::open(&subject.path, &open_options(&subject.options)).unwrap();
    let image = ImageReader::new(&image);
    let repository = repo.open();
    let disk = repository.catalog().find_disk(&"disk".parse().unwrap()).unwrap();
    let selector = Selector::Id(backup["point"].as_str().unwrap().to_owned());
    let point = repository.catalog().resolve(&disk, &selector).unwrap();
    let point = open_point(&repository.catalog(), &point).unwrap();
    let readers: [&dyn ReadAt; 2] = [&image, &point];
    for reader in readers {
        assert_eq!(reader.len().unwrap(), expected.len() as u64);
        std::thread::scope(|scope| {
            for seed in 0..4 {
                let expected = &expected;
                scope.spawn(move || {
                    let mut random = fastrand::Rng::with_seed(seed);
                    for _ in 0..100 {
                        let offset = random.usize(0..expected.len() + 1);
                        let len = [1, 512, 4096, 70_000, 3 << 20][random.usize(0..5)];
                        let mut out = vec![0xee; len];
                        let count = reader.read_at(&mut out, offset as u64).unwrap();
                        let want = &expected[offset..expected.len().min(offset + len)];
                        assert!(out[..count] == *want, "{len} bytes at {offset}");
                    }
                });
            }
        });
    }
}

/// What qdelta's options of a subject mean to the library.
fn open_options(words: &[&str]) -> OpenOptions {
    let as_file = words.contains(&"--as-file");
    let mut options = OpenOptions { as_file, ..OpenOptions::default() };
    for pair in words.windows(2) {
        match pair[0] {
            "--format" => options.format = Some(pair[1].parse().unwrap()),
            "--snapshot" => options.snapshot = Some(pair[1].to_owned()),
            "--image-root" => options.image_roots.push(pair[1].into()),
            _ => {}
        }
    }
    options
}

fn restores_to_a_pipe(lab: &Lab, repo: &Repo, expected: &Path) {
    let outcome = repo.restore("disk", Path::new("-"), &[]).ok();
    let piped = lab.path("piped.raw");
    std::fs::write(&piped, &outcome.stdout).unwrap();
    assert_same(expected, &piped, "restore to standard output");
    std::fs::remove_file(&piped).unwrap();
}

/// One test for each line: a name, and the image.
macro_rules! images {
    ($($name:ident: |$lab:ident| $make:expr;)*) => {
        $(#[test]
        fn $name() {
            let lab = Lab::new();
            let $lab = &lab;
            let subject = Subject::from($make);
            round_trip(&lab, subject);
        })*
    };
}

images! {
    v2_64k: |lab| filled(lab, "a.qcow2", "compat=0.10", 8 * MIB, 1);
    v2_512: |lab| filled(lab, "a.qcow2", "compat=0.10,cluster_size=512", 2 * MIB, 2);
    v2_2m: |lab| filled(lab, "a.qcow2", "compat=0.10,cluster_size=2M", 21 * MIB, 3);
    v3_512: |lab| filled(lab, "a.qcow2", "cluster_size=512", 2 * MIB, 4);
    v3_1k: |lab| filled(lab, "a.qcow2", "cluster_size=1k", 3 * MIB, 5);
    v3_4k: |lab| filled(lab, "a.qcow2", "cluster_size=4k", 6 * MIB, 6);
    v3_64k: |lab| filled(lab, "a.qcow2", "", 12 * MIB, 7);
    v3_256k: |lab| filled(lab, "a.qcow2", "cluster_size=256k", 12 * MIB, 8);
    v3_2m: |lab| filled(lab, "a.qcow2", "cluster_size=2M", 30 * MIB, 9);

    refcounts_of_1_bit: |lab| filled(lab, "a.qcow2", "refcount_bits=1", 2 * MIB, 10);
    refcounts_of_64_bits: |lab| filled(lab, "a.qcow2", "refcount_bits=64", 2 * MIB, 11);

    deflate_4k: |lab| compressed(lab, "cluster_size=4k", 4 * MIB, 20);
    deflate_512: |lab| compressed(lab, "cluster_size=512", MIB, 21);
    deflate_64k: |lab| compressed(lab, "", 8 * MIB, 22);
    deflate_2m: |lab| compressed(lab, "cluster_size=2M", 20 * MIB, 23);
    deflate_v2: |lab| compressed(lab, "compat=0.10", 8 * MIB, 24);
    zstd_4k: |lab| compressed(lab, "cluster_size=4k,compression_type=zstd", 4 * MIB, 25);
    zstd_64k: |lab| compressed(lab, "compression_type=zstd", 8 * MIB, 26);
    zstd_2m: |lab| compressed(lab, "cluster_size=2M,compression_type=zstd", 20 * MIB, 27);

    preallocated_metadata: |lab| filled(lab, "a.qcow2", "preallocation=metadata", 4 * MIB, 30);
    preallocated_falloc: |lab| filled(lab, "a.qcow2", "preallocation=falloc", 4 * MIB, 31);
    preallocated_full: |lab| filled(lab, "a.qcow2", "preallocation=full", 4 * MIB, 32);

    subclusters_16k: |lab| filled(lab, "a.qcow2", "extended_l2=on,cluster_size=16k", 4 * MIB, 40);
    subclusters_64k: |lab| filled(lab, "a.qcow2", "extended_l2=on", 8 * MIB, 41);
    subclusters_128k: |lab| filled(lab, "a.qcow2", "extended_l2=on,cluster_size=128k", 8 * MIB, 42);
    subclusters_2m: |lab| filled(lab, "a.qcow2", "extended_l2=on,cluster_size=2M", 24 * MIB, 43);
    subclusters_zstd: |lab| compressed(lab, "extended_l2=on,compression_type=zstd", 6 * MIB, 44);
    subclusters_over_backing: |lab| {
        filled(lab, "base.qcow2", "cluster_size=4k", 5 * MIB, 45);
        over(lab, "top.qcow2", "base.qcow2", "qcow2", Some(6 * MIB), "extended_l2=on", 46)
    };

    data_file: |lab| with_data_file(lab, "", 50);
    data_file_raw: |lab| with_data_file(lab, ",data_file_raw=on", 51);
    data_file_subclusters: |lab| with_data_file(lab, ",extended_l2=on", 52);
    data_file_4k: |lab| with_data_file(lab, ",cluster_size=4k", 53);

    backing_three_deep: |lab| {
        filled_raw(lab, "base.raw", 5 * MIB, 60);
        over(lab, "middle.qcow2", "base.raw", "raw", None, "cluster_size=4k", 61);
        over(lab, "top.qcow2", "middle.qcow2", "qcow2", None, "", 62)
    };
    backing_shorter: |lab| {
        filled(lab, "base.qcow2", "", 3 * MIB + 512, 63);
        over(lab, "top.qcow2", "base.qcow2", "qcow2", Some(7 * MIB), "", 64)
    };
    backing_longer: |lab| {
        filled(lab, "base.qcow2", "cluster_size=2M", 9 * MIB, 65);
        over(lab, "top.qcow2", "base.qcow2", "qcow2", Some(4 * MIB + 1536), "cluster_size=512", 66)
    };
    backing_middle_shorter: |lab| {
        filled(lab, "base.qcow2", "", 8 * MIB, 67);
        over(lab, "middle.qcow2", "base.qcow2", "qcow2", Some(3 * MIB), "", 68);
        over(lab, "top.qcow2", "middle.qcow2", "qcow2", Some(8 * MIB), "cluster_size=4k", 69)
    };
    backing_compressed: |lab| {
        compressed(lab, "compression_type=zstd", 4 * MIB, 70);
        over(lab, "top.qcow2", "compressed.qcow2", "qcow2", None, "cluster_size=8k", 71)
    };
    backing_v2: |lab| {
        filled(lab, "base.qcow2", "compat=0.10", 3 * MIB, 72);
        over(lab, "top.qcow2", "base.qcow2", "qcow2", None, "compat=0.10", 73)
    };
    backing_absolute: |lab| {
        let base = filled(lab, "base.qcow2", "", 3 * MIB, 74);
        over(lab, "top.qcow2", base.to_str().unwrap(), "qcow2", None, "", 75)
    };
    backing_with_file_protocol: |lab| {
        let base = filled(lab, "base.qcow2", "", 3 * MIB, 76);
        over(lab, "top.qcow2", &format!("file:{}", base.display()), "qcow2", None, "", 77)
    };
    backing_json_nested: |lab| {
        let base = filled(lab, "base.qcow2", "", 3 * MIB, 78);
        let name = format!(
            r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}}}}"#,
            base.display()
        );
        over(lab, "top.qcow2", &name, "qcow2", None, "", 79)
    };
    backing_json_dotted: |lab| {
        let base = filled_raw(lab, "base.raw", 3 * MIB, 80);
        let name = format!(
            r#"json:{{"driver":"raw","file.driver":"file","file.filename":"{}"}}"#,
            base.display()
        );
        over(lab, "top.qcow2", &name, "raw", None, "", 81)
    };
    backing_in_a_folder_below: |lab| {
        std::fs::create_dir(lab.path("below")).unwrap();
        filled(lab, "below/base.qcow2", "", 3 * MIB, 82);
        over(lab, "top.qcow2", "below/base.qcow2", "qcow2", None, "", 83)
    };
    backing_elsewhere_by_leave: |lab| {
        std::fs::create_dir(lab.path("top")).unwrap();
        filled(lab, "base.qcow2", "", 3 * MIB, 84);
        let top = over(lab, "top/top.qcow2", "../base.qcow2", "qcow2", None, "", 85);
        // Leaked to give the option the life of a constant; the test ends soon.
        let root: &'static str = Box::leak(lab.dir().to_str().unwrap().to_owned().into_boxed_str());
        Subject::from(top).with(&["--image-root", root])
    };

    lazy_refcounts_and_dirty: |lab| {
        let path = filled(lab, "a.qcow2", "lazy_refcounts=on", 6 * MIB, 90);
        qemu_img(args!["resize", "-q", path.as_path(), (8 * MIB).to_string()]).ok();
        die_while_writing(lab, &path, 7 * MIB, 91);
        let info = qemu_img(args!["info", "--output=json", path.as_path()]).ok().json();
        assert_eq!(info["dirty-flag"], true, "{info}");
        path
    };
    bitmaps: |lab| {
        let path = filled(lab, "a.qcow2", "", 6 * MIB, 92);
        qemu_img(args!["bitmap", "--add", path.as_path(), "nightly"]).ok();
        qemu_img(args!["bitmap", "--add", "-g", "4k", path.as_path(), "hourly"]).ok();
        guest_io(&path, "qcow2", &Guest::new(lab.dir(), 93).fill(6 * MIB, 5));
        path
    };
    bitmaps_in_use: |lab| {
        let path = filled(lab, "a.qcow2", "", 6 * MIB, 94);
        qemu_img(args!["bitmap", "--add", path.as_path(), "nightly"]).ok();
        die_while_writing(lab, &path, 3 * MIB, 95);
        path
    };

    snapshots_active_state: |lab| snapshots(lab, "", 100);
    snapshot_by_name: |lab| {
        let path = snapshots(lab, "", 101);
        let oracle = args!["-f", "qcow2", "-l", "snapshot.name=first", path.as_path()];
        Subject { oracle, mapped: false, ..path.into() }.with(&["--snapshot", "first"])
    };
    snapshot_with_subclusters: |lab| {
        let path = snapshots(lab, "extended_l2=on", 102);
        let oracle = args!["-f", "qcow2", "-l", "snapshot.name=second", path.as_path()];
        Subject { oracle, mapped: false, ..path.into() }.with(&["--snapshot", "second"])
    };
    snapshot_of_another_size: |lab| {
        let path = snapshots(lab, "", 103);
        qemu_img(args!["resize", "-q", path.as_path(), (9 * MIB).to_string()]).ok();
        guest_io(&path, "qcow2", &Guest::new(lab.dir(), 104).fill(9 * MIB, 5));
        // Converting a snapshot, QEMU gives it the size of the active disk; going back to it does
        // not.
        let copy = lab.path("copy.qcow2");
        std::fs::copy(&path, &copy).unwrap();
        qemu_img(args!["snapshot", "-a", "second", copy.as_path()]).ok();
        let oracle = args!["-f", "qcow2", copy.as_path()];
        Subject { oracle, mapped: false, ..path.into() }.with(&["--snapshot", "second"])
    };

    size_zero: |lab| { create(&lab.path("a.qcow2"), "", 0); lab.path("a.qcow2") };
    size_of_one_sector: |lab| filled(lab, "a.qcow2", "", 512, 110);
    size_of_a_block_and_a_sector: |lab| filled(lab, "a.qcow2", "", 64 * KIB + 512, 111);
    size_just_below_a_group: |lab| filled(lab, "a.qcow2", "", 64 * MIB - 512, 112);
    size_just_above_a_group: |lab| filled(lab, "a.qcow2", "", 64 * MIB + 512, 113);
    nothing_allocated: |lab| { create(&lab.path("a.qcow2"), "", 10 * MIB); lab.path("a.qcow2") };
    size_no_multiple_of_a_sector: |lab| {
        let path = filled(lab, "a.qcow2", "", MIB, 114);
        patch(&path, 24, &(MIB - 100).to_be_bytes());
        path
    };
    last_cluster_cut_short: |lab| {
        let path = lab.path("a.qcow2");
        create(&path, "", 4 * MIB);
        guest_io(&path, "qcow2", &["write -q -P 7 2M 64k".to_owned()]);
        let len = std::fs::metadata(&path).unwrap().len();
        let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(len - 40_000).unwrap();
        path
    };

    raw: |lab| Subject::raw(filled_raw(lab, "a.raw", 8 * MIB, 120)).with(&["--format", "raw"]);
    raw_by_default: |lab| Subject::raw(filled_raw(lab, "a.raw", 3 * MIB, 121));
    raw_sparse: |lab| {
        create_raw(&lab.path("a.raw"), 300 * MIB);
        guest_io(&lab.path("a.raw"), "raw", &["write -q -P 9 177M 3M".to_owned()]);
        Subject::raw(lab.path("a.raw"))
    };
    raw_that_holds_a_qcow2_header: |lab| {
        let path = filled_raw(lab, "a.raw", 2 * MIB, 122);
        patch(&path, 0, b"QFI\xfb\0\0\0\x03");
        Subject::raw(path).with(&["--format", "raw"])
    };
    qcow2_as_a_file: |lab| {
        let path = filled(lab, "a.qcow2", "", 4 * MIB, 123);
        Subject { mapped: false, ..Subject::raw(path) }.with(&["--as-file"])
    };
    encrypted_as_a_file: |lab| {
        let path = encrypted(lab);
        Subject { mapped: false, ..Subject::raw(path) }.with(&["--as-file"])
    };

    blocks_of_4k: |lab| {
        Subject::from(filled(lab, "a.qcow2", "", 6 * MIB, 130)).with(&["--block-size", "4K"])
    };
    blocks_of_2m: |lab| {
        Subject::from(filled(lab, "a.qcow2", "", 30 * MIB, 131)).with(&["--block-size", "2M"])
    };
    blocks_of_256k_at_a_high_level: |lab| {
        Subject::from(filled(lab, "a.qcow2", "", 12 * MIB, 132))
            .with(&["--block-size", "256K", "--level", "12"])
    };
    blocks_at_a_fast_level: |lab| {
        Subject::from(filled(lab, "a.qcow2", "", 12 * MIB, 133)).with(&["--level", "-5"])
    };
}

/// An image whose clusters are compressed, but for a few that were written later.
fn compressed(lab: &Lab, options: &str, size: u64, seed: u64) -> PathBuf {
    let source = filled(lab, "source.qcow2", "", size, seed);
    let path = lab.path("compressed.qcow2");
    let mut arguments = args!["convert", "-c", "-O", "qcow2"];
    if !options.is_empty() {
        arguments.extend(args!["-o", options]);
    }
    arguments.extend(args![source.as_path(), path.as_path()]);
    qemu_img(arguments).ok();
    std::fs::remove_file(source).unwrap();
    let mut guest = Guest::new(lab.dir(), seed + 1000);
    let commands: Vec<String> = (0..4).map(|_| guest.act(size)).collect();
    guest_io(&path, "qcow2", &commands);
    path
}

/// A filled overlay in the test's folder.
fn over(
    lab: &Lab,
    name: &str,
    backing: &str,
    format: &str,
    size: Option<u64>,
    options: &str,
    seed: u64,
) -> PathBuf {
    let path = lab.path(name);
    overlay(&path, backing, format, size, options);
    let info = qemu_img(args!["info", "--output=json", path.as_path()]).ok().json();
    let size = info["virtual-size"].as_u64().unwrap();
    let mut guest = Guest::new(lab.dir(), seed);
    let commands: Vec<String> = (0..14).map(|_| guest.act(size)).collect();
    guest_io(&path, "qcow2", &commands);
    path
}

fn with_data_file(lab: &Lab, options: &str, seed: u64) -> PathBuf {
    let options = format!("data_file={}{options}", lab.path("a.data").display());
    filled(lab, "a.qcow2", &options, 6 * MIB, seed)
}

/// An image with the snapshots `first` and `second`, and writes before, between and after.
fn snapshots(lab: &Lab, options: &str, seed: u64) -> PathBuf {
    let path = filled(lab, "a.qcow2", options, 6 * MIB, seed);
    for (index, name) in ["first", "second"].iter().enumerate() {
        qemu_img(args!["snapshot", "-c", *name, path.as_path()]).ok();
        let mut guest = Guest::new(lab.dir(), seed * 100 + index as u64);
        guest_io(&path, "qcow2", &guest.fill(6 * MIB, 6));
    }
    path
}

/// QEMU writes and flushes, and is killed before it can close the image.
fn die_while_writing(lab: &Lab, path: &Path, offset: u64, seed: u64) {
    let write = Guest::new(lab.dir(), seed).write(offset, 100_000);
    let die = args!["-f", "qcow2", "-c", write, "-c", "flush", "-c", "sigraise 9", path];
    let outcome = run(tool("qemu-io", die));
    assert!(outcome.killed(), "it should have died:\n{}", outcome.report());
}

fn encrypted(lab: &Lab) -> PathBuf {
    let path = lab.path("a.qcow2");
    let secret = "secret,id=key,data=swordfish";
    let options = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";
    let size = (2 * MIB).to_string();
    let create = args![
        "create",
        "-q",
        "--object",
        secret,
        "-f",
        "qcow2",
        "-o",
        options,
        path.as_path(),
        size
    ];
    qemu_img(create).ok();
    path
}

/// The payload of an encrypted image can't be taken apart; the advice says what can be done.
#[test]
fn encrypted_payload_is_refused_by_name() {
    let lab = Lab::new();
    let path = encrypted(&lab);
    let repo = Repo::init(lab.path("repo"));
    let text = repo.backup_run(&path, "disk", &[]).fails_with(3);
    assert!(text.to_lowercase().contains("luks") && text.contains("--as-file"), "{text}");
}

/// Archive, root and restored disk do not depend on how many threads ran, nor on the backend.
#[test]
fn threads_do_not_change_the_result() {
    let lab = Lab::new();
    let image = filled(&lab, "a.qcow2", "cluster_size=4k", 20 * MIB, 140);
    let repo = Repo::init(lab.path("repo"));
    let mut seen = Vec::new();
    for (threads, io) in [("1", "threads"), ("1", "uring"), ("2", "auto"), ("7", "threads")] {
        let disk = format!("disk{}", seen.len());
        let done = repo.backup(&image, &disk, &["--threads", threads, "--io", io]);
        seen.push((done["root"].clone(), number(&done, "bytes_written")));
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
}

/// What is not there costs nothing: a disk of a tebibyte is done in moments.
#[test]
fn a_tebibyte_of_almost_nothing() {
    let lab = Lab::new();
    let image = lab.path("a.qcow2");
    let size: u64 = 1 << 40;
    create(&image, "", size);
    let last = format!("write -q -P 3 {} 5000", size - 5000);
    guest_io(
        &image,
        "qcow2",
        &["write -q -P 1 0 100k".into(), "write -q -P 2 600G 1M".into(), last],
    );
    let repo = Repo::init(lab.path("repo"));
    let begin = std::time::Instant::now();
    repo.backup(&image, "disk", &[]);
    for format in ["raw", "qcow2"] {
        let output = lab.path(format);
        repo.restore("disk", &output, &["--format", format]).ok();
        assert!(disk_usage(&output) < 8 * MIB, "{format} is not thin");
        qemu_img(args![
            "compare",
            "-q",
            "-f",
            "qcow2",
            "-F",
            format,
            image.as_path(),
            output.as_path()
        ])
        .ok();
    }
    assert!(begin.elapsed().as_secs() < 60, "it took {:?}", begin.elapsed());
}

/// `info` names what the image is.
#[test]
fn info_describes_an_image() {
    let lab = Lab::new();
    let image = filled(&lab, "a.qcow2", "extended_l2=on,compression_type=zstd", 6 * MIB, 141);
    let text = run(qdelta(args!["info", image.as_path()])).ok().text();
    for word in ["qcow2", "6", "64"] {
        assert!(text.contains(word), "no {word} in:\n{text}");
    }
    let json = run(qdelta(args!["info", image.as_path(), "--json"])).ok().json();
    assert!(json.is_object(), "{json}");
}
