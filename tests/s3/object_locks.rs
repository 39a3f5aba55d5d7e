//! Files that the store itself does not let go of, and a repository as it was before somebody with every key
//! of the host had done what he could.

use std::ffi::OsString;
use std::time::Duration;

use crate::harness::content::Guest;
use crate::harness::images::{create, guest_io, oracle};
use crate::harness::repo::{Repo, point_of};
use crate::harness::store::{LOCKED_BUCKET, address, ask, endpoint, fresh_place, locked_place};
use crate::harness::{Lab, args, qdelta, run};

const MIB: u64 = 1 << 20;

/// A repository in the bucket that locks, for so long.
pub(super) fn locked(lock: &str) -> Repo {
    let path = locked_place();
    run(qdelta(args!["init", path.as_path(), "--lock", lock])).ok();
    Repo::at(path).without_ring()
}

/// Where a repository is in the bucket.
pub(super) fn prefix(repo: &Repo) -> String {
    repo.path.to_str().unwrap().split(['?', '/']).nth(3).unwrap().to_owned()
}

/// What stands between two tags, each time.
fn all_of(xml: &str, tag: &str) -> Vec<String> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let found = xml.split(&open).skip(1).filter_map(|rest| rest.split_once(&close));
    found.map(|(inner, _)| inner.to_owned()).collect()
}

/// The keys and ids of all versions of a repository's objects.
pub(super) fn versions(repo: &Repo) -> Vec<(String, String)> {
    let target = format!("/{LOCKED_BUCKET}?prefix={}%2F&versions=", prefix(repo));
    let xml = ask("GET", &target, Vec::new()).ok().text();
    let one = |version: &String, tag| all_of(version, tag).remove(0);
    let all = all_of(&xml, "Version");
    all.iter().map(|version| (one(version, "Key"), one(version, "VersionId"))).collect()
}

/// Whoever had the host's credentials removed or wrote over every object, and the backups were gone: now the
/// store keeps what it was told to keep, and it can be read as it was.
#[test]
fn every_point_comes_back_after_everything_was_done_that_the_host_s_credentials_allow() {
    let lab = Lab::new();
    let repo = locked("1d");
    let image = lab.path("disk.qcow2");
    create(&image, "", 3 * MIB);
    let mut guest = Guest::new(lab.dir(), 5);
    let mut points = Vec::new();
    for number in 0..3 {
        guest_io(&image, "qcow2", &guest.fill(3 * MIB, 3));
        let expected = lab.path(format!("{number}.raw"));
        oracle(args!["-f", "qcow2", image.as_path()], &expected);
        points.push((point_of(&repo.backup(&image, "vm/disk", &[])), expected));
    }
    // The store's clock tells versions apart by the second.
    std::thread::sleep(Duration::from_millis(1100));
    let before = jiff::Timestamp::now().to_string();
    std::thread::sleep(Duration::from_millis(1100));
    // A guest that is younger than that moment.
    let copy = Repo::init(lab.path("copy"));
    repo.backup(&image, "young/disk", &[]);
    if copy.key.is_none() {
        repo.run(args!["copy", "young", "--to", copy.path.as_path()]).ok();
    }
    attack(&repo);
    assert!(!repo.run(args!["points"]).status.success(), "the attack did nothing");
    let as_of =
        |words: Vec<OsString>| repo.run([words, args!["--as-of", before.as_str()]].concat());
    let list = as_of(args!["points", "--json"]).ok().json();
    let listed = list["disks"][0]["points"].as_array().unwrap();
    let ids: Vec<&str> = listed.iter().map(|point| point["point"].as_str().unwrap()).collect();
    assert_eq!(ids, points.iter().map(|(id, _)| id.as_str()).collect::<Vec<_>>());
    for (id, expected) in &points {
        let output = lab.path("restored");
        let words = args!["restore", format!("vm/disk@{id}"), output.as_path(), "--io", "threads"];
        as_of(words).ok();
        crate::harness::files::assert_same(expected, &output, id);
        std::fs::remove_file(output).unwrap();
    }
    as_of(args!["verify", "--io", "threads"]).ok();
    // The past can be copied, and not be written to.
    if copy.key.is_none() {
        let words = args!["copy", "--to", copy.path.as_path(), "--json"];
        let report = as_of(words).ok().json();
        // It was said to be gone, though it had only not been there yet.
        assert_eq!(report["warnings"], serde_json::json!([]), "{report}");
        copy.assert_restores_raw(&lab, "vm/disk", &points[2].1);
    }
    let words = args!["backup", image.as_path(), "--disk", "vm/disk"];
    assert!(as_of(words).fails_with(2).contains("nothing can be written"));
    let words = args!["points", "--as-of", "1990-01-01"];
    assert!(repo.run(words).fails_with(6).contains("no repository was there"));
}

/// Everything that credentials can do which may do anything but lift locks early.
fn attack(repo: &Repo) {
    let all = versions(repo);
    assert!(all.len() > 7, "{all:?}");
    let mut refused = 0;
    for (key, id) in &all {
        let target = format!("/{LOCKED_BUCKET}/{key}?versionId={id}");
        // What processes lock with is nobody's backup.
        let is_dot = key.rsplit('/').next().unwrap().starts_with('.');
        let outcome = ask("DELETE", &target, Vec::new());
        assert!(is_dot || !outcome.status.success(), "{key} was removed");
        let sooner = "<Retention><Mode>COMPLIANCE</Mode>\
                      <RetainUntilDate>2027-01-01T00:00:00Z</RetainUntilDate></Retention>";
        let sooner = sooner.replace("2027-01-01T00:00:00Z", &soon());
        let target = format!("/{LOCKED_BUCKET}/{key}?retention=&versionId={id}");
        let outcome = ask("PUT", &target, args!["--data-binary", sooner]);
        assert!(is_dot || !outcome.status.success(), "the lock of {key} was made shorter");
        assert!(!outcome.text().contains("Signature"), "{}", outcome.report());
        refused += usize::from(!is_dot);
    }
    assert!(refused >= 7, "{refused}");
    for (number, (key, _)) in all.iter().enumerate() {
        let target = format!("/{LOCKED_BUCKET}/{key}");
        match number % 3 {
            0 => drop(ask("DELETE", &target, Vec::new()).ok()),
            1 => drop(ask("PUT", &target, args!["--data-binary", "pay for it"]).ok()),
            _ => {
                ask("PUT", &target, args!["--data-binary", "pay for it"]).ok();
                ask("DELETE", &target, Vec::new()).ok();
            }
        }
    }
}

/// A minute from now.
fn soon() -> String {
    let soon = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(60);
    soon.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A lock that was set once would end in the middle of a chain that later points need.
#[test]
fn what_points_need_is_locked_anew_and_what_goes_is_told_of() {
    let lab = Lab::new();
    let repo = locked("2d");
    let image = lab.path("disk.qcow2");
    create(&image, "", 2 * MIB);
    let mut guest = Guest::new(lab.dir(), 5);
    let mut backup = || {
        guest_io(&image, "qcow2", &guest.fill(2 * MIB, 2));
        point_of(&repo.backup(&image, "vm/disk", &[]))
    };
    let (first, second) = (backup(), backup());
    let safe = || -> Vec<jiff::Timestamp> {
        let list = repo.run(args!["points", "--removed", "--json"]).ok().json();
        let points = list["disks"][0]["points"].as_array().unwrap().clone();
        points.iter().map(|it| it["safe_until"].as_str().unwrap().parse().unwrap()).collect()
    };
    let hours = |time: jiff::Timestamp| time.duration_since(jiff::Timestamp::now()).as_hours();
    assert!(safe().iter().all(|time| (46..=48).contains(&hours(*time))), "{:?}", safe());
    let shown = repo.run(args!["points"]).ok().text();
    assert!(shown.contains("LOCKED FOR"), "{shown}");
    // What no rule keeps stays as long as it is locked, and says so.
    let prune = args!["prune", "--keep-last", "1", "--grace", "0h", "--json"];
    let pruned = repo.run(prune.clone()).ok().json();
    let spared = &pruned["guests"][0]["data"]["spared"];
    assert_eq!(spared[0]["points"], serde_json::json!([first]), "{pruned}");
    assert_eq!(spared[0]["why"], "locked", "{pruned}");
    repo.verify();
    // A longer period: what the kept points need is locked for it, the full of the removed one included.
    repo.edit_settings(|text| text.replace("lock = \"2d\"", "lock = \"4d\""));
    let third = backup();
    let now = safe();
    assert_eq!(now.len(), 3, "{first} {second} {third}");
    assert!((90..=96).contains(&hours(now[1])) && (90..=96).contains(&hours(now[2])), "{now:?}");
    assert!(hours(now[0]) < 49, "nobody needs its manifest any more: {now:?}");
    // A lock is never made shorter.
    repo.edit_settings(|text| text.replace("lock = \"4d\"", "lock = \"1d\""));
    backup();
    assert!((90..=96).contains(&hours(safe()[1])), "{:?}", safe());
}

/// A bucket without locks, or a folder, would have been believed to have them.
#[test]
fn where_nothing_can_be_locked_that_is_said() {
    let lab = Lab::new();
    let folder = lab.path("repo");
    let said = run(qdelta(args!["init", folder.as_path(), "--lock", "3d"])).fails_with(2);
    assert!(said.contains("can't lock files"), "{said}");
    let plain = address(endpoint(), &fresh_place());
    let said = run(qdelta(args!["init", plain.as_path(), "--lock", "3d"])).fails_with(2);
    assert!(said.contains("can't lock objects"), "{said}");
    let said = run(qdelta(args!["init", locked_place(), "--lock", "bucket"])).fails_with(2);
    assert!(said.contains("locks nothing by itself"), "{said}");
    run(qdelta(args!["init", folder.as_path()])).ok();
    let repo = Repo::at(folder);
    let said = repo.run(args!["points", "--as-of", "1h"]).fails_with(2);
    assert!(said.contains("knows no earlier state"), "{said}");
    // What was not written over since was shown as all that there was.
    let repo = Repo::init(plain);
    let words = args!["points", "--as-of", jiff::Timestamp::now().to_string()];
    std::thread::sleep(Duration::from_millis(1100));
    let said = repo.run(words).fails_with(2);
    assert!(said.contains("keeps no versions"), "{said}");
}

/// What a bucket locks by itself was never tried with a store.
#[test]
fn what_the_bucket_locks_by_itself_is_taken() {
    let lab = Lab::new();
    let (bucket, place) = ("defaulted", fresh_place());
    let enabled = args!["-H", "x-amz-bucket-object-lock-enabled: true"];
    ask("PUT", &format!("/{bucket}"), enabled).ok();
    let rule = "<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>\
                <Mode>COMPLIANCE</Mode><Days>3</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
    let target = format!("/{bucket}?object-lock=");
    ask("PUT", &target, args!["--data-binary", rule]).ok();
    let path: std::path::PathBuf =
        format!("s3://{bucket}/{place}?endpoint={}&patience=20s", endpoint()).into();
    run(qdelta(args!["init", path.as_path(), "--lock", "bucket"])).ok();
    let repo = Repo::at(path).without_ring();
    let mut settings = String::new();
    repo.edit_settings(|text| {
        settings = text.to_owned();
        text.to_owned()
    });
    assert!(settings.contains("lock = \"3d\""), "{settings}");
    let image = lab.path("image.raw");
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    repo.backup(&image, "vm/disk", &["--format", "raw"]);
    let list = repo.run(args!["points", "--json"]).ok().json();
    let until = &list["disks"][0]["points"][0]["safe_until"];
    let until: jiff::Timestamp = until.as_str().unwrap().parse().unwrap();
    let hours = until.duration_since(jiff::Timestamp::now()).as_hours();
    assert!((60..=72).contains(&hours), "{hours} hours: {list}");
}
