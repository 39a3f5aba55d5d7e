//! What comes back is what was written, or an error: whatever happens to answers on their way.

use std::path::PathBuf;

use crate::harness::files::assert_same;
use crate::harness::images::{filled, oracle};
use crate::harness::proxy::{Fate, Proxy};
use crate::harness::repo::Repo;
use crate::harness::store::{address, ask, endpoint, fresh_place, new_repo};
use crate::harness::{Lab, args};
use qdelta::vault::repository::storage::Wait;

/// An answer that was cut is asked for again. One that somebody made shorter, and says so soundly, or that
/// has another bit, is found by digests: no wrong byte is restored, and it is asked for again or named.
#[test]
fn no_wrong_byte_is_restored_whatever_happens_to_answers() {
    let lab = Lab::new();
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    let straight = Repo::init(address(endpoint(), &place));
    let image = filled(&lab, "disk.qcow2", "", 3 << 20, 1);
    straight.backup(&image, "vm/disk", &[]);
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "qcow2", image.as_path()], &expected);
    let repo = Repo::at(address(&proxy.endpoint, &place));
    let output = lab.path("restored.raw");
    for fate in [Fate::Cut, Fate::Lost, Fate::Throttle, Fate::Shortened, Fate::Flipped] {
        let mut at = 0;
        loop {
            proxy.judge(move |number, seen| match number == at && seen.method == "GET" {
                true => fate,
                false => Fate::Pass,
            });
            let outcome = repo.restore("vm/disk", &output, &["--force"]).sane();
            match outcome.code() {
                Some(0) => assert_same(&expected, &output, &format!("{fate:?} at {at}")),
                _ => {
                    let is_damage = matches!(fate, Fate::Shortened | Fate::Flipped);
                    assert!(is_damage, "{fate:?} at {at}:\n{}", outcome.report());
                }
            }
            if proxy.seen().len() <= at {
                break;
            }
            at += 1;
        }
        assert!(at > 3, "{at} requests");
    }
    proxy.pass();
    repo.verify();
}

/// A store that is slow, and answers many things at once.
#[test]
fn a_store_that_takes_its_time_is_waited_for() {
    let lab = Lab::new();
    let proxy = Proxy::new(endpoint());
    proxy.judge(|_, _| Fate::Slow(50));
    let repo = Repo::init(address(&proxy.endpoint, &fresh_place()));
    let image = filled(&lab, "disk.qcow2", "", 3 << 20, 1);
    repo.backup(&image, "vm/disk", &[]);
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "qcow2", image.as_path()], &expected);
    repo.assert_restores_raw(&lab, "vm/disk", &expected);
}

/// A store that keeps the folders of objects that are gone told of a guest in which nothing was: a backup that failed
/// before it had a point made every verification end with status 4.
#[test]
fn a_folder_that_is_empty_again_is_no_finding() {
    let repo = new_repo();
    drop(repo.open().lock(&"web".parse().unwrap(), Wait::UNHEARD).unwrap());
    repo.verify();
}

/// What stands before a store asked it twice: it had done what was asked, and the second answer was that something
/// stands there. The archive of a point was removed, and the manifest that named it stayed.
#[test]
fn what_was_done_and_answered_as_refused_is_done() {
    let lab = Lab::new();
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    let straight = Repo::init(address(endpoint(), &place)).without_ring();
    let repo = Repo::at(address(&proxy.endpoint, &place)).without_ring();
    let image = filled(&lab, "disk.qcow2", "", 3 << 20, 1);
    straight.backup(&image, "vm/disk", &[]);
    let (mut at, mut done) = (0, 0);
    loop {
        let mut number = 0;
        proxy.judge(move |_, seen| {
            let is_it = number == at && seen.method == "PUT";
            number += usize::from(seen.method == "PUT");
            if is_it { Fate::Twice } else { Fate::Pass }
        });
        let before = proxy.seen().len();
        let outcome = repo.backup_run(&image, "vm/disk", &[]).sane();
        done += usize::from(outcome.code() == Some(0));
        straight.verify();
        let report = straight.backup(&image, "vm/disk", &[]);
        assert!(report["warnings"].as_array().unwrap().is_empty(), "{at}: {report}");
        straight.verify();
        if proxy.seen()[before..].iter().filter(|it| it.method == "PUT").count() <= at {
            break;
        }
        at += 1;
    }
    assert!(at > 2 && done + 1 >= at, "{done} backups of {at} were done");
}

/// A store that gave an archive its name after the backup had given up left a file that nothing explained: the
/// guest was not restored, and nothing ever removed that file.
#[test]
fn an_archive_that_arrives_after_the_backup_gave_up_is_no_stray() {
    let lab = Lab::new();
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    let straight = Repo::init(address(endpoint(), &place));
    let image = filled(&lab, "disk.qcow2", "", 3 << 20, 1);
    straight.backup(&image, "vm/disk", &[]);
    let expected = lab.path("expected.raw");
    oracle(args!["-f", "qcow2", image.as_path()], &expected);
    let is_archive = |method: &str, target: &str| method == "PUT" && target.contains("/vm/disk/");
    proxy.judge(move |_, seen| match is_archive(&seen.method, &seen.target) {
        true => Fate::Lost,
        false => Fate::Pass,
    });
    let hasty = address(&proxy.endpoint, &place).to_str().unwrap().replace("=20s", "=2s");
    let words = args!["backup", image.as_path(), "--disk", "vm/disk", "--kind", "full"];
    Repo::at(PathBuf::from(hasty)).run(words).fails_with(1);
    let seen = proxy.seen();
    let late = seen.iter().find(|it| is_archive(&it.method, &it.target)).unwrap();
    let target = late.target.split('?').next().unwrap();
    ask("PUT", target, args!["--data-binary", "late"]).ok();
    let name = target.rsplit('/').next().unwrap().to_owned();
    let is_there = || straight.files().iter().any(|it| it.ends_with(&name));
    assert!(is_there());
    straight.assert_restores_raw(&lab, "vm/disk", &expected);
    straight.verify();
    let report = straight.backup(&image, "vm/disk", &[]);
    assert!(!report["warnings"].to_string().contains("stray"), "{report}");
    assert!(!is_there(), "{name} stays for ever");
    straight.verify();
}

/// A store that did not answer in the middle of a verification had every archive called damaged, and each later
/// command warned of it.
#[test]
fn a_store_that_does_not_answer_damages_nothing() {
    let lab = Lab::new();
    let (proxy, place) = (Proxy::new(endpoint()), fresh_place());
    let straight = Repo::init(address(endpoint(), &place)).without_ring();
    let image = filled(&lab, "disk.qcow2", "", 3 << 20, 1);
    for _ in 0..3 {
        straight.backup(&image, "vm/disk", &[]);
    }
    let hasty = address(&proxy.endpoint, &place).to_str().unwrap().replace("=20s", "=1s");
    let repo = Repo::at(hasty.into());
    let mut whole = 0;
    for fate in [Fate::Throttle, Fate::Expired, Fate::Lost] {
        for from in 0.. {
            let mut number = 0;
            proxy.judge(move |_, seen| {
                let is_read = matches!(seen.method.as_str(), "GET" | "HEAD");
                number += usize::from(is_read);
                if is_read && number > from { fate } else { Fate::Pass }
            });
            let outcome = repo.run(args!["verify", "--json", "--io", "threads"]).sane();
            match outcome.code() {
                Some(0) => {
                    whole += 1;
                    break;
                }
                code => assert_eq!(code, Some(1), "{fate:?} from {from}:\n{}", outcome.report()),
            }
            let list = straight.run(args!["points", "--json"]).ok();
            assert!(!list.stderr.contains("damaged"), "{fate:?} from {from}:\n{}", list.report());
            // Most of these requests are alike.
            if from > 40 {
                break;
            }
        }
    }
    proxy.pass();
    assert!(whole > 0 || repo.run(args!["verify"]).status.success());
    // What can't be read of a guest is said where its room is told.
    let manifest = straight.files().into_iter().find(|it| it.to_string_lossy().ends_with(".json"));
    straight.stored_as(manifest.unwrap()).write(b"broken");
    let said = straight.run(args!["space"]).fails_with(4);
    assert!(said.contains("is not known"), "{said}");
}
