//! Lists that tell of a manifest as it was before somebody replaced it: nothing goes by it, and nothing is lost.

use std::time::Duration;

use super::guest::Guest;
use crate::harness::args;
use crate::harness::proxy::Fate;
use crate::harness::repo::Repo;
use crate::harness::store::{BUCKET, ask};

/// What a list tells of the manifest of a point.
fn told(guest: &Guest, number: usize) -> &'static str {
    let prefix = format!("{}%2Fvm%2Fpoints%2F{}.json", guest.place, guest.points[number].0);
    let target = format!("/{BUCKET}?encoding-type=url&list-type=2&prefix={prefix}");
    let page = ask("GET", &target, Vec::new()).ok().text();
    let (_, more) = page.split_once("<Contents>").unwrap();
    more.split_once("</Contents>").unwrap().0.to_owned().leak()
}

/// From now on lists tell of the manifest of a point what they told before.
fn lag(guest: &Guest, number: usize, before: &'static str) {
    assert_ne!(before, told(guest, number));
    let name: &'static str = format!("{}.json", guest.points[number].0).leak();
    guest.proxy.judge(move |_, seen| match seen.target.contains("list-type") {
        true => Fate::Tells(name, before),
        false => Fate::Pass,
    });
}

/// A point that another host had brought back and pinned was dropped, with status 0: the list told of its manifest as
/// it was before.
#[test]
fn a_point_that_was_brought_back_does_not_go() {
    let guest = Guest::new(&["full", "full", "full"]);
    let prune = |grace: &str| args!["prune", "--keep-last", "1", "--grace", grace];
    guest.repo.run(prune("1s")).ok();
    let before = told(&guest, 1);
    std::thread::sleep(Duration::from_millis(1100));
    let point = format!("vm@{}", guest.points[1].0);
    guest.direct().run(args!["undelete", point.as_str()]).ok();
    guest.direct().run(args!["pin", point.as_str()]).ok();
    lag(&guest, 1, before);
    let said = guest.repo.run(prune("1s")).fails_with(5);
    assert!(said.contains(&guest.points[1].0) && said.contains("lags"), "{said}");
    guest.assert_has(&guest.points);
    guest.repo.run(prune("1s")).ok();
    guest.assert_has(&guest.points[1..]);
    assert_eq!(guest.repo.points("vm/disk").len(), 2);
}

/// A point was merged, and its pin was not seen: it was absorbed.
#[test]
fn a_point_that_was_pinned_meanwhile_is_not_merged() {
    let guest = Guest::new(&["full", "incremental", "incremental"]);
    let before = told(&guest, 0);
    guest.direct().run(args!["pin", format!("vm@{}", guest.points[0].0)]).ok();
    lag(&guest, 0, before);
    let merge = args!["merge", format!("vm@{}..{}", guest.points[0].0, guest.points[1].0)];
    let said = guest.repo.run(merge).fails_with(5);
    assert!(said.contains("lags"), "{said}");
    guest.assert_has(&guest.points);
    guest.direct().verify();
}

/// A merged archive was removed as one that no manifest had come to name, and three points were lost.
#[test]
fn what_another_host_has_merged_is_no_leftover() {
    let mut guest = Guest::new(&["full", "incremental"]);
    let before = told(&guest, 1);
    // What was replaced stays while somebody reads it.
    let reader = guest.direct().open();
    let hold = reader.hold(&"vm".parse().unwrap()).unwrap();
    let merge = args!["merge", format!("vm@{}..{}", guest.points[0].0, guest.points[1].0)];
    guest.direct().run(merge).ok();
    lag(&guest, 1, before);
    guest.change();
    let point = guest.repo.backup(&guest.image, "vm/disk", &["--format", "raw"]);
    guest.keep(crate::harness::repo::point_of(&point));
    drop(hold);
    guest.assert_has(&guest.points[1..]);
    guest.direct().run(args!["prune", "--keep-last", "9"]).ok();
    guest.direct().verify();
    guest.assert_has(&guest.points[1..]);
}

/// A mark is set on the manifest that stands there, whatever a list tells of it.
#[test]
fn a_mark_is_set_on_what_stands_there() {
    let guest = Guest::new(&["full"]);
    let before = told(&guest, 0);
    let point = format!("vm@{}", guest.points[0].0);
    let holder = |name: &str| args!["pin", point.as_str(), "--reason", name];
    guest.direct().run(holder("first")).ok();
    lag(&guest, 0, before);
    guest.repo.run(holder("second")).ok();
    guest.proxy.pass();
    guest.repo.run(args!["unpin", point.as_str()]).ok();
}

/// Each of two people removed a key, and saw the other one: none was left.
#[test]
fn two_who_remove_the_last_two_keys_leave_one() {
    let guest = Guest::new(&[]);
    let place = format!("{}-keys", guest.place);
    let path = crate::harness::store::address(&guest.proxy.endpoint, &place);
    let repo = Repo::encrypted(path);
    let recipient = args!["key", "add", "anna", "--recipient", crate::harness::repo::ADMIN];
    repo.run(recipient).ok();
    let keys = || {
        let listed = repo.without_key().run(args!["key", "list", "--json"]).ok().json();
        let names = listed["keys"].as_array().unwrap().iter();
        names.map(|key| key["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let names = keys();
    assert_eq!(names.len(), 2);
    let (mine, others) = (names[0].clone(), names[1..].to_vec());
    let own = format!("/keys/{mine}.age");
    guest.proxy.judge(move |_, seen| {
        if seen.method == "DELETE" && seen.target.contains(&own) {
            for other in &others {
                ask("DELETE", &format!("/{BUCKET}/{place}/keys/{other}.age"), Vec::new()).ok();
            }
        }
        Fate::Pass
    });
    let said = repo.without_key().run(args!["key", "remove", mine.as_str()]).fails_with(5);
    assert!(said.contains("put back"), "{said}");
    assert_eq!(keys(), [mine]);
}
