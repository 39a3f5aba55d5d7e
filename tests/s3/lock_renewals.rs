//! Locks that hold as long as points need their files: whoever adds or changes points renews them, and nobody
//! ends that with one object that he may write.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

use crate::harness::images::patch;
use crate::harness::proxy::Proxy;
use crate::harness::repo::{ADMIN, Repo, point_of};
use crate::harness::store::{LOCKED_BUCKET, ask, endpoint, locked_place};
use crate::harness::{Lab, Outcome, args, qdelta, run};

use super::object_locks::{locked, prefix, versions};

/// A guest whose files a store locks.
struct Locked {
    _lab: Lab,
    repo: Repo,
    image: PathBuf,
}

impl Locked {
    fn new() -> Self {
        let (lab, repo) = (Lab::new(), locked("1d"));
        let image = lab.path("image.raw");
        std::fs::write(&image, vec![1; 1 << 20]).unwrap();
        Self { _lab: lab, repo, image }
    }

    /// The guest writes and is backed up, whatever comes of it.
    fn night(&self, number: u8) -> Outcome {
        patch(&self.image, u64::from(number % 8) << 17, &[number; 70_000]);
        self.repo.backup_run(&self.image, "vm/disk", &["--format", "raw"]).sane()
    }
}

/// For how many hours from now on every point of a repository is locked at least.
#[track_caller]
fn least_hours(repo: &Repo) -> i64 {
    let list = repo.run(args!["points", "--removed", "--json"]).ok().json();
    let points = list["disks"][0]["points"].as_array().unwrap();
    let until = points.iter().filter(|it| it["removed"].is_null()).map(|it| {
        let until: jiff::Timestamp = it["safe_until"].as_str().unwrap_or_default().parse().unwrap();
        until.duration_since(jiff::Timestamp::now()).as_hours()
    });
    until.min().unwrap()
}

/// Sets the period of the locks in `qdelta.toml`.
fn set_days(repo: &Repo, days: u32) {
    repo.edit_settings(|text| {
        let line = text.lines().find(|line| line.starts_with("lock =")).unwrap_or("lock =");
        let (rest, new) = (text.replace(&format!("{line}\n"), ""), format!("lock = \"{days}d\"\n"));
        match rest.find("\n[") {
            Some(at) => format!("{}\n{new}{}", &rest[..at], &rest[at..]),
            None => format!("{rest}{new}"),
        }
    });
}

/// An object of a repository.
fn object(repo: &Repo, name: &str) -> String {
    format!("/{LOCKED_BUCKET}/{}/{name}", prefix(repo))
}

/// Backups and prunes alone locked anew: a copy that only `copy` writes to stood without locks after the period.
#[test]
fn whoever_adds_or_changes_points_locks_anew() {
    let lab = Lab::new();
    let source = Repo::init(lab.path("source")).without_ring();
    let image = lab.path("image.raw");
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    let copy = locked("1d");
    let mut points = Vec::new();
    let mut night = || {
        patch(&image, (points.len() as u64) << 17, &[2; 70_000]);
        points.push(point_of(&source.backup(&image, "vm/disk", &["--format", "raw"])));
        source.run(args!["copy", "--to", copy.path.as_path()]).ok();
        points.clone()
    };
    night();
    night();
    set_days(&copy, 10);
    let points = night();
    assert!(least_hours(&copy) > 8 * 24, "copy");
    copy.run(args!["prune", "--keep-last", "1", "--grace", "9d"]).ok();
    set_days(&copy, 20);
    copy.run(args!["undelete", format!("vm@{}", points[1])]).ok();
    copy.run(args!["undelete", format!("vm@{}", points[0])]).ok();
    assert!(least_hours(&copy) > 17 * 24, "undelete");
    set_days(&copy, 30);
    copy.run(args!["merge", format!("vm@{}..{}", points[0], points[1])]).ok();
    assert!(least_hours(&copy) > 26 * 24, "merge");
    set_days(&copy, 40);
    let is_broken = |name: &str| name.ends_with(".qdelta") && name.contains(&points[2]);
    let mut names = copy.files().into_iter().map(|it| it.to_string_lossy().into_owned());
    let broken = names.find(|name| is_broken(name)).unwrap();
    ask("PUT", &object(&copy, &broken), args!["--data-binary", "broken"]).ok();
    let words = args!["repair", "--from", source.path.as_path(), "--json"];
    copy.run(words).ok();
    assert!(least_hours(&copy) > 35 * 24, "repair");
}

/// A host that has the public key alone could not read what older points need, and locked their manifests only.
#[test]
fn a_host_that_has_lost_its_state_locks_what_it_can_not_read() {
    let lab = Lab::new();
    let path = locked_place();
    let (key, host) = (lab.path("recovery"), lab.path("host.key"));
    let encrypt = args!["--encrypt", "--recovery", key.as_path(), "--recipient", ADMIN];
    run(qdelta([args!["init", path.as_path(), "--lock", "1d"], encrypt].concat())).ok();
    let repo = Repo::at(path).without_ring().with_key(&key);
    repo.run(args!["key", "host", host.as_path()]).ok();
    let image = lab.path("image.raw");
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    let by_host = |state: &str, options: &[&str]| {
        let words = args!["backup", image.as_path(), "--disk", "vm/disk", "--format", "raw"];
        let more: Vec<OsString> = options.iter().map(OsString::from).collect();
        let state = args!["--state", lab.path(state), "--io", "threads"];
        repo.with_key(&host).run([words, more, state].concat())
    };
    by_host("one", &[]).ok();
    by_host("one", &[]).ok();
    set_days(&repo, 10);
    by_host("two", &["--kind", "full"]);
    assert_eq!(repo.points("vm/disk").len(), 3);
    assert!(least_hours(&repo) > 8 * 24);
}

/// Whoever could write `qdelta.toml` ended all locking without a word.
#[test]
fn a_line_that_is_left_out_ends_no_lock() {
    let lab = Lab::new();
    let repo = locked("2d");
    let image = lab.path("image.raw");
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    let warned = || {
        let report = repo.backup(&image, "vm/disk", &["--format", "raw"]);
        let warnings = report["warnings"].as_array().unwrap().clone();
        warnings.into_iter().filter(|it| it["code"] == "other-lock").count()
    };
    let warns = |repo: &Repo| {
        let outcome = repo.run(args!["points"]);
        outcome.stderr.contains("this host has seen 2d there")
    };
    assert_eq!(warned(), 0);
    repo.edit_settings(|text| text.replace("lock = \"2d\"\n", ""));
    assert!(warns(&repo), "nothing is said");
    warned();
    assert!(least_hours(&repo) > 40, "the new point is not locked");
    repo.edit_settings(|text| format!("lock = \"100y\"\n{text}"));
    let words = args!["backup", image.as_path(), "--disk", "vm/disk", "--format", "raw"];
    let outcome = repo.run(words);
    assert!(!outcome.status.success() && outcome.stderr.contains("longer than 10 years"));
    // A lost file can't say for how long; who makes it anew has to.
    ask("DELETE", &object(&repo, "qdelta.toml"), Vec::new()).ok();
    let repair = args!["init", "--repair", repo.path.as_path()];
    let repair = |more: Vec<OsString>| run(qdelta([repair.clone(), more].concat()));
    assert!(repair(Vec::new()).fails_with(2).contains("--repair --lock"));
    repair(args!["--lock", "3d"]).ok();
    let head = ask("HEAD", &object(&repo, "qdelta.toml"), args!["-I"]).ok().text();
    assert!(head.to_lowercase().contains("x-amz-object-lock-mode: compliance"), "{head}");
    warned();
    assert!(least_hours(&repo) > 60);
}

/// A lock that a right of the bucket's owner ends counted as one that nobody can end.
#[test]
fn a_lock_that_somebody_may_end_is_none() {
    let lab = Lab::new();
    let path = locked_place();
    run(qdelta(args!["init", path.as_path()])).ok();
    let repo = Repo::at(path).without_ring();
    let image = lab.path("image.raw");
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    let point = point_of(&repo.backup(&image, "vm/disk", &["--format", "raw"]));
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(90 * 24);
    let until = until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let manifest = object(&repo, &format!("vm/points/{point}.json"));
    let lock = format!(
        "<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>{until}</RetainUntilDate></Retention>"
    );
    ask("PUT", &format!("{manifest}?retention="), args!["--data-binary", lock]).ok();
    set_days(&repo, 1);
    let list = repo.run(args!["points", "--json"]).ok().json();
    assert!(list["disks"][0]["points"][0]["safe_until"].is_null(), "{list}");
    let report = repo.backup(&image, "vm/disk", &["--format", "raw"]);
    let is_told = report["warnings"].to_string().contains("not-locked");
    let head = ask("HEAD", &manifest, args!["-I"]).ok().text().to_lowercase();
    assert!(head.contains(&until.to_lowercase()), "the lock has become shorter: {head}");
    // A store may ask for a right of its own before it makes such a lock a firm one.
    assert_ne!(is_told, head.contains("x-amz-object-lock-mode: compliance"), "{head}\n{report}");
    let list = repo.run(args!["points", "--json"]).ok().json();
    let points = &list["disks"][0]["points"];
    assert_eq!(points[0]["safe_until"].is_null(), is_told, "{list}");
    assert!(points[1]["safe_until"].is_string(), "{list}");
}

/// One object that anybody could leave hid a guest, and kept the past from being read.
#[test]
fn strange_objects_hide_nothing() {
    let lab = Lab::new();
    let repo = locked("1d");
    let image = lab.path("image.raw");
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    let point = point_of(&repo.backup(&image, "web/disk", &["--format", "raw"]));
    let archive = repo.files().into_iter().find(|it| it.to_string_lossy().ends_with(".qdelta"));
    let archive = archive.unwrap().file_name().unwrap().to_string_lossy().into_owned();
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let before = jiff::Timestamp::now().to_string();
    let sly = format!("web%252Fdisk%252F{archive}");
    let below = [format!("web/disk/{archive}/x"), format!("web/points/{point}.json/x")];
    let names = ["web", "web/disk", "web/points", "100%25", "%2541%25zz", "qdelta.toml/x", &sly];
    for name in names.into_iter().chain(below.iter().map(String::as_str)) {
        ask("PUT", &object(&repo, name), args!["--data-binary", "strange"]).ok();
    }
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let after = jiff::Timestamp::now().to_string();
    assert_eq!(repo.points("web/disk"), std::slice::from_ref(&point));
    repo.verify();
    repo.assert_restores_raw(&lab, "web/disk", &image);
    for moment in [&before, &after] {
        let words = args!["points", "--json", "--as-of", moment.as_str()];
        let list = repo.run(words).ok().json();
        assert_eq!(list["disks"][0]["points"][0]["point"], point.as_str(), "{list}");
        let words = args!["verify", "--io", "threads", "--as-of", moment.as_str()];
        repo.run(words).ok();
    }
}

/// Renewals held the newest version alone: whoever wrote over an archive, or hid it, had only to wait until the lock
/// of the real one ended.
#[test]
fn what_was_written_over_or_hidden_stays_locked() {
    let guest = Locked::new();
    let repo = &guest.repo;
    let is_told = |number: u8| {
        let report = guest.night(number).json();
        let warnings = report["warnings"].as_array().unwrap().clone();
        warnings.iter().any(|it| it["code"] == "written-over")
    };
    assert!(!is_told(2) && !is_told(3), "nothing was written over");
    let archives: Vec<_> =
        versions(repo).into_iter().filter(|(key, _)| key.ends_with(".qdelta")).collect();
    assert_eq!(archives.len(), 2);
    // The real versions, and not the newest ones.
    let least = |days: i64| {
        for (key, id) in &archives {
            let hours = hours_of(key, id);
            assert!(hours > days * 24, "{key} {id}: {hours} hours");
        }
    };
    set_days(repo, 10);
    for (key, _) in &archives {
        ask("PUT", &format!("/{LOCKED_BUCKET}/{key}"), args!["--data-binary", "rubbish"]).ok();
    }
    assert!(is_told(4), "nothing is said of what was written over");
    least(8);
    set_days(repo, 20);
    for (key, _) in &archives {
        ask("DELETE", &format!("/{LOCKED_BUCKET}/{key}"), Vec::new()).ok();
    }
    guest.night(5);
    least(17);
    // A lock that ends before the next backup is said to be short.
    let short = run(qdelta(args!["init", locked_place(), "--lock", "1h"])).ok();
    assert!(short.stderr.contains("may end before the next backup"), "{}", short.stderr);
}

/// What was hidden first and then written, and a manifest below so many versions that the one that counts was neither among
/// the eight oldest nor among the eight newest: its lock ended.
#[test]
fn what_was_hidden_and_then_written_stays_locked() {
    let guest = Locked::new();
    let repo = &guest.repo;
    let first = point_of(&guest.night(1).json());
    guest.night(2);
    for _ in 0..5 {
        for command in ["pin", "unpin"] {
            repo.run(args![command, format!("vm@{first}")]).ok();
        }
    }
    // Of each file the version that counts is the newest now.
    let mut real: Vec<(String, String)> = Vec::new();
    for (key, id) in versions(repo) {
        let is_counted = key.ends_with(".qdelta") || key.ends_with(&format!("/{first}.json"));
        if is_counted && real.iter().all(|(other, _)| *other != key) {
            real.push((key, id));
        }
    }
    assert_eq!(real.len(), 3, "{real:?}");
    set_days(repo, 10);
    for (key, _) in &real {
        let target = format!("/{LOCKED_BUCKET}/{key}");
        ask("DELETE", &target, Vec::new()).ok();
        for number in 0..9 {
            ask("PUT", &target, args!["--data-binary", format!("rubbish {number}")]).ok();
        }
    }
    guest.night(3);
    // It was said that nothing was written over, as what lies below is a mark of removal.
    let told = repo.run(args!["points"]).stderr;
    assert!(told.contains("written over") && told.contains(".qdelta"), "{told}");
    for (key, id) in &real {
        let hours = hours_of(key, id);
        assert!(hours > 8 * 24, "{key} {id}: {hours} hours");
    }
}

/// For how many hours from now on a version is locked.
fn hours_of(key: &str, id: &str) -> i64 {
    let target = format!("/{LOCKED_BUCKET}/{key}?versionId={id}");
    let head = ask("HEAD", &target, args!["-I"]).ok().text().to_lowercase();
    let until = head.lines().find_map(|line| {
        line.strip_prefix("x-amz-object-lock-retain-until-date: ")?.trim().to_uppercase().into()
    });
    let until: jiff::Timestamp = until.unwrap().parse().unwrap();
    until.duration_since(jiff::Timestamp::now()).as_hours()
}

/// Locks of new objects ended by the `Date` of answers: where something in front of the store wrote one that was twenty
/// days behind, they were twenty days shorter, and nobody heard of it. And a store behind a `Date` that was minutes ahead
/// was said to take requests whose time is over.
#[test]
fn a_wrong_date_in_front_of_the_store_makes_no_lock_shorter() {
    let lab = Lab::new();
    let proxy = Proxy::new(endpoint());
    proxy.date_ahead.store(180, Ordering::SeqCst);
    let place = locked_place().to_str().unwrap().replace(endpoint(), &proxy.endpoint);
    run(qdelta(args!["init", place.as_str(), "--lock", "30d"])).ok();
    let repo = Repo::at(place.into()).without_ring();
    let image = lab.path("image.raw");
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    proxy.date_ahead.store(-20 * 24 * 60 * 60, Ordering::SeqCst);
    repo.backup(&image, "vm/disk", &["--format", "raw"]);
    proxy.date_ahead.store(0, Ordering::SeqCst);
    let made = versions(&repo).into_iter().filter(|(key, _)| key.contains("/vm/"));
    let made: Vec<_> = made.filter(|(key, _)| !key.contains("/.")).collect();
    assert_eq!(made.len(), 2, "{made:?}");
    for (key, id) in made {
        let hours = hours_of(&key, &id);
        assert!(hours > 29 * 24, "{key}: {hours} hours");
    }
}

/// Whoever wrote over an archive with a lock of its own had `points` say that the point was safe for that long, while the
/// lock of the real bytes ended; and only the next backup told of it.
#[test]
fn what_was_written_over_is_told_and_the_real_bytes_count() {
    let lab = Lab::new();
    let repo = locked("2d");
    let image = lab.path("image.raw");
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    repo.backup(&image, "vm/disk", &["--format", "raw"]);
    let (archive, _) =
        versions(&repo).into_iter().find(|(key, _)| key.ends_with(".qdelta")).unwrap();
    let is_told = |words: &[&str]| {
        let words = words.iter().map(OsString::from).collect();
        repo.run(words).stderr.contains("written over")
    };
    assert!(!is_told(&["points"]) && !is_told(&["verify", "--io", "threads"]));
    let until = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(90 * 24);
    let until = until.strftime("%Y-%m-%dT%H:%M:%SZ");
    let mut words = args!["-H", "x-amz-object-lock-mode: COMPLIANCE"];
    words.extend(args!["-H", format!("x-amz-object-lock-retain-until-date: {until}")]);
    words.extend(args!["--data-binary", "rubbish"]);
    ask("PUT", &format!("/{LOCKED_BUCKET}/{archive}"), words).ok();
    let list = repo.run(args!["points", "--json"]).sane().json();
    let told = list["warnings"].to_string();
    assert!(told.contains("written-over") && told.contains(".qdelta"), "{list}");
    let until: jiff::Timestamp =
        list["disks"][0]["points"][0]["safe_until"].as_str().unwrap().parse().unwrap();
    let hours = until.duration_since(jiff::Timestamp::now()).as_hours();
    assert!((40..=48).contains(&hours), "{hours} hours: {list}");
    assert!(is_told(&["points"]) && is_told(&["verify", "--io", "threads"]));
    // And by the host's status, whose newest point it is.
    let config = lab.path("qdelta.toml");
    let text = format!(
        "[repositories.main]\nplace = \"{}\"\n[jobs.one]\nrepository = \"main\"\n\
         [[jobs.one.images]]\npath = \"{}\"\ndisk = \"vm/disk\"\n",
        repo.path.display(),
        image.display()
    );
    std::fs::write(&config, text).unwrap();
    let status = run(qdelta(args!["status", "--json", "--config", config.as_path()])).sane();
    assert!(status.text().contains("written over"), "{}", status.report());
}
