//! Waiting until it is clear whether a lock was left: whoever waits is told, and can end the wait.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use qdelta::ErrorKind;
use qdelta::base::cancel::Cancel;
use qdelta::base::observer::{Event, Observer};
use qdelta::vault::repository::storage::{LockMode, Name, Storage, Wait};
use rustix::process::{Pid, Signal, kill_process};

use super::guest::Guest;
use super::locks::{host, is_held, leave_lock, name};
use crate::harness::proxy::{Fate, NONE, Proxy};
use crate::harness::repo::Repo;
use crate::harness::run::start;
use crate::harness::store::{BUCKET, ask, endpoint, fresh_place};
use crate::harness::{args, qdelta};

/// What a wait says that begins.
const SAID: &str = "seems to be left";
/// Longer than any test may take, and not longer than a host watches a lock.
pub(super) const LONG: u64 = 600;

/// Starts a command, asks it to stop as soon as it waits, and gives its status and the rest of what it said.
fn stopped(repo: &Repo, arguments: Vec<OsString>) -> (Option<i32>, String) {
    stopped_at(&mut qdelta(repo.args(arguments)), SAID)
}

/// The same as soon as the command says something.
pub(super) fn stopped_at(command: &mut Command, said_first: &str) -> (Option<i32>, String) {
    let mut child = start(command);
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains(said_first) && said.read_line(&mut text).unwrap() > 0 {}
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    said.read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), text)
}

/// The locks of the guest.
pub(super) fn locks(guest: &Guest) -> Vec<String> {
    let all = host(endpoint(), &guest.place, 60).list(&Name::top().join("vm")).unwrap();
    all.into_iter().map(|it| it.name).filter(|name| name.starts_with('.')).collect()
}

/// A command that found a lock that was left said nothing for two minutes, and heard no request to stop as long; `init`
/// systems kill by then.
#[test]
fn whoever_waits_is_told_and_can_stop() {
    let guest = Guest::new(&["full", "incremental"]);
    let copy = Repo::init(guest.lab.path("copy"));
    guest.repo.run(args!["copy", "--to", copy.path.as_path()]).ok();
    // No clock says how old the lock is: it is watched.
    guest.proxy.modified_ahead.store(NONE, Ordering::SeqCst);
    let [first, last] = [0, 1].map(|number| format!("vm@{}", guest.points[number].0));
    let output = guest.lab.path("output.raw");
    let writers = [
        args!["backup", guest.image.as_path(), "--disk", "vm/disk", "--format", "raw"],
        args!["merge", format!("{first}..{}", guest.points[1].0)],
        args!["prune", "--keep-last", "9"],
        args!["pin", last.as_str()],
        args!["unpin", last.as_str()],
        args!["undelete", last.as_str()],
        args!["anchors", "vm/disk", "--remove-all"],
        args!["repair", "--from", copy.path.as_path()],
    ];
    let readers = [
        args!["restore", "vm/disk", output.as_path()],
        args!["verify", "--io", "threads"],
        args!["files", "ls", "vm"],
        args!["serve", "vm/disk", "--socket", guest.lab.path("socket")],
        args!["verify", "--against", copy.path.as_path()],
        args!["prune", "--keep-last", "9", "--dry-run"],
        // The lock of the guest is held by then, and goes.
        args!["merge", format!("{first}..{}", guest.points[1].0)],
    ];
    let writers = writers.into_iter().map(|words| (".lock", words));
    let readers = readers.into_iter().map(|words| (".keep", words));
    for (lock, words) in writers.chain(readers) {
        leave_lock(&guest.place, lock, LONG);
        let shown = words.first().unwrap().to_owned();
        let (status, said) = stopped(&guest.repo, words);
        assert!(said.contains(SAID) && said.contains("process 7 on other"), "{shown:?}: {said}");
        assert!(said.contains("waiting for 10:00 min"), "{shown:?}: {said}");
        assert_eq!(status, Some(130), "{shown:?}: {said}");
        // Nobody has taken what was left, and nothing is left beside it.
        assert_eq!(locks(&guest), [lock], "{shown:?}");
        ask("DELETE", &format!("/{BUCKET}/{}/vm/{lock}", guest.place), Vec::new()).ok();
    }
    leave_lock(&guest.place, ".lock", LONG);
    let (status, said) = stopped(&copy, args!["copy", "--to", guest.repo.path.as_path()]);
    assert!(said.contains(SAID) && status == Some(130), "{status:?} {said}");
    guest.assert_has(&guest.points);
}

/// A wait stands in the result, so that a script sees it.
#[test]
fn a_wait_stands_in_the_result() {
    let guest = Guest::new(&["full"]);
    guest.proxy.modified_ahead.store(NONE, Ordering::SeqCst);
    leave_lock(&guest.place, ".lock", 1);
    guest.change();
    let report = guest.repo.backup(&guest.image, "vm/disk", &["--format", "raw"]);
    let warnings = report["warnings"].as_array().unwrap();
    assert!(warnings.iter().any(|it| it["code"] == "left-lock"), "{report}");
    guest.repo.assert_no_leftovers();
}

/// What an observer hears of a wait.
#[derive(Default)]
pub(super) struct Heard {
    pub warnings: Mutex<Vec<String>>,
    steps: Mutex<Vec<(&'static str, u64)>>,
    cancel: Option<Cancel>,
}

impl Observer for Heard {
    fn event(&self, event: &Event<'_>) {
        let mut steps = self.steps.lock().unwrap();
        match event {
            Event::Begin { phase, total, .. } => steps.push((phase, *total)),
            Event::Advance { bytes } => steps.push(("advance", *bytes)),
            Event::End => steps.push(("end", 0)),
            Event::Warning(warning) => {
                self.warnings.lock().unwrap().push(warning.text.clone());
                if let Some(cancel) = &self.cancel {
                    cancel.cancel();
                }
            }
            _ => {}
        }
    }
}

#[test]
fn a_wait_is_a_phase_with_an_end() {
    let place = fresh_place();
    let proxy = Proxy::new(endpoint());
    proxy.modified_ahead.store(NONE, Ordering::SeqCst);
    leave_lock(&place, ".lock", 2);
    let store = host(&proxy.endpoint, &place, 3);
    let (heard, cancel) = (Heard::default(), Cancel::default());
    let lock = |heard: &Heard, cancel: &Cancel| {
        store.lock(&name(".lock"), LockMode::Exclusive, Wait::by(heard, cancel))
    };
    drop(lock(&heard, &cancel).unwrap());
    let steps = heard.steps.into_inner().unwrap();
    assert_eq!((steps.first(), steps.last()), (Some(&("wait", 2)), Some(&("end", 0))), "{steps:?}");
    let done: u64 = steps.iter().filter(|it| it.0 == "advance").map(|it| it.1).sum();
    assert_eq!(done, 2, "{steps:?}");
    // Whoever finds no lock that was left hears nothing.
    let heard = Heard::default();
    assert!(is_held(&lock(&heard, &cancel).unwrap()));
    assert!(heard.warnings.into_inner().unwrap().is_empty());
    // Nothing comes of a wait that was ended.
    leave_lock(&place, ".lock", LONG);
    let heard = Heard { cancel: Some(cancel.clone()), ..Heard::default() };
    assert_eq!(lock(&heard, &cancel).unwrap_err().kind(), ErrorKind::Interrupted);
    assert_eq!(heard.steps.into_inner().unwrap().last(), Some(&("end", 0)));
}

/// A lock that a process could not remove was taken for somebody else's by the process itself.
#[test]
fn a_lock_that_was_not_removed_is_known_by_who_left_it() {
    use LockMode::{Exclusive, Shared};
    for (first, second) in [(Exclusive, Exclusive), (Exclusive, Shared), (Shared, Exclusive)] {
        let place = fresh_place();
        let proxy = Proxy::new(endpoint());
        let patience = format!("&patience=1&lease={LONG}");
        let address = crate::harness::store::address(&proxy.endpoint, &place);
        let store =
            crate::harness::store::storage(format!("{}{patience}", address.display()).as_ref());
        let heard = Heard::default();
        let never = Cancel::default();
        let wait = Wait::by(&heard, &never);
        let held = store.lock(&name(".keep"), first, wait).unwrap();
        proxy.judge(|_, seen| match seen.method == "DELETE" {
            true => Fate::Throttle,
            false => Fate::Pass,
        });
        drop(held);
        proxy.pass();
        let again = store.lock(&name(".keep"), second, wait).unwrap();
        assert!(is_held(&again), "{second:?} after {first:?}: {again:?}");
        drop(again);
        assert!(heard.warnings.into_inner().unwrap().is_empty(), "{second:?} after {first:?}");
    }
}

/// After a request to stop each request of the cleanup was tried for three minutes.
#[test]
fn nothing_is_tried_again_after_a_request_to_stop() {
    let guest = Guest::new(&["full"]);
    guest.proxy.judge(|_, seen| match seen.target.contains("/vm/disk/") {
        true => Fate::Throttle,
        false => Fate::Pass,
    });
    guest.change();
    let words = args!["backup", guest.image.as_path(), "--disk", "vm/disk", "--format", "raw"];
    let mut command = qdelta(guest.repo.args([words, args!["-vv"]].concat()));
    let (status, said) = stopped_at(&mut command, "again in");
    assert_eq!(status, Some(130), "{said}");
    let after = said.split("stopping and cleaning up").nth(1).unwrap();
    // One may just have been about to be.
    assert!(after.matches("again in").count() <= 1, "{after}");
    guest.assert_has(&guest.points);
}

/// One `404` of something in front of the store, in the place of any answer but to a `HEAD`, was believed.
#[test]
fn one_answer_without_a_word_that_something_is_missing_is_not_believed() {
    let guest = Guest::new(&["full", "full"]);
    for method in ["GET", "DELETE"] {
        let commands =
            [args!["verify", "--io", "threads"], args!["pin", format!("vm@{}", guest.points[1].0)]];
        for words in commands {
            let mut seen_before = std::collections::BTreeSet::new();
            guest.proxy.judge(move |_, seen| {
                match seen.method == method && seen_before.insert(seen.target.clone()) {
                    true => Fate::Missing,
                    false => Fate::Pass,
                }
            });
            guest.repo.run(words).ok();
        }
        assert_eq!(locks(&guest), Vec::<String>::new(), "{method}");
    }
    guest.assert_has(&guest.points);
}
