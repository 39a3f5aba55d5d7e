//! Images that are damaged, hostile, or not where they say: a clear refusal with status 3, never a
//! crash, never much memory or time, and nothing in the repository. Where QEMU reads an image, what
//! qdelta reads must be the same.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::harness::content::Random;
use crate::harness::files::assert_same;
use crate::harness::images::{
    create, filled, filled_raw, guest_io, oracle, patch, qemu_img, read_u64,
};
use crate::harness::repo::Repo;
use crate::harness::run::binary;
use crate::harness::{Lab, Outcome, args, run, sweep, tool};

const MIB: u64 = 1 << 20;
/// Address space for reading a small image, in bytes: a table that is believed without a look at
/// the file would need more.
const MEMORY_MAX: u64 = 1 << 30;

/// A backup with little memory.
#[track_caller]
fn backup(repo: &Repo, image: &Path, options: &[&str]) -> Outcome {
    let mut arguments = args![format!("--as={MEMORY_MAX}"), "--", binary()];
    arguments.extend(repo.args(args!["backup", image, "--disk", "disk", "--json"]));
    arguments.extend(options.iter().map(OsString::from));
    let begin = std::time::Instant::now();
    let outcome = run(tool("prlimit", arguments)).sane();
    assert!(begin.elapsed().as_secs() < 20, "it took {:?}:\n{}", begin.elapsed(), outcome.report());
    outcome
}

/// The repository of a test.
fn repo(lab: &Lab) -> Repo {
    let path = lab.path("repo");
    Repo::made_before(&path).unwrap_or_else(|| Repo::init(path))
}

/// The image must be refused with status 3 and all of `words`, and leave no trace.
#[track_caller]
fn refused(lab: &Lab, image: &Path, options: &[&str], words: &[&str]) {
    let repo = repo(lab);
    let outcome = backup(&repo, image, options);
    let said = outcome.fails_with(3);
    for word in words {
        assert!(
            said.to_lowercase().contains(&word.to_lowercase()),
            "it does not say '{word}':\n{said}"
        );
    }
    let written: Vec<PathBuf> = repo
        .files()
        .into_iter()
        .filter(|file| {
            !(file.ends_with(".lock") || file.ends_with(".keep") || file.ends_with("qdelta.toml"))
        })
        .collect();
    assert!(written.is_empty(), "a refused image left {written:?}");
}

/// An overlay whose backing file is not looked at when it is made.
#[track_caller]
fn overlay_over_anything(lab: &Lab, name: &str, backing: &str, format: &str) -> PathBuf {
    let path = lab.path(name);
    let size = (2 * MIB).to_string();
    qemu_img(args![
        "create",
        "-q",
        "-u",
        "-f",
        "qcow2",
        "-b",
        backing,
        "-F",
        format,
        path.as_path(),
        size
    ])
    .ok();
    path
}

#[test]
fn a_missing_backing_file() {
    let lab = Lab::new();
    let top = overlay_over_anything(&lab, "top.qcow2", "gone.qcow2", "qcow2");
    refused(&lab, &top, &[], &["gone.qcow2"]);
}

#[test]
fn backing_files_in_a_circle() {
    let lab = Lab::new();
    let top = overlay_over_anything(&lab, "a.qcow2", "b.qcow2", "qcow2");
    overlay_over_anything(&lab, "b.qcow2", "a.qcow2", "qcow2");
    refused(&lab, &top, &[], &["a.qcow2"]);
    let own = overlay_over_anything(&lab, "named.qcow2", "own.qcow2", "qcow2");
    std::fs::rename(&own, lab.path("own.qcow2")).unwrap();
    refused(&lab, &lab.path("own.qcow2"), &[], &["own.qcow2"]);
    // The same file by another name.
    let linked = overlay_over_anything(&lab, "linked.qcow2", "link.qcow2", "qcow2");
    std::os::unix::fs::symlink("linked.qcow2", lab.path("link.qcow2")).unwrap();
    refused(&lab, &linked, &[], &[]);
}

/// The 17th night of a guest that got an external snapshot each day ended with an error that no document
/// spoke of. libvirt goes 200 deep, and so do we, with as few open files as a shell allows.
#[test]
fn a_chain_is_as_deep_as_one_of_libvirt_and_no_deeper() {
    let lab = Lab::new();
    let image = |depth: usize| lab.path(format!("{depth}.qcow2"));
    create(&image(0), "", 4 * MIB);
    for depth in 1..=201 {
        overlay_over_anything(
            &lab,
            &format!("{depth}.qcow2"),
            &format!("{}.qcow2", depth - 1),
            "qcow2",
        );
    }
    for (depth, place) in [(0, 0), (1, 1), (77, 3), (199, 5), (200, 6)] {
        let write = format!("write -q -P {} {place}00k 100k", depth % 250 + 1);
        guest_io(&image(depth), "qcow2", &[write]);
    }
    let repo = Repo::init(lab.path("sound"));
    let expected = lab.path("expected.raw");
    for (depth, kind) in [(199, "full"), (200, "incremental")] {
        let words = repo.args(args!["backup", image(depth), "--disk", "disk", "--json"]);
        let limits = args!["--as=1073741824", "--nofile=450:450", "--", binary()];
        let report = run(tool("prlimit", [limits, words].concat())).ok().json();
        assert_eq!(report["kind"], kind, "{report}");
        oracle(args![image(depth)], &expected);
        repo.assert_restores_raw(&lab, "disk", &expected);
    }
    refused(&lab, &image(201), &[], &["more than 200 backing files"]);
}

/// QEMU looks for some names in the folder that it is started in, and we looked beside the image: another
/// file was backed up than the one that the guest had.
#[test]
fn a_name_that_means_two_things_is_refused() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("elsewhere")).unwrap();
    for (place, byte) in [("", 1), ("elsewhere", 2)] {
        let path = lab.path(place).join("base:1.qcow2");
        create(&path, "", MIB);
        guest_io(&path, "qcow2", &[format!("write -q -P {byte} 0 64k")]);
    }
    let beside = lab.path("base:1.qcow2");
    let beside = beside.display();
    let json = |name: &str| {
        format!(r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{name}"}}}}"#)
    };
    let seen_from = |top: &Path, folder: &str| {
        let output = lab.path("seen.raw");
        let mut command = tool("qemu-img", args!["convert", "-O", "raw", top, output.as_path()]);
        command.current_dir(lab.path(folder));
        run(command).ok();
        std::fs::read(output).unwrap()[0]
    };
    for name in
        ["file:base:1.qcow2", "file:./base:1.qcow2", &json("base:1.qcow2"), &json("./base:1.qcow2")]
    {
        let top = overlay_over_anything(&lab, "top.qcow2", name, "qcow2");
        assert_eq!([seen_from(&top, ""), seen_from(&top, "elsewhere")], [1, 2], "{name}");
        refused(&lab, &top, &[], &["means two things", "absolute name"]);
    }
    let repo = Repo::init(lab.path("sound"));
    let expected = lab.path("expected.raw");
    for name in [
        "./base:1.qcow2",
        &format!("{beside}"),
        &format!("file:{beside}"),
        &json(&beside.to_string()),
    ] {
        let top = overlay_over_anything(&lab, "top.qcow2", name, "qcow2");
        assert_eq!([seen_from(&top, ""), seen_from(&top, "elsewhere")], [1, 1], "{name}");
        repo.backup(&top, "disk", &["--kind", "full"]);
        oracle(args![top.as_path()], &expected);
        repo.assert_restores_raw(&lab, "disk", &expected);
    }
}

#[test]
fn a_backing_file_of_another_format_than_said() {
    let lab = Lab::new();
    filled_raw(&lab, "base.raw", MIB, 1);
    let top = overlay_over_anything(&lab, "top.qcow2", "base.raw", "qcow2");
    refused(&lab, &top, &[], &["base.raw"]);
    let top = overlay_over_anything(&lab, "vmdk.qcow2", "base.raw", "vmdk");
    refused(&lab, &top, &[], &["vmdk"]);
}

/// Where the overlay names no format, bytes that look like a format we can't read are no raw disk.
#[test]
fn a_foreign_backing_file_without_a_format() {
    let lab = Lab::new();
    filled_raw(&lab, "base.raw", MIB, 2);
    patch(&lab.path("base.raw"), 0, b"KDMV");
    let top = overlay_over_anything(&lab, "top.qcow2", "base.raw", "raw");
    let bytes = std::fs::read(&top).unwrap();
    let at = bytes.windows(4).position(|four| four == [0xe2, 0x79, 0x2a, 0xca]).unwrap();
    patch(&top, at as u64, &[0x11; 4]);
    refused(&lab, &top, &[], &["base.raw", "VMDK"]);
}

/// A guest can write a qcow2 header into its raw disk: called raw, it stays raw, and what the header
/// names is not looked at.
#[test]
fn a_raw_backing_file_that_looks_like_qcow2() {
    let lab = Lab::new();
    let trap = overlay_over_anything(&lab, "base.raw", "/etc/passwd", "raw");
    std::fs::OpenOptions::new().write(true).open(&trap).unwrap().set_len(2 * MIB).unwrap();
    let top = overlay_over_anything(&lab, "top.qcow2", "base.raw", "raw");
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&top, "disk", &[]);
    repo.assert_restores_raw(&lab, "disk", &trap);
}

#[test]
fn names_that_lead_out_of_the_folder() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("tenant")).unwrap();
    let base = filled(&lab, "base.qcow2", "", MIB, 3);
    let up = overlay_over_anything(&lab, "tenant/up.qcow2", "../base.qcow2", "qcow2");
    refused(&lab, &up, &[], &["base.qcow2", "--image-root"]);
    let absolute =
        overlay_over_anything(&lab, "tenant/absolute.qcow2", base.to_str().unwrap(), "qcow2");
    refused(&lab, &absolute, &[], &["--image-root"]);
    std::os::unix::fs::symlink("../base.qcow2", lab.path("tenant/link.qcow2")).unwrap();
    let linked = overlay_over_anything(&lab, "tenant/linked.qcow2", "link.qcow2", "qcow2");
    refused(&lab, &linked, &[], &["--image-root"]);
    std::os::unix::fs::symlink("..", lab.path("tenant/up")).unwrap();
    let through = overlay_over_anything(&lab, "tenant/through.qcow2", "up/base.qcow2", "qcow2");
    refused(&lab, &through, &[], &["--image-root"]);
    let passwd = overlay_over_anything(&lab, "tenant/passwd.qcow2", "/etc/passwd", "raw");
    refused(&lab, &passwd, &[], &["/etc/passwd"]);
    let json = r#"json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}"#;
    let json = overlay_over_anything(&lab, "tenant/json.qcow2", json, "raw");
    refused(&lab, &json, &[], &["/etc/passwd"]);
}

/// A data file is named inside the image, too.
#[test]
fn a_data_file_elsewhere_or_missing() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("tenant")).unwrap();
    let options = format!("data_file={}", lab.path("outside.data").display());
    let image = lab.path("tenant/a.qcow2");
    create(&image, &options, MIB);
    refused(&lab, &image, &[], &["outside.data", "--image-root"]);
    let options = format!("data_file={}", lab.path("gone.data").display());
    let image = lab.path("b.qcow2");
    create(&image, &options, MIB);
    std::fs::remove_file(lab.path("gone.data")).unwrap();
    refused(&lab, &image, &[], &["gone.data"]);
}

#[test]
fn protocols_are_refused_by_name() {
    let lab = Lab::new();
    let names = [
        ("nbd", "nbd://127.0.0.1:1/disk"),
        ("nbd", "nbd:unix:/nowhere"),
        ("ssh", "ssh://somebody@127.0.0.1/disk"),
        ("http", "http://127.0.0.1:1/disk"),
        ("nbd", r#"json:{"driver":"nbd","host":"127.0.0.1","port":"1"}"#),
        ("rbd", r#"json:{"driver":"raw","file":{"driver":"rbd","pool":"p","image":"i"}}"#),
        (
            "http",
            r#"json:{"driver":"qcow2","file.driver":"http","file.url":"http://127.0.0.1:1/"}"#,
        ),
    ];
    for (index, (word, name)) in names.into_iter().enumerate() {
        let top = overlay_over_anything(&lab, &format!("{index}.qcow2"), name, "raw");
        refused(&lab, &top, &[], &[word]);
    }
    for (index, name) in
        ["json:{", "json:", "json:[]", r#"json:{"driver":1}"#, "json:{}"].into_iter().enumerate()
    {
        let top = lab.path(format!("broken{index}.qcow2"));
        create(&top, "", MIB);
        write_backing_name(&top, name);
        refused(&lab, &top, &[], &[]);
    }
}

/// Puts a backing name into an image that has none, past the header and its extensions.
fn write_backing_name(path: &Path, name: &str) {
    let at: u64 = 0x1000;
    patch(path, at, name.as_bytes());
    patch(path, 8, &at.to_be_bytes());
    patch(path, 16, &(name.len() as u32).to_be_bytes());
}

/// Only files and block devices hold disks. A pipe without a writer would block for ever.
#[test]
fn what_is_no_file() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("folder")).unwrap();
    run(tool("mkfifo", args![lab.path("pipe")])).ok();
    for name in ["folder", "pipe"] {
        let top = overlay_over_anything(&lab, &format!("over-{name}.qcow2"), name, "raw");
        refused(&lab, &top, &[], &[name]);
        let repo = repo(&lab);
        let outcome = backup(&repo, &lab.path(name), &[]);
        assert!(matches!(outcome.code(), Some(1..=3)), "{}", outcome.report());
    }
    let zero = overlay_over_anything(&lab, "over-zero.qcow2", "/dev/zero", "raw");
    refused(&lab, &zero, &["--image-root", "/dev"], &["/dev/zero"]);
    let repo = repo(&lab);
    backup(&repo, &lab.path("gone.qcow2"), &[]).fails_with(6);
}

/// One field of the header says too much. 4 KiB clusters, so that the tables' places are known.
#[test]
fn absurd_headers() {
    let lab = Lab::new();
    let sound = filled(&lab, "sound.qcow2", "cluster_size=4k", 2 * MIB, 4);
    let fields: &[(&str, u64, &[u8])] = &[
        ("version 1", 4, &[0, 0, 0, 1]),
        ("version 4", 4, &[0, 0, 0, 4]),
        ("a backing name of 4 GiB", 8, &[0, 0, 0, 0, 0, 0, 0x10, 0, 0xff, 0xff, 0xff, 0xff]),
        ("a backing name outside", 8, &[0x7f, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9]),
        ("clusters of 1 byte", 20, &[0, 0, 0, 0]),
        ("clusters of 256 bytes", 20, &[0, 0, 0, 8]),
        ("clusters of 4 MiB", 20, &[0, 0, 0, 22]),
        ("clusters beyond all", 20, &[0xff, 0xff, 0xff, 0xff]),
        ("a disk of 2^63 bytes", 24, &[0x80, 0, 0, 0, 0, 0, 0, 0]),
        ("a disk larger than its L1", 24, &[0, 0, 0xff, 0, 0, 0, 0, 0]),
        ("encryption 1", 32, &[0, 0, 0, 1]),
        ("encryption 2", 32, &[0, 0, 0, 2]),
        ("encryption 99", 32, &[0, 0, 0, 99]),
        ("an L1 of 4 Gi entries", 36, &[0xff, 0xff, 0xff, 0xff]),
        ("an L1 of 4 Mi entries", 36, &[0, 0x40, 0, 0]),
        ("an L1 too small", 36, &[0, 0, 0, 0]),
        ("an L1 at an odd place", 40, &[0, 0, 0, 0, 0, 0, 0x10, 1]),
        ("an L1 outside", 40, &[0x40, 0, 0, 0, 0, 0, 0, 0]),
        ("an L1 beyond all", 40, &[0xff; 8]),
        ("a refcount table of 4 Gi clusters", 56, &[0xff, 0xff, 0xff, 0xff]),
        ("4 Gi snapshots", 60, &[0xff, 0xff, 0xff, 0xff]),
        ("unknown incompatible features", 72, &[0x80, 0, 0, 0, 0, 0, 0, 0]),
        ("refcounts of 128 bits", 96, &[0, 0, 0, 7]),
        ("a header of 100 bytes", 100, &[0, 0, 0, 100]),
        ("a header of 4 GiB", 100, &[0xff, 0xff, 0xff, 0xf8]),
    ];
    let image = lab.path("a.qcow2");
    for (what, offset, bytes) in fields {
        std::fs::copy(&sound, &image).unwrap();
        patch(&image, *offset, bytes);
        println!("{what}");
        refused(&lab, &image, &["--format", "qcow2"], &[]);
    }
}

/// Tables that point where nothing can be.
#[test]
fn tables_that_lead_nowhere() {
    let lab = Lab::new();
    let sound = filled(&lab, "sound.qcow2", "cluster_size=4k", 2 * MIB, 5);
    let l1 = read_u64(&sound, 40);
    let l2 = read_u64(&sound, l1) & 0x00ff_ffff_ffff_fe00;
    let places: &[(&str, u64, u64)] = &[
        ("an L2 table outside", l1, 0x8000_0fff_0000_0000),
        ("an L2 table at an odd place", l1, 0x8000_0000_0000_1200),
        ("a data cluster outside", l2, 0x8000_0fff_0000_0000),
        ("a data cluster at an odd place", l2, 0x8000_0000_0000_1200),
        ("a compressed cluster outside", l2, 0x4000_0fff_0000_0000),
        ("a compressed cluster of a table's bytes", l2, 0x4000_0000_0000_0000 | l1),
    ];
    let image = lab.path("a.qcow2");
    for (what, at, entry) in places {
        std::fs::copy(&sound, &image).unwrap();
        patch(&image, *at, &entry.to_be_bytes());
        println!("{what}");
        let theirs = qemu_img(args![
            "convert",
            "-f",
            "qcow2",
            "-O",
            "raw",
            image.as_path(),
            lab.path("theirs")
        ]);
        if theirs.code() == Some(0) {
            continue;
        }
        refused(&lab, &image, &[], &[]);
    }
}

/// A large L1 over garbage must not cost more than what the file holds.
#[test]
fn tables_in_a_circle_end() {
    let lab = Lab::new();
    let image = lab.path("a.qcow2");
    create(&image, "cluster_size=64k", 1 << 40);
    let l1 = read_u64(&image, 40);
    // Every L1 entry names the L1 table itself as its L2 table.
    let entries: Vec<u8> = (0..2048).flat_map(|_| (l1 | 1 << 63).to_be_bytes()).collect();
    patch(&image, l1, &entries);
    let repo = Repo::init(lab.path("repo"));
    let outcome = backup(&repo, &image, &["--quiet"]);
    assert!(matches!(outcome.code(), Some(0 | 3)), "{}", outcome.report());
}

#[test]
fn what_is_said_to_be_qcow2_and_is_not() {
    let lab = Lab::new();
    let raw = filled_raw(&lab, "a.raw", MIB, 6);
    refused(&lab, &raw, &["--format", "qcow2"], &[]);
    std::fs::write(lab.path("empty"), b"").unwrap();
    refused(&lab, &lab.path("empty"), &["--format", "qcow2"], &[]);
    std::fs::write(lab.path("magic"), b"QFI\xfb").unwrap();
    refused(&lab, &lab.path("magic"), &[], &[]);
}

/// What QEMU says of an image.
struct Oracle {
    reads: bool,
    sound: bool,
}

fn ask_qemu(image: &Path, output: &Path) -> Oracle {
    let _ = std::fs::remove_file(output);
    let reads =
        qemu_img(args!["convert", "-f", "qcow2", "-O", "raw", image, output]).code() == Some(0);
    let sound = qemu_img(args!["check", "-q", "-f", "qcow2", image]).code() == Some(0);
    Oracle { reads, sound }
}

/// Whatever happened to `image`: no crash; where both read it, the same; what QEMU finds sound is
/// not refused.
#[track_caller]
fn agrees_with_qemu(lab: &Lab, image: &Path, what: &str) {
    let expected = lab.path("expected.raw");
    let qemu = ask_qemu(image, &expected);
    let _ = std::fs::remove_dir_all(lab.path("one"));
    let repo = Repo::init(lab.path("one"));
    let outcome = backup(&repo, image, &["--format", "qcow2"]);
    match outcome.code() {
        Some(0) => {
            let output = lab.path("ours.raw");
            repo.restore("disk", &output, &["--force"]).ok();
            if qemu.reads {
                assert_same(&expected, &output, what);
            }
        }
        Some(3) => assert!(
            !(qemu.reads && qemu.sound),
            "{what}: QEMU reads it and finds it sound\n{}",
            outcome.report()
        ),
        _ => panic!("{what}:\n{}", outcome.report()),
    }
}

#[test]
fn an_image_cut_anywhere() {
    let lab = Lab::new();
    let sound = filled(&lab, "sound.qcow2", "cluster_size=4k", MIB, 7);
    let whole = std::fs::read(&sound).unwrap();
    let image = lab.path("a.qcow2");
    let mut random = Random::new(8);
    let count = 40 * sweep();
    for number in 0..count {
        // Half of the cuts fall into header and first tables.
        let most = if number % 2 == 0 { 16 << 10 } else { whole.len() as u64 };
        let at = random.below(most);
        std::fs::write(&image, &whole[..at as usize]).unwrap();
        agrees_with_qemu(&lab, &image, &format!("cut at byte {at} of {}", whole.len()));
    }
}

/// Random bytes of the header and of the tables change.
#[test]
fn random_damage_to_metadata() {
    let lab = Lab::new();
    let makes = [
        "cluster_size=4k",
        "cluster_size=512",
        "extended_l2=on,cluster_size=16k",
        "compat=0.10,cluster_size=4k",
        "cluster_size=4k,compression_type=zstd",
    ];
    for (number, options) in makes.into_iter().enumerate() {
        let sound = filled(&lab, &format!("sound{number}.qcow2"), options, MIB, number as u64);
        let whole = std::fs::read(&sound).unwrap();
        let l1 = read_u64(&sound, 40);
        let l2 = read_u64(&sound, l1) & 0x00ff_ffff_ffff_fe00;
        let image = lab.path("a.qcow2");
        let mut random = Random::new(900 + number as u64);
        for round in 0..16 * sweep() {
            let mut bytes = whole.clone();
            let mut changes = Vec::new();
            for _ in 0..=random.below(3) {
                let (base, len) = random.pick(&[(0, 112), (l1, 16), (l2, 512), (l2, 4096)]);
                let at = (base + random.below(len)) as usize;
                let value = random.pick(&[0, 1, 0x40, 0x80, 0xff, random.clone().next() as u8]);
                bytes[at] = value;
                changes.push(format!("{at:#x}={value:#04x}"));
            }
            std::fs::write(&image, &bytes).unwrap();
            agrees_with_qemu(
                &lab,
                &image,
                &format!("{options}, round {round}: {}", changes.join(" ")),
            );
        }
    }
}
