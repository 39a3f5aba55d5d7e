//! Bad days: the disk is full, a limit or a right is in the way, somebody else is at work, somebody
//! presses Ctrl-C, the kernel has no ring for us.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::faults::traced;
use crate::harness::files::{Mount, assert_same, tree};
use crate::harness::guest::{Guest, Host};
use crate::harness::images::{create_raw, filled, filled_raw, guest_io, oracle};
use crate::harness::repo::Repo;
use crate::harness::run::{as_root, binary, describe, finish, start};
use crate::harness::{Lab, args, qdelta, run, tool};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A backup into a full file system ends with its own status; what was there stays whole.
#[test]
fn the_repositorys_disk_is_full() {
    let lab = Lab::new();
    let mount = Mount::in_memory(lab.dir(), 6 * MIB);
    let repo = Repo::init(mount.dir.join("repo"));
    let image = lab.path("disk.raw");
    create_raw(&image, 30 * MIB);
    guest_io(&image, "raw", &["write -q -P 5 0 1M".to_owned()]);
    let first = lab.path("first.raw");
    std::fs::copy(&image, &first).unwrap();
    repo.backup(&image, "disk", &[]);
    let before = tree(&repo.path);

    let noise = lab.path("noise");
    std::fs::write(&noise, crate::harness::content::Random::new(1).noise(MIB as usize)).unwrap();
    let fill: Vec<String> =
        (0..20).map(|mib| format!("write -q -s {} {mib}M 1M", noise.display())).collect();
    guest_io(&image, "raw", &fill);
    for io in ["threads", "auto"] {
        repo.backup_run(&image, "disk", &["--io", io]).fails_with(8);
        assert_eq!(tree(&repo.path), before, "a failed backup leaves nothing");
        repo.assert_restores_raw(&lab, "disk", &first);
        repo.verify();
    }
    // A block less, and there is room again.
    guest_io(&image, "raw", &["write -q -z 2M 28M".to_owned()]);
    repo.backup(&image, "disk", &[]);
    repo.assert_no_leftovers();
}

#[test]
fn the_restores_disk_is_full() {
    let lab = Lab::new();
    let image = filled_raw(&lab, "disk.raw", 30 * MIB, 1);
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    let mount = Mount::in_memory(lab.dir(), 2 * MIB);
    for (format, io) in
        [("raw", "threads"), ("qcow2", "threads"), ("raw", "auto"), ("qcow2", "auto")]
    {
        let output = mount.dir.join("out");
        repo.restore("disk", &output, &["--format", format, "--io", io]).fails_with(8);
        assert!(tree(&mount.dir).is_empty(), "{format}: litter: {:?}", tree(&mount.dir));
    }
}

/// A limit on the size of files is a signal by default, and must not be a death without a word.
#[test]
fn a_limit_on_the_size_of_files() {
    let lab = Lab::new();
    let image = lab.path("disk.raw");
    std::fs::write(&image, crate::harness::content::Random::new(2).noise(3 << 20)).unwrap();
    let repo = Repo::init(lab.path("repo"));
    for io in ["threads", "auto"] {
        let mut arguments = args![format!("--fsize={MIB}"), "--", binary()];
        arguments.extend(repo.args(args!["backup", image.as_path(), "--disk", "disk", "--io", io]));
        run(tool("prlimit", arguments)).fails_with(8);
        repo.assert_no_leftovers();
    }
    repo.backup(&image, "disk", &[]);
    for io in ["threads", "auto"] {
        let output = lab.path("out.raw");
        let mut arguments = args![format!("--fsize={MIB}"), "--", binary()];
        arguments.extend(repo.args(args!["restore", "disk", output.as_path(), "--io", io]));
        run(tool("prlimit", arguments)).fails_with(8);
        assert!(!output.exists());
    }
    repo.assert_no_leftovers();
}

/// Runs the program as a user without rights. The binary is copied: where it was built may be
/// closed to others.
fn as_nobody(program: &Path, arguments: Vec<std::ffi::OsString>) -> crate::harness::Outcome {
    let mut all = args!["--reuid=65534", "--regid=65534", "--clear-groups", program];
    all.extend(arguments);
    run(as_root("setpriv", all))
}

#[test]
fn a_right_is_missing() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let allow = |path: &Path, mode: u32| {
        run(as_root("chmod", args![format!("{mode:o}"), path])).ok();
    };
    let program = lab.path("qdelta");
    run(tool("install", args!["-m", "755", binary(), program.as_path()])).ok();
    std::fs::set_permissions(lab.dir(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let image = filled(&lab, "disk.qcow2", "", 2 * MIB, 3);
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "qcow2", image.as_path()], &expected);
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    let before = tree(&repo.path);
    let backup = || repo.args(args!["backup", image.as_path(), "--disk", "disk"]);

    if let Some(key) = &repo.key {
        allow(key, 0o644);
    }
    // A new repository is its owner's alone, for it holds whole disks.
    as_nobody(&program, repo.args(args!["verify"])).fails_with(1);
    // Others may be let in to read: then reading works, and nothing is written.
    run(as_root("chmod", args!["-R", "a+rX", repo.path.as_path()])).ok();
    let said = as_nobody(&program, backup()).fails_with(1);
    assert!(said.to_lowercase().contains("permission denied"), "{said}");
    as_nobody(&program, repo.args(args!["verify"])).ok();
    as_nobody(&program, repo.args(args!["points", "disk"])).ok();
    // The image may not be read: the error names it.
    run(as_root("chown", args!["-R", "65534:65534", repo.path.as_path()])).ok();
    allow(&image, 0o600);
    let said = as_nobody(&program, backup()).fails_with(1);
    assert!(
        said.contains("disk.qcow2") && said.to_lowercase().contains("permission denied"),
        "{said}"
    );
    // The right is lost where the archive goes.
    allow(&image, 0o644);
    let disk = repo.place_of("disk/disk");
    allow(&disk, 0o555);
    as_nobody(&program, backup()).fails_with(1);
    allow(&disk, 0o755);
    // Where the output goes.
    as_nobody(&program, repo.args(args!["restore", "disk", lab.path("out.raw")])).fails_with(1);
    assert_eq!(tree(&repo.path), before, "nothing came of any of it");
    as_nobody(&program, backup()).ok();
    as_nobody(&program, repo.args(args!["verify"])).ok();
    repo.assert_restores_raw(&lab, "disk", &expected);
    repo.assert_no_leftovers();
}

/// Waits until `found` gives something.
#[track_caller]
fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(begin.elapsed() < Duration::from_secs(30), "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A file of the folder whose name contains `part`.
fn file_with(folder: &Path, part: &str) -> Option<PathBuf> {
    tree(folder).into_iter().find(|file| file.to_string_lossy().contains(part))
}

/// The second backup of a disk says that there is one, and leaves; the first one does not notice.
/// Another disk's backup runs beside it, and so do restores and verifications.
#[test]
fn two_backups_of_one_disk() {
    let lab = Lab::new();
    let image = filled_raw(&lab, "disk.raw", 4 * MIB, 4);
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    // It stops when its archive has its name and the point's own file is still unfinished.
    let stops = "inject=renameat2:signal=STOP:when=1";
    let options = args!["-D", "-e", "trace=renameat2", "-e", stops, "-o", "/dev/null"];
    let arguments =
        repo.args(args!["backup", image.as_path(), "--disk", "disk", "--io", "threads"]);
    let mut command = traced(options, arguments);
    let mut first = start(&mut command);
    wait_for("the first backup", || (repo.archives().len() == 2).then_some(()));
    let said = repo.backup_run(&image, "disk", &[]).fails_with(5);
    assert!(said.contains("disk"), "{said}");
    repo.backup(&image, "other", &[]);
    repo.assert_restores_raw(&lab, "disk", &image);
    repo.run(args!["verify", "disk"]).ok();
    assert!(file_with(&repo.path, "partial").is_some() && first.try_wait().unwrap().is_none());
    kill_process(Pid::from_child(&first), Signal::CONT).unwrap();
    finish(first, describe(&command)).ok();
    assert_eq!(repo.points("disk").len(), 2);
    repo.verify();
    repo.assert_no_leftovers();
}

/// Starts a run, sends `signal` when `folder` has its unfinished file, and waits until it has ended in
/// good order. It stops at every write until it is told to go on, and so can't be done before.
#[track_caller]
fn interrupted(arguments: Vec<std::ffi::OsString>, folder: &Path, signal: Signal) {
    // -D: strace detaches itself, so that the program is our own child and gets our signals.
    let stops = "inject=pwrite64,write:signal=STOP";
    let options = args!["-D", "-e", "trace=pwrite64,write", "-e", stops, "-o", "/dev/null"];
    let mut command = traced(options, arguments);
    let mut child = start(&mut command);
    let pid = Pid::from_child(&child);
    let mut sent = false;
    wait_for("the end", || {
        if !sent && file_with(folder, "partial").is_some() {
            kill_process(pid, signal).unwrap();
            sent = true;
        }
        kill_process(pid, Signal::CONT).unwrap();
        child.try_wait().unwrap()
    });
    let outcome = finish(child, describe(&command)).sane();
    assert_eq!(outcome.code(), Some(130), "{signal:?}:\n{}", outcome.report());
}

#[test]
fn an_interrupted_backup_leaves_no_litter() {
    let lab = Lab::new();
    let image = lab.path("disk.raw");
    std::fs::write(&image, crate::harness::content::Random::new(5).noise(40 << 20)).unwrap();
    let repo = Repo::init(lab.path("repo"));
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        for io in ["threads", "auto"] {
            let arguments = args!["backup", image.as_path(), "--disk", "disk", "--io", io];
            interrupted(repo.args(arguments), &repo.path, signal);
            assert!(repo.archives().is_empty(), "{:?}", tree(&repo.path));
            repo.assert_no_leftovers();
        }
    }
}

#[test]
fn an_interrupted_restore_leaves_no_litter() {
    let lab = Lab::new();
    let image = lab.path("disk.raw");
    std::fs::write(&image, crate::harness::content::Random::new(6).noise(40 << 20)).unwrap();
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    let folder = lab.path("out");
    std::fs::create_dir(&folder).unwrap();
    for format in ["raw", "qcow2"] {
        let output = folder.join("disk.img");
        let arguments = repo.args(args![
            "restore",
            "disk",
            output.as_path(),
            "--format",
            format,
            "--io",
            "threads"
        ]);
        interrupted(arguments, &folder, Signal::INT);
        assert!(tree(&folder).is_empty(), "litter: {:?}", tree(&folder));
    }
}

/// Without io_uring the same engine runs on threads, and says so once to those who ask for more.
#[test]
fn no_ring() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", 8 * MIB, 7);
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "qcow2", image.as_path()], &expected);
    let repo = Repo::init(lab.path("repo"));
    for (error, disk) in [("EPERM", "a"), ("ENOSYS", "b"), ("ENOMEM", "c")] {
        let inject = format!("inject=io_uring_setup:error={error}");
        let options = args!["-e", "trace=io_uring_setup", "-e", inject, "-o", "/dev/null"];
        let arguments = repo.args(args!["backup", image.as_path(), "--disk", disk, "-v"]);
        let outcome = run(traced(options.clone(), arguments)).ok();
        let said = outcome.stderr.lines().filter(|line| line.contains("io_uring")).count();
        assert_eq!(said, 1, "it says so, once:\n{}", outcome.report());
        let output = lab.path(disk);
        let arguments = repo.args(args!["restore", disk, output.as_path()]);
        run(traced(options, arguments)).ok();
        assert_same(&expected, &output, error);
    }
    // Who asks for the ring by name wants an error.
    let options = args![
        "-e",
        "trace=io_uring_setup",
        "-e",
        "inject=io_uring_setup:error=EPERM",
        "-o",
        "/dev/null"
    ];
    let arguments = repo.args(args!["backup", image.as_path(), "--disk", "d", "--io", "uring"]);
    run(traced(options, arguments)).fails_with(2);
    // And a ring without registered buffers is still a ring.
    let options = args![
        "-e",
        "trace=io_uring_register",
        "-e",
        "inject=io_uring_register:error=ENOMEM",
        "-o",
        "/dev/null"
    ];
    let arguments = repo.args(args!["backup", image.as_path(), "--disk", "e"]);
    run(traced(options, arguments)).ok();
    repo.assert_restores_raw(&lab, "e", &expected);
}

/// A night's script mounts the backup disk, verifies or restores, and unmounts: `umount` said "target is
/// busy". The ring had the files registered, and the kernel let go of them some 50 ms after the program
/// had ended. Also after a failure, and after Ctrl-C.
#[test]
fn right_after_the_end_a_file_system_can_be_unmounted() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", 32 * MIB, 3);
    let mount = Mount::on_loop(lab.dir(), "ext4", 200 * MIB);
    let repo = Repo::init(mount.dir.join("repo"));
    // What is encrypted is opened in memory, and no ring reads it.
    let io = if repo.key.is_some() { "auto" } else { "uring" };
    let inside = mount.dir.join("disk.qcow2");
    std::fs::copy(&image, &inside).unwrap();
    repo.backup(&image, "disk", &["--io", io]);
    mount.unmount_at_once();
    let elsewhere = Repo::init(lab.path("repo"));
    let output = mount.dir.join("output");
    for round in 0..8 {
        mount.mount();
        repo.run(args!["verify", "--io", io]).ok();
        mount.unmount_at_once();

        mount.mount();
        repo.run(args!["restore", "disk", output.as_path(), "--force", "--io", io]).ok();
        mount.unmount_at_once();

        mount.mount();
        elsewhere.backup(&inside, "disk", &["--kind", "full", "--io", io]);
        mount.unmount_at_once();

        mount.mount();
        let restore = args!["restore", "disk", output.as_path(), "--force", "--io", io];
        let mut command = qdelta(repo.args(restore));
        let said = describe(&command);
        let child = start(&mut command);
        std::thread::sleep(Duration::from_millis(20 + 15 * round));
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let ended = finish(child, said);
        // On a busy machine the signal can come before the program listens for it.
        let is_early = ended.status.signal() == Some(2);
        assert!(is_early || matches!(ended.code(), Some(0 | 130)), "{}", ended.report());
        mount.unmount_at_once();
    }
    mount.mount();
    let archive = repo.stored_as(&repo.archives()[0]);
    archive.patch(archive.bytes().len() as u64 / 2, &[0x55; 64]);
    mount.unmount_at_once();
    for _ in 0..8 {
        mount.mount();
        assert_eq!(repo.run(args!["verify", "--io", io]).code(), Some(4));
        mount.unmount_at_once();
    }
}

/// A backup disk that is not mounted must not fill the root file system.
#[test]
fn a_folder_that_is_no_repository() {
    let lab = Lab::new();
    let image = filled(&lab, "disk.qcow2", "", MIB, 8);
    let folder = lab.path("not-mounted");
    std::fs::create_dir(&folder).unwrap();
    let repo = Repo::at(folder.clone());
    let said = repo.backup_run(&image, "disk", &[]).fails_with(6);
    assert!(said.contains("init") || said.contains("mount"), "{said}");
    assert!(tree(&folder).is_empty());
    let nowhere = Repo::at(lab.path("nowhere"));
    nowhere.backup_run(&image, "disk", &[]).fails_with(6);
    assert!(!nowhere.path.exists());
}

/// A reader that goes away is the reader's business, not a crash.
#[test]
fn the_reader_of_a_pipe_goes_away() {
    let lab = Lab::new();
    let image = lab.path("disk.raw");
    std::fs::write(&image, crate::harness::content::Random::new(9).noise(8 << 20)).unwrap();
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    let mut command = qdelta(repo.args(args!["restore", "disk", "-"]));
    let mut child = start(&mut command);
    let mut pipe = child.stdout.take().unwrap();
    let mut some = vec![0; 100 * KIB as usize];
    pipe.read_exact(&mut some).unwrap();
    drop(pipe);
    let outcome = finish(child, describe(&command));
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.report());
}

/// A filesystem without room for a byte of a file.
fn full_filesystem(lab: &Path) -> Mount {
    let mount = Mount::in_memory(lab, 64 * KIB);
    let filler = vec![1; 64 << 10];
    let _ = std::fs::write(mount.dir.join("filler"), filler);
    assert!(std::fs::write(mount.dir.join("more"), "x").is_err(), "it is not full");
    mount
}

/// What is kept in the state folder spares work, and no point needs it: the nightly backup went on, and told
/// nobody why it had become slow.
#[test]
fn a_full_state_folder_is_a_warning_and_costs_no_backup() {
    let lab = Lab::new();
    let full = full_filesystem(lab.dir());
    let image = filled_raw(&lab, "disk.raw", 3 * MIB, 1);
    let repo = Repo::init(lab.path("repo"));
    let state = full.dir.to_str().unwrap();
    for _ in 0..2 {
        let report = repo.backup(&image, "disk", &["--state", state]);
        let [warning] = &report["warnings"].as_array().unwrap()[..] else { panic!("{report}") };
        assert_eq!(warning["code"], "no-summary");
        let advice = warning["advice"].as_str().unwrap();
        assert!(warning["text"].as_str().unwrap().contains(state), "{warning}");
        assert!(advice.contains(state) && advice.contains("--state DIR"), "{advice}");
    }
    repo.assert_restores_raw(&lab, "disk", &image);
    repo.verify();
}

/// Without a mark nobody would thaw a guest whose backup and watchdog were killed. A mark that did not fit
/// stayed as an empty file, and the next run thawed a guest that was not frozen.
#[test]
fn no_guest_is_frozen_whose_mark_has_no_room() {
    let host = Host::new();
    let mount = Mount::on_loop(host.lab.dir(), "xfs", 400 * MIB);
    let mut guest = Guest::define(&host, &mount.dir);
    guest.start("running");
    let full = full_filesystem(host.lab.dir());
    let said = host.web_fails(10, &["--state", full.dir.to_str().unwrap()]);
    assert!(said.contains(full.dir.to_str().unwrap()), "{said}");
    assert!(said.contains("only if a mark") && said.contains("--state DIR"), "{said}");
    assert!(!host.virsh.is_frozen());
    let left: Vec<_> = tree(&full.dir).into_iter().collect();
    assert!(!format!("{left:?}").contains(".frozen"), "a mark of no freeze is left");
    host.web(&[]);
}

/// A copy that was made while points were merged can have the manifest of before and the archives of
/// after: "missing" alone made people think that the data were lost.
#[test]
fn an_equal_archive_beside_a_missing_one_is_named() {
    let lab = Lab::new();
    let image = filled_raw(&lab, "disk.raw", 3 * MIB, 1);
    let repo = Repo::init(lab.path("repo"));
    repo.backup(&image, "disk", &[]);
    let archive = repo.stored_as(&repo.archives()[0]);
    let name = archive.name();
    let (point, _) = name.rsplit_once('-').unwrap();
    let other = repo.stored(format!("disk/disk/{point}-0badcafe.qdelta"));
    let bytes = archive.bytes();
    other.write(&bytes);
    archive.remove();
    let target = lab.path("restored.raw");
    let arguments = args!["restore", "disk", target.as_path()];
    let said = repo.run(arguments).fails_with(4);
    assert!(said.contains(name) && said.contains("is missing"), "{said}");
    assert!(said.contains("0badcafe.qdelta holds the same point"), "{said}");
    // One of another content is no help.
    other.write(&bytes[..bytes.len() - 1]);
    let said = repo.run(args!["restore", "disk", target.as_path()]).fails_with(4);
    assert!(!said.contains("holds the same point"), "{said}");
}
