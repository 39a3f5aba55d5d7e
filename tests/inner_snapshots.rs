//! Internal snapshots of images that become points of their own (`--with-snapshots`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::harness::content::{Guest as Writer, Random};
use super::harness::faults::traced;
use super::harness::guest::{Guest, Host, MIB, disk};
use super::harness::images::{create, guest_io, oracle, patch, qemu_img, read_u64};
use super::harness::repo::{Repo, point_of};
use super::harness::story::Story;
use super::harness::{Lab, args, run, seeds, temp_dir, tool};

fn write(image: &Path, byte: u8, offset: u64, len: u64) {
    guest_io(image, "qcow2", &[format!("write -q -P {byte} {offset} {len}")]);
}

fn snapshot(image: &Path, name: &str) {
    qemu_img(args!["snapshot", "-c", name, image]).ok();
}

/// The snapshots that a backup made points of: name and point.
fn stored(report: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let all = report["snapshots"].as_array().unwrap().iter();
    all.map(|it| (text(&it["name"]), text(&it["point"]))).collect()
}

/// What `points --json` says of the points of a disk.
fn points(repo: &Repo, disk: &str) -> Vec<Value> {
    let listed = repo.run(args!["points", disk, "--json"]).ok().json();
    listed["disks"][0]["points"].as_array().unwrap().clone()
}

/// Whether a pin of a point still holds, by what `points --json` says of it.
fn is_pinned(point: &Value) -> bool {
    point["pins"].as_array().unwrap().iter().any(|pin| pin["until"].is_null())
}

/// A point of a disk, as `points --json` shows it; nothing if it is not there or removed.
fn shown(repo: &Repo, disk: &str, point: &str) -> Option<Value> {
    points(repo, disk).into_iter().find(|it| it["point"] == point)
}

#[test]
fn each_snapshot_becomes_a_point_before_the_state_and_is_stored_once() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let image = lab.path("web.qcow2");
    create(&image, "", 16 * MIB);
    let mut expected = BTreeMap::new();
    for (number, name) in ["first", "second"].into_iter().enumerate() {
        write(&image, 1 + number as u8, number as u64 * MIB, 2 * MIB);
        snapshot(&image, name);
        let raw = lab.path(format!("{name}.raw"));
        oracle(args!["-l", format!("snapshot.name={name}"), image.as_path()], &raw);
        expected.insert(name.to_owned(), raw);
    }
    write(&image, 9, 0, MIB);
    let report = repo.backup(&image, "web", &["--with-snapshots"]);
    let mut all = stored(&report);
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["first", "second"], "in the order in which they were taken");
    let first = &report["snapshots"][0];
    assert_eq!((&first["kind"], &first["bytes_changed"]), (&"full".into(), &(2 * MIB).into()));
    let second = &report["snapshots"][1];
    assert_eq!((&second["parent"], &second["bytes_changed"]), (&first["point"], &(2 * MIB).into()));
    // All of it was read before: nothing but what the tables have otherwise, and a sample.
    assert_eq!((&report["parent"], &report["tracker"]), (&second["point"], &"snapshot".into()));
    assert_eq!(report["bytes_changed"], MIB);
    let state = lab.path("state.raw");
    oracle(args![image.as_path()], &state);
    repo.assert_restores(&lab, "web", &state);

    // The next night: one is new, and one has gone from the image.
    write(&image, 5, 4 * MIB, MIB);
    snapshot(&image, "third");
    let raw = lab.path("third.raw");
    oracle(args![image.as_path()], &raw);
    expected.insert("third".to_owned(), raw);
    write(&image, 6, 4 * MIB, MIB);
    qemu_img(args!["snapshot", "-d", "first", image.as_path()]).ok();
    let next = repo.backup(&image, "web", &["--with-snapshots"]);
    all.extend(stored(&next));
    assert_eq!(all.len(), 3, "each is stored once: {next}");
    assert_eq!(next["parent"], report["point"], "states follow states");
    let listed = points(&repo, "web");
    for (name, point) in &all {
        let it = listed.iter().find(|it| it["point"] == point.as_str()).unwrap();
        assert_eq!(it["snapshot"]["name"], name.as_str());
        // It is held as long as the image has it.
        assert_eq!(is_pinned(it), name != "first", "{it}");
        repo.assert_restores(&lab, &format!("web@{point}"), &expected[name]);
    }
    let text = repo.run(args!["points", "web"]).ok().text();
    assert!(text.contains("snapshot third of 20"), "{text}");
    oracle(args![image.as_path()], &state);
    repo.assert_restores(&lab, "web", &state);
    let verified = repo.run(args!["verify", "--json"]).ok().json();
    assert_eq!(verified["findings"].as_array().unwrap().len(), 0);

    // Rules pass over those that are held; the one that is gone is an ordinary point.
    repo.run(args!["prune", "--keep-last", "1", "--grace", "0"]).ok();
    let left: Vec<Value> = points(&repo, "web").iter().map(|it| it["point"].clone()).collect();
    let of = |name: &str| Value::from(all.iter().find(|(it, _)| it == name).unwrap().1.clone());
    assert_eq!(left, [of("second"), of("third"), next["point"].clone()]);
    for name in ["second", "third"] {
        let selector = format!("web@{}", of(name).as_str().unwrap());
        repo.assert_restores(&lab, &selector, &expected[name]);
    }
    repo.assert_restores(&lab, "web", &state);
    // What was removed is not stored again as long as its snapshot is gone, and the others are known.
    let last = repo.backup(&image, "web", &["--with-snapshots"]);
    assert_eq!(stored(&last), []);
}

/// A snapshot is older than its point: whoever asks for the latest state, or for that of a day, must not get it.
#[test]
fn latest_and_times_pass_over_snapshots() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let image = lab.path("web.qcow2");
    create(&image, "", MIB);
    write(&image, 1, 0, MIB);
    snapshot(&image, "old");
    write(&image, 2, 0, MIB);
    let report = repo.backup(&image, "web", &["--with-snapshots"]);
    let point = stored(&report)[0].1.clone();
    // As if the backup had ended before the state had its point.
    let state = point_of(&report);
    let name = |text: &str| text.contains(&state);
    for file in repo.files().iter().filter(|file| name(file.to_str().unwrap())) {
        repo.stored_as(file).remove();
    }
    for selector in ["web", "web@2999-01-01"] {
        let said = repo.restore(selector, &lab.path("out.raw"), &[]).fails_with(6);
        assert!(said.contains("only points of snapshots") && said.contains(&point), "{said}");
    }
    let expected = lab.path("old.raw");
    oracle(args!["-l", "old", image.as_path()], &expected);
    repo.assert_restores_raw(&lab, &format!("web@{point}"), &expected);
    // The next state begins anew, and the snapshot is known.
    let next = repo.backup(&image, "web", &["--with-snapshots"]);
    assert_eq!((stored(&next), &next["kind"]), (Vec::new(), &"full".into()));
}

/// A guest of two qcow2 disks.
fn two_disks<'a>(host: &'a Host) -> (Guest<'a>, [PathBuf; 2]) {
    let guest = Guest::define(host, host.lab.dir());
    let vdb = host.lab.path("data.qcow2");
    create(&vdb, "", 4 * MIB);
    let raw = "type='raw'/>\n      <source file='";
    let (old, new) = (format!("{raw}{}", guest.vdb().display()), vdb.display());
    guest.redefine(&[(&old, &format!("type='qcow2'/>\n      <source file='{new}"))]);
    let vda = guest.vda();
    (guest, [vda, vdb])
}

#[test]
fn snapshots_of_one_moment_are_one_point() {
    let host = Host::new();
    let (_guest, images) = two_disks(&host);
    // As virsh snapshot-create has it of a stopped guest: one disk after the other.
    for (number, image) in images.iter().enumerate() {
        write(image, 1 + number as u8, 0, MIB);
        snapshot(image, "both");
    }
    write(&images[0], 3, MIB, MIB);
    snapshot(&images[0], "one");
    for image in &images {
        write(image, 7, 0, MIB);
    }
    // In the middle of its work: the point is what a power cut would leave.
    let table = read_u64(&images[0], 64);
    let second = table + 40 + 24 + 1 + 4;
    patch(&images[0], second.next_multiple_of(8) + 24, &77_u64.to_be_bytes());
    let report = host.web(&["--with-snapshots"]);
    let [vda, vdb] = [0, 1].map(|number| stored(&report["disks"][number]));
    assert_eq!(vda.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["both", "one"]);
    assert_eq!(vdb, vda[..1], "one point has both disks");
    let listed = points(&host.repo, "web/vda");
    let consistency: Vec<&str> =
        listed.iter().map(|it| it["consistency"].as_str().unwrap()).collect();
    assert_eq!(consistency, ["offline", "crash-consistent", "offline"]);
    let restored = |disk: &str, point: &str, expected: &[u8]| {
        let output = host.lab.path("restored");
        let selector = format!("web/{disk}@{point}");
        host.repo.restore(&selector, &output, &["--format", "raw"]).ok();
        assert!(fs::read(&output).unwrap() == expected, "{selector}");
        fs::remove_file(output).unwrap();
    };
    restored("vda", &vda[0].1, &disk(8, &[(0, MIB, 1)]));
    restored("vdb", &vda[0].1, &disk(4, &[(0, MIB, 2)]));
    restored("vda", &vda[1].1, &disk(8, &[(0, MIB, 1), (MIB, MIB, 3)]));
    host.assert_restores("vdb", &disk(4, &[(0, MIB, 7)]));
    // All disks go back to one moment.
    let words = args!["--domain", "web", "--in-place", "--at", vda[0].1.as_str()];
    host.restore(words).ok();
    for (image, byte) in images.iter().zip([1, 2]) {
        guest_io(image, "qcow2", &[format!("read -q -P {byte} 0 {MIB}")]);
    }
    // It is no whole guest, and says so.
    let words = args!["--domain", "web", "--to", host.lab.path("to"), "--at", vda[0].1.as_str()];
    let said = host.restore(words).fails_with(6);
    assert!(said.contains("snapshots") && said.contains("qdelta restore web/DISK@"), "{said}");
    host.assert_sound();
}

/// What can't be stored of a snapshot costs no state its point.
#[test]
fn a_damaged_snapshot_is_a_warning() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let image = lab.path("web.qcow2");
    create(&image, "", MIB);
    for (number, name) in ["good", "bad"].into_iter().enumerate() {
        write(&image, 1 + number as u8, 0, MIB);
        snapshot(&image, name);
    }
    let table = read_u64(&image, 64);
    let second = (table + 40 + 24 + 1 + 4).next_multiple_of(8);
    patch(&image, second, &0xff_ffff_0000_u64.to_be_bytes());
    let report = repo.backup(&image, "web", &["--with-snapshots"]);
    assert_eq!(stored(&report).len(), 1);
    let warnings = report["warnings"].as_array().unwrap();
    let is_it = |it: &&Value| it["code"] == "snapshot-left-out";
    let text = warnings.iter().find(is_it).unwrap()["text"].as_str().unwrap();
    assert!(text.contains("snapshot bad"), "{text}");
    let state = lab.path("state.raw");
    oracle(args![image.as_path()], &state);
    repo.assert_restores(&lab, "web", &state);
}

/// A snapshot whose tables were damaged was taken for one that is gone, and its point, all that was left of it, lost its pin.
/// Two with one id were stored as the first of them.
#[test]
fn a_snapshot_that_can_t_be_read_any_more_keeps_its_point() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let image = lab.path("web.qcow2");
    create(&image, "", MIB);
    for (byte, name) in [(1, "s"), (2, "qdelta-before-upgrade")] {
        write(&image, byte, 0, MIB);
        snapshot(&image, name);
    }
    // A name that begins like an anchor's is none.
    let first = stored(&repo.backup(&image, "web", &["--with-snapshots"]));
    assert_eq!(first.len(), 2, "{first:?}");
    let is_held = || is_pinned(&shown(&repo, "web", &first[0].1).unwrap());
    assert!(is_held());
    let table = read_u64(&image, 64);
    let l1 = read_u64(&image, table);
    patch(&image, table, &0xff_ffff_0000_u64.to_be_bytes());
    let report = repo.backup(&image, "web", &["--with-snapshots"]);
    assert!(report["warnings"].to_string().contains("snapshot s"), "{report}");
    assert!(is_held());
    patch(&image, table, &l1.to_be_bytes());
    // The second entry gets the id of the first.
    let second = (table + 40 + 24 + 1 + 1).next_multiple_of(8);
    patch(&image, second + 40 + 24, b"1");
    let report = repo.backup(&image, "web", &["--with-snapshots"]);
    assert!(stored(&report).is_empty(), "{report}");
    assert!(report["warnings"].to_string().contains("has the same id"), "{report}");
    qemu_img(args!["snapshot", "-d", "s", image.as_path()]).ok();
    repo.backup(&image, "web", &["--with-snapshots"]);
    assert!(!is_held(), "it is gone");
}

/// An image was put back that had a snapshot again which had been gone: its point was known, so it got no other, and it was
/// not pinned, so the rules removed it.
#[test]
fn a_snapshot_that_comes_back_is_held_again() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let second = Repo::init(lab.path("second"));
    let (image, kept) = (lab.path("web.qcow2"), lab.path("kept.qcow2"));
    create(&image, "", MIB);
    write(&image, 1, 0, MIB);
    snapshot(&image, "s");
    let expected = lab.path("s.raw");
    oracle(args![image.as_path()], &expected);
    let night = || repo.backup(&image, "web", &["--with-snapshots"]);
    let copy = || repo.run(copy_to(&second, &[])).ok();
    let point = stored(&night())[0].1.clone();
    copy();
    let held = |repo: &Repo| shown(repo, "web", &point).map(|it| is_pinned(&it));
    fs::copy(&image, &kept).unwrap();
    let lose = || qemu_img(args!["snapshot", "-d", "s", image.as_path()]).ok();
    lose();
    night();
    copy();
    assert_eq!((held(&repo), held(&second)), (Some(false), Some(false)));
    for repo in [&repo, &second] {
        repo.run(args!["prune", "--keep-last", "1", "--grace", "30d"]).ok();
        assert_eq!(held(repo), None, "the rules have removed it");
    }
    // The image of before is put back, in the same file.
    fs::write(&image, fs::read(&kept).unwrap()).unwrap();
    assert_eq!(stored(&night()), [], "it is known");
    copy();
    for repo in [&repo, &second] {
        assert_eq!(held(repo), Some(true));
        repo.run(args!["prune", "--keep-last", "1", "--grace", "0"]).ok();
        repo.assert_restores(&lab, &format!("web@{point}"), &expected);
    }
    // What an admin took away does not come back.
    let pin = format!("web@{point}");
    repo.run(args!["unpin", pin, "--holder", "snapshot"]).ok();
    night();
    assert_eq!(held(&repo), Some(false));
}

/// The points of snapshots of a disk that the guest had no more stayed pinned for ever, and nothing said so.
#[test]
fn a_disk_that_has_gone_holds_its_snapshots_with_a_word() {
    let host = Host::new();
    let (guest, images) = two_disks(&host);
    write(&images[1], 1, 0, MIB);
    snapshot(&images[1], "s");
    let report = host.web(&["--with-snapshots"]);
    let point = stored(&report["disks"][1])[0].1.clone();
    assert!(!report.to_string().contains("snapshot-held"), "{report}");
    let xml = guest.xml();
    let start = xml[..xml.find("dev='vdb'").unwrap()].rfind("<disk").unwrap();
    let end = start + xml[start..].find("</disk>").unwrap() + "</disk>".len();
    guest.redefine(&[(&xml[start..end], "")]);
    for _ in 0..2 {
        let report = host.web(&["--with-snapshots"]);
        let text = report["warnings"].to_string();
        assert!(text.contains("snapshot-held") && text.contains(&point), "{report}");
        // A night without its disk does not say that a disk has gone.
        assert!(!host.web(&[]).to_string().contains("snapshot-held"));
    }
    let place = format!("web@{point}");
    host.repo.run(args!["unpin", place, "--holder", "snapshot"]).ok();
    let report = host.web(&["--with-snapshots"]);
    assert!(!report.to_string().contains("snapshot-held"), "{report}");
}

/// A host that can't read its own points any more stored every snapshot a second time, without a word.
#[test]
fn a_host_whose_state_was_lost_says_that_snapshots_may_be_there_twice() {
    let lab = Lab::new();
    let repo = Repo::encrypted(lab.path("repo")).without_ring();
    let key = lab.path("host.key");
    repo.run(args!["key", "host", key.as_path()]).ok();
    let (host, state) = (repo.with_key(&key), lab.path("host-state"));
    let image = lab.path("web.qcow2");
    create(&image, "", MIB);
    write(&image, 1, 0, MIB);
    snapshot(&image, "s");
    let night = |status: i32| {
        let words = args!["backup", image.as_path(), "--disk", "web", "--with-snapshots", "--json"];
        let done = host.run([words, args!["--state", state.as_path()]].concat());
        assert_eq!(done.code(), Some(status), "{}", done.report());
        done.json()
    };
    let first = night(0);
    let point = stored(&first)[0].1.clone();
    let again = night(0);
    assert!(stored(&again).is_empty() && !again.to_string().contains("snapshot-held"), "{again}");
    fs::remove_dir_all(&state).unwrap();
    // The chain begins anew, which is a failure.
    let lost = night(4);
    assert_eq!(stored(&lost).len(), 1, "{lost}");
    let text = lost["warnings"].to_string();
    assert!(text.contains("snapshot-held") && text.contains(&point), "{lost}");
    // Once is enough: this one can be read.
    let after = night(0);
    assert!(stored(&after).is_empty() && !after.to_string().contains("snapshot-held"), "{after}");
}

/// Snapshots of one moment that had been stored in two nights were new each night; and a damaged one of one disk cost the
/// other disks theirs.
#[test]
fn a_moment_may_be_in_several_points() {
    let host = Host::new();
    let (_guest, images) = two_disks(&host);
    let take = |name: &str| {
        for (number, image) in images.iter().enumerate() {
            write(image, 1 + number as u8, 0, MIB);
            snapshot(image, name);
        }
    };
    let all = |report: &Value| -> Vec<Vec<(String, String)>> {
        report["disks"].as_array().unwrap().iter().map(stored).collect()
    };
    take("s");
    for left_out in ["web/vdb", "web/vda"] {
        let report = host.web(&["--with-snapshots", "--exclude", left_out]);
        assert_eq!(all(&report).concat().len(), 1, "{report}");
    }
    let report = host.web(&["--with-snapshots"]);
    assert!(all(&report).concat().is_empty(), "{report}");
    assert!(!report.to_string().contains("snapshot-left-out"), "{report}");
    // The other disk stays as it is, and that is said.
    let first = host.points().into_iter().next().unwrap();
    let words = args!["--domain", "web", "--in-place", "--at", first, "--no-point"];
    let said = host.restore(words).ok();
    assert!(said.stderr.contains("disk vdb is as it is now"), "{}", said.report());
    take("t");
    // The first table of clusters of the second disk's newest snapshot lies nowhere.
    let table = read_u64(&images[1], 64);
    let second = (table + 40 + 24 + 1 + 1).next_multiple_of(8);
    let l1 = read_u64(&images[1], second);
    patch(&images[1], l1, &0x8000_7fff_ffff_0000_u64.to_be_bytes());
    for night in 0..2 {
        let report = host.web(&["--with-snapshots"]);
        let [vda, vdb] = [0, 1].map(|number| report["disks"][number].clone());
        assert_eq!((stored(&vda).len(), stored(&vdb).len()), (1 - night, 0), "{report}");
        assert!(report.to_string().contains("snapshot t"), "{report}");
        assert!(!vda["warnings"].to_string().contains("snapshot"), "{vda}");
    }
}

/// The words of a copy to a repository, with its key.
fn copy_to(other: &Repo, options: &[&str]) -> Vec<std::ffi::OsString> {
    let mut words = args!["copy", "--to", other.path.as_path()];
    words.extend(other.key.iter().flat_map(|key| args!["--other-key-file", key.as_path()]));
    words.extend(options.iter().map(Into::into));
    words
}

/// A copy lost the point of a snapshot by its own rules, and the next copy brought it again, night by night.
#[test]
fn a_copy_holds_a_snapshot_as_long_as_the_image_does() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let second = Repo::init(lab.path("second"));
    let image = lab.path("web.qcow2");
    create(&image, "", MIB);
    write(&image, 1, 0, MIB);
    snapshot(&image, "old");
    write(&image, 2, 0, MIB);
    let report = repo.backup(&image, "web", &["--with-snapshots"]);
    let point = stored(&report)[0].1.clone();
    let copy = || repo.run(copy_to(&second, &[])).ok();
    let prune = || second.run(args!["prune", "--keep-last", "1", "--grace", "0"]).ok();
    let there = || points(&second, "web").iter().any(|it| it["point"] == point.as_str());
    copy();
    prune();
    assert!(there(), "the image has it");
    qemu_img(args!["snapshot", "-d", "old", image.as_path()]).ok();
    repo.backup(&image, "web", &["--with-snapshots"]);
    copy();
    prune();
    assert!(!there(), "the rules decide, there, too");
    let state = lab.path("state.raw");
    oracle(args![image.as_path()], &state);
    second.assert_restores(&lab, "web", &state);
}

/// A snapshot and its point were gone here before the copy ran again: there the point stayed pinned for ever.
#[test]
fn a_copy_lets_go_of_a_snapshots_point_that_went_between_two_copies() {
    let lab = Lab::new();
    let repo = Repo::init(lab.path("repo"));
    let [second, third] = ["second", "third"].map(|name| Repo::init(lab.path(name)));
    let image = lab.path("web.qcow2");
    create(&image, "", MIB);
    write(&image, 1, 0, MIB);
    snapshot(&image, "old");
    let report = repo.backup(&image, "web", &["--with-snapshots"]);
    let point = stored(&report)[0].1.clone();
    let copy = |from: &Repo, to: &Repo| from.run(copy_to(to, &[])).ok();
    let pins = |repo: &Repo| {
        let points = points(repo, "web").into_iter();
        let mut is_it = points.filter(|it| it["point"] == point.as_str());
        is_it.next().map(|it| it["pins"].as_array().unwrap().len())
    };
    copy(&repo, &second);
    copy(&second, &third);
    assert_eq!(pins(&third), Some(1));
    qemu_img(args!["snapshot", "-d", "old", image.as_path()]).ok();
    write(&image, 2, 0, MIB);
    repo.backup(&image, "web", &["--with-snapshots"]);
    repo.run(args!["prune", "--keep-last", "1", "--grace", "0"]).ok();
    assert_eq!(pins(&repo), None);
    copy(&repo, &second);
    assert_eq!(pins(&second), Some(0), "the rules decide, there, too");
    second.run(args!["prune", "--keep-last", "1", "--grace", "0"]).ok();
    assert_eq!(pins(&second), None);
    copy(&second, &third);
    assert_eq!(pins(&third), Some(0), "and in a copy of the copy");
}

/// A repository that was made anew has nothing to say of what was in the one before, nor has one whose manifest is
/// lost.
#[test]
fn a_copy_keeps_the_pin_of_a_snapshot_of_which_its_source_knows_nothing() {
    let lab = Lab::new();
    let [repo, anew] = ["repo", "anew"].map(|name| Repo::init(lab.path(name)));
    let second = Repo::init(lab.path("second"));
    let image = lab.path("web.qcow2");
    create(&image, "", MIB);
    write(&image, 1, 0, MIB);
    snapshot(&image, "old");
    let report = repo.backup(&image, "web", &["--with-snapshots"]);
    let point = stored(&report)[0].1.clone();
    let copy = |from: &Repo| from.run(copy_to(&second, &["--same-guest"])).sane().code().unwrap();
    let is_pinned = || {
        let points = points(&second, "web").into_iter();
        let mut it = points.filter(|it| it["point"] == point.as_str());
        !it.next().unwrap()["pins"].as_array().unwrap().is_empty()
    };
    assert_eq!(copy(&repo), 0);
    anew.backup(&image, "web", &[]);
    assert_eq!(copy(&anew), 0);
    assert!(is_pinned());
    repo.backup(&image, "web", &[]);
    let manifest = format!("web/points/{point}.json");
    repo.stored_as(&manifest).patch(10, b"#");
    copy(&repo);
    assert!(is_pinned());
    repo.stored_as(&manifest).remove();
    copy(&repo);
    assert!(is_pinned());
}

/// Killed at whatever moment, a backup leaves nothing that the next one does not finish: each snapshot has one point in
/// the end.
#[test]
fn a_killed_backup_stores_no_snapshot_twice() {
    let lab = Lab::new();
    let image = lab.path("web.qcow2");
    create(&image, "", 4 * MIB);
    let mut expected = BTreeMap::new();
    for number in 0..3 {
        let name = format!("s{number}");
        write(&image, 1 + number, u64::from(number) * MIB / 2, MIB);
        snapshot(&image, &name);
        let raw = lab.path(format!("{name}.raw"));
        oracle(args![image.as_path()], &raw);
        expected.insert(name, raw);
    }
    write(&image, 9, 0, MIB);
    let state = lab.path("state.raw");
    oracle(args![image.as_path()], &state);
    // At each moment at which a file of the repository gets its name: two of each point.
    for at in 1..=8 {
        let repo = Repo::init(lab.path(format!("repo{at}"))).without_ring();
        let inject = format!("inject=renameat2:signal=SIGKILL:when={at}");
        let backup = args!["backup", image.as_path(), "--disk", "web", "--io", "threads"];
        let mut words = repo.args(backup);
        words.extend(args!["--with-snapshots", "--anchor", "snapshot"]);
        run(traced(args!["-o", "/dev/null", "-e", inject], words));
        repo.backup(&image, "web", &["--with-snapshots", "--anchor", "snapshot"]);
        let listed = points(&repo, "web");
        for (name, raw) in &expected {
            let of_it: Vec<&Value> =
                listed.iter().filter(|it| it["snapshot"]["name"] == name.as_str()).collect();
            assert_eq!(of_it.len(), 1, "{name}, killed at {at}: {listed:?}");
            let point = of_it[0]["point"].as_str().unwrap();
            repo.assert_restores_raw(&lab, &format!("web@{point}"), raw);
        }
        repo.assert_restores_raw(&lab, "web", &state);
        repo.run(args!["verify"]).ok();
    }
}

/// A life: writes, snapshots, reverts, deletions, growth, and backups with and without the snapshots. The net below
/// the trackers is off.
fn live(seed: u64, folder: &Path) -> u64 {
    let lab = Lab::within(folder);
    let mut story = Story { seed, told: Vec::new() };
    let mut random = Random::new(seed);
    let mut writer = Writer::new(lab.dir(), random.next());
    let image = lab.path("disk.qcow2");
    let options = random.pick(&["", "cluster_size=4k", "lazy_refcounts=on", "compat=0.10"]);
    let mut size = (1 + random.below(12)) * 512 * 1024 + random.below(4) * 512;
    create(&image, options, size);
    guest_io(&image, "qcow2", &writer.fill(size, 3));
    let repo = Repo::init(lab.path("repo")).without_ring();
    let block = random.pick(&["4K", "64K", "1M"]);
    // What each snapshot showed when it was taken, and the size of the disk then.
    let mut shown: BTreeMap<String, (PathBuf, u64)> = BTreeMap::new();
    let mut in_image: Vec<String> = Vec::new();
    let mut expected: Vec<(String, PathBuf)> = Vec::new();
    let (mut kept, mut states) = (BTreeMap::new(), 0);
    for number in 0..14 {
        match random.below(7) {
            0 | 1 => {
                let name = format!("s{number}");
                snapshot(&image, &name);
                let raw = lab.path(format!("{name}.raw"));
                oracle(args![image.as_path()], &raw);
                story.tell(format!("snapshot {name}"));
                shown.insert(name.clone(), (raw, size));
                in_image.push(name);
            }
            2 if !in_image.is_empty() => {
                let name = in_image[random.below(in_image.len() as u64) as usize].clone();
                // QEMU reverts to no state of another size.
                if shown[&name].1 == size {
                    qemu_img(args!["snapshot", "-a", name.as_str(), image.as_path()]).ok();
                    story.tell(format!("revert to {name}"));
                }
            }
            3 if !in_image.is_empty() => {
                let name = in_image.remove(random.below(in_image.len() as u64) as usize);
                qemu_img(args!["snapshot", "-d", name.as_str(), image.as_path()]).ok();
                story.tell(format!("delete {name}"));
            }
            4 if random.one_in(2) => {
                let larger = size + 512 * (1 + random.below(1 << 11));
                let words = args!["resize", "-q", image.as_path(), larger.to_string()];
                if qemu_img(words).code() == Some(0) {
                    story.tell(format!("grow from {size} to {larger}"));
                    size = larger;
                }
            }
            _ => {
                let acts: Vec<String> = (0..4).map(|_| writer.act(size)).collect();
                guest_io(&image, "qcow2", &acts);
                story.tell(acts.join("; "));
            }
        }
        if !random.one_in(3) {
            continue;
        }
        let anchor = random.pick(&["auto", "none", "snapshot", "bitmap"]);
        let kind =
            if states == 0 { "auto" } else { random.pick(&["auto", "auto", "differential"]) };
        let mut options = vec!["--anchor", anchor, "--kind", kind, "--sample", "0"];
        if states == 0 {
            options.extend(["--block-size", block]);
        }
        let with = random.below(4) > 0;
        options.extend(with.then_some("--with-snapshots"));
        let raw = lab.path(format!("state{number}.raw"));
        oracle(args![image.as_path()], &raw);
        let report = repo.backup(&image, "disk", &options);
        story.tell(format!("backup {options:?}: {report}"));
        states += 1;
        expected.push((point_of(&report), raw));
        for (name, point) in stored(&report) {
            expected.push((point.clone(), shown[&name].0.clone()));
            assert_eq!(kept.insert(name.clone(), point), None, "{name} is stored twice");
        }
        if with {
            let missing = in_image.iter().find(|name| !kept.contains_key(*name));
            assert_eq!(missing, None, "not stored: {report}");
        }
        let check = tool("qemu-img", args!["check", "-q", "-f", "qcow2", image.as_path()]);
        assert_eq!(run(check).code(), Some(0));
    }
    if states > 0 {
        repo.assert_restores_raw(
            &lab,
            "disk",
            &expected.iter().rev().find(|it| !kept.values().any(|point| *point == it.0)).unwrap().1,
        );
    }
    for (point, raw) in &expected {
        story.tell(format!("restore {point}"));
        repo.assert_restores_raw(&lab, &format!("disk@{point}"), raw);
    }
    kept.len() as u64
}

#[test]
fn random_lives_with_snapshots() {
    let folder = temp_dir();
    let kept: u64 = seeds(0x5a_0000, 6).into_iter().map(|seed| live(seed, &folder)).sum();
    assert!(kept >= 6, "only {kept} snapshots were stored");
}
