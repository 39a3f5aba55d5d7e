//! Locks that somebody takes who should not: what is lost then is no point.

use std::path::PathBuf;
use std::time::Duration;

use super::guest::Guest;
use crate::harness::images::patch;
use crate::harness::proxy::{Fate, Proxy};
use crate::harness::repo::{ADMIN, Repo, point_of};
use crate::harness::store::{BUCKET, address, ask, endpoint, fresh_place};
use crate::harness::{Lab, args};

/// A guest with a full and two that build on it.
fn guest() -> Guest {
    Guest::new(&["full", "incremental", "incremental"])
}

impl Guest {
    /// Somebody removes the lock of a host that is just giving an object its name, and another host backs up and cleans
    /// up meanwhile.
    fn steal_at(&self, object: String) {
        let thief = self.direct();
        let (place, image, stolen) =
            (self.place.clone(), self.lab.path("thief.raw"), self.lab.path("stolen"));
        std::fs::copy(&self.image, &image).unwrap();
        self.proxy.judge(move |_, seen| {
            let is_it =
                seen.method == "PUT" && seen.target.split('?').next().unwrap().ends_with(&object);
            if is_it && !stolen.exists() {
                ask("DELETE", &format!("/{BUCKET}/{place}/vm/.lock"), Vec::new()).ok();
                thief.backup(&image, "vm/disk", &["--format", "raw"]);
                std::fs::write(&stolen, "").unwrap();
            }
            Fate::Pass
        });
    }

    /// The lock was stolen, and every one of these points is there, whole.
    #[track_caller]
    fn assert_still_has(&self, points: &[(String, PathBuf)]) {
        assert!(self.lab.path("stolen").exists(), "the lock was never stolen");
        self.assert_has(points);
    }
}

/// Another process took the lock of a merge that was about to put its manifest, and removed the merged archive, which no
/// manifest named yet. Then the manifest named it, and the archives that it had replaced went: status 0, and the newest
/// points were lost.
#[test]
fn a_merge_whose_lock_is_stolen_loses_no_point() {
    let guest = guest();
    let [first, second, _] = [0, 1, 2].map(|number| guest.points[number].0.clone());
    guest.steal_at(format!("/vm/points/{second}.json"));
    let merge = args!["merge", format!("vm@{first}..{second}"), "--io", "threads"];
    let said = guest.repo.run(merge.clone()).fails_with(5);
    assert!(said.contains("was taken by somebody else"), "{said}");
    guest.assert_still_has(&guest.points);
    guest.direct().verify();
    guest.repo.run(merge).ok();
    guest.direct().verify();
    guest.assert_still_has(&guest.points[1..]);
    guest.repo.assert_no_leftovers();
}

/// A merge slept when its manifest stood there, and another host took the lock rightly and began to remove what that
/// manifest lists. Then the merge woke up and put the manifest before over it, whose archives went a moment later: the
/// newest points were lost.
#[test]
fn a_merge_that_lost_its_lock_takes_nothing_back_that_goes() {
    let guest = guest();
    let [first, second, _] = [0, 1, 2].map(|number| guest.points[number].0.clone());
    let (place, stolen, merged) =
        (guest.place.clone(), guest.lab.path("stolen"), format!("/vm/points/{second}.json"));
    let gone = format!("/{BUCKET}/{place}/vm/points/{first}.json");
    let mut is_merged = false;
    guest.proxy.judge(move |_, seen| {
        let name = seen.target.split('?').next().unwrap();
        is_merged |= seen.method == "PUT" && name.ends_with(&merged);
        if is_merged && seen.method == "GET" && name.ends_with("/vm/.lock") && !stolen.exists() {
            ask("DELETE", &format!("/{BUCKET}/{place}/vm/.lock"), Vec::new()).ok();
            ask("DELETE", &gone, Vec::new()).ok();
            std::fs::write(&stolen, "").unwrap();
        }
        Fate::Pass
    });
    let replaced: Vec<String> =
        guest.repo.files().iter().map(|it| it.display().to_string()).collect();
    let is_replaced = |name: &&String| {
        name.ends_with(".qdelta") && (name.contains(&first) || name.contains(&second))
    };
    let merge = args!["merge", format!("vm@{first}..{second}"), "--io", "threads"];
    let said = guest.repo.run(merge).fails_with(5);
    assert!(said.contains(&format!("point {second} is merged")), "{said}");
    assert!(!said.contains("nothing was published"), "{said}");
    // The other host goes on with what it had read.
    let replaced: Vec<&String> = replaced.iter().filter(is_replaced).collect();
    assert_eq!(replaced.len(), 2, "{replaced:?}");
    for name in replaced {
        ask("DELETE", &format!("/{BUCKET}/{}/{name}", guest.place), Vec::new()).ok();
    }
    guest.assert_still_has(&guest.points[1..]);
    guest.direct().run(args!["prune", "--keep-last", "9"]).ok();
    guest.direct().verify();
    guest.assert_still_has(&guest.points[1..]);
}

/// A prune, which merges and then drops, loses no point either.
#[test]
fn a_prune_whose_lock_is_stolen_loses_no_point() {
    let guest = guest();
    let last = guest.points[2].0.clone();
    let prune = args!["prune", "--keep-last", "1", "--grace", "0", "--json"];
    guest.repo.edit_settings(|text| text.replace("merge_share = 25", "merge_share = 1"));
    guest.steal_at(format!("/vm/points/{last}.json"));
    let outcome = guest.repo.run(prune).sane();
    assert_ne!(outcome.code(), Some(0), "{}", outcome.report());
    guest.assert_still_has(&guest.points[2..]);
    guest.direct().verify();
}

/// Nor does a full that is made by merging.
#[test]
fn a_synthetic_full_whose_lock_is_stolen_loses_no_point() {
    let mut guest = guest();
    // Its own point stands before the merge: the second time that its manifest is written.
    let stolen = guest.lab.path("stolen");
    let (place, thief) = (guest.place.clone(), guest.direct());
    let image = guest.lab.path("thief.raw");
    std::fs::copy(&guest.image, &image).unwrap();
    let mut written = std::collections::BTreeSet::new();
    guest.proxy.judge(move |_, seen| {
        let name = seen.target.split('?').next().unwrap().to_owned();
        let is_manifest =
            seen.method == "PUT" && name.contains("/vm/points/2") && name.ends_with(".json");
        if is_manifest && !written.insert(name) && !stolen.exists() {
            ask("DELETE", &format!("/{BUCKET}/{place}/vm/.lock"), Vec::new()).ok();
            thief.backup(&image, "vm/disk", &["--format", "raw"]);
            std::fs::write(&stolen, "").unwrap();
        }
        Fate::Pass
    });
    patch(&guest.image, 3 << 17, &[9; 70_000]);
    let outcome =
        guest.repo.backup_run(&guest.image, "vm/disk", &["--format", "raw", "--synthetic"]);
    let made = point_of(&outcome.sane().json());
    guest.points.push((made, guest.image.clone()));
    guest.assert_still_has(&guest.points);
    guest.direct().verify();
}

/// A full that had got its place when the lock was lost was said to be none.
#[test]
fn a_synthetic_full_that_stands_is_said_to_be_one() {
    let mut guest = guest();
    let stolen = guest.lab.path("stolen");
    let place = guest.place.clone();
    let (mut written, mut stands) = (std::collections::BTreeSet::new(), false);
    guest.proxy.judge(move |_, seen| {
        let name = seen.target.split('?').next().unwrap().to_owned();
        if seen.method == "PUT" && name.contains("/vm/points/2") && name.ends_with(".json") {
            stands |= !written.insert(name);
        } else if stands && seen.method == "GET" && name.ends_with("/vm/.lock") && !stolen.exists()
        {
            ask("DELETE", &format!("/{BUCKET}/{place}/vm/.lock"), Vec::new()).ok();
            std::fs::write(&stolen, "").unwrap();
        }
        Fate::Pass
    });
    guest.change();
    let options = ["--format", "raw", "--synthetic"];
    let report = guest.repo.backup(&guest.image, "vm/disk", &options);
    guest.keep(point_of(&report));
    let told = report["warnings"].to_string();
    assert!(told.contains("is a full now") && !told.contains("is no full"), "{told}");
    assert_eq!((&report["kind"], report["parent"].is_null()), (&"full".into(), true), "{report}");
    guest.assert_still_has(&guest.points);
    guest.direct().verify();
}

/// Another host cleaned up what a repair had brought and no manifest named yet: then the manifest named it, and it was
/// said to be mended.
#[test]
fn a_repair_whose_lock_is_stolen_says_of_nothing_that_it_is_mended() {
    let guest = Guest::new(&["full", "full", "full"]);
    let copy = Repo::init(guest.lab.path("copy"));
    guest.repo.run(args!["copy", "--to", copy.path.as_path()]).ok();
    let point = guest.points[1].0.clone();
    let files = guest.repo.files().into_iter().map(|it| it.display().to_string());
    let mut archives = files.filter(|it| it.ends_with(".qdelta") && it.contains(&point));
    let archive = format!("/{BUCKET}/{}/{}", guest.place, archives.next().unwrap());
    ask("PUT", &archive, args!["--data-binary", "rubbish"]).ok();
    guest.steal_at(format!("/vm/points/{point}.json"));
    let repair = args!["repair", "--from", copy.path.as_path(), "--io", "threads"];
    let outcome = guest.repo.run(repair.clone()).sane();
    assert_ne!(outcome.code(), Some(0), "{}", outcome.report());
    let said = format!("{}{}", outcome.text(), outcome.stderr);
    assert!(said.contains("was taken by somebody else"), "{said}");
    assert!(said.contains("is not mended") && !said.contains("1 file mended"), "{said}");
    guest.proxy.pass();
    guest.repo.run(repair).ok();
    guest.assert_still_has(&guest.points);
    guest.direct().verify();
}

/// A backup whose lock is stolen just before its manifest gets its name does not say that all is well.
#[test]
fn a_backup_whose_lock_is_stolen_says_so() {
    let guest = guest();
    guest.steal_at(".json".to_owned());
    patch(&guest.image, 3 << 17, &[9; 70_000]);
    let said = guest.repo.backup_run(&guest.image, "vm/disk", &["--format", "raw"]).fails_with(5);
    assert!(said.contains("was taken by somebody else"), "{said}");
    guest.assert_still_has(&guest.points);
}

/// Another host cleaned up while the archive of a backup whose lock had been removed was on its way: the archive stayed for
/// ever, nothing said why it was there, and every prune failed.
#[test]
fn a_backup_whose_lock_is_stolen_leaves_no_archive() {
    let mut guest = guest();
    let (place, thief, stolen) = (guest.place.clone(), guest.direct(), guest.lab.path("stolen"));
    guest.proxy.judge(move |_, seen| {
        if seen.method == "PUT" && seen.target.contains("/vm/disk/2") && !stolen.exists() {
            ask("DELETE", &format!("/{BUCKET}/{place}/vm/.lock"), Vec::new()).ok();
            thief.run(args!["prune", "--keep-last", "9"]).ok();
            std::fs::write(&stolen, "").unwrap();
            // Longer than what was proved lately holds.
            std::thread::sleep(Duration::from_millis(1100));
        }
        Fate::Pass
    });
    guest.change();
    let said = guest.repo.backup_run(&guest.image, "vm/disk", &["--format", "raw"]).fails_with(5);
    assert!(said.contains("was taken by somebody else"), "{said}");
    guest.assert_still_has(&guest.points);
    guest.direct().verify();
    guest.direct().run(args!["prune", "--keep-last", "9"]).ok();
    let report = guest.repo.backup(&guest.image, "vm/disk", &["--format", "raw"]);
    guest.keep(point_of(&report));
    guest.direct().verify();
    guest.repo.assert_no_leftovers();
    guest.assert_still_has(&guest.points);
}

/// A list lacked a point on which nothing else in the list was built: the point before it was dropped, on which it
/// was.
#[test]
fn a_list_that_lacks_a_point_lets_nothing_go() {
    let mut guest = guest();
    patch(&guest.image, 0, &[7; 70_000]);
    let full = guest.repo.backup(&guest.image, "vm/disk", &["--format", "raw", "--kind", "full"]);
    guest.points.push((point_of(&full), guest.lab.path("full.raw")));
    std::fs::copy(&guest.image, guest.lab.path("full.raw")).unwrap();
    std::fs::write(guest.lab.path("stolen"), "").unwrap();
    // All that builds on the first point.
    let lacking: Vec<&'static str> =
        guest.points[1..3].iter().map(|(point, _)| &*point.clone().leak()).collect();
    let merge = args!["merge", format!("vm@{}..{}", guest.points[0].0, guest.points[1].0)];
    let prune = args!["prune", "--keep-last", "1", "--grace", "0"];
    for (command, lacks) in [(prune.clone(), lacking[1]), (merge, lacking[1])] {
        guest.proxy.judge(move |_, seen| match seen.target.contains("list-type") {
            true => Fate::Lacks(lacks),
            false => Fate::Pass,
        });
        let said = guest.repo.run(command).fails_with(1);
        assert!(said.contains("lacks") && said.contains("which is there"), "{said}");
        guest.assert_still_has(&guest.points);
    }
    // What another host has removed is missed by nobody.
    guest.direct().run(prune.clone()).ok();
    guest.proxy.pass();
    guest.repo.run(prune).ok();
    guest.assert_still_has(&guest.points[3..]);
}

/// Two admins removed a key each at the same time: each saw the other's, and none was left.
#[test]
fn the_last_two_keys_are_not_removed_at_once() {
    let (lab, place, proxy) = (Lab::new(), fresh_place(), Proxy::new(endpoint()));
    let repo = Repo::encrypted_by(address(endpoint(), &place), lab.path("recovery.key"));
    repo.run(args!["key", "add", "second", "--recipient", ADMIN]).ok();
    let list = repo.run(args!["key", "list", "--json"]).ok().json();
    let names = list["keys"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap());
    let first = names.filter(|name| *name != "second").collect::<String>();
    let behind = repo.copy_at(address(&proxy.endpoint, &place));
    let (other, mut is_removed) = (behind.copy_at(repo.path.clone()), false);
    proxy.judge(move |_, seen| {
        if seen.method == "DELETE" && !std::mem::replace(&mut is_removed, true) {
            other.run(args!["key", "remove", first.as_str()]).ok();
        }
        Fate::Pass
    });
    let said = behind.run(args!["key", "remove", "second"]).fails_with(2);
    assert!(said.contains("is the last key"), "{said}");
    let list = repo.run(args!["key", "list", "--json"]).ok().json();
    assert_eq!(list["keys"].as_array().unwrap().len(), 1, "{list}");
}

/// What was proved a second ago was believed of a backup's lock: it was taken in less, and the archive went before the
/// manifest stood there. The backup ended with status 0.
#[test]
fn a_backup_whose_lock_is_stolen_says_that_its_archive_may_be_missing() {
    let guest = Guest::new(&["full"]);
    guest.change();
    guest.steal_at(".json".to_owned());
    let backup = args!["backup", guest.image.as_path(), "--disk", "vm/disk", "--format", "raw"];
    let said = guest.repo.run(backup).fails_with(5);
    assert!(said.contains("its archives may be missing"), "{said}");
    guest.assert_still_has(&guest.points);
}

/// The answer that a manifest stands was lost, the next one said that something stands there already, and what stood
/// between was out of reach for a moment when it was asked whose that is: the archive was taken away, and the manifest stayed.
#[test]
fn a_manifest_that_stands_already_keeps_its_archive() {
    let guest = Guest::new(&["full"]);
    guest.change();
    let (mut puts, mut looks) = (0, 0);
    guest.proxy.judge(move |_, seen| {
        let is_manifest = seen.target.split('?').next().unwrap().ends_with(".json");
        match (is_manifest, seen.method.as_str()) {
            (true, "PUT") if std::mem::replace(&mut puts, 1) == 0 => Fate::Unanswered,
            (true, "HEAD") if std::mem::replace(&mut looks, 1) == 0 => Fate::Missing,
            _ => Fate::Pass,
        }
    });
    let backup = args!["backup", guest.image.as_path(), "--disk", "vm/disk", "--format", "raw"];
    guest.repo.run(backup).ok();
    let seen = guest.proxy.seen();
    assert!(seen.iter().any(|it| it.method == "HEAD" && it.target.contains(".json")), "{seen:?}");
    guest.direct().verify();
    assert_eq!(guest.direct().points("vm/disk").len(), 2);
}

/// Where nobody could tell which keys were left, the one that was put back was called the last.
#[test]
fn a_key_that_is_put_back_says_why() {
    let (lab, place, proxy) = (Lab::new(), fresh_place(), Proxy::new(endpoint()));
    let repo = Repo::encrypted_by(address(endpoint(), &place), lab.path("recovery.key"));
    repo.run(args!["key", "add", "second", "--recipient", ADMIN]).ok();
    let behind = repo.copy_at(address(&proxy.endpoint, &place));
    for is_put_back in [true, false] {
        let mut is_removed = false;
        proxy.judge(move |_, seen| {
            is_removed |= seen.method == "DELETE" && seen.target.contains("second.age");
            let is_over =
                seen.target.contains("list-type") || (seen.method == "PUT" && !is_put_back);
            if is_removed && is_over { Fate::Expired } else { Fate::Pass }
        });
        let said = behind.run(args!["key", "remove", "second"]).fails_with(1);
        let words = match is_put_back {
            true => "the key second stays: nobody can tell whether it is the last key",
            false => "the key second is removed, and can't be put back",
        };
        assert!(said.contains(words), "{said}");
        let list = repo.run(args!["key", "list", "--json"]).ok().json();
        assert_eq!(list["keys"].as_array().unwrap().len(), 1 + usize::from(is_put_back), "{list}");
    }
}

/// Where the lock could not be looked at after the manifest stood there, it was said that somebody else had written there.
#[test]
fn a_lock_that_cannot_be_looked_at_is_doubted_and_not_lost() {
    let mut guest = guest();
    let impatient =
        format!("{}&patience=1", address(&guest.proxy.endpoint, &guest.place).display());
    let repo = guest.repo.copy_at(impatient.into());
    let mut is_made = false;
    guest.proxy.judge(move |_, seen| {
        let name = seen.target.split('?').next().unwrap();
        if seen.method == "PUT" && name.contains("/vm/points/2") && !is_made {
            is_made = true;
            return Fate::Pass;
        }
        match is_made && seen.method == "GET" && name.ends_with("/vm/.lock") {
            true => Fate::Throttle,
            false => Fate::Pass,
        }
    });
    guest.change();
    let said = repo.backup_run(&guest.image, "vm/disk", &["--format", "raw"]).fails_with(1);
    assert!(said.contains("nobody can tell whether somebody else wrote there meanwhile"), "{said}");
    assert!(!said.contains("taken by somebody else"), "{said}");
    guest.proxy.pass();
    let point = guest.direct().points("vm/disk").into_iter().max().unwrap();
    guest.keep(point);
    assert_eq!(guest.direct().points("vm/disk").len(), 4);
    guest.direct().verify();
    guest.assert_has(&guest.points);
}

/// One answer about the own lock whose bytes came cut was taken for the lock of somebody else.
#[test]
fn a_lock_whose_bytes_come_cut_is_not_lost() {
    let mut guest = Guest::new(&["full"]);
    guest.change();
    let mut is_cut = false;
    guest.proxy.judge(move |_, seen| {
        let is_look = seen.method == "GET" && seen.target.ends_with("/vm/.lock");
        match is_look && !std::mem::replace(&mut is_cut, is_look) {
            true => Fate::Shortened,
            false => Fate::Pass,
        }
    });
    let point = point_of(&guest.repo.backup(&guest.image, "vm/disk", &["--format", "raw"]));
    assert!(
        guest.proxy.seen().iter().any(|it| it.target.ends_with("/vm/.lock") && it.method == "GET")
    );
    guest.keep(point);
    guest.assert_has(&guest.points);
}
