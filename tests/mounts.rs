//! Points as files: what the kernel and real tools make of a mount, on good days and on bad ones.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use qdelta::base::cancel::Cancel;
use qdelta::flows::mount::{Mount, MountRequest};
use qdelta::{Repository, Selector};
use rustix::fs::{SeekFrom, seek};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cli::json::compare;
use crate::harness::content::Random;
use crate::harness::files::{assert_same, disk_usage, tree, unmount};
use crate::harness::images::patch;
use crate::harness::repo::{Repo, point_of};
use crate::harness::run::{self, as_root, finish, start};
use crate::harness::{Lab, Outcome, args, qdelta, tool};

const MIB: u64 = 1 << 20;

/// A mounted repository, unmounted by SIGTERM at the latest when it is dropped.
struct Mounted {
    folder: PathBuf,
    report: Value,
    child: Option<Child>,
    told: BufReader<std::process::ChildStdout>,
}

impl Mounted {
    #[track_caller]
    fn new(repo: &Repo, folder: &Path, wanted: &[&str]) -> Self {
        Self::with(qdelta, repo, folder, wanted)
    }

    /// A mount by a command that is made by `program`.
    #[track_caller]
    fn with(
        program: impl Fn(Vec<std::ffi::OsString>) -> Command,
        repo: &Repo,
        folder: &Path,
        wanted: &[&str],
    ) -> Self {
        fs::create_dir_all(folder).unwrap();
        let mut words = args!["mount", folder, "--json"];
        words.extend(wanted.iter().map(Into::into));
        let mut child = start(&mut program(repo.args(words)));
        let mut told = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        if line.is_empty() {
            panic!("{}", finish(child, "qdelta mount".into()).report());
        }
        let report = serde_json::from_str(&line).unwrap();
        Self { folder: folder.to_owned(), report, child: Some(child), told }
    }

    fn file(&self, disk: &str, point: &str) -> PathBuf {
        self.folder.join(disk).join(format!("{point}.raw"))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// Waits for the end of the program, which something else has caused.
    #[track_caller]
    fn ended(mut self) -> Outcome {
        let child = self.child.take().unwrap();
        let outcome = finish(child, "qdelta mount".to_owned());
        assert_eq!(fs::read_dir(&self.folder).unwrap().count(), 0, "it is still mounted");
        outcome
    }

    #[track_caller]
    fn end(self) -> Outcome {
        kill_process(self.pid(), Signal::TERM).unwrap();
        self.ended().ok()
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
            let _ = self.told.read_line(&mut String::new());
        }
    }
}

/// A disk with two partitions, the first of them an ext4 with a tree, at two points.
struct Scene {
    lab: Lab,
    repo: Repo,
    /// Each point, and the disk as it was.
    points: Vec<(String, PathBuf)>,
    tree: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new();
        let repo = Repo::init(lab.path("repo")).without_ring();
        let tree = lab.path("tree");
        fs::create_dir_all(tree.join("folder")).unwrap();
        let mut random = Random::new(5);
        fs::write(tree.join("folder/noise"), random.noise(300_000)).unwrap();
        fs::write(tree.join("text"), random.text(70_000)).unwrap();
        std::os::unix::fs::symlink("text", tree.join("link")).unwrap();
        let (disk, part) = (lab.path("disk"), lab.path("part"));
        File::create(&part).unwrap().set_len(24 * MIB).unwrap();
        run::run(tool("mkfs.ext4", args!["-q", "-d", tree.as_path(), part.as_path()])).ok();
        File::create(&disk).unwrap().set_len(64 * MIB).unwrap();
        run::script(
            &lab.path("divide"),
            "#!/bin/sh\nprintf 'label: gpt\\nsize=24M\\nsize=20M\\n' | sfdisk -q \"$1\"\n",
        );
        run::run(tool(lab.path("divide").to_str().unwrap(), args![disk.as_path()])).ok();
        patch(&disk, MIB, &fs::read(&part).unwrap());
        let mut scene = Self { lab, repo, points: Vec::new(), tree };
        scene.point();
        patch(&disk, 40 * MIB, &Random::new(6).noise(MIB as usize));
        scene.point();
        scene
    }

    /// Backs up the disk as it is now.
    fn point(&mut self) -> String {
        let disk = self.lab.path("disk");
        let point = point_of(&self.repo.backup(&disk, "web/vda", &["--format", "raw"]));
        let copy = self.lab.path(format!("disk-{}", self.points.len()));
        run::run(tool("cp", args!["--sparse=always", disk, copy.as_path()])).ok();
        self.points.push((point.clone(), copy));
        point
    }

    #[track_caller]
    fn mount(&self) -> Mounted {
        Mounted::new(&self.repo, &self.lab.path("mnt"), &[])
    }
}

#[test]
fn every_point_is_a_file_with_its_bytes_its_time_and_its_holes() {
    let scene = Scene::new();
    // A second guest, whose disk ends in the middle of a block.
    let odd = scene.lab.path("odd");
    fs::write(&odd, Random::new(9).noise(100_000)).unwrap();
    let odd_point = point_of(&scene.repo.backup(&odd, "odd", &["--format", "raw"]));
    let mounted = scene.mount();
    compare("mount", &[&mounted.report], &[]);
    assert_eq!(mounted.report["points"], 3);
    assert_same(&odd, &mounted.file("odd/disk", &odd_point), "the odd disk");
    for (point, disk) in &scene.points {
        let file = mounted.file("web/vda", point);
        assert_same(disk, &file, point);
        let status = fs::metadata(&file).unwrap();
        let id: qdelta::PointId = point.parse().unwrap();
        let time = status.mtime() * 1000 + status.mtime_nsec() / 1_000_000;
        assert_eq!(u64::try_from(time).unwrap(), id.as_ms());
        assert_eq!(status.len(), 64 * MIB);
        // Somebody has read it: from then on it is known how much is not zero.
        let bytes = fs::read(disk).unwrap();
        let blocks = bytes.chunks(65536).filter(|it| it.iter().any(|byte| *byte != 0)).count();
        assert_eq!(status.blocks(), blocks as u64 * 128, "{point}");
        // Every hole is one, and nothing is passed over.
        let open = File::open(&file).unwrap();
        let (mut at, mut in_data) = (0, 0);
        while let Ok(data) = seek(&open, SeekFrom::Data(at)) {
            assert!(bytes[at as usize..data as usize].iter().all(|byte| *byte == 0));
            at = seek(&open, SeekFrom::Hole(data)).unwrap();
            in_data += at - data;
        }
        assert!(bytes[at as usize..].iter().all(|byte| *byte == 0));
        assert_eq!(in_data, status.blocks() * 512);
        let copy = scene.lab.path("copy");
        run::run(tool("cp", args![file.as_path(), copy.as_path()])).ok();
        assert_same(disk, &copy, "a copy with holes");
        assert!(disk_usage(&copy) <= in_data + 65536);
    }
    let file = mounted.file("web/vda", &scene.points[0].0);
    assert!(File::options().write(true).open(&file).is_err());
    assert!(fs::remove_file(&file).is_err());
    assert!(fs::write(mounted.folder.join("new"), "").is_err());
    for missing in ["nobody", "web/vdb", "web/vda/20260101T000000.000Z", "web/vda/x.raw"] {
        let error = fs::metadata(mounted.folder.join(missing)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound, "{missing}");
    }
    let said = mounted.end();
    assert!(!said.stderr.contains("can't"), "{}", said.stderr);
}

#[test]
fn volumes_are_files_that_the_kernel_and_fuse2fs_mount() {
    let scene = Scene::new();
    let mounted = scene.mount();
    let folder = mounted.folder.join("web/vda").join(&scene.points[1].0);
    let mut names: Vec<_> =
        fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["p1.raw", "p2.raw"]);
    let disk = fs::read(&scene.points[1].1).unwrap();
    for (name, start, len) in [("p1.raw", MIB, 24 * MIB), ("p2.raw", 25 * MIB, 20 * MIB)] {
        let part = fs::read(folder.join(name)).unwrap();
        assert!(part == disk[start as usize..(start + len) as usize], "{name}");
        let status = fs::metadata(folder.join(name)).unwrap();
        assert_eq!(status.len(), len);
        assert!(status.blocks() * 512 < len / 2, "{name} has {} blocks", status.blocks());
        let open = File::open(folder.join(name)).unwrap();
        let data = seek(&open, SeekFrom::Data(0)).unwrap();
        assert!(part[..data as usize].iter().all(|byte| *byte == 0), "{name}");
    }
    let (place, part) = (scene.lab.path("inside"), folder.join("p1.raw"));
    fs::create_dir(&place).unwrap();
    let same = || {
        let compared = args!["-r", "-x", "lost+found", scene.tree.as_path(), place.as_path()];
        run::run(tool("diff", compared)).ok();
    };
    run::run(as_root("mount", args!["-o", "loop,ro,noload", part.as_path(), place.as_path()])).ok();
    same();
    unmount(&place);
    run::run(tool("fuse2fs", args!["-o", "ro", part.as_path(), place.as_path()])).ok();
    same();
    unmount(&place);
    run::run(tool("e2fsck", args!["-fn", part.as_path()])).ok();
    mounted.end();
}

#[test]
fn many_readers_get_the_right_bytes_in_little_memory() {
    let scene = Scene::new();
    let mounted = scene.mount();
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (mounted, scene) = (&mounted, &scene);
            scope.spawn(move || {
                let mut random = Random::new(reader);
                let (point, disk) = &scene.points[reader as usize % 2];
                let expected = fs::read(disk).unwrap();
                let file = File::open(mounted.file("web/vda", point)).unwrap();
                for _ in 0..300 {
                    let at = random.below(expected.len() as u64) as usize;
                    let len = (random.below(300_000) as usize).min(expected.len() - at);
                    let mut bytes = vec![1; len];
                    file.read_exact_at(&mut bytes, at as u64).unwrap();
                    assert!(bytes == expected[at..at + len], "{at}, {len} bytes");
                }
            });
        }
    });
    let status = fs::read_to_string(format!("/proc/{}/status", mounted.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").trim().parse().unwrap();
    assert!(peak < 128 << 10, "{peak} KiB");
    mounted.end();
}

/// Waits until a condition holds: the mount looks at the repository every other second.
#[track_caller]
fn until(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..600 {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("never: {what}");
}

#[test]
fn new_points_appear_removed_ones_vanish_and_what_is_open_stays() {
    let mut scene = Scene::new();
    let mounted = scene.mount();
    let first = mounted.file("web/vda", &scene.points[0].0);
    let open = File::open(&first).unwrap();
    let disk = scene.lab.path("disk");
    patch(&disk, 50 * MIB, &Random::new(7).noise(MIB as usize));
    let third = mounted.file("web/vda", &scene.point());
    assert!(!mounted.folder.join("db").exists());
    scene.repo.backup(&disk, "db", &["--format", "raw"]);
    until("the new point", || third.exists() && mounted.folder.join("db").exists());
    assert_same(&scene.points[2].1, &third, "the new point");
    let prune = args!["prune", "web", "--keep-last", "1", "--grace", "0", "--json"];
    scene.repo.run(prune).ok();
    until("the end of the removed points", || !first.exists());
    // Its archives stay as long as somebody has it open.
    let mut bytes = vec![0; 64 << 20];
    open.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes == fs::read(&scene.points[0].1).unwrap());
    drop(open);
    assert_same(&scene.points[2].1, &third, "the last point");
    mounted.end();
}

#[test]
fn damage_is_an_error_of_its_place_alone() {
    let scene = Scene::new();
    let of_point = |file: &PathBuf| file.to_string_lossy().contains(&scene.points[1].0);
    let archive = scene.repo.archives().into_iter().find(of_point).unwrap();
    let archive = scene.repo.stored_as(archive);
    // One byte of the mebibyte of noise.
    let bytes = archive.bytes();
    archive.patch(bytes.len() as u64 / 2, &[!bytes[bytes.len() / 2]]);
    let mounted = scene.mount();
    assert_same(&scene.points[0].1, &mounted.file("web/vda", &scene.points[0].0), "the full");
    let file = File::open(mounted.file("web/vda", &scene.points[1].0)).unwrap();
    let expected = fs::read(&scene.points[1].1).unwrap();
    let mut bad = Vec::new();
    for at in (0..expected.len()).step_by(4096) {
        let mut bytes = [0; 4096];
        match file.read_exact_at(&mut bytes, at as u64) {
            Ok(()) => assert!(bytes == expected[at..at + 4096], "{at}"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                bad.push(at as u64);
            }
        }
    }
    let within = 40 * MIB..41 * MIB;
    assert!(!bad.is_empty() && bad.iter().all(|at| within.contains(at)), "{bad:?}");
    assert!(bad.len() * 4096 < MIB as usize, "all of the increment is unreadable");
    drop(file);
    let said = mounted.end().stderr;
    assert!(said.contains(&scene.points[1].0) && said.contains("damaged"), "{said}");
}

#[test]
fn a_repository_that_goes_away_gives_errors_and_is_read_when_it_is_back() {
    let scene = Scene::new();
    let mounted = scene.mount();
    let file = mounted.file("web/vda", &scene.points[1].0);
    let away = scene.lab.path("away");
    fs::rename(&scene.repo.path, &away).unwrap();
    let open = || File::open(&file).and_then(|file| file.read_exact_at(&mut [0; 4096], 40 * MIB));
    // The names stay: nobody knows that the points are gone.
    until("an error", || open().is_err());
    assert!(file.exists());
    fs::rename(&away, &scene.repo.path).unwrap();
    until("the bytes", || open().is_ok());
    assert_same(&scene.points[1].1, &file, "after its return");
    mounted.end();
}

/// A filesystem by fuse2fs that can be made to hang.
struct Server {
    child: Child,
    place: PathBuf,
    opened: Vec<File>,
}

impl Server {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// It answers no more, and all pages of its files are forgotten. They are forgotten afterwards, by files opened before:
    /// what it was just asked to read ahead would come back otherwise. A file is closed by asking it, so they are kept.
    fn hang(&mut self) {
        let paths = tree(&self.place);
        self.opened = paths.iter().filter_map(|it| File::open(self.place.join(it)).ok()).collect();
        self.signal(Signal::STOP);
        for _ in 0..10 {
            std::thread::sleep(Duration::from_millis(20));
            for file in &self.opened {
                rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            }
        }
    }
}

impl Drop for Server {
    /// Whatever looked at one that was left hanging would hang with it: the test's own folder first of all.
    fn drop(&mut self) {
        self.signal(Signal::CONT);
        run::run(tool("fusermount3", args!["-u", "-z", self.place.as_path()]));
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A repository on a server that does not answer: every program that looked at the mount hung with it, and
/// none could be killed.
#[test]
fn a_repository_that_hangs_gives_errors() {
    let scene = Scene::new();
    let image = scene.lab.path("server");
    File::create(&image).unwrap().set_len(64 * MIB).unwrap();
    let served = ["-q", "-d"].map(Into::into).to_vec();
    let rest = args![scene.repo.path.as_path(), image.as_path()];
    run::run(tool("mkfs.ext4", [served, rest].concat())).ok();
    let place = scene.lab.path("remote");
    fs::create_dir(&place).unwrap();
    let words = args!["-f", "-o", "ro", image.as_path(), place.as_path()];
    let child = start(&mut tool("fuse2fs", words));
    let mut server = Server { child, place: place.clone(), opened: Vec::new() };
    until("the server", || place.join("qdelta.toml").exists());
    let key = scene.repo.key_text();
    let repository = Repository::open_with(&place, key.as_ref()).unwrap();
    let folder = scene.lab.path("mnt");
    fs::create_dir(&folder).unwrap();
    let patience = Duration::from_secs(5);
    let request = MountRequest { folder: folder.clone(), wanted: Vec::new(), patience };
    let mount = Mount::new(&repository, &request, &Cancel::default()).unwrap();
    let disk = "web/vda".parse().unwrap();
    let disk = repository.catalog().find_disk(&disk).unwrap();
    let point = repository.catalog().resolve(&disk, &Selector::Latest).unwrap();
    let path = mount.file(&disk, point.id, None).unwrap();
    let file = File::open(&path).unwrap();
    server.hang();
    let read = || file.read_exact_at(&mut [0; 4096], 40 * MIB);
    assert_eq!(read().unwrap_err().raw_os_error(), Some(5));
    let other = folder.join("web/vda").join(format!("{}.raw", scene.points[0].0));
    assert_eq!(File::open(&other).unwrap_err().raw_os_error(), Some(5));
    // Names are still shown.
    assert_eq!(fs::read_dir(folder.join("web/vda")).unwrap().count(), 4);
    let said: Vec<_> = mount.warnings().map(|warning| warning.text).collect();
    assert!(said.iter().any(|text| text.contains("does not answer")), "{said:?}");
    server.signal(Signal::CONT);
    until("the bytes", || read().is_ok());
    until("the other point", || File::open(&other).is_ok());
    assert_same(&scene.points[0].1, &other, "after the hang");
    drop(file);
    mount.end().unwrap();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

#[test]
fn a_mount_whose_program_was_killed_is_recognised() {
    let scene = Scene::new();
    let mut mounted = scene.mount();
    let folder = mounted.folder.clone();
    let mut child = mounted.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let failed = scene.repo.run(args!["mount", folder.as_path()]);
    assert_eq!(failed.status.code(), Some(5), "{}", failed.stderr);
    assert!(failed.stderr.contains("fusermount3 -u"), "{}", failed.stderr);
    run::run(tool("fusermount3", args!["-u", folder.as_path()])).ok();
    let again = Mounted::new(&scene.repo, &folder, &["web@latest"]);
    assert_eq!(again.report["points"], 1);
    // Over a mount, or over files, nothing is mounted.
    let refused = scene.repo.run(args!["mount", folder.as_path()]);
    assert_eq!(refused.status.code(), Some(7), "{}", refused.stderr);
    again.end();
    let missing = scene.repo.run(args!["mount", folder.as_path(), "nobody"]);
    assert_eq!(missing.status.code(), Some(6), "{}", missing.stderr);
}

#[test]
fn it_ends_by_a_signal_or_from_outside_also_while_a_file_is_open() {
    let scene = Scene::new();
    for signal in [Signal::TERM, Signal::INT] {
        let mounted = scene.mount();
        kill_process(mounted.pid(), signal).unwrap();
        mounted.ended().ok();
    }
    let mounted = scene.mount();
    run::run(tool("fusermount3", args!["-u", mounted.folder.as_path()])).ok();
    mounted.ended().ok();
    let mounted = scene.mount();
    let file = File::open(mounted.file("web/vda", &scene.points[1].0)).unwrap();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Reads until there is nothing to read from any more.
            let mut at = 0;
            while file.read_exact_at(&mut [0; 65536], at % (64 * MIB)).is_ok() {
                at += 65536;
                let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
            }
            over.store(true, Ordering::Relaxed);
        });
        std::thread::sleep(Duration::from_millis(100));
        mounted.end();
    });
    assert!(over.into_inner());
}

#[test]
fn systemd_is_told_when_the_points_are_there() {
    let scene = Scene::new();
    let folder = scene.lab.path("mnt");
    let path = scene.lab.path("notify");
    let abstract_name = format!("qdelta-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
    let sockets = [UnixDatagram::bind(&path).unwrap(), UnixDatagram::bind_addr(&address).unwrap()];
    let names = [path.to_str().unwrap().to_owned(), format!("@{abstract_name}")];
    for (socket, name) in sockets.iter().zip(names) {
        let program = |words: Vec<std::ffi::OsString>| {
            let mut command = qdelta(words);
            command.env("NOTIFY_SOCKET", &name);
            command
        };
        let mounted = Mounted::with(program, &scene.repo, &folder, &[]);
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut told = [0; 100];
        let len = socket.recv(&mut told).unwrap();
        assert_eq!(&told[..len], b"READY=1");
        assert!(mounted.file("web/vda", &scene.points[0].0).exists());
        mounted.end();
    }
}

/// Users mount by a helper that passes the open device on.
#[test]
fn a_user_mounts_by_fusermount3() {
    let scene = Scene::new();
    let folder = scene.lab.path("mnt");
    fs::create_dir(&folder).unwrap();
    let everything = args!["-R", "65534:65534", scene.lab.dir()];
    run::run(as_root("chown", everything)).ok();
    // The program may lie where only its owner looks.
    let program = scene.lab.path("qdelta");
    run::run(tool("install", args!["-m", "755", run::binary(), program.as_path()])).ok();
    // Everybody may open the device on most systems, and here only root: the mount gets one of its own.
    let device = scene.lab.path("fuse");
    run::run(as_root("mknod", args!["-m", "666", device.as_path(), "c", "10", "229"])).ok();
    let script = "mount --bind \"$0\" /dev/fuse && \
                  exec setpriv --reuid=65534 --regid=65534 --clear-groups \"$@\"";
    let as_user = |words: Vec<std::ffi::OsString>| {
        let mut all = args!["--mount", "--propagation", "private", "sh", "-c", script];
        all.extend(args![device.as_path(), program.as_path()]);
        all.extend(words);
        let mut command = as_root("unshare", all);
        command.env("STATE_DIRECTORY", scene.lab.path("state")).env_remove("QDELTA_REPO");
        command
    };
    let mounted = Mounted::with(as_user, &scene.repo, &folder, &[]);
    let pid = mounted.pid().as_raw_nonzero().to_string();
    let within = |words: Vec<std::ffi::OsString>| {
        let user = args!["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
        let all = [args!["--mount", "--target", pid.as_str()], user, words].concat();
        run::run(as_root("nsenter", all)).ok()
    };
    let (point, disk) = &scene.points[1];
    within(args!["cmp", disk.as_path(), mounted.file("web/vda", point)]);
    kill_process(mounted.pid(), Signal::TERM).unwrap();
    mounted.ended().ok();
}
