//! Random lives of disks whose backups leave anchors. The net below the trackers is off, so a claim
//! that has too little shows in what is restored.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::content::{Guest, Random};
use crate::harness::disk::Disk;
use crate::harness::files::{Mount, copy_tree};
use crate::harness::images::{guest_io, oracle, qemu_img};
use crate::harness::repo::{Repo, point_of};
use crate::harness::story::Story;
use crate::harness::{Lab, args, run, seeds, temp_dir, tool};

/// Lives in a run without `QDELTA_SWEEP`, for each of the tests.
const LIVES: u64 = 8;
/// Recovery points in a life.
const POINTS: u64 = 6;

/// How often each tracker was used, and how often refused for which reason.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    trackers: BTreeMap<String, u64>,
    refusals: BTreeMap<String, u64>,
}

/// Why a tracker may be refused, and what must have happened for it since the point before: one of
/// these begins or is in what is told of it. Nothing, where the kind of anchor alone is the cause.
const CAUSES: [(&str, &[&str]); 20] = [
    ("is not saved: QEMU is using it, or was killed", &["killed"]),
    ("has no valid bitmap", &["removed", "convert", "overlay", "older copy", "killed"]),
    ("nothing shows what was allocated", &["the bitmap", "killed"]),
    ("the disk was shrunk", &["resize"]),
    ("was cleared, or is another one", &["older copy", "resize"]),
    ("is another file than", &["copied", "older copy", "convert", "overlay"]),
    ("does not have exactly one snapshot", &["deleted", "convert", "overlay", "older copy"]),
    ("is somebody else's", &["made again: true"]),
    ("a backing file has changed", &["overlay", "pull", "convert", "older copy"]),
    ("lies over other backing files", &["overlay", "pull", "convert", "older copy"]),
    ("does not lie over the image of", &["overlay", "pull", "convert", "older copy"]),
    ("a file of the image has changed", &[""]),
    ("its clone", &["the kept clones", "convert"]),
    ("is not the one that was kept", &["the kept clones"]),
    ("no clone of", &["overlay", "convert", "pull", "older copy"]),
    ("can't be recognised again", &[]),
    ("a clone of the image is read", &[]),
    ("the time of a file of the image proves nothing", &[]),
    ("the new anchor has just been written", &[]),
    ("left no anchor for it", &[]),
];

impl Uses {
    /// Counts how a backup found what changed, and fails if a tracker was refused for a reason that
    /// is none of what `happened`.
    pub fn add(&mut self, done: &serde_json::Value, happened: &[String]) {
        *self.trackers.entry(done["tracker"].as_str().unwrap().to_owned()).or_default() += 1;
        for refusal in done["refused"].as_array().unwrap() {
            let reason = refusal["reason"].as_str().unwrap();
            let known = CAUSES.iter().find(|(words, _)| reason.contains(words));
            let (words, causes) = known.unwrap_or_else(|| panic!("nobody foresaw: {refusal}"));
            let is_cause = |what: &String| causes.iter().any(|cause| what.contains(cause));
            let is_right = causes.is_empty() || happened.iter().any(is_cause);
            assert!(is_right, "{refusal}, but all that happened is {happened:?}");
            let what = format!("{}: {words}", refusal["tracker"].as_str().unwrap());
            *self.refusals.entry(what).or_default() += 1;
        }
    }
}

/// One life in `folder` whose backups leave these anchors.
fn live(seed: u64, format: &'static str, anchors: &[&str], folder: &Path, uses: &mut Uses) {
    let lab = Lab::within(folder);
    let mut story = Story { seed, told: vec![format!("a {format} disk, anchors {anchors:?}")] };
    let mut random = Random::new(seed);
    let mut disk = Disk::new(&lab, &mut random, format);
    let mut guest = Guest::new(lab.dir(), random.next());
    guest_io(&disk.path, format, &guest.fill(disk.size, 3));
    story.tell(format!("{} bytes, {}, over {:?}", disk.size, disk.options, disk.backing));
    let repo = Repo::init(lab.path("repo")).without_ring();
    let block = random.pick(&["4K", "64K", "1M"]);
    let mut points = Vec::new();
    let (mut happened, mut has_anchor) = (Vec::new(), false);
    for number in 0..POINTS {
        let kind = match number {
            0 => "full",
            _ => random.pick(&["auto", "incremental", "incremental", "differential"]),
        };
        let anchor = random.pick(anchors);
        let mut options = vec!["--kind", kind, "--anchor", anchor, "--sample", "0"];
        if kind == "full" {
            options.extend(["--block-size", block]);
        }
        let expected = lab.path(format!("expected{number}.raw"));
        if was_emptied(&disk, &happened) {
            let said = repo.backup_run(&disk.path, "disk", &options).fails_with(3);
            assert!(said.contains("compressed cluster"), "{said}");
            break;
        }
        oracle(args!["-f", format, disk.path.as_path()], &expected);
        let done = repo.backup(&disk.path, "disk", &options);
        story.tell(format!("backup {done}"));
        if kind != "full" {
            uses.add(&done, &happened);
        }
        assert_sound(&disk);
        points.push((point_of(&done), expected));
        happened.clear();
        if done["anchor"].is_null() && has_anchor {
            happened.push("the old anchor is removed".to_owned());
        }
        has_anchor = done["anchor"].is_string();
        for _ in 0..random.below(4) {
            let what = match guest.random.below(6) {
                0 => meddle(&lab, &mut disk, &mut guest),
                _ => disk.change(&lab, &mut guest),
            };
            story.tell(what.clone());
            happened.push(what);
        }
    }
    for (id, expected) in &points {
        story.tell(format!("restore {id}"));
        repo.assert_restores_raw(&lab, &format!("disk@{id}"), expected);
    }
}

/// Whether QEMU itself can't read a compressed cluster any more: where it was killed while it
/// discarded, it has emptied the cluster in the file, and the table still names it.
fn was_emptied(disk: &Disk, happened: &[String]) -> bool {
    let discarded = |what: &String| what.starts_with("killed") && what.contains("discard");
    if !happened.iter().any(discarded) {
        return false;
    }
    let read = format!("read -q 0 {}", disk.size);
    let outcome =
        run(tool("qemu-io", args!["-r", "-f", disk.format, "-c", read, disk.path.as_path()]));
    outcome.text().contains("read failed: Input/output error")
        || outcome.stderr.contains("Input/output error")
}

/// What qdelta wrote into the image must be in order.
fn assert_sound(disk: &Disk) {
    if disk.format == "qcow2" {
        let info = qemu_img(args!["info", "--output=json", disk.path.as_path()]).ok().json();
        if info["dirty-flag"] == true {
            // Killed with lazy reference counts: they are stale until QEMU opens it again.
            return;
        }
        let outcome = qemu_img(args!["check", "-q", "-f", "qcow2", disk.path.as_path()]);
        // Leaks are all that a writer that was killed may leave.
        assert!(matches!(outcome.code(), Some(0 | 3)), "{}", outcome.report());
    }
}

/// What spoils the work of trackers.
fn meddle(lab: &Lab, disk: &mut Disk, guest: &mut Guest) -> String {
    match guest.random.below(5) {
        0 => kill_a_writer(disk, guest),
        1 => {
            // An older state comes back in place of the image, as from another backup.
            let copy = lab.path("older");
            let _ = std::fs::create_dir(&copy);
            let older = copy.join(disk.path.file_name().unwrap());
            if older.exists() && disk.backing.is_none() && disk.is_as_it_was() {
                run(tool(
                    "cp",
                    args!["-a", "--sparse=always", older.as_path(), disk.path.as_path()],
                ))
                .ok();
                std::fs::remove_file(&older).unwrap();
                return format!("an older copy is put in its place: {}", disk.look_again());
            }
            run(tool("cp", args!["-a", "--sparse=always", disk.path.as_path(), older.as_path()]))
                .ok();
            disk.remember();
            "an older copy is put aside".to_owned()
        }
        2 => remove_an_anchor(disk, guest),
        3 => {
            // The same bytes in another file.
            let other = lab.path("other");
            run(tool("cp", args!["--sparse=always", disk.path.as_path(), other.as_path()])).ok();
            std::fs::rename(&other, &disk.path).unwrap();
            "copied to another file".to_owned()
        }
        _ => {
            let folder = disk.path.with_file_name(".qdelta");
            if !folder.exists() {
                return "there are no kept clones".to_owned();
            }
            if guest.random.one_in(2) {
                std::fs::remove_dir_all(&folder).unwrap();
                return "the kept clones are deleted".to_owned();
            }
            // The same bytes under the same names, and not the same blocks.
            let copied = lab.path("copied");
            copy_tree(&folder, &copied);
            std::fs::remove_dir_all(&folder).unwrap();
            std::fs::rename(&copied, &folder).unwrap();
            "the kept clones are copied".to_owned()
        }
    }
}

/// QEMU writes, is killed, and saves nothing that it has in memory.
fn kill_a_writer(disk: &Disk, guest: &mut Guest) -> String {
    let acts: Vec<String> = (0..4).map(|_| guest.act(disk.size)).collect();
    let arguments = args!["-f", disk.format, "-d", "unmap", disk.path.as_path()];
    let mut command = tool("qemu-io", arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for (number, act) in acts.iter().enumerate() {
        let _ = writeln!(stdin, "{act}");
        if number == 1 {
            let _ = writeln!(stdin, "flush");
        }
    }
    let _ = stdin.flush();
    std::thread::sleep(Duration::from_millis(20 + guest.random.below(60)));
    child.kill().unwrap();
    child.wait().unwrap();
    format!("killed while it did {}", acts.join("; "))
}

/// A snapshot or bitmap of qdelta's is deleted, and perhaps one of the same name made.
fn remove_an_anchor(disk: &Disk, guest: &mut Guest) -> String {
    if disk.format != "qcow2" {
        return "nothing".to_owned();
    }
    let again = guest.random.one_in(2);
    let info = qemu_img(args!["info", "--output=json", disk.path.as_path()]).ok().json();
    for snapshot in info["snapshots"].as_array().into_iter().flatten() {
        let name = snapshot["name"].as_str().unwrap();
        if name.starts_with("qdelta-") {
            qemu_img(args!["snapshot", "-d", name, disk.path.as_path()]).ok();
            if again {
                guest_io(&disk.path, "qcow2", &[guest.act(disk.size)]);
                qemu_img(args!["snapshot", "-c", name, disk.path.as_path()]).ok();
            }
            return format!("the snapshot {name} is deleted; made again: {again}");
        }
    }
    let bitmaps = &info["format-specific"]["data"]["bitmaps"];
    if let Some(bitmap) = bitmaps.as_array().and_then(|bitmaps| bitmaps.first()) {
        let name = bitmap["name"].as_str().unwrap();
        qemu_img(args!["bitmap", "--remove", disk.path.as_path(), name]).ok();
        return format!("the bitmap {name} is removed");
    }
    "there is no anchor to remove".to_owned()
}

fn live_all(first: u64, format: &'static str, anchors: &[&str], folder: &Path) -> Uses {
    let mut uses = Uses::default();
    let seeds = seeds(first, LIVES);
    for seed in &seeds {
        live(*seed, format, anchors, folder, &mut uses);
    }
    eprintln!("{} lives: {uses:#?}", seeds.len());
    uses
}

/// A tracker that is always refused would pass every history.
#[track_caller]
fn assert_used(uses: &Uses, trackers: &[&str]) {
    for tracker in trackers {
        let alone = std::env::var_os("QDELTA_SEED").is_some();
        assert!(
            alone || uses.trackers.contains_key(*tracker),
            "{tracker} was never used: {uses:?}"
        );
    }
}

#[test]
fn disks_with_bitmaps() {
    let uses = live_all(0x3000, "qcow2", &["bitmap"], &temp_dir());
    assert_used(&uses, &["bitmap", "scan"]);
}

#[test]
fn disks_with_snapshots() {
    let uses = live_all(0x40_0000, "qcow2", &["snapshot"], &temp_dir());
    assert_used(&uses, &["snapshot", "scan"]);
}

#[test]
fn disks_without_anchors() {
    let uses = live_all(0x50_0000, "qcow2", &["none"], &temp_dir());
    assert_used(&uses, &["overlay", "scan"]);
}

#[test]
fn disks_with_clones_on_xfs() {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), "xfs", 1 << 30);
    let anchors = ["reflink", "reflink", "reflink", "auto", "snapshot"];
    let uses = live_all(0x60_0000, "qcow2", &anchors, &mount.dir);
    assert_used(&uses, &["reflink"]);
    let uses = live_all(0x61_0000, "raw", &["reflink"], &mount.dir);
    assert_used(&uses, &["reflink"]);
}

#[test]
fn disks_with_clones_on_btrfs() {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), "btrfs", 1 << 30);
    let uses = live_all(0x70_0000, "qcow2", &["reflink"], &mount.dir);
    assert_used(&uses, &["reflink"]);
}

#[test]
fn disks_with_clones_on_compressed_btrfs() {
    let lab = Lab::new();
    let mount = Mount::on_loop(lab.dir(), "btrfs", 1 << 30);
    run(tool("mount", args!["-o", "remount,compress-force=zstd", mount.dir.as_path()])).ok();
    let uses = live_all(0x80_0000, "qcow2", &["reflink"], &mount.dir);
    assert_used(&uses, &["reflink"]);
    let uses = live_all(0x81_0000, "raw", &["reflink"], &mount.dir);
    assert_used(&uses, &["reflink"]);
}
