//! Backup, restore, replay and verify from the command line: good days, and the status of each bad
//! one.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{Run, done, qdelta, qemu_img, qemu_io, refused, word};

/// A repository and images in a folder of their own.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        done(&["init", &place.at("repo")]);
        place
    }

    fn at(&self, name: &str) -> String {
        word(&self.dir.path().join(name)).to_owned()
    }

    /// A qcow2 image of 64 MiB with something in it.
    fn image(&self, name: &str) -> String {
        let path = self.at(name);
        qemu_img(&["create", "-f", "qcow2", &path, "64M"]);
        qemu_io(&path, &["write -P 7 1M 3M"]);
        path
    }

    /// A raw image that does not compress.
    fn noise(&self, name: &str, len: usize) -> String {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(len);
        while bytes.len() < len {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            bytes.extend(state.to_le_bytes());
        }
        let path = self.at(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = qdelta();
        command.args(words).env("QDELTA_REPO", self.at("repo"));
        command
    }

    fn run(&self, words: &[&str]) -> Run {
        self.command(words).output().unwrap().into()
    }

    #[track_caller]
    fn done(&self, words: &[&str]) -> String {
        let run = self.run(words);
        assert_eq!((run.status, run.stderr.as_str()), (0, ""), "{words:?}: {}", run.stdout);
        run.stdout
    }

    #[track_caller]
    fn refused(&self, status: i32, words: &[&str]) -> String {
        let run = self.run(words);
        assert_eq!((run.status, run.stdout.as_str()), (status, ""), "{words:?}: {}", run.stderr);
        assert!(run.stderr.starts_with("qdelta: "), "{words:?}: {}", run.stderr);
        run.stderr
    }

    /// Every file of the repository but its lock files, relative to it.
    fn files(&self) -> Vec<PathBuf> {
        let root = self.dir.path().join("repo");
        let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if !path.ends_with(".lock") && !path.ends_with(".keep") {
                    found.push(path.strip_prefix(&root).unwrap().to_owned());
                }
            }
        }
        found.sort();
        found
    }

    /// The only archive of a disk.
    fn archive(&self, disk: &str) -> PathBuf {
        let folder = self.dir.path().join("repo").join(disk);
        let mut names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let only = names.next().unwrap();
        assert_eq!(names.next(), None);
        only
    }
}

#[test]
fn a_disk_comes_back_as_it_was_at_each_point() {
    let place = Place::new();
    let image = place.image("web.qcow2");
    let said = place.done(&["backup", &image]);
    assert!(said.starts_with("web/disk@") && said.contains(": full, "), "{said}");
    let first = place.at("first.raw");
    qemu_img(&["convert", "-O", "raw", &image, &first]);
    qemu_io(&image, &["write -P 9 2M 64k", "write -z 3M 64k"]);
    let said = place.done(&["backup", &image]);
    assert!(said.contains(": incremental by scan, "), "{said}");
    assert!(said.contains("changed 128 KiB"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    // Why it was this tracker and no other is said to those who ask.
    let said = place.done(&["backup", &image, "-v", "--track", "auto", "--kind", "differential"]);
    for why in
        ["    against ", "    not by bitmap: ", "    not by snapshot: ", " in blocks of 64 KiB, "]
    {
        assert!(said.contains(why), "{why} is not in {said}");
    }
    assert!(place.done(&["points"]).contains("3 points in 1 chain"));

    let (out, id) = (place.at("out.qcow2"), place.done(&["points", "--json"]));
    let id = id.split("\"point\": \"").nth(1).unwrap()[..20].to_owned();
    let said = place.done(&["restore", "web", &out]);
    assert!(said.contains("(qcow2)"), "{said}");
    qemu_img(&["compare", "-f", "qcow2", "-F", "qcow2", &image, &out]);
    qemu_img(&["check", &out]);
    let raw = place.at("raw");
    place.done(&["restore", &format!("web@{id}"), &raw]);
    assert_eq!(std::fs::read(&raw).unwrap(), std::fs::read(&first).unwrap());
    assert!(place.done(&["verify"]).contains("everything is as it was written"));
    assert!(place.done(&["verify", "--quick"]).contains("all checksums are right"));
}

#[test]
fn a_disk_can_be_named_and_a_time_finds_its_point() {
    let place = Place::new();
    let image = place.image("a.qcow2");
    place.done(&["backup", &image, "--disk", "web/data"]);
    place.done(&["backup", &image, "--disk", "web/root", "--block-size", "4K"]);
    let out = place.at("out.raw");
    place.refused(2, &["restore", "web", &out]);
    place.refused(6, &["restore", "web/data@2020-01-01", &out]);
    place.refused(6, &["restore", "web/swap", &out]);
    place.done(&["restore", "web/data@2999-12-31", &out]);
}

/// A guest's second disk was backed up first; its first one then went into the second's chain.
#[test]
fn a_second_disk_does_not_change_where_the_first_one_goes() {
    let place = Place::new();
    place.done(&["backup", &place.image("web-data.qcow2"), "--disk", "web/data"]);
    let image = place.image("web.qcow2");
    assert!(place.done(&["backup", &image]).starts_with("web/disk@"));
    assert!(place.done(&["backup", &image]).contains("incremental"));
}

/// Two images of one name in different folders.
#[test]
fn another_image_under_the_same_name_is_refused() {
    let place = Place::new();
    place.done(&["backup", &place.image("web.qcow2")]);
    std::fs::create_dir(place.at("other")).unwrap();
    let other = place.image("other/web.qcow2");
    let said = place.refused(2, &["backup", &other]);
    assert!(said.contains("web/disk is another image than at the point before"), "{said}");
    // Whoever says that it is the same disk knows it.
    place.done(&["backup", &place.at("web.qcow2"), "--disk", "web"]);
    place.done(&["backup", &other, "--disk", "web/disk"]);
}

#[test]
fn what_cannot_be_backed_up_leaves_the_repository_as_it_was() {
    let place = Place::new();
    let before = place.files();
    place.refused(6, &["backup", &place.at("missing.qcow2")]);
    let torn = place.at("torn.qcow2");
    std::fs::write(&torn, b"QFI\xfb\0\0\0\x03").unwrap();
    place.refused(3, &["backup", &torn]);
    let odd = place.at("my disk.raw");
    std::fs::write(&odd, [1; 4096]).unwrap();
    let said = place.refused(2, &["backup", &odd]);
    assert!(said.contains("--disk NAME"), "{said}");
    place.refused(6, &["backup", &place.image("a.qcow2"), "--kind", "incremental"]);
    place.refused(6, &["backup", &place.image("b.qcow2"), "--snapshot", "none"]);
    assert_eq!(place.files(), before);
    // What is no repository stays untouched, whatever is to be backed up.
    let empty = place.at("empty");
    std::fs::create_dir(&empty).unwrap();
    refused(6, &["backup", &place.at("a.qcow2"), "--repo", &empty]);
    assert_eq!(std::fs::read_dir(&empty).unwrap().count(), 0);
}

/// The name of an image need not be text.
#[test]
fn an_image_with_an_odd_name_is_backed_up() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let path = place.dir.path().join(OsStr::from_bytes(b"\xff.raw"));
    std::fs::write(&path, [5; 8192]).unwrap();
    let mut command = place.command(&["backup", "--disk", "odd", "--json"]);
    let run = Run::from(command.arg(&path).output().unwrap());
    assert_eq!((run.status, run.stderr.as_str()), (0, ""));
    place.done(&["points"]);
}

#[test]
fn an_output_is_never_overwritten_by_accident() {
    let place = Place::new();
    let image = place.noise("vm.raw", 300_000);
    place.done(&["backup", &image]);
    let out = place.at("out.raw");
    std::fs::write(&out, "mine").unwrap();
    let said = place.refused(7, &["restore", "vm", &out]);
    assert!(said.contains("--force"), "{said}");
    assert_eq!(std::fs::read(&out).unwrap(), b"mine");
    place.done(&["restore", "vm", &out, "--force"]);
    assert_eq!(std::fs::read(&out).unwrap(), std::fs::read(&image).unwrap());

    // Not even then an archive that is read.
    let archive = place.archive("vm/disk");
    let before = std::fs::read(&archive).unwrap();
    place.refused(2, &["replay", word(&archive), "--output", word(&archive), "--force"]);
    assert_eq!(std::fs::read(&archive).unwrap(), before);
    place.refused(2, &["restore", "vm", &place.at("repo/vm/disk/copy.raw")]);
}

#[test]
fn standard_output_takes_raw_and_is_no_terminal() {
    let place = Place::new();
    let image = place.noise("vm.raw", 300_000);
    place.done(&["backup", &image]);
    let output = place.command(&["restore", "vm", "-"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, std::fs::read(&image).unwrap());
    assert!(String::from_utf8(output.stderr).unwrap().contains("restored to standard output"));
    place.refused(2, &["restore", "vm", "-", "--format", "qcow2"]);

    // `script` gives a program a terminal.
    let line = format!("{} restore vm - --repo {}", env!("CARGO_BIN_EXE_qdelta"), place.at("repo"));
    let script = Command::new("script").args(["-qec", &line, "/dev/null"]).output().unwrap();
    assert_eq!(script.status.code(), Some(2));
    let said = String::from_utf8(script.stdout).unwrap();
    assert!(said.contains("not for a terminal"), "{said}");
}

#[test]
fn a_damaged_archive_is_named_and_never_restored() {
    let place = Place::new();
    place.done(&["backup", &place.noise("vm.raw", 500_000)]);
    let archive = place.archive("vm/disk");
    let mut bytes = std::fs::read(&archive).unwrap();
    bytes[200_000] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    let out = place.at("out.raw");
    let said = place.refused(4, &["restore", "vm", &out]);
    assert!(said.contains(word(&archive)), "{said}");
    for flags in [&["verify"] as &[&str], &["verify", "--quick"], &["verify", "vm@latest"]] {
        let run = place.run(flags);
        assert_eq!(run.status, 4, "{flags:?}: {}", run.stderr);
        assert!(run.stdout.contains(word(&archive)), "{}", run.stdout);
        assert!(run.stdout.contains("DAMAGED"), "{}", run.stdout);
    }
    // Not even a part of it has come to be.
    let left: Vec<_> =
        std::fs::read_dir(place.dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert!(!left.iter().any(|path| path.to_string_lossy().contains("out.raw")), "{left:?}");

    let torn = place.at("torn.qdelta");
    std::fs::write(&torn, &std::fs::read(&archive).unwrap()[..1000]).unwrap();
    let run = place.run(&["info", &torn]);
    assert_eq!(run.status, 4);
    assert!(run.stdout.contains("vm/disk"), "the header still tells: {}", run.stdout);
}

/// What is lost is listed and shows in the status; the rest is there.
#[test]
fn a_salvage_gives_what_is_left_and_says_what_is_not() {
    let place = Place::new();
    let image = place.noise("vm.raw", 1 << 20);
    place.done(&["backup", &image]);
    let archive = place.archive("vm/disk");
    let whole = std::fs::read(&archive).unwrap();
    let out = place.at("out.raw");
    let said = place.done(&["restore", "vm", &out, "--salvage"]);
    assert!(said.contains("nothing is lost"), "{said}");

    let mut bytes = whole.clone();
    bytes[400_000] ^= 1;
    std::fs::write(&archive, bytes).unwrap();
    let run = place.run(&["restore", "vm", &out, "--salvage", "--force"]);
    assert_eq!(run.status, 9, "{}", run.stderr);
    assert!(run.stdout.contains("lost, zeros now: "), "{}", run.stdout);
    let run = place.run(&["restore", "vm", &out, "--salvage", "--force", "--json"]);
    assert_eq!(run.status, 9, "{}", run.stderr);
    let report: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let lost = &report["salvage"]["lost"];
    assert_eq!(lost.as_array().unwrap().len(), 1, "{lost}");
    let number = |field: &str| lost[0][field].as_u64().unwrap() as usize;
    let (start, end) = (number("start"), number("start") + number("length"));
    assert!(start <= 400_000 && 390_000 < end && end - start <= 256 << 10, "{lost}");
    let (saved, before) = (std::fs::read(&out).unwrap(), std::fs::read(&image).unwrap());
    assert!(saved[..start] == before[..start] && saved[end..] == before[end..]);
    assert!(saved[start..end].iter().all(|byte| *byte == 0));

    // Without its end nothing proves the whole, so it is not called done.
    std::fs::write(&archive, &whole[..whole.len() - 200]).unwrap();
    let run = place.run(&["restore", "vm", &out, "--salvage", "--force"]);
    assert_eq!(run.status, 9, "{}", run.stderr);
    assert!(run.stdout.contains("not proved"), "{}", run.stdout);
    assert_eq!(std::fs::read(&out).unwrap(), before);
}

#[test]
fn a_second_backup_of_one_disk_says_so_and_leaves() {
    let place = Place::new();
    let image = place.image("vm.qcow2");
    place.done(&["backup", &image]);
    let mut holder = Command::new("flock")
        .args(["--no-fork", "--exclusive", &place.at("repo/vm/.lock")])
        .args(["sh", "-c", "echo held; exec sleep 60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_line(&mut holder);
    let said = place.refused(5, &["backup", &image]);
    // Whoever only reads does not wait.
    place.done(&["points"]);
    place.done(&["verify"]);
    place.done(&["backup", &image, "--disk", "other"]);
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(said.contains("vm is being written to"), "{said}");
    place.done(&["backup", &image]);
}

fn wait_for_line(child: &mut Child) {
    use std::io::{BufRead, BufReader};
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
}

#[test]
fn without_space_a_backup_and_a_restore_leave_nothing() {
    let place = Place::new();
    let image = place.noise("vm.raw", 3 << 20);
    let before = place.files();
    // A limit on the length of files stands in for a full disk.
    let limited = |words: &[&str]| -> Run {
        let mut command = Command::new("prlimit");
        command.args(["--fsize=1000000", env!("CARGO_BIN_EXE_qdelta")]).args(words);
        let output = command.args(["--repo", &place.at("repo")]).output().unwrap();
        assert_eq!(output.status.signal(), None, "{words:?} was killed");
        output.into()
    };
    let run = limited(&["backup", &image]);
    assert_eq!((run.status, run.stdout.as_str()), (8, ""), "{}", run.stderr);
    assert_eq!(place.files(), before, "litter");

    place.done(&["backup", &image]);
    let run = limited(&["restore", "vm", &place.at("out.raw")]);
    assert_eq!((run.status, run.stdout.as_str()), (8, ""), "{}", run.stderr);
    let left = std::fs::read_dir(place.dir.path()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("out")), "{left:?}");
}

/// Sends a signal to a child, as somebody else would.
fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Waits until a backup is writing its archive.
fn wait_for_partial(folder: &Path) {
    let deadline = Instant::now() + Duration::from_secs(30);
    let writing = || {
        std::fs::read_dir(folder).is_ok_and(|mut names| {
            names.any(|name| name.unwrap().file_name().to_string_lossy().ends_with(".partial"))
        })
    };
    while !writing() {
        assert!(Instant::now() < deadline, "the backup did not begin");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_signal_ends_a_backup_without_litter() {
    let place = Place::new();
    let image = place.noise("vm.raw", 64 << 20);
    let before = place.files();
    for name in [Signal::INT, Signal::TERM, Signal::HUP] {
        let mut command = place.command(&["backup", &image, "--level", "19", "--threads", "1"]);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        wait_for_partial(&place.dir.path().join("repo/vm/disk"));
        signal(&child, name);
        let run = Run::from(child.wait_with_output().unwrap());
        assert_eq!((run.status, run.stdout.as_str()), (130, ""), "{name:?}: {}", run.stderr);
        assert!(run.stderr.contains("stopping"), "{}", run.stderr);
        assert_eq!(place.files(), before, "{name:?} left litter");
    }
}

/// What a killed backup leaves is removed by the next, which goes on.
#[test]
fn a_killed_backup_is_cleaned_up_by_the_next() {
    let place = Place::new();
    let image = place.noise("vm.raw", 64 << 20);
    let mut command = place.command(&["backup", &image, "--level", "19", "--threads", "1"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_partial(&place.dir.path().join("repo/vm/disk"));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.files().len(), 2, "the configuration and a leftover: {:?}", place.files());
    let run = place.run(&["backup", &image, "-vv"]);
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert!(run.stderr.contains("interrupted backup"), "{}", run.stderr);
    assert_eq!(place.files().len(), 3, "{:?}", place.files());
}

/// `nohup qdelta backup` in a shell that is closed.
#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let place = Place::new();
    let image = place.noise("vm.raw", 8 << 20);
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_qdelta")).args(["backup", &image, "--level", "19"]);
    command.args(["--threads", "1", "--repo", &place.at("repo")]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for_partial(&place.dir.path().join("repo/vm/disk"));
    signal(&child, Signal::HUP);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
