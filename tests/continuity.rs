//! A disk stays what it was from point to point: its format, its image and its guest; and whatever is no
//! disk by itself is taken for one only if somebody says so.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::harness::files::Mount;
use super::harness::guest::{Guest, Host, MIB, UUID};
use super::harness::images::{create, filled, filled_raw, guest_io, overlay, patch, qemu_img};
use super::harness::repo::{Repo, number};
use super::harness::run::as_root;
use super::harness::{Lab, Outcome, args, qdelta, run, tool};

/// The codes of the warnings of a result.
fn codes(report: &Value) -> Vec<&str> {
    let warnings = report["warnings"].as_array().unwrap().iter();
    warnings.map(|warning| warning["code"].as_str().unwrap()).collect()
}

/// Backs an image up under the name of its file.
fn by_name(repo: &Repo, image: &Path, options: &[&str]) -> Outcome {
    let mut words = args!["backup", image, "--json", "--io", "threads"];
    words.extend(options.iter().map(Into::into));
    repo.run(words)
}

/// A qcow2 image whose first cluster was overwritten, whose first page is zero, or that was cut to nothing
/// became a "raw disk": the next night's point was garbage of another size, with status 0 and no warning.
#[test]
fn a_qcow2_image_that_lost_its_header_is_no_raw_disk() {
    let lab = Lab::new();
    let image = filled(&lab, "web.qcow2", "", 4 * MIB, 1);
    let sound = fs::read(&image).unwrap();
    let repo = Repo::init(lab.path("repo"));
    by_name(&repo, &image, &[]).ok();
    let mut noise = sound.clone();
    noise[..65536].fill(0x5a);
    let mut zeros = sound.clone();
    zeros[..4096].fill(0);
    let mut vmdk = sound.clone();
    vmdk[..4].copy_from_slice(b"KDMV");
    for (damaged, why) in [
        (noise.as_slice(), "does not begin like one"),
        (&zeros, "begins with zeros"),
        (&vmdk, "looks like a VMDK image"),
        (&[], "is empty"),
        (&[0], "begins with zeros"),
    ] {
        fs::write(&image, damaged).unwrap();
        for options in [&[][..], &["--kind", "full"], &["--disk", "web"]] {
            let said = by_name(&repo, &image, options).fails_with(3);
            assert!(said.contains(why) && said.contains("was a qcow2 image at point"), "{said}");
            assert!(said.contains("qdelta restore web/disk@"), "{said}");
        }
        assert_eq!(repo.points("web").len(), 1);
    }
    fs::remove_file(&image).unwrap();
    fs::create_dir(&image).unwrap();
    by_name(&repo, &image, &[]).fails_with(3);
    fs::remove_dir(&image).unwrap();
    // Who says that it is raw now means it, and is told once.
    fs::write(&image, &noise).unwrap();
    let report = by_name(&repo, &image, &["--format", "raw"]).ok().json();
    assert!(codes(&report).contains(&"other-format"), "{report}");
    let report = by_name(&repo, &image, &[]).ok().json();
    assert!(codes(&report).is_empty(), "{report}");
    assert_eq!(number(&report, "virtual_size"), noise.len() as u64);
    repo.assert_restores_raw(&lab, "web", &image);
    // And back, as a restore of the image brings it back.
    fs::write(&image, &sound).unwrap();
    let report = by_name(&repo, &image, &["--format", "qcow2"]).ok().json();
    assert!(codes(&report).contains(&"other-format"), "{report}");
    assert!(codes(&by_name(&repo, &image, &[]).ok().json()).is_empty());
    repo.verify();
}

/// The guest of a raw disk wrote a qcow2 header into its first sector: from then on the backup was of
/// the disk that the header described, with a backing file that the guest chose.
#[test]
fn a_raw_disk_stays_raw_whatever_its_guest_writes() {
    let lab = Lab::new();
    let image = filled_raw(&lab, "vm.img", 4 * MIB, 2);
    let repo = Repo::init(lab.path("repo"));
    by_name(&repo, &image, &[]).ok();
    overlay(&lab.path("header"), image.to_str().unwrap(), "raw", None, "");
    patch(&image, 0, &fs::read(lab.path("header")).unwrap());
    for options in [&[][..], &["--kind", "full"]] {
        let report = by_name(&repo, &image, options).ok().json();
        assert_eq!(number(&report, "virtual_size"), 4 * MIB);
        assert_eq!(codes(&report), ["other-format"], "{report}");
        assert!(report["warnings"].to_string().contains("looks like a qcow2 image"), "{report}");
        repo.assert_restores_raw(&lab, "vm", &image);
    }
    assert!(codes(&by_name(&repo, &image, &["--format", "raw"]).ok().json()).is_empty());
    // So does an image that was once taken as a file.
    let encrypted = filled(&lab, "enc.qcow2", "", MIB, 3);
    by_name(&repo, &encrypted, &["--as-file"]).ok();
    let report = by_name(&repo, &encrypted, &[]).ok().json();
    assert_eq!(number(&report, "virtual_size"), fs::metadata(&encrypted).unwrap().len());
    assert!(codes(&by_name(&repo, &encrypted, &["--as-file"]).ok().json()).is_empty());
    // A roll back does not overwrite what has become another kind of file, unless that is said.
    let words = args!["restore", "vm@latest", image.as_path(), "--in-place", "--no-point"];
    let said = repo.run(words.clone()).fails_with(3);
    assert!(said.contains("looks like a qcow2 image") && said.contains("--format raw"), "{said}");
    repo.run([words, args!["--format", "raw"]].concat()).ok();
}

/// Nothing was said when a disk came to be smaller, or when all of it became zero.
#[test]
fn a_disk_that_collapses_is_told_of() {
    let lab = Lab::new();
    let image = filled_raw(&lab, "vm.img", 4 * MIB, 4);
    let repo = Repo::init(lab.path("repo"));
    by_name(&repo, &image, &[]).ok();
    fs::write(&image, "").unwrap();
    let said = by_name(&repo, &image, &[]).fails_with(3);
    assert!(said.contains("is empty") && said.contains("had 4.0 MiB"), "{said}");
    fs::write(&image, vec![0; 4 * MIB as usize]).unwrap();
    let first = by_name(&repo, &image, &[]).ok();
    assert_eq!(codes(&first.json()), ["all-zero"], "{}", first.report());
    assert!(first.stderr.contains("everything on the disk is zero now"), "{}", first.stderr);
    assert!(codes(&by_name(&repo, &image, &[]).ok().json()).is_empty(), "it was zero before");
    assert!(codes(&by_name(&repo, &image, &["--kind", "full"]).ok().json()).is_empty());
    fs::write(&image, vec![1; MIB as usize]).unwrap();
    let report = by_name(&repo, &image, &[]).ok().json();
    assert_eq!(codes(&report), ["smaller"], "{report}");
    assert_eq!(report["warnings"][0]["disk"], "vm/disk");
    let report = by_name(&repo, &image, &[]).ok().json();
    assert!(codes(&report).is_empty(), "{report}");
    fs::write(&image, vec![0; MIB as usize]).unwrap();
    let report = by_name(&repo, &image, &["--kind", "full"]).ok().json();
    assert_eq!(codes(&report), ["all-zero"], "also of a full: {report}");
    fs::write(&image, "").unwrap();
    let report = by_name(&repo, &image, &["--format", "raw"]).ok().json();
    assert_eq!(codes(&report), ["smaller"], "{report}");
    // A disk that is new and empty is nothing to be warned of.
    create(&lab.path("new.qcow2"), "", MIB);
    assert!(codes(&by_name(&repo, &lab.path("new.qcow2"), &[]).ok().json()).is_empty());
}

/// Files that hold a disk, or several files, or are compressed, by programs that make them.
fn foreign(lab: &Lab) -> Vec<(PathBuf, &'static str)> {
    let source = filled_raw(lab, "source.raw", MIB, 5);
    let mut all = Vec::new();
    for (format, options, name) in [
        ("vmdk", "", "VMDK"),
        ("vmdk", "subformat=monolithicFlat", "VMDK"),
        ("vdi", "", "VDI"),
        ("vpc", "subformat=fixed", "VHD"),
        ("vpc", "subformat=dynamic", "VHD"),
        ("vhdx", "", "VHDX"),
        ("qed", "", "QED"),
        ("qcow", "", "qcow image of version 1"),
        ("parallels", "", "Parallels"),
    ] {
        let path = lab.path(format!("{format}-{}.image", all.len()));
        let mut words = args!["convert", "-f", "raw", "-O", format, source.as_path()];
        words.push(path.clone().into());
        if !options.is_empty() {
            words.splice(5..5, args!["-o", options]);
        }
        // Not every build of QEMU writes all of them.
        if qemu_img(words).code() == Some(0) {
            all.push((path, name));
        }
    }
    assert!(all.len() >= 6, "{all:?}");
    let piped = |program: &str| {
        let path = lab.path(format!("{program}.image"));
        let output = fs::File::create(&path).unwrap();
        let input = fs::File::open(&source).unwrap();
        let done = Command::new(program).arg("-c").stdin(input).stdout(output).status();
        done.is_ok_and(|it| it.success()).then_some(path)
    };
    for (program, name) in [("gzip", "gzip"), ("xz", "xz"), ("bzip2", "bzip2"), ("zstd", "zstd")] {
        all.extend(piped(program).map(|path| (path, name)));
    }
    let tar = lab.path("machine.ova");
    run(tool("tar", args!["-cf", tar.as_path(), "-C", lab.dir(), "source.raw"])).ok();
    all.push((tar, "tar"));
    let mut iso = vec![0; MIB as usize];
    iso[0x8001..0x8006].copy_from_slice(b"CD001");
    fs::write(lab.path("debian.iso"), iso).unwrap();
    all.push((lab.path("debian.iso"), "ISO"));
    fs::write(lab.path("luks.image"), b"LUKS\xba\xbe\0\x02 and so on").unwrap();
    all.push((lab.path("luks.image"), "LUKS"));
    all
}

/// Whatever was no qcow2 image was taken for a raw disk: a VMDK was restored as the bytes of a VMDK, and
/// nobody knew before the day of the restore.
#[test]
fn what_is_no_disk_by_itself_is_refused_by_its_name() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    for (path, name) in foreign(&lab) {
        let commands = [
            args!["backup", path.as_path(), "--disk", "x"],
            args!["info", path.as_path()],
            args!["map", path.as_path()],
            args!["bench", path.as_path()],
        ];
        for words in commands {
            let said = repo.run(words.clone()).fails_with(3);
            assert!(said.contains("looks like") && said.contains(name), "{words:?}: {said}");
            assert!(said.contains("--format raw"), "{words:?}: {said}");
        }
        let is_written = |file: &PathBuf| file.starts_with("x");
        assert!(!repo.files().iter().any(is_written), "something was written");
        let disk = path.file_name().unwrap().to_str().unwrap();
        repo.backup(&path, disk, &["--format", "raw"]);
        // It was said once.
        assert!(codes(&repo.backup(&path, disk, &[])).iter().all(|code| *code == "other-format"));
        let file = format!("{disk}.as-file");
        repo.backup(&path, &file, &["--as-file"]);
        repo.assert_restores_raw(&lab, disk, &path);
        repo.assert_restores_raw(&lab, &file, &path);
        run(qdelta(args!["map", path.as_path(), "--format", "raw"])).ok();
    }
    fs::write(lab.path("empty"), "").unwrap();
    let said = repo.run(args!["backup", lab.path("empty")]).fails_with(3);
    assert!(said.contains("is empty") && said.contains("--format raw"), "{said}");
    // One of our own archives is none, either.
    let image = filled_raw(&lab, "plain.raw", MIB, 6);
    repo.backup(&image, "plain", &[]);
    let is_it = |file: &PathBuf| file.starts_with("plain");
    let archive = repo.archives().into_iter().find(is_it).unwrap();
    let said = repo.run(args!["backup", repo.bare(&archive, &lab)]).fails_with(3);
    assert!(said.contains("an archive of qdelta"), "{said}");
    fs::write(lab.path("sealed"), "age-encryption.org/v1\n-> X25519 ").unwrap();
    let said = repo.run(args!["backup", lab.path("sealed")]).fails_with(3);
    assert!(said.contains("a file of age"), "{said}");
}

/// libvirt's definition says what a guest's disk is: a qcow2 image without its header was still refused,
/// with no word on what to do; and a definition with another format made points of another disk silently.
#[test]
fn a_guest_whose_image_is_not_what_its_definition_says() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    host.web(&[]);
    let sound = fs::read(guest.vda()).unwrap();
    for damaged in [&[][..], &[0; 65536]] {
        fs::write(guest.vda(), damaged).unwrap();
        let said = host.web_fails(3, &[]);
        assert!(said.contains("is no qcow2 image"), "{said}");
        assert!(said.contains("restore it"), "{said}");
    }
    fs::write(guest.vda(), &sound).unwrap();
    guest.redefine(&[("name='qemu' type='qcow2'", "name='qemu' type='raw'")]);
    let report = host.web(&[]);
    assert!(codes(&report["disks"][0]).contains(&"other-format"), "{report}");
    // What the guest writes into a raw disk is nobody's business.
    fs::write(guest.vdb(), &sound).unwrap();
    let report = host.web(&[]);
    assert_eq!(number(&report["disks"][1], "virtual_size"), sound.len() as u64);
}

/// `for image in …/*/disk.qcow2` gave the images of all guests one name: their points went into one chain,
/// and with `--quiet` nothing was said.
#[test]
fn another_image_behind_the_name_of_a_disk_is_refused() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    for folder in ["a", "b"] {
        fs::create_dir(lab.path(folder)).unwrap();
    }
    let one = filled(&lab, "a/disk.qcow2", "", MIB, 7);
    let other = filled(&lab, "b/disk.qcow2", "", MIB, 8);
    by_name(&repo, &one, &[]).ok();
    for options in [&[][..], &["--quiet"], &["--kind", "full"], &["--kind", "differential"]] {
        let said = by_name(&repo, &other, options).fails_with(2);
        assert!(said.contains("is another image than at the point before"), "{said}");
        assert!(said.contains(one.to_str().unwrap()), "{said}");
        assert!(said.contains(other.to_str().unwrap()) && said.contains("--disk"), "{said}");
    }
    assert_eq!(repo.points("disk").len(), 1);
    // Under its own name, and under this one if that is said: then it is the disk.
    by_name(&repo, &other, &["--disk", "b"]).ok();
    by_name(&repo, &other, &["--disk", "disk"]).ok();
    by_name(&repo, &other, &[]).ok();
    by_name(&repo, &one, &[]).fails_with(2);
    repo.verify();
}

/// The same image has many names, and moves.
#[test]
fn the_same_image_is_recognised_under_any_name() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    fs::create_dir_all(lab.path("a/deep")).unwrap();
    fs::create_dir(lab.path("b")).unwrap();
    let image = filled(&lab, "a/disk.qcow2", "", MIB, 9);
    symlink(lab.path("a"), lab.path("link")).unwrap();
    symlink("../a/disk.qcow2", lab.path("b/disk.qcow2")).unwrap();
    fs::hard_link(&image, lab.path("a/deep/disk.qcow2")).unwrap();
    for name in [
        "a/disk.qcow2",
        "a/./disk.qcow2",
        "b/../a/disk.qcow2",
        "link/disk.qcow2",
        "b/disk.qcow2",
        "a/deep/disk.qcow2",
    ] {
        by_name(&repo, &lab.path(name), &[]).ok();
    }
    let mut relative = qdelta(repo.args(args!["backup", "./disk.qcow2"]));
    relative.current_dir(lab.path("a"));
    run(relative).ok();
    // Another file in its place is the disk that was restored or converted there.
    fs::copy(&image, lab.path("copy")).unwrap();
    fs::rename(lab.path("copy"), &image).unwrap();
    by_name(&repo, &image, &[]).ok();
    // It is moved within its filesystem.
    fs::create_dir(lab.path("new")).unwrap();
    fs::rename(&image, lab.path("new/disk.qcow2")).unwrap();
    by_name(&repo, &lab.path("new/disk.qcow2"), &[]).ok();
    for point in repo.run(args!["points", "disk", "--json"]).ok().json()["disks"][0]["points"]
        .as_array()
        .unwrap()
    {
        let path = point["image"]["path"].as_str().unwrap();
        assert!(path.starts_with('/') && !path.contains("/."), "{path}");
    }
}

/// An overlay that lies over the image of the point before is the same disk, and so is a base into
/// which it was merged.
#[test]
fn a_snapshot_that_comes_or_goes_leaves_the_disk_the_same() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    for folder in ["base", "over", "top"] {
        fs::create_dir(lab.path(folder)).unwrap();
    }
    let root = ["--image-root", lab.dir().to_str().unwrap()];
    let base = filled(&lab, "base/disk.qcow2", "", MIB, 10);
    let (over, top) = (lab.path("over/disk.qcow2"), lab.path("top/disk.qcow2"));
    by_name(&repo, &base, &[]).ok();
    overlay(&over, base.to_str().unwrap(), "qcow2", None, "");
    overlay(&top, over.to_str().unwrap(), "qcow2", None, "");
    by_name(&repo, &top, &root).ok();
    guest_io(&top, "qcow2", &["write -q -P 4 0 64k".to_owned()]);
    qemu_img(args!["commit", "-q", "-b", base.as_path(), top.as_path()]).ok();
    by_name(&repo, &base, &[]).ok();
    // A disk that shares nothing but a template is another one.
    by_name(&repo, &over, &[&root[..], &["--disk", "clone"]].concat()).ok();
    let sibling = lab.path("top/clone.qcow2");
    overlay(&sibling, base.to_str().unwrap(), "qcow2", None, "");
    by_name(&repo, &sibling, &root).fails_with(2);
    repo.verify();
}

/// A snapshot of a raw disk is a qcow2 image, and the disk is the same; a file that was converted is said to
/// be so.
#[test]
fn a_snapshot_of_a_raw_disk_is_read_as_what_it_is() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let raw = filled_raw(&lab, "disk.raw", MIB, 14);
    by_name(&repo, &raw, &[]).ok();
    let top = lab.path("disk.qcow2");
    overlay(&top, "disk.raw", "raw", None, "");
    guest_io(&top, "qcow2", &["write -q -P 5 0 64k".to_owned()]);
    let report = by_name(&repo, &top, &[]).ok().json();
    assert_eq!((number(&report, "virtual_size"), codes(&report)), (MIB, vec!["other-format"]));
    qemu_img(args!["commit", "-q", top.as_path()]).ok();
    let report = by_name(&repo, &raw, &[]).ok().json();
    assert_eq!((number(&report, "virtual_size"), codes(&report)), (MIB, vec!["other-format"]));
    repo.assert_restores_raw(&lab, "disk", &raw);
    let converted = lab.path("converted.qcow2");
    qemu_img(args!["convert", "-O", "qcow2", raw.as_path(), converted.as_path()]).ok();
    let said = by_name(&repo, &converted, &["--disk", "disk"]).fails_with(3);
    assert!(said.contains("--format qcow2"), "{said}");
    by_name(&repo, &converted, &["--disk", "disk", "--format", "qcow2"]).ok();
    repo.assert_restores_raw(&lab, "disk", &raw);
}

/// Another file behind a guest's target went into the chain of the one before.
#[test]
fn another_file_behind_the_disk_of_a_guest_is_refused() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    guest_io(&guest.vda(), "qcow2", &["write -q -P 1 0 1M".to_owned()]);
    host.web(&[]);
    let (vda, vdb) = (guest.vda(), guest.vdb());
    let (vda, vdb) = (vda.to_str().unwrap(), vdb.to_str().unwrap());
    let path = |name: &str| host.lab.path(name).to_str().unwrap().to_owned();
    // An external snapshot, and a second one.
    let snaps = [path("web.snap1"), path("web.snap2")];
    overlay(Path::new(&snaps[0]), vda, "qcow2", None, "");
    overlay(Path::new(&snaps[1]), &snaps[0], "qcow2", None, "");
    guest.redefine(&[(vda, &snaps[1])]);
    host.web(&[]);
    // A revert: another overlay over the same base.
    let reverted = path("web.revert");
    overlay(Path::new(&reverted), vda, "qcow2", None, "");
    guest.redefine(&[(vda, &reverted)]);
    host.web(&[]);
    // And all is merged.
    guest.redefine(&[]);
    host.web(&[]);
    // Its storage was moved to where nothing shows that it is the same.
    let moved = path("moved.qcow2");
    fs::copy(vda, &moved).unwrap();
    guest.redefine(&[(vda, &moved)]);
    let said = host.web_fails(2, &[]);
    assert!(said.contains("web/vda is another image than at the point before"), "{said}");
    assert!(said.contains("--same-guest"), "{said}");
    host.web(&["--same-guest"]);
    host.web(&[]);
    // Two disks changed places.
    let raw = path("second.raw");
    fs::copy(vdb, &raw).unwrap();
    let drivers = [("type='qcow2'", "type='raw'"), (vda, raw.as_str())];
    guest.redefine(&drivers);
    host.web(&["--same-guest"]);
    guest.redefine(&[("type='qcow2'", "type='raw'"), (vda, "SWAP"), (vdb, &raw), ("SWAP", vdb)]);
    let said = host.web_fails(2, &[]);
    assert!(said.contains("is another image"), "{said}");
    host.assert_sound();
    let words = host.words(&["--all", "--same-guest"]);
    assert_eq!(run(qdelta(words)).code(), Some(2), "of which guest?");
}

/// A disk that a guest had no more, or only until its next start, was missing in all further points
/// without a word.
#[test]
fn a_disk_that_a_guest_has_no_more_is_told_of_once() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    host.web(&[]);
    let gone = |report: &Value| codes(report).contains(&"disk-gone");
    // Left out is not gone: that is said anyway.
    assert!(!gone(&host.web(&["--exclude", "web/vdb"])));
    assert!(!gone(&host.web(&[])));
    // Another bus gives it another name, and a chain of its own.
    guest.redefine(&[("dev='vdb' bus='virtio'", "dev='sdx' bus='scsi'")]);
    let report = host.web(&[]);
    assert!(gone(&report) && report["warnings"].to_string().contains("no disk vdb"), "{report}");
    assert!(!gone(&host.web(&[])), "once is enough");
    guest.redefine(&[]);
    let report = host.web(&[]);
    assert!(gone(&report) && report["warnings"].to_string().contains("no disk sdx"), "{report}");
    host.assert_sound();
}

const OTHER: &str = "11111111-2222-4333-8444-555555555555";

/// Two hosts had a guest of one name, or a guest was undefined and made anew: all points went into one
/// chain, and a restore on one host gave the other's guest without a word.
#[test]
fn two_guests_of_one_name_are_kept_apart() {
    let host = Host::new();
    let guest = Guest::define(&host, host.lab.dir());
    let first = host.web(&[])["point"].as_str().unwrap().to_owned();
    // Capitals make no other guest.
    guest.redefine(&[(UUID, &UUID.to_uppercase())]);
    host.web(&[]);
    guest.redefine(&[(UUID, OTHER)]);
    for options in [&[][..], &["--kind", "full"]] {
        let said = host.web_fails(2, options);
        assert!(said.contains("is another guest than at point"), "{said}");
        assert!(said.contains(UUID) || said.contains(&UUID.to_uppercase()), "{said}");
        assert!(said.contains(OTHER) && said.contains("--same-guest"), "{said}");
    }
    // A restore says whose point it is.
    let to = host.lab.path("to");
    let words = args!["--domain", "web", "--at", first.as_str(), "--to", to.as_path()];
    let outcome = host.restore(words.clone()).ok();
    assert!(
        outcome.text().contains(&format!("of the guest web, UUID {UUID}")),
        "{}",
        outcome.text()
    );
    assert!(outcome.stderr.contains("is another guest here"), "{}", outcome.stderr);
    let report = host.restore([words, args!["--json", "--force"]].concat()).ok().json();
    assert_eq!((&report["guest"], &report["guest_uuid"]), (&"web".into(), &UUID.into()));
    assert_eq!(report["uuid_here"], OTHER);
    assert!(codes(&report).contains(&"other-guest"), "{report}");
    // A roll back would write one guest's disk over the other's.
    for words in [
        args!["--domain", "web", "--at", first.as_str(), "--in-place", "--json"],
        args![format!("web/vda@{first}"), "--in-place", "--json"],
    ] {
        let said = host.restore(words.clone()).fails_with(2);
        assert!(said.contains("another guest") && said.contains("--same-guest"), "{said}");
        let report = host.restore([words, args!["--same-guest"]].concat()).ok().json();
        assert!(report.to_string().contains("other-guest"), "{report}");
    }
    // Said once, it is the guest from then on.
    host.web(&["--same-guest"]);
    host.web(&[]);
    guest.redefine(&[]);
    host.web_fails(2, &[]);
    host.assert_sound();
}

/// An image that was named with `..` had its clone listed twice, and the removal of all anchors failed at
/// the second one; `..` also stood in the definition of a restored guest.
#[test]
fn no_path_with_dots_is_recorded() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    for folder in ["w", "x"] {
        fs::create_dir(mount.dir.join(folder)).unwrap();
    }
    symlink("x", mount.dir.join("link")).unwrap();
    let image = mount.dir.join("x/disk.qcow2");
    create(&image, "", MIB);
    let dotted = mount.dir.join("w/../x/disk.qcow2");
    for name in [&dotted, &mount.dir.join("link/disk.qcow2"), &image] {
        by_name(&host.repo, name, &["--anchor", "reflink"]).ok();
        let list = host.repo.run(args!["anchors", "disk", "--json"]).ok().json();
        assert_eq!(list["anchors"].as_array().unwrap().len(), 1, "{list}");
    }
    by_name(&host.repo, &dotted, &[]).ok();
    host.repo.run(args!["anchors", "disk", "--remove-all"]).ok();
    let guest = Guest::define(&host, host.lab.dir());
    let vda = guest.vda();
    let name = vda.file_name().unwrap().to_str().unwrap();
    let dotted = host.lab.path(format!("etc/../{name}"));
    guest.redefine(&[(vda.to_str().unwrap(), dotted.to_str().unwrap())]);
    let report = host.web(&["--with-host-config"]);
    let point = report["point"].as_str().unwrap();
    let manifest = host.lab.path("manifest");
    host.repo.take_out(Path::new(&format!("web/points/{point}.json")), &manifest);
    let text = fs::read_to_string(manifest).unwrap();
    assert!(!text.contains("/../"), "{text}");
    let to = host.lab.path("etc/../restored");
    let outcome = host.restore(args!["--domain", "web", "--to", to.as_path()]).ok();
    let xml = fs::read_to_string(host.lab.path("restored/web.xml")).unwrap();
    assert!(!xml.contains("/../"), "{xml}");
    assert!(!outcome.text().contains("define /../"), "{}", outcome.text());
    // The hint was text for people alone, and in no JSON.
    let hint = outcome.stderr.contains("say --same-guest at its next backup");
    assert!(hint, "{}", outcome.report());
    let again = args!["--domain", "web", "--to", to.as_path(), "--force", "--json"];
    let warnings = host.restore(again).ok().json()["warnings"].clone();
    let codes: Vec<_> = warnings.as_array().unwrap().iter().map(|it| &it["code"]).collect();
    assert!(codes.iter().any(|code| *code == "other-files"), "{warnings}");
}

/// A filesystem of FUSE for which capitals make no other name. Unmounted at the end.
struct Folding {
    dir: PathBuf,
    device: String,
}

impl Folding {
    fn new(lab: &Lab) -> Self {
        let source = lab.path("exfat.disk");
        fs::File::create(&source).unwrap().set_len(64 * MIB).unwrap();
        run(tool("mkfs.exfat", args![source.as_path()])).ok();
        let dir = lab.path("exfat.mount");
        fs::create_dir(&dir).unwrap();
        let device = run(as_root("losetup", args!["-f", "--show", source.as_path()])).ok().text();
        let folding = Self { dir, device: device.trim().to_owned() };
        let words = args![folding.device.as_str(), folding.dir.as_path()];
        run(as_root("mount.exfat-fuse", words)).ok();
        folding
    }
}

impl Drop for Folding {
    fn drop(&mut self) {
        let _ = as_root("umount", args!["-l", self.dir.as_path()]).status();
        let _ = as_root("losetup", args!["-d", self.device.as_str()]).status();
    }
}

/// On exFAT, `Web` and `web` were one folder: every backup of both said that all was well, and none of
/// web's points could be restored.
#[test]
fn names_that_differ_only_in_case_are_refused_where_they_are_one() {
    let lab = Lab::new();
    let folding = Folding::new(&lab);
    let repo = Repo::init(folding.dir.join("repo"));
    let (one, other) =
        (filled(&lab, "Web.qcow2", "", MIB, 11), filled(&lab, "web.qcow2", "", MIB, 12));
    by_name(&repo, &one, &[]).ok();
    let before = super::harness::files::tree(&repo.path);
    for disk in ["web", "WEB", "web/disk", "Web/DISK", "Web/Points", "Web/MACHINE", "Web/Disk"] {
        let said = by_name(&repo, &other, &["--disk", disk]).fails_with(2);
        assert!(said.contains("can't be told from"), "{disk}: {said}");
    }
    for disk in ["new/Points", "new/MACHINE"] {
        by_name(&repo, &other, &["--disk", disk]).fails_with(2);
    }
    assert_eq!(super::harness::files::tree(&repo.path), before, "something was written");
    repo.run(args!["points", "web"]).fails_with(6);
    by_name(&repo, &one, &[]).ok();
    by_name(&repo, &other, &["--disk", "Web/second"]).ok();
    repo.verify();
    // Elsewhere they are two names.
    let repo = Repo::init(lab.path("repo"));
    by_name(&repo, &one, &[]).ok();
    by_name(&repo, &other, &[]).ok();
    by_name(&repo, &other, &["--disk", "Web/DISK"]).ok();
    repo.verify();
}

/// The same of guests: their folders, and two disks of one guest.
#[test]
fn guests_whose_names_differ_only_in_case_are_refused_too() {
    let host = Host::new();
    let folding = Folding::new(&host.lab);
    let repo = Repo::init(folding.dir.join("repo"));
    let guest = Guest::define(&host, host.lab.dir());
    let capital = guest.xml().replace("<name>web", "<name>Web").replace(UUID, OTHER);
    fs::write(host.lab.path("etc/qemu/Web.xml"), capital).unwrap();
    let mut words = repo.args(args!["backup", "--json", "--all"]);
    words.extend(host.place());
    let outcome = run(qdelta(words.clone()));
    assert_eq!(outcome.code(), Some(12), "{}", outcome.report());
    assert!(outcome.stderr.contains("web can't be told from Web"), "{}", outcome.stderr);
    fs::remove_file(host.lab.path("etc/qemu/Web.xml")).unwrap();
    guest.redefine(&[("<name>web", "<name>two"), ("'vdb'", "'VDA'")]);
    fs::rename(host.lab.path("etc/qemu/web.xml"), host.lab.path("etc/qemu/two.xml")).unwrap();
    let said = run(qdelta(words)).fails_with(2);
    assert!(said.contains("VDA can't be told from vda"), "{said}");
    assert!(!repo.path.join("two").exists(), "something was written");
}

/// `points` ended with 0 where none of the points that it listed could be restored: the base's manifest and
/// archive were gone, or all manifests, or an archive was cut short.
#[test]
fn points_say_what_can_not_be_restored() {
    let lab = Lab::new();
    let image = filled(&lab, "a.qcow2", "", MIB, 13);
    let repo = Repo::init(lab.path("repo"));
    for byte in 1..=3 {
        guest_io(&image, "qcow2", &[format!("write -q -P {byte} 0 64k")]);
        by_name(&repo, &image, &[]).ok();
    }
    let points = repo.points("a");
    repo.copy_to(&lab.path("whole"));
    let archives = repo.archives();
    let archive = |number: usize| {
        let kind = if number == 0 { "full" } else { "incremental" };
        let part = format!("{}-{kind}-", points[number]);
        let of_point = |file: &PathBuf| file.to_string_lossy().contains(&part);
        repo.stored_as(archives.iter().find(|file| of_point(file)).unwrap())
    };
    let manifest = |number: usize| repo.stored_as(format!("a/points/{}.json", points[number]));
    let restorable = |status: i32| {
        let outcome = repo.run(args!["points", "--json"]);
        assert_eq!(outcome.code(), Some(status), "{}", outcome.report());
        let list = outcome.json();
        assert_eq!(list["damaged"].as_array().unwrap().is_empty(), status == 0, "{list}");
        let plain = repo.run(args!["points", "a"]);
        assert_eq!(plain.code(), Some(status), "{}", plain.report());
        assert_eq!(plain.stderr.is_empty(), status == 0, "{}", plain.report());
        let found = list["disks"][0]["points"].as_array().unwrap().clone();
        let is_restorable = |point: &Value| point["restorable"].as_bool().unwrap();
        found.iter().map(is_restorable).collect::<Vec<bool>>()
    };
    let mend = || repo.put_back(&lab.path("whole"));
    assert_eq!(restorable(0), [true; 3]);
    archive(1).remove();
    assert_eq!(restorable(4), [true, false, false]);
    mend();
    // Its own point is lost, and no other.
    manifest(0).remove();
    assert_eq!(restorable(4), [true, true]);
    archive(0).remove();
    assert_eq!(restorable(4), [false, false]);
    repo.restore("a", &lab.path("x.raw"), &[]).fails_with(4);
    mend();
    archive(2).write(&archive(2).bytes()[..100]);
    assert_eq!(restorable(4), [true, true, false]);
    mend();
    archive(0).write(b"");
    assert_eq!(restorable(4), [false; 3]);
    mend();
    (0..3).for_each(|number| manifest(number).remove());
    assert_eq!(restorable(4), [false; 0]);
    mend();
    assert_eq!(restorable(0), [true; 3]);
}

/// A machine file that was missing was status 6 without a word on what to do, where verify said 4.
#[test]
fn a_missing_machine_file_is_damage() {
    let host = Host::new();
    let _guest = Guest::define(&host, host.lab.dir());
    host.web(&[]);
    for file in host.repo.files().iter().filter(|file| file.starts_with("web/machine")) {
        host.repo.stored_as(file).remove();
    }
    let to = host.lab.path("to");
    let said = host.restore(args!["--domain", "web", "--to", to.as_path()]).fails_with(4);
    assert!(said.contains("is missing") && said.contains("qdelta restore web/DISK"), "{said}");
    assert_eq!(run(qdelta(host.repo.args(args!["verify"]))).code(), Some(4));
    host.repo.restore("web/vda", &host.lab.path("vda.raw"), &[]).ok();
}
