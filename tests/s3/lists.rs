//! Lists that lack what is there: whatever they say, nothing good goes, and nothing begins anew.

use std::sync::atomic::Ordering;
use std::time::Duration;

use qdelta::base::cancel::Cancel;
use qdelta::vault::repository::storage::{LockMode, Storage, Wait};

use super::guest::Guest;
use super::locks::{host, name};
use crate::harness::proxy::Fate;
use crate::harness::repo::{Repo, point_of};
use crate::harness::store::{BUCKET, ask, endpoint};
use crate::harness::{args, qdelta, run, state};

impl Guest {
    /// From now on every list lacks the archive of this point.
    fn lack_archive(&self, number: usize) {
        let archive: &'static str = format!("{}-", self.points[number].0).leak();
        self.proxy.judge(move |_, seen| match seen.target.contains("list-type") {
            true => Fate::Lacks(archive),
            false => Fate::Pass,
        });
    }

    /// What a list says of the manifest of a point, but for its name and time.
    fn listed(&self, point: &str) -> String {
        let prefix = format!("{}%2Fvm%2Fpoints%2F{point}", self.place);
        let target = format!("/{BUCKET}?list-type=2&prefix={prefix}");
        let list = ask("GET", &target, Vec::new()).ok().text();
        let (_, rest) = list.split_once("<ETag>").unwrap();
        let (listed, _) = rest.split_once("</Size>").unwrap();
        assert!(listed.contains("<Size>"), "{list}");
        listed.to_owned()
    }

    /// From now on every list shows the manifest of a point as it was.
    fn list_as_before(&self, point: &str, before: String) {
        let now = self.listed(point);
        assert_ne!(now, before);
        let (now, before): (&'static str, &'static str) = (now.leak(), before.leak());
        self.proxy.judge(move |_, seen| match seen.target.contains("list-type") {
            true => Fate::Swaps(now, before),
            false => Fate::Pass,
        });
    }

    /// A prune is killed when it is settled that the first point goes.
    fn settle_that_the_first_goes(&self) -> String {
        let (first, _) = &self.points[0];
        let (repository, domain) = (self.direct().open(), "vm".parse().unwrap());
        let lock = repository.lock(&domain, Wait::UNHEARD).unwrap();
        let going = [first.parse().unwrap()].into_iter().collect();
        repository.condemn(&lock, &going, &Cancel::default()).unwrap();
        first.clone()
    }

    /// Every point is there, whole.
    #[track_caller]
    fn assert_has_all(&self) {
        self.assert_has(&self.points);
        self.direct().verify();
    }
}

/// A point whose archive a list lacked was called damaged: an older one stayed in its place, and it was dropped, with
/// status 0.
#[test]
fn a_list_that_lacks_an_archive_lets_nothing_go() {
    let guest = Guest::new(&["full", "full", "full"]);
    let prune = args!["prune", "--keep-last", "2", "--grace", "0"];
    let mut rehearsal = prune.clone();
    rehearsal.extend(args!["--dry-run"]);
    for command in [rehearsal, prune.clone()] {
        guest.lack_archive(1);
        let said = guest.repo.run(command).fails_with(1);
        assert!(said.contains("lacks") && said.contains("which is there"), "{said}");
        guest.assert_has_all();
    }
    // Nobody calls it damaged, and a copy has it.
    guest.lack_archive(1);
    let listed = guest.repo.run(args!["points", "vm/disk"]).ok().text();
    assert!(!listed.contains("missing") && !listed.contains("damaged"), "{listed}");
    // In the plain, as the first one.
    let copy = guest.lab.path("copy");
    run(qdelta(args!["init", copy.as_path()])).ok();
    let to = Repo::at(copy).without_ring();
    guest.repo.run(args!["copy", "--to", to.path.as_path()]).ok();
    assert_eq!(to.points("vm/disk").len(), 3);
    guest.proxy.pass();
    guest.repo.run(prune).ok();
    let left = guest.repo.points("vm/disk");
    assert_eq!(left, [guest.points[1].0.clone(), guest.points[2].0.clone()]);
}

/// A chain of which a list lacked an archive was called broken: the next backup began anew.
#[test]
fn a_list_that_lacks_an_archive_does_not_break_a_chain() {
    let mut guest = Guest::new(&["full", "incremental"]);
    guest.lack_archive(0);
    guest.change();
    let said = guest.repo.backup(&guest.image, "vm/disk", &["--format", "raw"]);
    assert_eq!(said["kind"], "incremental", "{said}");
    guest.keep(point_of(&said));
    let merge = args!["merge", format!("vm@{}..{}", guest.points[0].0, guest.points[1].0)];
    let said = guest.repo.run(merge).fails_with(1);
    assert!(said.contains("lacks"), "{said}");
    guest.assert_has_all();
}

/// A prune was killed when it was settled that a point goes, and somebody pinned it. On a host that had not seen the point
/// a list lacked its manifest, and so its pin: its archive went.
#[test]
fn a_list_that_lacks_a_pinned_point_lets_it_not_go() {
    let guest = Guest::new(&["full", "full", "full"]);
    let first = guest.settle_that_the_first_goes();
    guest.direct().run(args!["pin", format!("vm@{first}")]).ok();
    let lacks: &'static str = format!("points/{first}").leak();
    guest.proxy.judge(move |_, seen| match seen.target.contains("list-type") {
        true => Fate::Lacks(lacks),
        false => Fate::Pass,
    });
    let fresh = guest.lab.path("state");
    let prune = args!["prune", "--keep-last", "9", "--state", fresh.as_path()];
    let said = guest.repo.run(prune.clone()).fails_with(1);
    assert!(said.contains("lacks") && said.contains("which is there"), "{said}");
    guest.assert_has_all();
    guest.repo.run(prune).ok();
    guest.assert_has_all();
}

/// A list showed the manifest of a point as it was before somebody pinned the point, and this host had that manifest in its
/// cache: the point was removed.
#[test]
fn a_list_that_shows_a_point_without_its_pin_lets_it_not_go() {
    let guest = Guest::new(&["full", "full", "full"]);
    let first = guest.settle_that_the_first_goes();
    guest.repo.run(args!["points"]).ok();
    let before = guest.listed(&first);
    guest.direct().run(args!["pin", format!("vm@{first}")]).ok();
    guest.list_as_before(&first, before);
    let prune = args!["prune", "--keep-last", "9"];
    let said = guest.repo.run(prune.clone()).fails_with(1);
    assert!(said.contains("as it was before"), "{said}");
    guest.assert_has_all();
    guest.repo.run(prune).ok();
    guest.assert_has_all();
}

/// A list showed the manifest of a point as it was before another host had merged the points below it: the merged archive
/// was one that no manifest named, and the next backup removed it.
#[test]
fn a_list_that_shows_a_point_before_it_was_merged_lets_nothing_go() {
    let mut guest = Guest::new(&["full", "incremental", "incremental"]);
    let [first, second] = [0, 1].map(|number| guest.points[number].0.clone());
    guest.repo.run(args!["points"]).ok();
    let before = guest.listed(&second);
    // What was merged stays as long as somebody reads.
    let reader = host(endpoint(), &guest.place, 60);
    let reads = reader.lock(&name(".keep"), LockMode::Shared, Wait::UNHEARD).unwrap();
    guest.direct().run(args!["merge", format!("vm@{first}..{second}"), "--io", "threads"]).ok();
    guest.list_as_before(&second, before);
    guest.change();
    let report = guest.repo.backup(&guest.image, "vm/disk", &["--format", "raw"]);
    guest.keep(point_of(&report));
    drop(reads);
    guest.assert_has(&guest.points[1..]);
    guest.direct().run(args!["prune", "--keep-last", "9"]).ok();
    guest.assert_has(&guest.points[1..]);
    guest.direct().verify();
}

/// Points that another host has removed were asked for one after the other by each prune. Counted by how many are on
/// their way at once, and not by the clock.
#[test]
fn points_that_are_gone_are_asked_for_many_at_a_time_and_once() {
    let guest = Guest::new(&["full"]);
    let known = state().join(guest.repo.open().id()).join("vm+listed");
    let mut seen = std::fs::read_to_string(&known).unwrap();
    (0..60).for_each(|minute| seen += &format!("20250101T00{minute:02}00.000Z\n"));
    std::fs::write(&known, seen).unwrap();
    let prune = || {
        guest.proxy.judge(|_, seen| match seen.target.contains("points/20250101") {
            true => Fate::Slow(50),
            false => Fate::Pass,
        });
        guest.repo.run(args!["prune", "--keep-last", "9"]).ok();
        let seen = guest.proxy.seen();
        let looks = seen.iter().filter(|it| it.method == "HEAD");
        looks.filter(|it| it.target.contains("points/20250101")).count()
    };
    assert_eq!(prune(), 60);
    let most = guest.proxy.most_at_once.load(Ordering::SeqCst);
    assert!(most >= 8, "at most {most} at once");
    assert_eq!(prune(), 0);
}

/// A point that another host had brought back and pinned was dropped, with status 0: the list told of its manifest as it
/// was before.
#[test]
fn a_list_that_shows_a_point_as_removed_lets_it_not_go() {
    let guest = Guest::new(&["full", "full", "full"]);
    let prune = || args!["prune", "--keep-last", "1", "--grace", "1s"];
    guest.repo.run(prune()).ok();
    let second = guest.points[1].0.clone();
    let before = guest.listed(&second);
    std::thread::sleep(Duration::from_millis(1100));
    let point = format!("vm@{second}");
    guest.direct().run(args!["undelete", point.as_str()]).ok();
    guest.direct().run(args!["pin", point.as_str()]).ok();
    guest.list_as_before(&second, before);
    let said = guest.repo.run(prune()).fails_with(1);
    assert!(said.contains("as it was before"), "{said}");
    guest.assert_has_all();
    guest.repo.run(prune()).ok();
    guest.assert_has(&guest.points[1..]);
    assert_eq!(guest.repo.points("vm/disk").len(), 2);
}

/// A point was merged into a later one: the list told of its manifest as it was before somebody pinned it.
#[test]
fn a_list_that_shows_a_point_without_its_pin_merges_nothing_for_good() {
    let guest = Guest::new(&["full", "incremental", "incremental"]);
    let [first, second] = [0, 1].map(|number| guest.points[number].0.clone());
    let before = guest.listed(&first);
    guest.direct().run(args!["pin", format!("vm@{first}")]).ok();
    guest.list_as_before(&first, before);
    let outcome =
        guest.repo.run(args!["merge", format!("vm@{first}..{second}"), "--io", "threads"]);
    eprintln!("{}", outcome.report());
    guest.assert_has_all();
    assert_eq!(guest.repo.points("vm/disk").len(), 3);
}

/// A list lacked the manifest of a point that this host had never seen: the manifest was said to be lost, and the advice was
/// to move the point's archive away.
#[test]
fn a_list_that_lacks_a_point_which_this_host_has_never_seen_is_to_blame() {
    let guest = Guest::new(&["full", "incremental", "full"]);
    let [first, second, third] = [0, 1, 2].map(|number| guest.points[number].0.clone());
    let lacks: &'static str = format!("points/{third}").leak();
    guest.proxy.judge(move |_, seen| match seen.target.contains("list-type") {
        true => Fate::Lacks(lacks),
        false => Fate::Pass,
    });
    let fresh = guest.lab.path("state");
    let commands = [
        args!["prune", "--keep-last", "1", "--grace", "0"],
        args!["merge", format!("vm@{first}..{second}"), "--io", "threads"],
        args!["points"],
        args!["verify"],
    ];
    for mut command in commands {
        let is_refused = command[0] == "prune" || command[0] == "merge";
        command.extend(args!["--state", fresh.as_path()]);
        let _ = std::fs::remove_dir_all(&fresh);
        let outcome = guest.repo.run(command).sane();
        let said = format!("{}{}", outcome.text(), outcome.stderr);
        assert!(!is_refused || outcome.code() == Some(1), "{said}");
        assert_ne!(outcome.code(), Some(0), "{said}");
        assert!(said.contains(&format!("lacks {third}, which is there")), "{said}");
        assert!(!said.contains("is lost") && !said.contains("away"), "{said}");
    }
    // Whoever named it by its id was told that there is no such point.
    let (named, output) = (format!("vm@{third}"), guest.lab.path("restored.raw"));
    for command in [args!["restore", named.as_str(), output], args!["pin", named.as_str()]] {
        let said = guest.repo.run(command).fails_with(1);
        assert!(said.contains(&format!("lacks {third}, which is there")), "{said}");
    }
    // And whoever wanted to add one, that the archive belongs to none.
    guest.change();
    let backup = args!["backup", guest.image.as_path(), "--disk", "vm/disk", "--format", "raw"];
    let outcome = guest.repo.run(backup).sane();
    assert_ne!(outcome.code(), Some(0));
    assert!(!outcome.stderr.contains("belongs to no recovery point"), "{}", outcome.stderr);
    guest.proxy.pass();
    guest.assert_has_all();
}

/// A store or what stands before it may write an ETag in a list otherwise than in an answer: each point seemed to have been
/// changed, and no prune was ever done again.
#[test]
fn an_etag_is_the_same_however_it_is_written() {
    let guest = Guest::new(&["full", "full"]);
    for (from, to) in [("&#34;", ""), ("<ETag>", "<ETag>W/")] {
        guest.proxy.judge(move |_, seen| match seen.target.contains("list-type") {
            true => Fate::Swaps(from, to),
            false => Fate::Pass,
        });
        guest.repo.run(args!["prune", "--keep-last", "1", "--grace", "1s"]).ok();
        std::thread::sleep(Duration::from_millis(1100));
    }
    guest.repo.run(args!["prune", "--keep-last", "1", "--grace", "1s"]).ok();
    guest.assert_has(&guest.points[1..]);
    assert_eq!(guest.repo.points("vm/disk").len(), 1);
}

/// A file of a machine that no manifest names goes by what the store itself says, so also on a host that remembers nothing;
/// and who names it again holds it, whoever's list lacks the point. It went by the notes of a host, while a backup of
/// another one found it there and named it.
#[test]
fn a_machine_file_that_is_named_again_stays() {
    let guest = Guest::new(&["full"]);
    let (repository, domain) = (guest.direct().open(), "vm".parse().unwrap());
    let store = || {
        let lock = repository.lock(&domain, Wait::UNHEARD).unwrap();
        let content = std::io::Cursor::new(b"variables of a firmware");
        repository.store_machine_file(&lock, content, "/x".as_ref()).unwrap().0
    };
    let file = format!("{}.zst", store());
    let target = format!("/{BUCKET}/{}/vm/machine/{file}", guest.place);
    let mark = format!("{target}.unnamed");
    let is_there = |target: &str| ask("GET", target, args!["-o", "/dev/null"]).code() == Some(0);
    // Each on a host of its own.
    let mut host = 0;
    let mut prune = || {
        host += 1;
        let fresh = guest.lab.path(format!("state-{host}"));
        let words = args!["prune", "--keep-last", "9", "--state", fresh.as_path(), "--json"];
        let report = guest.direct().run(words).ok().json();
        report["guests"][0]["data"]["machine_files"].as_u64().unwrap()
    };
    let date_back = || {
        let hours = jiff::SignedDuration::from_hours(25);
        let text = (jiff::Timestamp::now() - hours).to_string();
        ask("PUT", &mark, args!["--data-binary", text]).ok();
    };
    assert_eq!(prune(), 0);
    assert_eq!(prune(), 0);
    assert!(is_there(&target) && is_there(&mark));
    date_back();
    store();
    assert_eq!(prune(), 0);
    assert!(is_there(&target));
    date_back();
    assert_eq!(prune(), 1);
    assert!(!is_there(&target) && !is_there(&mark));
}
