//! Readers of a store that are stopped, and those that wait for a lock: what they leave, and whom they hold up.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use qdelta::base::cancel::Cancel;
use qdelta::base::warning::Code;
use qdelta::flows::mount::{Mount, MountRequest};
use qdelta::vault::repository::storage::Wait;
use qdelta::{ErrorKind, OpenPoints};
use rustix::process::{Pid, Signal, kill_process};

use super::guest::Guest;
use super::locks::{leave_lock, leave_lock_of};
use super::waits::{Heard, LONG, locks};
use crate::harness::proxy::{Fate, NONE};
use crate::harness::run::{finish, start};
use crate::harness::{args, qdelta, run};

/// What hangs fails after so long.
const HANGS: Duration = Duration::from_secs(60);

/// Mounts the points of the guest.
fn mount(guest: &Guest, folder: &Path) -> Child {
    use std::io::{BufRead, BufReader};
    std::fs::create_dir_all(folder).unwrap();
    let mut mount = start(&mut qdelta(guest.repo.args(args!["mount", folder, "--json"])));
    let mut line = String::new();
    BufReader::new(mount.stdout.take().unwrap()).read_line(&mut line).unwrap();
    if line.is_empty() {
        panic!("{}", finish(mount, "qdelta mount".to_owned()).report());
    }
    mount
}

/// The file of a point in a mount.
fn file(folder: &Path, disk: &str, point: &str) -> PathBuf {
    folder.join(disk).join(format!("{point}.raw"))
}

#[track_caller]
fn until(mut what: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !what() {
        assert!(begin.elapsed() < HANGS, "it does not come");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A mount abandoned whoever was just opening a file when it was asked to stop. The lock stayed in the store: prunes of other
/// hosts waited for a reader that there was not.
#[test]
fn a_mount_that_is_stopped_leaves_no_lock() {
    let guest = Guest::new(&["full"]);
    let folder = guest.lab.path("mnt");
    // The store is slow, or it is not clear whether the guest is free.
    for is_left in [false, true] {
        let child = mount(&guest, &folder);
        let left: &[&str] = if is_left { &[".keep"] } else { &[] };
        match is_left {
            true => {
                guest.proxy.modified_ahead.store(NONE, Ordering::SeqCst);
                leave_lock(&guest.place, ".keep", LONG);
                guest.proxy.pass();
            }
            // Each question to the store that comes after the lock.
            false => guest.proxy.judge(|_, seen| match seen.method == "GET" {
                true => Fate::Slow(1000),
                false => Fate::Pass,
            }),
        }
        let wanted = file(&folder, "vm/disk", &guest.points[0].0);
        std::thread::scope(|scope| {
            scope.spawn(|| std::fs::read(&wanted).map(drop));
            until(|| locks(&guest).len() > left.len());
            kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
            finish(child, "qdelta mount".to_owned()).ok();
            assert_eq!(locks(&guest), left, "{is_left}");
        });
    }
}

/// While one guest's lock was watched, which a host that was killed had left, nobody could open a point of any other guest:
/// the lock was waited for under one that all share.
#[test]
fn a_lock_that_was_left_holds_up_its_own_guest_alone() {
    let guest = Guest::new(&["full"]);
    for disk in ["wm/disk", "xm/disk"] {
        guest.repo.backup(&guest.image, disk, &["--format", "raw"]);
    }
    guest.proxy.modified_ahead.store(NONE, Ordering::SeqCst);
    // As many as points are opened at a time.
    for left in ["vm", "wm"] {
        leave_lock_of(left, &guest.place, ".keep", LONG);
    }
    let (heard, cancel) = (Heard::default(), Cancel::default());
    let points = OpenPoints::new(guest.repo.open(), &cancel);
    let open =
        |disk: &str| points.open_named(&disk.parse().unwrap(), Wait::by(&heard, &cancel)).map(drop);
    std::thread::scope(|scope| {
        let waiting = ["vm/disk", "wm/disk"].map(|disk| scope.spawn(move || open(disk)));
        let came = || heard.warnings.lock().unwrap().len() == 2;
        let begin = Instant::now();
        while !came() && begin.elapsed() < HANGS {
            std::thread::sleep(Duration::from_millis(10));
        }
        let (done, opened) = mpsc::channel();
        scope.spawn(move || done.send(open("xm/disk")));
        let opened = opened.recv_timeout(HANGS);
        let why = points.waits_for(&"vm".parse().unwrap());
        let of_others = points.waits_for(&"xm".parse().unwrap());
        cancel.cancel();
        for waiting in waiting {
            assert_eq!(waiting.join().unwrap().unwrap_err().kind(), ErrorKind::Interrupted);
        }
        opened.expect("the other guest is held up").unwrap();
        assert!(why.is_some_and(|why| why.contains("vm/.keep of process 7 on other")));
        assert_eq!(of_others, None);
    });
    assert_eq!(points.waits_for(&"vm".parse().unwrap()), None);
    assert_eq!(locks(&guest), [".keep"]);
}

/// Who read a file of a guest whose lock was watched was told that the repository does not answer.
#[test]
fn a_mount_says_which_lock_it_waits_for() {
    let mut guest = Guest::new(&["full"]);
    let other = guest.repo.backup(&guest.image, "wm/disk", &["--format", "raw"]);
    let other = crate::harness::repo::point_of(&other);
    guest.keep(other.clone());
    guest.proxy.modified_ahead.store(NONE, Ordering::SeqCst);
    leave_lock(&guest.place, ".keep", LONG);
    let folder = guest.lab.path("mnt");
    std::fs::create_dir(&folder).unwrap();
    let patience = Duration::from_secs(1);
    let request = MountRequest { folder: folder.clone(), wanted: Vec::new(), patience };
    let mount = Mount::new(&guest.repo.open(), &request, &Cancel::default()).unwrap();
    let read = |disk: &str, point: &str| std::fs::read(file(&folder, disk, point));
    let mut told = Vec::new();
    // On a busy machine the first answer may come before the lock is looked at.
    until(|| {
        let read = read("vm/disk", &guest.points[0].0);
        assert_eq!(read.unwrap_err().raw_os_error(), Some(5));
        told.extend(mount.warnings().filter(|it| it.code == Code::Unreadable));
        told.iter().any(|it| it.text.contains("vm/.keep of process 7 on other"))
    });
    // Whoever is in nobody's way is in nobody's way.
    let begin = Instant::now();
    while read("wm/disk", &other).is_err() {
        assert!(begin.elapsed() < HANGS, "{:?}", mount.warnings().collect::<Vec<_>>());
    }
    assert!(read("wm/disk", &other).unwrap() == std::fs::read(&guest.points[1].1).unwrap());
    // Nobody has asked the rest of the program to stop: the wait ends with the mount.
    mount.end().unwrap();
    assert_eq!(locks(&guest), [".keep"]);
}

/// A merge whose removal was stopped, or failed, said that points are being read: nobody read any.
#[test]
fn a_merge_says_that_points_are_read_only_where_they_are() {
    let guest = Guest::new(&["full", "incremental", "incremental"]);
    let points: Vec<_> = guest.points.iter().map(|(id, _)| id.clone()).collect();
    // The right to remove is given once: before the merge, when nothing is to be removed.
    let mut asked = 0;
    guest.proxy.judge(move |_, seen| {
        asked += u32::from(seen.method == "PUT" && seen.target.contains("/vm/.keep"));
        match asked > 1 && seen.target.contains("/vm/.keep") {
            true => Fate::Denied,
            false => Fate::Pass,
        }
    });
    let words = |from: &str, into: &str| args!["merge", format!("vm@{from}..{into}")];
    let outcome = guest.repo.run(words(&points[0], &points[1])).ok();
    let (told, warned) = (outcome.text(), &outcome.stderr);
    assert!(told.contains("will free") && told.contains("is still there"), "{told}");
    assert!(!told.contains("being read"), "{told}");
    assert!(warned.contains("could not be removed"), "{warned}");
    // Where somebody reads, it says so.
    guest.proxy.pass();
    let reader = guest.repo.open();
    let hold = reader.hold(&"vm".parse().unwrap(), Wait::UNHEARD).unwrap();
    let told = guest.repo.run(words(&points[1], &points[2])).ok().text();
    assert!(told.contains("will free") && told.contains("being read"), "{told}");
    drop(hold);
    guest.repo.run(args!["prune", "--keep-last", "9"]).ok();
    guest.repo.assert_no_leftovers();
    guest.assert_has(&guest.points[2..]);
}

/// Tells of everything that OpenSSL is to free when the process ends.
const PROBE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <unistd.h>

int __cxa_atexit(void (*at_exit)(void *), void *argument, void *library) {
    int (*next)(void (*)(void *), void *, void *) = dlsym(RTLD_NEXT, "__cxa_atexit");
    Dl_info of;
    if (dladdr((void *)at_exit, &of) && of.dli_fname && strstr(of.dli_fname, "libcrypto")) {
        static const char said[] = "libcrypto frees at exit\n";
        if (write(2, said, sizeof said - 1) < 0) return -1;
    }
    return next(at_exit, argument, library);
}
"#;

/// OpenSSL freed what it had when the program ended, while threads that nobody waited for signed requests: now and then the
/// program crashed instead of ending.
#[test]
fn nothing_that_threads_use_is_freed_when_the_program_ends() {
    let guest = Guest::new(&["full"]);
    let (source, probe) = (guest.lab.path("probe.c"), guest.lab.path("probe.so"));
    std::fs::write(&source, PROBE).unwrap();
    let mut compile = Command::new("cc");
    compile.args(["-shared", "-fPIC", "-o"]).arg(&probe).arg(&source).arg("-ldl");
    run(compile).ok();
    let mut command = qdelta(guest.repo.args(args!["points"]));
    command.env("LD_PRELOAD", &probe);
    let outcome = run(command).ok();
    assert!(!outcome.stderr.contains("libcrypto"), "{}", outcome.report());
}
